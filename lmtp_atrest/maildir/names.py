"""Names in a Maildir: of messages, unique for ever, and of folders, which senders may choose.

No name from outside becomes a path: `folder_directories` answers with directory names that are
checked to be one component each, or with None. It never raises for what a sender wrote.
"""

import base64
import binascii
import itertools
import os
import re
import secrets
import socket
import time
import unicodedata
from enum import StrEnum

INBOX = "INBOX"
MAX_NAME = 255  # bytes of one directory entry on every file system in use
MAX_DEPTH = 16
MAX_HOST = 100  # leaves room in a name for sizes, flags and what a conversion may add
SUBDIRECTORIES = ("tmp", "cur", "new")

_counter = itertools.count()


class FolderStyle(StrEnum):
    """How folders lie on disk, as Dovecot's `LAYOUT=` says: `.a.b` or `a/b`."""

    MAILDIR_PLUS_PLUS = "maildir++"
    FS = "fs"


def escaped_host(host: str) -> str:
    r"""A host name as part of a message name: `/` is `\057`, `:` is `\072` (maildir(5)).

    All but letters, digits, dot, hyphen and underscore is escaped: a comma begins `S=`.
    """
    raw = host.encode("utf-8", "surrogateescape")
    escaped = re.sub(rb"[^A-Za-z0-9._-]", lambda m: b"\\%03o" % m[0][0], raw).decode("ascii")
    return escaped[:MAX_HOST]


def unique_name(host: str | None = None) -> str:
    """A message name that no other process or host makes: time, pid, counter, 32 random bits."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    place = escaped_host(socket.gethostname() if host is None else host)
    left = f"{seconds}.M{nanoseconds // 1000}P{os.getpid()}Q{next(_counter)}"
    return f"{left}R{secrets.token_hex(4)}.{place}"


def is_own_name(name: str, host: str | None = None) -> bool:
    """Whether `unique_name` made it on this host."""
    place = re.escape(escaped_host(socket.gethostname() if host is None else host))
    return re.fullmatch(rf"[0-9]+\.M[0-9]+P[0-9]+Q[0-9]+R[0-9a-f]{{8}}\.{place}", name) is not None


def with_sizes(name: str, size: int, crlf_size: int) -> str:
    """The final name; both sizes are of the plaintext, W= with CRLF line ends.

    Dovecot trusts them: a small W= cuts the message off silently, a wrong S= breaks every fetch.
    """
    return f"{name},S={size},W={crlf_size}"


def flags_of(name: str) -> str:
    """The flag letters after `:2,` of a file name in cur/."""
    return name.partition(":2,")[2]


def base_of(name: str) -> str:
    """The part of a message's file name that stays the same while flags change."""
    return name.partition(":")[0]


def encode_mutf7(text: str) -> str:
    """Modified UTF-7 (RFC 3501, section 5.1.3). Raises UnicodeEncodeError for lone surrogates."""
    return re.sub(r"&|[^\x20-\x7e]+", lambda m: _shifted(m[0]), text)


def _shifted(run: str) -> str:
    if run == "&":
        return "&-"
    encoded = base64.b64encode(run.encode("utf-16-be"), altchars=b"+,").decode("ascii")
    return f"&{encoded.rstrip('=')}-"


def decode_mutf7(name: str) -> str:
    """The text of a folder name; a name that is not modified UTF-7 stays as it is."""
    try:
        text = re.sub(r"&([^-]*)-", lambda m: _unshifted(m[1]), name)
        return text if encode_mutf7(text) == name else name
    except (binascii.Error, UnicodeError):
        return name


def _unshifted(run: str) -> str:
    if not run:
        return "&"
    padded = run + "=" * (-len(run) % 4)
    return base64.b64decode(padded.encode(), altchars=b"+,", validate=True).decode("utf-16-be")


def folder_directories(name: str, style: FolderStyle) -> tuple[str, ...] | None:
    """Directory names, outer to inner, of a folder; () is INBOX, None what cannot be a folder.

    A dot separates levels in either style, as in `.a.b` on disk: `user+a.b@` is folder b in a.
    """
    if name.upper() == INBOX:
        return ()
    levels = unicodedata.normalize("NFC", name).split(".")
    if len(levels) > MAX_DEPTH or not all(map(_is_level, levels)):
        return None
    try:
        encoded = tuple(map(encode_mutf7, levels))
    except UnicodeEncodeError:
        return None
    if style is FolderStyle.MAILDIR_PLUS_PLUS:
        encoded = ("." + ".".join(encoded),)
    elif any(level in SUBDIRECTORIES for level in encoded):
        return None  # with LAYOUT=fs these are INBOX's own directories
    return encoded if all(len(level) <= MAX_NAME for level in encoded) else None


def _is_level(level: str) -> bool:
    return bool(level) and not any(c == "/" or unicodedata.category(c) == "Cc" for c in level)


def folder_name(directories: tuple[str, ...], style: FolderStyle) -> str:
    """A folder's name for people, levels separated by a slash."""
    if not directories:
        return INBOX
    levels = directories
    if style is FolderStyle.MAILDIR_PLUS_PLUS:
        levels = tuple(directories[0].removeprefix(".").split("."))
    return "/".join(map(decode_mutf7, levels))
