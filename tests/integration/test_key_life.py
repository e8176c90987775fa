"""The life of an account's keys as Dovecot 2.3 and 2.4 and their users see it.

Each test is the transcript of one story: what is stored how, what each secret reads, and what a
mail program is told. That no secret is in a log, with all debugging on, is checked after each.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

from lmtp_atrest.crypto.records import State
from lmtp_atrest.errors import NotFound, WrongSecret, WrongState
from lmtp_atrest.unlock.requests import (
    AccountCode,
    AccountDisable,
    AccountFreeze,
    AccountJoin,
    AccountPassword,
    AccountPasswordAbort,
    AccountRecover,
    AccountReset,
    AccountRotate,
    AccountShow,
    AccountSuspend,
    AccountThaw,
    AppPasswordAdd,
    AppPasswordRemove,
)
from tests.integration.living import Living, ended, password_command, secret, seen
from tests.integration.site import ALICE, BOB, CAROL, PASSWORD, USERS
from tests.peers.dovecot import Dovecot
from tests.peers.root import attempts

pytestmark = pytest.mark.peers

AUTH_WORKERS = 30  # as many as Dovecot runs at most by default
NEW, OTHER = "violet tram over 7 lakes", "nine quiet lanterns, unlit"

Begin: TypeAlias = Callable[..., Living]


@pytest.fixture
def begin(dovecot: Dovecot) -> Iterator[Begin]:
    """Start the site with some sections of its configuration; alice has a message, `first`."""
    with ExitStack() as stack:

        def start(**sections: dict[str, Any]) -> Living:
            running = stack.enter_context(Living(dovecot, **sections))
            assert running.deliver("first")
            return running

        yield start


def test_a_changed_password_reads_what_the_old_one_did(begin: Begin, dovecot: Dovecot) -> None:
    site = begin(site={"password_command": password_command(dovecot)})
    site.know(NEW, OTHER)
    changed = site.admin(AccountPassword(ALICE, secret(PASSWORD), secret(NEW)))
    assert changed.result == "changed"
    site.wait_for_password(ALICE, NEW)
    assert site.opens(PASSWORD), "until a login has shown that the site takes the new one"
    assert site.reads(NEW) == {"first"}
    assert not site.opens(PASSWORD)
    assert site.deliver("second")
    with pytest.raises(WrongState, match="did not take"):
        site.admin(AccountPassword(ALICE, secret(NEW), secret("refused " + OTHER)))
    assert not site.opens("refused " + OTHER)
    # Changed, and taken back at the site and here before anybody logged in with it.
    site.admin(AccountPassword(ALICE, secret(NEW), secret(OTHER)))
    site.site_password(ALICE, NEW)
    site.admin(AccountPasswordAbort(ALICE))
    assert site.reads(NEW) == {"first", "second"}
    assert not site.opens(OTHER)


def test_a_lost_password_is_recovered_by_the_code(begin: Begin) -> None:
    site = begin()
    code = site.admin(AccountCode(ALICE, secret(PASSWORD)))["code"]
    site.know(NEW, code)
    site.site_password(ALICE, NEW)
    for _ in range(3):
        assert "encrypted with another password" in site.told(NEW)
    assert site.deliver("second"), "mail goes on arriving, encrypted"
    recovered = site.admin(AccountRecover(ALICE, secret(code), secret(NEW)))
    site.know(recovered["code"])
    assert site.reads(NEW) == {"first", "second"}
    with pytest.raises(WrongSecret):
        site.admin(AccountRecover(ALICE, secret(code), secret(OTHER)))
    site.wait_for_notices("recovery code was made", "no longer opens", "opened with the recovery")


def test_let_in_closed_until_joined_with_the_old_password(begin: Begin) -> None:
    site = begin(unlock={"on_mismatch": "let-in-closed"})
    site.site_password(ALICE, NEW)
    client = site.dovecot.login(ALICE, NEW)
    assert site.append(client, "second"), "what a closed session writes is encrypted"
    client.logout()
    assert site.reads(NEW) == set()
    site.admin(AccountJoin(ALICE, secret(NEW), secret(PASSWORD)))
    assert site.reads(NEW) == {"first", "second"}
    assert not site.opens(PASSWORD)
    site.wait_for_notices("no longer opens", "was changed")


def test_after_a_reset_new_mail_is_read_and_old_mail_once_it_is_joined(begin: Begin) -> None:
    site = begin()
    site.site_password(ALICE, NEW)
    reset = site.admin(AccountReset(ALICE, secret(NEW)))
    site.know(reset["code"])
    assert site.deliver("second")
    assert site.reads(NEW) == {"second"}
    site.admin(AccountJoin(ALICE, secret(NEW), secret(PASSWORD)))
    assert site.reads(NEW) == {"first", "second"}
    assert site.reads_by_pop3(NEW) == {"first", "second"}


def test_an_app_password_opens_the_mail_beside_the_site_s_password(begin: Begin) -> None:
    site = begin()
    phone = site.admin(AppPasswordAdd(ALICE, secret(PASSWORD), "phone"))
    text, handle = phone["app_password"], phone["handle"]
    site.know(text, text.upper(), text.replace("ap-", "Ap-"))
    for typed in (text, text.replace("ap-", "Ap-"), text.upper()):
        assert site.reads(typed) == {"first"}
    assert site.reads_by_pop3(text) == {"first"}
    assert site.accepted_for_sending(ALICE, text)
    (slot,) = (s for s in site.admin(AccountShow(ALICE))["slots"] if s["kind"] == "app-password")
    assert slot["used"], "the day of its last use"
    client = site.dovecot.login(ALICE, text)
    assert site.append(client, "second")
    # A wrong one is the site's to refuse; so is a password of its own that looks like one.
    assert "AUTHENTICATIONFAILED" in site.told(f"{text[:-1]}{'0' if text[-1] != '0' else '2'}")
    assert "AUTHENTICATIONFAILED" in site.told(text, BOB)
    site.site_password(BOB, "ap-ril showers")
    site.dovecot.login(BOB, "ap-ril showers").logout()
    site.admin(AccountSuspend(ALICE))
    assert "do not count" in site.told(text)
    assert not site.accepted_for_sending(ALICE, text)
    site.admin(AccountSuspend(ALICE, suspended=False))
    assert site.reads(text) == {"first", "second"}
    site.admin(AppPasswordRemove(ALICE, handle))
    assert ended(client)
    assert "AUTHENTICATIONFAILED" in site.told(text)
    keys = site.admin(AccountShow(ALICE))["key_ids"]
    assert site.reads(PASSWORD) == {"first", "second"}
    assert len(site.admin(AccountShow(ALICE))["key_ids"]) == len(keys) + 1, "the rekey due"


def test_an_app_password_ends_with_the_user_at_the_site(begin: Begin) -> None:
    site = begin()
    text = site.admin(AppPasswordAdd(ALICE, secret(PASSWORD), "phone"))["app_password"]
    site.know(text)
    assert site.reads(text) == {"first"}
    site.site_password(ALICE, None)
    for _ in attempts("Dovecot knows alice no longer"):
        said = site.dovecot.doveadm("user", ALICE, check=False)
        if "doesn't exist" in said:
            break
    assert "do not count" in site.told(text)
    assert not site.accepted_for_sending(ALICE, text)


def test_many_logins_at_once_do_not_wait_for_themselves(begin: Begin) -> None:
    """The service asks Dovecot about the user while Dovecot's auth worker waits for its answer."""
    site = begin()
    text = site.admin(AppPasswordAdd(ALICE, secret(PASSWORD), "phone"))["app_password"]
    site.know(text)
    site.dovecot.login(ALICE, text).logout()
    with ThreadPoolExecutor(AUTH_WORKERS * 2) as pool:
        logins = pool.map(lambda _: site.dovecot.login(ALICE, text), range(AUTH_WORKERS * 2))
        for client in logins:
            client.logout()
    assert "was queued for" not in site.dovecot.log()


