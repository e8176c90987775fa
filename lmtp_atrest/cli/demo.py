"""The demo: a site in a directory, two accounts, real messages, and what each can see.

It starts the same services that an operator starts, as the user who runs it, on loopback and on
sockets below its own directory, and tells what it sees, not what should be seen: every line of the
story is a check, and the exit code is their sum.
"""

import contextlib
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from lmtp_atrest import site
from lmtp_atrest.cli.demoimap import DemoImap
from lmtp_atrest.cli.mail import open_mailbox, read_mailbox
from lmtp_atrest.cli.terminal import note
from lmtp_atrest.config import Config, Listener
from lmtp_atrest.config import load as load_config
from lmtp_atrest.crypto.dcrypt_header import is_sealed
from lmtp_atrest.errors import AtRestError, TemporaryFailure, UsageError
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.requests import AccountAdd, AccountEnable, Keys, Role, SessionLock

ALICE, BOB = "alice@example.org", "bob@example.org"
SENDER = "carol@example.net"
START_SECONDS = 20.0
SHOWN_BYTES = 48
# The path of a unix socket has room for 107 bytes; ours are `run/unlock/dovecot.sock` below this.
LONGEST_ROOT = 107 - len("/run/unlock/dovecot.sock")


@dataclass(slots=True)
class Report:
    """What was counted; `faults` says in words what was not as it should be."""

    delivered: int = 0
    ciphertext_files: int = 0
    plain_files: int = 0
    refused_reads: int = 0
    equal_reads: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """As JSON, for scripts."""
        values = {name: getattr(self, name) for name in self.__slots__}
        path.write_text(json.dumps(values, indent=2) + "\n")


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("var/demo"),
    show_default=True,
    help="Where everything is made; what an earlier demo left there is removed.",
)
@click.option(
    "--messages",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="A directory of .eml files to deliver.",
)
@click.option(
    "--stay/--no-stay", default=None, help="Stay up afterwards (default: on a terminal)."
)
def demo(directory: Path, messages: Path, stay: bool | None) -> None:
    """Show it all in a directory of its own, without root and without another server."""
    mail = {path.stem: path.read_bytes() for path in sorted(messages.glob("*.eml"))}
    if not mail:
        text = f"{messages} holds no .eml files"
        raise UsageError(text)
    story = Story(directory.absolute(), mail)
    stay_up = sys.stdout.isatty() if stay is None else stay
    with story.services():
        story.tell()
        story.report.write(directory / "report.json")
        if stay_up and not story.report.faults:
            story.stay()
    for fault in story.report.faults:
        click.secho(f"NOT AS IT SHOULD BE: {fault}", fg="red")
    sys.exit(1 if story.report.faults else 0)


