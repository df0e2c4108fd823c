"""Sums and ranges, by numbers made by hand."""

from collections.abc import Sequence
from decimal import Decimal
from math import hypot, sqrt
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from plans import telling

from jobs import CHUNKED, make_job
from pipeline.calibration import t_quantile
from pipeline.job import Job
from pipeline.plan.amounts import Cell, Range, Tier, Work
from pipeline.plan.forecast import Forecast
from pipeline.plan.learned import CALL_COLUMNS, NOTHING, PRIOR_ERROR, Learned, learn
from pipeline.plan.picks import Picks, Stratum
from pipeline.plan.tally import Tally, whole
from pipeline.prices import Rates
from pipeline.records import Document

ANSWER, MAP, REDUCE, LONG = Tier("answer", False), Tier("map", False), Tier("reduce", False), Tier("answer", True)
RATES = {
    False: Rates(Decimal("0.001"), Decimal("0.0001"), Decimal("0.01")),
    True: Rates(Decimal("0.002"), Decimal("0.0002"), Decimal("0.02")),
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Whose answers have at most a hundred tokens."""
    return make_job(tmp_path, CHUNKED, model={"max_output_tokens": 100}, reduce={"max_output_tokens": 100})


def forecast(work: Work, low: Work | None = None, high: Work | None = None, **others: Any) -> Forecast:
    """`low` and `high` are its merging calls, if these are other ones."""
    merging = {tier: cell for tier, cell in work.items() if tier.step == "reduce"}
    given = {"out": {}, "spared": {}, "chunks": 1, "largest_tokens": 0, "depth": 1, "refused": None, **others}
    return Forecast(work, merging if low is None else low, merging if high is None else high, **given)


def one_call(tokens: float, output: float = 0, thinking: float = 0, cached: float = 0, tier: Tier = ANSWER) -> Forecast:
    return forecast({tier: Cell(1, tokens, cached, output, thinking)})


def tallied(
    job: Job,
    forecasts: Sequence[Forecast],
    rows: int | None = None,
    learned: Learned = NOTHING,
    kinds: Sequence[int] | None = None,
) -> Tally:
    """Of a table of so many rows of ten bytes, of which these were planned; None: they are all."""
    everything = rows if rows is not None else len(forecasts)
    strata = {0: Stratum(0, everything, 10 * everything, 10)}
    numbers = pl.Series(range(len(forecasts)), dtype=pl.UInt32)
    picks = Picks(numbers, (numbers * 0).cast(pl.UInt16), strata)
    tally = Tally(job, picks, learned)
    for row, (each, weight) in enumerate(zip(forecasts, picks.weights(), strict=True)):
        tally.add(Document(row, f"key {row}", {}), each, kinds[row] if kinds else 0, weight)
    return tally


def known(*answers: tuple[str, int, int, int], kinds: Sequence[int] | None = None) -> Learned:
    """What answers of (step, estimated, input, output) teach."""
    rows = [
        dict(zip(CALL_COLUMNS, (row, step, True, False, given, real, 0, output, 0, 1.0), strict=True))
        for row, (step, given, real, output) in enumerate(answers)
    ]
    return learn(pl.DataFrame(rows), telling(kinds or [0] * len(rows)))


ANSWERED = known(*[("answer", 100, 100, 40 + row % 21) for row in range(63)])


# ---- sums


def test_all_rows_are_added_up(job: Job) -> None:
    pieces = forecast(
        {MAP: Cell(2, 20, 4, 30, 6), REDUCE: Cell(2, 12, 0, 20, 0)},
        low={REDUCE: Cell(1, 5)},
        high={REDUCE: Cell(3, 30, 0, 40, 0)},
        spared={MAP: Cell(1, 10)},
        chunks=3,
        largest_tokens=11,
        depth=2,
    )
    tally = tallied(job, [pieces, one_call(100, 7), pieces, forecast({}, chunks=0, refused="empty_input")])
    low, expected, high = tally.works
    assert expected == {ANSWER: Cell(1, 100, 0, 7, 0), MAP: Cell(4, 40, 8, 60, 12), REDUCE: Cell(4, 24, 0, 40)}
    assert low == {ANSWER: Cell(1, 100), MAP: Cell(4, 40, 8, 0, 12), REDUCE: Cell(2, 10)}
    assert high == {
        ANSWER: Cell(1, 100, 0, 100),
        MAP: Cell(4, 40, 8, 400, 12),
        REDUCE: Cell(6, 60, 0, 600),
    }
    assert tally.spared == {MAP: Cell(2, 20)}
    assert tally.prompts() == Range(7, 9, 11)
    assert (tally.rows["chunked"], tally.rows["empty_input"], tally.rows["too_long"]) == (2, 1, 0)
    assert (tally.largest_tokens, tally.depth) == (11, 2)


def test_nothing_to_do(job: Job) -> None:
    tally = tallied(job, [forecast({}, chunks=0)])
    assert tally.prompts() == tally.input_tokens() == tally.output_tokens() == cost(tally) == Range(0, 0, 0)


def test_examples_are_the_first_few_by_key_and_never_by_text(job: Job) -> None:
    refused = forecast({}, refused="too_long", largest_tokens=1_234_567)
    failing = forecast({}, chunks=0, refused="template_error")
    pieces = forecast({MAP: Cell(4)}, chunks=4, largest_tokens=9)
    tally = tallied(job, [*[refused] * 7, failing, pieces])
    assert [each.row for each in tally.examples["too_long"]] == [0, 1, 2, 3, 4]
    assert tally.examples["too_long"][0].remark == "1,234,567 tokens"
    assert tally.examples["template_error"][0].key == "key 7"
    assert tally.examples["chunked"][0].remark == "4 pieces"
    assert tally.largest_tokens == 9, "what is refused is not sent"


# ---- ranges


def test_calls_may_be_fewer_with_longer_answers(job: Job) -> None:
    made = forecast({REDUCE: Cell(6)}, {REDUCE: Cell(4)}, {REDUCE: Cell(5)})
    assert tallied(job, [made]).prompts() == Range(4, 6, 6)


def test_before_any_answer_input_is_in_doubt_by_the_prior(job: Job) -> None:
    assert PRIOR_ERROR == 0.1
    assert tallied(job, [one_call(1000), one_call(3000)]).input_tokens() == Range(3600, 4000, 4400)


def test_bounds_of_input_are_in_doubt_too(job: Job) -> None:
    made = forecast({REDUCE: Cell(1, 1000)}, {REDUCE: Cell(1, 500)}, {REDUCE: Cell(1, 3000)})
    assert tallied(job, [made]).input_tokens() == Range(450, 1000, 3300)


def test_each_kind_and_step_has_its_own_doubt(job: Job) -> None:
    ascii_answers = [("answer", 100, 100 + row % 20, 5) for row in range(60)]
    dense_answers = [("answer", 100, 60 + row % 80, 5) for row in range(30)]
    learned = known(*ascii_answers, *dense_answers, kinds=[0] * 60 + [4] * 30)
    doubts = [learned.ratio("answer", kind).error for kind in (0, 4)]
    assert doubts[1] > 2 * doubts[0]
    bounds = tallied(job, [one_call(10_000), one_call(20_000)], learned=learned, kinds=[0, 4]).input_tokens()
    off = 10_000 * doubts[0] + 20_000 * doubts[1]
    assert (bounds.low, bounds.high) == (round(30_000 - off), round(30_000 + off))


def test_a_sample_adds_its_own_width(job: Job) -> None:
    tokens = (100, 140, 160, 200)
    tally = tallied(job, [one_call(each, 0.5 * each) for each in tokens], rows=40)
    variance = sum((each - 150) ** 2 for each in tokens) / 3
    width = t_quantile(3) * sqrt(40 * 36 / 4 * variance)
    assert tally.expected[ANSWER].input_tokens == pytest.approx(6000)
    assert tally.prompts() == Range(40, 40, 40), "the same for every row"
    off = hypot(width, 600)
    assert tally.input_tokens() == Range(round(6000 - off), 6000, round(6000 + off))
    assert tally.output_tokens() == Range(0, 3000, round(4000 + 0.5 * width)), "40 answers of 0 to 100 tokens"


def test_output_is_between_its_bounds_until_answers_are_known(job: Job) -> None:
    assert tallied(job, [one_call(10, 50)] * 20).output_tokens() == Range(0, 1000, 2000)


def test_known_output_is_in_doubt_by_how_much_answers_vary(job: Job) -> None:
    learned = known(*[("map", 100, 100, 40 + row % 21) for row in range(63)])
    pieces = forecast({MAP: Cell(10, 1000, 0, 450, 50), REDUCE: Cell(1, 10, 0, 50)})
    tally = tallied(job, [pieces] * 20, learned=learned)
    off = 10_000 * learned.lengths.error("map", 200)
    assert 0 < off < 1000
    assert tally.output_tokens() == Range(round(10_000 - off), 11_000, round(12_000 + off))


def test_longer_parts_may_be_merged_with_less_output(job: Job) -> None:
    learned = known(*[("reduce", 100, 100, 10)] * 40)
    low, expected, high = ({REDUCE: Cell(calls, 100 * calls, 0, 1000 * calls)} for calls in (5, 4, 3))
    found = tallied(job, [forecast(expected, low, high)], learned=learned).output_tokens()
    off = 4000 * learned.lengths.error("reduce", 4)
    assert found == Range(round(4000 - off), 4000, round(4000 + off))


# ---- money


def cost(tally: Tally) -> Range | None:
    def usd(tier: Tier, cell: Cell) -> Decimal:
        return RATES[tier.long].usd(*map(Decimal, (cell.input_tokens, cell.cached_tokens, cell.answer_tokens)))

    return tally.cost_usd(lambda work: sum((usd(tier, cell) for tier, cell in work.items()), Decimal(0)))


def floats(found: Range | None) -> list[float]:
    return [float(each) for each in (found.low, found.expected, found.high)] if found else []


def test_cost_is_in_doubt_by_input_at_its_price(job: Job) -> None:
    low, expected, high = ({REDUCE: Cell(1, tokens, 0, 50)} for tokens in (900, 1000, 1200))
    found = cost(tallied(job, [forecast(expected, low, high)]))
    assert floats(found) == pytest.approx([0.9 - 0.09, 1.0 + 0.5, 1.2 + 1.0 + 0.12])


def test_cost_is_never_below_nothing(job: Job) -> None:
    learned = known(*[("answer", 100, 100 * (1 + row % 9 // 8 * 40), 1) for row in range(9)])
    assert learned.ratio("answer", 0).error > 1
    found = cost(tallied(job, [one_call(1_000_000)], learned=learned))
    assert found and found.low == 0


def test_doubts_of_long_prompts_cost_the_long_rate(job: Job) -> None:
    short, long = (tallied(job, [one_call(1000, 50, 10, tier=tier)], learned=ANSWERED) for tier in (ANSWER, LONG))
    offs = [high - expected for _, expected, high in (floats(cost(tally)) for tally in (short, long))]
    given = 1000 * ANSWERED.ratio("answer", 0).error * 0.001
    answered = 60 * ANSWERED.lengths.error("answer", 1) * 0.01
    assert offs == pytest.approx([hypot(given, answered), 2 * hypot(given, answered)])


def test_cost_of_a_sample_is_as_wide_as_the_wider_of_its_tokens(job: Job) -> None:
    calls = [one_call(each, 2 * each, 5, cached=each / 2) for each in (100, 140, 160, 200)]
    whole, sample = (tallied(job, calls * times, rows=40, learned=ANSWERED) for times in (10, 1))
    width = t_quantile(3) * sqrt(40 * 36 / 4 * sum((each - 150) ** 2 for each in (100, 140, 160, 200)) / 3)
    surely, unsure = floats(cost(whole)), floats(cost(sample))
    assert unsure[1] == pytest.approx(surely[1]) == pytest.approx(40 * (0.075 + 0.0075 + 3.05))
    assert unsure[2] - surely[2] == pytest.approx(unsure[1] * width / 6000)


def test_an_unknown_price_is_not_nothing(job: Job) -> None:
    assert tallied(job, [one_call(100, 10)] * 3, rows=9).cost_usd(lambda work: None) is None


def test_ranges_of_whole_numbers_begin_at_nothing() -> None:
    assert whole(-5.5, 0.4, 2.6) == Range(0, 0, 3)
