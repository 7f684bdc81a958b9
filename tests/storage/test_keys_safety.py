"""Rotation, backup, restore and check: whatever fails or dies, and whenever, every key is still there."""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from storage.errors import DmcpError, EnvironmentFault, KeyVaultError, UsageError, VaultLocked
from storage.key_encryption import Unlock
from storage.key_safety import backup, check, restore, rotate
from storage.keys import Vault, key_id_of
from tests.storage.rotating import (
    Nursery,
    Stop,
    by_file,
    by_passphrase,
    operation,
    which_opens,
)


def vault_at(folder: Path, unlock: Unlock | None = None) -> Vault:
    return Vault(folder / "vault.json", unlock or by_file(folder))


def filled(folder: Path, unlock: Unlock | None = None) -> dict[str, bytes]:
    vault = vault_at(folder, unlock)
    for dataset in ("photos", "others", "photos"):
        vault.create(dataset)
    return secrets_of(vault)


def secrets_of(vault: Vault) -> dict[str, bytes]:
    return {record.key_id: vault.secret(record.key_id) for record in vault.list()}


# --- rotation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["file", "passphrase"])
@pytest.mark.parametrize("after", ["file", "passphrase"])
def test_rotation_keeps_the_keys_and_changes_the_rest(tmp_path: Path, before: str, after: str) -> None:
    old = by_file(tmp_path) if before == "file" else by_passphrase(tmp_path)
    new = by_file(tmp_path, "new.key") if after == "file" else by_passphrase(tmp_path, "another")
    keys = filled(tmp_path, old)
    records = vault_at(tmp_path, old).list()
    was = json.loads((tmp_path / "vault.json").read_text())
    done = rotate(vault_at(tmp_path, old), new)
    assert (done.before, done.after) == (f"{before}:", f"{after}:")
    assert secrets_of(vault_at(tmp_path, new)) == keys
    assert vault_at(tmp_path, new).list() == records
    now = json.loads((tmp_path / "vault.json").read_text())
    assert now["mac_key"] != was["mac_key"]
    assert not {key["wrapped"] for key in now["keys"]} & {key["wrapped"] for key in was["keys"]}
    with pytest.raises(VaultLocked):
        vault_at(tmp_path, replace(old, key_file=tmp_path / "vault.key")).list()
    assert len(list(tmp_path.glob("*vault.json*"))) == 1, "a copy of the old file was left"
    assert vault_at(tmp_path, new).create("photos").epoch == 3


def test_a_file_of_the_first_release_opens_and_rotates(tmp_path: Path) -> None:
    """Written by the release before rotation was known, from the key file and the data key named here."""
    (tmp_path / "vault.key").touch(mode=0o600)
    (tmp_path / "vault.key").write_text("2a" * 32)
    (tmp_path / "vault.json").write_text(FIRST_RELEASE)
    secret = bytes(range(32))
    assert vault_at(tmp_path).secret(key_id_of(secret)) == secret
    rotate(vault_at(tmp_path), by_passphrase(tmp_path))
    assert vault_at(tmp_path, by_passphrase(tmp_path)).secret(key_id_of(secret)) == secret


def test_a_copy_of_the_old_file_where_it_is_wanted(tmp_path: Path) -> None:
    keys = filled(tmp_path)
    rotate(vault_at(tmp_path), by_passphrase(tmp_path), keep=tmp_path / "kept" / "old.json")
    assert secrets_of(Vault(tmp_path / "kept" / "old.json", by_file(tmp_path))) == keys
    with pytest.raises(UsageError, match="not overwritten"):
        rotate(vault_at(tmp_path, by_passphrase(tmp_path)), by_file(tmp_path), keep=tmp_path / "kept" / "old.json")
    assert secrets_of(vault_at(tmp_path, by_passphrase(tmp_path))) == keys


def test_rotation_to_the_same_key_file_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    shutil.copy2(tmp_path / "vault.key", tmp_path / "copy.key")
    for name in ("vault.key", "copy.key"):
        with pytest.raises(UsageError, match="already"):
            rotate(vault_at(tmp_path), by_file(tmp_path, name))


def test_rotation_needs_a_vault_and_what_opens_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no vault"):
        rotate(vault_at(tmp_path), by_passphrase(tmp_path))
    keys = filled(tmp_path, by_passphrase(tmp_path))
    with pytest.raises(VaultLocked, match="passphrase is wrong"):
        rotate(vault_at(tmp_path, by_passphrase(tmp_path, "wrong")), by_file(tmp_path))
    assert secrets_of(vault_at(tmp_path, by_passphrase(tmp_path))) == keys


