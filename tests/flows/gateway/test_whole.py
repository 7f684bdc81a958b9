"""From asking for access to the zip of recovered images, with nothing but HTTP, a worker's flow and an owner."""

import io
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete

from flows.access import ensure_pipeline_access
from storage.png import decode_png
from storage.registry_models import Acceptance, Terms
from storage.settings import settings
from storage.shards import Sample, read_shard
from tests.flows.gateway.conftest import Site, running, zipped
from tests.flows.gateway.test_progress import listening


def samples(variant: str) -> list[Sample]:
    return read_shard(min(Path("data", "sample", variant).glob("*.tar")))[:5]


@pytest.fixture
def served(world: Path) -> Site:  # type: ignore[misc]
    with running(settings()) as site:
        ensure_pipeline_access(site.registry, "sample")
        site.registry.set_terms("sample", "For research.")
        site.tokens |= {"ann": site.registry.add_user("ann"), "owner": site.registry.rotate_token("owner")}
        yield site  # type: ignore[misc]
        with site.registry.write() as session:  # other tests share this world, and their users accepted nothing
            session.execute(delete(Acceptance))
            session.execute(delete(Terms))


def test_the_whole_way(served: Site) -> None:
    from flows.restore import serve_request

    ask = {"dataset": "sample", "reason": "to see", "images": 100, "days": 1}
    asked = served.call("POST", "access-requests", "ann", json=ask).json()
    made = served.call("POST", f"owner/access-requests/{asked['id']}/approve", "owner", json={}).json()
    assert (made["user"], made["quota"], made["used"]) == ("ann", 100, 0)
    protected = {f"holiday/{i}.png": sample.png for i, sample in enumerate(samples("protected"))}
    upload = zipped(protected | {"notes.txt": b"x"})
    refused = served.upload(upload, caller="ann", params={"dataset": "sample"})
    assert (refused.status_code, refused.json()["error"]) == (403, "TermsNotAccepted")
    assert served.call("POST", "datasets/sample/terms/1/accept", "ann").status_code == 204
    request_id = served.upload(upload, caller="ann", params={"dataset": "sample"}).json()["id"]

    flow = threading.Thread(target=serve_request, args=(request_id,))
    with listening(served, request_id, "ann") as told:
        flow.start()
        last = list(told)[-1]
    flow.join()
    assert (last[0], last[1]["state"], last[1]["restored"], last[1]["refused"]) == ("done", "done", 5, 1)

    with zipfile.ZipFile(
        io.BytesIO(served.call("GET", f"restorations/{request_id}/archive", "ann").content)
    ) as archive:
        for i, clean in enumerate(samples("clean")):
            restored = decode_png(archive.read(f"holiday/{i}.png"), "x")
            assert np.array_equal(restored, decode_png(clean.png, "x"))
    assert served.call("GET", f"grants/{made['id']}", "ann").json()["used"] == 5
    usage = served.call("GET", "owner/usage", "owner", params={"dataset": "sample"}).json()["items"]
    assert [(row["user"], row["images"]) for row in usage if row["user"] == "ann"] == [("ann", 5)]
    actions = served.actions(request_id)
    assert actions.index("release") < actions.index("request.done") < actions.index("download")
