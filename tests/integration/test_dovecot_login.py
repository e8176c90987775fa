"""The shipped Lua script and snippets in Dovecot 2.3 and 2.4: who gets keys, who is told why not.

Each trap of Dovecot's auth stack that was measured has a test here. What reached the unlock
service is read off its log, which has a line for each login of an encrypted account.
"""

import base64
import poplib
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.site import ALICE, BOB, CAROL, MESSAGE, PASSWORD, USERS, token
from tests.peers.atrest import AtRest
from tests.peers.dovecot import Dovecot, Imap
from tests.peers.root import Host

pytestmark = pytest.mark.peers


def refusal(dovecot: Dovecot, name: str, secret: str) -> str:
    with pytest.raises(Imap.error) as caught:
        dovecot.login(name, secret).logout()
    return str(caught.value)


def xoauth2(client: Imap, name: str, token: str) -> None:
    answer = f"user={name}\1auth=Bearer {token}\1\1".encode()
    client.authenticate("XOAUTH2", lambda _: answer)


def append(client: Imap, message: bytes = MESSAGE) -> None:
    kind, data = client.append("INBOX", "", "", message)
    assert kind == "OK", data


def test_an_encrypted_user_writes_ciphertext_and_reads_it_back(
    dovecot: Dovecot, atrest: AtRest
) -> None:
    client = dovecot.login(ALICE, PASSWORD)
    append(client)
    (file,) = dovecot.files(ALICE)
    assert file.read_bytes().startswith(b"CRYPTED\x03\x07\x02")
    assert client.bodies() == [MESSAGE]
    client.logout()
    assert '"event": "login"' in atrest.log()


def test_a_user_who_is_not_enrolled_writes_plain(dovecot: Dovecot, atrest: AtRest) -> None:
    client = dovecot.login(BOB, USERS[BOB])
    append(client)
    client.logout()
    assert b"canary-body" in dovecot.files(BOB)[0].read_bytes()


def test_a_wrong_password_never_reaches_the_service(dovecot: Dovecot, atrest: AtRest) -> None:
    assert "AUTHENTICATIONFAILED" in refusal(dovecot, ALICE, PASSWORD + "x")
    assert '"account"' not in atrest.log()


def test_a_password_changed_at_the_site_is_refused_with_a_reason(
    dovecot: Dovecot, atrest: AtRest
) -> None:
    said = refusal(dovecot, CAROL, USERS[CAROL])
    assert "encrypted with another password" in said


def test_no_secret_is_in_any_log_with_all_debugging_on(dovecot: Dovecot, atrest: AtRest) -> None:
    client = dovecot.login(ALICE, PASSWORD)
    append(client)
    client.logout()
    refusal(dovecot, CAROL, USERS[CAROL])
    log = dovecot.log()
    assert "userdb" in log, "auth_debug and mail_debug are on"
    secret = base64.b64encode(PASSWORD.encode()).decode()
    for text in (PASSWORD, PASSWORD[:14], secret, USERS[CAROL]):
        assert text not in log + atrest.log()
    passwords = re.findall(r"private_key[^ \t=]*_password=(\S+)", log)
    assert set(passwords) == {"<hidden>"}


def test_a_master_user_is_told_why_not(dovecot: Dovecot, atrest: AtRest) -> None:
    said = refusal(dovecot, f"{ALICE}*boss", "master secret")
    assert "a master user cannot open it" in said
    client = dovecot.login(f"{BOB}*boss", "master secret")
    client.logout()


def test_cram_md5_of_an_encrypted_user_is_told_why_not(dovecot: Dovecot, atrest: AtRest) -> None:
    for secret in (PASSWORD, "none"):
        with (
            dovecot.imap() as client,
            pytest.raises(Imap.error, match="has to send the password itself"),
        ):
            client.login_cram_md5(ALICE, secret)
    with dovecot.imap() as client:
        client.login_cram_md5(BOB, USERS[BOB])


def test_an_oauth_token_of_an_encrypted_user_is_told_why_not(
    dovecot: Dovecot, atrest: AtRest
) -> None:
    with (
        dovecot.imap() as client,
        pytest.raises(Imap.error, match="has to send the password itself"),
    ):
        xoauth2(client, ALICE, token(dovecot, ALICE))
    with dovecot.imap() as client:
        xoauth2(client, BOB, token(dovecot, BOB))
    for part in token(dovecot, ALICE).split("."):
        assert part not in atrest.log()


def test_pop3_reads_too(dovecot: Dovecot, atrest: AtRest) -> None:
    client = dovecot.login(ALICE, PASSWORD)
    append(client)
    client.logout()
    pop = poplib.POP3("127.0.0.1", dovecot.ports.pop3, timeout=30)
    pop.encoding = "utf-8"
    pop.user(ALICE)
    pop.pass_(PASSWORD)
    assert b"canary-body" in pop.retr(1)[1]
    pop.quit()


def test_submission_gets_no_key_and_the_site_s_answer(
    host: Host, dovecot: Dovecot, atrest: AtRest
) -> None:
    said = dovecot.doveadm("auth", "test", "-x", "service=smtp", ALICE, PASSWORD)
    assert "auth succeeded" in said
    assert "private_key" not in said
    wrong = dovecot.doveadm("auth", "test", "-x", "service=smtp", ALICE, "x", check=False)
    assert "auth failed" in wrong


def test_without_the_service_nobody_gets_in_and_mail_waits(
    dovecot: Dovecot, atrest: AtRest
) -> None:
    atrest.stop()
    with ThreadPoolExecutor() as logins:
        said = list(logins.map(lambda name: refusal(dovecot, name, USERS[name]), (ALICE, BOB)))
    assert ["UNAVAILABLE" in text for text in said] == [True, True]
    assert "cannot connect" in dovecot.log()
    atrest.start()
    dovecot.login(ALICE, PASSWORD).logout()
