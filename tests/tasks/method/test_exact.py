"""Profile `exact` as properties: every image comes back bit for bit, and nothing else is ever handed out."""

import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.errors import AlteredImage, DmcpError, ForeignImage, NotProtected, ParameterError, PayloadMissing, Refused
from tasks.method import signs
from tasks.method.carriers import read_headers
from tasks.method.exact import CARRIERS, SIGNS, ExactParameters, ExactProfile
from tasks.method.header import BITS, PROFILE_EXACT, PROFILE_PAPER, Header
from tasks.method.paper import PaperProfile
from tasks.method.profiles import Carried, Fitted, LeftOut, Recovered
from tasks.method.seal import TAG_BYTES, DataKey
from tasks.restore import restore_images
from tests.tasks.method.images import KINDS, LOOKS, disguise, images, make, perturb

Image = NDArray[np.uint8]

SECRET = bytes(range(32))
KEY = DataKey(SECRET, "cifar10")
LONG = settings.default.max_examples > 1000
SEEDS = st.integers(0, 2**32 - 1)
PARAMETERS = st.builds(
    ExactParameters, st.integers(3, 127) | st.integers(6, 20), st.sampled_from([*SIGNS]), st.sampled_from([*CARRIERS])
)
LABELS = st.none() | st.integers(0, 65534)


@dataclass(frozen=True)
class Case:
    """One image with the look that is wanted of it."""

    clean: Image
    wanted: Image
    parameters: ExactParameters
    label: int | None

    def __repr__(self) -> str:
        return f"Case({self.clean.shape}, {self.parameters}, label={self.label})"


@st.composite
def cases(draw: st.DrawFn, largest: int = 48) -> Case:
    """Any image, look and parameters; in long runs some of the images are as large as photographs on the web."""
    large = LONG and largest >= 48 and draw(st.integers(0, 9)) == 0
    clean = draw(images(300, 500) if large else images(largest))
    parameters = draw(PARAMETERS)
    wanted = disguise(clean, draw(st.sampled_from(LOOKS)), draw(SEEDS), parameters.amplitude)
    return Case(clean, wanted, parameters, draw(LABELS))


def find_key(key_id: str) -> DataKey:
    if key_id != KEY.key_id.hex():
        raise ForeignImage(f"Key {key_id} is not covered.", "Ask for a grant.")
    return KEY


def fit(case: Case) -> Fitted | LeftOut:
    return ExactProfile(case.parameters).fit(case.clean[None], case.wanted[None])[0]


def carry(case: Case, fitted: Fitted, key: DataKey = KEY, sample: str = "0") -> Carried:
    ids = [key.image_id("train", sample)]
    return ExactProfile(case.parameters).carry([fitted], case.clean[None], [case.label], ids, key)[0]


def restore(image: Image, spilled: bytes | None, key: DataKey = KEY) -> Recovered | DmcpError:
    return restore_images(image[None], lambda _: key, [spilled])[0]


def assert_comes_back(case: Case, result: Recovered | DmcpError) -> None:
    assert isinstance(result, Recovered)
    assert np.array_equal(result.image, case.clean)
    assert result.label == case.label


def made(kind: str, height: int = 32, width: int = 32, seed: int = 1, **parameters: object) -> Case:
    """A case that is never left out."""
    chosen = ExactParameters(**parameters)  # type: ignore[arg-type]
    clean = make(kind, height, width, seed)
    return Case(clean, disguise(clean, "stripes", seed, chosen.amplitude), chosen, seed)


def protected(case: Case, key: DataKey = KEY, sample: str = "0") -> Carried:
    fitted = fit(case)
    assert isinstance(fitted, Fitted)
    return carry(case, fitted, key, sample)


INSIDE = made("photo")
BESIDE = made("photo", carrier="chunk")
BOTH = pytest.mark.parametrize("case", [INSIDE, BESIDE], ids=["pixels", "chunk"])


# --- every image comes back ------------------------------------------------------------------------------------------


