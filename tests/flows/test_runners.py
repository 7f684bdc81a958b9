"""The same tasks under each task runner: the same bytes, errors that come back as themselves, killed processes.

And child runs of a deployment, by a real worker. Each runner is started once: one flow does everything under it.
"""

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import access, daemons
from flows.child_runs import Range, range_of
from flows.deployments import POOL, call, live_workers, make_pool
from flows.engine import flow, over_shards, task
from flows.programs import start_worker
from flows.protect import SHARDS, protect, protect_range, protect_variant
from flows.restore import restore, restore_variant
from flows.runners import check_home, check_server, task_runner, worker_died
from flows.surrogate import surrogate
from storage.errors import CorruptManifest, CorruptShard, EnvironmentFault, ServiceError, SettingsError
from storage.files import sha256_file
from storage.manifest import read_manifest
from storage.settings import settings
from tasks.params import load_params
from tests.flows.world import PROJECT, entered, write_tiny_params

READY_SECONDS = 300.0
VARIANTS = ("protected", "recovered")


def digests(folder: Path) -> dict[str, str]:
    return {f"{name}/{p.name}": sha256_file(p) for name in VARIANTS for p in sorted((folder / name).iterdir())}


@pytest.fixture(scope="module")
def by_threads(small_variant: Path, prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small variant, protected and recovered by threads. Not to be changed."""
    with entered(tmp_path_factory.mktemp("runners")) as folder:
        write_tiny_params(folder)
        for name in ("clean", "test"):
            shutil.copytree(small_variant.parent / name, folder / "data/sample" / name)
        access.prepare("sample")
        for stage in (surrogate, protect, restore):
            stage("sample")
    return folder


@pytest.fixture
def copy(by_threads: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, entered."""
    shutil.copytree(by_threads, tmp_path / "copy")
    with entered(tmp_path / "copy") as folder:
        yield folder


def chosen(monkeypatch: pytest.MonkeyPatch, runner: str, **others: Any) -> None:
    if runner in ("dask", "ray") and importlib.util.find_spec(f"prefect_{runner}") is None:
        pytest.skip(f"prefect-{runner} is not installed: uv pip install prefect-{runner}")
    for name, value in {"runner": runner, **others}.items():
        monkeypatch.setenv(f"DMCP_{name.upper()}", str(value))
    settings.cache_clear()


@task("refuse")
def refuse(path: str) -> None:
    raise CorruptShard(f"{path} is half a shard.", "Fetch it again.")


@task("die once")
def die_once(mark: str) -> int:
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@pytest.mark.parametrize("runner", ["processes", "dask", "ray"])
def test_each_runner_does_the_same(runner: str, copy: Path, by_threads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(monkeypatch, runner, workers=1)  # a process takes seconds to import everything
    shutil.rmtree(copy / ".dmcp/work")
    for name in VARIANTS:
        shutil.rmtree(copy / "data/sample" / name)
    params, told = load_params("sample").protect.model_dump(), []

    @flow("everything", sharded=True)
    def everything() -> None:
        folder = Path("data/sample").resolve()
        paths = [str(folder / name) for name in ("clean", "protected", "surrogate/model.pt")]
        protect_variant.fn(*paths, params, access.current_key_id("sample"))
        restore_variant.fn("sample")
        with pytest.raises(CorruptShard) as caught:
            over_shards(refuse, [("a.tar",)], told.append)
        assert (caught.value.what, caught.value.cure) == ("a.tar is half a shard.", "Fetch it again.")
        if runner == "processes":  # Dask and Ray start another process, and the task once more
            with pytest.raises(EnvironmentFault, match="finished shards are kept"):
                over_shards(die_once, [(str(copy / "mark"),)], told.append)
        else:
            over_shards(die_once, [(str(copy / "mark"),)], told.append)

    everything()
    assert digests(copy / "data/sample") == digests(by_threads / "data/sample")
    assert len(told) == (runner != "processes") and os.getpid() not in told


def test_a_dask_cluster_has_an_address(copy: Path, by_threads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="prefect-dask is not installed")
    cluster = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "host": "127.0.0.1"}
    with distributed.LocalCluster(**cluster, dashboard_address=None, local_directory=str(copy / "dask")) as theirs:
        chosen(monkeypatch, "dask", dask_address=theirs.scheduler_address)
        monkeypatch.setattr(restore_variant, "task_runner", task_runner())
        shutil.rmtree(copy / ".dmcp/work/restore")
        shutil.rmtree(copy / "data/sample/recovered")
        restore("sample")
        assert digests(copy / "data/sample") == digests(by_threads / "data/sample")


def test_what_is_not_there_is_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    chosen(monkeypatch, "processes")
    said = "DMCP_RUNNER is processes, and there is no Prefect server"
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(SettingsError, match=said):
        check_server()
    check_home(str(copy / ".dmcp/work/protect"))
    with pytest.raises(SettingsError, match="DMCP_HOME"):
        check_home(str(copy / "elsewhere/work"))
    assert worker_died(ValueError("of its own")) is None


# --- child runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(copy: Path, prefect_api: str) -> Iterator[str]:
    """A worker with the HOME of the copy, and the deployment; the server's address."""
    make_pool(prefect_api)
    flow_id = call("POST", f"{prefect_api}/flows/", {"name": protect_range.name})["id"]
    deployment = {"name": SHARDS.partition("/")[2], "flow_id": flow_id, "work_pool_name": POOL, "path": str(PROJECT)}
    entrypoint = {"entrypoint": "flows/protect.py:protect_range"}
    assert call("POST", f"{prefect_api}/deployments/", deployment | entrypoint)
    home = settings().home_path()
    try:
        daemon = start_worker(settings(), prefect_api)
        name = daemon.command[daemon.command.index("--name") + 1]
        daemons.wait_ready(home, daemon, lambda: name in live_workers(prefect_api), READY_SECONDS)
        yield prefect_api
    finally:
        daemons.stop(home, "worker")


def runs(api: str) -> list[dict[str, Any]]:
    return call("POST", f"{api}/flow_runs/filter", {"flows": {"name": {"any_": [protect_range.name]}}})


@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="takes minutes; LONG_TESTS=1 runs it")
def test_child_runs_fill_the_slots(copy: Path, by_threads: Path, worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(monkeypatch, "threads", shards_per_run=2)
    monkeypatch.setenv("PREFECT_API_URL", worker)
    monkeypatch.setattr("flows.child_runs.POLL_SECONDS", 0.5)
    clean, shards = copy / "data/sample/clean", read_manifest(copy / "data/sample/clean").shards
    (work,) = (copy / ".dmcp/work/protect/sample").glob("*/")
    shutil.rmtree(copy / "data/sample/protected")
    shutil.rmtree(work / shards[1].sha256)
    kept = {path: path.stat().st_mtime_ns for n in (0, 2) for path in (work / shards[n].sha256).iterdir()}
    protect("sample")
    assert digests(copy / "data/sample") == digests(by_threads / "data/sample")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    (only,) = runs(worker)  # the third shard is a range of its own, in which nothing was to be done
    assert only["state_type"] == "COMPLETED" and set(only["parameters"]) == {"work", "first", "end", "jobs"}
    assert only["tags"] == [Range(work, 0, 2).tag]

    protect("sample")
    assert len(runs(worker)) == 1
    shutil.rmtree(work / shards[2].sha256)
    (clean / shards[2].name).write_bytes(b"half a shard")
    with pytest.raises(CorruptShard, match=shards[2].name):
        protect("sample")
    assert digests(copy / "data/sample") == digests(by_threads / "data/sample")


def test_child_runs_need_a_worker(copy: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(monkeypatch, "threads", shards_per_run=2)
    monkeypatch.setattr("flows.child_runs.is_served", lambda conf, api: False)
    with pytest.raises(ServiceError, match=r"DMCP_SHARDS_PER_RUN .* `dmcp up`, or unset it"):
        protect("sample")


def test_a_child_does_what_its_parent_listed_and_no_more(copy: Path) -> None:
    work = copy / ".dmcp/work/protect/sample/x"
    work.mkdir()
    (work / "jobs.json").write_text('[["a", "1"], ["b", "2"]]')
    listed = sha256_file(work / "jobs.json")
    with range_of(str(work), 1, 2, listed) as mine:
        assert mine == [["b", "2"]]
        assert Range(work, 1, 2).is_held() and not Range(work, 0, 1).is_held()
    assert not Range(work, 1, 2).is_held()
    with pytest.raises(CorruptManifest), range_of(str(work), 0, 1, "0" * 64):
        pass
