"""The ledger: known images stay where they are, new ones go into new shards."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import DatasetError
from tasks.ledger import Ledger, SplitLedger, assign, follow_renames, read_ledger, write_ledger

names = st.lists(st.text("abcdef", min_size=1, max_size=3), unique=True, max_size=30)


def placed(ledger: SplitLedger) -> dict[str, tuple[int, int]]:
    """Name to (shard, key)."""
    return {name: (shard.number, key) for shard in ledger.shards for key, name in shard.images}


def everything(before: SplitLedger | None, names: list[str], size: int) -> SplitLedger:
    return assign(before, names, range(len(names)), size)


@given(names, st.integers(1, 7))
def test_without_a_ledger_the_order_of_the_source_counts(source: list[str], size: int) -> None:
    ledger = everything(None, source, size)
    assert placed(ledger) == {name: (i // size, i) for i, name in enumerate(source)}
    assert ledger.next_key == len(source)


@given(names, names, st.randoms(use_true_random=False), st.integers(1, 7))
def test_what_comes_in_moves_nothing(old: list[str], new: list[str], random, size: int) -> None:
    before = everything(None, old, size)
    source = sorted({*old, *new}, key=lambda _: random.random())
    after = everything(before, source, size)
    assert after.shards[: len(before.shards)] == before.shards
    assert all(len(shard.images) <= size for shard in after.shards)
    assert set(placed(after)) == set(source)
    assert everything(after, source, size) == after


@given(st.lists(names, min_size=1, max_size=6), st.integers(1, 7))
def test_keys_and_shards_are_never_given_to_another(versions: list[list[str]], size: int) -> None:
    ledger: SplitLedger | None = None
    keys: dict[int, str] = {}
    for source in versions:
        before = placed(ledger) if ledger else {}
        ledger = everything(ledger, source, size)
        now = placed(ledger)
        assert set(now) == set(source)
        assert all(now[name] == place for name, place in before.items() if name in now)
        for name, (_, key) in now.items():
            assert keys.setdefault(key, name) == name
        assert [s.number for s in ledger.shards] == sorted({s.number for s in ledger.shards})
        assert all(shard.images for shard in ledger.shards)


@given(names, names, st.integers(1, 7), st.data())
def test_a_renamed_image_keeps_its_place(old: list[str], new: list[str], size: int, data: st.DataObject) -> None:
    before = everything(None, old, size)
    looks = {name: data.draw(st.integers(0, 20)) for name in old}  # some look the same
    before = before.model_copy(update={"pixels": {key: str(looks[n]) for n, (_, key) in placed(before).items()}})
    renamed = data.draw(st.lists(st.sampled_from(old), unique=True)) if old else []
    source = [f"moved/{name}" if name in renamed else name for name in old] + [f"new/{name}" for name in new]
    looked: list[str] = []

    def look(index: int) -> str:
        looked.append(source[index])
        return str(looks.get(source[index].removeprefix("moved/"), "new"))

    after = everything(follow_renames(before, source, look), source, size)
    kept = {n.removeprefix("moved/"): p for n, p in placed(after).items() if not n.startswith("new/")}
    assert sorted(kept.values()) == sorted(placed(before).values()), "no key is lost, no key is new"
    assert all(looks[n] == looks[m] for n, p in kept.items() for m, q in placed(before).items() if p == q)
    assert renamed or not looked, "nothing is read when nothing is missing"
    assert all("/" in name for name in looked), "what is known by name is not read"


def test_a_limit_chooses_among_known_and_new() -> None:
    before = assign(None, ["a", "b", "c", "d"], [0, 2], 2)
    assert placed(before) == {"a": (0, 0), "c": (0, 2)}
    after = assign(before, ["a", "aa", "b", "c", "d"], [0, 1, 3], 2)
    assert placed(after) == {"a": (0, 0), "c": (0, 2), "aa": (1, 4)}


def test_written_and_read_and_damaged(tmp_path: Path) -> None:
    ledger = Ledger(source="imagefolder", shard_size=2, classes=["x"], splits={"train": assign(None, ["a"], [0], 2)})
    path = tmp_path / "ledger.json"
    assert read_ledger(path) is None
    write_ledger(path, ledger)
    assert read_ledger(path) == ledger
    assert ledger.continues("imagefolder", 2, ["w", "x"])
    assert not ledger.continues("imagefolder", 3, ["x"])
    assert not ledger.continues("imagefolder", 2, ["y"])
    assert not ledger.continues("sample", 2, ["x"])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match="every shard is made anew"):
        read_ledger(path)
