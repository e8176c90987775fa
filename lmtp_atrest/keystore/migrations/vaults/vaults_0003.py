"""What an account's owner is told happened to it."""

import sqlalchemy as sa
from alembic import op

revision = "vaults_0003"
down_revision = "vaults_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "activity",
        sa.Column("entry_id", sa.String(32), primary_key=True),
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("client", sa.Text, nullable=False),
    )
    op.create_index("activity_by_account", "activity", ["account_id", "at"])
    op.create_index("activity_by_time", "activity", ["at"])
