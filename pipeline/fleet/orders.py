"""What a driver and its workers tell each other beside the permissions for requests: plain data, which is pickled."""

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pipeline.calls import Saved
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.fleet.messages import Given, Told
from pipeline.job import Job, compiled
from pipeline.places import Kind
from pipeline.prompts import Prompt
from pipeline.records import Failure, Lane, Reply, Status, Step, Usage
from pipeline.run.engine import Monitor
from pipeline.run.prepare import Options
from pipeline.sections import JobFile
from pipeline.sections.base import Section
from pipeline.source import Source
from pipeline.store.batch_states import BatchState
from pipeline.store.lives import LifeId
from pipeline.store.units import Shard
from pipeline.targets import Target
from pipeline.version import __version__


@dataclass(frozen=True, slots=True)
class Frozen:
    """A job as it travels: its templates are compiled anew where it arrives. It holds no key."""

    path: Path
    spec: JobFile
    origins: Mapping[str, str]

    def thawed(self) -> Job:
        """The job. Raises `JobError` where a file that it names is not there."""
        return compiled(self.path, self.spec, self.origins)


def frozen(job: Job, *, whole: bool = False) -> Frozen:
    """The job as it travels; `whole`: with the texts of the files that it names, which are not where it arrives."""
    return Frozen(job.path, _in_one(job) if whole else job.spec, dict(job.origins))


def _in_one(job: Job) -> JobFile:
    """The job file as if what stands in other files stood in it: it asks the same."""
    spec, prompt = job.spec, job.spec.prompt
    if prompt.template_file is not None:
        prompt = prompt.model_copy(update={"template": job.template.source, "template_file": None})
    if prompt.system_file is not None:
        prompt = prompt.model_copy(update={"system": job.params.system, "system_file": None})
    told: dict[str, Section] = {"prompt": prompt}
    for name, template in (("reduce", job.reduce_template), ("refine", job.refine_template)):
        if template is not None:
            section: Section = getattr(spec, name)
            told[name] = section.model_copy(update={"template": template.source, "template_file": None})
    if job.schema is not None:
        told["output"] = spec.output.model_copy(update={"schema_": job.schema.value})
    return spec.model_copy(update=told)


@dataclass(frozen=True, slots=True)
class Contract:
    """What a worker is told first, once: the job, and as whom it is run."""

    job: Frozen
    redo: Frozen | None
    options: Options
    kind: Kind
    folder: Path  # in which the driver runs: relative paths of the job are looked for from there
    is_observed: bool = False  # each request is told, for metrics and spans
    url: str | None = None  # where the run lies on object storage; None: in the directories that all see


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's answer to its contract: what it is, to be compared with the driver."""

    pid: int
    host: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Order:
    """Run a shard, in its directory, as this life of it."""

    life: str
    shard: Shard
    source: Source  # of its rows; of a run on object storage to be placed where the worker has its copy
    rows: int  # of them that are run
    at: LifeId | None = None  # the same life, of a run on object storage


@dataclass(frozen=True, slots=True)
class Counts:
    """How a life stands: `outcomes` of all of its shard's rows, all else since it began."""

    outcomes: Counter[Status] = field(default_factory=Counter)
    made: Counter[Step] = field(default_factory=Counter)
    lanes: Counter[Lane] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    error: str | None = None  # of the newest of them
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal = Decimal(0)
    unpriced: int = 0
    uncertain: int = 0
    answered: int = 0
    saved: Saved = field(default_factory=Saved)
    last: tuple[int, str, str] | None = None
    latencies: tuple[float, ...] = ()  # of the newest calls


@dataclass(frozen=True, slots=True)
class Opened:
    """A life has opened its shard's run directory, and counted what the life before had in flight."""

    life: str
    access: tuple[str, ...]  # whom it asks, and with whose key: see `Target.access`
    spent_usd: Decimal  # against a cap, by this shard, in all its lives
    answers: int  # that it has kept, in all its lives
    lost: int  # requests


class Answer(NamedTuple):
    """A request that was answered, as an observer is told of it: without its texts."""

    prompt: Prompt
    reply: Reply


