"""Attacks that know the algorithm: what they undo on images that the real code protected, and what they leave alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.errors import ParameterError
from tasks.learning import adaptive_bands, adaptive_filters
from tasks.learning.adaptive import ATTACKS, Attack, Leaked, attack_named, draw_leaked
from tasks.learning.adaptive_bands import BandFilter, _starts
from tasks.learning.adaptive_carrier import strip_carrier
from tasks.learning.adaptive_inverse import InverseParameters, learned_inverse, nearest_start
from tasks.learning.training import LabelledImages
from tasks.method.carriers import read_headers
from tasks.method.exact import ExactProfile
from tasks.method.header import BITS
from tasks.method.known import parse_header
from tasks.method.paper import PaperParameters, PaperProfile
from tasks.method.patterns import all_bands, bands
from tasks.method.profiles import Carried, Fitted, Profile
from tasks.method.seal import DataKey
from tasks.method.sign_perturbation import SignParameters, SignPerturbation
from tests.tasks.method.images import make

Images = NDArray[np.uint8]

KEY = DataKey(bytes(range(32)), "cifar10")
CLASSES = 4
CPU = torch.device("cpu")
FREE = [name for name, attack in ATTACKS.items() if not attack.leaks]


def photos(count: int, height: int = 24, width: int = 24, first: int = 0) -> LabelledImages:
    shown = np.stack([make("photo", height, width, first + i) for i in range(count)])
    return LabelledImages(shown, np.arange(count, dtype=np.int64) % CLASSES)


def carried(profile: Profile, clean: Images, looks: Images) -> tuple[list[Fitted], list[Carried]]:
    fitted = [f for f in profile.fit(clean, looks) if isinstance(f, Fitted)]
    assert len(fitted) == len(clean)
    ids = [KEY.image_id("train", str(i)) for i in range(len(clean))]
    return fitted, profile.carry(fitted, clean, [None] * len(clean), ids, KEY)


def textured(count: int = 120, height: int = 24, width: int = 24) -> tuple[LabelledImages, LabelledImages, Images]:
    """Clean images, under profile `exact` with the texture alone (no network), and the looks before the carrier."""
    clean, fitted, results = _textured(count, height, width)
    shown = LabelledImages(np.stack([c.image for c in results]), clean.labels)
    return clean, shown, np.stack([f.look for f in fitted])


@lru_cache
def _textured(count: int, height: int, width: int) -> tuple[LabelledImages, list[Fitted], list[Carried]]:
    clean = photos(count, height, width)
    perturbation = SignPerturbation(
        [lambda x: x], np.zeros((CLASSES, 1, 1), np.float32), SignParameters(pattern="bands", steps=0),
        logits=True, amplitude=13, per_pixel=1, derangement_seed=KEY.derive(b"derangement", 16),
        band_seed=KEY.derive(b"bands", 16),
    )  # fmt: skip
    seeds = [KEY.image_seed(KEY.image_id("train", str(i))) for i in range(count)]
    return clean, *carried(ExactProfile(), clean.images, perturbation.perturb(clean.images, clean.labels, seeds))


def shifted(count: int, **parameters: int) -> tuple[LabelledImages, LabelledImages]:
    """Clean images and these under profile `paper`, every block shifted at random."""
    clean, random, side = photos(count), np.random.default_rng(1), parameters.get("block", 1)
    signs = random.integers(0, 2, (count, 24 // side, 24 // side, 3)) * 2 - 1
    looks = np.clip(clean.images + 16 * signs.repeat(side, 1).repeat(side, 2), 0, 255).astype(np.uint8)
    results = carried(PaperProfile(PaperParameters(**parameters)), clean.images, looks)[1]
    return clean, LabelledImages(np.stack([c.image for c in results]), clean.labels)


def applied(attack: Attack | str, protected: LabelledImages, leaked: Leaked | None = None, seed: int = 0) -> Images:
    chosen = attack_named(attack) if isinstance(attack, str) else attack
    before = protected.images.copy()
    found = chosen.apply(protected, classes=CLASSES, leaked=leaked, seed=seed, device="cpu", threads=1)
    assert np.array_equal(protected.images, before)
    assert np.array_equal(found.labels, protected.labels)
    assert found.images.dtype == np.uint8
    assert found.images.shape == protected.images.shape
    return found.images


def error(one: Images, other: Images) -> float:
    return float(((one.astype(np.float64) - other) ** 2).mean())


# --- all of them -----------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_suite_and_others_are_named() -> None:
    names = ["none", "class-average", "lsb-plane", "block-smoothing", "band-filter", "learned-inverse"]
    assert [*ATTACKS] == names
    assert all(attack.name == name and attack.about.endswith(".") for name, attack in ATTACKS.items())
    assert len({attack.title for attack in ATTACKS.values()}) == len(names)
    assert {name: attack.leaks for name, attack in ATTACKS.items() if attack.leaks} == {"learned-inverse": 0.01}
    with pytest.raises(ParameterError, match="magic") as refusal:
        attack_named("magic")
    assert "band-filter" in refusal.value.cure


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("kind", ["exact", "paper"])
def test_the_same_images_give_the_same_result(name: str, kind: str) -> None:
    protected = textured()[1] if kind == "exact" else shifted(24)[1]
    first = applied(name, protected)
    assert np.array_equal(first, applied(name, protected, seed=1))
    assert np.array_equal(first, protected.images) == (name == "none")


@settings(max_examples=5)
@given(st.integers(16, 40), st.integers(16, 40), st.sampled_from([1, 2, 7]))
def test_any_size_and_number_of_images(height: int, width: int, count: int) -> None:
    """Of images without a header, and of classes without images; one class has none of its own to compare with."""
    protected = photos(count, height, width)
    for name in ("class-average", "lsb-plane", "block-smoothing"):
        applied(name, protected)


@pytest.mark.parametrize("shape", [(16, 16), (17, 40)])
def test_band_filter_and_learned_inverse_on_other_sizes(shape: tuple[int, int]) -> None:
    protected = photos(5, *shape)
    applied("band-filter", protected)
    short = InverseParameters(width=8, steps=2)
    rows = np.array([1, 3])
    found = learned_inverse(
        protected.images, protected.labels, CLASSES, rows, protected.images[rows], protected.images, 0, CPU, short
    )
    assert found.shape == protected.images.shape


# --- one by one ------------------------------------------------------------------------------------------------------


def test_the_carrier_of_exact_is_undone_without_the_key_but_for_the_bits_of_the_header() -> None:
    _, protected, looks = textured()
    found = applied("lsb-plane", protected)
    simpler = ["simpler" in c.how for c in _textured(120, 24, 24)[2]]  # other signs than those of the look
    assert 0 < sum(simpler) < 12
    changed = (found ^ looks).reshape(len(looks), -1)[~np.array(simpler)]
    inside = np.flatnonzero((protected.images != looks).reshape(len(looks), -1)[:, BITS:].any(1))
    assert len(inside) > 0
    assert not changed[:, BITS:].any()
    assert changed.max() == 1


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_the_bits_that_carry_under_paper_are_set_to_the_middle(planes: int) -> None:
    clean, protected = shifted(6, planes=planes)
    found = applied("lsb-plane", protected)
    for before, after, raw in zip(protected.images, found, read_headers(protected.images), strict=True):
        header = parse_header(raw)
        bits = BITS + 8 * header.payload_bytes
        for sample in (0, 100, before.size - 1):
            replaced = (bits - sample + before.size - 1) // before.size
            low, kept = int(after.flat[sample]) & ((1 << replaced) - 1), int(before.flat[sample]) >> replaced
            assert low == (1 << replaced) >> 1
            assert int(after.flat[sample]) >> replaced == kept
    assert error(found, clean.images) <= error(protected.images, clean.images) + 0.5
    assert not np.array_equal(found, protected.images)


def test_images_without_a_header_have_no_carrier_to_undo() -> None:
    clean = photos(5)
    assert np.array_equal(applied("lsb-plane", clean), clean.images)
    mixed = np.concatenate([clean.images, textured()[1].images[:5]])
    found = strip_carrier(mixed)
    assert np.array_equal(found[:5], clean.images)
    assert not np.array_equal(found[5:], mixed[5:])


def test_what_a_class_has_in_common_is_subtracted() -> None:
    """One pattern for all images of a class, which nobody should use: nearly all of it goes."""
    clean = photos(200)
    signs = np.random.default_rng(0).integers(0, 2, (CLASSES, 24, 24, 1)) * 2 - 1
    planted = np.clip(clean.images + 13 * signs[clean.labels], 0, 255).astype(np.uint8)
    found = applied("class-average", LabelledImages(planted, clean.labels))
    assert error(found, clean.images) < 0.6 * error(planted, clean.images)


def band_power(images: Images, labels: NDArray[np.int64], label: int) -> float:
    """Mean power of a class's images within 0.03 periods a pixel of its band."""
    frequency, angle = bands(CLASSES, KEY.derive(b"bands", 16))[label]
    shown = images[labels == label].mean(3)
    power = np.abs(np.fft.fft2(shown - shown.mean((1, 2), keepdims=True), s=(96, 96))) ** 2
    f = np.abs(np.fft.fftfreq(96))
    near = np.hypot(f[:, None] - frequency * np.sin(angle), f[None] - frequency * np.cos(angle)) < 0.03
    return float(power[:, near].mean())


