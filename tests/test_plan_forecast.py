"""One document's calls: three scenarios, what is spared, what is refused."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import polars as pl
import pytest
from plans import known, nothing_bought, texts, topics

from jobs import CHUNKED, PLAIN, make_job
from pipeline import flows
from pipeline.job import Job
from pipeline.models import MODELS
from pipeline.plan import forecast
from pipeline.plan.amounts import Cell, Tier, Work, total
from pipeline.plan.answerers import Answerer
from pipeline.plan.forecast import Bought, Forecast, Forecaster
from pipeline.plan.learned import NOTHING, Learned
from pipeline.plan.pace import Pace
from pipeline.plan.picks import Picks, Stratum
from pipeline.plan.tally import Tally
from pipeline.prices import LONG_PROMPT_TOKENS
from pipeline.prompts import Prompt
from pipeline.records import Document, Limits, Reply
from pipeline.tokens import estimate

ANSWER, MAP, REDUCE = (Tier(step, False) for step in ("answer", "map", "reduce"))


class Made(NamedTuple):
    """A forecast with all its calls in the three scenarios, as a plan has them."""

    low: Work
    expected: Work
    high: Work
    its: Forecast


def forecasts(
    job: Job,
    documents: Sequence[Document],
    learned: Learned = NOTHING,
    bought: Bought = nothing_bought,
    limits: Limits | None = None,
    repeats: Collection[int] = (),
) -> list[Made]:
    """Of the documents, one after another."""

    async def everything() -> list[Forecast]:
        forecaster = Forecaster(job, learned, bought, [[Answerer(job.model, Pace(limits or job.limits, 1.0))]])
        return [await forecaster.of(document, 0, document.row in repeats) for document in documents]

    def made(its: Forecast) -> Made:
        row = pl.Series([0], dtype=pl.UInt32)
        tally = Tally(job, Picks(row, row.cast(pl.UInt16), {0: Stratum(0, 1, 0, 0)}), learned)
        tally.add(documents[0], its, 0, 1.0)
        return Made(*tally.works, its)

    return list(map(made, anyio.run(everything)))


def factor(times: int) -> Learned:
    """Nothing but that the service counts so many times as much."""
    return known(*[("answer", 10, 10 * times, 40, 0)] * 9)


# ---- scenarios


def test_one_call_differs_in_its_answer_only(tmp_path: Path) -> None:
    job = make_job(tmp_path, prompt={"system": "Be kind."}, model={"max_output_tokens": 101})
    made = forecasts(job, topics(1))[0]
    given = estimate("Say number 0") + estimate("Be kind.")
    assert made.low == {ANSWER: Cell(1, given, 0, 0, 0)}
    assert made.expected == {ANSWER: Cell(1, given, 0, 50, 0)}
    assert made.high == {ANSWER: Cell(1, given, 0, 101, 0)}
    assert (made.its.spared, made.its.chunks, made.its.largest_tokens, made.its.depth, made.its.refused) == (
        {},
        1,
        given,
        1,
        None,
    )


@pytest.mark.parametrize("length", [1000, 3000, 20_000])
@pytest.mark.parametrize("taught", [NOTHING, known(*[("map", 60, 70, 20 + row, 5) for row in range(30)])])
def test_scenarios_are_in_order(tmp_path: Path, length: int, taught: Learned) -> None:
    job = make_job(tmp_path, CHUNKED, model={"max_output_tokens": 100})
    made = forecasts(job, texts([length]), taught)[0]
    low, expected, high = (total(work) for work in (made.low, made.expected, made.high))
    assert low.prompts == expected.prompts == high.prompts == made.its.chunks + 1
    assert low.input_tokens < expected.input_tokens < high.input_tokens
    assert low.output_tokens < expected.output_tokens < high.output_tokens
    assert made.low[MAP].input_tokens == made.high[MAP].input_tokens, "pieces do not depend on answers"
    assert made.its.depth == 2


def test_longer_answers_are_merged_in_more_calls(tmp_path: Path) -> None:
    job = make_job(tmp_path, CHUNKED, model={"max_output_tokens": 60}, reduce={"max_input_tokens": 200})
    made = forecasts(job, texts([9000]))[0]
    assert made.low[REDUCE].prompts < made.expected[REDUCE].prompts < made.high[REDUCE].prompts
    assert made.low[MAP].prompts == made.high[MAP].prompts == made.its.chunks
    assert made.its.depth > 3


# ---- what is known of answers


def test_a_known_step_is_as_long_as_its_answers_and_an_unknown_one_within_its_bounds(tmp_path: Path) -> None:
    job = make_job(tmp_path, CHUNKED, model={"max_output_tokens": 200})
    taught = known(*[("map", 60, 90, 20 + 10 * (row % 3), 7) for row in range(30)])
    made = forecasts(job, texts([3000]), taught)[0]
    for work in (made.low, made.expected, made.high):
        cell = work[MAP]
        assert cell[3:5] == pytest.approx((30 * cell.prompts, 7 * cell.prompts))
        assert cell.cached_tokens == pytest.approx(0.1 * cell.input_tokens)
    assert [work[REDUCE].output_tokens for work in (made.low, made.expected, made.high)] == [0, 100, 200]
    plain = forecasts(job, texts([3000]))[0]
    assert made.expected[MAP].input_tokens == pytest.approx(1.5 * plain.expected[MAP].input_tokens)


# ---- what is asked twice is sent once


def test_a_second_document_of_the_same_content_is_spared(tmp_path: Path) -> None:
    text = texts([2000])[0].text
    first, second = forecasts(make_job(tmp_path, CHUNKED), [Document(row, str(row), {}, text) for row in range(2)])
    assert first.its.spared == {} == second.low == second.expected == second.high
    assert second.its.spared == first.expected
    assert second.its.chunks == first.its.chunks


def test_a_piece_that_two_documents_share_is_sent_once(tmp_path: Path) -> None:
    shared, mine, its = (f"{name} says it. " * 12 for name in ("Anna", "Berta", "Clara"))
    documents = [Document(row, str(row), {}, f"{shared}\n\n{own}") for row, own in enumerate((mine, its))]
    first, second = forecasts(make_job(tmp_path, CHUNKED), documents)
    assert (first.its.chunks, second.its.chunks) == (2, 2)
    assert first.expected[MAP].prompts == 2
    assert (second.expected[MAP].prompts, second.its.spared[MAP].prompts) == (1, 1)
    assert second.low[MAP].prompts == second.high[MAP].prompts == 1
    assert second.expected[REDUCE].prompts == 1, "other parts"


@pytest.mark.parametrize("length", [50, 3000])
def test_nothing_is_sent_for_a_row_that_repeats_one_out_of_sight(tmp_path: Path, length: int) -> None:
    job, documents = make_job(tmp_path, CHUNKED), texts([length])
    made, alone = forecasts(job, documents, repeats={0})[0], forecasts(job, documents)[0]
    assert made.low == made.expected == made.high == {}
    assert made.its.spared == alone.expected


def test_what_was_bought_is_not_counted_and_its_own_text_is_merged(tmp_path: Path) -> None:
    job, documents = make_job(tmp_path, CHUNKED, model={"max_output_tokens": 40}), texts([3000])
    pieces = {asked.fingerprint(job.model) for asked in first_prompts(job, documents[0])}

    async def pieces_bought(prompt: Prompt) -> Reply | None:
        return Reply("short " * 9, "ok") if prompt.fingerprint(job.model) in pieces else None

    fresh = forecasts(job, documents)[0]
    made = forecasts(job, documents, bought=pieces_bought)[0]
    assert set(made.expected) == {REDUCE}
    assert made.expected[REDUCE].prompts == fresh.expected[REDUCE].prompts == 1
    size = fresh.its.chunks * estimate("short " * 9)
    assert made.low[REDUCE].input_tokens == made.high[REDUCE].input_tokens == pytest.approx(size, rel=0.15)
    assert (made.its.depth, made.its.chunks) == (1, fresh.its.chunks)


def first_prompts(job: Job, document: Document) -> list[Prompt]:
    asked: list[Prompt] = []

    async def collect(prompt: Prompt) -> Reply:
        asked.append(prompt)
        return Reply("fine", "ok")

    anyio.run(flows.run, document, job, collect)
    return [prompt for prompt in asked if prompt.step != "reduce"]


# ---- what is refused


@pytest.mark.parametrize("room", [59, 60])
def test_a_prompt_beyond_a_minutes_tokens_is_refused(tmp_path: Path, room: int) -> None:
    text = next(text for n in range(999) if estimate(text := "Some" + " thing" * n) == 60)
    job = make_job(tmp_path, CHUNKED, chunk=None, reduce=None, prompt={"template": "{{ text }}"})
    made = forecasts(job, [Document(0, "0", {}, text)], limits=Limits(tpm=room))[0]
    assert made.its.refused == ("too_long" if room < 60 else None)
    assert total(made.expected).prompts == total(made.high).prompts == (room == 60)
    assert made.its.largest_tokens == 60


def test_a_prompt_beyond_the_context_is_refused_by_what_the_service_counts(tmp_path: Path) -> None:
    job, context = make_job(tmp_path), MODELS[0].context_tokens
    size = estimate("Say number 0")
    fits, beyond = (forecasts(job, topics(1), factor(context // size + more))[0] for more in (0, 1))
    assert (fits.its.refused, beyond.its.refused) == (None, "too_long")
    assert beyond.expected == {} and fits.expected
    assert beyond.its.largest_tokens > context
    unlimited = forecasts(job, topics(1), factor(context // size), limits=Limits(tpm=0))[0]
    assert unlimited.its.refused is None


def test_a_piece_that_is_too_long_refuses_its_document(tmp_path: Path) -> None:
    made = forecasts(make_job(tmp_path, CHUNKED), texts([3000]), limits=Limits(tpm=20))[0]
    assert made.its.refused == "too_long"
    assert made.expected == made.low == made.high == {}


def test_a_template_that_fails_and_a_row_without_text(tmp_path: Path) -> None:
    failing = forecasts(make_job(tmp_path, PLAIN, prompt={"template": "{{ topic | int }}"}), topics(1))[0]
    assert (failing.its.refused, failing.expected, failing.its.chunks) == ("template_error", {}, 0)
    empty = forecasts(make_job(tmp_path, CHUNKED), texts([0]))[0]
    assert (empty.its.refused, empty.expected, empty.its.chunks, empty.its.depth) == ("empty_input", {}, 0, 0)


# ---- long prompts


def test_a_prompt_above_200_000_tokens_is_of_the_long_tier(tmp_path: Path) -> None:
    size = estimate("Say number 0")
    assert LONG_PROMPT_TOKENS % size == 0
    job, times = make_job(tmp_path), LONG_PROMPT_TOKENS // size
    short, long = (forecasts(job, topics(1), factor(times + more))[0] for more in (0, 1))
    assert set(short.expected) == {Tier("answer", False)}
    assert set(long.low) == set(long.expected) == set(long.high) == {Tier("answer", True)}


# ---- bounds of many


def test_documents_beyond_the_allowance_are_bounded_in_proportion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {"model": {"max_output_tokens": 60}, "reduce": {"max_input_tokens": 200}}
    job, documents = make_job(tmp_path, CHUNKED, **sections), texts([9000, 6000, 50, 8000])
    true = forecasts(job, documents)
    monkeypatch.setattr(forecast, "_BOUND_CHARACTERS", 0)
    made = forecasts(job, documents)
    assert [each.expected for each in made] == [each.expected for each in true]
    assert (made[0].low, made[0].high) == (true[0].low, true[0].high), "the first is always bounded"
    assert (made[2].low, made[2].high) == (true[2].low, true[2].high), "not merged"
    for number in (1, 3):
        for bound, its, first in (
            (made[number].low, true[number].low, made[0].low),
            (made[number].high, true[number].high, made[0].high),
        ):
            scale = made[number].expected[REDUCE].prompts / made[0].expected[REDUCE].prompts
            assert bound[REDUCE].prompts == pytest.approx(scale * first[REDUCE].prompts)
            assert bound[MAP] == its[MAP]
            assert total(bound).input_tokens == pytest.approx(total(its).input_tokens, rel=0.05)
