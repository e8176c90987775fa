"""Certificates of owners, as the admin socket shows and changes them."""

from datetime import UTC, datetime
from typing import Any

from lmtp_atrest.crypto.records import AccountRecord, Kind
from lmtp_atrest.errors import AtRestError
from lmtp_atrest.mime import Certificate, read_stored


def shown_certificates(record: AccountRecord) -> list[dict[str, Any]]:
    """The certificates of an account, for people; never fails, so that `show` does not."""
    if record.kind is Kind.MAIL_CRYPT:
        return []
    try:
        return [shown(one) for one in read_stored(record.kind, record.certificates, _now())]
    except AtRestError as error:
        return [{"fingerprint": "?", "trouble": str(error)}]


def shown(one: Certificate) -> dict[str, Any]:
    """A certificate for people; `expires` in milliseconds since 1970, 0 for never."""
    return {
        "fingerprint": one.fingerprint,
        "user_ids": list(one.user_ids),
        "algorithms": list(one.algorithms),
        "expires": int(one.expires.timestamp() * 1000) if one.expires else 0,
        "trouble": one.trouble,
    }


def _now() -> datetime:
    return datetime.now(UTC)
