"""`dmcp remote` as it is run: processes of its own, killed and run again, against the real gateway."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.client.job import job_folder
from flows.restore import serve_request
from storage.database import utc_now
from storage.files import sha256_file
from storage.settings import settings
from tests.flows.gateway_world import Served, gateway
from tests.flows.test_restore import altered, samples
from tests.flows.world import PROJECT, entered

HEAVY = ("torch", "prefect", "mlflow", "sqlalchemy", "fastapi", "boto3", "numpy", "uvicorn", "dvc")


@pytest.fixture(scope="module")
def site(built: Path) -> Iterator[Served]:
    from flows.services import object_store

    with entered(built), object_store(), gateway() as site:
        yield site


@pytest.fixture
def home(site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A requester's own home, elsewhere; logged in."""
    site.heal()
    monkeypatch.setenv("DMCP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DMCP_TOKEN", site.token())
    done = dmcp("login", site.net.url)
    assert done.exit_code == 0, done.output
    assert os.environ["DMCP_TOKEN"] not in done.output
    monkeypatch.delenv("DMCP_TOKEN")
    yield tmp_path / "home"
    site.heal()


def dmcp(*arguments: str, **more):
    return CliRunner().invoke(app, ["remote", *arguments], **more)


def started(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "remote", *arguments],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_when(due: Callable[[], bool], *arguments: str) -> None:
    """Run the command and kill it at that moment."""
    child = started(*arguments)
    try:
        while not due():
            assert child.poll() is None, child.communicate()
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def test_killed_at_every_stage_and_run_again_it_restores_once(site: Served, home: Path, tmp_path: Path) -> None:
    source, out = str(settings().data_path("sample", "protected").resolve()), tmp_path / "out"
    command = ("restore", source, str(out))
    mine = site.registry.authenticate(json.loads((home / "remote.json").read_text())["token"]).name

    # It was handed in, and the answer is on its way.
    site.net.stall = b"POST /api/v1/restorations/upload"
    killed_when(lambda: bool(site.registry.list_requests(mine)), *command)
    site.net.cut_all()
    site.net.stall = b""
    # It waits for the restoration.
    killed_when(lambda: site.net.count("GET /api/v1/restorations/") > 0, *command)
    assert site.net.count("POST /api/v1/restorations/upload") == 1

    # It downloads.
    (request,) = site.registry.list_requests(mine)
    serve_request(request.id)
    assert site.registry.get_request(request.id).state == "done"
    site.store.rate, site.store.answered = 100_000, 0
    killed_when(lambda: site.store.answered > 250_000, *command)
    left = sum(path.stat().st_size for path in (job_folder(out) / "results").iterdir())
    assert left > 100_000 and not out.exists()

    site.store.rate, site.store.answered = 0, 0
    child = started(*command)
    said, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    assert "96 images restored" in said
    for path in settings().data_path("sample", "recovered").iterdir():
        assert sha256_file(out / path.name) == sha256_file(path)
    assert len(site.registry.list_requests(mine)) == 1
    assert site.net.count("POST /api/v1/restorations/upload") == 1
    assert site.store.answered < 430_000  # not all of it again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]


def test_refusals_are_told_as_restore_tells_them(site: Served, home: Path, tmp_path: Path) -> None:
    protected = samples("protected")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(altered(protected[min(protected)].png))
    done = site.serving(lambda: dmcp("restore", str(tmp_path / "in"), str(tmp_path / "out")))
    assert done.exit_code == 7
    assert "AlteredImage" in done.output and "refused, one by one" in done.output
    assert (tmp_path / "out" / "refused.csv").read_text().startswith("name,error,reason\na.png,AlteredImage,")


