"""An owner's pages: what is to be decided, data sets and their terms, grants. Operators see those of all owners."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import or_
from starlette.responses import Response

from flows.gateway import datasets, owner
from flows.gateway.pages_chart import usage_chart
from flows.gateway.pages_forms import Form, GivenForm
from flows.gateway.pages_records import AUDIT_RECENT, entries, usage_of
from flows.gateway.pages_session import OwnerVisitor
from flows.gateway.pages_views import render, say, see
from flows.gateway.parameters import After, DatasetPath, IdPath
from flows.gateway.queries import owned_dataset, owned_grants
from flows.gateway.schemas import Approval, DatasetInfo, Denial, GrantInfo, NewDataset, NewGrant, NewTerms, Renewal
from flows.gateway.state import Gateway, GatewayState
from storage.database import utc_now
from storage.errors import NotFound
from storage.names import DATASET_PATTERN
from storage.registry import User
from storage.registry_models import Grant

router = APIRouter(prefix="/owner")

MOST = 500
SOON = 5
PER_PAGE = 25
DAYS = 30

State = Annotated[str, Query(pattern="^(|open|approved|denied|withdrawn)$")]
OneDataset = Annotated[str, Query(pattern=f"^({DATASET_PATTERN})?$")]


@router.get("")
def dashboard(request: Request, user: OwnerVisitor, gateway: GatewayState) -> Response:
    """Everything at a glance, and the requests to decide."""
    waiting = owner.list_owned_access_requests(user, gateway, state="open", limit=PER_PAGE)
    grants = _in_force(gateway, user)
    usage, first, last = usage_of(gateway, user, None, DAYS)
    return render(
        request,
        "owner.html",
        waiting=waiting,
        grants=grants,
        most=MOST,
        soon=[grant for grant in grants if grant.expires is not None][:SOON],
        chart=usage_chart(usage, first, last),
        days=DAYS,
        users=len({row.user for row in usage}),
        mine=owned_datasets(gateway, user),
        audit=entries(gateway, user, AUDIT_RECENT),
    )


def _in_force(gateway: Gateway, user: User) -> list[GrantInfo]:
    """Grants in force, those that end first before the others; no more than `MOST`."""
    now = utc_now()
    query = owned_grants(user).where(Grant.revoked.is_(None), or_(Grant.expires.is_(None), Grant.expires > now))
    found = gateway.registry.all(query.order_by(Grant.expires.is_(None), Grant.expires, Grant.id).limit(MOST))
    return [info for info in map(GrantInfo.of, found) if info.in_force]


def owned_datasets(gateway: Gateway, user: User) -> list[DatasetInfo]:
    """The data sets that the user decides about."""
    return list(owner.list_owned_datasets(user, gateway, limit=MOST).items)


# --- requests for access ---------------------------------------------------------------------------------------------


@router.get("/requests")
def requests(
    request: Request, user: OwnerVisitor, gateway: GatewayState, state: State = "open", after: After = 0
) -> Response:
    """Requests for access, those that were decided too."""
    found = owner.list_owned_access_requests(user, gateway, state or None, PER_PAGE, after)  # type: ignore[arg-type]
    return render(request, "requests.html", found=found, state=state, after=after)


@router.post("/requests/{identity}/approve")
def approve(identity: IdPath, request: Request, user: OwnerVisitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Grant what was asked for, or what the form says instead."""
    given: dict[str, Any] = {"days": form.days("days"), "quota": form.whole("quota"), "note": form.given("note")}
    made = owner.approve_access_request(identity, form.into(Approval, **given), user, gateway)
    say(request, f"{made.user} may have {made.dataset} restored: grant {made.id}.")
    return see("/owner")


