"""The plan of a run: what is left to do, and what it will take in calls, tokens, money and time. Nothing is sent."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from anyio.lowlevel import checkpoint

from pipeline.job import Job
from pipeline.masks import Mask
from pipeline.models import assumed, model_info
from pipeline.packing import head_tokens
from pipeline.plan.amounts import Range, Work, total
from pipeline.plan.answerers import Answerer, apart, joint
from pipeline.plan.bills import Asked, billed
from pipeline.plan.costs import notices, split_by_day
from pipeline.plan.forecast import Bought, Forecaster, Waits
from pipeline.plan.laned import Batch, ranged
from pipeline.plan.lanes import LOST
from pipeline.plan.latency import PRIOR, Latency
from pipeline.plan.learned import Learned
from pipeline.plan.pace import Load, Pace
from pipeline.plan.picks import FIRST, Effort, Picks, documents, pick, pick_first
from pipeline.plan.plans import Example, Found, Plan, PrefixPlan, StepPlan
from pipeline.plan.predict import UNBOUNDED_OUTPUT_TOKENS
from pipeline.plan.prefix import cached, prefix_plan
from pipeline.plan.survey import Survey, keys_of
from pipeline.plan.tally import Tally
from pipeline.prices import EXPECTED_SEARCHES, MOST_SEARCHES
from pipeline.records import STEPS, Document, Step
from pipeline.schemas import held_here
from pipeline.source import Source
from pipeline.source.order import Order, reading_order

USUAL = Effort(100_000, 250_000_000, 25_000, 80_000_000)
"""For an estimate: 15 s (45 s where texts are cut), a larger table in less and its tokens to about ±0.7 %."""
BRIEF = Effort(20_000, 50_000_000, 10_000, 40_000_000)
"""Before a run, which waits for it: 3 s, tokens to about ±1 %."""
EVERYTHING = Effort(2**63, 2**63, 0, 0)
"""Every row, however large the table."""

LONG_S = 60.0
"""A run that takes longer has its first rows done before the rest."""
_UNTIL_HEEDED = 500
"""Rows that are forecast before Ctrl-C is heeded: some 50 ms."""


@dataclass(frozen=True, slots=True)
class Input:
    """What a plan is made from: the rows that are `wanted` (None: all), what is known of their like, and the pace."""

    job: Job
    source: Source
    survey: Survey
    learned: Learned
    bought: Bought
    pace: Pace
    wanted: Mask | None = None
    effort: Effort = USUAL
    by: datetime | None = None  # when the run should be done, for the targets that help it to be
    several: tuple[
        tuple[Answerer, ...], ...
    ] = ()  # who answers, by the number of the job's rule; none: the job's model
    latency: Latency = PRIOR  # of batches of the job's model
    waiting_tokens: int | None = None  # that may wait in them, as far as is known
    waits: Waits | None = None  # whether a content waits in a batch; None: no batch is out
    out: tuple[Batch, ...] = ()  # those that are
    covered: int | None = None  # rows that are to be done at its end, those included that are; None: all

    @property
    def answerers(self) -> tuple[tuple[Answerer, ...], ...]:
        """Who answers, by the number of the job's rule."""
        return self.several or ((self._alone(),),)

    def _alone(self) -> Answerer:
        job = self.job
        return Answerer(
            job.model,
            self.pace,
            own=job.own_rates,
            choice=job.choice,
            latency=self.latency,
            lost=LOST.get(job.spec.endpoint.provider, 1.0),
            waiting_tokens=self.waiting_tokens,
        )

    @property
    def left(self) -> int:
        """Rows that are left to do."""
        return self.survey.rows if self.wanted is None else int(self.wanted.sum())

    def picks(self) -> Picks:
        """The rows that are looked at: all, or a sample of a large table."""
        return pick(self.survey, self.wanted, self.effort)

    def looked_at(self, picks: Picks) -> Iterator[tuple[Document, int, bool, float]]:
        """Each picked row with its kind of script, whether it repeats another, and for how many rows it stands."""
        told = self.survey.at(picks.numbers)
        return zip(documents(self.source, picks), told["kind"], told["repeat"], picks.weights(), strict=True)


