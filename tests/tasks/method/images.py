"""Images for property tests: random ones and the kinds that break things."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

KINDS = ("noise", "flat", "black", "white", "checkerboard", "gradient", "photo", "saturated")
LOOKS = ("signs", "signs a sample", "noise", "waves", "stripes", "another image", "the same")


def make(kind: str, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """One uint8 [height, width, 3] image of a kind."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind in ("flat", "black", "white"):
        value = {"flat": rng.integers(256), "black": 0, "white": 255}[kind]
        return np.full((height, width, 3), value, np.uint8)
    if kind == "checkerboard":
        return np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, 2)
    if kind == "gradient":
        return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], 2).astype(np.uint8)
    smooth = sum(
        rng.normal(0, 40, 3) * np.sin(y[..., None] / rng.uniform(2, 20) + x[..., None] / rng.uniform(2, 20))
        for _ in range(4)
    )
    gain = 4 if kind == "saturated" else 1
    return np.clip(128 + gain * (smooth + rng.normal(0, 4, (height, width, 3))), 0, 255).astype(np.uint8)


def perturb(image: NDArray[np.uint8], seed: int, amplitude: int = 18) -> NDArray[np.uint8]:
    """A stand-in for a perturbation of this bound: what the transform does must not depend on its shape."""
    noise = np.random.default_rng(seed).integers(-amplitude, amplitude + 1, image.shape)
    return np.clip(image.astype(np.int64) + noise, 0, 255).astype(np.uint8)


def disguise(image: NDArray[np.uint8], look: str, seed: int, amplitude: int) -> NDArray[np.uint8]:
    """A wanted look of a kind: what a profile makes of it must come back whatever it is."""
    height, width, _ = image.shape
    rng = np.random.default_rng(seed)
    if look == "the same":
        return image.copy()
    if look == "another image":
        return make("photo", height, width, seed)
    if look == "noise":
        return perturb(image, seed, amplitude)
    y, x = np.mgrid[:height, :width]
    if look == "waves":
        across, down, phase = rng.uniform(-2, 2), rng.uniform(-2, 2), rng.uniform(0, 6)
        sign = np.where(np.sin(across * x + down * y + phase) >= 0, 1, -1)[..., None]
    elif look == "stripes":
        sign = 1 - 2 * ((seed % 5 * x + seed % 3 * y + seed) // 4 % 2)[..., None]
    else:
        sign = 1 - 2 * rng.integers(0, 2, (height, width, 1 if look == "signs" else 3))
    return np.clip(image + amplitude * sign, 0, 255).astype(np.uint8)


@st.composite
def images(draw: st.DrawFn, largest: int = 48, widest: int | None = None) -> NDArray[np.uint8]:
    """Any kind, sides from 16, odd ones too; at most `largest` high and `widest` (else `largest`) wide."""
    height, width = draw(st.integers(16, largest)), draw(st.integers(16, widest or largest))
    return make(draw(st.sampled_from(KINDS)), height, width, draw(st.integers(0, 2**32 - 1)))