class OneWay(Unlock):
    """A key-encryption key that encrypts and does not decrypt, as a policy may have it."""

    def open(self, stored: object) -> object:  # type: ignore[override]
        backend = super().open(stored)  # type: ignore[arg-type]

        class Encrypts:
            wrap = backend.wrap

            def unwrap(self, wrapped: bytes, context: object) -> bytes:
                raise VaultLocked("Decrypting is denied.")

        return Encrypts()


def test_rotation_to_what_can_not_be_opened_changes_nothing(tmp_path: Path) -> None:
    keys = filled(tmp_path)
    before = (tmp_path / "vault.json").read_bytes()
    with pytest.raises(VaultLocked, match="denied"):
        rotate(vault_at(tmp_path), OneWay(tmp_path / "new.key", kek="key-file"))
    assert (tmp_path / "vault.json").read_bytes() == before
    assert secrets_of(vault_at(tmp_path)) == keys


def test_one_broken_key_stops_a_rotation_and_a_backup(tmp_path: Path) -> None:
    filled(tmp_path)
    vault = vault_at(tmp_path)
    opened = vault.read()
    assert opened is not None
    first, *rest = opened.contents.keys
    broken = first.model_copy(update={"wrapped": rest[0].wrapped})
    vault.path.write_bytes(
        opened.with_keys([broken, *rest]).encode()
    )  # with a right MAC: a bug's work, not an attack's
    before = vault.path.read_bytes()
    for act in (
        lambda: rotate(vault_at(tmp_path), by_passphrase(tmp_path)),
        lambda: backup(vault_at(tmp_path), tmp_path / "b.json"),
        lambda: check(vault_at(tmp_path)),
    ):
        with pytest.raises(KeyVaultError):
            act()
    assert vault.path.read_bytes() == before
    assert not (tmp_path / "b.json").exists()


# --- what dies and what fails ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def await_rotations(folder: Path, number: int, before: bytes) -> None:
    """Until the vault was written anew so many times since it was `before`."""
    deadline = time.monotonic() + 120
    for _ in range(number):
        while (now := (folder / "vault.json").read_bytes()) == before:
            assert time.monotonic() < deadline, "it does not rotate"
            time.sleep(0.002)
        before = now


def test_sigkill_at_any_instant_of_a_rotation_loses_no_key(tmp_path: Path, nursery: Nursery) -> None:
    keys = filled(tmp_path)
    ways = [by_file(tmp_path), by_passphrase(tmp_path)]
    dice = random.Random(4)
    opened_by = []
    for _ in range(30):
        before = (tmp_path / "vault.json").read_bytes()
        child = nursery.start("rotate_forever", tmp_path)
        await_rotations(tmp_path, dice.randrange(3), before)
        time.sleep(dice.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert nursery.ended() == -signal.SIGKILL
        opened_by.append(which_opens(tmp_path, ways))
        assert secrets_of(vault_at(tmp_path, ways[opened_by[-1]])) == keys
    assert set(opened_by) == {0, 1}, "no kill fell on one side of a rotation"
    rotate(vault_at(tmp_path, ways[opened_by[-1]]), ways[1 - opened_by[-1]])
    assert not list(tmp_path.glob(".vault.json.*.partial"))


OPERATIONS = ["rotate to a file", "rotate to a passphrase", "create", "backup", "restore", "replace"]


def prepared(folder: Path) -> dict[str, bytes]:
    """A vault of three keys that `by_file` opens, and a backup that holds one of them and one more."""
    folder.mkdir()
    vault = vault_at(folder)
    shared = vault.create("photos")
    backup(vault, folder / "backup.json", SecretStr("correct horse"))
    Vault(folder / "backup.json", by_passphrase(folder)).create("cars")
    vault.create("others")
    vault.create("photos")
    assert shared.epoch == 1
    return secrets_of(vault)


def survived(folder: Path, name: str, keys: dict[str, bytes]) -> None:
    """The keys are all in the vault, old or new; or, where a broken one is replaced, in the backup at least."""
    inside = secrets_of(Vault(folder / "backup.json", by_passphrase(folder)))
    if name == "replace":
        assert len(inside) == 2
        if (folder / "vault.json").read_bytes() != b"broken":
            assert secrets_of(vault_at(folder)) == inside
        return
    kind = json.loads((folder / "vault.json").read_text())["key_encryption"]["kind"]
    ways = [by_passphrase(folder)] if kind == "passphrase" else [by_file(folder), by_file(folder, "safe/new.key")]
    opened = [way for way in ways if _opens(folder, way)]
    assert len(opened) == 1, "neither the old nor the new opens"
    now = secrets_of(vault_at(folder, opened[0]))
    assert keys.items() <= now.items()
    for extra in (folder / "safe" / "backup.json", folder / "kept" / "old.json"):
        if extra.exists():  # whole, then
            unlock = by_passphrase(folder, "in a safe") if extra.name == "backup.json" else by_file(folder)
            assert secrets_of(Vault(extra, unlock)) == keys


def _opens(folder: Path, unlock: Unlock) -> bool:
    try:
        return bool(vault_at(folder, unlock).list())
    except VaultLocked:
        return False


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failure_at_each_step_loses_no_key(tmp_path: Path, name: str) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    keys = prepared(tmp_path / "origin")
    for step in range(1, 100):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "origin", folder)
        with Stop(step, full) as stop, suppress(DmcpError):  # an OSError of its own would come through
            operation(name, folder)
        survived(folder, name, keys)
        if not stop.reached:
            assert step > 5
            return
        operation_again(name, folder)
    raise AssertionError("never whole")


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_at_each_step_loses_no_key(tmp_path: Path, nursery: Nursery, name: str) -> None:
    keys = prepared(tmp_path / "origin")
    for step in range(1, 100):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "origin", folder)
        nursery.start("killed_at", step, name, folder)
        ended = nursery.ended()
        survived(folder, name, keys)
        if ended == 0:
            assert step > 5
            return
        assert ended == -signal.SIGKILL
        operation_again(name, folder)
    raise AssertionError("never whole")


