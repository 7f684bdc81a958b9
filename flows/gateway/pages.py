"""Pages for people: HTML that is made here, works without a script, and loads nothing from anywhere else.

    /                log in with a token; who is logged in goes on to their pages
    /app ...         a user: data sets, terms, restorations               (pages_user, pages_restorations)
    /owner ...       an owner: requests to decide, grants, usage, audit   (pages_owner, pages_records)
    /operator ...    an operator: users, tokens, checking the audit log   (pages_operator)

A page decides nothing: it checks the session and the form's CSRF token, puts the fields into the same models that the
API takes, and calls the very functions that the API's routes are. What they raise becomes a page with what happened and
what to do.

    pages_session.py    who is logged in: a signed cookie that names a row in the registry
    pages_forms.py      forms: CSRF, fields
    pages_upload.py     forms with files, as they come
    pages_views.py      templates, times and numbers as people read them, errors as pages
    pages_chart.py      usage as a chart that is drawn here
    templates/ static/  HTML; one stylesheet and two small scripts, for progress only

The content security policy is that of `frame.py`: nothing inline, nothing from elsewhere.
"""

from typing import Final

from fastapi import APIRouter, FastAPI

from flows.gateway import (
    pages_operator,
    pages_owner,
    pages_records,
    pages_restorations,
    pages_session,
    pages_user,
    pages_views,
)
from storage.settings import Settings

STREAMED: Final = frozenset({pages_restorations.UPLOAD_PATH})
"""Forms whose body is no form to be held in memory: `frame.py` leaves their limits to them."""

router = APIRouter()
for _module in (pages_session, pages_user, pages_restorations, pages_owner, pages_records, pages_operator):
    router.include_router(_module.router)


def install(app: FastAPI, settings: Settings) -> None:
    """Sessions, and errors as pages for who reads pages."""
    pages_views.install(app)
    app.add_middleware(pages_session.Sessions, settings=settings)
