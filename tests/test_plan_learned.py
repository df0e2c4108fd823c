from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import polars as pl
import pytest
from corpus import SORTS, make_corpus, make_text
from hypothesis import given
from hypothesis import strategies as st
from plans import kind_of, telling

from pipeline.calibration import LEAST_ERROR
from pipeline.emulator.counting import Tokenizer, count
from pipeline.plan.amounts import KINDS
from pipeline.plan.learned import (
    CALL_COLUMNS,
    NOTHING,
    PRIOR_ERROR,
    SETTLED,
    Learned,
    Ratio,
    counted,
    learn,
    merged,
)
from pipeline.plan.picks import about, pick_pilot
from pipeline.plan.survey import Survey
from pipeline.store.parts import CALLS_SCHEMA
from pipeline.tokens import estimate

TOKENIZERS: tuple[Tokenizer, ...] = ("coarse", "fine", "subword")
CALL = {
    "step": "answer",
    "paid": True,
    "usage_estimated": False,
    "input_tokens_est": 100,
    "input_tokens": 110,
    "cached_tokens": 0,
    "output_tokens": 40,
    "thinking_tokens": 10,
    "latency_s": 2.0,
}


def calls(*rows: dict[str, Any]) -> pl.DataFrame:
    """Calls as they are stored, one a row: `CALL` with what is told of each laid over it."""
    schema = {name: CALLS_SCHEMA[name] for name in CALL_COLUMNS}
    return pl.DataFrame([{"row": number, **CALL, **row} for number, row in enumerate(rows)], schema=schema)


def learned(*rows: dict[str, Any], kinds: Sequence[int] | None = None, run: int = 0) -> Learned:
    return learn(calls(*rows), None if kinds is None else telling(kinds), run)


# ---- input


def test_nothing_is_known_before_any_answer() -> None:
    assert NOTHING.ratio("answer", 0) == Ratio(1.0, 0, PRIOR_ERROR)
    assert NOTHING.lengths.of("answer", 100) is None
    assert NOTHING.lengths.error("answer") == 1.0
    assert (NOTHING.taught.height, NOTHING.latency_s, NOTHING.slow_s) == (0, None, None)
    assert (NOTHING.cached_share, NOTHING.based_on) == (0.0, "")


def test_the_ratio_is_one_of_sums() -> None:
    known = learned({"input_tokens_est": 100, "input_tokens": 100}, {"input_tokens_est": 900, "input_tokens": 1100})
    assert known.ratio("answer", 0).value == pytest.approx(1.2)
    assert known.ratio("answer", 0).answers == 2


def near(known: Ratio, value: float, answers: int) -> bool:
    return known.value == pytest.approx(value) and known.answers == answers


def test_each_kind_has_its_own_ratio() -> None:
    rows = [{"row": row, "input_tokens": 90 if row % 2 else 130} for row in range(40)]
    known = learned(*rows, kinds=[2 if row % 2 else 0 for row in range(40)])
    assert near(known.ratio("answer", 0), 1.3, 20)
    assert near(known.ratio("answer", 2), 0.9, 20)


def test_a_kind_without_answers_borrows_and_says_how_doubtful_that_is() -> None:
    kinds = [row % 2 for row in range(40)]
    alike = learned(*({"row": row, "input_tokens": 110 + row % 3} for row in range(40)), kinds=kinds)
    apart = learned(*({"row": row, "input_tokens": 200 if row % 2 else 100} for row in range(40)), kinds=kinds)
    assert alike.ratio("answer", 2).value == pytest.approx(1.10975)
    assert apart.ratio("answer", 2).value == pytest.approx(1.5)
    assert alike.ratio("answer", 2).error > 2 * alike.ratio("answer", 0).error
    assert apart.ratio("answer", 2).error > 5 * alike.ratio("answer", 2).error


