"""Vaults locked by AWS KMS and by Vault's transit engine: the real backends, over HTTP, against servers on loopback.

The servers are ours (`kms_server`, `transit_servers`), and for the transit engine also a real OpenBao where `bao` is
installed. Neither AWS nor HashiCorp's own server was ever asked.
"""

import json
import logging
import pickle
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from storage.errors import DmcpError, EnvironmentFault, KeyVaultError, SettingsError, VaultLocked, WrongKey
from storage.key_backends import aws_kms, hashivault
from storage.key_encryption import KeyEncryption, Unlock
from storage.key_safety import check, rotate
from storage.keys import Vault, open_vault
from storage.settings import Settings
from tests.storage.kms_server import REGION, Failure, KmsServer
from tests.storage.loopback import Reply
from tests.storage.transit_servers import OpenBao, TransitServer, find_openbao

CONTEXT = {"key_id": "0" * 16, "dataset": "photos", "epoch": "1", "created": "2026-01-01T00:00:00+00:00"}


@pytest.fixture(autouse=True)
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_DEFAULT_REGION", "VAULT_TOKEN", "VAULT_CACERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def kms() -> Iterator[KmsServer]:
    with KmsServer() as server:
        yield server


@pytest.fixture
def transit() -> Iterator[TransitServer]:
    with TransitServer() as server:
        yield server


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    if find_openbao() is None:
        pytest.skip("needs OpenBao: `bao` beside this Python or on PATH")
    with OpenBao(tmp_path_factory.mktemp("openbao")) as server:
        yield server


