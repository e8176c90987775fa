"""Names of messages in a Maildir, unique for ever, with the sizes that Dovecot trusts."""

import itertools
import os
import re
import secrets
import socket
import time
from functools import lru_cache

MAX_HOST = 100  # leaves room in a name for sizes, flags and what a conversion may add

_counter = itertools.count()


@lru_cache(maxsize=8)
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
