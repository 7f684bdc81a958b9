"""An audit log in a home of its own, and what is done to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.audit import AuditLog, append, open_audit_log
from storage.audit_chain import (
    AuditVerdict,
    Link,
)
from storage.audit_export import read_export
from storage.audit_models import drop_guards
from storage.errors import AuditBroken
from storage.settings import Settings
from tests.vectors.make_audit import FOLDER

VECTOR = (FOLDER / "000000000004.json").read_bytes()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def log(home: Path) -> Iterator[AuditLog]:
    with open_audit_log(Settings(home=home)) as log:
        yield log


def fill(log: AuditLog, count: int) -> None:
    with log.write() as session:
        for number in range(count):
            append(session, actor="ann", action="access.ask", dataset="pets", subject=f"step {number}")


def unguarded(log: AuditLog, *statements: str) -> None:
    """What an administrator of the database can do, and an accident can not."""
    with log.write() as session:
        drop_guards(session.connection())
        for statement in statements:
            session.connection().exec_driver_sql(statement)


def fault_of(verdict: AuditVerdict) -> str:
    assert not verdict.ok and verdict.fault is not None
    with pytest.raises(AuditBroken) as error:
        verdict.check()
    assert error.value.exit_code == 3 and error.value.cure
    return verdict.fault.what


def files_links() -> Iterator[Link]:
    return read_export(FOLDER / "entries.jsonl")
