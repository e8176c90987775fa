"""The portal as a service: uvicorn with its limits, without its log of who looked at what."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn

from lmtp_atrest.config import Config
from lmtp_atrest.errors import TemporaryFailure
from lmtp_atrest.portal.app import build
from lmtp_atrest.portal.place import Place
from lmtp_atrest.telemetry import logger

CONNECTIONS_LIMIT = 1000  # then a bare 503 without a page; requests have a limit of their own
KEEP_ALIVE_SECONDS = 15
DRAIN_SECONDS = 20

log = logger("portal")


class _Server(uvicorn.Server):
    """One that leaves signals to whoever started it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(config: Config, listening: socket.socket, stopping: asyncio.Event) -> None:
    """Answer on this socket until `stopping` is set; requests under way are answered."""
    # asyncio leaves it off for a socket that was made without naming the protocol: the body of an
    # answer, written after its head, then waits 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = _Server(_loaded(_settings(config)))
    log.info("serving", url=config.portal.url)
    waiting = asyncio.create_task(_stop(server, stopping))
    try:
        await server.serve([listening])
    finally:
        waiting.cancel()
        log.info("stopped")


def _loaded(settings: uvicorn.Config) -> uvicorn.Config:
    try:
        settings.load()
    except OSError as error:  # also of a certificate that is none
        message = f"portal: {settings.ssl_certfile} or its key cannot be used: {error.strerror}"
        raise TemporaryFailure(message) from error
    return settings


async def _stop(server: uvicorn.Server, stopping: asyncio.Event) -> None:
    await stopping.wait()
    server.should_exit = True


def _settings(config: Config) -> uvicorn.Config:
    portal = config.portal
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # its errors show requests
    return uvicorn.Config(
        build(Place(config)),
        log_config=None,
        access_log=False,
        server_header=False,
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        proxy_headers=portal.tls is None,
        forwarded_allow_ips=list(portal.trusted_proxies),
        ssl_certfile=portal.tls.certificate if portal.tls else None,
        ssl_keyfile=portal.tls.key if portal.tls else None,
        limit_concurrency=CONNECTIONS_LIMIT,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        backlog=256,
    )
