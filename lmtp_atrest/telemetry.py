"""Logs: one line an event, JSON on standard output, or readable text on a terminal.

No content of mail and no secret is logged at any level: `Secret` and raw bytes are dropped here,
whoever passes them, and the loggers of libraries that know content (aiosmtpd logs every line of a
message at DEBUG) are capped at WARNING.
"""

import json as json_module
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from lmtp_atrest.secret import Secret

CAPPED_LOGGERS = ("mail", "mail.log", "mail.debug", "asyncio", "alembic", "sqlalchemy")


def _drop_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace whatever may be a secret or content by its type."""
    for key, value in event.items():
        if isinstance(value, Secret | bytes | bytearray | memoryview):
            event[key] = f"<{type(value).__name__}>"
    return event


# One encoder for all lines; `json.dumps` would make one for each. What JSON has no form for is
# told by its repr, like the bytes that `_drop_secrets` has replaced by then.
_ENCODER = json_module.JSONEncoder(default=repr)


def _as_json(event: Any, **_options: Any) -> str:
    return _ENCODER.encode(event)


def configure(level: str = "info", stream: TextIO | None = None, json: bool | None = None) -> None:
    """Set up logging for this process, once. `json` is decided by the stream unless given."""
    out = sys.stdout if stream is None else stream
    as_json = (not out.isatty()) if json is None else json
    for name in CAPPED_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    renderer: Any = (
        structlog.processors.JSONRenderer(_as_json)
        if as_json
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # The trace without the values of local variables: those would hold content.
            structlog.processors.format_exc_info,
            _drop_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )


def logger(component: str) -> Any:
    """A logger that names its component in every line."""
    return structlog.get_logger(component=component)


def alarm(component: str, event: str, **fields: Any) -> None:
    """Report what only an attack or a restored backup explains; operators page on `alarm`."""
    logger(component).critical(event, alarm=True, **fields)
