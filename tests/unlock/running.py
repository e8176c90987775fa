"""The unlock service over real sockets in the test's own process, with a clock of its own."""

import asyncio
import getpass
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lmtp_atrest.config import Config, Evict, Mail, Notices, Peers, Session, Unlock
from lmtp_atrest.config import Directory as DirectorySection
from lmtp_atrest.directory import KeystoreDirectory
from lmtp_atrest.unlock.client import Client
from lmtp_atrest.unlock.protocol import LINE_LIMIT
from lmtp_atrest.unlock.requests import Role
from lmtp_atrest.unlock.server import RoleServer
from lmtp_atrest.unlock.serving import build, build_servers
from tests.sites import CheapSite

ME = getpass.getuser()


class Clock:
    """Monotonic seconds that move when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def config_for(sockets: Path, **unlock: Any) -> Config:
    """A configuration whose sockets this user may use and that has no evict helper."""
    settings: dict[str, Any] = {
        "sockets": sockets,
        "peers": Peers(dovecot=(ME,), reader=(ME,), portal=(ME,), convert=(ME,), admin=(ME,)),
        "session": Session(),
        "evict": Evict(socket=None, peers=(ME,)),
        **unlock,
    }
    return Config(
        directory=DirectorySection(source="keystore"),
        mail=Mail(root=sockets / "mail"),
        unlock=Unlock(**settings),
        notices=Notices(smtp=None),
    )


class Running:
    """A running service; `clock` moves its time."""

    def __init__(self, site: CheapSite, config: Config) -> None:
        self.site = site
        self.config = config
        self.clock = Clock()
        self.parts = build(
            config, site.accounts, KeystoreDirectory(), now=self.clock, barrier_seconds=0.01
        )
        self.service = self.parts.service
        self.servers: list[RoleServer] = build_servers(config, self.service)

    def path(self, role: Role) -> Path:
        return self.config.unlock.sockets / f"{role}.sock"

    async def connect(self, role: Role) -> Client:
        return await Client.connect(self.path(role), role)

    async def line(self, role: Role, line: bytes) -> dict[str, Any]:
        """One raw line and the one line that answers it."""
        reader, writer = await asyncio.open_unix_connection(self.path(role), limit=2 * LINE_LIMIT)
        await reader.readline()
        writer.write(line + b"\n")
        reply: dict[str, Any] = json.loads(await reader.readline())
        writer.close()
        await writer.wait_closed()
        return reply


@asynccontextmanager
async def running(site: CheapSite, sockets: Path, **unlock: Any) -> AsyncIterator[Running]:
    """Start the service, and stop it as SIGTERM does."""
    service = Running(site, config_for(sockets, **unlock))
    for server in service.servers:
        server.start()
    try:
        yield service
    finally:
        for server in service.servers:
            await server.stop()
        service.service.wipe()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - iterdir opens one more
