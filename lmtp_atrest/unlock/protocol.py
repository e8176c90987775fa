"""The unlock protocol, version 1, without sockets: lines in, requests out; replies in, lines out.

`docs/unlock-protocol.md` specifies it. This file decides what is a request and who may ask it; it
must not know accounts, vaults or time. What a peer sent is never repeated in an error: a line put
together wrongly may carry a password anywhere.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from lmtp_atrest.errors import AtRestError
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.requests import OPERATION_NAMES, OPERATIONS, Request, Role

SERVICE = "lmtp-atrest unlock"
VERSION = 1
LINE_LIMIT = 64 * 1024  # with its LF; the longest real request is an `unwrap` of under 2 KiB
REPLY_LIMIT = 16 * 1024 * 1024  # for clients: `account-list` of a large site is some MiB
# What the Lua script of the dovecot socket can read without a JSON library.
FLAT_VALUE = re.compile(r"[ !#-\[\]-~]*")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks: the socket's role and the uid that the kernel vouches for."""

    role: Role
    uid: int


class ProtocolError(AtRestError):
    """A line that is not a request of this protocol; the text is safe to send back."""

    def __init__(self, reason: str, *, fatal: bool = False) -> None:
        super().__init__(reason)
        self.public = reason
        self.fatal = fatal  # the connection cannot go on: where the next line begins is unknown


# Fields whose raw bytes travel as base64; all other strings are what they are.
_NAMES = frozenset({"name", "new", "alias"})
_BYTES = frozenset({"header", "certificates"})
_SECRETS = frozenset({"secret", "new_secret", "code", "passphrase"})


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: its result and further fields. The fields may be secret and do not print."""

    result: str
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        """A field that need not be there."""
        return self.fields.get(name, default)


def error_reply(error: ProtocolError) -> Reply:
    """What a peer hears about a line that is not a request."""
    return Reply("error", {"reason": error.public})


class Lines:
    """Cuts a stream of bytes into lines of bounded length."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each line that is now complete, without its LF.

        ProtocolError (fatal) once a line is too long; after that the stream is useless.
        """
        self._rest += data
        while (end := self._rest.find(b"\n")) >= 0:
            if end >= self._limit:
                break
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            yield line
        if len(self._rest) >= self._limit:
            self._rest.clear()
            message = "line too long"
            raise ProtocolError(message, fatal=True)


def greeting(role: Role) -> bytes:
    """The line that a server sends first."""
    return _line({"service": SERVICE, "version": VERSION, "role": role.value})


def parse_request(line: bytes, role: Role) -> Request:
    """The request in a line, if this role may ask it; ProtocolError otherwise."""
    values = _json_object(line)
    operation = values.pop("op", None)
    if not isinstance(operation, str):
        message = "op is missing or not a string"
        raise ProtocolError(message)
    kind, roles = OPERATIONS.get(operation, (None, frozenset[Role]()))
    if kind is None:
        message = "unknown operation"
        raise ProtocolError(message)
    if role not in roles:
        message = f"{operation} is not an operation of this socket"
        raise ProtocolError(message)
    return kind(**_arguments(kind, values))


def encode_request(request: Request) -> bytes:
    """The line of a request, for clients."""
    values: dict[str, Any] = {"op": OPERATION_NAMES[type(request)]}
    for item in fields(request):
        value = getattr(request, item.name)
        if value is not None:
            values[item.name] = _outgoing(item.name, value)
    return _line(values)


def encode_reply(reply: Reply, role: Role) -> bytes:
    """The line of a reply. ValueError for one that the dovecot socket's script could not read."""
    values = {"result": reply.result, **reply.fields}
    if role is Role.DOVECOT and not all(map(_flat, values.values())):
        message = f"the reply {reply.result!r} is not flat"
        raise ValueError(message)
    return _line(values)


def parse_reply(line: bytes) -> Reply:
    """The reply in a line, for clients; ProtocolError where it is none."""
    values = _json_object(line)
    result = values.pop("result", None)
    if not isinstance(result, str):
        message = "the reply has no result"
        raise ProtocolError(message)
    return Reply(result, values)


def check_greeting(line: bytes, role: Role) -> None:
    """ProtocolError unless the server speaks this version of the protocol in this role."""
    if _json_object(line) != {"service": SERVICE, "version": VERSION, "role": role.value}:
        message = f"not an unlock socket of version {VERSION} for {role.value}"
        raise ProtocolError(message)


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _flat(value: Any) -> bool:
    return isinstance(value, str) and FLAT_VALUE.fullmatch(value) is not None


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_distinct)
    except UnicodeDecodeError:
        message = "not UTF-8"
        raise ProtocolError(message) from None
    except (ValueError, RecursionError):
        # `from None`: the cause quotes the line.
        message = "not a JSON object"
        raise ProtocolError(message) from None
    if not isinstance(value, dict):
        message = "not a JSON object"
        raise ProtocolError(message)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        message = "a field is given twice"
        raise ProtocolError(message)
    return values


def _arguments(kind: type[Request], values: dict[str, Any]) -> dict[str, Any]:
    known = {item.name: item for item in fields(kind)}
    if not values.keys() <= known.keys():
        message = "a field that this operation does not have"
        raise ProtocolError(message)
    for name, item in known.items():
        if name not in values and item.default is MISSING:
            message = f"{name} is missing"
            raise ProtocolError(message)
    return {name: _incoming(name, value) for name, value in values.items()}


def _incoming(name: str, value: Any) -> Any:
    if name in _BOOLEANS:
        if not isinstance(value, bool):
            message = f"{name} is not true or false"
            raise ProtocolError(message)
        return value
    if not isinstance(value, str):
        message = f"{name} is not a string"
        raise ProtocolError(message)
    return _DECODERS.get(name, _text)(name, value)


def _outgoing(name: str, value: Any) -> Any:
    if isinstance(value, Secret):
        value = value.reveal()
    elif name in _NAMES:
        value = value.encode("utf-8", "surrogateescape")
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _text(name: str, value: str) -> str:
    if not value.isprintable():
        message = f"{name} has characters that do not print"
        raise ProtocolError(message)
    return value


def _raw(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        message = f"{name} is not base64"
        raise ProtocolError(message) from None


def _name(name: str, value: str) -> str:
    # Bytes that are not UTF-8 stay apart as lone surrogates: no account has such a name, and a
    # site that lets such a user in gets "not enrolled", not an error.
    return _raw(name, value).decode("utf-8", "surrogateescape")


def _secret(name: str, value: str) -> Secret:
    return Secret(_raw(name, value))


_BOOLEANS = frozenset(
    {
        "site_verified",
        "remove",
        "compromised",
        "accept_admin",
        "at_site",
        "undo",
        "suspended",
        "wanted",
        "new_key",
    }
)
_DECODERS: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(_NAMES, _name),
    **dict.fromkeys(_SECRETS, _secret),
    **dict.fromkeys(_BYTES, _raw),
}
