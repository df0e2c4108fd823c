"""What the driver of a fleet and a life of a shard tell each other: sizes and numbers, no text and no key.

Clocks differ: a time that travels is the worker's own, which the driver compares with its own by `stamp`, or the
service's. Whoever carries messages of a life keeps their order and loses none, or has the life over.
"""

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NamedTuple

from pipeline.dispatch.desk import Tries
from pipeline.errors import PipelineError
from pipeline.records import ErrorKind, Failure, Lane, Reply, Status, Step, Usage

POLL_S = 2.0
"""Whoever has nothing to say says so after this time."""
EVERY_S = 0.1
"""Between two messages of a life, at least."""
SOON_S = 0.02
"""The same where all that may be in flight is: each outcome that is told lets another request leave."""
FIRST_WINDOW = 8
"""Asks of one route that a life may have waiting for a go, at least."""
HOLD_S = 0.3
"""Where a limit is set or found each go leaves so long after it was given, or not at all: a later one is given back.

So however long messages take, requests leave as evenly as those of one process. It costs no rate, but what is given
back does: on two cores with a load of 17 a fifth of all were 0.1 s late by way of Ray, a twentieth 0.3 s.
"""
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
    """Send it to that target and in that lane."""

    number: int
    target: int
    lane: Lane
    tries: Tries
    hold_s: float | None = None  # after the quickest message would have come; None: at once, however long it took


class Answered(NamedTuple):
    """An answer, without what it says."""

    status: Status
    usage: Usage
    model: str
    lane: Lane
    served_at: float | None


class Outcome(NamedTuple):
    """What came of one go."""

    number: int
    read_at: float  # by the worker's clock, as a message's stamp
    what: Answered | Failure


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

    number: int  # of those that say more than that the life is there; 0: it does not
    stamp: float  # by the worker's clock
    spent_usd: Decimal = _NONE  # on this shard by all lives so far, with what came of all that was told up to here
    asks: tuple[Ask, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    counted: tuple[tuple[int, int | Failure], ...] = ()
    withdrawn: tuple[int, ...] = ()
    is_last: bool = False  # the life is over once it knows that this was heard


@dataclass(frozen=True, slots=True)
class Given:
    """From the driver to a life."""

    heard: int  # the number of the newest of the life's messages
    stamp: float | None  # of one of them that took least to come
    held_s: float  # since that came
    window: int  # asks of one route that may wait for a go
    every_s: float  # between two messages of the life, at least
    goes: tuple[Go, ...] = ()
    ended: tuple[Ended, ...] = ()
    count: tuple[tuple[int, int], ...] = ()  # prompts to be counted, and by which target
    halts: bool = False  # nothing more is admitted, for this reason; None: the run was interrupted
    reason: PipelineError | None = None


def told_of(outcome: Reply | Failure) -> Answered | Failure:
    """What the driver is told of a request."""
    if isinstance(outcome, Failure):
        # By the first character an answer of the service is told from a gateway's page.
        return replace(outcome, raw=outcome.raw.lstrip()[:1]) if outcome.raw else outcome
    return Answered(outcome.status, outcome.usage, outcome.model, outcome.lane, outcome.served_at)


def heard_later(outcome: Answered | Failure, later_s: float) -> Answered | Failure:
    """The same as if it were read only now: the service's clock goes on."""
    if outcome.served_at is None:
        return outcome
    served_at = outcome.served_at + later_s
    if isinstance(outcome, Answered):
        return outcome._replace(served_at=served_at)
    return replace(outcome, served_at=served_at)
