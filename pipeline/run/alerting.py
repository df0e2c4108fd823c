"""Of what a person should hear while a run goes on: once when a threshold is passed, once when that is over."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from pipeline.budget.caps import Cap
from pipeline.events import Alert, Notify
from pipeline.run.engine import Monitor
from pipeline.run.status import Status
from pipeline.run.webhook import Posts
from pipeline.sections import Alerts

_ROWS = 1_000  # the last, of which shares are told
_FEWEST_ROWS = 5  # that end so before it is told: two of the first twenty are no alert
_FEWEST_CALLS = 20
_SLOW, _SLOW_AGAIN = 0.5, 0.25  # part of the last calls that took too long: from here on, until so few do
_FALLEN = 0.5  # of a threshold: what moves around it would begin and end all the time
_CAUSES = 3  # that are named
_ASLEEP_S = 60.0  # without a look: the machine was suspended, and no service was silent

Verdict = Literal["above", "below", ""]
"""Of one look: the threshold is passed, or what had passed it has fallen back; empty: neither, or nobody knows yet."""


class Found(NamedTuple):
    """What one look found of one thing; `message` says how it stands now."""

    name: str
    verdict: Verdict
    message: str


class Watcher:
    """Keeps which thresholds are passed: each is told when an episode begins and when it ends, however long it is."""

    def __init__(self, limits: Alerts, passed: Mapping[str, str]) -> None:
        """`passed` are those that the last session ended with: they are told again only after they have fallen back."""
        self._limits = limits
        self._rows = _Rows()
        self._calls, self._answered_at, self._looked_at = -1, 0.0, 0.0
        self.passed = dict(passed)

    def look(self, status: Status, caps: Iterable[Cap], latencies: Sequence[float]) -> list[Alert]:
        """What is to be told now; `latencies` are those of the last calls."""
        told = []
        for name, verdict, message in self._found(status, caps, latencies):
            if verdict == "above":
                if name not in self.passed:
                    told.append(Alert(message, name))
                self.passed[name] = message
            elif verdict == "below" and name in self.passed:
                del self.passed[name]
                told.append(Alert(f"over, {message}", name, over=True))
        return told

    def _found(self, status: Status, caps: Iterable[Cap], latencies: Sequence[float]) -> Iterable[Found]:
        limits = self._limits
        self._rows.look(status)
        if limits.error_percent is not False:
            yield self._rows.found("errors", limits.error_percent, "failed")
        if limits.truncated_percent is not False:
            yield self._rows.found("truncated", limits.truncated_percent, "were cut")
        if limits.budget_percent is not False:
            for cap in caps:
                share = float(cap.spent_usd / cap.usd)
                verdict = _verdict(100 * share, limits.budget_percent, or_at=True)
                yield Found(
                    cap.name.removeprefix("the ").replace("'s ", "_"),
                    verdict,
                    f"{share:.0%} of {cap.name} of ${cap.amount} is spent",
                )
        if limits.day_quota_percent is not False:
            for quota in status.quotas:
                if quota.rpd and quota.rpd.limit:
                    share = quota.rpd.used / quota.rpd.limit
                    whose = quota.target if len(status.quotas) > 1 else ""
                    message = (
                        f"{share:.0%} of the day's {quota.rpd.limit:,} requests{whose and f' of {whose}'} are used"
                    )
                    verdict = _verdict(100 * share, limits.day_quota_percent, or_at=True)
                    yield Found(f"day_quota:{whose}" if whose else "day_quota", verdict, message)
        if limits.latency_s is not False and len(latencies) >= _FEWEST_CALLS:
            median = sorted(latencies)[len(latencies) // 2]
            slow = sum(each > limits.latency_s for each in latencies) / len(latencies)
            verdict = "above" if slow > _SLOW else "below" if slow <= _SLOW_AGAIN else ""
            yield Found("latency", verdict, f"half of the last {len(latencies)} calls took {median:.3g} s or longer")
        if limits.stalled_min is not False:
            yield self._stalled(status, limits.stalled_min)

    def _stalled(self, status: Status, most_min: float) -> Found:
        is_idle = not (status.in_flight or status.waiting)
        now, waits = status.at_s, status.waits_for in ("day_quota", "batches") or is_idle
        was_answered = status.calls != self._calls
        if was_answered or waits or now - self._looked_at > _ASLEEP_S:
            self._calls, self._answered_at = status.calls, now
        self._looked_at = now
        silent_s = now - self._answered_at
        if silent_s >= 60.0 * most_min:
            why = {"outage": ": the service is down, or refuses everything"}.get(status.waits_for, "")
            return Found("stalled", "above", f"no call was answered for {silent_s / 60:.0f} min{why}")
        return Found("stalled", "below" if was_answered and not waits else "", "calls are answered again")


class _Mark(NamedTuple):
    """Rows with an outcome at one look, and those that are not ok by status and by cause."""

    rows: int
    failed: int
    truncated: int
    causes: Counter[str]


class _Rows:
    """Shares of the last rows, by marks of how many there were at each look."""

    def __init__(self) -> None:
        self._marks: deque[_Mark] = deque()

    def look(self, status: Status) -> None:
        """Make a mark of now; a row that was empty was never asked, and tells nothing."""
        outcomes, causes = status.outcomes, Counter(status.failures)
        empty = causes["empty_input"]
        failed = sum(outcomes.get(each, 0) for each in ("error", "blocked", "invalid")) - empty
        self._marks.append(_Mark(sum(outcomes.values()) - empty, failed, outcomes.get("truncated", 0), causes))
        while len(self._marks) > 2 and self._marks[1].rows <= self._marks[-1].rows - _ROWS:
            self._marks.popleft()

    def found(self, name: Literal["errors", "truncated"], most_percent: float, what: str) -> Found:
        """How many of them ended so, with their causes."""
        first, now = self._marks[0], self._marks[-1]
        rows = now.rows - first.rows
        number = now.failed - first.failed if name == "errors" else now.truncated - first.truncated
        if not rows:
            return Found(name, "", "")
        percent = 100 * number / rows
        causes = now.causes - first.causes if name == "errors" else Counter()
        for other in ("truncated", "empty_input"):
            causes.pop(other, None)
        most = ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common(_CAUSES))
        verdict = _verdict(percent, most_percent)
        if name == "truncated" and verdict == "above":  # of an episode that is over nobody needs it
            most = "`--retry truncated` redoes them"
        message = f"{percent:.1f}% of the last {rows:,} rows {what}{f': {most}' if most else ''}"
        is_enough = number >= _FEWEST_ROWS if verdict == "above" else rows >= _FEWEST_CALLS
        return Found(name, verdict if is_enough else "", message)


def _verdict(value: float, most: float, *, or_at: bool = False) -> Verdict:
    if value > most or (or_at and value >= most):
        return "above"
    return "below" if value <= most * _FALLEN else ""


class Alerting:
    """Looks with each `Status`, tells what is to be told, and has it posted."""

    def __init__(
        self,
        limits: Alerts,
        monitor: Monitor,
        before: Status | None,
        heard: Notify,
        posts: Posts | None,
    ) -> None:
        """`before` is how the last session ended; `heard` is told what a person should hear."""
        self._watcher = Watcher(limits, before.alerts if before else {})
        self._monitor, self._heard, self._posts = monitor, heard, posts
        self._is_paused = False

    def look(self, status: Status) -> None:
        """Tell what has changed."""
        caps = list(self._monitor.spending.caps()) if self._monitor.spending else []
        for alert in self._watcher.look(status, caps, self._monitor.latencies):
            self._heard(alert)
            if self._posts and not alert.over:
                self._posts.alert(alert.name, alert.message, status)
        self._monitor.alerts = dict(self._watcher.passed)
        sleeps = status.waits_for == "day_quota"
        if self._posts and sleeps and not self._is_paused:
            self._posts.paused(status)
        self._is_paused = sleeps
