"""The site's Dovecot, as `doveconf -n` of 2.3 or 2.4 shows it: its settings, and where mail lies.

Reads only; what a setting means for encrypted accounts is decided in `doctor`. `doveconf -n`
leaves out what equals a default, so callers say the default they rely on.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from lmtp_atrest.errors import TemporaryFailure

ANSWER_SECONDS = 20
YES = ("yes", "y", "1", "true")
# What `%` may stand for in a location: 2.3's short words, and the long words of both versions.
SHORT = re.compile(r"%L?([undh])")
LONG = re.compile(
    r"%\{\s*(user|username|domain|home)\s*(?:\|\s*(username|domain)\s*)?(?:\|\s*lower\s*)?\}"
)


@dataclass(frozen=True, slots=True)
class Block:
    """A braced part of the configuration, and the settings and blocks in it."""

    kind: str = ""
    name: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    blocks: list["Block"] = field(default_factory=list)

    def of(self, kind: str) -> list["Block"]:
        """The blocks of this kind, in the order that Dovecot goes through them."""
        return [block for block in self.blocks if block.kind == kind]

    def get(self, key: str, default: str = "") -> str:
        """A setting of this block."""
        return self.settings.get(key, default)

    @property
    def shared(self) -> bool:
        """True for a namespace whose folders several users read."""
        return self.get("type") in ("shared", "public")

    @property
    def driver(self) -> str:
        """The driver of a passdb or userdb; on 2.4 the block's name, where none is given."""
        return self.get("driver", self.name)


@dataclass(frozen=True, slots=True)
class Doveconf:
    """The whole configuration; `version` is "2.3" or "2.4", empty where the output says none."""

    version: str
    root: Block

    @classmethod
    def parse(cls, text: str) -> "Doveconf":
        """Read the output of `doveconf -n`."""
        version = re.match(r"# (\d+\.\d+)", text)
        open_blocks = [Block()]
        for line in (raw.strip() for raw in text.splitlines()):
            if line.startswith("#"):
                continue
            if line.endswith("{"):
                kind, _, name = line[:-1].strip().partition(" ")
                made = Block(kind, _unquoted(name))
                open_blocks[-1].blocks.append(made)
                open_blocks.append(made)
            elif line == "}" and len(open_blocks) > 1:
                del open_blocks[-1]
            elif "=" in line:
                key, _, value = line.partition("=")
                open_blocks[-1].settings[key.strip()] = _unquoted(value.strip())
        return cls(version[1] if version else "", open_blocks[0])

    def get(self, key: str, default: str = "", protocol: str = "") -> str:
        """A setting as it holds for a protocol: its own, the global one, the default."""
        found = self.root.get(key, default)
        for block in self._protocol_blocks(protocol):
            found = block.get(key, found)
        return found

    def plugins(self, protocol: str = "") -> set[str]:
        """The mail plugins that a protocol loads, as `doveconf -f protocol=…` would say."""
        found = _changed(set(), self.root, "mail_plugins")
        for block in self._protocol_blocks(protocol):
            found = _changed(found, block, "mail_plugins")
        return found

    def protocols(self) -> set[str]:
        """The protocols that Dovecot serves; empty where the output does not say."""
        return _changed(set(), self.root, "protocols")

    def _protocol_blocks(self, protocol: str) -> list[Block]:
        # 2.3 has `protocol imap` and `protocol !imap`; 2.3 also lists several in one name.
        return [
            block
            for block in self.root.of("protocol")
            if protocol and _names_protocol(block.name, protocol)
        ]


@dataclass(frozen=True, slots=True)
class Place:
    """Where mail lies: templates as configured, with `~` and `%` words in them.

    `driver` is empty where Dovecot guesses; `inbox` is empty where it lies at no fixed place.
    """

    driver: str
    path: str
    inbox: str
    layout: str = "maildir++"
    utf8: bool = False
    indexes: tuple[str, ...] = ()  # where they lie, if elsewhere than in the folders


def inbox_place(doveconf: Doveconf, fields: Mapping[str, str] | None = None) -> Place:
    """The place of INBOX, for a user to whom the user database gives these fields."""
    private = (block for block in doveconf.root.of("namespace") if block.get("inbox") in YES)
    return _place(doveconf, next(private, Block()), fields or {})


