"""The exchange of one message where the file system cannot exchange names (NFS, CephFS, old ZFS).

Dovecot's list of UIDs is locked by the caller. The old form is linked into tmp/, the new one is
renamed over it if the name still stands for the old one, and then we look whether a client changed
the flags in that very moment: it would be there twice, and Dovecot, which waits for the lock to
see that, does not see it.

Weaker than the exchange in one point: what a client expunges in the microseconds between the last
look and the rename comes back as a new message.
"""

import os
from contextlib import suppress

from lmtp_atrest.maildir.exchange import (
    TRIES,
    ChangedUnderneath,
    Exchange,
    same_content,
    vanished,
)
from lmtp_atrest.maildir.filesystem import OpenDirectory, storage_errors
from lmtp_atrest.maildir.names import base_of, unique_name


class Replacement(Exchange):
    """As its base; `swap` is for whoever holds `uidlist_lock` of the folder."""

    def swap(self) -> OpenDirectory:
        """The copy takes the message's place; the directory that is to be synced."""
        with storage_errors(f"{self.where.folder}: {self.name}"):
            for _ in range(TRIES):
                directory = self.where.holding(self.subdirectory)
                kept = unique_name()
                try:
                    self._replace(directory, kept)
                except FileNotFoundError:
                    self._forget(kept)
                    self._look_again()
                    continue
                except BaseException:
                    self._forget(kept)
                    raise
                # From here on what is in tmp/ is the form from before, as after an exchange.
                self._copy_name, self._swapped = kept, True
                self._end_doubles()
                return self.where.holding(self.subdirectory)
        raise vanished(self.name)

    def _replace(self, directory: OpenDirectory, kept: str) -> None:
        tmp = self.where.tmp
        self._fs.link(self.name, directory.fd, kept, tmp.fd)
        for name, fd in ((kept, tmp.fd), (self.name, directory.fd)):
            self._check(os.stat(name, dir_fd=fd, follow_symlinks=False))
        self._fs.rename(self._copy_name, tmp.fd, self.name, directory.fd)

    def _check(self, found: os.stat_result) -> None:
        if not same_content(found, self._known()):
            message = f"{self.name}: another file was put under this name"
            raise ChangedUnderneath(message)

    def _forget(self, kept: str) -> None:
        with suppress(OSError):
            self._fs.unlink(kept, self.where.tmp.fd)

    def _end_doubles(self) -> None:
        """Where flags were changed while we renamed, put the copy over that name too."""
        if self._is_single():
            return
        for _ in range(TRIES):
            places = self.where.places(base_of(self.name))
            olds = [place for place in places if self._stands_at(place, self._known())]
            ours = [place for place in places if self._stands_at(place, os.fstat(self._copy))]
            if not olds or not ours:
                return
            (directory, name), (old_directory, old_name) = ours[0], olds[0]
            with suppress(FileNotFoundError):  # renamed once more: look again
                self._fs.rename(name, directory.fd, old_name, old_directory.fd)
                self._found_at(old_directory, old_name)

    def _is_single(self) -> bool:
        """Whether the form from before is in tmp/ alone: no name of it is left in the mailbox."""
        return self.source is not None and os.fstat(self.source.fileno()).st_nlink == 1

    @staticmethod
    def _stands_at(place: tuple[OpenDirectory, str], file: os.stat_result) -> bool:
        directory, name = place
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(name, dir_fd=directory.fd), file)
        return False
