"""Data sets, requests for access to them, and grants."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from flows.gateway.schemas.base import (
    AccessState,
    Classes,
    Dataset,
    Days,
    Given,
    Images,
    Reason,
    Shown,
    Version,
    columns_of,
)

if TYPE_CHECKING:
    from storage import registry_models as rows


class DatasetInfo(Shown):
    """A data set, and how the caller stands to it."""

    name: str
    owner: str
    title: str
    description: str
    created: datetime
    terms: int | None = Field(description="version of the terms in force; null: there are none")
    accepted: int | None = Field(description="latest version of the terms that the caller accepted")
    granted: bool = Field(description="whether a grant of the caller is in force")


class VersionInfo(Shown):
    """A published version."""

    id: str
    completed: datetime
    latest: bool


class Versions(Shown):
    """Published versions, the newest first."""

    items: list[VersionInfo]


class TermsInfo(Shown):
    """Terms of use."""

    dataset: str
    version: int
    text: str
    created: datetime
    accepted: bool = Field(description="whether the caller accepted this version")


# --- access ----------------------------------------------------------------------------------------------------------


class AskAccess(Given):
    """What is asked for, and why."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"dataset": "cifar10", "reason": "Comparing optimisers.", "days": 90}]}
    )

    dataset: Dataset
    reason: Reason
    version: Version | None = None
    classes: Classes | None = None
    images: Images | None = Field(None, description="quota: how many images are needed")
    days: Days | None = None


class AskRenewal(Given):
    """For how much longer, and why."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "The study goes on.", "days": 90}]})

    reason: Reason
    days: Days | None = None
    images: Images | None = None


class AccessRequestInfo(Shown):
    """A request for access, and what was decided."""

    id: int
    user: str
    dataset: str
    version: str | None
    classes: list[str] | None
    images: int | None
    days: int | None
    reason: str
    state: AccessState
    renews: int | None = Field(description="the grant that is to be renewed")
    created: datetime
    decided: datetime | None
    note: str | None
    grant_id: int | None

    @classmethod
    def of(cls, row: "rows.AccessRequest") -> "AccessRequestInfo":
        """As it is shown."""
        return cls.model_validate({**columns_of(row), "user": row.user.name})


class GrantInfo(Shown):
    """A grant: who may have what restored, until when, and how much of it was used."""

    id: int
    user: str
    dataset: str
    version: str | None = Field(description="null: every version")
    classes: list[str] | None
    samples: list[str] | None
    quota: int | None = Field(description="images; null: no limit")
    used: int
    starts: datetime | None
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    note: str | None
    in_force: bool

    @classmethod
    def of(cls, row: "rows.Grant") -> "GrantInfo":
        """As it is shown, now."""
        return cls.model_validate(
            {**columns_of(row), "user": row.user.name, "in_force": row.in_force(datetime.now(UTC))}
        )
