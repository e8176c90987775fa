"""The first tables of the pins store."""

import sqlalchemy as sa
from alembic import op

revision = "pins_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "seen",
        sa.Column("account_id", sa.String(32), primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "seen_names",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("account_id", sa.String(32), sa.ForeignKey("seen.account_id"), nullable=False),
    )
    op.create_index("seen_names_by_account", "seen_names", ["account_id"])
