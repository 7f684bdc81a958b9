"""Protected images for tests: made by the real method, disguised by noise instead of a network's perturbation."""

import numpy as np
from numpy.typing import NDArray

from storage.png import encode_png
from tasks.method.paper import PaperProfile
from tasks.method.profiles import Fitted
from tasks.method.seal import DataKey


def protect_images(clean: NDArray[np.uint8], key: DataKey, seed: int = 0) -> list[bytes]:
    """PNG files, one for each of `clean` (uint8 [n, h, w, 3]); restored within 4 of the clean samples."""
    noise = np.random.default_rng(seed).integers(-24, 25, (len(clean), *clean.shape[1:3], 1))
    perturbed = np.clip(clean + noise, 0, 255).astype(np.uint8)
    profile = PaperProfile()
    fitted = profile.fit(clean, perturbed)
    assert all(isinstance(result, Fitted) for result in fitted)
    ids = [key.image_id("train", f"{seed}-{i}") for i in range(len(clean))]
    kept = [result for result in fitted if isinstance(result, Fitted)]
    return [encode_png(c.image, c.spilled) for c in profile.carry(kept, clean, [None] * len(kept), ids, key)]
