import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import CorruptShard, UsageError
from storage.files import sha256_file
from storage.png import encode_png
from storage.shards import Sample, ShardFile, describe_shard, read_shard, write_shard

keys = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,94}", fullmatch=True)
samples = st.lists(
    st.builds(Sample, keys, st.binary(max_size=1500), st.none() | st.integers(0, 10**9 - 1)),
    max_size=6,
    unique_by=lambda sample: sample.key,
)


def read_singly(path: Path) -> list[Sample]:
    """As `read_shard`, and twice."""
    with ShardFile(path) as shard:
        samples = list(shard)
        assert list(shard) == samples and len(shard) == len(samples)
    return samples


READERS = pytest.mark.parametrize("read", [read_shard, read_singly])
Reader = Callable[[Path], list[Sample]]


def images(count: int) -> list[Sample]:
    random = np.random.default_rng(0)
    return [
        Sample(f"{i:09d}", encode_png(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)), i % 3)
        for i in range(count)
    ]


@given(samples)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, content: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("shard") / "train-000000.tar"
    info = write_shard(path, iter(content))
    assert read_shard(path) == read_singly(path) == content
    assert info == describe_shard(path)
    assert (info.name, info.samples, info.sha256) == (path.name, len(content), sha256_file(path))
    assert info.bytes == path.stat().st_size


def test_the_same_samples_are_the_same_bytes(tmp_path: Path) -> None:
    one = write_shard(tmp_path / "a" / "train-000000.tar", images(5))
    assert one == write_shard(tmp_path / "b" / "train-000000.tar", images(5))
    # Fixed once and for all: a change here changes every published digest.
    assert write_shard(tmp_path / "c", [Sample("000000123", b"png", 7)]).sha256 == (
        "d5b61c334a736f332d92e8f54251aab6fffc7a4a778b4f58ee075bbd79dd7677"
    )


def test_members_say_nothing_but_key_and_size(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [*images(2), Sample("loose", b"x", None)])
    with tarfile.open(tmp_path / "s.tar") as tar:
        members = tar.getmembers()
    names = ["000000000.png", "000000000.cls", "000000001.png", "000000001.cls", "loose.png"]
    assert [m.name for m in members] == names
    for m in members:
        assert (m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) == (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
        assert not m.pax_headers


@pytest.mark.parametrize("bad", ["", "a.b", "a/b", "../a", ".a", "-a", "ä", "a" * 96, "a b"])
def test_keys_that_can_not_be_stored(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UsageError, match="key"):
        write_shard(tmp_path / "s.tar", [Sample(bad, b"", 0)])
    assert list(tmp_path.iterdir()) == []


def test_a_key_twice_or_a_negative_label(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="key"):
        write_shard(tmp_path / "s.tar", [Sample("a", b"", 0), Sample("a", b"", 0)])
    with pytest.raises(UsageError, match="label"):
        write_shard(tmp_path / "s.tar", [Sample("a", b"", -1)])


@READERS
@given(cut=st.integers(0, 10239))
def test_every_truncation_is_noticed(tmp_path_factory: pytest.TempPathFactory, read: Reader, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    write_shard(folder / "s.tar", [Sample("a", b"x" * 700, 1), Sample("b", b"y" * 700, 2)])
    data = (folder / "s.tar").read_bytes()
    assert len(data) == 10240
    content = 10 * 512  # behind it lie zeros only: two blocks of them end a tar file
    (folder / "s.tar").write_bytes(data[:cut])
    if cut < content + 1024:
        with pytest.raises(CorruptShard, match=r"s\.tar"):
            read(folder / "s.tar")
    else:
        assert len(read(folder / "s.tar")) == 2


@READERS
@pytest.mark.parametrize("member", range(4))
def test_a_damaged_header_is_noticed(tmp_path: Path, read: Reader, member: int) -> None:
    write_shard(tmp_path / "s.tar", [Sample("a", b"x", 1), Sample("b", b"y", 2)])
    data = bytearray((tmp_path / "s.tar").read_bytes())
    data[member * 1024 + 5] ^= 1
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(CorruptShard):
        read(tmp_path / "s.tar")


def tar_of(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


REG = tarfile.REGTYPE


@READERS
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.png", REG, b""), ("a.png", REG, b"")], "twice"),
        ([("a.cls", REG, b"1")], "no image"),
        ([("a.png", REG, b""), ("a.cls", REG, b"-1")], "no class index"),
        ([("a.png", REG, b""), ("a.cls", REG, b"cat")], "no class index"),
        ([("a.txt", REG, b"")], "neither"),
        ([("../a.png", REG, b"")], "neither"),
        ([("/a.png", REG, b"")], "neither"),
        ([("a.png", tarfile.SYMTYPE, b"")], "no plain file"),
        ([("a", tarfile.DIRTYPE, b"")], "no plain file"),
    ],
)
def test_what_is_no_shard(tmp_path: Path, read: Reader, members: list[tuple[str, bytes, bytes]], reason: str) -> None:
    with pytest.raises(CorruptShard, match=reason):
        read(tar_of(tmp_path / "s.tar", *members))


@READERS
def test_missing_and_not_a_tar(tmp_path: Path, read: Reader) -> None:
    with pytest.raises(CorruptShard, match="does not exist"):
        read(tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(CorruptShard, match="no readable tar"):
        read(tmp_path / "s.tar")


@READERS
def test_a_size_beyond_all_files(tmp_path: Path, read: Reader) -> None:
    """GNU's binary sizes have up to 88 bits; found by fuzzing."""
    info = tarfile.TarInfo("a.png")
    info.size = 2**80
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(CorruptShard):
        read(tmp_path / "s.tar")


@READERS
def test_headers_about_headers(tmp_path: Path, read: Reader) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) * 2000 + bytes(1024))
    with pytest.raises(CorruptShard, match="no readable tar"):
        read(tmp_path / "s.tar")


