"""What is known of a request's attempts apart from their numbers: how many workers took it over, when it is due again.

Kept: everything. Of requests that are under way the count begins anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the new columns."""
    op.add_column("requests", sa.Column("due", sa.DateTime(timezone=True)))
    op.add_column("requests", sa.Column("takeovers", sa.Integer))
    op.execute("UPDATE requests SET takeovers = 0")
    with op.batch_alter_table("requests") as requests:
        requests.alter_column("takeovers", existing_type=sa.Integer, nullable=False)