def test_without_the_service_only_what_needs_it_waits(begin: Begin) -> None:
    site = begin()
    text = site.admin(AppPasswordAdd(ALICE, secret(PASSWORD), "phone"))["app_password"]
    site.know(text)
    site.atrest.stop()
    assert "AUTHENTICATIONFAILED" in site.told("not the password")
    assert "cannot connect" not in site.dovecot.log(), "no connection for what is not ours"
    assert "UNAVAILABLE" in site.told(text), "a mail program must not forget it"


def test_frozen_mail_is_closed_to_all_and_goes_on_arriving(begin: Begin) -> None:
    site = begin()
    code = site.admin(AccountCode(ALICE, secret(PASSWORD)))["code"]
    text = site.admin(AppPasswordAdd(ALICE, secret(PASSWORD), "phone"))["app_password"]
    site.know(code, text)
    client = site.dovecot.login(ALICE, PASSWORD)
    assert site.admin(AccountFreeze(ALICE))["readers_remaining"] == 0
    assert ended(client)
    assert "is frozen" in site.told(PASSWORD)
    assert "is frozen" in site.told(text)
    assert site.deliver("second")
    with pytest.raises(WrongState):
        site.opens(PASSWORD)
    site.admin(AccountThaw(ALICE, secret(code)))
    assert site.reads(PASSWORD) == {"first", "second"}


