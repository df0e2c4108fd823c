"""What one document will take: the job's own flow, run over predicted replies. Nothing is sent."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import mul
from typing import Literal

from pipeline import flows
from pipeline.job import Job
from pipeline.packing import ANSWER_TOKENS, packing_of
from pipeline.plan.amounts import Cell, Tier, Work, add, total
from pipeline.plan.answerers import Answerer, largest
from pipeline.plan.learned import Learned
from pipeline.plan.predict import SCENARIOS, Predictor, Scenario
from pipeline.prices import LONG_PROMPT_TOKENS
from pipeline.prompts import Prompt
from pipeline.records import AGAIN, LATER, Document, ErrorKind, Reply

Bought = Callable[[Prompt], Awaitable[Reply | None]]
"""The reply that was bought for a prompt already: the run replays it."""

Waits = Callable[[str], bool]
"""Whether a content, by its fingerprint, waits in a batch already: its answer comes from there, and is paid there."""

_BOUND_CHARACTERS = 20_000_000
"""Of texts and predicted answers that go into the bounds of one plan: 2 s. Later ones are bounded in proportion."""
_TOO_LONG = Reply("", "invalid", error_kind="too_long", error="larger than the model's context or a minute's tokens")


_Course = Literal[Scenario, "wrong", "mendable"]
_COURSES: tuple[_Course, ...] = (*SCENARIOS, "wrong", "mendable")
"""How a document may go: each scenario, and the expected one where every answer has to be asked for once more.

An answer that is wrong goes to the target for such, where the job has one; one that is mendable to its own again.
"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Calls of one document that are still to be made."""

    work: Work  # as expected
    low: Work  # its later calls alone, if all that they build on is as short as can be, and right
    high: Work  # the same for the longest, and each answer wrong that the job may ask for once more
    out: Work  # expected calls that wait in batches already
    spared: Work  # expected calls that are not made, since another row asks the same
    chunks: int  # pieces of the text; 0: nothing is sent
    largest_tokens: int  # input tokens of its largest prompt
    depth: int  # calls one after another
    refused: ErrorKind | None  # why it gets no answer
    characters: int = 0  # of the predicted answers
    alone: Work = field(default_factory=dict)  # what the calls that are made in packs would be, each made alone


