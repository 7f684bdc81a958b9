"""The commands one by one, on real folders, a real vault, registry and object store."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.commands.common import params_for, parse_sets
from flows.commands.request import _general
from flows.commands.run import show_table
from flows.dispatch import failure
from flows.publish import publish_folder
from storage import errors
from storage.audit import open_audit_log
from storage.errors import DmcpError, ParameterError, UsageError
from storage.keys import open_vault
from storage.manifest import Manifest, write_manifest
from storage.png import encode_png
from storage.registry import open_registry
from storage.settings import Settings, settings
from storage.shards import Sample, write_shard
from tasks.evaluate import evaluate
from tasks.method.seal import DataKey
from tests.protected import protect_images
from tests.services import make_variant
from tests.spilled import variant_of
from tests.tasks.evaluation_folder import PARAMS, make_folder


def dmcp(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


# --- keys and access -------------------------------------------------------------------------------------------------


def test_keys_are_made_and_listed_and_never_shown(home: Path) -> None:
    nothing = dmcp("key", "list").stdout
    assert "no vault" in nothing and str(home / "vault.json") in nothing and "DMCP_HOME" in nothing
    first = dmcp("key", "create", "pets").stdout
    second = dmcp("key", "create", "--dataset", "pets").stdout
    vault = open_vault(Settings(home=home))
    ids = [record.key_id for record in vault.list()]
    assert ids[0] in first
    assert ids[1] in second
    assert "number 2 of pets" in second
    listed = dmcp("key", "list").stdout
    assert all(key_id in listed for key_id in ids)
    for key_id in ids:
        assert vault.secret(key_id).hex() not in first + second + listed
    assert "No data set is named" in dmcp("key", "create", code=2).stderr


def test_who_makes_a_key_owns_the_data_set_unless_someone_does(home: Path) -> None:
    dmcp("access", "add-user", "olga", "--role", "owner")
    dmcp("access", "register", "cars", "olga")
    for name in ("pets", "cars", "pets"):
        dmcp("key", "create", name)
    with open_registry(Settings(home=home)) as book:
        assert {made.name: made.owner.name for made in book.list_datasets()} == {"cars": "olga", "pets": "owner"}
    with open_audit_log(Settings(home=home)) as log:
        registered = [(entry.dataset, entry.actor) for entry in log.entries(action="dataset.register")]
    assert registered == [("cars", "local"), ("pets", "local")]


def test_users_and_grants(home: Path) -> None:
    token = dmcp("access", "add-user", "ann", "--quiet").stdout.strip()
    assert token.startswith("dmcp_")
    assert "exists" in dmcp("access", "add-user", "ann", code=2).stderr
    dmcp("key", "create", "pets")
    assert "until" in dmcp("access", "grant", "ann", "pets", "--days", 3).stdout
    assert "without an end" in dmcp("access", "grant", "ann", "cars", "--ahead").stdout
    assert "past" in dmcp("access", "grant", "ann", "pets", "--until", "2020-01-01", code=2).stderr
    dmcp("access", "grant", "ann", "pets", "--until", "2999-01-01", "--days", 3, code=2)
    assert "no user" in dmcp("access", "grant", "bob", "pets", code=8).stderr
    dmcp("access", "revoke", "ann", "pets")
    dmcp("access", "revoke", "ann", "pets", code=8)
    dmcp("access", "add-user", "eve")
    listed = dmcp("access", "list").stdout
    assert token not in listed
    lines = {tuple(line.split()[:1] + line.split()[2:3]): line for line in listed.splitlines()[1:]}
    assert "revoked" in lines["ann", "pets"]
    assert "in force" in lines["ann", "cars"]
    assert "no grant" in lines["eve", "-"]
    assert dmcp("access", "rotate-token", "ann", "--quiet").stdout.strip() != token


def test_a_grant_for_what_is_not_there_is_refused(home: Path, tmp_path: Path) -> None:
    dmcp("access", "add-user", "ann")
    assert "Known: none" in dmcp("access", "grant", "ann", "pets", code=8).stderr
    dmcp("access", "add-user", "olga", "--role", "owner")
    dmcp("access", "register", "cars", "olga")
    dmcp("key", "create", "pets")
    said = dmcp("access", "grant", "ann", "pest", "--days", 3, code=8).stderr
    assert "no data set pest" in said and "Known: cars, pets. To grant what is not there yet: --ahead" in said
    dmcp("access", "grant", "ann", "cars", "--class", "nosuch")  # nothing is published that could say otherwise

    clean = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    pets = variant_of(tmp_path / "p", "pets", protect_images(clean, DataKey(bytes(32), "pets")))
    version = dmcp("publish", pets).stdout.split("pets@")[1][:16]
    dmcp("access", "grant", "ann", "pets", "--version", version, "--class", "cat")
    said = dmcp("access", "grant", "ann", "pets", "--version", "deadbeef" * 2, code=8).stderr
    assert f"Published: {version}." in said
    assert "Its classes: cat, dog." in dmcp("access", "grant", "ann", "pets", "--class", "nosuch", code=8).stderr
    dmcp("access", "grant", "ann", "pets", "--class", "nosuch", "--ahead")


# --- variants --------------------------------------------------------------------------------------------------------


def test_verify_export_and_their_refusals(home: Path, tmp_path: Path) -> None:
    make_variant(tmp_path / "v")
    assert "12 images of 2 classes in 3 shards" in dmcp("verify", tmp_path / "v").stdout
    assert "Wrote 12 images" in dmcp("export", tmp_path / "v", tmp_path / "out", "--as", "imagefolder").stdout
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 12
    dmcp("export", tmp_path / "v", tmp_path / "out", code=2)
    dmcp("export", tmp_path / "v", tmp_path / "other", "--as", "parquet", code=2)
    shard = tmp_path / "v" / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    assert "train-000001.tar" in dmcp("verify", tmp_path / "v", code=3).stderr


def test_data_get_builds_both_variants(home: Path, tmp_path: Path) -> None:
    assert "cifar10" in dmcp("data", "list").stdout
    out = tmp_path / "data" / "sample"
    said = dmcp("data", "get", "sample", out, "--set", "train_limit=40", "--set", "test_limit=16").stdout
    assert "40 images to protect and 16 to test with" in said
    assert "40 images" in dmcp("verify", out / "clean").stdout
    assert "16 images" in dmcp("verify", out / "test").stdout
    dmcp("data", "get", "sample", out, "--set", "colour=blue", code=2)
    dmcp("data", "get", "nothing", out, code=8)


def test_data_get_replaces_no_other_data_set(home: Path, tmp_path: Path) -> None:
    small = ("--set", "train_limit=8", "--set", "test_limit=8")
    out = tmp_path / "v"
    dmcp("data", "get", "sample", out, "--dataset", "mine", *small)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    said = dmcp("data", "get", "sample", out, "--dataset", "other", *small, code=2).stderr
    assert f"{out / 'clean'} holds the data set mine, not other" in said
    dmcp("data", "get", "sample", out, code=2)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    dmcp("data", "get", "sample", out, "--dataset", "mine", *small)
    (out / "clean").rename(out / "protected")
    (out / "test").rename(tmp_path / "test")
    assert "protected holds" in dmcp("data", "get", "sample", out, "--dataset", "other", *small, code=2).stderr


def test_data_get_takes_a_folder_of_ones_own(home: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for i in range(5):
            image = Image.fromarray(random.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8))
            image.save(tmp_path / "mine" / label / f"{i}.{'png' if i % 2 else 'jpg'}")
    said = dmcp("data", "get", "imagefolder", tmp_path / "v", "--path", tmp_path / "mine", "--dataset", "pets").stdout
    assert "Built pets" in said
    assert "data set  pets" in dmcp("verify", tmp_path / "v" / "clean").stdout


def test_data_get_warns_of_images_that_come_twice(home: Path, tmp_path: Path) -> None:
    for label, shades in (("cat", (1, 2, 1)), ("dog", (1, 3, 4))):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for i, shade in enumerate(shades):
            Image.new("RGB", (20, 20), (shade, 0, 0)).save(tmp_path / "mine" / label / f"{i}.png")
    get = ("data", "get", "imagefolder", tmp_path / "v", "--path", tmp_path / "mine", "--dataset", "pets")
    said = dmcp(*get, "--set", f"test_path={tmp_path / 'mine'}").stderr
    assert "Warning: the same pixels come again in 2 of 6 training images" in said
    assert "cat/2.png is cat/0.png, dog/0.png is cat/0.png" in said
    assert (tmp_path / "v" / "duplicates.csv").read_text().splitlines()[1:] == [
        "cat/2.png,cat/0.png",
        "dog/0.png,cat/0.png",
    ]


def test_protect_says_what_is_missing(home: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    cure = dmcp("protect", tmp_path / "images", tmp_path / "p", code=3).stderr
    assert f"dmcp data get imagefolder OUT --path {tmp_path / 'images'}" in cure
    make_variant(tmp_path / "v", dataset="pets")
    said = dmcp("protect", tmp_path / "v", tmp_path / "p", code=5).stderr
    assert said.index("If you made one elsewhere") < said.index("DMCP_HOME") < said.index("dmcp key create pets")
    assert "not cars" in dmcp("protect", tmp_path / "v", tmp_path / "p", "--dataset", "cars", code=2).stderr
    assert "block" in dmcp("protect", tmp_path / "v", tmp_path / "p", "--set", "paper.transform.block=3", code=2).stderr
    assert not (tmp_path / "p").exists()


def test_protect_replaces_nothing_of_the_owners(home: Path, tmp_path: Path) -> None:
    make_variant(tmp_path / "clean", dataset="pets")
    make_variant(tmp_path / "recovered", dataset="pets")
    dmcp("key", "create", "pets")
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*.*")}
    (tmp_path / "link").symlink_to(tmp_path / "clean")
    for target in ("clean", "link", "recovered", "clean/protected", ""):
        said = dmcp("protect", tmp_path / "clean", tmp_path / target, code=2).stderr
        assert "Name" in said
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*.*") if path.parent.name != "link"} == before


@pytest.fixture
def pets(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean variant with a key; nothing may be trained on it, nor anything be protected."""

    def too_late(*_: object, **__: object) -> None:
        pytest.fail("it went on")

    monkeypatch.setattr("tasks.surrogate.train_surrogate", too_late)
    monkeypatch.setattr("flows.protect.run_protect", too_late)
    make_variant(tmp_path / "clean", dataset="pets")
    dmcp("key", "create", "pets")
    return tmp_path / "clean"


