"""Notices from where something happens to the site's mail server, with patience."""

import asyncio

from lmtp_atrest import notify
from lmtp_atrest.accounts import Accounts
from lmtp_atrest.config import Notices as NoticesSection
from lmtp_atrest.crypto.records import AccountRecord
from lmtp_atrest.errors import AtRestError
from lmtp_atrest.keystore.notices import Notice, Notices
from lmtp_atrest.telemetry import logger

log = logger("unlock")


class Outbox:
    """Keeps notices in the store until the mail server took them."""

    def __init__(
        self,
        config: NoticesSection,
        accounts: Accounts,
        notices: Notices,
        default_domain: str | None,
    ) -> None:
        self._config = config
        self._accounts = accounts
        self._notices = notices
        self._default_domain = default_domain

    def add(self, record: AccountRecord, kind: str, quiet: int = 0) -> None:
        """A notice to the owner of this account; trouble is logged, what it tells of stands."""
        if self._config.smtp is None or (kind == "admin-used" and not self._config.admin_use):
            return
        address = self._address(record.names[0])
        if address is None:
            log.warning("no address for a notice", account=record.account_id, kind=kind)
            return
        try:
            now = self._accounts.milliseconds()
            self._notices.add(record.account_id, kind, address, now, quiet)
        except AtRestError as error:
            log.error("notice lost", account=record.account_id, kind=kind, cause=str(error))

    def _address(self, name: str) -> str | None:
        if "@" in name:
            return name
        return f"{name}@{self._default_domain}" if self._default_domain else None

    async def send(self) -> None:
        """Send what is due; what the mail server does not take is tried again later."""
        if self._config.smtp is None:
            return
        now = self._accounts.milliseconds()
        for notice in await asyncio.to_thread(self._notices.due, now):
            try:
                await asyncio.to_thread(self._send, notice)
            except AtRestError as error:
                log.warning("notice not sent yet", kind=notice.kind, cause=str(error))
                return

    def _send(self, notice: Notice) -> None:
        record = self._accounts.record_by_id(notice.account_id)
        name = record.names[0] if record else notice.recipient
        message = notify.notice(self._config, notice.kind, name, notice.recipient, notice.created)
        notify.send(self._config, message)
        self._notices.sent(notice.notice_id, self._accounts.milliseconds())
