"""The client against the real gateway, the real flow and a bad network."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import attempt, restore_shards
from flows.client import Client, fetch, restore, restoring, transfer
from flows.client.job import State, job_folder, opened
from flows.client.restoring import hand_in
from storage.database import utc_now
from storage.errors import (
    BadToken,
    DmcpError,
    Forbidden,
    GrantRevoked,
    NoGrant,
    NotFound,
    NotProtected,
    ObjectStoreError,
    RequestCancelled,
    ServiceError,
    TooManyRequests,
    UsageError,
    WorkspaceBusy,
)
from storage.files import sha256_file
from storage.objects import open_store
from storage.publication import publish
from storage.settings import settings
from storage.shards import read_shard
from tests.flows.gateway_world import Served, gateway
from tests.flows.tcp_proxy import Fault
from tests.flows.test_restore import altered, samples
from tests.flows.world import entered

UPLOAD = b"POST /api/v1/restorations/upload"
OURS = b"dmcp-client"


@pytest.fixture(scope="module")
def site(built: Path) -> Iterator[Served]:
    from flows.services import object_store

    with entered(built), object_store():
        publish(settings().data_path("sample", "protected"), open_store(settings(), "public"), "sample")
        with gateway() as site:
            yield site


@pytest.fixture(autouse=True)
def healed(site: Served) -> Iterator[None]:
    site.heal()
    yield
    site.heal()


@pytest.fixture
def holiday(site: Served, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A folder of forty protected images under names of its own; and what they were."""
    protected, recovered = samples("protected"), samples("recovered")
    names = {f"höhe/{number % 3}/bild {number:02d}.png": key for number, key in enumerate(sorted(protected)[:40])}
    for name, key in names.items():
        path = tmp_path / "holiday" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(protected[key].png)
    return tmp_path / "holiday", {name: recovered[key].png for name, key in names.items()}


def images(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}


def requests_of(client) -> list[str]:
    return [info.id for info in client.restorations()]


def test_a_folder_comes_back_under_its_own_names(site: Served, holiday, tmp_path: Path) -> None:
    folder, expected = holiday
    protected = samples("protected")
    (folder / "altered.png").write_bytes(altered(protected[min(protected)].png))
    (folder / "notes.txt").write_text("no image")
    told: list[str] = []
    with site.client() as client:
        done = site.serving(
            lambda: restore(client, folder, tmp_path / "out", progress=lambda label, *_: told.append(label))
        )
    assert images(tmp_path / "out") == expected
    assert {r.name: r.error for r in done.refused} == {"altered.png": "AlteredImage", "notes.txt": "InputError"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["images"], report["restored"]) == (42, 40)
    assert [label for i, label in enumerate(told) if i == 0 or told[i - 1] != label] == [
        "packing",
        "sending",
        "restoring",
        "fetching",
        "writing",
    ]
    assert not job_folder(tmp_path / "out").exists()


