"""Stage `evaluate-protection`: how strong the protection is, against those who train on it and those who try.

It needs the clean images alone: everything is protected anew, under a key that anyone can derive and that guards
nothing (`tasks/evidence/protections.py`). Cells that were answered before, by any preset, are not trained again; the
others are trained side by side, main rows first. A killed run loses the cells in flight; the next one goes on.
"""

from typing import TYPE_CHECKING

from flows.console import note, progress
from flows.engine import flow, task
from flows.stage import stage_main
from storage.settings import settings
from tasks.params import load_params

if TYPE_CHECKING:
    from tasks.evidence.protections import Protected, Surrogate
    from tasks.evidence.suite import Images, Suite


@flow("evaluate-protection")
def evaluate_protection(dataset: str, preset: str) -> None:
    """Write data/DATASET/evidence/PRESET and metrics/evidence-PRESET.json."""
    from flows.evidence_cells import CellRun
    from tasks.evidence.presets import speed_of
    from tasks.evidence.store import Answers
    from tasks.evidence.suite import Suite
    from tasks.learning.device import resolve_device
    from tasks.tracking import open_tracking

    device = resolve_device(settings().device).type
    suite = Suite(load_params(dataset), preset, settings().data_path(dataset), settings(), device)
    answers = Answers(open_tracking(settings()), dataset)  # before anything is computed: does it answer?
    images = _read(suite)
    surrogate = _train_surrogate(suite, images)
    protected = {name: _protect(name, suite, images, surrogate) for name in suite.preset.used()}
    section = suite.params.surrogate
    speed = speed_of(surrogate.images_per_second, section.architecture, section.stem)
    cells = CellRun(suite.jobs(images, protected), answers, speed)
    results = cells.run(device)
    _write(suite, images, surrogate, protected, results)
    note(f"{len(results)} cells answered, {len(cells.todo)} of them trained now.")


@task("read images")
def _read(suite: "Suite") -> "Images":
    return suite.read()


@task("evaluation surrogate")
def _train_surrogate(suite: "Suite", images: "Images") -> "Surrogate":
    with progress("The surrogate") as bars:
        made = suite.surrogate(images, bars)
    note(f"Surrogate: {made.accuracy:.1%} of test images right")
    return made


@task("protect and restore", "protect and restore: {name}")
def _protect(name: str, suite: "Suite", images: "Images", surrogate: "Surrogate") -> "Protected":
    with progress(f"Protecting {images.clean.images.count:,} images: {name}") as bars:
        made = suite.protect(name, images, surrogate, lambda done, total: bars("", done, total))
    facts = made.facts
    note(f"{name}: PSNR {facts.psnr_mean:.1f} dB; {facts.identical:,} of {facts.images:,} come back bit for bit")
    return made


@task("keys and report")
def _write(suite: "Suite", images: "Images", surrogate: "Surrogate", protected: dict, results: list) -> None:  # type: ignore[type-arg]
    suite.write(images, surrogate, protected, results, suite.keys(images, protected))


if __name__ == "__main__":
    stage_main(evaluate_protection)
