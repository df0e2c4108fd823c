"""The plan is the run: prompts as the flows ask them, ranges that hold, nothing twice."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import anyio
import polars as pl
import pytest
from plans import START, given, make, texts, topics

from jobs import CHUNKED, make_job
from pipeline import flows, plan
from pipeline.job import Job
from pipeline.models import MODELS, answering
from pipeline.plan.compare import prefix_tokens
from pipeline.plan.exact import first_prompts
from pipeline.plan.learned import CALL_COLUMNS, Learned, learn
from pipeline.plan.picks import Effort
from pipeline.plan.planner import EVERYTHING
from pipeline.prompts import Prompt
from pipeline.records import Document, Reply
from pipeline.tokens import estimate

UNLIMITED = {"rpm": 0, "tpm": 0}


@cache
def text_of(tokens: int) -> str:
    """A text of just so many tokens, by estimate."""
    texts = ("Some" + " thing" * words + "!" * marks for words in count(tokens * 9 // 10) for marks in range(8))
    return next(text for text in texts if estimate(text) == tokens)


def asked(job: Job, documents: list[Document], output_tokens: int) -> list[Prompt]:
    """The prompts of the job's own flows when every answer has this length."""
    prompts: dict[str, Prompt] = {}

    async def call(prompt: Prompt) -> Reply:
        prompts[prompt.fingerprint(job.model)] = prompt
        return Reply(f"{text_of(output_tokens - 3)} {prompt.fingerprint(job.model)[:3]}", "ok")

    async def everything() -> None:
        for document in documents:
            await flows.run(document, job, call)

    anyio.run(everything)
    return list(prompts.values())


