"""What one gateway process holds open, from its start to its end."""

import threading
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
class Readiness:
    """What was found when the services were last looked at (`health.py`). Moments are those of time.monotonic."""

    looking: threading.Lock = field(default_factory=threading.Lock)  # held by the one call that looks
    began: float | None = None  # when that one began
    looked: float | None = None  # when the last one ended; None: nobody looked yet
    away: str | None = None  # what did not answer it


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
    readiness: Readiness = field(default_factory=Readiness)

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
