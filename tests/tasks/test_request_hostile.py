"""Uploads that mean harm: each ends in refusals or one of our errors, in little memory, and leaves nothing behind."""

import io
import struct
import tarfile
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.errors import Conflict, InputError, NoGrant, ObjectStoreError, TooLarge
from storage.objects import ObjectStore
from storage.png import encode_png
from storage.registry import Registry, Request, new_request_id
from storage.shards import Sample, read_shard, write_shard
from tasks import restore
from tasks.request import Limits, fetch_index, hand_in, pack_source, upload_limits
from tasks.request_containers import list_tar
from tasks.request_sources import Budget
from tasks.restore import RestoredBatch, restore_samples

PNG = encode_png(np.random.default_rng(7).integers(0, 256, (16, 16, 3), dtype=np.uint8))
MIB = 1 << 20


@contextmanager
def little_memory(most: int = 24 * MIB) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / MIB:.0f} MiB"


def reasons(source: Path, work: Path, limits: Limits | None = None) -> dict[str, str]:
    """Why each file was refused; one good file is expected among them."""
    packed = pack_source(source, work, limits=limits)
    assert [s.png for info in packed.shards for s in read_shard(work / info.name)] == [PNG]
    return {refused.name: refused.reason for refused in packed.index.refused}


# --- tar -------------------------------------------------------------------------------------------------------------


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.USTAR_FORMAT)


def block(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


GOOD = header("good.png", len(PNG)) + block(PNG)
END = bytes(1024)


def test_a_member_that_claims_more_than_there_is(tmp_path: Path) -> None:
    for size in (4 << 30, 200 * MIB):
        path = tmp_path / f"{size}.tar"
        path.write_bytes(GOOD + header("huge.png", size) + block(PNG))
        with little_memory():
            found = reasons(path, tmp_path / f"w{size}")
        assert "huge.png" in found


def test_a_header_as_large_as_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.tar"
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        path.write_bytes(GOOD + header("x", 64 * MIB, kind) + bytes(64 * MIB) + GOOD + END)
        with little_memory():
            found = reasons(path, tmp_path / f"w{kind!r}")
        assert "headers are too large" in found["in.tar"]
    path.write_bytes(header("x", 64 * MIB, tarfile.XHDTYPE) + bytes(64 * MIB) + END)
    with little_memory(), pytest.raises(InputError, match="too large"):
        pack_source(path, tmp_path / "work")


def test_headers_about_headers_about_headers(tmp_path: Path) -> None:
    pax = block(b"13 comment=x\n")
    chain = (header("x", 13, tarfile.XHDTYPE) + pax) * 5000
    (tmp_path / "in.tar").write_bytes(GOOD + chain + GOOD + END)
    assert "damaged" in reasons(tmp_path / "in.tar", tmp_path / "work")["in.tar"]


def test_a_header_that_goes_on_beyond_the_end(tmp_path: Path) -> None:
    sparse = bytearray(header("x", 0, tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + sum(sparse[156:512]) + 8 * 32)
    (tmp_path / "in.tar").write_bytes(GOOD + sparse)
    assert "damaged" in reasons(tmp_path / "in.tar", tmp_path / "work")["in.tar"]


def test_what_global_headers_say_does_not_pile_up(tmp_path: Path) -> None:
    record = b"".join(b"%d k%07d=%s\n" % (20 + 8, i, b"v" * 15) for i in range(20_000))
    one = header("g", len(record), tarfile.XGLTYPE) + block(record)
    small = header("x", 13, tarfile.XHDTYPE) + block(b"13 comment=x\n")
    (tmp_path / "in.tar").write_bytes(one + (small + GOOD) * 2000 + END)
    with little_memory(64 * MIB):
        assert len(list_tar(tmp_path / "in.tar", Budget(Limits())).members) == 2000


def test_names_have_a_limit_of_their_own(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for i in range(300):
            member = tarfile.TarInfo(f"{i:03d}/" + "n" * 1000)
            member.size = len(PNG)
            tar.addfile(member, io.BytesIO(PNG))
    with pytest.raises(TooLarge, match="names"):
        pack_source(tmp_path / "in.tar", tmp_path / "work", limits=Limits(name_bytes=100_000))


# --- zip -------------------------------------------------------------------------------------------------------------


def test_a_zip_member_that_claims_four_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", PNG)
        archive.writestr("huge.png", PNG)
    content = bytearray(path.read_bytes())
    at = content.index(b"huge.png", content.index(b"PK\x01\x02")) - 46
    for claimed in ((0xFFFFFFF0, 0xFFFFFFF0), (len(PNG), 0xFFFFFFF0), (200 * MIB, 200 * MIB)):
        content[at + 20 : at + 28] = struct.pack("<II", *claimed)
        path.write_bytes(content)
        with little_memory():
            assert set(reasons(path, tmp_path / f"w{claimed}")) == {"huge.png"}


def test_a_directory_larger_than_the_number_of_files_that_is_taken(tmp_path: Path) -> None:
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *bytes(4), *[0] * 4, 0, 0, 0, *[0] * 5, 0, 0)
    directory = entry * 400_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 0, 0)
    (tmp_path / "in.zip").write_bytes(directory + end)
    with little_memory(), pytest.raises(TooLarge, match="directory"):
        pack_source(tmp_path / "in.zip", tmp_path / "work", limits=Limits(members=10_000))


def zip_of_nothing(entries: int) -> bytes:
    """A zip with a directory of so many files that are not there, in the form for large ones."""
    directory = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *bytes(4), *[0] * 4, 0, 0, 0, 1, *[0] * 4, 0, 0) + b"a"
    size = entries * len(directory)
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, 0)
    end += struct.pack("<4sLQL", b"PK\x06\x07", 0, size, 1)
    return directory * entries + end + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, size, 0, 0)


