"""Alembic's entry: runs the migrations of one store on the connection it is handed."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["metadata"],
    # SQLite cannot ALTER much: later migrations rebuild tables instead.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
