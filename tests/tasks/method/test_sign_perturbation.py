"""The perturbation of profile `exact` stays in its set, lowers its loss, and depends on nothing but its inputs."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from storage.errors import ParameterError
from tasks.method import signs
from tasks.method.perturbation import Features, build_library
from tasks.method.profiles import LeftOut
from tasks.method.sign_perturbation import PATTERNS, SignParameters, SignPerturbation, moved, smoothed
from tests.tasks.method.images import KINDS, make

SEED = bytes(range(16))
LABELS = np.arange(20) % 5
SEEDS = [bytes([i]) * 16 for i in range(20)]

Images = NDArray[np.uint8]


class Network:
    """A small one of random weights: activations, or logits of five classes."""

    def __init__(self, logits: bool) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 16, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(16, 24, 3, 2), torch.nn.ReLU()]
        self.body = torch.nn.Sequential(*layers).eval().requires_grad_(False)
        self.head = torch.nn.Linear(24, 5).eval().requires_grad_(False) if logits else None
        self.logits = logits

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        found = self.body(images).mean((2, 3))
        return found if self.head is None else self.head(found)


@pytest.fixture(scope="module", params=[True, False], ids=["logits", "layer"])
def network(request: pytest.FixtureRequest) -> Network:
    return Network(request.param)


@pytest.fixture(scope="module")
def images() -> Images:
    return np.stack([make(KINDS[i % len(KINDS)] if i < 8 else "photo", 32, 32, i) for i in range(20)])


def build(network: Network, images: Images, per_pixel: int = 1, seed: bytes = SEED, **given: object):  # type: ignore[no-untyped-def]
    library = build_library(network, [list(images[c == LABELS]) for c in range(5)], 4, "cpu")
    parameters = SignParameters(**{"flips": False, "shift": 0} | given)  # type: ignore[arg-type]
    return SignPerturbation(
        [network],
        library,
        parameters,
        logits=network.logits,
        amplitude=13,
        per_pixel=per_pixel,
        derangement_seed=seed,
        band_seed=seed,
    )


def loss(perturbation: SignPerturbation, images: Images) -> float:
    point = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return float(perturbation._loss(point, torch.from_numpy(perturbation.target_class[LABELS]), 0))


@pytest.mark.parametrize("per_pixel", [1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_result_is_in_the_set(network: Network, images: Images, pattern: str, per_pixel: int) -> None:
    perturbed = build(network, images, per_pixel, pattern=pattern, steps=3).perturb(images, LABELS, SEEDS)
    assert perturbed.dtype == np.uint8
    sign = np.empty((32, 32, per_pixel), np.int8)
    for clean, look in zip(images, perturbed, strict=True):
        nearest = np.empty_like(clean)
        signs.nearest(clean, look, sign)
        signs.perturb(clean, sign, 13, nearest)
        assert np.array_equal(nearest, look)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_steps_lower_the_loss(network: Network, images: Images, pattern: str) -> None:
    made = build(network, images, pattern=pattern, weight=0.2, steps=6)
    alone = build(network, images, pattern="bands", weight=0.2, steps=0)
    after = loss(made, made.perturb(images, LABELS, SEEDS))
    assert after < loss(made, images)
    assert after < loss(made, alone.perturb(images, LABELS, SEEDS))


def test_smoothing_is_a_gaussian() -> None:
    values = torch.randn(2, 3, 21, 34)
    for std in (0.5, 1.0, 2.3):
        expected = gaussian_filter(values.numpy(), (0, 0, std, std), mode="constant", radius=round(3 * std))
        assert np.allclose(smoothed(values, std).numpy(), expected, atol=1e-5)
    assert smoothed(values, 0.0) is values


@pytest.mark.parametrize("per_pixel", [1, 3])
def test_smoothed_steps_make_neighbours_alike_and_lower_the_loss(
    network: Network, images: Images, per_pixel: int
) -> None:
    alike = {}
    for std in (0.0, 1.0):
        made = build(network, images, per_pixel, pattern="none", steps=15, rate=0.1, smoothing=std)
        perturbed = made.perturb(images, LABELS, SEEDS)
        assert loss(made, perturbed) < loss(made, images)
        up = perturbed.astype(int) > images
        alike[std] = (up[:, :, 1:] == up[:, :, :-1]).mean()
    assert alike[1.0] > alike[0.0] + 0.1


def test_networks_take_turns(images: Images) -> None:
    asked: list[str] = []

    def named(name: str, network: Network) -> Features:
        return lambda x: asked.append(name) or network(x)  # type: ignore[func-returns-value]

    network = Network(True)
    made = SignPerturbation(
        [named("early", network), named("late", network)], np.zeros((5, 1, 5), np.float32),
        SignParameters(steps=5, flips=False, shift=0), logits=True, amplitude=13, per_pixel=1, derangement_seed=SEED,
        band_seed=SEED,
    )  # fmt: skip
    turns = made.perturb(images, LABELS, SEEDS)
    assert asked == ["early", "late", "early", "late", "early"]
    assert np.array_equal(turns, build(network, images, steps=5).perturb(images, LABELS, SEEDS)), "of equals, one"


def test_every_other_round_is_mirrored(images: Images) -> None:
    """As those see images who flip them at random while they train."""
    seen: list[torch.Tensor] = []

    def watched(network: Network) -> Features:
        return lambda x: seen.append(x.detach()) or network(x)  # type: ignore[func-returns-value]

    network = Network(True)
    made = SignPerturbation(
        [watched(network), watched(network)], np.zeros((5, 1, 5), np.float32),
        SignParameters(steps=6, flips=True, shift=0), logits=True, amplitude=13, per_pixel=1, derangement_seed=SEED,
        band_seed=SEED,
    )  # fmt: skip
    perturbed = made.perturb(images, LABELS, SEEDS)
    clean = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mirrored = [float((x - clean).abs().max()) > 0.1 for x in seen]
    assert mirrored == [False, False, True, True, False, False]
    assert float((seen[2].flip(3) - clean).abs().max()) < 0.06
    point = torch.from_numpy(perturbed[:, :, ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    target = torch.from_numpy(made.target_class[LABELS])
    plain = build(network, images, steps=6).perturb(images, LABELS, SEEDS)
    unflipped = torch.from_numpy(plain[:, :, ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    cross_entropy = torch.nn.functional.cross_entropy
    assert cross_entropy(network(point), target) < cross_entropy(network(unflipped), target)


def test_images_are_moved_with_zeros_behind_them() -> None:
    values = torch.arange(1.0, 13).reshape(1, 1, 3, 4)
    assert moved(values, 1, -2)[0, 0].tolist() == [[0, 0, 0, 0], [3, 4, 0, 0], [7, 8, 0, 0]]
    assert torch.equal(moved(values, 0, 0), values)
    assert moved(values, -9, 9)[0, 0].tolist() == [[0, 0, 0, 9], [0] * 4, [0] * 4], "one pixel stays"


def test_each_step_sees_the_images_moved(images: Images) -> None:
    """As those see images who crop them at random while they train; whatever the batch, and each step otherwise."""
    network, seen = Network(True), []
    made = SignPerturbation(
        [lambda x: seen.append(x.detach()) or network(x)], np.zeros((5, 1, 5), np.float32),  # type: ignore[func-returns-value]
        SignParameters(steps=12, flips=False, shift=2, batch_size=10), logits=True, amplitude=13, per_pixel=1,
        derangement_seed=SEED, band_seed=SEED,
    )  # fmt: skip
    perturbed = made.perturb(images, LABELS, SEEDS)
    clean = torch.from_numpy(images[:10]).permute(0, 3, 1, 2).float() / 255
    assert len({tuple(move) for move in made.moves.tolist()}) > 6
    for x, (down, right) in zip(seen[:12], made.moves, strict=True):
        assert float((x - moved(clean, down, right)).abs().max()) < 0.06
    assert np.array_equal(perturbed[10:], made.perturb(images[10:], LABELS[10:], SEEDS[10:]))
    assert loss(build(network, images), perturbed) < loss(build(network, images), images)


def test_the_pattern_alone_tells_classes_and_keys_apart(network: Network, images: Images) -> None:
    flat = np.full_like(images, 128)
    mine = build(network, images, pattern="bands", steps=0).perturb(flat, LABELS, SEEDS)
    assert {*np.unique(mine)} == {115, 141}
    assert np.array_equal(
        mine, build(network, images, pattern="bands", steps=0, weight=0.9).perturb(flat, LABELS, SEEDS)
    )
    other_key = build(network, images, pattern="bands", steps=0, seed=bytes(16)).perturb(flat, LABELS, SEEDS)
    other_class = build(network, images, pattern="bands", steps=0).perturb(flat, (LABELS + 1) % 5, SEEDS)
    for other in (other_key, other_class):
        assert (mine != other).mean() > 0.2


@pytest.mark.parametrize("pattern", PATTERNS)
def test_same_inputs_same_bytes_whatever_the_order_of_calls(network: Network, images: Images, pattern: str) -> None:
    made = build(network, images, pattern=pattern, steps=3, batch_size=10)
    whole = made.perturb(images, LABELS, SEEDS)
    assert np.array_equal(whole, made.perturb(images, LABELS, SEEDS))
    assert np.array_equal(whole[10:], made.perturb(images[10:], LABELS[10:], SEEDS[10:]))


def test_no_images_are_no_trouble(network: Network, images: Images) -> None:
    assert build(network, images).perturb(images[:0], LABELS[:0], []).shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    "bad",
    [
        {"pattern": "dots"},
        {"weight": -0.1},
        {"spread": 0.0},
        {"steps": -1},
        {"rate": 0.0},
        {"momentum": 2.0},
        {"smoothing": -1.0},
        {"library": 0},
    ],
)
def test_impossible_parameters_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=next(iter(bad))):
        SignParameters(**bad)  # type: ignore[arg-type]


def test_neither_pattern_nor_steps_is_refused() -> None:
    with pytest.raises(ParameterError, match="at least one step"):
        SignParameters(pattern="none", steps=0)


def test_what_is_public_does_not_give_the_signs_away() -> None:
    """The header's image id and the grid of bands are public: textures made of them are no better than any others."""
    from tasks.method.exact import ExactParameters, ExactProfile
    from tasks.method.patterns import bands, texture
    from tasks.method.seal import DataKey

    key, images = DataKey(bytes(range(32)), "x"), np.stack([make("photo", 32, 32, seed) for seed in range(12)])
    ids = [key.image_id("train", str(i)) for i in range(12)]
    own = SignPerturbation(
        [lambda x: x.mean((2, 3))], np.zeros((10, 1, 3), np.float32), SignParameters(pattern="bands", steps=0),
        logits=False, amplitude=13, per_pixel=1, derangement_seed=key.derive(b"derangement", 16),
        band_seed=key.derive(b"bands", 16),
    )  # fmt: skip
    secret = [key.image_seed(i) for i in ids]
    wanted = own.perturb(images, np.arange(12) % 10, secret)
    assert all(not isinstance(f, LeftOut) for f in ExactProfile(ExactParameters(13)).fit(images, wanted))
    signs = np.sign(wanted.astype(int) - images).sum(3)

    def best(seeds: list[bytes]) -> float:
        grid = bands(12, bytes(16))
        agree = [
            max(((texture(band, seed, 32, 32, 0.02) > 0) == (row > 0)).mean() for band in grid)
            for seed, row in zip(seeds, signs, strict=True)
        ]
        return float(np.mean(agree))

    assert best(secret) > 0.95  # the attack works for who has the key's seeds
    assert best([i + i for i in ids]) < 0.65