class Forecaster:
    """Forecasts the documents of one plan, each content once: what two rows ask alike is sent once."""

    def __init__(
        self,
        job: Job,
        learned: Learned,
        bought: Bought,
        answerers: Sequence[Sequence[Answerer]],
        waits: Waits | None = None,
    ) -> None:
        """`answerers` by the number of the job's rule; the last are those to whom it escalates, where it does.

        `waits` is None where no batch is out.
        """
        self._job, self._waits = job, waits
        self._packing = packing_of(job.spec.pack)
        self._bought = bought
        self._models = [each[0].model for each in answerers]
        self._predictors = [Predictor(learned, model) for model in self._models]
        self._most_tokens = list(map(largest, answerers))  # of one prompt
        self._again = learned.again  # shares of the rows whose answer has to be asked for once more
        self._seen: dict[_Course, set[int]] = {course: set() for course in _COURSES}  # contents
        self._characters = 0  # of texts and of predicted answers, for bounds
        self._bounded = dict.fromkeys(SCENARIOS, Cell())  # merging calls of the documents that were run for bounds

    def forget(self) -> None:
        """What follows shares no answer with what came before, as where another worker asks it."""
        for seen in self._seen.values():
            seen.clear()

    async def of(self, document: Document, kind: int, repeats: bool = False) -> Forecast:
        """What is left to be done for `document`, whose text is of this kind of script (`amounts.KINDS`).

        It `repeats` the content of a row that may not be among those that are forecast: nothing is sent for it.
        """
        made = await self._run(document, kind, "expected", repeats)
        if repeats or made.refused:
            return made
        if made.low:
            low, high = await self._bounds(document, kind, made.low)
            made = replace(made, low=low, high=high)
        elif self._job.asks_again:
            made = replace(made, high=(await self._run(document, kind, "high")).high)
        return await self._with_others(document, kind, made) if self._job.asks_again and self._again else made

    async def _with_others(self, document: Document, kind: int, made: Forecast) -> Forecast:
        """The same with the calls for answers that are wrong as often as earlier ones were."""
        work = dict(made.work)
        others = (await self._run(document, kind, "wrong")).work
        if self._job.escalates_to and any(check.retry for check in self._job.spec.check):  # none of those is a retry
            others = {**(await self._run(document, kind, "mendable")).work, **others}
        for tier, cell in others.items():
            if tier.step in AGAIN and tier not in made.work:
                add(work, {tier: cell}, self._again.get(tier.step, 0.0))
        return replace(made, work=work)

    async def _bounds(self, document: Document, kind: int, expected: Work) -> tuple[Work, Work]:
        """The merging calls with short and with long answers to merge; beyond the allowance in proportion to others."""
        if self._characters > _BOUND_CHARACTERS:
            return self._in_proportion(expected, "low"), self._in_proportion(expected, "high")
        short, long = await self._run(document, kind, "low"), await self._run(document, kind, "high")
        self._characters += 2 * len(document.text or "") + short.characters + long.characters
        for scenario, work in zip(SCENARIOS, (short.low, expected, long.high), strict=True):
            self._bounded[scenario] = self._bounded[scenario].plus(total(work))
        return short.low, long.high

    def _in_proportion(self, expected: Work, scenario: Scenario) -> Work:
        pairs = zip(self._bounded[scenario], self._bounded["expected"], strict=True)
        factors = tuple(bound / usual if usual else 1.0 for bound, usual in pairs)
        return {tier: Cell(*map(mul, cell, factors)) for tier, cell in expected.items()}

    async def _run(self, document: Document, kind: int, course: _Course, repeats: bool = False) -> Forecast:
        """The job's own flow over predicted replies; those that are merged are as long as the scenario says."""
        scenario: Scenario
        predicted: Literal["right", "wrong", "mendable"]
        if course == "wrong" or course == "mendable":
            scenario, predicted = "expected", course
        else:
            scenario, predicted = course, "wrong" if course == "high" else "right"
        work: dict[Tier, Cell] = {}
        out: dict[Tier, Cell] = {}
        spared: dict[Tier, Cell] = {}
        alone: dict[Tier, Cell] = {}
        levels: set[int] = set()  # calls of one level wait for those of the last
        largest_tokens = characters = 0
        seen = self._seen[course]

        async def reply(prompt: Prompt) -> Reply:
            nonlocal largest_tokens, characters
            rule = len(self._models) - 1 if prompt.step == "escalate" else document.rule
            model, predictor, most_tokens = self._models[rule], self._predictors[rule], self._most_tokens[rule]
            if (bought := await self._bought(prompt)) is not None:
                return bought
            cell, text = predictor.of(prompt, kind, scenario)
            tokens = cell.input_tokens
            largest_tokens = max(largest_tokens, round(tokens))
            if tokens > most_tokens:
                return _TOO_LONG
            content = int(prompt.fingerprint(model)[:16], 16)
            is_spared = repeats or content in seen
            seen.add(content)
            tier = Tier(prompt.step, tokens > LONG_PROMPT_TOKENS, rule)
            if self._packing and self._packing.takes(prompt):
                member, text = predictor.of(self._packing.member(prompt), kind, scenario)
                cell, single = _both_ways(member, cell, predictor)
                if not is_spared:
                    add(alone, {tier: single})
                cell = cell._replace(prompts=self._packing.part(prompt))
                largest_tokens = max(largest_tokens, round(cell.input_tokens / cell.prompts))
                tier = tier._replace(step="pack")
            here = spared if is_spared else out if self._is_out(prompt) else work
            add(here, {tier: cell})
            if rest := predictor.rest(prompt, cell, scenario, self._job.spec.model.stream):
                is_long = rest.input_tokens / rest.prompts > LONG_PROMPT_TOKENS
                add(here if here is spared else work, {Tier("rest", is_long, rule): rest})
            levels.add(prompt.level)
            characters += len(text)
            return Reply(text, "ok", predicted=predicted)

        answer = await flows.run(document, self._job, reply)
        merging = {tier: cell for tier, cell in work.items() if tier.step in LATER}
        refused = answer.final.error_kind if answer.final.status == "invalid" else None
        depth = len(levels)
        chunks = answer.chunks
        return Forecast(work, merging, merging, out, spared, chunks, largest_tokens, depth, refused, characters, alone)

    def _is_out(self, prompt: Prompt) -> bool:
        models = self._job.models_of(prompt.step) if self._waits else ()
        return any(map(self._waits, map(prompt.fingerprint, models))) if self._waits else False


def _both_ways(member: Cell, alone: Cell, predictor: Predictor) -> tuple[Cell, Cell]:
    """A prompt in a pack and alone: what is known of answers of one sort is told of those of the other."""
    if predictor.knows("pack"):
        if not predictor.knows("answer"):
            output = max(1.0, member.output_tokens - ANSWER_TOKENS)
            alone = alone._replace(output_tokens=output, thinking_tokens=member.thinking_tokens)
        return member, alone
    return member._replace(
        output_tokens=alone.output_tokens + ANSWER_TOKENS, thinking_tokens=alone.thinking_tokens
    ), alone
