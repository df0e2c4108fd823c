"""Sums and ranges, by numbers made by hand."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import hypot, sqrt
from typing import Any

import polars as pl
import pytest
from plans import telling

from pipeline.calibration import t_quantile
from pipeline.plan.amounts import Cell, Range, Tier, Work
from pipeline.plan.forecast import Forecast
from pipeline.plan.learned import CALL_COLUMNS, NOTHING, PRIOR_ERROR, Learned, learn
from pipeline.plan.picks import Picks, Stratum
from pipeline.plan.tally import Sums, Tally, whole
from pipeline.prices import Rates
from pipeline.records import Document

ANSWER, MAP, REDUCE, LONG = Tier("answer", False), Tier("map", False), Tier("reduce", False), Tier("answer", True)
RATES = {
    False: Rates(Decimal("0.001"), Decimal("0.0001"), Decimal("0.01")),
    True: Rates(Decimal("0.002"), Decimal("0.0002"), Decimal("0.02")),
}
UNKNOWN: Mapping[bool, Rates | None] = {False: None, True: None}


def forecast(low: Work, expected: Work, high: Work, **others: Any) -> Forecast:
    given = {"spared": {}, "chunks": 1, "largest_tokens": 0, "depth": 1, "refused": None, **others}
    return Forecast(low, expected, high, **given)


def one_call(tokens: float, output: float = 0, thinking: float = 0, cached: float = 0, tier: Tier = ANSWER) -> Forecast:
    """A prompt whose answer is known."""
    work = {tier: Cell(1, tokens, cached, output, thinking)}
    return forecast(work, work, work)


def tallied(
    forecasts: Sequence[Forecast],
    rows: int | None = None,
    learned: Learned = NOTHING,
    rates: Mapping[bool, Rates | None] = RATES,
    kinds: Sequence[int] | None = None,
) -> Tally:
    """Of a table of so many rows of ten bytes, of which these were planned; None: they are all."""
    everything = rows if rows is not None else len(forecasts)
    strata = {0: Stratum(0, everything, 10 * everything, 10)}
    numbers = pl.Series(range(len(forecasts)), dtype=pl.UInt32)
    tally = Tally(Picks(numbers, numbers * 0 + 10, numbers * 0, strata), learned, rates)
    for row, each in enumerate(forecasts):
        tally.add(Document(row, f"key {row}", {}), 0, 10, each, kinds[row] if kinds else 0)
    return tally


def known(*answers: tuple[str, int, int, int], kinds: Sequence[int] | None = None) -> Learned:
    """What answers of (step, estimated, input, output) teach."""
    rows = [
        dict(zip(CALL_COLUMNS, (row, step, True, False, given, real, 0, output, 0, 1.0), strict=True))
        for row, (step, given, real, output) in enumerate(answers)
    ]
    return learn([pl.DataFrame(rows)], telling(kinds or [0] * len(rows)))


# ---- sums


def test_all_rows_are_added_up() -> None:
    low = {MAP: Cell(2, 20), REDUCE: Cell(1, 5)}
    expected = {MAP: Cell(2, 20, 4, 30, 6), REDUCE: Cell(2, 12, 0, 20, 0)}
    high = {MAP: Cell(2, 20, 4, 60, 6), REDUCE: Cell(3, 30, 0, 40, 0)}
    pieces = forecast(low, expected, high, spared={MAP: Cell(1, 10)}, chunks=3, largest_tokens=11, depth=2)
    tally = tallied([pieces, one_call(100, 7), pieces, forecast({}, {}, {}, chunks=0, refused="empty_input")])
    sums = tally.sums()
    assert sums.low == {ANSWER: Cell(1, 100, 0, 7, 0), MAP: Cell(4, 40), REDUCE: Cell(2, 10)}
    assert sums.expected == {ANSWER: Cell(1, 100, 0, 7, 0), MAP: Cell(4, 40, 8, 60, 12), REDUCE: Cell(4, 24, 0, 40)}
    assert sums.high[REDUCE] == Cell(6, 60, 0, 80, 0)
    assert sums.spared == {MAP: Cell(2, 20)}
    assert sums.prompts() == Range(7, 9, 11)
    assert (sums.named["chunked"], sums.named["empty_input"], sums.named["too_long"]) == (2, 1, 0)
    assert (tally.longest_chunks, tally.largest_tokens, tally.depth) == (3, 11, 2)
    assert set(sums.widths.values()) == {0.0}


def test_nothing_to_do() -> None:
    sums = tallied([forecast({}, {}, {}, chunks=0)]).sums()
    nothing = Range(0, 0, 0)
    assert sums.prompts() == sums.input_tokens() == sums.output_tokens(NOTHING) == nothing
    assert sums.cost_usd((Decimal(0),) * 3, NOTHING, RATES) == nothing


def test_examples_are_the_first_few_by_key_and_never_by_text() -> None:
    refused = forecast({}, {}, {}, refused="too_long", largest_tokens=1_234_567)
    failing = forecast({}, {}, {}, chunks=0, refused="template_error")
    pieces = forecast({}, {MAP: Cell(4)}, {}, chunks=4, largest_tokens=9)
    tally = tallied([*[refused] * 7, failing, pieces])
    examples = tally.sums().examples
    assert [each.row for each in examples["too_long"]] == [0, 1, 2, 3, 4]
    assert examples["too_long"][0].remark == "1,234,567 tokens"
    assert examples["template_error"][0].key == "key 7"
    assert examples["chunked"][0].remark == "4 pieces"
    assert tally.largest_tokens == 9, "what is refused is not sent"


# ---- ranges


def test_calls_may_be_fewer_with_longer_answers() -> None:
    made = forecast({REDUCE: Cell(4)}, {REDUCE: Cell(6)}, {REDUCE: Cell(5)})
    assert tallied([made]).sums().prompts() == Range(4, 6, 6)


def test_before_any_answer_input_is_in_doubt_by_the_prior() -> None:
    sums = tallied([one_call(1000), one_call(3000)]).sums()
    assert PRIOR_ERROR == 0.1
    assert sums.input_tokens() == Range(3600, 4000, 4400)


def test_bounds_of_input_are_in_doubt_too() -> None:
    made = forecast({REDUCE: Cell(1, 500)}, {REDUCE: Cell(1, 1000)}, {REDUCE: Cell(1, 3000)})
    assert tallied([made]).sums().input_tokens() == Range(450, 1000, 3300)


def test_each_kind_and_step_has_its_own_doubt() -> None:
    ascii_answers = [("answer", 100, 100 + row % 20, 5) for row in range(60)]
    dense_answers = [("answer", 100, 60 + row % 80, 5) for row in range(30)]
    learned = known(*ascii_answers, *dense_answers, kinds=[0] * 60 + [4] * 30)
    doubts = [learned.ratio("answer", kind).error for kind in (0, 4)]
    assert doubts[1] > 2 * doubts[0]
    bounds = tallied([one_call(10_000), one_call(20_000)], learned=learned, kinds=[0, 4]).sums().input_tokens()
    off = 10_000 * doubts[0] + 20_000 * doubts[1]
    assert (bounds.low, bounds.high) == (round(30_000 - off), round(30_000 + off))


def test_a_sample_adds_its_own_width() -> None:
    tokens = (100, 140, 160, 200)
    sums = tallied([one_call(each, 2 * each) for each in tokens], rows=40).sums()
    variance = sum((each - 150) ** 2 for each in tokens) / 3
    width = t_quantile(3) * sqrt(40 * 36 / 4 * variance)
    assert sums.expected[ANSWER].input_tokens == pytest.approx(6000)
    assert sums.widths["input"] == pytest.approx(width)
    assert sums.widths["output"] == pytest.approx(2 * width)
    assert sums.prompts() == Range(40, 40, 40), "the same for every row"
    off = hypot(width, 600)
    assert sums.input_tokens() == Range(round(6000 - off), 6000, round(6000 + off))
    assert sums.output_tokens(NOTHING) == Range(round(12_000 - 2 * width), 12_000, round(12_000 + 2 * width))


def test_output_is_between_its_bounds_until_answers_are_known() -> None:
    made = forecast({ANSWER: Cell(1, 10)}, {ANSWER: Cell(1, 10, 0, 50)}, {ANSWER: Cell(1, 10, 0, 100)})
    assert tallied([made] * 20).sums().output_tokens(NOTHING) == Range(0, 1000, 2000)


def test_known_output_is_in_doubt_by_how_much_answers_vary() -> None:
    learned = known(*[("map", 100, 100, 40 + row % 21) for row in range(63)])
    bounded = ({REDUCE: Cell(1, 10)}, {REDUCE: Cell(1, 10, 0, 50)}, {REDUCE: Cell(1, 10, 0, 100)})
    pieces = [{MAP: Cell(10, 1000, 0, 450, 50), **reduce} for reduce in bounded]
    sums = tallied([forecast(*pieces)] * 20, learned=learned).sums()
    off = 10_000 * learned.output_error("map", 200)
    assert 0 < off < 1000
    assert sums.output_tokens(learned) == Range(round(10_000 - off), 11_000, round(12_000 + off))


def test_longer_parts_may_be_merged_with_less_output() -> None:
    made = [{REDUCE: Cell(calls, 100 * calls, 0, 10 * calls)} for calls in (5, 4, 3)]
    assert tallied([forecast(*made)]).sums().output_tokens(NOTHING) == Range(40, 40, 40)


# ---- money


def cost(sums: Sums, learned: Learned = NOTHING, rates: Mapping[bool, Rates | None] = RATES, *usd: int) -> Range:
    low, expected, high = (Decimal(each) for each in usd)
    return sums.cost_usd((low, expected, high), learned, rates)


def test_cost_is_in_doubt_by_input_at_its_price() -> None:
    work = [{ANSWER: Cell(1, tokens, 0, output)} for tokens, output in ((900, 0), (1000, 50), (1200, 100))]
    found = cost(tallied([forecast(*work)]).sums(), NOTHING, RATES, 1, 2, 4)
    assert [float(each) for each in (found.low, found.expected, found.high)] == pytest.approx([1 - 0.09, 2, 4 + 0.12])


def test_cost_is_never_below_nothing() -> None:
    work = {ANSWER: Cell(1, 1_000_000)}
    assert cost(tallied([forecast(work, work, work)]).sums(), NOTHING, RATES, 1, 1, 1).low == 0


def test_doubts_of_long_prompts_cost_the_long_rate() -> None:
    learned = known(*[("answer", 100, 100, 40 + row % 21) for row in range(63)])
    short, long = (tallied([one_call(1000, 50, 10, tier=tier)], learned=learned).sums() for tier in (ANSWER, LONG))
    offs = [float(cost(sums, learned, RATES, 5, 5, 5).high) - 5 for sums in (short, long)]
    given = 1000 * learned.ratio("answer", 0).error * 0.001
    answered = 60 * learned.output_error("answer", 1) * 0.01
    assert offs == pytest.approx([hypot(given, answered), 2 * hypot(given, answered)])


def test_cost_of_a_sample_is_as_wide_as_its_costs_vary() -> None:
    calls = [one_call(each, 10, 5, cached=each / 2) for each in (100, 140, 160, 200)]
    usd = [0.001 * each / 2 + 0.0001 * each / 2 + 0.01 * 15 for each in (100, 140, 160, 200)]
    sums = tallied(calls, rows=40).sums()
    mean = sum(usd) / 4
    width = t_quantile(3) * sqrt(40 * 36 / 4 * sum((each - mean) ** 2 for each in usd) / 3)
    assert sums.named["usd"] == pytest.approx(40 * mean)
    assert sums.widths["usd"] == pytest.approx(width)
    found = cost(sums, NOTHING, RATES, 10, 10, 10)
    assert float(found.high) == pytest.approx(10 * (1 + width / (40 * mean)) + 0.6)


def test_an_unknown_price_puts_nothing_in_doubt() -> None:
    sums = tallied([one_call(100, 10)] * 3, rows=9, rates=UNKNOWN).sums()
    assert sums.named["usd"] == 0
    assert cost(sums, NOTHING, UNKNOWN, 3, 3, 3) == Range(Decimal(3), Decimal(3), Decimal(3))


def test_ranges_of_whole_numbers_begin_at_nothing() -> None:
    assert whole(-5.5, 0.4, 2.6) == Range(0, 0, 3)
