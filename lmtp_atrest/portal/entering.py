"""Signing in and out, and the choice of a language."""

import asyncio

from starlette.responses import Response

from lmtp_atrest.errors import Busy, WrongSecret
from lmtp_atrest.portal.visit import (
    LANGUAGE_COOKIE,
    LANGUAGE_SECONDS,
    Refusal,
    Visit,
    busy,
)
from lmtp_atrest.telemetry import logger
from lmtp_atrest.texts import LANGUAGES

log = logger("portal")

# Where the choice of a language may lead back to; anything else leads to the overview.
BACK = frozenset(
    {
        "sign-in",
        "switch-on",
        "switch-off",
        "password",
        "forgot",
        "changed",
        "code",
        "app-passwords",
        "freeze",
        "admin-recovery",
        "activity",
    }
)


async def show_sign_in(visit: Visit) -> Response:
    """The form; whoever is signed in already goes on to the overview."""
    if visit.session is not None:
        return visit.redirect()
    return visit.page("sign-in.html")


async def sign_in(visit: Visit) -> Response:
    """A new session for whoever knows the password."""
    name, secret = visit.form.text("name"), visit.secret("secret")
    if not name:
        raise Refusal("field.empty", "name")
    began = asyncio.get_running_loop().time()
    try:
        found = await visit.place.verify(name, secret, visit.source)
    except Busy as error:
        raise busy(error) from None
    except WrongSecret:
        found = None
    if found is None:
        await visit.place.hold_back(began)
        log.info("not signed in", source=visit.source)
        raise Refusal("sign-in.wrong", "secret", 403)
    visit.sign_in(found)
    return visit.redirect()


async def sign_out(visit: Visit) -> Response:
    """Nobody is signed in any more."""
    visit.sign_out()
    return visit.redirect("sign-in")


async def choose_language(visit: Visit) -> Response:
    """Remember a language, and lead back."""
    language = visit.request.path_params["language"]
    back = visit.request.query_params.get("back", "")
    if language in LANGUAGES:
        visit.remember(LANGUAGE_COOKIE, language, LANGUAGE_SECONDS)
    return visit.redirect(back if back in BACK else "")