def test_a_directory_of_an_upload_takes_little_memory_however_many_files_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    path.write_bytes(b"PK\x03\x04" + zip_of_nothing(400_000))  # fewer than the files that are taken of an upload
    with little_memory(), pytest.raises(TooLarge, match="directory"):
        pack_source(path, tmp_path / "work", limits=upload_limits(path.stat().st_size))


def test_files_that_are_refused_are_listed_up_to_a_number(tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    path.write_bytes(zip_of_nothing(20_000))
    with little_memory(), pytest.raises(InputError, match=r"More than 10,000 .* The first, a: it is damaged"):
        pack_source(path, tmp_path / "work", limits=upload_limits(path.stat().st_size))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"good.png": PNG, "a.txt": b"a", "b.txt": b"b"}.items():
            archive.writestr(name, data)
    assert set(reasons(path, tmp_path / "two", Limits(refused=2))) == {"a.txt", "b.txt"}
    with pytest.raises(InputError, match=r"More than 1 of its files can not be taken. The first, a\.txt: it is not"):
        pack_source(path, tmp_path / "one", limits=Limits(refused=1))


def test_bombs_by_ratio_by_overlap_and_by_nesting(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("again.png", PNG[:8] + bytes(10 * MIB))
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", PNG)
        archive.writestr("ratio.png", PNG[:8] + bytes(50 * MIB))
        archive.writestr("nested.png", inner.getvalue())
        archive.writestr("/absolute.png", PNG)
        archive.writestr("a/../../up.png", PNG)
        archive.writestr("good.png", PNG)
    with little_memory():
        found = reasons(path, tmp_path / "work", upload_limits(path.stat().st_size))
    assert "200 times" in found["ratio.png"]
    assert "zip archive" in found["nested.png"]
    assert found["/absolute.png"] == found["a/../../up.png"] == "its name leads out of the folder"
    assert found["good.png"] == "its name appears twice"

    noise = np.random.default_rng(0).bytes(MIB)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(200):
            archive.writestr(f"{i}.png", PNG[:8] + noise)
    with pytest.raises(TooLarge, match="bytes"):
        pack_source(path, tmp_path / "work2", limits=upload_limits(MIB))


# --- PNG -------------------------------------------------------------------------------------------------------------


def giant(width: int, height: int, rows: int = 0) -> bytes:
    """A valid PNG of one colour, of which only some rows are there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deflate = zlib.compressobj(9)
    row = bytes(3 * width + 1)
    pixels = b"".join(deflate.compress(row) for _ in range(rows)) + deflate.flush()
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG[:8] + start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_images_of_giant_dimensions_are_refused_on_the_way_in(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes(PNG)
    (folder / "wide.png").write_bytes(giant(1 << 30, 16))
    (folder / "large.png").write_bytes(giant(50_000, 50_000))
    with little_memory():
        found = reasons(folder, tmp_path / "work")
    assert set(found) == {"wide.png", "large.png"}
    assert "2,500,000,000" not in found["large.png"] and "50,000 x 50,000 pixels" in found["large.png"]


def test_many_images_that_are_small_as_files_are_decoded_a_few_at_a_time() -> None:
    bomb = giant(2000, 2000, 2000)
    assert len(bomb) < 20_000
    samples = [Sample(f"{i}", bomb, None) for i in range(20)]  # 240 MB of pixels
    with little_memory(120 * MIB):
        batch = restore_samples(samples, lambda _: pytest.fail("nothing here names a key"))
    assert [refusal.error for refusal in batch.refusals] == ["NotProtected"] * 20
    assert [refusal.key for refusal in batch.refusals] == [sample.key for sample in samples]


@pytest.mark.parametrize(("side", "at_once"), [(4000, 1), (64, 4)])
def test_large_images_are_restored_one_at_a_time(side: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker each, they would take the memory that eleven times their pixels need."""
    everybody = threading.Barrier(at_once)
    working, most, lock = [0], [0], threading.Lock()

    def work(*_: object) -> RestoredBatch:
        with lock:
            working[0] += 1
            most[0] = max(most[0], working[0])
        everybody.wait(10)
        time.sleep(0.05)
        with lock:
            working[0] -= 1
        return RestoredBatch()

    monkeypatch.setattr(restore, "_restore_portion", work)
    samples = [Sample("a", giant(side, side, 1), None)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: restore_samples(samples, lambda _: pytest.fail("no key")), range(4)))
    assert most == [at_once]


