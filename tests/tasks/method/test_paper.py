"""Profile `paper` as properties: every image comes back within its bound, and nothing else is ever handed out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.errors import AlteredImage, ForeignImage, NotProtected, ParameterError
from tasks.method import paper
from tasks.method.carriers import LsbCarrier, read_headers
from tasks.method.header import BITS, Header
from tasks.method.paper import Geometry, PaperFitted, PaperParameters, PaperProfile, ladder
from tasks.method.profiles import Fitted, LeftOut, Recovered
from tasks.method.seal import TAG_BYTES, DataKey
from tasks.restore import restore_images
from tests.tasks.method.images import images, make, perturb

KEY = DataKey(bytes(range(32)), "cifar10")
PROFILES = st.sampled_from(
    [
        PaperParameters(1, 1, 8, 2),
        PaperParameters(1, 1, 16, 1),
        PaperParameters(2, 4, 8, 2),
        PaperParameters(4, 4, 8, 1),
        PaperParameters(8, 16, 8, 3),
    ]
)


def find_key(key_id: str) -> DataKey:
    if key_id != KEY.key_id.hex():
        raise ForeignImage(f"Key {key_id} is not covered.", "Ask for a grant.")
    return KEY


def protect(clean: NDArray[np.uint8], parameters: PaperParameters) -> tuple[Fitted | LeftOut, NDArray[np.uint8]]:
    """One image through fit and carry."""
    profile = PaperProfile(parameters)
    result = profile.fit(clean[None], perturb(clean, 7)[None])[0]
    if isinstance(result, LeftOut):
        return result, clean
    carried = profile.carry([result], clean[None], [None], [KEY.image_id("train", "0")], KEY)[0]
    assert carried.spilled is None
    assert TAG_BYTES <= carried.payload_bytes <= carried.room_bytes
    return result, carried.image


def test_a_payload_that_no_header_can_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "MAX_PAYLOAD", 40)
    assert isinstance(protect(make("noise", 64, 64, 0), PaperParameters())[0], LeftOut)


@given(images(), PROFILES)
def test_every_image_is_restored_within_the_bound_or_left_out(clean: NDArray[np.uint8], p: PaperParameters) -> None:
    fitted, protected = protect(clean, p)
    if isinstance(fitted, LeftOut):
        assert fitted.reason
        return
    assert np.mean((fitted.look.astype(float) - clean) ** 2) >= 6.5, "a clean image was about to be published"
    restored = restore_images(protected[None], find_key)[0]
    assert isinstance(restored, Recovered)
    assert restored.label is None
    error = np.abs(restored.image.astype(int) - clean)
    planes = Geometry.of(Header.unpack(read_headers(protected[None])[0])).planes
    assert error.max() <= 1 << (planes - 1)
    assert error.max() <= (1 << p.planes) - 1 or planes > p.planes


@given(images(32), PROFILES, st.data())
def test_one_flipped_bit_anywhere_is_refused(clean: NDArray[np.uint8], p: PaperParameters, data: st.DataObject) -> None:
    fitted, protected = protect(clean, p)
    if isinstance(fitted, LeftOut):
        return
    sample = data.draw(st.integers(0, protected.size - 1))
    bit = data.draw(st.integers(0, 7))
    protected.reshape(-1)[sample] ^= 1 << bit
    refusal = restore_images(protected[None], find_key)[0]
    in_header = bit == 0 and sample < BITS
    assert isinstance(refusal, NotProtected if in_header else AlteredImage)


@given(st.binary(min_size=32, max_size=32))
def test_any_other_key_is_refused(secret: bytes) -> None:
    _, protected = protect(make("photo", 32, 32, 1), PaperParameters())
    if secret != bytes(range(32)):
        wrong = restore_images(protected[None], lambda _: DataKey(secret, "cifar10"))[0]
        assert isinstance(wrong, AlteredImage)


@given(st.integers(0, 255))
def test_a_key_with_one_wrong_bit_is_refused(bit: int) -> None:
    secret = bytearray(range(32))
    secret[bit // 8] ^= 1 << bit % 8
    _, protected = protect(make("photo", 32, 32, 1), PaperParameters())
    assert isinstance(restore_images(protected[None], lambda _: DataKey(bytes(secret), "cifar10"))[0], AlteredImage)


def test_payloads_can_not_be_moved_between_images() -> None:
    """Header and payload of one image in another of the same size: the digest of the carrying image is sealed too."""
    (_, first), (_, second) = (protect(make("photo", 32, 32, s), PaperParameters()) for s in (1, 2))
    header = Header.unpack(read_headers(first[None])[0])
    carrier, size = LsbCarrier(Geometry.of(header).planes), np.array([header.payload_bytes])
    carrier.embed(second[None], [header.pack()], carrier.extract(first[None], size))
    assert isinstance(restore_images(second[None], find_key)[0], AlteredImage)


def test_a_mixed_batch_is_served_one_by_one() -> None:
    good = [
        protect(make("photo", 32, 32, s), p)[1] for s, p in enumerate([PaperParameters(), PaperParameters(4, 4, 8, 1)])
    ]
    foreign_key = DataKey(bytes(32), "other")
    profile, clean = PaperProfile(), make("photo", 32, 32, 9)
    fitted = [f for f in profile.fit(clean[None], perturb(clean, 1)[None]) if isinstance(f, Fitted)]
    foreign = profile.carry(fitted, clean[None], [None], [bytes(8)], foreign_key)[0].image
    altered = good[0].copy()
    altered[-1, -1, -1] ^= 128
    batch = np.stack([make("noise", 32, 32, 0), good[0], foreign, altered, good[1]])
    kinds = [type(r).__name__ for r in restore_images(batch, find_key)]
    assert kinds == ["NotProtected", "Recovered", "ForeignImage", "AlteredImage", "Recovered"]


@pytest.mark.parametrize("kind", ["noise", "photo"])
def test_smallest_images_find_a_rung(kind: str) -> None:
    clean = make(kind, 16, 16, 1)
    fitted, _ = protect(clean, PaperParameters(1, 1, 8, 1))
    assert isinstance(fitted, PaperFitted)
    assert fitted.rung != "configured"


def test_an_unperturbed_image_is_left_out_and_never_published() -> None:
    clean = make("flat", 32, 32, 0)
    result = PaperProfile().fit(clean[None], clean[None])[0]
    assert isinstance(result, LeftOut)
    assert "as it is" in result.reason


def test_ladder_starts_as_configured_and_keeps_steps_usable() -> None:
    for parameters in (PaperParameters(), PaperParameters(4, 4, 8, 1), PaperParameters(2, 16, 4, 2)):
        rungs = ladder(parameters)
        assert (rungs[0].step, rungs[0].classes, rungs[0].planes) == (
            parameters.step,
            parameters.classes,
            parameters.planes,
        )
        assert all(r.step % (1 << r.planes) == 0 for r in rungs)


@pytest.mark.parametrize("bad", [{"block": 3}, {"classes": 5}, {"planes": 4}, {"step": 6}, {"step": 0}, {"step": 256}])
def test_impossible_parameters_are_named(bad: dict[str, int]) -> None:
    with pytest.raises(ParameterError, match=next(iter(bad))):
        PaperParameters(**bad)


def test_same_input_same_bytes() -> None:
    clean = make("photo", 40, 24, 3)
    assert np.array_equal(protect(clean, PaperParameters())[1], protect(clean, PaperParameters())[1])
