"""Restore samples: read each header, find the key it asks for, open the seal, undo the transform.

Nothing about one image touches another: what can not be restored becomes a refusal with its reason, the rest is served.
Images are decoded a portion at a time, so that a shard of PNGs that are small as files and huge as pixels does not fill
the memory.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage.errors import DmcpError, EnvironmentFault, InputError, Refused, public_text
from storage.png import decode_png, encode_png, read_payload
from storage.shards import Sample
from tasks.batches import RESTORED_BYTES, by_shape, portions, room_for
from tasks.method.carriers import read_headers
from tasks.method.header import Header
from tasks.method.known import parse_header, profile_of
from tasks.method.profiles import Profile, Recovered
from tasks.method.seal import DataKey

FindPayload = Callable[[DataKey, bytes], Iterable[bytes]]
"""Key and image id to the payloads that the owner published beside the shards, the likeliest first: versions that were
protected under one key differ in them. Asked when the file has none. InputError or Refused while they are gone through
refuses the one image; EnvironmentFault ends it all, since trying again may help.
"""

FindKey = Callable[[str], DataKey]
"""Key id (16 hex digits) to key. Raises UnknownKey, ForeignImage or NotAuthorised for keys this request may not use;
EnvironmentFault ends it all, since trying again may help.
"""


@dataclass(frozen=True)
class Refusal:
    """Why one image was not restored: the class of the error (for machines) and its text (for people).

    `detail` is the whole text, which may name the service's paths and addresses: for the log.
    """

    key: str
    error: str
    reason: str
    detail: str = ""

    @classmethod
    def of(cls, key: str, error: DmcpError) -> "Refusal":
        """From an error of our tree."""
        return cls(key, type(error).__name__, public_text(error), str(error))


@dataclass(frozen=True)
class Origin:
    """What is known for sure of a restored image: the data set whose key opened it, and the label sealed in it."""

    dataset: str
    label: int | None


@dataclass
class RestoredBatch:
    """Recovered samples in the order of the request with their origins, refusals, and seconds by step."""

    samples: list[Sample] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def extend(self, other: "RestoredBatch") -> None:
        """Add another batch to this one."""
        self.samples += other.samples
        self.origins += other.origins
        self.refusals += other.refusals
        for step, seconds in other.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds


def nothing_published(key: DataKey, image_id: bytes) -> Iterable[bytes]:
    """A `FindPayload` for where only what the files hold is known."""
    return ()


def restore_samples(
    samples: Sequence[Sample], find_key: FindKey, find_payload: FindPayload = nothing_published
) -> RestoredBatch:
    """Restore what can be restored of protected samples (any subset, order and names).

    A sample keeps its label; where it has none, it gets the one that was sealed with it, if there is one.

    Raises:
        EnvironmentFault: keys (`find_key`) or published payloads (`find_payload`) are out of reach.
    """
    batch, keys = RestoredBatch(seconds={"decode": 0.0, "restore": 0.0, "encode": 0.0}), _asked_once(find_key)
    for portion in portions(samples, RESTORED_BYTES):
        with room_for(portion):
            batch.extend(_restore_portion(portion, keys, find_payload))
    return batch


def _asked_once(find_key: FindKey) -> FindKey:
    """The same answers, each key id asked for once: a vault may take a second, and images may have many shapes."""
    found: dict[str, DataKey | DmcpError] = {}

    def find(key_id: str) -> DataKey:
        if key_id not in found:
            try:
                found[key_id] = find_key(key_id)
            except EnvironmentFault:
                raise
            except DmcpError as error:
                found[key_id] = _bare(error)
        key = found[key_id]
        if isinstance(key, DmcpError):
            raise key
        return key

    return find


def _restore_portion(samples: Sequence[Sample], find_key: FindKey, find_payload: FindPayload) -> RestoredBatch:
    batch = RestoredBatch()
    clock = time.perf_counter
    started = clock()
    images: list[NDArray[np.uint8]] = []
    decoded: list[int] = []
    refused: dict[int, DmcpError] = {}
    for i, sample in enumerate(samples):
        try:
            images.append(decode_png(sample.png, sample.key))
            decoded.append(i)
        except DmcpError as error:
            refused[i] = _bare(error)
    opened = clock()
    recovered: dict[int, tuple[Recovered, str]] = {}
    for group in by_shape(images):
        stack = np.stack([images[i] for i in group])
        spilled = [read_payload(samples[decoded[i]].png) for i in group]
        for i, result in zip(group, _restore_images(stack, find_key, spilled, find_payload), strict=True):
            if isinstance(result, DmcpError):
                refused[decoded[i]] = _bare(result)
            else:
                recovered[decoded[i]] = result
    undone = clock()
    for i in sorted(recovered):
        sample, (found, dataset) = samples[i], recovered[i]
        label = found.label if sample.label is None else sample.label
        batch.samples.append(Sample(sample.key, encode_png(found.image), label))
        batch.origins.append(Origin(dataset, found.label))
    batch.refusals = [Refusal.of(samples[i].key, refused[i]) for i in sorted(refused)]
    batch.seconds = {"decode": opened - started, "restore": undone - opened, "encode": clock() - undone}
    return batch


def _bare(error: DmcpError) -> DmcpError:
    """An error that is kept, without the frames that it passed: they would keep whole stacks of images alive."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def restore_images(
    images: NDArray[np.uint8],
    find_key: FindKey,
    spilled: Sequence[bytes | None] | None = None,
    find_payload: FindPayload = nothing_published,
) -> list[Recovered | DmcpError]:
    """The images that protected ones of one shape (uint8 [n, h, w, 3]) hide, or why not.

    Args:
        spilled: for each image the payload that came beside its pixels, or None.

    Raises:
        EnvironmentFault: as `restore_samples`.
    """
    results = _restore_images(images, find_key, spilled, find_payload)
    return [result if isinstance(result, DmcpError) else result[0] for result in results]


