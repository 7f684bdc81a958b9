"""Which of the surrogates that were trained before serves a variant, wherever they were kept.

The pipeline keeps one in data/DATASET/surrogate, `dmcp protect` its own below HOME. Each has to find the other's: with
another surrogate every image would be protected anew, and what is published would have to go.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from storage.files import replace_directory
from storage.manifest import Manifest, read_manifest
from tasks.growth import TrainedOn, read_trained_on
from tasks.surrogate import deciding, is_kept

KEPT = ("work", "surrogates")
"""Where `dmcp protect` keeps its own, below HOME: a folder for each."""


def serving(clean: Path, folders: Iterable[Path], params: Any) -> Path | None:
    """The folder whose surrogate was trained on this variant, as it is or before images only came in.

    Args:
        clean: the variant as it is now.
        folders: where a surrogate may be; of several that serve, the one that saw most of the variant is chosen.
        params: section `surrogate`; others trained with other parameters do not serve, and with `keep` false none does.

    Raises:
        CorruptManifest: the variant can not be read.
    """
    values = params if isinstance(params, Mapping) else vars(params)
    if not values.get("keep"):
        return None
    manifest = read_manifest(clean)
    saw = {}
    for folder in sorted(folders):
        record = read_trained_on(folder)
        if record is not None and (is_kept(clean, folder, params) or _is_of(record, folder, manifest, params)):
            saw[folder] = len(record.shards)
    return max(saw, key=saw.__getitem__, default=None)


def _is_of(record: TrainedOn, folder: Path, manifest: Manifest, params: Any) -> bool:
    same = record.shards == [shard.sha256 for shard in manifest.shards] and record.classes == manifest.classes
    return same and record.parameters == deciding(params) and (folder / "model.pt").is_file()


def take_over(folder: Path, out: Path) -> None:
    """Copy a surrogate, with what it was trained on; `out` appears whole."""
    with replace_directory(out) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
