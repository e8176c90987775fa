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
from enum import StrEnum
from typing import Any, TypeAlias

from lmtp_atrest.errors import AtRestError
from lmtp_atrest.secret import Secret

SERVICE = "lmtp-atrest unlock"
VERSION = 1
LINE_LIMIT = 64 * 1024  # with its LF; the longest real request is an `unwrap` of under 2 KiB
REPLY_LIMIT = 16 * 1024 * 1024  # for clients: `account-list` of a large site is some MiB
# What the Lua script of the dovecot socket can read without a JSON library.
FLAT_VALUE = re.compile(r"[ !#-\[\]-~]*")


class Role(StrEnum):
    """A socket and what may be asked there; `evict` is a process of its own."""

    DOVECOT = "dovecot"
    READER = "reader"
    ADMIN = "admin"
    EVICT = "evict"


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


@dataclass(frozen=True, slots=True)
class Login:
    """Dovecot logs a user in."""

    name: str
    service: str
    mechanism: str
    site_verified: bool
    secret: Secret | None = None
    master: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class AppLogin:
    """Dovecot asks about an app password before the site's own passdb."""

    name: str
    secret: Secret
    service: str = ""
    mechanism: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Dovecot asks for the public half: deliveries, doveadm."""

    name: str


@dataclass(frozen=True, slots=True)
class Open:
    """A reader logs a user in."""

    name: str
    secret: Secret
    source: str


@dataclass(frozen=True, slots=True)
class Keys:
    """A reader asks for the private keys."""

    token: str


@dataclass(frozen=True, slots=True)
class Unwrap:
    """A reader asks for the key of one message; `header` is the message's dcrypt header."""

    token: str
    header: bytes


@dataclass(frozen=True, slots=True)
class Renew:
    """A reader says that its user is still there."""

    token: str


@dataclass(frozen=True, slots=True)
class Lock:
    """A reader ends the open vault of its user."""

    token: str


@dataclass(frozen=True, slots=True)
class Status:
    """How the service does."""


@dataclass(frozen=True, slots=True)
class SessionList:
    """Which vaults are open."""


@dataclass(frozen=True, slots=True)
class SessionLock:
    """End one account's open vault and its readers."""

    name: str


@dataclass(frozen=True, slots=True)
class AccountAdd:
    """Make a plain account; the site's own home and Maildir where none are given."""

    name: str
    home: str = ""
    maildir: str = ""


@dataclass(frozen=True, slots=True)
class AccountEnable:
    """Encrypt an account's mail from now on."""

    name: str
    secret: Secret


@dataclass(frozen=True, slots=True)
class AccountList:
    """All accounts."""


@dataclass(frozen=True, slots=True)
class AccountShow:
    """One account and its slots."""

    name: str


@dataclass(frozen=True, slots=True)
class AccountRename:
    """Give an account another login name."""

    name: str
    new: str


@dataclass(frozen=True, slots=True)
class AccountAlias:
    """Add a name to an account, or take it away."""

    name: str
    alias: str
    remove: bool = False


@dataclass(frozen=True, slots=True)
class AccountRemove:
    """Remove an account; its closed vault is kept."""

    name: str


@dataclass(frozen=True, slots=True)
class Who:
    """Ask the evict helper who is in."""

    name: str


@dataclass(frozen=True, slots=True)
class End:
    """Ask the evict helper to end a user's sessions and to remove the cache in RAM."""

    name: str
    account: str


@dataclass(frozen=True, slots=True)
class Caches:
    """Ask the evict helper which accounts have an index cache in RAM, after this id."""

    after: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """Ask the evict helper to remove an account's index cache."""

    account: str


DovecotRequest: TypeAlias = Login | AppLogin | Lookup
ReaderRequest: TypeAlias = Open | Keys | Unwrap | Renew | Lock
AdminRequest: TypeAlias = (
    Status
    | SessionList
    | SessionLock
    | AccountAdd
    | AccountEnable
    | AccountList
    | AccountShow
    | AccountRename
    | AccountAlias
    | AccountRemove
)
EvictRequest: TypeAlias = Who | End | Caches | Forget
Request: TypeAlias = DovecotRequest | ReaderRequest | AdminRequest | EvictRequest

_D = frozenset({Role.DOVECOT, Role.ADMIN})
_R = frozenset({Role.READER, Role.ADMIN})
_A = frozenset({Role.ADMIN})
_E = frozenset({Role.EVICT})

OPERATIONS: dict[str, tuple[type[Request], frozenset[Role]]] = {
    "login": (Login, _D),
    "app-login": (AppLogin, _D),
    "lookup": (Lookup, _D),
    "open": (Open, _R),
    "keys": (Keys, _R),
    "unwrap": (Unwrap, _R),
    "renew": (Renew, _R),
    "lock": (Lock, _R),
    "status": (Status, _A),
    "session-list": (SessionList, _A),
    "session-lock": (SessionLock, _A),
    "account-add": (AccountAdd, _A),
    "account-enable": (AccountEnable, _A),
    "account-list": (AccountList, _A),
    "account-show": (AccountShow, _A),
    "account-rename": (AccountRename, _A),
    "account-alias": (AccountAlias, _A),
    "account-remove": (AccountRemove, _A),
    "who": (Who, _E),
    "end": (End, _E),
    "caches": (Caches, _E),
    "forget": (Forget, _E),
}
_OPERATION_NAMES = {kind: name for name, (kind, _) in OPERATIONS.items()}

# Fields whose raw bytes travel as base64; all other strings are what they are.
_NAMES = frozenset({"name", "new", "alias"})
_BYTES = frozenset({"header"})
_SECRETS = frozenset({"secret"})


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
    values: dict[str, Any] = {"op": _OPERATION_NAMES[type(request)]}
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


_BOOLEANS = frozenset({"site_verified", "remove"})
_DECODERS: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(_NAMES, _name),
    **dict.fromkeys(_SECRETS, _secret),
    **dict.fromkeys(_BYTES, _raw),
}