@pytest.mark.parametrize(("name", "share"), [("class-average", 0.6), ("band-filter", 0.2)])
def test_the_band_of_a_class_loses_its_power(name: str, share: float) -> None:
    _, protected, _ = textured()
    found = applied(name, protected)
    for label in range(CLASSES):
        before = band_power(protected.images, protected.labels, label)
        assert band_power(found, protected.labels, label) < share * before


@pytest.mark.parametrize("block", [1, 2, 4])
def test_block_smoothing_takes_shifts_back(block: int) -> None:
    clean, protected = shifted(40, block=block)
    assert error(applied("block-smoothing", protected), clean.images) < 0.8 * error(protected.images, clean.images)


def test_block_smoothing_lowers_the_error_of_exact_too() -> None:
    clean, protected, _ = textured()
    assert error(applied("block-smoothing", protected), clean.images) < error(protected.images, clean.images)


def test_the_bands_of_all_classes_are_found_and_the_signs_with_them() -> None:
    clean, protected, looks = textured()
    estimate = BandFilter(strip_carrier(protected.images), protected.labels, CLASSES, CPU)
    secret = bands(CLASSES, KEY.derive(b"bands", 16))
    for label, band in estimate.found.items():
        assert band is not None
        assert estimate.bands[band] == pytest.approx(secret[label])
    assert 8 <= estimate.amplitude <= 20
    true = np.sign(looks.astype(int) - clean.images).sum(3)
    for rows, signs in estimate.portions():
        right = (np.sign(signs.numpy()) == np.sign(true[rows]))[true[rows] != 0]
        assert right.mean() > 0.9


