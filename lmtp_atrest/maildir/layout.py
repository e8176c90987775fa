"""How folders lie in a Maildir, in Dovecot's own words; their names, which senders may choose.

No name from outside becomes a path: `Layout.candidates` answers with directory names that are
checked to be one component each, or with nothing. It never raises for what a sender wrote.
"""

import base64
import binascii
import os
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from lmtp_atrest.config import Lmtp

INBOX = "INBOX"
MAX_NAME = 255  # bytes of one directory entry on every file system in use
MAX_DEPTH = 16
SUBDIRECTORIES = ("tmp", "cur", "new")

Directories = tuple[str, ...]


class FolderStyle(StrEnum):
    """How folders lie on disk, as Dovecot's `LAYOUT=` says: `.a.b` or `a/b`."""

    MAILDIR_PLUS_PLUS = "maildir++"
    FS = "fs"


class FolderNames(StrEnum):
    """How names beyond ASCII are written on disk: modified UTF-7, or Dovecot's `UTF-8`."""

    UTF_7 = "utf-7"
    UTF_8 = "utf-8"


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of all Maildirs of a site; must be the one that the site's Dovecot has."""

    style: FolderStyle = FolderStyle.MAILDIR_PLUS_PLUS
    names: FolderNames = FolderNames.UTF_7

    @classmethod
    def of(cls, settings: Lmtp) -> "Layout":
        """What the configuration says."""
        return cls(FolderStyle(settings.folder_style), FolderNames(settings.folder_names))

    def candidates(self, name: str) -> tuple[Directories, ...]:
        """Where the folder may lie, the likelier first: directory names from outer to inner.

        `()` among them is INBOX; nothing is what cannot be a folder. Slash and dot separate
        levels, whatever separator Dovecot shows to clients: `user+a.b@` and `user+a/b@` are
        folder b in a.
        In layout fs a level may hold dots, and a folder that is called `a.b` comes first.
        """
        if name.upper() == INBOX:
            return ((),)
        text = unicodedata.normalize("NFC", name)
        ways = [re.split("[./]", text)]
        if self.style is FolderStyle.FS and "." in text:
            ways.insert(0, text.split("/"))
        found = (self._directories(levels) for levels in ways)
        return tuple(directories for directories in found if directories)

    def _directories(self, levels: list[str]) -> Directories | None:
        if len(levels) > MAX_DEPTH or not all(map(_is_level, levels)):
            return None
        try:
            encoded = tuple(map(self._encoded, levels))
        except UnicodeEncodeError:
            return None
        if self.style is FolderStyle.MAILDIR_PLUS_PLUS:
            encoded = ("." + ".".join(encoded),)
        elif any(level in SUBDIRECTORIES for level in encoded):
            return None  # a Maildir's own directories, and refused by Dovecot too
        return encoded if all(len(os.fsencode(one)) <= MAX_NAME for one in encoded) else None

    def _encoded(self, level: str) -> str:
        # By way of bytes: what is on disk must not depend on the locale of this process.
        utf8 = self.names is FolderNames.UTF_8
        return os.fsdecode(level.encode("utf-8")) if utf8 else encode_mutf7(level)

    def name_of(self, directories: Directories) -> str:
        """A folder's name for people, levels separated by a slash."""
        if not directories:
            return INBOX
        levels = directories
        if self.style is FolderStyle.MAILDIR_PLUS_PLUS:
            levels = tuple(directories[0].removeprefix(".").split("."))
        return "/".join(map(self._decoded, levels))

    def _decoded(self, level: str) -> str:
        if self.names is FolderNames.UTF_8:
            return os.fsencode(level).decode("utf-8", "surrogateescape")
        return decode_mutf7(level)

    def may_be_folder(self, name: str) -> bool:
        """Whether an entry of a directory may be a folder, by its name."""
        dotted = self.style is FolderStyle.MAILDIR_PLUS_PLUS
        return name not in SUBDIRECTORIES and (name.startswith(".") or not dotted)

    @property
    def depth(self) -> int:
        """How many directories lie in each other at most."""
        return 1 if self.style is FolderStyle.MAILDIR_PLUS_PLUS else MAX_DEPTH


def _is_level(level: str) -> bool:
    return level not in ("", ".", "..") and not any(unicodedata.category(c) == "Cc" for c in level)


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