def test_a_single_answer_of_a_kind_that_differs_counts_more_than_many_of_others() -> None:
    mixed = [{"row": row, "input_tokens": 80 if row % 2 else 160} for row in range(30)]
    known = learned(*mixed, {"row": 30, "input_tokens": 300}, kinds=[row % 2 for row in range(30)] + [2])
    assert near(known.ratio("answer", 2), 3.0, 1)
    same = [{"row": row} for row in range(30)]
    known = learned(*same, {"row": 30, "input_tokens": 120}, kinds=[0] * 30 + [2])
    assert near(known.ratio("answer", 2), 3420 / 3100, 31)


def test_more_answers_narrow_the_error_down_to_a_floor() -> None:
    rows = [{"input_tokens": 100 + number % 20} for number in range(4000)]
    errors = [learned(*rows[:few], kinds=[0] * 4000).ratio("answer", 0).error for few in (1, 4, 16, 64, 4000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == LEAST_ERROR


def test_one_long_prompt_makes_many_short_ones_count_less() -> None:
    short = [{"input_tokens": 105 + number % 10} for number in range(50)]
    long = {"input_tokens_est": 100_000, "input_tokens": 110_000}
    alone, with_long = learned(*short, kinds=[0] * 50), learned(*short, long, kinds=[0] * 51)
    assert with_long.ratio("answer", 0).error > 3 * alone.ratio("answer", 0).error


def test_answers_about_one_row_tell_as_much_as_one() -> None:
    rows = [{"input_tokens": 100 + number % 5 * 10, "output_tokens": 30 + number % 5 * 10} for number in range(30)]
    pieces = [{**each, "row": row, "step": "map"} for row, each in enumerate(rows) for _ in range(10)]
    one_each, ten_each = learned(*rows, kinds=[0] * 30), learned(*pieces, kinds=[0] * 30)
    assert ten_each.ratio("map", 0).answers == 300
    assert ten_each.ratio("map", 0)[::2] == pytest.approx(one_each.ratio("answer", 0)[::2])
    assert ten_each.lengths.error("map") == pytest.approx(one_each.lengths.error("answer"))
    apart = learned(*({**each, "row": number} for number, each in enumerate(pieces)), kinds=[0] * 300)
    assert apart.ratio("map", 0).error < 0.5 * ten_each.ratio("map", 0).error
    assert apart.lengths.error("map") < 0.5 * ten_each.lengths.error("map")


@pytest.mark.parametrize(
    "useless",
    [
        {"paid": False, "input_tokens": 0},
        {"usage_estimated": True, "input_tokens": 100},
        {"input_tokens_est": 0},
        {"input_tokens": 0},
    ],
)
def test_only_what_the_service_counted_teaches(useless: dict[str, Any]) -> None:
    assert learned(useless).taught.height == 0
    assert learned({}, useless).ratio("answer", 1).value == pytest.approx(1.1)


def test_whole_rows_and_pieces_teach_each_other_but_not_where_they_know_better() -> None:
    pieces = learned({"step": "map", "input_tokens": 130})
    assert pieces.ratio("answer", 0).value == pytest.approx(1.3)
    assert pieces.lengths.of("answer", 100) == pieces.lengths.of("map", 100) is not None
    both = learned({"step": "map", "input_tokens": 130}, {"output_tokens": 77})
    assert both.ratio("answer", 0).value == pytest.approx(1.1)
    assert both.lengths.of("answer", 100) != both.lengths.of("map", 100)


def test_a_merging_step_without_answers_takes_the_ratio_of_the_others_and_no_lengths() -> None:
    known = learned(*[{}] * 30)
    assert known.ratio("reduce", 0).value == pytest.approx(1.1)
    assert known.ratio("reduce", 0).error > known.ratio("answer", 0).error / 2
    assert known.lengths.of("reduce", 100) is None
    assert known.lengths.error("reduce") == 1.0


def test_a_row_beyond_the_table_is_of_no_kind() -> None:
    assert learned({"row": 7}, kinds=[0, 1]).taught["kind"].to_list() == [None]


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 2)), min_size=1, max_size=30))
def test_the_corrected_estimates_add_up_to_what_was_observed(answers: list[tuple[int, int, int]]) -> None:
    rows = [
        {"row": row, "input_tokens_est": estimated, "input_tokens": observed}
        for row, (estimated, observed, _) in enumerate(answers)
    ]
    whole = learned(*rows).ratio("answer", 0)
    assert whole.value * sum(row["input_tokens_est"] for row in rows) == pytest.approx(
        sum(row["input_tokens"] for row in rows)
    )
    in_parts = learn(pl.concat(calls(row) for row in rows))
    assert in_parts.ratio("answer", 0) == pytest.approx(whole)
    known = learned(*rows, kinds=[kind for *_, kind in answers])
    assert all(known.ratio("answer", kind).error >= LEAST_ERROR for kind in range(3))