@pytest.mark.parametrize("tile", [16, 32])
def test_band_filter_takes_most_of_the_perturbation(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the smaller ones there are four tiles an image."""
    monkeypatch.setattr(adaptive_bands, "TILE", tile)
    clean, protected, _ = textured()
    assert error(applied("band-filter", protected), clean.images) < 0.35 * error(protected.images, clean.images)


def test_band_filter_leaves_images_without_a_pattern_nearly_alone() -> None:
    clean = photos(120)
    assert error(applied("band-filter", clean), clean.images) < 2


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 37, 100])
def test_the_known_bands_hold_those_that_the_method_deals_out(classes: int) -> None:
    known = {tuple(band) for band in all_bands(classes).tolist()}
    for seed in range(5):
        assert {tuple(band) for band in bands(classes, bytes([seed] * 16)).tolist()} <= known


def test_large_images_are_filtered_fewer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In portions or all at once, up to the rounding of sums."""
    protected, lengths = photos(8, 32, 32), []
    whole = [applied(name, protected) for name in ("class-average", "block-smoothing")]
    on = adaptive_filters._on
    monkeypatch.setattr(adaptive_filters, "_PIXELS", 2200)  # two images of 32x32
    monkeypatch.setattr(
        adaptive_filters, "_on", lambda images, device: lengths.append(len(images)) or on(images, device)
    )
    for name, before in zip(("class-average", "block-smoothing"), whole, strict=True):
        assert error(applied(name, protected), before) < 0.01
    assert set(lengths) == {2}


def test_large_images_lose_their_bands_fewer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, protected, _ = textured()
    estimate = BandFilter(strip_carrier(protected.images), protected.labels, CLASSES, CPU)
    monkeypatch.setattr(adaptive_bands, "_PIXELS", 7 * 24 * 24)
    assert max(len(rows) for rows, _ in estimate.portions()) == 7


def test_a_spectrum_is_the_mean_over_all_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive_bands, "TILE", 16)
    _, protected, _ = textured()
    estimate = BandFilter(protected.images, protected.labels, CLASSES, CPU)
    rows = estimate.members[1]
    every = torch.cat([estimate._tiles(rows, corner) for corner in estimate.corners]).view(-1, 16, 16)
    window = torch.outer(*[torch.hann_window(18, periodic=False)[1:-1]] * 2)
    power = torch.fft.fft2(every * window / window.square().sum().sqrt(), s=[32, 32]).abs().square().mean(0)
    torch.testing.assert_close(estimate._spectra[1], power.clamp_min(1e-6))


