"""What one gateway process holds open, from its start to its end."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

from flows.gateway.limits import Limiter
from flows.gateway.workspace import Workspace
from storage.audit import AuditLog
from storage.objects import ObjectStore
from storage.registry import Registry
from storage.settings import Settings

if TYPE_CHECKING:
    from flows.gateway.background import Background


@dataclass
class Gateway:
    """Everything that calls share. All of it is safe to use from several threads."""

    settings: Settings
    registry: Registry
    audit: AuditLog
    private: ObjectStore
    public: ObjectStore
    limiter: Limiter
    uploads: Workspace
    background: "Background | None" = None
    checked: float = field(default=float("-inf"))  # when the services were last found well

    def wake(self) -> None:
        """A request was recorded: have it started at once."""
        if self.background is not None:
            self.background.wake()


def gateway_of(request: Request) -> Gateway:
    """The gateway that answers this call."""
    return cast(Gateway, request.app.state.gateway)


async def _gateway(request: Request) -> Gateway:
    return gateway_of(request)


GatewayState = Annotated[Gateway, Depends(_gateway)]
"""The gateway, for a route; async, since a plain function would be run in a thread of its own."""
