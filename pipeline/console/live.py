"""How a run stands, as one calm block on a terminal or as lines with the time of day elsewhere."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson
from rich.cells import cell_len, set_cell_size
from rich.live import Live

from pipeline.console.screen import count, duration, err, money, styled, things
from pipeline.errors import RunStateError
from pipeline.language import Data, spoken
from pipeline.quota.standing import Meter, QuotaStanding
from pipeline.run.status import Status, read
from pipeline.store.journal import newest_answer
from pipeline.store.manifest import Lock
from pipeline.terminal import one_line

LINES_S = 15.0
"""Between two looks whether there is something new to say, where no block can be drawn."""
_LOOK_S = 1.0  # between two looks at a run of another process
_AFAR_S = 10.0  # of another machine
_MINUTE_S = 60.0
_BAR, _GAP, _INDENT = 10, "   ", "  "
_CAUSES = 4  # that are named
_WAITS = {
    "day_quota": "the day's quota is used up",
    "outage": "the service is down or refuses everything",
    "minute_quota": "for the minute's quota, or as the service asked",
}
_PLAIN = ("book", "day", "target", "wait")  # events whose message says what they are
_BINDS = {"requests": "rpm", "tokens": "tpm", "day": "rpd"}

Last = tuple[int, str, str]
"""Row, key and beginning of the newest answer."""


def is_live() -> bool:
    """Whether a block can be drawn and drawn anew: not in a file, a pipe or on a dumb terminal."""
    return err.is_terminal and not err.is_dumb_terminal


def block(status: Status, width: int, last: Last | None = None) -> list[str]:
    """Lines of at most `width` cells. What does not fit beside the others goes below them; no word is cut in two."""
    if status.stopping:
        return flowing([_stopping(status)], width)
    groups = [_done(status, bar=True), _rates(status), _money(status), _failures(status), _batches(status)]
    groups += [_end(status), [f"alert: {one_line(message)}" for message in status.alerts.values()]]
    lines = [line for group in groups for line in flowing(group, width)]
    if last and (text := one_line(last[2].strip().split("\n", 1)[0])):
        lines.append(shortened(f"{spoken('last: ')}{one_line(last[1])}: {text}", width))
    return lines


def line(status: Status) -> str:
    """The same in one line, without what only moves."""
    if status.stopping:
        return spoken(_stopping(status))
    parts = [*_done(status, bar=False), *_money(status)[:1], *_failures(status)[:1], *_batches(status), *_end(status)]
    return "  ".join(map(spoken, parts))


def ended(status: Status) -> list[str]:
    """How a run ended, for whoever watched it."""
    code = "" if status.exit_code is None else f", exit code {status.exit_code}"
    told = [
        f"{status.state} after {status.rows_done:,} of {things(status.rows, 'row')}, {money(status.cost_usd)}{code}"
    ]
    if status.state == "killed":
        told.append("it may have kept more than it had told: `pipeline report` counts it, and says how to go on")
    if status.reason:
        told.append(status.reason)
    if status.goes_on_at_s:
        told.append(f"the same command goes on from {_moment(status.goes_on_at_s, status.at_s)}")
    return told


def flowing(parts: Iterable[str], width: int) -> list[str]:
    """Parts beside each other, as many in a line as fit; the lines below the first are indented."""
    lines: list[str] = []
    for part in map(spoken, parts):
        if lines and cell_len(lines[-1] + _GAP + part) <= width:
            lines[-1] += _GAP + part
        else:
            lines.append(shortened(_INDENT * bool(lines) + part, width))
    return lines


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` cells, cut between words where it has any near."""
    if cell_len(text) <= width:
        return text
    cut = set_cell_size(text, width - 1).rstrip()
    if not text[len(cut) : len(cut) + 1].isspace() and (space := cut.rfind(" ")) > len(cut) // 2:
        cut = cut[:space].rstrip()
    return f"{cut}…"


