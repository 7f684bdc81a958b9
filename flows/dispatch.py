"""Having a request served: by a worker where one runs, else in this process.

A run of the deployment is started with nothing but the request's id. Its idempotency key is `REQUEST:ATTEMPT`, so that
whoever starts one (a command, the gateway, a second gateway, one that was killed and started again) starts the same
one. A run that ended without a word in the registry is followed by `REQUEST:ATTEMPT:1`, and so on.

The request's state in the registry says how it ends; the state of its flow run only says when there is no point in
waiting any longer (the worker was killed, or nobody takes the run). `flows/dispatcher.py` looks after all requests.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flows.deployments import RESTORE, call, is_served, live_api
from storage import errors
from storage.errors import DmcpError, RequestCancelled, ServiceError
from storage.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from storage.registry import Registry, Request

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 120.0  # how long nobody may work on a request that is waited for
STALE_SECONDS = 60.0
"""A worker that gave no sign of life for so long (it gives one every 5 s) is taken for dead."""
START_SECONDS = 180.0
"""A flow run that a worker took and that claimed no request for so long is taken for dead."""
TRIES = 50  # runs of one attempt, when a person asks for one after the other
_OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_PAGE = 200  # flow runs that Prefect lists at once


def serve(settings: Settings, request_id: str, tell: Callable[[str], None], force: bool = False) -> str:
    """Have a request restored, unless it is already.

    A request that failed is tried again: whatever was in the way (a grant, a key) may be mended by now. One whose
    worker was killed is taken over, as soon as that shows.

    Args:
        settings: name registry, bucket and Prefect server.
        request_id: the request.
        tell: told what is going on.
        force: take over a request that is running, without waiting until its worker shows to be dead.

    Returns:
        who served it: "before", "worker" or "here".

    Raises:
        NotFound: no such request.
        Removed: it was restored long ago, and that is not kept any more.
        RequestCancelled: it was cancelled.
        WorkspaceBusy: another process serves it (and not `force`).
        DmcpError: it failed, with the class and message of what went wrong there.
        ServiceError: the worker stopped, or none took it.
    """
    from storage.registry import open_registry
    from storage.registry_queue import check_kept

    with open_registry(settings) as registry:
        request = registry.get_request(request_id)
        if request.state == "done":
            check_kept(request)
            return "before"
        again = force or request.state == "failed" or is_stale(request, stalled_seconds=60 * settings.stalled_minutes)
        api = live_api(settings)
        if api and is_served(settings, api):
            tell("A worker restores it")
            _by_worker(settings, registry, request, api, again, tell)
            return "worker"
    tell("No worker runs (`dmcp up` starts one); restoring in this process")
    _here(request_id, again)
    return "here"


def is_stale(request: Request, seconds: float = STALE_SECONDS, stalled_seconds: float | None = None) -> bool:
    """Whether a request is running, and its worker gave no sign of life, or did not get on, for so long."""
    last, moved, now = request.heartbeat or request.started, request.progressed or request.started, datetime.now(UTC)
    dead = last is None or last < now - timedelta(seconds=seconds)
    stalled = stalled_seconds is not None and moved is not None and moved < now - timedelta(seconds=stalled_seconds)
    return request.state == "running" and (dead or stalled)


def _here(request_id: str, force: bool) -> None:
    from flows.restore import serve_request  # first: it sets what Prefect reads when it is imported
    from flows.services import prefect_server

    with prefect_server():
        serve_request(request_id, force)


# --- by a worker -----------------------------------------------------------------------------------------------------


def _by_worker(
    settings: Settings, registry: Registry, request: Request, api: str, again: bool, tell: Callable[[str], None]
) -> None:
    # One that is running is another's, who started it: it is only waited for, until its worker shows to be dead.
    run = None if request.state == "running" and not again else start_run(api, request)
    before = request.attempt if request.state == "failed" else None
    waited = _Patience()
    while not _ended(registry, request.id, before):
        now = registry.get_request(request.id)
        if is_stale(now, stalled_seconds=60 * settings.stalled_minutes):
            run = start_run(api, now)
        state = _run_state(api, run) if run else None
        claimed = now.state == "running"
        if state in _OVER and not claimed:
            if not _ended(registry, request.id, before):  # it may have ended between the two questions
                raise _broken(request.id, api, str(run), str(state))
            return
        waiting = not claimed and state in ("SCHEDULED", "PENDING", None)
        served = is_served(settings, api)
        queued = served and state == "SCHEDULED"  # its workers have their hands full
        waited.check(not served or (waiting and not queued), request.id)
        tell(("Waiting for a free worker" if queued else "Waiting for a worker") if waiting else "A worker restores it")
        time.sleep(POLL_SECONDS)


def _ended(registry: Registry, request_id: str, before: int | None) -> bool:
    """Whether the request is done. Raises the error it failed with, unless it was attempt `before` that failed."""
    now = registry.get_request(request_id)
    if now.state == "cancelled":
        raise RequestCancelled(f"Request {request_id} was cancelled.", "Make a new one if it is still wanted.")
    if now.state == "failed" and now.attempt != before:
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


# --- flow runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A flow run of the deployment: its id, the type of its state, since when it is in it, and what it says."""

    id: str
    state: str
    since: datetime
    message: str = ""

    @property
    def over(self) -> bool:
        """Whether it ended, in whatever way."""
        return self.state in _OVER

    def dead(self, start_seconds: float = START_SECONDS) -> bool:
        """Whether a request that it should have claimed can not count on it any more."""
        quiet = datetime.now(UTC) - self.since > timedelta(seconds=start_seconds)
        return self.over or (self.state in ("PENDING", "RUNNING") and quiet)


