"""A site whose users change, lose and get back what opens their mail; what each can then read."""

import base64
import contextlib
import poplib
import re
import smtplib
from email import message_from_bytes
from pathlib import Path
from typing import Any, Self

import pytest
from aiosmtpd.controller import Controller

from lmtp_atrest.crypto.dcrypt_header import parse_header
from lmtp_atrest.errors import WrongSecret
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import Open, Request
from tests.integration.site import ALICE, PASSWORD
from tests.peers.atrest import UNLOCK_USER, AtRest
from tests.peers.dovecot import Dovecot, Imap
from tests.peers.root import attempts, free_ports

MAGIC = b"CRYPTED\x03\x07"

# What Dovecot must never say, whatever it is given; closed mail is an ordinary error of its.
BROKEN = re.compile(r": (Panic|Fatal): |BUG: |Couldn't parse|killed with signal|Unknown setting")

# What a site's own program may do: two passwords come on its input, the name as an argument.
PASSWORD_COMMAND = """#!/bin/sh
set -e
IFS= read -r old; IFS= read -r new
case "$new" in *refused*) exit 1;; esac
grep -v "^$1:" {users} > {users}.new || true
printf '%s:{{PLAIN}}%s::::::\\n' "$1" "$new" >> {users}.new
mv {users}.new {users}
"""


def secret(text: str) -> Secret:
    """A secret as requests take it."""
    return Secret(text.encode())


