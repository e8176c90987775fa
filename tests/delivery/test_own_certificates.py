"""Mail of accounts with certificates of their owners: never plain, and right to the byte."""

import re
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest

from lmtp_atrest.accounts import OwnCertificates
from lmtp_atrest.crypto.records import AccountRecord, Kind, State
from lmtp_atrest.delivery import Refused, held
from lmtp_atrest.errors import Conflict
from lmtp_atrest.mime import openpgp, read_stored
from tests.delivery.sites import CANARY, MESSAGE, DeliverySite
from tests.delivery.test_delivery import NO_KEY, STORED, TEMPORARY, TRACE
from tests.mime.owners import NOW, Owner, PGPOwner, SMIMEOwner, crlf, original, parsed
from tests.sites import PASSWORD, CheapSite

ALICE, BOB = "alice@example.org", "bob@example.org"
OWNERS: dict[str, Owner] = {"openpgp": PGPOwner(), "smime": SMIMEOwner()}
OTHER = PGPOwner("other")
EXPIRED = SMIMEOwner(NOW - timedelta(days=2), timedelta(days=1))


@pytest.fixture(params=OWNERS)
def owner(request: pytest.FixtureRequest) -> Owner:
    return OWNERS[request.param]


def give(mail: DeliverySite, record: AccountRecord, *owners: Owner) -> AccountRecord:
    data = [owner.certificate for owner in owners]
    found = read_stored(owners[0].kind, data, NOW)
    return OwnCertificates(mail.site.accounts).set(record, found)


def stored(mail: DeliverySite) -> bytes:
    (path,) = mail.files()
    return path.read_bytes()


