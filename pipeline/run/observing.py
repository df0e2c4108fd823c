"""Who is told of every request and every batch that is over: one protocol for run.log, metrics and spans."""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

from pipeline.dispatch.desk import Send, Tries
from pipeline.dispatch.flex import is_shed
from pipeline.events import Notify, RequestFailed
from pipeline.prompts import Prompt
from pipeline.records import Failure, Reply, Usage
from pipeline.store.batch_states import BatchState
from pipeline.targets import Target

EACH = 10
"""Failed requests between two signs of life that have a line of their own in run.log; the others share lines."""


class Observer(Protocol):
    """Is told of requests as they end. It is asked in the event loop: it is quick, and raises nothing."""

    def answered(self, prompt: Prompt, reply: Reply) -> None:
        """An answer was paid for, live or in a batch."""
        ...

    def failed(self, prompt: Prompt, target: Target, failure: Failure, attempt: int, seconds: float) -> None:
        """A request came back without an answer, so many seconds after it had left."""
        ...

    def taken(self, batch: BatchState, usage: Usage) -> None:
        """What a batch came to is kept; `usage` is that of all of its lines, each of which was told if answered."""
        ...


Failed = Callable[[Prompt, Target, Failure, int, float], None]


def told(send: Send, failed: Failed) -> Send:
    """Tell of what comes back without an answer; whoever pays tells of answers."""

    async def sent(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        began = time.monotonic()
        outcome = await send(prompt, target, tries)
        if isinstance(outcome, Failure) and outcome.kind != "lost":
            failed(prompt, target, outcome, tries.failed + tries.refused + 1, time.monotonic() - began)
        return outcome

    return sent


class _Kind(NamedTuple):
    target: str
    lane: str
    cause: str
    http_status: int | None
    shed: bool


class FailureLog:
    """Notes failed requests in run.log: the first `EACH` since the last sign of life one by one, the others summed.

    So the log grows with time and not with calls, whatever a service does.
    """

    def __init__(self, log: Notify) -> None:
        self._log = log
        self._noted = 0
        self._others = Counter[_Kind]()

    def answered(self, prompt: Prompt, reply: Reply) -> None:
        """The parts of the run have it."""

    def failed(self, prompt: Prompt, target: Target, failure: Failure, attempt: int, seconds: float) -> None:
        """Note it, or count it."""
        shed = target.lane == "flex" and is_shed(failure)
        if self._noted < EACH:
            self._noted += 1
            told = (1, failure.error_kind, failure.http_status, target.lane)
            self._log(RequestFailed(*told, attempt, round(seconds, 3), prompt.row, target=target.name, shed=shed))
        else:
            self._others[_Kind(target.name, target.lane, failure.error_kind, failure.http_status, shed)] += 1

    def taken(self, batch: BatchState, usage: Usage) -> None:
        """The events of the run's batches have it."""

    def beat(self) -> None:
        """Note what was only counted so far."""
        for kind, count in self._others.items():
            told = (count, kind.cause, kind.http_status, kind.lane)
            self._log(RequestFailed(*told, target=kind.target, shed=kind.shed))
        self._noted = 0
        self._others.clear()
