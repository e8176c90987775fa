"""Debian's Postfix with its stock configuration and its chroot, on a free port, in a `Host`."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.peers.root import Host, attempts, free_ports, lines, wait_for_port

# No DNS, no TLS, short waits. Its own mail, as bounces, goes nowhere but the queue.
SETTINGS = {
    "maillog_file_prefixes": "{tmp}",
    "maillog_file": "{tmp}/postfix.log",
    "myhostname": "mx.example.org",
    "mydestination": "",
    "mynetworks": "127.0.0.0/8",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "smtpd_tls_security_level": "none",
    "smtp_tls_security_level": "none",
    "disable_dns_lookups": "yes",
    "alias_maps": "",
    "alias_database": "",
    "smtpd_peername_lookup": "no",
    "queue_run_delay": "5s",
    "minimal_backoff_time": "1s",
    "maximal_backoff_time": "5s",
}


class Postfix:
    """One Postfix; `main` adds to or replaces main.cf, `snippet` is appended to it as it stands.

    Its services stay in Debian's chroot.
    """

    def __init__(self, host: Host, tmp: Path, main: Mapping[str, str], snippet: str = "") -> None:
        self.host, self.tmp, self.main, self.snippet = host, tmp, dict(main), snippet
        self.log_path = tmp / "postfix.log"
        (self.port,) = free_ports(1)

    def __enter__(self) -> Self:
        listen = f"127.0.0.1:{self.port}"
        # the line of Debian's master.cf, other port
        self.host.run("postconf", "-MX", "smtp/inet")
        self.host.run("postconf", "-M", f"{listen}/inet={listen} inet n - y - - smtpd")
        # logging without a syslog daemon
        self.host.run("postconf", "-M", "postlog/unix-dgram=postlog unix-dgram n - n - 1 postlogd")
        own = {name: value.format(tmp=self.tmp) for name, value in SETTINGS.items()}
        self.configure(**(own | self.main))
        self.append(self.snippet)
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """It ends with the host's namespace; `postfix stop` would wait a second."""

    def configure(self, **settings: str) -> None:
        """Set main.cf settings; a running Postfix needs `restart`."""
        self.host.run("postconf", "-e", *(f"{name}={value}" for name, value in settings.items()))

    def append(self, snippet: str) -> None:
        """Add a piece of main.cf as an administrator would, at its end."""
        path = self.host.path("/etc/postfix/main.cf")
        path.write_text(path.read_text() + snippet)

    def table(self, path: str, text: str) -> None:
        """Write a lookup table and compile it."""
        self.host.write(path, text)
        self.host.run("postmap", f"hash:{path}")

    def start(self) -> None:
        """Start and wait until SMTP is answered."""
        # Each program of Postfix waits until main.cf has not been changed for a second.
        for name in ("main.cf", "master.cf"):
            path = self.host.path(f"/etc/postfix/{name}")
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
        self.host.run("postfix", "start")
        wait_for_port(self.port, self.log_path)

    def stop(self) -> None:
        """Stop; returns when the master is gone."""
        self.host.run("postfix", "stop")

    def restart(self) -> None:
        """Make it read its configuration again.

        Not `reload`: mail handed to sendmail(1) right after one may wait a minute for pickup(8).
        """
        self.stop()
        self.start()

    def flush(self) -> None:
        """Try to deliver the whole queue now."""
        self.host.run("postqueue", "-f")

    def log(self) -> str:
        """Return the log so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def queue(self) -> list[dict[str, Any]]:
        """List the queue: `queue_name`, `recipients` with `address` and `delay_reason`."""
        return [json.loads(line) for line in lines(self.host.run("postqueue", "-j").stdout)]

    def sendmail(self, message: bytes, *recipients: str, sender: str = "s@example.net") -> None:
        """Hand a message over as a local program does."""
        self.host.run("sendmail", "-i", "-f", sender, *recipients, stdin=message)

    def wait_for(self, pattern: str, seconds: float = 20, count: int = 1) -> list[re.Match[str]]:
        """Wait until the log matches so often; return the matches."""
        for _ in attempts(pattern, seconds, self.log_path):
            if len(found := list(re.finditer(pattern, self.log()))) >= count:
                return found
        raise AssertionError(pattern)

    def wait_until_empty(self, seconds: float = 20) -> None:
        """Wait until nothing is queued, asking for a delivery now and then."""
        for turn, _ in enumerate(attempts("the queue gets empty", seconds, self.log_path)):
            if not self.queue():
                return
            if turn % 20 == 19:
                self.flush()
