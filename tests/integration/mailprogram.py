"""Mail programs at work in one mailbox: each knows what must have become of its own messages."""

import contextlib
import hashlib
import random  # noqa: TID251 - seeded: a failure can be repeated
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from tests.peers.dovecot import Dovecot, Imap

FOLDERS = ("INBOX", "Work", "Sent", "Lists")
FLAGS = (r"\Seen", r"\Flagged", r"\Answered", r"\Draft", "$Later", "work")
# Dovecot has the commands of one session wait for nobody; a pause in between lets a run get at
# the messages, and shares two cores with it.
PAUSE = 0.002

ATTRIBUTES = re.compile(
    rb'UID (?P<uid>\d+) FLAGS \((?P<flags>[^)]*)\) INTERNALDATE "(?P<date>[^"]+)" '
    rb"RFC822\.SIZE (?P<size>\d+)"
)


def content(marker: str) -> bytes:
    """The message with this marker: from 100 bytes to 60 KB, with CRLF."""
    seed = hashlib.sha256(marker.encode()).digest()
    lines = 1 + int.from_bytes(seed[:2], "big") % (1000 if seed[2] < 32 else 40)
    head = f"From: eve@example.net\r\nSubject: {marker}\r\nX-Marker: {marker}\r\n\r\n"
    return head.encode() + b"".join(
        b"%s %d\r\n" % (seed[:6].hex().encode() * 4, n) for n in range(lines)
    )


@dataclass(frozen=True)
class Message:
    """What a client sees of a message."""

    marker: str
    date: str
    flags: frozenset[str] = frozenset()


# By folder and UID.
Mailbox: TypeAlias = dict[tuple[str, int], Message]


def mailbox(client: Imap) -> Mailbox:
    """Everything in all folders; each message is whole and has its own size."""
    found: Mailbox = {}
    for folder in FOLDERS:
        client.select(folder)
        kind, data = client.fetch("1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])")
        assert kind == "OK", data
        for part in data:
            if isinstance(part, tuple):
                uid, message = _parsed(part[0], part[1])
                assert (folder, uid) not in found
                found[folder, uid] = message
    return found


def _parsed(said: bytes, body: bytes) -> tuple[int, Message]:
    match = ATTRIBUTES.search(said)
    assert match, said
    marker = re.search(rb"X-Marker: (\S+)", body)
    assert marker, body[:200]
    assert body == content(marker[1].decode())
    assert int(match["size"]) == len(body)
    flags = frozenset(match["flags"].decode().split()) - {r"\Recent"}
    return int(match["uid"]), Message(marker[1].decode(), match["date"].decode(), flags)


def validities(client: Imap) -> dict[str, bytes]:
    """UIDVALIDITY of each folder."""
    return {folder: client.status(folder, "(UIDVALIDITY)")[1][0] for folder in FOLDERS}


@dataclass(eq=False)
class MailProgram:
    """One session that reads, flags, moves, copies, expunges and appends its own messages."""

    dovecot: Dovecot
    name: str
    password: str
    own: Mailbox
    seed: int
    counts: dict[str, int] = field(default_factory=dict)
    _selected: str = ""

    def __call__(self, stop: threading.Event) -> None:
        """Work until told to stop."""
        self._random = random.Random(self.seed)
        with self.dovecot.login(self.name, self.password) as self._client:
            self._selected = "INBOX"
            while not stop.wait(PAUSE):
                act = self._random.choice(self._acts())
                act()
                self.counts[act.__name__] = self.counts.get(act.__name__, 0) + 1

    def _acts(self) -> list[Callable[[], None]]:
        if len(self.own) < 20:
            return [self._append]
        flag, rest = self._flag, (self._move, self._copy, self._expunge, self._append)
        return [self._read, flag, flag, *rest]

    def _pick(self) -> tuple[str, int]:
        """One of its messages, most of the time in the folder that is open."""
        here = [place for place in self.own if place[0] == self._selected]
        some = here if here and self._random.random() < 0.8 else list(self.own)
        place = self._random.choice(some)
        if place[0] != self._selected:
            assert self._client.select(place[0])[0] == "OK"
            self._selected = place[0]
        return place

    def _uid(self, command: str, uid: int, *args: str) -> list[Any]:
        kind, data = self._client.uid(command, str(uid), *args)
        assert kind == "OK", data
        return data

    def _read(self) -> None:
        place = self._pick()
        what = "(FLAGS INTERNALDATE RFC822.SIZE BODY.PEEK[])"
        (part,) = (p for p in self._uid("FETCH", place[1], what) if isinstance(p, tuple))
        assert _parsed(part[0], part[1]) == (place[1], self.own[place])

    def _flag(self) -> None:
        place, flag = self._pick(), self._random.choice(FLAGS)
        message = self.own[place]
        sign = "-" if flag in message.flags else "+"
        self._uid("STORE", place[1], f"{sign}FLAGS.SILENT", f"({flag})")
        self.own[place] = replace(message, flags=message.flags ^ {flag})

    def _move(self) -> None:
        place, to = self._pick(), self._random.choice(FOLDERS)
        if to != place[0]:
            self._uid("MOVE", place[1], to)
            self.own[to, self._new_uid("COPYUID")] = self.own.pop(place)

    def _copy(self) -> None:
        place, to = self._pick(), self._random.choice(FOLDERS)
        self._uid("COPY", place[1], to)
        self.own[to, self._new_uid("COPYUID")] = self.own[place]

    def _expunge(self) -> None:
        place = self._pick()
        self._uid("STORE", place[1], "+FLAGS.SILENT", r"(\Deleted)")
        self._uid("EXPUNGE", place[1])
        del self.own[place]

    def _append(self) -> None:
        folder, flags = self._random.choice(FOLDERS), self._random.sample(FLAGS, 2)
        marker = f"{self.seed}-{self.counts.get('_append', 0)}"
        day = time.strftime("%d-%b-%Y", time.gmtime(10**9 + len(self.own) * 86400))
        date = f"{day} 01:02:03 +0000"
        kind, data = self._client.append(folder, " ".join(flags), f'"{date}"', content(marker))
        assert kind == "OK", data
        place = folder, self._new_uid("APPENDUID")
        self.own[place] = Message(marker, date, frozenset(flags))

    def _new_uid(self, code: str) -> int:
        answer = self._client.response(code)[1]
        assert answer and answer[-1], code
        return int(answer[-1].split()[-1])


@contextlib.contextmanager
def at_work(programs: Sequence[MailProgram]) -> Any:
    """Programs work in the meantime; what they find wrong is raised at the end."""
    stop, wrong = threading.Event(), []

    def run(program: MailProgram) -> None:
        try:
            program(stop)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(program,)) for program in programs]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if wrong:
        raise wrong[0]
