"""Debian's Chromium, used in tests the way a person uses a browser: by what a page shows.

It runs in a `Host` of its own and in the network of the thread that starts it, so it reaches the
servers that the test reaches. What it complains about while it shows pages (scripts, what the
policy of a page forbids, files that are not there) fails the test at the end.
"""

import base64
import contextlib
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import zxingcpp
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.chrome.remote_connection import ChromeRemoteConnection
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.peers.root import ROOTS, Host, attempts, free_ports, wait_for_port

ROOT = "browser"
# Root has to say that it gives up the sandbox: the pages are our own, and the namespace holds
# nothing else. The rest keeps Chromium from speaking to anybody but them.
FLAGS = (
    "headless",
    "host-resolver-rules=MAP *.example.org 127.0.0.1",
    "no-sandbox",
    "remote-debugging-pipe",  # no port for it on the loopback that the services share
    "disable-background-networking",
    "disable-breakpad",
    "disable-component-update",
    "disable-default-apps",
    "disable-domain-reliability",
    "disable-gpu",
    "disable-quic",
    "disable-sync",
    "metrics-recording-only",
    "no-first-run",
    "no-pings",
)
# WCAG 2.2 at A and AA, which holds 2.1, and what axe recommends beyond it.
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
CHECK = """
axe.run({runOnly: %s}).then(found => JSON.stringify(found.violations))
"""
# Text may stick out of a box that does not: then no element is wider than the page.
WIDER = """
(() => {
  const page = document.documentElement;
  if (page.scrollWidth <= page.clientWidth) return "";
  const wider = [...document.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > page.clientWidth || e.scrollWidth > e.clientWidth);
  return "by " + (page.scrollWidth - page.clientWidth) + ": " + wider.map(e => e.outerHTML).pop();
})()
"""
# A picture's pixels in shades of gray, by the only decoder of PNG that is at hand.
GRAY = """
(async () => {
  const bytes = Uint8Array.from(atob("%s"), c => c.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], {type: "image/png"}));
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const rgba = context.getImageData(0, 0, picture.width, picture.height).data;
  let gray = "";
  for (let at = 0; at < rgba.length; at += 4)
    gray += String.fromCharCode((rgba[at] + rgba[at + 1] + rgba[at + 2]) / 3);
  return {gray: btoa(gray), width: picture.width, height: picture.height};
})()
"""


