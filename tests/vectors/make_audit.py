"""Write the format vectors of the audit log: `python -m tests.vectors.make_audit` (only when a new version adds some).

audit/entries.jsonl                a log of five entries, as `dmcp audit export` writes it
audit/encoded.txt                  what is hashed of each of them, a line each
audit/audit.pub                    the public key; its seed is 32 bytes 0x07
audit/000000000004.json            a checkpoint of entry 4
"""

import io
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from Crypto.PublicKey import ECC

from storage.audit import AuditLog, append
from storage.audit_chain import Link, encode_entry
from storage.audit_checkpoints import sign_checkpoint
from storage.audit_export import export
from storage.audit_keys import Signer

FOLDER = Path(__file__).parent / "audit"
START = datetime(2026, 1, 31, 23, 59, 59, 999_999, UTC)
REQUEST = "0123456789abcdef" * 2
STEPS: list[dict[str, Any]] = [
    {"actor": "local", "action": "user.create", "subject": "ann@lab.example", "details": {"role": "user"}},
    {"actor": "ann@lab.example", "action": "access.ask", "dataset": "pets", "subject": "1", "details": {"images": 500}},
    {"actor": "owner", "action": "grant.create", "dataset": "pets", "subject": 'Zoë \U0001f43e \\ "x"\n\x00\ud800'},
    {
        "actor": "service",
        "action": "release",
        "dataset": "pets",
        "request_id": REQUEST,
        "details": {
            "shard": 0,
            "sha256": "ab" * 32,
            "list": [None, True, -1, 0.1, 1e300, "é\ud800\x00"],
            "a": {"b": {}},
        },
    },
    {"actor": "service", "action": "request.done", "request_id": REQUEST, "details": {"at": START}},
]


def signer() -> Signer:
    return Signer(ECC.construct(curve="Ed25519", seed=bytes([7]) * 32))


def make_log() -> list[Link]:
    """The entries, made by the real log."""
    with tempfile.TemporaryDirectory() as folder, AuditLog(f"sqlite:///{folder}/log.db") as log:
        for number, step in enumerate(STEPS):
            with log.write() as session:
                append(session, **step, now=START + timedelta(seconds=number))
        return list(log.links())


def files() -> dict[str, bytes]:
    """All files by name."""
    links = make_log()
    export(links, lines := io.BytesIO(), "jsonl")
    checkpoint = sign_checkpoint(signer(), 4, links[3].hash, START + timedelta(hours=1))
    key = ECC.construct(curve="Ed25519", seed=bytes([7]) * 32).public_key().export_key(format="PEM")
    return {
        "entries.jsonl": lines.getvalue(),
        "encoded.txt": b"".join(encode_entry(link) + b"\n" for link in links),
        "audit.pub": key.encode() + b"\n",
        "000000000004.json": checkpoint.encode(),
    }


if __name__ == "__main__":
    for name, data in files().items():
        (FOLDER / name).write_bytes(data)
