"""What the portal asks about a user: whether the password is right, and how the account stands.

Everything else that the portal asks is an operation of the admin socket that `owners.py` lets
through.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from lmtp_atrest.accounts import AccountView, AdminRecovery
from lmtp_atrest.accounts.accounts import SlotView
from lmtp_atrest.crypto.app_password import HANDLE_CHARACTERS
from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.crypto.slots import SlotKind
from lmtp_atrest.errors import NotFound, WrongSecret
from lmtp_atrest.names import InvalidName
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.administration import Administration, account_reply
from lmtp_atrest.unlock.converting import Converting
from lmtp_atrest.unlock.opening import Try
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import PortalOverview, PortalSignIn
from lmtp_atrest.unlock.service import Service

log = logger("unlock")


class SelfService:
    """The operations that only the portal has."""

    def __init__(
        self,
        service: Service,
        administration: Administration,
        admin: AdminRecovery,
        converting: Converting,
    ) -> None:
        self._service = service
        self._accounts = service.accounts
        self._administration = administration
        self._admin = admin
        self._converting = converting

    def operations(self) -> dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]]:
        """The operations by request, for the service."""
        return {PortalSignIn: self._sign_in, PortalOverview: self._overview}

    async def _sign_in(self, request: PortalSignIn, _peer: Peer) -> Reply:
        """The site's password is the site's to check; one more look-up tells the portal whom to
        ask. Before that answer stands the same work, and the same wait, as before a wrong one."""
        name, record = await self._named(request.name)
        if record is None or not record.holds_ciphertext:
            nobody = self._service.opener.nobody(name or request.name)
            try:
                await self._service.opener.prove(Try(nobody, request.secret, request.source))
            except WrongSecret:
                return Reply("not-enrolled", {"name": record.names[0] if record else name})
        assert record is not None  # noqa: S101 - nobody's secret is always wrong
        await self._service.opener.prove(Try(record, request.secret, request.source))
        log.info("signed in to the portal", account=record.account_id)
        return Reply("verified", {"name": record.names[0]})

    async def _named(self, name: str) -> tuple[str, AccountRecord | None]:
        """The canonical name, empty for what cannot be one, and its account."""
        try:
            canonical = self._service.names.canonical(name)
            canonical.encode()
        except (InvalidName, UnicodeEncodeError):
            return "", None
        return canonical, await self._service.record(canonical)

    async def _overview(self, request: PortalOverview, _peer: Peer) -> Reply:
        name = self._administration.canonical(request.name)
        admin = await asyncio.to_thread(self._admin.record)
        site = {"admin_policy": admin.policy, "admin_set": admin.key is not None}
        try:
            view = await asyncio.to_thread(self._accounts.show, name)
        except NotFound:
            return Reply("overview", {"names": [name], "state": "plain", **site})
        record = view.record
        return account_reply(
            "overview",
            record,
            **site,
            slots=[_shown(slot) for slot in view.slots],
            vaults=self._open_vaults(record),
            readers=await self._service.evictor.count(record.names),
            progress=self._converting.progress(record.account_id),
            since=await self._service.happened_last(record.account_id, "enabled") or _since(view),
            activity=[asdict(event) for event in await self._service.happened(record.account_id)],
        )

    def _open_vaults(self, record: AccountRecord) -> list[dict[str, Any]]:
        now = self._service.now()
        return [
            {
                "source": vault.source,
                "open_seconds": int(now - vault.opened),
                "idle_seconds": int(now - vault.used),
                "expires": self._service.vaults.expires(vault, now),
                "readers": len(vault.tokens),
            }
            for vault in self._service.vaults.listed(now)
            if vault.account_id == record.account_id
        ]


def _shown(slot: SlotView) -> dict[str, Any]:
    handle = slot.slot_id[:HANDLE_CHARACTERS] if slot.kind == SlotKind.APP_PASSWORD else ""
    return {**asdict(slot), "handle": handle}


def _since(view: AccountView) -> int:
    """When the oldest of what opens the mail was made: encrypted since then at the latest."""
    return min((slot.created for slot in view.slots), default=view.record.created)
