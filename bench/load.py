"""What is sent, and what one run of Postfix's load generator tells."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench import processes
from bench.servers import DOMAIN, Server
from tests.peers.clients import smtp_source
from tests.peers.root import attempts

IDLE = 0.1
LARGE = 50_000_000  # with its dots and ends below the limit of 50 MiB


@dataclass(frozen=True, slots=True)
class Case:
    """Messages of `size` bytes over so many connections; each message over a new one, as
    smtp-source does unless told to keep them."""

    title: str
    size: int
    connections: int
    messages: int
    recipients: int = 1
    keep: bool = False

    def arguments(self, messages: int) -> list[str]:
        """The options of smtp-source for so many messages."""
        options = ["-L", "-s", str(self.connections), "-l", str(self.size), "-m", str(messages)]
        options += ["-r", str(self.recipients)] if self.recipients > 1 else []
        options += ["-d"] if self.keep else []
        return [*options, "-f", "sender@bench.example", "-t", f"user@{DOMAIN}"]


CASES = (
    Case("4 KB, 8 connections", 4096, 8, 3000),
    Case("4 KB, 1 connection", 4096, 1, 600),
    Case("4 KB, 8 connections, kept", 4096, 8, 3000, keep=True),
    Case("50 KB, 8 connections", 50_000, 8, 1500),
    Case("50 KB, 1 connection", 50_000, 1, 400),
    Case("1 MB, 8 connections", 1_000_000, 8, 300),
    Case("1 MB, 1 connection", 1_000_000, 1, 100),
    Case("4 KB, 8 connections, 50 recipients", 4096, 8, 40, recipients=50),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run: deliveries (a message for a recipient), and the server's CPU time."""

    deliveries: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Deliveries a second."""
        return self.deliveries / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU time of the server for one delivery."""
        return self.cpu / self.deliveries * 1000


def run(case: Case, server: Server, share: float) -> Run:
    """Send that share of the case's messages to an empty server."""
    server.empty()
    smtp_source(server.host, *case.arguments(case.connections), port=server.port)  # warm
    messages = max(int(case.messages * share), case.connections)
    cpu, start = server.cpu(), time.monotonic()
    smtp_source(server.host, *case.arguments(messages), port=server.port)
    seconds = time.monotonic() - start
    return Run(messages * case.recipients, seconds, server.cpu() - cpu)


def in_turn(
    case: Case, servers: Sequence[Server], rounds: int, share: float
) -> dict[str, list[Run]]:
    """Each server's runs of a case: A B C A B C."""
    runs: dict[str, list[Run]] = {server.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            runs[server.name].append(run(case, server, share))
    return runs


def ratio(runs: Sequence[Run], others: Sequence[Run]) -> float:
    """The median of the ratios within the rounds: what slows a round down slows both."""
    return median(one.rate / other.rate for one, other in zip(runs, others, strict=True))


def peak_growth(server: Server) -> int:
    """By how much a single worker's memory peaks while eight connections send 50 MB each."""
    service = server.service
    assert service is not None  # noqa: S101 - asked of ours only
    service.stop()
    service.workers(1)
    service.start()
    small = Case("", 4096, 8, 0)
    smtp_source(server.host, *small.arguments(200), port=server.port)
    pids = processes.children(service.pid)
    for pid in pids:
        processes.reset_peak(pid)
    before = {pid: processes.memory(pid, "VmRSS") for pid in pids}
    smtp_source(server.host, *Case("", LARGE, 8, 0).arguments(8), port=server.port)
    growth = max(processes.memory(pid, "VmHWM") - before[pid] for pid in pids)
    server.empty()
    return growth


def wait_until_idle(seconds: float = 20) -> float:
    """Wait until others leave the processors alone for a second; the share they still use."""
    busy = 1.0
    try:
        for _ in attempts("an idle machine", seconds):
            busy = processes.busy_share(1.0)
            if busy < IDLE:
                break
    except TimeoutError:
        pass  # said in the report
    return busy
