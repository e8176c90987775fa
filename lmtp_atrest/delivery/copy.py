"""One stored file of a message: encrypted for encrypted accounts, plain for others.

In Dovecot's format a message is sealed as it comes; for a user's own certificates it is held in
memory and encrypted at its end. For an encrypted account only ciphertext leaves this module. All
methods block, see `pace` for where they are called; what they raise has left no file behind.
"""

import os
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from lmtp_atrest.config import Config
from lmtp_atrest.crypto.dcrypt import Sealer
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.delivery.held import Held, Memory
from lmtp_atrest.delivery.pace import Pace
from lmtp_atrest.delivery.recipients import Recipient, Recipients
from lmtp_atrest.delivery.trace import header_values, without_return_path
from lmtp_atrest.delivery.unclear import Entry
from lmtp_atrest.errors import WrongState
from lmtp_atrest.maildir import KeptMaildirs, Layout, Maildir, NewMessage, StorageFailure
from lmtp_atrest.maildir.names import base_of, with_sizes
from lmtp_atrest.mime import Certificates


class Storage:
    """Where and how copies are stored, by the configuration."""

    def __init__(self, config: Config) -> None:
        self.root: Path = config.mail.root
        self.layout = Layout.of(config.lmtp)
        self.header_rules = config.lmtp.header_rules
        self.rounds = config.atrest.pbkdf2_rounds
        self.hide_subject = config.atrest.hide_subject
        self.memory = Memory(config.lmtp.max_message_size)
        self.pace = Pace()
        self._swept: set[Path] = set()
        self._maildirs = KeptMaildirs(self._open)

    def use(self, recipient: Recipient) -> AbstractContextManager[Maildir]:
        """The recipient's Maildir, made if missing; the first time, swept of our stale files."""
        return self._maildirs.use(recipient.maildir, recipient.inbox)

    def _open(self, path: Path, inbox: Path) -> Maildir:
        maildir = Maildir.open(self.root, path, create=True, inbox=inbox, layout=self.layout)
        if path not in self._swept:
            self._swept.add(path)
            with suppress(StorageFailure):  # the next process tries again
                maildir.sweep_tmp()
        return maildir

    def knows(self, recipient: Recipient) -> bool:
        """Whether the Maildir was used before."""
        return recipient.maildir in self._swept

    def close(self) -> None:
        """Give back what is held open."""
        self._maildirs.close()


class StoredCopy:
    """The copy for one mailbox; `begin`, then `write`, then `commit`, or `abort`."""

    def __init__(self, storage: Storage, recipients: Recipients, recipient: Recipient) -> None:
        self.recipient = recipient
        self._storage = storage
        self._recipients = recipients
        self._message: NewMessage | None = None
        self._sealer: Sealer | None = None
        self._held: Held | None = None
        self._trace = b""
        self._size = 0
        self._lines = 0

    @property
    def is_begun(self) -> bool:
        """Whether there is a file, or was."""
        return self._message is not None

    @property
    def is_at_hand(self) -> bool:
        """Whether the next step neither asks the store nor sweeps the Maildir."""
        known = self._recipients.is_usable(self.recipient)
        return self.is_begun or (known and self._storage.knows(self.recipient))

    def begin(self, trace: bytes, head: bytes) -> None:
        """Choose key and folder, write our own lines and the first bytes of the message.

        `head` holds the message's header, or its first 64 KiB. Raises what key, store and disk
        may raise.
        """
        self.recipient = self._recipients.fresh(self.recipient)
        with self._storage.use(self.recipient) as maildir:
            self._pin(maildir)
            key = self.recipient.key
            if isinstance(key, PublicKey):
                self._sealer = Sealer(key, self._storage.rounds)
            elif key is not None:
                self._held = Held(self._storage.memory)
            self._message = maildir.create(self._folder(maildir, head))
        if self._held is not None:
            self._trace = trace
            self._held.add(without_return_path(head))
            return
        header = self._sealer.header if self._sealer is not None else b""
        self._add(header, trace + without_return_path(head))

    def _pin(self, maildir: Maildir) -> None:
        # Before the first ciphertext: a store that forgets this account is then an alarm.
        if self.recipient.pin_due and self.recipient.account is not None:
            maildir.write_pin(self.recipient.account.document)

    def _folder(self, maildir: Maildir, head: bytes) -> str | None:
        """The folder of the first header rule that matches and whose folder exists."""
        for rule in self._storage.header_rules:
            wanted = rule.value.casefold()
            if any(value.casefold() == wanted for value in header_values(head, rule.header)):
                found = maildir.find_folder(rule.folder)
                if found is not None:
                    return found
        return self.recipient.folder

    def write(self, chunk: bytes) -> None:
        """Add bytes of the message."""
        if self._held is not None:
            self._held.add(chunk)
        else:
            self._add(b"", chunk)

    def _add_held(self, held: Held, key: Certificates) -> None:
        """Encrypt what was held, and write that."""
        with self._storage.memory.turn(held.size):
            hide = self._storage.hide_subject
            self._add(b"", key.seal(self._trace, held.whole(), hide_subject=hide))
        held.close()

    def _add(self, header: bytes, chunk: bytes) -> None:
        if self._message is None:
            message = "the copy was not begun"
            raise WrongState(message)
        self._size += len(chunk)
        self._lines += chunk.count(b"\n")
        stored = chunk if self._sealer is None else self._sealer.update(chunk)
        self._message.write(header + stored if header else stored)

    def commit(self, entry: Entry) -> None:
        """Make it mail, durably. A plain one only while the store still says plain."""
        message = self._message
        if message is None:
            error = "the copy was not begun"
            raise WrongState(error)
        key = self.recipient.key
        if self._sealer is not None:
            message.write(self._sealer.finish())
        elif isinstance(key, Certificates) and self._held is not None:
            self._add_held(self._held, key)
        crlf_size = self._size + self._lines
        entry.note(with_sizes(message.name, self._size, crlf_size))
        started = time.monotonic()
        with message:
            if key is not None:
                message.commit(self._size, crlf_size)
            else:
                window = self._recipients.still_plain(self.recipient)
                message.commit(self._size, crlf_size, window.look, window.close)
        self._storage.pace.note(time.monotonic() - started, self._size)
        entry.stored()

    def became_mail(self, name: str) -> bool:
        """Whether an earlier try, killed before it could say so, left this message."""
        with self._storage.use(self.recipient) as maildir:
            base = base_of(name)
            there = any(base_of(file.name) == base for file in maildir.walk())
        if there:
            # The earlier try was killed between the rename and its sync; rare, so all is synced.
            os.sync()
        return there

    def abort(self) -> None:
        """Leave nothing of an uncommitted copy behind."""
        if self._held is not None:
            self._held.close()
        if self._message is not None:
            self._message.abort()
