"""Keys of every curve that a site may choose, with the Dovecot versions that can read them."""

from pathlib import Path

import pytest

from lmtp_atrest.crypto.publickey import SEALING_CURVES, Curve
from tests.integration.site import MESSAGE, PASSWORD
from tests.peers.atrest import AtRest
from tests.peers.clients import swaks
from tests.peers.dovecot import Dovecot
from tests.peers.root import Host

pytestmark = pytest.mark.peers


def test_each_curve_that_the_reader_knows_is_written_and_read_by_both(
    host: Host, dovecot: Dovecot, shared: Path
) -> None:
    """x25519 is for 2.4 only: 2.3 panics on it (`tests/integration/test_refusals.py`)."""
    curves = [c for c in SEALING_CURVES if dovecot.version == "2.4" or c is not Curve.X25519]
    names = {curve: f"{curve}@example.org" for curve in curves}
    dovecot.users |= dict.fromkeys(names.values(), PASSWORD)
    dovecot.write_users()
    dovecot.reload()
    service = AtRest(shared, dovecot)
    for curve, name in names.items():
        service.add(name, PASSWORD, curve)
    with service:
        for name in names.values():
            sent = swaks(host, "--to", name, port=service.port, data=b"Subject: x\n\nours\n")
            assert sent.exit_code == 0, sent.transcript
            client = dovecot.login(name, PASSWORD)
            client.append("INBOX", "", "", MESSAGE)
            ours, theirs = client.bodies()
            assert b"\r\n\r\nours\r\n" in ours
            assert theirs == MESSAGE
            client.logout()
            assert all(path.read_bytes().startswith(b"CRYPTED") for path in dovecot.files(name))
