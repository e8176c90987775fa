"""Notices reach a real SMTP server, wait while there is none, and hold no secret."""

import email
from collections.abc import AsyncIterator
from datetime import timedelta
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiosmtpd.controller import Controller

from lmtp_atrest import notify
from lmtp_atrest.accounts import OwnCertificates
from lmtp_atrest.config import Notices, Recovery
from lmtp_atrest.crypto import recovery_code
from lmtp_atrest.crypto.records import Kind
from lmtp_atrest.crypto.slots import SlotKind
from lmtp_atrest.errors import TemporaryFailure
from lmtp_atrest.mime import read_stored
from lmtp_atrest.secret import Secret
from lmtp_atrest.texts import LANGUAGES, Language
from lmtp_atrest.unlock.protocol import Peer, Reply
from lmtp_atrest.unlock.requests import AccountCode, AccountFreeze, Login, Request, Role
from tests.mime.owners import NOW, SMIMEOwner
from tests.ports import free_port
from tests.sites import CheapSite
from tests.unlock.conftest import ALICE, PASSWORD
from tests.unlock.running import Running, config_for

ADMIN, DOVECOT = Peer(Role.ADMIN, 1000), Peer(Role.DOVECOT, 1000)


class Mailbox:
    """Takes what it is sent."""

    def __init__(self) -> None:
        self.port = free_port()
        self.messages: list[EmailMessage] = []
        self.envelopes: list[tuple[str | None, list[str]]] = []
        self._controller: Controller | None = None

    def start(self) -> None:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self._controller.start()

    def stop(self) -> None:
        if self._controller is not None:
            self._controller.stop()

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.envelopes.append((envelope.mail_from, envelope.rcpt_tos))
        self.messages.append(email.message_from_bytes(envelope.content, policy=default))
        return "250 2.0.0 OK"

    def texts(self) -> list[str]:
        return [str(message.get_content()) for message in self.messages]


@pytest_asyncio.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    box = Mailbox()
    yield box
    box.stop()


@pytest.fixture
def unlock(people: CheapSite, sockets: Path, mailbox: Mailbox) -> Running:
    sections = {
        "notices": Notices(smtp=f"127.0.0.1:{mailbox.port}"),
        "recovery": Recovery(mail_code=True),
    }
    return Running(people, config_for(sockets).model_copy(update=sections))


async def ask(unlock: Running, request: Request, peer: Peer = ADMIN) -> Reply:
    return await unlock.service.answer(request, peer)


async def test_a_notice_waits_for_the_mail_server_and_comes_once(
    unlock: Running, mailbox: Mailbox
) -> None:
    code = (await ask(unlock, AccountCode(ALICE, PASSWORD)))["code"]
    await unlock.parts.outbox.send()
    mailbox.start()
    for _ in range(2):
        await unlock.parts.outbox.send()
    (message,) = mailbox.messages
    assert mailbox.envelopes == [("<>", [ALICE])]
    assert (message["To"], message["From"]) == (ALICE, "postmaster@example.org")
    assert message["Auto-Submitted"] == "auto-generated"
    assert "recovery code for alice@example.org was made" in mailbox.texts()[0]
    assert code not in mailbox.texts()[0]


async def test_a_mismatch_is_told_once_for_all_phones(unlock: Running, mailbox: Mailbox) -> None:
    mailbox.start()
    for number in range(5):
        secret = Secret(b"wrong %d" % (number % 2))
        request = Login(ALICE, "imap", "PLAIN", True, secret, source=f"192.0.2.{number}")
        assert (await ask(unlock, request, DOVECOT)).result == "refused"
    await unlock.parts.outbox.send()
    assert [m["Subject"] for m in mailbox.messages] == [
        "Your password no longer opens your encrypted mail"
    ]


async def test_a_mailed_code_goes_to_the_other_address_and_nowhere_else(
    unlock: Running, mailbox: Mailbox
) -> None:
    mailbox.start()
    other = "alice@elsewhere.example"
    reply = await ask(unlock, AccountCode(ALICE, PASSWORD, other))
    assert (reply["code_mailed_to"], reply.get("code")) == (other, None)
    await unlock.parts.outbox.send()
    assert sorted(to for _, (to,) in mailbox.envelopes) == sorted([ALICE, other])
    by_address = {m["To"]: str(m.get_content()) for m in mailbox.messages}
    written = next(word for word in by_address[other].split() if recovery_code.looks_like(word))
    assert written not in by_address[ALICE]
    accounts, typed = unlock.site.accounts, recovery_code.read(written)
    opened = accounts.open(accounts.existing(ALICE), typed, SlotKind.RECOVERY_CODE)
    assert opened.slot.kind is SlotKind.RECOVERY_CODE


async def test_a_code_that_could_not_be_mailed_is_shown(unlock: Running) -> None:
    reply = await ask(unlock, AccountCode(ALICE, PASSWORD, "alice@elsewhere.example"))
    assert recovery_code.looks_like(reply["code"])
    assert "did not take" in reply["warning"]


async def test_what_cannot_be_sent_is_given_up_after_a_week(
    unlock: Running, mailbox: Mailbox
) -> None:
    await ask(unlock, AccountFreeze(ALICE))
    accounts = unlock.site.accounts
    clock = accounts._now
    accounts._now = lambda: clock() + 8 * 86400
    mailbox.start()
    await unlock.parts.outbox.send()
    assert mailbox.messages == []


async def test_owners_are_told_a_month_before_a_certificate_expires(
    unlock: Running, mailbox: Mailbox
) -> None:
    """Once in that month, and again when none serves."""
    mailbox.start()
    certificates = OwnCertificates(unlock.site.accounts)
    expected = []
    for days, told in ((31, False), (29, True), (-1, True)):
        record = unlock.site.add(f"in{days}@example.org")
        owner = SMIMEOwner(NOW - timedelta(days=9), timedelta(days=9 + days))
        (found,) = read_stored(Kind.SMIME, [owner.certificate], NOW - timedelta(days=5))
        certificates.set(record, [found])
        expected += [record.names[0]] if told else []
    for _ in range(2):
        await unlock.parts.own_keys.warn()
    await unlock.parts.outbox.send()
    assert [to for _, (to,) in mailbox.envelopes] == sorted(expected)
    assert all("renewed one in time" in text for text in mailbox.texts())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", notify.KINDS)
def test_every_notice_is_whole(kind: str, language: Language) -> None:
    config = Notices(language=language)
    message = notify.notice(config, kind, ALICE, ALICE, 1_795_500_000_000)
    text = str(message.get_content())
    assert "{" not in text
    assert message["Subject"] and message["Date"] and message["Message-ID"]


def test_without_a_mail_server_nothing_is_sent() -> None:
    config = Notices(smtp=None)
    with pytest.raises(TemporaryFailure, match="null"):
        notify.mail_code(config, ALICE, "alice@elsewhere.example", "code")
