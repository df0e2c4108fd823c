"""What one document will take: the job's own flow, run over predicted replies. Nothing is sent."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline import flows
from pipeline.job import Job
from pipeline.plan.amounts import Cell, Tier, Work, merged
from pipeline.plan.learned import Learned
from pipeline.prices import LONG_PROMPT_TOKENS, MODELS, Model, model_info
from pipeline.records import Document, ErrorKind, Limits, Prompt, Reply, Step
from pipeline.tokens import estimate

Scenario = Literal["low", "expected", "high"]
"""Every answer as short as can be, as expected, at the longest that the job allows."""
SCENARIOS: tuple[Scenario, ...] = ("low", "expected", "high")

Bought = Callable[[str], Awaitable[Reply | None]]
"""The reply that was bought for a fingerprint already: the run replays it."""

_WORD = "word "
_WORDS_PER_TOKEN = 10_000 / estimate(_WORD * 10_000)
_NAME_TOKENS = estimate("fullname " * 1000) / 1000
UNBOUNDED_OUTPUT_TOKENS = 1000
"""Expected length of an answer that nothing bounds."""
_BOUND_CHARACTERS = 20_000_000
"""Of texts and predicted answers that go into the bounds of one plan: 2 s. Later ones are bounded in proportion."""

_TO_LETTERS = str.maketrans("0123456789", "ghijklmnop")


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
        self._job = job
        self.cached_share = learned.cached_share
        self._learned = learned
        self._bought = bought
        self._model: Model = model_info(job.params.model) or MODELS[0]
        self._most_tokens = min(self._model.context_tokens, limits.tpm or self._model.context_tokens)
        self._seen: dict[Scenario, set[int]] = {"low": set(), "expected": set(), "high": set()}
        self._characters = 0  # of texts and of predicted answers, for bounds
        self._bounds: dict[Scenario, _Bounds] = {"low": _Bounds(), "high": _Bounds()}

    async def of(self, document: Document, kind: int, repeats: bool = False) -> Forecast:
        """What is left to be done for `document`, whose text is of this kind of script (`amounts.KINDS`).

        It `repeats` the content of a row that may not be among those that are forecast: nothing is sent for it.
        """
        expected = _Tally(self, "expected", kind)
        answer = await flows.run(document, self._job, expected.reply)
        refused = answer.final.error_kind if answer.final.status == "invalid" else None
        low, made, high = (expected.work(scenario) for scenario in SCENARIOS)
        spared = expected.spared
        if repeats:
            low, made, high, spared = {}, {}, {}, merged(made, spared)
        elif answer.chunks > 1 and not refused:
            measured = self._characters <= _BOUND_CHARACTERS
            low = await self._bound(document, kind, "low", low, measured)
            high = await self._bound(document, kind, "high", high, measured)
        return Forecast(low, made, high, spared, answer.chunks, expected.largest_tokens, expected.depth, refused)

    async def _bound(self, document: Document, kind: int, scenario: Scenario, flat: Work, measured: bool) -> Work:
        """`flat`, but with short or long part answers merged: other merging calls, and longer ones.

        Unless `measured`, in proportion to earlier documents.
        """
        bounds = self._bounds[scenario]
        if not measured:
            return bounds.of(flat)
        tally = _Tally(self, scenario, kind)
        await flows.run(document, self._job, tally.reply)
        self._characters += len(document.text or "") + tally.characters
        work = tally.work(scenario)
        bounds.add(flat, work)
        return work

    def output(self, prompt: Prompt, scenario: Scenario, kind: int) -> tuple[float, float]:
        """Tokens of the answer to `prompt`, and of the thinking before it."""
        known = self._learned.output(prompt.step, prompt.input_tokens_est, kind)
        if known is not None:
            return known.output_tokens, known.thinking_tokens
        return float(predicted_output(prompt)[SCENARIOS.index(scenario)]), 0.0

    def text_tokens(self, prompt: Prompt, scenario: Scenario, kind: int) -> float:
        """Tokens of the answer's text: of known lengths one by chance, since on each depends what is merged at once.

        Its bounds are those of the mean of as many answers as are known.
        """
        known = self._learned.output(prompt.step, prompt.input_tokens_est, kind)
        if known is None:
            return self.output(prompt, scenario, kind)[0]
        doubt = self._learned.output_error(prompt.step, known.answers) * (SCENARIOS.index(scenario) - 1)
        times = known.lengths[int(prompt.fingerprint[16:24], 16) % len(known.lengths)]
        return known.output_tokens * times * (1 + doubt)


class _Tally:
    """Sums over the prompts of one document in one scenario."""

    def __init__(self, owner: Forecaster, scenario: Scenario, kind: int) -> None:
        self._owner = owner
        self._scenario: Scenario = scenario
        self._kind = kind
        self._prompts: list[tuple[Prompt, float]] = []  # with input tokens
        self._repeated: list[tuple[Prompt, float]] = []
        self.largest_tokens = 0
        self.characters = 0
        self._levels: set[int] = set()

    @property
    def depth(self) -> int:
        """Calls that wait for one another."""
        return len(self._levels)

    async def reply(self, prompt: Prompt) -> Reply:
        """What the service is expected to answer; a prompt that is new is counted."""
        owner = self._owner
        if (bought := await owner._bought(prompt.fingerprint)) is not None:
            return bought
        ratio = owner._learned.ratio(prompt.step, self._kind).value
        tokens = prompt.input_tokens_est * ratio
        self.largest_tokens = max(self.largest_tokens, round(tokens))
        if tokens > owner._most_tokens:
            return Reply(
                "", "invalid", error_kind="too_long", error="larger than the model's context or a minute's tokens"
            )
        seen, content = owner._seen[self._scenario], int(prompt.fingerprint[:16], 16)
        (self._repeated if content in seen else self._prompts).append((prompt, tokens))
        seen.add(content)
        self._levels.add(prompt.level)
        text = _text(prompt.fingerprint, owner.text_tokens(prompt, self._scenario, self._kind) / ratio)
        self.characters += len(text)
        return Reply(text, "ok")

    def work(self, scenario: Scenario) -> Work:
        """The calls, with answers as long as `scenario` has them."""
        return self._work(self._prompts, scenario)

    @property
    def spared(self) -> Work:
        """The calls that need not be made, with answers as expected."""
        return self._work(self._repeated, "expected")

    def _work(self, prompts: Sequence[tuple[Prompt, float]], scenario: Scenario) -> Work:
        cells: dict[Tier, Cell] = {}
        for prompt, tokens in prompts:
            tier = Tier(prompt.step, tokens > LONG_PROMPT_TOKENS)
            cell = Cell(1, tokens, tokens * self._owner.cached_share, *self._owner.output(prompt, scenario, self._kind))
            cells[tier] = cells.get(tier, Cell()).plus(cell)
        return cells


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


def predicted_output(prompt: Prompt) -> tuple[int, int, int]:
    """Shortest, expected and longest answer in tokens, before anything is known of this job's answers."""
    known = model_info(prompt.params.model) or MODELS[0]
    bound = prompt.params.max_output_tokens
    if bound is None:
        return 0, min(UNBOUNDED_OUTPUT_TOKENS, known.max_output_tokens), known.max_output_tokens
    return 0, max(1, bound // 2), bound


def _text(fingerprint: str, tokens: float) -> str:
    """A text of about so many tokens by estimate, another for each prompt."""
    name = fingerprint[:8].translate(_TO_LETTERS)
    return f"{name} {_WORD * round((tokens - _NAME_TOKENS) * _WORDS_PER_TOKEN)}"
