"""Requests get their flow runs, once each, whatever is killed in between; against a real Prefect server.

The deployment `restore` is made here, without a worker: what a worker would do with a flow run is done by Prefect's own
`flow-run execute`, in a process that can be killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

import pytest

from flows import access
from flows.attempt import ATTEMPTS
from flows.deployments import call, make_pool
from flows.dispatch import Run, find_runs, is_stale, next_run, run_keys, serve, start_run
from flows.dispatcher import PER_USER, TRIES, Dispatcher
from flows.environment import PROJECT
from flows.services import object_store
from storage.errors import GrantRevoked, RequestCancelled, ServiceError
from storage.registry import Request
from storage.settings import settings
from tests.flows.test_restore_grants import Place
from tests.flows.waiting import wait_for
from tests.flows.world import entered

KILLED = """
import os, signal
from flows import restore_shards
real = restore_shards.put_result
def put(*arguments):
    real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
restore_shards.put_result = put
from flows.restore import serve_request
serve_request({request_id!r})
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[str]:
    """The server with the deployment, and a world of this module's own with a running object store."""
    make_pool(prefect_api)
    flow = call("POST", f"{prefect_api}/flows/", {"name": "restore"})
    body = {
        "name": "restore",
        "flow_id": flow["id"],
        "entrypoint": "flows/restore.py:serve_request",
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT)}}],
        "work_pool_name": "dmcp",
    }
    assert call("POST", f"{prefect_api}/deployments/", body)
    with entered(tmp_path_factory.mktemp("dispatch")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMCP_WORKERS", "1")
        patch.setenv("PREFECT_API_URL", prefect_api)
        patch.setattr("flows.deployments.ANSWER_SECONDS", 300)  # a busy machine is no server that is away
        settings.cache_clear()
        with object_store():
            yield prefect_api


@pytest.fixture
def place(tmp_path: Path, api: str) -> Iterator[Place]:
    with access.registry() as book:
        yield Place(tmp_path, book)
        for request in [*book.list_requests(state="pending"), *book.list_requests(state="running")]:
            book.cancel_request(request.id)  # no other test's business


def pending(place: Place) -> Request:
    user = place.book.get_user(place.name)
    return place.book.get_request(place.book.create_request(user.id, "upload", None, "x"))


def runs(api: str, request: Request) -> dict[str, Run]:
    keys = [f"{request.id}:{attempt}{again}" for attempt in range(4) for again in ("", ":1", ":2", ":3")]
    found = find_runs(api, keys)  # in the server's order, which says nothing
    return {key.removeprefix(f"{request.id}:"): found[key] for key in keys if key in found}


def set_state(api: str, run: Run, kind: str, message: str = "") -> None:
    state = {"state": {"type": kind, "message": message}, "force": True}
    assert call("POST", f"{api}/flow_runs/{run.id}/set_state", state)


def parameters(api: str, run: Run) -> dict[str, object]:
    return call("GET", f"{api}/flow_runs/{run.id}")["parameters"]


def test_a_pending_request_gets_one_run_whoever_looks(place: Place, api: str) -> None:
    request = pending(place)
    first = Dispatcher(settings()).run_once()
    assert (first.started, first.waiting, first.trouble) == (1, 0, "")
    again = Dispatcher(settings()).run_once()  # another gateway, or the same one after it was killed
    assert (again.started, again.waiting) == (0, 1)
    (run,) = runs(api, request).values()
    assert (run.state, parameters(api, run)) == ("SCHEDULED", {"request_id": request.id})
    assert start_run(api, request) == run.id, "a command that waits for it starts none of its own"


def test_many_dispatchers_at_once_start_each_run_once(place: Place, api: str) -> None:
    requests = [pending(place) for _ in range(5)]
    threads = [Thread(target=Dispatcher(settings()).run_once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer = call("POST", f"{api}/flow_runs/filter", {"flow_runs": {}, "limit": 200})
    made = [run["parameters"]["request_id"] for run in answer if "request_id" in run["parameters"]]
    assert [made.count(request.id) for request in requests] == [1] * 5


def test_what_was_killed_is_taken_over_and_done_exactly_once(place: Place, api: str) -> None:
    """SIGKILL in the middle; the next attempt is a flow run of the deployment, executed by Prefect itself."""
    place.grant()
    request_id = place.submit(place.files(place.pngs))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.format(request_id=request_id)], cwd=PROJECT, env=_environment(), check=False
    )
    assert killed.returncode == -signal.SIGKILL
    request = place.book.get_request(request_id)
    assert (request.state, request.attempt, request.restored) == ("running", 1, 0)
    assert Dispatcher(settings()).run_once().started == 0, "its last sign of life is not old enough"
    assert Dispatcher(settings(), stale_seconds=0).run_once().started == 1
    (run,) = runs(api, request).values()
    assert parameters(api, run) == {"request_id": request_id, "force": True}
    subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "execute", run.id], cwd=PROJECT, env=_environment(), check=True
    )
    place.assert_whole(request_id)
    assert place.book.get_request(request_id).attempt == 2
    assert place.used() == [6], "the shard that was restored twice is charged once"
    assert place.released(request_id) == [(0, 2), (0, 2), (1, 2), (2, 2)]
    assert Dispatcher(settings(), stale_seconds=0).run_once().started == 0


