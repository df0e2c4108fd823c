"""Why a run was not faster: the seconds of its loops by what they waited for, and what that was really."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.quota.standing import QuotaStanding

BUSY = 0.9
"""Of the time between two looks: with so much of it spent computing, more work or more calls at once would not help."""

_LEAST_S = 0.001


def busy_s() -> float:
    """Seconds that this thread computed, or was ready to and others had the CPU, as far as the system tells."""
    with suppress(OSError, ValueError), Path("/proc/thread-self/schedstat").open("rb") as told:
        computed, waited, _ = told.read().split()
        return (int(computed) + int(waited)) / 1e9
    return time.thread_time()


class Bounded:
    """Sums what each look finds since the one before.

    Where nothing was ready, or as many calls were in flight as may be, this process itself may have been the reason: it
    computed nearly all the time, or waited for a CPU. Where nothing was ready as all waited in batches, those were. A
    target that has nothing to do while another is held up, as one that is asked only after it, holds nobody up.
    """

    def __init__(self, at_s: float, cpu_s: Callable[[], float] = busy_s) -> None:
        """From `at_s` on, epoch seconds; `cpu_s` as `busy_s`, of the thread of the event loop."""
        self._cpu_s = cpu_s
        self._seen: list[Mapping[str, float]] = []
        self._at_s, self._used_s = at_s, cpu_s()
        self._seconds: dict[str, float] = {}

    def look(self, quotas: Iterable[QuotaStanding], at_s: float, *, only_batches: bool) -> Mapping[str, float]:
        """All seconds until now by cause, most first; `only_batches`: all that is left waits in them."""
        seen = [quota.bound_s for quota in quotas]
        before = self._seen if len(self._seen) == len(seen) else [{}] * len(seen)
        spent = [_since(now, past) for now, past in zip(seen, before, strict=True)]
        held_up = [each for each in spent if each.get("source", 0.0) < sum(each.values()) / 2]
        since: dict[str, float] = {}
        for each in held_up or spent:
            _add(since, each)
        used_s = self._cpu_s()
        if used_s - self._used_s >= BUSY * (at_s - self._at_s):
            since["cpu"] = since.pop("source", 0.0) + since.pop("slots", 0.0)
        elif only_batches:
            since["batches"] = since.pop("source", 0.0)
        _add(self._seconds, since)
        self._seen, self._at_s, self._used_s = seen, at_s, used_s
        most_first = sorted(self._seconds.items(), key=lambda each: -each[1])
        return {cause: round(seconds, 3) for cause, seconds in most_first if seconds >= _LEAST_S}


def _since(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {cause: seconds - before.get(cause, 0.0) for cause, seconds in now.items()}


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for cause, seconds in more.items():
        sums[cause] = sums.get(cause, 0.0) + seconds
