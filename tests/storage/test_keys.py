"""The vault: keys come back, and only as they were put in, whatever happens to the file or the process."""

import json
import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from storage.errors import KeyVaultError, SettingsError, UnknownKey, UsageError, VaultLocked
from storage.key_encryption import AesSiv, ScryptCost, Unlock
from storage.keys import Vault, key_id_of, open_vault
from storage.settings import Settings

FAST = ScryptCost(n=1 << 14, r=1, p=1)


def by_passphrase(folder: Path, phrase: str = "correct horse") -> Vault:
    return Vault(folder / "vault.json", Unlock(folder / "vault.key", SecretStr(phrase), FAST))


def by_key_file(folder: Path) -> Vault:
    return Vault(folder / "vault.json", Unlock(folder / "vault.key"))


@pytest.fixture(params=[by_passphrase, by_key_file])
def make(request: pytest.FixtureRequest) -> Callable[[Path], Vault]:
    return request.param


def test_keys_come_back_in_another_process_s_vault(tmp_path: Path, make: Callable[[Path], Vault]) -> None:
    first = make(tmp_path)
    assert first.list() == []
    records = [first.create("cifar10"), first.create("photos"), first.create("cifar10")]
    assert [(r.dataset, r.epoch) for r in records] == [("cifar10", 1), ("photos", 1), ("cifar10", 2)]
    assert all(abs((datetime.now(UTC) - r.created).total_seconds()) < 60 for r in records)

    second = make(tmp_path)
    assert second.list() == sorted(records, key=lambda r: (r.dataset, r.epoch))
    assert second.current("cifar10") == records[2]
    assert second.dataset_of(records[1].key_id) == "photos"
    secrets = {second.secret(r.key_id) for r in records}
    assert len(secrets) == 3
    assert {key_id_of(secret) for secret in secrets} == {r.key_id for r in records}


def test_a_key_made_elsewhere_is_taken_once(tmp_path: Path) -> None:
    vault = by_key_file(tmp_path)
    record = vault.create("photos", bytes(range(32)))
    assert vault.secret(record.key_id) == bytes(range(32))
    with pytest.raises(UsageError, match="already"):
        vault.create("photos", bytes(range(32)))
    with pytest.raises(UsageError, match="32 bytes, not 31"):
        vault.create("photos", bytes(31))


def test_key_id_is_the_hkdf_fingerprint_of_the_format() -> None:
    # RFC 5869 by hand: extract with a zero salt, one block of expand.
    import hmac

    secret = bytes(range(32))
    extracted = hmac.digest(bytes(32), secret, "sha256")
    assert key_id_of(secret) == hmac.digest(extracted, b"dmcp/v1/key-id\x01", "sha256")[:8].hex()


def test_what_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    vault = by_key_file(tmp_path)
    for look in (lambda: vault.secret("0" * 16), lambda: vault.dataset_of("0" * 16)):
        with pytest.raises(UnknownKey, match="dmcp key list"):
            look()
    with pytest.raises(UnknownKey, match="dmcp key create cifar10"):
        vault.current("cifar10")
    assert not (tmp_path / "vault.json").exists()
    assert not (tmp_path / "vault.key").exists(), "looking made a key file"


@pytest.mark.parametrize("name", ["", "..", "a/b", "CIFAR", "-x", ".x", "x" * 65, "a b", "a\n"])
def test_names_that_can_not_name_a_data_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="can not name a data set"):
        by_key_file(tmp_path).create(name)


def test_wrong_and_missing_passphrase(tmp_path: Path) -> None:
    key_id = by_passphrase(tmp_path).create("photos").key_id
    with pytest.raises(VaultLocked, match="passphrase is wrong"):
        by_passphrase(tmp_path, "wrong").secret(key_id)
    with pytest.raises(VaultLocked, match="passphrase is wrong"):
        by_passphrase(tmp_path, "wrong").create("photos")
    with pytest.raises(VaultLocked, match="DMCP_VAULT_PASSPHRASE"):
        by_key_file(tmp_path).list()
    with pytest.raises(SettingsError, match="empty"):
        by_passphrase(tmp_path / "other", "").create("photos")
    assert by_passphrase(tmp_path).current("photos").key_id == key_id