class NoAnswer(NamedTuple):
    """A request that came back without an answer, as an observer is told of it: without its text."""

    prompt: Prompt
    target: Target
    failure: Failure
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Said:
    """What a life asks and has to tell."""

    life: str
    told: Told
    counts: Counts | None = None
    is_dry: bool = False  # all its rows are opened: another shard may follow
    observed: tuple[Answer | NoAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """What is left to be told of requests as a life ends."""

    observed: tuple[Answer | NoAnswer, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a life may do."""

    life: str
    given: Given


@dataclass(frozen=True, slots=True)
class Noted:
    """Something a person may want to know, of a life."""

    life: str
    event: Event


@dataclass(frozen=True, slots=True)
class Ended:
    """A life is over: nothing more comes of it."""

    life: str
    counts: Counts
    is_whole: bool  # every row of the shard has an outcome
    stopped: PipelineError | None = None  # what stopped it, if that was not the driver


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker cannot go on: nothing more comes of it."""

    error: PipelineError


FromWorker = Ready | Opened | Said | Observed | Noted | Ended | Failed
ToWorker = Contract | Order | Heard


class Observing:
    """Keeps what an observer is told until it is carried to the driver, with rows as the whole table counts them."""

    def __init__(self, first_row: int) -> None:
        self._first_row = first_row
        self._kept: list[Answer | NoAnswer] = []

    def answered(self, prompt: Prompt, reply: Reply) -> None:
        """Keep it."""
        bare = replace(reply, text="", raw=b"", extras="", before=(), members=())
        self._kept.append(Answer(self._bare(prompt), bare))

    def failed(self, prompt: Prompt, target: Target, failure: Failure, attempt: int, seconds: float) -> None:
        """Keep it."""
        self._kept.append(NoAnswer(self._bare(prompt), target, replace(failure, raw=b""), attempt, seconds))

    def taken(self, batch: BatchState, usage: Usage) -> None:
        """There are no batches."""

    def take(self) -> tuple[Answer | NoAnswer, ...]:
        """What was kept, once."""
        kept, self._kept = self._kept, []
        return tuple(kept)

    def _bare(self, prompt: Prompt) -> Prompt:
        return replace(prompt, row=prompt.row + self._first_row, content=(), members=())


def versions() -> dict[str, str]:
    """What a worker and its driver must have in common."""
    return {"Python": platform.python_version(), "polars": version("polars"), "prompt-pipeline": __version__}


def counts_of(monitor: Monitor) -> Counts:
    """How a life stands."""
    saved = monitor.saved
    return Counts(
        Counter(monitor.outcomes),
        Counter(monitor.made),
        Counter(monitor.lanes),
        Counter(monitor.targets),
        Counter(monitor.failures),
        monitor.error,
        monitor.calls,
        monitor.usage,
        monitor.cost_usd - monitor.began_usd,
        monitor.unpriced,
        monitor.uncertain,
        monitor.answered,
        Saved(saved.identical, saved.cached, saved.usd, saved.kept, saved.kept_usd),
        monitor.last,
        tuple(monitor.latencies),
    )


def add(monitor: Monitor, now: Counts, before: Counts) -> None:
    """Bring the monitor of the run from what a life told `before` to what it tells `now`."""
    for name in ("outcomes", "made", "lanes", "targets", "failures"):
        counter: Counter[str] = getattr(monitor, name)
        counter.update(getattr(now, name))
        counter.subtract(getattr(before, name))
        for key in [key for key, count in counter.items() if not count]:
            del counter[key]
    for name in ("calls", "cost_usd", "unpriced", "uncertain", "answered"):
        setattr(monitor, name, getattr(monitor, name) + getattr(now, name) - getattr(before, name))
    for name in ("identical", "cached", "usd", "kept", "kept_usd"):
        more = getattr(now.saved, name) - getattr(before.saved, name)
        setattr(monitor.saved, name, getattr(monitor.saved, name) + more)
    monitor.usage += _more(now.usage, before.usage)
    if now.calls > before.calls:
        monitor.latencies.extend(now.latencies[before.calls - now.calls :])
    monitor.error = now.error or monitor.error
    if now.last is not None and now.last != before.last:
        monitor.last = now.last


def _more(now: Usage, before: Usage) -> Usage:
    """What was used between two tellings."""
    numbers = {each.name: getattr(now, each.name) for each in fields(Usage)}
    return Usage(
        **{name: value if isinstance(value, bool) else value - getattr(before, name) for name, value in numbers.items()}
    )
