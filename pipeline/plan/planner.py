"""The plan of a run: what is left to do, and what it will take in calls, tokens, money and time. Nothing is sent."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import NamedTuple

import polars as pl
from anyio.lowlevel import checkpoint

from pipeline import flows
from pipeline.job import Job
from pipeline.plan.amounts import Range, Work, total
from pipeline.plan.costs import Share, cost_by_day, cost_over, notices, split_by_day
from pipeline.plan.forecast import Bought, Forecaster
from pipeline.plan.learned import Learned
from pipeline.plan.pace import Load, Pace
from pipeline.plan.picks import Picks, documents, pick
from pipeline.plan.plans import Example, Found, Plan, StepPlan
from pipeline.plan.predict import UNBOUNDED_OUTPUT_TOKENS
from pipeline.plan.survey import EXAMPLES, Survey, keys_of
from pipeline.plan.tally import Sums, Tally
from pipeline.plan.timing import timeline
from pipeline.prices import CHECKED, Rates, effective_rates
from pipeline.prompts import Prompt
from pipeline.records import STEPS, Document, Reply, Step
from pipeline.source import Source
from pipeline.source.order import reading_order
from pipeline.tokens import estimate


class Effort(NamedTuple):
    """Up to how much text every row is planned, and how much of it is picked from a larger table."""

    whole_rows: int
    whole_bytes: int
    sample_rows: int
    sample_bytes: int


USUAL = Effort(100_000, 250_000_000, 25_000, 80_000_000)
"""For an estimate: 15 s (45 s where texts are cut), a larger table in less and its tokens to about ±0.7 %."""
BRIEF = Effort(20_000, 50_000_000, 10_000, 40_000_000)
"""Before a run, which waits for it: 3 s, tokens to about ±1 %."""
GLANCE = Effort(2_000, 10_000_000, 2_000, 10_000_000)
"""For a job that is changed to see what it would cost: half a second."""
EVERYTHING = Effort(2**63, 2**63, 0, 0)
"""Every row, however large the table."""

_UNTIL_HEEDED = 500
"""Rows that are forecast before Ctrl-C is heeded: some 50 ms."""


@dataclass(frozen=True, slots=True)
class Input:
    """The rows to be planned: the table, what a look over it told, and which rows are left to do (None: all)."""

    source: Source
    survey: Survey
    wanted: pl.Series | None = None
    effort: Effort = USUAL

    @property
    def left(self) -> int:
        """Rows that are left to do."""
        return self.survey.rows if self.wanted is None else int(self.wanted.sum())

    def picks(self) -> Picks:
        """The rows that are looked at: all, or a sample of a large table."""
        most = self.effort
        picks = pick(self.survey, self.wanted, most.whole_rows, most.whole_bytes)
        return picks if picks.whole else pick(self.survey, self.wanted, most.sample_rows, most.sample_bytes)


async def make(given: Input, job: Job, learned: Learned, bought: Bought, pace: Pace, start: datetime) -> Plan:
    """Plan the rows of `given` that are left to do, for a run that starts at `start`.

    A prompt whose fingerprint has a reply that was `bought` already is not counted: the run replays it.
    """
    picks = given.picks()
    forecaster = Forecaster(job, learned, bought, pace.limits)
    tally = Tally(picks, learned, _rates(job, start.date()))
    await _forecast(given, picks, forecaster, tally)
    sums = tally.sums()
    expected = total(sums.expected)
    load = Load(round(expected.prompts), round(expected.input_tokens), tally.largest_tokens, max(1, tally.depth))
    times = timeline(load, pace, start)
    shares = split_by_day((day.starts_at, day.ends_at, day.prompts) for day in times.days) or ((start.date(), 1.0),)
    return Plan(
        model=job.model,
        documents=given.left,
        documents_done=given.survey.rows - given.left,
        documents_chunked=round(sums.named["chunked"]),
        longest_chunks=tally.longest_chunks,
        found=_found(given, sums),
        steps=_steps(sums.expected, job, learned, shares),
        work=sums.expected,
        spared=sums.spared,
        prompts=sums.prompts(),
        input_tokens=sums.input_tokens(),
        output_tokens=sums.output_tokens(learned),
        cost_usd=_cost(sums, job, learned, shares),
        load=load,
        pace=pace,
        calibrations=learned.calibrations,
        timeline=times,
        order=reading_order((frame["size"] for frame in given.survey.slices()), given.wanted),
        prices_dated=CHECKED.isoformat(),
        sampled_rows=0 if picks.whole else len(picks.numbers),
        bounded=_is_bounded(sums, learned),
        based_on=learned.based_on,
        assumptions=tuple(_assumptions(job, pace, sums, learned)),
        notices=notices(
            job.model,
            start,
            times.finish_at,
            job.own_rates,
            cost_by_day(sums.expected, job.model, shares, own=job.own_rates),
        ),
    )


async def expected_work(given: Input, job: Job, learned: Learned, bought: Bought, pace: Pace) -> Work:
    """Expected calls alone, at a glance: for a job that is changed to see what it would cost."""
    given = replace(given, effort=GLANCE)
    picks = given.picks()
    tally = Tally(picks, learned, {False: None, True: None})
    await _forecast(given, picks, Forecaster(job, learned, bought, pace.limits), tally)
    return tally.sums().expected


async def first_prompts(given: Input, picks: Picks, job: Job) -> list[tuple[Prompt, int]]:
    """The prompts that the picked rows begin with, each with its kind of script; merging ones are not known yet."""
    prompts: list[tuple[Prompt, int]] = []
    kinds = dict(given.survey.at(picks.numbers).select("row", "kind").iter_rows())

    async def collect(prompt: Prompt) -> Reply:
        if prompt.step != "reduce":
            prompts.append((prompt, kinds[prompt.row]))
        return Reply("", "ok")

    for document in _picked(given.source, picks):
        await flows.run(document, job, collect)
    return prompts


def prefix_tokens(job: Job) -> int:
    """Tokens that all first prompts of the job begin with: system instruction and template up to its first tag."""
    literal = re.split(r"\{[{%#]", job.template.source, maxsplit=1)[0]
    return estimate(job.params.system or "") + estimate(literal)


async def _forecast(given: Input, picks: Picks, forecaster: Forecaster, tally: Tally) -> None:
    sampled = not picks.whole
    told = given.survey.at(picks.numbers)
    rows = zip(_picked(given.source, picks), picks.strata, picks.sizes, told["kind"], told["repeat"], strict=True)
    for number, (document, stratum, size_bytes, kind, repeated) in enumerate(rows):
        if number % _UNTIL_HEEDED == 0:
            await checkpoint()
        apart = sampled and repeated  # the row that it repeats need not be picked
        tally.add(document, stratum, size_bytes, await forecaster.of(document, kind, apart), kind)


def _picked(source: Source, picks: Picks) -> Iterator[Document]:
    if len(picks.numbers):
        for batch in documents(source, picks):
            yield from batch


def _rates(job: Job, day: date) -> Mapping[bool, Rates | None]:
    """Of short and of long prompts."""
    return {long: effective_rates(job.model, day, "standard", long, job.own_rates) for long in (False, True)}


def _cost(sums: Sums, job: Job, learned: Learned, shares: Sequence[Share]) -> Range | None:
    low, expected, high = (
        cost_over(work, job.model, shares, own=job.own_rates) for work in (sums.low, sums.expected, sums.high)
    )
    if low is None or expected is None or high is None:
        return None
    return sums.cost_usd((low, expected, high), learned, _rates(job, shares[-1][0]))


def _steps(work: Work, job: Job, learned: Learned, shares: Sequence[Share]) -> Mapping[Step, StepPlan]:
    plans: dict[Step, StepPlan] = {}
    for step in STEPS:
        own = {tier: cell for tier, cell in work.items() if tier.step == step}
        if not own:
            continue
        sums = total(own)
        plans[step] = StepPlan(
            sums.prompts,
            sums.input_tokens,
            sums.output_tokens + sums.thinking_tokens,
            cost_over(own, job.model, shares, own=job.own_rates),
            learned.output(step, round(sums.input_tokens / max(1.0, sums.prompts))),
        )
    return plans


def _found(given: Input, sums: Sums) -> Mapping[str, Found]:
    """What stands out among the rows that are left; examples of repeats are of the whole table."""
    left = True if given.wanted is None else given.wanted
    repeats, empty = given.survey.repeats & left, given.survey.empty & left
    originals, blank = dict(given.survey.first_repeats), empty.arg_true().head(EXAMPLES).to_list()
    keys = keys_of(given.source, {*originals, *blank})
    alike = tuple(Example(row, keys[row], f"as row {original}") for row, original in originals.items())
    found = {
        "repeats": Found(int(repeats.sum()), alike),
        "empty_input": Found(int(empty.sum()), tuple(Example(row, keys[row], "") for row in blank)),
    }
    if not blank:  # the text column has a word in each row, or there is none: what the template makes nothing of
        found["empty_input"] = Found(round(sums.named["empty_input"]), sums.examples.get("empty_input", ()))
    for name in ("too_long", "template_error", "chunked"):
        found[name] = Found(round(sums.named[name]), sums.examples.get(name, ()))
    return {name: each for name, each in found.items() if each.rows}


def _is_bounded(sums: Sums, learned: Learned) -> bool:
    """Whether there is a step whose answers nobody has seen yet."""
    return any(learned.output(tier.step, 1) is None for tier in sums.expected)


def _assumptions(job: Job, pace: Pace, sums: Sums, learned: Learned) -> Iterable[str]:
    if pace.limits.rpm is None or pace.limits.tpm is None:
        yield "[limits] are not set: time is that of a run that is not refused while it grows"
    if not learned.based_on:
        yield "tokens are estimated from the text, ±10 % until answers correct them"
    if _is_bounded(sums, learned):
        if job.params.max_output_tokens is None:
            yield (
                f"[model] max_output_tokens is not set: an answer is expected at {UNBOUNDED_OUTPUT_TOKENS:,} tokens, "
                "at most at the model's limit"
            )
        else:
            yield "nothing is known of the answers' length: expected at half of max_output_tokens"
