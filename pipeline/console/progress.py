"""What is said of a run while it goes on."""

import time
from collections import Counter, deque
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

import anyio
from rich.cells import cell_len

from pipeline.console.screen import duration, err, money, styled, things
from pipeline.events import (
    BookTrouble,
    DayUsedUp,
    Event,
    LimitSet,
    LongWait,
    Message,
    QuotaShared,
    RequestsLost,
    Stopped,
    TargetLeftOut,
)
from pipeline.records import STATUSES, Status
from pipeline.run.engine import Monitor
from pipeline.terminal import one_line

REFRESH_S = 0.25
QUIET_S = 15.0
"""Between progress lines when stderr is no terminal."""
_AGAIN_S = 3600.0  # until a log says once more that all waits, if nothing changed
RECENT_S = 120.0
"""The time left goes by the pace of so long: limits grow, other runs come and go, outages end."""
_BAR, _SPINNER, _GAP = 10, 2, "  "
_WAIT_S = 5.0  # that nothing is sent: from here on its end is told instead of the time left
_LIMITS = {
    "assumed": "assumed; it grows until one is refused",
    "tried": "tried; it grows until one is refused",
    "learned": "learned; forget: `pipeline check JOB --forget`",
}


class Mark(NamedTuple):
    """How far a run was: seconds since it was opened, and calls that it had answers to."""

    seconds: float = 0.0
    calls: int = 0


START = Mark()


async def watch(monitor: Monitor) -> None:
    """One line that changes, or, where stderr is no terminal, a line now and then; until cancelled."""
    _tell(monitor)
    try:
        await _progress(monitor)
    finally:
        _tell(monitor)


class PilotWatch:
    """Watches the run of a pilot, and says at the end what that alone came to."""

    def __init__(self) -> None:
        self._monitor: Monitor | None = None
        self._before_usd = Decimal(0)
        self._outcomes: Counter[Status] = Counter()

    async def watch(self, monitor: Monitor) -> None:
        """As `watch`, from before the first call on."""
        self._monitor, self._before_usd, self._outcomes = monitor, monitor.cost_usd, monitor.outcomes.copy()
        await watch(monitor)

    def show(self) -> None:
        """One line: rows, calls, what was spent, and that it is kept."""
        monitor = self._monitor
        if monitor is None or not monitor.answered + monitor.calls:
            return
        found = monitor.outcomes - self._outcomes
        outcomes = ", ".join(f"{found[status]:,} {status}" for status in STATUSES if found[status])
        spent = "at an unknown price" if monitor.unpriced else f"{money(monitor.cost_usd - self._before_usd)} spent"
        rows = f"{things(monitor.answered, 'row')} ({outcomes})" if outcomes else "no row"
        err.print(f"  pilot: {rows}, {things(monitor.calls, 'call')}, {spent}; kept for the run\n")


class Recent:
    """How far the run was `RECENT_S` ago."""

    def __init__(self) -> None:
        self._marks: deque[Mark] = deque()

    def since(self, monitor: Monitor) -> Mark:
        """The oldest mark that counts; makes one of now. In the first `RECENT_S` the start counts."""
        now = Mark(monitor.seconds, monitor.calls + monitor.saved.calls)
        self._marks.append(now)
        while self._marks[0].seconds < now.seconds - RECENT_S:
            self._marks.popleft()
        return self._marks[0] if now.seconds > RECENT_S else START


async def _progress(monitor: Monitor) -> None:
    recent = Recent()
    if err.is_terminal:
        with err.status("") as status:
            while True:
                _tell(monitor)
                width = err.width - _SPINNER
                status.update(
                    styled(stopping_line(monitor, width) or fitting_line(monitor, width, recent.since(monitor)))
                )
                await anyio.sleep(REFRESH_S)
    told, quiet_s = "", 0.0
    while True:
        for _ in range(round(QUIET_S / REFRESH_S)):
            await anyio.sleep(REFRESH_S)
            _tell(monitor)
            mark = recent.since(monitor)
        quiet_s += QUIET_S
        line = stopping_line(monitor, err.width) or _log_line(monitor, mark)
        if line != told or quiet_s >= _AGAIN_S or not _waits_until(monitor):
            err.print(line)
            told, quiet_s = line, 0.0


def _tell(monitor: Monitor) -> None:
    while monitor.notices:
        event = monitor.notices.pop(0)
        if isinstance(event, LimitSet) and not monitor.prompts:  # nothing is left to be sent
            continue
        if text := notice(event):
            err.print(styled((text, "yellow")))


def notice(event: Event) -> str:
    """What a person is told of an event; nothing of one that is told in other ways."""
    told = _told(event)
    if not (told and event.target):
        return told
    return one_line(event.target) + (" is left out: " if isinstance(event, TargetLeftOut) else ": ") + told