def operation_again(name: str, folder: Path) -> None:
    """What was killed can be done again, or is done, and leaves nothing of the killed one behind."""
    for extra in ("safe", "kept"):
        shutil.rmtree(folder / extra, ignore_errors=True) if name in ("backup", "rotate to a passphrase") else None
    if name.startswith("rotate") and not _opens(folder, by_file(folder)):
        return  # it had happened
    operation(name, folder)
    assert not list(folder.glob(".vault.json.*.partial"))


# --- backup and restore ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phrase", [None, "in a safe"])
def test_a_backup_comes_back_on_another_machine(tmp_path: Path, phrase: str | None) -> None:
    keys = filled(tmp_path / "old")
    records = vault_at(tmp_path / "old").list()
    file = tmp_path / "stick" / "backup.json"
    made = backup(vault_at(tmp_path / "old"), file, SecretStr(phrase) if phrase else None)
    assert sorted(record.key_id for record in made) == sorted(keys)
    assert file.stat().st_mode & 0o777 == 0o600
    new = tmp_path / "new"
    if phrase is None:
        new.mkdir()
        shutil.copy2(tmp_path / "old" / "vault.key", new / "vault.key")
        source = Vault(file, by_file(new))
    else:
        source = Vault(file, replace(by_file(new), passphrase=SecretStr(phrase)))
    shutil.rmtree(tmp_path / "old")
    assert [record.key_id for record in check(source)] == [record.key_id for record in made]
    done = restore(vault_at(new), source)
    assert secrets_of(vault_at(new)) == keys
    assert vault_at(new).list() == records
    assert done.added == done.keys and done.aside is None
    assert restore(vault_at(new), source).added == []


def test_a_backup_is_never_overwritten_and_never_the_vault(tmp_path: Path) -> None:
    filled(tmp_path)
    for name in ("vault.json", "vault.key"):
        with pytest.raises(UsageError, match="not overwritten"):
            backup(vault_at(tmp_path), tmp_path / name)
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="not overwritten"):
        backup(vault_at(tmp_path), tmp_path / "link.json")
    with pytest.raises(EnvironmentFault, match="can not be written"):
        backup(vault_at(tmp_path), tmp_path / "vault.key" / "b.json")
    with pytest.raises(UsageError, match="There is no vault"):
        backup(vault_at(tmp_path / "none"), tmp_path / "b.json")


def test_a_backup_that_does_not_open_restores_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    file = tmp_path / "b.json"
    backup(vault_at(tmp_path), file, SecretStr("in a safe"))
    with pytest.raises(VaultLocked, match="passphrase is wrong"):
        restore(vault_at(tmp_path / "new"), Vault(file, by_passphrase(tmp_path, "wrong")))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(KeyVaultError):
        restore(vault_at(tmp_path / "new"), Vault(file, by_passphrase(tmp_path, "in a safe")))
    assert not (tmp_path / "new" / "vault.json").exists()


