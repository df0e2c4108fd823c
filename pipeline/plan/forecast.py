"""What one document will take: the job's own flow, run over predicted replies. Nothing is sent."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pipeline import flows
from pipeline.job import Job
from pipeline.models import assumed
from pipeline.plan.amounts import Cell, Tier, Work, merged
from pipeline.plan.learned import Learned
from pipeline.plan.predict import SCENARIOS, Predictor, Scenario
from pipeline.prices import LONG_PROMPT_TOKENS
from pipeline.prompts import Prompt
from pipeline.records import Document, ErrorKind, Limits, Reply, Step

Bought = Callable[[Prompt], Awaitable[Reply | None]]
"""The reply that was bought for a prompt already: the run replays it."""

_BOUND_CHARACTERS = 20_000_000
"""Of texts and predicted answers that go into the bounds of one plan: 2 s. Later ones are bounded in proportion."""
_TOO_LONG = Reply("", "invalid", error_kind="too_long", error="larger than the model's context or a minute's tokens")


@dataclass(frozen=True, slots=True)
class Forecast:
    """Calls of one document that are still to be made; the three differ in the length of answers."""

    low: Work
    expected: Work
    high: Work
    spared: Work  # expected calls that are not made, since another row asks the same
    chunks: int  # pieces of the text; 0: nothing is sent
    largest_tokens: int  # input tokens of its largest prompt
    depth: int  # calls one after another
    refused: ErrorKind | None  # why it gets no answer


class Forecaster:
    """Forecasts the documents of one plan, each content once: what two rows ask alike is sent once."""

    def __init__(self, job: Job, learned: Learned, bought: Bought, limits: Limits) -> None:
        context_tokens = assumed(job.model).context_tokens
        self._job = job
        self._predictor = Predictor(learned, job.model)
        self._bought = bought
        self._most_tokens = min(context_tokens, limits.tpm or context_tokens)  # of one prompt
        self._seen: dict[Scenario, set[int]] = {"low": set(), "expected": set(), "high": set()}
        self._characters = 0  # of texts and of predicted answers, for bounds
        self._bounds: dict[Scenario, _Bounds] = {"low": _Bounds(), "high": _Bounds()}

    async def of(self, document: Document, kind: int, repeats: bool = False) -> Forecast:
        """What is left to be done for `document`, whose text is of this kind of script (`amounts.KINDS`).

        It `repeats` the content of a row that may not be among those that are forecast: nothing is sent for it.
        """
        expected = self._tally("expected", kind)
        answer = await flows.run(document, self._job, expected.reply)
        refused = answer.final.error_kind if answer.final.status == "invalid" else None
        works: list[Work] = [expected.works[scenario] for scenario in SCENARIOS]
        low, made, high = works
        spared: Work = expected.spared
        if repeats:
            low, made, high, spared = {}, {}, {}, merged(made, spared)
        elif answer.chunks > 1 and not refused:
            measured = self._characters <= _BOUND_CHARACTERS
            low = await self._bound(document, kind, "low", low, measured)
            high = await self._bound(document, kind, "high", high, measured)
        return Forecast(low, made, high, spared, answer.chunks, expected.largest_tokens, expected.depth, refused)

    def _tally(self, scenario: Scenario, kind: int) -> "_Tally":
        return _Tally(self._predictor, self._bought, self._most_tokens, self._seen[scenario], scenario, kind)

    async def _bound(self, document: Document, kind: int, scenario: Scenario, flat: Work, measured: bool) -> Work:
        """`flat`, but with short or long part answers merged: other merging calls, and longer ones.

        Unless `measured`, in proportion to earlier documents.
        """
        bounds = self._bounds[scenario]
        if not measured:
            return bounds.of(flat)
        tally = self._tally(scenario, kind)
        await flows.run(document, self._job, tally.reply)
        self._characters += len(document.text or "") + tally.characters
        work = tally.works[scenario]
        bounds.add(flat, work)
        return work


class _Tally:
    """Sums over the prompts of one document; the answers that are merged are those of one scenario."""

    def __init__(
        self,
        predictor: Predictor,
        bought: Bought,
        most_tokens: int,
        seen: set[int],
        scenario: Scenario,
        kind: int,
    ) -> None:
        self._predictor = predictor
        self._bought = bought
        self._most_tokens = most_tokens
        self._seen = seen  # contents that are counted already; shared with other documents
        self._scenario: Scenario = scenario
        self._kind = kind
        self.works: dict[Scenario, dict[Tier, Cell]] = {each: {} for each in SCENARIOS}  # the calls to be made
        self.spared: dict[Tier, Cell] = {}  # calls that need not be made, with answers as expected
        self.largest_tokens = 0
        self.characters = 0
        self._levels: set[int] = set()

    @property
    def depth(self) -> int:
        """Calls that wait for one another."""
        return len(self._levels)

    async def reply(self, prompt: Prompt) -> Reply:
        """What the service is expected to answer; a prompt that is new is counted."""
        if (bought := await self._bought(prompt)) is not None:
            return bought
        tokens = self._predictor.input_tokens(prompt, self._kind)
        self.largest_tokens = max(self.largest_tokens, round(tokens))
        if tokens > self._most_tokens:
            return _TOO_LONG
        self._count(prompt, tokens)
        self._levels.add(prompt.level)
        text = self._predictor.text(prompt, self._scenario, self._kind)
        self.characters += len(text)
        return Reply(text, "ok")

    def _count(self, prompt: Prompt, tokens: float) -> None:
        content, tier = (
            int(prompt.fingerprint(self._predictor.model)[:16], 16),
            Tier(prompt.step, tokens > LONG_PROMPT_TOKENS),
        )
        cells = [
            (scenario, Cell(1, tokens, tokens * self._predictor.cached_share, *output))
            for scenario, output in zip(SCENARIOS, self._predictor.outputs(prompt, self._kind), strict=True)
        ]
        for scenario, cell in cells if content not in self._seen else ():
            work = self.works[scenario]
            work[tier] = work[tier].plus(cell) if tier in work else cell
        if content in self._seen:
            cell = cells[SCENARIOS.index("expected")][1]
            self.spared[tier] = self.spared[tier].plus(cell) if tier in self.spared else cell
        self._seen.add(content)


class _Bounds:
    """How much more, or less, a bound takes than is expected, over the documents that were bounded so far."""

    def __init__(self) -> None:
        self._expected: dict[Step, Cell] = {}
        self._bound: dict[Step, Cell] = {}

    def add(self, expected: Work, bound: Work) -> None:
        for sums, work in ((self._expected, expected), (self._bound, bound)):
            for tier, cell in work.items():
                sums[tier.step] = sums.get(tier.step, Cell()).plus(cell)

    def of(self, expected: Work) -> Work:
        """The bound of another document, in proportion."""
        return {tier: self._scaled(tier.step, cell) for tier, cell in expected.items()}

    def _scaled(self, step: Step, cell: Cell) -> Cell:
        pairs = zip(cell, self._expected.get(step, cell), self._bound.get(step, cell), strict=True)
        return Cell(*(amount * bound / expected if expected else amount for amount, expected, bound in pairs))
