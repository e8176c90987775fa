"""The newest admin record that unlock has seen."""

import sqlalchemy as sa
from alembic import op

revision = "pins_0002"
down_revision = "pins_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "seen_site",
        sa.Column("what", sa.String(32), primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
