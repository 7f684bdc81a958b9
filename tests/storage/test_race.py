"""24 publishers at once, on a server that honours conditional puts: one moves the channel, no version is lost."""

from pathlib import Path
from uuid import uuid4

import pytest

from storage.errors import PublicationConflict
from storage.guarantee import Guarantee, probe_conditional_puts
from storage.objects import ObjectStore
from storage.server import ServerAddress
from storage.versions import read_channel
from tests.storage.race import DATASET, Gate, Move, assert_all_whole, assert_one_chain, contend, in_threads, variants

PUBLISHERS = 24


@pytest.fixture
def fresh(object_server: ServerAddress) -> ObjectStore:
    """A client of a bucket that is not made yet: the publishers race for that too."""
    return object_server.store(f"race-{uuid4().hex[:12]}")


def test_publishers_race_for_the_channel(object_server: ServerAddress, fresh: ObjectStore, tmp_path: Path) -> None:
    folders = variants(tmp_path, PUBLISHERS)
    clients = [object_server.store(fresh.bucket) for _ in folders]
    moves: list[Move] = []
    for _ in range(2):  # at first nothing is published, then something is: If-None-Match, then If-Match
        turns = in_threads(PUBLISHERS, lambda n, gate: contend(clients[n], folders[n], gate))
        assert {turn.guarantee for turn in turns if turn.id} == {Guarantee.ATOMIC}
        won = [turn for turn in turns if turn.moves]
        assert len(won) == 1
        channel = read_channel(fresh, DATASET)
        assert channel is not None and channel[0].version == won[0].id
        for turn in turns:
            assert turn.id or (
                f"Another publisher made {won[0].id}" in turn.told[0] and "Publish again" in turn.told[0]
            )
        moves += won[0].moves
    assert_all_whole(fresh, PUBLISHERS, tmp_path / "pulled")
    assert_one_chain(fresh, moves)


def test_publishers_of_the_same_version_agree(object_server: ServerAddress, fresh: ObjectStore, tmp_path: Path) -> None:
    folder = variants(tmp_path, 1)[0]
    turns = in_threads(8, lambda _, gate: contend(object_server.store(fresh.bucket), folder, gate))
    assert len({turn.id for turn in turns}) == 1 and not any(turn.told for turn in turns)
    assert_all_whole(fresh, 1, tmp_path / "pulled")


@pytest.mark.parametrize("quotes", [True, False])
def test_of_writers_that_saw_the_same_object_one_replaces_it(store: ObjectStore, quotes: bool) -> None:
    assert probe_conditional_puts(store) is Guarantee.ATOMIC
    assert not store.quotes_etags, "Ceph compares the quotation marks too"
    seen = store.put_bytes("a", b"first")
    store.quotes_etags = quotes

    def replaces(number: int, gate: Gate) -> bool:
        gate.wait(60)
        try:
            store.put_bytes("a", b"%d" % number, if_match=seen)
        except PublicationConflict:
            return False
        return True

    assert in_threads(PUBLISHERS, replaces).count(True) == (0 if quotes else 1)
