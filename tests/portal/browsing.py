"""A browser without a screen: cookies, forms with their hidden fields, and one base address."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from typing import Any
from urllib.parse import urlsplit

import httpx

from lmtp_atrest.portal.app import build
from lmtp_atrest.portal.place import Place

URL = "https://mail.example.org/keys/"
CODE = re.compile(r'id="code">([0-9A-Z]{4}(?:-[0-9A-Z]{4}){6})<')
TOKEN = re.compile(r'name="token" value="([0-9a-f]{64})"')


class Browser:
    """One visitor; `page` is what was last seen."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.client = httpx.AsyncClient(
            transport=transport, base_url=url, headers={"accept-language": "en"}, timeout=60
        )
        self.path = urlsplit(url).path
        self.page: httpx.Response = httpx.Response(204)

    async def get(self, path: str = "", **headers: str) -> httpx.Response:
        """A page, and where it leads to."""
        return await self._seen(await self.client.get(path, headers=headers))

    async def post(self, path: str, fields: dict[str, str], **headers: str) -> httpx.Response:
        """A form as it stands, and where it leads to."""
        return await self._seen(await self.client.post(path, data=fields, headers=headers))

    async def submit(self, path: str, page: str | None = None, **fields: Any) -> httpx.Response:
        """Fill in the form of a page (of the same address) and send it."""
        await self.get(path if page is None else page)
        return await self.post(path, {"token": self.token, **fields})

    async def sign_in(self, name: str, password: str) -> httpx.Response:
        """By the form."""
        return await self.submit("sign-in", name=name, secret=password)

    @property
    def token(self) -> str:
        """The token of the forms on the page."""
        found = TOKEN.search(self.page.text)
        return found[1] if found else ""

    @property
    def text(self) -> str:
        """What a reader sees of the page."""
        body = re.sub(r"(?s)<(script|svg|head)\b.*?</\1>", " ", self.page.text)
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())

    @property
    def at(self) -> str:
        """Which page this is, below the portal's path."""
        return self.page.url.path.removeprefix(self.path)

    async def _seen(self, page: httpx.Response) -> httpx.Response:
        while page.is_redirect:
            page = await self.client.get(page.url.join(page.headers["location"]))
        self.page = page
        return page


@asynccontextmanager
async def browser(place: Place, source: str = "192.0.2.1") -> AsyncIterator[Browser]:
    """A visitor from this address, to a portal in the test's own process."""
    transport = httpx.ASGITransport(build(place), client=(source, 40000))
    found = Browser(place.portal.url, transport)
    async with found.client:
        yield found


def code_on(visitor: Browser) -> str:
    """The recovery code on the page."""
    found = CODE.search(visitor.page.text)
    assert found, visitor.text
    return found[1]
