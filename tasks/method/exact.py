"""Profile `exact`: recovered images are bit for bit the clean ones (docs/format.md, format version 2).

The perturbation is drawn from a set that can be taken back (`signs`): its signs, entropy coded, are sealed together
with the label and a digest of the clean pixels, and travel in the pixels by reversible expansion (`expansion`). Where
they do not fit, or where the owner wants it so, they travel beside the pixels (`Carried.spilled`). Restoration compares
the pixels with the sealed digest before it hands them out.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from storage.errors import AlteredImage, ParameterError, PayloadMissing, Refused
from tasks.method import signs
from tasks.method.expansion import EXTENT_UNITS, MAX_THRESHOLD, contract, expand
from tasks.method.header import BITS, MAX_PAYLOAD, PROFILE_EXACT, SIZE, Header, damaged
from tasks.method.profiles import LEAST_ENERGY, Carried, Fitted, Images, LeftOut, Recovered
from tasks.method.seal import TAG_BYTES, DataKey

CARRIERS = {
    "pixels": "in the pixels; beside them where it does not fit",
    "chunk": "beside the pixels, always: nothing but the perturbation changes them",
}
SIGNS = {"shared": 1, "rgb": 3}
_DIGEST_BYTES = 8
_NO_LABEL = 0xFFFF
_FIXED = struct.Struct(f">BH{_DIGEST_BYTES}s{SIZE}s")
_SETTLING = (5, 3, 1, 1)
"""Weights of a sign's own vote (`signs.settle`), one after the other, for images whose payload does not fit."""

_KEPT = 0.95
"""Share of the perturbation's energy that simpler signs must keep."""

_MOST_CODE = MAX_PAYLOAD - _FIXED.size - TAG_BYTES


@dataclass(frozen=True)
class ExactParameters:
    """Parameters of the perturbation's set and of the carrier.

    Attributes:
        amplitude: how far a sample moves, 3 to 127 of 255; less would be no disguise.
        signs: "shared": one a pixel, for R, G and B alike; "rgb": one a sample.
        carrier: one of `CARRIERS`.
    """

    amplitude: int = 13
    signs: str = "shared"
    carrier: str = "pixels"

    def __post_init__(self) -> None:
        for name, value, allowed in (("signs", self.signs, SIGNS), ("carrier", self.carrier, CARRIERS)):
            if value not in allowed:
                raise ParameterError(f"{name} is {value!r}.", f"Choose one of {', '.join(allowed)}.")
        if not 3 <= self.amplitude <= 127:
            raise ParameterError(f"amplitude is {self.amplitude}.", "Choose a value from 3 to 127.")


@dataclass(frozen=True)
class Embedding:
    """What the header says of an image: threshold and extent of the expansion; threshold 0: the payload is beside."""

    threshold: int
    extent: int

    def pack(self) -> bytes:
        """The header's settings."""
        return struct.pack(">BH", self.threshold, self.extent)

    @classmethod
    def of(cls, header: Header) -> "Embedding":
        """Read a header's settings.

        Raises:
            NotProtected: no encoder writes these.
        """
        found = cls(*struct.unpack(">BH", header.settings))
        if found.threshold > MAX_THRESHOLD or (found.threshold == 0 and found.extent):
            raise damaged()
        return found


@dataclass(frozen=True)
class ExactFitted(Fitted):
    """One image after `fit`: its secret is the coded signs."""

    amplitude: int
    per_pixel: int
    how: str = "in the pixels"


@njit(cache=True, nogil=True)
def _fit_batch(clean, wanted, per_pixel, amplitude, looks, codes, sizes, energies):  # type: ignore[no-untyped-def]
    sign = np.empty((clean.shape[1], clean.shape[2], per_pixel), np.int8)
    for i in range(clean.shape[0]):
        signs.nearest(clean[i], wanted[i], sign)
        signs.perturb(clean[i], sign, amplitude, looks[i])
        sizes[i] = signs.encode(clean[i], looks[i], sign, amplitude, codes[i])
        energy = np.int64(0)
        for s, t in zip(clean[i].ravel(), looks[i].ravel()):  # noqa: B905 (numba knows no strict)
            energy += (np.int64(s) - np.int64(t)) ** 2
        energies[i] = energy / clean[i].size


