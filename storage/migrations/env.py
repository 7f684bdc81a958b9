"""Alembic's environment: the connection is the caller's, and so is its transaction."""

from alembic import context

from storage.registry_models import Base
from storage.registry_schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite changes a table by making it anew
)
with context.begin_transaction():
    context.run_migrations()
