"""All batches of the service, whatever their protocol: what was accepted, how each stands, and its results."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from math import inf
from typing import Any

import anyio.lowlevel

from pipeline.emulator.batch_faults import OF_BATCHES, Draw
from pipeline.emulator.batch_lines import Making
from pipeline.emulator.batches import ENDED, Course, Fate, State, course_of, fate_of, turn_of
from pipeline.emulator.kept import Kept
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.stats import Stats
from pipeline.models import Model

_MOST_MADE = 10_000  # lines that one request waits for
_TOGETHER = 100  # lines
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
_NAME_LETTERS = 36
_UNREAD = 10  # of so many lines the last is not read, where some are not


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a batch fails before it runs; nothing of it is billed."""

    code: str  # as OpenAI has it
    message: str


@dataclass(slots=True)
class Asked:
    """What a create asks for."""

    owner: str
    model: Model
    fields: dict[str, Any]  # as the protocol has told them, to be told again
    content: Kept | None  # None: there is no such file
    file: str = ""  # the name of it; empty: the lines came with the request
    tokens: int = 0  # that are enqueued
    failure: Failure | None = None  # what is wrong with it


@dataclass(slots=True)
class Batch:
    """One batch that was accepted."""

    number: int
    name: str  # 36 letters and digits
    asked: Asked
    created: float
    lines: int
    fate: Fate
    faults: Mapping[str, int]
    failure: Failure | None = None  # it fails when it would run
    cancelled: float | None = None
    deleted: float | None = None
    frees: bool = True  # its tokens, once it has ended
    making: Making | None = None
    is_handed_out: bool = False
    course: Course = field(default=Course(0, inf, "SUCCEEDED", 0))


Maker = Callable[[Batch, int, bool], Making]
"""Makes the results of a batch of so many lines; the last argument says that nobody will see them."""


