import os
import re
import sqlite3
from io import StringIO
from pathlib import Path

import pytest

from lmtp_atrest.crypto import dcrypt
from lmtp_atrest.delivery import Client
from lmtp_atrest.delivery.replies import Refused
from lmtp_atrest.directory import Found
from lmtp_atrest.errors import TemporaryFailure
from lmtp_atrest.maildir.names import unique_name
from lmtp_atrest.names import Address
from tests.delivery.sites import CANARY, MESSAGE, DeliverySite
from tests.sites import PASSWORD, CheapSite

STORED = "250 2.0.0 stored"
NO_KEY = "451 4.7.5"
TEMPORARY = "451 4.3.0"

TRACE = re.compile(
    rb"Return-Path: <s@x>\nDelivered-To: alice@example\.org\n"
    rb"Received: from c \(::1\)\n\tby \S+ with LMTP \(lmtp-atrest\) id [0-9a-f]{16};\n\t[^\n]+\n"
)


async def test_mail_of_an_encrypted_account_is_ciphertext_only(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    assert await mail.send("Alice@Example.ORG") == [STORED]
    (stored,) = mail.files()
    assert dcrypt.is_sealed(stored.read_bytes()[:64])
    assert mail.canary_hits() == []
    assert mail.opened(stored).endswith(MESSAGE)


async def test_our_lines_come_first_and_once(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    twice = b"Return-Path: <old@x>\nX: 1\nRETURN-PATH: <a@x>\n folded\n" + MESSAGE
    await mail.send("alice@example.org", message=twice)
    content = mail.opened(mail.files()[0])
    trace = TRACE.match(content)
    assert trace is not None
    assert content[trace.end() :] == b"X: 1\n" + MESSAGE


async def test_sizes_in_the_name_are_of_the_plaintext(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    for message in (b"", b"x\n", MESSAGE, b"y" * 200_000 + b"\n" * 3000):
        await mail.send("alice@example.org", message=message)
    for stored in mail.files():
        plain = mail.opened(stored)
        size, crlf_size = re.search(r",S=(\d+),W=(\d+)$", stored.name).groups()  # type: ignore[union-attr]
        assert (int(size), int(crlf_size)) == (len(plain), len(plain.replace(b"\n", b"\r\n")))
    assert len(mail.files()) == 4


async def test_mixed_recipients_get_their_own_copies_and_replies(mail: DeliverySite) -> None:
    mail.site.add("alice@example.org", PASSWORD)
    mail.site.add("bob@example.org")
    mail.knows("carol@example.org")
    names = ["alice@example.org", "bob@example.org", "carol@example.org", "alice@example.org"]
    assert await mail.send(*names) == [STORED] * 4
    sealed = [dcrypt.is_sealed(path.read_bytes()[:64]) for path in mail.files()]
    assert sorted(sealed) == [False, False, True]
    assert len(mail.canary_hits()) == 2


async def test_a_large_message_is_stored_whole(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    mail.site.add("bob@example.org")
    message = MESSAGE + b"".join(b"%064d\n" % number for number in range(40_000))
    assert await mail.send("alice@example.org", "bob@example.org", message=message) == [STORED] * 2
    assert all(mail.opened(path).endswith(message) for path in mail.files())


async def test_the_pin_is_there_before_the_first_ciphertext(mail: DeliverySite) -> None:
    record = mail.site.add(password=PASSWORD)
    await mail.send("alice@example.org")
    pin = Path(record.maildir) / "lmtp-atrest.pin"
    assert mail.site.public.verify(pin.read_bytes()).record == record


@pytest.mark.parametrize("choice", ["defer", "reject", "deliver"])
async def test_an_unknown_address_is_answered_as_the_site_chose(
    site: CheapSite, choice: str
) -> None:
    mail = DeliverySite(site, mail={"unknown_recipients": choice})
    if choice == "deliver":
        assert await mail.send("bob@example.org") == [STORED]
        assert mail.files()[0].is_relative_to(mail.root / "bob@example.org")
        with pytest.raises(Refused, match=TEMPORARY):
            await mail.accept("..@example.org")
        with pytest.raises(Refused, match=TEMPORARY):
            await mail.accept("a/b@example.org")
    else:
        expected = {"defer": TEMPORARY, "reject": "550 5.1.1"}[choice]
        with pytest.raises(Refused, match=expected):
            await mail.accept("bob@example.org")
        mail.directory.users["bob@example.org"] = TemporaryFailure("LDAP is away")
        with pytest.raises(Refused, match=TEMPORARY):
            await mail.accept("bob@example.org")


async def test_a_user_without_a_home_has_the_one_of_the_template(site: CheapSite) -> None:
    mail = DeliverySite(site, mail={"home": "{root}/{domain}/{local}"})
    mail.directory.users["bob@example.org"] = Found("bob@example.org", "")
    assert await mail.send("bob@example.org") == [STORED]
    assert mail.files()[0].is_relative_to(mail.root / "example.org" / "bob" / "Maildir")


@pytest.mark.parametrize("home", ["relative", "/somewhere/else", "{root}/../out"])
async def test_a_home_outside_the_mail_root_is_temporary(mail: DeliverySite, home: str) -> None:
    home = home.replace("{root}", str(mail.root))
    mail.directory.users["bob@example.org"] = Found("bob@example.org", home)
    with pytest.raises(Refused, match=TEMPORARY):
        await mail.accept("bob@example.org")


async def test_an_alias_the_directory_resolves_to_an_encrypted_account_is_sealed(
    mail: DeliverySite,
) -> None:
    record = mail.site.add("alice@example.org", PASSWORD)
    mail.directory.users["sales@example.org"] = Found("Alice@example.org", record.home)
    assert await mail.send("sales@example.org") == [STORED]
    assert mail.canary_hits() == []


async def test_a_maildir_with_a_pin_and_no_record_is_never_delivered_to(
    mail: DeliverySite, log: StringIO
) -> None:
    record = mail.site.add("alice@example.org", PASSWORD)
    await mail.send("alice@example.org")
    mail.directory.users["other@example.org"] = Found("other@example.org", record.home)
    with pytest.raises(Refused, match=NO_KEY):
        await mail.accept("other@example.org")
    assert '"alarm": true' in log.getvalue()
    assert len(mail.files()) == 1


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("UPDATE accounts SET document = substr(document, 1, 100)", NO_KEY),
        (
            "UPDATE accounts SET document = CAST(replace(document, 'encrypted', 'plain') AS BLOB)",
            NO_KEY,
        ),
        ("UPDATE accounts SET epoch = epoch + 1", NO_KEY),
        ("DROP TABLE accounts", TEMPORARY),
        ("DELETE FROM accounts", NO_KEY),
        ("DELETE FROM names", NO_KEY),
    ],
)
async def test_a_damaged_store_delivers_nothing(
    mail: DeliverySite, sql: str, expected: str
) -> None:
    record = mail.site.add(password=PASSWORD)
    mail.directory.users["alice@example.org"] = Found("alice@example.org", record.home)
    await mail.send("alice@example.org", message=b"first\n")
    mail.now += 3
    with sqlite3.connect(mail.site.root / "records.db") as connection:  # foreign keys unchecked
        connection.execute(sql)
    connection.close()
    with pytest.raises(Refused, match=expected):
        await mail.accept("alice@example.org")
    assert mail.canary_hits() == []
    assert len(mail.files()) == 1


async def test_a_rolled_back_store_is_an_alarm(mail: DeliverySite) -> None:
    mail.site.add()
    mail.site.copy("records")
    mail.site.accounts.enable("alice@example.org", PASSWORD)
    assert await mail.send("alice@example.org") == [STORED]
    mail.site.restore("records")
    mail.delivery = mail.make(mail.site.records)
    with pytest.raises(Refused, match=NO_KEY):
        await mail.accept("alice@example.org")
    assert mail.canary_hits() == []


async def test_encrypted_answers_are_kept_for_two_seconds_plain_ones_never(
    mail: DeliverySite,
) -> None:
    mail.site.add("alice@example.org", PASSWORD)
    mail.site.add("bob@example.org")
    (kept,) = await mail.accept("alice@example.org")
    await mail.accept("bob@example.org")
    mail.site.accounts.rename("alice@example.org", "alice.old@example.org")
    assert await mail.accept("alice@example.org") == [kept]
    mail.now += 2.1
    with pytest.raises(Refused, match=TEMPORARY):
        await mail.accept("alice@example.org")
    mail.site.accounts.enable("bob@example.org", PASSWORD)
    (bob,) = await mail.accept("bob@example.org")
    assert bob.key is not None


async def test_an_account_encrypted_after_rcpt_gets_its_message_sealed(
    mail: DeliverySite,
) -> None:
    mail.site.add()
    recipients = await mail.accept("alice@example.org")
    mail.site.accounts.enable("alice@example.org", PASSWORD)
    assert await mail.send_to(recipients) == [STORED]
    assert mail.canary_hits() == []


async def test_an_account_encrypted_while_plain_data_comes_in_is_deferred(
    mail: DeliverySite,
) -> None:
    mail.site.add()
    recipients = await mail.accept("alice@example.org")
    transaction = mail.delivery.begin(None, recipients, Client())
    await transaction.write(MESSAGE + b"x" * 100_000)
    mail.site.accounts.enable("alice@example.org", PASSWORD)
    assert str((await transaction.finish())[0]).startswith(TEMPORARY)
    assert mail.canary_hits() == []


async def test_an_account_made_and_encrypted_for_a_directory_user_stops_plain_mail_under_way(
    mail: DeliverySite,
) -> None:
    mail.knows("alice@example.org")
    recipients = await mail.accept("alice@example.org")
    mail.site.add("alice@example.org", PASSWORD)
    assert (await mail.send_to(recipients))[0].startswith(TEMPORARY)
    assert mail.canary_hits() == []


async def test_a_rename_more_than_two_seconds_after_the_look_is_undone(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail.site.add()
    recipients = await mail.accept("alice@example.org")
    by_name = mail.site.records.by_name

    def slow(name: str) -> object:
        found = by_name(name)
        mail.now += 2.5
        return found

    monkeypatch.setattr(mail.site.records, "by_name", slow)
    assert (await mail.send_to(recipients))[0].startswith(TEMPORARY)
    assert mail.canary_hits() == []


async def test_folders_by_detail_and_by_header(mail: DeliverySite) -> None:
    record = mail.site.add(password=PASSWORD)
    await mail.send("alice@example.org")
    for folder in (".Work", ".Junk"):
        for name in ("tmp", "new", "cur"):
            (Path(record.maildir) / folder / name).mkdir(parents=True)
    await mail.send("alice+Work@example.org")
    await mail.send("alice+Missing@example.org")
    await mail.send("alice+..@example.org")
    await mail.send("alice@example.org", message=b"X-Spam-Flag:\n yes\n\nspam\n")
    await mail.send("alice@example.org", message=b"Subject: x\n\nX-Spam-Flag: YES\n")
    counts = {
        folder: len(list((Path(record.maildir) / folder / "new").iterdir()))
        for folder in ("", ".Work", ".Junk")
    }
    assert counts == {"": 4, ".Work": 1, ".Junk": 1}


async def test_an_aborted_message_leaves_nothing(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    mail.site.add("bob@example.org")
    recipients = await mail.accept("alice@example.org", "bob@example.org")
    transaction = mail.delivery.begin(None, recipients, Client())
    await transaction.write(MESSAGE + b"x" * 100_000)
    assert len(mail.files("tmp")) == 2
    await transaction.abort()
    assert mail.files("tmp") == mail.files("new") == []
    assert mail.canary_hits() == []


async def test_what_a_killed_process_left_in_tmp_is_swept(mail: DeliverySite) -> None:
    record = mail.site.add(password=PASSWORD)
    await mail.send("alice@example.org")
    own = Path(record.maildir) / "tmp" / unique_name()
    foreign = Path(record.maildir) / "tmp" / "1700000000.M1P1.otherhost"
    for path in (own, foreign):
        path.touch()
        os.utime(path, (1, 1))
    mail.delivery = mail.make(mail.site.records)
    await mail.send("alice@example.org")
    assert mail.files("tmp") == [foreign]


async def test_one_failing_copy_does_not_touch_the_others(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail.site.add("alice@example.org", PASSWORD)
    mail.site.add("bob@example.org")

    def broken(*_: object) -> None:
        raise ZeroDivisionError(CANARY)

    monkeypatch.setattr(dcrypt.Sealer, "update", broken)
    replies = await mail.send("alice@example.org", "bob@example.org")
    assert replies == ["451 4.3.0 temporary failure, try again", STORED]
    assert len(mail.files()) == 1
    assert mail.files("tmp") == []


@pytest.mark.parametrize("step", ["__init__", "update", "finish"])
async def test_a_sealer_that_raises_leaves_no_file(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    mail.site.add(password=PASSWORD)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(dcrypt.Sealer, step, broken)
    for message in (MESSAGE, MESSAGE * 3000):
        assert (await mail.send("alice@example.org", message=message))[0].startswith(TEMPORARY)
    assert mail.files("new") == mail.files("tmp") == mail.canary_hits() == []


async def test_nothing_of_the_content_is_logged(mail: DeliverySite, log: StringIO) -> None:
    mail.site.add("alice@example.org", PASSWORD)
    mail.site.add("bob@example.org")
    await mail.send("alice@example.org", "bob@example.org")
    assert CANARY.decode() not in log.getvalue()
    assert log.getvalue().count('"event": "delivery"') == 1


async def test_an_odd_sender_cannot_add_a_line(mail: DeliverySite) -> None:
    mail.site.add(password=PASSWORD)
    recipients = await mail.accept("alice@example.org")
    client = Client("evil\nX-Evil: 1", "::1\nX-Evil: 2", utf8=True)
    transaction = mail.delivery.begin(Address('a" b', "x"), recipients, client)
    await transaction.write(MESSAGE)
    await transaction.finish()
    content = mail.opened(mail.files()[0])
    assert b"X-Evil" not in content
    assert content.startswith(b'Return-Path: <"a\\" b"@x>\n')
