"""What of a message stays readable, and the MIME entity that is encrypted (RFC 9788).

Of the message only the header block and the outermost Content-Type are looked at, by patterns
that pass over the bytes once, so that a header of a million fields costs what its bytes cost. What
is encrypted is the whole message with CRLF line ends, and two additions that can be taken away
again without a look at anything else:

* at its very beginning `HP-Outer` fields, one for each outside field that a sender writes (RFC
  9788 2.2), and `DEFAULT_TYPE` where the message has no Content-Type;
* in its first Content-Type, right after the type, `PARAMETERS`.
"""

import re
from dataclasses import dataclass

# Fields that stay outside are looked for in as much of the header; beyond, all is inside only.
SCAN_LIMIT = 256 * 1024
# `hp` is RFC 9788's; the older parameter is what Thunderbird and others before it look for.
PARAMETERS = b';\n hp="cipher"; protected-headers="v1"'
# In another order, so that it differs from a text/plain of the message's own.
DEFAULT_TYPE = b'Content-Type: text/plain;\n protected-headers="v1"; hp="cipher"\n'
HIDDEN_SUBJECT = b"Subject: ...\n"

# Of X-Spam- only what holds no text of the message: reports quote it, and old subjects.
_TRACE = rb"received|delivered-to|authentication-results|thread-index|precedence|auto-submitted"
_SPAM = rb"x-spam|x-spam-(?:flag|status|level|score)|x-spamd-bar"
_WRITTEN = rb"message-id|date|from|sender|to|cc|in-reply-to|references|list-[a-z-]+|subject"
_OUTSIDE = re.compile(
    rb"^(?:(?P<written>(?P<subject>subject)|" + _WRITTEN + rb")|" + _TRACE + rb"|" + _SPAM + rb")"
    rb"[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z)",
    re.I | re.M,
)
_CONTENT_TYPE = re.compile(rb"^content-type[ \t]*:", re.I | re.M)
_TYPE = re.compile(rb'(?:[ \t]|\n[ \t])*([^\s;/"(]+/[^\s;"(]+)')
_VALUE = re.compile(rb"[^\n]*(?:\n[ \t][^\n]*)*")
_SMIME_TYPE = re.compile(rb';\s*smime-type\s*=\s*"?(?:auth)?enveloped-data\b', re.I)
# How far a Content-Type is looked at. A longer one is not understood: encrypted as it is.
_TYPE_LIMIT = 8 * 1024


@dataclass(frozen=True, slots=True)
class Split:
    """A message in its two parts.

    `outside` are header fields with LF ends. `entity` is what is to be encrypted, with CRLF; None
    where somebody encrypted the message already.
    """

    outside: bytes
    entity: bytes | None


def split(message: bytes, *, hide_subject: bool) -> Split:
    """The two parts of a message, whose lines may end with LF, CRLF or both."""
    text = with_lf(message)
    end = header_end(text)
    header = text[:end]
    types = _content_types(header)
    if _is_encrypted(header, types):
        return Split(b"", None)
    outside, claims = _outside(header, hide_subject)
    if types:
        inserted = _after_type(header, types[0])
        entity = claims + text[:inserted] + (PARAMETERS if inserted else b"") + text[inserted:]
    else:
        entity = claims + DEFAULT_TYPE + text
    return Split(outside, entity.replace(b"\n", b"\r\n"))


def with_lf(message: bytes) -> bytes:
    """The message with LF line ends; a CR that ends no line stays."""
    return message.replace(b"\r\n", b"\n") if b"\r" in message else message


def header_end(text: bytes) -> int:
    """Where the header of a message with LF line ends is over; all of it if there is no body."""
    if text.startswith(b"\n"):
        return 0
    end = text.find(b"\n\n")
    return len(text) if end < 0 else end + 1


def _content_types(header: bytes) -> list[int]:
    """Where the values of the first two Content-Type fields begin."""
    found: list[int] = []
    for match in _CONTENT_TYPE.finditer(header):
        found.append(match.end())
        if len(found) == 2:
            break
    return found


def _is_encrypted(header: bytes, types: list[int]) -> bool:
    """Whether the outermost type says so. Two types say nothing: it is then encrypted here."""
    if len(types) != 1:
        return False
    match = _TYPE.match(header, types[0], types[0] + _TYPE_LIMIT)
    if match is None:
        return False
    kind = match[1].lower()
    if kind == b"multipart/encrypted":
        return True
    if kind not in (b"application/pkcs7-mime", b"application/x-pkcs7-mime"):
        return False
    rest = _VALUE.match(header, match.end(), match.end() + _TYPE_LIMIT)
    return rest is not None and _SMIME_TYPE.search(rest[0]) is not None


def _after_type(header: bytes, start: int) -> int:
    """Where parameters may be put in; 0 for a Content-Type that is none."""
    match = _TYPE.match(header, start, start + _TYPE_LIMIT)
    return match.end() if match else 0


def _outside(header: bytes, hide_subject: bool) -> tuple[bytes, bytes]:
    """The fields that stay outside, and the HP-Outer fields that tell of those a sender wrote."""
    outside, claims = [], []
    for match in _OUTSIDE.finditer(_whole_fields(header)):
        field = match[0] if match[0].endswith(b"\n") else match[0] + b"\n"
        if hide_subject and match["subject"]:
            field = HIDDEN_SUBJECT
        outside.append(field)
        if match["written"]:
            claims.append(b"HP-Outer: " + field)
    return b"".join(outside), b"".join(claims)


def _whole_fields(header: bytes) -> bytes:
    """As many whole fields as fit the limit."""
    if len(header) <= SCAN_LIMIT:
        return header
    end = header.rfind(b"\n", 0, SCAN_LIMIT)
    while end > 0 and header[end + 1 : end + 2] in (b" ", b"\t"):
        end = header.rfind(b"\n", 0, end)
    return header[: end + 1]
