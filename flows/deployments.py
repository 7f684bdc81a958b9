"""The deployments of prefect.yaml on a Prefect server, and who serves them.

`dmcp up` makes them. Where the server is another's (PREFECT_API_URL), make them by hand; the names are those to make,
none: all of them:

    python -m flows.deployments restore
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from flows import daemons
from flows.environment import PROJECT, service_environment
from storage.errors import DmcpError, ServiceError
from storage.files import write_atomic
from storage.settings import Settings, settings

POOL = "dmcp"
RESTORE = "restore/restore"  # FLOW/DEPLOYMENT that serves requests
DEPLOY_SECONDS = 600.0
ANSWER_SECONDS = 5.0
BUSY_SECONDS = 30.0
"""So long a server is asked again that answers, but not now: Prefect says 503 where SQLite had too many writers."""
_NOT_NOW = (429, 502, 503, 504)

log = logging.getLogger("dmcp.prefect")


def live_api(settings: Settings) -> str | None:
    """The Prefect API to talk to: PREFECT_API_URL, else the local server's when it lives."""
    elsewhere = os.environ.get("PREFECT_API_URL")
    if elsewhere:
        return elsewhere
    daemon = daemons.find(settings.home_path(), "prefect")
    return f"{daemon.address}/api" if daemon else None


def live_workers(api: str) -> set[str]:
    """Names of our pool's workers that sent a heartbeat lately; none as well when the server does not answer."""
    answer = call("POST", f"{api}/work_pools/{POOL}/workers/filter", {"workers": {}})
    return {str(worker["name"]) for worker in answer or [] if worker.get("status") == "ONLINE"}


def is_served(settings: Settings, api: str) -> bool:
    """Whether a worker would take a run. One of this HOME's own must live too: heartbeats outlive it for a minute."""
    local = daemons.find(settings.home_path(), "prefect")
    if local is not None and api.startswith(local.address) and daemons.find(settings.home_path(), "worker") is None:
        return False
    return bool(live_workers(api))


def call(method: str, url: str, body: Any = None) -> Any:
    """A JSON answer, True for an empty one, None when there was none or it was an error.

    A server that is busy, or breaks off, is asked again (`BUSY_SECONDS`); one that is away, or silent, is not. So ask
    for nothing here that must not be done twice.
    """
    import httpx
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    again = Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_delay(BUSY_SECONDS),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        reraise=True,
    )
    try:
        return again(_ask, method, url, body)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            log.warning("%s %s: %s", method, url, error)
    except (httpx.HTTPError, ValueError) as error:
        log.info("%s %s: %s: %s", method, url, type(error).__name__, error)
    return None


def _ask(method: str, url: str, body: Any) -> Any:
    import httpx

    answer = httpx.request(method, url, json=body, timeout=ANSWER_SECONDS, trust_env=False)
    answer.raise_for_status()
    return answer.json() if answer.content else True


def _is_passing(error: BaseException) -> bool:
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _NOT_NOW
    return isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError)


def make_pool(api: str) -> None:
    """Make the work pool where it is missing. Raises ServiceError when Prefect does not."""
    if call("GET", f"{api}/work_pools/{POOL}") is not None:
        return
    if call("POST", f"{api}/work_pools/", {"name": POOL, "type": "process"}) is None:
        raise ServiceError(f"The Prefect server at {api} did not make the work pool {POOL}.", "See `dmcp status`.")


def deploy(settings: Settings, api: str) -> None:
    """Make the deployments of prefect.yaml, unless this very file was deployed from here to this server before.

    Prefect keeps the project's absolute path: where the project was moved, runs would begin in a folder that is gone.

    Raises:
        ServiceError: Prefect refused; its own words are in the message.
    """
    mark = settings.home_path("run", "deployed")
    digest = hashlib.sha256(f"{api}\0{PROJECT}\0".encode() + (PROJECT / "prefect.yaml").read_bytes()).hexdigest()
    known = call("GET", f"{api}/deployments/name/{RESTORE}") is not None
    if known and mark.exists() and mark.read_text() == digest:
        return
    run_prefect(settings, api, "deploy", "--all", "--prefect-file", "prefect.yaml")
    write_atomic(mark, digest.encode())


def run_prefect(settings: Settings, api: str, *arguments: str) -> None:
    """Run a command of Prefect's own against a server. Raises ServiceError with its last words."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    environment = service_environment(settings) | {"PREFECT_API_URL": api}
    try:
        done = subprocess.run(
            command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=DEPLOY_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"prefect {arguments[0]} took over {DEPLOY_SECONDS:.0f} s.", "Try again.") from error
    log = settings.home_path("logs", f"prefect-{arguments[0]}.log")
    write_atomic(log, (done.stdout + done.stderr).encode())
    if done.returncode != 0:
        lines = "\n  | ".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise ServiceError(f"prefect {arguments[0]} failed:\n  | {lines}", f"Its whole output: {log}")


def main(names: Sequence[str]) -> int:
    """Make deployments on the server that PREFECT_API_URL names; the exit code."""
    try:
        conf = settings()
        api = live_api(conf)
        if api is None:
            raise ServiceError("There is no Prefect server.", "Set PREFECT_API_URL, or run `dmcp up`.")
        make_pool(api)
        chosen = [word for name in names for word in ("--name", name)] or ["--all"]
        run_prefect(conf, api, "deploy", *chosen, "--prefect-file", "prefect.yaml")
    except DmcpError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Deployed {', '.join(names) or 'all of prefect.yaml'} to {api}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
