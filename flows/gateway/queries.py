"""Lists, page by page, and objects that are looked up for one user: what is another's is not found.

A page is asked for one row more than it shows, so that the last page is known without another query.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select

from flows.gateway.schemas import Page
from storage.errors import NotFound
from storage.registry import Registry, User
from storage.registry_models import AccessRequest, Charge, Dataset, Grant, Request

Row = TypeVar("Row")
Item = TypeVar("Item")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CURSOR = r"^[0-9]{1,16}-[0-9a-f]{32}$"


def page(
    registry: Registry,
    query: Select[tuple[Row]],
    identity: Any,
    after: int,
    limit: int,
    show: Callable[[Row], Item],
    newest_first: bool = False,
) -> Page[Item]:
    """One page of a list that is ordered by a number.

    Args:
        registry: where the rows are.
        query: all that the caller may see.
        identity: the column of the number.
        after: the last number of the page before; 0: the first page.
        limit: rows on the page.
        show: a row as it is shown.
        newest_first: from the highest number down.
    """
    if newest_first:
        query = (
            query.order_by(identity.desc()) if after == 0 else query.where(identity < after).order_by(identity.desc())
        )
    else:
        query = query.where(identity > after).order_by(identity)
    found = registry.all(query.limit(limit + 1))
    shown = found[:limit]
    last = getattr(shown[-1], identity.key) if len(found) > limit else None
    return Page(items=[show(row) for row in shown], next=last)


def requests_page(
    registry: Registry, user: User, state: str | None, after: str | None, limit: int
) -> Sequence[Request]:
    """The user's restorations, newest first, one more than `limit` when there are more."""
    query = select(Request).where(Request.user_id == user.id).order_by(Request.created.desc(), Request.id)
    if state is not None:
        query = query.where(Request.state == state)
    if after is not None:
        query = query.where(_beyond(after))
    return registry.all(query.limit(limit + 1))


def cursor(request: Request) -> str:
    """Where a page that ends with this restoration goes on."""
    return f"{(request.created - EPOCH) // timedelta(microseconds=1)}-{request.id}"


def _beyond(after: str) -> ColumnElement[bool]:
    micros, _, identity = after.partition("-")
    moment = EPOCH + timedelta(microseconds=int(micros))
    return or_(Request.created < moment, and_(Request.created == moment, Request.id > identity))


def own_restoration(registry: Registry, user: User, request_id: str) -> Request:
    """A restoration of this user. Raises NotFound."""
    found = registry.all(select(Request).where(Request.id == request_id, Request.user_id == user.id))
    return _only(found, f"You have no restoration {request_id}.")


def own_grant(registry: Registry, user: User, grant_id: int) -> Grant:
    """A grant of this user. Raises NotFound."""
    found = registry.all(select(Grant).where(Grant.id == grant_id, Grant.user_id == user.id))
    return _only(found, f"You have no grant {grant_id}.")


def own_access_request(registry: Registry, user: User, identity: int) -> AccessRequest:
    """A request for access by this user. Raises NotFound."""
    found = registry.all(select(AccessRequest).where(AccessRequest.id == identity, AccessRequest.user_id == user.id))
    return _only(found, f"You made no request {identity}.")


# --- owners ----------------------------------------------------------------------------------------------------------


def in_use(registry: Registry, name: str) -> bool:
    """Whether grants, requests or charges name this data set, on record or not: its images are someone's already."""
    named = (table.dataset == name for table in (Grant, AccessRequest, Request, Charge))
    with registry.read() as session:
        return any(session.scalar(select(exists().where(where))) for where in named)


def owned_dataset(registry: Registry, user: User, name: str) -> Dataset:
    """A data set of this owner; any, for an operator. Raises NotFound."""
    query = select(Dataset).where(Dataset.name == name)
    return _only(registry.all(_of_owner(query, user)), f"You own no data set {name}.")


def owned_grant(registry: Registry, user: User, grant_id: int) -> Grant:
    """A grant for a data set of this owner; any, for an operator. Raises NotFound."""
    return _only(registry.all(owned_grants(user).where(Grant.id == grant_id)), f"There is no grant {grant_id}.")


def owned_access_request(registry: Registry, user: User, identity: int) -> AccessRequest:
    """A request for access to a data set of this owner; any, for an operator. Raises NotFound."""
    query = owned_access_requests(user).where(AccessRequest.id == identity)
    return _only(registry.all(query), f"There is no request {identity}.")


def owned_grants(user: User) -> Select[tuple[Grant]]:
    """All grants for the data sets of this owner."""
    return _of_owner(select(Grant).join(Dataset, Dataset.name == Grant.dataset, isouter=user.role == "operator"), user)


def owned_access_requests(user: User) -> Select[tuple[AccessRequest]]:
    """All requests for access to the data sets of this owner."""
    return _of_owner(select(AccessRequest).join(Dataset, Dataset.name == AccessRequest.dataset), user)


def _of_owner(query: Select[tuple[Row]], user: User) -> Select[tuple[Row]]:
    return query if user.role == "operator" else query.where(Dataset.owner_id == user.id)


def _only(found: Sequence[Row], missing: str) -> Row:
    if not found:
        raise NotFound(missing, "Check the name or id.")
    return found[0]
