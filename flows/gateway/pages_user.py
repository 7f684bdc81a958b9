"""A user's pages about access: data sets and grants, terms to read and accept, asking for access and for more of it."""

from contextlib import suppress
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from starlette.responses import Response

from flows.gateway import access, datasets, restorations
from flows.gateway.datasets import AfterName
from flows.gateway.pages_forms import GivenForm
from flows.gateway.pages_session import Visitor
from flows.gateway.pages_views import render, say, see
from flows.gateway.parameters import DatasetPath, IdPath
from flows.gateway.schemas import AccessRequestInfo, AskAccess, AskRenewal, DatasetInfo, GrantInfo, TermsInfo
from flows.gateway.state import Gateway, GatewayState
from storage.errors import NotFound
from storage.registry import User

router = APIRouter(prefix="/app")

MOST = 500
"""Grants and requests that one page lists."""

PER_PAGE = 50

RECENT = 5


@dataclass
class Card:
    """A data set as one user sees it: what it is, and the grants for it, those in force first."""

    name: str
    info: DatasetInfo | None = None
    grants: list[GrantInfo] = field(default_factory=list)
    asked: list[AccessRequestInfo] = field(default_factory=list)

    @property
    def in_force(self) -> bool:
        """Whether a grant is."""
        return any(grant.in_force for grant in self.grants)

    @property
    def to_accept(self) -> bool:
        """Whether there are terms of use that were not accepted yet."""
        return self.info is not None and self.info.terms is not None and self.info.terms != self.info.accepted


@router.get("")
def my_data(request: Request, user: Visitor, gateway: GatewayState, after: AfterName = None) -> Response:
    """All data sets: those with a grant, and those to ask for, page by page."""
    open_ones = access.list_access_requests(user, gateway, state="open", limit=MOST).items
    mine = _granted(gateway, user)
    page = datasets.list_datasets(user, gateway, limit=PER_PAGE, after=after)
    others = {info.name: Card(info.name, info) for info in page.items if info.name not in mine}
    for asked in open_ones:
        if card := mine.get(asked.dataset) or others.get(asked.dataset):
            card.asked.append(asked)
    return render(
        request,
        "user.html",
        mine=sorted(mine.values(), key=lambda card: (not card.in_force, card.name)),
        others=others.values(),
        after=after,
        more=page.next,
        asked=access.list_access_requests(user, gateway, limit=20).items,
        recent=restorations.list_restorations(user, gateway, limit=RECENT).items,
    )


def _granted(gateway: Gateway, user: User) -> dict[str, Card]:
    """The data sets that the user holds, or held, grants for."""
    cards: dict[str, Card] = {}
    for grant in access.list_grants(user, gateway, limit=MOST).items:
        cards.setdefault(grant.dataset, Card(grant.dataset)).grants.append(grant)
    for card in cards.values():
        card.grants.sort(key=lambda grant: not grant.in_force)
        with suppress(NotFound):  # a grant may be older than the data set's own row
            card.info = datasets.get_dataset(card.name, user, gateway)
    return cards


def granted_names(gateway: Gateway, user: User) -> list[str]:
    """The data sets that a grant in force covers, at least in part."""
    return gateway.registry.datasets_granted(user.id)


# --- one data set ----------------------------------------------------------------------------------------------------


@router.get("/datasets/{dataset}")
def show_dataset(dataset: DatasetPath, request: Request, user: Visitor, gateway: GatewayState) -> Response:
    """A data set: terms, grants, versions, and the form to ask for access."""
    card = Card(dataset, datasets.get_dataset(dataset, user, gateway))
    everything = access.list_grants(user, gateway, limit=MOST).items
    card.grants = sorted((g for g in everything if g.dataset == dataset), key=lambda grant: not grant.in_force)
    asked = access.list_access_requests(user, gateway, limit=MOST).items
    card.asked = [one for one in asked if one.dataset == dataset]
    return render(
        request,
        "dataset.html",
        card=card,
        terms=_terms(gateway, user, dataset),
        versions=datasets.list_dataset_versions(dataset, user, gateway).items,
    )


def _terms(gateway: Gateway, user: User, dataset: str) -> TermsInfo | None:
    try:
        return datasets.get_terms(dataset, user, gateway)
    except NotFound:
        return None


@router.post("/datasets/{dataset}/terms")
def accept_terms(
    dataset: DatasetPath, request: Request, user: Visitor, gateway: GatewayState, form: GivenForm
) -> Response:
    """Accept the terms of use that were read."""
    version = form.whole("version") or 0
    datasets.accept_terms(dataset, version, user, gateway)
    say(request, f"You accepted version {version} of the terms of use of {dataset}.")
    return see(f"/app/datasets/{dataset}")


@router.post("/datasets/{dataset}/ask")
def ask_access(
    dataset: DatasetPath, request: Request, user: Visitor, gateway: GatewayState, form: GivenForm
) -> Response:
    """Ask the owner for access."""
    wish = form.into(
        AskAccess,
        dataset=dataset,
        reason=form.text("reason"),
        version=form.given("version"),
        classes=form.lines("classes"),
        images=form.whole("images"),
        days=form.days("days"),
    )
    made = access.ask_access(wish, user, gateway)
    say(request, f"Your request {made.id} was sent to the owner of {dataset}.")
    return see(f"/app/datasets/{dataset}")


@router.post("/grants/{grant_id}/renew")
def ask_renewal(grant_id: IdPath, request: Request, user: Visitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Ask the owner for a longer grant, or for more images."""
    wish = form.into(AskRenewal, reason=form.text("reason"), days=form.days("days"), images=form.whole("images"))
    made = access.ask_renewal(grant_id, wish, user, gateway)
    say(request, f"Your request {made.id} for a renewal was sent to the owner of {made.dataset}.")
    return see(f"/app/datasets/{made.dataset}")


@router.post("/access-requests/{identity}/withdraw")
def withdraw(identity: IdPath, request: Request, user: Visitor, gateway: GatewayState, form: GivenForm) -> Response:
    """Take a request back."""
    made = access.withdraw_access_request(identity, user, gateway)
    say(request, f"Your request {identity} was withdrawn.")
    return see(f"/app/datasets/{made.dataset}")
