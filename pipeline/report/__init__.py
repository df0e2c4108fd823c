"""What a run directory says about its run, also while the run goes on. Reads only."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import polars as pl

from pipeline.errors import RunStateError
from pipeline.records import STATUSES, Reply, Status, Usage
from pipeline.report import tallies
from pipeline.report.accuracy import Accuracy, Baseline, baseline, compare
from pipeline.report.calls import unanswered
from pipeline.report.causes import Cause, cause_json
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
from pipeline.report.lanes import InLane, batch_json, lane_json
from pipeline.report.sums import Held
from pipeline.report.tallies import Reading, Tally, summed
from pipeline.store import afar, batch_states, parts, seals
from pipeline.store.batch_states import BatchState
from pipeline.store.manifest import Manifest
from pipeline.store.manifest import read as read_manifest
from pipeline.store.notes import last_output, newest
from pipeline.store.state import load
from pipeline.store.units import Unit, is_cut, units
from pipeline.store.units import read as read_shards

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
    def stored_at(self) -> str | None:
        """The address in object storage of which the directory is a working copy; None for a run that lies here."""
        known = afar.read(self.directory)
        return known and known.url

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


def summarize(directory: Path) -> Summary:
    """Read one run directory. Raises `RunStateError` when it is none, or damaged."""
    manifest = read_manifest(directory / "manifest.json")
    if manifest is None:
        raise RunStateError(f"{directory} is not a run directory", "`pipeline runs` lists them")
    events = read_events(directory / "run.log")
    plan = baseline(events)
    covered = next((event.rows for event in reversed(events) if isinstance(event, Started)), None)
    found = _read(directory, covered, plan, events)
    tally, bought = found.tally, found.tally.bought
    status = _status(events, directory)
    batches = batch_states.read(directory)
    rows = tally.outcomes.total() if covered is None else covered
    return Summary(
        manifest=manifest,
        directory=directory,
        status=status,
        rows=rows,
        outcomes=tally.outcomes,
        causes=tally.causes,
        beyond=tally.beyond,
        pending=tally.pending,
        waiting=tally.waiting,
        calls=bought.calls,
        calls_by_step={step: amounts.calls for step, amounts in sorted(bought.steps.items())},
        attempts=_attempts(directory, status, tally, events),
        rate_limited=max(tally.rate_limited, summed(events, "rate_limited")),
        shed=max(tally.shed, summed(events, "shed")),
        usage=Usage(
            bought.paid["input_tokens"],
            bought.paid["cached_tokens"],
            bought.paid["output_tokens"],
            bought.paid["thinking_tokens"],
            bought.paid["tool_tokens"],
        ),
        input_tokens_est=bought.paid["input_tokens_est"],
        cost_usd=bought.cost_usd,
        unpriced=bought.unpriced,
        at_most_usd=bought.at_most_usd,
        uncertain=bought.uncertain,
        usage_estimated=bought.estimated,
        identical=max(tally.identical, summed(events, "identical")),
        cached=max(tally.cached, summed(events, "cached")),
        saved_usd=max(tally.saved_usd, over_sessions(events, lambda numbers: numbers.saved_usd)),
        kept=bought.kept,
        kept_usd=bought.kept_usd,
        latency_p50_s=bought.latencies.quantile(0.5),
        latency_p95_s=bought.latencies.quantile(0.95),
        seconds=seconds_of(events),
        bound_s=bound_of(events),
        accuracy=None if tally.beyond else _accuracy(plan, found.held, events),  # the plan was for fewer rows
        targets=dict(sorted(bought.targets.items())),
        lanes=found.lanes,
        batches=tuple(batches[number] for number in sorted(batches)),
        left_out=_left_out(events),
        models_noted=tuple(dict.fromkeys(event.message for event in events if isinstance(event, ModelNoted))),
    )


def _read(directory: Path, covered: int | None, plan: Baseline | None, events: Sequence[Event]) -> Reading:
    """What the directory says, or all its shards; of each, the rows that are `covered`."""
    if not is_cut(directory):
        return tallies.read(directory, covered, plan, events)

    def found() -> Iterator[Reading]:
        for shard in read_shards(directory)[1]:
            rows = shard.rows if covered is None else min(max(0, covered - shard.first_row), shard.rows)
            yield tallies.read_shard(shard, rows, plan)

    return tallies.whole(found())


def _left_out(events: Sequence[Event]) -> tuple[str, ...]:
    """Why each target was asked no more, in the last session: each asks all of them again."""
    left: dict[str, None] = {}
    for event in events:
        if isinstance(event, Started):
            left = {}
        elif isinstance(event, LeftOut):
            left[f"{event.target} is left out: {event.message}" if event.target else event.message] = None
    return tuple(left)


def _accuracy(plan: Baseline | None, held: Held, events: Sequence[Event]) -> Accuracy | None:
    if plan is None:
        return None
    before, lanes = ({lane: each.calls for lane, each in of.items()} for of in (held.lanes_before, held.lanes_counted))
    return compare(plan, held.before, held.counted, seconds_of(plan.sessions(events)), before, lanes)


def verify(directory: Path) -> int:
    """Read every byte of every sealed part; returns their number. Raises `RunStateError` for one that is not whole."""
    return sum(seals.verify(unit.directory) for unit in units(directory))


def failures(directory: Path) -> list[Failure]:
    """Rows whose newest outcome is not ok, in row order."""
    return [failure for unit in units(directory) for failure in _failures(unit)]


def _failures(unit: Unit) -> list[Failure]:
    outcomes, unsealed = load(unit.directory, lambda raw, endpoint: Reply("", "ok"))
    newest_failure: dict[int, Failure] = {}
    columns = ("row", "key", "status", "error_kind", "error", "cost_usd")
    for frame in parts.read_parts(unit.directory / "results", columns):
        for row in frame.filter(pl.col("status") != "ok").with_columns(pl.col("cost_usd").cast(pl.Float64)).iter_rows():
            newest_failure[row[0]] = Failure(unit.first_row + row[0], *row[1:])
    for result in unsealed.results.values():
        if result.status != "ok":
            usd = None if result.cost_usd is None else float(result.cost_usd)
            told = result.key, result.status, result.error_kind, result.error, usd
            newest_failure[result.row] = Failure(unit.first_row + result.row, *told)
    return [failure for row, failure in sorted(newest_failure.items()) if not outcomes.is_ok(row)]


def _attempts(directory: Path, status: str, tally: Tally, events: Sequence[Event]) -> int:
    """Requests that were made. While shards are worked on, what leads counts answers that they do not have yet."""
    if status == "running" and is_cut(directory):
        return max(tally.attempts, tally.bought.calls + unanswered(directory / "run.log").failed)
    return max(tally.attempts, summed(events, "attempts"))


def _status(events: Sequence[Event], directory: Path) -> str:
    last = next((event for event in reversed(events) if isinstance(event, Started | Ended)), None)
    if isinstance(last, Ended):
        return last.status
    return "running" if in_use(directory) else "interrupted"
