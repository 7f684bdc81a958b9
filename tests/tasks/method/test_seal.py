"""Header, keys and seal: what is bound to what."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import AlteredImage, DmcpError, NotProtected, ParameterError, UnsupportedFormat
from tasks.method.exact import Embedding
from tasks.method.expansion import MAX_THRESHOLD
from tasks.method.header import PROFILE_EXACT, PROFILE_PAPER, SIZE, Header, crc8
from tasks.method.known import parse_header, profile_of
from tasks.method.paper import Geometry
from tasks.method.seal import AESSIV, TAG_BYTES, DataKey, PycryptodomeSiv

SECRETS = st.binary(min_size=32, max_size=32)
KEY = DataKey(bytes(range(32)), "cifar10")


EIGHT = st.binary(min_size=8, max_size=8)
THREE = st.binary(min_size=3, max_size=3)


def headers() -> st.SearchStrategy[Header]:
    return st.builds(
        Header, st.sampled_from([PROFILE_PAPER, PROFILE_EXACT]), THREE, st.integers(0, 2**24 - 1), EIGHT, EIGHT
    )


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    planes = draw(st.integers(1, 3))
    return Geometry(
        block=draw(st.sampled_from([1, 2, 4, 8])),
        planes=planes,
        pairing=draw(st.integers(0, 2)),
        step=draw(st.integers(1, 255 >> planes)) << planes,
        classes=draw(st.sampled_from([1, 2, 4, 8, 16])),
    )


def embeddings() -> st.SearchStrategy[Embedding]:
    return st.builds(Embedding, st.integers(1, MAX_THRESHOLD), st.integers(0, 65535)) | st.just(Embedding(0, 0))


def header_of(profile: int, settings: bytes) -> Header:
    return Header(profile, settings, 100, bytes(8), bytes(8))


@given(geometries())
def test_settings_of_profile_paper_round_trip(geometry: Geometry) -> None:
    header = header_of(PROFILE_PAPER, geometry.pack())
    assert Geometry.of(header) == geometry
    assert profile_of(header).error_bound(parse_header(header.pack())) == 1 << (geometry.planes - 1)


@given(embeddings())
def test_settings_of_profile_exact_round_trip(embedding: Embedding) -> None:
    header = header_of(PROFILE_EXACT, embedding.pack())
    assert Embedding.of(header) == embedding
    assert profile_of(header).error_bound(parse_header(header.pack())) == 0
    assert profile_of(header).spills(header) == (embedding.threshold == 0)


@given(st.sampled_from([PROFILE_PAPER, PROFILE_EXACT]), THREE)
def test_settings_are_read_as_they_were_written_or_refused(profile: int, settings: bytes) -> None:
    header = header_of(profile, settings)
    try:
        parse_header(header.pack())
    except NotProtected:
        return
    found = Geometry.of(header) if profile == PROFILE_PAPER else Embedding.of(header)
    assert found.pack() == settings
    assert profile_of(header).describe(header)


@pytest.mark.parametrize(
    ("profile", "settings"),
    [
        (PROFILE_PAPER, bytes([0, 0, 1])),
        (PROFILE_PAPER, bytes([4, 6, 1])),
        (PROFILE_PAPER, bytes([0, 8, 3])),
        (PROFILE_PAPER, bytes([0x30, 8, 1])),
        (PROFILE_PAPER, bytes([12, 16, 1])),
        (PROFILE_EXACT, bytes([MAX_THRESHOLD + 1, 0, 0])),
        (PROFILE_EXACT, bytes([0, 0, 1])),
    ],
)
def test_settings_that_no_encoder_writes_are_damage(profile: int, settings: bytes) -> None:
    with pytest.raises(NotProtected, match="damaged"):
        parse_header(header_of(profile, settings).pack())


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
    for profile, version in ((PROFILE_PAPER, 2), (PROFILE_EXACT, 1), (PROFILE_EXACT, 3), (3, 3)):
        packed = bytearray(header_of(PROFILE_PAPER, bytes(3)).pack())
        packed[2:4] = version, profile
        packed[-1] = crc8(bytes(packed[:-1]))
        with pytest.raises(UnsupportedFormat, match=f"version {version}, profile {profile}"):
            Header.unpack(bytes(packed))


def test_each_profile_has_its_format_version() -> None:
    assert [header_of(profile, bytes(3)).pack()[2] for profile in (PROFILE_PAPER, PROFILE_EXACT)] == [1, 2]


@given(SECRETS, st.binary(max_size=300), st.lists(st.binary(max_size=40), max_size=4))
def test_seal_round_trip_and_determinism(secret: bytes, text: bytes, associated: list[bytes]) -> None:
    key = DataKey(secret, "a")
    sealed = key.seal(text, associated)
    assert len(sealed) == len(text) + TAG_BYTES
    assert sealed == DataKey(secret, "a").seal(text, associated)
    assert key.open(sealed, associated) == text


@given(st.integers(0, 8 * 40 - 1))
def test_one_flipped_bit_of_the_ciphertext_is_refused(bit: int) -> None:
    sealed = bytearray(KEY.seal(b"x" * 24, [b"head", b"d" * 32]))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AlteredImage):
        KEY.open(bytes(sealed), [b"head", b"d" * 32])


@given(st.integers(0, 39))
def test_a_shortened_payload_is_refused(size: int) -> None:
    sealed = KEY.seal(b"x" * 24, [b"head"])
    with pytest.raises(AlteredImage):
        KEY.open(sealed[:size], [b"head"])


@pytest.mark.parametrize(
    ("key", "associated"),
    [
        (DataKey(bytes(32), "cifar10"), [b"head", b"digest"]),
        (KEY, [b"heae", b"digest"]),
        (KEY, [b"head", b"digess"]),
        (KEY, [b"headd", b"igest"]),
        (KEY, [b"digest", b"head"]),
        (KEY, [b"head"]),
        (KEY, [b"head", b"digest", b""]),
        (KEY, []),
    ],
)
def test_everything_is_bound(key: DataKey, associated: list[bytes]) -> None:
    sealed = KEY.seal(b"text", [b"head", b"digest"])
    with pytest.raises(AlteredImage):
        key.open(sealed, associated)


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


@given(
    st.binary(min_size=64, max_size=64),
    st.binary(min_size=1, max_size=300),
    st.lists(st.binary(max_size=99), max_size=5),
)
def test_both_libraries_seal_alike(key: bytes, data: bytes, associated: list[bytes]) -> None:
    sealed = AESSIV(key).encrypt(data, associated)
    assert PycryptodomeSiv(key).encrypt(data, associated) == sealed
    assert PycryptodomeSiv(key).decrypt(sealed, associated) == data == AESSIV(key).decrypt(sealed, associated)


@pytest.mark.parametrize("sealer", [AESSIV, PycryptodomeSiv])
def test_what_is_too_short_to_be_sealed_is_refused(sealer: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KEY, "_sealer", sealer(bytes(range(64))))
    for size in range(TAG_BYTES + 2):
        with pytest.raises(AlteredImage):
            KEY.open(bytes(size), [b"for"])
