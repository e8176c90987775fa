"""Exim, unpacked beside Postfix, with the shipped router, transport and retry rule.

Debian's own configuration is a package that cannot be installed beside Postfix either, so the main
section, the check of recipients and the way mail went before are the test's; the names and places
are Debian's.
"""

from pathlib import Path
from typing import Self

from tests.peers.root import Host, attempts, free_ports, lines, wait_for_port

BINARY = "/opt/exim/usr/sbin/exim4"
DEPLOY = Path(__file__).parents[2] / "deploy/exim"
LIST = "/etc/exim4/lmtp-atrest"

CONFIGURATION = """
CONFDIR = /etc/exim4
primary_hostname = mx.example.org
domainlist local_domains = example.org : example.com
spool_directory = /var/spool/exim
log_file_path = {tmp}/exim-%slog
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
acl_smtp_rcpt = acl_check_rcpt
exim_path = /opt/exim/usr/sbin/exim4
keep_environment =
exim_user = Debian-exim
exim_group = Debian-exim
host_lookup =
tls_advertise_hosts =
queue_run_in_order = true
begin acl
acl_check_rcpt:
  require verify = recipient
  deny recipients = ${{if exists{{CONFDIR/local_rcpt_callout}}{{CONFDIR/local_rcpt_callout}}}}
    !verify = recipient/callout
  accept
begin routers
.include CONFDIR/conf.d/router/650_lmtp-atrest
before:
  driver = accept
  domains = +local_domains
  transport = before
elsewhere:
  driver = accept
  transport = before
begin transports
.include CONFDIR/conf.d/transport/{transport}
before:
  driver = smtp
  protocol = lmtp
  hosts = 127.0.0.1
  port = {before}
  allow_localhost
begin retry
.include_if_exists CONFDIR/conf.d/retry/20_lmtp-atrest
* * F,2h,15m; G,16h,1h,1.5; F,4d,6h
"""


class Exim:
    """One Exim; what the shipped router does not take goes to the LMTP port `before`.

    `addresses` are the lines of the router's file; by default all of example.org.
    """

    def __init__(
        self,
        host: Host,
        tmp: Path,
        lmtp: int,
        *,
        before: int = 9,
        addresses: str = "*@example.org",
        transport: str = "30_lmtp-atrest",
    ) -> None:
        self.host, self.tmp, self.lmtp = host, tmp, lmtp
        self.before, self.addresses, self.transport = before, addresses, transport
        self.log_path = tmp / "exim" / "exim-mainlog"
        (self.port,) = free_ports(1)

    def __enter__(self) -> Self:
        logs = self.tmp / "exim"
        logs.mkdir()
        self.host.run("install", "-d", "-o", "Debian-exim", "/var/spool/exim")
        self.host.run("chown", "Debian-exim", str(logs))
        self.install()
        self.take(self.addresses)
        text = CONFIGURATION.format(
            tmp=logs, port=self.port, before=self.before, transport=self.transport
        )
        self.host.write("/etc/exim4/exim4.conf", text)
        self.run("-bd")
        wait_for_port(self.port, self.log_path)
        return self

    def __exit__(self, *exception: object) -> None:
        """Its daemon ends with the host's namespace."""

    def install(self) -> None:
        """Copy what is shipped to where its comments say; only the port is another."""
        for path in sorted(DEPLOY.glob("*/*")):
            text = path.read_text().replace("port = 8024", f"port = {self.lmtp}")
            self.host.write(f"/etc/exim4/conf.d/{path.relative_to(DEPLOY)}", text)

    def take(self, addresses: str) -> None:
        """Write the router's file, one address a line; Exim reads it for each delivery."""
        self.host.write(LIST, f"{addresses}\n")

    def run(self, *args: str, stdin: bytes = b"") -> str:
        """Run the binary with any of its options and return what it printed."""
        done = self.host.run(BINARY, *args, stdin=stdin)
        return (done.stdout + done.stderr).decode(errors="replace")

    def send(self, message: bytes, *recipients: str, sender: str = "s@example.net") -> None:
        """Hand a message over as a local program does; returns after the first try to deliver."""
        self.run("-odf", "-oi", "-f", sender, *recipients, stdin=message)

    def retry(self) -> None:
        """Try the whole queue now, whatever the retry times say; returns when all were tried."""
        self.run("-qff")

    def queue(self) -> list[str]:
        """List the recipients that still wait, one for each message and recipient."""
        rows = lines(self.host.run(BINARY, "-bp").stdout)
        return [row.strip() for row in rows if row.startswith("          ") and row.strip()]

    def log(self) -> str:
        """Return the main log so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait_until_empty(self) -> None:
        """Wait until nothing is queued."""
        for _ in attempts("the queue gets empty", log=self.log_path):
            if not self.queue():
                return
