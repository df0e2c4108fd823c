"""What the emulator saw: counters, in bounded memory."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.emulator.faults import Bill
from pipeline.emulator.oddities import Billed

_OPEN = 100_000  # prompts that were tried and not answered yet; the oldest is forgotten


class Seen(NamedTuple):
    """One request that reached the quotas; `status` is 0 when the connection was broken instead."""

    at: float  # server's clock, seconds since the epoch
    model: str
    status: int
    input_tokens: int
    prompt: int  # hash of what was asked
    fault: str | None


@dataclass(slots=True)
class Stats:
    """Counters over all `generateContent` requests, and some beside.

    `answered` counts the answers that were delivered, blocked and truncated ones too: what a client has paid for and
    holds. A prompt past the first `track_prompts` distinct ones is counted in the sums only. `billed` counts every
    answer that was made, those included that the client could not read or never got.
    """

    track_prompts: int
    log: deque[Seen]
    requests: int = 0
    answered: int = 0
    rate_limited: int = 0
    shed: int = 0  # turned away in flex
    count_tokens: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    input_tokens: int = 0  # of the answered requests
    output_tokens: int = 0
    by_status: Counter[int] = field(default_factory=Counter)  # every route
    faults: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)  # uploads begun, bytes taken, files stored and deleted
    billed: dict[tuple[Bill, str], Counter[str]] = field(default_factory=dict)  # bill and model → requests and tokens
    caches: Counter[str] = field(default_factory=Counter)  # created, updated, deleted
    batches: Counter[str] = field(default_factory=Counter)  # created, cancelled, deleted
    batch_calls: Counter[str] = field(default_factory=Counter)  # creates, gets, lists, …, and uploads
    busiest_minute: Counter[str] = field(default_factory=Counter)  # of the same, the most in one minute
    batch_faults: Counter[str] = field(default_factory=Counter)
    lines_billed: int = 0
    lines: dict[str, int] = field(default_factory=dict)  # key of a line → how often it was billed and handed out
    prompts: dict[int, int] = field(default_factory=dict)  # hash of a prompt → answers
    _minute: tuple[int, Counter[str]] = field(default_factory=lambda: (0, Counter()))
    _open: dict[int, int] = field(default_factory=dict)  # hash of a prompt → attempts since its last answer

    def attempts(self, prompt: int) -> int:
        """How often that prompt was answered, and tried since: what makes the next attempt another one."""
        return self.prompts.get(prompt, 0) + self._open.get(prompt, 0)

    def add_attempt(self, prompt: int) -> None:
        """Count one request that was admitted."""
        self._open[prompt] = self._open.get(prompt, 0) + 1
        if len(self._open) > _OPEN:
            del self._open[next(iter(self._open))]

    def add_answer(self, prompt: int, input_tokens: int, output_tokens: int) -> None:
        """Count one delivered answer."""
        self.answered += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self._open.pop(prompt, None)
        if prompt in self.prompts or len(self.prompts) < self.track_prompts:
            self.prompts[prompt] = self.prompts.get(prompt, 0) + 1

    def add_bill(self, billed: Billed, bill: Bill) -> None:
        """Count what the server bills for one answer, and whether the client can read it."""
        sums = self.billed.setdefault((bill, billed.model), Counter())
        sums["requests"] += 1
        sums["input_tokens"] += billed.input_tokens
        sums["cached_tokens"] += billed.cached_tokens
        sums["output_tokens"] += billed.output_tokens
        sums["thinking_tokens"] += billed.thinking_tokens

    def add_line(self, key: str) -> None:
        """Count one line of a batch that was answered, billed and is handed out."""
        self.lines_billed += 1
        if key in self.lines or len(self.lines) < self.track_prompts:
            self.lines[key] = self.lines.get(key, 0) + 1

    def add_batch_call(self, verb: str, now: float) -> None:
        """Count one request for batches, or for their files."""
        self.batch_calls[verb] += 1
        if self._minute[0] != int(now // 60):
            self._minute = int(now // 60), Counter()
        self._minute[1][verb] += 1
        self.busiest_minute[verb] = max(self.busiest_minute[verb], self._minute[1][verb])

    def body(self, with_prompts: bool = False, with_log: bool = False) -> dict[str, Any]:
        """The counters for `GET /emulator/stats`; `with_prompts` adds each prompt's answers by hash."""
        answers = self.prompts.values()
        body: dict[str, Any] = {
            "requests": self.requests,
            "answered": self.answered,
            "rate_limited": self.rate_limited,
            "shed": self.shed,
            "count_tokens": self.count_tokens,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "by_status": {str(status): n for status, n in sorted(self.by_status.items())},
            "faults": dict(self.faults),
            "files": dict(self.files),
            "billed": [{"bill": bill, "model": model, **sums} for (bill, model), sums in self.billed.items()],
            "billed_unread": sum(sums["requests"] for (bill, _), sums in self.billed.items() if bill != "yes"),
            "caches": dict(self.caches),
            "batches": {
                **self.batches,
                "calls": dict(self.batch_calls),
                "busiest_minute": dict(self.busiest_minute),
                "faults": dict(self.batch_faults),
                "lines_billed": self.lines_billed,
                "lines_billed_twice": sum(n > 1 for n in self.lines.values()),
            },
            "distinct_prompts": len(self.prompts),
            "bought_twice": sum(n > 1 for n in answers),
        }
        if with_prompts:
            body["prompts"] = {f"{prompt:016x}": n for prompt, n in self.prompts.items()}
            body["lines"] = self.lines
        if with_log:
            body["log"] = [seen._asdict() | {"prompt": f"{seen.prompt:016x}"} for seen in self.log]
        return body