@settings(max_examples=20)
@given(st.integers(16, 300))
def test_tiles_cover_a_side_and_overlap(side: int) -> None:
    tile = min(32, side)
    starts = _starts(side, tile)
    assert starts[0] == 0
    assert starts[-1] + tile == side
    assert all(0 < b - a <= tile // 2 for a, b in pairwise(starts))


# --- with leaked originals -------------------------------------------------------------------------------------------


def planted(count: int = 60) -> tuple[LabelledImages, LabelledImages]:
    """Stripes that no band filter knows."""
    clean = photos(count)
    y = np.arange(24)[None, :, None, None] // 2 % 2 * 2 - 1
    shown = np.clip(clean.images + 14 * y, 0, 255).astype(np.uint8)
    return clean, LabelledImages(shown, clean.labels)


def test_the_inverse_learns_from_leaked_pairs_what_holds_for_the_others() -> None:
    clean, shown = planted()
    leaked = draw_leaked(clean.images, 0.25, seed=3)
    assert len(leaked.indices) == 15
    rest = np.setdiff1d(np.arange(60), leaked.indices)
    short = InverseParameters(width=16, layers=4, steps=80)

    def run(seed: int) -> Images:
        pairs = (leaked.indices, leaked.clean)
        return learned_inverse(shown.images, shown.labels, CLASSES, *pairs, shown.images, seed, CPU, short)

    found = run(0)
    assert error(found[rest], clean.images[rest]) < 0.6 * error(shown.images[rest], clean.images[rest])
    assert np.array_equal(found, run(0))
    assert not np.array_equal(found, run(1))


def test_the_inverse_starts_from_the_best_of_the_others() -> None:
    clean, shown = planted(8)
    rows = np.array([1, 5])
    worse = np.zeros_like(shown.images)
    start = nearest_start([worse, shown.images], rows, clean.images[rows])
    assert start is shown.images
    untrained = InverseParameters(steps=0)
    found = learned_inverse(worse, shown.labels, CLASSES, rows, clean.images[rows], start, 0, CPU, untrained)
    assert np.array_equal(found, start)


def test_learned_inverse_undoes_exact_with_few_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, protected, _ = textured()
    monkeypatch.setattr(InverseParameters.__init__, "__defaults__", (16, 4, 20, 2e-3, 10, 0.75))
    leaked = draw_leaked(clean.images, 0.1, seed=0)
    found = applied("learned-inverse", protected, leaked)
    assert error(found, clean.images) < 0.4 * error(protected.images, clean.images)


def test_leaks_are_drawn_by_seed_and_at_least_two() -> None:
    clean = photos(30)
    leaked = draw_leaked(clean.images, 0.01, seed=1)
    assert leaked.indices.dtype == np.int64
    assert len(leaked.indices) == 2
    assert np.array_equal(leaked.clean, clean.images[leaked.indices])
    assert np.array_equal(leaked.indices, draw_leaked(clean.images, 0.01, seed=1).indices)
    assert any(not np.array_equal(leaked.indices, draw_leaked(clean.images, 0.01, s).indices) for s in range(2, 6))


WRONG: dict[str, Callable[[Leaked], Leaked | None]] = {
    "none at all": lambda leaked: None,
    "an empty one": lambda leaked: Leaked(leaked.indices[:0], leaked.clean[:0]),
    "fewer images than places": lambda leaked: replace(leaked, clean=leaked.clean[:1]),
    "another size": lambda leaked: replace(leaked, clean=leaked.clean[:, 1:]),
    "a place past the end": lambda leaked: replace(leaked, indices=leaked.indices + 6),
    "a negative place": lambda leaked: replace(leaked, indices=leaked.indices - 6),
}


@pytest.mark.parametrize("change", WRONG)
def test_leaks_that_do_not_fit_are_named(change: str) -> None:
    protected = photos(6)
    with pytest.raises(ParameterError, match="leaked originals"):
        applied("learned-inverse", protected, WRONG[change](draw_leaked(protected.images, 0.5, 0)))


def test_leaks_do_not_help_an_attack_that_assumes_none() -> None:
    _, protected, _ = textured()
    leaked = Leaked(np.arange(2), np.zeros((2, 24, 24, 3), np.uint8))
    assert np.array_equal(applied("band-filter", protected, leaked), applied("band-filter", protected))