class Remote:
    """One of the servers with a key of this test's own, and the right to use it."""

    def __init__(self, kind: str, server: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.kind, self.server, self._patch, self.name = kind, server, monkeypatch, name
        if kind == "kms":
            self.key = server.add_key(f"alias/{name}").arn
        else:
            self.key = name
            server.add_key(name, derived=kind == "derived")
        self.uri = server.uri(self.key)
        self.allow()

    def allow(self, *capabilities: str) -> None:
        """Credentials that may do this only; everything, when nothing is named."""
        if self.kind != "kms":
            names = {"encrypt": "encrypt", "decrypt": "decrypt", "describe": "keys"}
            wanted = tuple(names[name] for name in capabilities or names)
            self._patch.setenv("VAULT_TOKEN", self.server.add_token(self.key, wanted))
            return
        names = {"encrypt": "Encrypt", "decrypt": "Decrypt", "describe": "DescribeKey"}
        user, secret = self.server.add_user(frozenset(names[name] for name in capabilities or names))
        self._patch.setenv("AWS_ACCESS_KEY_ID", user)
        self._patch.setenv("AWS_SECRET_ACCESS_KEY", secret)

    def forge(self) -> str:
        """Credentials that are not known; returns what must not be shown."""
        if self.kind == "kms":
            self._patch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-user")
            return "not-the-secret-of-this-user"
        self._patch.setenv("VAULT_TOKEN", "s.not-a-token-of-anyone")
        return "s.not-a-token-of-anyone"

    def forget(self) -> None:
        for name in ("VAULT_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            self._patch.delenv(name, raising=False)

    def unlock(self, folder: Path, uri: str | None = None) -> Unlock:
        return Unlock.parse(uri or self.uri, folder / "vault.key")

    def vault(self, folder: Path, uri: str | None = None) -> Vault:
        return Vault(folder / "vault.json", self.unlock(folder, uri))

    def backend(self, folder: Path) -> KeyEncryption:
        unlock = self.unlock(folder)
        return unlock.open(unlock.describe_new())


@pytest.fixture(params=["kms", "transit", "derived", "openbao", "openbao-derived"])
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Remote:
    server, _, derived = request.param.partition("-")
    if server == "derived":
        return Remote("derived", request.getfixturevalue("transit"), monkeypatch, "dmcp")
    kind = "kms" if server == "kms" else derived or "transit"
    return Remote(
        kind, request.getfixturevalue(server), monkeypatch, f"dmcp-{tmp_path.parent.name}-{tmp_path.name}"[:99]
    )


# --- a vault's life --------------------------------------------------------------------------------------------------


def test_keys_come_back_in_another_process_s_vault(tmp_path: Path, remote: Remote) -> None:
    first = remote.vault(tmp_path)
    assert first.list() == []
    records = [first.create("cifar10"), first.create("photos"), first.create("cifar10")]
    second = remote.vault(tmp_path)
    assert second.list() == sorted(records, key=lambda r: (r.dataset, r.epoch))
    assert [len(second.secret(record.key_id)) for record in records] == [32, 32, 32]
    assert check(second) == records
    assert not (tmp_path / "vault.key").exists()
    for record in records:
        assert second.secret(record.key_id).hex() not in (tmp_path / "vault.json").read_text()


def test_the_settings_name_it(tmp_path: Path, remote: Remote) -> None:
    settings = Settings(home=tmp_path, vault_kek=remote.uri)
    record = open_vault(settings).create("photos")
    assert open_vault(settings).current("photos") == record
    stored = json.loads((tmp_path / "vault.json").read_text())["key_encryption"]
    assert stored["key"] == remote.key


def test_reading_it_needs_no_right_to_encrypt_or_describe(tmp_path: Path, remote: Remote) -> None:
    record = remote.vault(tmp_path).create("photos")
    remote.allow("decrypt")
    assert len(remote.vault(tmp_path).secret(record.key_id)) == 32
    with pytest.raises(VaultLocked, match=r"[Ee]ncrypt|update"):
        remote.vault(tmp_path).create("photos")
    remote.allow("decrypt", "encrypt")
    assert remote.vault(tmp_path).create("photos").epoch == 2
    with pytest.raises(VaultLocked, match=r"DescribeKey|read"):
        remote.vault(tmp_path / "new").create("photos")


@pytest.mark.parametrize("change", ["context", "bytes", "key"])
def test_a_wrapping_opens_only_as_it_was_made(tmp_path: Path, remote: Remote, change: str) -> None:
    backend = remote.backend(tmp_path)
    wrapped = backend.wrap(bytes(range(32)), CONTEXT)
    assert backend.unwrap(wrapped, CONTEXT) == bytes(range(32))
    context = CONTEXT
    if change == "context":
        context = {**CONTEXT, "dataset": "others"}
    elif change == "bytes":
        last = wrapped[-3:-2]
        wrapped = wrapped[:-3] + (b"A" if last != b"A" else b"B") + wrapped[-2:]
    else:
        other = Remote(remote.kind, remote.server, remote._patch, f"{remote.name}2")
        backend = other.backend(tmp_path)
    with pytest.raises(WrongKey):
        backend.unwrap(wrapped, context)


def test_any_secret_under_any_context(tmp_path: Path, remote: Remote) -> None:
    backend = remote.backend(tmp_path)
    printable = st.text(min_size=1).filter(str.isprintable)

    @hypothesis_settings(max_examples=30)
    @given(
        secret=st.binary(min_size=1, max_size=100),
        context=st.dictionaries(printable, printable, min_size=1, max_size=4),
    )
    def holds(secret: bytes, context: dict[str, str]) -> None:
        wrapped = backend.wrap(secret, context)
        assert backend.unwrap(wrapped, context) == secret
        assert secret not in wrapped or len(secret) < 3
        with pytest.raises(WrongKey):
            backend.unwrap(wrapped, {**context, "\n": "another pair"})

    holds()


def test_keys_of_a_vault_can_not_be_swapped(tmp_path: Path, remote: Remote) -> None:
    vault = remote.vault(tmp_path)
    first, _ = vault.create("photos"), vault.create("others")
    contents = json.loads(vault.path.read_bytes())
    contents["keys"][0]["wrapped"], contents["keys"][1]["wrapped"] = (k["wrapped"] for k in contents["keys"][::-1])
    vault.path.write_bytes(json.dumps(contents, indent=1).encode() + b"\n")
    with pytest.raises(KeyVaultError, match="altered"):
        remote.vault(tmp_path).secret(first.key_id)


def test_another_key_of_the_same_server_is_refused(tmp_path: Path, remote: Remote) -> None:
    remote.vault(tmp_path).create("photos")
    other = Remote(remote.kind, remote.server, remote._patch, f"{remote.name}2")
    with pytest.raises(VaultLocked, match="DMCP_VAULT_KEK names another key"):
        other.vault(tmp_path).list()


def test_the_file_alone_does_not_say_whom_to_ask(tmp_path: Path, remote: Remote) -> None:
    remote.vault(tmp_path).create("photos")
    with pytest.raises(VaultLocked, match="DMCP_VAULT_KEK does not name that"):
        Vault(tmp_path / "vault.json", Unlock(tmp_path / "vault.key")).list()


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_wrong_and_missing_credentials(tmp_path: Path, remote: Remote) -> None:
    vault = remote.vault(tmp_path)
    vault.create("photos")
    secret = remote.forge()
    with pytest.raises(VaultLocked) as error:
        remote.vault(tmp_path).list()
    assert secret not in str(error.value)
    assert "credentials" in str(error.value) or "VAULT_TOKEN" in str(error.value)
    remote.forget()
    with pytest.raises(VaultLocked, match=r"there are no AWS credentials|there is no token"):
        remote.vault(tmp_path).list()


def test_no_such_key(tmp_path: Path, remote: Remote) -> None:
    if remote.kind == "kms":
        uri = remote.server.uri("alias/none")
    else:
        uri = remote.server.uri("none")
        remote._patch.setenv("VAULT_TOKEN", remote.server.add_token("none"))
    with pytest.raises(KeyVaultError, match="There is no"):
        remote.vault(tmp_path, uri).create("photos")
    assert not (tmp_path / "vault.json").exists()


def test_unreachable(tmp_path: Path, kms: KmsServer, transit: TransitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashivault, "ATTEMPTS", 2)
    monkeypatch.setattr(aws_kms, "ATTEMPTS", 2)
    for index, made in enumerate((Remote("kms", kms, monkeypatch, "k"), Remote("transit", transit, monkeypatch, "k"))):
        folder = tmp_path / str(index)
        made.vault(folder).create("photos")
        made.server.__exit__(None, None, None)
        with pytest.raises(EnvironmentFault, match="does not answer"):
            made.vault(folder).list()


def test_throttling_passes_or_is_told(tmp_path: Path, kms: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_kms, "ATTEMPTS", 2)
    made = Remote("kms", kms, monkeypatch, "k")
    record = made.vault(tmp_path).create("photos")
    kms.failures = [Failure("ThrottlingException")]
    assert len(made.vault(tmp_path).secret(record.key_id)) == 32
    kms.failures = [Failure("ThrottlingException")] * 2
    with pytest.raises(EnvironmentFault, match="throttling"):
        made.vault(tmp_path).secret(record.key_id)
    kms.failures = [Failure("KMSInternalException", 500)] * 2
    with pytest.raises(EnvironmentFault, match="KMSInternalException"):
        made.vault(tmp_path).secret(record.key_id)


@pytest.mark.parametrize("state", ["Disabled", "PendingDeletion"])
def test_a_kms_key_that_is_off(tmp_path: Path, kms: KmsServer, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    made = Remote("kms", kms, monkeypatch, "k")
    made.vault(tmp_path).create("photos")
    kms.keys[made.key].state = state
    with pytest.raises(KeyVaultError, match="cancel that at once"):
        made.vault(tmp_path).list()
    with pytest.raises(KeyVaultError, match=state):
        made.vault(tmp_path / "new").create("photos")


def test_keys_of_the_wrong_sort(
    tmp_path: Path, kms: KmsServer, monkeypatch: pytest.MonkeyPatch, remote: Remote
) -> None:
    if remote.kind == "kms":
        uri = kms.uri(kms.add_key(spec="RSA_2048").arn)
        Remote("kms", kms, monkeypatch, "k")
    else:
        remote.server.add_key(f"{remote.name}-rsa", type="rsa-2048")
        uri = remote.server.uri(f"{remote.name}-rsa")
        monkeypatch.setenv("VAULT_TOKEN", remote.server.add_token(f"{remote.name}-rsa"))
    with pytest.raises(KeyVaultError, match=r"not symmetric|of another type"):
        remote.vault(tmp_path, uri).create("photos")


def test_an_alias_that_was_moved(tmp_path: Path, kms: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Remote("kms", kms, monkeypatch, "k")
    by_alias = kms.uri("alias/k")
    record = made.vault(tmp_path, by_alias).create("photos")
    assert made.vault(tmp_path).current("photos") == record, "the ARN that the alias named"
    kms.add_key("alias/k")
    with pytest.raises(VaultLocked, match="KMS key in DMCP_VAULT_KEK is wrong"):
        made.vault(tmp_path, by_alias).list()
    rotate(made.vault(tmp_path), made.unlock(tmp_path, by_alias))
    assert made.vault(tmp_path, by_alias).current("photos") == record


def test_a_region_is_needed(tmp_path: Path, kms: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Remote("kms", kms, monkeypatch, "k")
    with pytest.raises(SettingsError, match="region"):
        made.vault(tmp_path, f"aws-kms://alias/k?endpoint={kms.url}").create("photos")
    assert made.vault(tmp_path, f"aws-kms://{made.key}?endpoint={kms.url}").create("photos").epoch == 1
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    assert made.vault(tmp_path, f"aws-kms://alias/k?endpoint={kms.url}").create("photos").epoch == 2


def test_a_profile_of_its_own(tmp_path: Path, kms: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Remote("kms", kms, monkeypatch, "k")
    user, secret = kms.add_user()
    (tmp_path / "no-credentials").write_text(f"[keys]\naws_access_key_id = {user}\naws_secret_access_key = {secret}\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-object-store")
    assert made.vault(tmp_path, f"{made.uri}&profile=keys").create("photos").epoch == 1
    with pytest.raises(VaultLocked, match="no AWS credentials"):
        made.vault(tmp_path, f"{made.uri}&profile=none").list()


def test_the_context_is_data_set_and_version(tmp_path: Path, kms: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Remote("kms", kms, monkeypatch, "k").vault(tmp_path).create("photos")
    context = [asked["EncryptionContext"] for action, asked in kms.calls if action == "Encrypt"][-1]
    assert context["dataset"] == "photos" and context["epoch"] == "1" and context["key_id"] == record.key_id


# --- transit only ----------------------------------------------------------------------------------------------------


def test_sealed(tmp_path: Path, transit: TransitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Remote("transit", transit, monkeypatch, "k")
    made.vault(tmp_path).create("photos")
    transit.set_sealed(True)
    before = len(transit.calls)
    with pytest.raises(EnvironmentFault, match=r"is sealed.*unseal"):
        made.vault(tmp_path).list()
    assert len(transit.calls) == before + 1, "asking again unseals nothing"


def test_answers_that_pass_and_answers_that_do_not(
    tmp_path: Path, transit: TransitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Remote("transit", transit, monkeypatch, "k")
    record = made.vault(tmp_path).create("photos")
    transit.replies = [Reply(429), Reply(502, b"<html>")]
    assert len(made.vault(tmp_path).secret(record.key_id)) == 32
    monkeypatch.setattr(hashivault, "ATTEMPTS", 2)
    for replies, why in (
        ([Reply(429)] * 2, "throttling"),
        ([Reply(500, b'{"errors": ["internal"]}')] * 2, "status 500"),
        ([Reply(307, b"", {"Location": "http://127.0.0.1:1/v1/x"})], "another address"),
        ([Reply(200, b"<html>")], "is no Vault"),
        ([Reply(200, b'{"data": {"plaintext": "?"}}')], "is no Vault"),
        ([Reply(200, b'{"data": []}')], "is no Vault"),
        ([Reply(404, b"<html>")], "no transit key"),
    ):
        transit.replies = list(replies)
        with pytest.raises(DmcpError, match=why):
            made.vault(tmp_path).list()
        assert transit.replies == []


def test_a_token_file_is_read_anew(tmp_path: Path, transit: TransitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Remote("transit", transit, monkeypatch, "k")
    made.forget()
    token = tmp_path / "token"
    vault = made.vault(tmp_path, f"{made.uri}&token-file={token}")
    with pytest.raises(VaultLocked, match="token"):
        vault.create("photos")
    for _ in range(2):
        token.write_text(transit.add_token("k") + "\n")
        vault.create("photos")
        transit.tokens.clear()
    with pytest.raises(VaultLocked, match="wrong or expired"):
        vault.create("photos")


def test_namespaces(tmp_path: Path, transit: TransitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Remote("transit", transit, monkeypatch, "k")
    made.vault(tmp_path, f"{made.uri}&namespace=team/images").create("photos")
    assert {headers.get("X-Vault-Namespace") for _, headers, _ in transit.calls} == {"team/images"}
    with pytest.raises(VaultLocked, match="namespace=team/images"):
        made.vault(tmp_path).list()


def test_the_server_may_move(tmp_path: Path, transit: TransitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Remote("transit", transit, monkeypatch, "k")
    record = made.vault(tmp_path).create("photos")
    with TransitServer() as moved:
        moved.keys, moved.tokens = transit.keys, transit.tokens
        assert made.vault(tmp_path, moved.uri("k")).current("photos") == record


def test_versions_of_the_transit_key(tmp_path: Path, remote: Remote) -> None:
    if remote.kind == "kms":
        pytest.skip("KMS rotates out of sight")
    record = remote.vault(tmp_path).create("photos")
    secret = remote.vault(tmp_path).secret(record.key_id)
    remote.server.new_version(remote.key)
    remote.vault(tmp_path).create("photos")
    assert _versions(tmp_path) == [b"vault:v1:", b"vault:v2:"]
    rotate(remote.vault(tmp_path), remote.unlock(tmp_path))
    assert _versions(tmp_path) == [b"vault:v2:", b"vault:v2:"]
    assert remote.vault(tmp_path).secret(record.key_id) == secret


def _versions(folder: Path) -> list[bytes]:
    keys = json.loads((folder / "vault.json").read_text())["keys"]
    return [bytes.fromhex(key["wrapped"])[:9] for key in keys]


def test_tls_with_an_authority_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if find_openbao() is None:
        pytest.skip("needs OpenBao: `bao` beside this Python or on PATH")
    monkeypatch.setattr(hashivault, "ATTEMPTS", 1)
    with OpenBao(tmp_path_factory.mktemp("tls"), tls=True) as server:
        made = Remote("transit", server, monkeypatch, "k")
        with pytest.raises(EnvironmentFault, match="No trusted connection"):
            made.vault(tmp_path).create("photos")
        with pytest.raises(EnvironmentFault, match=r"does not answer|could not"):
            made.vault(tmp_path, f"{made.uri}?tls=off").create("photos")
        monkeypatch.setenv("VAULT_CACERT", str(server.authority))
        assert made.vault(tmp_path).create("photos").epoch == 1
        monkeypatch.setenv("VAULT_CACERT", str(tmp_path / "none"))
        with pytest.raises(EnvironmentFault, match="VAULT_CACERT"):
            made.vault(tmp_path).list()


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_do_not_show(
    tmp_path: Path, remote: Remote, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    vault = remote.vault(tmp_path)
    record = vault.create("photos")
    secret = vault.secret(record.key_id)
    backend = vault._opened[1]  # type: ignore[index]
    shown = [repr(vault), repr(vault._unlock), repr(backend), repr(vars(vault)), repr(vault.read())]
    with pytest.raises(TypeError, match="do not leave the process"):
        pickle.dumps(backend)
    credentials = [remote.forge()]
    with pytest.raises(DmcpError) as error:
        remote.vault(tmp_path).create("photos", secret)
    shown += [str(error.value), repr(error.value), repr(error.value.__cause__), *capfd.readouterr()]
    for text in [*shown, caplog.text]:
        for plain in (secret.hex(), repr(secret)[2:-1], b64encode(secret).decode(), *credentials):
            assert plain not in text


def test_an_error_does_not_hold_what_was_sent(tmp_path: Path, remote: Remote) -> None:
    remote.vault(tmp_path).create("photos")
    remote.allow("describe")
    with pytest.raises(DmcpError) as error:
        remote.backend(tmp_path).wrap(bytes(range(32)), CONTEXT)
    # `from None` where a library's own error was at hand: its request holds the data key and the token.
    assert error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__


# --- URIs ------------------------------------------------------------------------------------------------------------

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.mark.parametrize(
    "uri",
    [
        f"aws-kms://{ARN}",
        "aws-kms://alias/dmcp?region=eu-central-1",
        "aws-kms://1234abcd-12ab-34cd-56ef-1234567890ab?region=us-east-1&profile=keys",
        "aws-kms://mrk-1234abcd12ab34cd56ef1234567890ab",
        "aws-kms://arn:aws:kms:eu-central-1:111122223333:alias/dmcp?endpoint=https://vpce.example.org",
        "hashivault://vault.example.org/transit/dmcp",
        "hashivault://[::1]:8200/team/transit/dmcp?tls=off",
        "hashivault://127.0.0.1:8200/transit/dmcp?tls=off&namespace=a/b/&token-file=/run/token",
        "passphrase:",
        "file:",
        "file:/safe/vault.key",
        "file:///safe/vault.key",
    ],
)
def test_uris(uri: str, tmp_path: Path) -> None:
    assert Unlock.parse(uri, tmp_path / "k").kek is not None


def test_what_uris_say(tmp_path: Path) -> None:
    assert Unlock.parse("file:", tmp_path / "k").key_file == tmp_path / "k"
    for uri in ("file:/safe/k", "file:///safe/k"):
        assert Unlock.parse(uri, tmp_path).key_file == Path("/safe/k")
    kek: Any = Unlock.parse("hashivault://v:1/a/b/c?namespace=/n/", tmp_path).kek
    assert (kek.address, kek.mount, kek.key, kek.namespace, kek.tls) == ("v:1", "a/b", "c", "n", True)
    kek = Unlock.parse(f"aws-kms://{ARN}", tmp_path).kek
    assert (kek.key, kek.region, kek.endpoint) == (ARN, "eu-central-1", None)


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "uri",
    [
        SECRET,
        f"passphrase:{SECRET}",
        f"gcp-kms://{SECRET}",
        f"aws-kms://{SECRET}",
        f"aws-kms://user:{SECRET}@alias/dmcp",
        f"aws-kms://alias/dmcp?secret={SECRET}",
        "aws-kms://alias/dmcp?region=a&region=b",
        "aws-kms://alias/dmcp?region=",
        "aws-kms://alias/dmcp?region",
        "aws-kms://alias/dmcp?endpoint=http://example.org",
        f"aws-kms://alias/dmcp?endpoint=https://u:{SECRET}@example.org",
        "aws-kms://",
        f"hashivault://token:{SECRET}@vault.example.org/transit/dmcp",
        f"hashivault://vault.example.org/transit/dmcp#{SECRET}",
        f"hashivault://vault.example.org/transit/dmcp?token={SECRET}",
        "hashivault://vault.example.org/transit/dmcp?tls=off",
        "hashivault://127.0.0.1/transit/dmcp?tls=no",
        "hashivault://127.0.0.1.example.org/transit/dmcp?tls=off",
        "hashivault://vault.example.org/dmcp",
        "hashivault://vault.example.org/../sys/dmcp",
        "hashivault://vault.example.org/transit/..",
        "hashivault://vault.example.org/transit/a%2Fb%3F",
        "hashivault://vault.example.org:x/transit/dmcp",
        "hashivault:///transit/dmcp",
    ],
)
def test_uris_that_can_not_be_meant(uri: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        Unlock.parse(uri, tmp_path / "k")
    assert SECRET not in str(error.value)


@given(st.text())
def test_no_uri_is_anything_but_understood_or_refused(uri: str) -> None:
    for text in (uri, f"aws-kms://{uri}", f"hashivault://{uri}", f"hashivault://h/{uri}"):
        with suppress(SettingsError):
            Unlock.parse(text, Path("k"))