def _told(event: Event) -> str:
    match event:
        case LimitSet(meter, per_minute, origin):
            counted = meter.removesuffix("s") if per_minute == 1 else meter
            return f"limit: {per_minute:,} {counted} a minute ({_LIMITS.get(origin, origin)})"
        case QuotaShared(runs):
            if runs == 1:
                return "no other run on this machine uses this quota any more"
            return f"{runs} runs on this machine share this quota, this one included"
        case RequestsLost(requests, most):
            cost = "may have cost an unknown sum and " if most is None else ""
            if most:
                cost = f"may have cost up to {money(most)} and "
            return f"the last session ended with {requests} request(s) in flight: they {cost}are sent again"
        case Stopped():
            return ""  # the end of the run says it
        case BookTrouble(message) | DayUsedUp(message) | TargetLeftOut(message) | LongWait(message):
            return message
        case Message(message):
            return f"{event.kind}: {message}"
    return ""


def fitting_line(monitor: Monitor, width: int, since: Mark = START) -> str:
    """The progress line without what does not fit: first the bar goes, then the meter, the refusals, the lanes …"""
    parts = _parts(monitor, bar=True, since=since)
    for name in ("bar", "meter", "refused", "lanes", "oldest", "rows", "last call", "cost"):
        if cell_len(_GAP.join(parts.values())) <= width:
            break
        parts.pop(name, None)
    return _GAP.join(parts.values())


def progress_line(monitor: Monitor, *, bar: bool, since: Mark = START) -> str:
    """Calls answered of those planned, the fuller meter, rows done, lanes, cost, failures, time left at that pace."""
    return _GAP.join(_parts(monitor, bar=bar, since=since).values())


def _log_line(monitor: Monitor, since: Mark) -> str:
    """As `progress_line`; while everything waits without the meter, which says nothing new by falling."""
    parts = _parts(monitor, bar=False, since=since)
    if "wait" in parts:
        parts.pop("meter", None)
    return _GAP.join(parts.values())


def _waits_until(monitor: Monitor) -> float | None:
    """Epoch seconds until which nothing goes on, where that takes a while."""
    until = monitor.desk.waits_until if monitor.desk else None
    return until if until is not None and until - time.time() >= _WAIT_S else None


def _parts(monitor: Monitor, *, bar: bool, since: Mark) -> dict[str, str]:
    answered = monitor.calls + monitor.saved.calls
    share = monitor.share
    calls = max(answered, monitor.prompts, round(answered / share) if share else 0)  # as many more as there were so far
    filled = "█" * int(share * _BAR)
    parts = {"calls": f"{answered:,}/{calls:,} calls {share:4.0%}"}
    if bar:
        parts["bar"] = f"▕{filled:<{_BAR}}▏"
    parts["rows"] = things(monitor.done, "row")
    if monitor.desk and any(use := monitor.desk.use):
        meter = max(range(2), key=use.__getitem__)
        parts["meter"] = f"{('rpm', 'tpm')[meter]} {use[meter]:.0%}"
    if other := {lane: number for lane, number in monitor.lanes.items() if lane != "standard"}:
        parts["lanes"] = " ".join(f"{lane} {number / monitor.calls:.0%}" for lane, number in sorted(other.items()))
    parts["cost"] = money(monitor.cost_usd)
    if failed := monitor.done - monitor.outcomes["ok"]:
        parts["failed"] = f"{failed:,} not ok"
    if monitor.desk and (refused := monitor.desk.rate_limited):
        parts["refused"] = f"{refused:,} refused for quota"
    if monitor.batches and (out := monitor.batches.standing).batches:
        parts["batches"] = f"{out.batches:,} {'batch' if out.batches == 1 else 'batches'} out: {out.lines:,} calls"
        if out.oldest_at:
            parts["oldest"] = f"oldest {duration(max(0.0, time.time() - out.oldest_at))}"
        if out.last_call_at:
            parts["last call"] = f"last call {datetime.fromtimestamp(out.last_call_at, UTC).astimezone():%H:%M}"
        if not monitor.desk or not (monitor.desk.in_flight or monitor.desk.ready):
            return parts  # nobody knows when they come
    if until := _waits_until(monitor):
        parts["wait"] = f"waits until {datetime.fromtimestamp(until, UTC):%H:%M:%S} UTC"
    elif answered > since.calls and (left := calls - answered) > 0:
        parts["eta"] = f"eta {duration(left / (answered - since.calls) * (monitor.seconds - since.seconds))}"
    return parts


def stopping_line(monitor: Monitor, width: int) -> str:
    """What the screen shows while a stopped run waits for its last answers; empty while it goes on."""
    if not monitor.stopping or monitor.desk is None:
        return ""
    left = monitor.desk.in_flight
    replies = "1 reply" if left == 1 else f"{left} replies"
    line = f"stopping: waiting for {replies} (Ctrl-C again to abandon them)"
    return line if len(line) <= width else f"stopping: {replies} to come (Ctrl-C again: abandon)"