class BatchQueue:
    """The batches of all keys; `clock` is the server's.

    What the protocol of a batch wants done is done by `maker` of it, and `hand_out` puts its results where it has them.
    It expires after `expires_s`. With `partial` one that expired or was cancelled hands out what was answered.
    """

    def __init__(
        self,
        options: EmulatorOptions,
        stats: Stats,
        clock: Callable[[], float],
        draw: Draw,
        maker: Maker,
        hand_out: Callable[[Batch, Making], None],
        *,
        expires_s: float,
        partial: bool = False,
    ) -> None:
        self._options, self._stats, self._clock, self._draw = options, stats, clock, draw
        self._maker, self._hand_out, self._partial = maker, hand_out, partial
        self._expires_s = expires_s
        self._batches: dict[str, Batch] = {}
        self._late: list[tuple[float, Asked, Callable[[], Kept | None]]] = []
        self._numbers = 0
        self._born = f"{options.seed}/{clock()}"

    # --- creating ---

    def has_room(self, asked: Asked) -> bool:
        """Whether no more is enqueued with it than the project may have for this model."""
        most, now = self._options.batch_tokens, self._clock()
        enqueued = sum(
            batch.asked.tokens
            for batch in self._batches.values()
            if (batch.asked.owner, batch.asked.model) == (asked.owner, asked.model)
            and (not batch.frees or batch.course.state(now) not in ENDED)
        )
        is_over = most is not None and enqueued + asked.tokens > most
        return self._draw.hit("create_429") is None and not is_over

    def accept(self, asked: Asked, at: float | None = None) -> Batch:
        """Make the batch; one without its file, or without lines, has failed, unpaid."""
        created = self._clock() if at is None else at
        self._numbers += 1
        number = self._numbers
        drawn = {kind: self._draw.hit(kind, number) for kind in OF_BATCHES}
        faults = {kind: value for kind, value in drawn.items() if value is not None}
        lines = 0 if asked.content is None else sum(1 for _ in asked.content.lines())
        failure = asked.failure or (None if lines else Failure("empty_file", "The input file is empty."))
        if asked.content is None:
            failure = _gone(asked.file)
        if "count_short" in faults:
            lines -= -(-lines // _UNREAD)
        batch = Batch(number, self._name(number), asked, created, lines, self._fate(number, faults), faults, failure)
        self._batches[batch.name] = batch
        self._stats.batches["created"] += 1
        self._follow(batch.asked.owner)
        return batch

    def accept_late(self, asked: Asked, delay_s: float, content: Callable[[], Kept | None]) -> None:
        """Make the batch so much later, of the `content` that there is then."""
        self._late.append((self._clock() + delay_s, asked, content))

    def settle(self) -> None:
        """Make the batches that were to come late, and are due."""
        now = self._clock()
        due = sorted((late for late in self._late if late[0] <= now), key=lambda late: late[0])
        self._late = [late for late in self._late if late[0] > now]
        for at, asked, content in due:
            asked.content = content()
            self.accept(asked, at)

    def _fate(self, number: int, faults: Mapping[str, int]) -> Fate:
        options = self._options
        fate = fate_of(options.seed, number, options.batch_pending_s, options.batch_run_s, options.batch_spread)
        if "batch_stuck" in faults:
            return Fate(inf, fate.run_s)
        if "batch_expired" in faults:
            return Fate(fate.pending_s, 2 * self._expires_s)  # half of its lines are answered when it expires
        return Fate(fate.pending_s, fate.run_s, "FAILED") if "batch_failed" in faults else fate

    def _name(self, number: int) -> str:
        drawn = int.from_bytes(blake2b(f"{self._born}/{number}".encode(), digest_size=32).digest(), "big")
        letters = []
        for _ in range(_NAME_LETTERS):
            drawn, letter = divmod(drawn, len(_LETTERS))
            letters.append(_LETTERS[letter])
        return "".join(letters)

    # --- looking ---

    def find(self, name: str, owner: str) -> Batch | None:
        """A batch of that name; None for one that is foreign, deleted or not there."""
        batch = self._batches.get(name)
        is_there = batch is not None and batch.asked.owner == owner and batch.deleted is None
        return batch if is_there else None

    def listed(self, owner: str, before: int | None, most: int) -> tuple[list[Batch], int | None]:
        """A page of a key's batches, the newest first, of those older than number `before`; what comes next."""
        now = self._clock()
        found = (
            batch
            for batch in reversed(self._batches.values())
            if batch.asked.owner == owner
            and batch.deleted is None
            and (before is None or batch.number < before)
            and now >= batch.created + batch.faults.get("list_lag", 0)
        )
        page = list(islice(found, most + 1))
        return page[:most], page[most - 1].number if len(page) > most else None

    async def brought_up(self, batches: Iterable[Batch], *, whole: bool = False) -> None:
        """Make the results of those that have ended; as many lines as one request waits for, or the `whole`."""
        now, most = self._clock(), None if whole else _MOST_MADE
        for batch in batches:
            answered = self._answered(batch, now)
            if batch.making is None and answered is not None:
                lost = batch.course.end != "SUCCEEDED" and not self._partial
                batch.making = self._maker(batch, answered, lost)
            if batch.making is None or batch.is_handed_out:
                continue
            made = await batch.making.go_on(most)
            most = None if most is None else max(0, most - made)
            if batch.making.is_done and not batch.is_handed_out:
                batch.is_handed_out = True
                if not batch.making.lost:
                    if "lines_shuffled" in batch.faults:
                        batch.making.shuffle(batch.number)
                    self._hand_out(batch, batch.making)
                batch.asked.content, batch.making.lines = None, iter(())  # its bytes are needed no more

    def shown(self, batch: Batch, now: float) -> State:
        """How a batch stands; one that has ended, and whose results are not there yet, is still running."""
        state = batch.course.state(now)
        has_results = state == "SUCCEEDED" or (self._partial and state in ("EXPIRED", "CANCELLED"))
        return "RUNNING" if has_results and not batch.is_handed_out else state

    async def states(self) -> Counter[str]:
        """How many batches stand how; what is billed by now is billed first."""
        self.settle()
        await self.brought_up(list(self._batches.values()), whole=True)
        now = self._clock()
        return Counter(batch.course.state(now) for batch in self._batches.values())

    def _answered(self, batch: Batch, now: float) -> int | None:
        """How many of its lines are answered and billed, once it has ended; None: it comes to nothing."""
        end = batch.course.state(now)
        if end == "SUCCEEDED":
            return batch.lines
        is_paid = self._partial or (end == "CANCELLED" and "cancel_billed" in batch.faults)
        return int(batch.lines * batch.course.share()) if is_paid and end in ("EXPIRED", "CANCELLED") else None

    # --- changing ---

    @property
    def time_scale(self) -> float:
        """Seconds of a batch that go by in one."""
        return self._options.time_scale

    def cancel(self, batch: Batch) -> None:
        """End a batch, unless it has ended or takes no notice."""
        self._stats.batches["cancelled"] += 1
        self._end(batch)

    def delete(self, batch: Batch) -> None:
        """Forget a batch, which ends by it."""
        self._stats.batches["deleted"] += 1
        self._end(batch)
        batch.deleted = self._clock()

    def _end(self, batch: Batch) -> None:
        now = self._clock()
        if batch.course.state(now) in ENDED or "cancel_ignored" in batch.faults:
            return
        batch.cancelled = now
        batch.frees = "cancel_counted" not in batch.faults
        self._follow(batch.asked.owner)

    def input_deleted(self, file: str, owner: str) -> None:
        """A file is gone: only who waits and still needs it takes notice."""
        now = self._clock()
        for batch in self._of(owner):
            waits = "input_needed" in batch.faults and batch.course.state(now) == "PENDING"
            if waits and batch.asked.file == file:
                batch.failure = _gone(file)
        self._follow(owner)

    def _of(self, owner: str) -> Iterator[Batch]:
        return (batch for batch in self._batches.values() if batch.asked.owner == owner)

    def _follow(self, owner: str) -> None:
        """What each of a key's batches does and when, the oldest first: those beyond the most wait for those before."""
        ends: list[float] = []
        for batch in self._of(owner):
            begun = turn_of(batch.created, ends, self._options.batch_most)
            fate = batch.fate if batch.failure is None else Fate(batch.fate.pending_s, 0, "FAILED")
            scale = self._options.time_scale
            batch.course = course_of(fate, batch.created, begun, self._expires_s, scale, batch.cancelled)
            ends.append(batch.course.ended)


def _gone(file: str) -> Failure:
    return Failure("file_not_found", f"The input file {file} was not found.")


async def read(content: Kept) -> AsyncIterator[bytes]:
    """The lines of a file that may be long: other requests have their turn in between."""
    for number, line in enumerate(content.lines()):
        if number % _TOGETHER == 0:
            await anyio.lowlevel.checkpoint()
        yield line
