"""What users come for, from the first page to the last."""

import re

from lmtp_atrest.config import AtRest
from lmtp_atrest.crypto.records import State
from lmtp_atrest.portal.place import Place
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.requests import AccountReset, ConvertProgress, Open, Role
from tests.portal.browsing import CODE, Browser, browser, code_on
from tests.unlock.conftest import ALICE, BOB, PASSWORD
from tests.unlock.running import Running

APP_PASSWORD = re.compile(r'id="app-password">(ap-[0-9a-z-]+)<')
NEW = "wobbly-lantern-orchid-forty"


async def test_bob_switches_encryption_on_and_keeps_the_code(visitor: Browser) -> None:
    await visitor.sign_in(BOB, "bob's own password")
    assert "Your mail is not encrypted" in visitor.text
    await visitor.submit("switch-on", secret="bob's own password")
    assert "understood what can be lost" in visitor.text and not CODE.search(visitor.page.text)
    await visitor.submit("switch-on", secret="not his password", understood="yes")
    assert "This is not your current password" in visitor.text
    await visitor.submit("switch-on", secret="bob's own password", understood="yes")
    code = code_on(visitor)
    assert "<svg" in visitor.page.text
    await visitor.post("code-check", {"token": visitor.token, "group": "AAAA"})
    assert "not the last group" in visitor.text
    assert code not in visitor.page.text
    await visitor.post("code-check", {"token": visitor.token, "group": code[-4:].lower()})
    assert "Your mail is encrypted" in visitor.text
    assert "safe on paper" in visitor.text
    await visitor.get("activity")
    assert "Encryption switched on" in visitor.text


async def test_a_forgotten_password_is_replaced_by_the_code(
    visitor: Browser, place: Place
) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    await visitor.submit("code", secret="correct horse")
    code = code_on(visitor)
    async with browser(place, "198.51.100.9") as other:
        fields = {"name": ALICE, "new": NEW, "repeat": NEW}
        await other.submit("forgot", code=code[:-1] + ("Z" if code[-1] != "Z" else "Y"), **fields)
        assert "typing error" in other.text
        await other.submit("forgot", code=code.lower().replace("-", " "), **fields)
        assert code_on(other) != code
        await other.submit("sign-out", "")
        await other.submit("forgot", code=code, **fields)
        assert "do not fit together" in other.text
        await other.sign_in(ALICE, NEW)
        assert "Your mail is encrypted" in other.text
    await visitor.get("")
    assert visitor.at == "sign-in", "who was signed in with the old password still is"


async def test_a_password_that_was_changed_elsewhere_is_joined(visitor: Browser) -> None:
    fields = {"name": ALICE, "new": NEW, "repeat": NEW, "by": "password"}
    await visitor.submit("changed", old="not hers either", **fields)
    assert "That does not open this mailbox" in visitor.text
    await visitor.submit("changed", old="correct horse", **fields)
    assert "opens with your present password again" in visitor.text
    await visitor.submit("sign-out", "")
    await visitor.sign_in(ALICE, "correct horse")
    assert visitor.page.status_code == 403
    await visitor.sign_in(ALICE, NEW)
    assert "Your mail is encrypted" in visitor.text


async def test_app_passwords_are_made_shown_once_and_removed(visitor: Browser) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    await visitor.submit("app-passwords", label="phone", secret="a wrong one")
    assert "This is not your current password" in visitor.text
    await visitor.submit("app-passwords", label="phone", secret="correct horse")
    made = APP_PASSWORD.search(visitor.page.text)
    assert made, visitor.text
    handle = made[1][3:7]
    await visitor.get("app-passwords")
    assert "phone" in visitor.text and made[1] not in visitor.page.text
    await visitor.submit(
        "app-passwords/remove", "app-passwords", handle=handle, remove_secret="correct horse"
    )
    assert "The app password is removed" in visitor.text
    assert "There is no app password yet" in visitor.text


async def test_a_mailbox_is_frozen_and_thawed_by_the_code(visitor: Browser) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    await visitor.submit("code", secret="correct horse")
    code = code_on(visitor)
    await visitor.submit("freeze")
    assert "Your mailbox is frozen" in visitor.text
    await visitor.submit("code", secret="correct horse")
    assert "not possible as the mailbox stands now" in visitor.text
    await visitor.submit("sign-out", "")
    await visitor.sign_in(ALICE, "correct horse")
    assert "Your mailbox is frozen" in visitor.text
    await visitor.submit("thaw", code=code)
    assert "can be opened again" in visitor.text


