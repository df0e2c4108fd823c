"""Sums over the documents that were planned, and the ranges around them."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import hypot
from typing import Literal

from pipeline.plan.amounts import Cell, Range, Tier, Work, total
from pipeline.plan.expansion import Expansion
from pipeline.plan.forecast import Forecast
from pipeline.plan.learned import Learned
from pipeline.plan.picks import Picks
from pipeline.plan.plans import Example
from pipeline.plan.predict import SCENARIOS, Scenario
from pipeline.plan.survey import EXAMPLES
from pipeline.prices import Rates
from pipeline.records import Document

_UNKNOWN = Rates(Decimal(0), Decimal(0), Decimal(0))

Part = Literal[Scenario, "spared"]
_PARTS: tuple[Part, ...] = (*SCENARIOS, "spared")

Name = tuple[Part, Tier, int] | str
"""What is summed over documents: a number of a `Cell`, or something by name."""


class Tally:
    """Adds up forecasts; `rates` are those of short and of long prompts on the day of the plan."""

    def __init__(self, picks: Picks, learned: Learned, rates: Mapping[bool, Rates | None]) -> None:
        self._expansion: Expansion[Name] = Expansion(picks.populations, ("prompts", "input", "output", "usd"))
        self._learned = learned
        self._rates = rates
        self._examples: dict[str, list[Example]] = {}
        self.longest_chunks = self.largest_tokens = self.depth = 0

    def add(self, document: Document, stratum: int, size_bytes: int, forecast: Forecast, kind: int) -> None:
        """Count one document, whose text is of this kind of script."""
        amounts: dict[Name, float] = {}
        for part, work in zip(_PARTS, (forecast.low, forecast.expected, forecast.high, forecast.spared), strict=True):
            for tier, cell in work.items():
                for number, amount in enumerate(cell):
                    if amount:  # few have cached or thinking tokens
                        amounts[part, tier, number] = amount
        if forecast.expected:
            expected = total(forecast.expected)
            amounts["prompts"] = expected.prompts
            amounts["input"] = expected.input_tokens
            amounts["output"] = expected.output_tokens + expected.thinking_tokens
            amounts["usd"] = sum(self._usd(tier, cell) for tier, cell in forecast.expected.items())
            for tier, cell in forecast.expected.items():
                name = f"doubt {tier.step}"
                doubt = cell.input_tokens * self._learned.ratio(tier.step, kind).error
                amounts[name] = amounts.get(name, 0.0) + doubt
        if forecast.chunks > 1:
            amounts["chunked"] = 1.0
        if forecast.refused:
            amounts[forecast.refused] = 1.0
        self._expansion.add(stratum, size_bytes, amounts)
        self.longest_chunks = max(self.longest_chunks, forecast.chunks)
        if not forecast.refused:
            self.largest_tokens = max(self.largest_tokens, forecast.largest_tokens)
        self.depth = max(self.depth, forecast.depth)
        self._show(document, forecast)

    def _usd(self, tier: Tier, cell: Cell) -> float:
        rates = _usd(self._rates, tier)
        given = cell.input_tokens - cell.cached_tokens
        answered = cell.output_tokens + cell.thinking_tokens
        return float(rates.input) * given + float(rates.cached) * cell.cached_tokens + float(rates.output) * answered

    def _show(self, document: Document, forecast: Forecast) -> None:
        if forecast.refused == "too_long":
            name, tokens = "too_long", forecast.largest_tokens
            remark = f"{tokens:,} tokens" if tokens else "too long to be counted"
        elif forecast.refused in ("template_error", "empty_input"):
            name, remark = forecast.refused, ""
        elif forecast.chunks > 1:
            name, remark = "chunked", f"{forecast.chunks} pieces"
        else:
            return
        shown = self._examples.setdefault(name, [])
        if len(shown) < EXAMPLES:
            shown.append(Example(document.row, document.key, remark))

    def sums(self) -> "Sums":
        """Everything added, expanded to all the rows that it stands for."""
        totals = self._expansion.totals()
        works: dict[Part, dict[Tier, list[float]]] = {part: {} for part in _PARTS}
        named: dict[str, float] = defaultdict(float)
        for name, amount in totals.items():
            if isinstance(name, str):
                named[name] = amount
            else:
                part, tier, number = name
                works[part].setdefault(tier, [0.0] * len(Cell._fields))[number] = amount
        low, expected, high, spared = (
            {tier: Cell(*cell) for tier, cell in sorted(works[part].items())} for part in _PARTS
        )
        examples = {name: tuple(shown) for name, shown in self._examples.items()}
        return Sums(low, expected, high, spared, named, self._expansion.half_widths(), examples)


@dataclass(frozen=True, slots=True)
class Sums:
    """Calls of all documents in three scenarios, and other numbers by name; `widths` are half 95 % intervals."""

    low: Work
    expected: Work
    high: Work
    spared: Work
    named: Mapping[str, float]
    widths: Mapping[Name, float]
    examples: Mapping[str, tuple[Example, ...]]

    def prompts(self) -> Range:
        """Calls: the merging ones depend on the length of answers."""
        width = self.widths["prompts"]
        low, expected, high = (total(work).prompts for work in (self.low, self.expected, self.high))
        return whole(min(low, expected, high) - width, expected, max(low, expected, high) + width)

    def input_tokens(self) -> Range:
        """Tokens of all prompts: from the sample, and from how far estimates may be off."""
        low, expected, high = (total(work).input_tokens for work in (self.low, self.expected, self.high))
        low, high = min(low, expected), max(high, expected)
        sampled, doubt = self.widths["input"], self._doubt
        return whole(low - hypot(sampled, doubt * low), expected, high + hypot(sampled, doubt * high))

    def output_tokens(self, learned: Learned) -> Range:
        """Tokens of all answers, thinking included: bounds for steps that were never answered."""
        width = hypot(self.widths["output"], *(miss for _, miss in self._output_doubts(learned)))
        low, expected, high = (_answer_tokens(total(work)) for work in (self.low, self.expected, self.high))
        return whole(min(low, expected) - width, expected, max(high, expected) + width)

    def cost_usd(
        self, usd: tuple[Decimal, Decimal, Decimal], learned: Learned, rates: Mapping[bool, Rates | None]
    ) -> Range:
        """Around `usd`, the cost of the three scenarios; `rates` are those of short and of long prompts."""
        low, expected, high = usd
        sampled = Decimal(self.widths["usd"] / self.named["usd"] if self.named["usd"] else 0.0)

        def doubts(work: Work) -> Decimal:
            given = sum(_usd(rates, tier).input * Decimal(cell.input_tokens) for tier, cell in work.items())
            answered = (float(_usd(rates, tier).output) * miss for tier, miss in self._output_doubts(learned))
            return Decimal(hypot(self._doubt * float(given), *answered))

        least = min(low, expected) * (1 - sampled) - doubts(self.low)
        return Range(max(Decimal(0), least), expected, max(high, expected) * (1 + sampled) + doubts(self.high))

    @property
    def _doubt(self) -> float:
        """Half the 95 % interval from estimating, relative to the input tokens: kinds and steps may be off alike."""
        tokens = total(self.expected).input_tokens
        return (
            sum(amount for name, amount in self.named.items() if name.startswith("doubt ")) / tokens if tokens else 0.0
        )

    def _output_doubts(self, learned: Learned) -> list[tuple[Tier, float]]:
        """The same of the answers, for the steps whose answers are known."""
        return [
            (tier, _answer_tokens(cell) * learned.output_error(tier.step, cell.prompts))
            for tier, cell in self.expected.items()
            if learned.output(tier.step, round(cell.input_tokens / max(1.0, cell.prompts))) is not None
        ]


def whole(low: float, expected: float, high: float) -> Range:
    """A range of whole numbers from 0."""
    return Range(max(0, round(low)), round(expected), round(high))


def _usd(rates: Mapping[bool, Rates | None], tier: Tier) -> Rates:
    """Of one token; nothing where the price is unknown, and so the cost too."""
    return rates[tier.long] or _UNKNOWN


def _answer_tokens(cell: Cell) -> float:
    return cell.output_tokens + cell.thinking_tokens
