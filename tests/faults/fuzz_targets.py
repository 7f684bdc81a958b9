"""What is fuzzed: each target has valid inputs, a way to change them, and a check of what is made of the changed ones.

A check returns in a word what an input turned out to be, or raises: an error of this project's tree is fine, anything
else is a failure; see `fuzz.py`.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from pydantic import SecretStr

from storage.audit_checkpoints import decode_checkpoint
from storage.audit_export import read_export
from storage.files import sha256_file
from storage.key_backends.local import ScryptCost, read_key_file
from storage.key_encryption import Unlock
from storage.keys import Vault
from storage.manifest import Manifest, dump_manifest, parse_manifest, read_manifest, verify_variant
from storage.png import encode_png
from storage.shards import KEY as SHARD_KEY
from storage.shards import read_shard, write_shard
from storage.vault_file import VaultFile
from storage.versions import read_channel, version_id
from tasks.ledger import Ledger, assign, read_ledger, write_ledger
from tasks.payloads import dump_payloads, parse_payloads
from tasks.request_index import RequestIndex, RequestReport, parse_index, parse_report
from tasks.request_pack import pack_source
from tests.faults import fuzz_images as images
from tests.faults.mutations import json_text, png, raw, tar
from tests.services import make_variant
from tests.tasks.method.images import make

FAST = ScryptCost(n=1 << 14, r=1, p=1)
"""The least that a vault may have; a passphrase takes half a second otherwise."""
PHRASE = SecretStr("correct horse")


@dataclass(frozen=True)
class Target:
    """Valid inputs, how one is changed, and what is done with the changed one."""

    seeds: Sequence[bytes]
    change: Callable[[Random, bytes, Sequence[bytes]], bytes]
    check: Callable[[bytes], str]

    def input(self, draw: Random) -> bytes:
        """A changed input."""
        return self.change(draw, draw.choice(self.seeds), self.seeds)


def targets(folder: Path) -> dict[str, Target]:
    """All of them; `folder` is for the files that are read, best in memory."""
    return _image_targets() | _text_targets(folder) | _archive_targets(folder) | _vault_targets(folder)


def _image_targets() -> dict[str, Target]:
    first, second = images.vectors("v1"), images.vectors("v2")
    beside = [vector for vector in second if vector.payload is not None]
    plain = [encode_png(make(kind, 20, 17, 1)) for kind in ("photo", "noise", "flat")]
    return {
        "protected-v1": Target([v.png for v in first], images.protected, images.restorer(first)),
        "protected-v2": Target([v.png for v in second], images.protected, images.restorer(second)),
        "header": Target([v.header.pack() for v in first + second], images.header, images.read_header),
        "payload-beside": _of_one(beside, [v.payload or b"" for v in beside], images.published),
        "sealed-v1": _of_one(first, [v.plain for v in first], images.sealed_paper),
        "sealed-v2": _of_one(beside, [v.plain for v in beside], images.sealed_exact),
        "png": Target(plain + [v.png for v in beside], png, images.decode),
        "photograph": Target([*plain, *_photographs()], _photograph, images.photograph),
    }


def _of_one(vectors: list[images.Vector], inputs: list[bytes], check: Callable[[images.Vector, bytes], str]) -> Target:
    """Inputs for one of several images: the first byte says which."""
    seeds = [bytes([number]) + data for number, data in enumerate(inputs)]
    return Target(seeds, raw, lambda data: check(vectors[data[0] % len(vectors) if data else 0], data[1:]))


def _photographs() -> list[bytes]:
    found = []
    for options in ({"quality": 90}, {"quality": 40, "progressive": True}, {"exif": b"Exif\0\0MM\0*" + bytes(20)}):
        buffer = io.BytesIO()
        Image.fromarray(make("photo", 24, 33, 2)).save(buffer, "JPEG", **options)
        found.append(buffer.getvalue())
    return found


def _photograph(draw: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return png(draw, data, others) if data.startswith(b"\x89PNG") else raw(draw, data, others)


# --- texts -----------------------------------------------------------------------------------------------------------


def _text_targets(folder: Path) -> dict[str, Target]:
    variant = folder / "variant"
    make_variant(variant, shards=2)
    manifests = [dump_manifest(read_manifest(variant)), dump_manifest(_named(read_manifest(variant)))]
    ledger = folder / "ledger.json"
    split = assign(None, ["a/1.png", "b/2.png", "é/3.png"], range(3), 2)
    write_ledger(ledger, Ledger(source="imagefolder", shard_size=2, classes=["a", "b"], splits={"train": split}))
    shard = vars(read_manifest(variant).shards[0])
    index = {"layout": "files", "shards": [{"shard": shard | {"name": "input-000000.tar"}}], "names": {"0": "a/b.png"}}
    report = {"request_id": "f" * 32, "images": 4, "restored": 3, "results": [shard | {"name": "result-000000.tar"}]}
    refused = [{"name": "1", "error": "AlteredImage", "reason": "it is not what it was"}]
    audit = Path(__file__).parents[1] / "vectors" / "audit"
    return {
        "manifest": Target(manifests, json_text, partial(_manifest, parse_manifest(manifests[0], "seed"))),
        "channel": Target([b'{"version":"0123456789abcdef","published":"2030-01-01T00:00:00Z"}'], json_text, _channel),
        "ledger": Target([ledger.read_bytes()], json_text, partial(_ledger, folder / "fuzzed.json")),
        "payloads": Target([_payload_lines()], raw, _payloads),
        "index": Target([_dumped(index | {"refused": refused})], json_text, _model(parse_index, RequestIndex)),
        "report": Target([_dumped(report | {"refused": refused})], json_text, _model(parse_report, RequestReport)),
        "checkpoint": Target([path.read_bytes() for path in audit.glob("0*.json")], json_text, _checkpoint),
        "audit-export": Target(
            [(audit / "entries.jsonl").read_bytes()], raw, partial(_export, folder / "fuzzed.jsonl")
        ),
    }


def _named(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"dataset": "photos-2", "classes": ["été", "Straße"]})


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _payload_lines() -> bytes:
    draw = Random(0)
    return dump_payloads((draw.randbytes(8), draw.randbytes(30)) for _ in range(5))


def _manifest(seed: Manifest, data: bytes) -> str:
    found = parse_manifest(data, "x")
    assert parse_manifest(dump_manifest(found), "x") == found
    same = version_id(found, "Mine.") == version_id(seed, "Mine.")
    assert same == (found == seed), "another manifest with the version's id"
    return "the same" if same else "another manifest, of another version"


class _Bucket:
    """As much of a store as a channel is read from."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get(self, key: str) -> tuple[bytes, str]:
        return self.data, "etag"

    def where(self, key: str) -> str:
        return key


