"""What the other schemas are made of."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from storage.names import DATASET_PATTERN, USER_PATTERN, VERSION_PATTERN

MAX_ID = (1 << 63) - 1
RFC3339 = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})$"

Item = TypeVar("Item")
Role = Literal["user", "owner", "operator"]
RequestState = Literal["pending", "running", "done", "failed", "cancelled"]
AccessState = Literal["open", "approved", "denied", "withdrawn"]


def text_of(least: int, most: int) -> Any:
    """A text of so many characters without NUL."""
    return StringConstraints(min_length=least, max_length=most, pattern=r"^[^\x00]*$")


def _moment(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("a time is a text such as 2027-01-31T12:00:00Z")
    return value


Dataset = Annotated[str, StringConstraints(pattern=f"^{DATASET_PATTERN}$")]
UserName = Annotated[str, StringConstraints(pattern=f"^{USER_PATTERN}$")]
Version = Annotated[str, StringConstraints(pattern=f"^{VERSION_PATTERN}$")]
Images = Annotated[int, Field(ge=1, le=1_000_000_000)]
Days = Annotated[int, Field(ge=1, le=36_500)]
Line = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Paragraph = Annotated[str, text_of(0, 2_000)]
Reason = Annotated[str, text_of(1, 2_000)]
TermsText = Annotated[str, text_of(1, 100_000)]
ClassName = Annotated[str, text_of(1, 200)]
Classes = Annotated[list[ClassName], Field(min_length=1, max_length=10_000)]
SampleKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,94}$")]
Samples = Annotated[list[SampleKey], Field(min_length=1, max_length=100_000)]
Moment = Annotated[
    AwareDatetime,
    Field(strict=False, json_schema_extra={"pattern": RFC3339}),
    BeforeValidator(_moment),
]


class Given(BaseModel):
    """What a caller sends."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Shown(BaseModel):
    """What a caller gets."""

    model_config = ConfigDict(from_attributes=True)


class Page(Shown, Generic[Item]):
    """Some of a list."""

    items: list[Item]
    next: int | None = Field(description="give it as `after` to get the next page; null: this is the last")


class TextPage(Shown, Generic[Item]):
    """Some of a list."""

    items: list[Item]
    next: str | None = Field(description="give it as `after` to get the next page; null: this is the last")


def columns_of(row: Any) -> dict[str, Any]:
    """A row of the registry as a dictionary, but for what is not loaded with every row."""
    return {column.key: getattr(row, column.key) for column in row.__mapper__.column_attrs if not column.deferred}


def printable(text: str) -> str:
    """Without lone surrogates, which are no Unicode."""
    return text.encode("utf-8", "backslashreplace").decode()
