"""Restorations, uploads and results."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field, StringConstraints

from flows.gateway.schemas.base import (
    MAX_ID,
    Dataset,
    Given,
    Line,
    RequestState,
    Shown,
    TextPage,
    columns_of,
    printable,
    text_of,
)
from storage.names import REQUEST_ID_PATTERN, VERSION_PATTERN

if TYPE_CHECKING:
    from storage import registry_models as rows


class PublishedSource(Given):
    """A published version, or some of its samples or shards."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"dataset": "cifar10", "version": "latest", "subset": ["00000001"]}]}
    )

    dataset: Dataset
    version: Annotated[str, StringConstraints(pattern=f"^(latest|{VERSION_PATTERN})$")] = "latest"
    subset: Annotated[list[Annotated[str, text_of(1, 200)]], Field(min_length=1, max_length=100_000)] | None = None


class UploadedSource(Given):
    """What was put to the presigned address of an upload."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"upload": "0123456789abcdef0123456789abcdef"}]})

    upload: Annotated[str, StringConstraints(pattern=f"^{REQUEST_ID_PATTERN}$")]
    filename: Line = Field("upload", description="what it is called in lists")
    dataset: Dataset | None = Field(None, description="the data set that the images belong to, if known")


class RestorationInfo(Shown):
    """A restoration: what was asked for, and how far it is."""

    id: str
    user: str
    kind: str
    dataset: str | None
    source: str
    state: RequestState
    created: datetime
    started: datetime | None
    finished: datetime | None
    images: int
    restored: int
    refused: int
    message: str | None = Field(description="why it failed, or waits to be tried again: `ErrorClass: what happened`")
    removed: datetime | None = Field(None, description="since when what was restored is not kept any more")

    @classmethod
    def of(cls, row: "rows.Request") -> "RestorationInfo":
        """As it is shown."""
        return cls.model_validate({**columns_of(row), "user": row.user.name, "source": printable(row.source)})


class RestorationPage(TextPage[RestorationInfo]):
    """Restorations, the newest first."""


class NewUpload(Given):
    """A file that is to be uploaded to a presigned address."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"bytes": 1_000_000}]})

    bytes: int = Field(ge=1, le=MAX_ID, description="its exact size")


class UploadAddress(Shown):
    """Where to PUT exactly so many bytes, until when, and the id to start the restoration with."""

    id: str
    url: str = Field(description="a secret: who has it may write the upload")
    bytes: int
    headers: dict[str, str] = Field(description="to be sent with the PUT")
    expires: datetime


class ResultFile(Shown):
    """A shard of restored images, and where it can be fetched without a token."""

    name: str
    samples: int
    bytes: int
    sha256: str
    url: str = Field(description="a secret: who has it may read the images")
    expires: datetime


class Results(Shown):
    """All shards of a restoration's result."""

    items: list[ResultFile]


class RefusedImage(Shown):
    """An image that was not restored, under the requester's name for it."""

    name: str
    error: str
    reason: str


class Report(Shown):
    """What became of a restoration's images: how many came back, which did not, and why."""

    request_id: str
    images: int
    restored: int
    refused: list[RefusedImage] = Field(description="of very many the first; `unnamed` counts the others")
    unnamed: dict[str, int] = Field({}, description="how many more were refused, by class of error")
    kinds: dict[str, int] = Field({}, description="how many were refused in all, by class of error")
