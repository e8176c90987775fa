"""What seldom happens, and must not lose or leak mail when it does."""

from collections.abc import Callable

import pytest

from lmtp_atrest.delivery import Refused, recipients
from lmtp_atrest.delivery.copy import StoredCopy
from lmtp_atrest.delivery.trace import header_end
from lmtp_atrest.delivery.unclear import UnclearEnds
from lmtp_atrest.directory import Found
from lmtp_atrest.errors import WrongState
from tests.delivery.sites import DeliverySite
from tests.sites import PASSWORD


async def test_a_name_that_has_no_canonical_form_is_refused(mail: DeliverySite) -> None:
    with pytest.raises(Refused, match=r"501 5\.1\.3"):
        await mail.accept("x" * 300 + "@example.org")


async def test_a_directory_that_answers_with_no_name_is_temporary(mail: DeliverySite) -> None:
    mail.directory.users["bob@example.org"] = Found("b\tob", str(mail.root / "bob"))
    with pytest.raises(Refused, match=r"451 4\.3\.0"):
        await mail.accept("bob@example.org")


async def test_an_encrypted_account_without_a_usable_key_is_temporary(mail: DeliverySite) -> None:
    record = mail.site.add(password=PASSWORD)
    mail.site.accounts.commit(record.next(public_key=b"junk"))
    with pytest.raises(Refused, match=r"451 4\.7\.5"):
        await mail.accept("alice@example.org")
    assert mail.files() == []


async def test_the_memory_for_kept_answers_is_bounded(
    mail: DeliverySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipients, "KEEP_COUNT", 2)
    for name in ("a", "b", "c", "d"):
        mail.site.add(f"{name}@example.org", PASSWORD)
        await mail.accept(f"{name}@example.org")
    assert len(mail.delivery._recipients._kept) <= 2


async def test_a_rule_whose_folder_is_missing_leaves_the_mail_in_inbox(mail: DeliverySite) -> None:
    mail.site.add("bob@example.org")
    await mail.send("bob@example.org", message=b"X-Spam-Flag: YES\n\nspam\n")
    assert mail.files()[0].parent.parent.name == "Maildir"


def test_a_message_may_have_no_header_or_nothing_else() -> None:
    assert header_end(b"\nbody\n") == 0
    assert header_end(b"Subject: only\n") == len(b"Subject: only\n")
    assert header_end(b"Subject: x\n\nbody\n") == len(b"Subject: x\n")


async def test_a_copy_that_was_not_begun_is_an_error_of_ours(mail: DeliverySite) -> None:
    mail.site.add("bob@example.org")
    (bob,) = await mail.accept("bob@example.org")
    copy = StoredCopy(mail.delivery._storage, mail.delivery._recipients, bob)
    entry = UnclearEnds(mail.site.root / "u").entry("0" * 64)
    attempts: list[Callable[[], None]] = [lambda: copy.write(b"x"), lambda: copy.commit(entry)]
    for attempt in attempts:
        with pytest.raises(WrongState):
            attempt()
    copy.abort()
    assert mail.files() == mail.files("tmp") == []