def run_keys(request: Request, tries: int) -> list[str]:
    """The idempotency keys of the runs of a request's next attempt, in the order in which they are made."""
    first = f"{request.id}:{request.attempt}"
    return [first, *(f"{first}:{number}" for number in range(1, tries))]


def find_runs(api: str, keys: Iterable[str]) -> dict[str, Run]:
    """The flow runs that have these idempotency keys.

    Raises:
        ServiceError: Prefect does not answer.
    """
    wanted = list(keys)
    found: dict[str, Run] = {}
    for start in range(0, len(wanted), _PAGE):
        body = {"flow_runs": {"idempotency_key": {"any_": wanted[start : start + _PAGE]}}, "limit": _PAGE}
        answer = call("POST", f"{api}/flow_runs/filter", body)
        if not isinstance(answer, list):
            raise _silent(api)
        found |= {str(run["idempotency_key"]): run_of(run) for run in answer}
    return found


def run_of(answer: dict[str, Any]) -> Run:
    """A flow run as Prefect describes it."""
    state = answer.get("state") or {}
    since = state.get("timestamp") or answer["created"]
    kind = str(answer.get("state_type") or state.get("type") or "PENDING")
    return Run(str(answer["id"]), kind, datetime.fromisoformat(since), str(state.get("message") or ""))


def start_run(api: str, request: Request) -> str:
    """The flow run that makes a request's next attempt, started unless it is under way; its id.

    Raises:
        ServiceError: Prefect does not answer or does not take it, or one run after the other ended.
    """
    found = find_runs(api, run_keys(request, TRIES))
    next_one = next_run(request, found, TRIES)
    if isinstance(next_one, Run):
        return next_one.id
    if next_one is None:
        raise ServiceError(why_all_ended(request, found, TRIES), "See the worker's log below HOME/logs.")
    return create_run(api, request, next_one)


def next_run(
    request: Request, found: dict[str, Run], tries: int, start_seconds: float = START_SECONDS, pause: float = 0
) -> Run | str | None:
    """The run of a request's next attempt that is under way, or the key under which to start one.

    Args:
        request: as the registry has it now.
        found: the runs that there are, by key.
        tries: so many runs at most, where one after the other ends without having claimed the request.
        start_seconds: how long a run may take before it claims the request.
        pause: seconds to wait after a run ended before the next is started.

    Returns:
        a run to wait for, or a key; None: so many runs ended already.
    """
    for key in run_keys(request, tries):
        run = found.get(key)
        if run is None:
            return key
        if not run.dead(start_seconds) or datetime.now(UTC) - run.since < timedelta(seconds=pause):
            return run
    return None


def why_all_ended(request: Request, found: dict[str, Run], tries: int) -> str:
    """For people, when no run served a request."""
    said = [run.message for key in run_keys(request, tries) if (run := found.get(key)) and run.message]
    last = f" The last said: {said[-1]}" if said else ""
    return f"{tries} runs for request {request.id} ended before they served it.{last}"


def create_run(api: str, request: Request, key: str) -> str:
    """Start the deployment. The same key again gives the same run, whoever asks."""
    deployment = call("GET", f"{api}/deployments/name/{RESTORE}")
    if not isinstance(deployment, dict):
        raise _silent(api)
    force = request.state in ("running", "failed")
    parameters: dict[str, Any] = {"request_id": request.id} | ({"force": True} if force else {})
    body = {"parameters": parameters, "idempotency_key": key, "state": {"type": "SCHEDULED"}}
    run = call("POST", f"{api}/deployments/{deployment['id']}/create_flow_run", body)
    if not isinstance(run, dict):
        raise _silent(api)
    return str(run["id"])


def _silent(api: str) -> ServiceError:
    return ServiceError(f"The Prefect server at {api} does not answer, or does not take the request.", "Run `dmcp up`.")


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