class ExactProfile:
    """Signs of one amplitude, sealed and carried reversibly."""

    name: ClassVar[str] = "exact"
    number: ClassVar[int] = PROFILE_EXACT

    def __init__(self, parameters: ExactParameters | None = None) -> None:
        self.parameters = parameters or ExactParameters()

    def spills(self, header: Header) -> bool:
        """Where the header says so."""
        return Embedding.of(header).threshold == 0

    def error_bound(self, header: Header) -> int:
        """Zero."""
        Embedding.of(header)
        return 0

    def describe(self, header: Header) -> str:
        """Where the payload is."""
        found = Embedding.of(header)
        if not found.threshold:
            return "payload beside the pixels"
        return f"payload in the pixels, threshold {found.threshold}, extent {found.extent / EXTENT_UNITS:.0%}"

    def fit(self, clean: Images, perturbed: Images) -> list[Fitted | LeftOut]:
        """The looks in the set nearest to the perturbed ones; what stays too near to its clean image is left out."""
        p, per_pixel = self.parameters, SIGNS[self.parameters.signs]
        n, height, width, _ = clean.shape
        looks, sizes, energies = np.empty(clean.shape, np.uint8), np.empty(n, np.int64), np.empty(n)
        codes = np.zeros((n, height * width * (per_pixel + 3) + 64), np.uint8)  # a decision takes less than a byte
        if n:
            pair = (np.ascontiguousarray(clean), np.ascontiguousarray(perturbed))
            _fit_batch(*pair, per_pixel, p.amplitude, looks, codes, sizes, energies)
        results: list[Fitted | LeftOut] = []
        for look, code, size, energy in zip(looks, codes, sizes, energies, strict=True):
            if energy < LEAST_ENERGY:
                results.append(LeftOut("the perturbation leaves the image as it is"))
            elif not 0 <= size <= _MOST_CODE:
                results.append(LeftOut("its payload is larger than a header can say"))
            else:
                results.append(ExactFitted(look, code[:size].tobytes(), p.amplitude, per_pixel))
        return results

    def carry(
        self, fitted: list[Fitted], clean: Images, labels: list[int | None], ids: list[bytes], key: DataKey
    ) -> list[Carried]:
        """Seal signs, label and digest; carry them; restore every image once before it is handed out."""
        if not fitted:
            return []
        ours = [f for f in fitted if isinstance(f, ExactFitted)]
        if self.parameters.carrier == "pixels":
            thresholds, extents = _placed(ours, clean)
        else:
            thresholds, extents = np.zeros(len(ours), np.int64), np.zeros(len(ours), np.int64)
        looks = np.stack([f.look for f in ours])
        plain = [
            _plaintext(f, label, image, low)
            for f, label, image, low in zip(ours, labels, clean, _lowest_bits(looks), strict=True)
        ]
        sizes = _payload_sizes(ours)
        blank = np.zeros((len(ours), int(sizes.max())), np.uint8)
        headers = [
            Header(self.number, Embedding(int(t), int(e)).pack(), int(size), key.key_id, image_id)
            for t, e, size, image_id in zip(thresholds, extents, sizes, ids, strict=True)
        ]
        sealed = [key.seal(p, _associated(h.pack(), key, clean)) for p, h in zip(plain, headers, strict=True)]
        images = looks.copy()
        inside = np.flatnonzero(thresholds)
        if len(inside):
            for i in inside:
                blank[i, : sizes[i]] = np.frombuffer(sealed[i], np.uint8)
            images[inside] = expand(looks[inside], blank[inside], sizes[inside])[0]
        _set_lowest_bits(images, [h.pack() for h in headers])
        spilled = [None if t else payload for t, payload in zip(thresholds, sealed, strict=True)]
        self._verify(images, headers, spilled, clean, key)
        return [
            Carried(image, f.how if payload is None else "beside the pixels", int(size), 0, payload)
            for f, image, size, payload in zip(ours, images, sizes, spilled, strict=True)
        ]

    def _verify(
        self, images: Images, headers: list[Header], spilled: list[bytes | None], clean: Images, key: DataKey
    ) -> None:
        for header, result, wanted in zip(headers, self.recover(images, headers, spilled, key), clean, strict=True):
            if isinstance(result, Refused) or not np.array_equal(result.image, wanted):
                raise AssertionError(f"Image {header.image_id.hex()} did not come back: a fault of this software")

    def recover(
        self, images: Images, headers: list[Header], spilled: list[bytes | None], key: DataKey
    ) -> list[Recovered | Refused]:
        """Contract, open, undo the signs, compare with the sealed digest; refusals are one by one."""
        found = [Embedding.of(h) for h in headers]
        thresholds = np.array([e.threshold for e in found], np.int64)
        extents = np.array([e.extent for e in found], np.int64)
        sizes = np.array([h.payload_bytes for h in headers], np.int64)
        inside = np.flatnonzero((thresholds > 0) & (8 * sizes <= images[0].size if len(images) else False))
        looks, payloads = images.copy(), list(spilled)
        looks[inside], carried = contract(images[inside], thresholds[inside], extents[inside], sizes[inside])
        for i, payload in zip(inside, carried, strict=True):
            payloads[i] = payload
        results: list[Recovered | Refused] = []
        for look, header, payload, embedding in zip(looks, headers, payloads, found, strict=True):
            try:
                results.append(_opened(look, header, payload, bool(embedding.threshold), key))
            except Refused as refusal:
                results.append(refusal)
        return results


