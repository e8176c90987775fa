from bench.load import CASES, Run
from bench.report import bars, table
from bench.servers import CRYPT, OURS, PLAIN


def results(ours: float) -> dict[str, list[Run]]:
    seconds = {OURS: 1 / ours, CRYPT: 1 / 400, PLAIN: 1 / 1000}
    return {name: [Run(1, each, 0.001)] * 3 for name, each in seconds.items()}


def test_a_bar_that_is_missed_is_said_to_be() -> None:
    lines = [str(bar) for bar in bars({CASES[0]: results(1199)}, growth=17 << 20)]
    assert [line.startswith("NOT MET") for line in lines] == [True, True]
    lines = [str(bar) for bar in bars({CASES[0]: results(1201)}, growth=15 << 20)]
    assert [line.startswith("met") for line in lines] == [True, True]


def test_the_table_has_rate_spread_ratios_and_cpu_time() -> None:
    row = table({CASES[0]: results(1200)}).splitlines()[1]
    for part in ("1200 (1200-1200)", "400 (400-400)", "3.0", "1.2", "1.00 / 1.00 / 1.00"):
        assert part in row
