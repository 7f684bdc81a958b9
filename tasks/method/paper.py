"""Profile `paper`: mRIT, Sequence, AES, LSB replacement (the paper, section 2.2), with a ladder of fallbacks.

Recovered samples are within 2^(planes-1) of the clean ones: of the replaced bits nothing is known, so the middle of
their range is taken (the plain paper, which leaves ciphertext in them, is within 2^planes - 1).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from storage.errors import AlteredImage, ParameterError, Refused
from tasks.method import sequence, transform
from tasks.method.carriers import LsbCarrier
from tasks.method.header import MAX_PAYLOAD, PROFILE_PAPER, Header, damaged
from tasks.method.profiles import LEAST_ENERGY, Carried, Fitted, Images, LeftOut, Recovered
from tasks.method.seal import TAG_BYTES, DataKey, digest_rows


@dataclass(frozen=True)
class PaperParameters:
    """Parameters of mRIT and its carrier.

    Attributes:
        block: side of a block in samples: 1, 2, 4 or 8.
        classes: classes of equal volume that pair blocks: 1, 2, 4, 8 or 16; with 1 every block stays in its place.
        step: shifts are multiples of it (lambda of the paper); a multiple of 2^planes, at most 128.
        planes: bit planes the carrier may use, 1 to 3.
    """

    block: int = 1
    classes: int = 1
    step: int = 16
    planes: int = 2

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("block", self.block, (1, 2, 4, 8)),
            ("classes", self.classes, (1, 2, 4, 8, 16)),
            ("planes", self.planes, (1, 2, 3)),
        ):
            if value not in allowed:
                raise ParameterError(f"{name} is {value}.", f"Choose one of {', '.join(map(str, allowed))}.")
        if not 0 < self.step <= 128 or self.step % (1 << self.planes):
            raise ParameterError(
                f"step is {self.step}, with {self.planes} planes.",
                f"Choose a multiple of {1 << self.planes} up to 128.",
            )


@dataclass(frozen=True)
class Geometry:
    """What the header says of an image: the parameters its rung used, and how blocks were paired.

    Packed into 3 bytes: log2 block | planes-1 << 2 | pairing << 4, step, classes.
    """

    block: int
    planes: int
    pairing: int
    step: int
    classes: int

    def pack(self) -> bytes:
        """The header's settings."""
        return bytes(
            [(self.block.bit_length() - 1) | (self.planes - 1) << 2 | self.pairing << 4, self.step, self.classes]
        )

    @classmethod
    def of(cls, header: Header) -> "Geometry":
        """Read a header's settings.

        Raises:
            NotProtected: no encoder writes these.
        """
        packed, step, classes = header.settings
        found = cls(1 << (packed & 3), (packed >> 2 & 3) + 1, packed >> 4, step, classes)
        sound = (
            found.planes in (1, 2, 3)
            and found.pairing in (0, 1, 2)
            and step > 0
            and step % (1 << found.planes) == 0
            and classes in (1, 2, 4, 8, 16)
        )
        if not sound:
            raise damaged()
        return found


@dataclass(frozen=True)
class PaperFitted(Fitted):
    """One image after `fit`: its secret is the Sequence; `rung` says which step of the ladder fitted."""

    rung: str
    geometry: Geometry


@dataclass(frozen=True)
class _Rung:
    name: str
    step: int
    classes: int
    planes: int


def ladder(p: PaperParameters) -> list[_Rung]:
    """The configured parameters, then coarser shifts, identity pairing, more planes: the first that works is taken."""
    top = min(3, p.planes + 1)
    rungs = [
        _Rung("configured", p.step, p.classes, p.planes),
        _Rung("coarser shifts", 2 * p.step, p.classes, p.planes),
        _Rung("identity pairing", p.step, 1, p.planes),
        _Rung("one more plane", p.step, p.classes, top),
        _Rung("three planes", p.step, 1, 3),
        _Rung("three planes, coarser shifts", 2 * p.step, 1, 3),
        _Rung("three planes, coarsest shifts", 4 * p.step, 1, 3),
    ]
    seen: set[tuple[int, int, int]] = set()
    usable = []
    for rung in rungs:
        step = -(-rung.step >> rung.planes) << rung.planes if rung.step % (1 << rung.planes) else rung.step
        what = (step, rung.classes, rung.planes)
        if step <= 128 and what not in seen:
            seen.add(what)
            usable.append(_Rung(rung.name, *what))
    return usable