def _placed(fitted: list[ExactFitted], clean: Images) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Thresholds and extents of the payloads in their images; 0 where one does not fit.

    Where it does not, simpler signs are tried, and where those fit, `fitted` has them from then on: a payload that is
    beside the pixels is easily lost.
    """
    thresholds, extents = _trial(fitted)
    simpler = list(fitted)
    for weight in _SETTLING:
        left = np.flatnonzero(thresholds == 0)
        if not len(left):
            break
        for i in left:
            simpler[i] = _settled(simpler[i], clean[i], weight)
        thresholds[left], extents[left] = _trial([simpler[i] for i in left])
        for i in left[thresholds[left] > 0]:
            fitted[i] = simpler[i]
    return thresholds, extents


def _trial(fitted: list[ExactFitted]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Thresholds and extents: where the bits go does not depend on what they are, so zeros stand in for them."""
    sizes = _payload_sizes(fitted)
    blank = np.zeros((len(fitted), int(sizes.max())), np.uint8)
    thresholds, extents = expand(np.stack([f.look for f in fitted]), blank, sizes)[1:]
    return thresholds, extents


def _payload_sizes(fitted: list[ExactFitted]) -> NDArray[np.int64]:
    """Bytes of the sealed payloads."""
    return np.array([_FIXED.size + len(f.secret) + TAG_BYTES for f in fitted], np.int64)


def _settled(fitted: ExactFitted, clean: Images, weight: int) -> ExactFitted:
    """The same with simpler signs (`signs.settle`); itself where those would move fewer samples.

    At an end of their range samples move one way only, and signs that all point the other way are no protection.
    """
    before = np.empty((*clean.shape[:2], fitted.per_pixel), np.int8)
    after, look, code = np.empty_like(before), np.empty_like(clean), np.empty(2 * clean.size, np.uint8)
    signs.nearest(clean, fitted.look, before)
    signs.settle(before, weight, after)
    signs.perturb(clean, after, fitted.amplitude, look)
    size = signs.encode(clean, look, after, fitted.amplitude, code)
    if not 0 <= size <= _MOST_CODE or _energy(look, clean) < _KEPT * _energy(fitted.look, clean):
        return fitted
    how = "in the pixels, of simpler signs"
    return ExactFitted(look, code[:size].tobytes(), fitted.amplitude, fitted.per_pixel, how)


def _energy(look: Images, clean: Images) -> float:
    return float(np.square(look.astype(np.int16) - clean).mean())


def _opened(look: Images, header: Header, payload: bytes | None, inside: bool, key: DataKey) -> Recovered:
    """Undo one image whose pixels are as they were before the carrier, but for the header's bits."""
    if payload is None:
        if inside:
            raise AlteredImage("The carried bits do not add up: the image was altered.", _AS_PUBLISHED)
        raise PayloadMissing(
            "The payload of this image travels beside its pixels, and is neither in the file nor known here.",
            "Hand in the PNG exactly as published, or have the owner publish the data set's payloads.",
        )
    plain = key.open(payload, _associated(header.pack(), key, look[None]))
    if len(plain) < _FIXED.size:
        raise _impossible()
    how, label, digest, low = _FIXED.unpack_from(plain)
    amplitude, per_pixel = how & 127, 3 if how & 128 else 1
    if not amplitude:
        raise _impossible()
    restored, image = look[None].copy(), np.empty_like(look)
    _set_lowest_bits(restored, [low])
    code = np.frombuffer(bytearray(plain[_FIXED.size :] or b"\0"), np.uint8)
    signs.decode(code, restored[0], per_pixel, amplitude, image)
    if _digest(image) != digest:
        raise AlteredImage("The restored pixels are not the sealed ones: the image was altered.", _AS_PUBLISHED)
    return Recovered(image, None if label == _NO_LABEL else label)


_AS_PUBLISHED = "Hand in the PNG exactly as published."


def _impossible() -> AlteredImage:
    return AlteredImage("The sealed payload is impossible.", "Report this.")


def _plaintext(fitted: ExactFitted, label: int | None, clean: Images, low: bytes) -> bytes:
    how = fitted.amplitude | (128 if fitted.per_pixel == 3 else 0)
    told = _NO_LABEL if label is None or label >= _NO_LABEL else label
    return _FIXED.pack(how, told, _digest(clean), low) + fitted.secret


def _associated(header: bytes, key: DataKey, images: Images) -> list[bytes]:
    """What the seal covers beside the payload, as one component: each costs a pass of CMAC."""
    return [header + struct.pack(">II", *images.shape[1:3]) + key.dataset.encode()]


def _digest(image: Images) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()[:_DIGEST_BYTES]


def _lowest_bits(images: Images) -> list[bytes]:
    """The lowest bits of the samples where the header goes, 27 bytes an image."""
    bits = images.reshape(len(images), -1)[:, :BITS] & np.uint8(1)
    return [row.tobytes() for row in np.packbits(bits, axis=1)]


def _set_lowest_bits(images: Images, rows: list[bytes]) -> None:
    """Write 27 bytes an image there, in place."""
    bits = np.unpackbits(np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), SIZE), axis=1)
    flat = images.reshape(len(images), -1)
    flat[:, :BITS] = (flat[:, :BITS] & np.uint8(254)) | bits
