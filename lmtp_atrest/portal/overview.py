"""The overview, and what is done from it at a click: lock, and a look at what happened."""

from starlette.responses import JSONResponse, Response

from lmtp_atrest.portal.standing import Standing
from lmtp_atrest.portal.visit import Visit
from lmtp_atrest.unlock.requests import SessionLock


async def show_overview(visit: Visit) -> Response:
    """How the account stands, who could open it, and what can be done."""
    return visit.page("overview.html", standing=Standing.of(await visit.overview()))


async def progress(visit: Visit) -> Response:
    """The figures of the progress bar, for the script that keeps it going."""
    standing = Standing.of(await visit.overview())
    found = standing.progress
    if found is None:
        return JSONResponse({"known": False})
    return JSONResponse(
        {
            "known": True,
            "encrypted": found.encrypted,
            "total": found.total,
            "running": found.running or found.left > 0,
            "text": visit.texts("progress.figures", encrypted=found.encrypted, left=found.left),
        }
    )


async def lock(visit: Visit) -> Response:
    """Close the vault, and have the sessions ended that read from it."""
    reply = await visit.ask(SessionLock(visit.name))
    ended = reply["readers_remaining"] == 0
    return visit.redirect(flash="lock.done" if ended else "lock.done-here")


async def show_activity(visit: Visit) -> Response:
    """Who opened the mailbox, and what changed."""
    return visit.page("activity.html", standing=Standing.of(await visit.overview()))
