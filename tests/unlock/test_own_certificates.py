"""Accounts that encrypt to certificates of their owners: what the sockets do, and refuse."""

from pathlib import Path
from typing import Any

import pytest

from lmtp_atrest.config import AtRest, Mail
from lmtp_atrest.crypto.records import Kind, State
from lmtp_atrest.mime import SIZE_LIMIT
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import (
    AccountDisable,
    AccountEnable,
    AccountKey,
    AccountReset,
    AccountShow,
    ConvertGrant,
    Login,
    Lookup,
    Request,
)
from tests.mime.owners import PGPOwner, SMIMEOwner
from tests.sites import CheapSite
from tests.unlock.conftest import ALICE, BOB, PASSWORD
from tests.unlock.running import Running, config_for
from tests.unlock.test_key_life import DOVECOT, ask, done, login

FIRST, SECOND, MAIL = PGPOwner("first"), PGPOwner("second"), SMIMEOwner()


def key(name: str, *owners: PGPOwner) -> AccountKey:
    return AccountKey(name, "openpgp", b"".join(owner.certificate for owner in owners))


def site_with(people: CheapSite, sockets: Path, **sections: Any) -> Running:
    return Running(people, config_for(sockets).model_copy(update=sections))


async def shown(unlock: Running, name: str) -> Reply:
    return await ask(unlock, AccountShow(name))


async def test_a_plain_account_gets_certificates_and_they_are_replaced_as_one(
    unlock: Running,
) -> None:
    reply = await done(unlock, key(BOB, FIRST, SECOND))
    assert (reply["state"], reply["kind"], reply["epoch"]) == ("encrypted", "openpgp", 2)
    assert "in plain" in reply["warning"]
    record = unlock.site.accounts.existing(BOB)
    assert record.certificates == (FIRST.certificate, SECOND.certificate)
    assert unlock.site.public.verify(unlock.site.key.sign(record).document).record == record
    assert record.state is State.ENCRYPTED
    assert not record.holds_ciphertext

    reply = await done(unlock, AccountKey(BOB, "smime", MAIL.pem))
    assert "certificates of then" in reply["warning"]
    record = unlock.site.accounts.existing(BOB)
    assert (record.kind, record.certificates) == (Kind.SMIME, (MAIL.certificate,))
    (found,) = (await shown(unlock, BOB))["certificates"]
    assert found["user_ids"] == ["CN=Alice", "alice@example.org"]
    assert (found["algorithms"], found["trouble"]) == (["RSA 2048"], "")

    reply = await done(unlock, AccountKey(BOB))
    assert (reply["state"], reply["kind"]) == ("plain", "mail_crypt")
    assert "stored plain from now on" in reply["warning"]
    assert unlock.site.accounts.existing(BOB).certificates == ()


async def test_mail_that_a_password_opens_still_opens_after_a_change_of_kind(
    unlock: Running,
) -> None:
    reply = await done(unlock, key(ALICE, FIRST))
    assert "the password opens it" in reply["warning"]
    assert (await login(unlock, PASSWORD)).result == "opened"
    reply = await done(unlock, AccountKey(ALICE))
    assert (reply["state"], reply["kind"]) == ("encrypted", "mail_crypt")
    assert (await login(unlock, PASSWORD)).result == "opened"


async def test_logins_of_an_account_without_keys_are_the_sites_alone(
    people: CheapSite, sockets: Path
) -> None:
    """Also where everybody is enrolled at login: that would store mail for a password."""
    section = AtRest(enrolment="at-login", at_login_without_recovery="accepted")
    unlock = site_with(people, sockets, atrest=section)
    await done(unlock, key(BOB, FIRST))
    request = Login(BOB, "imap", "PLAIN", True, PASSWORD, source="192.0.2.1")
    assert (await ask(unlock, request, DOVECOT)).result == "not-enrolled"
    assert people.accounts.existing(BOB).kind is Kind.OPENPGP
    assert (await ask(unlock, Lookup(BOB), DOVECOT)).result == "not-enrolled"


REFUSED: dict[str, tuple[Request, str, str]] = {
    "enable": (AccountEnable(BOB, PASSWORD), "wrong-state", "encrypted already"),
    "reset": (AccountReset(ALICE, PASSWORD), "wrong-state", "account key --remove"),
    "disable": (AccountDisable(ALICE, PASSWORD), "wrong-state", "account key --remove"),
    "convert": (ConvertGrant(ALICE, PASSWORD, "rewrap", "9"), "wrong-state", "not converted"),
    "verify": (ConvertGrant(BOB, PASSWORD, "verify", "9"), "wrong-state", "nothing here opens"),
    "another kind": (AccountKey(BOB, "mail_crypt", b"x"), "usage", "openpgp, smime"),
    "nothing": (AccountKey(BOB, "openpgp"), "usage", "no certificate"),
    "junk": (AccountKey(BOB, "openpgp", b"junk"), "damaged", ""),
    "private": (AccountKey(BOB, "openpgp", bytes(FIRST.key)), "usage", "private key"),
    "large": (AccountKey(BOB, "smime", bytes(2 * SIZE_LIMIT + 1)), "usage", "24 KiB"),
    "nobody": (AccountKey("nobody@example.org"), "not-found", ""),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_does_not_apply_is_refused_and_changes_nothing(
    unlock: Running, case: str
) -> None:
    for name in (ALICE, BOB):
        await done(unlock, key(name, FIRST))
    before = unlock.site.accounts.all()
    request, result, says = REFUSED[case]
    reply = await ask(unlock, request)
    assert reply.result == result
    assert says in str(reply.fields)
    assert unlock.site.accounts.all() == before


async def test_a_certificate_that_does_not_serve_is_refused(unlock: Running) -> None:
    short = SMIMEOwner(begins=MAIL._signed.not_valid_before_utc.replace(year=2020))
    reply = await ask(unlock, AccountKey(BOB, "smime", MAIL.pem + short.pem))
    assert reply.result == "usage"
    assert "expired on" in reply["reason"]
    assert unlock.site.accounts.existing(BOB).state is State.PLAIN


async def test_an_account_that_is_leaving_gets_none(unlock: Running) -> None:
    await done(unlock, AccountDisable(ALICE, PASSWORD))
    assert (await ask(unlock, key(ALICE, FIRST))).result == "wrong-state"


async def test_where_dovecot_delivers_nothing_is_stored_plain(
    people: CheapSite, sockets: Path
) -> None:
    """It cannot encrypt to certificates; a site that switches over has its mail wait."""
    await done(site_with(people, sockets), key(BOB, FIRST))
    unlock = site_with(people, sockets, mail=Mail(delivered_by="dovecot"))
    assert (await ask(unlock, key(BOB, SECOND))).result == "wrong-state"
    assert (await ask(unlock, Lookup(BOB), DOVECOT)).result == "temporary-failure"
    await done(unlock, AccountKey(BOB))
    assert (await ask(unlock, Lookup(BOB), DOVECOT)).result == "not-enrolled"


async def test_old_mail_of_a_password_can_still_be_verified(unlock: Running) -> None:
    await done(unlock, key(ALICE, FIRST))
    assert (await ask(unlock, ConvertGrant(ALICE, PASSWORD, "verify", "9"))).result == "granted"