class Living:
    """Dovecot with the shipped set-up beside a running lmtp-atrest; use it as a context manager.

    Alice's account is encrypted, bob and carol have none. At the end both logs are searched for
    every secret that was used, and Dovecot's for what it must never say.
    """

    def __init__(self, dovecot: Dovecot, **sections: dict[str, Any]) -> None:
        self.dovecot, self.host = dovecot, dovecot.host
        shared = dovecot.host.shared[0]
        self.users = users_of(dovecot)
        self._users_elsewhere()
        self.mails: list[bytes] = []
        (port,) = free_ports(1)
        self._mail_server = Controller(self, hostname="127.0.0.1", port=port)
        self.atrest = AtRest(shared, dovecot)
        self.atrest.configure(notices={"smtp": f"127.0.0.1:{port}"}, **sections)
        self.account_id = self.atrest.add(ALICE, PASSWORD)
        self._secrets = {PASSWORD, *dovecot.users.values()}

    def _users_elsewhere(self) -> None:
        """The site's accounts where a program of the site may change them."""
        self.users.parent.mkdir()
        self.host.run("chown", UNLOCK_USER, str(self.users.parent))
        self.host.run("ln", "-sf", str(self.users), "/etc/dovecot/users")
        self.dovecot.write_users()

    def __enter__(self) -> Self:
        self._mail_server.start()
        self.atrest.__enter__()
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self.atrest.__exit__()
        self._mail_server.stop()
        if kind is None:
            self._check_logs()

    def _check_logs(self) -> None:
        log = self.dovecot.log()
        broken = [line for line in log.splitlines() if BROKEN.search(line)]
        assert not broken, broken
        written = log + self.atrest.log() + b"".join(self.mails).decode()
        for text in self._secrets:
            for form in (text, base64.b64encode(text.encode()).decode()):
                assert form not in written, "a secret is in a log, or in a notice"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        """Take a notice, as the site's mail server."""
        self.mails.append(envelope.content)
        return "250 2.0.0 OK"

    # ---- the site and its administrator

    def know(self, *texts: str) -> None:
        """Remember secrets that must not show up in a log."""
        self._secrets |= set(texts)

    def site_password(self, name: str, text: str | None) -> None:
        """The site gives a user another password, or none any more; wait until it counts."""
        if text is None:
            del self.dovecot.users[name]
        else:
            self.dovecot.users[name] = text
            self.know(text)
        self.dovecot.write_users()
        if text is not None:
            self.wait_for_password(name, text)

    def wait_for_password(self, name: str, text: str) -> None:
        """Dovecot looks at a changed file once a second."""
        for _ in attempts("the site's passdb takes the new password"):
            if self.accepted_for_sending(name, text):
                return

    def accepted_for_sending(self, name: str, text: str) -> bool:
        """Whether an MTA that asks Dovecot about a sender (SASL) is told yes; no key is needed."""
        said = self.dovecot.doveadm("auth", "test", "-x", "service=smtp", name, text, check=False)
        assert "private_key" not in said
        return "auth succeeded" in said

    def admin(self, request: Request) -> Reply:
        """What the administrator does at the command line."""
        return self.atrest.admin(request)

    def opens(self, text: str) -> bool:
        """Whether this password opens alice's vault, whatever the site thinks of it."""
        try:
            self.admin(Open(ALICE, secret(text), "192.0.2.1"))
        except WrongSecret:
            return False
        return True

    def wait_for_notices(self, *subjects: str) -> None:
        """These notices have come to alice, each once, and no other."""
        for _ in attempts(f"notices {subjects}, not only {self._subjects()}"):
            if len(self._subjects()) >= len(subjects):
                break
        found = self._subjects()
        assert len(found) == len(subjects), found
        assert all(any(part in subject for subject in found) for part in subjects), found

    def _subjects(self) -> list[str]:
        return [str(message_from_bytes(mail)["Subject"]) for mail in self.mails]

    # ---- mail

    def deliver(self, word: str, name: str = ALICE, *, by_dovecot: bool = False) -> bool:
        """One message through our LMTP or Dovecot's; whether it was stored as ciphertext."""
        before = set(self.dovecot.files(name))
        port = self.dovecot.ports.lmtp if by_dovecot else self.atrest.port
        with smtplib.LMTP("127.0.0.1", port) as client:
            client.sendmail("eve@example.net", [name], f"Subject: {word}\n\n{word}\n".encode())
        return self._sealed(before, name, word)

    def append(self, client: Imap, word: str, name: str = ALICE) -> bool:
        """The same by a session, in its INBOX."""
        before = set(self.dovecot.files(name))
        text = f"Subject: {word}\r\n\r\n{word}\r\n".encode()
        kind, data = client.append("INBOX", "", "", text)
        assert kind == "OK", data
        return self._sealed(before, name, word)

    def _sealed(self, before: set[Any], name: str, word: str) -> bool:
        # By content and not by path: a session moves what is new from new/ to cur/.
        known = {path.name.partition(":")[0] for path in before}
        (path,) = (p for p in self.dovecot.files(name) if p.name.partition(":")[0] not in known)
        data = path.read_bytes()
        assert data.startswith(MAGIC) is not (word.encode() in data)
        return data.startswith(MAGIC)

    def keys_of_files(self, name: str = ALICE) -> list[str]:
        """To which key each message is encrypted, oldest first."""
        # Not by name: within a second names do not tell which came first.
        files = sorted(self.dovecot.files(name), key=lambda path: path.stat().st_ctime_ns)
        raw = (path.read_bytes() for path in files)
        return [parse_header(data).key_id.hex() for data in raw]

    # ---- the user

    def reads(self, text: str, name: str = ALICE) -> set[str]:
        """Log in and return the last word of each message that opens."""
        words, number, client = set(), 1, self.dovecot.login(name, text)
        while number <= exists(client):
            try:
                words |= seen(client, str(number))
            except Imap.abort:  # closed mail ends a session
                client.shutdown()
                client = self.dovecot.login(name, text)
            number += 1
        client.logout()
        return words

    def reads_by_pop3(self, text: str, name: str = ALICE) -> set[str]:
        """The same with POP3."""
        client = poplib.POP3("127.0.0.1", self.dovecot.ports.pop3, timeout=30)
        client.encoding = "utf-8"
        client.user(name)
        client.pass_(text)
        count = client.stat()[0]
        texts = [b"\n".join(client.retr(number)[1]) for number in range(1, count + 1)]
        client.quit()
        return {text.split()[-1].decode() for text in texts}

    def told(self, text: str, name: str = ALICE) -> str:
        """What a mail program hears that is not let in."""
        with pytest.raises(Imap.error) as caught:
            self.dovecot.login(name, text).logout()
        return str(caught.value)


def password_command(dovecot: Dovecot) -> str:
    """The site's program that sets a password, for `site.password_command`."""
    path = dovecot.host.shared[0] / "set-password"
    path.write_text(PASSWORD_COMMAND.format(users=users_of(dovecot)))
    path.chmod(0o755)
    return f"{path} {{name}}"


def users_of(dovecot: Dovecot) -> Path:
    """Where the site's accounts are, in a directory of the user who runs the program."""
    return dovecot.host.shared[0] / "site/users"


def exists(client: Imap) -> int:
    """How many messages the INBOX has."""
    return int(client.select()[1][0] or b"0")


def seen(client: Imap, messages: str = "1:*") -> set[str]:
    """The last word of each message that opens in this session."""
    kind, data = client.fetch(messages, "(BODY.PEEK[])")
    bodies = [part[1] for part in data if isinstance(part, tuple)] if kind == "OK" else []
    return {body.split()[-1].decode() for body in bodies}


def ended(client: Imap) -> bool:
    """Whether the server ended this session."""
    with contextlib.suppress(Imap.abort, OSError):
        client.noop()
        return False
    client.shutdown()
    return True
