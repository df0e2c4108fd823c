"""What answers teach about the next ones: how far estimates of input are off, how long answers get, what they wait.

Input is learned by step and kind of script, as observed over estimated tokens; answers by step and length of the
input, in buckets of powers of two. All of it is kept as one row an answer, so that sources can be put together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt
from typing import NamedTuple

import polars as pl

from pipeline.plan.amounts import KINDS
from pipeline.records import Step

PRIOR_ERROR = 0.10
"""What the sum of many estimates may be off before any answer, relative, at 95 %.

Over the corpus of `tokens` it is off by 0.8 %, but that is against a relative of the model's vocabulary and one table
is not a corpus: documents of one sort are off alike, and one document by 4.4 % in the mean, 14.3 % at P95.
"""
LEAST_ERROR = 0.005
"""What a sum may always be off, however many answers: the next texts are not quite like the last."""

ENOUGH = 5
"""Answers in one bucket that are taken instead of those of the whole step."""
SETTLED = 20
"""Answers of a step by this run from which on those of other runs do not count for it."""

THIS_RUN, COUNTED = 0, -1
"""Who taught, in the column `run`; earlier runs are numbered from 1."""

CALL_COLUMNS = (
    *("row", "step", "paid", "usage_estimated", "input_tokens_est", "input_tokens", "cached_tokens"),
    *("output_tokens", "thinking_tokens", "latency_s"),
)
"""What `learn` reads of a call."""

_SPREAD, _SPREAD_ANSWERS = 0.07, 4
"""Standard deviation of a document's error known beforehand (see `tokens`), and how many answers that counts for."""
_BETWEEN_KINDS = 0.5
"""Share of a document's squared error that all of its kind have in common: 0.25 to 0.6 for three ways of counting."""

_SCHEMA = pl.Schema(
    {
        "run": pl.Int32,
        "step": pl.String,
        "kind": pl.UInt8,  # null: unknown, an answer about another table
        "bucket": pl.Int64,
        "estimated": pl.Int64,
        "input": pl.Int64,
        "cached": pl.Int64,  # this and what follows: null where only the ratio may be learned
        "output": pl.Int64,
        "thinking": pl.Int64,
        "latency_s": pl.Float64,
    }
)
_STEPS: tuple[Step, ...] = ("answer", "map", "reduce")
_SIBLINGS: Mapping[Step, Step] = {"answer": "map", "map": "answer"}  # of one template


class Ratio(NamedTuple):
    """Observed over estimated input tokens; `error` is relative, at 95 %, of the corrected sum over many prompts."""

    value: float = 1.0
    answers: int = 0
    error: float = PRIOR_ERROR


class Answers(NamedTuple):
    """Answers to prompts of one step, of about the same length: tokens in the mean, and quantiles of all output."""

    answers: int
    output_tokens: float  # without thinking
    thinking_tokens: float
    cached_share: float  # of the input
    p10: float  # of output and thinking together, as the next two
    p50: float
    p90: float