@dataclass(frozen=True, slots=True)
class Look:
    """How a reader has set up the browser."""

    language: str = "en"
    scripts: bool = True
    phone: bool = False
    dark: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the window, in the units of CSS."""
        return (360, 740) if self.phone else (1100, 800)


class Browser:
    """A running browser with one page; use it as a context manager.

    `clicks` and `fields` count what the reader did. The first of the shared directories is where
    its `Host` works and logs; the browser sees all of them.
    """

    def __init__(self, *shared: Path, look: Look | None = None) -> None:
        self._host, self._look = Host(ROOT, *shared), look or Look()
        self._log = shared[0] / "chromedriver.log"
        self._complaints: list[str] = []
        self.clicks = self.fields = 0

    def __enter__(self) -> Self:
        self._host.__enter__()
        try:
            self._start()
            self.look(self._look)
        except BaseException:
            self._end()
            raise
        return self

    def _start(self) -> None:
        (port,) = free_ports(1)
        with self._log.open("wb") as log:
            command = self._host.command("chromedriver", f"--port={port}")
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for_port(port, self._log)
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in FLAGS:
            options.add_argument(f"--{flag}")
        options.accept_insecure_certs = True  # those that tests make themselves
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        server = ChromeRemoteConnection(f"http://127.0.0.1:{port}")
        self.driver = webdriver.Remote(command_executor=server, options=options)

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            complaints = self.complaints()
        finally:
            self._end()
        if kind is None:
            assert complaints == [], "\n".join(complaints)

    def _end(self) -> None:
        try:
            if hasattr(self, "driver"):
                self.driver.quit()
        finally:
            self._host.__exit__()
            if hasattr(self, "_process"):
                self._process.wait(timeout=10)

    @property
    def namespace(self) -> Path:
        """The pid namespace of all its processes."""
        return self._host.namespace

    def devtools(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask Chromium itself, by its DevTools protocol."""
        asked = {"cmd": command, "params": arguments}
        answer: dict[str, Any] = self.driver.execute("executeCdpCommand", asked)["value"]
        return answer

    def look(self, look: Look) -> None:
        """Set the browser up in another way, from the next page on."""
        self._look = look
        width, height = look.size
        scale = 2 if look.phone else 1
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics, mobile=look.phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if look.dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.devtools("Emulation.setEmulatedMedia", media="", features=[scheme, still])
        agent = self.devtools("Browser.getVersion")["userAgent"]
        language = {"userAgent": agent, "acceptLanguage": look.language}
        self.devtools("Emulation.setUserAgentOverride", **language)
        self.devtools("Emulation.setScrollbarsHidden", hidden=True)
        self._scripts(look.scripts)

    def _scripts(self, allowed: bool) -> None:
        self.devtools("Emulation.setScriptExecutionDisabled", value=not allowed)

    def open(self, url: str) -> None:
        """Go to a page by its address."""
        self._keep_complaints()
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        """Return the one visible element that a CSS selector names; none or more is an error."""
        found = [one for one in self.all(selector) if one.is_displayed()]
        assert len(found) == 1, f"{len(found)} of {selector} on {self.url}:\n{self.text()}"
        return found[0]

    def all(self, selector: str) -> Sequence[WebElement]:
        """Return what a CSS selector names, visible or not."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def fill(self, name: str, text: str) -> None:
        """Type into a field, by its name in the form."""
        field = self.find(f"[name='{name}']")
        field.clear()
        field.send_keys(text)
        self.fields += 1

    def click(self, selector: str) -> None:
        """Click at something on the page that leads to no other: tick a box, have it printed."""
        self.find(selector).click()
        self.clicks += 1

    def go(self, selector: str) -> None:
        """Press a button or follow a link, and wait for the page that comes of it."""
        self._keep_complaints()
        before = self.driver.find_element(By.TAG_NAME, "html")
        self.click(selector)
        for _ in attempts(f"another page than {self.url} by {selector}", 30):
            try:
                before.is_enabled()
            except StaleElementReferenceException:
                return
            except WebDriverException:
                continue  # between the two pages, which DevTools tells in many words

    def type(self, *keys: str) -> None:
        """Press keys at what has the focus; `Keys` of Selenium names the special ones."""
        self._keep_complaints()
        self.driver.switch_to.active_element.send_keys(*keys)

    def tab(self) -> str:
        """Press Tab and tell what has the focus, by tag and name; empty behind the last one.

        Whoever uses the keyboard must see where it is.
        """
        self.type(Keys.TAB)
        focused = self.driver.switch_to.active_element
        if focused.tag_name == "body":
            return ""
        name = focused.get_attribute("name") or focused.accessible_name
        assert focused.value_of_css_property("outline-style") != "none", f"no focus seen: {name}"
        return f"{focused.tag_name} {name}"

    def tabs(self) -> list[str]:
        """Walk all of the page with the Tab key."""
        return list(iter(self.tab, ""))

    @property
    def url(self) -> str:
        """The address of the page."""
        return self.driver.current_url

    @property
    def title(self) -> str:
        """The title of the page."""
        return self.driver.title

    def text(self) -> str:
        """Return what the page shows."""
        text = ""
        for _ in attempts("a page that stays for as long as it is read"):
            with contextlib.suppress(WebDriverException):
                text = self.driver.find_element(By.TAG_NAME, "body").text
                break
        return text

    def evaluate(self, expression: str) -> Any:
        """Return the value of a script (or of its promise), also where the page may have none."""
        self._scripts(True)
        try:
            answer = self.devtools(
                "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
            )
        finally:
            self._scripts(self._look.scripts)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def axe(self) -> list[str]:
        """Return what axe-core finds wrong with the page for people with disabilities."""
        source = (ROOTS / ROOT / "usr/share/axe.min.js").read_text()
        found = json.loads(self.evaluate(source + ";" + CHECK % json.dumps(RULES)))
        return [
            f"{rule['id']}: {rule['help']}: {node['html']}\n{node['failureSummary']}"
            for rule in found
            for node in rule["nodes"]
        ]

    def too_wide(self) -> str:
        """Return what makes the page scroll sideways; empty where it does not."""
        return str(self.evaluate(WIDER))

    def picture(self, whole: bool = True, paper: bool = False) -> bytes:
        """Return the page as a PNG: the whole of it or what the window shows, or as printed."""
        if paper:
            self.devtools("Emulation.setEmulatedMedia", media="print")
        page = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"clip": {**page, "scale": 1}} if whole else {}
        taken = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole, **clip)
        self.look(self._look)
        return base64.b64decode(taken["data"])

    def barcodes(self) -> list[str]:
        """Return what a scanner reads from the page as it is printed."""
        found = self.evaluate(GRAY % base64.b64encode(self.picture(paper=True)).decode())
        pixels = memoryview(base64.b64decode(found["gray"]))
        image = pixels.cast("B", (found["height"], found["width"]))
        return [barcode.text for barcode in zxingcpp.read_barcodes(image)]

    def sheets(self) -> int:
        """Return how many sheets of A4 the page takes when it is printed."""
        printed = self.devtools("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        return len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed["data"])))

    def small_picture(self, whole: bool = True) -> bytes:
        """Return the same for the documentation: in few colours, so that it stays small."""
        command = self._host.command("pngquant", "--quality=80-100", "--speed=1", "--strip", "-")
        done = subprocess.run(
            command, input=self.picture(whole), capture_output=True, check=True, timeout=60
        )
        return done.stdout

    def complaints(self) -> list[str]:
        """Return what the browser complained of since the last call, and forget it."""
        self._keep_complaints()
        told, self._complaints = self._complaints, []
        return told

    def _keep_complaints(self) -> None:
        entries = self.driver.execute("getLog", {"type": "browser"})["value"]
        page = self.url.partition("#")[0]
        for entry in entries:
            # A page that says no with a status in the 400s is the test's own business.
            if entry["source"] == "network" and entry["message"].startswith(f"{page} - "):
                continue
            self._complaints.append(entry["message"])
