"""Write the format vectors of version 1: `python -m tests.vectors.make` (only when a new version adds some).

Each vector is a folder with clean.png, perturbed.png, protected.png, recovered.png and vector.json (key, data set,
image id, parameters, header in hex). All images are synthetic.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from storage.png import encode_png
from tasks.method.carriers import read_headers
from tasks.method.header import Header
from tasks.method.paper import PaperParameters, PaperProfile
from tasks.method.profiles import Fitted
from tasks.method.seal import DataKey
from tests.tasks.method.images import make, perturb

FOLDER = Path(__file__).parent / "v1"
SECRET = bytes.fromhex("00" * 16 + "a5" * 16)
DATASET = "vectors"
VECTORS = {
    "single-samples": ("photo", 32, 32, PaperParameters(1, 1, 8, 2)),
    "sorted-4x4": ("photo", 32, 32, PaperParameters(4, 4, 8, 1)),
    "explicit-4x4": ("checkerboard", 32, 32, PaperParameters(4, 2, 16, 1)),
    "identity-8x8-edges": ("gradient", 37, 29, PaperParameters(8, 1, 8, 1)),
    "smallest-fallback": ("noise", 16, 16, PaperParameters(1, 1, 8, 1)),
    "saturated-three-planes": ("saturated", 48, 21, PaperParameters(2, 16, 16, 3)),
}


def main() -> None:
    """Write all vectors."""
    key = DataKey(SECRET, DATASET)
    for number, (name, (kind, height, width, parameters)) in enumerate(VECTORS.items()):
        clean = make(kind, height, width, number)
        wanted = make("photo", height, width, 99) if name == "explicit-4x4" else perturb(clean, number)
        profile, image_id = PaperProfile(parameters), key.image_id("train", name)
        fitted = [f for f in profile.fit(clean[None], wanted[None]) if isinstance(f, Fitted)]
        protected = profile.carry(fitted, clean[None], [image_id], key)
        raw = read_headers(protected)[0]
        recovered = profile.recover(protected, [Header.unpack(raw)], key)[0]
        assert isinstance(recovered, np.ndarray)
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        for what, image in (
            ("clean", clean),
            ("perturbed", wanted),
            ("protected", protected[0]),
            ("recovered", recovered),
        ):
            (folder / f"{what}.png").write_bytes(encode_png(image))
        facts = {
            "secret": SECRET.hex(),
            "dataset": DATASET,
            "image_id": image_id.hex(),
            "parameters": asdict(parameters),
            "rung": fitted[0].rung,
            "sequence": fitted[0].sequence.hex(),
            "header": raw.hex(),
        }
        (folder / "vector.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