def _channel(data: bytes) -> str:
    found = read_channel(_Bucket(data), "x")  # type: ignore[arg-type]
    assert found is not None
    assert len(found[0].version) == 16 and int(found[0].version, 16) >= 0
    return "names a version"


def _ledger(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    found = read_ledger(path)
    assert found is not None
    write_ledger(path, found)
    assert read_ledger(path) == found
    for split in found.splits.values():
        again = assign(split, ["a/1.png", "new.png"], range(2), found.shard_size)
        keys = [key for shard in again.shards for key, _ in shard.images]
        assert len(set(keys)) == len(keys), "two images with one key"
        assert len({shard.number for shard in again.shards}) == len(again.shards), "two shards with one number"
    return "a ledger"


def _payloads(data: bytes) -> str:
    found = parse_payloads(io.BytesIO(data), "x")
    pairs = [(image, payload) for image, payloads in found.items() for payload in payloads]
    again = parse_payloads(io.BytesIO(dump_payloads(pairs)), "x")
    assert {image: set(payloads) for image, payloads in again.items()} == {i: set(p) for i, p in found.items()}
    return "payloads"


def _model(parse: Callable[[bytes], Any], kind: type) -> Callable[[bytes], str]:
    def check(data: bytes) -> str:
        found = parse(data)
        assert isinstance(found, kind)
        assert parse(found.model_dump_json().encode()) == found
        return "valid"

    return check


def _checkpoint(data: bytes) -> str:
    found = decode_checkpoint(data)
    if found is None:
        return "none"
    assert decode_checkpoint(found.encode()) == found
    found.valid({})
    return "a checkpoint"


def _export(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return "entries" if list(read_export(path)) else "nothing"


# --- archives --------------------------------------------------------------------------------------------------------


def _archive_targets(folder: Path) -> dict[str, Target]:
    variant = folder / "variant"
    shards = [path.read_bytes() for path in sorted(variant.glob("*.tar"))]
    contents = {sample.png for path in variant.glob("*.tar") for sample in read_shard(path)}
    zips = [_zipped(sorted(contents), kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    source, work = folder / "upload", folder / "packed"
    return {
        "shard": Target(shards, tar, partial(_shard, folder / "fuzzed.tar")),
        "variant": Target(shards[:1], tar, partial(_variant, folder / "variant-fuzzed", variant)),
        "upload-tar": Target([*shards, _tar_of_shards(variant)], tar, partial(_upload, source, work, None)),
        "upload-zip": Target(zips, raw, partial(_upload, source, work, contents)),
    }


def _zipped(contents: Sequence[bytes], kind: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for number, content in enumerate(contents[:3]):
            archive.writestr(zipfile.ZipInfo(f"cats/{number}.png"), content, kind)
    return buffer.getvalue()


def _tar_of_shards(variant: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(variant.iterdir()):
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            archive.addfile(member, io.BytesIO(path.read_bytes()))
    return buffer.getvalue()


def _shard(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    samples = read_shard(path)
    for sample in samples:
        assert SHARD_KEY.fullmatch(sample.key) and sample.png in data
        assert sample.label is None or 0 <= sample.label < 10**9
    again = path.with_name("again.tar")
    write_shard(again, samples)
    assert read_shard(again) == samples
    return "a shard"


def _variant(folder: Path, whole: Path, data: bytes) -> str:
    folder.mkdir(exist_ok=True)
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    first = min(folder.glob("*.tar"))
    first.write_bytes(data)
    verify_variant(folder)
    assert sha256_file(first) == sha256_file(whole / first.name), "another shard passes for the manifest's"
    return "the same"


def _upload(source: Path, work: Path, contents: set[bytes] | None, data: bytes) -> str:
    source.write_bytes(data)
    work.mkdir(exist_ok=True)
    for path in work.iterdir():
        path.unlink()
    packed = pack_source(source, work, shard_size=2)
    count = 0
    for info in packed.shards:
        for sample in read_shard(work / info.name):
            count += 1
            assert sample.png in (data if contents is None else contents), "what was packed was not handed in"
    if count != packed.index.images:
        raise AssertionError("the index counts other images")
    return "packed"


# --- keys ------------------------------------------------------------------------------------------------------------


def _vault_targets(folder: Path) -> dict[str, Target]:
    by_file = Vault(folder / "by-file.json", Unlock(folder / "vault.key"))
    by_phrase = Vault(folder / "by-phrase.json", Unlock(folder / "vault.key", PHRASE, FAST))
    for vault in (by_file, by_phrase):
        vault.create("photos")
        vault.create("cifar10")
    seeds = [vault.path.read_bytes() for vault in (by_file, by_phrase)]
    either = Vault(folder / "either.json", Unlock(folder / "vault.key", PHRASE))  # as the file says
    return {
        "vault": Target(seeds, json_text, partial(_vault, either, seeds)),
        "vault-passphrase": Target(seeds[1:], json_text, partial(_vault, by_phrase, seeds)),
        "vault-format": Target(seeds, json_text, _vault_format),
        "key-file": Target([(folder / "vault.key").read_bytes()], raw, partial(_key_file, folder / "fuzzed.key")),
    }


def _vault(vault: Vault, seeds: Sequence[bytes], data: bytes) -> str:
    opened = vault.open_bytes(data)
    assert data in seeds, "an altered vault was opened"
    assert len(opened.secrets()) == 2
    return "the same"


def _vault_format(data: bytes) -> str:
    found = VaultFile.decode(data, Path("x"))
    assert found.encode() == data
    return "of the right shape"


def _key_file(path: Path, data: bytes) -> str:
    path.touch(0o600)
    path.write_bytes(data)
    assert len(read_key_file(path)) == 32
    return "a key"
