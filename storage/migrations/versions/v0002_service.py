"""The tables of the service: several tokens a user, roles, data sets, terms, access requests, bounds, charges, audit.

Kept: every user with their token, every grant, every request.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from storage.audit_models import create_guards

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the new tables, and move into them what the old ones held."""
    _tokens()
    _datasets()
    _grants()
    _requests()
    _audit()
    op.execute("UPDATE registry_schema SET version = 2")


def _tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("label", sa.String(128), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("expires", TIME),
        sa.Column("revoked", TIME),
        sa.Column("last_used", TIME),
    )
    op.create_index("ix_tokens_user_id", "tokens", ["user_id"])
    op.create_index("ix_tokens_prefix", "tokens", ["prefix"])
    op.execute(
        "INSERT INTO tokens (user_id, prefix, hash, label, created) "
        "SELECT id, token_prefix, token_hash, 'first', created FROM users ORDER BY id"
    )
    op.drop_index("ix_users_token_prefix", "users")
    _add("users", sa.Column("role", sa.String(16)), "'user'")
    with op.batch_alter_table("users") as users:
        users.drop_column("token_hash")
        users.drop_column("token_prefix")


def _datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("owner_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created", TIME, nullable=False),
    )
    op.create_index("ix_datasets_owner_id", "datasets", ["owner_id"])
    op.create_table(
        "terms",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("dataset", sa.String(64), sa.ForeignKey("datasets.name"), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.UniqueConstraint("dataset", "version", name="terms_version"),
    )
    op.create_table(
        "acceptances",
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("terms_id", sa.Integer, sa.ForeignKey("terms.id"), primary_key=True),
        sa.Column("accepted", TIME, nullable=False),
    )


def _grants() -> None:
    _add("grants", sa.Column("starts", TIME), "created")
    _add("grants", sa.Column("used", sa.Integer()), "0")
    with op.batch_alter_table("grants") as grants:
        grants.add_column(sa.Column("version", sa.String(64)))
        grants.add_column(sa.Column("classes", sa.JSON))
        grants.add_column(sa.Column("samples", sa.JSON))
        grants.add_column(sa.Column("quota", sa.Integer))
        grants.add_column(sa.Column("granted_by", sa.Integer))
        grants.add_column(sa.Column("note", sa.Text))
        grants.create_foreign_key("grants_granted_by_fkey", "users", ["granted_by"], ["id"])
    op.create_table(
        "access_requests",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("dataset", sa.String(64), sa.ForeignKey("datasets.name"), nullable=False),
        sa.Column("version", sa.String(64)),
        sa.Column("classes", sa.JSON),
        sa.Column("images", sa.Integer),
        sa.Column("days", sa.Integer),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("renews", sa.Integer, sa.ForeignKey("grants.id")),
        sa.Column("created", TIME, nullable=False),
        sa.Column("decided", TIME),
        sa.Column("decided_by", sa.Integer, sa.ForeignKey("users.id")),
        sa.Column("note", sa.Text),
        sa.Column("grant_id", sa.Integer, sa.ForeignKey("grants.id")),
    )
    for name in ("user_id", "dataset", "state"):
        op.create_index(f"ix_access_requests_{name}", "access_requests", [name])


def _requests() -> None:
    _add("requests", sa.Column("attempt", sa.Integer()), "0")
    with op.batch_alter_table("requests") as requests:
        requests.add_column(sa.Column("heartbeat", TIME))
        requests.add_column(sa.Column("grant_id", sa.Integer))
        requests.create_foreign_key("requests_grant_id_fkey", "grants", ["grant_id"], ["id"])
    op.create_table(
        "charges",
        sa.Column("request_id", sa.String(32), sa.ForeignKey("requests.id"), primary_key=True),
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("dataset", sa.String(64), primary_key=True),
        sa.Column("grant_id", sa.Integer, sa.ForeignKey("grants.id"), nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("time", TIME, nullable=False),
    )
    op.create_index("ix_charges_grant_id", "charges", ["grant_id"])
    op.create_index("ix_charges_time", "charges", ["time"])


def _audit() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", sa.String(27), nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("dataset", sa.String(64)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
    )
    for name in ("action", "dataset", "request_id"):
        op.create_index(f"ix_audit_entries_{name}", "audit_entries", [name])
    create_guards(op.get_bind())


def _add(table: str, column: sa.Column[Any], value: str) -> None:
    """Add a column that is never null, and fill it in the rows that there are."""
    op.add_column(table, column)
    op.execute(f"UPDATE {table} SET {column.name} = {value}")
    with op.batch_alter_table(table) as batch:
        batch.alter_column(column.name, existing_type=column.type, nullable=False)