def _environment() -> dict[str, str]:
    return os.environ | {"DMCP_DATA": str(settings().data.resolve())}


def test_a_run_that_ends_in_vain_is_followed_by_another_and_then_by_an_error(
    place: Place, api: str, caplog: pytest.LogCaptureFixture
) -> None:
    request = pending(place)
    patient, hasty = Dispatcher(settings()), Dispatcher(settings(), pause_seconds=0)
    for again in range(TRIES):
        assert hasty.run_once().started == 1
        set_state(api, list(runs(api, request).values())[-1], "CRASHED", f"no memory, {again}")
        assert patient.run_once().started == 0, "the next one waits a little"
    assert set(runs(api, request)) == {"0", "0:1", "0:2"}
    assert hasty.run_once().failed == 1
    failed = place.book.get_request(request.id)
    assert failed.state == "failed"
    assert failed.message.startswith(f"ServiceError: {TRIES} runs")
    assert "no memory" not in failed.message and "no memory" in caplog.text  # it may name places of the service


def test_a_run_that_was_killed_before_it_claimed_anything_is_not_waited_for(place: Place, api: str) -> None:
    """Prefect goes on saying that it runs."""
    request = pending(place)
    Dispatcher(settings()).run_once()
    set_state(api, runs(api, request)["0"], "RUNNING")
    assert Dispatcher(settings()).run_once().started == 0
    time.sleep(0.05)
    assert Dispatcher(settings(), start_seconds=0.01, pause_seconds=0).run_once().started == 1
    assert set(runs(api, request)) == {"0", "0:1"}


def test_a_request_that_kills_its_workers_is_given_up(place: Place, api: str) -> None:
    request = pending(place)
    for _ in range(ATTEMPTS):
        place.book.claim_request(request.id, force=True)
    assert Dispatcher(settings(), stale_seconds=0).run_once().failed == 1
    assert f"{ATTEMPTS} workers took it in vain" in place.book.get_request(request.id).message


def test_what_something_was_in_the_way_of_is_tried_again_when_it_is_due(place: Place, api: str) -> None:
    request = pending(place)
    for seconds, started in ((3600, 0), (0, 1)):
        attempt = place.book.claim_request(request.id).attempt
        place.book.postpone_request(request.id, seconds, message="ObjectStoreError: x", attempt=attempt)
        assert Dispatcher(settings()).run_once().started == started
    assert list(runs(api, request)) == ["2"]


def test_what_its_user_had_tried_again_is_not_given_up_for_that(place: Place, api: str) -> None:
    """Each try of a user has a number too; only workers that died or stalled since the last one count."""
    request = pending(place)
    for _ in range(ATTEMPTS - 1):
        place.book.claim_request(request.id)
        place.book.set_request_state(request.id, "failed", message="ServiceError: x")
        place.book.retry_request(request.id)
    attempt = place.book.claim_request(request.id).attempt
    assert attempt > ATTEMPTS
    look = Dispatcher(settings(), stale_seconds=0).run_once()
    assert (look.started, look.failed) == (1, 0)
    assert find_runs(api, [f"{request.id}:{attempt}"])


def test_a_worker_that_lives_and_does_not_get_on_is_followed_by_another(place: Place, api: str) -> None:
    request = pending(place)
    place.book.claim_request(request.id)
    patient, strict = Dispatcher(settings()), Dispatcher(settings(), stalled_seconds=0)
    assert patient.run_once().started == 0
    place.book.heartbeat(request.id, 1)
    assert strict.run_once().started == 1
    (run,) = runs(api, place.book.get_request(request.id)).values()
    assert parameters(api, run) == {"request_id": request.id, "force": True}