def test_everybody_is_encrypted_from_the_next_login_on(begin: Begin) -> None:
    site = begin(atrest={"enrolment": "at-login", "at_login_without_recovery": "accepted"})
    assert not site.deliver("first", BOB)
    before = site.dovecot.imap()
    before.login_cram_md5(BOB, USERS[BOB])
    assert "AUTHENTICATIONFAILED" in site.told("wrong", BOB)
    assert site.accepted_for_sending(BOB, USERS[BOB])
    with pytest.raises(NotFound):
        site.admin(AccountShow(BOB))  # nobody has sent the password in order to read
    client = site.dovecot.login(BOB, USERS[BOB])
    assert ended(before)
    assert site.append(client, "second", BOB)
    assert site.deliver("third", BOB)
    assert site.deliver("fourth", BOB, by_dovecot=True)
    client.select()
    assert seen(client) == {"first", "second", "third", "fourth"}, "in the same session"
    client.logout()
    site.wait_for_notices("is now kept encrypted")


def test_logins_at_once_enrol_once_and_all_have_keys(begin: Begin) -> None:
    site = begin(atrest={"enrolment": "at-login", "at_login_without_recovery": "accepted"})
    with ThreadPoolExecutor(4) as pool:
        clients = list(pool.map(lambda _: site.dovecot.login(CAROL, USERS[CAROL]), range(4)))
    assert site.admin(AccountShow(CAROL))["epoch"] == 2
    assert site.deliver("first", CAROL)
    for client in clients:
        client.select()
        assert seen(client) == {"first"}
        client.logout()


def test_nobody_is_enrolled_before_there_is_a_way_back_and_a_second_sighting(
    begin: Begin,
) -> None:
    site = begin(atrest={"enrolment": "at-login"})
    site.dovecot.login(BOB, USERS[BOB]).logout()
    assert not site.deliver("first", BOB)
    site.atrest.stop()
    site.atrest.configure(
        atrest={"at_login_without_recovery": "accepted", "at_login_confirmations": 2}
    )
    site.atrest.start()
    site.dovecot.login(BOB, USERS[BOB]).logout()
    site.site_password(BOB, NEW)  # a one-time password is another one the next time
    site.dovecot.login(BOB, NEW).logout()
    assert not site.deliver("second", BOB)
    client = site.dovecot.login(BOB, NEW)
    assert site.deliver("third", BOB)
    client.logout()
    assert site.reads(NEW, BOB) == {"first", "second", "third"}


def test_new_keys_read_old_and_new_mail(begin: Begin) -> None:
    site = begin()
    client = site.dovecot.login(ALICE, PASSWORD)
    site.admin(AccountRotate(ALICE, secret(PASSWORD), compromised=True))
    assert ended(client)
    old, new = reversed(site.admin(AccountShow(ALICE))["key_ids"])
    assert site.deliver("second", by_dovecot=True)
    assert site.keys_of_files() == [old, new], "Dovecot asks for the key each time"
    for _ in attempts("our delivery, which keeps a key for two seconds, takes the new one"):
        assert site.deliver("third")
        if site.keys_of_files()[-1] == new:
            break
    assert site.reads(PASSWORD) == {"first", "second", "third"}


def test_who_leaves_stores_plain_and_still_reads_all(begin: Begin) -> None:
    site = begin()
    before = site.dovecot.login(ALICE, PASSWORD)
    left = site.admin(AccountDisable(ALICE, secret(PASSWORD)))
    assert left["state"] == State.LEAVING
    assert ended(before), "it would go on encrypting"
    client = site.dovecot.login(ALICE, PASSWORD)
    assert not site.append(client, "second")
    assert not site.deliver("third", by_dovecot=True)
    for _ in attempts("our delivery, which keeps a key for two seconds, stores plain"):
        if not site.deliver("fourth"):
            break
    client.select()
    assert seen(client) == {"first", "second", "third", "fourth"}
    client.logout()
    site.admin(AccountDisable(ALICE, secret(PASSWORD), undo=True))
    client = site.dovecot.login(ALICE, PASSWORD)
    assert site.append(client, "fifth")
    assert site.deliver("sixth", by_dovecot=True)
    client.logout()
