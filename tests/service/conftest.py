"""One running stack for all tests of this package, and the data set `pictures` with its people in it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.pictures import Pictures, make_pictures
from storage.settings import Settings
from tasks.variants import load_arrays
from tests.protected import protect_images
from tests.service.place import Caller, Place

GOOD = 200
PICTURES, PICTURES_SHARD = 500, 25


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("service")
    # Tests look often; the limit of calls has tests of its own.
    settings = Settings(home=folder / "home", data=folder / "data", gateway_port=0, gateway_rate="100000/minute")
    place = Place(folder, settings)
    try:
        data = str(folder / "data" / "sample")
        place.done("data", "get", "sample", data, "--set", f"train_limit={GOOD}", "--set", "test_limit=20")
        place.done("key", "create", "sample")
        place.ann = place.done("access", "add-user", "ann", "--quiet")
        place.done("access", "grant", "ann", "sample", "--days", "1")
        place.operator = place.done("access", "add-user", "root", "--role", "operator", "--quiet")
        place.done("up")
        place.clean = load_arrays(folder / "data" / "sample" / "clean").images
        place.protected = protect_images(place.clean, place.key_of("sample"))
        yield place
    finally:
        place.dmcp("down")


def real_data() -> Path | None:
    """The folder with CIFAR-10, as the fixture `mirror` finds it."""
    named = os.environ.get("DMCP_MIRROR")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    return folder if folder.is_dir() else None


@dataclass
class Shop:
    """Owner and operator as they call the gateway, and the owner's published data set."""

    pictures: Pictures
    version: str
    operator: Caller
    owner: Caller


@pytest.fixture(scope="package")
def shop(place: Place) -> Shop:
    """The owner olga has registered, protected and published `pictures`."""
    operator = place.caller(place.operator)
    owner = place.caller(operator.call("POST", "/operator/users", json={"name": "olga", "role": "owner"})["token"])
    owner.call("POST", "/owner/datasets", json={"name": "pictures", "title": "Pictures"})
    place.done("key", "create", "pictures")
    key = place.key_of("pictures")
    pictures = make_pictures(place.folder / "pictures", "pictures", key, real_data(), PICTURES, PICTURES_SHARD)
    place.done("publish", str(pictures.folder))
    versions = owner.call("GET", "/datasets/pictures/versions")["items"]
    assert [version["latest"] for version in versions] == [True]
    return Shop(pictures, versions[0]["id"], operator, owner)
