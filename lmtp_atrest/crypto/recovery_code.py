"""The recovery code: 130 random bits that open a vault when the password is lost.

Written as seven groups, `XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX`: 26 characters of secret and two that
find typing errors (`checked.py`). What goes into the slot's KDF is the 26 capitals as ASCII, so
that nothing about groups, case or checks can ever make a right code wrong.
"""

from lmtp_atrest.crypto import checked
from lmtp_atrest.errors import BadCode
from lmtp_atrest.secret import Secret


def generate() -> Secret:
    """A new code's secret, in the form that the slot's KDF takes."""
    return Secret(checked.draw(checked.SECRET_CHARACTERS).encode())


def written(secret: Secret) -> str:
    """The code as its owner writes it down; `secret` is one of `generate` or `read`."""
    return checked.grouped(checked.with_check(secret.reveal().decode()))


def read(typed: str | bytes) -> Secret:
    """The secret of a typed code: any case, spaces and dashes anywhere, I and L for 1, O for 0.

    Raises BadCode where it cannot be a code, or has a typing error.
    """
    return Secret(checked.read(typed, checked.SECRET_CHARACTERS).encode())


def looks_like(typed: str | bytes) -> bool:
    """Whether it has the characters and length of a code, typing errors in it or not.

    A passphrase may look so too: what `read` then refuses may still be somebody's password.
    """
    try:
        text = checked.canonical(typed)
    except BadCode:
        return False
    return len(text) == checked.SECRET_CHARACTERS + checked.CHECK_CHARACTERS
