"""Data sets as everyone with a token sees them: what there is, its published versions, its terms."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path, Query, status
from sqlalchemy import select

from flows.gateway.auth import Caller
from flows.gateway.errors import as_conflict, problems
from flows.gateway.parameters import DatasetPath, Limit
from flows.gateway.schemas import DatasetInfo, TermsInfo, TextPage, VersionInfo, Versions
from flows.gateway.state import Gateway, GatewayState
from storage.errors import NotFound
from storage.names import DATASET_PATTERN
from storage.registry import Registry, User
from storage.registry_models import Dataset, Terms
from storage.versions import list_versions

router = APIRouter(prefix="/datasets", tags=["data sets"])

AfterName = Annotated[str | None, Query(pattern=f"^{DATASET_PATTERN}$", description="`next` of the page before")]


@router.get("", responses=problems(422))
def list_datasets(
    user: Caller, gateway: GatewayState, limit: Limit = 100, after: AfterName = None
) -> TextPage[DatasetInfo]:
    """List all data sets by name."""
    query = select(Dataset).order_by(Dataset.name).limit(limit + 1)
    if after is not None:
        query = query.where(Dataset.name > after)
    return dataset_page(gateway.registry, user, gateway.registry.all(query), limit)


def dataset_page(registry: Registry, user: User, found: Sequence[Dataset], limit: int) -> TextPage[DatasetInfo]:
    """One page of data sets, of which one more than `limit` was found when there are more."""
    granted = set(registry.datasets_granted(user.id))
    items = [_shown(registry, user, row, granted) for row in found[:limit]]
    return TextPage(items=items, next=items[-1].name if len(found) > limit else None)


@router.get("/{dataset}", responses=problems(404, 422))
def get_dataset(dataset: DatasetPath, user: Caller, gateway: GatewayState) -> DatasetInfo:
    """Show a data set, and how the caller stands to it."""
    row = gateway.registry.get_dataset(dataset)
    return _shown(gateway.registry, user, row, set(gateway.registry.datasets_granted(user.id)))


@router.get("/{dataset}/versions", responses=problems(404, 422))
def list_dataset_versions(dataset: DatasetPath, user: Caller, gateway: GatewayState) -> Versions:
    """List the published versions of a data set, the newest first."""
    gateway.registry.get_dataset(dataset)
    with suppress(NotFound):  # nothing is published yet
        return Versions(items=[VersionInfo.model_validate(v) for v in list_versions(gateway.public, dataset)])
    return Versions(items=[])


@router.get("/{dataset}/terms", responses=problems(404, 422))
def get_terms(dataset: DatasetPath, user: Caller, gateway: GatewayState) -> TermsInfo:
    """Show the terms of use in force; 404 when there are none."""
    terms = _terms(gateway, dataset)
    accepted = gateway.registry.accepted_terms(user.id, dataset)
    return TermsInfo.model_validate(
        {
            "dataset": dataset,
            "version": terms.version,
            "text": terms.text,
            "created": terms.created,
            "accepted": accepted == terms.version,
        }
    )


@router.post(
    "/{dataset}/terms/{version}/accept", responses=problems(404, 409, 422), status_code=status.HTTP_204_NO_CONTENT
)
def accept_terms(
    dataset: DatasetPath,
    version: Annotated[int, Path(ge=1, le=(1 << 31) - 1, examples=[1])],
    user: Caller,
    gateway: GatewayState,
) -> None:
    """Accept the terms of use in force, by their version; 409 when there are newer ones."""
    gateway.registry.get_dataset(dataset)
    with as_conflict():
        gateway.registry.accept_terms(user.id, dataset, version, actor=user.name)


def _terms(gateway: Gateway, dataset: str) -> Terms:
    gateway.registry.get_dataset(dataset)
    terms = gateway.registry.current_terms(dataset)
    if terms is None:
        raise NotFound(f"{dataset} has no terms of use.", "None need to be accepted.")
    return terms


def _shown(registry: Registry, user: User, row: Dataset, granted: set[str]) -> DatasetInfo:
    terms = registry.current_terms(row.name)
    return DatasetInfo.model_validate(
        {
            "name": row.name,
            "owner": row.owner.name,
            "title": row.title,
            "description": row.description,
            "created": row.created,
            "terms": None if terms is None else terms.version,
            "accepted": None if terms is None else registry.accepted_terms(user.id, row.name),
            "granted": row.name in granted,
        }
    )
