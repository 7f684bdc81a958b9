"""What comes of wrong keys and mixed-up images: each must be refused, or give the clean image; never anything else.

Images are protected by the real code and then restored in every wrong way that `TRIALS` names, all seeded. Restoring is
`tasks.restore.restore_images`, as for a request, with a key store that hands out the wrong key for any key id: so the
refusal is that of the seal or the digest, not of a look-up.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from storage.errors import ParameterError
from tasks.evidence.records import KeyTrial
from tasks.learning.training import LabelledImages
from tasks.method.carriers import LsbCarrier, read_headers
from tasks.method.exact import Embedding
from tasks.method.expansion import contract, expand
from tasks.method.header import BITS, PROFILE_EXACT, Header
from tasks.method.known import parse_header
from tasks.method.paper import Geometry
from tasks.method.profiles import Fitted, Recovered
from tasks.method.seal import SECRET_BYTES, DataKey
from tasks.protect import ExactMethod, Method
from tasks.restore import restore_images

Images = NDArray[np.uint8]

SPLIT = "keys"
"""Split name in the ids of the images that are protected here."""


@dataclass(frozen=True)
class KeyCounts:
    """How much is tried.

    Attributes:
        images: protected for the trials, at most; all of one size.
        keys: random other keys, each on all images.
        pairs: (A, B) of which B gets A's payload, and A's image id.
        bits: single flipped bits of the pixels, over all images.
    """

    images: int = 16
    keys: int = 64
    pairs: int = 64
    bits: int = 512


@dataclass(frozen=True)
class _Published:
    """Protected images, all of one shape, what travels beside them, and what the right key makes of them."""

    images: Images
    payloads: list[bytes | None]
    restored: Images
    headers: list[Header]


Try = tuple[Images, Sequence[bytes | None], NDArray[np.int64]]
"""Images, what travels beside them, and the row of the published image that each comes from."""


def try_keys(
    protection: str,
    method: Method,
    clean: LabelledImages,
    key: DataKey,
    *,
    perturbed: Images | None = None,
    seed: int = 0,
    counts: KeyCounts | None = None,
) -> list[KeyTrial]:
    """All trials on some images of one protection.

    Args:
        protection: its name, for the records.
        clean: uint8 [N, H, W, 3] and labels; the first `counts.images` are used.
        key: the right one.
        perturbed: what the perturbation made of the clean images; None: random signs of its size, since what keys do
            does not depend on it.
        seed: draws keys, pairs and bits.

    Raises:
        ParameterError: fewer than two images could be protected.
    """
    counts, random = counts or KeyCounts(), np.random.RandomState(seed)
    images = clean.images[: counts.images]
    looks = _disguised(images, method, random) if perturbed is None else perturbed[: counts.images]
    labels = [int(label) for label in clean.labels[: counts.images]]
    published = [_protected(way, images, looks, labels, key) for way in _ways(method)]
    trials = {name: _Tally(name, protection) for name in TRIALS}
    for part in published:
        everything = _whole(part)
        for name, others in _other_keys(key, random, counts).items():
            for other in others:
                trials[name].restore(part, everything, other)
        for _ in range(counts.pairs):
            source, target = (int(row) for row in random.permutation(len(part.images))[:2])
            for attempt in _replayed(part, source, target):
                trials["replayed-payload"].restore(part, attempt, key)
            trials["another-image-id"].restore(part, _renamed(part, source, target), key)
        trials["flipped-bit"].restore(part, _flipped(part, random, counts.bits), key)
    return [trial.record() for trial in trials.values()]


TRIALS = (
    "wrong-key",
    "one-bit-wrong-key",
    "swapped-dataset",
    "replayed-payload",
    "another-image-id",
    "flipped-bit",
)
"""Random other keys; the key with each of its 256 bits flipped; the key under another data set's name; the payload of
one image in or beside another; the image id of another in the header; single bits of the pixels flipped."""


class _Tally:
    """One trial's counts."""

    def __init__(self, trial: str, protection: str) -> None:
        self.trial, self.protection = trial, protection
        self.reasons: Counter[str] = Counter()
        self.tried = self.exact = self.wrong = 0

    def restore(self, published: _Published, attempt: Try, key: DataKey) -> None:
        """Restore all images of one attempt with a key and count what comes of it."""
        images, payloads, rows = attempt
        for result, row in zip(restore_images(images, lambda _: key, payloads), rows, strict=True):
            self.tried += 1
            if isinstance(result, Exception):
                self.reasons[type(result).__name__] += 1
            elif np.array_equal(result.image, published.restored[row]):
                self.exact += 1
            else:
                self.wrong += 1

    def record(self) -> KeyTrial:
        return KeyTrial(
            trial=self.trial,
            protection=self.protection,
            tried=self.tried,
            refused=sum(self.reasons.values()),
            exact=self.exact,
            wrong=self.wrong,
            reasons=dict(sorted(self.reasons.items())),
        )


def _other_keys(key: DataKey, random: np.random.RandomState, counts: KeyCounts) -> dict[str, Iterator[DataKey]]:
    """The keys that are not the right one, by trial."""
    secret = key._secret
    return {
        "wrong-key": (DataKey(random.bytes(SECRET_BYTES), key.dataset) for _ in range(counts.keys)),
        "one-bit-wrong-key": (DataKey(_with_flipped(secret, bit), key.dataset) for bit in range(8 * SECRET_BYTES)),
        "swapped-dataset": (DataKey(secret, name) for name in (f"{key.dataset}-2", key.dataset[:-1], "")),
    }