def test_what_is_not_named_is_counted(site: Served, holiday, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.request.NAMED_REFUSALS", 1)
    folder, expected = holiday
    bad = altered(samples("protected")[min(samples("protected"))].png)
    for number in range(3):
        (folder / f"bad{number}.png").write_bytes(bad)
    (folder / "notes.txt").write_text("no image")
    with site.client() as client:
        done = site.serving(lambda: restore(client, folder, tmp_path / "out"))
    assert images(tmp_path / "out") == expected
    assert {r.name for r in done.refused} == {"bad0.png", "notes.txt"}
    assert (done.restored, done.report.refusals, done.report.unnamed) == (40, 4, {"AlteredImage": 2})


def test_a_folder_of_shards_comes_back_as_shards(site: Served, tmp_path: Path) -> None:
    with site.client() as client:
        site.serving(lambda: restore(client, settings().data_path("sample", "protected"), tmp_path / "out"))
    for path in settings().data_path("sample", "recovered").iterdir():
        assert sha256_file(tmp_path / "out" / path.name) == sha256_file(path)


def test_a_published_version_and_some_of_it(site: Served, tmp_path: Path) -> None:
    recovered = samples("recovered")
    some = sorted(recovered)[5:9]
    with site.client() as client:
        done = site.serving(lambda: restore(client, "sample@latest", tmp_path / "out", subset=some))
        assert done.restored == 4
        found = {sample.key: sample for path in (tmp_path / "out").glob("*.tar") for sample in read_shard(path)}
        assert found == {key: recovered[key] for key in some}
        with pytest.raises(UsageError):
            restore(client, tmp_path, tmp_path / "other", subset=some)


# --- downloads over a bad network -------------------------------------------------------------------------------------


@dataclass
class Done:
    """A restoration that is done: its user's token, its id, what it holds, the bytes of its results."""

    token: str
    id: str
    expected: dict[str, str]
    size: int


@pytest.fixture(scope="module")
def done(site: Served, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The whole protected variant, restored. Fetching it again costs nothing but network."""
    token = site.token()
    with site.client(token) as client:
        info = hand_in(client, settings().data_path("sample", "protected"))
        site.serving(lambda: client.wait(info.id))
        size = sum(file.bytes for file in client.results(info.id))
    expected = {path.name: sha256_file(path) for path in settings().data_path("sample", "recovered").iterdir()}
    return Done(token, info.id, expected, size)


def written(out: Path) -> dict[str, str]:
    ours = ("report.json", "refused.csv")
    return {path.name: sha256_file(path) for path in out.iterdir() if path.name not in ours}


def test_a_download_goes_on_where_it_broke_off(site: Served, done: Done, tmp_path: Path) -> None:
    site.store.faults += [Fault(OURS, answer=30_000) for _ in range(7)]
    with site.client(done.token) as client:
        fetch(client, done.id, tmp_path / "out")
    assert written(tmp_path / "out") == done.expected
    assert not site.store.faults
    # Ranges: what was lost is what was on its way when a connection was cut, and a few headers.
    assert site.store.answered < done.size + 7 * 40_000 + 100_000
    assert site.store.answered > done.size


def test_a_download_that_was_given_up_goes_on_in_the_next_run(site: Served, done: Done, tmp_path: Path) -> None:
    site.store.rate = 100_000

    def break_down() -> None:
        while site.store.answered < 150_000:
            time.sleep(0.01)
        site.net.down = site.store.down = True
        site.store.cut_all()

    threading.Thread(target=break_down, daemon=True).start()
    with site.client(done.token, patience=0.5) as client, pytest.raises(ServiceError):
        fetch(client, done.id, tmp_path / "out")
    left = sum(path.stat().st_size for path in (job_folder(tmp_path / "out") / "results").iterdir())
    assert left > 50_000 and not (tmp_path / "out").exists()
    site.heal()
    with site.client(done.token) as client:
        fetch(client, done.id, tmp_path / "out")
    assert written(tmp_path / "out") == done.expected
    assert site.store.answered < done.size - left + 100_000


def test_what_an_earlier_run_left_is_believed_only_by_its_digest(site: Served, done: Done, tmp_path: Path) -> None:
    results = job_folder(tmp_path / "out") / "results"
    results.mkdir(parents=True)
    (results / "result-000000.tar").write_bytes(b"no shard")
    (results / "result-000001.tar.part").write_bytes(bytes(50_000))
    (results / "result-000002.tar.part").write_bytes(bytes(10_000_000))
    with site.client(done.token) as client:
        fetch(client, done.id, tmp_path / "out")
    assert written(tmp_path / "out") == done.expected


def test_results_come_through_the_gateway_where_the_store_is_out_of_reach(
    site: Served, done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STORE_PATIENCE", 1.0)
    site.store.drop = OURS
    site.net.faults += [Fault(b"/results/result-", answer=20_000) for _ in range(3)]
    with site.client(done.token) as client:
        fetch(client, done.id, tmp_path / "out")
    assert written(tmp_path / "out") == done.expected
    assert not site.net.faults and site.net.count("GET /api/v1/restorations/") > 6


def test_addresses_that_are_too_old_are_asked_for_anew(
    site: Served, done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.client(done.token) as client:
        listed = [
            file.model_copy(update={"url": file.url.replace("X-Amz-Signature=", "X-Amz-Signature=0")})
            for file in client.results(done.id)
        ]
        fresh = client.results
        monkeypatch.setattr(client, "results", lambda identity: iter(listed))
        results = transfer.Results(client, done.id, tmp_path)
        monkeypatch.setattr(client, "results", fresh)
        results.fetch_all(lambda size: None)
        assert results.direct
    assert {sha256_file(path) for path in tmp_path.glob("*.tar")} == {file.sha256 for file in listed}


def test_ctrl_c_ends_a_download_at_once(site: Served, done: Done, tmp_path: Path) -> None:
    site.store.rate = 20_000
    with site.client(done.token) as client:
        results = transfer.Results(client, done.id, tmp_path)

        def advance(size: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            results.fetch_all(advance)
    assert site.store.answered < done.size / 2, "the rest was waited for"


# --- handing in over a bad network ------------------------------------------------------------------------------------


def test_an_upload_that_is_cut_is_sent_again_and_starts_one_restoration(site: Served, holiday, tmp_path: Path) -> None:
    site.net.faults += [Fault(UPLOAD, body=20_000), Fault(UPLOAD, body=90_000)]
    with site.client() as client:
        info = hand_in(client, holiday[0])
        assert requests_of(client) == [info.id]
        assert client.cancel(info.id).state == "cancelled"
    assert site.net.count("POST /api/v1/restorations/upload") == 3


def test_an_answer_that_is_lost_starts_nothing_a_second_time(site: Served, holiday, tmp_path: Path) -> None:
    for source in (holiday[0], "sample@latest"):
        site.net.faults += [Fault(b"POST /api/v1/restorations", answer=0)]
        with site.client() as client:
            info = hand_in(client, source)
            assert requests_of(client) == [info.id]
            client.cancel(info.id)
        assert not site.net.faults


def test_a_large_upload_goes_to_the_store_and_where_that_is_out_of_reach_to_the_gateway(
    site: Served, holiday, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "STREAMED_BYTES", 1000)
    monkeypatch.setattr(transfer, "STORE_PATIENCE", 1.0)
    with site.client() as client:
        site.store.faults += [Fault(b"PUT /", body=30_000)]
        info = hand_in(client, holiday[0])
        assert not site.store.faults and site.net.count("POST /api/v1/restorations/upload") == 0
        site.store.drop = OURS
        other = hand_in(client, holiday[0])
        assert site.net.count("POST /api/v1/restorations/upload") == 1
        for identity in (info.id, other.id):
            assert client.restoration(identity).images == 40
            client.cancel(identity)


def test_a_call_that_may_not_be_made_twice_is_not(site: Served) -> None:
    site.net.faults += [Fault(b"POST /api/v1/access-requests", answer=0)]
    with site.client(site.token(None)) as client:
        with pytest.raises(ServiceError):
            client.ask_access("sample", "to see")
        assert len(list(client.access_requests())) == 1
    assert site.net.count("POST /api/v1/access-requests") == 1


def test_retry_after_is_honoured() -> None:
    with gateway(gateway_rate="4/second") as slow, slow.client() as client:
        started = time.monotonic()
        for _ in range(13):
            client.me()
        assert time.monotonic() - started > 2.5
        assert slow.net.count("GET /api/v1/me") < 26


def test_waiting_in_vain_is_not_begun() -> None:
    with gateway(gateway_rate="1/hour") as slow, slow.client(patience=600) as client:
        client.me()
        started = time.monotonic()
        with pytest.raises(TooManyRequests) as caught:
            client.me()
        assert time.monotonic() - started < 300
    assert caught.value.retry_after > 600


# --- following --------------------------------------------------------------------------------------------------------


def test_following_falls_back_to_asking(site: Served, holiday) -> None:
    site.net.drop = b"/events"
    with site.client() as client:
        info = hand_in(client, holiday[0])
        states = site.serving(lambda: [now.state for now in client.follow(info.id)])
    assert states[0] in ("pending", "running") and states[-1] == "done"


def test_following_survives_a_cut_and_ends_with_a_cancellation(site: Served, holiday, tmp_path: Path) -> None:
    site.net.faults += [Fault(b"/events", answer=900), Fault(b"/events", answer=0)]
    with site.client() as client:
        threading.Timer(1.5, lambda: [client.cancel(identity) for identity in requests_of(client)]).start()
        with pytest.raises(RequestCancelled):
            restore(client, holiday[0], tmp_path / "out")
    assert not site.net.faults and not job_folder(tmp_path / "out").exists()


# --- what failed ------------------------------------------------------------------------------------------------------


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Restorations fail at their first attempt: no result can be put, until the patch is undone."""

    def broken(*_: object) -> None:
        raise ObjectStoreError("The server is gone.")

    with monkeypatch.context() as patch:
        patch.setattr(attempt, "ATTEMPTS", 1)
        patch.setattr(restore_shards, "put_result", broken)
        yield patch


def used(site: Served, client: Client) -> list[int]:
    return [grant.used for grant in site.registry.list_grants(client.me().name)]


def test_the_same_command_tries_again_what_failed(site: Served, holiday, tmp_path: Path, once) -> None:
    """Under a grant for exactly as many images: they are not charged again."""
    folder, expected = holiday
    token = site.token(None)
    with site.client(token) as client:
        site.registry.grant(client.me().name, "sample", quota=40)
        with pytest.raises(ObjectStoreError):
            site.serving(lambda: restore(client, folder, tmp_path / "out"))
        assert client.restoration(requests_of(client)[0]).state == "failed"
        assert used(site, client) == [40]
        once.undo()
        site.serving(lambda: restore(client, folder, tmp_path / "out"))
        assert len(requests_of(client)) == 1 and used(site, client) == [40]
    assert images(tmp_path / "out") == expected
    assert site.net.count("POST /api/v1/restorations/upload") == 1
    assert not job_folder(tmp_path / "out").exists()


@pytest.mark.parametrize("why", ["removed", "changed"])
def test_what_failed_and_can_not_be_tried_again_is_begun_anew(
    site: Served, holiday, tmp_path: Path, once, why: str
) -> None:
    folder, expected = holiday
    with site.client() as client:
        with pytest.raises(ObjectStoreError):
            site.serving(lambda: restore(client, folder, tmp_path / "out"))
        (failed,) = requests_of(client)
        once.undo()
        if why == "removed":
            site.registry.begin_removal(failed, utc_now())
        else:
            name = min(expected)
            (folder / name).unlink()
            del expected[name]
        site.serving(lambda: restore(client, folder, tmp_path / "out"))
        assert [info.state for info in client.restorations()] == ["done", "failed"]
    assert images(tmp_path / "out") == expected


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_those_of_the_gateway(site: Served, holiday, tmp_path: Path) -> None:
    with Client(site.net.url, "dmcp_nobodys") as client, pytest.raises(BadToken):
        client.me()
    with site.client(site.token(None)) as client:
        with pytest.raises(NoGrant):
            restore(client, holiday[0], tmp_path / "out")
        assert not job_folder(tmp_path / "out").exists()
        with pytest.raises(NotFound):
            client.restoration("0" * 32)
        with pytest.raises(NotFound):
            client.dataset("../me")
        with pytest.raises(Forbidden):
            list(client.asked())


@pytest.mark.parametrize("packed", [False, True])
def test_images_that_are_not_protected_are_not_sent(site: Served, tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for key, sample in list(samples("clean").items())[:3]:
        (folder / f"{key}.png").write_bytes(sample.png)
    source = Path(shutil.make_archive(str(tmp_path / "own"), "zip", folder)) if packed else folder
    with site.client() as client:
        for act in (lambda: hand_in(client, source), lambda: restore(client, source, tmp_path / "out")):
            with pytest.raises(NotProtected, match="Not one of the 3 images"):
                act()
    assert site.net.count("POST /api/v1/restorations/upload") == 0
    assert not job_folder(tmp_path / "out").exists()


def test_a_grant_that_was_revoked_fails_the_restoration_with_its_own_error(
    site: Served, holiday, tmp_path: Path
) -> None:
    with site.client() as client:
        name = client.me().name
        info = hand_in(client, holiday[0])
        site.registry.revoke(name, "sample")
        with pytest.raises(GrantRevoked):
            site.serving(lambda: fetch(client, info.id, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_nothing_of_a_users_is_overwritten_and_jobs_are_not_mixed_up(
    site: Served, holiday, done: Done, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with site.client(done.token) as client:
        with pytest.raises(UsageError):
            restore(client, holiday[0], tmp_path / "mine")
        asked = State(gateway=client.url, source="sample@latest", restoration=done.id)
        with opened(tmp_path / "out", asked), pytest.raises(WorkspaceBusy):
            restore(client, "sample@latest", tmp_path / "out")
        with pytest.raises(UsageError, match="another restoration"):
            restore(client, holiday[0], tmp_path / "out")
        assert restore(client, "sample@latest", tmp_path / "out").restored == 96


def test_a_source_that_changed_is_not_taken_for_the_one_that_was_sent(site: Served, holiday, tmp_path: Path) -> None:
    folder, out = holiday[0], tmp_path / "out"
    with site.client(patience=0.5) as client:
        site.net.drop = b"/events"
        with pytest.raises(ServiceError):
            threading.Timer(1.0, lambda: setattr(site.net, "down", True)).start()
            restore(client, folder, out)
        site.heal()
        next(folder.rglob("*.png")).unlink()
        with pytest.raises(UsageError, match="not what it was"):
            restore(client, folder, out)
        (identity,) = requests_of(client)
        client.cancel(identity)


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://", "https://u:p@x", "http://dmcp.example", "nonsense", "https://x?a"]
)
def test_addresses_that_a_token_is_not_sent_to(url: str) -> None:
    with pytest.raises(UsageError):
        Client(url, "dmcp_x")


def test_another_service_is_no_gateway(site: Served) -> None:
    with Client(site.store.url, "dmcp_x", patience=0.2) as client, pytest.raises(DmcpError) as caught:
        client.me()
    assert site.store.url in str(caught.value)


# --- access -----------------------------------------------------------------------------------------------------------


def test_asking_deciding_and_renewing(site: Served) -> None:
    site.registry.register_dataset("mine", site.owner)
    with site.client(site.token(None)) as ann, site.client(site.owner_token) as owner:
        owner.set_terms("mine", "Be nice.")
        made = ann.ask_access("mine", "to compare", images=50, days=30)
        assert made.id in [request.id for request in owner.asked()]
        granted = owner.approve(made.id, quota=10, note="welcome")
        ann.accept_terms("mine", ann.terms("mine").version)
        (held,) = ann.grants()
        assert held.id == granted.id and held.quota == 10 and held.in_force
        owner.deny(ann.ask_renewal(held.id, "more", days=5).id, "enough")
        assert [request.state for request in ann.access_requests()] == ["denied", "approved"]
        assert not owner.revoke_grant(held.id).in_force
        assert "mine" in [dataset.name for dataset in ann.datasets()]
        old = next(ann.tokens()).id
        with site.client(ann.rotate_token()) as fresh, pytest.raises(BadToken):
            assert old not in [token.id for token in fresh.tokens() if token.revoked is None]
            ann.me()
