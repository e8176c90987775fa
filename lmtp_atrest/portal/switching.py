"""Switching encryption on and off, and the recovery code that comes with it."""

from starlette.responses import Response

from lmtp_atrest.errors import Busy, WrongSecret
from lmtp_atrest.portal.codepage import show_code
from lmtp_atrest.portal.standing import Standing
from lmtp_atrest.portal.visit import Refusal, Visit, busy
from lmtp_atrest.unlock.requests import AccountDisable, AccountEnable


async def show_on(visit: Visit) -> Response:
    """What it means, what can be lost, and the form."""
    standing = Standing.of(await visit.overview())
    if standing.encrypted:
        return visit.redirect()
    return visit.page("switch-on.html", standing=standing)


async def switch_on(visit: Visit) -> Response:
    """From now on mail is encrypted; the recovery code is shown once."""
    secret = visit.secret("secret")
    if visit.place.config.atrest.enrolment == "closed":
        raise Refusal("switch-on.closed", status=409)
    if not visit.form.ticked("understood"):
        raise Refusal("switch-on.not-ticked", "understood")
    # Whatever is typed here opens the mail from now on: a typo must not.
    try:
        found = await visit.place.verify(visit.name, secret, visit.source)
    except Busy as error:
        raise busy(error) from None
    except WrongSecret:
        found = None
    if found != visit.name:
        raise Refusal("secret.wrong", "secret")
    reply = await visit.ask(AccountEnable(visit.name, secret), state="switch-on.refused")
    code = str(reply.get("code", ""))
    return show_code(visit, code) if code else visit.redirect(flash="switch-on.done")


async def show_off(visit: Visit) -> Response:
    """What becomes of mail that is encrypted, and the form; or the way back."""
    standing = Standing.of(await visit.overview())
    if not standing.encrypted:
        return visit.redirect()
    return visit.page("switch-off.html", standing=standing)


async def switch_off(visit: Visit) -> Response:
    """New mail is stored as it comes; or, `undo`, encrypted after all."""
    undo = visit.form.ticked("undo")
    secret = visit.secret("secret")
    await visit.ask(AccountDisable(visit.name, secret, undo, source=visit.source))
    return visit.redirect(flash="switch-off.undone" if undo else "switch-off.done")
