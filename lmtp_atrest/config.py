"""The configuration: one YAML file, read once, strict, passed on by argument.

Unknown or doubled keys, wrong units and loose file modes are refused, all faults at once. The
commented `config/lmtp-atrest.yaml` says what each setting does and equals these defaults.
"""

import itertools
import os
import re
import stat
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from lmtp_atrest.errors import ConfigError
from lmtp_atrest.texts import Language

SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# What may stand in a path as it is: no separator, no leading dot or dash.
PLAIN_COMPONENT = re.compile(r"[A-Za-z0-9_=][A-Za-z0-9._=+@-]{0,254}")
TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _size(value: Any) -> int:
    match = re.fullmatch(r"(\d+)\s*(B|KiB|MiB|GiB)", value) if isinstance(value, str) else None
    if match is None:
        message = "is a size with its unit, such as 50MiB (B, KiB, MiB, GiB)"
        raise ValueError(message)
    return int(match[1]) * SIZE_UNITS[match[2]]


def _duration(value: Any) -> int:
    match = re.fullmatch(r"(\d+)\s*([smhd])", value) if isinstance(value, str) else None
    if match is None:
        message = "is a time with its unit, such as 30m (s, m, h, d)"
        raise ValueError(message)
    return int(match[1]) * TIME_UNITS[match[2]]


def _absolute(value: Any) -> Path:
    if not isinstance(value, str | Path) or not Path(value).is_absolute():
        message = "is an absolute path"
        raise ValueError(message)
    return Path(os.path.normpath(value))


def _size_text(size: int) -> str:
    unit = next(name for name in reversed(SIZE_UNITS) if size % SIZE_UNITS[name] == 0)
    return f"{size // SIZE_UNITS[unit]}{unit}"


def _duration_text(seconds: int) -> str:
    unit = next(name for name in reversed(TIME_UNITS) if seconds % TIME_UNITS[name] == 0)
    return f"{seconds // TIME_UNITS[unit]}{unit}"


Size = Annotated[int, BeforeValidator(_size), PlainSerializer(_size_text)]
Duration = Annotated[int, BeforeValidator(_duration), PlainSerializer(_duration_text)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute), PlainSerializer(str)]


class Section(BaseModel):
    """A part of the file: immutable, without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=False)


class Tls(Section):
    """Certificate and key for LMTP beyond loopback (STARTTLS, required there)."""

    certificate: AbsolutePath
    key: AbsolutePath


class HeaderRule(Section):
    """Mail whose header field has this value goes to this folder, where the folder exists."""

    header: str = Field(pattern=r"^[!-9;-~]+$")
    value: str
    folder: str


class Lmtp(Section):
    """The LMTP server."""

    listen: tuple[str, ...] = ("127.0.0.1:8024",)
    workers: int | Literal["auto"] = "auto"
    user: str | None = None
    tls: Tls | None = None
    max_message_size: Size = 50 << 20
    max_recipients: int = Field(default=1000, ge=100)
    max_connections: int = Field(default=200, ge=1)
    idle_timeout: Duration = 300
    transaction_timeout: Duration = 3600
    recipient_delimiter: str = Field(default="+", max_length=1)
    folder_style: Literal["maildir++", "fs"] = "maildir++"
    folder_names: Literal["utf-7", "utf-8"] = "utf-7"
    header_rules: tuple[HeaderRule, ...] = (
        HeaderRule(header="X-Spam-Flag", value="YES", folder="Junk"),
    )
    unclear_ends: AbsolutePath = Path("/run/lmtp-atrest/lmtp")

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            message = "needs at least one address, such as 127.0.0.1:8024 or unix:/path"
            raise ValueError(message)
        for item in value:
            Listener.parse(item)
        return value

    @model_validator(mode="after")
    def _tls_beyond_loopback(self) -> "Lmtp":
        for item in self.listen:
            if self.tls is None and not Listener.parse(item).private:
                message = f"listen: {item} is not loopback: set tls, or listen on 127.0.0.1"
                raise ValueError(message)
        return self

    @property
    def worker_count(self) -> int:
        """Processes to start; by default some wait for the disk while others use the cores."""
        cores = os.cpu_count() or 1
        return self.workers if isinstance(self.workers, int) else cores + (cores + 1) // 2


class Listener(Section):
    """One address to listen on: host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Listener":
        """Read `host:port`, `[v6]:port` or `unix:/path`."""
        if text.startswith("unix:/"):
            return cls(path=text.removeprefix("unix:"))
        host, _, port = text.rpartition(":")
        try:
            address = ip_address(host.strip("[]"))
            number = int(port)
        except ValueError:
            message = f"{text!r} is not ADDRESS:PORT (an IP address) or unix:/path"
            raise ValueError(message) from None
        if not 0 <= number < 65536:
            message = f"{text!r}: the port is not between 0 and 65535"
            raise ValueError(message)
        return cls(host=str(address), port=number)

    @property
    def private(self) -> bool:
        """True where nobody but this machine can reach it."""
        return bool(self.path) or ip_address(self.host).is_loopback


