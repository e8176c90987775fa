"""The codes are read back by a real decoder, from the modules as they are drawn."""

import io
import re
from collections.abc import Iterator
from datetime import date

import pytest
import zxingcpp

from lmtp_atrest.cli import paper

CODE = "0123-4567-89AB-CDEF-GHJK-MNPQ-RSCT"
ADDRESS = "anna@example.org"
LONG_NAMES = ["x" * 250 + "@" + "y" * 250, "漢字" * 60 + "@example.org"]
DRAWN = re.compile("\x1b\\[38;5;16;48;5;231m([ ▀▄█]+)\x1b\\[0m")
MODULE = 4  # pixels

Modules = list[list[bool]]


def decoded(dark: Modules) -> list[str]:
    """What a scanner reads; it may not invert, so the polarity must be right."""
    rows = [
        b"".join((b"\0" if module else b"\xff") * MODULE for module in row) * MODULE
        for row in dark
    ]
    image = memoryview(b"".join(rows)).cast("B", (len(dark) * MODULE, len(dark[0]) * MODULE))
    found = zxingcpp.read_barcodes(image, try_invert=False, try_rotate=False)
    return [barcode.text for barcode in found]


def from_half_blocks(text: str) -> Modules:
    dark: Modules = []
    for line in DRAWN.findall(text):
        dark.append([block in "▀█" for block in line])
        dark.append([block in "▄█" for block in line])
    return dark


def from_svg(html: str) -> Modules:
    size = int(re.findall(r'<svg viewBox="0 0 (\d+) \1">', html)[0])
    dark = [[False] * size for _ in range(size)]
    for x, y, length in strokes(re.findall(r'stroke="#000" d="([^"]+)"', html)[0]):
        dark[y][x : x + length] = [True] * length
    return dark


def strokes(path: str) -> Iterator[tuple[int, int, int]]:
    """The horizontal strokes of an SVG path made of M, m and h."""
    x, y = 0, 0.0
    for step, first, second in re.findall(r"([Mmh])(-?\d+)(?: (-?[\d.]+))?", path):
        if step == "h":
            yield x, int(y), int(first)
        if step == "M":
            x, y = 0, 0.0
        x, y = x + int(first), y + float(second or 0)


def test_the_terminal_text_shows_the_code_and_a_qr_code_of_it() -> None:
    text = paper.terminal(CODE, ADDRESS, "mail.example.org")
    assert f"Recovery code of {ADDRESS}\nat mail.example.org\n\n    {CODE}\n" in text
    modules = from_half_blocks(text)
    assert decoded(modules) == [CODE]
    assert not any(any(row[:4] + row[-4:]) for row in modules)
    assert not any(map(any, modules[:4] + modules[-4:]))


def test_without_a_utf8_terminal_it_is_plain_text() -> None:
    text = paper.terminal(CODE, ADDRESS, qr=False)
    assert text.isascii() and "\x1b" not in text
    assert CODE in text and "without the password" in text


@pytest.mark.parametrize("name", [ADDRESS, *LONG_NAMES])
def test_no_line_is_wider_than_80_columns(name: str) -> None:
    text = paper.terminal(CODE, name, name)
    wide = sum(map(len, re.findall("[漢字]", text)))
    assert wide == 2 * sum(character in "漢字" for character in name)
    for line in re.sub("\x1b[^m]+m", "", text).splitlines():
        assert len(line) + len(re.findall("[漢字]", line)) <= 80
    assert name in text.replace("\n    ", "").replace("\n", "")


def test_controls_in_a_name_reach_neither_terminal_nor_page() -> None:
    name = "a\x1b[2J\r\n\u202eb@example.org"
    plain = paper.terminal(CODE, name, name, qr=False)
    assert not re.search("[\x1b\r\u202e]", plain)
    assert "a\ufffd[2J\ufffd\ufffd\ufffdb@example.org" in plain
    assert not re.search("[\x1b\r\u202e]", paper.page(CODE, name, date(2026, 11, 25)))


def test_the_page_says_what_it_is_and_holds_the_code_twice() -> None:
    html = paper.page(CODE, '"<script>&"@example.org', date(2026, 11, 25))
    assert "&lt;script&gt;&amp;" in html and "<script" not in html
    assert "made on 2026-11-25" in html and f"<span>{CODE}</span>" in html
    assert all(word in html for word in ("without the password", "on paper", "<strong>once"))
    assert decoded(from_svg(html)) == [CODE]


def test_the_page_loads_nothing() -> None:
    html = paper.page(CODE, ADDRESS, date(2026, 11, 25))
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link|<img", html)


@pytest.mark.parametrize(
    ("encoding", "is_terminal", "draws"),
    [("utf-8", True, True), ("UTF8", True, True), ("ascii", True, False), ("utf-8", False, False)],
)
def test_only_a_terminal_that_takes_utf8_gets_a_qr_code(
    encoding: str, is_terminal: bool, draws: bool
) -> None:
    class Stream(io.TextIOWrapper):
        def isatty(self) -> bool:
            return is_terminal

    assert paper.draws_qr(Stream(io.BytesIO(), encoding=encoding)) is draws
