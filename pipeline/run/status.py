"""How a run stands, as `status.json` in its directory tells it to whoever looks from outside."""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anyio
import orjson
from pydantic import TypeAdapter, ValidationError

from pipeline import machine
from pipeline.quota.standing import QuotaStanding
from pipeline.records import Lane
from pipeline.records import Status as Outcome
from pipeline.run.bounds import Bounded
from pipeline.run.engine import Monitor
from pipeline.store.afar import is_led

NAME = "status.json"
WRITE_S = 2.0
"""Between two looks at a run that goes on; what has not changed is written anew only after `SIGN_S`."""
SIGN_S = 30.0
RECENT_S = 120.0
"""The time left goes by the pace of so long: limits grow, other runs come and go, outages end."""
_FEWEST = 5  # answers from which a pace is told
UNSEEN_S = 62.0
"""A minute, and how much the ways to the service vary: so long what another machine sent may count."""
_BEHIND_S = 12.0  # that what a session tells may be at most: it looks every 2 s, and puts to object storage every 10
_WAIT_S = 5.0  # that nothing is sent: from here on its end is told instead of the time left

Waits = Literal["day_quota", "outage", "minute_quota", "batches", ""]
"""What a run waits for while it sends nothing; empty: it goes on."""


class Mark(NamedTuple):
    """How far a run was: seconds since it was opened, and calls that it had answers to."""

    seconds: float = 0.0
    calls: int = 0


class Recent:
    """How far the run was `RECENT_S` ago."""

    def __init__(self) -> None:
        self._marks: deque[Mark] = deque()

    def since(self, monitor: Monitor) -> Mark:
        """The oldest mark that counts; makes one of now. In the first `RECENT_S` the start counts."""
        now = Mark(monitor.seconds, monitor.had)
        self._marks.append(now)
        while self._marks[0].seconds < now.seconds - RECENT_S:
            self._marks.popleft()
        return self._marks[0] if now.seconds > RECENT_S else Mark()


@dataclass(frozen=True, slots=True)
class Status:
    """All that is known of a session at one moment; times in epoch seconds, money in USD."""

    at_s: float
    started_at_s: float
    rows: int
    rows_done: int
    calls: int  # answered, those included that need not be made
    calls_planned: int
    sample: int = 0  # rows of it, where it covers no others
    host: str = ""  # the machine
    state: str = "running"  # or how it ended: finished, sample, pilot, stopped, interrupted, left; killed
    stopping: bool = False  # what is in flight is waited for, and nothing else
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)  # rows of this session that are not ok, by cause
    in_flight: int = 0
    waiting: int = 0  # prompts
    refused: int = 0  # requests, for quota
    quotas: tuple[QuotaStanding, ...] = ()
    lanes: Mapping[Lane, int] = field(default_factory=dict)  # calls
    targets: Mapping[str, int] = field(default_factory=dict)  # calls
    cost_usd: float = 0.0
    unpriced: int = 0  # calls whose price is unknown
    projected_usd: float | None = None  # what the run comes to, at what its calls have cost so far
    cap_usd: float | None = None  # the budget that is nearest
    left_usd: float | None = None  # of it
    workers: int = 0  # processes at work, where there are several
    shards: int = 0  # that the session covers
    shards_done: int = 0
    batches_out: int = 0
    batch_lines: int = 0
    oldest_batch_at_s: float | None = None
    last_call_at_s: float | None = None
    calls_per_min: float | None = None  # over the last two minutes
    waits_for: Waits = ""
    waits_until_s: float | None = None
    eta_s: float | None = None
    no_eta: str = ""  # why nobody knows when it ends
    last_row: int | None = None  # of the newest answer
    bound_s: Mapping[str, float] = field(default_factory=dict)  # why it was not faster: seconds by what was waited for
    alerts: Mapping[str, str] = field(default_factory=dict)  # thresholds of `[alerts]` that are passed, by name
    reason: str = ""  # why it was stopped
    hint: str = ""  # and what comes before it goes on
    exit_code: int | None = None  # of one that has ended
    goes_on_at_s: float | None = None  # when it can be continued, where that is known


