"""What people send by forms: the CSRF token is checked first, then fields become what the API's models take.

    form.text("reason")   form.whole("days")   form.lines("classes")   form.into(AskAccess, dataset=...)

An empty field is None. A form with files is read as it comes: see `pages_upload.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from flows.gateway.auth import check_csrf
from storage.database import utc_now
from storage.errors import Forbidden, UsageError

FIELDS = 64
FIELD_BYTES = 256 << 10
"""One field; `frame.py` bounds all of them together."""

LONGEST_DAYS = 36_500

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Form:
    """The fields of a form that was sent by one of our pages."""

    values: Mapping[str, str]

    def text(self, name: str) -> str:
        """A field without the blanks around it; empty when it was left out."""
        return self.values.get(name, "").replace("\r\n", "\n").strip()

    def given(self, name: str) -> str | None:
        """A field, None when it is empty."""
        return self.text(name) or None

    def whole(self, name: str) -> int | None:
        """A whole number, None when it is empty. Raises UsageError."""
        text = self.text(name).replace(",", "").replace(" ", "")
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise UsageError(f"{_label(name)}: {text[:40]!a} is no whole number.", "Go back and correct it.")
        return int(text)

    def days(self, name: str) -> int | None:
        """A number of days, None when it is empty. Raises UsageError."""
        days = self.whole(name)
        if days is not None and not 1 <= days <= LONGEST_DAYS:
            raise UsageError(f"{_label(name)}: from 1 to {LONGEST_DAYS:,}.", "Go back and correct it.")
        return days

    def end(self, name: str) -> str | None:
        """The moment so many days from now, as the models take one; None: without an end."""
        days = self.days(name)
        return None if days is None else (utc_now() + timedelta(days=days)).isoformat().replace("+00:00", "Z")

    def lines(self, name: str) -> list[str] | None:
        """The parts between commas and line breaks; None when there are none."""
        parts = [part.strip() for part in self.text(name).replace(",", "\n").split("\n")]
        return [part for part in parts if part] or None

    def into(self, model: type[Model], **values: Any) -> Model:
        """What the API takes, of these values. Raises UsageError."""
        try:
            return model.model_validate(values)
        except ValidationError as error:
            found = [f"{_label(str(entry['loc'][0]))}: {entry['msg']}" for entry in error.errors()[:3] if entry["loc"]]
            raise UsageError(f"{'; '.join(found) or 'The form is not valid'}.", "Go back and correct it.") from None


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize()


async def given_form(request: Request) -> Form:
    """The form of this call. Raises Forbidden when it was not made by a page of this session."""
    values: dict[str, str] = {}
    async with request.form(max_files=0, max_fields=FIELDS, max_part_size=FIELD_BYTES) as data:
        for name, value in data.multi_items():
            if isinstance(value, str):
                values[name] = value.replace("\0", "")
    check_form(request, values)
    return Form(values)


GivenForm = Annotated[Form, Depends(given_form)]


def check_form(request: Request, values: Mapping[str, str]) -> None:
    """That these fields come from a form of this session. Raises Forbidden."""
    try:
        check_csrf(request.session, values.get("csrf", ""))
    except Forbidden:
        cure = "Load the page again and send the form once more; the browser has to accept this site's cookie."
        raise Forbidden("The form was not sent by a page of this session.", cure) from None
