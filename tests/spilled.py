"""Protected images whose payloads travel beside the pixels, for tests: made by the real method, disguised by noise."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.manifest import Manifest, write_manifest
from storage.png import encode_png
from storage.shards import Sample, write_shard
from tasks.method.exact import ExactParameters, ExactProfile
from tasks.method.paper import PaperProfile
from tasks.method.profiles import Fitted, Profile
from tasks.method.seal import DataKey
from tests.tasks.method.images import make

BESIDE = ExactProfile(ExactParameters(13, "shared", "chunk"))
INSIDE = PaperProfile()


def clean_images(count: int) -> NDArray[np.uint8]:
    """uint8 [count, 32, 32, 3]."""
    return np.stack([make("photo", 32, 32, i) for i in range(count)])


def hide(clean: NDArray[np.uint8], key: DataKey, seed: int = 0, profile: Profile = BESIDE) -> list[bytes]:
    """PNG files, one for each clean image. Another seed gives other looks under the same image ids."""
    signs = np.random.default_rng(seed).integers(0, 2, (len(clean), *clean.shape[1:3], 1)) * 2 - 1
    perturbed = np.clip(clean + 13 * signs, 0, 255).astype(np.uint8)
    fitted = [result for result in profile.fit(clean, perturbed) if isinstance(result, Fitted)]
    assert len(fitted) == len(clean)
    ids = [key.image_id("train", f"{i:08d}") for i in range(len(clean))]
    carried = profile.carry(fitted, clean, [i % 2 for i in range(len(clean))], ids, key)
    return [encode_png(c.image, c.spilled) for c in carried]


def saved_anew(png: bytes) -> bytes:
    """The same pixels, as another program writes them: without chunks that it does not know."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def variant_of(folder: Path, dataset: str, pngs: list[bytes]) -> Path:
    """A variant that holds these PNGs, in shards of three."""
    folder.mkdir(parents=True)
    shards = [
        write_shard(
            folder / f"train-{n:06d}.tar",
            [Sample(f"{i:08d}", pngs[i], i % 2) for i in range(3 * n, min(3 * n + 3, len(pngs)))],
        )
        for n in range(-(-len(pngs) // 3))
    ]
    write_manifest(folder, Manifest(dataset=dataset, split="train", classes=["cat", "dog"], shards=shards))
    return folder
