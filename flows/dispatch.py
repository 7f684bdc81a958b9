"""Having a restore request served: by a worker where one runs, else in this process.

The request's state in the registry says how it ends; the state of its flow run only says when there is no point in
waiting any longer (the worker was killed, or nobody takes the run).
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from flows.deployments import RESTORE, call, is_served, live_api
from flows.stack import quiet_environment
from storage import errors
from storage.errors import DmcpError, ServiceError
from storage.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.registry import Registry, Request

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 120.0  # how long nobody may work on a request that is waited for
_OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def serve(settings: Settings, request_id: str, tell: Callable[[str], None], force: bool = False) -> str:
    """Have a request restored, unless it is already.

    A request that failed is tried again: whatever was in the way (a grant, a key) may be mended by now.

    Args:
        settings: name registry, bucket and Prefect server.
        request_id: the request.
        tell: told what is going on.
        force: take over a request that is running, because its worker was killed.

    Returns:
        who served it: "before", "worker" or "here".

    Raises:
        NotFound: no such request.
        WorkspaceBusy: another process serves it (and not `force`).
        DmcpError: it failed, with the class and message of what went wrong there.
        ServiceError: the worker stopped, or none took it.
    """
    from storage.registry import open_registry

    with open_registry(settings) as registry:
        request = registry.get_request(request_id)
        if request.state == "done":
            return "before"
        again = force or request.state == "failed"
        api = live_api(settings)
        if api and is_served(settings, api):
            tell("A worker restores it")
            _by_worker(settings, registry, request, api, again, tell)
            return "worker"
    tell("No worker runs (`dmcp up` starts one); restoring in this process")
    _here(request_id, again)
    return "here"


def _here(request_id: str, force: bool) -> None:
    from flows.restore import serve_request  # first: it sets what Prefect reads when it is imported
    from flows.services import prefect_server

    with prefect_server():
        serve_request(request_id, force)


# --- by a worker -----------------------------------------------------------------------------------------------------


def _by_worker(
    settings: Settings, registry: Registry, request: Request, api: str, force: bool, tell: Callable[[str], None]
) -> None:
    # A second command for the same request waits for the run of the first; a new try is a new run.
    key = f"{request.id}-{uuid.uuid4()}" if force else request.id
    run = _submit(settings, request.id, api, force, key)
    if not force and _run_state(api, run) in _OVER and registry.get_request(request.id).state in ("pending", "running"):
        run = _submit(settings, request.id, api, force, f"{key}-{uuid.uuid4()}")  # that run is not coming back to it
    before = request.finished if force else None
    waited = _Patience()
    while not _ended(registry, request.id, before):
        state = _run_state(api, run)
        if state in _OVER:
            if not _ended(registry, request.id, before):  # it may have ended between the two questions
                raise _broken(request.id, api, run, state)
            return
        waiting = state in ("SCHEDULED", "PENDING")
        waited.check(waiting or not is_served(settings, api), request.id)
        tell("Waiting for a worker" if waiting else "A worker restores it")
        time.sleep(POLL_SECONDS)


def _ended(registry: Registry, request_id: str, before: object) -> bool:
    """Whether the request is done. Raises the error it failed with, unless that was `before` this try."""
    now = registry.get_request(request_id)
    if now.state == "failed" and now.finished != before:
        raise failure(now.message or "")
    return now.state == "done"


class _Patience:
    """Ends the waiting when for too long nobody works on the request."""

    def __init__(self) -> None:
        self.since: float | None = None

    def check(self, idle: bool, request_id: str) -> None:
        """Raises ServiceError after `PATIENCE_SECONDS` of nothing but idleness."""
        if not idle:
            self.since = None
            return
        self.since = self.since or time.monotonic()
        if time.monotonic() - self.since > PATIENCE_SECONDS:
            raise ServiceError(
                f"No worker worked on request {request_id} for {PATIENCE_SECONDS:.0f} s; it stays queued.",
                "Look at `dmcp status`, run `dmcp up`, then try again; add --force if its worker was killed.",
            )


def _submit(settings: Settings, request_id: str, api: str, force: bool, key: str) -> str:
    """Start the deployment and return the flow run's id."""
    import os

    for name, value in quiet_environment(settings).items():
        os.environ.setdefault(name, value)
    from prefect.deployments import run_deployment
    from prefect.exceptions import PrefectException
    from prefect.settings import PREFECT_API_URL, temporary_settings

    parameters: dict[str, Any] = {"request_id": request_id} | ({"force": True} if force else {})
    try:
        with temporary_settings({PREFECT_API_URL: api}):
            run = run_deployment(RESTORE, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key)
    except (PrefectException, OSError) as error:
        raise ServiceError(f"Prefect does not take the request: {error}.", "Run `dmcp up` again.") from error
    return str(run.id)  # type: ignore[union-attr]


def _run_state(api: str, run: str) -> str | None:
    """State type of a flow run, None when the server does not answer just now."""
    answer = call("GET", f"{api}/flow_runs/{run}")
    return str(answer["state_type"]) if isinstance(answer, dict) and answer.get("state_type") else None


def _broken(request_id: str, api: str, run: str, state: str) -> DmcpError:
    """Why a flow run ended without a word in the registry."""
    answer = call("GET", f"{api}/flow_runs/{run}") or {}
    said = str((answer.get("state") or {}).get("message") or "without a word")
    if state == "FAILED":
        return failure(said.removeprefix("Flow run encountered an exception: "))
    return ServiceError(
        f"The run that restored request {request_id} ended ({state.lower()}): {said}", "Try again: dmcp restore --force"
    )


def failure(message: str) -> DmcpError:
    """The error that a failed request's message tells of: `ClassName: what`.

    A class of our tree keeps its exit code; anything else was unforeseen and exits with 1.
    """
    name, colon, what = message.partition(": ")
    kind = getattr(errors, name, None)
    if colon and isinstance(kind, type) and issubclass(kind, DmcpError):
        return kind(what)
    return DmcpError(
        f"The request failed: {message or 'no reason is on record'}.", "See the worker's log below HOME/logs."
    )
