"""Owner, anyone, requester: the whole way by command, with no worker running, so that restoring happens in process."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from storage.server import running_server
from storage.settings import settings
from tasks.variants import load_arrays

SMALL = ("--set", "train_limit=60", "--set", "test_limit=20", "--set", "shard_size=40")


@pytest.fixture
def folder(tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with an object store; the Prefect server of the session, where no worker runs."""
    for name, value in (("HOME", tmp_path / "home"), ("DATA", tmp_path / "data"), ("WORKERS", 1)):
        monkeypatch.setenv(f"DMCP_{name}", str(value))
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    settings.cache_clear()
    with running_server(tmp_path / "home"):
        yield tmp_path
    settings.cache_clear()


def dmcp(*arguments: object, code: int = 0, token: str = "") -> str:
    """What the command prints on stdout."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"DMCP_TOKEN": token})
    assert result.exit_code == code, result.output
    return result.stdout


def test_the_whole_way_by_command(folder: Path) -> None:
    data = folder / "data" / "sample"
    dmcp("data", "get", "sample", data, *SMALL)
    dmcp("key", "create", "sample")

    said = dmcp("protect", data / "clean", data / "protected", "--set", "surrogate.epochs=1")
    assert "Protected 60 of 60 images" in said
    assert json.loads((data / "protected.report.json").read_text())["protected"] == 60
    assert "MLflow run" in dmcp("train", "protected", "--set", "epochs=1")
    assert (data / "trained" / "protected-0" / "model.pt").exists()
    compared = dmcp("compare", "sample")
    assert compared.count(".dir") == 1
    assert dmcp("compare") == compared

    dmcp("publish", data / "clean", code=7)  # nobody publishes clean images by mistake
    (folder / "terms.txt").write_text("Be kind.")
    said = dmcp("publish", data / "protected", "--terms", folder / "terms.txt")
    assert "2 shards sent, 0 were there" in said
    assert "0 shards sent, 2 were there" in dmcp("publish", data / "protected", "--terms", folder / "terms.txt")

    dmcp("pull", "sample", folder / "pulled")
    assert (folder / "pulled" / "LICENSE").read_text() == "Be kind.\n"
    token = dmcp("access", "add-user", "ann", "--quiet").strip()
    dmcp("access", "grant", "ann", "sample")
    request_id = dmcp("request", folder / "pulled", "--quiet", token=token).strip()
    assert "60 images restored." in dmcp("restore", request_id, folder / "back")
    assert "60 images" in dmcp("verify", folder / "back")
    clean, back = load_arrays(data / "clean"), load_arrays(folder / "back")
    assert back.keys == clean.keys
    assert np.array_equal(back.labels, clean.labels)
    assert np.abs(back.images.astype(int) - clean.images.astype(int)).max() <= 4

    (folder / "subset.txt").write_text("train-000001.tar\n")
    published = dmcp("request", "sample@latest", "--subset", folder / "subset.txt", "--quiet", token=token).strip()
    assert "20 images restored." in dmcp("restore", published, folder / "some")
    assert (folder / "some" / "train-000001.tar").read_bytes() == (folder / "back" / "train-000001.tar").read_bytes()
    listed = dmcp("requests")
    assert listed.count("done") == 2
