"""Notices to users by mail: what they say, and handing them to the site's own mail server.

A notice tells that something happened to a user's keys, and what to do if it was not the user. It
never holds a secret; the one mail that does, a recovery code that a site lets its users have
mailed, is `mail_code`.
"""

import smtplib
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path

from lmtp_atrest.config import Listener, Notices
from lmtp_atrest.errors import TemporaryFailure
from lmtp_atrest.texts import catalogue

SMTP_SECONDS = 20.0

DIRECTORY = Path(__file__).parent / "notices"
KINDS = (
    "enabled",
    "code-made",
    "recovered",
    "password-changed",
    "mismatch",
    "reset",
    "app-password-added",
    "certificates",
    "certificate-expires",
    "frozen",
    "thawed",
    "disabled",
    "admin-slot",
    "admin-used",
)


def notice(config: Notices, kind: str, name: str, recipient: str, at_ms: int) -> EmailMessage:
    """The notice of this kind; `at_ms` in milliseconds since 1970."""
    when = datetime.fromtimestamp(at_ms / 1000, UTC)
    return _written(config, kind, recipient, when, name=name)


def mail_code(config: Notices, name: str, recipient: str, code: str) -> None:
    """Mail a recovery code to an address that its owner gave; TemporaryFailure."""
    now = datetime.now(UTC)
    send(config, _written(config, "mail-code", recipient, now, name=name, code=code))


def _written(
    config: Notices, kind: str, recipient: str, when: datetime, **values: str
) -> EmailMessage:
    texts = catalogue(DIRECTORY, config.language)
    body = texts[f"{kind}.body"].format_map(
        {
            "when": when.strftime("%Y-%m-%d %H:%M UTC"),
            "not_you": texts["not-you"],
            "get_code": texts["get-code"],
            **values,
        }
    )
    return _message(config, recipient, texts[f"{kind}.subject"], body, when)


def send(config: Notices, message: EmailMessage) -> None:
    """Hand a message to the site's mail server; TemporaryFailure where it does not take it."""
    if config.smtp is None:
        error = "no mail is sent: notices.smtp is null"
        raise TemporaryFailure(error)
    where = Listener.parse(config.smtp)
    try:
        with smtplib.SMTP(where.host, where.port, timeout=SMTP_SECONDS) as client:
            # An empty envelope sender: a notice that cannot be delivered bounces to nobody.
            client.sendmail("", [message["To"]], message.as_bytes())
    except (OSError, smtplib.SMTPException) as error:
        # The text of a refusal may quote the message.
        text = f"the mail server at {config.smtp} did not take a notice ({type(error).__name__})"
        raise TemporaryFailure(text) from error


def _message(
    config: Notices, recipient: str, subject: str, text: str, when: datetime
) -> EmailMessage:
    domain = recipient.rpartition("@")[2]
    message = EmailMessage()
    message["From"] = config.sender or f"postmaster@{domain}"
    message["To"] = recipient
    message["Subject"] = subject
    message["Date"] = format_datetime(when)
    message["Message-ID"] = make_msgid("lmtp-atrest", domain)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation answers to this
    message.set_content(text + "\n")
    return message