class Story:
    """The demo from beginning to end; each part prints what it saw and counts it."""

    def __init__(self, root: Path, mail: dict[str, bytes]) -> None:
        self.root = root
        self.mail = mail
        self.report = Report()
        self.password = Secret(secrets.token_urlsafe(9).encode())
        self.bobs_password = Secret(secrets.token_urlsafe(9).encode())
        self.imap = DemoImap({BOB: self.bobs_password})
        self.config = self._make_site()
        self.canary = secrets.token_hex(16).encode()

    def tell(self) -> None:
        """All parts in order."""
        began = time.monotonic()
        self._accounts()
        self._deliver()
        self._on_disk()
        self._locked()
        token = self._read()
        self._end(token)
        self.report.seconds = round(time.monotonic() - began, 1)
        self._sum_up()

    # ---- a site of its own

    def _make_site(self) -> Config:
        if len(str(self.root)) > LONGEST_ROOT:
            text = f"{self.root} is too long a path for unix sockets below it: give --directory"
            raise UsageError(text)
        _remove_old(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        with (
            socket.create_server(("127.0.0.1", 0)) as lmtp,
            socket.create_server(("127.0.0.1", 0)) as pages,
        ):
            ports = {"port": lmtp.getsockname()[1], "portal": pages.getsockname()[1]}
        user = pwd.getpwuid(os.geteuid()).pw_name
        path = self.root / "lmtp-atrest.yaml"
        values = {"root": self.root, "user": user, "imap": self.imap.address, **ports}
        path.write_text((CONFIG + WITH_PORTAL).format_map(values))
        path.chmod(0o644)
        config = load_config(path)
        site.initialise(config)
        return config

    @contextlib.contextmanager
    def services(self) -> Iterator[None]:
        """`serve` while the story lasts."""
        log = self.root / "serve.log"
        command = [
            sys.executable,
            "-m",
            "lmtp_atrest",
            "serve",
            "-c",
            str(self.root / "lmtp-atrest.yaml"),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603
        try:
            self._wait_for(process, log)
            yield
        finally:
            process.terminate()
            process.wait()
            self.imap.close()

    def _wait_for(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError, AtRestError):
                Lmtp(self._port).quit()
                self._admin().close()
                socket.create_connection(self._portal).close()
                return
            time.sleep(0.05)
        text = f"the services did not start; see {log}"
        raise TemporaryFailure(text)

    @property
    def _port(self) -> int:
        return int(self.config.lmtp.listen[0].rpartition(":")[2])

    @property
    def _portal(self) -> tuple[str, int]:
        listener = Listener.parse(str(self.config.portal.listen))
        return listener.host, listener.port

    def _admin(self) -> SyncClient:
        return SyncClient(self.config.unlock.sockets / "admin.sock", Role.ADMIN)

    # ---- the parts

    def _accounts(self) -> None:
        chapter("Two accounts, one encrypted")
        with self._admin() as client:
            client.ask(AccountAdd(BOB))
            client.ask(AccountAdd(ALICE))
            click.echo(f"  {BOB:<20} plain")
            began = time.monotonic()
            client.ask(AccountEnable(ALICE, self.password))
        click.echo(f"  {ALICE:<20} encrypted; her password is {self.password.reveal().decode()}")
        click.echo(
            f"  (enable took {time.monotonic() - began:.1f} s: it returns when no delivery "
            "can still believe the account to be plain)"
        )

    def _deliver(self) -> None:
        chapter("Mail by LMTP, each message to both")
        # A mark of this run in each message, to search the disk for afterwards.
        self.mail = {
            name: b"X-Canary: " + self.canary + b"\r\n" + content
            for name, content in self.mail.items()
        }
        lmtp = Lmtp(self._port)
        for name, content in self.mail.items():
            began = time.monotonic()
            replies = lmtp.deliver(SENDER, [ALICE, BOB], content)
            self.report.delivered += sum(reply.startswith("250 ") for reply in replies)
            seconds = time.monotonic() - began
            click.echo(f"  {name:<18} {len(content):>10,} bytes  {seconds:6.3f} s  {replies[0]}")
        lmtp.quit()
        self._expect(
            self.report.delivered == 2 * len(self.mail), "not every message was delivered"
        )

    def _on_disk(self) -> None:
        chapter("What lies on disk")
        for address in (BOB, ALICE):
            files = self._files(address)
            sealed = [path for path in files if is_sealed(path.read_bytes()[:16])]
            plain = [path for path in files if self.canary in path.read_bytes()]
            click.echo(f"  {address}: {len(files)} files, {len(sealed)} ciphertext")
            click.echo(f"    …/{'/'.join(files[0].parts[-2:])}")
            for line in _dump(files[0].read_bytes()[:SHOWN_BYTES]):
                click.echo(f"    {line}")
            if address == ALICE:
                self.report.ciphertext_files = len(sealed)
                self._expect(len(sealed) == len(self.mail), "a message of hers is not encrypted")
                self._expect(not plain, "a message of hers can be read on disk")
            else:
                self.report.plain_files = len(plain)
                self._expect(
                    len(plain) == len(self.mail), "the search for plaintext finds nothing"
                )

    def _locked(self) -> None:
        chapter("Nobody reads it without the password")
        refused: dict[str, Callable[[], None]] = {
            "a wrong password": lambda: self._open(Secret(b"a wrong password")),
            "no password": lambda: self._open(Secret(b"")),
            "root, without the password": lambda: self._ask_for_keys("a-token-made-up"),
        }
        for who, attempt in refused.items():
            try:
                attempt()
            except AtRestError as error:
                self.report.refused_reads += 1
                click.echo(f"  {who + ':':<28} refused ({error.public})")
            else:
                self._expect(False, f"{who} was let in")
        self._expect(not self._found_beside_bob(), "the mark stands where it should not")
        click.echo("  a search of all files for the mark in each message: in bob's mail only")

    def _read(self) -> str:
        chapter("Her password opens it")
        with self._admin() as client:
            mailbox = open_mailbox(self.config, client, ALICE, self.password)
            originals = {
                content.replace(b"\r\n", b"\n"): name for name, content in self.mail.items()
            }
            for message in read_mailbox(self.config, client, mailbox):
                name = originals.get(_without_trace(message.content), "")
                self._expect(bool(name), f"{message.name} is not what was sent")
                self.report.equal_reads += bool(name)
                click.echo(f"  {name:<18} {len(message.content):>10,} bytes, as sent")
        self._expect(self.report.equal_reads == len(self.mail), "not every message was read back")
        return mailbox.token

    def _end(self, token: str) -> None:
        chapter("The session ends")
        with self._admin() as client:
            closed = client.ask(SessionLock(ALICE))["vaults"]
        click.echo(f"  {closed} open vault closed")
        try:
            self._ask_for_keys(token)
        except AtRestError as error:
            self.report.refused_reads += 1
            click.echo(f"  the same session asks again: refused ({error.public})")
        else:
            self._expect(False, "an ended session still gets keys")

    def _sum_up(self) -> None:
        report = self.report
        click.echo()
        click.secho(
            f"{report.delivered} delivered, {report.ciphertext_files} ciphertext files, "
            f"{report.refused_reads} reads refused, {report.equal_reads} read back equal, "
            f"{report.seconds} s",
            bold=True,
        )
        click.echo(f"report: {self.root / 'report.json'}")

    def stay(self) -> None:
        """Wait for Ctrl-C, and say what can be tried meanwhile."""
        config = self.root / "lmtp-atrest.yaml"
        click.echo(f"""
The services stay up; Ctrl-C ends them. In another terminal:

  send    swaks --protocol LMTP --server 127.0.0.1 --port {self._port} --to {ALICE}
  look    xxd {self._files(ALICE)[0].parent}/* | head
  read    lmtp-atrest mail list -c {config} {ALICE}
  lock    lmtp-atrest session lock -c {config} {ALICE}

Her password is {self.password.reveal().decode()}

  portal  {self.config.portal.url} in a browser, where users look after their own keys.
          {ALICE} is encrypted, with the password above.
          {BOB} is not yet, and switches it on; his password is
          {self.bobs_password.reveal().decode()}""")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        note("stopped")

    # ---- means

    def _expect(self, condition: bool, otherwise: str) -> None:
        if not condition:
            self.report.faults.append(otherwise)

    def _files(self, address: str) -> list[Path]:
        return sorted((self.root / "mail" / address / "Maildir" / "new").iterdir())

    def _open(self, secret: Secret) -> None:
        with self._admin() as client:
            open_mailbox(self.config, client, ALICE, secret)

    def _ask_for_keys(self, token: str) -> None:
        with self._admin() as client:
            client.ask(Keys(token))

    def _found_beside_bob(self) -> list[Path]:
        ours = [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]
        bobs = self.root / "mail" / BOB
        return [p for p in ours if not p.is_relative_to(bobs) and self.canary in p.read_bytes()]


class Lmtp:
    """Just enough of an LMTP client: one reply for each recipient, which smtplib cannot read."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._replies = self._socket.makefile("rb")
        self._reply()
        self._command("LHLO demo.example.net")

    def deliver(self, sender: str, recipients: list[str], content: bytes) -> list[str]:
        """One message; the replies after the final dot, in the order of the recipients."""
        self._command(f"MAIL FROM:<{sender}> BODY=8BITMIME")
        for recipient in recipients:
            self._command(f"RCPT TO:<{recipient}>")
        self._command("DATA")
        stuffed = b"".join(
            b"." + line if line.startswith(b".") else line
            for line in content.splitlines(keepends=True)
        )
        end = b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n"
        self._socket.sendall(stuffed + end)
        return [self._reply() for _ in recipients]

    def quit(self) -> None:
        """Take leave in order."""
        self._command("QUIT")
        self._socket.close()

    def _command(self, line: str) -> None:
        self._socket.sendall(f"{line}\r\n".encode())
        reply = self._reply()
        if not reply.startswith(("2", "3")):
            text = f"{line}: {reply}"
            raise TemporaryFailure(text)

    def _reply(self) -> str:
        while True:
            line = self._replies.readline().decode()
            if not line:
                text = "the LMTP server closed the connection"
                raise TemporaryFailure(text)
            if line[3:4] != "-":
                return line.rstrip()


def chapter(title: str) -> None:
    """A heading."""
    click.echo()
    click.secho(title, bold=True)


def _dump(content: bytes) -> Iterator[str]:
    for start in range(0, len(content), 16):
        row = content[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{row.hex(' '):<47}  {text}"


def _without_trace(content: bytes) -> bytes:
    """A stored message without the three lines that delivery puts before it."""
    return content[content.index(b"X-Canary: ") :]


def _remove_old(root: Path) -> None:
    """Only what a demo made: its own report or configuration must be there."""
    if root.exists() and any(root.iterdir()):
        known = {"messages", "lmtp-atrest.yaml", "mail", "run", "store", "site", "serve.log"}
        strange = {path.name for path in root.iterdir()} - known - {"report.json"}
        if strange:
            text = f"{root} holds {min(strange)}, which no demo made: give another --directory"
            raise UsageError(text)
        for path in root.iterdir():
            if path.is_dir() and path.name != "messages":
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()


CONFIG = """\
# Made by `lmtp-atrest demo`: a site in one directory, for one user, without Dovecot.
lmtp:
  listen: ["127.0.0.1:{port}"]
  unclear_ends: {root}/run/lmtp
directory: {{source: keystore}}
mail: {{root: {root}/mail}}
keystore:
  records: sqlite:///{root}/store/records.db
  vaults: sqlite:///{root}/store/vaults.db
  pins: sqlite:///{root}/store/pins.db
site: {{key: {root}/site/site.key, public: {root}/site/site.pub}}
unlock:
  sockets: {root}/run/unlock
  peers:
    {{dovecot: [{user}], reader: [{user}], convert: [{user}], portal: [{user}], admin: [{user}]}}
  cache: none
  evict: {{socket: null}}
notices: {{smtp: null}}
"""
WITH_PORTAL = """\
conversion: {{state: "sqlite:///{root}/store/conversion.db"}}
portal:
  listen: "127.0.0.1:{portal}"
  url: http://127.0.0.1:{portal}/
  authenticate: {imap}
  name: Example Mail
"""
