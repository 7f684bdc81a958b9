"""Images to try the service with: real CIFAR-10 where there is a mirror, else generated ones; protected by the real
method with an untrained surrogate and few steps, which is quick and restores exactly all the same.
"""

from dataclasses import dataclass
from pathlib import Path

from storage.manifest import read_manifest, write_manifest
from storage.shards import Sample, describe_shard, read_shard
from tasks.download import download_dataset
from tasks.learning.models import Normalized, build_model
from tasks.method.seal import DataKey
from tasks.method.sign_perturbation import SignParameters
from tasks.models_io import ModelInfo, save_model
from tasks.protect import ExactMethod, ProtectJob, prepare_library, protect_shard


@dataclass(frozen=True)
class Pictures:
    """The same images clean and protected, in the same order.

    Attributes:
        origin: cifar10 or sample.
        folder: the protected variant.
        clean, protected: its samples.
    """

    origin: str
    folder: Path
    clean: list[Sample]
    protected: list[Sample]


def make_pictures(folder: Path, dataset: str, key: DataKey, mirror: Path | None, images: int, shard: int) -> Pictures:
    """Build a protected variant of so many images.

    Args:
        folder: for everything that is made.
        dataset: the name that the variant carries.
        key: the data set's key.
        mirror: folder with CIFAR-10, or None: `sample` is used.
        images: how many.
        shard: images a shard.
    """
    origin = "cifar10" if mirror else "sample"
    limits = {"train_limit": images, "test_limit": 10, "shard_size": shard}
    clean, protected = folder / "clean", folder / "protected"
    download_dataset(origin, limits, clean, folder / "test", mirror, dataset=dataset)
    manifest = read_manifest(clean)
    model, library = folder / "model.pt", folder / "library.npy"
    network = Normalized(build_model("resnet18", len(manifest.classes), "imagenet", 0), (0.5,) * 3, (0.25,) * 3)
    save_model(model, network, ModelInfo("resnet18", "imagenet", manifest.classes, 32, 32))
    method = ExactMethod(perturbation=SignParameters(steps=1, library=2, batch_size=shard))
    job = ProtectJob(
        dataset, manifest.split, len(manifest.classes), model, prepare_library(clean, model, library, method), method
    )
    protected.mkdir()
    for info in manifest.shards:
        protect_shard(clean / info.name, protected / info.name, job, key)
    infos = [describe_shard(protected / info.name) for info in manifest.shards]
    write_manifest(protected, manifest.model_copy(update={"shards": infos}))
    made = Pictures(origin, protected, _samples(clean), _samples(protected))
    assert [sample.key for sample in made.clean] == [sample.key for sample in made.protected], "images were left out"
    return made


def _samples(variant: Path) -> list[Sample]:
    return [sample for shard in read_manifest(variant).shards for sample in read_shard(variant / shard.name)]
