"""A person at the portal with a browser. Whatever page comes is looked over in passing.

The person goes by what a page says in the language of the browser, and by the addresses of its
links and forms. A page must have nothing that axe-core finds, must not scroll sideways, and must
be in the language it claims to be in.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from lmtp_atrest.portal.texts import Texts, catalogues
from tests.peers.browser import Browser, Look
from tests.peers.root import attempts

SECONDS = """
(() => {
  const [page] = performance.getEntriesByType('navigation');
  return (page.responseEnd - (page.redirectStart || page.requestStart)) / 1000;
})()
"""
STRUCTURE = """
[...document.querySelectorAll('*')].map(e => [e.tagName, e.className, e.id, e.hidden]).join()
"""


@dataclass
class Visitor:
    """The person; `pictures` is the directory for pictures of the pages, where they are wanted.

    `seconds` are what the pages and, `sent`, the forms took from request to answer: the latter
    with Argon2id, and with the page that follows.
    """

    browser: Browser
    address: str
    look: Look
    pictures: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    # What has been looked over, by the look and how the page is built; also in other tests.
    _known: ClassVar[set[tuple[Look, str]]] = set()

    @property
    def texts(self) -> Texts:
        """What the pages say, in the language of the look."""
        return catalogues()[self.look.language]

    @property
    def place(self) -> str:
        """Which page of the portal this is; empty for the overview."""
        assert self.browser.url.startswith(self.address), self.browser.url
        return self.browser.url.removeprefix(self.address).partition("#")[0]

    def set_up(self, look: Look) -> None:
        """Set the browser up in another way."""
        self.look = look
        self.browser.look(look)

    # ---- moving about

    def open(self, place: str = "") -> None:
        """Type an address of the portal."""
        self.browser.open(self.address + place)
        self._look_over()

    def follow(self, place: str) -> None:
        """Follow the link of the page to another one."""
        self.browser.go(f"main a[href='{self._path(place)}']")
        self._look_over()

    def send(self, place: str, *, ticks: Sequence[str] = (), **fields: str) -> None:
        """Fill in a form, tick boxes of it (`name` or `name=value`), and send it."""
        form = f"form[action='{self._path(place)}']"
        for name, text in fields.items():
            self.browser.fill(name, text)
        for tick in ticks:
            name, _, value = tick.partition("=")
            chosen = f"[value='{value}']" if value else ""
            self.browser.click(f"{form} input[name='{name}']{chosen}")
        self.browser.go(f"{form} button")
        self._look_over(f"{place}, sent")

    def sign_in(self, name: str, password: str) -> None:
        """From the first page to the overview, or to what is said instead."""
        self.open("sign-in")
        self.send("sign-in", name=name, secret=password)

    def sign_out(self) -> None:
        """Done."""
        self.send("sign-out")
        assert self.place == "sign-in"

    def _path(self, place: str) -> str:
        return "/" + f"{self.address}{place}".split("/", 3)[3]

    # ---- what a page says

    def says(self, key: str) -> bool:
        """Whether the page shows this text, whatever stands in its places."""
        parts = re.split(r"\{[^}]*\}", " ".join(self.texts.texts[key].split()))
        pattern = ".+".join(re.escape(part) for part in parts)
        return re.search(pattern, " ".join(self.browser.text().split()), re.DOTALL) is not None

    def told(self, *keys: str, place: str | None = None) -> None:
        """The page says all this; `place` is where it must be."""
        for key in keys:
            assert self.says(key), f"{key} is not on {self.browser.url}:\n{self.browser.text()}"
        assert place is None or self.place == place, self.browser.url

    def told_in_time(self, key: str, *, by_itself: bool = False) -> None:
        """The page comes to say this when it is loaded again, or `by_itself`."""
        for _ in attempts(f"{key} on {self.browser.url}"):
            if self.says(key):
                return
            if not by_itself:
                self.open(self.place)

    def secret(self, selector: str = "#code") -> str:
        """A code or password that the page shows this once."""
        return self.browser.find(selector).text

    def picture(self, name: str, *, phone: bool = False) -> None:
        """Take a picture of this page at the desk, and of what a `phone` shows of it."""
        if self.pictures is None or (self.look.phone and not phone):
            return
        path = Path(self.pictures) / f"portal-{name}{'-phone' if self.look.phone else ''}.png"
        path.write_bytes(self.browser.small_picture(whole=not self.look.phone))

    # ---- looking over

    def _look_over(self, what: str = "") -> None:
        seconds = self.browser.evaluate(SECONDS)
        self.seconds.setdefault(what or self.place or "overview", seconds)
        structure = self.look, str(self.browser.evaluate(STRUCTURE))
        if structure in self._known:
            return
        self._known.add(structure)
        where = f"{self.browser.title} ({self.browser.url})"
        language = self.browser.evaluate("document.documentElement.lang")
        assert language == self.look.language, where
        assert self.browser.too_wide() == "", where
        found = self.browser.axe()
        assert found == [], where + "\n" + "\n".join(found)