@pytest.mark.parametrize("size", [0, 200_000])
async def test_only_ciphertext_is_stored_and_the_owner_reads_it(
    mail: DeliverySite, owner: Owner, size: int
) -> None:
    give(mail, mail.site.add(), owner)
    message = MESSAGE + b"x" * 70 * (size // 70) + b"\n" * (size // 70)
    assert await mail.send(ALICE, message=message) == [STORED]
    assert mail.canary_hits() == []
    content = stored(mail)
    assert TRACE.match(content)
    assert parsed(content)["Subject"] == "..."
    assert original(owner.decrypt(content)) == crlf(message)
    name = re.search(r",S=(\d+),W=(\d+)$", mail.files()[0].name)
    assert name is not None
    assert [int(number) for number in name.groups()] == [len(content), len(crlf(content))]
    assert mail.delivery._storage.memory._held == 0


async def test_the_subject_stays_where_the_site_wants_it(mail: DeliverySite) -> None:
    mail.delivery._storage.hide_subject = False
    give(mail, mail.site.add(), OTHER)
    await mail.send(ALICE)
    assert parsed(stored(mail))["Subject"] == CANARY.decode()


async def test_each_recipient_of_a_message_gets_the_own_kind(mail: DeliverySite) -> None:
    """An account whose certificates have all expired is told so; the others have their mail."""
    give(mail, mail.site.add(ALICE), OWNERS["openpgp"])
    give(mail, mail.site.add("smime@example.org"), OWNERS["smime"])
    mail.site.add("crypt@example.org", PASSWORD)
    late = give(mail, mail.site.add("late@example.org"), OWNERS["smime"])
    mail.knows(BOB)
    names = [ALICE, "smime@example.org", "crypt@example.org", BOB]
    recipients = await mail.accept("late@example.org", *names)
    late = mail.site.accounts.change(late, certificates=(EXPIRED.certificate,))
    mail.now += 2.1
    assert [reply[:9] for reply in await mail.send_to(recipients)] == [NO_KEY, *[STORED[:9]] * 4]
    assert {path.parents[2].name for path in mail.canary_hits()} == {"bob"}
    assert not any(path.is_relative_to(late.maildir) for path in mail.files() + mail.files("tmp"))


@pytest.mark.parametrize(
    ("kind", "certificates"),
    [
        (Kind.OPENPGP, ()),
        (Kind.OPENPGP, (b"junk",)),
        (Kind.SMIME, ()),
        (Kind.SMIME, (b"junk",)),
        (Kind.SMIME, (EXPIRED.certificate,)),
        (Kind.SMIME, (OTHER.certificate,)),
    ],
    ids=["none", "junk", "no S/MIME", "S/MIME junk", "expired", "of the other kind"],
)
async def test_without_a_usable_certificate_the_recipient_is_deferred(
    mail: DeliverySite, kind: Kind, certificates: tuple[bytes, ...], log: StringIO
) -> None:
    record = mail.site.add()
    mail.site.accounts.change(record, state=State.ENCRYPTED, kind=kind, certificates=certificates)
    with pytest.raises(Refused, match=NO_KEY):
        await mail.accept(ALICE)
    assert mail.files() == []
    assert record.account_id in log.getvalue()


async def test_a_failure_while_encrypting_leaves_nothing(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch, log: StringIO
) -> None:
    give(mail, mail.site.add(), OTHER)
    mail.site.add("crypt@example.org", PASSWORD)
    recipients = await mail.accept(ALICE, "crypt@example.org")

    class PanicException(BaseException):
        """As the library's own is called, which cannot be imported."""

    for raised in (RuntimeError("why\n\nStack backtrace: x"), PanicException("why"), OSError("x")):

        def fail(*_: object, error: BaseException = raised, **__: object) -> bytes:
            raise error

        monkeypatch.setattr(openpgp, "encrypt_to", fail)
        assert await mail.send_to(recipients) == [
            f"{TEMPORARY} temporary failure, try again",
            STORED,
        ]
    assert mail.canary_hits() == mail.files("tmp") == []
    assert mail.delivery._storage.memory._held == 0
    assert "backtrace" not in log.getvalue()


async def test_without_the_library_mail_waits(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch, log: StringIO
) -> None:
    give(mail, mail.site.add(), PGPOwner("new"))
    monkeypatch.setattr(openpgp, "INSTALLED", False)
    openpgp.parsed.cache_clear()
    with pytest.raises(Refused, match=TEMPORARY):
        await mail.accept(ALICE)
    assert "lmtp-atrest[openpgp]" in log.getvalue()


async def test_a_record_that_is_rolled_back_gets_no_plain_mail(mail: DeliverySite) -> None:
    """The pin is there with the first message, and knows of each change."""
    record = mail.site.add()
    mail.site.copy("records")
    after = give(mail, record, OTHER)
    assert await mail.send(ALICE) == [STORED]
    pin = Path(record.maildir) / "lmtp-atrest.pin"
    assert mail.site.public.verify(pin.read_bytes()).record == after
    mail.site.restore("records")
    mail.delivery.close()
    mail.delivery = mail.make(mail.site.records)
    with pytest.raises(Refused, match=NO_KEY):
        await mail.accept(ALICE)
    assert len(mail.files()) == 1
    assert mail.canary_hits() == []


async def test_an_account_that_gets_certificates_after_rcpt_has_its_message_encrypted(
    mail: DeliverySite,
) -> None:
    record = mail.site.add()
    recipients = await mail.accept(ALICE)
    give(mail, record, OTHER)
    assert await mail.send_to(recipients) == [STORED]
    assert mail.canary_hits() == []
    assert original(OTHER.decrypt(stored(mail))) == crlf(MESSAGE)


async def test_certificates_while_plain_data_comes_in_defer_it(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = mail.site.add()
    recipients = await mail.accept(ALICE)
    still_plain = mail.delivery._recipients.still_plain

    def meanwhile(recipient: object) -> object:
        give(mail, record, OTHER)
        return still_plain(recipient)  # type: ignore[arg-type]

    monkeypatch.setattr(mail.delivery._recipients, "still_plain", meanwhile)
    (reply,) = await mail.send_to(recipients)
    assert reply.startswith(TEMPORARY)
    assert mail.canary_hits() == []


async def test_another_kind_has_the_next_message_and_the_ones_before_stay(
    mail: DeliverySite,
) -> None:
    record = mail.site.add(password=PASSWORD)
    await mail.send(ALICE)
    before = {path: path.read_bytes() for path in mail.files()}
    after = give(mail, record, OTHER)
    mail.now += 2.1
    await mail.send(ALICE)
    (new,) = set(mail.files()) - set(before)
    assert original(OTHER.decrypt(new.read_bytes())) == crlf(MESSAGE)
    assert {path: path.read_bytes() for path in before} == before
    (old,) = before
    assert mail.opened(old).endswith(MESSAGE)
    with pytest.raises(Conflict):
        give(mail, record, OTHER)
    back = OwnCertificates(mail.site.accounts).remove(after)
    assert (back.state, back.kind, back.certificates) == (State.ENCRYPTED, Kind.MAIL_CRYPT, ())


async def test_what_is_held_in_memory_is_bounded(
    site: CheapSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message that does not fit is deferred; one of the largest size always fits."""
    monkeypatch.setattr(held, "HELD_LIMIT", 0)
    mail = DeliverySite(site, lmtp={"max_message_size": "1MiB"})
    for name in (ALICE, BOB, "carol@example.org"):
        give(mail, site.add(name), OTHER)
    message = b"Subject: s\n\n" + b"x" * 1023 + b"\n" * 1024 * 1000
    assert len(message) <= 1 << 20
    replies = await mail.send(ALICE, BOB, "carol@example.org", message=message)
    assert sorted(replies) == [STORED, STORED, "452 4.3.1 too much mail at once, try again"]
    assert mail.delivery._storage.memory._held == 0
    mail.delivery.close()
