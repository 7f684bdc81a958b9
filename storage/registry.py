"""The registry: who may have what restored, what they asked for, and what became of it.

    registry = open_registry(settings())                     # SQLite below HOME, or any SQLAlchemy address
    token = registry.add_user("ann@lab.example")             # shown once; only its SHA-256 is kept
    registry.grant("ann@lab.example", "cifar10", expires, quota=5000, actor="owner")       # again: extends
    user = registry.authenticate(token)                      # BadToken
    grant = registry.authorise(user.id, "cifar10", images=1000)     # NoGrant, GrantExpired, QuotaExceeded, ...
    request_id = registry.create_request(user.id, "upload", None, "my-images")
    request = registry.claim_request(request_id)             # pending -> running, for one worker only
    registry.charge(request_id, 0, grant.id, 1000)           # once a shard, however often it is restored
    registry.set_request_state(request_id, "done", restored=997, refused=3, result="requests/...")

One class, put together from one book a topic:

    registry_users.py      users, roles, tokens
    registry_datasets.py   data sets and their owners, terms of use, who accepted them
    registry_grants.py     grants and their bounds, `authorise` (asks `policies.py`), `charge`
    registry_access.py     a user asks for access, an owner decides
    registry_requests.py   restore requests: pending -> running -> done, failed or cancelled
    registry_queue.py      what waits, in a fair order; what got stuck; what is tried again; what is over and removed
    registry_intake.py     addresses for uploads, and who hands in what just now
    registry_sessions.py   sessions of the pages
    registry_usage.py      what was restored, by day

`registry_models.py` has the tables, `registry_schema.py` opens and upgrades the database, `migrations/` says how. What
changes something also writes the audit log (`audit.py`), in the same transaction; `actor` says in whose name.

Times are timezone-aware and UTC, in and out, on databases that store no time zone too. What the methods return (`User`,
`Grant`, `Request`, ...) is detached: plain to read, in any thread, with the user's name as `.user.name`.
"""

from storage.registry_access import AS_ASKED, AccessBook
from storage.registry_intake import IntakeBook
from storage.registry_models import (
    AccessRequest,
    Charge,
    Dataset,
    Grant,
    Request,
    Role,
    State,
    Terms,
    Token,
    Upload,
    User,
)
from storage.registry_queue import QueueBook
from storage.registry_requests import new_request_id
from storage.registry_sessions import SessionBook
from storage.registry_usage import UsageBook, UsageRow
from storage.settings import Settings

__all__ = [
    "AS_ASKED",
    "AccessRequest",
    "Charge",
    "Dataset",
    "Grant",
    "Registry",
    "Request",
    "Role",
    "State",
    "Terms",
    "Token",
    "Upload",
    "UsageRow",
    "User",
    "new_request_id",
    "open_registry",
    "registry_url",
]


class Registry(AccessBook, QueueBook, IntakeBook, SessionBook, UsageBook):
    """All books in one database. Safe to use from several threads and processes."""

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def registry_url(settings: Settings) -> str:
    """The registry's address: DMCP_REGISTRY_URL, or the SQLite file HOME/registry.db."""
    return settings.registry_url or f"sqlite:///{settings.home_path('registry.db')}"


def open_registry(settings: Settings) -> Registry:
    """The registry of these settings; DMCP_MIGRATE=1 upgrades what an earlier release made."""
    return Registry(registry_url(settings), migrate=settings.migrate)
