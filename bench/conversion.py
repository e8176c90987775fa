"""Mail that is already there: our conversion, and Dovecot's import of the same mail.

Each run works on files of its own that nobody looked at before; both sync every message. Ours gets
message keys over the socket of the unlock service, as a real run does.
"""

import base64
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.servers import CRYPT, DOMAIN, OURS, SUITE, BenchedAtRest
from lmtp_atrest.conversion import Direction, Job, Run
from lmtp_atrest.crypto.publickey import PublicKey
from lmtp_atrest.maildir import Maildir
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.client import GrantUnwrap
from lmtp_atrest.unlock.requests import ConvertGrant, Lookup, Role
from tests.peers.dovecot import Dovecot
from tests.peers.root import Host

NAME = f"user@{DOMAIN}"
PASSWORD = "a password"  # noqa: S105 - of an account that the bench makes
SIZE = 10_000
LARGE = 2 << 30
DOVECOT_ROUNDS = 2048
MAIL_CRYPT = """
mail_plugins = $mail_plugins mail_crypt
plugin {
  mail_crypt_global_public_key = </etc/dovecot/bench.pem
  mail_crypt_save_version = 2
}
"""


@dataclass(frozen=True, slots=True)
class Converted:
    """One run over a mailbox; CPU is of the process that converts (and of doveadm)."""

    what: str
    by: str
    messages: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds


def measure(directory: Path, *, quick: bool) -> list[Converted]:
    """There and back by us, the way there by Dovecot; and small mail in folders of two sizes."""
    messages, folders = (2_000, (1_000, 10_000)) if quick else (10_000, (1_000, 200_000))
    directory.mkdir()
    with Host(SUITE, directory) as host:
        dovecot = Dovecot(host, directory, {NAME: PASSWORD})
        dovecot.conf += MAIL_CRYPT
        service = BenchedAtRest(directory, dovecot)
        service.add(NAME, PASSWORD)
        host.write("/etc/dovecot/bench.pem", "")
        with service:
            key = PublicKey.from_pem(base64.b64decode(_ask(service, Lookup(NAME))["public_key"]))
            host.write("/etc/dovecot/bench.pem", key.pem().decode())
            with dovecot:
                return [
                    *_there_and_back(directory, service, key, messages),
                    _imported(directory, dovecot, messages),
                    *(_small(directory, key, count) for count in folders),
                ]


def _there_and_back(
    directory: Path, service: BenchedAtRest, key: PublicKey, messages: int
) -> list[Converted]:
    granted = _ask(service, ConvertGrant(NAME, Secret(PASSWORD.encode()), "reseal", "10000000"))
    path = service.run / "unlock/admin.sock"
    maildir = fill(directory / "mail/ours", messages, SIZE)
    found = []
    unwrap = GrantUnwrap(path, Role.ADMIN, str(granted["grant"]))
    for what, direction, rounds in (
        ("encrypt", Direction.ENCRYPT, 1),
        ("decrypt", Direction.DECRYPT, 1),
        ("encrypt, 2048 rounds", Direction.ENCRYPT, DOVECOT_ROUNDS),
        ("decrypt, 2048 rounds", Direction.DECRYPT, 1),
    ):
        found.append(_converted(what, maildir, Job(direction, key, unwrap, rounds)))
    unwrap.close()
    return found


def _converted(what: str, maildir: Path, job: Job) -> Converted:
    os.sync()
    started, cpu = time.monotonic(), time.process_time()
    with Maildir.open(maildir.parent, maildir, create=False) as box:
        counts = Run(box, job)()
    seconds, used = time.monotonic() - started, time.process_time() - cpu
    if counts.failed or not counts.done:
        message = f"{what}: {counts}"
        raise RuntimeError(message)
    return Converted(what, OURS, counts.done, seconds, used)


def _imported(directory: Path, dovecot: Dovecot, messages: int) -> Converted:
    """`doveadm import` from a plain Maildir into the encrypted mailbox."""
    source = fill(directory / "mail/source", messages, SIZE)
    subprocess.run(["chown", "-R", "mail:mail", str(source)], check=True)  # noqa: S603, S607
    os.sync()
    started, cpu = time.monotonic(), os.times().children_user + os.times().children_system
    dovecot.doveadm("import", "-u", NAME, f"maildir:{source}", "", "all")
    seconds = time.monotonic() - started
    stored = dovecot.files(NAME)
    if len(stored) != messages or not stored[0].read_bytes().startswith(b"CRYPTED"):
        message = f"doveadm import stored {len(stored)} messages"
        raise RuntimeError(message)
    used = os.times().children_user + os.times().children_system - cpu
    return Converted("encrypt", CRYPT, messages, seconds, used)


def _small(directory: Path, key: PublicKey, count: int) -> Converted:
    maildir = fill(directory / f"mail/{count}", count, 1_000)
    return _converted(
        f"encrypt, {count} of 1 KB in one folder", maildir, Job(Direction.ENCRYPT, key)
    )


def fill(maildir: Path, messages: int, size: int) -> Path:
    """A folder of plain mail, seen by a client."""
    for name in ("tmp", "new", "cur"):
        (maildir / name).mkdir(parents=True)
    line = b"%s\r\n" % (b"x" * 74)
    for number in range(messages):
        head = b"Subject: message %d\r\nFrom: eve@example.net\r\n\r\n" % number
        content = (head + line * (size // len(line) + 1))[: size - 2] + b"\r\n"
        name = f"17{number:08}.M{number}P1.bench,S={size},W={size}:2,S"
        (maildir / "cur" / name).write_bytes(content)
    return maildir


def _ask(service: BenchedAtRest, request: Lookup | ConvertGrant) -> dict[str, str]:
    return dict(service.admin(request).fields)


# ---- memory, in a process that does nothing else


def memory(directory: Path, size: int = LARGE) -> dict[str, int]:
    """By how many bytes a process grows at its peak while it encrypts a message, and opens it."""
    command = [sys.executable, "-m", "bench.largemessage", str(directory), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    encrypted, decrypted = done.stdout.split()
    return {"encrypt": int(encrypted), "decrypt": int(decrypted)}


def rates(runs: Sequence[Converted], by: str) -> dict[str, float]:
    """Messages a second, by what was done."""
    return {run.what: run.rate for run in runs if run.by == by}


def table(runs: Sequence[Converted], grown: dict[str, int]) -> str:
    """One line a run, with what Dovecot needs for the same where that was measured."""
    theirs = rates(runs, CRYPT)
    lines = []
    for run in runs:
        ratio = f"{run.rate / theirs[run.what]:5.1f} times Dovecot" if run.what in theirs else ""
        who = "" if run.by == OURS else f" ({run.by})"
        lines.append(
            f"{run.what + who:45} {run.rate:7.0f}/s  CPU {1000 * run.cpu / run.messages:5.2f} ms"
            f"  {ratio if run.by == OURS else ''}"
        )
    lines += [
        f"one message of {LARGE >> 20} MiB, {what}: peak memory grew by {by / (1 << 20):.1f} MiB"
        for what, by in grown.items()
    ]
    return "\n".join(line.rstrip() for line in lines)
