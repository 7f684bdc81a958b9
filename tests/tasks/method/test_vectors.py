"""Conformance: what an earlier release wrote is read, and written again, sample for sample."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.png import decode_png, read_payload
from tasks.method.carriers import read_headers
from tasks.method.exact import ExactParameters, ExactProfile
from tasks.method.paper import PaperFitted, PaperParameters, PaperProfile
from tasks.method.profiles import Fitted, Recovered
from tasks.method.seal import DataKey
from tasks.restore import restore_images
from tests.vectors.make import EXACT, FOLDER, PAPER, main

FIRST, SECOND = (sorted((FOLDER / version).glob("*")) for version in ("v1", "v2"))
FROZEN = "45b378aa2b07e57e2982086a878acc551f59473fd60e4d317cd796382335925d"
"""Of all files of version 1: they are never written again."""


def load(folder: Path, what: str) -> np.ndarray:
    return decode_png((folder / f"{what}.png").read_bytes(), what)


def facts_of(folder: Path) -> tuple[dict[str, Any], DataKey]:
    facts = json.loads((folder / "vector.json").read_text())
    return facts, DataKey(bytes.fromhex(facts["secret"]), facts["dataset"])


def payload_of(folder: Path) -> bytes | None:
    path = folder / "payload.bin"
    return path.read_bytes() if path.exists() else None


each_of_v1 = pytest.mark.parametrize("folder", FIRST, ids=lambda folder: folder.name)
each_of_v2 = pytest.mark.parametrize("folder", SECOND, ids=lambda folder: folder.name)


@each_of_v1
def test_restores_version_1(folder: Path) -> None:
    _, key = facts_of(folder)
    restored = restore_images(load(folder, "protected")[None], lambda _: key)[0]
    assert isinstance(restored, Recovered)
    assert np.array_equal(restored.image, load(folder, "recovered"))
    assert restored.label is None


@each_of_v1
def test_protects_version_1(folder: Path) -> None:
    facts, key = facts_of(folder)
    profile, clean = PaperProfile(PaperParameters(**facts["parameters"])), load(folder, "clean")
    fitted = profile.fit(clean[None], load(folder, "perturbed")[None])[0]
    assert isinstance(fitted, PaperFitted)
    assert (fitted.rung, fitted.secret.hex()) == (facts["rung"], facts["sequence"])
    carried = profile.carry([fitted], clean[None], [3], [bytes.fromhex(facts["image_id"])], key)[0]
    assert np.array_equal(carried.image, load(folder, "protected"))
    assert read_headers(carried.image[None])[0].hex() == facts["header"]
    assert carried.spilled is None


@each_of_v2
def test_restores_version_2(folder: Path) -> None:
    facts, key = facts_of(folder)
    protected, payload = load(folder, "protected"), payload_of(folder)
    assert read_payload((folder / "protected.png").read_bytes()) == payload
    restored = restore_images(protected[None], lambda _: key, [payload])[0]
    assert isinstance(restored, Recovered)
    assert np.array_equal(restored.image, load(folder, "clean"))
    assert restored.label == facts["label"]


@each_of_v2
def test_protects_version_2(folder: Path) -> None:
    facts, key = facts_of(folder)
    profile, clean = ExactProfile(ExactParameters(**facts["parameters"])), load(folder, "clean")
    fitted = profile.fit(clean[None], load(folder, "perturbed")[None])[0]
    assert isinstance(fitted, Fitted)
    assert fitted.secret.hex() == facts["signs"]
    image_id = bytes.fromhex(facts["image_id"])
    carried = profile.carry([fitted], clean[None], [facts["label"]], [image_id], key)[0]
    assert np.array_equal(carried.image, load(folder, "protected"))
    assert read_headers(carried.image[None])[0].hex() == facts["header"]
    assert carried.spilled == payload_of(folder)


def test_there_are_vectors() -> None:
    assert [folder.name for folder in FIRST] == sorted(PAPER)
    assert [folder.name for folder in SECOND] == sorted(EXACT)


def test_the_vectors_of_version_1_are_as_they_were() -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FOLDER).as_posix()}\n"
        for path in sorted((FOLDER / "v1").rglob("*.*"), key=lambda path: path.relative_to(FOLDER).as_posix())
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == FROZEN


def test_the_maker_makes_what_is_there(tmp_path: Path) -> None:
    """Pixels and facts; how a PNG is deflated is up to the zlib at hand."""
    main(tmp_path)
    there = sorted(path.relative_to(FOLDER) for version in ("v1", "v2") for path in (FOLDER / version).rglob("*.*"))
    assert there == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    for path in there:
        if path.suffix == ".png":
            assert np.array_equal(load((tmp_path / path).parent, path.stem), load((FOLDER / path).parent, path.stem)), (
                path
            )
        else:
            assert (tmp_path / path).read_bytes() == (FOLDER / path).read_bytes(), path
