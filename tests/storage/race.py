"""Publishers that race for one channel, each with a version and a client of its own.

    python -m tests.storage.race --publishers 24 --rounds 20 --out race.json

does against a Ceph gateway (tests/install-ceph), in processes, what test_race.py does a few times in threads. A round
begins when every publisher has read the channel and sent its shards: then all write manifest and channel at once. At
the end all go on without waiting for each other, each until its version was the latest once.

What has to hold: every version is whole; in a round exactly one publisher of another version moves the channel, and the
others are told; and all moves there ever were form one chain, so no publisher has moved it from where it no longer was.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from storage.errors import PublicationConflict
from storage.guarantee import Guarantee
from storage.objects import ObjectStore
from storage.publication import list_versions, publish, pull
from storage.server import ServerAddress
from storage.versions import channel_key, read_channel
from tests.ceph import missing, running_ceph, version
from tests.services import make_variant

DATASET = "tiny"
DEADLINE = 300.0
"""Seconds after which whoever waits gives up; a round takes some."""


class Gate(Protocol):
    """A barrier, of threads or of processes."""

    def wait(self, timeout: float | None = None) -> int: ...


T = TypeVar("T")
Move = tuple[str | None, str]
"""The channel's ETags, before (None: there was no channel) and after."""


@dataclass(frozen=True)
class Turn:
    """What one publisher met: how it moved the channel, and what it was told when it lost."""

    id: str | None
    guarantee: Guarantee | None
    moves: tuple[Move, ...]
    told: tuple[str, ...]


class Noting(ObjectStore):
    """A client that notes how it moved the channel."""

    def __init__(self, store: ObjectStore) -> None:
        self.__dict__.update(store.__dict__)
        self.moves: list[Move] = []

    def put_bytes(self, key: str, data: bytes, *args: Any, **condition: Any) -> str:
        etag = super().put_bytes(key, data, *args, **condition)
        if key == channel_key(DATASET):
            self.moves.append((condition.get("if_match"), etag))
        return etag


def contend(client: ObjectStore, variant: Path, gate: Gate, tries: int = 1) -> Turn:
    """Publish; the first try moves on when everybody has come as far. Tried again, without waiting, when it lost."""
    store = Noting(client)
    told: list[str] = []
    for number in range(tries):

        def meet(what: str, done: int, total: int | None, first: bool = number == 0) -> None:
            if first and what == "upload" and done == total:
                gate.wait(DEADLINE)

        try:
            done = publish(variant, store, DATASET, progress=meet, workers=1)
        except PublicationConflict as error:
            told.append(str(error))
            continue
        return Turn(done.id, done.guarantee, tuple(store.moves), tuple(told))
    return Turn(None, None, tuple(store.moves), tuple(told))


def in_threads(publishers: int, work: Callable[[int, Gate], T]) -> list[T]:
    """Everybody's turn, each in a thread."""
    gate = threading.Barrier(publishers)
    with ThreadPoolExecutor(publishers) as pool:
        return list(pool.map(lambda number: work(number, gate), range(publishers)))


def in_processes(publishers: int, work: Callable[[int, Gate], T]) -> list[T]:
    """Everybody's turn, each in a process forked from this one, which must have no other thread."""
    context = multiprocessing.get_context("fork")
    gate, answers = context.Barrier(publishers), context.Queue()
    processes = [
        context.Process(target=lambda n=number: answers.put(work(n, gate)), daemon=True) for number in range(publishers)
    ]
    for process in processes:
        process.start()
    turns = [answers.get(timeout=DEADLINE) for _ in processes]
    for process in processes:
        process.join()
    return turns


def variants(folder: Path, publishers: int) -> list[Path]:
    """A variant a publisher; each shares a shard with the next one, so that shards are sent by two at once."""
    for number in range(publishers):
        make_variant(folder / f"v{number}", shards=2, samples=2, seed=number)
    return [folder / f"v{number}" for number in range(publishers)]


def assert_all_whole(store: ObjectStore, publishers: int, scratch: Path) -> None:
    """No version is lost, and each can be pulled: every digest is checked there."""
    versions = list_versions(store, DATASET)
    assert len(versions) == publishers
    for found in versions:
        pull(store, DATASET, scratch / found.id, found.id)
    assert [v.id for v in versions if v.latest] == [_latest(store)[0]]


def assert_one_chain(store: ObjectStore, moves: list[Move]) -> None:
    """The moves lead from nothing to what is there, one after the other: none was made over another one's head."""
    after = dict(moves)
    assert len(after) == len(moves), "two moved the channel from the same place"
    etag: str | None = None
    for _ in moves:
        etag = after[etag]
    assert etag == _latest(store)[1]


def _latest(store: ObjectStore) -> tuple[str, str]:
    """Version and ETag of the channel."""
    found = read_channel(store, DATASET)
    assert found is not None
    return found[0].version, found[1]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storage.race")
    parser.add_argument("--publishers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if why := missing():
        print(why, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch, running_ceph(on_disk=True) as place:
        found = {"server": version()} | race(place, options.publishers, options.rounds, Path(scratch))
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0


def race(place: ServerAddress, publishers: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """All rounds, then everybody until it won; what there was to count."""
    folders, bucket = variants(scratch, publishers), "race"
    moves: list[Move] = []
    seconds: list[float] = []
    told = 0
    for number in range(rounds):
        began = time.monotonic()
        turns = in_processes(publishers, lambda n, gate: contend(place.store(bucket), folders[n], gate))
        seconds.append(round(time.monotonic() - began, 1))
        won = [turn for turn in turns if turn.moves]
        assert len(won) == 1 and len(won[0].moves) == 1, f"round {number}: {turns}"
        assert _latest(place.store(bucket))[0] == won[0].id
        moves += won[0].moves
        told += sum(len(turn.told) for turn in turns)
    began = time.monotonic()
    turns = in_processes(
        publishers, lambda n, gate: contend(place.store(bucket), folders[n], gate, tries=10 * publishers)
    )
    last = round(time.monotonic() - began, 1)
    moves += [move for turn in turns for move in turn.moves]
    assert all(turn.id for turn in turns) and {turn.guarantee for turn in turns} == {Guarantee.ATOMIC}
    store = place.store(bucket)
    assert_all_whole(store, publishers, scratch / "pulled")
    assert_one_chain(store, moves)
    tries = [len(turn.told) + 1 for turn in turns]
    return {
        "publishers": publishers,
        "rounds": rounds,
        "winners": rounds,
        "told that they lost": told,
        "seconds a round": seconds,
        "until each won": {"tries": sum(tries), "most of one": max(tries), "seconds": last},
        "moves, all in one chain": len(moves),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
