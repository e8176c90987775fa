"""Debian's Dovecot, 2.3 or 2.4, with its stock configuration, on free ports, in a `Host`."""

import imaplib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.peers.dovecot_settings import SETTINGS
from tests.peers.root import Host, attempts, free_ports, wait_for_port


@dataclass(frozen=True, slots=True)
class Ports:
    """The loopback ports of one Dovecot; `auth` speaks Dovecot's SASL protocol."""

    imap: int
    pop3: int
    lmtp: int
    auth: int


class Dovecot:
    """The host's Dovecot; mail under `<tmp>/mail/<user>/Maildir`, owned by the user mail.

    `users` are the site's accounts with their passwords. `conf` replaces the site's passdb and
    userdb; its `/etc/dovecot/users` are the same accounts.
    """

    def __init__(
        self, host: Host, tmp: Path, users: dict[str, str], conf: str | None = None
    ) -> None:
        self.host, self.users = host, dict(users)
        self.version = "2.3" if host.suite == "bookworm" else "2.4"
        self.settings = SETTINGS[self.version]
        self.conf = self.settings.site_users if conf is None else conf
        self.mail, self.log_path, self.sockets = tmp / "mail", tmp / "dovecot.log", tmp / "sockets"
        self.ports = Ports(*free_ports(4))

    def __enter__(self) -> Self:
        for directory in (self.mail, self.sockets):
            directory.mkdir(exist_ok=True)
            self.host.run("chown", "mail:mail", str(directory))
        self.write_users()
        self._no_system_passwords()
        self.host.write("/etc/dovecot/local.conf", self.local() + self.conf)
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """It ends with the host's namespace; `doveadm stop` would wait a second."""

    def _no_system_passwords(self) -> None:
        """What an administrator does first: PAM out, for the site has users of its own."""
        auth = self.host.path("/etc/dovecot/conf.d/10-auth.conf")
        auth.write_text(auth.read_text().replace("!include auth-system", "#!include auth-system"))

    def local(self) -> str:
        """Return the settings that only a test needs."""
        return self.settings.local.format(
            log=self.log_path,
            mail=self.mail,
            sockets=self.sockets,
            imap=self.ports.imap,
            pop3=self.ports.pop3,
            lmtp=self.ports.lmtp,
            auth=self.ports.auth,
        )

    def write_users(self) -> None:
        """Write the site's passwd-file; Dovecot reads it again by itself."""
        rows = [f"{name}:{{PLAIN}}{secret}::::::\n" for name, secret in self.users.items()]
        self.host.write("/etc/dovecot/users", "".join(rows))

    def start(self) -> None:
        """Start and wait until IMAP is answered."""
        self.host.run("dovecot")
        wait_for_port(self.ports.imap, self.log_path)

    def stop(self) -> None:
        """Stop and wait until all its processes are gone."""
        self.host.run("doveadm", "stop")
        for _ in attempts("dovecot stops"):
            if not self.host.run("pidof", "dovecot", check=False).stdout:
                return

    def reload(self) -> None:
        """Make it read its configuration again."""
        self.host.run("doveadm", "reload")

    def log(self) -> str:
        """Return the log so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def doveadm(self, *args: str, check: bool = True) -> str:
        """Run doveadm as root and return what it printed on both channels."""
        done = self.host.run("doveadm", *args, check=check)
        return (done.stdout + done.stderr).decode(errors="replace")

    def doveconf(self, *args: str) -> str:
        """Return the effective settings."""
        return self.host.run("doveconf", *args).stdout.decode()

    def imap(self) -> "Imap":
        """Connect; the caller logs in and closes."""
        return Imap(self.ports.imap)

    def login(self, name: str, secret: str) -> "Imap":
        """Connect, log in and select INBOX; a refused login raises `Imap.error`."""
        client = self.imap()
        try:
            client.login(name, secret)
            client.select()
        except Imap.error:
            client.shutdown()
            raise
        return client

    def files(self, user: str) -> list[Path]:
        """List the message files of a user in all folders, oldest name first."""
        maildir = self.mail / user / "Maildir"
        found = [path for sub in ("cur", "new") for path in maildir.rglob(f"{sub}/*")]
        return sorted(found, key=lambda path: path.name)


class Imap(imaplib.IMAP4):
    """imaplib with the few commands that tests use, failing loudly."""

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port, timeout=30)
        self._encoding = "utf-8"  # imaplib would refuse passwords beyond ASCII

    def bodies(self, messages: str = "1:*") -> list[bytes]:
        """Fetch whole messages without marking them as seen."""
        kind, data = self.fetch(messages, "(BODY.PEEK[])")
        assert kind == "OK", data
        return [part[1] for part in data if isinstance(part, tuple)]

    def numbers(self, command: str, *args: str) -> Sequence[int]:
        """Run SEARCH (or SORT, THREAD by their names) and return the numbers in its answer."""
        kind, data = self.uid(command, *args)
        assert kind == "OK", data
        return [int(number) for number in re.findall(rb"\d+", data[0] or b"")]
