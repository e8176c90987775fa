"""A recovery code as its owner takes it away: shown once at the terminal, or printed on a page.

Both hold the code in clear. Whoever calls this writes the text to the owner's terminal or into a
file that only the owner can read, and nowhere else: no log, no mail into the mailbox it opens.
"""

import textwrap
from collections.abc import Iterator
from datetime import date
from html import escape
from itertools import zip_longest
from typing import TextIO

import segno
from rich.cells import chop_cells

WIDTH = 80
# ISO/IEC 18004 wants four light modules on every side; a dark terminal gives none of them.
QUIET_ZONE = 4

TOLD_ONCE = (
    "Write it down or print it now: it is not shown again, and nobody here can look it up. "
    "It opens the mail without the password. Keep it on paper, away from the computer. "
    "It works once; whoever uses it gets a new one."
)

_INDENT = "    "
# Black on white by number of the fixed colour cube: themes redefine the 16 named colours, and a
# light-on-dark QR code is one that many cameras do not read.
_BLACK_ON_WHITE, _RESET = "\x1b[38;5;16;48;5;231m", "\x1b[0m"
_HALF_BLOCKS = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}


def draws_qr(stream: TextIO) -> bool:
    """Whether a QR code of half blocks can be shown there: a terminal that takes UTF-8."""
    encoding = (stream.encoding or "").lower().replace("-", "").replace("_", "")
    return stream.isatty() and encoding == "utf8"


def terminal(code: str, address: str, site: str = "", *, qr: bool = True) -> str:
    """What is shown once, at most 80 columns wide; `qr` only where `draws_qr` says so."""
    lines = [
        "",
        *_labelled("Recovery code of", address),
        *(_labelled("at", site) if site else []),
        "",
        _INDENT + code,
        "",
        *([*_drawn(code), ""] if qr else []),
        *textwrap.wrap(
            TOLD_ONCE,
            WIDTH,
        ),
        "",
    ]
    return "\n".join(lines)


def page(code: str, address: str, made: date) -> str:
    """One sheet of HTML to print, A4 or Letter, that loads nothing from anywhere."""
    return _PAGE.format(
        code=escape(code),
        address=escape(_printable(address)),
        made=made.isoformat(),
        qr=_svg(code),
    )


def _qr(code: str) -> segno.QRCode:
    # Level M reads with 15 % of it smudged, and keeps a code at 25 modules a side.
    return segno.make_qr(code, error="m", boost_error=False)


def _svg(code: str) -> str:
    return _qr(code).svg_inline(
        border=QUIET_ZONE, dark="#000", light="#fff", omitsize=True, svgclass=None, lineclass=None
    )


def _drawn(code: str) -> Iterator[str]:
    """Two rows of modules to a line of text; colours end with the line, and so cannot spill."""
    rows = [list(row) for row in _qr(code).matrix_iter(border=QUIET_ZONE)]
    for upper, lower in zip_longest(rows[::2], rows[1::2], fillvalue=[0] * len(rows)):
        blocks = (_HALF_BLOCKS[pair] for pair in zip(upper, lower, strict=True))
        yield _INDENT + _BLACK_ON_WHITE + "".join(blocks) + _RESET


def _labelled(label: str, text: str) -> list[str]:
    """On one line where that fits, else the text below its label, cut to the width."""
    text = _printable(text)
    cut = chop_cells(text, WIDTH - len(label) - 1)
    if len(cut) <= 1:
        return [f"{label} {text}"]
    return [label, *(_INDENT + part for part in chop_cells(text, WIDTH - len(_INDENT)))]


def _printable(text: str) -> str:
    """Without controls, which could move the cursor or end the line; a code has none."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Recovery code</title>
<style>
@page {{ margin: 16mm }}
:root {{ color-scheme: light }}
body {{ background: #fff; color: #000; font: 12pt/1.45 sans-serif; margin: 2em auto;
  max-width: 36em; padding: 0 1em }}
h1 {{ font-size: 20pt; margin: 0 0 .5em }}
h2 {{ font-size: 13pt; margin: 1.2em 0 .2em }}
p, ul {{ margin: 0 0 .5em }}
ul {{ padding-left: 1.2em }}
.address {{ overflow-wrap: anywhere }}
.code {{ border: 1.5pt solid #000; font: bold 15pt/1.8 monospace; margin: 1em 0; padding: .3em 0;
  text-align: center }}
.code span {{ white-space: nowrap }}
svg {{ display: block; height: 48mm; margin: 0 auto; width: 48mm }}
@media print {{ body {{ font-size: 11pt; margin: 0; max-width: none; padding: 0 }} }}
</style>
</head>
<body>
<h1>Recovery code</h1>
<p class="address">for the mailbox <strong>{address}</strong>, made on {made}</p>
<p class="code"><span>{code}</span></p>
{qr}
<h2>What it is</h2>
<p>Mail in this mailbox is stored encrypted. Your password opens it. When the password
is lost, or was changed without the old one, this code opens the same mail.</p>
<h2>Keep it safe</h2>
<ul>
<li>Whoever has this sheet can open the mail <strong>without the password</strong>. Treat it like a
key to your home.</li>
<li>Keep it on paper, away from the computer: no photo, no scan, no copy in the mailbox itself.
Delete the file it was printed from.</li>
<li>Nobody can make this sheet again for you. Without password and code, old mail may be lost.</li>
</ul>
<h2>How to use it</h2>
<ul>
<li>Type it, or let the device that asks for it scan the square. Capitals and dashes do not matter.
There is no letter O, I or L in it: what looks like one is a zero or a one.</li>
<li>It works <strong>once</strong>. When it has been used you get a new code; then destroy this
sheet.</li>
</ul>
</body>
</html>
"""