# ---- answers


def test_answers_in_tokens() -> None:
    known = learned(*[{"output_tokens": 10 * number, "cached_tokens": 22} for number in range(1, 11)])
    answers = known.lengths.of("answer", 100)
    assert answers is not None
    assert answers.answers == 10
    assert list(answers[2:]) == pytest.approx([55, 10, 30, 70, 100])
    assert known.cached_share == pytest.approx(0.2)
    assert list(answers.lengths) == sorted(answers.lengths)
    assert sum(answers.lengths) / len(answers.lengths) == pytest.approx(1)
    assert 10 < 55 * answers.lengths[0] < 55 * answers.lengths[-1] < 100


def test_how_long_answers_take() -> None:
    known = learned(*[{"latency_s": 1.0}] * 98, *[{"latency_s": 51.0}] * 2)
    assert known.latency_s == pytest.approx(2.0)
    assert known.slow_s == 51.0
    assert learned(*[{"latency_s": 1.0}] * 298, *[{"latency_s": 51.0}] * 2).slow_s == 1.0


@given(st.integers(1, 1000), st.integers(2, 100))
def test_answers_as_long_as_their_input_are_expected_so(tokens: int, times: int) -> None:
    rows = [
        {"input_tokens_est": tokens * times**power, "output_tokens": 3 * tokens * times**power} for power in range(3)
    ]
    known = learned(*[{**row, "thinking_tokens": 0} for row in rows] * 2)
    for length in (tokens, tokens * times**2, 7 * tokens):
        answers = known.lengths.of("answer", length)
        assert answers is not None
        assert (answers.output_tokens, answers.thinking_tokens) == pytest.approx((3 * length, 0))
        assert (answers.p10, answers.p50, answers.p90) == pytest.approx((3 * length,) * 3)


def test_answers_of_one_length_are_expected_so_beyond_all_inputs_seen() -> None:
    known = learned(*[{"input_tokens_est": 10 * number, "output_tokens": 50 + number % 2} for number in range(1, 41)])
    for length in (1, 100, 10_000):
        answers = known.lengths.of("answer", length)
        assert answers is not None
        assert answers.output_tokens == pytest.approx(50.5, rel=0.02)


