"""Tables of the three stores; the migrations make them, `keystore upgrade` runs those."""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

RECORDS = MetaData()
VAULTS = MetaData()
PINS = MetaData()
CONVERSION = MetaData()

# records: what delivery reads. A row is a signed document; the other columns only find it.
accounts = Table(
    "accounts",
    RECORDS,
    Column("account_id", String(32), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
)
names = Table(
    "names",
    RECORDS,
    Column("name", Text, primary_key=True),
    Column("account_id", String(32), ForeignKey("accounts.account_id"), nullable=False),
    Index("names_by_account", "account_id"),
)
site = Table(
    "site",
    RECORDS,
    Column("what", String(32), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
)

# vaults: what unlock alone reads. `heads` orders all changes: whoever moves the epoch owns the
# transaction. `outbox` holds the signed record of a change until the records store has it too.
heads = Table(
    "heads",
    VAULTS,
    Column("account_id", String(32), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
)
vaults = Table(
    "vaults",
    VAULTS,
    Column("vault_id", String(32), primary_key=True),
    Column("account_id", String(32), nullable=False),
    Column("closed_at", BigInteger),  # milliseconds since 1970
    Index("vaults_by_account", "account_id"),
)
slots = Table(
    "slots",
    VAULTS,
    Column("slot_id", String(32), primary_key=True),
    Column("vault_id", String(32), ForeignKey("vaults.vault_id"), nullable=False),
    Column("account_id", String(32), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("label", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("suite", BigInteger, nullable=False),
    Column("kdf_memory", BigInteger, nullable=False),
    Column("kdf_passes", BigInteger, nullable=False),
    Column("kdf_salt", LargeBinary, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Index("slots_by_vault", "vault_id"),
)
private_keys = Table(
    "private_keys",
    VAULTS,
    Column("vault_id", String(32), ForeignKey("vaults.vault_id"), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
outbox = Table(
    "outbox",
    VAULTS,
    Column("account_id", String(32), primary_key=True),
    Column("document", LargeBinary, nullable=False),
)
slot_uses = Table(
    "slot_uses",
    VAULTS,
    Column("slot_id", String(32), primary_key=True),
    Column("day", String(10), nullable=False),  # 2026-11-25: enough to see what is in use
)
# What was done with keys that are not the doer's own. Each row carries a digest over itself and
# the digest before it.
audit = Table(
    "audit",
    VAULTS,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("event", String(32), nullable=False),
    Column("account_id", String(32), nullable=False),
    Column("detail", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)
# Mail to users that is to be sent, or was; who was told what, and when, is known by it.
notices = Table(
    "notices",
    VAULTS,
    Column("notice_id", String(32), primary_key=True),
    Column("account_id", String(32), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("recipient", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("sent", BigInteger),
    Index("notices_by_account", "account_id", "kind"),
)

# What an account's owner is shown: who opened it on which day, and what changed.
activity = Table(
    "activity",
    VAULTS,
    Column("entry_id", String(32), primary_key=True),
    Column("account_id", String(32), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("event", String(32), nullable=False),
    Column("client", Text, nullable=False),
    Index("activity_by_account", "account_id", "at"),
    Index("activity_by_time", "at"),
)

# pins: the highest epoch that unlock has seen of each account, outside both stores.
seen = Table(
    "seen",
    PINS,
    Column("account_id", String(32), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
)
seen_names = Table(
    "seen_names",
    PINS,
    Column("name", Text, primary_key=True),
    Column("account_id", String(32), ForeignKey("seen.account_id"), nullable=False),
    Index("seen_names_by_account", "account_id"),
)
seen_site = Table(
    "seen_site",
    PINS,
    Column("what", String(32), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
)

# conversion: what runs over mail that is already there have done. A count, never an order.
runs = Table(
    "runs",
    CONVERSION,
    Column("account_id", String(32), primary_key=True),
    Column("direction", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("started", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Column("clean", BigInteger),  # the start of the last run that found nothing left to do
    Column("done", BigInteger, nullable=False),
    Column("skipped", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("failures", Text, nullable=False),
)