async def make(given: Input, start: datetime) -> Plan:
    """Plan the rows of `given` that are left to do, for a run that starts at `start`.

    A prompt whose fingerprint has a reply that was `bought` already is not counted: the run replays it. One that waits
    in a batch counts for the load, its time and its lanes, and not for what is to be bought.
    """
    job, learned = given.job, given.learned
    picks, tally = await _tallied(given)
    expected = total(tally.all_left)
    load = Load(round(expected.prompts), round(expected.input_tokens), tally.largest_tokens, max(1, tally.depth))
    everyone = {each.name: each for answerers in reversed(given.answerers) for each in answerers}
    pace = joint(apart(tuple(everyone.values())), expected, job.params.max_output_tokens)
    asked = Asked(
        tally.all_left,
        tally.expected,
        tally.largest_tokens,
        load.depth,
        job.params.max_output_tokens,
        given.left if given.left == given.survey.rows else 0,
    )
    bills = billed(asked, given.answerers, start, given.by, given.out)
    times, at = bills.timeline, bills.bills[0].tariff
    shares = split_by_day((day.starts_at, day.ends_at, day.prompts) for day in times.days) or ((at.day, 1.0),)

    def at_list(work: Work) -> Decimal | None:
        return bills.usd(work, shares)

    answerers = list(dict.fromkeys(bill.answerer for bill in bills.bills))
    prefix = prefix_plan(job, tally.expected, learned, answerers, times.seconds, at.day, at_list)
    is_kept = prefix is not None and not prefix.why_not
    begin_tokens = prefix.tokens if prefix and is_kept else 0.0

    def cost(work: Work) -> Decimal | None:
        return at_list(cached(work, begin_tokens, job))

    return Plan(
        model=job.model,
        documents=given.left,
        documents_done=(given.survey.rows if given.covered is None else given.covered) - given.left,
        documents_chunked=round(tally.rows["chunked"]),
        found=_found(given, tally),
        steps=_steps(tally.expected, learned, cost),
        work=tally.expected,
        out={step: round(total(own).prompts) for step, own in _by_step(tally.out)},
        spared=tally.spared,
        prompts=tally.prompts(),
        input_tokens=tally.input_tokens(),
        output_tokens=tally.output_tokens(),
        cost_usd=_with(
            ranged(tally.cost_usd(cost), [(bill.usd(tally.expected, shares), bill.lanes) for bill in bills.bills]),
            prefix.kept_usd if prefix and is_kept else None,
        ),
        lanes=bills.lanes,
        divided=bills.divided,
        load=load,
        pace=pace,
        calibrations=learned.calibrations,
        timeline=times,
        order=_order(given),
        first=_first(given, times.seconds),
        sampled_rows=0 if picks.whole else len(picks.numbers),
        bounded=tally.bounded,
        based_on=learned.based_on,
        assumptions=(*_packed(tally, cost), *_kept(prefix), *_assumptions(given, tally)),
        prefix=prefix,
        targets=bills.targets(
            tally.expected, shares, dict.fromkeys((each.name, each.model) for some in given.several for each in some)
        ),
        notices=tuple(
            dict.fromkeys(
                notice
                for bill in bills.bills
                for notice in notices(bill.tariff, times.finish_at, bill.by_day(tally.expected, shares))
            )
        ),
    )


async def expected_work(given: Input) -> Work:
    """Expected calls alone."""
    _, tally = await _tallied(given)
    return tally.expected


async def _tallied(given: Input) -> tuple[Picks, Tally]:
    """The rows that were looked at, and what they take."""
    picks = given.picks()
    forecaster = Forecaster(given.job, given.learned, given.bought, given.answerers, given.waits)
    tally = Tally(given.job, picks, given.learned, [answerers[0].model for answerers in given.answerers])
    bounds = deque(given.survey.bounds)
    for number, (document, kind, repeated, weight) in enumerate(given.looked_at(picks)):
        if number % _UNTIL_HEEDED == 0:
            await checkpoint()
        while bounds and document.row >= bounds[0]:
            bounds.popleft()
            forecaster.forget()
        apart = repeated and not picks.whole  # the row that it repeats need not be picked
        tally.add(document, await forecaster.of(document, kind, apart), kind, weight)
    if given.job.spec.pack:
        tally.fill_packs(head_tokens(given.job.params))
    return picks, tally


def _by_step(work: Work) -> Iterator[tuple[Step, Work]]:
    for step in STEPS:
        if own := {tier: cell for tier, cell in work.items() if tier.step == step}:
            yield step, own


def _steps(work: Work, learned: Learned, cost: Callable[[Work], Decimal | None]) -> Mapping[Step, StepPlan]:
    plans: dict[Step, StepPlan] = {}
    for step, own in _by_step(work):
        sums = total(own)
        answers = learned.lengths.of(step, round(sums.input_tokens / max(1.0, sums.prompts)))
        plans[step] = StepPlan(sums.prompts, sums.input_tokens, sums.answer_tokens, cost(own), answers)
    return plans


def _order(given: Input) -> Order | None:
    """In which order rows are read that do not lie mixed; workers, who have shards of the table each, read as it is."""
    if given.survey.bounds:
        return None
    return reading_order((frame["size"] for frame in given.survey.facts), given.wanted)


def _first(given: Input, seconds: float) -> tuple[int, ...]:
    """Rows that a run asks first: none of a short one, nor where several rows are asked together."""
    if seconds <= LONG_S or given.job.spec.pack or given.left < 2 * FIRST:
        return ()
    return pick_first(given.survey, given.wanted)


