"""What publishing does to versions that show the same images otherwise."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from flows import pipeline, publish
from flows.cli import app
from flows.publish import latest_published, publish_folder
from flows.services import object_store
from storage import committing
from storage.audit import open_audit_log
from storage.croissant import About
from storage.errors import NotProtected, PublicationConflict, VersionsOverlap
from storage.manifest import Manifest, read_manifest, write_manifest
from storage.objects import ObjectStore, open_store
from storage.png import encode_png
from storage.settings import settings
from storage.shards import Sample, write_shard
from storage.versions import list_versions, said_before, shard_key, version_key
from tasks.method.seal import DataKey
from tests.protected import protect_images
from tests.spilled import variant_of

KEY = DataKey(bytes(32), "pets")
CLEAN = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def variants(home: Path) -> list[Path]:
    """Two protections of the same images."""
    return [
        variant_of(settings().data_path("pets", f"{seed}"), "pets", protect_images(CLEAN, KEY, seed)) for seed in (0, 1)
    ]


def clean_variant() -> Path:
    folder = settings().data_path("pets", "clean")
    folder.mkdir(parents=True)
    shard = write_shard(folder / "train-000000.tar", [Sample("a", encode_png(CLEAN[0]), 0)])
    write_manifest(folder, Manifest(dataset="pets", split="train", classes=["cat"], shards=[shard]))
    return folder


def dmcp(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def public() -> set[str]:
    with object_store():
        return {version.id for version in list_versions(open_store(settings(), "public"), "pets")}


def withdrawn() -> list[str | None]:
    with open_audit_log(settings()) as log:
        return [entry.subject for entry in log.entries(action="version.withdraw")]


def test_the_embedded_store_keeps_one_of_them(variants: list[Path]) -> None:
    first, second = (publish_folder.fn(str(variant), "pets")["id"] for variant in variants)
    assert public() == {second}
    assert withdrawn() == [first]
    assert publish_folder.fn(str(variants[1]), "pets")["id"] == second
    assert withdrawn() == [first]


def test_cut_off_before_it_was_withdrawn_it_is_withdrawn_next_time(variants: list[Path]) -> None:
    variants[1].rename(settings().data_path("pets", "protected"))
    first = publish_folder.fn(str(variants[0]), "pets")["id"]
    dmcp("publish", settings().data_path("pets", "protected"), "--earlier", "keep")
    with object_store():
        assert latest_published("pets") is None, "there is something left to do"
        second = publish_folder.fn(str(settings().data_path("pets", "protected")), "pets")["id"]
        assert latest_published("pets") == second
    assert (public(), withdrawn()) == ({second}, [first])


def test_refused_where_others_read(variants: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCP_EARLIER_VERSIONS", "refuse")
    settings.cache_clear()
    first = publish_folder.fn(str(variants[0]), "pets")["id"]
    with pytest.raises(VersionsOverlap, match=f"pets@{first} is public and shows the same images otherwise"):
        publish_folder.fn(str(variants[1]), "pets")
    with object_store():
        assert len(list(open_store(settings(), "public").list("pets/shards/"))) == 2, "nothing was sent"
    assert public() == {first}
    refused = dmcp("publish", variants[1], code=2).stderr
    assert "--earlier withdraw" in refused
    shown = dmcp("publish", variants[1], "--earlier", "withdraw").stdout
    assert f"withdrew {first}" in shown
    assert withdrawn() == [first] and len(public()) == 1


def test_withdrawing_by_hand(variants: list[Path]) -> None:
    first = dmcp("publish", variants[0])
    (version,) = public()
    assert version in first.stdout
    assert "names no version" in dmcp("withdraw", "pets", code=2).stderr
    dmcp("withdraw", "pets@0123456789abcdef", code=8)
    assert f"Withdrew pets@{version}: 4 images" in dmcp("withdraw", f"pets@{version}").stdout
    assert withdrawn() == [version]
    assert "not published" in dmcp("pull", "pets", settings().data_path("out"), code=8).stderr


def test_what_a_publication_that_was_cut_off_left_behind_goes(variants: list[Path]) -> None:
    first, second = (read_manifest(variant) for variant in variants)
    with object_store():
        store = open_store(settings(), "public")
        store.ensure_bucket()
        for shard in first.shards:
            store.put_file(variants[0] / shard.name, shard_key("pets", shard))
        publish_folder.fn(str(variants[1]), "pets")
        assert {o.key for o in store.list("pets/shards/")} == {shard_key("pets", shard) for shard in second.shards}


def test_terms_and_contact_are_kept_until_others_are_given(variants: list[Path], tmp_path: Path) -> None:
    protected = settings().data_path("pets", "protected")
    variants[1].rename(protected)
    (tmp_path / "terms.txt").write_text("Only on Sundays.")
    dmcp("publish", variants[0], "--terms", tmp_path / "terms.txt", "--contact", "ann@example.org", "--creator", "Ann")
    with object_store():
        store = open_store(settings(), "public")
        published = publish_folder.fn(str(protected), "pets")["id"]
        assert said_before(store, "pets") == ("Only on Sundays.\n", About("ann@example.org", "Ann"))
        assert latest_published("pets") == published, "terms of one's own are no reason to publish again"
    dmcp("publish", protected, "--contact", "bob@example.org", "--date", "2026-01-02")
    with object_store():
        assert said_before(store, "pets")[1] == About("bob@example.org", "Ann", None, date(2026, 1, 2))
        assert b"bob@example.org" in store.get_bytes(version_key("pets", published, "README.md"))
        assert public() == {published}, "what is said of a version does not make another one of it"


def test_cut_off_before_it_was_on_record_it_is_put_on_record_next_time(
    variants: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants[0].rename(settings().data_path("pets", "protected"))
    variant = str(settings().data_path("pets", "protected"))
    with monkeypatch.context() as patch:
        patch.setattr(publish, "put_on_record", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish_folder.fn(variant, "pets")
    with object_store():
        assert latest_published("pets") is None
        version = publish_folder.fn(variant, "pets")["id"]
        assert latest_published("pets") == version


def moved(*_: object) -> None:
    raise PublicationConflict("Another publisher was faster.")


def test_a_version_that_is_not_the_latest_is_on_record_and_withdraws_others(
    variants: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish_folder.fn(str(variants[0]), "pets")["id"]
    with monkeypatch.context() as patch:
        patch.setattr(committing, "_move_channel", moved)
        with pytest.raises(PublicationConflict):
            publish_folder.fn(str(variants[1]), "pets")
    assert withdrawn() == [first] and len(public()) == 1


def test_what_nobody_asked_for_is_not_brought_up_to_date_at_night(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pipeline._under_care() is None, "nothing is selected"
    Path("selection.yaml").write_text("{dataset: pets, seeds: [0]}")
    assert pipeline._under_care() is None, "perhaps its protection was only evaluated"
    Path("dvc.lock").write_text("{schema: '2.0', stages: {protect@pets: {cmd: x}}}")
    assert pipeline._under_care() == "pets"
    for action, version in (("publish", "1" * 16), ("publish", "2" * 16), ("withdraw", "1" * 16)):
        publish.put_on_record("pets", f"version.{action}", version, 4)
    assert pipeline._under_care() == "pets"
    publish.put_on_record("pets", "version.withdraw", "2" * 16, 4)
    assert pipeline._under_care() is None, "the owner took it back"
    publish.put_on_record("pets", "version.publish", "2" * 16, 4)
    assert pipeline._under_care() == "pets"


def test_terms_outlive_a_withdrawal(variants: list[Path], tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("Only on Sundays.")
    dmcp("publish", variants[0], "--terms", tmp_path / "terms.txt")
    dmcp("withdraw", f"pets@{public().pop()}")
    dmcp("publish", variants[1])
    with object_store():
        assert said_before(open_store(settings(), "public"), "pets")[0] == "Only on Sundays.\n"


def test_a_publication_that_is_refused_removes_nothing(variants: list[Path]) -> None:
    with object_store():
        store = open_store(settings(), "public")
        store.ensure_bucket()
        store.put_bytes(key := f"pets/shards/{'a' * 64}.tar", b"another publisher's, under way")
        with pytest.raises(NotProtected):
            publish_folder.fn(str(clean_variant()), "pets")
        assert store.exists(key)
        publish_folder.fn(str(variants[0]), "pets")
        assert not store.exists(key)


def test_a_withdrawal_that_was_cut_off_is_on_record(variants: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish_folder.fn(str(variants[0]), "pets")["id"]
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", lambda *_: 1 / 0)
        dmcp("withdraw", f"pets@{first}", code=1)
    assert publish.was_withdrawn("pets"), "else it is published again at night"
    assert public() == {first}
    dmcp("withdraw", f"pets@{first}")
    assert set(withdrawn()) == {first}


def test_at_night_nothing_is_published_to_a_store_that_does_not_have_it(variants: list[Path]) -> None:
    with object_store():
        assert not pipeline._is_here("pets"), "there is not even a bucket"
        first = publish_folder.fn(str(variants[0]), "pets")["id"]
        assert pipeline._is_here("pets")
        dmcp("withdraw", f"pets@{first}")
        assert not pipeline._is_here("pets")