def test_request_status_wait_fetch_list_cancel(site: Served, home: Path, tmp_path: Path) -> None:
    protected, recovered = samples("protected"), samples("recovered")
    key = min(protected)
    (tmp_path / "a.png").write_bytes(protected[key].png)
    identity = dmcp("request", str(tmp_path / "a.png"), "--quiet").stdout.strip()
    assert "pending" in dmcp("status", identity).output
    done = site.serving(lambda: dmcp("wait", identity))
    assert done.exit_code == 0 and "1 of 1 images restored" in done.output
    assert dmcp("fetch", identity, str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out" / "a.png").read_bytes() == recovered[key].png
    other = dmcp("request", str(tmp_path / "a.png"), "-q").stdout.strip()
    assert "cancelled" in dmcp("cancel", other).output
    assert dmcp("wait", other).exit_code == 2
    site.registry.set_request_state(third := dmcp("request", str(tmp_path / "a.png"), "-q").stdout.strip(), "failed")
    assert "pending" in dmcp("retry", third).output
    assert site.serving(lambda: dmcp("wait", third)).exit_code == 0
    assert dmcp("retry", third).exit_code == 2
    assert site.registry.begin_removal(third, utc_now() + timedelta(days=1))
    gone = dmcp("fetch", third, str(tmp_path / "gone"))
    assert gone.exit_code == 8 and "removed on" in gone.output
    listed = dmcp("list").output
    assert identity in listed and other in listed
    assert identity not in dmcp("list", "--state", "cancelled").output


def test_access(site: Served, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.registry.register_dataset("birds", site.owner)
    site.registry.set_terms("birds", "Do not sell.\x1b[2J")
    assert "birds" in dmcp("datasets").output
    shown = dmcp("terms", "birds").output
    assert "Do not sell." in shown and "\x1b" not in shown and "--accept" in shown
    assert dmcp("terms", "birds", "--accept").exit_code == 0
    assert "accepted" in dmcp("datasets").output
    assert dmcp("ask", "birds", "--reason", "a study", "--days", "30").exit_code == 0
    assert "open" in dmcp("grants").output
    with monkeypatch.context() as owner:
        owner.setenv("DMCP_TOKEN", site.owner_token)
        number = next(request.id for request in site.registry.list_access_requests(owner=site.owner))
        assert "a study" in dmcp("owner", "requests").output
        assert dmcp("owner", "approve", str(number), "--quota", "5").exit_code == 0
        grant = site.registry.get_access_request(number).grant_id
        assert "birds" in dmcp("owner", "grants").output
        assert dmcp("owner", "usage").exit_code == 0
    assert "in force" in dmcp("grants").output
    assert dmcp("renew", str(grant), "--reason", "more").exit_code == 0
    with monkeypatch.context() as owner:
        owner.setenv("DMCP_TOKEN", site.owner_token)
        number = next(request.id for request in site.registry.list_access_requests(owner=site.owner, state="open"))
        assert dmcp("owner", "deny", str(number), "--note", "enough").exit_code == 0
        assert dmcp("owner", "revoke", str(grant)).exit_code == 0
    assert "enough" in dmcp("grants").output and "revoked" in dmcp("grants").output


def test_the_token_is_kept_for_its_owner_alone(site: Served, home: Path) -> None:
    path = home / "remote.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = json.loads(path.read_text())["token"]
    for command in (["whoami"], ["datasets"], ["list"], ["rotate-token"], ["whoami"]):
        done = dmcp(*command)
        assert done.exit_code == 0 and token not in done.output
    assert json.loads(path.read_text())["token"] != token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert dmcp("whoami").exit_code == 4
    path.chmod(0o600)
    assert dmcp("logout").exit_code == 0 and not path.exists()
    assert dmcp("whoami").exit_code == 6


def test_failures_have_the_codes_of_the_command_line(site: Served, home: Path, tmp_path: Path) -> None:
    assert dmcp("status", "0" * 32).exit_code == 8
    assert dmcp("fetch", "nonsense", str(tmp_path / "out")).exit_code == 2
    assert dmcp("restore", str(tmp_path / "absent"), str(tmp_path / "out")).exit_code == 3
    assert dmcp("restore", "nowhere@latest", str(tmp_path / "out")).exit_code == 6
    assert dmcp("owner", "requests").exit_code == 6
    assert dmcp("login", "http://dmcp.example", env={"DMCP_TOKEN": "dmcp_x"}).exit_code == 2
    assert dmcp("login", site.net.url, env={"DMCP_TOKEN": "dmcp_wrong"}).exit_code == 6
    assert dmcp("whoami").exit_code == 0  # a login that failed replaces nothing
    site.net.down = True
    assert dmcp("wait", "0" * 32, "--patience", "1").exit_code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_a_stored_token_goes_to_its_own_gateway_only(site: Served, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCP_REMOTE", site.store.url)
    assert dmcp("whoami").exit_code == 6
    assert not site.store.calls


def test_a_client_needs_nothing_heavy() -> None:
    code = f"""
import sys
from flows.client import Client, fetch, restore
import flows.commands.remote
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "most"),
    [(["-c", "from flows.client import Client"], 0.9), (["-m", "flows.cli", "remote", "--help"], 0.9)],
    ids=["import", "help"],
)
def test_it_is_quick(arguments: list[str], most: float) -> None:
    """Processor time of the whole process, which takes longer on a busy machine, too: a bound with room."""
    best = 9.0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, cwd=PROJECT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        best = min(best, usage.ru_utime + usage.ru_stime)
    assert best < most