@dataclass(frozen=True, eq=False)
class Learned:
    """All that answers taught, one row an answer or a counted prompt; made by `learn`, `counted` and `merged`."""

    taught: pl.DataFrame

    @property
    def answers(self) -> int:
        """Answers that taught anything."""
        return self.taught.filter(pl.col("run") != COUNTED).height

    @cached_property
    def based_on(self) -> str:
        """Where it is from, as in "412 answers of this run and 2,000 answers of 2 earlier runs"; may be empty."""
        run = self.taught["run"]
        own, exact, other = (run.filter(at) for at in (run == THIS_RUN, run == COUNTED, run > THIS_RUN))
        parts = (
            (exact, _number(len(exact), "counted prompt")),
            (own, f"{_number(len(own), 'answer')} of this run"),
            (other, f"{_number(len(other), 'answer')} of {_number(other.n_unique(), 'earlier run')}"),
        )
        return " and ".join(phrase for source, phrase in parts if len(source))

    def ratio(self, step: Step, kind: int) -> Ratio:
        """What estimates of such prompts are to be multiplied by: 1.0 when nothing is known."""
        return self._ratios[step, kind]

    def output(self, step: Step, input_tokens_est: int) -> Answers | None:
        """Answers to prompts of this length, or to all of the step; None when there are none."""
        step = self._answered(step, self._lengths)
        return self._lengths.get((step, _bucket(input_tokens_est))) or self._lengths.get((step, None))

    def output_error(self, step: Step, prompts: float = inf) -> float:
        """Relative error, at 95 %, of the output tokens expected of so many more prompts spread like the answers.

        1.0 when too few answers are known to tell.
        """
        spread = self._spreads.get(self._answered(step, self._lengths))
        if spread is None or prompts <= 0:
            return 1.0
        deviation, freedom, answers = spread
        error = t_quantile(freedom) * deviation * sqrt(1 / answers + 1 / prompts)
        return min(1.0, max(LEAST_ERROR, error))

    @cached_property
    def latency_s(self) -> float | None:
        """Mean duration of an answered request; None when there is none."""
        mean = self.taught["latency_s"].mean()
        return mean if isinstance(mean, float) else None

    @cached_property
    def cached_share(self) -> float:
        """Share of the input tokens that was cached."""
        sums = self.taught.filter(pl.col("cached").is_not_null()).select(pl.col("cached", "input").sum()).row(0)
        return sums[0] / sums[1] if sums[1] else 0.0

    def _answered(self, step: Step, known: Mapping[tuple[str, int | None], object]) -> Step:
        """The step to learn from: one without any answers is asked like its sibling."""
        sibling = _SIBLINGS.get(step, step)
        return sibling if (step, None) not in known and (sibling, None) in known else step

    @cached_property
    def _ratios(self) -> Mapping[tuple[Step, int], Ratio]:
        """By step and kind: of the kind or of the whole step, whichever is known better; else of all steps."""
        taught = self.taught
        if (taught["run"] == COUNTED).any():
            taught = taught.filter((pl.col("run") == COUNTED) | (pl.col("step") == "reduce"))
        kinds, steps = _fits_by(taught, "kind"), _fits_by(taught)
        overall = _fits_by(taught.with_columns(step=pl.lit("all"))).get(("all", None))

        def of(step: Step, kind: int) -> Ratio:
            step = self._answered(step, steps)
            alike, others = kinds.get((step, kind)), steps.get((step, None), overall)
            known = [*([alike.ratio()] if alike else ()), *([others.borrowed()] if others else ())]
            return min(known, key=lambda ratio: ratio.error, default=Ratio())

        return {(step, kind): of(step, kind) for step in _STEPS for kind in range(len(KINDS))}

    @cached_property
    def _lengths(self) -> Mapping[tuple[str, int | None], Answers]:
        """By step and bucket, where there are enough, and by step."""
        answers = self.taught.filter(pl.col("output").is_not_null())
        by_bucket = {place: known for place, known in _answers_by(answers, "bucket").items() if known.answers >= ENOUGH}
        return {**by_bucket, **_answers_by(answers)}

    @cached_property
    def _spreads(self) -> Mapping[str, tuple[float, int, int]]:
        """Deviation of an answer from the mean of its bucket over the mean answer, degrees of freedom and answers."""
        tokens = (pl.col("output") + pl.col("thinking")).cast(pl.Float64)
        enough = pl.len().over("step", "bucket") >= ENOUGH
        buckets = (
            self.taught.filter(pl.col("output").is_not_null())
            .with_columns(bucket=pl.when(enough).then("bucket"))
            .group_by("step", "bucket")
            .agg(answers=pl.len(), sum=tokens.sum(), squares=(tokens - tokens.mean()).pow(2).sum())
        )
        sums = buckets.group_by("step").agg(pl.col("answers", "sum", "squares").sum(), buckets=pl.len())
        return {
            step: (sqrt(squares / (answers - groups)) * answers / total, answers - groups, answers)
            for step, answers, total, squares, groups in sums.iter_rows()
            if answers > groups and total
        }


NOTHING = Learned(_SCHEMA.to_frame())


def learn(frames: Iterable[pl.DataFrame], kinds: pl.Series | None, run: int = THIS_RUN) -> Learned:
    """Learn from calls, with at least the columns `CALL_COLUMNS`: from those that were paid for and counted.

    `kinds` are the kinds of script by row (index into `KINDS`), when the calls are about the very table that is
    planned. A call whose columns from `cached_tokens` on are null teaches only the ratio.
    """
    taught = [
        frame.filter("paid", ~pl.col("usage_estimated"), pl.col("input_tokens_est") > 0, pl.col("input_tokens") > 0)
        .select(CALL_COLUMNS)
        .rename({name: name.removesuffix("_tokens") for name in CALL_COLUMNS if name.endswith("_tokens")})
        .rename({"input_tokens_est": "estimated"})
        for frame in frames
    ]
    if not taught:
        return NOTHING
    answers = pl.concat(taught)
    if kinds is None:
        answers = answers.with_columns(kind=pl.lit(None, pl.UInt8))
    else:
        by_row = kinds.cast(pl.UInt8).alias("kind").to_frame().with_row_index("row").cast({"row": pl.Int64})
        answers = answers.join(by_row, on="row", how="left")
    return _learned(answers, run)


