"""A TCP proxy that breaks connections between an MTA and an LMTP server at the worst moments."""

import contextlib
import select
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator, Sequence
from enum import Enum

END = b"\r\n.\r\n"
RESET = struct.pack("ii", 1, 0)


class Cut(Enum):
    """When a connection is cut: the server has all but the dot, or has stored and answered."""

    BEFORE_THE_DOT = "before"
    AFTER_THE_DOT = "after"


class _Relay(socketserver.BaseRequestHandler):
    """One connection; returning closes both sides, the server's with a reset.

    An orderly close after QUIT would tell the server that its replies were read.
    """

    server: "_Proxy"

    def handle(self) -> None:
        cut = next(self.server.plan, None)
        sent = b""
        client: socket.socket = self.request
        with socket.create_connection(("127.0.0.1", self.server.target)) as upstream:
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            other = {client: upstream, upstream: client}
            while True:
                side = select.select(list(other), [], [])[0][0]
                block = side.recv(1 << 16)
                if not block or (side is upstream and cut is Cut.AFTER_THE_DOT and END in sent):
                    return
                if side is client:
                    sent += block
                    if cut is Cut.BEFORE_THE_DOT and END in sent:
                        upstream.sendall(block[: sent.index(END) - len(sent)])
                        return
                other[side].sendall(block)


class _Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    plan: Iterator[Cut]
    target: int


@contextlib.contextmanager
def cutter(target: int, plan: Sequence[Cut]) -> Iterator[int]:
    """Listen, and yield the port; the first connections are cut as planned, all others live."""
    with _Proxy(("127.0.0.1", 0), _Relay) as proxy:
        proxy.plan, proxy.target = iter(plan), target
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy.server_address[1]
        finally:
            proxy.shutdown()
            thread.join()