def test_what_the_backup_lacks_is_not_lost(tmp_path: Path) -> None:
    filled(tmp_path)
    backup(vault_at(tmp_path), tmp_path / "b.json")
    source = Vault(tmp_path / "b.json", by_file(tmp_path))
    newer = vault_at(tmp_path).create("photos")
    with pytest.raises(UsageError, match=f"{newer.key_id} .*--merge"):
        restore(vault_at(tmp_path), source)
    keys = secrets_of(vault_at(tmp_path))
    assert restore(vault_at(tmp_path), source, merge=True).added == []
    assert secrets_of(vault_at(tmp_path)) == keys


def test_a_vault_that_lacks_keys_gets_them_and_stays_locked_as_it_is(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    keys = filled(old)
    backup(vault_at(old), tmp_path / "b.json", SecretStr("in a safe"))
    source = Vault(tmp_path / "b.json", by_passphrase(tmp_path, "in a safe"))
    mine = vault_at(new).create("cars")
    done = restore(vault_at(new), source, merge=True)
    assert {record.key_id for record in done.added} == set(keys)
    assert secrets_of(vault_at(new)) == {**keys, mine.key_id: vault_at(new).secret(mine.key_id)}


def test_a_vault_that_does_not_open_is_replaced_only_when_asked_and_kept(tmp_path: Path) -> None:
    keys = filled(tmp_path)
    backup(vault_at(tmp_path), tmp_path / "b.json", SecretStr("in a safe"))
    source = Vault(tmp_path / "b.json", replace(by_file(tmp_path), passphrase=SecretStr("in a safe")))
    (tmp_path / "vault.key").unlink()
    was = (tmp_path / "vault.json").read_bytes()
    with pytest.raises(UsageError, match=r"vault\.key is missing.*--replace"):
        restore(vault_at(tmp_path), source)
    done = restore(vault_at(tmp_path), source, replacing=True)
    assert done.aside is not None and done.aside.read_bytes() == was
    assert secrets_of(vault_at(tmp_path)) == keys


@hypothesis_settings(max_examples=30)
@given(steps=st.lists(st.sampled_from(["create here", "create there", "merge", "rotate"]), max_size=8))
def test_two_vaults_that_part_and_meet(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """Whatever happened to either, a merge holds all keys of both, one a data set and epoch, the newest last."""
    folder = tmp_path_factory.mktemp("merge")
    here, there = vault_at(folder, by_file(folder)), Vault(folder / "b.json", by_file(folder, "b.key"))
    here.create("photos")
    there.create("photos")
    for count, step in enumerate([*steps, "merge"]):
        if step == "create here":
            here.create("photos")
        elif step == "create there":
            there.create("photos" if count % 2 else "others")
        elif step == "rotate":
            to = by_file(folder, f"{count}.key")
            rotate(here, to)
            here = vault_at(folder, to)
        else:
            ours, theirs, newest = secrets_of(here), secrets_of(there), here.current("photos")
            latest = there.current("photos")
            restore(here, there, merge=True)
            assert secrets_of(here) == {**ours, **theirs}
            records = here.list()
            assert len({(record.dataset, record.epoch) for record in records}) == len(records)
            assert here.current("photos").key_id in (newest.key_id, latest.key_id)
            if newest.created >= latest.created and newest.epoch >= latest.epoch:
                assert here.current("photos").key_id == newest.key_id


FIRST_RELEASE = """{
 "format": "dmcp-vault",
 "version": 1,
 "key_encryption": {
  "kind": "key-file"
 },
 "mac_key": "de6f0d4ca26e69f108f749f5668375ec2fce17ff7f25ebdb8293fa63396f62d28fd933d6f0a6a73067a9956fa1a9c075",
 "keys": [
  {
   "key_id": "61698cf0cf2d3fc6",
   "dataset": "photos",
   "epoch": 1,
   "created": "2026-11-24T17:55:37+00:00",
   "wrapped": "0ad33dd8663405f59d48c2c87fa3e402cb3a4635e533073ad2f3128d45be14fc914075e5547d7cee735165e2da3c3a09"
  }
 ],
 "mac": "8688415845449bbaf06f38bbc3f0350dcadf020d5a2185f0a26440624c771d75"
}
"""