@settings(max_examples=max(500, settings.default.max_examples))
@given(cases())
def test_every_image_comes_back_bit_for_bit_or_is_left_out_for_a_reason_that_holds(case: Case) -> None:
    fitted, per_pixel = fit(case), SIGNS[case.parameters.signs]
    look = np.empty_like(case.clean)
    chosen = np.empty((*case.clean.shape[:2], per_pixel), np.int8)
    signs.nearest(case.clean, case.wanted, chosen)
    signs.perturb(case.clean, chosen, case.parameters.amplitude, look)
    energy = np.mean((look.astype(float) - case.clean) ** 2)
    if isinstance(fitted, LeftOut):
        assert "as it is" in fitted.reason
        assert energy < 6.5
        return
    assert energy >= 6.5, "a clean image was about to be published"
    assert np.array_equal(fitted.look, look)
    carried = carry(case, fitted)
    assert_comes_back(case, restore(carried.image, carried.spilled))
    assert (carried.spilled is None) == carried.how.startswith("in the pixels")
    assert np.mean((carried.image.astype(float) - case.clean) ** 2) > 4, "the clean image was about to be published"
    assert carried.spilled is not None or case.parameters.carrier == "pixels"
    assert carried.spilled is None or len(carried.spilled) == carried.payload_bytes
    if carried.spilled is not None:
        changed = carried.image ^ fitted.look
        assert not changed.reshape(-1)[BITS:].any()
        assert changed.max() <= 1


@given(cases(32))
def test_same_input_same_bytes(case: Case) -> None:
    fitted = fit(case)
    if isinstance(fitted, LeftOut):
        return
    first, again = carry(case, fitted), protected(replace(case, clean=case.clean.copy(order="F")))
    assert np.array_equal(first.image, again.image)
    assert first.spilled == again.spilled


@pytest.mark.parametrize("kind", ["flat", "photo", "gradient", "checkerboard"])
def test_what_can_be_predicted_carries_its_payload_itself(kind: str) -> None:
    assert protected(made(kind)).spilled is None


def test_simpler_signs_are_taken_where_they_fit_and_others_do_not() -> None:
    """What spills by little does not, keeps its energy, and comes back exactly."""
    rng, found = np.random.default_rng(5), 0
    for seed in range(40):
        clean = np.clip(make("photo", 32, 32, seed).astype(int) + rng.normal(0, 9, (32, 32, 3)), 0, 255).astype(
            np.uint8
        )
        wanted = np.clip(clean + rng.choice([-30, 30], (32, 32, 1)), 0, 255).astype(np.uint8)
        case = Case(clean, wanted, ExactParameters(), None)
        fitted = fit(case)
        assert isinstance(fitted, Fitted)
        carried = carry(case, fitted)
        assert_comes_back(case, restore(carried.image, carried.spilled))
        if "simpler" in carried.how:
            found += 1
            assert carried.spilled is None
            assert np.mean((carried.image.astype(float) - clean) ** 2) > 0.9 * 14**2
    assert found, "nothing here was just too large"


@pytest.mark.parametrize(("kind", "side"), [("noise", 16), ("noise", 64), ("saturated", 32)])
def test_what_can_not_be_predicted_spills(kind: str, side: int) -> None:
    assert protected(made(kind, side, side)).spilled is not None


@pytest.mark.parametrize("kind", ["photo", "flat"])
@pytest.mark.parametrize("carrier", CARRIERS)
def test_an_image_as_large_as_a_photograph(kind: str, carrier: str) -> None:
    case = made(kind, 301, 499, carrier=carrier)
    carried = protected(case)
    assert_comes_back(case, restore(carried.image, carried.spilled))


def test_an_unperturbed_black_image_is_left_out_and_never_published() -> None:
    black = make("black", 32, 32, 0)
    result = fit(Case(black, black, ExactParameters(), 0))
    assert isinstance(result, LeftOut)
    assert "as it is" in result.reason


def test_labels_that_do_not_fit_and_missing_ones_come_back_as_none() -> None:
    for label in (None, 65535, 1 << 20):
        carried = protected(replace(INSIDE, label=label))
        assert_comes_back(replace(INSIDE, label=None), restore(carried.image, carried.spilled))


