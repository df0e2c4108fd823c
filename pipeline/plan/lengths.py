"""How long answers are: by step and kind of script a multiple of a power of the input's length."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, sqrt
from typing import NamedTuple

import polars as pl

from pipeline.calibration import LEAST_ERROR, t_quantile
from pipeline.records import Step

ENOUGH = 5
"""Answers of one kind that are taken instead of those of the whole step."""

_LENGTHS = 20
_ANSWERED = pl.col("output") + pl.col("thinking")


class Answers(NamedTuple):
    """Answers to prompts of one step, as to one of some length: tokens in the mean, and quantiles of all output."""

    answers: int
    output_tokens: float  # without thinking
    thinking_tokens: float
    cached_share: float  # of the input
    p10: float  # of output and thinking together, as the next two
    p50: float
    p90: float
    lengths: Sequence[float]  # as they vary: evenly spaced quantiles of the output over its mean, shortest first

    def times(self, factor: float) -> "Answers":
        """To a prompt whose answers are so many times as long."""
        return self._replace(
            output_tokens=self.output_tokens * factor,
            thinking_tokens=self.thinking_tokens * factor,
            p10=self.p10 * factor,
            p50=self.p50 * factor,
            p90=self.p90 * factor,
        )


@dataclass(frozen=True, eq=False)
class Lengths:
    """What `answers` tell, one row each with the columns that `plan.learned` keeps."""

    answers: pl.DataFrame

    @cached_property
    def steps(self) -> Set[str]:
        """Steps with answers."""
        return {step for step, _ in self._places}

    def of(self, step: Step, input_tokens_est: int, kind: int | None) -> Answers | None:
        """Answers to prompts of this length, of this kind or of all; None when there are none of the step."""
        known = self._places.get((step, kind)) or self._places.get((step, None))
        return known.times(max(1, input_tokens_est) ** self._growths.get(step, 0.0)) if known else None

    def error(self, step: Step, prompts: float = inf) -> float:
        """Relative error, at 95 %, of the tokens of so many more answers; 1.0 when too few are known to tell."""
        spread = self._spreads.get(step)
        if spread is None or prompts <= 0:
            return 1.0
        known, freedom, answers = spread
        return min(1.0, max(LEAST_ERROR, t_quantile(freedom) * known * sqrt(1 + answers / prompts)))

    @cached_property
    def _growths(self) -> Mapping[str, float]:
        """By step the power of the input's length that answers grow with, from 0 (all alike) to 1 (in proportion)."""
        length, tokens = pl.col("estimated").log(), _ANSWERED.log()
        across, along = (each - each.mean().over("step", "kind") for each in (tokens, length))
        slopes = (
            self.answers.filter(_ANSWERED > 0)
            .select("step", across=across, along=along)
            .group_by("step")
            .agg(slope=(pl.col("across") * pl.col("along")).sum() / pl.col("along").pow(2).sum())
        )
        return {step: min(1.0, max(0.0, slope)) if isfinite(slope) else 0.0 for step, slope in slopes.iter_rows()}

    @cached_property
    def _grown(self) -> pl.DataFrame:
        """The answers, with `size`: the power of their input's length that they grow with."""
        steps = pl.col("step").replace_strict(self._growths, default=0.0, return_dtype=pl.Float64)
        return self.answers.with_columns(size=pl.col("estimated").pow(steps))

    @cached_property
    def _places(self) -> Mapping[tuple[str, int | None], Answers]:
        """Answers to a prompt of size 1, by step and kind, where there are enough, and by step."""
        by_kind = {place: known for place, known in _answers_by(self._grown, "kind").items() if known.answers >= ENOUGH}
        return {**by_kind, **_answers_by(self._grown)}

    @cached_property
    def _spreads(self) -> Mapping[str, tuple[float, float, int]]:
        """Error of the sum of all answers as `of` has them, degrees of freedom and answers."""
        places = [
            (step, kind, known.output_tokens + known.thinking_tokens) for (step, kind), known in self._places.items()
        ]
        means = pl.DataFrame(places, schema={"step": pl.String, "group": pl.UInt8, "mean": pl.Float64}, orient="row")
        enough = pl.len().over("step", "kind") >= ENOUGH
        expected = pl.col("mean") * pl.col("size") * pl.col("weight")
        rows = (
            self._grown.with_columns(group=pl.when(enough).then("kind"))
            .join(means, on=("step", "group"), nulls_equal=True)
            .with_columns(expected=expected, off=_ANSWERED * pl.col("weight") - expected)
            .group_by("step", "run", "row")
            .agg(pl.col("expected", "off").sum(), pl.col("group").unique(), answers=pl.len())
        )
        sums = rows.group_by("step").agg(
            pl.col("answers", "expected").sum(),
            pl.col("expected").pow(2).sum().alias("squares"),
            pl.col("off").pow(2).sum().alias("squared_off"),
            1 + pl.col("group").explode().n_unique(),
        )
        return {
            step: (sqrt(squared_off * effective / (effective - fitted)) / total, effective - fitted, answers)
            for step, answers, total, squares, squared_off, fitted in sums.iter_rows()
            for effective in (total**2 / squares if squares else 0.0,)
            if effective > fitted
        }


def _answers_by(answers: pl.DataFrame, *by: str) -> dict[tuple[str, int | None], Answers]:
    """Answers to a prompt of size 1, by step and `by`, at most one column."""
    weight, size, output = pl.col("weight"), pl.col("size"), pl.col("output")

    def per_size(tokens: pl.Expr) -> pl.Expr:
        return (weight * tokens).sum() / (weight * size).sum()

    rows = answers.group_by("step", *by).agg(
        answers=pl.len(),
        output_mean=per_size(output),
        thinking_mean=per_size(pl.col("thinking")),
        cached_share=(weight * pl.col("cached")).sum() / (weight * pl.col("input")).sum(),
        p10=(_ANSWERED / size).quantile(0.1),
        p50=(_ANSWERED / size).quantile(0.5),
        p90=(_ANSWERED / size).quantile(0.9),
        lengths=pl.concat_list(
            ((output / size).quantile((part + 0.5) / _LENGTHS, "linear") / per_size(output)).fill_nan(0.0)
            for part in range(_LENGTHS)
        ),
    )
    return {(row[0], row[1] if by else None): Answers(*row[-8:]) for row in rows.iter_rows()}
