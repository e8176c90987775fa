"""Notices to users by mail: what they say, and handing them to the site's own mail server.

A notice tells that something happened to a user's keys, and what to do if it was not the user. It
never holds a secret; the one mail that does, a recovery code that a site lets its users have
mailed, is `mail_code`.
"""

import smtplib
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

from lmtp_atrest.config import Listener, Notices
from lmtp_atrest.errors import TemporaryFailure

SMTP_SECONDS = 20.0

HOW_TO_GET_A_CODE = (
    "If you lose your password, a recovery code opens your mail. Ask your administrator, or the "
    "site's portal, for one, and keep it on paper. Without your password and without a code "
    "nobody can read your mail."
)
NOT_YOU = "If this was not you, tell your administrator at once: your account can be frozen."

# Kind → subject and body. {name} is the account, {when} the time in UTC.
TEXTS = {
    "enabled": (
        "Your mail is now kept encrypted",
        "From now on new mail of {name} is stored so that only your password opens it; what was "
        "there before follows.\n\n" + HOW_TO_GET_A_CODE,
    ),
    "code-made": (
        "A recovery code was made for your mail",
        "On {when} a recovery code for {name} was made. It opens your mail without the "
        "password; an earlier code no longer does.\n\n" + NOT_YOU,
    ),
    "recovered": (
        "Your mail was opened with the recovery code",
        "On {when} the recovery code of {name} was used to set a new password. The code is "
        "spent, and a new one was shown.\n\n" + NOT_YOU,
    ),
    "password-changed": (
        "The password of your encrypted mail was changed",
        "On {when} another password was set for the encrypted mail of {name}.\n\n" + NOT_YOU,
    ),
    "mismatch": (
        "Your password no longer opens your encrypted mail",
        "You logged in to {name} with a password that the site accepts, but your mail is still "
        "encrypted with the one from before. It is safe, and closed. To open it, have the new "
        "password joined with the old one or with your recovery code: your administrator, or "
        "the site's portal, can do that.",
    ),
    "reset": (
        "Your encrypted mail was begun anew",
        "On {when} new keys were made for {name}. Mail from before is kept, and closed: the old "
        "password or the recovery code of then can open it again (join).\n\n" + NOT_YOU,
    ),
    "app-password-added": (
        "An app password for your mail was made",
        "On {when} an app password for {name} was made. A mail program that has it reads all "
        "your mail.\n\n" + NOT_YOU,
    ),
    "frozen": (
        "Your encrypted mail was frozen",
        "On {when} the mail of {name} was frozen: nobody can open it until it is thawed. New "
        "mail goes on arriving, encrypted.",
    ),
    "thawed": (
        "Your encrypted mail can be opened again",
        "On {when} the mail of {name} was thawed.\n\n" + NOT_YOU,
    ),
    "disabled": (
        "New mail is no longer encrypted",
        "On {when} encryption was switched off for {name}: new mail is stored as it comes.\n\n"
        + NOT_YOU,
    ),
    "admin-slot": (
        "Your site's administrator can recover your mail",
        "This site requires that an admin recovery password can open encrypted mail. From {when} "
        "on that holds for {name}. Each use is recorded, and you are told of it.",
    ),
    "admin-used": (
        "An administrator opened your encrypted mail",
        "On {when} the admin recovery password of your site was used on {name}.\n\n"
        "Ask your administrator why, if you do not know.",
    ),
}


def notice(config: Notices, kind: str, name: str, recipient: str, at_ms: int) -> EmailMessage:
    """The notice of this kind; `at_ms` in milliseconds since 1970."""
    subject, body = TEXTS[kind]
    when = datetime.fromtimestamp(at_ms / 1000, UTC)
    text = body.format(name=name, when=when.strftime("%Y-%m-%d %H:%M UTC"))
    return _message(config, recipient, subject, text, when)


def mail_code(config: Notices, name: str, recipient: str, code: str) -> None:
    """Mail a recovery code to an address that its owner gave; TemporaryFailure."""
    text = (
        f"The recovery code for the encrypted mail of {name} is\n\n    {code}\n\n"
        "Write it down on paper and delete this message: whoever has the code can read the mail."
    )
    subject = "The recovery code for your mail"
    send(config, _message(config, recipient, subject, text, datetime.now(UTC)))


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
