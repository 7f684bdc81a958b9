"""Header, keys and seal: what is bound to what."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import AlteredImage, DmcpError, NotProtected, ParameterError, UnsupportedFormat
from tasks.method.header import SIZE, Header, crc8
from tasks.method.seal import TAG_BYTES, DataKey

SECRETS = st.binary(min_size=32, max_size=32)
KEY = DataKey(bytes(range(32)), "cifar10")


@st.composite
def headers(draw: st.DrawFn) -> Header:
    planes = draw(st.integers(1, 3))
    return Header(
        key_id=draw(st.binary(min_size=8, max_size=8)),
        image_id=draw(st.binary(min_size=8, max_size=8)),
        payload_bytes=draw(st.integers(0, 2**24 - 1)),
        block=draw(st.sampled_from([1, 2, 4, 8])),
        planes=planes,
        pairing=draw(st.integers(0, 2)),
        step=draw(st.integers(1, 255 >> planes)) << planes,
        classes=draw(st.sampled_from([1, 2, 4, 8, 16])),
    )


@given(headers())
def test_header_round_trip(header: Header) -> None:
    packed = header.pack()
    assert len(packed) == SIZE
    assert Header.unpack(packed) == header


@given(headers(), st.integers(0, 8 * SIZE - 1))
def test_header_with_one_flipped_bit_is_no_header(header: Header, bit: int) -> None:
    packed = bytearray(header.pack())
    packed[bit // 8] ^= 0x80 >> bit % 8
    with pytest.raises(NotProtected):
        Header.unpack(bytes(packed))


def test_future_version_is_named() -> None:
    packed = bytearray(Header(bytes(8), bytes(8), 0, 1, 1, 1, 8, 1).pack())
    packed[2] = 2
    packed[-1] = crc8(bytes(packed[:-1]))
    with pytest.raises(UnsupportedFormat, match="version 2"):
        Header.unpack(bytes(packed))


@given(SECRETS, st.binary(max_size=300), st.binary(max_size=40))
def test_seal_round_trip_and_determinism(secret: bytes, text: bytes, header: bytes) -> None:
    key = DataKey(secret, "a")
    sealed = key.seal(text, header, (32, 32), b"d" * 32)
    assert len(sealed) == len(text) + TAG_BYTES
    assert sealed == DataKey(secret, "a").seal(text, header, (32, 32), b"d" * 32)
    assert key.open(sealed, header, (32, 32), b"d" * 32) == text


@given(st.integers(0, 8 * 40 - 1))
def test_one_flipped_bit_of_the_ciphertext_is_refused(bit: int) -> None:
    sealed = bytearray(KEY.seal(b"x" * 24, b"head", (16, 16), b"d" * 32))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AlteredImage):
        KEY.open(bytes(sealed), b"head", (16, 16), b"d" * 32)


@pytest.mark.parametrize(
    ("key", "header", "shape", "digest"),
    [
        (DataKey(bytes(32), "cifar10"), b"head", (16, 20), b"d" * 32),
        (DataKey(bytes(range(32)), "other"), b"head", (16, 20), b"d" * 32),
        (KEY, b"heae", (16, 20), b"d" * 32),
        (KEY, b"head", (20, 16), b"d" * 32),
        (KEY, b"head", (16, 20), b"e" * 32),
    ],
)
def test_everything_is_bound(key: DataKey, header: bytes, shape: tuple[int, int], digest: bytes) -> None:
    sealed = KEY.seal(b"text", b"head", (16, 20), b"d" * 32)
    with pytest.raises(AlteredImage):
        key.open(sealed, header, shape, digest)


def test_a_key_says_nothing_about_itself() -> None:
    assert bytes(range(32)).hex() not in repr(KEY)
    assert KEY.key_id.hex() in repr(KEY)
    with pytest.raises(ParameterError):
        DataKey(b"short", "a")


def test_image_ids_are_keyed_and_distinct() -> None:
    ids = {KEY.image_id(split, str(i)) for split in ("train", "test") for i in range(500)}
    assert len(ids) == 1000
    assert KEY.image_id("train", "1") != DataKey(bytes(32), "cifar10").image_id("train", "1")


def test_key_id_is_the_vault_s() -> None:
    from storage.keys import key_id_of

    secret = np.random.default_rng(0).bytes(32)
    assert DataKey(secret, "a").key_id.hex() == key_id_of(secret)


def test_random_bytes_are_no_header() -> None:
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(2000):
        with pytest.raises(DmcpError):
            Header.unpack(rng.bytes(SIZE))
        refused += 1
    assert refused == 2000