def counted(kinds: Iterable[int], estimated: Iterable[int], observed: Iterable[int]) -> Learned:
    """Learn from prompts whose input tokens the service counted without answering."""
    columns = {"kind": list(kinds), "estimated": list(estimated), "input": list(observed)}
    return _learned(pl.DataFrame({"step": "answer", **columns}, strict=False), COUNTED)


def merged(*sources: Learned) -> Learned:
    """All sources together; of a step that this run answered often enough, earlier runs do not count."""
    taught = pl.concat([NOTHING.taught, *(source.taught for source in sources)])
    own = taught.filter(pl.col("run") == THIS_RUN).group_by("step").len()
    settled = own.filter(pl.col("len") >= SETTLED)["step"].to_list()
    return Learned(taught.filter((pl.col("run") <= THIS_RUN) | ~pl.col("step").is_in(settled)))


def t_quantile(freedom: float) -> float:
    """Two-sided 95 % quantile of Student's t; within 0.2 % from 3 degrees of freedom on, 1 % from 2, 12 % below.

    The expansion of Cornish and Fisher about the normal quantile.
    """
    if freedom <= 1:
        return 12.706
    z, n = 1.959964, freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160
    return z + first / n + second / n**2 + third / n**3 + fourth / n**4


def _learned(answers: pl.DataFrame, run: int) -> Learned:
    given = {name: pl.col(name) for name in answers.columns if name in _SCHEMA}
    bucket = 64 - pl.col("estimated").cast(pl.Int64).bitwise_leading_zeros().cast(pl.Int64)  # as `_bucket` of it
    columns = {**dict.fromkeys(_SCHEMA, pl.lit(None)), **given, "run": pl.lit(run), "bucket": bucket}
    return Learned(answers.select(column.cast(_SCHEMA[name]).alias(name) for name, column in columns.items()))


def _bucket(input_tokens_est: int) -> int:
    return input_tokens_est.bit_length()


class _Fit(NamedTuple):
    """Ratio of sums over some answers, and how far single ones are off it.

    Few long prompts weigh as much as many short ones: `effective` is how many of one length would tell as much.
    """

    value: float
    answers: int
    effective: float
    spread: float  # standard deviation of an answer, relative; with what is known beforehand

    def ratio(self) -> Ratio:
        """For prompts of the same kind."""
        return self._within(1 / self.effective)

    def borrowed(self) -> Ratio:
        """For prompts of another kind."""
        return self._within(1 / self.effective + _BETWEEN_KINDS)

    def _within(self, share: float) -> Ratio:
        error = t_quantile(_SPREAD_ANSWERS + self.effective - 1) * self.spread * sqrt(share)
        return Ratio(self.value, self.answers, max(LEAST_ERROR, error))


def _fits_by(taught: pl.DataFrame, *by: str) -> dict[tuple[str, int | None], _Fit]:
    """Fits by step and `by`, at most one column."""
    estimated, observed = pl.col("estimated").cast(pl.Float64), pl.col("input").cast(pl.Float64)
    sums = taught.group_by("step", *by).agg(
        answers=pl.len(),
        estimated_sum=estimated.sum(),
        observed_sum=observed.sum(),
        squares=(estimated * estimated).sum(),
        products=(estimated * observed).sum(),
        observed_squares=(observed * observed).sum(),
    )
    return {_place(row, by): _fit(*row[-6:]) for row in sums.iter_rows()}


def _fit(
    answers: int, estimated: float, observed: float, squares: float, products: float, observed_squares: float
) -> _Fit:
    """The spread is that of the answers pooled with `_SPREAD`, as if that had been seen in so many answers before."""
    value = observed / estimated
    effective = estimated**2 / squares
    residual = max(0.0, observed_squares - 2 * value * products + value**2 * squares) / (value**2 * squares)
    freedom = _SPREAD_ANSWERS + effective - 1
    spread = sqrt((_SPREAD_ANSWERS * _SPREAD**2 + effective * residual) / freedom)
    return _Fit(value, answers, effective, spread)


def _answers_by(answers: pl.DataFrame, *by: str) -> dict[tuple[str, int | None], Answers]:
    """Answers by step and `by`, at most one column."""
    output, thinking = pl.col("output"), pl.col("thinking")
    rows = answers.group_by("step", *by).agg(
        answers=pl.len(),
        output_mean=output.mean(),
        thinking_mean=thinking.mean(),
        cached_share=pl.col("cached").sum() / pl.col("input").sum(),
        p10=(output + thinking).quantile(0.1),
        p50=(output + thinking).quantile(0.5),
        p90=(output + thinking).quantile(0.9),
    )
    return {_place(row, by): Answers(*row[-7:]) for row in rows.iter_rows()}


def _place(row: tuple[str, int | None], by: tuple[str, ...]) -> tuple[str, int | None]:
    return row[0], row[1] if by else None


def _number(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"
