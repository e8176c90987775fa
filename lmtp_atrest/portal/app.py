"""The portal's pages at their addresses."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from lmtp_atrest.portal import codepage, entering, overview, passwords, switching, ways
from lmtp_atrest.portal.place import HERE, Place
from lmtp_atrest.portal.shell import Headers, Page, endpoint, failed

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

PAGES = (
    Page("/", overview.show_overview),
    Page("/sign-in", entering.show_sign_in, entering.sign_in, True),
    Page("/sign-out", None, entering.sign_out),
    Page("/language/{language}", entering.choose_language, None, True),
    Page("/switch-on", switching.show_on, switching.switch_on),
    Page("/switch-off", switching.show_off, switching.switch_off),
    Page("/code-check", codepage.show_check, codepage.check),
    Page("/code", ways.show_new_code, ways.new_code),
    Page("/password", passwords.show_password, passwords.change_password),
    Page("/forgot", passwords.show_forgot, passwords.recover, True),
    Page("/changed", passwords.show_changed, passwords.join, True),
    Page("/strength", None, passwords.strength, True),
    Page("/app-passwords", ways.show_app_passwords, ways.add_app_password),
    Page("/app-passwords/remove", ways.show_app_passwords, ways.remove_app_password),
    Page("/freeze", ways.show_freeze, ways.freeze),
    Page("/thaw", ways.show_freeze, ways.thaw),
    Page("/admin-recovery", ways.show_admin_recovery, ways.choose_admin_recovery),
    Page("/lock", None, overview.lock),
    Page("/progress", overview.progress, by_script=True),
    Page("/activity", overview.show_activity),
)
COLOURS = """:root {{ --accent: {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ --accent: {dark} }} }}
"""


def build(place: Place) -> ASGIApp:
    """The whole portal, below the path of its address."""
    base = place.address.path
    routes: list[BaseRoute] = [
        Route(page.path, endpoint(place, page), methods=page.methods) for page in PAGES
    ]
    routes += [
        Route("/static/colours.css", _colours(place)),
        *([Route("/static/logo", _logo(place.portal.logo))] if place.portal.logo else []),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    app = Starlette(
        routes=[Mount(base, routes=routes)] if base else routes,
        exception_handlers={HTTPException: failed(place), Exception: failed(place)},
    )
    return Headers(app, secure=place.address.secure, static=f"{base}/static/")


def _colours(place: Place) -> Endpoint:
    text = COLOURS.format(**place.portal.colours.model_dump())

    async def colours(_request: Request) -> Response:
        return Response(text, media_type="text/css")

    return colours


def _logo(path: Path) -> Endpoint:
    async def logo(_request: Request) -> Response:
        return FileResponse(path)

    return logo