@njit(cache=True, nogil=True)
def _fit_batch(clean, wanted, b, bits, step, planes, pairing, looks, codes, sizes, pairings, energies):  # type: ignore[no-untyped-def]
    for i in range(clean.shape[0]):
        used, source, target, turn, shift, edge = transform.transform(
            clean[i], wanted[i], b, 1 << bits, step, planes, pairing, looks[i]
        )
        energy = np.int64(0)
        for s, t in zip(clean[i].ravel(), looks[i].ravel()):  # noqa: B905 (numba knows no strict)
            energy += (np.int64(s) - np.int64(t)) ** 2
        energies[i] = energy / clean[i].size
        pairings[i] = used
        sizes[i] = sequence.encode(codes[i], b, bits, clean.shape[2] // b, used, source, target, turn, shift, edge)


@njit(cache=True, nogil=True)
def _recover_one(image, code, b, bits, step, planes, pairing, out):  # type: ignore[no-untyped-def]
    source, target, turn, shift, edge = sequence.decode(code, image.shape[0], image.shape[1], b, bits, pairing)
    if pairing == transform.SORTED:
        target = transform.sorted_classes(image, b, 1 << bits, planes)
    return transform.restore(image, b, 1 << bits, step, source, target, turn, shift, edge, out)


def _bits(classes: int) -> int:
    return classes.bit_length() - 1


class PaperProfile:
    """The paper's method, one plane set and block size at a time."""

    name: ClassVar[str] = "paper"
    number: ClassVar[int] = PROFILE_PAPER

    def __init__(self, parameters: PaperParameters | None = None) -> None:
        self.parameters = parameters or PaperParameters()

    def spills(self, header: Header) -> bool:
        """Never."""
        return False

    def error_bound(self, header: Header) -> int:
        """2^(planes-1): half of what the replaced bits could say."""
        return 1 << (Geometry.of(header).planes - 1)

    def describe(self, header: Header) -> str:
        """Block size, pairing and planes."""
        g = Geometry.of(header)
        pairing = ("sorted", "identity", "explicit")[g.pairing]
        return f"{g.block}x{g.block} blocks, {pairing} pairing, step {g.step}, {g.planes} planes"

    def fit(self, clean: Images, perturbed: Images) -> list[Fitted | LeftOut]:
        """Climb the ladder with whole batches: each rung tries only the images that no rung before it fitted."""
        results: list[Fitted | LeftOut] = [LeftOut("")] * len(clean)
        waiting = np.arange(len(clean))
        reasons = np.full(len(clean), "the Sequence does not fit into the bit planes", dtype=object)
        for rung in ladder(self.parameters):
            if not len(waiting):
                break
            fitted, flat = self._try(rung, clean[waiting], perturbed[waiting])
            for i, candidate in zip(waiting, fitted, strict=True):
                results[i] = candidate or LeftOut("")
            reasons[waiting[flat]] = "the perturbation leaves the image as it is"
            waiting = waiting[[candidate is None for candidate in fitted]]
        for i in waiting:
            results[i] = LeftOut(str(reasons[i]))
        return results

    def _try(self, rung: _Rung, clean: Images, wanted: Images) -> tuple[list[PaperFitted | None], NDArray[np.bool_]]:
        n, height, width, _ = clean.shape
        block = self.parameters.block
        capacity = min(LsbCarrier(rung.planes).capacity(height, width), MAX_PAYLOAD) - TAG_BYTES
        pairing = transform.IDENTITY if rung.classes == 1 or block == 1 else transform.SORTED
        bits = 0 if pairing == transform.IDENTITY else _bits(rung.classes)
        looks = np.empty_like(clean)
        codes = np.zeros((n, max(capacity, 1)), np.uint8)
        sizes, pairings, energies = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.float64)
        _fit_batch(
            np.ascontiguousarray(clean), np.ascontiguousarray(wanted), block, bits, rung.step, rung.planes, pairing,
            looks, codes, sizes, pairings, energies,
        )  # fmt: skip
        flat = energies < LEAST_ENERGY
        fits = (sizes >= 0) & (sizes <= capacity) & ~flat
        return [
            PaperFitted(
                looks[i],
                codes[i, : sizes[i]].tobytes(),
                rung.name,
                Geometry(block, rung.planes, int(pairings[i]), rung.step, 1 << bits),
            )
            if fits[i]
            else None
            for i in range(n)
        ], flat

    def carry(
        self, fitted: list[Fitted], clean: Images, labels: list[int | None], ids: list[bytes], key: DataKey
    ) -> list[Carried]:
        """Seal each Sequence, replace the bits, and decode every image once before it is handed out."""
        if not fitted:
            return []
        ours = [f for f in fitted if isinstance(f, PaperFitted)]
        images = np.stack([f.look for f in ours])
        headers = [
            Header(self.number, f.geometry.pack(), len(f.secret) + TAG_BYTES, key.key_id, image_id)
            for f, image_id in zip(ours, ids, strict=True)
        ]
        for planes, group in _grouped(headers):
            carrier = LsbCarrier(planes)
            part = [headers[i] for i in group]
            digests = _digests(carrier, images[group], part)
            packed = [h.pack() for h in part]
            payloads = [
                key.seal(ours[i].secret, _associated(head, key, images, digest))
                for i, head, digest in zip(group, packed, digests, strict=True)
            ]
            chosen = images[group]
            carrier.embed(chosen, packed, payloads)
            images[group] = chosen
        self._verify(images, headers, ours, clean)
        return [
            Carried(image, f.rung, header.payload_bytes, LsbCarrier(f.geometry.planes).capacity(*image.shape[:2]))
            for image, f, header in zip(images, ours, headers, strict=True)
        ]

    def _verify(self, images: Images, headers: list[Header], fitted: list[PaperFitted], clean: Images) -> None:
        recovered = self._undo(images, headers, [f.secret for f in fitted])
        for header, image, wanted in zip(headers, recovered, clean, strict=True):
            if image is None or np.abs(image.astype(np.int16) - wanted).max() > self.error_bound(header):
                raise AssertionError(
                    f"mRIT did not decode its own image {header.image_id.hex()}: a fault of this software"
                )

    def _undo(self, images: Images, headers: list[Header], sequences: list[bytes]) -> list[Images | None]:
        """Inverse transform of opened images; None where the Sequence is impossible."""
        results: list[Images | None] = [None] * len(images)
        for planes, group in _grouped(headers):
            sizes = np.array([headers[i].payload_bytes for i in group])
            middles = LsbCarrier(planes).clear(images[group], sizes, middle=True)
            for i, middle in zip(group, middles, strict=True):
                g, out = Geometry.of(headers[i]), np.empty_like(middle)
                code = np.frombuffer(bytearray(sequences[i] or b"\0"), np.uint8)
                if _recover_one(middle, code, g.block, _bits(g.classes), g.step, g.planes, g.pairing, out):
                    results[i] = out
        return results

    def recover(
        self, images: Images, headers: list[Header], spilled: list[bytes | None], key: DataKey
    ) -> list[Recovered | Refused]:
        """Open each seal, then undo; one image's refusal does not touch the others."""
        results: list[Recovered | Refused] = [AlteredImage("", "")] * len(images)
        opened: list[int] = []
        sequences: list[bytes] = []
        for planes, group in _grouped(headers):
            carrier = LsbCarrier(planes)
            capacity = carrier.capacity(*images.shape[1:3])
            sound = [i for i in group if TAG_BYTES <= headers[i].payload_bytes <= capacity]
            for i in set(group) - set(sound):
                results[i] = AlteredImage("The header names an impossible payload.", "Hand in the published PNG.")
            part = [headers[i] for i in sound]
            sizes = np.array([h.payload_bytes for h in part], np.int64)
            payloads = carrier.extract(images[sound], sizes)
            for i, digest, payload in zip(sound, _digests(carrier, images[sound], part), payloads, strict=True):
                try:
                    sequences.append(key.open(payload, _associated(headers[i].pack(), key, images, digest)))
                    opened.append(i)
                except AlteredImage as refusal:
                    results[i] = refusal
        undone = self._undo(images[opened], [headers[i] for i in opened], sequences)
        for i, image in zip(opened, undone, strict=True):
            results[i] = (
                Recovered(image)
                if image is not None
                else AlteredImage("The sealed Sequence is impossible.", "Report this.")
            )
        return results


def _associated(header: bytes, key: DataKey, images: Images, digest: bytes) -> list[bytes]:
    """What the seal covers beside the Sequence."""
    return [header, key.dataset.encode(), struct.pack(">II", *images.shape[1:3]), digest]


def _digests(carrier: LsbCarrier, images: Images, headers: list[Header]) -> list[bytes]:
    """SHA-256 of all the bits of each image that carry neither header nor ciphertext."""
    cleared = carrier.clear(images, np.array([h.payload_bytes for h in headers], np.int64), middle=False)
    return digest_rows(cleared.data.cast("B") if cleared.size else b"", int(np.prod(images.shape[1:])))


def _grouped(headers: list[Header]) -> Iterator[tuple[int, list[int]]]:
    """(planes, indices of the headers that have so many)."""
    planes = [Geometry.of(h).planes for h in headers]
    for value in sorted(set(planes)):
        yield value, [i for i, p in enumerate(planes) if p == value]
