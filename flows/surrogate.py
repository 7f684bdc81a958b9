"""Stage `surrogate`: the network whose features the perturbation aims at."""

from flows.console import note, progress
from flows.engine import flow, task
from flows.stage import stage_main
from storage.settings import settings
from tasks.kept_surrogates import KEPT, serving, take_over
from tasks.params import load_params


@task("train surrogate")
def train_network(dataset: str) -> None:
    """Train on the clean variant, unless it only grew; a killed training goes on after its last whole epoch.

    Where none was trained here yet, the one that `dmcp protect` keeps is taken over, because it made what is published.
    """
    from tasks.surrogate import is_kept, train_surrogate

    folder, params = settings().data_path(dataset), load_params(dataset).surrogate
    if is_kept(folder / "clean", folder / "surrogate", params):
        note("Images only came in: the surrogate stays, so that what is published stays too.")
        return
    if not (folder / "surrogate" / "model.pt").exists():
        kept = serving(folder / "clean", settings().home_path(*KEPT).glob("*/"), params)
        if kept is not None:
            take_over(kept, folder / "surrogate")
            note("The surrogate that `dmcp protect` trained on these images is taken over, so that what it made stays.")
            return
    with progress(f"Training the surrogate of {dataset}") as bars:
        metrics = train_surrogate(
            folder / "clean",
            folder / "test",
            folder / "surrogate",
            params,
            device=settings().device,
            progress=bars,
        )
    note(f"Surrogate: {metrics['test_accuracy']:.1%} of test images right after {metrics['seconds']:.0f} s")


@flow("surrogate")
def surrogate(dataset: str) -> None:
    """Write data/DATASET/surrogate/model.pt. It is the owner's: never published."""
    train_network(dataset)


if __name__ == "__main__":
    stage_main(surrogate)
