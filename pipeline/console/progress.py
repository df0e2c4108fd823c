"""What is said of a run while it goes on, by the process that runs it."""

import threading
import time
from collections import Counter
from contextlib import ExitStack
from decimal import Decimal

import anyio

from pipeline.console.live import LINES_S, Block, Lines, is_live
from pipeline.console.notebook import Cell
from pipeline.console.screen import err, money, styled, things
from pipeline.events import (
    BookTrouble,
    DayUsedUp,
    Event,
    FirstAnswered,
    LimitSet,
    LongWait,
    Message,
    OutputTrouble,
    QuotaShared,
    RequestsLost,
    Stopped,
    TargetLeftOut,
)
from pipeline.records import STATUSES, Status
from pipeline.run.engine import Monitor
from pipeline.run.status import Recent, status_of
from pipeline.terminal import one_line

REFRESH_S = 0.25
_TERMINAL = threading.Lock()
_LIMITS = {
    "assumed": "assumed; it grows until one is refused",
    "tried": "tried; it grows until one is refused",
    "learned": "learned; forget: `pipeline check JOB --forget`",
}


async def watch(monitor: Monitor) -> None:
    """A block that changes, or, where nothing can be drawn, a line when something changed; until cancelled."""
    recent, lines = Recent(), Lines()
    _tell(monitor, lines)
    try:
        with ExitStack() as drawing:
            block = _drawn(drawing)
            try:
                while block:
                    _tell(monitor, lines)
                    block.show(status_of(monitor, recent.since(monitor), time.time()), monitor.last)
                    await anyio.sleep(REFRESH_S)
            finally:
                if isinstance(block, Cell):
                    block.end(status_of(monitor, recent.since(monitor), time.time()), monitor.last)
        while True:
            for _ in range(round(LINES_S / REFRESH_S)):
                await anyio.sleep(REFRESH_S)
                _tell(monitor, lines)
                since = recent.since(monitor)
            lines.show(status_of(monitor, since, time.time()))
    finally:
        _tell(monitor, lines)


def _drawn(drawing: ExitStack) -> Block | Cell | None:
    """What is drawn anew as the run goes on, if anything can be: on a terminal, of one run of the process only."""
    if err.is_jupyter:
        return Cell()
    if not is_live() or not _TERMINAL.acquire(blocking=False):
        return None
    drawing.callback(_TERMINAL.release)
    return drawing.enter_context(Block())


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


def _tell(monitor: Monitor, lines: Lines) -> None:
    while monitor.notices:
        event = monitor.notices.pop(0)
        if isinstance(event, LimitSet) and not monitor.prompts:  # nothing is left to be sent
            continue
        if text := notice(event):
            if not is_live() and not err.is_jupyter:
                lines.say(text)
            else:
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
        case FirstAnswered() | BookTrouble() | DayUsedUp() | TargetLeftOut() | LongWait() | OutputTrouble():
            return event.message
        case Message(message):
            return f"{event.kind}: {message}"
    return ""