_SHAPE = TypeAdapter(Status)


def status_of(monitor: Monitor, since: Mark, now_s: float) -> Status:
    """How the run stands at `now_s`, epoch seconds; `since` is how far it was a while ago."""
    desk, share = monitor.desk, monitor.share
    calls = monitor.had
    planned = max(calls, monitor.prompts, round(calls / share) if share else 0)  # as many more as there were so far
    quotas = desk.standing if desk else ()
    out = monitor.batches.standing if monitor.batches else None
    ready, in_flight = (desk.ready, desk.in_flight) if desk else (0, 0)
    waits_for, until = _waits(monitor, quotas, ready, in_flight, now_s)
    seconds = monitor.seconds - since.seconds
    pace = (calls - since.calls) / seconds if seconds > 0 and calls - since.calls >= _FEWEST else None
    eta_s, no_eta = _eta(planned - calls, pace, waits_for, quotas)
    caps = list(monitor.spending.caps()) if monitor.spending else []
    nearest = min(caps, key=lambda cap: cap.usd - cap.spent_usd, default=None)
    spent = monitor.cost_usd - monitor.began_usd
    projected = None
    if monitor.calls >= _FEWEST and not monitor.unpriced:
        projected = float(round(monitor.cost_usd + spent / monitor.calls * (planned - calls), 8))
    return Status(
        at_s=now_s,
        started_at_s=now_s - monitor.seconds,
        rows=monitor.rows,
        rows_done=monitor.done,
        calls=calls,
        calls_planned=planned,
        sample=monitor.sample,
        host=socket.gethostname(),
        stopping=monitor.stopping,
        outcomes=dict(monitor.outcomes),
        failures=dict(monitor.failures.most_common()),
        in_flight=in_flight,
        waiting=ready,
        refused=desk.rate_limited if desk else 0,
        quotas=quotas,
        lanes=dict(monitor.lanes),
        targets=dict(monitor.targets),
        cost_usd=float(round(monitor.cost_usd, 8)),
        unpriced=monitor.unpriced,
        projected_usd=projected,
        cap_usd=float(nearest.usd) if nearest else None,
        left_usd=float(max(Decimal(0), nearest.usd - nearest.spent_usd)) if nearest else None,
        workers=monitor.workers,
        shards=monitor.shards,
        shards_done=monitor.shards_done,
        batches_out=out.batches if out else 0,
        batch_lines=out.lines if out else 0,
        oldest_batch_at_s=out.oldest_at if out else None,
        last_call_at_s=out.last_call_at if out else None,
        calls_per_min=None if pace is None else pace * 60.0,
        waits_for=waits_for,
        waits_until_s=until,
        eta_s=eta_s,
        no_eta=no_eta,
        last_row=monitor.last[0] if monitor.last else None,
        alerts=monitor.alerts,
    )


def _waits(
    monitor: Monitor, quotas: tuple[QuotaStanding, ...], ready: int, in_flight: int, now_s: float
) -> tuple[Waits, float | None]:
    until = monitor.desk.waits_until if monitor.desk else None
    if until is not None and until - now_s >= _WAIT_S:
        binds = {quota.binds for quota in quotas}
        return ("day_quota" if "day" in binds else "outage" if "outage" in binds else "minute_quota"), until
    out = monitor.batches.standing if monitor.batches else None
    if out and out.batches and not (ready or in_flight):
        return "batches", out.last_call_at
    return "", None


def _eta(
    left: int, pace: float | None, waits_for: Waits, quotas: tuple[QuotaStanding, ...]
) -> tuple[float | None, str]:
    """Seconds to the end, or why nobody knows them."""
    if left <= 0:
        return None, ""
    if waits_for == "batches":
        return None, "nobody knows when batches come"
    if waits_for:
        return None, "nothing is sent now"
    days = [quota.rpd for quota in quotas]
    if days and all(days) and sum(max(0, day.limit - day.used) for day in days if day) < left:
        return None, "more than the day's quota has left"
    if pace is None:
        return None, "too few answers in the last two minutes"
    return left / pace, ""


