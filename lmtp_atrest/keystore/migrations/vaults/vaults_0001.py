"""The first tables of the vaults store."""

import sqlalchemy as sa
from alembic import op

revision = "vaults_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "heads",
        sa.Column("account_id", sa.String(32), primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "vaults",
        sa.Column("vault_id", sa.String(32), primary_key=True),
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("closed_at", sa.BigInteger),
    )
    op.create_index("vaults_by_account", "vaults", ["account_id"])
    op.create_table(
        "slots",
        sa.Column("slot_id", sa.String(32), primary_key=True),
        sa.Column("vault_id", sa.String(32), sa.ForeignKey("vaults.vault_id"), nullable=False),
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("suite", sa.BigInteger, nullable=False),
        sa.Column("kdf_memory", sa.BigInteger, nullable=False),
        sa.Column("kdf_passes", sa.BigInteger, nullable=False),
        sa.Column("kdf_salt", sa.LargeBinary, nullable=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
    )
    op.create_index("slots_by_vault", "slots", ["vault_id"])
    op.create_table(
        "private_keys",
        sa.Column("vault_id", sa.String(32), sa.ForeignKey("vaults.vault_id"), primary_key=True),
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("account_id", sa.String(32), primary_key=True),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
