"""Passwords: changing one, coming back by the recovery code, and joining one that was changed.

The last two work without being signed in: the code, or the password from before, says who asks.
"""

import asyncio

from starlette.responses import JSONResponse, Response

from lmtp_atrest.errors import BadCode, Busy, NotFound, UsageError, WrongSecret, WrongState
from lmtp_atrest.portal.codepage import show_code
from lmtp_atrest.portal.standing import Standing
from lmtp_atrest.portal.visit import Refusal, Visit, busy
from lmtp_atrest.secret import Secret
from lmtp_atrest.strength import judge
from lmtp_atrest.unlock.protocol import Reply
from lmtp_atrest.unlock.requests import AccountJoin, AccountPassword, AccountRecover, Request

JUDGING_LIMIT = 8
_judging = asyncio.Semaphore(JUDGING_LIMIT)


# ---- changing it


async def show_password(visit: Visit) -> Response:
    """The form; where the site's password is not ours to change, the way to join."""
    if visit.place.config.site.password_command is None:
        return visit.redirect("changed")
    standing = Standing.of(await visit.overview())
    if not standing.encrypted:
        return visit.redirect()
    return visit.page("password.html", standing=standing)


async def change_password(visit: Visit) -> Response:
    """The new one counts for the site and for the mail."""
    secret, new = visit.secret("secret"), await _new_secret(visit, visit.name)
    question = AccountPassword(visit.name, secret, new, source=visit.source)
    await visit.ask(question, state="password.not-taken")
    _start_anew(visit, visit.name)
    return visit.redirect(flash="password.done")


# ---- forgotten


async def show_forgot(visit: Visit) -> Response:
    """The form for name, code and new password."""
    return visit.page("forgot.html")


async def recover(visit: Visit) -> Response:
    """A new password by the recovery code, and a new code."""
    name = _name(visit)
    code, new = visit.secret("code"), await _new_secret(visit, name)
    at_site = visit.place.config.site.password_command is not None
    question = AccountRecover(name, code, new, source=visit.source, at_site=at_site)
    reply = await _by_secret(visit, question, "code", "forgot.wrong", Refusal("forgot.refused"))
    found = str(reply["names"][0])
    _start_anew(visit, found)
    if "code" not in reply.fields:
        return visit.redirect(flash="forgot.done")
    return show_code(visit, str(reply["code"]))


# ---- changed elsewhere


async def show_changed(visit: Visit) -> Response:
    """The form for the present password, and the older one or the code."""
    return visit.page("changed.html")


async def join(visit: Visit) -> Response:
    """The present password opens the mail that the older secret opens."""
    name = _name(visit)
    by = "code" if visit.form.text("by") == "code" else "password"
    new = _repeated(visit)
    question = AccountJoin(
        name,
        new,
        visit.secret("old"),
        by,
        compromised=visit.form.ticked("compromised"),
        accept_admin=visit.form.ticked("accept_admin"),
        source=visit.source,
    )
    asked = Refusal("changed.admin", "accept_admin")
    reply = await _by_secret(visit, question, "old", "changed.wrong", asked)
    _start_anew(visit, str(reply["names"][0]))
    return visit.redirect(flash="changed.done")


# ---- strength


async def strength(visit: Visit) -> Response:
    """How hard a password would be to guess, in words, for the script beside the field."""
    secret = visit.form.secret("new")
    if not secret:
        return JSONResponse({"score": 0, "text": ""})
    score = await _score(visit, secret, visit.name or visit.form.text("name"))
    return JSONResponse({"score": score, "text": visit.texts(f"strength.{score}")})


async def _score(visit: Visit, secret: Secret, name: str) -> int:
    """0 to 4; each takes some 50 ms, so not for more at once than would be people."""
    if _judging.locked():
        raise Refusal("error.busy", status=429, seconds=1)
    async with _judging:
        about = (name, visit.place.portal.name)
        return (await asyncio.to_thread(judge, secret, about)).score


# ---- shared


def _name(visit: Visit) -> str:
    name = visit.name or visit.form.text("name")
    if not name:
        raise Refusal("field.empty", "name")
    return name


def _repeated(visit: Visit) -> Secret:
    new = visit.secret("new")
    if new != visit.form.secret("repeat"):
        raise Refusal("secret.not-repeated", "repeat")
    return new


async def _new_secret(visit: Visit, name: str) -> Secret:
    """A password that was typed twice, and that the site finds hard enough to guess."""
    new = _repeated(visit)
    score = await _score(visit, new, name)
    if score < visit.place.config.atrest.minimum_strength:
        raise Refusal("secret.too-weak", "new", strength=visit.texts(f"strength.{score}"))
    return new


async def _by_secret(
    visit: Visit, question: Request, field: str, wrong: str, asked: Refusal
) -> Reply:
    """The answer to somebody whom only the secret in the question names.

    `asked` is the refusal for what is not done although the secret is right.

    One refusal for a name that is nobody's, mail that is not encrypted, and a secret that is
    wrong, and all at the same time.
    """
    began = asyncio.get_running_loop().time()
    try:
        return await visit.place.ask(question)
    except BadCode:
        raise Refusal("code.typo", field) from None
    except Busy as error:
        raise busy(error) from None
    except UsageError:
        raise asked from None
    except (WrongSecret, WrongState, NotFound):
        await visit.place.hold_back(began)
        raise Refusal(wrong, field, 403) from None


def _start_anew(visit: Visit, name: str) -> None:
    """What let others in has changed: whoever is signed in by this name signs in again, but for
    the one who changed it, who goes on under a new id."""
    visit.place.sessions.end_all(name)
    visit.sign_in(name)
