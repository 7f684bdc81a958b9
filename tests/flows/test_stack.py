"""The stack's environment and states, without starting it: `tests/service/` does that."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from flows import stack
from flows.deployments import call, is_served, live_api, live_workers
from storage.errors import ServiceError
from storage.settings import Settings

NOBODY = "http://127.0.0.1:9/api"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def test_daemons_see_the_settings_that_their_starter_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        home=Path("state"), mirror=Path("mirror"), workers=3, vault_passphrase=SecretStr("open"), s3_prefix="team"
    )
    environment = stack.service_environment(settings)
    assert environment["DMCP_HOME"] == str(tmp_path / "state")
    assert environment["DMCP_DATA"] == str(tmp_path / "data")  # else it would lie below the daemon's own folder
    assert environment["DMCP_MIRROR"] == str(tmp_path / "mirror")
    assert environment["DMCP_WORKERS"] == "3"
    assert environment["DMCP_VAULT_PASSPHRASE"] == "open"
    assert environment["DMCP_S3_PREFIX"] == "team"
    assert environment["PREFECT_HOME"] == str(tmp_path / "state" / "prefect")
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS"):
        assert environment[name] in ("1", "true")
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_in_the_project_the_data_folder_keeps_its_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stack.PROJECT)
    monkeypatch.delenv("DMCP_DATA", raising=False)
    assert "DMCP_DATA" not in stack.service_environment(Settings(home=tmp_path))


def test_what_a_setting_places_elsewhere_is_shown_and_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", NOBODY)
    settings = Settings(home=tmp_path, s3_endpoint="https://s3.example", mlflow_uri="https://mlflow.example")
    states = {status.name: (status.state, status.address) for status in stack.status(settings)}
    assert states == {
        "gateway": ("stopped", ""),
        "objects": ("elsewhere", "https://s3.example"),
        "prefect": ("elsewhere", NOBODY),
        "worker": ("stopped", ""),
        "mlflow": ("elsewhere", "https://mlflow.example"),
    }
    assert stack.down(settings) == []
    assert live_api(settings) == NOBODY


def test_no_server_means_no_worker_and_no_exception(tmp_path: Path) -> None:
    assert live_api(Settings(home=tmp_path)) is None
    assert live_workers(NOBODY) == set()
    assert not is_served(Settings(home=tmp_path), NOBODY)
    assert call("GET", f"{NOBODY}/health") is None


def test_up_with_a_server_that_does_not_answer_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", NOBODY)
    settings = Settings(home=tmp_path, s3_endpoint="https://s3.example", mlflow_uri="https://mlflow.example")
    with pytest.raises(ServiceError, match=NOBODY):
        stack.up(settings)
    assert all(status.state != "running" for status in stack.status(settings))
    assert not (tmp_path / "run" / "worker.json").exists()


def test_the_state_folder_is_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    stack.down(Settings(home=home))
    assert home.stat().st_mode & 0o077 == 0