def _done(status: Status, *, bar: bool) -> list[str]:
    share = status.calls / status.calls_planned if status.calls_planned else 1.0
    filled = "█" * int(share * _BAR)
    parts = [f"{status.calls:,}/{status.calls_planned:,} calls {int(share * 100)}%"]
    if bar:
        parts.append(f"▕{filled:<{_BAR}}▏")
    parts.append(f"{count(status.rows_done)} of {things(status.rows, 'row')}")
    if status.shards:
        if status.workers or status.calls:
            parts.append(f"{status.shards_done:,}/{status.shards:,} shards, {things(status.workers, 'worker')}")
        else:
            parts.append(f"{status.shards_done:,}/{status.shards:,} shards, workers are starting")
    return parts


def _rates(status: Status) -> list[str]:
    parts = [] if status.calls_per_min is None or status.waits_for else [_pace(status.calls_per_min, status)]
    for quota in status.quotas:
        name = f"{one_line(quota.target)} " if len(status.quotas) > 1 else ""
        parts += [f"{name}{each}" for each in _meters(quota)]
    flight = f"{status.in_flight:,} in flight"
    return [*parts, f"{flight}, {status.waiting:,} wait" if status.waiting else flight]


def _pace(per_min: float, status: Status) -> str:
    """In the first minute what came so far, as the quotas beside it count no more: a pace would seem to pass them."""
    seconds = status.at_s - status.started_at_s
    if seconds >= _MINUTE_S:
        return f"{per_min:,.0f} calls a minute"
    return f"{per_min * seconds / _MINUTE_S:,.0f} calls in {duration(seconds)}"


def _meters(quota: QuotaStanding) -> list[str]:
    found = []
    for name, meter in (("rpm", quota.rpm), ("tpm", quota.tpm), ("rpd", quota.rpd)):
        if meter:
            found.append(f"{name} {_used(meter)}{' binds' if _BINDS.get(quota.binds) == name else ''}")
    if quota.binds == "slots":
        found.append(f"{quota.slots:,} at once, which binds")
    elif quota.binds == "left out":
        found.append("left out")
    return found


def _used(meter: Meter) -> str:
    share = meter.used / meter.limit if meter.limit else 1.0
    return f"{share:.0%} of {count(meter.limit)}{'' if meter.told else ' (learned)'}"


def _money(status: Status) -> list[str]:
    parts = [f"{money(status.cost_usd)}{' and unknown prices' if status.unpriced else ''}"]
    if status.projected_usd and status.calls < status.calls_planned:
        parts.append(f"about {money(status.projected_usd)} in all")
    if status.cap_usd is not None and status.left_usd is not None:
        parts.append(f"budget {money(status.cap_usd)}, {money(status.left_usd)} left")
    served = sum(status.lanes.values())
    if any(lane != "standard" for lane in status.lanes):
        parts += [f"{lane} {number / served:.0%}" for lane, number in sorted(status.lanes.items()) if number]
    if len(status.targets) > 1:
        parts += [f"{one_line(name)} {number:,}" for name, number in sorted(status.targets.items())]
    return parts


def _failures(status: Status) -> list[str]:
    parts = []
    if failed := status.rows_done - status.outcomes.get("ok", 0):
        causes = sorted(status.failures.items(), key=lambda cause: -cause[1])
        parts = [f"{failed:,} not ok", *(f"{number:,} {one_line(name)}" for name, number in causes[:_CAUSES])]
        if (before := failed - sum(status.failures.values())) > 0:  # the causes are of this session
            parts.append(f"{before:,} of earlier sessions")
    if status.refused:
        parts.append(f"{status.refused:,} refused for quota")
    return parts


def _batches(status: Status) -> list[str]:
    if not status.batches_out:
        return []
    batches = "batch" if status.batches_out == 1 else "batches"
    parts = [f"{status.batches_out:,} {batches} out: {things(status.batch_lines, 'call')}"]
    if status.oldest_batch_at_s:
        parts.append(f"oldest {duration(max(0.0, status.at_s - status.oldest_batch_at_s))}")
    if status.last_call_at_s:
        parts.append(f"last call {_moment(status.last_call_at_s, status.at_s)}")
    return parts


