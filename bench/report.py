"""The table, the bars, and the file that keeps both with the facts of the machine."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from bench.conversion import Converted, rates
from bench.load import Case, Run, ratio
from bench.servers import CRYPT, OURS, PLAIN

Results = Mapping[Case, Mapping[str, Sequence[Run]]]
LIBRARIES = ("lmtp-atrest", "cryptography", "PyNaCl", "SQLAlchemy", "aiosmtpd", "structlog")
MEMORY_BAR = 16 << 20
RATE_BAR = 3.0
CONVERSION_BARS = {"encrypt": 1500, "decrypt": 1000, "decrypt, 2048 rounds": 600}
LARGE_BAR = 64 << 20


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that is to be reached, and what was measured."""

    what: str
    measured: str
    met: bool

    def __str__(self) -> str:
        return f"{'met' if self.met else 'NOT MET':8} {self.what}: {self.measured}"


def table(results: Results) -> str:
    """One line a case: deliveries a second (and their spread), ratios, CPU time."""
    head = ("", OURS, CRYPT, PLAIN, "ours/crypt", "ours/plain", "CPU ms/delivery")
    rows = [head, *(_row(case, runs) for case, runs in results.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join(lines)


def _row(case: Case, runs: Mapping[str, Sequence[Run]]) -> tuple[str, ...]:
    ours, crypt, plain = (runs[name] for name in (OURS, CRYPT, PLAIN))
    ratios = (f"{ratio(ours, others):.1f}" for others in (crypt, plain))
    cpu = " / ".join(f"{cpu_ms(each):.2f}" for each in (ours, crypt, plain))
    return (case.title, *(_rate(each) for each in (ours, crypt, plain)), *ratios, cpu)


def _rate(runs: Sequence[Run]) -> str:
    rates = sorted(run.rate for run in runs)
    return f"{median(rates):.0f} ({rates[0]:.0f}-{rates[-1]:.0f})"


def cpu_ms(runs: Sequence[Run]) -> float:
    """The median of a server's CPU time for a delivery."""
    return median(run.cpu_ms for run in runs)


def bars(
    results: Results, growth: int, converted: Sequence[Converted], grown: Mapping[str, int]
) -> list[Bar]:
    """What is asked of delivery and of conversion."""
    runs = next(iter(results.values()))
    reached = ratio(runs[OURS], runs[CRYPT])
    return [
        Bar(
            f"at least {RATE_BAR:.0f} times Dovecot with mail_crypt, 4 KB, 8 connections",
            f"{reached:.1f} times",
            reached >= RATE_BAR,
        ),
        Bar(
            f"a worker's peak grows by less than {MEMORY_BAR >> 20} MiB, 8 connections of 50 MB",
            f"{growth / (1 << 20):.1f} MiB",
            growth < MEMORY_BAR,
        ),
        *_conversion_bars(converted, grown),
    ]


def _conversion_bars(converted: Sequence[Converted], grown: Mapping[str, int]) -> list[Bar]:
    ours = rates(converted, OURS)
    times = ours["encrypt"] / rates(converted, CRYPT)["encrypt"]
    most = max(grown.values())
    return [
        *(
            Bar(
                f"{what}, {bar} messages of 10 KB a second", f"{ours[what]:.0f}", ours[what] >= bar
            )
            for what, bar in CONVERSION_BARS.items()
        ),
        Bar(
            f"encrypt {RATE_BAR:.0f} times as fast as doveadm import",
            f"{times:.1f} times",
            times >= RATE_BAR,
        ),
        Bar(
            f"one message of 2 GiB in less than {LARGE_BAR >> 20} MiB",
            f"{most / (1 << 20):.1f} MiB",
            most < LARGE_BAR,
        ),
    ]


def machine(disk: str, versions: Mapping[str, str], busy: float) -> dict[str, Any]:
    """What figures depend on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "processor": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": disk,
        "busy_before": round(busy, 2),
        **versions,
        **{name: version(name) for name in LIBRARIES},
    }


def save(
    path: Path,
    facts: Mapping[str, Any],
    results: Results,
    growth: int,
    converted: Sequence[Converted],
    grown: Mapping[str, int],
    reached: Sequence[Bar],
) -> None:
    """Write everything that was measured, every single run too."""
    cases = [
        {
            **asdict(case),
            "runs": {name: [asdict(run) for run in each] for name, each in runs.items()},
        }
        for case, runs in results.items()
    ]
    document = {
        "machine": facts,
        "cases": cases,
        "worker_peak_growth_bytes": growth,
        "conversion": [asdict(run) for run in converted],
        "large_message_growth_bytes": grown,
        "bars": [asdict(bar) for bar in reached],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
