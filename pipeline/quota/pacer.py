"""Requests per minute: even spacing on aiolimiter's leaky bucket, safe against every way a server may count."""

import asyncio
from collections.abc import Iterable
from math import floor, inf

import anyio
from aiolimiter import AsyncLimiter

WINDOW_S = 60.0
JITTER_S = 0.3
"""How much the way to the server may vary: the range of the delay, not its size. Costs JITTER_S / 60 of the rate."""
CATCH_UP_S = 0.2
"""A wake-up this late is caught up on by a small burst; what a busy machine loses beyond it is lost."""
RESERVE_FROM_RPM = 100
"""From here on the burst is taken off the limit from the start; below, one request would cost too much to give away."""

CAREFUL_S = 0.125
"""Between requests that may find out the limit: two more have left when the refusal of one comes back after 0.2 s."""
_CAREFUL_PERIODS = 4.0  # but at most so much slower than the pace, so that high limits are found in minutes too


class RequestPacer:
    """Lets requests go so that no window of 60 s, wherever it begins, ever holds more than `rpm` of them.

    With at most `b + r·t` sends in any `t` seconds and arrivals that vary by `JITTER_S`, `b + r·(60 + JITTER_S) <= rpm`
    satisfies fixed windows of any phase, a sliding log, a sliding-window counter and a token bucket alike. Below
    `RESERVE_FROM_RPM` that bound is only kept when `strict`: without it a sliding-window counter may refuse one.

    With several `runs` on one limit each has an equal part, and beyond it whatever the others leave: a request goes
    before its own turn when all runs together, as far as `charge` was told, are behind the pace.

    One task only may acquire: aiolimiter serves its waiters smallest first, not in order.
    """

    def __init__(self, rpm: float, *, drained: bool, strict: bool = False) -> None:
        """With `drained` no burst is left at the start: right after another run, which may have used it."""
        self._strict = strict
        self._runs = 1
        self._due_at = -inf  # when the next request is due that any run makes
        self._drain = 0.0
        self._ready = False  # once there is room, there is until the next request
        self._last_grant: float | None = None
        self._build(rpm)
        if drained:
            self._drain = self._limiter.max_rate

    @property
    def rpm(self) -> float:
        """The limit that is kept, requests a minute."""
        return self._rpm

    @property
    def period_s(self) -> float:
        """Seconds between two requests in the long run."""
        return self._limiter.time_period / self._limiter.max_rate

    def change(self, rpm: float, now: float, *, strict: bool | None = None, runs: int | None = None) -> None:
        """Keep another limit from now on, or share it with others. The burst is not granted a second time."""
        self._strict = self._strict if strict is None else strict
        self._runs = self._runs if runs is None else runs
        undrained = self._drain
        self._build(rpm)
        burst = self._limiter.max_rate
        if undrained:
            self._drain = burst
        elif self._last_grant is not None:
            self._drain = max(0.0, burst - (now - self._last_grant) / self.period_s)

    def ready(self) -> bool:
        """Whether `acquire` would return at once."""
        self._ready = self._ready or (not self._drain and self._limiter.has_capacity())
        return self._ready

    def charge(self, sent: Iterable[float]) -> None:
        """Count requests that left at these times, of whichever run."""
        for at in sent:
            self._due_at = max(self._due_at, at) + self._all_period_s

    async def acquire(self) -> None:
        """Wait until one request may leave, and count it."""
        if self._runs > 1:
            with anyio.CancelScope(deadline=self._due_at - (self._all_burst - 1) * self._all_period_s):
                await self._turn()
        elif self._drain:
            await self._turn()
        else:  # one coroutine less for each request
            await self._limiter.acquire()
        self._ready = False
        self._last_grant = asyncio.get_running_loop().time()
        self._due_at = max(self._due_at, self._last_grant) + self._all_period_s

    async def _turn(self) -> None:
        if self._drain:
            drain, self._drain = self._drain, 0.0
            try:
                await self._limiter.acquire(drain)
            except asyncio.CancelledError:
                self._drain = drain
                raise
        await self._limiter.acquire()

    def _build(self, rpm: float) -> None:
        self._rpm = rpm
        self._all_burst, self._all_period_s = spacing(rpm, strict=self._strict, runs=self._runs)
        burst = max(1, self._all_burst // self._runs)
        self._limiter = AsyncLimiter(burst, burst * self._all_period_s * self._runs)
        self._drain = 0.0
        self._ready = False


def careful_s(period_s: float) -> float:
    """Seconds between two requests where more is sent than was ever let through; `period_s` is the usual pace."""
    return min(CAREFUL_S, _CAREFUL_PERIODS * period_s)


def spacing(rpm: float, *, strict: bool = False, runs: int = 1) -> tuple[int, float]:
    """Burst and seconds between requests for a limit of `rpm` that `runs` share.

    Each other run may be about to send one that nobody has seen yet.
    """
    padded = WINDOW_S + JITTER_S
    burst = max(1, floor(CATCH_UP_S * rpm / padded))
    if rpm >= RESERVE_FROM_RPM or strict:
        return burst, padded / max(rpm - burst - runs + 1, rpm / 2)
    return burst, padded / rpm
