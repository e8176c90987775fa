"""A recovery code as it is shown: once, on a page that prints as one sheet.

The session keeps its last group, so that a typing error on paper is found now; the code itself is
in the page, and nowhere else.
"""

import hmac
import time

import segno
from markupsafe import Markup
from starlette.responses import Response

from lmtp_atrest.portal.visit import Refusal, Visit

QUIET_ZONE = 4  # light modules around it, by ISO/IEC 18004


def show_code(visit: Visit, code: str) -> Response:
    """The page with the code."""
    assert visit.session is not None  # noqa: S101 - a code is made for somebody who is signed in
    visit.session.check = code.rpartition("-")[2]
    made = int(time.time() * 1000)
    return visit.page("code.html", code=code, qr=_drawn(code), made=visit.texts.day(made))


async def show_check(visit: Visit) -> Response:
    """The box for the last group again, without the code."""
    if visit.session is None or not visit.session.check:
        return visit.redirect()
    return visit.page("code-check.html")


async def check(visit: Visit) -> Response:
    """Whether the last group on the paper is that of the code."""
    session = visit.session
    if session is None or not session.check:
        return visit.redirect()
    typed = visit.form.text("group").upper().replace("O", "0").replace("I", "1").replace("L", "1")
    last = typed.replace(" ", "").rpartition("-")[2]
    if not hmac.compare_digest(last.encode(), session.check.encode()):
        raise Refusal("code-check.wrong", "group")
    session.check = ""
    return visit.redirect(flash="code-check.right")


def _drawn(code: str) -> Markup:
    drawing = segno.make_qr(code, error="m", boost_error=False).svg_inline(
        border=QUIET_ZONE, dark="#000", light="#fff", omitsize=True, svgclass="qr", lineclass=None
    )
    return Markup(drawing)  # noqa: S704 - segno's own, of letters, digits and dashes
