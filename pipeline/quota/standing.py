"""How one quota stands at one moment, for whoever looks at a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.quota.limit import Limit
from pipeline.quota.quota import Quota

Binds = Literal["requests", "tokens", "day", "outage", "slots", "left out", ""]
"""What keeps a quota from sending more: a meter of the minute, the day, a server that refuses or fails everything, as
many requests in flight as may be, that it is asked no more; empty: nothing that is known."""

Bound = Literal["rpm", "tpm", "rpd", "slots", "budget", "server", "source"]
"""What a quota's time went into: the three limits, as many calls in flight as may be, a cap on spending, the service
(it refuses or fails, or was slowed down for), and nothing that was ready to be sent."""


@dataclass(frozen=True, slots=True)
class Meter:
    """One meter: what was used of it, of how much, and whether that was told or is only believed."""

    used: int
    limit: int
    told: bool  # configured or named by the service; else it was learned, or is tried


@dataclass(frozen=True, slots=True)
class QuotaStanding:
    """One quota; a meter without a limit is None."""

    target: str  # name of its first target, or where that is
    rpm: Meter | None
    tpm: Meter | None
    rpd: Meter | None  # of the day
    in_flight: int
    slots: int  # requests that may be in flight
    binds: Binds
    opens_at_s: float | None  # when a day that is used up is over, epoch seconds
    bound_s: Mapping[str, float] = field(default_factory=dict)  # seconds so far by what kept it from sending more


def standing_of(
    quota: Quota,
    target: str,
    in_flight: int,
    now: float,
    wall: float,
    bound_s: Mapping[str, float],
    *,
    is_closed: bool,
    is_short: bool,
) -> QuotaStanding:
    """How it stands at `now`, by the loop's clock, and `wall`, epoch seconds; `is_short`: of tokens, for all there is.

    Without a limit on tokens the meter of requests binds where it is paced.
    """
    requests, tokens = quota.ledger.last_minute(now)
    day, opens_at = quota.day.use(wall), quota.day.opens_at(wall)
    binds: Binds = ""
    if is_closed:
        binds = "left out"
    elif opens_at is not None:
        binds = "day"
    elif quota.down or quota.down_s() > 0:
        binds = "outage"
    elif in_flight >= quota.slots.count:
        binds = "slots"
    elif is_short:
        binds = "tokens"
    elif quota.paced():
        binds = "requests"
    return QuotaStanding(
        target,
        _meter(quota.requests, requests),
        _meter(quota.tokens, tokens),
        Meter(*day, told=True) if day else None,
        in_flight,
        quota.slots.count,
        binds,
        opens_at,
        bound_s,
    )


def _meter(limit: Limit | None, used: float) -> Meter | None:
    return None if limit is None else Meter(round(used), int(limit.value), told=limit.value == limit.known)
