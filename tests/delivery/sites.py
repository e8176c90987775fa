"""A site with delivery on top: a fake userdb, a mail root, and ways to read what was stored."""

import asyncio
from pathlib import Path
from typing import Any

from lmtp_atrest.config import Config
from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.crypto.records import SignedRecord
from lmtp_atrest.delivery import Client, Delivery, Recipient, Reply
from lmtp_atrest.directory import Found
from lmtp_atrest.keystore.records import Records
from lmtp_atrest.names import Address, Names
from tests.sites import PASSWORD, CheapSite

CANARY = b"canary-7c1f"
MESSAGE = b"From: a@x\nSubject: " + CANARY + b"\n\nbody " + CANARY + b"\n"


class TableDirectory:
    """A directory from a table; an exception in it is raised."""

    def __init__(self) -> None:
        self.users: dict[str, Found | Exception] = {}

    async def lookup(self, name: str) -> Found | None:
        found = self.users.get(name)
        if isinstance(found, Exception):
            raise found
        return found


class DeliverySite:
    """Delivery over the stores of a CheapSite; `lmtp` and `mail` change its configuration."""

    def __init__(self, site: CheapSite, **sections: dict[str, Any]) -> None:
        self.site = site
        self.root = site.root / "mail"
        self.root.mkdir(exist_ok=True)
        mail = {"root": str(self.root), **sections.get("mail", {})}
        lmtp = {"unclear_ends": str(site.root / "unclear"), **sections.get("lmtp", {})}
        self.config = Config.model_validate({"mail": mail, "lmtp": lmtp})
        self.directory = TableDirectory()
        self.now = 1000.0
        self.delivery = self.make(site.records)

    def make(self, records: Records) -> Delivery:
        names = Names(self.config.names, self.config.lmtp.recipient_delimiter)
        return Delivery(
            self.config, records, self.site.public, self.directory, names, lambda: self.now
        )

    def knows(self, name: str) -> Path:
        """The directory knows this user; returns the Maildir."""
        home = self.root / name.partition("@")[0]
        self.directory.users[name] = Found(name, str(home))
        return home / "Maildir"

    async def accept(self, *names: str) -> list[Recipient]:
        addresses = [Address(*name.rsplit("@", 1)) for name in names]
        return [await self.delivery.recipient(address) for address in addresses]

    # How the connection `end`s: "confirmed", "unclear", or "open" while it lives.
    async def send(
        self, *names: str, message: bytes = MESSAGE, end: str = "confirmed", sender: str = "s"
    ) -> list[str]:
        recipients = await self.accept(*names)
        return await self.send_to(recipients, message, end=end, sender=sender)

    async def send_to(
        self,
        recipients: list[Recipient],
        message: bytes = MESSAGE,
        *,
        end: str = "confirmed",
        sender: str = "s",
    ) -> list[str]:
        transaction = self.delivery.begin(Address(sender, "x"), recipients, Client("c", "::1"))
        for start in range(0, len(message), 65536):
            await transaction.write(message[start : start + 65536])
            await asyncio.sleep(0)
        replies: list[Reply] = await transaction.finish()
        if end != "open":
            getattr(transaction, end)()
        return [str(reply) for reply in replies]

    def files(self, where: str = "new") -> list[Path]:
        return sorted(path for path in self.root.rglob(f"{where}/*") if path.is_file())

    def opened(self, path: Path) -> bytes:
        """The plaintext of a stored file, plain or sealed to an account of this site."""
        data = path.read_bytes()
        if not dcrypt.is_sealed(data[:64]):
            return data
        record = self._owner(path).record
        vault_key = self.site.accounts.open(record, PASSWORD).vault_key
        keys = self.site.accounts.private_keys(record, vault_key)
        return dcrypt.open_bytes(data, lambda header: dcrypt.unwrap(header, keys[0]))

    def _owner(self, path: Path) -> SignedRecord:
        return next(
            signed
            for signed in self.site.records.all()
            if path.is_relative_to(signed.record.maildir)
        )

    def canary_hits(self) -> list[Path]:
        """Files anywhere below the site's directory that hold the canary."""
        everything = (path for path in self.site.root.rglob("*") if path.is_file())
        return [path for path in everything if CANARY in path.read_bytes()]
