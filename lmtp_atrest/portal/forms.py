"""Forms: urlencoded, small, each field once. Nothing of them is ever written anywhere."""

import asyncio
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from lmtp_atrest.secret import Secret

FORM_BYTES = 8 * 1024
FIELDS_LIMIT = 20
FORM_SECONDS = 15.0
TEXT_LIMIT = 512


class Form:
    """The fields of one form."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields

    def __repr__(self) -> str:
        return "Form(…)"

    def text(self, name: str) -> str:
        """A field that is no secret, without blanks around it; empty where it is missing."""
        value = self._fields.get(name, "").strip()
        return value if len(value) <= TEXT_LIMIT and value.isprintable() else ""

    def secret(self, name: str) -> Secret:
        """A password or code as it was typed; empty where it is missing."""
        return Secret(self._fields.get(name, "").encode())

    def ticked(self, name: str) -> bool:
        """Whether a box is ticked."""
        return name in self._fields


async def read(request: Request) -> Form:
    """The form of a request; HTTPException 400, 408, 413 or 415 for what is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415)
    try:
        async with asyncio.timeout(FORM_SECONDS):
            body = await _body(request)
    except TimeoutError:
        raise HTTPException(408) from None
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=FIELDS_LIMIT,
            errors="strict",
        )
    except ValueError:  # also UnicodeDecodeError, which would quote the body
        raise HTTPException(400) from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise HTTPException(400)
    return Form(fields)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise HTTPException(413)
    return bytes(body)
