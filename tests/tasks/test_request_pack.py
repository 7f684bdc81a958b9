"""Packing what a requester hands in: every kind of source, and hostile ones."""

import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.errors import (
    CorruptManifest,
    DmcpError,
    InputError,
    NotProtected,
    TooLarge,
)
from storage.manifest import MANIFEST_NAME
from storage.png import encode_png
from storage.shards import Sample, read_shard, write_shard
from tasks.method.seal import DataKey
from tasks.request import (
    Limits,
    PackedSource,
    RefusedFile,
    RequestIndex,
    pack_source,
)
from tasks.request_containers import list_tar, read_tar
from tasks.request_index import name_fault, parse_index
from tasks.request_pack import check_protected
from tasks.request_sources import Budget
from tests.protected import protect_images
from tests.services import make_variant

RANDOM = np.random.default_rng(7)


def png(size: int = 16) -> bytes:
    return encode_png(RANDOM.integers(0, 256, (size, size, 3), dtype=np.uint8))


def packed_files(packed: PackedSource, work: Path) -> dict[str, bytes]:
    """Name to PNG bytes of everything that was packed."""
    samples = [sample for info in packed.shards for sample in read_shard(work / info.name)]
    return {packed.index.names[sample.key]: sample.png for sample in samples}


def reasons(packed: PackedSource) -> dict[str, str]:
    return {refused.name: refused.reason for refused in packed.index.refused}


def write_tar(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


# --- packing: folders ------------------------------------------------------------------------------------------------


def test_a_folder_keeps_every_name_and_every_byte(tmp_path: Path) -> None:
    names = [
        "a.png",
        "b/c.d.e.png",
        "b/no extension",
        "ä ö/日本.PNG",
        "Bildschirm\u202ffoto.png",
        "x" * 251 + ".png",
        "-.png",
    ]
    images = {name: png() for name in names}
    for name, data in images.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    packed = pack_source(tmp_path / "in", tmp_path / "work", shard_size=3)
    assert packed_files(packed, tmp_path / "work") == images
    assert [info.name for info in packed.shards] == [f"input-00000{n}.tar" for n in range(3)]
    assert [info.samples for info in packed.shards] == [3, 3, 1]
    assert packed.index.layout == "files" and packed.index.images == 7 and not packed.index.refused
    assert parse_index((tmp_path / "work" / "input.json").read_bytes()) == packed.index


def test_what_is_no_png_is_listed_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "good.png").write_bytes(png())
    (folder / "photo.png").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    (folder / "notes.txt").write_text("hello")
    (folder / "empty.png").touch()
    (folder / "sub" / "bundle.zip").write_bytes(b"PK\x03\x04...")
    (folder / ".DS_Store").write_bytes(b"litter")
    (folder / "report.json").write_bytes(png())
    (folder / "linked.png").symlink_to(folder / "good.png")
    (folder / "linked-folder").symlink_to(folder / "sub")
    (folder / "dangling.png").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b"latin-\xe9.png")).write_bytes(png())
    (folder / "line\nbreak.png").write_bytes(png())
    packed = pack_source(folder, tmp_path / "work")
    assert set(packed.index.names.values()) == {"good.png", "linked.png"}
    found = reasons(packed)
    assert found == {
        "photo.png": "it is a JPEG, not a PNG, and can not be restored from that; fetch it again with dmcp pull",
        "notes.txt": "it is not a PNG",
        "empty.png": "it is empty",
        "sub/bundle.zip": "it is a zip archive, not a PNG",
        "report.json": "its name is taken by the report",
        "linked-folder": "it is not a plain file",
        "dangling.png": "it can not be read: No such file or directory",
        "pipe.png": "it is not a plain file",
        "latin-\\udce9.png": "its name holds control characters or is not UTF-8",
        "line\\nbreak.png": "its name holds control characters or is not UTF-8",
    }