def test_a_batch_is_what_its_images_are_alone() -> None:
    batch = [made(kind, 32, 32, i) for i, kind in enumerate(KINDS)]
    clean, wanted = np.stack([c.clean for c in batch]), np.stack([c.wanted for c in batch])
    profile = ExactProfile()
    fitted = [f for f in profile.fit(clean, wanted) if isinstance(f, Fitted)]
    assert len(fitted) == len(batch)
    ids = [KEY.image_id("train", str(i)) for i in range(len(batch))]
    together = profile.carry(fitted, clean, [c.label for c in batch], ids, KEY)
    assert {c.how for c in together} == {"in the pixels", "beside the pixels"}
    for i, (case, carried) in enumerate(zip(batch, together, strict=True)):
        alone = protected(case, sample=str(i))
        assert np.array_equal(carried.image, alone.image)
        assert (carried.spilled, carried.how, carried.payload_bytes) == (alone.spilled, alone.how, alone.payload_bytes)


def test_no_images_are_no_trouble() -> None:
    empty = np.empty((0, 16, 16, 3), np.uint8)
    assert ExactProfile().fit(empty, empty) == []
    assert ExactProfile().carry([], empty, [], [], KEY) == []
    assert ExactProfile().recover(empty, [], [], KEY) == []


# --- nothing else is handed out --------------------------------------------------------------------------------------


@given(cases(32), st.data())
def test_one_flipped_bit_anywhere_is_refused_or_changes_nothing(case: Case, data: st.DataObject) -> None:
    fitted = fit(case)
    if isinstance(fitted, LeftOut):
        return
    carried = carry(case, fitted)
    image, payload = carried.image.copy(), carried.spilled
    sample, bit = data.draw(st.integers(0, image.size - 1)), data.draw(st.integers(0, 7))
    if payload is not None and data.draw(st.booleans()):
        position = data.draw(st.integers(0, 8 * len(payload) - 1))
        payload = _flipped(payload, position)
        assert isinstance(restore(image, payload), AlteredImage)
        return
    image.reshape(-1)[sample] ^= 1 << bit
    result = restore(image, payload)
    if isinstance(result, Recovered):
        assert_comes_back(case, result)
        assert sample >= BITS
    else:
        assert isinstance(result, NotProtected if bit == 0 and sample < BITS else AlteredImage)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("kind", ["gradient", "photo"])
