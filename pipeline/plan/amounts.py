"""What a plan counts: sums over prompts, by step and price tier, and ranges around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import polars as pl

from pipeline.records import Step

KINDS = ("ascii", "accented", "mixed", "two-byte", "dense")
"""Kinds of script, by index: estimates of one kind are off alike, so each has a ratio of its own.

Nothing but ASCII; a few other letters or marks, as in French and German; more of them, as in chat with emoji; letters
of two bytes, as in Russian and Arabic; Chinese, Japanese and Korean, also mixed with English.
"""
_KIND_FROM = (1.1, 1.5, 2.0)
"""UTF-8 bytes per character from which a text that is not ASCII is of the third, fourth and fifth kind."""


@dataclass(frozen=True, slots=True)
class Range:
    """An amount with its bounds."""

    low: int | Decimal
    expected: int | Decimal
    high: int | Decimal


class Cell(NamedTuple):
    """Sums over the prompts of one step and price tier; scaled up from a sample they are not whole numbers."""

    prompts: float = 0.0
    input_tokens: float = 0.0  # with cached tokens
    cached_tokens: float = 0.0
    output_tokens: float = 0.0  # without thinking
    thinking_tokens: float = 0.0
    searches: float = 0.0
    sound_tokens: float = 0.0  # of the input

    @property
    def answer_tokens(self) -> float:
        """Output and thinking."""
        return self.output_tokens + self.thinking_tokens

    def plus(self, other: "Cell", times: float = 1.0) -> "Cell":
        """Together with so many times the other."""
        return Cell(*(mine + its * times for mine, its in zip(self, other, strict=True)))


_NOTHING = Cell()


class Tier(NamedTuple):
    """Prompts that are priced alike: of one step, and with `long` those above `prices.LONG_PROMPT_TOKENS` tokens.

    `rule` is the number of the job's rule that says who answers them.
    """

    step: Step
    long: bool
    rule: int = 0


Work = Mapping[Tier, Cell]
"""Calls to be made."""


def total(work: Work) -> Cell:
    """Sums over all steps and tiers."""
    cells = tuple(work.values())
    return Cell(*map(sum, zip(*cells, strict=True))) if cells else Cell()


def add(sums: dict[Tier, Cell], work: Work, times: float = 1.0) -> None:
    """Add so many times `work` to `sums`."""
    for tier, cell in work.items():
        sums[tier] = sums.get(tier, _NOTHING).plus(cell, times)


def kind_column(size_bytes: pl.Expr, characters: pl.Expr) -> pl.Expr:
    """Kinds as UInt8 from the lengths of texts in bytes and characters; that of the empty text is the first."""
    density = size_bytes / characters.clip(1)
    return pl.sum_horizontal(size_bytes > characters, *(density >= least for least in _KIND_FROM)).cast(pl.UInt8)
