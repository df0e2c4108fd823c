"""What the driver of a fleet and a life of a shard tell each other: sizes and numbers, no text and no key.

Times that travel are ages, as clocks differ; `served_at` is the service's own. What has to be heard has a number, and
is said again until it is known to be: a link may lose messages, double them, and let them overtake one another.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Generic, NamedTuple, TypeVar

from pipeline.dispatch.desk import Tries
from pipeline.errors import PipelineError
from pipeline.records import ErrorKind, Failure, Lane, Reply, Status, Step, Usage

POLL_S = 2.0
"""Whoever has nothing to say says so after this time."""
AGAIN_S = 3.0
"""What is not known to be heard after this time is said again."""
EVERY_S = 0.1
"""Between two messages of a life, at least."""
FIRST_WINDOW = 8
"""Asks of one route that a life may have waiting for a go, at least."""
LATE_S = 0.2
"""A go that comes so much later than the quickest is given back: what left later could reach another minute."""
UNSENT = Failure("lost", "network", "given back before it was sent", sent=False)
GONE = Failure("lost", "network", "its worker is gone: nobody knows what came of it")
_NONE = Decimal(0)


class Ask(NamedTuple):
    """A prompt that waits for a go: what it takes of the quotas and may cost, and who may answer it, by number."""

    number: int
    row: int  # of the shard
    step: Step
    tokens: int  # of input, as estimated
    targets: tuple[int, ...]
    is_second: bool = False  # they are asked after an answer of others
    longest: int | None = None  # output tokens
    sound_tokens: int = 0
    searches: bool = False


class Go(NamedTuple):
    """Send it now, to that target and in that lane."""

    number: int
    target: int
    lane: Lane
    tries: Tries


class Answered(NamedTuple):
    """An answer, without what it says."""

    status: Status
    usage: Usage
    model: str
    lane: Lane
    age_s: float  # since it was read
    served_at: float | None


class Ended(NamedTuple):
    """A prompt that is asked no more, and why."""

    number: int
    status: Status
    error_kind: ErrorKind | None
    error: str | None
    attempts: int
    rate_limited: int


@dataclass(frozen=True, slots=True)
class Told:
    """From a life to the driver."""

    number: int  # 0: nothing that has to be heard
    heard: int  # the newest of the driver's messages
    stamp: float  # by the worker's clock
    spent_usd: Decimal = _NONE  # on this shard by all lives so far, with what came of all that was told up to here
    asks: tuple[Ask, ...] = ()
    outcomes: tuple[tuple[int, Answered | Failure], ...] = ()
    counted: tuple[tuple[int, int | Failure], ...] = ()
    withdrawn: tuple[int, ...] = ()
    is_last: bool = False  # nothing follows but this again
    age_s: float = 0.0  # since it was said first


@dataclass(frozen=True, slots=True)
class Given:
    """From the driver to a life."""

    number: int  # 0: nothing that has to be heard
    newest: int  # of those that have to be heard, up to this one
    heard: int  # the newest of the life's messages
    stamp: float | None  # of one of them that took least to come
    held_s: float  # since that came
    window: int  # asks of one route that may wait for a go
    every_s: float  # between two messages of the life, at least
    goes: tuple[Go, ...] = ()
    ended: tuple[Ended, ...] = ()
    count: tuple[tuple[int, int], ...] = ()  # prompts to be counted, and by which target
    halts: bool = False  # nothing more is admitted, for this reason; None: the run was interrupted
    reason: PipelineError | None = None
    age_s: float = 0.0  # since it was said first


Message = TypeVar("Message", Told, Given)


class Outbox(Generic[Message]):
    """What was said and is not known to be heard."""

    def __init__(self) -> None:
        self.newest = 0
        self._kept: deque[tuple[float, float, Message]] = deque()  # said first, said last

    def __bool__(self) -> bool:
        return bool(self._kept)

    def keep(self, message: Message, now: float) -> None:
        """It is said now, and is the newest."""
        self.newest = message.number
        self._kept.append((now, now, message))

    def heard(self, number: int) -> Message | None:
        """All up to this one were heard; returns the newest of those of which that is news."""
        newest = None
        while self._kept and self._kept[0][2].number <= number:
            newest = self._kept.popleft()[2]
        return newest

    def due_in(self, now: float) -> float:
        """Seconds until something is to be said again, at most `POLL_S`."""
        return min((POLL_S, *(last + AGAIN_S - now for _, last, _ in self._kept)))

    def again(self, now: float) -> Message | None:
        """What is to be said again now, the oldest first."""
        for place, (first, last, message) in enumerate(self._kept):
            if last + AGAIN_S <= now:
                self._kept[place] = first, now, message
                return replace(message, age_s=now - first)
        return None


class Inbox(Generic[Message]):
    """What was heard, each once; all up to the `newest`, and some that have overtaken others."""

    def __init__(self) -> None:
        self.newest = 0
        self._early: dict[int, Message] = {}

    def is_new(self, message: Message) -> bool:
        """Whether it was not heard before, where what overtakes others is heeded at once."""
        is_new = message.number > self.newest and message.number not in self._early
        for _ in self.in_order(message):
            pass
        return is_new

    def in_order(self, message: Message) -> Iterator[Message]:
        """What is to be heeded now that this one has come, where what overtakes others waits for them."""
        if message.number > self.newest:
            self._early[message.number] = message
        while (following := self._early.pop(self.newest + 1, None)) is not None:
            self.newest += 1
            yield following


def told_of(outcome: Reply | Failure, wall: float) -> Answered | Failure:
    """What the driver is told of a request, at `wall`, epoch seconds."""
    if isinstance(outcome, Failure):
        # By the first character an answer of the service is told from a gateway's page.
        return replace(outcome, raw=outcome.raw.lstrip()[:1]) if outcome.raw else outcome
    age_s = max(0.0, wall - outcome.finished_at) if outcome.finished_at else 0.0
    return Answered(outcome.status, outcome.usage, outcome.model, outcome.lane, age_s, outcome.served_at)