@router.post("/requests/{identity}/deny")
def deny(identity: IdPath, request: Request, user: OwnerVisitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Refuse it, with the reason."""
    made = owner.deny_access_request(identity, form.into(Denial, note=form.text("note")), user, gateway)
    say(request, f"Request {identity} of {made.user} was denied.")
    return see("/owner")


# --- grants ----------------------------------------------------------------------------------------------------------


@router.get("/grants")
def grants(
    request: Request, user: OwnerVisitor, gateway: GatewayState, dataset: OneDataset = "", after: After = 0
) -> Response:
    """All grants, those that ended too, and the form to give one."""
    found = owner.list_owned_grants(user, gateway, dataset or None, PER_PAGE, after)
    mine = owned_datasets(gateway, user)
    return render(request, "grants.html", found=found, mine=mine, dataset=dataset, after=after)


@router.post("/grants")
def give(request: Request, user: OwnerVisitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Give a grant without being asked."""
    wanted = form.into(
        NewGrant,
        user=form.text("user"),
        dataset=form.text("dataset"),
        version=form.given("version"),
        classes=form.lines("classes"),
        quota=form.whole("quota"),
        expires=form.end("days"),
        note=form.given("note"),
    )
    made = owner.create_grant(wanted, user, gateway)
    say(request, f"{made.user} may have {made.dataset} restored: grant {made.id}.")
    return see("/owner/grants")


@router.post("/grants/{grant_id}/revoke")
def revoke(grant_id: IdPath, request: Request, user: OwnerVisitor, gateway: GatewayState, form: GivenForm) -> Response:
    """End a grant now."""
    made = owner.revoke_grant(grant_id, user, gateway)
    say(request, f"Grant {grant_id} of {made.user} for {made.dataset} was revoked.")
    return see("/owner/grants")


@router.post("/grants/{grant_id}/renew")
def renew(grant_id: IdPath, request: Request, user: OwnerVisitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Give a grant another end, and another quota."""
    wanted = form.into(Renewal, expires=form.end("days"), quota=form.whole("quota"))
    made = owner.renew_grant(grant_id, wanted, user, gateway)
    say(request, f"Grant {grant_id} of {made.user} for {made.dataset} was renewed.")
    return see("/owner/grants")


# --- data sets -------------------------------------------------------------------------------------------------------


@router.get("/datasets")
def list_datasets(request: Request, user: OwnerVisitor, gateway: GatewayState) -> Response:
    """Data sets, and the form to register one."""
    return render(request, "owned.html", mine=owned_datasets(gateway, user))


@router.post("/datasets")
def register(request: Request, user: OwnerVisitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Register a data set, or describe it anew."""
    new = form.into(NewDataset, name=form.text("name"), title=form.text("title"), description=form.text("description"))
    made = owner.register_dataset(new, user, gateway)
    say(request, f"{made.name} was saved.")
    return see(f"/owner/datasets/{made.name}")


@router.get("/datasets/{dataset}")
def show_dataset(dataset: DatasetPath, request: Request, user: OwnerVisitor, gateway: GatewayState) -> Response:
    """One data set: how it is described, and its terms of use."""
    owned_dataset(gateway.registry, user, dataset)
    return render(
        request,
        "owned_dataset.html",
        info=datasets.get_dataset(dataset, user, gateway),
        terms=_terms(gateway, user, dataset),
    )


@router.post("/datasets/{dataset}/terms")
def set_terms(
    dataset: DatasetPath, request: Request, user: OwnerVisitor, gateway: GatewayState, form: GivenForm
) -> Response:
    """Let other terms of use count."""
    made = owner.set_terms(dataset, _new_terms(form), user, gateway)
    say(request, f"Version {made.version} of the terms of use of {dataset} counts now.")
    return see(f"/owner/datasets/{dataset}")


def _new_terms(form: Form) -> NewTerms:
    return form.into(NewTerms, text=form.text("text"))


def _terms(gateway: Gateway, user: User, dataset: str) -> Any:
    try:
        return datasets.get_terms(dataset, user, gateway)
    except NotFound:
        return None
