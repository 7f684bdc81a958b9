"""One evaluation from its parameters to its results: what the flow `evaluate-protection` does step by step.

`Suite` holds the parameters and where things lie; each step returns what the next ones need. Whatever was made before
is found again, by digests: see `images`, `surrogates`, `protections`, `store`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from storage.settings import Settings
from tasks.evidence.cells import CellJob, Networks, jobs_of
from tasks.evidence.images import Split, forget_old, read_split
from tasks.evidence.outputs import write_outputs
from tasks.evidence.presets import GROUPS, cells_of
from tasks.evidence.protections import Plan, Protected, Surrogate, evaluation_key, protect_images
from tasks.evidence.records import CellResult, Evidence, KeyTrial, Setting
from tasks.evidence.store import evidence_home
from tasks.evidence.surrogates import surrogate_of
from tasks.machine import describe_machine, package_versions
from tasks.params import Params, deep_merge, preset_named
from tasks.protect import method_named

CHOSEN = "section protect"


@dataclass(frozen=True)
class Images:
    """Clean training images and clean test images."""

    clean: Split
    test: Split


class Suite:
    """An evaluation of one data set by one preset.

    Args:
        folder: data/DATASET: holds `clean` and `test`, gets `evidence/PRESET` and `metrics/evidence-PRESET.json`.
        device: "cpu" or "cuda".

    Raises:
        ParameterError: there is no such preset.
    """

    def __init__(self, params: Params, preset: str, folder: Path, settings: Settings, device: str) -> None:
        self.params, self.name, self.folder, self.settings, self.device = params, preset, folder, settings, device
        self.preset = preset_named(params, preset)
        self.home = evidence_home(settings)
        self.started = time.monotonic()

    def read(self) -> Images:
        """The images of the preset."""
        size = self.preset.image_size
        return Images(
            read_split(self.folder / "clean", self.home, self.preset.images, size),
            read_split(self.folder / "test", self.home, self.preset.test_images, size),
        )

    def surrogate(self, images: Images, progress: Callable[[str, int, int | None], None]) -> Surrogate:
        """The owner's network; two runs at once train it once."""
        with self._one_at_a_time("surrogate"):
            section = self.params.surrogate
            return surrogate_of(section, images.clean, images.test.images, self.home, self.device, progress)

    def plan(self, name: str) -> Plan:
        """How a protection protects. Raises ParameterError where its values are no section `protect`."""
        return self._plan(name, self.params.evidence.protections[name])

    def protect(
        self, name: str, images: Images, surrogate: Surrogate, progress: Callable[[int, int], None]
    ) -> Protected:
        """The images under one protection, restored and measured; two runs at once make them once."""
        plan = self.plan(name)
        return protect_images(plan, images.clean, surrogate, self.home, self.device, self.settings.workers, progress)

    def jobs(self, images: Images, protected: Mapping[str, Protected]) -> dict[str, list[CellJob]]:
        """All cells by group."""
        networks = Networks.of(self.preset, len(images.clean.classes), self.device)
        cells = cells_of(self.preset)
        clean, test = images.clean.images, images.test.images
        return {g: jobs_of(cells[g], clean, test, protected, networks, self.home) for g in GROUPS}

    def keys(self, images: Images, protected: Mapping[str, Protected]) -> list[KeyTrial]:
        """What comes of wrong keys and mixed-up images, under each protection."""
        n = self.preset.key_trials
        if not n:
            return []
        from tasks.evidence.keys import KeyCounts, try_keys

        key, counts = evaluation_key(self.params.dataset, self.preset.key_seed), KeyCounts(min(n, 16), n, n, 8 * n)
        clean = images.clean.images.load()
        methods = {name: method_named(self.plan(name).section) for name in protected}
        return [t for name, method in methods.items() for t in try_keys(name, method, clean, key, counts=counts)]

    def write(
        self,
        images: Images,
        surrogate: Surrogate,
        protected: Mapping[str, Protected],
        cells: Sequence[CellResult],
        keys: Sequence[KeyTrial],
    ) -> Evidence:
        """Put results, plots, report and metrics in place."""
        networks = Networks.of(self.preset, len(images.clean.classes), self.device)
        setting = Setting(
            dataset=self.params.dataset,
            preset=self.name,
            images=images.clean.images.count,
            test_images=images.test.images.count,
            classes=len(images.clean.classes),
            recipe=networks.recipe.name,
            epochs=networks.recipe.epochs,
            stem=networks.stem,
            surrogate=self.params.surrogate.model_dump(mode="json"),
            surrogate_accuracy=surrogate.accuracy,
            seeds=self.preset.seeds,
        )
        evidence = Evidence(
            setting=setting,
            protections=[one.facts for one in protected.values()],
            cells=list(cells),
            keys=list(keys),
            machine={**describe_machine(), "packages": package_versions()},
            command=f"dmcp evaluate-protection --dataset {self.params.dataset} --preset {self.name}",
            seconds=round(time.monotonic() - self.started, 1),
        )
        own = self._plan(CHOSEN, {}).parameters
        judged = next((name for name, one in protected.items() if one.method == own), None)
        rows = self.params.evaluate.grid_images
        write_outputs(evidence, judged, images.clean.images, protected, rows, self.folder, self.name)
        forget_old(self.home)
        return evidence

    def _plan(self, name: str, over: Mapping[str, object]) -> Plan:
        section = deep_merge(self.params.protect.model_dump(mode="json"), over)
        checked = Params.model_validate(self.params.model_dump() | {"protect": section}).protect.model_dump(mode="json")
        return Plan(name, checked, self.params.dataset, self.preset.key_seed, self.params.evaluate.quality_images)

    def _one_at_a_time(self, what: str) -> FileLock:
        return FileLock(self.home / f"{self.params.dataset}-{what}.lock")