def test_answers_that_shorten_with_their_input_are_taken_as_all_alike() -> None:
    known = learned(*[{"input_tokens_est": 10 * number, "output_tokens": 500 // number} for number in range(1, 11)])
    assert known.lengths.of("answer", 10) == known.lengths.of("answer", 100)


def test_each_kind_is_answered_at_its_own_length_where_enough_are_known() -> None:
    kinds = [0] * 20 + [4] * 20 + [1]
    known = learned(*({"output_tokens": 100 if kind == 4 else 40} for kind in kinds), kinds=kinds)
    lengths = [known.lengths.of("answer", 100, kind) for kind in (0, 4, 1, None)]
    assert [answer and answer.answers for answer in lengths] == [20, 20, 41, 41]
    assert [answer and answer.output_tokens for answer in lengths] == pytest.approx([40, 100, 2840 / 41, 2840 / 41])


def test_an_answer_weighs_as_many_rows_as_it_stands_for() -> None:
    told = telling([0] * 1000, [*[1] * 90, *[2] * 10, *[None] * 900])
    rows = [{"row": row, "input_tokens": 100 if row < 90 else 200, "output_tokens": row} for row in (0, 10, 90, 91, 92)]
    known = learn(calls(*rows), told)
    assert known.ratio("answer", 0).value == pytest.approx(0.9 * 1.0 + 0.1 * 2.0)
    answers = known.lengths.of("answer", 100)
    assert answers is not None
    assert answers.output_tokens == pytest.approx(0.9 * 5 + 0.1 * 91)
    assert known.taught["weight"].mean() == pytest.approx(1)
    alone = learn(calls({"row": 500}, {"row": 0}), told)
    assert alone.taught.sort("row")["weight"].to_list() == pytest.approx([180 / 91, 2 / 91])


def test_a_call_may_teach_only_its_input() -> None:
    unlike = dict.fromkeys(("cached_tokens", "output_tokens", "thinking_tokens", "latency_s"))
    known = learned(*[unlike] * 10)
    assert known.ratio("answer", 0).value == pytest.approx(1.1)
    assert (known.lengths.of("answer", 100), known.latency_s, known.cached_share) == (None, None, 0.0)
    assert known.taught.height == 10


def test_the_error_of_the_output_covers_the_miss() -> None:
    pick = Random(3)

    def answers(number: int) -> list[dict[str, Any]]:
        return [
            {"input_tokens_est": length, "output_tokens": round(length * pick.lognormvariate(-1, 0.5))}
            for length in pick.choices((100, 1_000, 10_000), k=number)
        ]

    covered = 0
    for _ in range(100):
        known, to_come = learned(*answers(60)), answers(300)
        found = (known.lengths.of("answer", row["input_tokens_est"]) for row in to_come)
        expected = sum(answer.output_tokens + answer.thinking_tokens for answer in found if answer)
        miss = abs(expected / sum(row["output_tokens"] + 10 for row in to_come) - 1)
        covered += miss <= known.lengths.error("answer", len(to_come))
    assert covered >= 90
    assert known.lengths.error("answer", 1) > 3 * known.lengths.error("answer", 10_000) > 0.03


@pytest.mark.parametrize("rows", [[{}], [{"output_tokens": 0, "thinking_tokens": 0}] * 9])
def test_the_error_of_the_output_is_all_of_it_when_nothing_tells(rows: list[dict[str, Any]]) -> None:
    assert learned(*rows).lengths.error("answer") == 1.0


def test_no_more_prompts_and_answers_all_alike() -> None:
    assert learned(*[{}] * 9).lengths.error("answer", 0) == 1.0
    assert learned(*[{}] * 9).lengths.error("answer", 5) == LEAST_ERROR


# ---- sources


def test_answers_of_this_run_win_once_there_are_enough() -> None:
    others = learned(*[{"input_tokens": 200, "output_tokens": 1}] * 100, {"step": "reduce"}, run=1)
    few = merged(learned(*[{}] * (SETTLED - 1)), others)
    assert few.ratio("answer", 0).answers == SETTLED - 1 + 100
    enough = merged(others, learned(*[{}] * SETTLED))
    assert near(enough.ratio("answer", 0), 1.1, SETTLED)
    answers = enough.lengths.of("answer", 100)
    assert answers and (answers.answers, answers.output_tokens) == (SETTLED, 40)
    assert enough.lengths.of("reduce", 100) is not None


def test_a_count_wins_over_answers_of_the_first_steps() -> None:
    answers = learned(*[{}] * 100, *[{"step": "reduce", "input_tokens": 90}] * 30, kinds=[0])
    known = merged(answers, counted([(0, 100, 140), (0, 100, 140), (1, 100, 70)]))
    assert [known.ratio(step, 0).value for step in ("answer", "map", "reduce")] == pytest.approx([1.4, 1.4, 0.9])
    assert known.lengths.of("answer", 100) == answers.lengths.of("answer", 100)
    assert known.taught.height == answers.taught.height + 3
    assert counted([]).ratio("answer", 0) == Ratio()


@pytest.mark.parametrize(
    ("sources", "phrase"),
    [
        ([learned(*[{}] * 412)], "412 answers of this run"),
        ([learned({}, run=3)], "1 answer of 1 earlier run"),
        ([learned(*[{}] * 1990, run=1), learned(*[{}] * 10, run=2)], "2,000 answers of 2 earlier runs"),
        ([learned({}), learned({}, run=1)], "1 answer of this run and 1 answer of 1 earlier run"),
        ([learned({}), counted([(0, 9, 9)])], "1 counted prompt and 1 answer of this run"),
        ([], ""),
    ],
)
def test_it_says_what_it_is_based_on(sources: list[Learned], phrase: str) -> None:
    assert merged(*sources).based_on == phrase


# ---- how far a pilot gets


@cache
def documents() -> tuple[str, ...]:
    return tuple(text for _, text in make_corpus())


@cache
def estimates() -> tuple[int, ...]:
    return tuple(map(estimate, documents()))


@cache
def kinds() -> pl.Series:
    return pl.Series(map(kind_of, documents()), dtype=pl.UInt8)


@cache
def survey() -> Survey:
    texts = pl.Series(documents())
    return Survey(
        rows=len(texts),
        facts=[pl.DataFrame({"size": texts.str.len_bytes(), "kind": kinds(), "empty": texts == ""})],
        repeats=[pl.DataFrame({"repeat": ~texts.is_first_distinct()})],
        first_repeats=(),
        digests=[pl.DataFrame({"hash": texts.hash()})],
    )


@cache
def counts(tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(count(text, tokenizer) for text in documents())


@cache
def pilot(tokenizer: Tokenizer, rows: int, seed: int) -> tuple[float, float]:
    """Relative miss of the corrected sum after a pilot, and its stated error."""
    chosen = pick_pilot(survey(), None, rows, seed).numbers
    given, true = estimates(), counts(tokenizer)
    known = learn(
        calls(*({"row": row, "input_tokens_est": given[row], "input_tokens": true[row]} for row in chosen)),
        about(survey()),
    )
    ratios = [known.ratio("answer", kind) for kind in range(len(KINDS))]
    corrected = [tokens * ratios[kind].value for tokens, kind in zip(given, kinds(), strict=True)]
    doubt = sum(tokens * ratios[kind].error for tokens, kind in zip(corrected, kinds(), strict=True))
    return abs(sum(corrected) / sum(true) - 1), doubt / sum(corrected)


def test_before_any_answer_the_sum_is_right_to_a_tenth() -> None:
    assert abs(sum(estimates()) / sum(counts("subword")) - 1) < 0.05 < PRIOR_ERROR


@pytest.mark.parametrize("sort", SORTS)
def test_before_any_answer_each_sort_is_right_to_a_seventh(sort: str) -> None:
    text = make_text(sort, 30_000, Random(5))
    assert abs(estimate(text) / count(text, "subword") - 1) < 0.15


@pytest.mark.parametrize(("tokenizer", "most"), [("subword", 0.02), ("coarse", 0.03), ("fine", 0.045)])
def test_after_a_pilot_of_60_19_of_20_sums_are_right_to_a_few_percent(tokenizer: Tokenizer, most: float) -> None:
    pilots = [pilot(tokenizer, 60, seed) for seed in range(40)]
    assert sum(miss < most for miss, _ in pilots) >= 38
    assert max(stated for _, stated in pilots) < 3 * most


@pytest.mark.parametrize(("tokenizer", "most"), [("subword", 0.01), ("coarse", 0.015), ("fine", 0.02)])
def test_after_a_pilot_of_200_it_is_right_to_1_or_2_percent(tokenizer: Tokenizer, most: float) -> None:
    assert sum(pilot(tokenizer, 200, seed)[0] < most for seed in range(20)) >= 19


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("rows", [20, 60])
def test_the_stated_error_covers_the_miss(tokenizer: Tokenizer, rows: int) -> None:
    pilots = [pilot(tokenizer, rows, seed) for seed in range(30)]
    assert sum(miss <= stated for miss, stated in pilots) >= 27
