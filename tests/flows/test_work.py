"""Shards in progress: found again when nothing changed, never when anything did."""

from pathlib import Path

import pytest

from flows.work import Work, place, work_for
from storage.errors import WorkspaceBusy
from storage.settings import settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMCP_HOME", str(tmp_path))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def made(stage: str, name: str, facts: dict) -> Work:
    with work_for(stage, name, facts) as work:
        return work


def test_a_result_counts_only_with_its_report() -> None:
    with work_for("protect", "x", {"a": 1}) as work:
        slot = work.slot("ff")
    slot.folder.mkdir()
    assert slot.finished() is None
    slot.shard.write_bytes(b"whole or not")
    assert slot.finished() is None
    slot.finish({"images": 3})
    assert slot.finished() == {"images": 3}
    slot.shard.unlink()
    assert slot.finished() is None


def test_the_same_facts_find_the_same_work() -> None:
    assert made("protect", "x", {"a": 1, "b": 2}) == made("protect", "x", {"b": 2, "a": 1})


@pytest.mark.parametrize("other", [("restore", "x", {"a": 1}), ("protect", "y", {"a": 1}), ("protect", "x", {"a": 2})])
def test_other_facts_find_other_work(other: tuple) -> None:
    assert made("protect", "x", {"a": 1}) != made(*other)


def test_only_the_last_work_of_a_data_set_is_kept() -> None:
    old, other = made("protect", "x", {"a": 1}), made("protect", "y", {"a": 1})
    with work_for("protect", "x", {"a": 2}) as new, work_for("protect", "x", {"a": 3}) as busy:
        new.keep_only_this()
        assert new.folder.exists() and other.folder.exists() and not old.folder.exists()
        assert busy.folder.exists()
        new.discard()
        assert not new.folder.exists()


def test_results_of_other_shards_go() -> None:
    with work_for("restore", "x", {}) as work:
        for digest in ("a" * 64, "b" * 64):
            work.slot(digest).folder.mkdir()
        work.keep_only_this({"b" * 64})
        assert [path.name for path in work.folder.iterdir()] == ["b" * 64]


def test_work_is_its_owners_only(home: Path) -> None:
    (home / "work").mkdir(mode=0o755)
    folder = made("restore", "x", {"a": 1}).folder
    for path in (folder, *folder.parents):
        if path == home:
            break
        assert path.stat().st_mode & 0o777 == 0o700, path


def test_two_processes_do_not_do_the_same() -> None:
    with work_for("protect", "x", {"a": 1}), pytest.raises(WorkspaceBusy), work_for("protect", "x", {"a": 1}):
        pass
    with work_for("protect", "x", {"a": 1}):
        pass


def test_placing_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    place(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"123"
