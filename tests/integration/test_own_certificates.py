"""Mail encrypted to the user's own certificate, read over IMAP from a real Dovecot."""

import re
import smtplib

import pytest

from lmtp_atrest.unlock.requests import AccountKey, AccountShow
from tests.integration.site import BOB, CAROL, PASSWORD, USERS
from tests.mime.owners import Owner, PGPOwner, SMIMEOwner, original
from tests.peers.atrest import AtRest
from tests.peers.dovecot import Dovecot

pytestmark = pytest.mark.peers

MESSAGE = b"From: eve@example.net\r\nSubject: canary\r\n\r\n" + b"canary \xe4\r\n" * 30_000


@pytest.mark.parametrize("kind", [PGPOwner, SMIMEOwner])
def test_dovecot_serves_it_whole_and_its_owner_reads_it(
    kind: type[Owner], atrest: AtRest, dovecot: Dovecot
) -> None:
    """The sizes in the name are right: Dovecot breaks off, or errs, on wrong ones."""
    owner = kind()
    atrest.add(BOB)
    for name in (BOB, CAROL):  # carol's mail was encrypted to a key of her account before
        request = AccountKey(name, owner.kind, _file(owner))
        assert atrest.admin(request).result == "changed"
        assert atrest.admin(AccountShow(name))["kind"] == owner.kind
    with smtplib.LMTP("127.0.0.1", atrest.port, timeout=60) as lmtp:
        for name in (BOB, CAROL):
            assert lmtp.sendmail("eve@example.net", [name], MESSAGE) == {}
    files = dovecot.files(BOB) + dovecot.files(CAROL)
    assert len(files) == 2
    assert not any(b"canary" in file.read_bytes() for file in files)

    with dovecot.login(BOB, USERS[BOB]) as client:
        (body,) = client.bodies()
        assert original(owner.decrypt(body.replace(b"\r\n", b"\n"))) == MESSAGE
        _, (size,) = client.fetch("1", "(RFC822.SIZE)")
        assert isinstance(size, bytes)
        assert re.findall(rb"SIZE (\d+)", size) == [b"%d" % len(body)]
    assert "error" not in dovecot.log().lower()
    assert PASSWORD not in atrest.log()


def _file(owner: Owner) -> bytes:
    return owner.pem if isinstance(owner, SMIMEOwner) else owner.certificate
