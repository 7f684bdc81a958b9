"""Keys as people write them, in shards, and in the owner's ledger."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.errors import CorruptShard, NotFound
from storage.shards import Sample, write_shard
from tasks.ledger import Ledger, assign
from tasks.sample_keys import find_keys, images_named, keys_in, own_images, plain_key

TRAIN = ["cat/1.jpg", "cat/more/2.jpg", "dog/1.jpg", "dog/Käse.png"]


def ledger() -> Ledger:
    splits = {"train": assign(None, TRAIN, range(4), 3), "test": assign(None, ["cat/9.jpg"], [0], 3)}
    return Ledger(source="imagefolder", shard_size=3, classes=["cat", "dog"], splits=splits)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("123", "000000123"),
        ("123.png", "000000123"),
        ("000000123.png", "000000123"),
        ("0000000123", "0000000123"),
        ("cat-7", "cat-7"),
        ("²", "²"),
    ],
)
def test_a_number_means_the_key_with_all_digits(text: str, key: str) -> None:
    assert plain_key(text) == key


def test_keys_are_found_in_shards_and_no_more_are_read_than_it_takes() -> None:
    def shards() -> Iterator[list[str]]:
        yield ["000000001", "000000002"]
        yield ["7", "000000008"]
        raise AssertionError("all were found")

    assert find_keys(["2.png", "1", "7", "8"], shards()) == {
        "2.png": "000000002",
        "1": "000000001",
        "7": "7",
        "8": "000000008",
    }
    assert find_keys(["3", "cat"], [["000000001"], ["000000002"]]) == {"3": None, "cat": None}


def test_keys_of_a_shard_from_a_file_and_from_a_bucket(tmp_path: Path) -> None:
    path = tmp_path / "train-000000.tar"
    write_shard(path, [Sample(f"{i:09d}", b"x" * 5000, i) for i in range(3)])
    expected = ["000000000", "000000001", "000000002"]
    with path.open("rb") as file:
        assert keys_in(file, path.name) == expected

    class Stream:
        def __init__(self, content: bytes) -> None:
            self.read = io.BytesIO(content).read

    assert keys_in(Stream(path.read_bytes()), path.name) == expected
    with pytest.raises(CorruptShard, match="train-000000"):
        keys_in(Stream(b"no tar" * 200), path.name)


def test_file_names_lead_to_keys() -> None:
    assert [(i.key, i.class_name) for i in own_images(ledger())] == [
        ("000000000", "cat"),
        ("000000001", "cat"),
        ("000000002", "dog"),
        ("000000003", "dog"),
    ]

    def named(*files: str) -> list[str]:
        return [image.file for image in images_named(ledger(), files)]

    assert named("cat/1.jpg") == ["cat/1.jpg"]
    assert named("2.jpg", "cat/more/2.jpg", "/home/ann/photos/cat/more/2.jpg") == ["cat/more/2.jpg"]
    assert named("1.jpg") == ["cat/1.jpg", "dog/1.jpg"], "both are shown, and their classes"
    assert named("dog/Ka\u0308se.png") == ["dog/Käse.png"]
    with pytest.raises(NotFound, match=r"called dog/2\.jpg, t/1\.jpg\. Name files"):
        named("cat/1.jpg", "dog/2.jpg", "t/1.jpg")
    with pytest.raises(NotFound, match="test split"):
        named("9.jpg")
