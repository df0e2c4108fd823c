"""Which rows go to a batch, which are asked live, and when those that wait for a batch are opened again.

A row whose prompt is parked is closed; nothing of it stays in memory but the number of the batch that it waits for.
When that is in, the row is opened again: its flow runs from the start, what was answered is replayed, and it ends, or
is parked once more, with its next prompts. So map-reduce over batches goes round by round.
"""

from array import array
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Protocol

import anyio

from pipeline.errors import Parked
from pipeline.plan.lanes import SCOUTED_ROWS, SCOUTS
from pipeline.prompts import Prompt
from pipeline.records import LATER, Document
from pipeline.run.course import Course
from pipeline.run.feeds import Gate, read
from pipeline.targets import Route, Target

LOOK_S = 0.25
"""Between two looks whether there is something to open."""
SCOUTED_S = 900.0
"""The longest that batches wait for them: flex may take so long."""
_READING = 10
"""While batches are out, reading the table for rows that are opened again takes one part in so many of the time."""

_UNTOUCHED, _OPENED, _OPENED_LIVE, _OPENED_AGAIN, _READY, _LIVE, _FIRST = range(7)
"""What is known of a row; from `_FIRST` on it is the number of a batch that it waits for, and so much."""

Parts = tuple[float, ...]
Documents = Callable[[Callable[[int], bool], bool], Iterable[Iterable[Document]]]
"""The rows that are wanted, and whether in the order that uses both limits."""


Batchers = Callable[[Route], tuple[int | None, Sequence[Target]]]
"""The number of the job's rule that leads to a route, None where an answer does, and who of it has batches."""


class Desk(Protocol):
    """What the rounds ask of the batch desk."""

    def waits(self, prompt: Prompt, model: str) -> int | None:
        """The batch in which this content waits already, asked of that model."""
        ...

    async def add(self, prompt: Prompt, target: Target) -> int | None:
        """Put it into the batch that is being cut, whose number is returned; None: it has to be asked live."""
        ...

    def is_open(self, number: int) -> bool:
        """Whether the batch is out, or will be."""
        ...

    @property
    def has_late(self) -> bool:
        """Whether a batch that an earlier session called off is waited for."""
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
    def out(self) -> int:
        """Batches that are waited for, without what is being cut."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether nothing is out and nothing is being cut."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether all that is cut is with the service, or cannot be submitted now."""
        ...


