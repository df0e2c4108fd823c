"""What a run directory says about its run, also while the run goes on. Reads only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import polars as pl

from pipeline.errors import RunStateError
from pipeline.records import STATUSES, Reply, Status, Usage
from pipeline.report.accuracy import Accuracy, Amounts, Baseline, amounts_by_step, baseline, compare
from pipeline.report.calls import unanswered
from pipeline.report.causes import Cause, cause_json, causes_of
from pipeline.report.events import (
    Ended,
    Event,
    LeftOut,
    ModelNoted,
    Started,
    bound_of,
    over_sessions,
    read_events,
    seconds_of,
)
from pipeline.report.finding import in_use
from pipeline.report.lanes import InLane, batch_json, by_lane, lane_json, together, with_fallen
from pipeline.report.latencies import Latencies
from pipeline.store import batch_states, batched, fallen, parts, seals
from pipeline.store.batch_states import BatchState
from pipeline.store.batches import FOLDER
from pipeline.store.manifest import Manifest
from pipeline.store.manifest import read as read_manifest
from pipeline.store.notes import last_output, newest
from pipeline.store.state import load

_SUMS = ("input_tokens", "cached_tokens", "output_tokens", "thinking_tokens", "tool_tokens")
_CALL_COLUMNS = (
    *("step", "chunk", "paid", "attempts", "rate_limited", "input_tokens_est", "latency_s", "finished_at"),
    *("cost_usd", "standard_usd", "at_most_usd", "usage_estimated", "target", "lane", "fell_back", "late"),
    *("generation", *_SUMS),
)


RUN_KEYS: Mapping[str, str] = {
    "run": "name of the job",
    "rehearsal": "true where the emulator answered",
    "status": "finished, stopped, interrupted, sample (of `--sample`) or pilot; running while it runs",
    "rows": "rows of the input that the run covers",
    **{status: f"rows that are `{status}`" for status in STATUSES},
    "causes": "rows that are not ok by their cause, most first: see below",
    "calls": "replies that were paid for",
    "attempts": "requests that were made; refusals for quota do not count",
    "rate_limited": "refusals for quota",
    "shed": "requests that flex turned away; they cost nothing and no attempt",
    "identical": "calls that a call of this run with the same content answered",
    "cached": "calls that an earlier run answered, through `[cache]`",
    "saved_usd": "what both would have cost",
    "generation": "number of the run's generation: an edit that can change answers begins the next",
    "kept": "calls that earlier generations bought; the rows have their tokens and cost, `cost_usd` here has not",
    "kept_usd": "what they cost then",
    "before_usd": "what earlier generations may have cost in all; it counts against the caps",
    "input_tokens": "tokens of the prompts",
    "cached_tokens": "those of them that came from the service's own cache",
    "output_tokens": "tokens of the answers, without thinking",
    "thinking_tokens": "tokens that were thought; billed as output",
    "cost_usd": "USD paid; null where a price is unknown",
    "at_most_usd": "USD that it may have cost beyond `cost_usd`; null where nobody knows",
    "uncertain": "requests that may have cost these",
    "usage_estimated": "those of them that were answered: their tokens or cost are estimates",
    "targets": "of a job with several: by name the calls that each answered, and what they cost; null where a price is"
    " unknown",
    "lanes": "by lane the calls that were served in it, what they cost (null where a price is unknown), what that saved"
    " against the standard lane, how many of them were `late` (answers to what was answered elsewhere meanwhile), and"
    " how many others [`fell_back`](#what-fell-back), by cause: the lane was to answer them, and did not",
    "batches": "each batch: its number, `stage` (taken: its answers are kept) and `status` by the service's word, its"
    " lines and rows, when it was asked, ended and taken, and of its lines those that were answered, failed, were"
    " missing in the results, refused as not to be believed, and late; what it cost, and may cost at most (null where"
    " there is no cap)",
    "left_out": "why targets were asked no more in the last session, in words",
    "models_noted": "which model answered where another was asked, which ends by the service's word, and that flex was"
    " asked and standard answered, in words",
    "seconds": "how long the run took, all its sessions together",
    "bound_s": "why it was not faster: seconds of its targets that had work, by what they waited for. `rpm`, `tpm`,"
    " `rpd`: these limits; `slots`: as many calls in flight as may be; `budget`: a cap; `server`: the service refused"
    " or failed; `cpu`: this process computed; `source`: nothing was ready to be sent; `batches`: all that was left"
    " waited there",
    "output": "the table that was written last, or is to be written",
    "output_finished": "rows in it that are finished, the others are `pending`; null where none was written yet",
    "run_dir": "the run directory",
    "accuracy": "for each step, and `total`: calls, tokens and cost as [estimated, actual], output with thinking;"
    " `seconds` likewise, and in `lanes` the calls of each, where not all were to be in standard; null where no"
    " estimate for as many rows is known. After a redo (`--retry`) `redo` is true, and all of it is of that redo alone",
}
"""The keys of `run --json` and `report --json`; these keys stay."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers: outcomes of the rows that it covers, and sums over every call that was paid for."""

    manifest: Manifest
    directory: Path
    status: str  # finished, stopped, interrupted, sample, pilot, or running
    rows: int
    outcomes: Counter[Status]
    causes: tuple[Cause, ...]  # of those that are not ok, most rows first
    beyond: int  # rows with an outcome that a smaller `--limit` leaves out
    pending: int  # rows without one
    waiting: int  # failed rows that the next run tries again
    calls: int
    calls_by_step: dict[str, int]
    attempts: int
    rate_limited: int
    shed: int  # requests that flex turned away
    usage: Usage
    input_tokens_est: int
    cost_usd: Decimal
    unpriced: int
    at_most_usd: Decimal | None  # so much more the uncertain requests may have cost; None: nobody knows
    uncertain: int  # requests whose replies never came, or could not be read or counted
    usage_estimated: int  # of them, those that came: their tokens or cost are estimates
    identical: int  # calls that one with the same content answered
    cached: int  # calls that an earlier run answered
    saved_usd: Decimal  # what both would have cost
    kept: int  # calls that an earlier generation of the run bought
    kept_usd: Decimal  # what they cost then
    latency_p50_s: float | None
    latency_p95_s: float | None
    seconds: float
    bound_s: Mapping[str, float]  # by what was waited for, most first
    accuracy: Accuracy | None  # None: no plan for as many rows is known
    targets: Mapping[str, tuple[int, Decimal | None]]  # of a job with several: calls, and USD; None: unknown
    lanes: Mapping[str, InLane]
    batches: tuple[BatchState, ...]  # in the order they were cut
    left_out: tuple[str, ...]  # why targets were asked no more
    models_noted: tuple[str, ...]  # who answered for whom, and which model ends

    @property
    def output(self) -> str:
        """The table that was written last, or the one that is to be."""
        return last_output(self.directory) or self.manifest.output

    @property
    def output_finished(self) -> int | None:
        """Rows with an outcome in that table; None where none was written yet."""
        note = newest(self.directory)
        return None if note is None else note.finished

    @property
    def batches_out(self) -> int:
        """Batches that may still be answered."""
        return sum(state.is_open for state in self.batches)

    @property
    def parked(self) -> int:
        """Rows without an outcome that wait for batches; one that waits for several counts once at most."""
        return min(self.pending, sum(state.rows for state in self.batches if state.is_waited_for))

    @property
    def done(self) -> int:
        """Rows that the run covers with an outcome."""
        return self.outcomes.total()

    def as_json(self) -> dict[str, object]:
        """The numbers under `RUN_KEYS`."""
        return {
            "run": self.manifest.job,
            "rehearsal": self.manifest.kind != "real",
            "status": self.status,
            "rows": self.rows,
            **{status: self.outcomes[status] for status in STATUSES},
            "causes": [cause_json(cause, self.manifest) for cause in self.causes],
            "calls": self.calls,
            "attempts": self.attempts,
            "rate_limited": self.rate_limited,
            "shed": self.shed,
            "identical": self.identical,
            "cached": self.cached,
            "saved_usd": float(round(self.saved_usd, 8)),
            "generation": self.manifest.generation,
            "kept": self.kept,
            "kept_usd": float(round(self.kept_usd, 8)),
            "before_usd": float(round(Decimal(self.manifest.before_usd), 8)),
            "input_tokens": self.usage.input_tokens + self.usage.tool_tokens,
            "cached_tokens": self.usage.cached_tokens,
            "output_tokens": self.usage.output_tokens,
            "thinking_tokens": self.usage.thinking_tokens,
            "cost_usd": None if self.unpriced else float(round(self.cost_usd, 8)),
            "at_most_usd": None if self.at_most_usd is None else float(round(self.at_most_usd, 8)),
            "uncertain": self.uncertain,
            "usage_estimated": self.usage_estimated,
            "targets": {
                name: {"calls": calls, "cost_usd": None if usd is None else float(round(usd, 8))}
                for name, (calls, usd) in self.targets.items()
            },
            "lanes": {lane: lane_json(served) for lane, served in self.lanes.items()},
            "batches": [batch_json(state) for state in self.batches],
            "left_out": list(self.left_out),
            "models_noted": list(self.models_noted),
            "seconds": round(self.seconds, 1),
            "bound_s": {cause: round(seconds, 1) for cause, seconds in self.bound_s.items()},
            "output": self.output,
            "output_finished": self.output_finished,
            "run_dir": str(self.directory),
            "accuracy": self.accuracy.as_json() if self.accuracy else None,
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """A row without a whole answer."""

    row: int
    key: str
    status: str
    error_kind: str | None
    error: str | None
    cost_usd: float | None = field(default=0.0, compare=False)  # of all its calls; None: unknown


@dataclass
class _Sums:
    """Sums over calls, taken part by part: nothing is kept of each call."""

    plan: Baseline | None  # that the run is measured by
    fallen: fallen.Fallen
    live: set[str] = field(default_factory=set)  # of what may have fallen back, what another lane answered
    paid: Counter[str] = field(default_factory=Counter)  # tokens by counter
    steps: dict[str, Amounts] = field(default_factory=dict)  # calls that were paid for
    counted: dict[str, Amounts] = field(default_factory=dict)  # those of them that the plan is held to
    before: dict[str, Amounts] = field(default_factory=dict)  # those of these before the plan
    kept: int = 0
    kept_usd: Decimal = Decimal(0)
    attempts: int = 0
    rate_limited: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced: int = 0
    at_most_usd: Decimal | None = Decimal(0)
    uncertain: int = 0
    estimated: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    targets: dict[str, tuple[int, Decimal | None]] = field(default_factory=dict)
    lanes: dict[str, InLane] = field(default_factory=dict)
    lanes_counted: dict[str, InLane] = field(default_factory=dict)
    lanes_before: dict[str, InLane] = field(default_factory=dict)

    def add(self, calls: pl.DataFrame) -> None:
        """Add the calls of one part."""
        kept = calls.filter(~parts.IS_BOUGHT)
        self.kept += kept.height
        self.kept_usd += Decimal(kept["cost_usd"].sum())
        calls = calls.filter(parts.IS_BOUGHT)
        paid = calls.filter(pl.col("paid"))
        if perhaps := self.fallen.perhaps:
            live = paid.filter(pl.col("lane") != "batch")["fingerprint"].str.head(fallen.DIGITS)
            self.live.update(live.filter(live.is_in(list(perhaps))))
        self.paid.update(paid.select(pl.col(*_SUMS, "input_tokens_est").sum()).row(0, named=True))
        _add(self.steps, steps := amounts_by_step(paid))
        self.attempts += int(calls["attempts"].sum())
        self.rate_limited += int(calls["rate_limited"].sum())
        self.cost_usd += Decimal(calls["cost_usd"].sum())
        self.unpriced += calls.filter(pl.col("paid") | pl.col("usage_estimated"))["cost_usd"].null_count()
        more = calls["at_most_usd"]
        known = self.at_most_usd is not None and not more.has_nulls()
        self.at_most_usd = (self.at_most_usd or Decimal(0)) + Decimal(more.sum()) if known else None
        self.uncertain += more.null_count() + int((more > 0).sum())
        self.estimated += int(calls.filter(parts.IS_REQUEST)["usage_estimated"].sum())
        self.latencies.add(paid.filter(pl.col("lane") != "batch")["latency_s"])
        self.lanes = together(self.lanes, lanes := by_lane(calls))
        if (plan := self.plan) is not None:
            counted, earlier = plan.counted(paid), plan.before(plan.counted(paid))
            _add(self.counted, amounts_by_step(counted) if plan.without else steps)
            _add(self.before, amounts_by_step(earlier))
            self.lanes_counted = together(self.lanes_counted, by_lane(counted) if plan.without else lanes)
            self.lanes_before = together(self.lanes_before, by_lane(earlier))
        named = paid.filter(pl.col("target").is_not_null()).group_by("target")
        for name, number, usd, unknown in named.agg(
            parts.IS_REQUEST.sum(), usd=pl.col("cost_usd").sum(), unknown=pl.col("cost_usd").null_count()
        ).iter_rows():
            before, cost = self.targets.get(name, (0, Decimal(0)))
            self.targets[name] = before + number, None if unknown or cost is None else cost + usd


def _add(sums: dict[str, Amounts], more: dict[str, Amounts]) -> None:
    for step, amounts in more.items():
        sums[step] = sums.get(step, Amounts()).plus(amounts)


def summarize(directory: Path) -> Summary:
    """Read one run directory. Raises `RunStateError` when it is none, or damaged."""
    manifest = read_manifest(directory / "manifest.json")
    if manifest is None:
        raise RunStateError(f"{directory} is not a run directory", "`pipeline runs` lists them")
    outcomes, unsealed = load(directory, lambda raw, endpoint: Reply("", "ok"))
    events, failed = read_events(directory / "run.log"), unanswered(directory / "run.log")
    plan = baseline(events)
    sums = _Sums(plan, fallen.read(directory / FOLDER))
    columns = (*_CALL_COLUMNS, *(["fingerprint"] if sums.fallen.perhaps else []))
    for path in parts.part_paths(directory / "calls"):
        if parts.part_number(path) <= unsealed.sealed:
            sums.add(parts.read_part(path, columns))
    batches = batch_states.read(directory)
    for path in batched.part_paths(directory, batches):
        sums.add(parts.read_part(path, columns))
    sums.add(parts.calls_frame(unsealed.calls, {}).select(columns))
    calls = sum(amounts.calls for amounts in sums.steps.values())
    covered = next((event.rows for event in reversed(events) if isinstance(event, Started)), None)
    counts = Counter({status: outcomes.count(status, covered) for status in STATUSES})
    rows = counts.total() if covered is None else covered
    beyond = sum(outcomes.count(status) for status in STATUSES) - counts.total()
    return Summary(
        manifest=manifest,
        directory=directory,
        status=_status(events, directory),
        rows=rows,
        outcomes=counts,
        causes=causes_of(directory, outcomes, unsealed, covered),
        beyond=beyond,
        pending=outcomes.pending(rows),
        waiting=outcomes.waiting(),
        calls=calls,
        calls_by_step={step: amounts.calls for step, amounts in sorted(sums.steps.items())},
        # A session counts what it sent for rows that did not finish too; of a killed one the last seconds are missing,
        # of which each failed request has its line.
        attempts=max(sums.attempts, _summed(events, "attempts"), calls + failed.failed),
        rate_limited=max(sums.rate_limited, _summed(events, "rate_limited"), failed.rate_limited),
        shed=max(_summed(events, "shed"), failed.shed),
        usage=Usage(
            sums.paid["input_tokens"],
            sums.paid["cached_tokens"],
            sums.paid["output_tokens"],
            sums.paid["thinking_tokens"],
            sums.paid["tool_tokens"],
        ),
        input_tokens_est=sums.paid["input_tokens_est"],
        cost_usd=sums.cost_usd,
        unpriced=sums.unpriced,
        at_most_usd=sums.at_most_usd,
        uncertain=sums.uncertain,
        usage_estimated=sums.estimated,
        identical=_summed(events, "identical"),
        cached=_summed(events, "cached"),
        saved_usd=over_sessions(events, lambda numbers: numbers.saved_usd),
        kept=sums.kept,
        kept_usd=sums.kept_usd,
        latency_p50_s=sums.latencies.quantile(0.5),
        latency_p95_s=sums.latencies.quantile(0.95),
        seconds=seconds_of(events),
        bound_s=bound_of(events),
        accuracy=None if beyond else _accuracy(plan, sums, events),  # the plan was for fewer rows
        targets=dict(sorted(sums.targets.items())),
        lanes=with_fallen(sums.lanes, sums.fallen, sums.live),
        batches=tuple(batches[number] for number in sorted(batches)),
        left_out=_left_out(events),
        models_noted=tuple(dict.fromkeys(event.message for event in events if isinstance(event, ModelNoted))),
    )


def _summed(events: Sequence[Event], name: str) -> int:
    return int(over_sessions(events, lambda numbers: int(getattr(numbers, name))))


def _left_out(events: Sequence[Event]) -> tuple[str, ...]:
    """Why each target was asked no more, in the last session: each asks all of them again."""
    left: dict[str, None] = {}
    for event in events:
        if isinstance(event, Started):
            left = {}
        elif isinstance(event, LeftOut):
            left[f"{event.target} is left out: {event.message}" if event.target else event.message] = None
    return tuple(left)


def _accuracy(plan: Baseline | None, sums: _Sums, events: Sequence[Event]) -> Accuracy | None:
    if plan is None:
        return None
    before, lanes = ({lane: each.calls for lane, each in of.items()} for of in (sums.lanes_before, sums.lanes_counted))
    return compare(plan, sums.before, sums.counted, seconds_of(plan.sessions(events)), before, lanes)


def verify(directory: Path) -> int:
    """Read every byte of every sealed part; returns their number. Raises `RunStateError` for one that is not whole."""
    return seals.verify(directory)


def failures(directory: Path) -> list[Failure]:
    """Rows whose newest outcome is not ok, in row order."""
    outcomes, unsealed = load(directory, lambda raw, endpoint: Reply("", "ok"))
    newest_failure: dict[int, Failure] = {}
    for frame in parts.read_parts(directory / "results", ("row", "key", "status", "error_kind", "error", "cost_usd")):
        for row in frame.filter(pl.col("status") != "ok").with_columns(pl.col("cost_usd").cast(pl.Float64)).iter_rows():
            newest_failure[row[0]] = Failure(*row)
    for result in unsealed.results.values():
        if result.status != "ok":
            usd = None if result.cost_usd is None else float(result.cost_usd)
            told = result.row, result.key, result.status, result.error_kind, result.error, usd
            newest_failure[result.row] = Failure(*told)
    return [failure for _, failure in sorted(newest_failure.items()) if not outcomes.is_ok(failure.row)]


def _status(events: Sequence[Event], directory: Path) -> str:
    last = next((event for event in reversed(events) if isinstance(event, Started | Ended)), None)
    if isinstance(last, Ended):
        return last.status
    return "running" if in_use(directory) else "interrupted"
