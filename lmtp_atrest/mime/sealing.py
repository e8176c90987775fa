"""A whole message encrypted to an account's own certificates: RFC 3156 or RFC 8551.

The result has LF line ends and is ASCII but for the header fields that stay outside. It carries
`X-Lmtp-Atrest`, which says that it was encrypted here, or that it came encrypted and was left so.
"""

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from lmtp_atrest.crypto.records import Kind
from lmtp_atrest.errors import Alarm
from lmtp_atrest.mime import openpgp, smime
from lmtp_atrest.mime.certificates import read_stored
from lmtp_atrest.mime.message import split, with_lf

MARK = b"X-Lmtp-Atrest"
CAME_ENCRYPTED = b"came-encrypted"


class NoUsableCertificate(Alarm):
    """All certificates of an account have expired or are revoked, or there is none."""


class Certificates:
    """What the mail of one account is encrypted to, as its signed record has it."""

    def __init__(self, kind: Kind, data: Sequence[bytes]) -> None:
        self.kind = kind
        self._data = tuple(data)

    def usable(self, now: datetime) -> tuple[bytes, ...]:
        """Those that serve now; NoUsableCertificate where none does, Damaged."""
        found = read_stored(self.kind, self._data, now)
        usable = tuple(one.data for one in found if not one.trouble)
        if not usable:
            why = (
                "; ".join(f"{one.fingerprint}: {one.trouble}" for one in found) or "there is none"
            )
            message = f"no certificate serves ({why}): account key sets new ones"
            raise NoUsableCertificate(message)
        return usable

    def seal(
        self, trace: bytes, message: bytes, *, hide_subject: bool, now: datetime | None = None
    ) -> bytes:
        """What is stored of a message: `trace` and the other outside fields, then ciphertext.

        `trace` are header lines of this server, which stay outside only. NoUsableCertificate,
        Damaged; nothing of the message is given out then.
        """
        now = now or datetime.now(UTC)
        usable = self.usable(now)
        parts = split(message, hide_subject=hide_subject)
        if parts.entity is None:
            return trace + MARK + b": " + CAME_ENCRYPTED + b"\n" + with_lf(message)
        mark = MARK + b": " + self.kind.encode() + b"\nMIME-Version: 1.0\n"
        if self.kind is Kind.SMIME:
            der = smime.encrypt([smime.parsed(one) for one in usable], parts.entity)
            content = _enveloped(der)
        else:
            keys = [openpgp.parsed(one) for one in usable]
            content = _pgp_mime(openpgp.encrypt(keys, parts.entity, now))
        return b"".join((trace, parts.outside, mark, *content))


def _pgp_mime(armored: bytes) -> Sequence[bytes]:
    # No line of armor begins with two hyphens and this.
    boundary = secrets.token_hex(16).encode()
    before = (
        b'Content-Type: multipart/encrypted; protocol="application/pgp-encrypted";\n'
        b' boundary="%(b)b"\n\n'
        b"--%(b)b\nContent-Type: application/pgp-encrypted\n\nVersion: 1\n\n"
        b'--%(b)b\nContent-Type: application/octet-stream; name="encrypted.asc"\n'
        b'Content-Disposition: inline; filename="encrypted.asc"\n\n'
    )
    named = {b"b": boundary}
    return before % named, armored, b"\n--%(b)b--\n" % named


def _enveloped(der: bytes) -> Sequence[bytes]:
    before = (
        b'Content-Type: application/pkcs7-mime; smime-type=enveloped-data; name="smime.p7m"\n'
        b"Content-Transfer-Encoding: base64\n"
        b'Content-Disposition: attachment; filename="smime.p7m"\n\n'
    )
    return before, base64.encodebytes(der)
