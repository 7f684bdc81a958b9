"""The stages download, surrogate, protect and restore, run in this process on a small real data set."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import access
from flows.protect import protect
from flows.restore import restore
from storage.errors import GrantRevoked, Refused, UnknownKey
from storage.files import sha256_file
from storage.manifest import read_manifest, verify_variant, write_manifest
from storage.png import encode_png
from storage.settings import settings
from storage.shards import Sample, read_shard, write_shard
from tasks.digests import dvc_digest
from tasks.variants import load_arrays
from tests.flows.world import PROJECT, SHARD_SIZE, SHARDS, entered, write_tiny_params

IMAGES = SHARDS * SHARD_SIZE


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def copy(built: Path, tmp_path: Path):
    """A copy of the world that a test may change."""
    shutil.copytree(built, tmp_path / "copy")
    with entered(tmp_path / "copy") as folder:
        yield folder


def test_variants_are_whole_and_belong_together(world: Path) -> None:
    for variant in ("clean", "test", "protected", "recovered"):
        verify_variant(world / "data/sample" / variant)
    clean, recovered = (load_arrays(world / "data/sample" / name) for name in ("clean", "recovered"))
    assert len(clean.images) == IMAGES
    assert clean.keys == recovered.keys
    assert (clean.labels == recovered.labels).all()


def test_the_recovered_variant_is_the_clean_one_and_the_protected_one_far_off(world: Path) -> None:
    data = world / "data/sample"
    assert dvc_digest(data / "recovered") == dvc_digest(data / "clean") != dvc_digest(data / "protected")
    clean, protected = (load_arrays(data / name).images.astype(np.int16) for name in ("clean", "protected"))
    assert np.abs(clean - protected).mean() > 3


def test_metrics_count_every_image(world: Path) -> None:
    made = json.loads((world / "data/sample/metrics/protect.json").read_text())
    assert made["images"] == made["protected"] + len(made["left_out"]) == IMAGES
    assert sum(made["rungs"].values()) == made["protected"]
    restored = json.loads((world / "data/sample/metrics/restore.json").read_text())
    assert restored["images"] == restored["restored"] == made["protected"]


def test_nothing_published_or_recorded_holds_the_key(world: Path) -> None:
    key_id = access.current_key_id("sample")
    secret = access.open_vault(settings()).secret(key_id)
    for path in [*(world / "data").rglob("*"), *(world / ".dmcp/work").rglob("*"), *(world / ".dmcp").glob("*.db")]:
        if path.is_file():
            content = path.read_bytes()
            assert secret not in content and secret.hex().encode() not in content, path


def test_bytes_do_not_depend_on_the_number_of_workers(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(copy / "data/sample/protected"), digests(copy / "data/sample/recovered")
    shutil.rmtree(copy / ".dmcp/work")
    monkeypatch.setenv("DMCP_WORKERS", "1")
    settings.cache_clear()
    protect("sample")
    restore("sample")
    assert (digests(copy / "data/sample/protected"), digests(copy / "data/sample/recovered")) == before


def test_finished_shards_are_not_computed_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(copy / "data/sample/protected")
    shutil.rmtree(copy / "data/sample/protected")
    (work,) = works(copy)
    slots = sorted(path for path in work.iterdir() if path.is_dir())
    assert len(slots) == SHARDS
    shutil.rmtree(slots[0])
    kept = {path: path.stat().st_mtime_ns for slot in slots[1:] for path in slot.iterdir()}
    protect("sample")
    assert digests(copy / "data/sample/protected") == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert slots[0].exists()


def test_a_killed_run_goes_on_with_what_was_not_finished(copy: Path, prefect_api: str) -> None:
    slow = {"exact": {"perturbation": {"steps": 25, "library": 4, "batch_size": 32}}}
    write_tiny_params(copy, protect=slow)
    environment = os.environ | {"PREFECT_API_URL": prefect_api, "PYTHONPATH": str(PROJECT), "DMCP_WORKERS": "1"}
    command = [sys.executable, "-m", "flows.protect", "--dataset", "sample"]
    old = works(copy)
    process = subprocess.Popen(command, env=environment, cwd=copy, start_new_session=True)
    while not (reports := _reports(copy, old)):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reports = _reports(copy, old)
    assert 1 <= len(reports) < SHARDS
    before = {path: path.stat().st_mtime_ns for path in reports}

    protect("sample")
    assert {path: path.stat().st_mtime_ns for path in reports} == before
    resumed = digests(copy / "data/sample/protected")
    verify_variant(copy / "data/sample/protected")
    shutil.rmtree(copy / ".dmcp/work")
    protect("sample")
    assert digests(copy / "data/sample/protected") == resumed


def works(folder: Path) -> set[Path]:
    return {path for path in (folder / ".dmcp/work/protect/sample").iterdir() if path.is_dir()}


def _reports(folder: Path, but: set[Path]) -> list[Path]:
    return [path for work in works(folder) - but for path in work.glob("*/report.json")]


def test_other_parameters_are_other_work(copy: Path) -> None:
    before = digests(copy / "data/sample/protected")
    work = works(copy)
    write_tiny_params(copy, protect={"exact": {"set": {"amplitude": 9}}})
    protect("sample")
    assert digests(copy / "data/sample/protected")["train-000000.tar"] != before["train-000000.tar"]
    now = works(copy)
    assert len(now) == 1 and now != work


def test_a_vault_without_the_key_stops_the_stages(copy: Path) -> None:
    (copy / ".dmcp/vault.json").unlink()
    for stage in (protect, restore):
        with pytest.raises(UnknownKey, match=r"backup.*dmcp key create sample"):
            stage("sample")
    with pytest.raises(UnknownKey):
        access.ensure_key("sample")
    access.open_vault(settings()).create("sample")
    assert access.ensure_key("sample") == access.current_key_id("sample")


def test_the_restore_stage_needs_its_grant(copy: Path) -> None:
    with access.registry() as book:
        book.revoke(access.PIPELINE_USER, "sample")
    with pytest.raises(GrantRevoked):
        restore("sample")
    with access.registry() as book:
        assert book.list_requests(limit=1)[0].state == "failed"


def test_an_image_that_does_not_come_back_fails_the_stage(copy: Path) -> None:
    folder = copy / "data/sample/protected"
    name = "train-000001.tar"
    samples = read_shard(folder / name)
    image = np.array(Image.open(io.BytesIO(samples[3].png)))
    image[8, 8] ^= 64
    samples[3] = Sample(samples[3].key, encode_png(image), samples[3].label)
    manifest = read_manifest(folder)
    shards = list(manifest.shards)
    shards[1] = write_shard(folder / name, samples)
    write_manifest(folder, manifest.model_copy(update={"shards": shards}))
    before = digests(copy / "data/sample/recovered")
    with pytest.raises(Refused, match=rf"1 of {IMAGES} images .*{samples[3].key}: AlteredImage"):
        restore("sample")
    assert digests(copy / "data/sample/recovered") == before
