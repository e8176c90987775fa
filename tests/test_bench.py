import pytest

from bench.conversion import Converted
from bench.conversion import table as conversion_table
from bench.load import CASES, Run
from bench.report import CONVERSION_BARS, bars, table
from bench.servers import CRYPT, OURS, PLAIN


def results(ours: float) -> dict[str, list[Run]]:
    seconds = {OURS: 1 / ours, CRYPT: 1 / 400, PLAIN: 1 / 1000}
    return {name: [Run(1, each, 0.001)] * 3 for name, each in seconds.items()}


def converted(rate: float) -> list[Converted]:
    whats = {"encrypt", *CONVERSION_BARS}
    ours = [Converted(what, OURS, 1000, 1000 / rate, 1.0) for what in sorted(whats)]
    return [*ours, Converted("encrypt", CRYPT, 1000, 2.0, 1.0)]


@pytest.mark.parametrize(
    ("ours", "growth", "rate", "word"), [(1199, 65 << 20, 599, "NOT MET"), (1201, 1, 1501, "met")]
)
def test_a_bar_that_is_missed_is_said_to_be(
    ours: float, growth: int, rate: float, word: str
) -> None:
    grown = {"encrypt": 1, "decrypt": growth}
    reached = bars({CASES[0]: results(ours)}, growth, converted(rate), grown)
    assert len(reached) == 7
    assert [str(bar).partition("  ")[0].strip() for bar in reached] == [word] * 7


def test_the_table_has_rate_spread_ratios_and_cpu_time() -> None:
    row = table({CASES[0]: results(1200)}).splitlines()[1]
    for part in ("1200 (1200-1200)", "400 (400-400)", "3.0", "1.2", "1.00 / 1.00 / 1.00"):
        assert part in row


def test_the_table_of_conversions_compares_what_both_did() -> None:
    lines = conversion_table(converted(1000), {"encrypt": 1 << 20}).splitlines()
    assert ["times" in line for line in lines] == [False, False, True, False, False]
    assert "2.0 times Dovecot" in lines[2]
    assert lines[-1].endswith("grew by 1.0 MiB")
