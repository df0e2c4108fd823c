"""How long answers are: by step and kind of script a multiple of a power of the input's length."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import NamedTuple

import polars as pl

from pipeline.calibration import Calibration
from pipeline.records import Step

ENOUGH = 5
"""Answers of one kind that are taken instead of those of the whole step."""

FITTED = ("step", "kind", "run", "row", "weight", "estimated", "input")
"""The columns that `fits` needs."""
_LENGTHS = 20
_ALL = pl.lit(None, pl.UInt8)
_ANSWERED = pl.col("output") + pl.col("thinking")


class Answers(NamedTuple):
    """Answers to prompts of one step, as to one of some length: tokens in the mean, and quantiles of all output."""

    answers: int
    lengths: Sequence[float]  # as they vary: evenly spaced quantiles of the output over its mean, shortest first
    output_tokens: float  # without thinking
    thinking_tokens: float
    p10: float  # of output and thinking together, as the next two
    p50: float
    p90: float

    def times(self, factor: float) -> "Answers":
        """To a prompt whose answers are so many times as long."""
        return Answers(self.answers, self.lengths, *(factor * tokens for tokens in self[2:]))


@dataclass(frozen=True, eq=False)
class Lengths:
    """What `answers` tell, one row each with the columns that `plan.learned` keeps."""

    answers: pl.DataFrame

    def knows(self, step: Step) -> bool:
        """Whether there are any answers of the step."""
        return (step, None) in self._places

    def of(self, step: Step, input_tokens_est: int, kind: int | None = None) -> Answers | None:
        """Answers to prompts of this length, of this kind or of all; None when there are none of the step."""
        known = self._places.get((step, kind)) or self._places.get((step, None))
        return known.times(max(1, input_tokens_est) ** self._growths.get(step, 0.0)) if known else None

    def error(self, step: Step, prompts: float = inf) -> float:
        """Relative error, at 95 %, of the tokens of so many more answers to prompts spread like these.

        1.0 when too few are known to tell.
        """
        fit = self._fits.get(step)
        if fit is None or fit.effective <= 1 or prompts <= 0:
            return 1.0
        return min(1.0, fit.error(to_come=prompts))

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
        output = pl.col("output")
        each, output_mean = _ANSWERED / pl.col("size"), _per_size(output)
        known = {
            "answers": pl.len(),
            "lengths": pl.concat_list(
                ((output / pl.col("size")).quantile((part + 0.5) / _LENGTHS, "linear") / output_mean).fill_nan(0.0)
                for part in range(_LENGTHS)
            ),
            "output_mean": output_mean,
            "thinking_mean": _per_size(pl.col("thinking")),
            "p10": each.quantile(0.1),
            "p50": each.quantile(0.5),
            "p90": each.quantile(0.9),
        }
        grown = self._grown.select("step", "kind", "output", "thinking", "weight", "size")
        rows = pl.concat(part.group_by("step", "kind").agg(**known) for part in by_kind_and_all(grown))
        places = (((step, kind), Answers(*known)) for step, kind, *known in rows.iter_rows())
        return {(step, kind): known for (step, kind), known in places if kind is None or known.answers >= ENOUGH}

    @cached_property
    def _fits(self) -> Mapping[str, Calibration]:
        """How well `of` would have told the answers, by step."""
        own = (pl.len().over("step", "kind") >= ENOUGH) & pl.col("kind").is_not_null()
        mean = pl.when(own).then(_per_size(_ANSWERED).over("step", "kind")).otherwise(_per_size(_ANSWERED).over("step"))
        told = self._grown.with_columns(estimated=mean * pl.col("size"), input=_ANSWERED, kind=_ALL).select(FITTED)
        return {step: fit._replace(prior=0.0) for (step, _), fit in fits(told).items()}


def _per_size(tokens: pl.Expr) -> pl.Expr:
    return (pl.col("weight") * tokens).sum() / (pl.col("weight") * pl.col("size")).sum()


def by_kind_and_all(taught: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The rows whose kind is known, and then all without: what is told of null is told of all. Two tables, not one.

    One of both at once took 300 MB more for half a million answers.
    """
    yield taught.drop_nulls("kind")
    yield taught.with_columns(kind=_ALL)


def fits(taught: pl.DataFrame) -> dict[tuple[str, int | None], Calibration]:
    """By step and kind, how `input` is off `estimated`; answers about one row of a run tell as much as one."""
    estimated, observed = pl.col("estimated"), pl.col("input")
    weighted = (amount * pl.col("weight") for amount in (estimated, observed))
    rows = taught.group_by("step", "kind", "run", "row").agg(*(each.sum() for each in weighted), answers=pl.len())
    sums = rows.group_by("step", "kind").agg(
        pl.col("answers").sum(),
        estimated_sum=estimated.sum(),
        observed_sum=observed.sum(),
        squares=(estimated * estimated).sum(),
        products=(estimated * observed).sum(),
        observed_squares=(observed * observed).sum(),
    )
    return {(step, kind): Calibration(*known) for step, kind, *known in sums.iter_rows()}


def fits_by_kind_and_all(taught: pl.DataFrame) -> dict[tuple[str, int | None], Calibration]:
    """As `fits`, for each kind and, under None, for all."""
    return {place: fit for part in by_kind_and_all(taught) for place, fit in fits(part).items()}
