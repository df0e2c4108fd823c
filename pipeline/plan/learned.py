"""What answers teach about the next ones: how far estimates of input are off, how long answers get, what they wait.

Input is learned by step and kind of script, as observed over estimated tokens; answers by step and kind too, as a
multiple of a power of the input's length. All of it is kept as one row an answer, so that sources can be put together.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import polars as pl

from pipeline.calibration import Calibration
from pipeline.plan.amounts import KINDS
from pipeline.plan.lengths import FITTED, Lengths, fits_by_kind_and_all
from pipeline.records import AGAIN, LATER, STEPS, Step

PRIOR_ERROR = 0.10
"""What the sum of many estimates may be off before any answer, relative, at 95 %.

Over the corpus of `tokens` it is off by 0.8 %, but that is against a relative of the model's vocabulary and one table
is not a corpus: documents of one sort are off alike, and one document by 4.4 % in the mean, 14.3 % at P95.
"""
SETTLED = 20
"""Answers of a step by this run from which on those of other runs do not count for it."""

THIS_RUN, COUNTED = 0, -1
"""Who taught, in the column `run`; earlier runs are numbered from 1."""

CALL_COLUMNS = (
    *("row", "step", "paid", "usage_estimated", "input_tokens_est", "input_tokens", "cached_tokens"),
    *("output_tokens", "thinking_tokens", "latency_s"),
)
"""What `learn` reads of a call."""
TOOL_COLUMNS = ("tool_tokens", "searches")
"""What it reads beside, where that is there: of calls that may use tools."""

_SCHEMA = pl.Schema(
    {
        "run": pl.Int32,
        "row": pl.Int64,  # answers about one row are off alike: together they tell as much as one
        "step": pl.String,
        "kind": pl.UInt8,  # null: unknown, an answer about another table
        "weight": pl.Float64,  # rows that it stands for, 1 in the mean
        "estimated": pl.Int64,
        "input": pl.Int64,
        "cached": pl.Int64,  # this and what follows: null where only the ratio may be learned
        "output": pl.Int64,
        "thinking": pl.Int64,
        "latency_s": pl.Float64,
        "tool": pl.Int64,
        "searches": pl.Int64,
    }
)
_SIBLINGS: tuple[tuple[Step, Step], ...] = (("answer", "map"), ("map", "answer"))  # of one template


class Ratio(NamedTuple):
    """Observed over estimated input tokens; `error` is relative, at 95 %, of the corrected sum over many prompts."""

    value: float = 1.0
    answers: int = 0
    error: float = PRIOR_ERROR


@dataclass(frozen=True, eq=False)
class Learned:
    """All that answers taught, one row an answer or a counted prompt; made by `learn`, `counted` and `merged`."""

    taught: pl.DataFrame

    @cached_property
    def based_on(self) -> str:
        """Where it is from, as in "412 answers of this run and 2,000 answers of 2 earlier runs"; may be empty."""
        run = self.taught["run"]
        own, exact, other = (run.filter(at) for at in (run == THIS_RUN, run == COUNTED, run > THIS_RUN))
        parts = (
            (exact, _number(len(exact), "counted prompt")),
            (own, f"{_number(len(own), 'answer')} of this run"),
            (other, " of ".join((_number(len(other), "answer"), _number(other.n_unique(), "earlier run")))),
        )
        return " and ".join(phrase for source, phrase in parts if len(source))

    def ratio(self, step: Step, kind: int) -> Ratio:
        """What estimates of such prompts are to be multiplied by: 1.0 when nothing is known."""
        return self._ratios[step, kind]

    @cached_property
    def lengths(self) -> Lengths:
        """How long answers are."""
        return Lengths(
            _with_siblings(
                self.taught.filter(pl.col("output").is_not_null()).drop("cached", "latency_s", "tool", "searches")
            )
        )

    @cached_property
    def calibrations(self) -> Mapping[Step, Calibration]:
        """What a run begins with, by step; answers about other tables are worth few."""
        known = fits_by_kind_and_all(_with_siblings(self.taught.select(FITTED)))
        ours = {step for step, kind in known if kind is not None}
        return {
            step: known[step, None].remembered(borrowed=step not in ours) for step in STEPS if (step, None) in known
        }

    @cached_property
    def latency_s(self) -> float | None:
        """Mean duration of an answered request; None when there is none."""
        mean = self.taught["latency_s"].mean()
        return mean if isinstance(mean, float) else None

    @cached_property
    def slow_s(self) -> float | None:
        """99 of 100 answered requests took no longer; None when there is none."""
        return self.taught["latency_s"].quantile(0.99)

    @cached_property
    def cached_share(self) -> float:
        """Share of the input tokens that was cached."""
        sums = self.taught.filter(pl.col("cached").is_not_null()).select(pl.col("cached", "input").sum()).row(0)
        return sums[0] / sums[1] if sums[1] else 0.0

    @cached_property
    def searches(self) -> float | None:
        """Searches of one call, in the mean; None when none is known."""
        mean = self.taught["searches"].mean()
        return mean if isinstance(mean, float) else None

    @cached_property
    def tool_tokens(self) -> float:
        """Tokens of input that tools add to one call, in the mean."""
        mean = self.taught["tool"].mean()
        return mean if isinstance(mean, float) else 0.0

    @cached_property
    def rests(self) -> float:
        """Further requests for the rest of one answer, in the mean."""
        steps = self.taught.filter(pl.col("output").is_not_null())["step"]
        rests = int((steps == "rest").sum())
        return rests / (len(steps) - rests) if len(steps) > rests else 0.0

    @cached_property
    def again(self) -> Mapping[Step, float]:
        """By step the share of the rows whose answer was not as it should be, and was asked for once more."""
        answered = self.taught.filter(pl.col("run") >= THIS_RUN).select("run", "row", "step").unique()
        rows = answered.select("run", "row").n_unique()
        counts = {step: answered.filter(pl.col("step") == step).height for step in AGAIN}
        return {step: count / rows for step, count in counts.items() if count}

    @cached_property
    def _ratios(self) -> Mapping[tuple[Step, int], Ratio]:
        """By step and kind: of the kind or of the whole step, whichever is known better; else of all steps."""
        taught = self.taught
        if (taught["run"] == COUNTED).any():
            taught = taught.filter((pl.col("run") == COUNTED) | pl.col("step").is_in(LATER))
        taught = taught.select(FITTED)
        told = fits_by_kind_and_all(_with_siblings(taught))
        told |= fits_by_kind_and_all(taught.with_columns(step=pl.lit("all")))

        def of(step: Step, kind: int) -> Ratio:
            alike, others = told.get((step, kind)), told.get((step, None), told.get(("all", None)))
            known = [
                Ratio(fit.ratio, int(fit.answers), fit.error(borrowed=fit is others))
                for fit in (alike, others)
                if fit is not None
            ]
            return min(known, key=lambda ratio: ratio.error, default=Ratio())

        return {(step, kind): of(step, kind) for step in STEPS for kind in range(len(KINDS))}


NOTHING = Learned(_SCHEMA.to_frame())


def learn(
    calls: pl.DataFrame, about: Callable[[pl.Series], pl.DataFrame] | None = None, run: int = THIS_RUN
) -> Learned:
    """Learn from calls, with at least the columns `CALL_COLUMNS`: from those that were paid for and counted.

    `about` tells of rows, when the calls are about the very table that is planned: `row`, its `kind` of script (index
    into `KINDS`), the `stratum` that it may be picked from and how many `rows` that has, null for one that need not be
    counted; an answer then weighs as many rows of its stratum as it stands for. A call whose columns from
    `cached_tokens` on are null teaches only the ratio.
    """
    answers = (
        calls.filter("paid", ~pl.col("usage_estimated"), pl.col("input_tokens_est") > 0, pl.col("input_tokens") > 0)
        .rename({name: name.removesuffix("_tokens") for name in calls.columns if name.endswith("_tokens")})
        .rename({"input_tokens_est": "estimated"})
    )
    if about is not None:
        stands_for = pl.col("rows") / pl.col("row").n_unique().over("stratum")
        weight = pl.when(pl.col("stratum").is_null()).then(1).otherwise(stands_for)
        answers = answers.join(about(answers["row"]), on="row", how="left").with_columns(weight=weight)
        answers = answers.with_columns(pl.col("weight") / pl.col("weight").mean())
    return _learned(answers, run)


def counted(prompts: Iterable[tuple[int, int, int]]) -> Learned:
    """Learn from prompts whose input tokens the service counted without answering: kind, estimated and counted."""
    columns = {"kind": pl.UInt8, "estimated": pl.Int64, "input": pl.Int64}
    told = pl.DataFrame(list(prompts), columns, orient="row")
    return _learned(told.with_row_index("row").with_columns(step=pl.lit("answer")), COUNTED)


def merged(*sources: Learned) -> Learned:
    """All sources together; of a step that this run answered often enough, earlier runs do not count."""
    taught = pl.concat([NOTHING.taught, *(source.taught for source in sources)])
    own = taught.filter(pl.col("run") == THIS_RUN).group_by("step").len()
    settled = own.filter(pl.col("len") >= SETTLED)["step"].to_list()
    return Learned(taught.filter((pl.col("run") <= THIS_RUN) | ~pl.col("step").is_in(settled)))


def _learned(answers: pl.DataFrame, run: int) -> Learned:
    given = {name: pl.col(name) for name in answers.columns if name in _SCHEMA}
    columns = {**dict.fromkeys(_SCHEMA, pl.lit(None)), "weight": pl.lit(1.0), **given, "run": pl.lit(run)}
    return Learned(answers.select(column.cast(_SCHEMA[name]).alias(name) for name, column in columns.items()))


def _with_siblings(taught: pl.DataFrame) -> pl.DataFrame:
    """What is told of whole rows is told of pieces too where no answer is to a piece, and the other way round."""
    missing = [(step, its) for step, its in _SIBLINGS if step not in taught["step"]]
    copies = (taught.filter(pl.col("step") == its).with_columns(step=pl.lit(step)) for step, its in missing)
    return pl.concat([taught, *copies])


def _number(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"