# --- nothing, and names ----------------------------------------------------------------------------------------------


def test_nothing_at_all_is_said_to_be_nothing(tmp_path: Path) -> None:
    (tmp_path / "upload").touch()
    with pytest.raises(InputError, match=r"holiday\.zip is empty"):
        pack_source(tmp_path / "upload", tmp_path / "work", shown="holiday.zip")


@pytest.mark.parametrize(
    "shown", ["my image.png", "../../etc/passwd", "C:\\images\\a.png", "", "a\nb.png", "report.json"]
)
def test_what_the_requester_calls_a_file_names_what_comes_back(tmp_path: Path, shown: str) -> None:
    """And never where anything is written; the path on this machine stays unsaid."""
    (tmp_path / "upload").write_bytes(PNG)
    (name,) = pack_source(tmp_path / "upload", tmp_path / "work", shown=shown).index.names.values()
    expected = {"my image.png": "my image.png", "../../etc/passwd": "passwd", "C:\\images\\a.png": "a.png"}
    assert name == expected.get(shown, "upload" if shown == "" else "image.png")
    write_shard(tmp_path / "shard", [Sample("a", PNG, 3)])
    (entry,) = pack_source(tmp_path / "shard", tmp_path / "work2", shown=shown).index.shards
    assert entry.target.endswith(".tar") and "/" not in entry.target
    for content in (b"text" * 999, b"PK\x03\x04 and nothing"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(InputError) as caught:
            pack_source(tmp_path / "bad", tmp_path / "work3", shown=shown or "upload")
        assert str(tmp_path) not in str(caught.value)


# --- handing in as a known user --------------------------------------------------------------------------------------


def test_handing_in_for_a_user_who_was_authenticated(tmp_path: Path, store: ObjectStore) -> None:
    (tmp_path / "upload").write_bytes(PNG)
    work = tmp_path / "work"
    with Registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        registry.add_user("ann")
        ann = registry.get_user("ann")
        with pytest.raises(NoGrant):
            hand_in(registry, store, ann, tmp_path / "upload", work=work)
        grant = registry.grant("ann", "tiny")
        request_id = hand_in(registry, store, ann, tmp_path / "upload", work=work, dataset="tiny", shown="a.png")
        request = registry.get_request(request_id)
        assert (request.source, request.images, request.grant_id) == ("a.png", 1, grant.id)
        assert not list(work.iterdir())

        before = sorted(info.key for info in store.list())
        with pytest.raises(Conflict, match="exists"):
            hand_in(registry, store, ann, tmp_path / "upload", work=work, request_id=request_id)
        (tmp_path / "upload").write_bytes(b"PK\x03\x04 and nothing")
        with pytest.raises(InputError):
            hand_in(registry, store, ann, tmp_path / "upload", work=work)
        assert sorted(info.key for info in store.list()) == before, "neither more nor less"
        assert not list(work.iterdir())


def kept(store: ObjectStore, request_id: str) -> dict[str, bytes]:
    return {info.key: store.get_bytes(info.key) for info in store.list(f"requests/{request_id}/")}


@pytest.mark.parametrize("when", ["create_request", "get_request"])
def test_who_hands_in_second_under_the_same_id_leaves_the_first_alone(
    tmp_path: Path, store: ObjectStore, when: str
) -> None:
    """The first is recorded just before the second is, or just before the second uploads."""
    url, request_id = f"sqlite:///{tmp_path / 'registry.db'}", new_request_id()
    first: dict[str, bytes] = {}

    class Overtaken(Registry):
        def overtake(self) -> None:
            if not first:
                first["under way"] = b""
                with Registry(url) as faster:
                    ann = faster.get_user("ann")
                    hand_in(faster, store, ann, tmp_path / "first", work=tmp_path / "a", request_id=request_id)
                first.clear()
                first.update(kept(store, request_id))

        def create_request(self, *args: Any, **more: Any) -> str:
            self.overtake()
            return super().create_request(*args, **more)

        def get_request(self, request_id: str) -> Request:
            if when == "get_request":
                self.overtake()
            return super().get_request(request_id)

    (tmp_path / "first").write_bytes(PNG)
    other = PNG if when == "create_request" else giant(16, 16, 16)
    (tmp_path / "second").write_bytes(other)
    with Overtaken(url) as registry:
        registry.add_user("ann")
        registry.grant("ann", "tiny")
        ann = registry.get_user("ann")
        with pytest.raises(Conflict, match="exists"):
            hand_in(registry, store, ann, tmp_path / "second", work=tmp_path / "b", request_id=request_id)
        assert len(first) == 2 and kept(store, request_id) == first
        assert fetch_index(store, registry.get_request(request_id)).images == 1


def test_who_fails_second_under_the_same_id_leaves_the_first_alone(tmp_path: Path, store: ObjectStore) -> None:
    """The second fails after the first has put its files and before it is recorded."""
    url, request_id = f"sqlite:///{tmp_path / 'registry.db'}", new_request_id()
    (tmp_path / "upload").write_bytes(PNG)

    class Failing(Registry):
        def create_request(self, *args: Any, **more: Any) -> str:
            raise ObjectStoreError("the disk is full")

    class Slow(Registry):
        def create_request(self, *args: Any, **more: Any) -> str:
            with Failing(url) as failing, pytest.raises(ObjectStoreError, match="full"):
                work = tmp_path / "b"
                hand_in(failing, store, ann, tmp_path / "upload", work=work, request_id=request_id)
            return super().create_request(*args, **more)

    with Slow(url) as registry:
        registry.add_user("ann")
        registry.grant("ann", "tiny")
        ann = registry.get_user("ann")
        hand_in(registry, store, ann, tmp_path / "upload", work=tmp_path / "a", request_id=request_id)
        assert fetch_index(store, registry.get_request(request_id)).images == 1
        assert len(kept(store, request_id)) == 2


def test_nothing_is_removed_while_the_registry_does_not_answer(tmp_path: Path, store: ObjectStore) -> None:
    class Gone(Registry):
        gone = False

        def create_request(self, *args: Any, **more: Any) -> str:
            super().create_request(*args, **more)
            self.gone = True
            raise ObjectStoreError("the answer is lost")

        def get_request(self, request_id: str) -> Request:
            if self.gone:
                raise ObjectStoreError("out of reach")
            return super().get_request(request_id)

    (tmp_path / "upload").write_bytes(PNG)
    with Gone(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        registry.add_user("ann")
        registry.grant("ann", "tiny")
        request_id = new_request_id()
        with pytest.raises(ObjectStoreError, match="the answer is lost"):
            hand_in(
                registry,
                store,
                registry.get_user("ann"),
                tmp_path / "upload",
                work=tmp_path / "work",
                request_id=request_id,
            )
    assert len(kept(store, request_id)) == 2
