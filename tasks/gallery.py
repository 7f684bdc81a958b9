"""The image grid of a whole data set: a few images, drawn by a seed."""

from pathlib import Path

from storage.errors import DatasetError
from storage.manifest import read_manifest
from storage.png import decode_png
from storage.shards import Sample, read_shard
from tasks.fidelity import choose_sample
from tasks.grids import GridRow, comparison_grid


def pick_rows(dataset_dir: Path, count: int, seed: int = 0) -> list[GridRow]:
    """Up to `count` rows, drawn from the protected variant; only the shards that hold them are read.

    Raises:
        CorruptManifest, CorruptShard, UnsupportedImage: a variant can not be read.
        DatasetError: an image is not in the clean variant.
    """
    protected = read_manifest(dataset_dir / "protected")
    classes = read_manifest(dataset_dir / "clean").classes
    wanted = choose_sample(protected.samples, count, seed).tolist()
    rows: list[GridRow] = []
    start = 0
    for shard in protected.shards:
        positions = [position - start for position in wanted if start <= position < start + shard.samples]
        start += shard.samples
        if positions:
            samples = read_shard(dataset_dir / "protected" / shard.name)
            clean = _by_key(dataset_dir / "clean" / shard.name)
            recovered = _by_key(dataset_dir / "recovered" / shard.name)
            rows += [_row(samples[position], clean, recovered, classes) for position in positions]
    return rows


def dataset_grid(dataset_dir: Path, count: int, seed: int = 0, *, tile: int = 96) -> bytes:
    """`pick_rows` as PNG bytes, two sets of columns side by side.

    Raises:
        DatasetError: no image is protected; else as `pick_rows`.
    """
    rows = pick_rows(dataset_dir, count, seed)
    if not rows:
        raise DatasetError(
            "No image of the data set is protected: there is nothing to show.", "See metrics/protect.json."
        )
    return comparison_grid(rows, tile=tile, groups=2)


def _by_key(path: Path) -> dict[str, Sample]:
    return {sample.key: sample for sample in read_shard(path)} if path.exists() else {}


def _row(sample: Sample, clean: dict[str, Sample], recovered: dict[str, Sample], classes: list[str]) -> GridRow:
    if sample.key not in clean:
        raise DatasetError(f"The clean variant lacks {sample.key}.", "Variants of different runs: run dvc repro.")
    restored = recovered.get(sample.key)
    return GridRow(
        decode_png(clean[sample.key].png, sample.key),
        decode_png(sample.png, sample.key),
        None if restored is None else decode_png(restored.png, sample.key),
        "" if sample.label is None else classes[sample.label],
    )
