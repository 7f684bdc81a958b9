"""What was done: usage over time and the audit log, for owners about their data sets, for operators about all."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from starlette.responses import Response

from flows.gateway import owner
from flows.gateway.pages_chart import usage_chart
from flows.gateway.pages_session import OwnerVisitor
from flows.gateway.pages_views import render
from flows.gateway.queries import owned_dataset
from flows.gateway.schemas import AuditInfo, UsageInfo
from flows.gateway.state import Gateway, GatewayState
from storage.names import DATASET_PATTERN
from storage.registry import User
from storage.registry_models import Dataset

router = APIRouter(prefix="/owner")

AUDIT_RECENT = 8
PER_PAGE = 50
TABLE = 500
"""Rows of the table of usage; the API gives all."""

PERIODS = {7: "7 days", 30: "30 days", 90: "90 days", 365: "a year", 1095: "three years"}
SEQ = (1 << 63) - 1

OneDataset = Annotated[str, Query(pattern=f"^({DATASET_PATTERN})?$")]
Text = Annotated[str, Query(max_length=160, pattern=r"^[^\x00]*$")]


@router.get("/usage")
def usage(
    request: Request,
    user: OwnerVisitor,
    gateway: GatewayState,
    dataset: OneDataset = "",
    days: Annotated[int, Query(ge=1, le=3660)] = 90,
) -> Response:
    """How many images who had restored."""
    found, first, last = usage_of(gateway, user, dataset or None, days)
    return render(
        request,
        "usage.html",
        chart=usage_chart(found, first, last),
        rows=list(reversed(found))[:TABLE],
        more=max(0, len(found) - TABLE),
        days=days,
        periods=PERIODS,
        dataset=dataset,
        names=owned_names(gateway, user),
    )


def usage_of(gateway: Gateway, user: User, dataset: str | None, days: int) -> tuple[list[UsageInfo], date, date]:
    """Usage by day, of the last so many days, and the first and the last of them."""
    last = datetime.now(UTC).date()
    first = last - timedelta(days=days - 1)
    found = owner.get_usage(user, gateway, dataset, days).items
    return [row for row in found if first <= date.fromisoformat(row.day) <= last], first, last


@router.get("/audit")
def audit(
    request: Request,
    user: OwnerVisitor,
    gateway: GatewayState,
    dataset: OneDataset = "",
    actor: Text = "",
    action: Text = "",
    restoration: Text = "",
    before: Annotated[int, Query(ge=0, le=SEQ)] = 0,
) -> Response:
    """The audit log, the newest entries first."""
    found = entries(gateway, user, PER_PAGE + 1, dataset, actor.strip(), action.strip(), restoration.strip(), before)
    shown = found[:PER_PAGE]
    return render(
        request,
        "audit.html",
        entries=shown,
        older=shown[-1].seq if len(found) > PER_PAGE else None,
        before=before,
        filters={"dataset": dataset, "actor": actor, "action": action, "restoration": restoration},
        names=owned_names(gateway, user),
    )


def entries(
    gateway: Gateway,
    user: User,
    limit: int,
    dataset: str = "",
    actor: str = "",
    action: str = "",
    restoration: str = "",
    before: int = 0,
) -> list[AuditInfo]:
    """Entries that the user may see, the newest first: an owner those about own data sets."""
    about: str | Sequence[str] | None = None
    if user.role != "operator":
        about = [owned_dataset(gateway.registry, user, dataset).name] if dataset else owned_names(gateway, user)
    elif dataset:
        about = dataset
    found = gateway.audit.entries(
        limit=limit,
        dataset=about,
        actor=actor or None,
        action=action or None,
        request_id=restoration or None,
        newest=True,
        before=before or None,
    )
    return [AuditInfo.of(entry) for entry in reversed(found)]


def owned_names(gateway: Gateway, user: User) -> list[str]:
    """The names of the data sets that the user decides about."""
    query = select(Dataset.name).order_by(Dataset.name)
    if user.role != "operator":
        query = query.where(Dataset.owner_id == user.id)
    return list(gateway.registry.all(query))
