"""`account-key`: which of their own certificates an account's mail is encrypted to."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from lmtp_atrest.accounts import OwnCertificates, about_old_mail
from lmtp_atrest.crypto.records import AccountRecord, Kind
from lmtp_atrest.errors import AtRestError, UsageError, WrongState
from lmtp_atrest.mime import Certificate, read_file, read_stored
from lmtp_atrest.telemetry import logger
from lmtp_atrest.unlock.administration import Administration, account_reply
from lmtp_atrest.unlock.certificates import shown_certificates
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import AccountKey
from lmtp_atrest.unlock.service import Service

log = logger("unlock")

# Before a certificate expires; told again after as long.
WARN = timedelta(days=30)

KINDS = {kind.value: kind for kind in (Kind.OPENPGP, Kind.SMIME)}


class OwnKeys:
    """The operation on certificates."""

    def __init__(self, service: Service, administration: Administration) -> None:
        self._service = service
        self._administration = administration
        self._certificates = OwnCertificates(service.accounts)

    def operations(self) -> dict[type[Any], Callable[[Any, Peer], Awaitable[Reply]]]:
        """The operations by request, for the service."""
        return {AccountKey: self._key}

    async def _key(self, request: AccountKey, _peer: Peer) -> Reply:
        if self._service.dovecot_delivers and request.kind:
            message = (
                "mail.delivered_by is dovecot, whose LMTP cannot encrypt to certificates: only "
                "lmtp-atrest's own LMTP does"
            )
            raise WrongState(message)
        before = await self._administration.existing(request.name)
        after = await asyncio.to_thread(self._changed, before, request)
        # A delivery that read the record from before has ended after this (DESIGN 5).
        await asyncio.sleep(self._administration.barrier_seconds)
        log.info("certificates changed", account=after.account_id, kind=after.kind.value)
        await self._service.tell(after, "certificates")
        more = {
            "certificates": shown_certificates(after),
            "warning": about_old_mail(before, after),
        }
        if after.holds_ciphertext:  # sessions and an open vault know of the epoch before
            return await self._administration.changed(after, "changed", **more)
        return account_reply("changed", after, **more)

    async def warn(self) -> None:
        """Tell the owners of certificates that expire soon, or of which none serves any more."""
        for record in await asyncio.to_thread(self._service.accounts.all):
            if record.has_own_certificates and await asyncio.to_thread(_is_due, record):
                quiet = int(WARN.total_seconds() * 1000)
                await self._service.tell(record, "certificate-expires", quiet=quiet)

    def _changed(self, record: AccountRecord, request: AccountKey) -> AccountRecord:
        if not request.kind:
            return self._certificates.remove(record)
        kind = KINDS.get(request.kind)
        if kind is None:
            message = f"a kind is one of {', '.join(KINDS)}"
            raise UsageError(message)
        found = read_file(kind, request.certificates, datetime.now(UTC))
        return self._certificates.set(record, found)


def _is_due(record: AccountRecord) -> bool:
    now = datetime.now(UTC)
    try:
        found = read_stored(record.kind, record.certificates, now)
    except AtRestError as error:
        log.error("certificates not read", account=record.account_id, cause=str(error))
        return False
    return all(one.trouble for one in found) or any(_expires_soon(one, now) for one in found)


def _expires_soon(one: Certificate, now: datetime) -> bool:
    return one.expires is not None and now < one.expires <= now + WARN