@pytest.mark.parametrize(
    "options, said",
    [
        (["--set", "exact.set.amplitude=0"], "amplitude is 0"),
        (["--set", "exact.perturbation.steps=0"], "steps is 0"),
        (["--set", "profile=paper", "--set", "surrogate.architecture=linear"], "no layer 'layer4'"),
        (["--set", "exact.layer=layer9"], "no layer 'layer9'"),
        (["--set", "surrogate.architecture=nothing"], "nothing"),
        (["--surrogate", "nowhere.pt"], "nowhere.pt"),
        (["--surrogate", "."], "directory"),
        (["--surrogate", __file__, "--set", "surrogate.epochs=3"], "--surrogate names one that is"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(pets: Path, options: list[str], said: str) -> None:
    assert said in dmcp("protect", pets, pets.with_name("p"), *options, code=2).output


@pytest.mark.parametrize(
    "architecture, accuracy, said",
    [
        ("resnet18", 0.5, "expect no protection"),
        ("resnet18", 0.9, ""),
        ("linear", 0.9, "A linear surrogate protects nothing"),
    ],
)
def test_little_is_expected_of_a_poor_surrogate(
    pets: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, accuracy: float, said: str
) -> None:
    metrics = {"test_accuracy": accuracy, "n_test": 100}

    def train(clean: Path, test: Path, out: Path, *_: object, **__: object) -> dict[str, float]:
        out.mkdir(parents=True)
        (out / "metrics.json").write_text(json.dumps(metrics))
        (out / "model.pt").touch()
        return metrics

    def protect(*_: object) -> None:
        raise UsageError("So far.", "And no further.")

    monkeypatch.setattr("tasks.surrogate.train_surrogate", train)
    monkeypatch.setattr("flows.services.prefect_server", nullcontext)
    monkeypatch.setattr("flows.protect.run_protect", protect)
    for _ in range(2):  # the second time it is there
        told = dmcp("protect", pets, pets.with_name("p"), "--set", f"surrogate.architecture={architecture}", code=2)
        assert "So far" in told.stderr
        assert ("Warning:" in told.stderr) == bool(said)
        assert said in told.stderr


def test_large_images_are_told_before_anything_is_trained(
    pets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def train(*_: object, **__: object) -> None:
        raise UsageError("So far.", "And no further.")

    monkeypatch.setattr("tasks.surrogate.train_surrogate", train)
    monkeypatch.setenv("DMCP_DEVICE", "cpu")
    settings.cache_clear()
    assert "megapixels" not in dmcp("protect", pets, tmp_path / "p", code=2).stderr
    photograph = np.random.default_rng(0).integers(0, 256, (1100, 1000, 3), dtype=np.uint8)
    folder = tmp_path / "large"
    folder.mkdir()
    shard = write_shard(folder / "train-000000.tar", [Sample("000000000", encode_png(photograph), 0)])
    write_manifest(folder, Manifest(dataset="pets", split="train", classes=["cat", "dog"], shards=[shard]))
    assert "mages of up to 1.1 megapixels." in dmcp("protect", folder, tmp_path / "p", code=2).stderr


def test_a_locked_vault_is_told_before_anything_is_trained(pets: Path, home: Path) -> None:
    (home / "vault.key").write_bytes(bytes(32))
    dmcp("protect", pets, pets.with_name("p"), code=5)


def test_what_can_not_be_protected_is_told_before_anything_is_trained(pets: Path, tmp_path: Path) -> None:
    clean = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    made = variant_of(tmp_path / "made", "pets", protect_images(clean, DataKey(bytes(32), "pets")))
    assert "protected already" in dmcp("protect", made, tmp_path / "p", code=2).stderr
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    assert "something else" in dmcp("protect", pets, tmp_path / "photos", code=2).stderr
    write_manifest(tmp_path / "test", Manifest(dataset="pets", split="test", classes=["cat", "dog"], shards=[]))
    assert "never protected" in dmcp("protect", tmp_path / "test", tmp_path / "p", code=2).stderr
    next(pets.glob("*.tar")).unlink()
    assert "is missing" in dmcp("protect", pets, tmp_path / "p", code=3).stderr


def test_train_replaces_nothing_but_a_model(home: Path, tmp_path: Path) -> None:
    make_variant(tmp_path / "v")
    make_variant(tmp_path / "test")
    (tmp_path / "file").touch()
    for out in ("v", "file", ""):
        said = dmcp("train", tmp_path / "v", "--out", tmp_path / out, code=2).stderr
        assert "Name another folder" in said
    dmcp("verify", tmp_path / "v")


def test_inspect_shows_what_a_protected_image_says(home: Path, tmp_path: Path) -> None:
    key = DataKey(bytes(32), "pets")
    clean = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for i, png in enumerate(protect_images(clean, key)):
        (tmp_path / f"{i}.png").write_bytes(png)
    Image.fromarray(clean[0]).save(tmp_path / "plain.png")
    shown = dmcp("inspect", tmp_path / "0.png", tmp_path / "1.png", tmp_path / "plain.png").stdout
    assert shown.count(key.key_id.hex()) == 2
    assert shown.count("paper") == 2
    assert "NotProtected" in shown
    assert "never protected" in dmcp("inspect", tmp_path / "plain.png", code=7).stderr
    dmcp("inspect", tmp_path / "plain.png", tmp_path / "plain.png", code=7)
    assert "dmcp export" in dmcp("inspect", tmp_path, code=3).stderr


def test_a_path_that_leads_nowhere_has_one_exit_code(home: Path, tmp_path: Path) -> None:
    make_variant(tmp_path / "v", dataset="pets")
    dmcp("key", "create", "pets")
    nowhere = tmp_path / "nowhere"
    for command in (
        ("inspect", nowhere),
        ("verify", nowhere),
        ("train", nowhere),
        ("export", nowhere, tmp_path / "out"),
        ("publish", nowhere),
        ("protect", nowhere, tmp_path / "out"),
        ("data", "get", "imagefolder", tmp_path / "out", "--path", nowhere),
        ("request", nowhere, "--token", "x", "--subset", nowhere),
        ("access", "terms", "set", "pets", nowhere),
    ):
        assert str(nowhere) in dmcp(*command, code=3).stderr


@pytest.mark.parametrize("command", ["run", "evaluate-protection"])
def test_an_unknown_data_set_is_told_before_anything_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("flows.services.prefect_server", lambda: pytest.fail("it went on"))
    said = dmcp(command, "--dataset", "mine", code=2).stderr
    assert "no data set 'mine'" in said
    assert "  mine:\n    seeds: [0]\n" in said
    assert "source: imagefolder" in said
    assert not home.exists()


# --- requests --------------------------------------------------------------------------------------------------------


def test_who_hands_in_without_a_right_is_told_so(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "1.png")
    assert "DMCP_TOKEN" in dmcp("request", tmp_path / "in", code=6).stderr
    said = dmcp("request", tmp_path / "in", "--token", "dmcp_nobody", code=6).stderr
    assert "this machine's own registry" in said and str(home / "registry.db") in said and "dmcp remote login" in said
    token = dmcp("access", "add-user", "ann", "--quiet").stdout.strip()
    assert "no grant" in dmcp("request", tmp_path / "in", "--token", token, code=6).stderr
    dmcp("access", "grant", "ann", "pets", "--ahead")
    monkeypatch.setenv("DMCP_TOKEN", token)
    assert "Not one of the 1 images" in dmcp("request", tmp_path / "in", code=7).stderr
    assert "no request yet" in dmcp("requests").stdout
    clean = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "in" / "2.png").write_bytes(protect_images(clean, DataKey(bytes(32), "pets"))[0])
    request_id = dmcp("request", tmp_path / "in", "--quiet").stdout.strip()
    assert len(request_id) == 32
    listed = dmcp("requests").stdout
    assert request_id in listed
    assert "pending" in listed
    assert token not in listed
    dmcp("request", tmp_path / "nothing", code=3)
    said = dmcp("request", "nowhere", code=6).stderr
    assert said.index("no file or folder nowhere here") < said.index("ann holds no grant for nowhere")
    assert "`dmcp requests` shows" in dmcp("restore", "0" * 32, tmp_path / "out", code=8).stderr
    dmcp("restore", request_id, tmp_path / "in", code=2)


def test_what_is_published_has_an_owner(home: Path, tmp_path: Path) -> None:
    clean = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    pets, cars = (
        variant_of(tmp_path / name, name, protect_images(clean, DataKey(bytes(32), name))) for name in ("pets", "cars")
    )
    dmcp("publish", pets)
    publish_folder.fn(str(cars), "cars")
    with open_registry(Settings(home=home)) as book:
        assert {made.name: made.owner.name for made in book.list_datasets()} == {"cars": "owner", "pets": "owner"}


def test_pull_of_what_is_not_published(home: Path, tmp_path: Path) -> None:
    said = dmcp("pull", "pets", tmp_path / "out", code=8).stderr
    assert "not published" in said and "this machine's own object store" in said and "DMCP_S3_ENDPOINT" in said


def test_status_and_down_where_nothing_runs(home: Path) -> None:
    assert dmcp("status").stdout.count("stopped") == 5
    assert "Nothing was running" in dmcp("down").stdout


# --- parts -----------------------------------------------------------------------------------------------------------


names = st.text("abcdefghij_", min_size=1, max_size=6)
scalars = st.one_of(st.integers(-1000, 1000), st.booleans(), names.map(lambda name: f"x{name}"))


@given(st.dictionaries(names, st.one_of(scalars, st.dictionaries(names, scalars, min_size=1)), max_size=5))
def test_sets_are_read_as_they_are_written(tree: dict[str, object]) -> None:
    texts = []
    for name, value in tree.items():
        inner = value if isinstance(value, dict) else {"": value}
        texts += [f"{f'{name}.{below}'.rstrip('.')}={json.dumps(leaf)}" for below, leaf in inner.items()]
    assert parse_sets(texts) == tree


@pytest.mark.parametrize("text", ["epochs", "=3", "a..b=3", "a=[1", ".=1"])
def test_sets_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_sets([text])


def test_an_unknown_data_set_has_the_parameters_of_a_folder() -> None:
    params = params_for("holidays", {"train": {"epochs": 3}})
    assert params.dataset == "holidays"
    assert params.train.epochs == 3
    assert params.train.image_size == params_for("imagefolder", {}).train.image_size
    with pytest.raises(ParameterError, match=r"train\.epochs"):
        params_for("holidays", {"train": {"epochs": 0}})


OURS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DmcpError)]


@pytest.mark.parametrize("kind", OURS)
def test_a_failure_keeps_its_class_on_the_way_through_the_registry(kind: type[DmcpError]) -> None:
    error = kind("The grant: of ann.", "Ask: for one.")
    again = failure(f"{type(error).__name__}: {error}")
    assert type(again) is kind
    assert again.exit_code == error.exit_code
    assert str(again) == str(error)


@pytest.mark.parametrize("message", ["", "ValueError: bad", "Path: x", "annotations: y", "no colon"])
def test_what_was_unforeseen_stays_unforeseen(message: str) -> None:
    assert type(failure(message)) is DmcpError
    assert failure(message).exit_code == 1


def test_reasons_of_several_images_count_together() -> None:
    assert _general("img1.png: cut off", "img1.png") == _general("img2.png: cut off", "img2.png")


def test_the_table_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_table(evaluate(make_folder(tmp_path), PARAMS))
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.split()[:1] == ["protected"])
    assert "52.0" in row  # the mean of 50 and 54
    assert "± 2.8" in row
    assert any(line.startswith("Trained on protected images") for line in lines)
