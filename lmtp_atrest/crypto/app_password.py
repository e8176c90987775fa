"""App passwords: a secret of its own for each mail program, told from others at a glance.

Written as `ap-hhhh-xxxx-xxxx-xxxx-xxxx-xxxx-xxxx-xxxx`, lower case: a handle, 130 secret bits and
two check characters over both (`checked.py`). The handle is public. It names the slot, so that a
login tries one slot and not all of them; it says nothing about the secret. As with a recovery
code, the KDF gets the 26 secret characters as ASCII capitals.
"""

from dataclasses import dataclass

from lmtp_atrest.crypto import checked
from lmtp_atrest.errors import BadCode
from lmtp_atrest.secret import Secret

PREFIX = "ap-"
HANDLE_CHARACTERS = 4


@dataclass(frozen=True, slots=True)
class AppPassword:
    """`handle` in lower case; `secret` in the form that the slot's KDF takes."""

    handle: str
    secret: Secret

    def written(self) -> str:
        """The app password as a mail program takes it; to be shown once."""
        text = self.handle.upper() + self.secret.reveal().decode()
        return PREFIX + checked.grouped(checked.with_check(text)).lower()


def generate() -> AppPassword:
    """A new one. The caller draws again while the account has a slot with this handle: a handle
    is 20 bits, drawn without knowing the others.
    """
    handle = checked.draw(HANDLE_CHARACTERS).lower()
    return AppPassword(handle, Secret(checked.draw(checked.SECRET_CHARACTERS).encode()))


def read(typed: str | bytes) -> AppPassword:
    """Handle and secret of a typed app password: any case, spaces and dashes after `ap-` as one
    likes, I and L for 1, O for 0. Raises BadCode, whatever else it is.
    """
    raw = typed.encode("utf-8", "replace") if isinstance(typed, str) else typed
    body = raw[len(PREFIX) :] if is_app_password(raw) else b""
    try:
        text = checked.read(body, HANDLE_CHARACTERS + checked.SECRET_CHARACTERS)
    except BadCode:
        # Without the cause: a site's password may begin with `ap-` too, and a log is no place
        # for its length.
        message = "not an app password, or one with a typo: copy it again, or make a new one"
        raise BadCode(message) from None
    handle, secret = text[:HANDLE_CHARACTERS], text[HANDLE_CHARACTERS:]
    return AppPassword(handle.lower(), Secret(secret.encode()))


def is_app_password(typed: bytes) -> bool:
    """Whether it begins like one, whatever follows; looks at three bytes and no more."""
    return typed[: len(PREFIX)].lower() == PREFIX.encode()
