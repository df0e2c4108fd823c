"""What run.log tells the report (see `pipeline.events`): a line that is damaged, or no event of ours, is skipped."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

LINE_BYTES = 1_000_000
"""A longer line is no event."""

Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=253_402_300_799)]  # also since the epoch: up to the year 9999
Usd = Annotated[Decimal, Field(ge=0, le=10**12)]
Amount = Annotated[float, Field(ge=0, le=2.0**53)]
Name = Annotated[str, Field(max_length=1_000)]
Words = Annotated[str, Field(max_length=10_000)]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    at: AwareDatetime | None = None


class Started(_Event):
    """A session begins, with so many rows in the table."""

    event: Literal["start"]
    rows: Count


class Planned(_Event):
    """What the session was expected to take."""

    event: Literal["plan"]
    at_s: Seconds
    rows: Count
    pilot: bool
    steps: dict[str, tuple[Count, Count, Count, Usd | None]]  # calls, tokens in, tokens out, cost
    seconds: Seconds
    based_on: str
    lanes: dict[str, Count] = {}  # calls by lane; logs from before 2026-11-30 know of none
    redo: bool = False
    between: dict[str, tuple[Amount, Amount]] = {}  # least and most, by amount; not known before that day either


class _Numbers(_Event):
    seconds: Seconds = 0
    identical: Count = 0
    cached: Count = 0
    saved_usd: Usd = Decimal(0)
    attempts: Count = 0
    rate_limited: Count = 0
    shed: Count = 0
    failed: dict[str, Count] = {}
    bound_s: dict[Annotated[str, Field(pattern="^[a-z]{1,20}$")], Seconds] = {}


class Progressed(_Numbers):
    """A sign of life, with the session's numbers so far."""

    event: Literal["progress"]


class Ended(_Numbers):
    """A session ends."""

    event: Literal["end"]
    status: Annotated[str, Field(pattern="^[a-z_]{1,40}$")]
    reason: str = ""


class LeftOut(_Event):
    """A target is asked no more."""

    event: Literal["target"]
    target: Name = ""  # logs from before 2026-11-29 name it in the message
    message: Words


class ModelNoted(_Event):
    """Another model answers than was asked, or a model ends."""

    event: Literal["model"]
    message: Words


class Limited(_Event):
    """From now on so much a minute is believed to be allowed."""

    event: Literal["limit"]
    target: Name = ""
    meter: Literal["requests", "tokens"]
    per_minute: Count
    origin: Annotated[str, Field(pattern="^[a-z_]{1,40}$")]


class Told(_Event):
    """Something that one line says."""

    event: Literal["wait", "day", "outage", "refused", "flex", "batch", "budget", "alert", "key", "price"]
    target: Name = ""
    message: Words
    over: bool = False  # of an alert: what had passed its threshold has fallen back


class _Seen(BaseModel):
    """Of `status.json`, as `run.status` writes it: since when a session goes on, and when it was seen last."""

    at_s: Seconds
    started_at_s: Seconds
    state: str
    bound_s: dict[Annotated[str, Field(pattern="^[a-z]{1,20}$")], Seconds] = {}


Event = Started | Planned | Progressed | Ended | LeftOut | ModelNoted | Limited | Told
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def read_events(log: Path) -> list[Event]:
    """The events of a run, oldest first; none where there is no log that can be read.

    Of a session without an end the last is when it was seen last: while nothing changes there is no line.
    """
    try:
        with log.open("rb") as file:
            events = list(parse_events(iter(lambda: file.readline(LINE_BYTES), b"")))
    except OSError:
        return []
    return [*events, *_last_seen(events, log.with_name("status.json"))]


def _last_seen(events: Sequence[Event], file: Path) -> Iterator[Progressed]:
    last: Progressed | None = None
    for event in reversed(events):
        if isinstance(event, Ended):
            return
        if isinstance(event, Progressed) and last is None:
            last = event
        if isinstance(event, Started):
            break
    else:
        return
    try:
        seen = _Seen.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return
    numbers = last or Progressed(event="progress")
    seconds = seen.at_s - seen.started_at_s
    is_of_it = event.at is not None and seen.at_s >= event.at.timestamp()  # or of a session before it
    if seen.state == "running" and is_of_it and seconds > numbers.seconds:
        at = datetime.fromtimestamp(seen.at_s, UTC)
        yield numbers.model_copy(update={"at": at, "seconds": seconds, "bound_s": seen.bound_s or numbers.bound_s})


def parse_events(lines: Iterable[bytes]) -> Iterator[Event]:
    """The lines that are events."""
    for line in lines:
        try:
            yield _EVENT.validate_json(line)
        except ValidationError:  # torn by a kill, damaged, or an event that the report has no use for
            continue


def over_sessions(events: Iterable[Event], of: Callable[[Progressed | Ended], Decimal | int]) -> Decimal:
    """Sum over the sessions; of a killed one, until its last sign of life."""
    return sum((Decimal(of(event)) for event in last_signs(events)), Decimal(0))


def seconds_of(events: Iterable[Event]) -> float:
    """How long all sessions took together."""
    return float(over_sessions(events, lambda numbers: Decimal(str(numbers.seconds))))


def bound_of(events: Iterable[Event]) -> dict[str, float]:
    """Seconds of all sessions by what they waited for, most first."""
    found: dict[str, float] = {}
    for event in last_signs(events):
        for cause, seconds in event.bound_s.items():
            found[cause] = found.get(cause, 0.0) + seconds
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def last_signs(events: Iterable[Event]) -> Iterator[Progressed | Ended]:
    """The last numbers that each session told."""
    last: Progressed | Ended | None = None
    for event in events:
        if isinstance(event, Progressed | Ended):
            last = event
        elif isinstance(event, Started) and last:
            yield last
            last = None
    if last:
        yield last