def places(doveconf: Doveconf) -> list[Place]:
    """The places of all namespaces, and the one that counts where there is none."""
    return [_place(doveconf, block, {}) for block in (Block(), *doveconf.root.of("namespace"))]


def _place(doveconf: Doveconf, namespace: Block, fields: Mapping[str, str]) -> Place:
    if doveconf.version == "2.3":
        location = fields.get("mail") or doveconf.get("mail_location")
        return location_23(namespace.get("location") or location)
    values = {
        key: fields.get(key) or namespace.get(key) or doveconf.get(key)
        for key in (
            "mail_driver",
            "mail_path",
            "mail_inbox_path",
            "mailbox_list_layout",
            "mail_index_path",
            "mail_cache_path",
        )
    }
    utf8 = namespace.get("mailbox_list_utf8") or doveconf.get("mailbox_list_utf8")
    return Place(
        values["mail_driver"],
        values["mail_path"],
        values["mail_inbox_path"],
        values["mailbox_list_layout"] or "maildir++",
        utf8 in YES,
        _elsewhere(values["mail_index_path"], values["mail_cache_path"]),
    )


def location_23(location: str) -> Place:
    """Read a mail location of 2.3: `driver:path:OPTION=value:…`."""
    driver, _, rest = location.partition(":")
    path, *options = rest.split(":")
    values = dict(option.partition("=")[::2] for option in options)
    layout = values.get("LAYOUT", "maildir++").lower()
    inbox = values.get("INBOX") or (path if layout in ("maildir++", "fs") else "")
    indexes = _elsewhere(values.get("INDEX"), values.get("INDEXCACHE"))
    return Place(driver, path, inbox, layout, "UTF-8" in values, indexes)


def _elsewhere(*paths: str | None) -> tuple[str, ...]:
    return tuple(path for path in paths if path and path.upper() != "MEMORY")


def expand(template: str, name: str, home: str) -> str | None:
    """A path template as Dovecot fills it in for a user; None where a word is not known here."""
    local, _, domain = name.partition("@")
    words = {"u": name, "n": local, "d": domain, "h": home}
    words |= {"user": name, "username": local, "domain": domain, "home": home}
    text = SHORT.sub(lambda match: words[match[1]], template)
    text = LONG.sub(lambda match: words[match[2] or match[1]], text)
    if "%" in text or not text:
        return None
    return os.path.normpath(home + text[1:] if text[0] == "~" else text)


def named_maildir(name: str, home: str, fields: Mapping[str, str]) -> str | None:
    """The Maildir that the user database itself names for a user; None where it names none.

    For Dovecot this comes before the configuration. TemporaryFailure where it is no Maildir.
    """
    driver, path = fields.get("mail_driver") or "maildir", fields.get("mail_path", "")
    if fields.get("mail"):
        place = location_23(fields["mail"])
        driver, path = place.driver, place.path
    if driver == "maildir" and not path:
        return None
    expanded = expand(path, name, home)
    if driver != "maildir" or expanded is None:
        message = f"the user database keeps the mail of {name} in {driver}:{path}: no Maildir"
        raise TemporaryFailure(message)
    return expanded


def home_of(doveconf: Doveconf, name: str, fields: Mapping[str, str], otherwise: str) -> str:
    """The home directory that Dovecot's processes use for a user."""
    template = doveconf.get("mail_home")
    expanded = expand(template, name, "") if template else None
    return fields.get("home") or expanded or otherwise


def read_doveconf(command: str) -> str:
    """The output of the site's `doveconf -n`; TemporaryFailure where it cannot be had."""
    try:
        result = subprocess.run(  # noqa: S603 - the operator's own command, without a shell
            shlex.split(command),
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        message = (
            f"cannot see how the site's Dovecot is set up: {command}: {error}; "
            "set directory.doveconf, or null to go on without looking"
        )
        raise TemporaryFailure(message) from error
    return result.stdout


def _changed(before: set[str], block: Block, key: str) -> set[str]:
    """A list setting after a block: `= a b` replaces it (2.3, 2.4), `{ a = yes }` adds (2.4)."""
    after = set(block.get(key).split()) if key in block.settings else set(before)
    for part in block.of(key):
        for name, value in part.settings.items():
            (after.add if value in YES else after.discard)(name)
    return after


def _names_protocol(name: str, protocol: str) -> bool:
    if name.startswith("!"):
        return protocol != name[1:].strip()
    return protocol in name.split()


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