async def test_switching_off_and_on_again(visitor: Browser, unlock: Running) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    await visitor.submit("switch-off", secret="correct horse")
    assert "Encryption is being switched off" in visitor.text
    record = unlock.site.accounts.record(ALICE)
    assert record is not None and record.state is State.LEAVING
    await visitor.submit("switch-off", secret="correct horse", undo="yes")
    assert "Your mail is encrypted again" in visitor.text


async def test_the_owner_decides_about_admin_recovery(visitor: Browser, unlock: Running) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    await visitor.get("admin-recovery")
    assert "nothing to decide" in visitor.text
    unlock.site.admin.set_policy("allowed")
    unlock.site.admin.set(place_password())
    await visitor.submit("admin-recovery", choice="accept", secret="correct horse")
    assert "Admin recovery can open your mailbox" in visitor.text
    await visitor.submit("admin-recovery", choice="refuse", secret="correct horse")
    assert "cannot open your mailbox any more" in visitor.text
    assert "No, you refused it" in visitor.text


async def test_an_open_mailbox_is_seen_and_locked(visitor: Browser, unlock: Running) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    assert len(unlock.service.vaults) == 0, "signing in to the portal opened the mailbox"
    await open_elsewhere(unlock)
    unlock.clock.seconds += 120
    await visitor.get("")
    assert "Open for 2 min, from 203.0.113.5" in visitor.text
    await visitor.submit("lock", "")
    assert "Your mailbox is locked" in visitor.text
    assert len(unlock.service.vaults) == 0


async def test_progress_of_older_mail_is_shown(visitor: Browser, unlock: Running) -> None:
    await visitor.sign_in(ALICE, "correct horse")
    assert "encrypted in the background" in visitor.text
    await tell_progress(unlock, encrypted=1200, left=300)
    await visitor.get("")
    assert "1200 encrypted, 300 still to do" in visitor.text
    assert 'max="1500" value="1200"' in visitor.page.text
    figures = (await visitor.get("progress")).json()
    assert figures == {
        "known": True,
        "encrypted": 1200,
        "total": 1500,
        "running": True,
        "text": "1200 encrypted, 300 still to do",
    }


async def test_where_administrators_enrol_users_do_not(unlock: Running, place: Place) -> None:
    closed = AtRest(enrolment="closed")
    place.config = place.config.model_copy(update={"atrest": closed})
    async with browser(place) as visitor:
        await visitor.sign_in(BOB, "bob's own password")
        assert "the administrators switch encryption on" in visitor.text
        await visitor.submit("switch-on", secret="bob's own password", understood="yes")
        assert "the administrators switch encryption on" in visitor.text
    record = unlock.site.accounts.record(BOB)
    assert record is not None and record.state is State.PLAIN


async def test_mail_closed_by_a_reset_is_joined_and_admin_recovery_asked_about(
    visitor: Browser, unlock: Running
) -> None:
    unlock.site.admin.set_policy("allowed")
    unlock.site.admin.set(place_password())
    async with await unlock.connect(Role.ADMIN) as admin:
        await admin.ask(AccountReset(ALICE, Secret(NEW.encode())))
    fields = {"name": ALICE, "new": NEW, "repeat": NEW, "by": "password", "old": "correct horse"}
    await visitor.submit("changed", **fields)
    assert "tick the box" in visitor.text
    await visitor.submit("changed", accept_admin="yes", **fields)
    assert "opens with your present password again" in visitor.text
    record = unlock.site.accounts.record(ALICE)
    assert record is not None and not record.closed


async def test_the_strength_of_a_new_password_is_told_in_words(visitor: Browser) -> None:
    await visitor.get("forgot")
    told = []
    for new in ("", "password1", NEW):
        answer = await visitor.client.post("strength", data={"token": visitor.token, "new": new})
        told.append((answer.json()["score"], answer.json()["text"]))
    assert told == [(0, ""), (0, "very easy to guess"), (4, "very hard to guess")]
    fields = {"name": ALICE, "code": "x", "new": "password1", "repeat": "password1"}
    await visitor.submit("forgot", **fields)
    assert "too easy to guess: very easy to guess" in visitor.text
    await visitor.submit("forgot", **{**fields, "repeat": "another"})
    assert "type the new password twice" in visitor.text


# ---- what happens elsewhere meanwhile


def place_password() -> Secret:
    return Secret(b"four unrelated and rather long words")


async def open_elsewhere(unlock: Running) -> None:
    async with await unlock.connect(Role.READER) as reader:
        await reader.ask(Open(ALICE, PASSWORD, "203.0.113.5"))


async def tell_progress(unlock: Running, encrypted: int, left: int) -> None:
    record = unlock.site.accounts.record(ALICE)
    assert record is not None
    told = ConvertProgress(record.account_id, "running", str(encrypted), str(left), "0", "1")
    async with await unlock.connect(Role.CONVERT) as convert:
        await convert.ask(told)
