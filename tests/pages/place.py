"""The gateway as people meet it: the real application on loopback, with its registry, vault and object store."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import uvicorn

from flows.gateway.app import create_app
from storage.database import utc_now
from storage.keys import open_vault
from storage.manifest import Manifest, shard_name, write_manifest
from storage.objects import ObjectStore, open_store
from storage.publication import publish
from storage.registry import Registry, open_registry
from storage.registry_models import Charge
from storage.settings import Settings
from storage.shards import Sample, read_shard, write_shard
from tasks.method.seal import DataKey
from tasks.request import fetch_index, fetch_input, make_report, put_report, put_result, wanted
from tasks.request_index import RefusedFile, result_name
from tasks.restore import restore_samples
from tests.protected import protect_images

IMAGES = 12
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'"
TERMS = "1. For research only.\n2. Do not pass images on.\n3. Name the data set where you publish."


@dataclass
class Place:
    """A running gateway, and who uses it."""

    folder: Path
    settings: Settings
    address: str
    registry: Registry
    private: ObjectStore
    key: DataKey
    protected: list[bytes]
    tokens: dict[str, str]

    def serve(self, request_id: str) -> None:
        """Restore what a request asks for, as the flow does it, within this process."""
        request = self.registry.claim_request(request_id)
        index = fetch_index(self.private, request)
        work = self.folder / "work" / request_id
        work.mkdir(parents=True)
        results, restored, refused = [], [], []
        for number, entry in enumerate(index.shards):
            public = open_store(self.settings, "public")
            path = fetch_input(self.private, request_id, index, entry, work, public)
            batch = restore_samples(wanted(index, read_shard(path)), lambda key_id: self.key)
            results.append(write_shard(work / result_name(number), batch.samples))
            restored += [sample.key for sample in batch.samples]
            refused += [RefusedFile(name=r.key, error=r.error, reason=r.reason) for r in batch.refusals]
            grant = self.registry.authorise(request.user_id, "pets", images=len(batch.samples))
            self.registry.charge(request_id, number, grant.id, len(batch.samples))
            put_result(self.private, request_id, work, results[-1])
        report = make_report(request_id, index, results, restored, refused)
        missing = report.refusals + len(index.refused)
        result = put_report(self.private, report)
        self.registry.set_request_state(request_id, "done", restored=report.restored, refused=missing, result=result)

    def charge(self, user: str, dataset: str, images: int, days_ago: int) -> None:
        """Usage of an earlier day."""
        user_id = self.registry.get_user(user).id
        grant = self.registry.list_grants(user, dataset)[0]
        request_id = self.registry.create_request(user_id, "upload", dataset, f"day-{days_ago}.zip", images=images)
        self.registry.claim_request(request_id)
        self.registry.set_request_state(request_id, "done", restored=images)
        when = utc_now() - timedelta(days=days_ago)
        with self.registry.write() as session:
            session.add(
                Charge(request_id=request_id, shard=0, dataset=dataset, grant_id=grant.id, images=images, time=when)
            )


@contextmanager
def running_place(folder: Path) -> Iterator[Place]:
    """A gateway with an operator (root), two owners (olga, otto) and two users (ann, bob), for the length of a block.

    olga owns `pets`, with terms, one published version and a grant for ann of 500 images; otto owns `cells`.
    """
    settings = Settings(home=folder / "home", data=folder / "data", gateway_login_rate="20/minute")
    app = create_app(settings, dispatch=False)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, name="gateway", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the gateway did not start")
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with open_registry(settings) as registry:
            yield _filled(folder, settings, f"http://127.0.0.1:{port}", registry)
    finally:
        server.should_exit = True
        thread.join(60)


def _filled(folder: Path, settings: Settings, address: str, registry: Registry) -> Place:
    roles = {"root": "operator", "olga": "owner", "otto": "owner", "ann": "user", "bob": "user"}
    tokens = {name: registry.add_user(name, role) for name, role in roles.items()}  # type: ignore[arg-type]
    registry.register_dataset("pets", "olga", "Pets", "Cats and dogs, photographed at home.", actor="olga")
    registry.register_dataset("cells", "otto", "Cells", "Microscopy of living cells.", actor="otto")
    registry.set_terms("pets", TERMS, actor="olga")
    registry.grant("ann", "pets", utc_now() + timedelta(days=60), quota=500, note="Welcome.", actor="olga")
    vault = open_vault(settings)
    data_key = DataKey(vault.secret(vault.create("pets").key_id), "pets")
    clean = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8) // 4 * 2 + 64
    protected = protect_images(clean.astype(np.uint8), data_key)
    _publish(folder / "variant", settings, protected)
    private = open_store(settings, "private")
    return Place(folder, settings, address, registry, private, data_key, protected, tokens)


def _publish(folder: Path, settings: Settings, protected: list[bytes]) -> None:
    folder.mkdir()
    samples = [Sample(f"{number:08d}", png, number % 2) for number, png in enumerate(protected)]
    info = write_shard(folder / shard_name("train", 0), samples)
    write_manifest(folder, Manifest(dataset="pets", split="train", classes=["cat", "dog"], shards=[info]))
    publish(folder, open_store(settings, "public"), "pets", TERMS)
