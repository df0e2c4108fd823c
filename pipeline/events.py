"""What happens while a run goes on, as run.log keeps it and the console tells it: one small class for each event."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from typing import ClassVar, Literal

Meter = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a person may want to know; `kind` is its name in run.log. `target`: of which of several it is."""

    kind: ClassVar[str]
    target: str = field(default="", kw_only=True)

    def fields(self) -> dict[str, object]:
        """Its numbers and its message, by name."""
        return {name: value for name, value in asdict(self).items() if value or name != "target"}


@dataclass(frozen=True, slots=True)
class LimitSet(Event):
    """From now on so much a minute is believed to be allowed; `configured` at the start where the job says it."""

    kind: ClassVar[str] = "limit"
    meter: Meter
    per_minute: int
    origin: Literal["configured", "assumed", "tried", "learned", "measured"]


@dataclass(frozen=True, slots=True)
class QuotaShared(Event):
    """So many runs on this machine use one quota, this one included."""

    kind: ClassVar[str] = "sharing"
    runs: int


@dataclass(frozen=True, slots=True)
class RequestsLost(Event):
    """The last session was killed with requests in flight; `at_most_usd` is what they may have cost, null: unknown."""

    kind: ClassVar[str] = "lost"
    requests: int
    at_most_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class RequestFailed(Event):
    """Requests came back without an answer: one, or so many alike that came too fast to be told one by one."""

    kind: ClassVar[str] = "failed"
    requests: int
    cause: str  # as `error_kind`
    http_status: int | None  # null: there was no response
    lane: str
    attempt: int | None = None  # of its prompt, refusals counted; null: of several requests
    latency_s: float | None = None
    row: int | None = None
    shed: bool = field(default=False, kw_only=True)  # flex turned it away


@dataclass(frozen=True, slots=True)
class Message(Event):
    """An event that one line says."""

    message: str


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """The service refuses everything for quota."""

    kind: ClassVar[str] = "refused"


@dataclass(frozen=True, slots=True)
class Outage(Message):
    """The service is down, or is back."""

    kind: ClassVar[str] = "outage"


@dataclass(frozen=True, slots=True)
class FlexShed(Message):
    """Nearly all that is asked in flex is turned away, or is answered again."""

    kind: ClassVar[str] = "flex"


@dataclass(frozen=True, slots=True)
class TargetLeftOut(Message):
    """One of several targets is asked no more."""

    kind: ClassVar[str] = "target"


@dataclass(frozen=True, slots=True)
class LongWait(Message):
    """Nothing is sent for long: the service asks for it, or another machine led the run; `until` in epoch seconds."""

    kind: ClassVar[str] = "wait"
    until: float


@dataclass(frozen=True, slots=True)
class DayUsedUp(Message):
    """The day's quota is used up, and the run sleeps; `until` in epoch seconds."""

    kind: ClassVar[str] = "day"
    until: float


@dataclass(frozen=True, slots=True)
class Stopped(Message):
    """No new call is admitted any more; the end of the run says it to a person."""

    kind: ClassVar[str] = "halt"


@dataclass(frozen=True, slots=True)
class BookTrouble(Message):
    """A file that several runs share cannot be used, or was made anew."""

    kind: ClassVar[str] = "book"


@dataclass(frozen=True, slots=True)
class OutputWritten(Event):
    """The output was written while the run goes on: so many of its rows are finished, the others `pending`."""

    kind: ClassVar[str] = "output"
    rows: int
    finished: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FirstAnswered(Message):
    """The rows that went first have their outcomes."""

    kind: ClassVar[str] = "first"


@dataclass(frozen=True, slots=True)
class OutputTrouble(Message):
    """The output could not be written while the run goes on, which goes on all the same."""

    kind: ClassVar[str] = "output_trouble"


@dataclass(frozen=True, slots=True)
class WorkerLost(Message):
    """A worker of several is gone: others run its shards, and what it had in flight counts at its most till then."""

    kind: ClassVar[str] = "worker_lost"


@dataclass(frozen=True, slots=True)
class CacheTrouble(Message):
    """The answer cache cannot be used, or was made anew."""

    kind: ClassVar[str] = "cache"