def test_a_passphrase_is_the_same_however_its_accents_are_typed(tmp_path: Path) -> None:
    key_id = by_passphrase(tmp_path, "caf\u00e9").create("photos").key_id
    assert by_passphrase(tmp_path, "cafe\u0301").dataset_of(key_id) == "photos"


def test_key_file_is_private_and_must_stay_so(tmp_path: Path) -> None:
    key_id = by_key_file(tmp_path).create("photos").key_id
    key_file = tmp_path / "vault.key"
    for path in (key_file, tmp_path / "vault.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key_file.chmod(0o640)
    with pytest.raises(VaultLocked, match=f"0640.*chmod 600 {key_file}"):
        by_key_file(tmp_path).secret(key_id)
    key_file.chmod(0o400)
    assert by_key_file(tmp_path).dataset_of(key_id) == "photos"


def test_key_file_missing_foreign_or_in_base64(tmp_path: Path) -> None:
    import base64

    key_id = by_key_file(tmp_path).create("photos").key_id
    key_file = tmp_path / "vault.key"
    text = key_file.read_text()
    key_file.unlink()
    with pytest.raises(VaultLocked, match=r"vault\.key is missing"):
        by_key_file(tmp_path).create("photos")
    assert not key_file.exists(), "a new key file can not open an old vault"

    key_file.touch(mode=0o600)
    for wrong, why in (("", "not a key file"), ("ff" * 31, "not a key file"), ("ff" * 32, "key file is wrong")):
        key_file.write_text(wrong)
        with pytest.raises(VaultLocked, match=why):
            by_key_file(tmp_path).secret(key_id)
    key_file.write_bytes(base64.b64encode(bytes.fromhex(text)))
    assert by_key_file(tmp_path).dataset_of(key_id) == "photos"


@pytest.fixture(scope="module", params=[by_passphrase, by_key_file])
def filled(request: pytest.FixtureRequest) -> tuple[Path, str]:
    folder = Path(tempfile.mkdtemp())
    vault = request.param(folder)
    vault.create("photos")
    return folder, vault.create("photos").key_id


@given(data=st.data())
def test_any_altered_byte_is_refused(filled: tuple[Path, str], data: st.DataObject) -> None:
    folder, key_id = filled
    whole = (folder / "vault.json").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    altered = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    assert_refused(folder, altered, key_id)


@given(data=st.data())
def test_any_cut_or_insertion_is_refused(filled: tuple[Path, str], data: st.DataObject) -> None:
    folder, key_id = filled
    whole = (folder / "vault.json").read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start, len(whole)))
    middle = data.draw(st.binary(max_size=8))
    if whole[:start] + middle + whole[end:] != whole:
        assert_refused(folder, whole[:start] + middle + whole[end:], key_id)


def assert_refused(folder: Path, altered: bytes, key_id: str) -> None:
    copy = folder / "altered.json"
    copy.write_bytes(altered)
    vault = Vault(copy, Unlock(folder / "vault.key", SecretStr("correct horse"), FAST))
    for use in (vault.list, lambda: vault.secret(key_id), lambda: vault.create("photos")):
        with pytest.raises(KeyVaultError):  # VaultLocked is one
            use()
    assert copy.read_bytes() == altered


def test_keys_can_not_be_swapped_dropped_or_taken_from_another_vault(tmp_path: Path) -> None:
    vault = by_key_file(tmp_path)
    first, _ = vault.create("photos"), vault.create("secret-photos")
    contents = json.loads(vault.path.read_bytes())
    contents["keys"][0]["wrapped"], contents["keys"][1]["wrapped"] = (k["wrapped"] for k in contents["keys"][::-1])
    vault.path.write_bytes(json.dumps(contents, indent=1).encode() + b"\n")
    with pytest.raises(KeyVaultError, match="altered"):
        vault.secret(first.key_id)
    del contents["keys"][0]
    vault.path.write_bytes(json.dumps(contents, indent=1).encode() + b"\n")
    with pytest.raises(KeyVaultError, match="altered"):
        vault.list()