class Directory(Section):
    """Who exists: Dovecot's word, or our own accounts."""

    source: Literal["dovecot", "keystore"] = "dovecot"
    socket: AbsolutePath = Path("/run/dovecot/auth-userdb")
    doveconf: str | None = "doveconf -n"
    readers: tuple[Literal["2.3", "2.4"], ...] = ()


class Mail(Section):
    """Where the Maildirs are."""

    root: AbsolutePath = Path("/var/vmail")
    home: str = "{root}/{user}"
    path: str = "{home}/Maildir"
    inbox: str = "{maildir}"
    index: tuple[str, ...] = ()
    unknown_recipients: Literal["defer", "reject", "deliver"] = "defer"
    delivered_by: Literal["lmtp-atrest", "dovecot"] = "lmtp-atrest"
    shared_roots: tuple[AbsolutePath, ...] = ()

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        if not value.startswith("{home}") or ".." in value.split("/"):
            message = "starts with {home} and stays below it"
            raise ValueError(message)
        return value

    @field_validator("inbox")
    @classmethod
    def _inbox(cls, value: str) -> str:
        if not re.fullmatch(r"\{(home|maildir)\}(/[^{}]+)?", value) or ".." in value.split("/"):
            message = "starts with {maildir} or {home} and stays below it"
            raise ValueError(message)
        return value

    @field_validator("index")
    @classmethod
    def _index(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            rest = re.sub(r"\{(root|home|maildir|user|local|domain)\}", "x", template)
            begins = template.startswith(("/", "{root}", "{home}", "{maildir}"))
            if not begins or set("{}") & set(rest) or ".." in template.split("/"):
                message = (
                    "are absolute paths that may hold {root}, {home}, {maildir}, {user}, {local} "
                    "and {domain}"
                )
                raise ValueError(message)
        return value

    @field_validator("home")
    @classmethod
    def _home(cls, value: str) -> str:
        rest = re.sub(r"\{(root|user|local|domain)\}", "x", value)
        if not value.startswith(("/", "{root}")) or set("{}") & set(rest) or ".." in value:
            message = "is an absolute path that may hold {root}, {user}, {local} and {domain}"
            raise ValueError(message)
        return value

    def home_of(self, name: str) -> str | None:
        """The home of a canonical name that no directory gives one; None for odd names.

        A name is only ever one component of a path, and of harmless characters.
        """
        values = _parts_in(self.home, name)
        return None if values is None else self.home.format(root=self.root, **values)

    def indexes_of(self, home: str, maildir: str, names: Iterable[str]) -> tuple[Path, ...]:
        """Where else than in its folders Dovecot may keep an account's indexes, by its names."""
        found = []
        for template, name in itertools.product(self.index, names):
            values = _parts_in(template, name)
            if values is not None:
                path = template.format(root=self.root, home=home, maildir=maildir, **values)
                found.append(Path(os.path.normpath(path)))
        return tuple(dict.fromkeys(found))

    def maildir(self, home: str) -> str:
        """The Maildir of the account whose home directory this is."""
        return os.path.normpath(self.path.replace("{home}", home))

    def inbox_of(self, home: str, maildir: str) -> str:
        """Where INBOX lies of the account with this home directory and Maildir."""
        word, _, rest = self.inbox.partition("}")
        return os.path.normpath((home if word == "{home" else maildir) + rest)


def _parts_in(template: str, name: str) -> dict[str, str] | None:
    """What {user}, {local} and {domain} stand for; None where one in use is no plain component."""
    local, at, domain = name.rpartition("@")
    values = {"user": name, "local": local if at else name, "domain": domain if at else ""}
    used = [values[word] for word in re.findall(r"\{(user|local|domain)\}", template)]
    return values if all(PLAIN_COMPONENT.fullmatch(value) for value in used) else None


class NamesSection(Section):
    """What counts as the same name."""

    case: Literal["fold", "exact"] = "fold"
    default_domain: str | None = None
    alias_domains: dict[str, str] = {}


class Keystore(Section):
    """The two stores, and the epochs that unlock has seen, kept outside both."""

    records: str = "sqlite:////var/lib/lmtp-atrest/records/records.db"
    vaults: str = "sqlite:////var/lib/lmtp-atrest/vaults/vaults.db"
    pins: str = "sqlite:////var/lib/lmtp-atrest/vaults/pins.db"

    @field_validator("records", "vaults", "pins")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.startswith("sqlite:////"):
            message = "is sqlite:////absolute/path"
            raise ValueError(message)
        return value


class Site(Section):
    """The site's signing key (unlock only), its public half (everybody), and its password."""

    key: AbsolutePath = Path("/etc/lmtp-atrest/site.key")
    public: AbsolutePath = Path("/etc/lmtp-atrest/site.pub")
    password_command: str | None = None

    @field_validator("password_command")
    @classmethod
    def _password_command(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            message = "begins with the absolute path of a program; {name} stands for the user"
            raise ValueError(message)
        return value


class AtRest(Section):
    """How accounts are encrypted."""

    curve: Literal["prime256v1", "secp384r1", "secp521r1", "x25519"] = "prime256v1"
    pbkdf2_rounds: int = Field(default=1, ge=1, le=100_000)
    hide_subject: bool = True
    argon2_memory: Size = 64 << 20
    argon2_passes: int = Field(default=3, ge=1, le=10)
    enrolment: Literal["closed", "self-service", "at-login"] = "self-service"
    at_login_without_recovery: Literal["accepted"] | None = None
    at_login_confirmations: int = Field(default=1, ge=1, le=10)
    minimum_strength: int = Field(default=2, ge=0, le=4)

    @model_validator(mode="after")
    def _argon2_bounds(self) -> "AtRest":
        # The bounds of the slot format (crypto/slots.py): 19 MiB twice at least, 1 GiB at most.
        if not 19 << 20 <= self.argon2_memory <= 1 << 30 or self.argon2_passes < 2:
            message = "argon2_memory is 19MiB to 1GiB, argon2_passes 2 to 10"
            raise ValueError(message)
        return self


class Peers(Section):
    """Unix users that may connect to each socket; root is not implied."""

    dovecot: tuple[str, ...] = ("root", "dovecot")
    reader: tuple[str, ...] = ()
    convert: tuple[str, ...] = ()
    portal: tuple[str, ...] = ()
    admin: tuple[str, ...] = ("root",)


class Session(Section):
    """How long a vault stays open."""

    idle: Duration = 1800
    age: Duration = 12 * 3600


class Evict(Section):
    """The root helper that ends IMAP sessions; `socket: null` goes without it."""

    socket: AbsolutePath | None = Path("/run/lmtp-atrest/evict/evict.sock")
    peers: tuple[str, ...] = ("root", "lmtp-atrest")
    who: str = "doveadm -f tab who"
    end: str = "doveadm kick {name}"

    @model_validator(mode="after")
    def _name_in_end_only(self) -> "Evict":
        if "{name}" in self.who or "{name}" not in self.end:
            message = "who lists all sessions; {name} stands in end, and there only"
            raise ValueError(message)
        return self


class Unlock(Section):
    """The unlock service."""

    sockets: AbsolutePath = Path("/run/lmtp-atrest/unlock")
    user: str | None = None
    peers: Peers = Peers()
    session: Session = Session()
    on_mismatch: Literal["refuse", "let-in-closed"] = "refuse"
    cache: Literal["ram", "none"] = "ram"
    cache_root: AbsolutePath = Path("/dev/shm/lmtp-atrest")  # noqa: S108 - RAM is the point
    cache_limit: Size = 1 << 30
    temp_dir: AbsolutePath = Path("/dev/shm")  # noqa: S108 - RAM is the point
    trusted_sources: tuple[str, ...] = ()
    evict: Evict = Evict()


class Conversion(Section):
    """Mail that is already there."""

    state: str = "sqlite:////var/lib/lmtp-atrest/conversion/conversion.db"
    background: bool = True
    messages_per_second: int = Field(default=200, ge=1)
    bytes_per_second: Size = 20 << 20
    sweep_every: Duration = 86400
    exchange: bool = True

    @field_validator("state")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.startswith("sqlite:////"):
            message = "is sqlite:////absolute/path"
            raise ValueError(message)
        return value


class Recovery(Section):
    """The ways back into an account whose password is lost."""

    code: bool = True
    mail_code: bool = False
    admin: Literal["allowed", "required", "forbidden"] = "allowed"
    thaw_with: tuple[Literal["code", "password"], ...] = ("code", "password")


class Notices(Section):
    """Mail to users about their keys; `smtp: null` sends none."""

    smtp: str | None = "127.0.0.1:25"
    sender: str | None = None
    admin_use: bool = True
    language: Language = "en"

    @field_validator("smtp")
    @classmethod
    def _smtp(cls, value: str | None) -> str | None:
        if value is not None and not Listener.parse(value).private:
            message = "is the site's own mail server on loopback, such as 127.0.0.1:25"
            raise ValueError(message)
        return value


class PortalSession(Section):
    """How long somebody stays signed in to the portal: since the last page, and in all."""

    idle: Duration = 600
    age: Duration = 3600


class Colours(Section):
    """The site's colour in the portal, on light and on dark ground."""

    light: str = Field(default="#1f5f5b", pattern=r"^#[0-9a-fA-F]{6}$")
    dark: str = Field(default="#8fd0c9", pattern=r"^#[0-9a-fA-F]{6}$")


class Portal(Section):
    """The web page on which users look after their own keys; off without `listen`."""

    listen: str | None = None
    url: str = "http://127.0.0.1:8080/"
    user: str | None = None
    tls: Tls | None = None
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    authenticate: str | None = None
    name: str = Field(default="Mail", min_length=1, max_length=80)
    logo: AbsolutePath | None = None
    colours: Colours = Colours()
    support: str | None = None
    back: str | None = None
    language: Language = "en"
    session: PortalSession = PortalSession()

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        plain = parts.scheme == "http" and _is_loopback(parts.hostname or "")
        if parts.query or parts.fragment or not parts.hostname or parts.username is not None:
            message = "is the address that users see, such as https://mail.example.org/keys/"
            raise ValueError(message)
        if parts.scheme != "https" and not plain:
            message = "begins with https:// (http:// on loopback only)"
            raise ValueError(message)
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", parts.path) or "/.." in parts.path:
            message = "has a path of plain names"
            raise ValueError(message)
        return value if value.endswith("/") else f"{value}/"

    @field_validator("authenticate")
    @classmethod
    def _authenticate(cls, value: str | None) -> str | None:
        if value is None:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("imap", "imaps") or not parts.hostname or parts.path.strip("/"):
            message = "is imap://HOST[:PORT] (STARTTLS) or imaps://HOST[:PORT]"
            raise ValueError(message)
        return value

    @field_validator("support", "back")
    @classmethod
    def _link(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"(https?://|mailto:)[^\s\"'<>]+", value):
            message = "begins with https://, http:// or mailto:"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _listen_safely(self) -> "Portal":
        if self.listen is None:
            return self
        listener = Listener.parse(self.listen)
        if listener.path:
            message = "listen: is ADDRESS:PORT"
            raise ValueError(message)
        if self.tls is None and not listener.private:
            message = f"listen: {self.listen} is not loopback: set tls, or listen on 127.0.0.1"
            raise ValueError(message)
        if self.tls is not None and not self.url.startswith("https://"):
            message = "url: begins with https:// where tls is set"
            raise ValueError(message)
        return self


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Log(Section):
    """What the log says, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Config(Section):
    """The whole file."""

    lmtp: Lmtp = Lmtp()
    directory: Directory = Directory()
    mail: Mail = Mail()
    names: NamesSection = NamesSection()
    keystore: Keystore = Keystore()
    site: Site = Site()
    atrest: AtRest = AtRest()
    unlock: Unlock = Unlock()
    conversion: Conversion = Conversion()
    recovery: Recovery = Recovery()
    notices: Notices = Notices()
    portal: Portal = Portal()
    log: Log = Log()

    @model_validator(mode="after")
    def _at_login(self) -> "Config":
        if (
            self.atrest.enrolment == "at-login"
            and self.recovery.admin == "forbidden"
            and self.atrest.at_login_without_recovery is None
        ):
            message = (
                "atrest.enrolment: at-login encrypts the mail of people who have no recovery "
                "code yet, and recovery.admin: forbidden leaves no other way back: where that is "
                "wanted, set atrest.at_login_without_recovery: accepted"
            )
            raise ValueError(message)
        return self


class _StrictLoader(yaml.SafeLoader):
    """YAML without surprises: no doubled keys; octal, date and yes/no magic left as text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                message = f"{key_node.value}: given twice (line {key_node.start_mark.line + 1})"
                raise ConfigError([message])
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _plain_words_only(first: str, resolvers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """`YES`, `off` and `2026-01-01` stay text; only true and false are truth values."""
    magic = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:bool")
    kept = [(tag, pattern) for tag, pattern in resolvers if tag not in magic]
    if first in "tTfF":
        kept.append(("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$")))
    return kept


_StrictLoader.yaml_implicit_resolvers = {
    first: _plain_words_only(first, resolvers)
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str) -> Config:
    """Read a configuration; ConfigError lists every fault with its path in the file."""
    try:
        loaded = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader, see above
    except yaml.YAMLError as error:
        raise ConfigError([f"not readable as YAML: {error}"]) from error
    if not isinstance(loaded, dict | None):
        raise ConfigError(["the file is not a list of sections"])
    try:
        return Config.model_validate(_without_empty_sections(loaded or {}))
    except ValidationError as error:
        raise ConfigError([_fault(item) for item in error.errors()]) from error


def _without_empty_sections(loaded: dict[str, Any]) -> dict[str, Any]:
    """A section whose lines are all commented out is the section's defaults."""
    return {name: section for name, section in loaded.items() if section is not None}


def _fault(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    return f"{where}: {str(item['msg']).removeprefix('Value error, ')}"


def load(path: Path) -> Config:
    """Read the file, refusing one that others may write to: it names keys, paths and commands."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {error}"]) from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError([f"{path}: others may write to it; chmod go-w {path}"])
    return parse(text)
