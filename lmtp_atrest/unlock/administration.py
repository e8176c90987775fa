"""What the admin socket does beyond the others: accounts, sessions, status.

Every change is `Accounts`'s own; here it is put between the protocol and what has to follow it:
the barrier after `enable`, and ending the readers that still hold old keys or none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Any

from lmtp_atrest.accounts import AccountView
from lmtp_atrest.config import Config
from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.directory import Directory
from lmtp_atrest.errors import NotFound, UsageError
from lmtp_atrest.unlock.certificates import shown_certificates
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import (
    AccountAdd,
    AccountAlias,
    AccountList,
    AccountRemove,
    AccountRename,
    AccountShow,
    SessionList,
    SessionLock,
    Status,
)
from lmtp_atrest.unlock.service import Service

# DESIGN 5: a delivery that read "plain" before the commit has ended after this.
BARRIER_SECONDS = 5.0


class Administration:
    """The admin socket's own operations, on top of the service."""

    def __init__(
        self,
        config: Config,
        service: Service,
        directory: Directory,
        *,
        barrier_seconds: float = BARRIER_SECONDS,
        hardening_missing: Sequence[str] = (),
    ) -> None:
        self._mail = config.mail
        self._directory_is_ours = config.directory.source == "keystore"
        self._service = service
        self._accounts = service.accounts
        self._directory = directory
        self.barrier_seconds = barrier_seconds
        self._hardening_missing = list(hardening_missing)

    def operations(self) -> dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]]:
        """The operations by request, for the service."""
        return {
            Status: self._status,
            SessionList: self._session_list,
            SessionLock: self._session_lock,
            AccountAdd: self._add,
            AccountList: self._list,
            AccountShow: self._show,
            AccountRename: self._rename,
            AccountAlias: self._alias,
            AccountRemove: self._remove,
        }

    async def _status(self, _request: Status, _peer: Peer) -> Reply:
        return Reply(
            "status",
            {
                "version": version("lmtp-atrest"),
                "open_vaults": len(self._service.vaults),
                "argon2_width": self._service.pool.width,
                "argon2_pending": self._service.pool.pending,
                "hardening_missing": self._hardening_missing,
                "evict": self._service.evictor.configured,
            },
        )

    async def _session_list(self, _request: SessionList, _peer: Peer) -> Reply:
        now = self._service.now()
        sessions = [
            {
                "account": vault.account_id,
                "name": vault.names[0],
                "source": vault.source,
                "open_seconds": int(now - vault.opened),
                "idle_seconds": int(now - vault.used),
                "expires": self._service.vaults.expires(vault, now),
                "tokens": len(vault.tokens),
            }
            for vault in self._service.vaults.listed(now)
        ]
        return Reply("sessions", {"sessions": sessions})

    async def _session_lock(self, request: SessionLock, _peer: Peer) -> Reply:
        record = await self.existing(request.name)
        return await self._service.locked(record.account_id, record.names)

    async def _add(self, request: AccountAdd, _peer: Peer) -> Reply:
        name = self.canonical(request.name)
        home = request.home or await self._home(name)
        maildir = request.maildir or self._mail.maildir(home)
        record = await asyncio.to_thread(self._accounts.add, [name], home, maildir)
        return account_reply("added", record)

    async def add_found(self, name: str) -> AccountRecord:
        """A plain account for a canonical name, where the site's directory says its home is."""
        home = await self._home(name)
        return await asyncio.to_thread(self._accounts.add, [name], home, self._mail.maildir(home))

    async def _list(self, _request: AccountList, _peer: Peer) -> Reply:
        records = await asyncio.to_thread(self._accounts.all)
        return Reply("accounts", {"accounts": [_shown(record) for record in records]})

    async def _show(self, request: AccountShow, _peer: Peer) -> Reply:
        view: AccountView = await asyncio.to_thread(
            self._accounts.show, self.canonical(request.name)
        )
        slots = [
            {
                "id": slot.slot_id,
                "kind": str(slot.kind),
                "label": slot.label,
                "state": str(slot.state),
                "created": slot.created,
                "used": slot.used,
            }
            for slot in view.slots
        ]
        certificates = await asyncio.to_thread(shown_certificates, view.record)
        return account_reply("account", view.record, slots=slots, certificates=certificates)

    async def _rename(self, request: AccountRename, _peer: Peer) -> Reply:
        name, new = self.canonical(request.name), self.canonical(request.new)
        return account_reply("renamed", await asyncio.to_thread(self._accounts.rename, name, new))

    async def _alias(self, request: AccountAlias, _peer: Peer) -> Reply:
        name, alias = self.canonical(request.name), self.canonical(request.alias)
        change = self._accounts.alias_remove if request.remove else self._accounts.alias_add
        return account_reply("changed", await asyncio.to_thread(change, name, alias))

    async def _remove(self, request: AccountRemove, _peer: Peer) -> Reply:
        before = await self.existing(request.name)
        record = await asyncio.to_thread(self._accounts.remove, self.canonical(request.name))
        self._service.vaults.close(record.account_id)
        remaining = await self._service.evictor.end(before.names, record.account_id)
        return account_reply("removed", record, readers_remaining=remaining)

    async def changed(self, record: AccountRecord, result: str, **more: Any) -> Reply:
        """End what holds the state before a change; the reply that tells of it."""
        self._service.vaults.close(record.account_id)
        remaining = await self._service.evictor.end(record.names, record.account_id)
        return account_reply(result, record, readers_remaining=remaining, **more)

    async def existing(self, name: str) -> AccountRecord:
        """The account of a name as a peer spells it; NotFound, UsageError."""
        canonical = self.canonical(name)
        record = await asyncio.to_thread(self._accounts.record, canonical)
        if record is None:
            message = f"no account has the name {canonical}"
            raise NotFound(message)
        return record

    def canonical(self, name: str) -> str:
        """The one spelling of a name; UsageError, InvalidName."""
        try:
            name.encode()
        except UnicodeEncodeError:
            message = "the name is not UTF-8"
            raise UsageError(message) from None
        return self._service.names.canonical(name)

    async def _home(self, name: str) -> str:
        """The home directory the site gives this name, else the one of the site's template."""
        found = None if self._directory_is_ours else await self._directory.lookup(name)
        if found is None and not self._directory_is_ours:
            message = f"the site's directory does not know {name}"
            raise NotFound(message)
        home = (found.home if found else "") or self._mail.home_of(name)
        if home is None:
            message = f"{name} cannot be the name of a directory: give a home"
            raise UsageError(message)
        return home


def account_reply(result: str, record: AccountRecord, **more: Any) -> Reply:
    """A reply that tells how an account stands."""
    return Reply(result, {**_shown(record), **more})


def _shown(record: AccountRecord) -> dict[str, Any]:
    return {
        "account": record.account_id,
        "names": list(record.names),
        "state": record.state.value,
        "kind": record.kind.value,
        "epoch": record.epoch,
        "created": record.created,
        "home": record.home,
        "maildir": record.maildir,
        "key_ids": list(record.key_ids),
        "closed_vaults": len(record.closed),
        "admin_recovery": _admin_recovery(record),
        "frozen": record.frozen,
        "suspended": record.suspended,
        "rekey_due": record.rekey_due,
        "vault_key_since": record.vault_key_since,
    }


def _admin_recovery(record: AccountRecord) -> str:
    """Whether the administrator can open this mail, in a word that its owner may read."""
    if record.admin_key:
        return "yes"
    return "refused" if record.admin_refused else "no"
