"""Sums over the documents that were planned, and the ranges around them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from math import ceil, hypot

import polars as pl

from pipeline.job import Job
from pipeline.plan.amounts import Cell, Range, Tier, Work, add, total
from pipeline.plan.forecast import Forecast
from pipeline.plan.learned import Learned
from pipeline.plan.picks import Picks
from pipeline.plan.plans import Example
from pipeline.plan.predict import Scenario, predicted_output
from pipeline.plan.survey import EXAMPLES
from pipeline.prices import EXPECTED_SEARCHES, MOST_SEARCHES
from pipeline.records import LATER, Document

_WATCHED = ("prompts", "input", "output")


class Tally:
    """Adds up forecasts of the picked rows, one after another."""

    def __init__(self, job: Job, picks: Picks, learned: Learned, models: Sequence[str] = ()) -> None:
        """`models` by the number of the job's rule; none: the job's own."""
        self._job, self._picks, self._learned = job, picks, learned
        self._models = models or (job.model,)
        self._amounts: list[tuple[float, ...]] = []  # of each document, where they are a sample
        self._low: dict[Tier, Cell] = {}  # merging calls alone
        self._high: dict[Tier, Cell] = {}
        self._doubt_tokens = 0.0  # by how much input may be off, kinds and steps alike
        self.expected: dict[Tier, Cell] = {}
        self.out: dict[Tier, Cell] = {}
        self.spared: dict[Tier, Cell] = {}
        self.alone: dict[Tier, Cell] = {}  # what is made in packs, each made alone
        self.rows: dict[str, float] = defaultdict(float)  # that are cut or refused, and why
        self.examples: dict[str, list[Example]] = defaultdict(list)
        self.largest_tokens = self.depth = 0

    def add(self, document: Document, forecast: Forecast, kind: int, weight: float) -> None:
        """Count the document of the next picked row, whose text is of this kind of script, as so many rows."""
        add(self.expected, forecast.work, weight)
        add(self.out, forecast.out, weight)
        add(self.spared, forecast.spared, weight)
        add(self.alone, forecast.alone, weight)
        add(self._low, forecast.low, weight)
        add(self._high, forecast.high, weight)
        for tier, cell in forecast.work.items():
            self._doubt_tokens += weight * cell.input_tokens * self._learned.ratio(tier.step, kind).error
        if not self._picks.whole:
            cell = total(forecast.work)
            self._amounts.append((cell.prompts, cell.input_tokens, cell.answer_tokens))
        self.depth = max(self.depth, forecast.depth)
        if not forecast.refused:
            self.largest_tokens = max(self.largest_tokens, forecast.largest_tokens)
        for name, remark in _remarks(forecast):
            self.rows[name] += weight
            if len(self.examples[name]) < EXAMPLES:
                self.examples[name].append(Example(document.row, document.key, remark))

    def fill_packs(self, head_tokens: float) -> None:
        """Count the last pack of each tier whole, though it is not full; in each stand `head_tokens` once."""
        for tier, cell in self.expected.items():
            if tier.step == "pack":
                missing = ceil(round(cell.prompts, 6)) - cell.prompts
                tokens = missing * head_tokens * self._learned.ratio("pack", 0).value
                self.expected[tier] = cell._replace(
                    prompts=cell.prompts + missing, input_tokens=cell.input_tokens + tokens
                )

    # What follows is asked once all is added.

    @property
    def all_left(self) -> Work:
        """Expected calls without an answer, those that wait in batches included."""
        whole = dict(self.expected)
        add(whole, self.out)
        return whole

    @property
    def bounded(self) -> bool:
        """Whether there is a step whose answers nobody has seen yet."""
        return not all(self._learned.lengths.knows(tier.step) for tier in self.expected)

    @cached_property
    def works(self) -> tuple[Work, Work, Work]:
        """Calls in each of `SCENARIOS`."""
        return self._bounded(self._low, "low"), self.expected, self._bounded(self._high, "high")

    def _bounded(self, merging: Work, scenario: Scenario) -> Work:
        """Calls with these `merging` ones; answers of the scenario's length where nothing is known of the step's."""
        first = {tier: cell for tier, cell in self.expected.items() if tier.step not in LATER}
        work = {**first, **merging}
        for tier, cell in work.items():
            params = self._job.params_of(tier.step)
            if not self._learned.lengths.knows(tier.step) and tier.step != "rest":  # which counts with the first part
                bound, model = params.max_output_tokens, self._models[tier.rule]
                answers, each = cell.prompts, predicted_output(bound, model, scenario)
                if tier.step == "pack":  # which has several
                    answers = cell.output_tokens / predicted_output(bound, model, "expected")
                work[tier] = cell = cell._replace(output_tokens=answers * each)
            if cell.searches and self._learned.searches is None:
                most = {"low": 0, "expected": EXPECTED_SEARCHES, "high": MOST_SEARCHES}[scenario]
                work[tier] = cell._replace(searches=cell.prompts * most)
        return work

    def prompts(self) -> Range:
        """Calls: the merging ones depend on the length of answers."""
        low, expected, high = (total(work).prompts for work in self.works)
        width = self._widths["prompts"]
        return whole(min(low, expected, high) - width, expected, max(low, expected, high) + width)

    def input_tokens(self) -> Range:
        """Tokens of all prompts: from the sample, and from how far estimates may be off."""
        low, expected, high = (total(work).input_tokens for work in self.works)
        low, high = min(low, expected), max(high, expected)
        width, doubt = self._widths["input"], self._doubt
        return whole(low - hypot(width, doubt * low), expected, high + hypot(width, doubt * high))

    def output_tokens(self) -> Range:
        """Tokens of all answers, thinking included: bounds for steps that were never answered."""
        low, expected, high = (total(work).answer_tokens for work in self.works)
        width = hypot(self._widths["output"], *self._output_doubts.values())
        return whole(min(low, expected) - width, expected, max(high, expected) + width)

    def cost_usd(self, cost: Callable[[Work], Decimal | None]) -> Range | None:
        """Of all calls, at what work is said to `cost`; None: the price is unknown."""
        low, expected, high = (cost(work) for work in self.works)
        if low is None or expected is None or high is None:
            return None
        tokens = total(self.expected)
        spreads = ((self._widths["input"], tokens.input_tokens), (self._widths["output"], tokens.answer_tokens))
        sampled = Decimal(max(width / all_of_it if all_of_it else 0.0 for width, all_of_it in spreads))

        def doubt(work: Work) -> Decimal:
            given = {
                tier: Cell(self._doubt * cell.prompts, self._doubt * cell.input_tokens) for tier, cell in work.items()
            }
            answered = ({tier: Cell(output_tokens=off)} for tier, off in self._output_doubts.items())
            return Decimal(hypot(*(float(cost(each) or 0) for each in (given, *answered))))

        least = min(low, expected) * (1 - sampled) - doubt(self.works[0])
        return Range(max(Decimal(0), least), expected, max(high, expected) * (1 + sampled) + doubt(self.works[2]))

    @cached_property
    def _widths(self) -> Mapping[str, float]:
        """Half the 95 % intervals from sampling."""
        if self._picks.whole:
            return dict.fromkeys(_WATCHED, 0.0)
        return self._picks.half_widths(pl.DataFrame(self._amounts, _WATCHED, orient="row"))

    @property
    def _doubt(self) -> float:
        """Half the 95 % interval from estimating, relative to the input tokens: kinds and steps may be off alike."""
        tokens = total(self.expected).input_tokens
        return self._doubt_tokens / tokens if tokens else 0.0

    @property
    def _output_doubts(self) -> Mapping[Tier, float]:
        """The same of the answers, in tokens, for the steps whose answers are known."""
        return {
            tier: cell.answer_tokens * self._learned.lengths.error(tier.step, cell.prompts)
            for tier, cell in self.expected.items()
            if self._learned.lengths.knows(tier.step)
        }


def _remarks(forecast: Forecast) -> Iterator[tuple[str, str]]:
    if forecast.refused:
        tokens = f"{forecast.largest_tokens:,} tokens" if forecast.largest_tokens else "too long to be counted"
        yield forecast.refused, tokens if forecast.refused == "too_long" else ""
    if forecast.chunks > 1:
        yield "chunked", f"{forecast.chunks} pieces"


def whole(low: float, expected: float, high: float) -> Range:
    """A range of whole numbers from 0."""
    return Range(max(0, round(low)), round(expected), round(high))
