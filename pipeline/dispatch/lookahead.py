"""Which of the ready prompts goes next: the largest that fits, within a window, and none waits forever."""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from math import inf
from operator import attrgetter
from random import Random
from typing import Generic, Protocol, TypeVar

DEPTH = 256
"""Prompts that are compared: the more, the better gaps are filled."""
PATIENCE = 0.02
"""The oldest that does not fit is waited for once the wait is no longer than this part of the time it has waited.

Waiting leaves room unused. Passed over until then, a large prompt goes when others as large leave the last minute,
instead of when a gap must be forced for it. Worth 0.6 % of the tokens in simulation, at .02 to .04.
"""
MAX_WAIT_S = 600.0
"""A prompt that was passed over this long goes next, and everything waits until it fits."""
QUEUES = 3
"""Queue 0: what is sent again; 1: what finishes a document; 2: all others."""


class Queued(Protocol):
    """What can wait here."""

    @property
    def gone(self) -> bool:
        """Nobody wants it any more."""
        ...


Item = TypeVar("Item", bound=Queued)


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item]):
    key: tuple[float, float]  # size, and a number that only grows
    item: Item
    since: float  # when it began to wait; inf until it enters the window
    waiting: bool = True
    look_at: float = -inf  # before then it is not worth waiting for


_key = attrgetter("key")


class _Queue(Generic[Item]):
    """A window, kept sorted by size, over a pool; drawn at random from a pool that is larger than the window.

    Drawing at random mixes sizes when the input is sorted by length, so both meters stay busy.
    """

    def __init__(self, rng: Random | None) -> None:
        self._rng = rng
        self._pool: deque[_Entry[Item]] = deque()
        self.window: list[_Entry[Item]] = []
        self._order: deque[_Entry[Item]] = deque()

    def __iter__(self) -> Iterator[Item]:
        for entry in (*self._order, *self._pool):
            if entry.waiting and not entry.item.gone:
                yield entry.item

    def add(self, entry: _Entry[Item], now: float) -> None:
        self._pool.append(entry)
        self._refill(now)

    def oldest(self, now: float) -> _Entry[Item] | None:
        while self._order:
            entry = self._order[0]
            if entry.waiting and not entry.item.gone:
                return entry
            self._order.popleft()
            if entry.waiting:
                self.remove(entry, now)
        return None

    def smallest(self, now: float) -> _Entry[Item] | None:
        while self.window:
            if not self.window[0].item.gone:
                return self.window[0]
            self.remove(self.window[0], now)
        return None

    def largest(self, room: float, fits: Callable[[Item], bool], now: float) -> _Entry[Item] | None:
        position = bisect_right(self.window, (room, inf), key=_key) - 1
        while position >= 0:
            entry = self.window[position]
            if entry.item.gone:
                self.remove(entry, now)
            elif fits(entry.item):
                return entry
            position = min(position, len(self.window)) - 1
        return None

    def remove(self, entry: _Entry[Item], now: float) -> None:
        del self.window[bisect_left(self.window, entry.key, key=_key)]
        entry.waiting = False
        self._refill(now)

    def _refill(self, now: float) -> None:
        while self._pool and len(self.window) < DEPTH:
            if self._rng is not None and len(self._pool) > 1:
                drawn = self._rng.randrange(len(self._pool))
                self._pool[0], self._pool[drawn] = self._pool[drawn], self._pool[0]
            entry = self._pool.popleft()
            if entry.item.gone:
                entry.waiting = False
                continue
            entry.since = min(entry.since, now)
            insort(self.window, entry, key=_key)
            self._order.append(entry)


class Lookahead(Generic[Item]):
    """The ready prompts of one route."""

    def __init__(self, rng: Random | None) -> None:
        """Without `rng` prompts enter the window in the order they came."""
        self._numbers = count()
        self._queues: tuple[_Queue[Item], ...] = tuple(_Queue(rng) for _ in range(QUEUES))
        self._windows = [queue.window for queue in self._queues]
        self.awaited: Item | None = None
        """What the last `take` left room for."""

    def __iter__(self) -> Iterator[Item]:
        for queue in self._queues:
            yield from queue

    def __bool__(self) -> bool:
        """Whether any waits; one that is gone may still be counted."""
        return any(self._windows)

    def add(self, item: Item, size: float, queue: int, now: float, *, since: float = inf) -> None:
        """Let `item` wait; `size` in tokens, `since` when it began to wait if that was before."""
        self._queues[queue].add(_Entry((size, next(self._numbers)), item, since), now)

    def take(
        self,
        now: float,
        room: float,
        fits: Callable[[Item], bool],
        fits_at: Callable[[Item], float],
        until: Callable[[float], float],
        *,
        backwards: bool = False,
    ) -> Item | None:
        """Remove and return what goes now, or None when nothing does.

        `room` is the size up to which it is worth asking `fits`; when it is infinite the oldest goes. `fits_at` tells
        when an item that does not fit will fit if nothing else goes before it; beyond `until(now)` nobody waits for it.
        The last queue comes first when `backwards`.
        """
        self.awaited = None
        queues = [queue for queue in self._queues if queue.window]
        if backwards:
            queues.reverse()
        for queue in queues:
            oldest = queue.oldest(now)
            if oldest is None:
                continue
            if fits(oldest.item):
                if room == inf or now - oldest.since > MAX_WAIT_S:
                    queue.remove(oldest, now)
                    return oldest.item
            elif _worth_waiting(oldest, now, fits_at, until):
                self.awaited = oldest.item
                return None
        for queue in queues:
            entry = queue.largest(room, fits, now)
            if entry is not None:
                queue.remove(entry, now)
                return entry.item
        return None

    def next_wanted(self, now: float) -> Item | None:
        """What everything waits for when `take` returned None: an item that has waited long, else the smallest."""
        if self.awaited is not None:
            return self.awaited
        smallest = [entry for queue in self._queues if (entry := queue.smallest(now)) is not None]
        return min(smallest, key=_key).item if smallest else None


def _worth_waiting(
    entry: _Entry[Item], now: float, fits_at: Callable[[Item], float], until: Callable[[float], float]
) -> bool:
    """Whether everything waits until this one fits.

    Whatever goes before it only delays it. So one answer of `fits_at` will do until the time that it names is near.
    """
    if now - entry.since > MAX_WAIT_S:
        return True
    if now < entry.look_at:
        return False
    at, end = fits_at(entry.item), until(now)
    entry.look_at = (at + PATIENCE * entry.since) / (1.0 + PATIENCE) if at < end else end
    return now >= entry.look_at
