"""The estimate is the run: what is planned is what is sent, and the ranges hold what it takes.

The service counts in a way of its own ("subword"), which no estimate knows. What is exact and why: first prompts are
made by the run's own flows, so their number and their very fingerprints are; the number of merging calls is where the
answers cannot be so long that other groups would form, else it has a range.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from commands import Ran
from corpus import Text, make_corpus
from plans import LATENCY_S, START, given, nothing_bought, telling
from serving import served
from sessions import run_through

from jobs import CHUNKED, PLAIN, Sections, make_job
from pipeline import estimating, plan
from pipeline.estimating import Wishes
from pipeline.job import Job
from pipeline.plan import Plan, picks, planner
from pipeline.plan.amounts import KINDS, Range, total
from pipeline.plan.exact import first_prompts
from pipeline.plan.learned import CALL_COLUMNS, NOTHING, Learned, learn
from pipeline.plan.pace import Pace
from pipeline.plan.planner import Input
from pipeline.plan.survey import survey
from pipeline.prompts import Prompt
from pipeline.records import Document, Reply
from pipeline.run import prepare
from pipeline.run.ending import Ended
from pipeline.run.prepare import Options
from pipeline.store import batched
from pipeline.store.parts import part_paths, read_part

ONE_CALL: Sections = {
    **PLAIN,
    "prompt": {
        "system": "You write for readers in a hurry.",
        "template": "Summarize this text in one sentence.\n\n{{ text }}",
    },
    "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": 300},
}
IN_PIECES: Sections = {
    **CHUNKED,
    "chunk": {"max_tokens": 300, "overlap_tokens": 20},
    "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": 100},
}


@dataclass(frozen=True)
class Desk:
    """A job on a table, and the service that it uses."""

    job: Job

    def session(self, **options: Any) -> prepare.Session:
        return prepare.prepare(self.job, Options(**options))

    def estimate(self, **wishes: Any) -> Plan:
        return anyio.run(estimating.estimate, self.session(), Wishes(**wishes)).plan

    def run(self, **options: Any) -> Ended:
        return run_through(self.session(**options))

    def pilot(self, number: int) -> None:
        self.run(pilot=anyio.run(estimating.pilot_rows, self.session(), number))

    def calls(self) -> pl.DataFrame:
        """What was bought."""
        columns = ("step", "fingerprint", "input_tokens_est", "input_tokens", "output_tokens", "thinking_tokens")
        directory = self.session().directory
        paths = [*part_paths(directory / "calls"), *batched.part_paths(directory)]
        return pl.concat([read_part(path, (*columns, "lane", "cost_usd")) for path in paths])

    def input(self) -> Input:
        opened = self.session()
        found, pace = survey(opened.source, opened.rows), Pace(self.job.limits, LATENCY_S)
        return Input(self.job, opened.source, found, NOTHING, nothing_bought, pace)


def desk(directory: Path, url: str, base: Sections, texts: list[Text], **sections: Any) -> Desk:
    path = directory / f"table-{len(texts)}.parquet"
    pl.DataFrame({"body": [each.text for each in texts]}, schema={"body": pl.String}).write_parquet(path)
    common: Sections = {
        "input": {"path": str(path), "text": "body"},
        "limits": {"rpm": 0, "tpm": 0},
        "endpoint": {"base_url": url},
    }
    return Desk(make_job(directory, {**base, **common}, **sections))


def holds(bounds: Range | None, amount: float | Decimal) -> bool:
    return bounds is not None and bounds.low <= amount <= bounds.high


def tokens_in(calls: pl.DataFrame, column: str) -> int:
    return int(calls[column].sum())


def usd(calls: pl.DataFrame) -> float:
    return float(calls["cost_usd"].sum())


def output_tokens(calls: pl.DataFrame) -> int:
    return tokens_in(calls, "output_tokens") + tokens_in(calls, "thinking_tokens")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(
        tokenizer="subword", model_version=None
    ) as url:  # answers under the model's own name, which has a price
        yield url


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


# ---- 1,200 documents of all sorts, one call each


@dataclass(frozen=True)
class Stage:
    """What was said of the calls to come when these had been bought."""

    plan: Plan
    bought: pl.DataFrame


@dataclass(frozen=True)
class Course:
    """A run from the first estimate to the report."""

    first_prompts: list[str]  # fingerprints
    forecast: list[str]
    stages: dict[str, Stage]
    calls: pl.DataFrame
    ended: Ended
    other: Plan  # of the same job on another table, afterwards
    other_calls: pl.DataFrame

    def to_come(self, stage: str) -> pl.DataFrame:
        return self.calls.join(self.stages[stage].bought, on="fingerprint", how="anti")


async def fingerprints(given: Input) -> tuple[list[str], list[str]]:
    """Those of the first prompts, and those that the forecast asks about."""
    asked: list[str] = []

    async def bought(prompt: Prompt) -> Reply | None:
        asked.append(prompt.fingerprint(given.job.model))
        return None

    await plan.make(replace(given, bought=bought), datetime.now(UTC))
    return [each.prompt.fingerprint(given.job.model) for each in await first_prompts(given)], asked


@pytest.fixture(scope="module")
def course(url: str, tmp_path_factory: pytest.TempPathFactory) -> Course:
    directory = tmp_path_factory.mktemp("course")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("GEMINI_API_KEY", "AQ.test")
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(directory / name))
        patch.setattr("pipeline.plan.exact._SPACING_S", 0.002)  # the emulator counts as fast as it is asked
        its = desk(directory, url, ONE_CALL, make_corpus())
        first, forecast = anyio.run(fingerprints, its.input())
        none = pl.DataFrame(schema={"fingerprint": pl.String})
        stages = {"before": Stage(its.estimate(), none), "exact": Stage(its.estimate(exact=True), none)}
        its.pilot(60)
        stages["piloted"] = Stage(its.estimate(), its.calls())
        before = stages["before"].plan.cost_usd
        assert before is not None
        its.run(max_cost_usd=before.low)
        stages["half"] = Stage(its.estimate(), its.calls())
        ended = its.run()
        other = desk(directory, url, ONE_CALL, make_corpus(300, seed=1))
        its_plan = other.estimate()
        calls = its.calls()
        other.run(fresh=True, overwrite=True)
        return Course(first, forecast, stages, calls, ended, its_plan, other.calls())


def test_every_prompt_that_was_planned_is_sent_and_no_other(course: Course) -> None:
    assert Counter(course.forecast) == Counter(course.first_prompts)
    assert Counter(course.calls["fingerprint"]) == Counter(set(course.first_prompts))
    planned = course.stages["before"].plan
    assert planned.prompts == Range(*[course.calls.height] * 3)
    spared = sum(cell.prompts for cell in planned.spared.values())
    assert spared == len(course.first_prompts) - course.calls.height == planned.found["repeats"].rows > 20
    assert planned.documents == len(course.first_prompts) + planned.found["empty_input"].rows


@pytest.mark.parametrize("stage", ["before", "exact", "piloted", "half"])
def test_ranges_hold_what_it_took(course: Course, stage: str) -> None:
    planned, to_come = course.stages[stage].plan, course.to_come(stage)
    assert planned.prompts == Range(*[to_come.height] * 3)
    assert holds(planned.input_tokens, tokens_in(to_come, "input_tokens"))
    assert holds(planned.output_tokens, output_tokens(to_come))
    assert holds(planned.cost_usd, usd(to_come))


@pytest.mark.parametrize(("stage", "off"), [("before", 0.10), ("exact", 0.03), ("piloted", 0.03), ("half", 0.03)])
def test_what_was_done_and_what_is_left_are_the_whole(course: Course, stage: str, off: float) -> None:
    planned, whole = course.stages[stage].plan, tokens_in(course.calls, "input_tokens")
    done = whole - tokens_in(course.to_come(stage), "input_tokens")
    assert done + planned.input_tokens.expected == pytest.approx(whole, rel=off)


def test_a_pilot_narrows_the_ranges(course: Course) -> None:
    before, exact, piloted = (course.stages[stage].plan for stage in ("before", "exact", "piloted"))

    def width(bounds: Range) -> float:
        return float((bounds.high - bounds.low) / bounds.expected)

    assert width(before.input_tokens) > 0.19
    assert width(exact.input_tokens) < 0.05
    assert width(piloted.input_tokens) < 0.10
    assert width(before.output_tokens) == 2
    assert width(piloted.output_tokens) < 0.5
    assert before.cost_usd and piloted.cost_usd
    assert width(piloted.cost_usd) < 0.2 * width(before.cost_usd)
    assert before.bounded and not piloted.bounded
    assert before.pace.slow_s is None
    assert piloted.pace.slow_s and 0 < piloted.pace.latency_s <= piloted.pace.slow_s


def test_a_run_begins_with_what_its_plan_knows_of_estimates(course: Course) -> None:
    assert course.stages["before"].plan.calibrations == {}
    true = float(course.calls["input_tokens"].sum()) / float(course.calls["input_tokens_est"].sum())
    for stage in ("piloted", "half"):
        known = course.stages[stage].plan.calibrations["answer"]
        assert known.ratio == pytest.approx(true, rel=0.03)
        assert known.margin().bias < 0.15
    other = course.other.calibrations["answer"]
    assert other.ratio == pytest.approx(true, rel=0.001) and other.effective <= 2.0


def test_the_report_says_how_far_the_estimate_was_off(course: Course) -> None:
    accuracy, stage = course.ended.summary.accuracy, course.stages["piloted"]
    assert accuracy is not None
    estimated, actual = accuracy.estimated["total"], accuracy.actual["total"]
    assert (actual.calls, actual.input_tokens) == (course.calls.height, tokens_in(course.calls, "input_tokens"))
    assert estimated.calls == actual.calls
    assert estimated.input_tokens == pytest.approx(actual.input_tokens, rel=0.03)
    assert stage.plan.cost_usd and actual.cost_usd and estimated.cost_usd
    bought = stage.bought
    assert holds(stage.plan.output_tokens, actual.output_tokens - output_tokens(bought))
    assert estimated.output_tokens == stage.plan.output_tokens.expected + output_tokens(bought)
    assert float(estimated.cost_usd) == pytest.approx(float(stage.plan.cost_usd.expected) + usd(bought))
    assert accuracy.based_on == stage.plan.based_on == "60 answers of this run"


def test_another_table_is_estimated_with_what_this_one_taught(course: Course) -> None:
    planned, calls = course.other, course.other_calls
    assert planned.based_on == f"{course.calls.height:,} answers of 1 earlier run"
    assert planned.prompts == Range(*[calls.height] * 3)
    true = tokens_in(calls, "input_tokens")
    assert planned.input_tokens.expected == pytest.approx(true, rel=0.03)
    assert abs(float(planned.input_tokens.expected) - true) < abs(tokens_in(calls, "input_tokens_est") - true)
    assert holds(planned.input_tokens, true)
    assert holds(planned.output_tokens, output_tokens(calls))
    assert holds(planned.cost_usd, usd(calls))


# ---- in pieces


@pytest.mark.parametrize("context", [None, "headings"])
def test_merging_calls_are_exact_where_all_parts_fit_one_prompt_anyway(
    tmp_path: Path, url: str, context: str | None
) -> None:
    sections: Sections = {"reduce": {"max_input_tokens": 16_000}, "chunk": {"context": context}}
    its = desk(tmp_path, url, IN_PIECES, make_corpus(120, seed=2), **sections)
    planned = its.estimate()
    assert planned.prompts_by_step["reduce"] <= planned.documents_chunked, "one level"
    first, _ = anyio.run(fingerprints, its.input())
    its.run()
    calls = its.calls()
    assert planned.prompts == Range(*[calls.height] * 3)
    assert planned.prompts_by_step == Counter(calls["step"])
    assert Counter(calls.filter(pl.col("step") != "reduce")["fingerprint"]) == Counter(set(first))
    assert planned.steps["map"].input_tokens == pytest.approx(
        calls.filter(pl.col("step") == "map")["input_tokens"].sum(), rel=0.1
    )
    assert holds(planned.input_tokens, tokens_in(calls, "input_tokens"))
    assert holds(planned.cost_usd, usd(calls))


def test_merging_calls_have_a_range_where_they_depend_on_the_answers(tmp_path: Path, url: str) -> None:
    its = desk(tmp_path, url, IN_PIECES, make_corpus(120, seed=1), reduce={"max_input_tokens": 400})
    before = its.estimate()
    its.pilot(20)
    piloted, bought = its.estimate(), its.calls()
    its.run()
    calls = its.calls()
    to_come = calls.join(bought, on="fingerprint", how="anti")
    its.session().directory.rename("runs/earlier")
    learned = its.estimate()
    for planned, its_calls in ((before, calls), (piloted, to_come), (learned, calls)):
        steps = Counter(its_calls["step"])
        assert [planned.prompts_by_step[step] for step in ("answer", "map")] == [steps["answer"], steps["map"]]
        assert planned.prompts.low < planned.prompts.high
        assert holds(planned.prompts, its_calls.height)
        assert holds(planned.input_tokens, tokens_in(its_calls, "input_tokens"))
        assert holds(planned.output_tokens, output_tokens(its_calls))
        assert holds(planned.cost_usd, usd(its_calls))
    assert float(learned.prompts.high - learned.prompts.low) < 0.5 * float(before.prompts.high - before.prompts.low)
    assert learned.prompts.expected == pytest.approx(calls.height, rel=0.03)


def test_a_running_summary_is_planned_call_by_call(tmp_path: Path, url: str) -> None:
    refine = {"template": "So far: {{ summary }}\n\nGoes on: {{ text }}"}
    its = desk(tmp_path, url, IN_PIECES, make_corpus(120, seed=2), reduce=None, refine=refine)
    before = its.estimate()
    first, _ = anyio.run(fingerprints, its.input())
    its.pilot(20)
    piloted, bought = its.estimate(), its.calls()
    its.run()
    calls = its.calls()
    assert Counter(calls.filter(pl.col("step") != "refine")["fingerprint"]) == Counter(set(first))
    assert before.load.depth > 5, "each call waits for the one before it"
    for planned, its_calls in ((before, calls), (piloted, calls.join(bought, on="fingerprint", how="anti"))):
        assert planned.prompts == Range(*[its_calls.height] * 3), "as many calls as there are pieces"
        assert planned.prompts_by_step == Counter(its_calls["step"])
        assert holds(planned.input_tokens, tokens_in(its_calls, "input_tokens"))
        assert holds(planned.output_tokens, output_tokens(its_calls))
        assert holds(planned.cost_usd, usd(its_calls))
    refined = calls.filter(pl.col("step") == "refine")
    assert before.steps["refine"].input_tokens == pytest.approx(tokens_in(refined, "input_tokens"), rel=0.25)


# ---- in other lanes


@pytest.mark.parametrize(("lane", "base"), [("batch", ONE_CALL), ("batch", IN_PIECES), ("flex", ONE_CALL)])
def test_a_run_in_another_lane_makes_the_calls_of_the_estimate_at_the_price_of_that_lane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: str, base: Sections
) -> None:
    monkeypatch.setattr("pipeline.batch.watching.POLL_S", (0.1, 0.5))
    batches: dict[str, Any] = {"batch": True, "batch_pending_s": 0.1, "batch_run_s": 0.1, "batch_spread": 1.0}
    sections: Sections = {"reduce": {"max_input_tokens": 16_000}} if base is IN_PIECES else {}
    with served(tokenizer="subword", model_version=None, **batches) as url:
        texts = make_corpus(80, seed=2)
        its = desk(tmp_path, url, base, texts, **sections, model={"lane": lane})
        before = its.estimate()
        its.run()
        calls = its.calls()
        its.session().directory.rename("runs/earlier")
        learned = its.estimate()
        standard = desk(tmp_path, url, base, texts, **sections).estimate()
    assert set(calls["lane"]) == {lane} and before.lanes[0].parts[0].lane == lane
    for planned in (before, learned):
        assert planned.prompts == Range(*[calls.height] * 3)
        assert planned.prompts_by_step == Counter(calls["step"])
        assert holds(planned.input_tokens, tokens_in(calls, "input_tokens"))
        assert holds(planned.cost_usd, usd(calls))
    assert standard.cost_usd and usd(calls) == pytest.approx(float(standard.cost_usd.expected) / 2, rel=0.03)


# ---- several turns


def test_examples_and_the_conversation_of_a_row_are_planned(tmp_path: Path, url: str) -> None:
    examples = [{"input": f"Say {number} of the texts", "output": "A text, said. " * 20} for number in range(5)]
    said: list[Any] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello! " * 50}]
    its = desk(tmp_path, url, ONE_CALL, make_corpus(60, seed=4), prompt={"examples": examples})
    path = tmp_path / "talks.parquet"
    table = pl.read_parquet(str(its.job.spec.input.path))
    table.with_columns(talk=pl.lit(json.dumps(said))).write_parquet(path)
    its = Desk(
        make_job(
            tmp_path,
            ONE_CALL,
            input={"path": str(path), "text": "body", "messages": "talk"},
            prompt={"examples": examples},
            limits={"rpm": 0, "tpm": 0},
            endpoint={"base_url": url},
        )
    )
    planned = its.estimate()
    first, _ = anyio.run(fingerprints, its.input())
    its.run()
    calls = its.calls()
    assert Counter(calls["fingerprint"]) == Counter(set(first))
    assert planned.prompts == Range(*[calls.height] * 3)
    assert holds(planned.input_tokens, tokens_in(calls, "input_tokens"))
    assert holds(planned.cost_usd, usd(calls))


def test_a_conversation_is_planned_turn_by_turn(tmp_path: Path, url: str) -> None:
    turns = ["Read this:\n\n{{ text }}", "What is the point of it?", "Say it in ten words."]
    talk = {"template": None, "flow": "conversation", "turns": turns}
    its = desk(tmp_path, url, ONE_CALL, make_corpus(120, seed=2), prompt=talk)
    before = its.estimate()
    first, _ = anyio.run(fingerprints, its.input())
    its.pilot(20)
    piloted, bought = its.estimate(), its.calls()
    its.run()
    calls = its.calls()
    assert Counter(calls.filter(pl.col("step") == "answer")["fingerprint"]) == Counter(set(first))
    assert before.load.depth == 3, "each call waits for the one before it"
    for planned, its_calls in ((before, calls), (piloted, calls.join(bought, on="fingerprint", how="anti"))):
        assert planned.prompts_by_step == Counter(its_calls["step"])
        assert planned.prompts == Range(*[its_calls.height] * 3)
        assert holds(planned.input_tokens, tokens_in(its_calls, "input_tokens"))
        assert holds(planned.output_tokens, output_tokens(its_calls))
        assert holds(planned.cost_usd, usd(its_calls))
    to_come = calls.join(bought, on="fingerprint", how="anti")
    assert piloted.input_tokens.expected == pytest.approx(tokens_in(to_come, "input_tokens"), rel=0.05)


# ---- answers by a schema

STRUCTURED: Sections = {
    **ONE_CALL,
    "output": {"path": "results/out.jsonl", "schema": "mood: good|bad, gist: str, names: [str]", "repair": True},
}


def test_a_repair_of_every_answer_is_the_most_that_is_planned(tmp_path: Path, url: str) -> None:
    right = desk(tmp_path, url, STRUCTURED, make_corpus(40, seed=6))
    planned = right.estimate()
    right.run()
    calls = right.calls()
    assert set(calls["step"]) == {"answer"} and planned.prompts == Range(calls.height, calls.height, 2 * calls.height)
    assert any("no answer is expected to need another call" in each for each in planned.assumptions)


@pytest.mark.parametrize("sections", [{}, {"pack": {"rows": 4}}], ids=["alone", "packed"])
def test_what_of_a_schema_is_not_told_is_not_counted(tmp_path: Path, url: str, sections: Sections) -> None:
    gist = {"type": "string", "pattern": "^(?s:.)*$", "minLength": 0, "maxLength": 100_000}
    held = {"type": "object", "properties": {f"gist_{number}": gist for number in range(16)}}
    output = {"path": "results/out.jsonl", "schema": held}
    model = {"max_output_tokens": 6_000}
    its = desk(tmp_path, url, ONE_CALL, make_corpus(40, seed=6), output=output, model=model, **sections)
    planned = its.estimate()
    its.run()
    assert holds(planned.input_tokens, tokens_in(its.calls(), "input_tokens"))


def test_repairs_are_learned_and_each_is_a_call(tmp_path: Path) -> None:
    with served(tokenizer="subword", model_version=None, faults="wrong_json:0.4") as url:
        its = desk(tmp_path, url, STRUCTURED, make_corpus(300, seed=7))
        before = its.estimate()
        its.run()
        calls = its.calls()
        its.session().directory.rename("runs/earlier")
        learned = its.estimate()
    asked, repaired = (calls.filter(pl.col("step") == step) for step in ("answer", "repair"))
    assert before.prompts.expected == asked.height and asked.height / 4 < repaired.height < asked.height / 2
    for planned in (before, learned):
        assert holds(planned.prompts, calls.height)
        assert holds(planned.input_tokens, tokens_in(calls, "input_tokens"))
        assert holds(planned.output_tokens, output_tokens(calls))
        assert holds(planned.cost_usd, usd(calls))
    assert learned.prompts.expected == pytest.approx(calls.height, rel=0.03)
    assert learned.input_tokens.expected == pytest.approx(tokens_in(calls, "input_tokens"), rel=0.10)
    assert learned.prompts_by_step["repair"] == pytest.approx(repaired.height, rel=0.02)


# ---- the jobs that come with it


@pytest.mark.parametrize("name", ["summarize", "extract", "generate"])
def test_the_bundled_jobs(
    here: Path, cli: Callable[..., Ran], url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    job = f"jobs/{name}.toml"
    made = cli("estimate", job, "--json").json
    ran = cli("run", job, "--rpm", 0, "--tpm", 0, "--yes", "--json").json
    assert made["prompts"] == ran["calls"] == ran["accuracy"]["total"]["calls"][0]
    for step, (estimated, counted) in ((step, ran["accuracy"][step]["input_tokens"]) for step in made["steps"]):
        assert step == "reduce" or estimated == pytest.approx(counted, rel=0.10)
    assert made["input_tokens_range"]["low"] <= ran["input_tokens"] <= made["input_tokens_range"]["high"]
    assert made["cost_usd"]["low"] <= ran["cost_usd"] <= made["cost_usd"]["high"]


# ---- thinking


def test_thinking_is_seen_in_a_pilot_and_paid_for(tmp_path: Path) -> None:
    with served(tokenizer="subword", model_version=None, thinking_tokens=40) as url:
        its = desk(tmp_path, url, ONE_CALL, make_corpus(150, seed=5))
        its.pilot(30)
        planned, bought = its.estimate(), its.calls()
        its.run()
        to_come = its.calls().join(bought, on="fingerprint", how="anti")
    assert to_come["thinking_tokens"].sum() == 40 * to_come.height
    cell = total(planned.work)
    assert cell.thinking_tokens == pytest.approx(40 * to_come.height)
    assert planned.steps["answer"].answer_tokens == pytest.approx(cell.output_tokens + cell.thinking_tokens)
    assert holds(planned.output_tokens, output_tokens(to_come))
    assert holds(planned.cost_usd, usd(to_come))
    usd_a_token = Decimal("2.5") / 1_000_000
    assert planned.cost_usd and planned.cost_usd.low > usd_a_token * (40 * to_come.height)


# ---- a sample


def all_known(documents: list[Document]) -> Learned:
    """So many answers that nothing is in doubt but the sample: estimates are right, answers as long as they are."""
    rows = [
        dict(zip(CALL_COLUMNS, (row, step, True, False, 2**size, 2**size, 0, 30 + 2 * size, 0, 1.0), strict=True))
        for row in range(len(documents))
        for step, size in (("answer", 4 + row % 8), ("map", 8), ("reduce", 4 + row % 8))
    ]
    return learn(pl.DataFrame(rows), telling([row % len(KINDS) for row in range(len(documents))]))


@pytest.mark.parametrize(("samples", "least"), [(20, 18), pytest.param(60, 54, marks=pytest.mark.long)])
def test_19_of_20_samples_hold_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int, least: int
) -> None:
    job = make_job(tmp_path, IN_PIECES, chunk={"max_tokens": 80, "overlap_tokens": 0})
    documents = [Document(row, str(row), {}, each.text[:300]) for row, each in enumerate(make_corpus(1200, seed=4))]
    table = given(job, documents, learned=all_known(documents))
    monkeypatch.setattr("pipeline.plan.forecast._BOUND_CHARACTERS", 0)  # other lengths would be merged alike

    def planned(effort: picks.Effort) -> Plan:
        return anyio.run(plan.make, replace(table, effort=effort), START)

    whole = planned(planner.EVERYTHING)
    held: Counter[str] = Counter()
    for seed in range(samples):
        monkeypatch.setattr(planner, "pick", partial(picks.pick, seed=seed))
        made = planned(picks.Effort(250, 10**9, 250, 10**9))
        assert made.sampled_rows == 250
        assert whole.cost_usd
        held["prompts"] += holds(made.prompts, whole.prompts.expected)
        held["input"] += holds(made.input_tokens, whole.input_tokens.expected)
        held["cost"] += holds(made.cost_usd, whole.cost_usd.expected)
    assert whole.sampled_rows == 0
    assert min(held.values()) >= least, held