@dataclass(frozen=True, slots=True)
class StoreTrouble(Message):
    """The object storage that the run lies on takes nothing, or takes it again."""

    kind: ClassVar[str] = "store"
    is_away: bool


@dataclass(frozen=True, slots=True)
class FewFiles(Message):
    """Fewer calls are in flight than could be, as this process may open few files."""

    kind: ClassVar[str] = "files"


@dataclass(frozen=True, slots=True)
class KeyNoted(Message):
    """Others may read the key where it lies, or another one was found there in the middle of the run."""

    kind: ClassVar[str] = "key"


@dataclass(frozen=True, slots=True)
class PriceNoted(Message):
    """A call cost more than was reckoned, or its price is unknown."""

    kind: ClassVar[str] = "price"


@dataclass(frozen=True, slots=True)
class ModelNoted(Message):
    """Another model answers than was asked, or the service says that the model ends."""

    kind: ClassVar[str] = "model"


@dataclass(frozen=True, slots=True)
class PrefixCached(Message):
    """What all prompts begin with could not be kept in an explicit cache."""

    kind: ClassVar[str] = "prefix_cache"


@dataclass(frozen=True, slots=True)
class BatchNoted(Message):
    """A batch at the service was handed in again, was answered, or is looked for."""

    kind: ClassVar[str] = "batch"


@dataclass(frozen=True, slots=True)
class LanesPlanned(Event):
    """How what is left of the run is divided; shares of its time in the live lanes, and cost over standard's."""

    kind: ClassVar[str] = "lanes"
    batch: float
    flex: float
    cost: float


@dataclass(frozen=True, slots=True)
class Alert(Message):
    """A threshold of `[alerts]` is passed, or what had passed it has fallen back (`over`); `name` says which one."""

    kind: ClassVar[str] = "alert"
    name: str
    over: bool = False


@dataclass(frozen=True, slots=True)
class PostFailed(Message):
    """An alert could not be posted to the webhook."""

    kind: ClassVar[str] = "webhook"


@dataclass(frozen=True, slots=True)
class SessionStarted(Event):
    """A session begins, with so many rows in the table."""

    kind: ClassVar[str] = "start"
    rows: int
    pid: int


@dataclass(frozen=True, slots=True)
class SessionPlanned(Event):
    """What the session is expected to take, as the report compares it with what came of it."""

    kind: ClassVar[str] = "plan"
    at_s: float  # seconds since the epoch
    rows: int
    pilot: bool
    steps: Mapping[str, Sequence[float | None]]  # calls, tokens in, tokens out, cost in USD; None: unknown
    seconds: float
    based_on: str
    lanes: Mapping[str, int] = field(default_factory=dict)  # calls by lane, where not all are in standard
    between: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Least and most of `input_tokens`, `output_tokens` with thinking, and `cost_usd` where it is known."""
    redo: bool = False  # of rows that had an outcome: `--retry`


@dataclass(frozen=True, slots=True)
class Progressed(Event):
    """A sign of life, with the session's numbers so far; none comes while nothing changes.

    While nothing is sent it says why, and until when that is, in epoch seconds, where it is known.
    """

    kind: ClassVar[str] = "progress"
    seconds: float
    rows_done: int
    calls: int
    cost_usd: Decimal
    identical: int
    cached: int
    saved_usd: Decimal
    attempts: int  # requests that came back, but for refusals
    rate_limited: int
    shed: int = field(default=0, kw_only=True)  # requests that flex turned away
    failed: Mapping[str, int] = field(default_factory=dict, kw_only=True)  # other requests without an answer, by cause
    bound_s: Mapping[str, float] = field(default_factory=dict, kw_only=True)  # seconds by what was waited for
    waits_for: str = field(default="", kw_only=True)  # day_quota, outage, minute_quota, batches
    waits_until_s: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class SessionEnded(Progressed):
    """A session ends; `reason` is empty where nothing stopped it."""

    kind: ClassVar[str] = "end"
    status: str
    reason: str


Notify = Callable[[Event], None]


def told_of(target: str, notify: Notify) -> Notify:
    """Who hears what happens, with the target's name on it; of a job that names none as it is."""
    return (lambda event: notify(replace(event, target=target))) if target else notify
