"""`python -m bench [--quick]`: measures, prints the table, keeps the figures in var/bench/."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench import conversion, load, report, servers
from tests.peers.root import missing

RESULTS = Path(__file__).parents[1] / "var" / "bench"
ROUNDS, QUICK_ROUNDS = 3, 1
QUICK_SHARE = 0.2


def main() -> int:
    """Run everything; the exit code says only whether it could run."""
    options = _options()
    if reason := missing(servers.SUITE):
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as made:
        directory = Path(made)
        directory.chmod(0o755)  # servers have users of their own
        servers.spread(directory)
        measure(directory, quick=options.quick)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument(
        "--directory",
        default="/var/tmp",  # noqa: S108 - it lies on a disk, and a directory of our own is made
        help="where the mail goes: on the disk that is to be measured",
    )
    return parser.parse_args()


def measure(directory: Path, *, quick: bool) -> None:
    """All cases with all servers; the memory last, because it starts ours anew."""
    rounds, share = (QUICK_ROUNDS, QUICK_SHARE) if quick else (ROUNDS, 1.0)
    recipients = max(case.recipients for case in load.CASES)
    with servers.running(directory, recipients) as running:
        busy = load.wait_until_idle()
        facts = report.machine(
            servers.kind_of_disk(directory), servers.versions(running[0].host), busy
        )
        print(*(f"{name}: {value}" for name, value in facts.items()), sep="\n", flush=True)
        if busy > load.IDLE:
            print(f"NOT IDLE: others used {busy:.0%} of the processors before the first run")
        results = {}
        for case in load.CASES:
            print(f"… {case.title}", file=sys.stderr, flush=True)
            results[case] = load.in_turn(case, running, rounds, share)
        growth = load.peak_growth(running[0])
    converted, grown = _conversion(directory, quick=quick)
    reached = report.bars(results, growth, converted, grown)
    print("", report.table(results), "", conversion.table(converted, grown), sep="\n")
    print("", *reached, sep="\n")
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}{'-quick' if quick else ''}.json"
    report.save(path, facts, results, growth, converted, grown, reached)
    print(f"\nall figures: {path}")


def _conversion(
    directory: Path, *, quick: bool
) -> tuple[list[conversion.Converted], dict[str, int]]:
    print("… mail that is already there", file=sys.stderr, flush=True)
    converted = conversion.measure(directory / "conversion", quick=quick)
    large = directory / "large"
    large.mkdir()
    return converted, conversion.memory(large)


if __name__ == "__main__":
    sys.exit(main())
