"""Names with wrong sizes made right, and files that do not open set aside; never by itself.

Dovecot trusts `S=` and `W=` in a name, and knows a message by its name. Measured on 2.3 and 2.4,
with a session open: after a mere rename the message is expunged and comes again with a new UID (so
Dovecot does itself, where it drops a `W=` that is too large). Where the name in `dovecot-uidlist`
changes too, under that file's lock as Dovecot takes it, the UID stays, no session notices, and the
right size is shown. So that is what happens here, where the list lies in the folder.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import BinaryIO

from lmtp_atrest.maildir.exchange import (
    NEW_COPY,
    TRIES,
    Subdirectories,
    Vanished,
    entries_of,
    vanished,
)
from lmtp_atrest.maildir.filesystem import OpenDirectory, be_like, storage_errors
from lmtp_atrest.maildir.names import base_of, flags_of, unique_name, with_sizes
from lmtp_atrest.maildir.uidlist import uidlist_lock

QUARANTINE = "Quarantine"
UIDLIST = "dovecot-uidlist"
LOCK_SECONDS = 30.0
SIZES = re.compile(r",[SW]=[0-9]+(?=,|$)")


def with_right_sizes(base: str, size: int, crlf_size: int) -> str:
    """The base name with these sizes; all else in it stays."""
    return with_sizes(SIZES.sub("", base), size, crlf_size)


def correct_sizes(where: Subdirectories, wanted: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """Give messages of a folder other base names; those that were renamed, old to new.

    `wanted` has the new base name by subdirectory and name. A message that vanished is left out.
    Cut short at any point, a message is under its old or its new name, whole. Raises
    StorageFailure, also where the list of UIDs stays locked.
    """
    renamed: dict[str, str] = {}
    with _uidlist(where) as uidlist:
        try:
            for (subdirectory, name), base in wanted.items():
                with suppress(Vanished):
                    _rename(where, subdirectory, name, base)
                    renamed[base_of(name)] = base
        finally:
            if uidlist is not None:
                uidlist.rename(renamed)
    with storage_errors(where.folder):
        where.new.sync()
        where.cur.sync()
    return renamed


def set_aside(where: Subdirectories, subdirectory: str, name: str, to: Subdirectories) -> str:
    """Move a message to another folder's cur/, durably; its name there. Vanished, StorageFailure.

    It is in one of the two at any time, and takes nobody's place.
    """
    with storage_errors(f"{where.folder}: {name}"):
        for directory, entry in _tries(where, subdirectory, name):
            for target in (entry, f"{unique_name()}:2,{flags_of(entry)}"):
                try:
                    directory.fs.rename_new(entry, directory.fd, target, to.cur.fd)
                except FileExistsError:
                    continue
                except FileNotFoundError:
                    break
                to.cur.sync()
                directory.sync()
                return target
    raise vanished(name)


def _rename(where: Subdirectories, subdirectory: str, name: str, base: str) -> None:
    with storage_errors(f"{where.folder}: {name}"):
        for directory, entry in _tries(where, subdirectory, name):
            info = entry[len(base_of(entry)) :]
            with suppress(FileNotFoundError):  # flagged in this moment
                directory.fs.rename_new(entry, directory.fd, base + info, directory.fd)
                return
    raise vanished(name)


def _tries(
    where: Subdirectories, subdirectory: str, name: str
) -> Iterator[tuple[OpenDirectory, str]]:
    """Where the message is: as it was seen, then as often as it moves under our hands."""
    yield where.holding(subdirectory), name
    for _ in range(TRIES):
        place = next(entries_of(base_of(name), where.new, where.cur), None)
        if place is None:
            raise vanished(name)
        yield place


class _UidList:
    """Dovecot's list of UIDs and names of a folder, while we hold its lock."""

    def __init__(self, where: Subdirectories, file: BinaryIO) -> None:
        self._where = where
        self._before = os.fstat(file.fileno())
        self._content = file.read()

    def rename(self, names: Mapping[str, str]) -> None:
        """Put the list with these base names in place of the old one, in one step."""
        raw = {os.fsencode(old): os.fsencode(new) for old, new in names.items()}
        content = b"\n".join(_renamed(line, raw) for line in self._content.split(b"\n"))
        if content == self._content:
            return
        directory, tmp, name = self._where.directory, self._where.tmp, unique_name()
        with storage_errors(f"{self._where.folder}/{UIDLIST}"):
            with os.fdopen(tmp.fs.open(name, NEW_COPY, tmp.fd), "wb") as copy:
                be_like(copy.fileno(), self._before)  # Dovecot reads what takes its place
                copy.write(content)
                copy.flush()
                tmp.fs.fsync(copy.fileno())
            tmp.fs.rename(name, tmp.fd, UIDLIST, directory.fd)
            directory.sync()


def _renamed(line: bytes, names: Mapping[bytes, bytes]) -> bytes:
    # "UID [extensions] :base name", after a first line that is about the whole list.
    head, mark, name = line.partition(b" :")
    base, colon, rest = name.partition(b":")
    return head + mark + names[base] + colon + rest if mark and base in names else line


@contextmanager
def _uidlist(where: Subdirectories) -> Iterator[_UidList | None]:
    """The list under its lock; None where Dovecot keeps none in this folder."""
    directory = where.directory
    if UIDLIST not in directory.names():
        yield None
        return
    with uidlist_lock(directory, where.tmp, LOCK_SECONDS):
        with storage_errors(f"{where.folder}/{UIDLIST}"), directory.open_regular(UIDLIST) as file:
            uidlist = _UidList(where, file)
        yield uidlist