class Rounds:
    """The rows of a run, of which some wait for batches; two feeds of the engine open them."""

    def __init__(
        self,
        rows: int,
        wanted: Callable[[int], bool],
        documents: Documents,
        desk: Desk,
        batchers: Batchers,
        course: Course,
        *,
        is_stopping: Callable[[], bool],
        waiting: Iterable[tuple[int, int]] = (),
        ahead: int = SCOUTS,
        leaves: bool = False,
        collects: bool = False,
    ) -> None:
        """`batchers` of a route are whom batches are for; `waiting` are rows and the batches that they wait
        for; of a new run so many rows go `ahead` of the others. With `leaves` all is over once nothing but batches is
        waited for; one that `collects` asks nothing, and opens what batches have answered.
        """
        self._rows, self._documents, self._desk, self._batchers = rows, documents, desk, batchers
        self._is_stopping, self._leaves, self._collects = is_stopping, leaves, collects
        self._wanted, self._course = wanted, course
        self._states = array("H", bytes(2 * rows))
        self._untouched = sum(map(wanted, range(rows)))
        self._ready = self._live = self._waiting = 0
        for row, number in waiting:
            if row < rows and self._states[row] == _UNTOUCHED and wanted(row):
                self._states[row] = _FIRST + number
                self._waiting += 1
        self._untouched -= self._waiting
        if collects:
            for row in range(rows):
                if self._states[row] == _UNTOUCHED:
                    self._become(row, _OPENED)
            self._untouched = 0
        rules = len(course.shares)
        self._parts = self._below = (0.0,) * rules  # by rule: rows of a smaller part go to batches; those below did
        self._passed: dict[bool, Parts | None] = {False: None, True: None}  # the parts at which each feed read it all
        self._is_fresh = False  # whether all has been added that is to be added at once
        self.batched, self.live = RoundsFeed(self, is_live=False), RoundsFeed(self, is_live=True)
        self.feeds = [self.batched] if collects else [self.batched, self.live]
        self.steered()
        self._scouts = self._scouting(ahead)
        self.scouted = anyio.Event()
        if not self._scouts:
            self.scouted.set()

    # --- what a call asks --------------------------------------------------------------------------------------------

    async def parks(self, prompt: Prompt, route: Route) -> None:
        """Raise `Parked` where the prompt is left to a batch; else it is asked live."""
        number, targets = self._batchers(route)
        if self._collects:
            raise Parked
        if not targets:
            return
        for model in route.models:
            if (out := self._desk.waits(prompt, model)) is not None:
                raise Parked(out)
        target = self._target(prompt, number, targets)
        if target is not None and (out := await self._desk.add(prompt, target)) is not None:
            raise Parked(out)

    def _target(self, prompt: Prompt, rule: int | None, targets: Sequence[Target]) -> Target | None:
        """Whose batch this prompt goes to: of a row that goes to one, where a later round has time for it."""
        row = prompt.row
        if prompt.params.continuation or self._states[row] == _OPENED_LIVE:
            return None
        if prompt.step in LATER and not self._course.has_room(anyio.current_time()):
            return None
        if rule is None or rule >= len(self._parts):
            return targets[0]
        if self._states[row] != _OPENED_AGAIN and _part_of(row) >= max(self._parts[rule], self._below[rule]):
            return None
        shares = self._course.parts_of(rule, [target.name for target in targets])
        at = _other_part_of(row) * sum(shares)
        for target, share in zip(targets, shares, strict=True):
            at -= share
            if at < 0.0:
                return target
        return targets[0]

    # --- what becomes of rows ----------------------------------------------------------------------------------------

    def parked(self, row: int, number: int) -> None:
        """The row was closed, and waits for that batch."""
        if not self._collects:
            self._become(row, _FIRST + number if self._desk.is_open(number) else _READY)

    def taken(self, number: int, live: Iterable[int]) -> None:
        """That batch is out no more: who waited for it is opened again, those that are asked `live` among the others.

        A batch of 20,000 lines takes 15 ms among 1 million rows.
        """
        asked, states, row = set(live), self._states, -1
        with suppress(ValueError):  # no more of them
            while True:
                row = states.index(_FIRST + number, row + 1)
                self._become(row, (_OPENED if self._collects else _LIVE) if row in asked else _READY)

    def steered(self) -> None:
        """The course has changed: a share of the rows that are not opened yet goes to batches from now on."""
        opened = self._ready + self._live + self.batched.gate.open + self.live.gate.open
        self.fallen = opened / (opened + self._untouched) if opened else 0.0
        left = 1.0 - self.fallen
        shares = [min(1.0, sum(rule.values()) / left) if self._untouched else 0.0 for rule in self._course.shares]
        self._parts = tuple(below + (1.0 - below) * share for below, share in zip(self._below, shares, strict=True))
        self._part = max(self._parts, default=0.0)

    @property
    def is_scouted(self) -> bool:
        """Whether those that go ahead have come to something, or took too long."""
        return self.scouted.is_set()

    @property
    def waiting(self) -> int:
        """Rows that wait for a batch."""
        return self._waiting

    @property
    def ahead(self) -> int:
        """So many rows are asked before all others."""
        return len(self._scouts)

    # --- what the feeds ask ------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing will be opened any more."""
        if self._is_stopping():
            return True
        if self._untouched or self._ready or self._live or self.batched.gate.open or self.live.gate.open:
            return False
        if self._waiting or self._collects or self._desk.has_late:
            return (self._leaves and self._desk.is_settled) or (not self._waiting and self._desk.is_idle)
        return self._desk.is_idle or self._desk.is_settled  # what else is out, other rows wait for

    def has_any(self, is_live: bool) -> bool:
        """Whether one of the two feeds has rows to open."""
        if is_live and not self.is_scouted:
            return any(self._states[row] == _UNTOUCHED for row in self._scouts)
        has_part = self._part < 1.0 if is_live else self._part > 0.0
        if self._untouched and has_part and self._passed[is_live] != self._parts:
            return True
        return bool(self._live if is_live else self._ready)

    def documents(self, is_live: bool) -> Iterable[Iterable[Document]]:
        """The rows that one of the feeds is to open: of the live one the scouts before all others."""
        if is_live and not self.is_scouted:
            return self._documents(self._scouts.__contains__, False)
        return self._documents(lambda row: self.is_due(row, is_live), is_live)

    def is_due(self, row: int, is_live: bool) -> bool:
        """Whether one of the two feeds is to open this row."""
        state = self._states[row]
        if state == _UNTOUCHED:
            return (_part_of(row) >= self._part) is is_live and self._wanted(row)
        return state == (_LIVE if is_live else _READY)

    def opens(self, row: int, is_live: bool) -> bool:
        """Whether one of the two feeds opens it now: both may have read it."""
        if not (self.is_due(row, is_live) if self.is_scouted else row in self._scouts):
            return False
        again = _OPENED_AGAIN if self._states[row] == _READY else _OPENED
        self._become(row, _OPENED_LIVE if is_live else again)
        return True

    @property
    def has_out(self) -> bool:
        """Whether a batch is out: its rows may be opened in the same pass as those that are ready."""
        return self._desk.out > 0

    @property
    def parts(self) -> Parts:
        """Of the rows of each rule, by their numbers, this part goes to batches."""
        return self._parts

    def passed(self, is_live: bool, parts: Parts) -> None:
        """One of the two feeds has read the whole table for what it had to open at those parts."""
        if not is_live and self._passed[False] != parts:
            self._is_fresh = True
            self._below = tuple(map(max, self._below, parts))
        self._passed[is_live] = parts

    def rest(self) -> None:
        """Nothing is left to add for now: cut what nothing else will fill, or what must not wait for more."""
        if self.batched.gate.open:
            return
        if self._is_fresh or not self._desk.out or not self._course.has_room(anyio.current_time()):
            self._is_fresh = False
            self._desk.flush()

    # --- the work beside the documents -------------------------------------------------------------------------------

    async def run(self) -> None:
        """That of the batch desk."""
        await self._desk.run()

    def close(self) -> None:
        """Nothing more goes to a batch."""
        self._desk.close()

    def _scouting(self, ahead: int) -> frozenset[int]:
        """The rows that go ahead, spread over the table: of a run that has no answers yet, and enough rows."""
        rows = self._rows
        if not self._part or not 0 < ahead < self._untouched == rows >= SCOUTED_ROWS:
            return frozenset()
        return frozenset(range(rows // (2 * ahead), rows, rows // ahead)[:ahead])

    def _become(self, row: int, state: int) -> None:
        before, self._states[row] = self._states[row], state
        self._untouched -= (before == _UNTOUCHED) - (state == _UNTOUCHED)
        self._ready -= (before == _READY) - (state == _READY)
        self._live -= (before == _LIVE) - (state == _LIVE)
        self._waiting -= (before >= _FIRST) - (state >= _FIRST)


def _part_of(row: int) -> float:
    """A number from 0 to 1 by which rows are divided, so that each stretch of them is like the whole."""
    return ((row + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) / 2**64


def _other_part_of(row: int) -> float:
    """Another such number, which says nothing of the first."""
    return ((row + 1) * 0x6A09E667F3BCC909 & 0xFFFFFFFFFFFFFFFF) / 2**64


class RoundsFeed:
    """The rows that go one of the two ways, as long as any may come."""

    def __init__(self, rounds: Rounds, *, is_live: bool) -> None:
        self.gate = Gate()
        self._rounds, self._is_live = rounds, is_live
        self._read_s = 0.0  # of the last pass, what the table took: not what its rows did

    async def batches(self) -> AsyncGenerator[list[Document]]:
        """Them, pass by pass over the table."""
        rounds, is_live = self._rounds, self._is_live
        read_at = 0.0
        if is_live and not rounds.is_scouted:
            async for batch in self._pass():
                yield batch
            with anyio.move_on_after(SCOUTED_S):
                await self.gate.emptied()
            rounds.scouted.set()
        while not rounds.is_over:
            may_read = anyio.current_time() >= read_at or not rounds.has_out
            if rounds.is_scouted and rounds.has_any(is_live) and may_read:
                async for batch in self._pass():
                    yield batch
                read_at = anyio.current_time() + (_READING - 1) * self._read_s
                continue
            if not is_live:
                rounds.rest()
            await anyio.sleep(LOOK_S)

    async def _pass(self) -> AsyncGenerator[list[Document]]:
        rounds, parts, is_scouted = self._rounds, self._rounds.parts, self._rounds.is_scouted
        self._read_s, asked_at = 0.0, anyio.current_time()
        async with aclosing(read(rounds.documents(self._is_live))) as batches:
            async for batch in batches:
                self._read_s += anyio.current_time() - asked_at
                due = [document for document in batch if rounds.opens(document.row, self._is_live)]
                if due:
                    yield due
                if not rounds.has_any(self._is_live):
                    break
                asked_at = anyio.current_time()
        if is_scouted:
            rounds.passed(self._is_live, parts)
