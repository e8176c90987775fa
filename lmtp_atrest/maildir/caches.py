"""Dovecot's index caches, which hold headers, addresses and first lines of mail in clear.

They lie in the folders, and where the site says so (`INDEX=`) in directories beside them, named as
the folders are. Whoever makes mail unreadable on disk removes them; Dovecot makes them anew.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lmtp_atrest.maildir.filesystem import (
    DIRECTORY,
    Filesystem,
    OpenDirectory,
    storage_errors,
)
from lmtp_atrest.maildir.layout import INBOX, Directories, FolderStyle, Layout

CACHE_NAME = "dovecot.index.cache"


def index_directories(base: Path, folder: str, layout: Layout) -> list[Path]:
    """Where below an account's index directory the index of this folder may lie; measured on
    Dovecot 2.3 and 2.4. `folder` is its name for people."""
    return [base.joinpath(*below) for below in _below(folder, layout)]


def _below(folder: str, layout: Layout) -> list[Directories]:
    dotted = layout.style is FolderStyle.MAILDIR_PLUS_PLUS
    if folder == INBOX:
        return [(), (".INBOX",) if dotted else (INBOX,)]
    # A directory that carries no name of Dovecot's is called as it lies on the disk.
    levels = tuple(folder.split("/"))
    raw = ("." + ".".join(levels),) if dotted else levels
    found = [raw] if not set(raw) & {"", ".", ".."} else []
    return list(dict.fromkeys((*layout.candidates(folder), *found)))


def forget_caches(
    bases: Sequence[Path], folder: str, layout: Layout, fs: Filesystem | None = None
) -> None:
    """Remove the cache of a folder from the account's index directories, if there is one.

    Below such a directory no link is followed. Raises StorageFailure, UnsafePath.
    """
    for base in bases:
        for below in _below(folder, layout):
            with storage_errors(str(base.joinpath(*below))), suppress(FileNotFoundError):
                _remove(fs or Filesystem(), base, below)


def _remove(fs: Filesystem, base: Path, below: Directories) -> None:
    directory = OpenDirectory(fs, fs.open(str(base), DIRECTORY & ~os.O_NOFOLLOW))
    for name in below:
        with directory:
            directory = directory.child(name)
    with directory:
        fs.unlink(CACHE_NAME, directory.fd)
