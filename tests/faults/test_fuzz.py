"""A hundred turns of `fuzz.py` for each target, what it found once, and that it finds what it is there to find."""

import io
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import DatasetError, InputError, UnsupportedImage
from storage.png import decode_png, encode_png
from tasks.datasets.images import decode_image
from tasks.ledger import Ledger, SplitLedger, assign, read_ledger, write_ledger
from tasks.request_pack import pack_source
from tests.faults import fuzz
from tests.faults.fuzz_targets import Target
from tests.tasks.method.images import make

TARGETS = (
    *("protected-v1", "protected-v2", "header", "payload-beside", "sealed-v1", "sealed-v2", "png", "photograph"),
    *("manifest", "channel", "ledger", "payloads", "index", "report", "checkpoint", "audit-export"),
    *("shard", "variant", "upload-tar", "upload-zip", "vault", "vault-passphrase", "vault-format", "key-file"),
)


@pytest.fixture(scope="module")
def workshop() -> Iterator[dict[str, Target]]:
    with fuzz.workshop() as targets:
        assert tuple(targets) == TARGETS
        yield targets


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about what it reads
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_does_anything_but_fail_as_it_should(workshop: dict[str, Target], name: str) -> None:
    account = fuzz.run_block(workshop[name], name, 0, range(100))
    assert account.failures == []
    assert account.inputs == 100 == account.outcomes.total() + account.errors.total()


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_taken(workshop: dict[str, Target], name: str) -> None:
    target = workshop[name]
    assert all(target.check(seed) for seed in target.seeds)
    assert fuzz.input_of(target, name, 0, 7) == fuzz.input_of(target, name, 0, 7)


def test_what_is_no_error_of_ours_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another exception, a wrong result, a hang, and a process that ends: each is told with the number of its input."""

    def check(data: bytes) -> str:
        number = int(data)
        if number == 3:
            raise IndexError("3")
        if number == 4:
            raise AssertionError("a wrong image")
        if number == 5:
            time.sleep(60)
        if number == 6:
            os._exit(11)
        return "fine"

    target = Target([b""], lambda draw, data, others: b"", check)
    monkeypatch.setattr(fuzz, "input_of", lambda target, name, seed, number: b"%d" % number)
    monkeypatch.setattr(fuzz, "LONGEST", 0.5)
    monkeypatch.setattr(fuzz, "BLOCK", 5)
    monkeypatch.setattr(fuzz, "targets", lambda folder: {"x": replace(target)})
    found = fuzz.run_fuzz(10, 0, processes=1)
    told = {failure["replay"]: failure["what"] for failure in found["targets"]["x"]["failures"]}
    assert found["inputs"] == 10 and found["failed"] == 4
    assert found["inputs"] == 10 == found["failed"] + found["targets"]["x"]["outcomes"]["fine"]
    assert told.keys() == {"x:3", "x:4", "x:5", "x:6"}
    assert told["x:5"].startswith("Hang") and told["x:6"] == "the process ended with 11"


# --- found once ------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (header(1 << 15, 1 << 15), "two headers"),  # a bomb: Pillow believes the last one
        (chunk(b"acTL", bytes(8)), "animated"),
        (chunk(b"IDAT", b"") + chunk(b"tEXt", b"x") + chunk(b"IDAT", b""), "not in one piece"),
    ],
)
def test_chunks_that_a_png_of_ours_has_not(extra: bytes, why: str) -> None:
    png = encode_png(make("photo", 20, 17, 1))
    with pytest.raises(UnsupportedImage, match=why):
        decode_png(png[:33] + extra + png[33:], "x")


@pytest.mark.parametrize("decode", [decode_png, decode_image])
def test_a_colour_profile_without_content(decode) -> None:
    png = encode_png(make("photo", 20, 17, 1))
    with pytest.raises(UnsupportedImage, match="damaged"):
        decode(png[:-12] + chunk(b"iCCP", b"") + png[-12:], "x")


def test_a_zip_with_a_file_without_a_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x", encode_png(make("photo", 20, 17, 1)))
    (tmp_path / "a.zip").write_bytes(_renamed(buffer.getvalue()))
    with pytest.raises(InputError, match="holds no PNG"):
        pack_source(tmp_path / "a.zip", tmp_path / "work")


def _renamed(data: bytes) -> bytes:
    """The name of the one entry of a zip is shortened to none, in its directory."""
    at = data.index(b"PK\x01\x02")
    entry = data[at : at + 28] + b"\0\0" + data[at + 30 : at + 46] + data[at + 47 :]
    end = entry.index(b"PK\x05\x06")
    size = struct.pack("<I", end)
    return data[:at] + entry[: end + 12] + size + entry[end + 16 :]


@pytest.mark.parametrize("damage", ["shard size", "a number twice", "a key twice", "a key not given out"])
def test_a_ledger_that_would_give_two_images_one_key(tmp_path: Path, damage: str) -> None:
    split = assign(None, ["a", "b", "c"], range(3), 2)
    first, second = split.shards
    shards = {
        "a number twice": [first, second.model_copy(update={"number": first.number})],
        "a key twice": [first, second.model_copy(update={"images": [(0, "c")]})],
        "a key not given out": [first, second.model_copy(update={"images": [(3, "c")]})],
    }.get(damage, split.shards)
    split = SplitLedger.model_construct(next_key=3, next_shard=2, shards=shards)
    ledger = Ledger.model_construct(source="x", shard_size=0 if damage == "shard size" else 2, splits={"train": split})
    write_ledger(tmp_path / "ledger.json", ledger)
    with pytest.raises(DatasetError):
        read_ledger(tmp_path / "ledger.json")
