"""An IMAP server that can do one thing: say whether a password is right. For the demo's portal.

On loopback, in the demo's own process, and gone with it; a site has its Dovecot instead.
"""

import base64
import socketserver
import threading
from collections.abc import Mapping
from typing import Any

from lmtp_atrest.secret import Secret


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    passwords: Mapping[str, Secret]


class _Connection(socketserver.StreamRequestHandler):
    timeout = 30
    server: _Server

    def handle(self) -> None:
        """As far as AUTHENTICATE PLAIN goes."""
        self._say("* OK ready")
        while line := self.rfile.readline(1000).decode("ascii", "replace").split():
            tag, verb = line[0], line[1].upper() if len(line) > 1 else ""
            match verb:
                case "CAPABILITY":
                    self._say("* CAPABILITY IMAP4rev1 AUTH=PLAIN")
                    self._say(f"{tag} OK done")
                case "AUTHENTICATE":
                    self._say("+ ")
                    right = self._is_right(self.rfile.readline(4000))
                    self._say(f"{tag} OK in" if right else f"{tag} NO [AUTHENTICATIONFAILED] no")
                case "LOGOUT":
                    self._say("* BYE")
                    self._say(f"{tag} OK done")
                    return
                case _:
                    self._say(f"{tag} BAD unknown")

    def _is_right(self, answer: bytes) -> bool:
        try:
            _, name, typed = base64.b64decode(answer).split(b"\0")
            password = self.server.passwords.get(name.decode())
        except ValueError:
            return False
        return password is not None and password == Secret(typed)

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


class DemoImap:
    """A running one; `address` is what `portal.authenticate` takes."""

    def __init__(self, passwords: Mapping[str, Secret]) -> None:
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.passwords = passwords
        self.address = f"imap://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "DemoImap":
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()