def test_one_users_many_do_not_keep_anothers_one_waiting(place: Place, api: str, tmp_path: Path) -> None:
    many = [pending(place) for _ in range(PER_USER + 3)]
    one = pending(Place(tmp_path, place.book))
    assert Dispatcher(settings()).run_once().started == PER_USER + 1
    assert list(runs(api, one)) == ["0"]
    assert [bool(runs(api, request)) for request in many] == [True] * PER_USER + [False] * 3


def test_what_the_pipeline_asks_for_is_only_closed(place: Place, api: str) -> None:
    access.ensure_pipeline_access(place.book, place.toy)
    user = place.book.get_user(access.PIPELINE_USER)
    ids = [place.book.create_request(user.id, "variant", place.toy, "x") for _ in range(2)]
    place.book.claim_request(ids[1])
    fresh = Dispatcher(settings()).run_once()
    assert (fresh.started, fresh.failed) == (0, 0)
    late = Dispatcher(settings(), stale_seconds=0).run_once()
    assert (late.started, late.failed) == (0, 2)


def test_downtime_is_survived(place: Place, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = pending(place)
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        assert "does not answer" in Dispatcher(settings()).run_once().trouble
        stop, dispatcher = Event(), Dispatcher(settings(), poll_seconds=0.05)
        thread = Thread(target=dispatcher.run, args=(stop,))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
    wait_for(lambda: runs(api, request))
    stop.set()
    dispatcher.wake()
    thread.join(60)
    assert not thread.is_alive()
    assert set(runs(api, request)) == {"0"}


def test_without_any_server_requests_wait(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pending(place)
    monkeypatch.delenv("PREFECT_API_URL")
    look = Dispatcher(settings()).run_once()
    assert (look.started, look.waiting) == (0, 1)
    assert "dmcp up" in look.trouble


def test_waiting_for_a_request_ends_with_what_became_of_it(
    place: Place, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dmcp restore` waits on the registry, and says what the worker said."""
    monkeypatch.setattr("flows.dispatch.is_served", lambda *_: True)
    monkeypatch.setattr("flows.dispatch.POLL_SECONDS", 0.02)
    monkeypatch.setattr("flows.dispatch.PATIENCE_SECONDS", 0.01)
    ends = {
        "failed": lambda book, i: book.set_request_state(i, "failed", message="GrantRevoked: It was revoked."),
        "cancelled": lambda book, i: book.cancel_request(i),
        "done": lambda book, i: (book.claim_request(i), book.set_request_state(i, "done")),
    }
    for state, error in (("failed", GrantRevoked), ("cancelled", RequestCancelled), ("done", None)):
        request = pending(place)
        told: list[str] = []

        def tell(text: str, request: Request = request, state: str = state, told: list[str] = told) -> None:
            told.append(text)
            if len(told) == 3:
                ends[state](place.book, request.id)

        if error is None:
            assert serve(settings(), request.id, tell) == "worker"
        else:
            with pytest.raises(error):
                serve(settings(), request.id, tell)
    with pytest.raises(ServiceError, match="ended"):
        request = pending(place)

        def crash(text: str) -> None:
            if found := runs(api, request):
                set_state(api, found["0"], "CRASHED", "out of memory")

        serve(settings(), request.id, crash)
    waiting: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(ServiceError, match="No worker worked on request"):

        def leave(text: str) -> None:
            waiting.append(text)
            if len(waiting) == 3:
                patch.setattr("flows.dispatch.is_served", lambda *_: False)

        serve(settings(), pending(place).id, leave)
    assert waiting[1:3] == ["Waiting for a free worker"] * 2, "however long: they have their hands full"


def test_which_run_comes_next() -> None:
    request = Request(id=uuid4().hex, attempt=2, state="running", started=None, heartbeat=None, progressed=None)
    first, second, third = run_keys(request, 3)
    assert (first, second) == (f"{request.id}:2", f"{request.id}:2:1")
    now, old = datetime.now(UTC), datetime.now(UTC) - timedelta(hours=1)
    over, going = Run("a", "CRASHED", old), Run("b", "RUNNING", now)
    assert next_run(request, {}, 3) == first
    assert next_run(request, {first: over}, 3) == second
    assert next_run(request, {first: over, second: going}, 3) is going
    assert next_run(request, {first: Run("c", "RUNNING", old)}, 3) == second
    assert next_run(request, {first: Run("c", "SCHEDULED", old)}, 3).id == "c", "no worker took it yet"
    assert next_run(request, {first: over, second: over, third: over}, 3) is None
    assert is_stale(request)
    request.heartbeat, request.progressed = now, old
    assert not is_stale(request)
    assert is_stale(request, stalled_seconds=60) and not is_stale(request, stalled_seconds=7200)
