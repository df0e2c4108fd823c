"""How long a service may have anybody wait, and how that is told."""

from datetime import UTC, datetime
from math import isfinite

from pipeline.records import Failure

LONGEST_WAIT_S = 600.0
"""A prompt waits no longer at the service's word, all its requests together, and so does a run after a refusal.

Every minute's window is over by then, and Google's own delays are below it (recorded traffic: 60 s at most for a
minute's quota, hours for a day's, which is told apart). Who asks for more is mistaken, or down for long: then a row
that the next run takes up again is better than a program that does nothing.
"""
TOLD_S = 75.0
"""Waits beyond the end of a minute's window are told."""
_YEARS_S = 10 * 365 * 86_400.0


def asked_s(failure: Failure) -> float:
    """Seconds that the service asks to wait; 0 where it asks for none, or for what is no time."""
    seconds = failure.retry_after_s
    return seconds if seconds is not None and isfinite(seconds) and seconds > 0 else 0.0


def told(failure: Failure, kept_s: float, now: float) -> str:
    """What a person is told of a wait that was asked for, of which `kept_s` are waited; `now` in epoch seconds."""
    asked = f"the service asks to wait until {clock(now, asked_s(failure))} ({failure.message})"
    return asked if kept_s >= asked_s(failure) else f"{asked}; it is asked again at {clock(now, kept_s)}"


def clock(now: float, ahead_s: float) -> str:
    """The time of day so many seconds ahead, with its date where that is another day: "14:02 UTC"."""
    then = datetime.fromtimestamp(now + min(ahead_s, _YEARS_S), UTC)
    same_day = then.date() == datetime.fromtimestamp(now, UTC).date()
    return f"{then:%H:%M} UTC" if same_day else f"{then:%Y-%m-%d %H:%M} UTC"
