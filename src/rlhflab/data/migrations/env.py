"""What alembic runs to migrate: in the caller's transaction, or as SQL on stdout where there is no connection."""

from alembic import context

from rlhflab.data.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    context.configure(dialect_name=context.config.attributes.get("dialect", "postgresql"), target_metadata=metadata)
else:
    context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
