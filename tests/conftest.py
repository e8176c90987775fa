"""Fixtures that many modules need: a site, its stores and accounts with a cheap KDF.

`REQUIRE_PEERS=1` makes each skipped test of the session a failed one: a run that promises real
peers must not pass without them.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.sites import CheapSite


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("REQUIRE_PEERS"):
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_PEERS is set, but: {report.longrepr}"
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", help="a directory for pictures of the portal")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests were skipped, each reason once: `-q` would only count them."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    for reason in sorted({report[2] for report in skipped if isinstance(report, tuple)}):
        count = sum(report[2] == reason for report in skipped)
        terminalreporter.write_line(f"{count} tests {reason.lower()}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[CheapSite]:
    """A site of its own under tmp_path, with stores, keys and Argon2id at its floor."""
    made = CheapSite(tmp_path)
    yield made
    made.close()
