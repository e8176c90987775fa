"""The three servers, beside each other on one disk, each with accounts of its own."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from bench import processes
from lmtp_atrest.crypto.keypair import PrivateKey
from lmtp_atrest.crypto.publickey import Curve
from tests.peers.atrest import AtRest
from tests.peers.dovecot import Dovecot
from tests.peers.root import Host

SUITE = "bookworm"
DOMAIN = "bench.example"
OURS, CRYPT, PLAIN = "lmtp-atrest", "Dovecot mail_crypt", "Dovecot plain"

# Rounds are left at Dovecot's default, which makes its messages no dearer to write.
MAIL_CRYPT = """
protocol lmtp {
  mail_plugins = $mail_plugins mail_crypt
}
plugin {
  mail_crypt_global_public_key = </etc/dovecot/bench.pem
  mail_crypt_save_version = 2
}
"""


class BenchedAtRest(AtRest):
    """lmtp-atrest as it is installed, with as many workers as it takes by default."""

    def workers(self, count: int | str) -> None:
        """Set the number of workers for the next start."""
        settings = yaml.safe_load(self.config_path.read_text())
        settings["lmtp"]["workers"] = count
        self.config_path.write_text(yaml.safe_dump(settings))

    @property
    def pid(self) -> int:
        """The process that watches the services."""
        return self._process.pid


@dataclass(frozen=True)
class Server:
    """Where messages go; `cpu` is the user and system time of its processes so far, in seconds."""

    name: str
    port: int
    mail: Path
    host: Host
    service: BenchedAtRest | None = field(default=None, repr=False)

    def cpu(self) -> float:
        """User and system time of its processes so far, in seconds."""
        if self.service is not None:
            return processes.cpu_seconds(processes.tree(self.service.pid))
        return processes.cpu_seconds(self.host.pids())

    def empty(self) -> None:
        """Put all mail aside, so that each run meets folders of the same size.

        Not removed: ext4 passes over lately removed inodes one by one, which took a quarter of a
        delivery's CPU time.
        """
        aside = self.mail / f"before-{time.monotonic_ns()}"
        aside.mkdir()
        for maildir in self.mail.glob(f"*@{DOMAIN}/Maildir"):
            maildir.rename(aside / maildir.parent.name)


def accounts(recipients: int) -> list[str]:
    """The addresses that `smtp-source -r` makes, and the one without -r."""
    return [f"user@{DOMAIN}", *(f"{number}user@{DOMAIN}" for number in range(1, recipients + 1))]


@contextmanager
def running(directory: Path, recipients: int) -> Iterator[Sequence[Server]]:
    """All three servers, started; everything they wrote is below `directory`."""
    names = accounts(recipients)
    with ExitStack() as stack:
        crypt = stack.enter_context(_dovecot(directory / "crypt", names, MAIL_CRYPT))
        plain = stack.enter_context(_dovecot(directory / "plain", names, ""))
        # A third mail directory: ours asks a Dovecot only about names that it does not know.
        beside = stack.enter_context(_dovecot(directory / "ours", [], ""))
        service = BenchedAtRest(directory / "ours", beside)
        for name in names:
            service.add(name, "a password")
        service.workers("auto")
        stack.enter_context(service)
        yield (
            Server(OURS, service.port, beside.mail, beside.host, service),
            Server(CRYPT, crypt.ports.lmtp, crypt.mail, crypt.host),
            Server(PLAIN, plain.ports.lmtp, plain.mail, plain.host),
        )


@contextmanager
def _dovecot(directory: Path, names: Sequence[str], conf: str) -> Iterator[Dovecot]:
    directory.mkdir()
    with Host(SUITE, directory) as host:
        host.write("/etc/dovecot/bench.pem", _public_key())
        dovecot = Dovecot(host, directory, dict.fromkeys(names, "a password"))
        dovecot.conf += conf
        with dovecot:
            yield dovecot


def _public_key() -> str:
    return PrivateKey.generate(Curve.PRIME256V1).public.pem().decode()


def spread(directory: Path) -> None:
    """Have ext4 put what is made in this directory far from other files, where it can.

    Else what others removed lately slows the making of files, for one server more than another.
    """
    subprocess.run(["chattr", "+T", str(directory)], capture_output=True, check=False)  # noqa: S603, S607


def versions(host: Host) -> dict[str, str]:
    """The programs of the root, as they name themselves."""
    dovecot = host.run("dovecot", "--version").stdout.decode().strip()
    postfix = host.run("postconf", "-h", "mail_version").stdout.decode().strip()
    return {"dovecot": dovecot, "postfix": postfix}


def kind_of_disk(directory: Path) -> str:
    """The type of the file system; a bench of syncs in RAM would mean nothing."""
    command = ["stat", "-f", "-c", "%T", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()
