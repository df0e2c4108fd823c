"""Which rows go to a batch, which are asked live, and when those that wait for a batch are opened again.

A row whose prompt is parked is closed; nothing of it stays in memory but the number of the batch that it waits for.
When that is in, the row is opened again: its flow runs from the start, what was answered is replayed, and it ends, or
is parked once more, with its next prompts. So map-reduce over batches goes round by round.
"""

from array import array
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from math import inf
from typing import Protocol

import anyio

from pipeline.errors import Parked
from pipeline.prompts import Prompt
from pipeline.records import LATER, Document
from pipeline.run.feeds import Gate, read
from pipeline.targets import Route, Target

LOOK_S = 0.25
"""Between two looks whether there is something to open."""
SCOUTS, SCOUTED_ROWS = 5, 100
"""Rows that are asked live before a first batch of more rows than so many: a job that is wrong costs cents, at once."""
_READING = 10
"""Passes over the table for rows that are opened again take one part in so many of the time."""

_UNTOUCHED, _OPENED, _READY, _LIVE, _FIRST = range(5)
"""What is known of a row; from `_FIRST` on it is the number of a batch that it waits for, and so much."""

Documents = Callable[[Callable[[int], bool], bool], Iterable[Iterable[Document]]]
"""The rows that are wanted, and whether in the order that uses both limits."""


class Desk(Protocol):
    """What the rounds ask of the batch desk."""

    def waits(self, prompt: Prompt, target: Target) -> int | None:
        """The batch in which this content waits already."""
        ...

    async def add(self, prompt: Prompt, target: Target) -> int | None:
        """Put it into the batch that is being cut, whose number is returned; None: it has to be asked live."""
        ...

    def is_open(self, number: int) -> bool:
        """Whether the batch is out, or will be."""
        ...

    def flush(self) -> None:
        """Cut what there is."""
        ...

    async def run(self) -> None:
        """The work itself; returns after `close`."""
        ...

    def close(self) -> None:
        """Cut and submit nothing more: what is with the service stays there."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether nothing is out and nothing is being cut."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether all that is cut is with the service, or cannot be submitted now."""
        ...


@dataclass(slots=True)
class Course:
    """What the planner says, and says anew as the run goes on; times by the loop's clock."""

    share: float = 1.0  # of the rows that are not opened yet, so many go to batches
    last_call: float = inf  # what no batch has answered by then is asked live
    round_s: float = 0.0  # in which a batch is back, nine times out of ten

    def has_room(self, now: float) -> bool:
        """Whether two rounds more are over before the last call."""
        return now + 2 * self.round_s <= self.last_call