def test_what_holds_no_protected_image_is_seen_before_it_is_packed(tmp_path: Path) -> None:
    key = DataKey(bytes(32), "pets")
    protected = protect_images(RANDOM.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8), key)[0]
    plain, later = png(), {"plain.png": png(), "z.png": protected, "a.txt": b"text"}
    make_variant(tmp_path / "variant")
    (tmp_path / "in").mkdir()
    for name, data in {"a.png": plain, "b.png": png(32), "broken.png": plain[:40], "c.txt": b"text"}.items():
        (tmp_path / "in" / name).write_bytes(data)
    sources = [
        tmp_path / "in",
        tmp_path / "in" / "a.png",
        write_tar(tmp_path / "a.tar", [("a.png", plain)]),
        tmp_path / "variant",
    ]
    for source in sources:
        with pytest.raises(NotProtected, match=r"Not one of the .*nothing was handed in.*dmcp pull"):
            check_protected(source)
    for name, data in later.items():
        (tmp_path / "in" / name).write_bytes(data)
    check_protected(tmp_path / "in")
    check_protected(write_tar(tmp_path / "b.tar", list(later.items())))
    (tmp_path / "empty").mkdir()
    check_protected(tmp_path / "empty")  # packing says what is wrong with it


@pytest.mark.parametrize(
    "make", [lambda p: p.mkdir(), lambda p: write_tar(p, []), lambda p: zipfile.ZipFile(p, "w").close()]
)
def test_an_empty_source_is_an_error(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "in")
    with pytest.raises(InputError, match="holds no PNG"):
        pack_source(tmp_path / "in", tmp_path / "work")


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        pack_source(tmp_path / "in", tmp_path / "work")
    (tmp_path / "text").write_text("just text\n" * 100)
    with pytest.raises(InputError, match=r"can not be read as a tar file.*Hand in a folder of PNGs.*or a PNG"):
        pack_source(tmp_path / "text", tmp_path / "work")
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    with pytest.raises(InputError, match=r"a\.jpg is a JPEG, not a PNG.*dmcp pull"):
        pack_source(tmp_path / "a.jpg", tmp_path / "work")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(InputError, match="can not be read as a zip file"):
        pack_source(tmp_path / "cut.zip", tmp_path / "work")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.txt").write_text("hello")
    with pytest.raises(InputError, match=r"The first of 1, a\.txt: it is not a PNG"):
        pack_source(tmp_path / "only", tmp_path / "work")


def test_a_single_png(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(data := png())
    assert packed_files(pack_source(tmp_path / "one.png", tmp_path / "work"), tmp_path / "work") == {"one.png": data}


# --- packing: shards -------------------------------------------------------------------------------------------------


def test_a_variant_keeps_boundaries_labels_and_manifest(tmp_path: Path) -> None:
    manifest = make_variant(tmp_path / "in", shards=3, samples=4)
    packed = pack_source(tmp_path / "in", tmp_path / "work", shard_size=2)
    index = packed.index
    assert index.layout == "shards" and not index.refused
    assert [entry.target for entry in index.shards] == [shard.name for shard in manifest.shards]
    assert index.variant and index.variant.classes == ["cat", "dog"]
    for shard, info in zip(manifest.shards, packed.shards, strict=True):
        before, sent = read_shard(tmp_path / "in" / shard.name), read_shard(tmp_path / "work" / info.name)
        assert [(index.names[s.key], s.png, s.label) for s in sent] == [(s.key, s.png, s.label) for s in before]


def packed_as(kind: str, folder: Path, out: Path) -> Path:
    """A folder of shards as users pack it, and the folder around it."""
    if kind == "folder around":
        return folder.parent
    if kind.startswith("tar"):
        with tarfile.open(out, "w") as tar:
            tar.add(folder, arcname="." if kind == "tar of its files" else "data/protected")
        return out
    method = zipfile.ZIP_STORED if kind == "stored zip" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(out, "w", method) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name if kind == "zip of its files" else f"data/protected/{path.name}")
    return out


