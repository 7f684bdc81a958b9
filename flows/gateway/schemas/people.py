"""Callers, their tokens, and what an operator sees of the service."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from flows.gateway.schemas.base import Given, Moment, Role, Shown, UserName


class Me(Shown):
    """The caller."""

    name: str
    role: Role
    created: datetime
    datasets: list[str] = Field(description="data sets that a grant in force covers, at least in part")
    upload_limit: int = Field(description="bytes of one upload as the body of a call")
    upload_limit_presigned: int = Field(description="bytes of one upload to a presigned address")


class TokenInfo(Shown):
    """A token, of which only the beginning is known."""

    id: int
    prefix: str
    label: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None


class NewToken(Shown):
    """A token, shown this once."""

    name: str
    token: str = Field(examples=["dmcp_..."])


class NewUser(Given):
    """A user to be made."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ann@lab.example", "role": "user"}]})

    name: UserName
    role: Role = "user"
    expires: Moment | None = Field(None, description="end of the token")


class UserInfo(Shown):
    """A user."""

    id: int
    name: str
    role: Role
    created: datetime
    disabled: bool


class Health(Shown):
    """Whether the gateway can serve."""

    status: Literal["ok"]