def read(directory: Path) -> Status | None:
    """How the run of a directory stands, or stood when it ended; None where nothing tells.

    One whose process is gone without a word is `killed`.
    """
    try:
        found = _SHAPE.validate_json((directory / NAME).read_bytes())
    except (OSError, ValidationError):
        return None
    if found.state == "running" and not is_led(directory):
        return replace(found, state="killed", waits_for="", waits_until_s=None, eta_s=None, in_flight=0)
    return found


def unseen_until(directory: Path) -> float:
    """Until when, in epoch seconds, requests may count that another machine sent for this run: its book alone has them.

    -inf where this machine led the run last, or nothing tells who did.
    """
    last = read(directory)
    if last is None or last.host in ("", socket.gethostname()):
        return -inf
    return last.at_s + UNSEEN_S + (0.0 if last.exit_code is not None else _BEHIND_S)


def as_json(status: Status) -> dict[str, object]:
    """The same as one JSON object, its times as ISO 8601 too."""
    told = asdict(status)
    for name in [name for name in told if name.endswith(("at_s", "until_s"))]:
        seconds = told[name]
        told[name.removesuffix("_s")] = seconds and datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    return told


class StatusFile:
    """Keeps `status.json` of a run that this process holds; a disk that refuses it stops nothing."""

    def __init__(
        self, directory: Path, monitor: Monitor, on_look: Callable[[Status], None] = lambda status: None
    ) -> None:
        """`on_look` is told how it stands at each look."""
        self._on_look, self._bounded = on_look, Bounded(time.time())
        self._path, self._monitor, self._recent = directory / NAME, monitor, Recent()
        self.last: Status | None = None  # as it was written

    async def keep(self) -> None:
        """Write it while the run goes on, until cancelled."""
        while True:
            self.look()
            await anyio.sleep(WRITE_S)

    def look(self) -> None:
        """Write how it stands now, unless that is known."""
        now, before = time.time(), self.last
        status = status_of(self._monitor, self._recent.since(self._monitor), now)
        self._on_look(status)
        is_batched = status.waits_for == "batches"
        self._monitor.bound_s = self._bounded.look(status.quotas, now, only_batches=is_batched)
        status = replace(status, alerts=self._monitor.alerts, bound_s=self._monitor.bound_s)
        if before and now - before.at_s < SIGN_S and _same(before, status):
            return
        self._write(status)

    def end(self, state: str, reason: str, exit_code: int, hint: str = "") -> None:
        """Write how it ended; what was known of its quotas last says when it can go on, `hint` what comes before."""
        monitor = self._monitor
        last = self.last or status_of(monitor, Mark(), time.time())
        opens = [quota.opens_at_s for quota in last.quotas if quota.opens_at_s]
        self._write(
            replace(
                last,
                at_s=time.time(),
                state=state,
                stopping=False,
                rows_done=monitor.done,
                calls=monitor.had,
                outcomes=dict(monitor.outcomes),
                failures=dict(monitor.failures.most_common()),
                cost_usd=float(round(monitor.cost_usd, 8)),
                in_flight=0,
                waiting=0,
                waits_for="",
                waits_until_s=None,
                eta_s=None,
                no_eta="",
                reason=reason,
                hint=hint,
                exit_code=exit_code,
                goes_on_at_s=min(opens) if opens and state == "stopped" else None,
            )
        )

    def _write(self, status: Status) -> None:
        hidden = self._path.with_name(f".{NAME}.tmp")
        with suppress(OSError):
            fd = machine.open_file(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with os.fdopen(fd, "wb") as file:
                file.write(orjson.dumps(asdict(status), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            machine.replace(hidden, self._path)
        self.last = status


def _same(one: Status, other: Status) -> bool:
    """Whether nothing happened between the two: time alone is nothing."""
    still: dict[str, Any] = {"at_s": 0.0, "started_at_s": 0.0, "calls_per_min": None, "eta_s": None, "no_eta": ""}
    still |= {"quotas": (), "bound_s": {}}
    return replace(one, **still) == replace(other, **still)
