"""Payloads that travel beside the pixels: the file of a published version that holds them, and finding them there.

    {"image":"0123456789abcdef","payload":"BASE64"}

is a line of `payloads.jsonl`, for each image whose header says that its payload does not travel in the pixels, in the
order of the image ids. The PNG files hold the same in a chunk of their own, which is lost when one is saved anew: then
restoration finds it here. Every payload is sealed, so nothing in the file is secret, and nothing is believed unless its
seal opens.
"""

import base64
import json
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from storage.errors import CorruptManifest, NotFound
from storage.objects import ObjectStore
from storage.versions import PAYLOADS_NAME, list_payloads
from tasks.method.seal import DataKey


def _unpacked(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("a payload is text")
    return base64.b64decode(value, validate=True)


class _Line(BaseModel):
    """One image's entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field(pattern=r"^[0-9a-f]{16}$")
    payload: Annotated[bytes, BeforeValidator(_unpacked)] = Field(min_length=1)


def dump_payloads(found: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The file's content for (image id, payload) pairs in any order; the same pairs give the same bytes."""
    lines = (
        json.dumps({"image": image.hex(), "payload": base64.b64encode(payload).decode()}, separators=(",", ":"))
        for image, payload in sorted(set(found))
    )
    return "".join(f"{line}\n" for line in lines).encode()


def parse_payloads(lines: Iterable[bytes], name: str) -> dict[bytes, list[bytes]]:
    """Image id to payloads (one, unless two images have one id), from the file's lines.

    Args:
        lines: of the file, with or without their ends.
        name: what to call the file in a message.

    Raises:
        CorruptManifest: a line is not what `dump_payloads` writes.
    """
    found: dict[bytes, list[bytes]] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = _Line.model_validate_json(line)
        except ValidationError as error:
            raise CorruptManifest(
                f"{name} is damaged: line {number} names no image with its payload.",
                "Publish the same variant again: that replaces the file.",
            ) from error
        found.setdefault(bytes.fromhex(entry.image), []).append(entry.payload)
    return found


class PublishedPayloads:
    """Finds payloads in the published versions of a key's data set; a `tasks.restore.FindPayload`.

    What is published is listed once for each data set, and each version's file is fetched once, when it is first
    needed: use one object for a request and another one for the next. It may be used from several threads.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._names: dict[str, list[str]] = {}
        self._files: dict[str, dict[bytes, list[bytes]] | CorruptManifest] = {}

    def __call__(self, key: DataKey, image_id: bytes) -> Iterator[bytes]:
        """The image's payloads, the newest version's first, each once; none where nothing is published.

        Raises:
            CorruptManifest: when all others were given: a version's file is damaged.
            ObjectStoreError: the server failed.
        """
        given: set[bytes] = set()
        damaged: CorruptManifest | None = None
        for name in self._named(key.dataset):
            file = self._file(name)
            if isinstance(file, CorruptManifest):
                damaged = damaged or file
                continue
            for payload in file.get(image_id, ()):
                if payload not in given:
                    given.add(payload)
                    yield payload
        if damaged is not None:
            raise CorruptManifest(damaged.what, damaged.cure)  # a fresh one: several threads may be at this

    def _named(self, dataset: str) -> list[str]:
        with self._lock:
            if dataset not in self._names:
                self._names[dataset] = list_payloads(self._store, dataset)
            return self._names[dataset]

    def _file(self, name: str) -> dict[bytes, list[bytes]] | CorruptManifest:
        with self._lock:
            if name not in self._files:
                try:
                    self._files[name] = self._fetched(name)
                except CorruptManifest as error:
                    self._files[name] = error
            return self._files[name]

    def _fetched(self, name: str) -> dict[bytes, list[bytes]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, PAYLOADS_NAME)
            try:
                self._store.get_file(name, path)
            except NotFound:  # removed since it was listed
                return {}
            with path.open("rb") as lines:
                return parse_payloads(lines, self._store.where(name))
