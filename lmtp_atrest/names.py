"""The only address grammar, and the only canonical form of a name.

RCPT, login, portal and command line all ask `Names.canonical`, so that one person has one name
everywhere. A name is text to compare, never a path: `../` and `/` are characters like others here,
and nothing in this module touches a file.

The grammar is RFC 5321 section 4.1.2 with SMTPUTF8 (RFC 6531), with these decisions:

* Source routes (`<@a,@b:c@d>`) are refused; nobody sends them.
* A local part may have 255 octets instead of 64, and dots where a dot-string has none: long VERP
  senders and `a..b@` exist, and refusing one bounces somebody's mail. Written out again they
  are quoted.
* A domain label may hold `_`, seen in senders.
* Controls, line separators, invisible and unassigned characters are refused everywhere, quoted or
  not: they could end a header line, hide in a log, or change form with the next Unicode version.
"""

import re
import unicodedata
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, Protocol

import idna

from lmtp_atrest.errors import AtRestError, ConfigError

PART_LIMIT = 255
# Cf and Cn too: an invisible character makes two names look alike, and only assigned characters
# keep their normal form for ever (Unicode's stability policy).
REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})

_PATH = re.compile(
    r"""<(?: "(?P<quoted>(?:[^"\\]|\\.)*)" | (?P<plain>[^"\\()<>\[\]:;,@\s]+) )
        (?: @(?P<domain>[^<>@\s"\\()]+) )? >""",
    re.VERBOSE,
)
_ATOM_TEXT = re.compile(
    r"[^\x00-\x20\"()<>\[\]:;,@\\.\x7f]+(?:\.[^\x00-\x20\"()<>\[\]:;,@\\.\x7f]+)*"
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


class InvalidName(AtRestError):
    """This is not an address or name; the message says why."""

    public = "malformed address"
    exit_code = 2


class NeedsUtf8(InvalidName):
    """The address has characters beyond ASCII, and SMTPUTF8 was not asked for (RFC 6531 3.5)."""

    public = "address needs SMTPUTF8"


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox of MAIL or RCPT: local part without quotes, domain as written or empty."""

    local: str
    domain: str = ""

    @property
    def name(self) -> str:
        """Without quotes, for `Names`; the last `@` is the one before the domain."""
        return f"{self.local}@{self.domain}" if self.domain else self.local

    def __str__(self) -> str:
        """As RFC 5321 writes it, quoted where need be: safe inside `<...>` of a header line."""
        local = self.local
        if _ATOM_TEXT.fullmatch(local) is None:
            escaped = local.replace("\\", "\\\\").replace('"', '\\"')
            local = f'"{escaped}"'
        return f"{local}@{self.domain}" if self.domain else local


def parse_path(raw: bytes, *, utf8: bool) -> tuple[Address | None, bytes]:
    """Read the `<...>` of MAIL or RCPT: the address (None for `<>`) and what follows it.

    `utf8` says that the transaction declared SMTPUTF8. Raises InvalidName.
    """
    text = _decode(raw.lstrip(b" "), utf8=utf8)
    if text.startswith("<>"):
        return None, _rest(text[2:])
    match = _PATH.match(text)
    if match is None:
        msg = "not a path in angle brackets"
        raise InvalidName(msg)
    quoted, plain, domain = match["quoted"], match["plain"], match["domain"] or ""
    local = re.sub(r"\\(.)", r"\1", quoted) if plain is None else plain
    _check_local(local, domain)
    if domain:
        canonical_domain(domain)
    return Address(local, domain), _rest(text[match.end() :])


def _decode(raw: bytes, *, utf8: bool) -> str:
    if not raw.isascii() and not utf8:
        msg = "8-bit characters without SMTPUTF8"
        raise NeedsUtf8(msg)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        msg = "not UTF-8"
        raise InvalidName(msg) from error
    _check_characters(text)
    return text


def _rest(text: str) -> bytes:
    if text and not text.startswith(" "):
        msg = "text directly after the closing bracket"
        raise InvalidName(msg)
    return text.strip(" ").encode()


def _check_characters(text: str) -> None:
    if text.isascii() and text.isprintable():
        return
    for character in text:
        if unicodedata.category(character) in REFUSED_CATEGORIES:
            msg = "a control, invisible or unassigned character"
            raise InvalidName(msg)


def _check_local(local: str, domain: str) -> None:
    if not local:
        msg = "no local part"
        raise InvalidName(msg)
    if len(local.encode()) > PART_LIMIT:
        msg = "local part too long"
        raise InvalidName(msg)
    # `"a@b"` alone would read as the address a@b once the quotes are gone.
    if not domain and "@" in local:
        msg = "quoted @ without a domain"
        raise InvalidName(msg)


def canonical_domain(domain: str) -> str:
    """One spelling of a domain: A-labels in lower case, or an address literal. InvalidName."""
    if len(domain.encode(errors="replace")) > PART_LIMIT:
        msg = "domain too long"
        raise InvalidName(msg)
    if domain.startswith("["):
        return _literal(domain)
    ascii_domain = domain.lower() if domain.isascii() else _a_labels(domain)
    if len(ascii_domain) > PART_LIMIT or not all(
        _LABEL.fullmatch(label) for label in ascii_domain.split(".")
    ):
        msg = "not a domain name"
        raise InvalidName(msg)
    return ascii_domain


def _a_labels(domain: str) -> str:
    # IDNA 2008 with the UTS 46 mapping, as Postfix's ICU does; the standard library's codec is
    # IDNA 2003, which makes strasse.example of straße.example: somebody else's domain.
    try:
        return idna.encode(domain, uts46=True).decode("ascii").lower()
    except UnicodeError as error:
        msg = "not an internationalised domain name"
        raise InvalidName(msg) from error


def _literal(domain: str) -> str:
    inner = domain.removeprefix("[").removesuffix("]")
    if f"[{inner}]" != domain or "%" in inner:  # "%": a scope of IPv6, of no use to others
        msg = "not an address literal"
        raise InvalidName(msg)
    try:
        if inner.lower().startswith("ipv6:"):
            return f"[ipv6:{IPv6Address(inner[5:])}]"
        return f"[{IPv4Address(inner)}]"
    except ValueError as error:
        msg = "not an address literal"
        raise InvalidName(msg) from error


class NameRules(Protocol):
    """What the site's configuration says of names (its section `names`)."""

    @property
    def case(self) -> Literal["fold", "exact"]:
        """Whether local parts that differ in case only are the same."""
        ...

    @property
    def default_domain(self) -> str | None:
        """The domain of a name without one."""
        ...

    @property
    def alias_domains(self) -> dict[str, str]:
        """Domains that mean another one."""
        ...


class Names:
    """Which spellings are the same name, by the site's settings."""

    def __init__(self, rules: NameRules, recipient_delimiter: str) -> None:
        self._fold = rules.case == "fold"
        self._delimiter = recipient_delimiter
        default = rules.default_domain
        self._default_domain = canonical_domain(default) if default else ""
        self._aliases = _resolve_aliases(rules.alias_domains)

    def canonical(self, name: str) -> str:
        """The one form under which a login name or address is stored and compared.

        Idempotent. NFC and lower case (not case folding, which would merge ß with ss) for the
        local part; domain in A-labels, through the site's domain aliases. Raises InvalidName.
        """
        _check_characters(name)
        local, at, domain = name.rpartition("@")
        if not at:
            local, domain = name, self._default_domain
        _check_local(local, domain)
        local = unicodedata.normalize("NFC", local)
        if self._fold:
            local = unicodedata.normalize("NFC", local.lower())
        if not domain:
            if at:
                msg = "nothing after the @"
                raise InvalidName(msg)
            return local
        ascii_domain = canonical_domain(domain)
        return f"{local}@{self._aliases.get(ascii_domain, ascii_domain)}"

    def split_detail(self, address: Address) -> tuple[str, str | None]:
        """The canonical name without `+detail`, and the detail as written (a folder's name).

        An address that begins with the delimiter, or has nothing after it, has no detail.
        """
        base, found, detail = (
            address.local.partition(self._delimiter)
            if self._delimiter
            else (address.local, "", "")
        )
        if not found or not base:
            return self.canonical(address.name), None
        return self.canonical(Address(base, address.domain).name), detail or None


def _resolve_aliases(alias_domains: dict[str, str]) -> dict[str, str]:
    """Each alias with the domain at the end of its chain; ConfigError for a circle."""
    try:
        direct = {canonical_domain(a): canonical_domain(b) for a, b in alias_domains.items()}
    except InvalidName as error:
        raise ConfigError([f"names.alias_domains: {error}"]) from error
    return {alias: _end_of_chain(alias, direct) for alias in direct}


def _end_of_chain(alias: str, direct: dict[str, str]) -> str:
    seen = {alias}
    domain = direct[alias]
    while domain in direct:
        if domain in seen:
            raise ConfigError([f"names.alias_domains: {alias} leads back to itself"])
        seen.add(domain)
        domain = direct[domain]
    return domain
