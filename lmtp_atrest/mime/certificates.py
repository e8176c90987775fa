"""Certificates as their owners hand them in and as records hold them, of both kinds."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import lru_cache

from lmtp_atrest.crypto.records import Kind
from lmtp_atrest.errors import Damaged, UsageError
from lmtp_atrest.mime import openpgp, smime

# All certificates of an account together: the record that holds them is the pin beside the mail
# as well, which has 64 KiB.
SIZE_LIMIT = 24 * 1024
COUNT_LIMIT = 16
# What a file may hold before it is parsed; armor and PEM are a third larger than what they hold.
FILE_LIMIT = 2 * SIZE_LIMIT


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as an administrator may see it; `trouble` is why it does not serve now."""

    kind: Kind
    data: bytes
    fingerprint: str
    user_ids: tuple[str, ...]
    algorithms: tuple[str, ...]
    expires: datetime | None
    trouble: str


def read_file(kind: Kind, raw: bytes, now: datetime) -> tuple[Certificate, ...]:
    """The certificates of a file; UsageError where it holds none, too much, or a private key.

    Damaged for what cannot be parsed. Whether each serves is in its `trouble`.
    """
    if len(raw) > FILE_LIMIT:
        raise UsageError(_too_large())
    if kind is Kind.SMIME:
        if b"PRIVATE KEY" in raw:
            raise UsageError(_private_key())
        found = [_smime(one, now) for one in smime.read(raw)]
    else:
        if raw and openpgp.holds_secret(raw):
            raise UsageError(_private_key())
        found = [_openpgp(one, now) for one in openpgp.read(raw)]
    check_bounds(found)
    return tuple(found)


def read_stored(kind: Kind, data: Sequence[bytes], now: datetime) -> tuple[Certificate, ...]:
    """The certificates of a record; Damaged."""
    if kind is Kind.SMIME:
        return tuple(_smime(smime.parsed(one), now) for one in data)
    return tuple(_openpgp(openpgp.parsed(one), now) for one in data)


def check_bounds(found: Sequence[Certificate]) -> None:
    """UsageError where these are none, or more than one account may have."""
    if not found:
        message = "there is no certificate in it"
        raise UsageError(message)
    if len(found) > COUNT_LIMIT:
        message = f"{len(found)} certificates, but an account has {COUNT_LIMIT} at most"
        raise UsageError(message)
    if sum(len(one.data) for one in found) > SIZE_LIMIT:
        raise UsageError(_too_large())


def _smime(one: smime.SMIMECertificate, now: datetime) -> Certificate:
    trouble = one.refusal
    if now >= one.expires:
        trouble = f"it expired on {one.expires:%Y-%m-%d}"
    elif now < one.begins:
        trouble = f"it is not valid before {one.begins:%Y-%m-%d}"
    ids = (one.fingerprint, one.user_ids, one.algorithms)
    return Certificate(Kind.SMIME, one.data, *ids, one.expires, trouble)


def _openpgp(one: openpgp.OpenPGPCertificate, now: datetime) -> Certificate:
    ids = (one.fingerprint, one.user_ids, one.algorithms)
    return Certificate(Kind.OPENPGP, one.data, *ids, one.expires, _openpgp_trouble(one, now))


def _openpgp_trouble(one: openpgp.OpenPGPCertificate, now: datetime) -> str:
    if one.is_revoked:
        return "it is revoked"
    if one.expires is not None and now >= one.expires:
        return f"it expired on {one.expires:%Y-%m-%d}"
    return _refusal(one.data, now.date())


@lru_cache(1024)
def _refusal(data: bytes, day: date) -> str:
    """Why the library does not encrypt to it; asked once a day, as that takes longer than mail."""
    try:
        openpgp.encrypt([openpgp.parsed(data)], b"", datetime.combine(day, time(), UTC))
    except Damaged as error:
        return str(error)
    return ""


def _too_large() -> str:
    return (
        f"certificates of more than {SIZE_LIMIT // 1024} KiB for one account: leave out pictures "
        "and signatures of others (gpg --export-options export-minimal --export)"
    )


def _private_key() -> str:
    return "the file holds a private key: this program must never have it; export the public half"
