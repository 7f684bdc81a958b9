"""Whether the gateway lives, and whether it can serve. Open to all, since nothing is told but that."""

import logging
import time

from fastapi import APIRouter, Request
from sqlalchemy import text

from flows.gateway.errors import problems
from flows.gateway.schemas import Health
from flows.gateway.state import Gateway, Readiness, gateway_of
from storage.errors import DmcpError, ServiceError

router = APIRouter(tags=["about"])

log = logging.getLogger("dmcp.gateway")

FRESH_SECONDS = 2.0
"""How long what was found is told again, good or bad."""
PATIENCE_SECONDS = 5.0
"""How long one look may take until others are told that the services do not answer."""


@router.get("/healthz", responses=problems(open_route=True))
async def healthz() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@router.get("/readyz", responses=problems(open_route=True))
def readyz(request: Request) -> Health:
    """Whether registry and object store answer; 503 when not. Looked at once in two seconds at most, by one call.

    Others are told meanwhile what the last one found: while a service hangs they hold no thread.
    """
    gateway = gateway_of(request)
    state = gateway.readiness
    if not _is_fresh(state) and state.looking.acquire(blocking=False):
        try:
            if not _is_fresh(state):  # another one looked just before
                _look(gateway)
        finally:
            state.looking.release()
    away = _away(state)
    if away is not None:
        raise ServiceError(f"{away}.", "Try again in a minute.")
    return Health(status="ok")


def _is_fresh(state: Readiness) -> bool:
    return state.looked is not None and time.monotonic() - state.looked <= FRESH_SECONDS


def _look(gateway: Gateway) -> None:
    """Ask the services, and keep what was found, whatever it was."""
    state = gateway.readiness
    state.began = time.monotonic()
    try:
        state.away = _check(gateway)
        state.looked = time.monotonic()
    finally:
        state.began = None


def _check(gateway: Gateway) -> str | None:
    """What does not answer; None: all do. Where the services are is for the log, not for everybody."""
    for name, ask in (("registry", _ask_registry), ("object store", _ask_store)):
        try:
            ask(gateway)
        except DmcpError as error:
            log.warning("not ready: %s", error)
            return f"The {name} does not answer"
    return None


def _away(state: Readiness) -> str | None:
    """What a call is told that does not look itself; None: all is well."""
    began = state.began
    if began is not None and time.monotonic() - began > PATIENCE_SECONDS:
        return "A service does not answer"
    return "It is not known yet whether the services answer" if state.looked is None else state.away


def _ask_registry(gateway: Gateway) -> None:
    with gateway.registry.read() as session:
        session.execute(text("SELECT 1"))


def _ask_store(gateway: Gateway) -> None:
    gateway.private.exists("ready")