def answered(step: str, *answers: tuple[int, int, int]) -> Learned:
    """What answers with so many (estimated, input, output) tokens teach."""
    frame = pl.DataFrame(
        [
            dict(
                zip(
                    CALL_COLUMNS,
                    (row, step, True, False, estimated, given_tokens, 0, output, 0, 2.0),
                    strict=True,
                )
            )
            for row, (estimated, given_tokens, output) in enumerate(answers)
        ]
    )
    return learn(frame)


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
    made = make(job, documents)
    prompts = asked(job, documents, max_output_tokens // 2)
    assert made.prompts_by_step == Counter(prompt.step for prompt in prompts)
    assert made.prompts.expected == len(prompts)
    assert made.input_tokens.expected == pytest.approx(sum(prompt.input_tokens_est for prompt in prompts), rel=0.01)
    for tokens, bound in ((5, "low"), (max_output_tokens, "high")):
        extreme = sum(prompt.input_tokens_est for prompt in asked(job, documents, tokens))
        if bound == "low":
            assert made.input_tokens.low <= extreme
        else:
            assert made.input_tokens.high >= extreme * 0.99


def test_documents_by_kind(tmp_path: Path) -> None:
    made = make(make_job(tmp_path, CHUNKED), texts([0, 50, 100, 1000, 3000]))
    assert (made.documents, made.documents_done, made.documents_chunked) == (5, 0, 2)
    assert made.prompts_by_step["answer"] == 2
    assert made.load.depth >= 2
    assert [each.row for each in made.found["chunked"].examples] == [3, 4]
    assert (made.found["empty_input"].rows, made.found["empty_input"].examples[0].row) == (1, 0)


def test_a_plain_table_is_one_prompt_a_row(tmp_path: Path) -> None:
    job = make_job(tmp_path, prompt={"system": "Be kind."}, model={"max_output_tokens": 100})
    made = make(job, topics(30))
    assert made.prompts_by_step == {"answer": 30}
    tokens = sum(estimate(f"Say number {row}") + estimate("Be kind.") for row in range(30))
    assert made.input_tokens.expected == tokens
    assert (made.input_tokens.low, made.input_tokens.high) == (round(tokens * 0.9), round(tokens * 1.1))
    assert (made.output_tokens.low, made.output_tokens.expected, made.output_tokens.high) == (0, 1500, 3000)
    assert (made.prompts.low, made.prompts.high) == (30, 30)
    assert made.bounded
    assert made.sampled_rows == 0
    assert made.model == "gemini-3.5-flash-lite"


def test_an_empty_table(tmp_path: Path) -> None:
    made = make(make_job(tmp_path), [])
    assert (made.documents, made.load.prompts, made.timeline.seconds, made.timeline.nights) == (0, 0, 0.0, 0)
    assert made.cost_usd and made.cost_usd.high == 0


def test_what_two_rows_ask_alike_is_planned_once(tmp_path: Path) -> None:
    job = make_job(tmp_path, CHUNKED)
    once = texts([50, 3000])
    twice = [*once, *(Document(row + 2, str(row + 2), {}, each.text) for row, each in enumerate(once))]
    made, single = make(job, twice), make(job, once)
    assert made.prompts_by_step == single.prompts_by_step
    assert made.cost_usd == single.cost_usd
    assert made.found["repeats"].rows == 2
    assert made.found["repeats"].examples[0].remark == "as row 0"
    assert sum(cell.prompts for cell in made.spared.values()) == single.load.prompts


def test_a_row_that_is_too_long_is_named_and_not_sent(tmp_path: Path) -> None:
    job = make_job(tmp_path, CHUNKED, chunk=None, reduce=None, prompt={"template": "{{ text }}"}, limits={"tpm": 1000})
    made = make(job, texts([100, 9000, 200]))
    assert made.load.prompts == 2
    assert made.found["too_long"].rows == 1
    assert made.found["too_long"].examples[0].row == 1
    assert "tokens" in made.found["too_long"].examples[0].remark


def test_a_template_that_fails_is_named_and_not_sent(tmp_path: Path) -> None:
    job = make_job(tmp_path, prompt={"template": "{{ topic | int }}"})
    made = make(job, topics(3))
    assert (made.load.prompts, made.found["template_error"].rows) == (0, 3)


# ---- what is done is left out


def test_rows_that_are_done_are_left_out(tmp_path: Path) -> None:
    job, documents = make_job(tmp_path, CHUNKED), texts([3000, 50, 1000, 9000, 60])
    made = make(job, documents, {0, 3, 4}.__contains__)
    rest = make(job, [documents[1], documents[2]])
    assert (made.documents, made.documents_done) == (2, 3)
    assert made.prompts_by_step == rest.prompts_by_step
    assert (made.input_tokens, made.cost_usd) == (rest.input_tokens, rest.cost_usd)


def test_nothing_is_left_when_all_is_done(tmp_path: Path) -> None:
    made = make(make_job(tmp_path), topics(5), lambda row: True)
    assert (made.documents, made.documents_done, made.load.prompts, made.timeline.seconds) == (0, 5, 0, 0.0)
    assert made.found == {}


def test_what_is_bought_is_not_planned_again(tmp_path: Path) -> None:
    job, documents = make_job(tmp_path, CHUNKED), texts([50, 3000])
    prompts = asked(job, documents, 50)
    known = {prompt.fingerprint(job.model) for prompt in prompts if prompt.step == "map"}

    async def bought(prompt: Prompt) -> Reply | None:
        return Reply("a part answer", "ok") if prompt.fingerprint(job.model) in known else None

    made = make(job, documents, bought=bought)
    assert set(made.prompts_by_step) == {"answer", "reduce"}


# ---- a long table is planned from a sample


def sampled(rows: int) -> Effort:
    """At most so many rows are looked at."""
    return Effort(rows, 2**40, rows, 2**40)


def test_a_sample_stands_for_the_table_and_says_how_well(tmp_path: Path) -> None:
    job = make_job(tmp_path, CHUNKED, model={"max_output_tokens": 100})
    documents = texts([40 + (row * 37) % 900 for row in range(600)])
    whole = make(job, documents)
    made = make(job, documents, effort=sampled(150))
    assert 120 <= made.sampled_rows <= 150
    assert made.documents == whole.documents == 600
    assert made.prompts.low <= whole.prompts.expected <= made.prompts.high
    assert made.prompts.low < made.prompts.high
    assert made.input_tokens.low <= whole.input_tokens.expected <= made.input_tokens.high
    assert made.load.prompts == pytest.approx(whole.load.prompts, rel=0.03)
    assert made.documents_chunked == pytest.approx(whole.documents_chunked, rel=0.05)


def test_rows_that_repeat_are_not_counted_though_their_originals_are_not_picked(tmp_path: Path) -> None:
    job = make_job(tmp_path, CHUNKED, chunk=None, reduce=None, prompt={"template": "{{ text }}"})
    one = texts([200 + row % 50 for row in range(400)])
    documents = [*one, *(Document(row + 400, str(row + 400), {}, each.text) for row, each in enumerate(one))]
    made = make(job, documents, effort=sampled(100))
    assert made.sampled_rows <= 100
    assert made.load.prompts == pytest.approx(400, abs=1)
    assert sum(cell.prompts for cell in made.spared.values()) == pytest.approx(400, abs=1)


def test_the_sample_is_of_what_is_left(tmp_path: Path) -> None:
    made = make(make_job(tmp_path), topics(1000), lambda row: row < 995, effort=sampled(10))
    assert (made.documents, made.documents_done, made.load.prompts, made.sampled_rows) == (5, 995, 5, 0)


def test_every_row_is_counted_on_request(tmp_path: Path) -> None:
    table = given(make_job(tmp_path), topics(100))
    assert not replace(table, effort=sampled(10)).picks().whole
    assert replace(table, effort=EVERYTHING).picks().whole


# ---- what answers taught


def test_learned_ratios_and_lengths_replace_the_guess(tmp_path: Path) -> None:
    job = make_job(tmp_path, model={"max_output_tokens": 1000}, limits=UNLIMITED)
    guess = make(job, topics(50))
    taught = answered("answer", *[(10, 15, 40 + row % 5) for row in range(40)])
    made = make(job, topics(50), learned=taught)
    assert not made.bounded
    assert made.input_tokens.expected == pytest.approx(1.5 * int(guess.input_tokens.expected), rel=0.01)
    assert made.input_tokens.high - made.input_tokens.low < 0.1 * int(made.input_tokens.expected)
    assert made.output_tokens.expected == pytest.approx(50 * 42, rel=0.01)
    assert made.output_tokens.low > 50 * 40
    assert made.output_tokens.high < 50 * 44
    assert made.cost_usd and guess.cost_usd
    assert guess.cost_usd.high > made.cost_usd.high
    assert made.steps["answer"].answers and made.steps["answer"].answers.p50 == 42
    assert made.based_on == "40 answers of this run"


def test_a_step_that_was_never_answered_keeps_its_bounds(tmp_path: Path) -> None:
    job = make_job(tmp_path, CHUNKED, model={"max_output_tokens": 200})
    taught = answered("map", *[(60, 66, 50) for _ in range(30)])
    made = make(job, texts([3000, 100]), learned=taught)
    assert made.bounded
    reduces = made.prompts_by_step["reduce"]
    assert made.output_tokens.high - made.output_tokens.expected >= reduces * 100
    assert made.steps["map"].answers and made.steps["reduce"].answers is None


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
    plain = Decimal(made.input_tokens.expected) / 1_000_000
    off = plain * Decimal("0.1")
    assert float(made.cost_usd.expected) == pytest.approx(float(plain + Decimal(50 * 10 * 10) / 1_000_000))
    assert float(made.cost_usd.low) == pytest.approx(float(plain - off))
    assert float(made.cost_usd.high) == pytest.approx(float(plain + off + Decimal(100 * 10 * 10) / 1_000_000))


def test_an_unknown_price_is_unknown_and_not_nothing(tmp_path: Path) -> None:
    made = make(make_job(tmp_path, model={"name": "gemini-9-none"}), topics(3))
    assert made.cost_usd is None
    assert made.steps["answer"].cost_usd is None
    assert made.load.prompts == 3


def test_a_price_that_changes_in_mid_run_is_paid_from_that_day_on(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"model": {"name": "gemini-4-argon", "max_output_tokens": 100}, "limits": {"rpm": 1}}
    job = make_job(tmp_path, **{**sections, "limits": {"rpm": 1, "tpm": 0}})
    before = datetime(2026, 11, 30, 23, 0, tzinfo=UTC)
    made, cheap = make(job, topics(121), start=before), make(job, topics(121), start=datetime(2026, 11, 1, tzinfo=UTC))
    dear = make(job, topics(121), start=datetime(2026, 12, 2, tzinfo=UTC))
    assert made.cost_usd and cheap.cost_usd and dear.cost_usd
    assert dear.cost_usd.expected == 2 * cheap.cost_usd.expected
    assert float(made.cost_usd.expected) == pytest.approx(1.5 * float(cheap.cost_usd.expected), rel=0.02)
    assert any("doubles on 2026-12-01, in mid-run" in line for line in made.notices)


def test_a_model_that_is_switched_off_is_told(tmp_path: Path) -> None:
    made = make(make_job(tmp_path, model={"name": "gemini-2.5-flash"}), topics(3))
    assert any("switched off on 2026-12-01" in line for line in made.notices)
    assert answering("gemini-2.5-flash", START.date()) == "gemini-2.5-flash"


# ---- time


def test_time_is_that_of_the_limits(tmp_path: Path) -> None:
    made = make(make_job(tmp_path, limits={"rpm": 10, "tpm": 0}), topics(100))
    assert made.timeline.bound == "rpm"
    assert made.timeline.seconds == pytest.approx(600, rel=0.05)


def test_a_table_sorted_by_length_is_read_in_an_order_of_its_own_and_takes_no_longer(tmp_path: Path) -> None:
    # 4,500 short rows and 4,500 long ones: requests would bind, then tokens
    template = {"template": "{{ topic }}"}
    job = make_job(tmp_path, prompt=template, limits={"rpm": 1000, "tpm": 60_000})
    lengths = [1] * 4500 + [400] * 4500
    sorted_rows, mixed = (
        [Document(row, str(row), {"topic": f"{row} " + "x " * (length // 2)}) for row, length in enumerate(order)]
        for order in (lengths, Random(3).sample(lengths, len(lengths)))
    )
    woven, plain = make(job, sorted_rows), make(job, mixed)
    assert plain.order is None and woven.order
    assert woven.timeline.seconds == pytest.approx(plain.timeline.seconds, rel=0.01)
    assert make(job, sorted_rows, done=lambda row: row < 4500).order is None, "those that are left are alike"


def test_days_of_quota_are_listed(tmp_path: Path) -> None:
    made = make(make_job(tmp_path, limits={"rpm": 0, "tpm": 0, "rpd": 40}), topics(100))
    assert (made.timeline.nights, made.timeline.bound) == (3, "rpd")
    assert [day.prompts for day in made.timeline.days] == [40, 40, 20]


# ---- other questions


def test_first_prompts_are_those_of_the_flows(tmp_path: Path) -> None:
    job, documents = make_job(tmp_path, CHUNKED), texts([50, 3000, 0])
    table = given(job, documents)
    found = anyio.run(first_prompts, table)
    wanted = {prompt.fingerprint(job.model) for prompt in asked(job, documents, 20) if prompt.step != "reduce"}
    assert {each.prompt.fingerprint(job.model) for each in found} == wanted
    assert {each.kind for each in found} == {0}


def test_the_shared_prefix_is_the_system_instruction_and_the_text_before_the_first_tag(tmp_path: Path) -> None:
    job = make_job(tmp_path, prompt={"system": "Be kind.", "template": "Say it: {{ topic }} and more"})
    assert prefix_tokens(job) == estimate("Be kind.") + estimate("Say it: ")


def test_assumptions_say_what_is_not_known(tmp_path: Path) -> None:
    open_job = make(make_job(tmp_path), topics(1)).assumptions
    assert any("[limits] rpm and tpm are not set" in line for line in open_job)
    half_open = make(make_job(tmp_path, limits={"rpm": 3000}), topics(1)).assumptions
    assert any("[limits] tpm is not set" in line for line in half_open)
    assert any("max_output_tokens is not set" in line for line in open_job)
    taught = answered("answer", *[(10, 15, 40) for _ in range(40)])
    bounded: dict[str, Any] = {"limits": UNLIMITED, "model": {"max_output_tokens": 10}}
    assert make(make_job(tmp_path, **bounded), topics(1), learned=taught).assumptions == ()


def test_a_plan_under_way_can_be_given_up(tmp_path: Path) -> None:
    job = make_job(tmp_path, limits=UNLIMITED)

    async def given_up() -> bool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await plan.make(given(job, topics(3)), START)
        return scope.cancelled_caught

    assert anyio.run(given_up)
