"""Exim, unpacked beside Postfix, with a configuration that hands mail to an LMTP server."""

from pathlib import Path
from typing import Self

from tests.peers.root import Host, free_ports, wait_for_port

BINARY = "/opt/exim/usr/sbin/exim4"

CONFIGURATION = """
primary_hostname = mx.example.org
domainlist local = example.org
spool_directory = /var/spool/exim
log_file_path = {tmp}/exim-%slog
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
acl_smtp_rcpt = accept
exim_path = /opt/exim/usr/sbin/exim4
keep_environment =
exim_user = Debian-exim
exim_group = Debian-exim
host_lookup =
tls_advertise_hosts =
queue_run_in_order = true
begin routers
atrest:
  driver = manualroute
  domains = +local
  route_list = * 127.0.0.1
  self = send
  transport = atrest
begin transports
atrest:
  driver = smtp
  protocol = lmtp
  port = {lmtp}
  hosts_try_auth =
  hosts_avoid_tls = *
  allow_localhost
begin retry
* * F,1m,1s
"""


class Exim:
    """One Exim that delivers all of example.org to the LMTP port given."""

    def __init__(self, host: Host, tmp: Path, lmtp: int) -> None:
        self.host, self.tmp, self.lmtp = host, tmp, lmtp
        self.log_path = tmp / "exim" / "exim-mainlog"
        (self.port,) = free_ports(1)

    def __enter__(self) -> Self:
        logs = self.tmp / "exim"
        logs.mkdir()
        self.host.run("install", "-d", "-o", "Debian-exim", "/var/spool/exim")
        self.host.run("chown", "Debian-exim", str(logs))
        text = CONFIGURATION.format(tmp=logs, port=self.port, lmtp=self.lmtp)
        self.host.write("/etc/exim4/exim4.conf", text)
        self.run("-bd", "-q2s")
        wait_for_port(self.port, self.log_path)
        return self

    def __exit__(self, *exception: object) -> None:
        """Its daemon ends with the host's namespace."""

    def run(self, *args: str, stdin: bytes = b"") -> str:
        """Run the binary with any of its options and return what it printed."""
        return self.host.run(BINARY, *args, stdin=stdin).stdout.decode()

    def log(self) -> str:
        """Return the main log so far."""
        return self.log_path.read_text() if self.log_path.exists() else ""