@pytest.mark.parametrize("kind", ["folder around", "tar", "tar of its files", "zip", "stored zip", "zip of its files"])
def test_a_pulled_variant_is_found_however_it_was_packed(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "around" / "protected"
    make_variant(folder, shards=2, samples=3)
    (folder / "README.md").write_text("beside shards")
    expected = pack_source(folder, tmp_path / "a")
    packed = pack_source(packed_as(kind, folder, tmp_path / "out"), tmp_path / "b")
    assert packed.index == expected.index
    assert packed.index.variant is not None and not packed.index.refused
    for info in packed.shards:
        assert (tmp_path / "a" / info.name).read_bytes() == (tmp_path / "b" / info.name).read_bytes()


def test_a_damaged_shard_in_a_zip_gives_what_lies_before_the_damage(tmp_path: Path) -> None:
    make_variant(tmp_path / "in", shards=2, samples=4)
    path = packed_as("zip", tmp_path / "in", tmp_path / "out")
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[1]
    content = bytearray(path.read_bytes())
    content[first.header_offset + first.compress_size * 2 // 3] ^= 0xFF
    path.write_bytes(content)
    index = pack_source(path, tmp_path / "work").index
    assert {e.target: e.shard.samples for e in index.shards}["train-000001.tar"] == 4
    assert sum(e.shard.samples for e in index.shards) < 8 and index.refused


def test_a_shard_that_is_in_a_zip_twice_is_taken_once(tmp_path: Path) -> None:
    make_variant(tmp_path / "in", shards=2, samples=3)
    path = packed_as("zip", tmp_path / "in", tmp_path / "out")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("data/protected/train-000001.tar", (tmp_path / "in" / "train-000000.tar").read_bytes())
    packed = pack_source(path, tmp_path / "work")
    assert [entry.target for entry in packed.index.shards] == ["train-000000.tar", "train-000001.tar"]
    second = read_shard(tmp_path / "work" / packed.index.shards[1].shard.name)
    assert [s.png for s in second] == [s.png for s in read_shard(tmp_path / "in" / "train-000001.tar")]
    assert reasons(packed) == {"data/protected/train-000001.tar": "its name appears twice"}


def test_tars_in_a_zip_are_bounded(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.tar", bytes(40 << 20))
        archive.writestr("good.png", PNG)
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(90):
            archive.writestr(f"{number}.tar", bytes(1 << 20))
    packed = pack_source(tmp_path / "in.zip", tmp_path / "work")
    assert packed_files(packed, tmp_path / "work") == {"good.png": PNG}
    assert "200 times" in reasons(packed)["bomb.tar"]
    with pytest.raises(TooLarge, match="unpacks to more than"):
        pack_source(tmp_path / "many.zip", tmp_path / "again", limits=Limits(ratio=1))


def test_shards_without_manifest_renamed_reordered_and_one_of_them_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    make_variant(folder, shards=3, samples=4)
    (folder / MANIFEST_NAME).unlink()
    shuffled = [Sample(f"my-{i}", s.png, s.label) for i, s in enumerate(read_shard(folder / "train-000001.tar")[::-1])]
    write_shard(folder / "my shard (2).tar", shuffled)
    (folder / "train-000001.tar").unlink()
    whole = (folder / "train-000002.tar").read_bytes()
    (folder / "train-000002.tar").write_bytes(whole[: len(whole) // 3])
    (folder / "README.md").write_text("beside shards this is nobody's image")
    (folder / "broken.tar").write_bytes(b"\0" * 100 + b"x" * 1000)
    packed = pack_source(folder, tmp_path / "work")
    assert [entry.target for entry in packed.index.shards] == [
        "my shard (2).tar",
        "train-000000.tar",
        "train-000002.tar",
    ]
    assert 0 < packed.index.shards[2].shard.samples < 4
    assert set(reasons(packed)) >= {"broken.tar", "train-000002.tar"}
    assert packed.index.variant is None
    first = read_shard(tmp_path / "work" / "input-000000.tar")
    assert [packed.index.names[s.key] for s in first] == ["my-0", "my-1", "my-2", "my-3"]


def test_a_tar_with_labels_is_a_shard_and_one_without_is_files(tmp_path: Path) -> None:
    samples = [Sample(f"k{i}", png(), i) for i in range(3)]
    write_shard(tmp_path / "labelled.tar", samples)
    index = pack_source(tmp_path / "labelled.tar", tmp_path / "w1").index
    assert index.layout == "shards" and index.shards[0].target == "labelled.tar"
    write_shard(tmp_path / "plain.tar", [Sample(s.key, s.png, None) for s in samples])
    index = pack_source(tmp_path / "plain.tar", tmp_path / "w2").index
    assert index.layout == "files" and set(index.names.values()) == {"k0.png", "k1.png", "k2.png"}


def test_loose_files_beside_tars_all_come_along(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    write_tar(tmp_path / "in" / "more.tar", [("x/b.png", png()), ("c.json", b"{}")])
    packed = pack_source(tmp_path / "in", tmp_path / "work")
    assert set(packed.index.names.values()) == {"a.png", "more/x/b.png"}
    assert reasons(packed) == {"more/c.json": "it is not a PNG"}


# --- packing: hostile archives ---------------------------------------------------------------------------------------


HOSTILE = [
    "/etc/passwd.png",
    "../up.png",
    "a/../../up.png",
    "..",
    "a\\..\\b.png",
    "a" * 300 + ".png",
    "a/" * 600 + "b.png",
    "nul\tchar.png",
]


def test_tar_members_never_become_paths(tmp_path: Path) -> None:
    good = png()
    link, device = tarfile.TarInfo("link.png"), tarfile.TarInfo("device.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [(name, good) for name in HOSTILE]
    members += [
        (link, b""),
        (device, b""),
        ("./ok//fine.png", good),
        ("ok/fine.png", good),
        ("ok", good),
        ("ok/fine.png/x", good),
    ]
    write_tar(tmp_path / "in.tar", members)
    before = sorted(path.name for path in tmp_path.iterdir())
    packed = pack_source(tmp_path / "in.tar", tmp_path / "work")
    assert sorted(path.name for path in tmp_path.iterdir()) == [*before, "work"]
    assert packed_files(packed, tmp_path / "work") == {"ok/fine.png": good}
    found = reasons(packed)
    assert len(packed.index.refused) == len(HOSTILE) + 5
    assert found["link.png"] == found["device.png"] == "it is a link or a special file"
    assert found["ok/fine.png"] == "its name appears twice"
    assert found["ok"] == found["ok/fine.png/x"] == "it is a file and a folder at once"
    assert found["../up.png"] == found["/etc/passwd.png"] == "its name leads out of the folder"


def test_a_cut_tar_gives_what_lies_before_the_cut(tmp_path: Path) -> None:
    images = [(f"{i}.png", png()) for i in range(6)]
    whole = write_tar(tmp_path / "whole.tar", list(images)).read_bytes()
    for cut in (len(whole.rstrip(b"\0")) // 512 * 512 + 512, 3000, 4 * 512 + 7):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        budget = Budget(Limits())
        items = list(read_tar(list_tar(tmp_path / "cut.tar", budget), budget))
        assert any(isinstance(item, RefusedFile) and item.name == "cut.tar" for item in items)
        for item in items:
            assert isinstance(item, RefusedFile) or (item.name, item.png) in images


@given(data=st.data())
def test_altered_archives_end_in_items_or_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    kind, nested = data.draw(st.sampled_from(["tar", "zip"])), data.draw(st.booleans())
    path = folder / f"in.{kind}"
    members = [("a.png", PNG), ("b" * 120 + ".png", PNG), ("b/c.txt", b"text")]
    if nested:
        write_shard(folder / "x.tar", [Sample("k", PNG, 1)])
        members = [("p/x.tar", (folder / "x.tar").read_bytes()), ("p/manifest.json", b"{}")]
    if kind == "tar":
        write_tar(path, list(members))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
    altered = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 12))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(altered[: data.draw(st.integers(len(altered) // 2, len(altered)))])
    try:
        index = pack_source(path, folder / "work", limits=Limits(member_bytes=1 << 20, members=100)).index
    except DmcpError:
        return
    assert all(name_fault(name) is None for name in index.names.values())


PNG = png()


def test_zip_members_are_bounded(tmp_path: Path) -> None:
    good = png()
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("windows\\name.png", good)
        archive.writestr("../up.png", good)
        archive.writestr("__MACOSX/._a.png", b"litter")
        archive.writestr("bomb.png", b"\x89PNG\r\n\x1a\n" + bytes(40 << 20))
        archive.writestr("big.png", good + os.urandom(2 << 20))
        archive.writestr(zipfile.ZipInfo("folder/"), b"")
        archive.writestr("lzma.png", good, zipfile.ZIP_LZMA)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("damaged.png", good, zipfile.ZIP_STORED)
    content = bytearray((tmp_path / "in.zip").read_bytes())
    content[content.rindex(good) + 50] ^= 1
    (tmp_path / "in.zip").write_bytes(content)
    packed = pack_source(tmp_path / "in.zip", tmp_path / "work", limits=Limits(member_bytes=1 << 20))
    assert packed_files(packed, tmp_path / "work") == {"windows/name.png": good}
    found = reasons(packed)
    assert set(found) == {"../up.png", "bomb.png", "big.png", "lzma.png", "link.png", "damaged.png"}
    assert "200 times" in found["bomb.png"] and "1,048,576" in found["big.png"] and "damaged" in found["damaged.png"]


def test_a_zip_that_understates_its_sizes_gives_no_more_than_it_states(tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("liar.png", b"\x89PNG\r\n\x1a\n" + bytes(8 << 20))
        archive.writestr("good.png", PNG)
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<I", (8 << 20) + 8), content.index(b"PK\x01\x02"))
    content[at : at + 4] = struct.pack("<I", 1000)
    path.write_bytes(content)
    packed = pack_source(path, tmp_path / "work")
    assert packed_files(packed, tmp_path / "work") == {"good.png": PNG}
    assert "damaged" in reasons(packed)["liar.png"]


@pytest.mark.parametrize("limits", [Limits(total_bytes=2000), Limits(members=2)])
@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_the_whole_is_bounded(tmp_path: Path, limits: Limits, kind: str) -> None:
    source = tmp_path / "in"
    images = [(f"{i}.png", png()) for i in range(4)]
    if kind == "tar":
        write_tar(source, list(images))
    elif kind == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            for name, data in images:
                archive.writestr(name, data)
    else:
        source.mkdir()
        for name, data in images:
            (source / name).write_bytes(data)
    with pytest.raises(InputError, match="in parts"):
        pack_source(source, tmp_path / "work", limits=limits)


def test_an_index_with_a_hostile_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    index = pack_source(tmp_path / "a.png", tmp_path / "work").index
    good = json.loads(index.model_dump_json())
    for change in (
        {"names": {"00000000": "../../up.png"}},
        {"names": {"../up": "a.png"}},
        {"names": {"00000000": "a.png", "00000001": "a.png"}},
        {"layout": "shards"},
        {"shards": [{**good["shards"][0], "target": "../x.tar"}], "layout": "shards"},
        {"shards": [{**good["shards"][0], "shard": {**good["shards"][0]["shard"], "name": "../../x"}}]},
        {"origin": {"kind": "published", "dataset": "../x", "version": "0" * 16}},
        {"more": 1},
    ):
        with pytest.raises(CorruptManifest):
            parse_index(json.dumps({**good, **change}).encode())
    with pytest.raises(ValidationError):
        RequestIndex(layout="files", shards=[], names={"1": "/etc/passwd"})


@given(name=st.text(max_size=40))
def test_good_names_stay_inside_any_folder(name: str) -> None:
    if name_fault(name) is None:
        base = Path("/base/out")
        joined = Path(os.path.normpath(base.joinpath(*name.split("/"))))
        assert base in joined.parents and joined.relative_to(base).as_posix() == name