def _ways(method: Method) -> list[Method]:
    """Of profile `exact` both carriers, since payloads are moved in other ways."""
    if not isinstance(method, ExactMethod) or method.set.carrier == "chunk":
        return [method]
    return [method, replace(method, set=replace(method.set, carrier="chunk"))]


def _disguised(images: Images, method: Method, random: np.random.RandomState) -> Images:
    """Random signs of the size that the method's perturbation has, alike for two pixels: cheap to carry."""
    size = method.set.amplitude if isinstance(method, ExactMethod) else round(255 * method.perturbation.epsilon)
    shape = (len(images), images.shape[1], -(-images.shape[2] // 2), 1)
    signs = np.repeat(random.randint(0, 2, shape) * 2 - 1, 2, axis=2)[:, :, : images.shape[2]]
    return np.clip(images + size * signs, 0, 255).astype(np.uint8)


def _protected(method: Method, images: Images, looks: Images, labels: list[int], key: DataKey) -> _Published:
    """Protect what can be protected, and restore it once with the right key."""
    profile = method.profile
    fitted = list(enumerate(profile.fit(images, looks)))
    good, kept = [i for i, f in fitted if isinstance(f, Fitted)], [f for _, f in fitted if isinstance(f, Fitted)]
    if len(good) < 2:
        raise ParameterError("Fewer than two images could be protected.", "Hand in more images.")
    told: list[int | None] = [labels[i] for i in good]
    ids = [key.image_id(SPLIT, str(i)) for i in good]
    carried = profile.carry(kept, images[good], told, ids, key)
    shown, payloads = np.stack([c.image for c in carried]), [c.spilled for c in carried]
    headers = [parse_header(raw) for raw in read_headers(shown)]
    found = [r for r in restore_images(shown, lambda _: key, payloads) if isinstance(r, Recovered)]
    if len(found) < len(shown):
        raise AssertionError("The right key does not restore its own images: a fault of this software")
    return _Published(shown, payloads, np.stack([r.image for r in found]), headers)


def _whole(part: _Published) -> Try:
    return part.images, part.payloads, np.arange(len(part.images))


def _replayed(part: _Published, source: int, target: int) -> Iterator[Try]:
    """The payload of one image in or beside another: under the other's own header, and together with its own."""
    payload, beside = _payload(part, source), part.payloads[target] is not None
    if not beside and part.headers[target].profile == PROFILE_EXACT:
        spliced = _spliced(part, target, payload)
        if spliced is not None:
            yield spliced[None], [None], np.array([target])
        return
    for head in (replace(part.headers[target], payload_bytes=len(payload)), part.headers[source]):
        image = part.images[target].copy()
        if head.profile == PROFILE_EXACT and Embedding.of(head).threshold:
            continue  # a header that sends the decoder into the pixels leaves the payload beside unread
        if head.profile != PROFILE_EXACT:
            _embed_bits(image, head, payload)
        yield _headed(image, head)[None], [payload if beside else None], np.array([target])


def _payload(part: _Published, row: int) -> bytes:
    """The sealed payload of an image, wherever it travels."""
    beside, header, image = part.payloads[row], part.headers[row], part.images[row : row + 1]
    if beside is not None:
        return beside
    sizes = np.array([header.payload_bytes], np.int64)
    if header.profile != PROFILE_EXACT:
        return LsbCarrier(Geometry.of(header).planes).extract(image, sizes)[0]
    carried = contract(image, *_where(header), sizes)[1][0]
    assert carried is not None  # these images came back
    return carried


def _spliced(part: _Published, target: int, payload: bytes) -> Images | None:
    """An image whose pixels carry another payload by expansion, under its own image id; None where it does not fit."""
    header = part.headers[target]
    look = contract(part.images[target : target + 1], *_where(header), np.array([header.payload_bytes], np.int64))[0]
    bits = np.frombuffer(payload, np.uint8)[None]
    image, thresholds, extents = expand(look, bits, np.array([len(payload)], np.int64))
    if not thresholds[0]:
        return None
    settings = Embedding(int(thresholds[0]), int(extents[0])).pack()
    return _headed(image[0], replace(header, settings=settings, payload_bytes=len(payload)))


def _where(header: Header) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    found = Embedding.of(header)
    return np.array([found.threshold], np.int64), np.array([found.extent], np.int64)


def _embed_bits(image: Images, head: Header, payload: bytes) -> None:
    carrier = LsbCarrier(Geometry.of(head).planes)
    room = carrier.capacity(*image.shape[:2])
    carrier.embed(image[None], [head.pack()], [payload[:room]])


def _headed(image: Images, head: Header) -> Images:
    """A copy under another header."""
    result = image.copy()
    flat = result.reshape(-1)
    flat[:BITS] = (flat[:BITS] & 254) | np.unpackbits(np.frombuffer(head.pack(), np.uint8))
    return result


def _renamed(part: _Published, source: int, target: int) -> Try:
    """An image under the id of another, with a CRC that fits."""
    head = replace(part.headers[target], image_id=part.headers[source].image_id)
    return _headed(part.images[target], head)[None], [part.payloads[target]], np.array([target])


def _flipped(part: _Published, random: np.random.RandomState, count: int) -> Try:
    """So many copies, each with one bit flipped: of the pixels, or every second time of the payload beside them."""
    rows = random.randint(0, len(part.images), count)
    images, payloads = part.images[rows], [part.payloads[row] for row in rows]
    for i in range(count):
        beside = payloads[i]
        if beside is not None and i % 2:
            payloads[i] = _with_flipped(beside, random.randint(0, 8 * len(beside)))
        else:
            images[i].reshape(-1)[random.randint(0, images[i].size)] ^= np.uint8(1 << random.randint(0, 8))
    return images, payloads, rows


def _with_flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
