"""Around all pages: headers on every answer, and short true words for every kind of trouble.

An error's text may hold what the request held. So the log gets kind and place of one that nobody
foresaw, and the user a page that says nothing of it.
"""

import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmtp_atrest.errors import AtRestError, Busy
from lmtp_atrest.portal import forms
from lmtp_atrest.portal.place import Place
from lmtp_atrest.portal.visit import Refusal, Visit, busy
from lmtp_atrest.telemetry import logger

log = logger("portal")

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
HSTS = "max-age=31536000"
REQUESTS_LIMIT = 200

Handler = Callable[[Visit], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: `show` answers GET, and a form that was refused; `act` answers a form."""

    path: str
    show: Handler | None = None
    act: Handler | None = None
    open_to_strangers: bool = False
    by_script: bool = False

    @property
    def methods(self) -> list[str]:
        """What may be done with it."""
        return [*(["GET"] if self.show else []), *(["POST"] if self.act else [])]


def endpoint(place: Place, page: Page) -> Callable[[Request], Awaitable[Response]]:
    """The page as Starlette calls it."""

    async def answer(request: Request) -> Response:
        visit = Visit.of(place, request, by_script=page.by_script)
        try:
            return await _answer(page, visit)
        except Refusal as refusal:
            # A form without a page of its own, or a page that cannot be shown.
            return _refused(visit, refusal)
        except HTTPException as error:
            return error_page(visit, error.status_code)
        except Busy as error:
            return _refused(visit, busy(error))
        except AtRestError as error:
            log.error("not answered", page=page.path, cause=str(error))
            return error_page(visit, 503)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.error(
                "unexpected",
                page=page.path,
                error=type(error).__name__,
                where=f"{where.filename}:{where.lineno}",
            )
            return error_page(visit, 500)

    return answer


async def _answer(page: Page, visit: Visit) -> Response:
    if visit.session is None and not page.open_to_strangers:
        if _from_elsewhere(visit):
            return visit.page("again.html")
        return visit.redirect("sign-in")
    if visit.request.method == "POST":
        visit.form = await forms.read(visit.request)
        if visit.is_forged():
            raise HTTPException(403)
    if visit.request.method != "POST":
        assert page.show is not None  # noqa: S101 - by its methods
        return await page.show(visit)
    assert page.act is not None  # noqa: S101 - by its methods
    try:
        return await page.act(visit)
    except Refusal as refusal:
        if page.show is None:
            raise
        visit.refusal = refusal
        return await page.show(visit)


def _from_elsewhere(visit: Visit) -> bool:
    """Whether a link on another site led here: then the browser keeps the session's cookie back,
    and sends it when the page asks for itself once more."""
    fetched = visit.request.headers.get("sec-fetch-site", "")
    return visit.request.method == "GET" and fetched == "cross-site" and not visit.session_id


def _refused(visit: Visit, refusal: Refusal) -> Response:
    visit.refusal = refusal
    return visit.page("error.html", text=visit.texts(refusal.key, **refusal.values), status=200)


def error_page(visit: Visit, status: int) -> Response:
    """A short page for an error that has no page of its own."""
    key = status if status in (400, 403, 404, 405, 408, 413, 415, 503) else 500
    return visit.page("error.html", status, text=visit.texts(f"http.{key}"))


def failed(place: Place) -> Callable[[Request, Exception], Response]:
    """Starlette's own refusals: no such page, not this method."""

    def answer(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        response = error_page(Visit.of(place, request), status)
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    return answer


class Headers:
    """Puts what belongs on every answer on every answer; lets no more in than can be answered."""

    def __init__(
        self, app: ASGIApp, *, secure: bool, static: str, limit: int = REQUESTS_LIMIT
    ) -> None:
        self._app = app
        self._headers = dict(HEADERS)
        if secure:
            self._headers["strict-transport-security"] = HSTS
        self._static = static
        self._limit = limit
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] != "http":
            return
        answer = _Answer(send, self._headers_of(scope["path"]))
        self._under_way += 1
        try:
            if self._under_way > self._limit:
                await _BUSY(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except Exception as error:
            # What even the error page could not be made of.
            log.error("no answer", error=type(error).__name__)
            if not answer.started:
                await _FAILED(scope, receive, answer)
        finally:
            self._under_way -= 1

    def _headers_of(self, path: str) -> dict[str, str]:
        if path.startswith(self._static):
            return self._headers
        return {**self._headers, "cache-control": "no-store"}


_BUSY = PlainTextResponse("busy, please try again", 503, {"retry-after": "5"})
_FAILED = PlainTextResponse("temporary failure", 500)


class _Answer:
    """What the page sends, with our headers in place of its own of the same name."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send = send
        self._headers = headers
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            theirs = [
                (name, value)
                for name, value in message["headers"]
                if name.decode("latin-1").lower() not in self._headers
            ]
            ours = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            message["headers"] = theirs + ours
        await self._send(message)
