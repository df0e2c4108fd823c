from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import CHUNKED, make_job
from pipeline import flows, plan
from pipeline.job import Job
from pipeline.plan import UNKNOWN_LIMITS, Plan, duration, predicted_output
from pipeline.prices import MODELS, model_info
from pipeline.records import Document, Limits, Params, Prompt, Reply
from pipeline.tokens import estimate

DAY_S = 86_400
UNLIMITED = {"rpm": 0, "tpm": 0}
WORDS = " ".join(f"Sentence {number} is here." for number in range(400))


def nothing_done(row: int) -> bool:
    return False


def texts(lengths: list[int]) -> list[Document]:
    """Documents of so many characters each."""
    return [Document(row, str(row), {}, WORDS[:length]) for row, length in enumerate(lengths)]


def topics(number: int) -> list[Document]:
    return [Document(row, str(row), {"topic": f"number {row}"}) for row in range(number)]


def make(job: Job, documents: list[Document], done: Callable[[int], bool] = nothing_done, batch: int = 7) -> Plan:
    batches = [documents[start : start + batch] for start in range(0, len(documents), batch)]
    return anyio.run(plan.make, job, batches, len(documents), done)


@cache
def text_of(tokens: int) -> str:
    """A text of just so many tokens, by estimate."""
    texts = ("Some" + " thing" * words + "!" * marks for words in count(tokens * 9 // 10) for marks in range(8))
    return next(text for text in texts if estimate(text) == tokens)


def asked(job: Job, documents: list[Document]) -> list[Prompt]:
    """The prompts of the job's own flows when every answer has the predicted length."""
    prompts: list[Prompt] = []

    async def call(prompt: Prompt) -> Reply:
        prompts.append(prompt)
        return Reply(text_of(predicted_output(prompt)[0]), "ok")

    async def everything() -> None:
        for document in documents:
            await flows.run(document, job, call)

    anyio.run(everything)
    return prompts


# ---- the plan is the run


@pytest.mark.parametrize("max_output_tokens", [20, 100, 400])
@pytest.mark.parametrize("room", [128, 300, None])
@pytest.mark.parametrize("overlap", [0, 20])
def test_prompts_are_those_that_the_flows_will_ask(
    tmp_path: Path, max_output_tokens: int, room: int | None, overlap: int
) -> None:
    job = make_job(
        tmp_path,
        CHUNKED,
        chunk={"overlap_tokens": overlap},
        model={"max_output_tokens": max_output_tokens},
        reduce={"max_input_tokens": room},
    )
    documents = texts([50, 400, 1000, 3000, 9000, 0, 200])
    made, prompts = make(job, documents), asked(job, documents)
    assert made.prompts_by_step == Counter(prompt.step for prompt in prompts)
    assert made.prompts == len(prompts)
    assert made.input_tokens == pytest.approx(sum(prompt.input_tokens_est for prompt in prompts), rel=0.01)


def test_documents_by_kind(tmp_path: Path) -> None:
    made = make(make_job(tmp_path, CHUNKED), texts([0, 50, 100, 1000, 3000]))
    assert (made.documents, made.documents_done, made.documents_refused, made.documents_chunked) == (5, 0, 1, 2)
    assert made.longest_chunks > 5
    assert made.prompts_by_step["answer"] == 2


def test_a_plain_table_is_one_prompt_a_row(tmp_path: Path) -> None:
    job = make_job(tmp_path, prompt={"system": "Be kind."}, model={"max_output_tokens": 100})
    made = make(job, topics(30))
    assert made.prompts_by_step == {"answer": 30}
    assert made.input_tokens == sum(estimate(f"Say number {row}") + estimate("Be kind.") for row in range(30))
    assert (made.output_tokens.low, made.output_tokens.expected, made.output_tokens.high) == (0, 1500, 3000)
    assert made.sampled_rows == 0
    assert made.model == "gemini-3.5-flash-lite"


def test_an_empty_table(tmp_path: Path) -> None:
    made = make(make_job(tmp_path), [])
    assert (made.documents, made.prompts, made.seconds, made.nights, made.bottleneck) == (0, 0, 0.0, 0, "none")
    assert made.cost_usd and made.cost_usd.high == 0


# ---- what is done is left out


def test_rows_that_are_done_are_left_out(tmp_path: Path) -> None:
    job, documents = make_job(tmp_path, CHUNKED), texts([3000, 50, 1000, 9000, 60])
    done = {0, 3, 4}
    made = make(job, documents, done.__contains__)
    rest = make(job, [documents[1], documents[2]], lambda row: False)
    assert (made.documents, made.documents_done) == (2, 3)
    assert (made.prompts_by_step, made.input_tokens, made.cost_usd) == (
        rest.prompts_by_step,
        rest.input_tokens,
        rest.cost_usd,
    )


def test_nothing_is_left_when_all_is_done(tmp_path: Path) -> None:
    made = make(make_job(tmp_path), topics(5), lambda row: True)
    assert (made.documents, made.documents_done, made.prompts, made.seconds, made.nights) == (0, 5, 0, 0.0, 0)


# ---- a long table is planned from a sample


@pytest.mark.parametrize("rows", [100, 101, 999, 1000])
def test_a_sample_is_scaled_to_the_table(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    job, documents = make_job(tmp_path, model={"max_output_tokens": 100}, limits={"rpm": 60, "tpm": 0}), topics(rows)
    whole = make(job, documents)
    monkeypatch.setattr(plan, "SAMPLE_ROWS", 50)
    sampled = make(job, documents)
    assert 25 <= sampled.sampled_rows <= 50
    assert sampled.documents == sampled.prompts == rows
    assert sampled.input_tokens == pytest.approx(whole.input_tokens, rel=0.05)
    assert sampled.output_tokens == whole.output_tokens
    assert sampled.seconds == pytest.approx(whole.seconds)
    assert sampled.cost_usd and whole.cost_usd
    assert float(sampled.cost_usd.expected) == pytest.approx(float(whole.cost_usd.expected), rel=0.05)


def test_a_table_of_exactly_the_sample_is_planned_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SAMPLE_ROWS", 50)
    assert make(make_job(tmp_path), topics(50)).sampled_rows == 0
    assert make(make_job(tmp_path), topics(51)).sampled_rows in (25, 26)


def test_the_sample_is_of_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SAMPLE_ROWS", 10)
    made = make(make_job(tmp_path), topics(1000), lambda row: row < 995)
    assert (made.documents, made.documents_done, made.prompts, made.sampled_rows) == (5, 995, 5, 0)


@pytest.mark.parametrize("period", [2, 5])
def test_a_sample_of_a_table_with_a_rhythm_sees_every_kind(
    tmp_path: Path, period: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "SAMPLE_ROWS", 400)
    lengths = [1000, *[50] * (period - 2), 0]
    job, documents = make_job(tmp_path, CHUNKED), texts(lengths * 400)
    made = make(job, documents)
    assert made == make(job, documents)
    assert (made.documents, made.sampled_rows) == (400 * period, 400)
    assert made.documents_chunked == pytest.approx(400, rel=0.25)
    assert made.documents_refused == pytest.approx(400, rel=0.25)


# ---- cost


@pytest.mark.parametrize("model", [model.name for model in MODELS])
@pytest.mark.parametrize("bound", [None, 1, 500])
def test_cost_is_a_range_in_order(tmp_path: Path, model: str, bound: int | None) -> None:
    made = make(make_job(tmp_path, CHUNKED, model={"name": model, "max_output_tokens": bound}), texts([50, 1000]))
    assert made.cost_usd
    assert 0 < made.cost_usd.low <= made.cost_usd.expected <= made.cost_usd.high
    assert made.output_tokens.low <= made.output_tokens.expected <= made.output_tokens.high


def test_cost_follows_from_tokens_and_own_prices(tmp_path: Path) -> None:
    job = make_job(
        tmp_path, model={"name": "mine", "max_output_tokens": 100, "prices": {"input": 1, "output": 10, "cached": 0}}
    )
    made = make(job, topics(10))
    assert made.cost_usd
    plain = Decimal(made.input_tokens) / 1_000_000
    assert made.cost_usd.low == plain
    assert made.cost_usd.expected == plain + Decimal(50 * 10 * 10) / 1_000_000
    assert made.cost_usd.high == plain + Decimal(100 * 10 * 10) / 1_000_000


def test_an_unknown_price_is_unknown_and_not_nothing(tmp_path: Path) -> None:
    made = make(make_job(tmp_path, model={"name": "gemini-9-none"}), topics(3))
    assert made.cost_usd is None
    assert made.prompts == 3


@pytest.mark.parametrize(("bound", "expected"), [(1, (1, 1)), (2, (1, 2)), (801, (400, 801))])
def test_an_answer_is_expected_at_half_of_its_bound(bound: int, expected: tuple[int, int]) -> None:
    assert predicted_output(prompt_with(Params("gemini-3.5-flash-lite", max_output_tokens=bound))) == expected


@pytest.mark.parametrize("model", ["gemini-3.5-flash-lite", "gemini-4-argon"])
def test_an_answer_that_nothing_bounds_is_bounded_by_the_model(model: str) -> None:
    known = model_info(model)
    assert known
    expected, high = predicted_output(prompt_with(Params(model)))
    assert expected < high == known.max_output_tokens


def prompt_with(params: Params) -> Prompt:
    return Prompt(0, "0", "answer", "x", params, 1, "f")


# ---- assumptions


def test_assumptions_say_what_is_not_configured(tmp_path: Path) -> None:
    open_job = make(make_job(tmp_path), topics(1)).assumptions
    assert any("[limits] are not set" in line for line in open_job)
    assert any("max_output_tokens is not set" in line for line in open_job)
    bounded: dict[str, Any] = {"limits": UNLIMITED, "model": {"max_output_tokens": 10}}
    assert make(make_job(tmp_path, **bounded), topics(1)).assumptions == (
        "answers are expected at half of max_output_tokens",
    )


# ---- duration


def test_no_work_takes_no_time() -> None:
    assert duration(0, 0, Limits(rpm=1, tpm=1, rpd=1)) == (0.0, 0, "none")


def test_without_limits_only_the_last_answers_take_time() -> None:
    seconds, nights, bottleneck = duration(10**6, 10**9, Limits(rpm=0, tpm=0, rpd=0))
    assert (nights, bottleneck) == (1, "none")
    assert seconds < 60


def test_requests_bind() -> None:
    seconds, nights, bottleneck = duration(6000, 1000, Limits(rpm=100, tpm=1_000_000))
    assert (nights, bottleneck) == (1, "rpm")
    assert 3600 <= seconds <= 3600 * 1.05


def test_tokens_bind() -> None:
    seconds, nights, bottleneck = duration(600, 60_000_000, Limits(rpm=1000, tpm=1_000_000))
    assert (nights, bottleneck) == (1, "tpm")
    assert 3600 <= seconds <= 3600 * 1.05


@pytest.mark.parametrize(("prompts", "nights", "last_s"), [(1500, 2, 300), (2500, 3, 300), (3000, 3, 600)])
def test_the_day_binds(prompts: int, nights: int, last_s: float) -> None:
    seconds, days, bottleneck = duration(prompts, 1000, Limits(rpm=100, tpm=0, rpd=1000))
    assert (days, bottleneck) == (nights, "rpd")
    assert last_s <= seconds - (nights - 1) * DAY_S <= last_s * 1.1


@pytest.mark.parametrize(("prompts", "nights"), [(999, 1), (1000, 1), (1001, 2), (2000, 2), (2001, 3)])
def test_nights_are_days_of_quota(prompts: int, nights: int) -> None:
    assert duration(prompts, 0, Limits(rpm=1000, tpm=0, rpd=1000))[1] == nights


def test_a_day_quota_that_is_above_what_the_minutes_allow_does_not_bind() -> None:
    seconds, nights, bottleneck = duration(3000, 0, Limits(rpm=1, tpm=0, rpd=1441))
    assert bottleneck == "rpm"
    assert seconds == pytest.approx(3000 * 60 / 0.99, rel=0.01)
    assert nights == 3


def test_work_of_days_without_a_day_quota_takes_as_many_nights() -> None:
    seconds, nights, bottleneck = duration(60 * 24 * 3, 0, Limits(rpm=1, tpm=0))
    assert (nights, bottleneck) == (4, "rpm")
    assert 3 * DAY_S < seconds < 3.1 * DAY_S


def test_unknown_limits_are_planned_at_the_smallest_seen() -> None:
    assert duration(100, 1000, Limits()) == duration(100, 1000, UNKNOWN_LIMITS)
    assert duration(100, 10**8, Limits(rpm=0))[2] == "tpm"


AMOUNTS = st.integers(1, 10**6)
LIMITS = st.builds(
    Limits, st.none() | st.integers(0, 5000), st.none() | st.integers(0, 10**6), st.none() | st.integers(0, 10**5)
)


@settings(deadline=None)
@given(AMOUNTS, st.integers(0, 10**9), LIMITS)
def test_time_and_nights_agree_and_the_bottleneck_is_a_limit(prompts: int, tokens: int, limits: Limits) -> None:
    seconds, nights, bottleneck = duration(prompts, tokens, limits)
    assert seconds > 0
    assert nights >= 1
    assert seconds <= nights * DAY_S + 60
    assert bottleneck in {"rpm", "tpm", "rpd", "none"}
    if limits.rpd:
        assert nights >= prompts / limits.rpd
    if bottleneck == "none":
        assert limits.rpm == 0


@settings(deadline=None)
@given(AMOUNTS, AMOUNTS, st.integers(0, 10**9), LIMITS)
def test_more_work_never_takes_less_time(prompts: int, more: int, tokens: int, limits: Limits) -> None:
    less, longer = duration(prompts, tokens, limits), duration(prompts + more, tokens + more, limits)
    assert longer[0] >= less[0] * 0.999
    assert longer[1] >= less[1]
