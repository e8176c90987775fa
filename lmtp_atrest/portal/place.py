"""What all pages share: the configuration, the texts, who is signed in, and whom to ask."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from lmtp_atrest.config import Config
from lmtp_atrest.errors import TemporaryFailure
from lmtp_atrest.portal.address import Address
from lmtp_atrest.portal.imap import ImapLogin
from lmtp_atrest.portal.sessions import Sessions
from lmtp_atrest.portal.texts import Texts, catalogues
from lmtp_atrest.secret import Secret
from lmtp_atrest.unlock.client import Client
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import PortalSignIn, Request, Role

HERE = Path(__file__).parent
# All refusals of somebody who is not signed in take this long, or twice this long, and so on: a
# name that is nobody's, a wrong password and the IMAP server's own delay look the same.
REFUSAL_SECONDS = 3.0


class Place:
    """One portal."""

    def __init__(
        self,
        config: Config,
        *,
        imap: ImapLogin | None = None,
        now: Callable[[], float] = time.monotonic,
        refusal_seconds: float = REFUSAL_SECONDS,
    ) -> None:
        self.config = config
        self.portal = config.portal
        self.address = Address.of(config.portal.url)
        address = config.portal.authenticate
        self.imap = imap or (ImapLogin(address) if address else None)
        self.texts: dict[str, Texts] = catalogues()
        self.sessions = Sessions(config.portal.session.idle, config.portal.session.age, now)
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._refusal_seconds = refusal_seconds

    async def ask(self, request: Request) -> Reply:
        """The unlock service's reply, or the error that it stands for."""
        socket = self.config.unlock.sockets / f"{Role.PORTAL}.sock"
        try:
            async with await Client.connect(socket, Role.PORTAL) as client:
                return await client.ask(request)
        except TimeoutError as error:
            message = "the unlock service did not answer in time"
            raise TemporaryFailure(message) from error

    async def verify(self, name: str, secret: Secret, source: str) -> str | None:
        """The canonical name of the user whose password this is; None where it is nobody's.

        The unlock service knows enrolled users, and counts guesses at all of them; others are the
        IMAP server's to check. WrongSecret, Busy, TemporaryFailure.
        """
        reply = await self.ask(PortalSignIn(name, secret, source))
        canonical = str(reply["name"])
        if reply.result == "verified":
            return canonical
        if self.imap is None or not canonical:
            return None
        # By its canonical name: that is whose mail this session will be about.
        return canonical if await self.imap.accepts(canonical, secret) else None

    async def hold_back(self, began: float) -> None:
        """Wait until all refusals are told, so that none tells more by its time."""
        if self._refusal_seconds > 0:
            passed = asyncio.get_running_loop().time() - began
            await asyncio.sleep(self._refusal_seconds - passed % self._refusal_seconds)

    def render(self, template: str, values: dict[str, Any]) -> str:
        """The page of a template."""
        return self.templates.get_template(template).render(values)
