from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from storage.settings import settings
from tests.tasks.evidence import made


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Evaluations of two data sets; MLflow knows nothing."""
    monkeypatch.setenv("DMCP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DMCP_DATA", str(tmp_path / "data"))
    settings.cache_clear()
    for name, evidence in (("one/evidence/quick", made.full()), ("two/evidence/search", made.minimal())):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(evidence.model_dump_json())
    yield tmp_path / "data"
    settings.cache_clear()


def compare(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["compare", *arguments])
    assert result.exit_code == code, result.output
    return result.output.replace("\N{NO-BREAK SPACE}", " ")


def test_the_tables_of_an_evaluation(data: Path) -> None:
    said = compare("one", "--preset", "quick")
    for expected in (
        "60.5 ± 0.5",
        "JPEG, quality 10",
        "comes back",
        "learned inverse",
        "a key with one wrong",
    ):
        assert expected in said, expected
    assert "Under JPEG, quality 10 exact fails" in said
    assert "one/evidence/quick/report.html" in said


def test_without_a_name_all_that_is_known(data: Path) -> None:
    said = compare()
    assert "one/evidence/quick/report.html" in said
    assert "two/evidence/search/report.html" in said


def test_an_evaluation_that_was_not_made_is_not_found(data: Path) -> None:
    said = compare("one", "--preset", "full", code=8)
    assert "There is no evaluation full of one." in said
    assert "dmcp evaluate-protection --dataset one --preset full" in said


def test_a_name_of_which_nothing_is_known(data: Path) -> None:
    said = compare("nosuch", code=8)
    assert "Nothing is known of a data set nosuch" in said
    assert "--dataset nosuch" not in said
    assert "dmcp run --dataset cifar10" in compare("cifar10")
    (data / "mine" / "clean").mkdir(parents=True)
    assert "dmcp train clean --dataset mine" in compare("mine")