class Rounds:
    """The rows of a run, of which some wait for batches; two feeds of the engine open them."""

    def __init__(
        self,
        rows: int,
        wanted: Callable[[int], bool],
        documents: Documents,
        desk: Desk,
        target_of: Callable[[Route], Target | None],
        course: Course,
        *,
        waiting: Iterable[tuple[int, int]] = (),
        leaves: bool = False,
        is_stopping: Callable[[], bool],
    ) -> None:
        """`target_of` a route is whom batches are for, if anybody; `waiting` are rows and the batches that they wait
        for. With `leaves` all is over once nothing but batches is waited for.
        """
        self._rows, self._documents, self._desk, self._target_of = rows, documents, desk, target_of
        self._leaves, self._is_stopping = leaves, is_stopping
        self.course = course
        self._states = array("H", bytes(2 * rows))
        self._untouched = sum(map(wanted, range(rows)))
        self._wanted = wanted
        self._ready = self._live = self._waiting = 0
        for row, number in waiting:
            if row < rows and wanted(row) and self._states[row] == _UNTOUCHED:
                self._become(row, _FIRST + number)
        self._passed: dict[bool, float | None] = {False: None, True: None}  # the share with which each read it all
        self._scouts = self._scouting()
        self.is_scouted = not self._scouts
        self.batched = RoundsFeed(self, is_live=False)
        self.live = RoundsFeed(self, is_live=True)

    async def parks(self, prompt: Prompt, route: Route) -> None:
        """Raise `Parked` where the prompt is left to a batch; else it is asked live."""
        target = self._target_of(route)
        if target is None:
            return
        if (number := self._desk.waits(prompt, target)) is not None:
            raise Parked(number)
        if not self._goes(prompt):
            return
        if (number := await self._desk.add(prompt, target)) is not None:
            raise Parked(number)

    def parked(self, row: int, number: int) -> None:
        """The row was closed, and waits for that batch."""
        self._become(row, _FIRST + number if self._desk.is_open(number) else _READY)

    def taken(self, number: int, live: Iterable[int]) -> None:
        """That batch is out no more: who waited for it is opened again, those that are asked `live` among the others.

        1 million rows take 40 ms.
        """
        asked = set(live)
        for row, state in enumerate(self._states):
            if state == _FIRST + number:
                self._become(row, _LIVE if row in asked else _READY)

    async def run(self) -> None:
        """The work of the batch desk, beside the documents."""
        await self._desk.run()

    def close(self) -> None:
        """Nothing more goes to a batch."""
        self._desk.close()

    @property
    def ahead(self) -> int:
        """So many rows are asked before all others."""
        return len(self._scouts)

    @property
    def waiting(self) -> int:
        """Rows that wait for a batch."""
        return self._waiting

    @property
    def is_over(self) -> bool:
        """Whether nothing will be opened any more."""
        if self._is_stopping():
            return True
        if self._untouched or self._ready or self._live or not (self.batched.gate.is_empty and self.live.gate.is_empty):
            return False
        return (self._leaves and self._desk.is_settled) or (not self._waiting and self._desk.is_idle)

    def is_due(self, row: int, is_live: bool) -> bool:
        """Whether one of the two feeds is to open this row."""
        state = self._states[row]
        if state == _UNTOUCHED:
            return self._is_live(row) is is_live and self._wanted(row)
        return state == (_LIVE if is_live else _READY)

    def opens(self, row: int, is_live: bool) -> bool:
        """Whether one of the two feeds opens it now: both may have read it."""
        if not (self.is_due(row, is_live) if self.is_scouted else row in self._scouts):
            return False
        self._become(row, _OPENED)
        return True

    def has_any(self, is_live: bool) -> bool:
        """Whether one of the two feeds has rows to open."""
        if self._untouched and self._passed[is_live] != self.course.share:
            return True
        return bool(self._live if is_live else self._ready)

    def passed(self, is_live: bool, share: float) -> None:
        """One of the two feeds has read the whole table for what it had to open at that share."""
        self._passed[is_live] = share

    def documents(self, is_live: bool) -> Iterable[Iterable[Document]]:
        """The rows that one of the feeds is to open: of the live one the scouts before all others."""
        if is_live and not self.is_scouted:
            return self._documents(self._scouts.__contains__, False)
        return self._documents(lambda row: self.is_due(row, is_live), is_live)

    def rest(self) -> None:
        """Nothing is left to open for now: what is being cut is full enough, where nothing else will fill it."""
        if self._untouched or self._ready or not self.batched.gate.is_empty:
            return
        self._desk.flush()

    def _scouting(self) -> frozenset[int]:
        """The rows that go ahead, spread over the table; none where some were answered before."""
        if self.course.share <= 0.0 or self._untouched < max(SCOUTED_ROWS, self._rows):
            return frozenset()
        return frozenset(range(self._rows // (2 * SCOUTS), self._rows, self._rows // SCOUTS)[:SCOUTS])

    def _goes(self, prompt: Prompt) -> bool:
        """Whether this prompt goes to a batch: of a row that does, where a later round has time for it."""
        if prompt.params.continuation or self._is_live(prompt.row):
            return False
        return prompt.step not in LATER or self.course.has_room(anyio.current_time())

    def _is_live(self, row: int) -> bool:
        """Whether a row is asked live: by its number, so that each stretch is like the whole."""
        return row in self._scouts or (row * 0x9E3779B1 & 0xFFFFFFFF) / 2**32 >= self.course.share

    def _become(self, row: int, state: int) -> None:
        before, self._states[row] = self._states[row], state
        self._untouched -= (before == _UNTOUCHED) - (state == _UNTOUCHED)
        self._ready -= (before == _READY) - (state == _READY)
        self._live -= (before == _LIVE) - (state == _LIVE)
        self._waiting -= (before >= _FIRST) - (state >= _FIRST)


class RoundsFeed:
    """The rows that go one of the two ways, as long as any may come."""

    def __init__(self, rounds: Rounds, *, is_live: bool) -> None:
        self.gate = Gate()
        self._rounds, self._is_live = rounds, is_live

    async def batches(self) -> AsyncGenerator[list[Document]]:
        """Them, pass by pass over the table."""
        rounds, is_live = self._rounds, self._is_live
        read_at = 0.0
        if is_live and not rounds.is_scouted:
            async for batch in self._pass():
                yield batch
            await self.gate.emptied()
            rounds.is_scouted = True
        while not rounds.is_over:
            now = anyio.current_time()
            if rounds.is_scouted and rounds.has_any(is_live) and now >= read_at:
                async for batch in self._pass():
                    yield batch
                ended = anyio.current_time()
                read_at = ended + (_READING - 1) * (ended - now)
                continue
            if not is_live:
                rounds.rest()
            await anyio.sleep(LOOK_S)

    async def _pass(self) -> AsyncGenerator[list[Document]]:
        rounds, share, scouted = self._rounds, self._rounds.course.share, self._rounds.is_scouted
        async with aclosing(read(rounds.documents(self._is_live))) as batches:
            async for batch in batches:
                due = [document for document in batch if rounds.opens(document.row, self._is_live)]
                if due:
                    yield due
                if not rounds.has_any(self._is_live):
                    return
        if scouted:
            rounds.passed(self._is_live, share)
