"""What owners decide, and what they see of use and audit."""

import json
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from flows.gateway.schemas.base import (
    Classes,
    Dataset,
    Days,
    Given,
    Images,
    Line,
    Moment,
    Paragraph,
    Reason,
    Samples,
    Shown,
    TermsText,
    UserName,
    Version,
    columns_of,
)

if TYPE_CHECKING:
    from storage.audit import AuditEntry


class NewDataset(Given):
    """A data set to register, or a registered one to describe anew."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "cifar10", "title": "CIFAR-10"}]})

    name: Dataset
    title: Line | None = Field(None, description="null: as it is")
    description: Paragraph | None = Field(None, description="null: as it is")


class NewTerms(Given):
    """Terms of use; they have to be accepted anew when the text changes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "For research only."}]})

    text: TermsText


class Approval(Given):
    """What is granted, where it is not what was asked for."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"days": 90, "quota": 10_000, "note": "Welcome."}]})

    days: Days | None = None
    expires: Moment | None = None
    quota: Images | None = None
    version: Version | None = None
    classes: Classes | None = None
    note: Paragraph | None = None


class Denial(Given):
    """Why access is denied."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "Please name the study."}]})

    note: Reason


class NewGrant(Given):
    """A grant that nobody had to ask for."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user": "ann@lab.example", "dataset": "cifar10", "quota": 1000}]}
    )

    user: UserName
    dataset: Dataset
    version: Version | None = None
    classes: Classes | None = None
    samples: Samples | None = None
    quota: Images | None = None
    starts: Moment | None = None
    expires: Moment | None = None
    note: Paragraph | None = None


class Renewal(Given):
    """The new end of a grant."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"expires": "2030-01-01T00:00:00Z"}]})

    expires: Moment | None
    quota: Images | None = None


class UsageInfo(Shown):
    """What one user had restored of one data set on one day."""

    day: str
    dataset: str
    user: str
    requests: int
    images: int


class Usage(Shown):
    """Usage by day, data set and user."""

    items: list[UsageInfo]


class AuditInfo(Shown):
    """One entry of the audit log."""

    seq: int
    time: str
    actor: str
    action: str
    dataset: str | None
    request_id: str | None
    subject: str
    details: dict[str, Any]
    previous: str
    hash: str

    @classmethod
    def of(cls, row: "AuditEntry") -> "AuditInfo":
        """As it is shown."""
        return cls.model_validate({**columns_of(row), "details": json.loads(row.details)})


class Verdict(Shown):
    """Whether the audit log is whole."""

    whole: bool
    entries: int = Field(description="entries that hold together")
    head: str = Field(description="hash of the last of them")
    anchored: int = Field(description="the last entry that a signed checkpoint vouches for; 0: none")
    anchored_at: str | None
    fault: str | None = Field(description="what is wrong; null: nothing")
    notes: list[str]
