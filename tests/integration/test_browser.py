"""The browser of the tests: it shows what a reader has set up, and it fails where it must."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import segno

from tests.peers.browser import ROOT, Browser, Look
from tests.peers.root import Host, missing, pids_in

pytestmark = pytest.mark.peers

FORM = """
<form method="post" action="/refused"><p>
<label for="name">Name</label> <input id="name" name="name"> <a href="#told">why</a>
<input type="hidden" name="token"> <button>Send</button>
</p></form><p id="told">none</p>
"""
PAGES = {
    "/": f'{FORM}<noscript><p>no scripts</p></noscript><script src="/script.js"></script>',
    "/unlabelled": FORM.replace("<label", "<b").replace("</label", "</b"),
    "/inline": "<p>x</p><script>document.title = 'ran'</script>",
    "/missing-part": '<p>x</p><img src="/nowhere.png" alt="x">',
    "/failing": '<p>x</p><script src="/fail.js"></script>',
    "/styled": '<p style="width: 500px">x</p>',
    "/code": segno.make("0123-CODE").svg_inline(scale=4),
    "/long": "<p>x</p>" * 100,
    "/wide-word": f"<p>{'w' * 100}</p>",
    "/wide": '<p class="wide">x</p>',
}
SCRIPTS = {
    "/script.js": "document.querySelector('#told').textContent = 'told'",
    "/fail.js": "no_such_function()",
}
FRAME = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><link rel="stylesheet" href="/style.css"><title>{path}</title>
<main><h1>{path}</h1>{page}</main></html>"""
STYLE = "@media (prefers-color-scheme: dark) { h1 { color: red } } .wide { width: 500px }"
POLICY = "default-src 'self'; img-src 'self' data:"


class Pages(BaseHTTPRequestHandler):
    languages: list[str | None]

    def do_GET(self) -> None:
        self.languages.append(self.headers["Accept-Language"])
        if self.path in PAGES:
            self.answer("text/html", FRAME.format(path=self.path, page=PAGES[self.path]))
        elif self.path == "/style.css":
            self.answer("text/css", STYLE)
        elif self.path in SCRIPTS:
            self.answer("text/javascript", SCRIPTS[self.path])
        else:
            self.answer("text/plain", "", 404)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer("text/html", FRAME.format(path=self.path, page=sent), 403)

    def answer(self, kind: str, body: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *ignored: object) -> None:
        """The test's own output is enough."""


@pytest.fixture
def network(shared: Path) -> Iterator[None]:
    """A loopback of its own, as the integration tests have it."""
    if reason := missing(ROOT) or missing("bookworm"):
        pytest.skip(reason)
    with Host("bookworm", shared, own_network=True) as host, host.network():
        yield


@pytest.fixture
def site(network: None) -> Iterator[str]:
    Pages.languages = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def browser(site: str, shared: Path) -> Iterator[Browser]:
    with Browser(shared) as running:
        yield running


def test_a_reader_fills_in_and_sends_a_form(browser: Browser, site: str) -> None:
    browser.open(f"{site}/")
    assert browser.find("#told").text == "told"
    assert "no scripts" not in browser.text()
    assert browser.tabs() == ["input name", "a why", "button Send"]
    browser.fill("name", "Zoë")
    browser.go("button")
    assert browser.url == f"{site}/refused"
    assert "name=Zo%C3%AB" in browser.text()
    assert (browser.clicks, browser.fields) == (1, 1)
    assert browser.complaints() == []


def test_a_browser_is_set_up_as_its_reader_likes_it(browser: Browser, site: str) -> None:
    def color() -> object:
        return browser.evaluate("getComputedStyle(document.querySelector('h1')).color")

    browser.look(Look(language="fr", scripts=False, phone=True, dark=True))
    browser.open(f"{site}/")
    assert browser.find("#told").text == "none"
    assert "no scripts" in browser.text()
    assert browser.evaluate("innerWidth") == 360
    assert set(Pages.languages) == {"fr"}
    assert color() == "rgb(255, 0, 0)"
    assert browser.axe() == []
    for page in ("/wide", "/wide-word"):
        browser.open(site + page)
        assert browser.too_wide().startswith("by ")
    browser.look(Look())
    browser.open(f"{site}/")
    assert browser.find("#told").text == "told"
    assert browser.evaluate("innerWidth") == 1100
    assert color() == "rgb(0, 0, 0)"
    assert browser.too_wide() == ""


def test_a_field_without_a_label_is_found(browser: Browser, site: str) -> None:
    browser.open(f"{site}/")
    assert browser.axe() == []
    browser.open(f"{site}/unlabelled")
    (found,) = browser.axe()
    assert found.startswith("label: ")


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("/inline", "violates the following Content Security Policy"),
        ("/styled", "violates the following Content Security Policy"),
        ("/missing-part", "404"),
        ("/failing", "no_such_function is not defined"),
    ],
)
def test_what_the_browser_complains_of_fails_the_test(
    site: str, shared: Path, page: str, complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint), Browser(shared) as browser:
        browser.open(site + page)
        browser.open(f"{site}/")


def test_nothing_of_a_browser_is_left(network: None, shared: Path) -> None:
    with pytest.raises(ZeroDivisionError), Browser(shared) as browser:
        namespace = browser.namespace
        assert len(pids_in(namespace)) > 3
        raise ZeroDivisionError
    assert pids_in(namespace) == []
    assert sorted(path.name for path in shared.iterdir()) == [".bookworm", "chromedriver.log"]


def test_a_picture_shows_the_whole_page_and_is_small(browser: Browser, site: str) -> None:
    browser.open(f"{site}/")
    shown, whole = browser.picture(whole=False), browser.picture()
    assert [size(shown), size(whole)] == [(1100, 800), (1100, 800)]
    assert len(browser.small_picture()) < len(whole) / 2
    browser.look(Look(phone=True))
    assert size(browser.picture(whole=False)) == (720, 1480)


def test_paper_is_counted_and_its_codes_are_read(browser: Browser, site: str) -> None:
    browser.open(f"{site}/code")
    assert browser.barcodes() == ["0123-CODE"]
    assert browser.sheets() == 1
    browser.open(f"{site}/long")
    assert browser.barcodes() == []
    assert browser.sheets() > 1


def size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
