"""Whether the gateway lives, and whether it can serve. Open to all, since nothing is told but that."""

import logging
import threading
import time

from fastapi import APIRouter, Request
from sqlalchemy import text

from flows.gateway.errors import problems
from flows.gateway.schemas import Health
from flows.gateway.state import Gateway, gateway_of
from storage.errors import DmcpError, EnvironmentFault

router = APIRouter(tags=["about"])

log = logging.getLogger("dmcp.gateway")

FRESH_SECONDS = 2.0
_lock = threading.Lock()


@router.get("/healthz", responses=problems(open_route=True))
async def healthz() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@router.get("/readyz", responses=problems(open_route=True))
def readyz(request: Request) -> Health:
    """Whether registry and object store answer; 503 when not. Looked at once in two seconds at most."""
    gateway = gateway_of(request)
    with _lock:
        if time.monotonic() - gateway.checked > FRESH_SECONDS:
            _check(gateway)
            gateway.checked = time.monotonic()
    return Health(status="ok")


def _check(gateway: Gateway) -> None:
    """Raises EnvironmentFault. Where the services are is for the log, not for everybody."""
    for name, ask in (("registry", _ask_registry), ("object store", _ask_store)):
        try:
            ask(gateway)
        except DmcpError as error:
            log.warning("not ready: %s", error)
            raise EnvironmentFault(f"The {name} does not answer.", "Try again in a minute.") from error


def _ask_registry(gateway: Gateway) -> None:
    with gateway.registry.read() as session:
        session.execute(text("SELECT 1"))


def _ask_store(gateway: Gateway) -> None:
    gateway.private.exists("ready")
