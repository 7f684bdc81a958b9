"""Disks that are full or read-only, two runs at once, buckets that were changed: one error that names thing and cure.

What else there is of these is in the table of docs/faults.md; clocks are in `test_clocks.py`.
"""

import multiprocessing
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import DiskFault, DmcpError, NotFound, ObjectStoreError
from storage.objects import ObjectStore
from storage.publication import list_versions, publish, pull
from storage.server import ServerAddress, running_server
from tasks.download import download_dataset
from tests.faults.disks import disk
from tests.faults.s3_faults import tree
from tests.faults.s3_proxy import snapshot
from tests.services import make_variant

LARGE = 64 << 20


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    """Three shards of 90 KB."""
    make_variant(tmp_path / "protected", samples=40)
    return tmp_path / "protected"


def refused(act: Callable[[], object], place: Path, why: str, cure: str) -> None:
    """It ends with an error of ours that names a file in this place."""
    with pytest.raises(DiskFault) as caught:
        act()
    assert str(place) in caught.value.what and why in caught.value.what
    assert cure in caught.value.cure and caught.value.exit_code == 4


def pulled(store: ObjectStore, out: Path) -> dict[str, bytes]:
    pull(store, "tiny", out)
    return tree(out)


def test_a_pull_to_a_full_and_to_a_read_only_disk(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    publish(variant, store, "tiny")
    whole = pulled(store, tmp_path / "elsewhere")
    with disk(tmp_path / "disk", 150_000) as small:
        out = small.folder / "out"
        refused(lambda: pull(store, "tiny", out), small.folder, "The disk is full", "Free some space")
        assert not out.exists()
        small.read_only()
        refused(lambda: pull(store, "tiny", out), small.folder, "Read-only file system", "how its disk is mounted")
        small.resize(LARGE)
        assert pull(store, "tiny", out).shards_kept >= 1, "what had come was kept"
        assert tree(out) == whole
        assert [path.name for path in small.folder.iterdir()] == ["out"]
        before = tree(out)
        small.read_only()
        refused(lambda: pull(store, "tiny", out), small.folder, "Read-only", "how its disk is mounted")
        assert tree(out) == before


def test_building_a_variant_on_a_full_and_on_a_read_only_disk(tmp_path: Path) -> None:
    section = {"train_limit": 96, "test_limit": 8, "shard_size": 48}

    def build(folder: Path) -> dict[str, bytes]:
        download_dataset("sample", section, folder / "clean", folder / "test", None)
        return tree(folder / "clean") | tree(folder / "test")

    whole = build(tmp_path / "elsewhere")
    with disk(tmp_path / "disk", 100_000) as small:
        refused(lambda: build(small.folder), small.folder, "The disk is full", "Free some space")
        assert not list(small.folder.glob("**/*.tar")), "nothing half built takes the space that there is"
        small.read_only()
        refused(lambda: build(small.folder), small.folder, "Read-only", "how its disk is mounted")
        small.resize(LARGE)
        assert build(small.folder) == whole
        assert not list(small.folder.glob(".*"))


def test_publishing_to_a_server_whose_disk_is_full(object_server: ServerAddress, variant: Path, tmp_path: Path) -> None:
    reference = object_server.store("full-reference")
    publish(variant, reference, "tiny")
    with disk(tmp_path / "disk", 200_000) as small, running_server(small.folder / "home") as server:
        store = server.store("full")
        with pytest.raises(ObjectStoreError) as caught:
            publish(variant, store, "tiny")
        assert store.endpoint in caught.value.what and "server's log" in caught.value.cure
        with pytest.raises(NotFound):
            list_versions(store, "tiny")
        small.resize(LARGE)
        publish(variant, store, "tiny")
        assert snapshot(server, "full") == snapshot(object_server, "full-reference")


def test_a_limit_on_the_size_of_files(store: ObjectStore, variant: Path, tmp_path: Path) -> None:
    """As a disk that is full, for those who may not mount one; the limit is a child's own."""
    publish(variant, store, "tiny")
    context = multiprocessing.get_context("fork")
    said, saying = context.Pipe(duplex=False)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            pull(store, "tiny", tmp_path / "out")
        except DmcpError as error:
            saying.send((type(error).__name__, error.what, error.cure))

    child = context.Process(target=limited)
    child.start()
    assert said.poll(120)
    kind, what, cure = said.recv()
    child.join(120)
    assert (kind, "ulimit -f" in cure) == ("DiskFault", True) and str(tmp_path) in what
    pull(store, "tiny", tmp_path / "out")
    assert {name: data for name, data in tree(tmp_path / "out").items() if name in tree(variant)} == tree(variant)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "protected"}


def test_a_home_that_is_anothers() -> None:
    """As a user whom modes stop; root is one whom they do not."""
    code = """
import os, sys
from pathlib import Path
from storage.errors import DiskFault
from storage.files import make_private, write_atomic
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for act in (lambda: make_private(Path(sys.argv[1]), "work"), lambda: write_atomic(Path(sys.argv[1], "x"), b"1")):
    try:
        act()
    except DiskFault as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as folder:  # those of pytest let no other user in
        Path(folder).chmod(0o711)
        home = Path(folder, "home")
        home.mkdir(mode=0o500)
        done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 2 and all(str(home) in line and "Permission denied" in line for line in lines)
        assert not list(home.iterdir())
