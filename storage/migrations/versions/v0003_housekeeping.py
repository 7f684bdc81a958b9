"""What comes in and what is kept: uploads that were handed out, submissions under way, sessions, progress, removal.

Kept: everything. Requests that are running count as having got on when they were taken.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the new tables and columns."""
    for name in ("progressed", "input_removed", "removed", "cleared"):
        op.add_column("requests", sa.Column(name, TIME))
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("expires", TIME, nullable=False),
        sa.Column("used", TIME),
    )
    op.create_index("ix_uploads_user_id", "uploads", ["user_id"])
    op.create_table(
        "submissions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("holder", sa.String(32), nullable=False),
        sa.Column("until", TIME, nullable=False),
    )
    op.create_table(
        "page_sessions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("token_id", sa.Integer, sa.ForeignKey("tokens.id"), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("expires", TIME, nullable=False),
    )
    op.create_index("ix_page_sessions_token_id", "page_sessions", ["token_id"])
    op.create_index("ix_page_sessions_expires", "page_sessions", ["expires"])
