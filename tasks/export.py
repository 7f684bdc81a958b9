"""A variant as ordinary folders, for programs that do not read shards."""

from pathlib import Path

from storage.errors import DatasetError, UsageError
from storage.files import Progress, replace_directory
from storage.manifest import read_manifest, verify_shard
from storage.shards import read_shard


def export_imagefolder(variant: Path, out: Path, progress: Progress | None = None) -> int:
    """Write `out/CLASS/KEY.png`, as torchvision's ImageFolder reads it. The PNG files are the shards' own bytes.

    Args:
        variant: a folder of shards with its manifest.
        out: a new or empty folder; it appears whole or not at all.
        progress: told the shard's name, images written and images in all.

    Returns:
        The number of images. A class without images has its (empty) folder too.

    Raises:
        UsageError: `out` is not empty.
        CorruptManifest, CorruptShard: the variant is damaged: a shard is not the one its manifest names.
        DatasetError: an image has no label.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty.", "Name a new folder, or remove this one first.")
    manifest = read_manifest(variant)
    done = 0
    with replace_directory(out) as work:
        for name in manifest.classes:
            (work / name).mkdir()
        for shard in manifest.shards:
            verify_shard(variant / shard.name, shard)
            for sample in read_shard(variant / shard.name):
                if sample.label is None or sample.label >= len(manifest.classes):
                    raise DatasetError(f"The image {sample.key} in {variant} has no class.", "Build the variant again.")
                (work / manifest.classes[sample.label] / f"{sample.key}.png").write_bytes(sample.png)
                done += 1
            if progress is not None:
                progress(shard.name, done, manifest.samples)
    return done
