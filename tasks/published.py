"""The figures published for the method, and in what our setting differs from theirs.

Source: the short paper that proposed the method, table 1: ResNet-18 trained from scratch with Adam, initial learning
rate 0.01, batch size 128, 80 epochs. The perturbation's strength, the layer, block size, classes, the network's stem,
the number of runs and the key handling are not in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.metrics import Setting, VariantAccuracy, VariantName


@dataclass(frozen=True)
class Published:
    """One data set's published accuracies, as shares: variant -> (training accuracy, test accuracy)."""

    title: str
    n_train: int
    n_test: int
    accuracy: dict[VariantName, tuple[float, float]]


PAPER_EPOCHS = 80
PAPER_RECIPE = "paper"
PAPER_ARCHITECTURE = "resnet18"

PUBLISHED: dict[str, Published] = {
    "cifar10": Published(
        "CIFAR-10",
        50_000,
        10_000,
        {"clean": (0.9644, 0.8621), "protected": (1.0, 0.3823), "recovered": (0.9521, 0.8586)},
    ),
    "tinyimagenet": Published(
        "TinyImageNet, 10 classes drawn at random",
        5_000,
        500,
        {"clean": (0.9998, 0.74), "protected": (1.0, 0.162), "recovered": (0.9996, 0.732)},
    ),
}


def differences(
    published: Published,
    setting: Setting,
    accuracy: Mapping[VariantName, VariantAccuracy],
    train: Mapping[str, object],
) -> list[str]:
    """What our setting has other than the published one, as sentences; the last names what the paper leaves open.

    Args:
        train: section `train` of params.yaml, for `lr`, `batch_size` and `image_size` where they are set.
    """
    found: list[str] = []
    if setting.epochs != PAPER_EPOCHS:
        found.append(f"Epochs: {setting.epochs} here, {PAPER_EPOCHS} in the paper.")
    if setting.recipe != PAPER_RECIPE:
        found.append(f"Recipe: “{setting.recipe}” here; Adam, learning rate 0.01, batch size 128 in the paper.")
    changed = [f"{name} {train[name]}" for name in ("lr", "batch_size", "image_size") if train.get(name) is not None]
    if changed:
        found.append(f"Changed of the recipe: {', '.join(changed)}.")
    if setting.architecture != PAPER_ARCHITECTURE:
        found.append(f"Network: {setting.architecture} here, ResNet-18 in the paper.")
    n_train = max(result.n_train for result in accuracy.values())
    if n_train != published.n_train:
        found.append(f"Training images: {n_train:,} here, {published.n_train:,} in the paper.")
    if setting.n_test != published.n_test:
        found.append(f"Test images: {setting.n_test:,} here, {published.n_test:,} in the paper.")
    found.append(
        f"Stem: “{setting.stem}” here. The paper does not say which stem, how strong a perturbation, which block size "
        "or how many runs it used."
    )
    return found


def is_scaled(published: Published, setting: Setting, accuracy: Mapping[VariantName, VariantAccuracy]) -> bool:
    """Whether our models were trained for fewer epochs or on fewer images than the published ones."""
    fewest = min(result.n_train for result in accuracy.values())
    return setting.epochs < PAPER_EPOCHS or fewest < published.n_train * 0.98 or setting.n_test < published.n_test
