"""Whether the site's IMAP server takes a password: for people whose mail is not encrypted yet."""

import asyncio
import contextlib
import imaplib
import ssl
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from urllib.parse import urlsplit

from lmtp_atrest.errors import Busy, TemporaryFailure
from lmtp_atrest.secret import Secret

SECONDS = 20.0  # for each step; Dovecot holds back the answer to a wrong password for some
AT_ONCE = 32


class ImapLogin:
    """Asks the server at this address; `context` says whose certificates count."""

    def __init__(self, address: str, context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(address)
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "imaps"
        self._port = parts.port or (993 if self._tls else 143)
        self._context = context or ssl.create_default_context()
        # Of its own: whoever waits for the server keeps nothing else waiting.
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="imap")
        self._room = asyncio.Semaphore(AT_ONCE)

    async def accepts(self, name: str, secret: Secret) -> bool:
        """True where the server lets this user in. Busy; TemporaryFailure where it says neither
        yes nor no."""
        if self._room.locked():
            message = "too many wait for the IMAP server"
            raise Busy(message, 2.0)
        async with self._room:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._accepts, name, secret)

    def _accepts(self, name: str, secret: Secret) -> bool:
        try:
            connection = self._connect()
            try:
                return self._authenticated(connection, name, secret)
            finally:
                with contextlib.suppress(OSError, imaplib.IMAP4.error):
                    connection.logout()
        except (OSError, imaplib.IMAP4.error) as error:
            # The text may quote what the server sent.
            message = f"the IMAP server {self._host} gives no answer ({type(error).__name__})"
            raise TemporaryFailure(message) from None

    def _connect(self) -> imaplib.IMAP4:
        if self._tls:
            return imaplib.IMAP4_SSL(
                self._host, self._port, ssl_context=self._context, timeout=SECONDS
            )
        connection = imaplib.IMAP4(self._host, self._port, timeout=SECONDS)
        if not _is_loopback(self._host):  # there nobody listens in, and no certificate fits
            connection.starttls(self._context)
        return connection

    def _authenticated(self, connection: imaplib.IMAP4, name: str, secret: Secret) -> bool:
        # Not LOGIN: imaplib can quote ASCII only, and PLAIN takes any bytes.
        typed = b"\0" + name.encode() + b"\0" + secret.reveal()
        try:
            connection.authenticate("PLAIN", lambda _challenge: typed)
        except imaplib.IMAP4.abort:
            raise
        except imaplib.IMAP4.error as error:
            if b"UNAVAILABLE" in str(error).encode():
                raise
            return False
        return True


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
