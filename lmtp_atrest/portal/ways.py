"""The other ways into a mailbox: recovery code, app passwords, admin recovery; and none at all."""

from starlette.responses import Response

from lmtp_atrest.portal.codepage import show_code
from lmtp_atrest.portal.standing import Standing
from lmtp_atrest.portal.visit import Refusal, Visit
from lmtp_atrest.unlock.requests import (
    AccountAdmin,
    AccountCode,
    AccountFreeze,
    AccountThaw,
    AppPasswordAdd,
    AppPasswordRemove,
)

LABEL_LIMIT = 64


async def _encrypted(visit: Visit, template: str) -> Response:
    """A page that only an encrypted mailbox has."""
    standing = Standing.of(await visit.overview())
    if not standing.encrypted:
        return visit.redirect()
    return visit.page(template, standing=standing)


# ---- recovery code


async def show_new_code(visit: Visit) -> Response:
    """What a new code does to the one before, and the form."""
    return await _encrypted(visit, "new-code.html")


async def new_code(visit: Visit) -> Response:
    """A new code; the one before opens nothing any more."""
    secret = visit.secret("secret")
    reply = await visit.ask(AccountCode(visit.name, secret, source=visit.source))
    return show_code(visit, str(reply["code"]))


# ---- app passwords


async def show_app_passwords(visit: Visit) -> Response:
    """Which there are, and the forms to make and to remove one."""
    return await _encrypted(visit, "app-passwords.html")


async def add_app_password(visit: Visit) -> Response:
    """A new one, shown once."""
    label = visit.form.text("label")
    if not 0 < len(label) <= LABEL_LIMIT:
        raise Refusal("app-passwords.no-label", "label")
    secret = visit.secret("secret")
    question = AppPasswordAdd(visit.name, secret, label, source=visit.source)
    reply = await visit.ask(question, state="app-passwords.refused")
    return visit.page("app-password.html", made=str(reply["app_password"]), label=label)


async def remove_app_password(visit: Visit) -> Response:
    """One less, and new keys."""
    handle = visit.form.text("handle")
    if not handle:
        raise Refusal("app-passwords.none-chosen", "handle")
    secret = visit.secret("remove_secret")
    question = AppPasswordRemove(visit.name, handle, secret, source=visit.source)
    await visit.ask(question, field="remove_secret", state="app-passwords.gone")
    return visit.redirect("app-passwords", flash="app-passwords.removed")


# ---- freezing


async def show_freeze(visit: Visit) -> Response:
    """What freezing does; or, for a frozen mailbox, how to thaw it."""
    return await _encrypted(visit, "freeze.html")


async def freeze(visit: Visit) -> Response:
    """Nobody opens the mailbox any more."""
    await visit.ask(AccountFreeze(visit.name))
    return visit.redirect(flash="freeze.done")


async def thaw(visit: Visit) -> Response:
    """It opens again."""
    code = visit.secret("code")
    question = AccountThaw(visit.name, code, "code", source=visit.source)
    await visit.ask(question, field="code", wrong="code.wrong")
    return visit.redirect(flash="thaw.done")


# ---- admin recovery


async def show_admin_recovery(visit: Visit) -> Response:
    """Whether the administrator could open the mailbox, and the choice where there is one."""
    return await _encrypted(visit, "admin-recovery.html")


async def choose_admin_recovery(visit: Visit) -> Response:
    """The owner's word on it."""
    wanted = visit.form.text("choice") == "accept"
    if not wanted and visit.form.text("choice") != "refuse":
        raise Refusal("admin-recovery.none-chosen", "choice")
    secret = visit.secret("secret")
    question = AccountAdmin(visit.name, secret, wanted, source=visit.source)
    await visit.ask(question, state="admin-recovery.no-choice")
    return visit.redirect(flash="admin-recovery.accepted" if wanted else "admin-recovery.refused")