def _restore_images(
    images: NDArray[np.uint8],
    find_key: FindKey,
    spilled: Sequence[bytes | None] | None,
    find_payload: FindPayload,
) -> list[tuple[Recovered, str] | DmcpError]:
    """The same, with the data sets of the keys that opened them."""
    results: list[tuple[Recovered, str] | DmcpError] = [DmcpError("", "")] * len(images)
    payloads = list(spilled) if spilled is not None else [None] * len(images)
    groups: dict[tuple[str, int], list[int]] = {}
    headers: dict[int, Header] = {}
    for i, raw in enumerate(read_headers(images)):
        try:
            headers[i] = parse_header(raw)
            groups.setdefault((headers[i].key_id.hex(), headers[i].profile), []).append(i)
        except DmcpError as error:
            results[i] = error
    for (key_id, _), group in groups.items():
        try:
            key = find_key(key_id)
        except EnvironmentFault:  # trying again may help: no refusal
            raise
        except DmcpError as error:
            for i in group:
                results[i] = error
            continue
        part = [headers[i] for i in group]
        found = _recover(profile_of(part[0]), images[group], part, [payloads[i] for i in group], key, find_payload)
        for i, result in zip(group, found, strict=True):
            results[i] = result if isinstance(result, DmcpError) else (result, key.dataset)
    return results


def _recover(
    profile: Profile,
    images: NDArray[np.uint8],
    headers: list[Header],
    payloads: list[bytes | None],
    key: DataKey,
    find_payload: FindPayload,
) -> list[Recovered | DmcpError]:
    """Recover images of one profile and key with what came with them, then the rest with published payloads, in rounds.

    An image none of whose candidates opens keeps the refusal of the last; one without a candidate that of having none.
    """
    results: list[Recovered | DmcpError] = list(profile.recover(images, headers, payloads, key))
    left = {
        i: _candidates(header, key, find_payload, payload)
        for i, (header, payload) in enumerate(zip(headers, payloads, strict=True))
        if isinstance(results[i], DmcpError) and profile.spills(header)
    }
    while left:
        tried: dict[int, bytes | None] = {}
        for i, candidates in left.items():
            try:
                tried[i] = next(candidates)
            except StopIteration:
                pass
            except (InputError, Refused) as error:
                results[i] = error
        if tried:
            rows = list(tried)
            opened = profile.recover(images[rows], [headers[i] for i in rows], list(tried.values()), key)
            for i, result in zip(rows, opened, strict=True):
                results[i] = result
        left = {i: left[i] for i in tried if isinstance(results[i], DmcpError)}
    return results


def _candidates(header: Header, key: DataKey, find_payload: FindPayload, tried: bytes | None) -> Iterator[bytes]:
    """The published payloads of an image that have the size which its header names, but for the one tried already."""
    return (p for p in find_payload(key, header.image_id) if len(p) == header.payload_bytes and p != tried)


def read_header(png: bytes, name: str) -> Header:
    """The clear header of one protected PNG.

    Raises:
        UnsupportedImage, NotProtected, UnsupportedFormat.
    """
    return parse_header(read_headers(decode_png(png, name)[None])[0])


def count_reasons(refusals: Sequence[Refusal]) -> dict[str, int]:
    """How many of each class of error."""
    return dict(Counter(r.error for r in refusals).most_common())
