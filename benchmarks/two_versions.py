"""What two published versions of the same images give away: `python -m benchmarks.two_versions --surrogate model.pt`

CIFAR-10 images from the mirror (DMCP_MIRROR), protected by the real code with the parameters of params.yaml and a
surrogate that `make run DATASET=cifar10` trained (data/cifar10/surrogate/model.pt); the carrier is undone and the two
versions are combined as anybody could (`tasks.learning.adaptive_versions`), without a key.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare_protection import load, method_of
from tasks.learning.adaptive_carrier import strip_carrier
from tasks.learning.adaptive_versions import combine_versions
from tasks.machine import describe_machine
from tasks.method.perturbation import build_library
from tasks.method.profiles import LeftOut
from tasks.method.seal import DataKey
from tasks.models_io import load_features

Images = NDArray[np.uint8]
CLASSES = 10


def protected(images: Images, labels: NDArray[np.int64], amplitude: int, epoch: int, surrogate: Path) -> Images:
    """The images as published, uint8 [n, h, w, 3], under the key of an epoch."""
    method, key = method_of(f"exact,set.amplitude={amplitude}"), DataKey(bytes([epoch] * 32), "cifar10")
    features = load_features(surrogate, method.layer, "cpu")
    wanted = method.perturbation.library
    library = build_library(features[-1], [list(images[labels == c][:wanted]) for c in range(CLASSES)], wanted, "cpu")
    ids = [key.image_id("train", str(n)) for n in range(len(images))]
    perturber = method.perturber(features, library, key, "cpu")
    looks = perturber.perturb(images, labels, [key.image_seed(i) for i in ids])
    fitted = [f for f in method.profile.fit(images, looks) if not isinstance(f, LeftOut)]
    carried = method.profile.carry(fitted, images, [int(label) for label in labels], ids, key)
    return np.stack([c.image for c in carried])


def row(name: str, clean: Images, guess: Images) -> str:
    """A line of the table: how many samples are exactly the clean ones, and how near the others are."""
    psnr = 10 * np.log10(255**2 / ((guess.astype(np.float64) - clean) ** 2).mean((1, 2, 3)).clip(1e-9))
    return f"| {name} | {100 * (guess == clean).mean():.1f} | {psnr.mean():.1f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surrogate", type=Path, required=True, help="model.pt")
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    some = load("train", options.images)
    clean, labels = some.images, some.labels

    def version(amplitude: int, epoch: int) -> Images:
        return protected(clean, labels, amplitude, epoch, options.surrogate)

    first = version(14, 1)
    print("| what the attacker has | samples exactly clean, % | PSNR to clean, dB |", "|---|---:|---:|", sep="\n")
    print(row("one version, amplitude 14", clean, strip_carrier(first)))
    for name, amplitude, epoch in (
        ("the same images with amplitude 16, same key", 16, 1),
        ("... with amplitude 16, another key", 16, 2),
        ("... with amplitude 14, another key", 14, 2),
    ):
        print(row(name, clean, combine_versions(first, version(amplitude, epoch), (14, amplitude))), flush=True)
    machine = describe_machine()
    print(f"\n{len(clean)} images of CIFAR-10. {machine['Processor']}; {machine['Cores']}; {machine['System']}.")


if __name__ == "__main__":
    main()
