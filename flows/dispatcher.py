"""Looking after all requests: whoever asks through the gateway waits for nobody to type a command.

    Dispatcher(settings).run(stop)       # in a thread of the gateway, until `stop` is set
    Dispatcher(settings).run_once()      # one look at everything

Pending requests get a flow run: each user's oldest in turn, and no more than `PER_USER` of one user at once, so that
nobody's many keep others' few waiting. Running ones whose worker gives no sign of life any more, or does not get on
(DMCP_STALLED_MINUTES), get another, which takes them over. Those that something was in the way of (`flows/attempt.py`)
are pending again when they are due. Where a run ended before it claimed its request (its worker
was killed, or could not start it) the next is tried, a bounded number of times; then the request fails and says why.
Any number of dispatchers may do this at once, and one may be killed at any point: a flow run's key is `REQUEST:ATTEMPT`
(`flows/dispatch.py`), so the second to start it starts nothing, and the claim in the registry lets one worker through.
Nothing is remembered here.

While the Prefect server or the database is away requests wait. What the built-in users ask for is served by the
process that asks; when it was killed, its request is only closed.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from flows.access import BUILT_IN
from flows.attempt import ATTEMPTS
from flows.deployments import live_api
from flows.dispatch import STALE_SECONDS, START_SECONDS, Run, create_run, find_runs, next_run, run_keys, why_all_ended
from storage.database import utc_now
from storage.errors import DmcpError, ServiceError
from storage.registry import Registry, Request, open_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.settings import Settings

log = logging.getLogger("dmcp.dispatcher")

TRIES = 3
"""Flow runs of one attempt that may end before they claimed the request."""
PAUSE_SECONDS = 10.0
POLL_SECONDS = 2.0
PER_USER = 10
"""Requests of one user that are running or have a flow run at once."""
AT_ONCE = 100  # requests looked after in one round; the others' turn comes
ACTOR = "dispatcher"


@dataclass
class Round:
    """What one look at the requests came to: flow runs started, requests given up, those that wait, and for what."""

    started: int = 0
    failed: int = 0
    waiting: int = 0
    trouble: str = ""


class Dispatcher:
    """Starts flow runs for requests.

    Args:
        settings: name registry and Prefect server.
        stale_seconds: a worker without a sign of life for so long is taken for dead.
        stalled_seconds: one that does not get on for so long, for stalled; None: as the settings say.
        start_seconds: a flow run that claimed nothing for so long after a worker took it, likewise.
        pause_seconds: between a run that ended in vain and the next.
        poll_seconds: between two looks.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stale_seconds: float = STALE_SECONDS,
        stalled_seconds: float | None = None,
        start_seconds: float = START_SECONDS,
        pause_seconds: float = PAUSE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.settings = settings
        self.stale_seconds = stale_seconds
        self.stalled_seconds = 60 * settings.stalled_minutes if stalled_seconds is None else stalled_seconds
        self.start_seconds = start_seconds
        self.pause_seconds = pause_seconds
        self.poll_seconds = poll_seconds
        self._wake = threading.Event()

    def wake(self) -> None:
        """Look now: there is a new request."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Look again and again until `stop` is set (and `wake` called, or the next look is due). Raises nothing."""
        before = ""
        while not stop.is_set():
            trouble = self._try_once()
            if trouble != before:
                log.warning("requests wait: %s", trouble) if trouble else log.info("requests go on")
                before = trouble
            self._wake.wait(self.poll_seconds)
            self._wake.clear()

    def _try_once(self) -> str:
        try:
            return self.run_once().trouble
        except DmcpError as error:
            return str(error)
        except Exception as error:
            log.exception("the dispatcher met something unforeseen")
            return f"{type(error).__name__}: {error}"

    def run_once(self) -> Round:
        """Look at all requests once.

        Raises:
            EnvironmentFault: the registry is out of reach.
        """
        done = Round()
        with open_registry(self.settings) as registry:
            waiting = self._waiting(registry, done)
            if not waiting:
                return done
            api = live_api(self.settings)
            if api is None:
                done.waiting, done.trouble = len(waiting), "no Prefect server runs; `dmcp up` starts one"
                return done
            try:
                found = find_runs(api, (key for request in waiting for key in run_keys(request, TRIES)))
                for request in waiting:
                    self._start(registry, api, request, found, done)
            except ServiceError as error:
                done.trouble = str(error)
            done.waiting = len(waiting) - done.started - done.failed
        return done

    def _waiting(self, registry: Registry, done: Round) -> list[Request]:
        """The requests that need a worker, those that had one first, then in turn; hopeless ones are closed."""
        stale = registry.stale_requests(self.stale_seconds, self.stalled_seconds)
        pending: Sequence[Request] = registry.pending_requests(PER_USER, AT_ONCE)
        waiting = []
        for request in (*stale, *pending):
            if request.user.name in BUILT_IN:
                if request.state == "running" or self._is_old(request):
                    self._fail(registry, request, "The process that served it was killed.", done)
            elif request.takeovers >= ATTEMPTS and request.state == "running":
                why = (
                    f"{request.takeovers} workers took it in vain, and the last died or stalled while it served it; "
                    "hand it in in parts, or later."
                )
                self._fail(registry, request, why, done)
            else:
                waiting.append(request)
        return waiting[:AT_ONCE]

    def _is_old(self, request: Request) -> bool:
        return request.created < utc_now() - timedelta(seconds=self.stale_seconds)

    def _start(self, registry: Registry, api: str, request: Request, found: dict[str, Run], done: Round) -> None:
        run = next_run(request, found, TRIES, self.start_seconds, self.pause_seconds)
        if isinstance(run, Run):
            return
        if run is None:
            log.warning("%s", why_all_ended(request, found, TRIES))
            why = why_all_ended(request, {}, TRIES)  # the requester reads it: what Prefect said is for the log
            self._fail(registry, request, why, done)
            return
        create_run(api, request, run)
        done.started += 1

    def _fail(self, registry: Registry, request: Request, why: str, done: Round) -> None:
        with suppress(DmcpError):  # it goes on, or ended, meanwhile
            registry.set_request_state(
                request.id, "failed", message=f"ServiceError: {why}", attempt=request.attempt, actor=ACTOR
            )
            done.failed += 1
