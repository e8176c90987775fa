"""What a backup manifest needs of the stores and of the site key, on the admin socket.

The command line reads the mail, as its owner, and hashes it. Only digests of rows leave here, and
what is signed is a digest under a title of its own: it can pass for no record.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

from lmtp_atrest.crypto.records import AccountRecord, ManifestSeal
from lmtp_atrest.errors import UsageError
from lmtp_atrest.keystore.rows import account_rows, site_rows
from lmtp_atrest.unlock.administration import Administration, account_reply
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import BackupRows, BackupSeal
from lmtp_atrest.unlock.service import Service

PAGE = 100
SHA256 = re.compile("[0-9a-f]{64}")


class Backup:
    """The operations `backup-rows` and `backup-seal`."""

    def __init__(self, service: Service, administration: Administration) -> None:
        self._accounts = service.accounts
        self._administration = administration

    def operations(self) -> dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]]:
        """The operations by request, for the service."""
        return {BackupRows: self._rows, BackupSeal: self._seal}

    async def _rows(self, request: BackupRows, _peer: Peer) -> Reply:
        if request.name:
            record = await self._administration.existing(request.name)
            found = [await asyncio.to_thread(self._of, record)]
            return Reply("rows", {"accounts": found, "site": {}, "next": ""})
        return await asyncio.to_thread(self._page, request.after)

    def _page(self, after: str) -> Reply:
        later = self._accounts.records.all(after)
        found = [self._of(signed.record) for signed in islice(later, PAGE)]
        following = found[-1]["account"] if len(found) == PAGE else ""
        return Reply("rows", {"accounts": found, "site": self._site(), "next": following})

    def _of(self, record: AccountRecord) -> dict[str, Any]:
        stores = self._accounts.records.store, self._accounts.vaults.store
        rows = account_rows(*stores, record.account_id)
        return {**account_reply("", record).fields, "rows": rows}

    def _site(self) -> dict[str, str]:
        records = self._accounts.records
        admin = records.admin()
        keys = (admin.key, admin.previous) if admin else ()
        vault_ids = [key.vault.vault_id for key in keys if key is not None]
        return site_rows(records.store, self._accounts.vaults.store, vault_ids)

    async def _seal(self, request: BackupSeal, _peer: Peer) -> Reply:
        if not request.lines.isdecimal() or not SHA256.fullmatch(request.digest):
            message = "a manifest is sealed by a number of lines and a SHA-256 in hex"
            raise UsageError(message)
        site_key, digest = self._accounts.site_key, bytes.fromhex(request.digest)
        seal = ManifestSeal(site_key.site_id, int(time.time() * 1000), int(request.lines), digest)
        return Reply("sealed", {"document": site_key.sign_manifest(seal).decode()})