@pytest.mark.parametrize(
    "cost",
    [
        {"n": 1 << 13},
        {"n": 1 << 21},
        {"n": 20_000},
        {"r": 33},
        {"r": 0},
        {"p": 5},
        {"n": 1 << 20, "r": 16},
        {"n": "16384"},
    ],
)
def test_cost_is_bounded_on_reading(tmp_path: Path, cost: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ScryptCost(**cost)
    vault = by_passphrase(tmp_path)
    vault.create("photos")
    contents = json.loads(vault.path.read_bytes())
    contents["key_encryption"]["cost"].update(cost)
    vault.path.write_bytes(json.dumps(contents, indent=1).encode() + b"\n")
    with pytest.raises(KeyVaultError, match="key_encryption"):
        by_passphrase(tmp_path).list()


@given(
    secret=st.binary(max_size=100),
    context=st.dictionaries(st.text(), st.text(), max_size=4),
    key=st.binary(min_size=64, max_size=64),
)
def test_wrap_is_bound_to_key_and_context(secret: bytes, context: dict[str, str], key: bytes) -> None:
    wrapped = AesSiv(key).wrap(secret, context)
    assert AesSiv(key).unwrap(wrapped, context) == secret
    assert AesSiv(key).wrap(secret, context) == wrapped
    with pytest.raises(VaultLocked):
        AesSiv(key).unwrap(wrapped, {**context, "epoch": "another"})
    with pytest.raises(VaultLocked):
        AesSiv(bytes(64) if any(key) else bytes([1] * 64)).unwrap(wrapped, context)


def test_secrets_do_not_show(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    vault = by_passphrase(tmp_path)
    record = vault.create("photos")
    secret = vault.secret(record.key_id)
    backend = vault._opened[1]  # type: ignore[index]
    shown = [repr(vault), repr(record), repr(vault._unlock), repr(backend), repr(vars(vault)), caplog.text]
    with pytest.raises(TypeError, match="do not leave the process"):
        pickle.dumps(by_passphrase(tmp_path))
    with pytest.raises(TypeError, match="do not leave the process"):
        pickle.dumps(backend)
    with pytest.raises(UsageError) as error:
        vault.create("photos", secret)
    shown += [str(error.value), repr(error.value), *capfd.readouterr()]
    for text in shown:
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
        assert "correct horse" not in text
    on_disk = vault.path.read_bytes()
    assert secret not in on_disk and secret.hex().encode() not in on_disk


def test_two_creators_lose_no_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda _: by_key_file(tmp_path).create("photos"), range(16)))
    assert sorted(r.epoch for r in records) == list(range(1, 17))
    assert {r.key_id for r in by_key_file(tmp_path).list()} == {r.key_id for r in records}


CREATE_FOREVER = """
import sys
from pathlib import Path
from storage.key_encryption import Unlock
from storage.keys import Vault
while True:
    record = Vault(Path(sys.argv[1]) / "vault.json", Unlock(Path(sys.argv[1]) / "vault.key")).create("photos")
    sys.stdout.write(record.key_id + "\\n")
    sys.stdout.flush()
"""


def test_sigkill_at_any_instant_loses_no_key(tmp_path: Path) -> None:
    promised: list[str] = []
    for after in (1, 3, 8):
        creator = subprocess.Popen(
            [sys.executable, "-c", CREATE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert creator.stdout is not None
        promised += [creator.stdout.readline().strip() for _ in range(after)]
        creator.send_signal(signal.SIGKILL)  # it is at some point of the next one
        promised += creator.stdout.read().split()
        creator.wait()
        vault = by_key_file(tmp_path)
        assert set(promised) <= {r.key_id for r in vault.list()}
        assert vault.secret(promised[-1])
    by_key_file(tmp_path).create("photos")
    assert not list(tmp_path.glob(".*.partial"))


def test_the_vault_of_the_settings(tmp_path: Path) -> None:
    record = open_vault(Settings(home=tmp_path / "home")).create("photos")
    assert (tmp_path / "home" / "vault.json").is_file() and (tmp_path / "home" / "vault.key").is_file()
    moved = tmp_path / "safe.key"
    (tmp_path / "home" / "vault.key").rename(moved)
    elsewhere = Settings(home=tmp_path / "home", vault_key_file=moved)
    assert open_vault(elsewhere).current("photos") == record