def test_each_bit_of_a_small_image_and_of_its_payload(kind: str, carrier: str) -> None:
    """All of them: 6,144 of the pixels, and those of the payload where it is beside them."""
    case = made(kind, 16, 16, carrier=carrier)
    carried = protected(case)
    positions = np.arange(8 * carried.image.size)
    batch = np.repeat(carried.image[None], len(positions), 0)
    batch.reshape(len(positions), -1)[positions, positions // 8] ^= (1 << (positions % 8)).astype(np.uint8)
    results = restore_images(batch, find_key, [carried.spilled] * len(batch))
    for position, result in zip(positions, results, strict=True):
        if isinstance(result, Recovered):
            assert_comes_back(case, result)
        else:
            in_header = position % 8 == 0 and position < 8 * BITS
            assert isinstance(result, NotProtected if in_header else AlteredImage)
    refused = sum(isinstance(r, Refused) for r in results)
    assert refused > 0.9 * len(results)
    if carried.spilled is not None:
        assert refused == len(results)
        payloads = [_flipped(carried.spilled, i) for i in range(8 * len(carried.spilled))]
        batch = np.repeat(carried.image[None], len(payloads), 0)
        assert {type(r) for r in restore_images(batch, find_key, payloads)} == {AlteredImage}


def _flipped(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


@BOTH
@given(st.integers(0, 255))
def test_a_key_with_one_wrong_bit_is_refused(case: Case, bit: int) -> None:
    carried = protected(case)
    assert isinstance(restore(carried.image, carried.spilled, DataKey(_flipped(SECRET, bit), "cifar10")), AlteredImage)


@BOTH
def test_the_same_key_for_another_data_set_is_refused(case: Case) -> None:
    carried = protected(case)
    assert isinstance(restore(carried.image, carried.spilled, DataKey(SECRET, "other")), AlteredImage)
    assert_comes_back(case, restore(carried.image, carried.spilled, DataKey(SECRET, "cifar10")))


@BOTH
def test_a_key_that_is_not_covered_is_named(case: Case) -> None:
    foreign = protected(case, DataKey(bytes(32), "cifar10"))
    assert isinstance(restore_images(foreign.image[None], find_key, [foreign.spilled])[0], ForeignImage)


def test_swapped_payloads_are_refused() -> None:
    first, second = (protected(made("photo", seed=s, carrier="chunk"), sample=str(s)) for s in (1, 2))
    assert isinstance(restore(first.image, second.spilled), AlteredImage)
    assert isinstance(restore(second.image, first.spilled), AlteredImage)


@given(st.data())
def test_truncated_and_lengthened_payloads_are_refused(data: st.DataObject) -> None:
    carried = protected(BESIDE)
    assert carried.spilled is not None
    size = data.draw(st.integers(0, len(carried.spilled) - 1))
    assert isinstance(restore(carried.image, carried.spilled[:size]), AlteredImage)
    longer = carried.spilled + data.draw(st.binary(min_size=1, max_size=20))
    assert isinstance(restore(carried.image, longer), AlteredImage)


@given(st.binary(max_size=100))
def test_any_other_payload_is_refused(payload: bytes) -> None:
    assert isinstance(restore(protected(BESIDE).image, payload), AlteredImage)


def test_a_payload_that_is_nowhere_is_missed_and_a_published_one_is_found() -> None:
    carried = protected(BESIDE)
    assert isinstance(restore(carried.image, None), PayloadMissing)
    assert carried.spilled is not None
    asked: list[tuple[DataKey, bytes]] = []
    published = [carried.spilled]

    def find_payload(key: DataKey, image_id: bytes) -> list[bytes]:
        asked.append((key, image_id))
        return published

    batch = np.stack([carried.image, protected(INSIDE).image])
    results = restore_images(batch, find_key, find_payload=find_payload)
    assert_comes_back(BESIDE, results[0])
    assert_comes_back(INSIDE, results[1])
    assert asked == [(KEY, KEY.image_id("train", "0"))]


def test_published_payloads_of_other_versions_are_passed_over() -> None:
    carried = protected(BESIDE)
    assert carried.spilled is not None
    wrong = [bytes(len(carried.spilled)), carried.spilled[:-1], _flipped(carried.spilled, 0)]
    for published, kind in (
        ([*wrong, carried.spilled], Recovered),
        ([carried.spilled, *wrong], Recovered),
        (wrong, AlteredImage),
        ([carried.spilled[:-1], carried.spilled + b"x"], PayloadMissing),
        ([], PayloadMissing),
    ):
        batch = np.stack([carried.image, protected(INSIDE).image])
        found, other = restore_images(batch, find_key, find_payload=lambda key, image_id, all_=published: all_)
        assert isinstance(found, kind)
        assert_comes_back(INSIDE, other)
        if kind is Recovered:
            assert_comes_back(BESIDE, found)


def test_a_payload_beside_an_image_that_carries_its_own_is_ignored() -> None:
    assert_comes_back(INSIDE, restore(protected(INSIDE).image, b"something else"))


@pytest.mark.parametrize("carrier", CARRIERS)
def test_the_header_of_another_image_is_refused(carrier: str) -> None:
    """With its payload too: what is sealed there leads to other pixels."""
    first, second = (protected(made("photo", seed=s, carrier=carrier), sample=str(s)) for s in (1, 2))
    mixed = second.image.copy().reshape(-1)
    mixed[:BITS] = (mixed[:BITS] & 254) | (first.image.reshape(-1)[:BITS] & 1)
    for payload in (first.spilled, second.spilled):
        assert isinstance(restore(mixed.reshape(second.image.shape), payload), AlteredImage)


def test_an_image_of_another_shape_with_the_same_samples_is_refused() -> None:
    carried = protected(made("photo", 40, 24, carrier="chunk"))
    assert isinstance(restore(carried.image.reshape(24, 40, 3), carried.spilled), AlteredImage)


def _write_header(image: Image, header: Header) -> Image:
    forged = image.copy().reshape(-1)
    forged[:BITS] = (forged[:BITS] & 254) | np.unpackbits(np.frombuffer(header.pack(), np.uint8))
    return forged.reshape(image.shape)


@given(
    images(40),
    st.sampled_from([PROFILE_PAPER, PROFILE_EXACT]),
    st.tuples(st.integers(0, 50) | st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)),
    st.integers(0, 2000) | st.integers(0, 2**24 - 1),
    st.none() | st.binary(max_size=100),
)
def test_forged_headers_are_refused(
    image: Image, profile: int, packed: tuple[int, int, int], size: int, beside: bytes | None
) -> None:
    """Whatever they say, with a checksum that is right: no crash, no hang, no image."""
    header = Header(profile, bytes(packed), size, KEY.key_id, bytes(8))
    assert isinstance(restore(_write_header(image, header), beside), Refused)


def test_a_forged_size_takes_no_memory() -> None:
    """Headers are not authenticated before they are used: 20 that name 16 MiB each must not lead to 320."""
    header = Header(PROFILE_EXACT, bytes([1, 255, 255]), 2**24 - 1, KEY.key_id, bytes(8))
    batch = np.repeat(_write_header(make("photo", 16, 16, 1), header)[None], 20, 0)
    tracemalloc.start()
    refusals = restore_images(batch, find_key)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {type(r) for r in refusals} == {AlteredImage}
    assert peak < 1 << 24


@given(st.integers(0, 255), st.integers(0, 65535), st.integers(0, 400) | st.integers(0, 2**24 - 1))
def test_changed_settings_of_a_protected_image_are_refused(threshold: int, extent: int, size: int) -> None:
    for carried in (protected(INSIDE), protected(BESIDE)):
        header = Header.unpack(read_headers(carried.image[None])[0])
        forged = replace(header, settings=bytes([threshold, extent >> 8, extent & 255]), payload_bytes=size)
        result = restore(_write_header(carried.image, forged), carried.spilled)
        assert isinstance(result, Refused) or forged == header


@given(st.sampled_from([0, 128]) | st.integers(0, 255), st.binary(max_size=80) | st.binary(min_size=37), SEEDS)
def test_whatever_an_owner_of_the_key_seals_the_decoder_survives(how: int, rest: bytes, seed: int) -> None:
    """`how` is the byte of amplitude and signs."""
    plain = bytes([how]) + rest
    header = Header(PROFILE_EXACT, bytes(3), len(plain) + TAG_BYTES, KEY.key_id, bytes(8))
    image = _write_header(make("noise", 20, 17, seed), header)
    sealed = KEY.seal(plain, [header.pack() + (20).to_bytes(4, "big") + (17).to_bytes(4, "big") + b"cifar10"])
    refusal = restore(image, sealed)
    assert isinstance(refusal, AlteredImage)
    assert "seal does not verify" not in str(refusal)


def test_a_mixed_batch_is_served_one_by_one() -> None:
    inside, beside = protected(INSIDE), protected(BESIDE)
    rgb_case = made("noise", seed=3, signs="rgb")
    rgb = protected(rgb_case)
    foreign = protected(INSIDE, DataKey(bytes(32), "other"))
    altered = inside.image.copy()
    altered[-1, -1, -1] ^= 128
    clean = make("photo", 32, 32, 9)
    paper = PaperProfile()
    fitted = [f for f in paper.fit(clean[None], perturb(clean, 1)[None]) if isinstance(f, Fitted)]
    old = paper.carry(fitted, clean[None], [None], [bytes(8)], KEY)[0]
    rows = [
        (make("noise", 32, 32, 0), None, "NotProtected"),
        (inside.image, None, "Recovered"),
        (foreign.image, foreign.spilled, "ForeignImage"),
        (beside.image, beside.spilled, "Recovered"),
        (altered, None, "AlteredImage"),
        (beside.image, None, "PayloadMissing"),
        (old.image, None, "Recovered"),
        (rgb.image, rgb.spilled, "Recovered"),
        (beside.image, rgb.spilled, "AlteredImage"),
    ]
    for order in (rows, rows[::-1]):
        results = restore_images(np.stack([r[0] for r in order]), find_key, [r[1] for r in order])
        assert [type(r).__name__ for r in results] == [r[2] for r in order]
        for (image, _, _), result in zip(order, results, strict=True):
            for case, carried in ((INSIDE, inside), (BESIDE, beside), (rgb_case, rgb)):
                if isinstance(result, Recovered) and image is carried.image:
                    assert_comes_back(case, result)


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{"amplitude": 2}, {"amplitude": 128}, {"signs": "grey"}, {"carrier": "sound"}])
def test_impossible_parameters_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=next(iter(bad))):
        ExactParameters(**bad)  # type: ignore[arg-type]
