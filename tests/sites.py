"""A whole site in a directory: keys, stores and accounts, with Argon2id at the format's floor."""

import shutil
from pathlib import Path

from lmtp_atrest.accounts import Accounts, AdminRecovery, Generations, Settings, SlotChanges
from lmtp_atrest.crypto.publickey import Curve
from lmtp_atrest.crypto.records import AccountRecord, SiteKey
from lmtp_atrest.crypto.slots import MEMORY_FLOOR, PASSES_FLOOR
from lmtp_atrest.keystore import store
from lmtp_atrest.keystore.audit import Audit
from lmtp_atrest.keystore.pins import Pins
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.keystore.vaults import Vaults
from lmtp_atrest.secret import Secret

CHEAP = Settings(Curve.PRIME256V1, MEMORY_FLOOR, PASSES_FLOOR)
PASSWORD = Secret(b"correct horse battery staple")


class CheapSite:
    """`accounts`, `records`, `vaults` and `pins` over SQLite files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.key = SiteKey.generate()
        self.public = self.key.public
        for kind in (store.RECORDS, store.VAULTS, store.PINS):
            opened = store.Store(kind, self.url(kind.name))
            opened.upgrade()
            opened.close()
        self.open()

    def url(self, name: str) -> str:
        return f"sqlite:///{self.root / name}.db"

    def open(self) -> None:
        self.records = Records(store.Store(store.RECORDS, self.url("records")), self.public)
        self.vaults = Vaults(store.Store(store.VAULTS, self.url("vaults")))
        self.pins = Pins(store.Store(store.PINS, self.url("pins")))
        self.accounts = Accounts(self.records, self.vaults, self.pins, self.key, CHEAP)
        self.generations = Generations(self.accounts)
        self.slots = SlotChanges(self.accounts, self.generations)
        self.audit = Audit(self.vaults.store)
        self.admin = AdminRecovery(self.accounts, self.audit)

    def close(self) -> None:
        for part in (self.records, self.vaults, self.pins):
            part.store.close()

    def restart(self) -> None:
        """What a new process sees, its start-up repair included."""
        self.close()
        self.open()
        self.accounts.repair()
        self.admin.repair()

    def copy(self, name: str) -> Path:
        """Set aside a copy of one store, as a backup does."""
        getattr(self, name).store.close()
        return Path(shutil.copy(self.root / f"{name}.db", self.root / f"{name}.backup"))

    def restore(self, name: str) -> None:
        """Put the copy back in place of the store."""
        self.close()
        for tail in ("-wal", "-shm", "-journal"):
            (self.root / f"{name}.db{tail}").unlink(missing_ok=True)
        shutil.copy(self.root / f"{name}.backup", self.root / f"{name}.db")
        self.open()

    def add(
        self, name: str = "alice@example.org", password: Secret | None = None
    ) -> AccountRecord:
        """An account, encrypted if a password is given; its Maildir is below `mail/`."""
        local = name.partition("@")[0]
        home = str(self.root / "mail" / local)
        record = self.accounts.add([name], home, f"{home}/Maildir")
        return self.accounts.enable(name, password) if password else record
