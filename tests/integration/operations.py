"""docs/operations.md, and somebody at a terminal who types its blocks in, page by page."""

import contextlib
import os
import re
import select
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.requests import Role
from tests.peers.root import Host, attempts, wait_for_port

TEXT = (Path(__file__).parents[2] / "docs/operations.md").read_text()
BLOCK = re.compile(r"^```(sh|\w+ /\S+)\n(.*?)^```$", re.M | re.S)
LOG = "/var/log/lmtp-atrest.log"
ADMIN = "/run/lmtp-atrest/unlock/admin.sock"
QUESTIONS = (b"password of alice@example.org:", b"Repeat for confirmation:")
# A reload returns before it is done; a person would not notice. (Dovecot logs its own too early.)
RELOADS = {
    "postfix reload": ("/var/log/postfix.log", ": reload -- version"),
    "systemctl reload exim4": ("/var/log/exim4/mainlog", " daemon started: "),
}


@dataclass(frozen=True, slots=True)
class Block:
    """Commands, or the whole content of the file at `path`."""

    path: str
    text: str


def pages() -> dict[str, list[Block]]:
    """The pages that have blocks, by their titles."""
    found = {}
    for page in TEXT.split("\n## ")[1:]:
        title, _, body = page.partition("\n")
        blocks = [Block(kind.partition(" ")[2], text) for kind, text in BLOCK.findall(body)]
        if blocks:
            found[title] = blocks
    return found


@dataclass
class Reader:
    """Types pages into a host, as root, and answers when asked for a password."""

    host: Host
    password: str
    left: dict[str, list[Block]] = field(default_factory=pages)

    def open(self, title: str) -> list[Block]:
        """The blocks of a page, which then counts as read."""
        return self.left.pop(title)

    def follow(self, *titles: str) -> str:
        """Type whole pages; what the last block printed."""
        printed = ""
        for title in titles:
            for block in self.open(title):
                printed = self.type(block)
        return printed

    def type(self, block: Block) -> str:
        """One block as it stands; what it printed. A command that fails fails the test."""
        if block.path:
            self.host.write(block.path, block.text)
            return ""
        before = {command: self._done(command) for command in RELOADS if command in block.text}
        printed = self._at_a_terminal("bash", "-euo", "pipefail", "-c", block.text)
        for command, times in before.items():
            for _ in attempts(command):
                if self._done(command) > times:
                    break
        if "systemctl" in block.text:
            self._wait_for_the_service()
        return printed

    def _done(self, reload: str) -> int:
        """How often a server has said that it has read its configuration again."""
        name, words = RELOADS[reload]
        log = self.host.path(name)
        return log.read_text().count(words) if log.exists() else 0

    def _at_a_terminal(self, *command: str) -> str:
        ours, theirs = os.openpty()
        inside = self.host.command("env", "--chdir=/host/repository", *command)
        running = subprocess.Popen(inside, stdin=theirs, stdout=theirs, stderr=theirs)
        ended = os.pidfd_open(running.pid)
        printed = b""
        # Not until the terminal is closed: what was started in the background may still hold it.
        while ours in (ready := select.select([ours, ended], [], [], 60)[0]):
            printed += os.read(ours, 4096)
            if printed.rstrip().endswith(QUESTIONS):
                os.write(ours, self.password.encode() + b"\n")
        for descriptor in (ours, theirs, ended):
            os.close(descriptor)
        text = printed.decode(errors="replace").replace("\r", "")
        assert ready, f"still running: {command[-1]}\n{text}"
        assert running.wait() == 0, f"{command[-1]}\n{text}"
        return text

    def _wait_for_the_service(self) -> None:
        log = self.host.path(LOG)
        for _ in attempts("the unlock service answers", log=log):
            with contextlib.suppress(Exception), SyncClient(self.host.path(ADMIN), Role.ADMIN):
                break
        settings = self.host.path("/etc/lmtp-atrest/lmtp-atrest.yaml").read_text()
        if "delivered_by: dovecot" not in settings:
            wait_for_port(8024, log)