def _end(status: Status) -> list[str]:
    if status.waits_for == "batches":
        return []  # they say it
    if status.waits_until_s is not None:
        left = duration(max(0.0, status.waits_until_s - status.at_s))
        return [f"waits until {_moment(status.waits_until_s, status.at_s)} ({left})", _WAITS[status.waits_for]]
    if status.eta_s is not None:
        return [f"eta {duration(status.eta_s)}"]
    return [f"no eta: {status.no_eta}"] if status.no_eta else []


def _stopping(status: Status) -> str:
    replies = "1 reply" if status.in_flight == 1 else f"{status.in_flight} replies"
    return f"stopping: {replies} to come (Ctrl-C again: abandon)"


def _moment(at_s: float, now_s: float) -> str:
    then = datetime.fromtimestamp(at_s, UTC)
    same_day = then.date() == datetime.fromtimestamp(now_s, UTC).date()
    return f"{then:%H:%M:%S} UTC" if same_day else f"{then:%Y-%m-%d %H:%M} UTC"


class Block:
    """The block on the terminal, gone when it ends; what is printed meanwhile goes above it."""

    def __init__(self) -> None:
        self._live = Live(console=err, transient=True, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, status: Status, last: Last | None = None) -> None:
        """Draw it anew."""
        self._live.update(styled(Data("\n".join(block(status, err.width - 1, last)))), refresh=True)


class Lines:
    """One line after another, each with the time of day; none that says nothing new."""

    def __init__(self) -> None:
        self._told: object = None

    def show(self, status: Status) -> None:
        """Say how it stands, where something happened since."""
        happened = (status.stopping, status.in_flight) if status.stopping else _happened(status)
        if happened != self._told:
            self._told = happened
            self.say(Data(line(status)))

    def say(self, text: str) -> None:
        """Say it now."""
        err.print(styled(Data(f"{datetime.fromtimestamp(time.time(), UTC):%H:%M:%S} UTC  "), text))


def _happened(status: Status) -> object:
    """What is news where it changes; time, pace and what falls out of a minute are none."""
    until = status.waits_until_s and round(status.waits_until_s / 60.0)
    return status.calls, status.calls_planned, status.rows_done, status.batches_out, status.waits_for, until


def follow(directory: Path, look: Callable[[Path], None]) -> Status:
    """Show the run of another process until it ends, with what its run.log says meanwhile; how it ended.

    `look` has the directory be as the run is now, where that goes on elsewhere. Raises `RunStateError` where nothing
    tells how it stands.
    """
    log = directory / "run.log"
    read_to = log.stat().st_size if log.exists() else 0
    with Block() if is_live() else _Nothing() as drawn:
        lines, last, looked_at = Lines(), None, time.monotonic()
        while True:
            if time.monotonic() > looked_at + _AFAR_S:
                look(directory)
                looked_at = time.monotonic()
            status = read(directory)
            if status is None:
                raise RunStateError(
                    f"{directory} does not tell how its run stands", "`pipeline report` reads what it has"
                )
            read_to = _tell_news(log, read_to, lines)
            if status.state != "running" and not Lock.held(directory / "lock"):
                return status
            if isinstance(drawn, Block):
                last = newest_answer(directory) or last
                drawn.show(status, last)
            else:
                lines.show(status)
            time.sleep(_LOOK_S)


class _Nothing:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return


def _tell_news(log: Path, read_to: int, lines: Lines) -> int:
    try:
        with log.open("rb") as file:
            file.seek(read_to)
            found = file.read()
    except OSError:
        return read_to
    whole = found[: found.rfind(b"\n") + 1]
    for each in whole.splitlines():
        if text := news(each):
            if is_live():
                err.print(styled((text, "yellow")))
            else:
                lines.say(text)
    return read_to + len(whole)


def news(logged: bytes) -> str:
    """What a line of run.log has to say to a person; nothing where it is one of numbers, or damaged."""
    try:
        told = orjson.loads(logged)
        kind, message, target = told["event"], told["message"], told.get("target", "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    if kind == "halt":  # the end says it
        return ""
    name = f"{one_line(str(target))}: " if target else ""
    return f"{name}{message}" if kind in _PLAIN else f"{name}{kind}: {message}"
