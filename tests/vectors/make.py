"""Write the format vectors: `python -m tests.vectors.make [FOLDER]` (only when a new version adds some).

Each vector is a folder below v1 (profile `paper`) or v2 (profile `exact`) with clean.png, perturbed.png, protected.png
and vector.json: secret of the key, data set, image id, parameters, header in hex, and what undoes the look, coded (v1:
`sequence`, v2: `signs`). v1 also has recovered.png, which in v2 would be clean.png; v2 has the label (null: none) and,
where the payload travels beside the pixels, payload.bin, which is also the content of the chunk in protected.png. All
images are synthetic.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.png import encode_png
from tasks.method.carriers import read_headers
from tasks.method.exact import ExactParameters, ExactProfile
from tasks.method.header import Header
from tasks.method.paper import PaperFitted, PaperParameters, PaperProfile
from tasks.method.profiles import Carried, Fitted, Profile, Recovered
from tasks.method.seal import DataKey
from tests.tasks.method.images import disguise, make, perturb

FOLDER = Path(__file__).parent
SECRET = bytes.fromhex("00" * 16 + "a5" * 16)
DATASET = "vectors"
PAPER = {
    "single-samples": ("photo", 32, 32, PaperParameters(1, 1, 8, 2)),
    "sorted-4x4": ("photo", 32, 32, PaperParameters(4, 4, 8, 1)),
    "explicit-4x4": ("checkerboard", 32, 32, PaperParameters(4, 2, 16, 1)),
    "identity-8x8-edges": ("gradient", 37, 29, PaperParameters(8, 1, 8, 1)),
    "smallest-fallback": ("noise", 16, 16, PaperParameters(1, 1, 8, 1)),
    "saturated-three-planes": ("saturated", 48, 21, PaperParameters(2, 16, 16, 3)),
}
# Image (the first two numbers are its sides), look, parameters, label, whether the payload is beside the pixels.
EXACT: dict[str, tuple[str, int, int, str, ExactParameters, int | None, bool]] = {
    "pixels-saturated": ("saturated", 72, 80, "waves", ExactParameters(13), 65534, False),
    "pixels": ("photo", 32, 32, "stripes", ExactParameters(13), 3, False),
    "pixels-odd-sides": ("gradient", 37, 29, "noise", ExactParameters(9), 0, False),
    "pixels-no-label": ("photo", 40, 24, "stripes", ExactParameters(24), None, False),
    "chunk-rgb": ("photo", 24, 21, "signs a sample", ExactParameters(20, "rgb", "chunk"), 7, True),
    "spilled-noise": ("noise", 16, 16, "signs", ExactParameters(13), 1, True),
}

Image = NDArray[np.uint8]


def main(folder: Path = FOLDER) -> None:
    """Write all vectors."""
    key = DataKey(SECRET, DATASET)
    for number, (name, (kind, height, width, parameters)) in enumerate(PAPER.items()):
        clean = make(kind, height, width, number)
        wanted = make("photo", height, width, 99) if name == "explicit-4x4" else perturb(clean, number)
        image_id = key.image_id("train", name)
        fitted, carried, recovered = _through(PaperProfile(parameters), clean, wanted, None, image_id, key)
        assert isinstance(fitted, PaperFitted)
        pngs = {
            "clean": encode_png(clean),
            "perturbed": encode_png(wanted),
            "protected": encode_png(carried.image),
            "recovered": encode_png(recovered.image),
        }
        facts = {
            "parameters": asdict(parameters),
            "rung": fitted.rung,
            "sequence": fitted.secret.hex(),
            "header": _header(carried).hex(),
        }
        _write(folder / "v1" / name, pngs, image_id, facts)
    for number, (name, (kind, height, width, look, settings, label, beside)) in enumerate(EXACT.items()):
        clean = make(kind, height, width, number)
        wanted = disguise(clean, look, 1 + number, settings.amplitude)
        image_id = key.image_id("train", name)
        fitted, carried, recovered = _through(ExactProfile(settings), clean, wanted, label, image_id, key)
        assert np.array_equal(recovered.image, clean), name
        assert recovered.label == label, name
        assert (carried.spilled is not None) == beside, name
        pngs = {
            "clean": encode_png(clean),
            "perturbed": encode_png(wanted),
            "protected": encode_png(carried.image, carried.spilled),
        }
        facts = {
            "label": label,
            "parameters": asdict(settings),
            "signs": fitted.secret.hex(),
            "header": _header(carried).hex(),
        }
        _write(folder / "v2" / name, pngs, image_id, facts)
        if carried.spilled is not None:
            (folder / "v2" / name / "payload.bin").write_bytes(carried.spilled)


def _through(
    profile: Profile, clean: Image, wanted: Image, label: int | None, image_id: bytes, key: DataKey
) -> tuple[Fitted, Carried, Recovered]:
    """One image hidden, carried and recovered."""
    (fitted,) = profile.fit(clean[None], wanted[None])
    assert isinstance(fitted, Fitted)
    (carried,) = profile.carry([fitted], clean[None], [label], [image_id], key)
    header = Header.unpack(_header(carried))
    (recovered,) = profile.recover(carried.image[None], [header], [carried.spilled], key)
    assert isinstance(recovered, Recovered)
    return fitted, carried, recovered


def _header(carried: Carried) -> bytes:
    return read_headers(carried.image[None])[0]


def _write(folder: Path, pngs: dict[str, bytes], image_id: bytes, facts: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for what, png in pngs.items():
        (folder / f"{what}.png").write_bytes(png)
    facts = {"secret": SECRET.hex(), "dataset": DATASET, "image_id": image_id.hex()} | facts
    (folder / "vector.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
