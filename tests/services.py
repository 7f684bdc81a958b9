"""Real services and real variants for tests. Import the fixtures in a package's conftest.py to use them there."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from storage.errors import NotFound, PublicationConflict
from storage.manifest import Manifest, shard_name, write_manifest
from storage.objects import ObjectStore
from storage.png import encode_png
from storage.server import ServerAddress, running_server
from storage.shards import Sample, write_shard


@pytest.fixture(scope="session")
def object_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HOME of the session's object server: Settings(home=object_home) leads there."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def object_server(object_home: Path) -> Iterator[ServerAddress]:
    """The real embedded server on a free loopback port, for the whole session."""
    with running_server(object_home) as address:
        yield address


@pytest.fixture
def store(object_server: ServerAddress) -> ObjectStore:
    """A bucket of this test's own."""
    store = object_server.store(f"test-{uuid4().hex[:12]}")
    store.ensure_bucket()
    return store


class Careful(ObjectStore):
    """The real store, before which conditions are honoured, as AWS does; `atomic` False: with a gap, as Swift does."""

    def __init__(self, store: ObjectStore, atomic: bool = True) -> None:
        self.__dict__.update(store.__dict__)
        self.lock = threading.Lock() if atomic else threading.Semaphore(99)

    def put_bytes(
        self,
        key: str,
        data: bytes,
        if_none_match: bool = False,
        if_match: str | None = None,
        content_type: str = "application/octet-stream",
    ) -> str:
        with self.lock:
            there = self.head(key).etag if self.exists(key) else None
            time.sleep(0.01)
            if if_match is not None and there is None:
                raise NotFound("404")
            if (if_none_match and there is not None) or (if_match is not None and there != if_match):
                raise PublicationConflict("412")
            return super().put_bytes(key, data, content_type=content_type)


def make_variant(folder: Path, dataset: str = "tiny", shards: int = 3, samples: int = 4, seed: int = 0) -> Manifest:
    """A real variant of random 16x16 images; shard i depends on `seed + i` only, so variants can share shards."""
    folder.mkdir(parents=True)
    infos = []
    for index in range(shards):
        random = np.random.default_rng(seed + index)
        pixels = random.integers(0, 256, (samples, 16, 16, 3), dtype=np.uint8)
        content = [Sample(f"{index:03d}{i:05d}", encode_png(image), i % 2) for i, image in enumerate(pixels)]
        infos.append(write_shard(folder / shard_name("train", index), content))
    manifest = Manifest(dataset=dataset, split="train", classes=["cat", "dog"], shards=infos)
    write_manifest(folder, manifest)
    return manifest
