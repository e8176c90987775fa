import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmtp_atrest.cli.demo import CONFIG, Lmtp
from lmtp_atrest.errors import AtRestError
from lmtp_atrest.unlock.client import SyncClient
from lmtp_atrest.unlock.requests import Role
from tests.cli.calling import Result, call
from tests.ports import free_port

PASSWORD = "correct horse battery staple"
QUIET = 'conversion: {{state: "sqlite:///{root}/store/conversion.db", background: false}}\n'


@dataclass
class RunningSite:
    """The services as an operator runs them, below one directory, and the command line to them."""

    root: Path
    port: int

    @property
    def config(self) -> Path:
        return self.root / "lmtp-atrest.yaml"

    def run(
        self, *arguments: str, secret: str | None = None, words: int = 2, **secrets: Any
    ) -> Result:
        """One command of so many words on this site."""
        command, rest = arguments[:words], arguments[words:]
        return call(*command, "-c", self.config, *rest, secret=secret, **secrets)

    def deliver(self, recipients: list[str], content: bytes) -> list[str]:
        """One message by LMTP; the replies."""
        client = Lmtp(self.port)
        try:
            return client.deliver("carol@example.net", recipients, content)
        finally:
            client.quit()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    root = tmp_path_factory.mktemp("site")
    site = RunningSite(root, free_port())
    user = root.owner()
    cheap = "atrest: {argon2_memory: 19MiB, argon2_passes: 2}\n"
    site.config.write_text((CONFIG + QUIET).format(root=root, port=site.port, user=user) + cheap)
    site.config.chmod(0o644)
    made = call("init", "-c", site.config)
    assert "keep a copy of" in made.stderr
    with (root / "serve.log").open("wb") as log:
        command = [sys.executable, "-m", "lmtp_atrest", "serve", "-c", str(site.config)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_up(site, process)
        yield site
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0


def wait_until_up(site: RunningSite, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, (site.root / "serve.log").read_text()
        with suppress(OSError, AtRestError):
            Lmtp(site.port).quit()
            SyncClient(site.root / "run/unlock/admin.sock", Role.ADMIN).close()
            return
        time.sleep(0.05)
    message = f"not up: {(site.root / 'serve.log').read_text()}"
    raise AssertionError(message)
