"""What publishing does to versions that show the same images otherwise."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.publish import latest_published, publish_folder
from flows.services import object_store
from storage.audit import open_audit_log
from storage.errors import VersionsOverlap
from storage.objects import open_store
from storage.settings import settings
from storage.versions import list_versions
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
