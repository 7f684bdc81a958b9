"""A real Ceph object gateway for tests: one monitor, one OSD, one gateway on loopback. Nothing is replicated.

`tests/install-ceph` installs the programs, as root; no root is needed to run them. Everything lies in a temporary
folder and is removed at the end. The daemons are children of whoever starts them, and the kernel kills them when it
dies, however that happens (only the folder is left behind then).
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from storage.errors import NotFound, ObjectStoreError
from storage.ports import LOOPBACK, free_port
from storage.server import ServerAddress

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin", "setpriv")
START_SECONDS = 180
"""How long one step of the start may take (the whole takes three to ten; the rest is for busy machines)."""

CONFIG = """\
[global]
fsid = {fsid}
mon_host = [v2:{host}:{mon_port}]
public_addr = {host}
cluster_addr = {host}
ms_bind_msgr1 = false
keyring = {folder}/keyring
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
run_dir = {folder}
log_file = {folder}/$name.log
pid_file =
admin_socket =
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
paxos_propose_interval = 0.05
osd_objectstore = {objectstore}
memstore_device_bytes = 2147483648
bluestore_block_size = 2147483648
osd_memory_target = 939524096
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
rgw_frontends = beast endpoint={host}:{rgw_port}
rgw_thread_pool_size = 64
rgw_dynamic_resharding = false
rgw_enable_gc_threads = false
rgw_enable_lc_threads = false
rgw_enable_quota_threads = false
rgw_run_sync_thread = false
"""


def missing() -> str | None:
    """Why no Ceph can be started here; None where it can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"no {absent[0]} here: run tests/install-ceph as root first" if absent else None


def version() -> str:
    """E.g. `ceph version 16.2.15 (...) pacific (stable)`."""
    return subprocess.run(["ceph", "--version"], check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def running_ceph(on_disk: bool = False) -> Iterator[ServerAddress]:
    """Start a cluster with its gateway, give the gateway's address, and remove it all.

    Args:
        on_disk: keep objects in BlueStore, as in production, in a sparse file; else in memory, which is twice as fast.

    Raises:
        RuntimeError: a step failed; the message ends with what it said.
    """
    folder = Path(tempfile.mkdtemp(prefix="dmcp-ceph-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = _Cluster(folder, stack, "bluestore" if on_disk else "memstore")
        cluster.make()
        cluster.daemon("ceph-mon", "-i", "a")
        osd = str(uuid4())
        cluster.step("ceph", "osd", "new", osd)
        cluster.step("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        cluster.daemon("ceph-osd", "-i", "0")
        user = json.loads(cluster.step("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests"))
        gateway = cluster.daemon("radosgw", "-n", "client.admin")
        keys = user["keys"][0]
        address = ServerAddress(f"http://{LOOPBACK}:{cluster.rgw_port}", keys["access_key"], keys["secret_key"])
        _wait(address, gateway, folder)
        yield address


class _Cluster:
    """The cluster's folder, and what is run on it; daemons end with the stack."""

    def __init__(self, folder: Path, stack: ExitStack, objectstore: str) -> None:
        self.folder = folder
        self.objectstore = objectstore
        self.stack = stack
        self.mon_port, self.rgw_port = free_port(), free_port()
        self.fsid = str(uuid4())

    def make(self) -> None:
        """Write configuration, keys (which only this user can read) and the monitor's data."""
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        text = CONFIG.format(host=LOOPBACK, **vars(self))
        (self.folder / "ceph.conf").write_text(text)
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        for name, allowed in (
            ("mon.", {"mon": "allow *"}),
            ("client.admin", {"mon": "allow *", "osd": "allow *"}),
            ("osd.0", {"mon": "allow profile osd", "osd": "allow *"}),
        ):
            caps = [word for kind, what in allowed.items() for word in ("--cap", kind, what)]
            make = [] if Path(keyring).exists() else ["--create-keyring"]
            self.step("ceph-authtool", keyring, *make, "--gen-key", "-n", name, *caps)
        at = f"[v2:{LOOPBACK}:{self.mon_port}]"
        self.step("monmaptool", "--create", "--addv", "a", at, "--fsid", self.fsid, monmap)
        self.step("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)

    def step(self, program: str, *arguments: str) -> str:
        """Run a program to its end; what it printed."""
        done = subprocess.run(
            [program, "-c", str(self.folder / "ceph.conf"), *arguments],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_SECONDS,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} {arguments[0]} failed ({done.returncode}): {done.stderr[-600:]}")
        return done.stdout

    def daemon(self, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start a program that runs until the end, and not longer than this process; Ctrl-C does not reach it."""
        command = ["setpriv", "--pdeathsig", "KILL", program, "-c", str(self.folder / "ceph.conf"), "-f", *arguments]
        with (self.folder / f"{program}.out").open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)  # nothing of it is kept, so nothing needs to be closed
        return process


def _wait(address: ServerAddress, gateway: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait until the gateway answers a signed request."""
    store = address.store("no-such-bucket", attempts=1, read_timeout=5)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and gateway.poll() is None:
        with suppress(ObjectStoreError):
            try:
                store.head("ready")
            except NotFound:  # the signature was accepted
                return
        time.sleep(0.1)
    said = (folder / "radosgw.out").read_text(errors="replace")[-600:]
    raise RuntimeError(f"Ceph's gateway did not start: {said}")


@pytest.fixture(scope="session")
def ceph_server() -> Iterator[ServerAddress]:
    """The gateway, for the whole session; skipped with the reason where its programs are not installed."""
    why = missing()
    if why is not None:
        pytest.skip(why)
    with running_ceph() as address:
        yield address
