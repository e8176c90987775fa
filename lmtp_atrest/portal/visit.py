"""One request: who asks, in which language, what was typed, and the page that answers."""

from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from lmtp_atrest.errors import (
    BadCode,
    Busy,
    Conflict,
    NotFound,
    UsageError,
    WrongSecret,
    WrongState,
)
from lmtp_atrest.portal.forms import Form
from lmtp_atrest.portal.place import Place
from lmtp_atrest.portal.sessions import Session, new_id
from lmtp_atrest.portal.texts import Texts, chosen
from lmtp_atrest.secret import Secret
from lmtp_atrest.texts import LANGUAGES
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import PortalOverview
from lmtp_atrest.unlock.requests import Request as Question

LANGUAGE_COOKIE = "atrest-language"
LANGUAGE_SECONDS = 400 * 86400


class Refusal(Exception):
    """What was asked for is not done: `key` is the text that says why, `field` where it lies."""

    def __init__(self, key: str, field: str = "", status: int = 422, **values: Any) -> None:
        super().__init__(key)
        self.key = key
        self.field = field
        self.status = status
        self.values = values


@dataclass(slots=True)
class Visit:
    """What a page's functions get."""

    place: Place
    request: Request
    session_id: str = ""
    session: Session | None = None
    form: Form = field(default_factory=lambda: Form({}))
    refusal: Refusal | None = None
    form_cookie: str = ""
    _cookies: list[tuple[str, str, int | None]] = field(default_factory=list)
    _overview: Reply | None = None

    @classmethod
    def of(cls, place: Place, request: Request, *, by_script: bool = False) -> "Visit":
        """Find out who asks; a script that asks again and again keeps no session alive."""
        visit = cls(place, request)
        visit.session_id = request.cookies.get(visit.cookie("session"), "")
        if visit.session_id:
            visit.session = place.sessions.find(visit.session_id, used=not by_script)
        visit.form_cookie = request.cookies.get(visit.cookie("form"), "")
        return visit

    # ---- who

    @property
    def name(self) -> str:
        """Who is signed in; empty for a stranger."""
        return self.session.name if self.session else ""

    @property
    def source(self) -> str:
        """The address of the user, as far as a trusted proxy told it."""
        return self.request.client.host if self.request.client else ""

    @property
    def texts(self) -> Texts:
        """The texts in the visitor's language."""
        language = chosen(
            self.request.cookies.get(LANGUAGE_COOKIE),
            self.request.headers.get("accept-language", ""),
            self.place.portal.language,
        )
        return self.place.texts[language]

    def sign_in(self, name: str) -> Session:
        """This browser is this user's from now on, under a new id."""
        self.place.sessions.end(self.session_id)
        self.session_id, self.session = self.place.sessions.begin(name)
        self.remember(self.cookie("session"), self.session_id)
        return self.session

    def sign_out(self) -> None:
        """Nobody is signed in any more."""
        self.place.sessions.end(self.session_id)
        self.session_id, self.session = "", None
        self.remember(self.cookie("session"), "", 0)

    # ---- forged forms

    def token(self) -> str:
        """What the forms of this page bring along."""
        if self.session is not None:
            return self.place.sessions.token(self.session_id)
        if not self.form_cookie:
            self.form_cookie = new_id()
            self.remember(self.cookie("form"), self.form_cookie)
        return self.place.sessions.token(self.form_cookie)

    def is_forged(self) -> bool:
        """Whether the form came from another site's page, or from another session's."""
        # `null` is what browsers say of our own pages, as these send no referrer: then the other
        # header tells, where the browser has it.
        origin = self.request.headers.get("origin", "null")
        fetched = self.request.headers.get("sec-fetch-site", "same-origin")
        if origin not in ("null", self.origin) or fetched != "same-origin":
            return True
        cookie = self.session_id if self.session is not None else self.form_cookie
        token = self.form.text("token")
        return not cookie or not self.place.sessions.token_fits(token, cookie)

    @property
    def origin(self) -> str:
        """The portal's own origin."""
        return self.place.address.origin

    # ---- asking

    async def ask(
        self,
        question: Question,
        *,
        wrong: str = "secret.wrong",
        field: str = "secret",
        state: str = "error.state",
    ) -> Reply:
        """The unlock service's answer; Refusal with the texts named where it refuses."""
        try:
            return await self.place.ask(question)
        except Busy as error:
            raise busy(error) from None
        except WrongSecret:
            raise Refusal(wrong, field) from None
        except BadCode:
            raise Refusal("code.typo", field) from None
        except Conflict:
            raise Refusal("error.conflict", status=409) from None
        except (WrongState, NotFound, UsageError):
            raise Refusal(state, status=409) from None

    async def overview(self) -> Reply:
        """How the account stands; asked once a visit."""
        if self._overview is None:
            self._overview = await self.place.ask(PortalOverview(self.name))
        return self._overview

    def secret(self, name: str) -> Secret:
        """A password of the form; Refusal where it is empty or cannot be one."""
        secret = self.form.secret(name)
        if not secret:
            raise Refusal("field.empty", name)
        if any(byte < 0x20 or byte == 0x7F for byte in secret.reveal()):
            raise Refusal("secret.characters", name)
        return secret

    # ---- answering

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page, with the cookies that are due."""
        if self.refusal is not None:
            status = self.refusal.status
        texts = self.texts
        flash = ""
        if self.session is not None and self.session.flash:
            flash, self.session.flash = texts(self.session.flash), ""
        common = {
            "t": texts,
            "language": texts.language,
            "languages": LANGUAGES,
            "here": self.request.url.path.removeprefix(self.place.address.path).strip("/"),
            "base": self.place.address.path,
            "portal": self.place.portal,
            "config": self.place.config,
            "name": self.name,
            "token": self.token(),
            "flash": flash,
            "refusal": self.refusal,
            "form": self.form,
        }
        response = HTMLResponse(self._html(template, {**common, **values}), status)
        if self.refusal is not None and "seconds" in self.refusal.values:
            response.headers["Retry-After"] = str(self.refusal.values["seconds"])
        return self.with_cookies(response)

    def _html(self, template: str, values: dict[str, Any]) -> str:
        """A refusal stands beside its field; at the top where the page has no such field."""
        html = self.place.render(template, {**values, "refusal_on_top": False})
        if self.refusal is None or f'id="{self.refusal.field}-wrong"' in html:
            return html
        return self.place.render(template, {**values, "refusal_on_top": True})

    def redirect(self, to: str = "", flash: str = "") -> Response:
        """To another page of the portal; `flash` is the text to be shown there."""
        if flash and self.session is not None:
            self.session.flash = flash
        location = f"{self.place.address.path}/{to}"
        return self.with_cookies(RedirectResponse(location, 303))

    def remember(self, cookie: str, value: str, seconds: int | None = None) -> None:
        """Have the browser keep this for so long, or until it is closed; 0 makes it forget."""
        self._cookies.append((cookie, value, seconds))

    def with_cookies(self, response: Response) -> Response:
        """The response, with what the browser is to remember."""
        for name, value, age in self._cookies:
            response.set_cookie(
                name,
                value,
                max_age=age,
                path=self.place.address.path or "/",
                secure=self.place.address.secure,
                httponly=True,
                samesite="strict",
            )
        return response

    def cookie(self, what: str) -> str:
        """The name of a cookie: with a prefix that keeps neighbouring hosts from setting it."""
        if not self.place.address.secure:
            return f"atrest-{what}"
        prefix = "__Secure-" if self.place.address.path else "__Host-"
        return f"{prefix}atrest-{what}"


def busy(error: Busy) -> Refusal:
    """Too many tries, or too many people."""
    return Refusal("error.busy", status=429, seconds=max(1, round(error.retry_after + 0.5)))