def _found(given: Input, tally: Tally) -> Mapping[str, Found]:
    """What stands out among the rows that are left; examples of repeats are of the whole table."""
    originals = dict(given.survey.first_repeats)
    keys = keys_of(given.source, originals)
    alike = tuple(Example(row, keys[row], f"as row {original}") for row, original in originals.items())
    found = {"repeats": Found(given.survey.repeated(given.wanted), alike)}
    for name in ("empty_input", "too_long", "template_error", "invalid_messages", "file", "chunked"):
        found[name] = Found(round(tally.rows[name]), tuple(tally.examples[name]))
    return {name: each for name, each in found.items() if each.rows}


def _with(cost: Range | None, kept_usd: Range | None) -> Range | None:
    """The cost of all calls and that of keeping what they begin with."""
    if cost is None or kept_usd is None:
        return cost
    return Range(*(getattr(cost, bound) + getattr(kept_usd, bound) for bound in ("low", "expected", "high")))


def _kept(prefix: PrefixPlan | None) -> Iterator[str]:
    """What an explicit cache saves, or why there is none."""
    if prefix is None:
        return
    if prefix.why_not:
        yield f"what all prompts begin with is not cached: {prefix.why_not}"
    else:
        saves = "the price is unknown" if prefix.saved_usd is None else f"it saves ${prefix.saved_usd:,.4f}"
        yield (
            f"the {prefix.tokens:,.0f} tokens that all prompts begin with are cached: {saves}, and costs"
            f" ${prefix.kept_usd.expected:,.4f}, which is in the cost"
        )


def _packed(tally: Tally, cost: Callable[[Work], Decimal | None]) -> Iterator[str]:
    """What packing saves: the rows that are packed, each asked alone, against their packs."""
    if not tally.alone:
        return
    alone, packs = total(tally.alone), {tier: cell for tier, cell in tally.expected.items() if tier.step == "pack"}
    calls = f"{total(packs).prompts:,.0f} calls where rows asked alone would take {alone.prompts:,.0f}"
    before, now = cost(tally.alone), cost(packs)
    if before and now is not None:
        less = f"{1 - now / before:.0%} less" if now < before else f"{now / before - 1:.0%} more"
        calls += f": ${now:,.4f} instead of ${before:,.4f}, {less}"
    yield f"rows are packed: {calls}"
    yield "a row to which its pack brings no certain answer is asked again: that is not counted"


def _assumptions(given: Input, tally: Tally) -> Iterable[str]:
    if len(given.answerers) > 1 or len(given.answerers[0]) > 1:
        yield "who answers how much is by ranks and limits, if none is down and no answer goes on to another target"
    limits = [each.limits for answerers in given.answerers for each in answerers]
    unknown = sorted({each.model for group in given.answerers for each in group if not model_info(each.model)})
    if unknown:
        size = assumed(unknown[0])
        yield (
            f"the size of {', '.join(unknown)} is not known: a context of {size.context_tokens:,} tokens and answers of"
            f" at most {size.max_output_tokens:,} are assumed"
        )
    unset = [meter for meter in ("rpm", "tpm") if any(getattr(one, meter) is None for one in limits)]
    if len(unset) == 1:
        yield f"[limits] {unset[0]} is not set: time is that of a run that is not refused while it grows"
    elif unset:
        yield "[limits] rpm and tpm are not set: time is that of a run that is not refused while it grows"
    if any(job.spec.endpoint.provider != "openai" for job in given.job.asked):
        names = held_here(given.job.schema.value) if given.job.schema else []
        if names:
            yield f"Gemini is not told {', '.join(names)}: answers are held to [output] schema when they come"
    if given.job.asks_again:
        shares = ", ".join(f"{step} {share:.0%}" for step, share in given.learned.again.items())
        expected = f"rows that need another call: {shares}" if shares else "no answer is expected to need another call"
        yield f"{expected}; at most each does, for each step that the job allows"
    if not given.learned.based_on:
        yield "tokens are estimated from the text, ±10 % until answers correct them"
    if given.source.files:
        yield "files count as Google's published table has it, whose numbers are maxima"
        if guessed := sorted(given.source.files.guessed):
            yield f"{' and '.join(guessed)}: how long some are could not be read, and was guessed by their size"
    tools = given.job.spec.tools
    if given.learned.searches is None and tools and tools.google_search is not False:
        yield f"a call is expected to search {EXPECTED_SEARCHES:.0f} times, at most {MOST_SEARCHES}"
    if not given.learned.tool_tokens and tools and tools.reads:
        yield "what tools read is input too, and is not counted before answers tell how much"
    going_on = sorted({each.model for group in given.answerers for each in group if assumed(each.model).continues})
    if going_on and tally.bounded and given.job.params.max_output_tokens is None:
        yield f"no answer of {going_on[0]} is expected to be longer than one request gives: its rest would be others"
    if tally.bounded:
        if given.job.params.max_output_tokens is None:
            yield (
                f"[model] max_output_tokens is not set: an answer is expected at {UNBOUNDED_OUTPUT_TOKENS:,} tokens, "
                "at most at the model's limit"
            )
        else:
            yield "nothing is known of the answers' length: expected at half of max_output_tokens"