def sparse() -> bytearray:
    """The header of an old GNU sparse file that goes on in a further block."""
    info = tarfile.TarInfo("a.png")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 8 * 32)
    return header


@READERS
def test_a_header_that_goes_on_beyond_the_end(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "s.tar").write_bytes(sparse())
    with pytest.raises(CorruptShard, match="no readable tar"):
        read(tmp_path / "s.tar")


@READERS
def test_a_size_below_zero(tmp_path: Path, read: Reader) -> None:
    info = tarfile.TarInfo("a.png")
    info.size = -1
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(CorruptShard, match="lead backwards"):
        read(tmp_path / "s.tar")


@READERS
def test_a_trailing_newline_after_a_label_is_fine(tmp_path: Path, read: Reader) -> None:
    path = tar_of(tmp_path / "s.tar", ("a.png", REG, b"p"), ("a.cls", REG, b"12\n"))
    assert read(path) == [Sample("a", b"p", 12)]


def test_one_image_is_held_at_a_time_though_all_are_checked_first(tmp_path: Path) -> None:
    content = [Sample(f"{i:03d}", bytes([i]) * (1 << 20), i) for i in range(32)]
    path = tmp_path / "s.tar"
    write_shard(path, content)
    tracemalloc.start()
    try:
        with ShardFile(path) as shard:
            same = all(sample == expected for sample, expected in zip(shard, content, strict=True))
        assert same and tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    with path.open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"x")
    with pytest.raises(CorruptShard, match="damaged"):
        ShardFile(path)


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", images(4))
    with ShardFile(tmp_path / "s.tar") as shard:
        (tmp_path / "s.tar").write_bytes(b"")
        with pytest.raises(CorruptShard, match="cut off"):
            list(shard)


def test_webdataset_reads_it(small_variant: Path) -> None:
    import webdataset

    files = sorted(str(path) for path in small_variant.glob("*.tar"))
    data = webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode("rgb8").to_tuple("png", "cls")
    read = list(data)
    ours = [sample for path in files for sample in read_shard(Path(path))]
    assert len(read) == len(ours) == 24
    for (image, label), sample in zip(read, ours, strict=True):
        assert encode_png(np.asarray(image)) == sample.png
        assert label == sample.label


def test_hugging_face_reads_it(small_variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    files = sorted(str(path) for path in small_variant.glob("*.tar"))
    data = datasets.load_dataset(
        "webdataset", data_files={"train": files}, split="train", cache_dir=str(tmp_path / "cache")
    )
    ours = [sample for path in files for sample in read_shard(Path(path))]
    assert [int(label) for label in data["cls"]] == [sample.label for sample in ours]
    assert list(data["__key__"]) == [sample.key for sample in ours]
    assert encode_png(np.asarray(data[5]["png"])) == ours[5].png
