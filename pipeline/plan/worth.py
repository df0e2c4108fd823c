"""Which documents go to batch: those that save most for the time that they would take in the live lanes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import floor, log2

_LEVELS = 4  # of worth, to each doubling: what differs less is alike
_GOLDEN, _WHOLE = 0x9E3779B97F4A7C15, 2**64  # multiples of the golden ratio lie evenly, whichever stretch is looked at


@dataclass(frozen=True, slots=True)
class Some:
    """Documents alike: how many prompts they take, what these cost in the standard lane, how long the live quota.

    `live_s` is the time that the run's own limits need for them when nothing else is sent.
    """

    prompts: float
    live_s: float
    usd: float

    def part(self, share: float) -> "Some":
        """Such a share of them."""
        return Some(self.prompts * share, self.live_s * share, self.usd * share)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which documents go to batch: those that are worth more than `level`, and a part of those at it.

    Each is judged by itself, so nobody must know the others, and a second look at it finds the same.
    """

    share: float  # of live time
    usd: float  # share of the cost at the standard price
    prompts: float  # share of the prompts
    level: int | None = None  # None: all are alike
    part: float = 0.0

    def takes(self, row: int, some: Some) -> bool:
        """Whether the document of this row does; of those alike every stretch of rows gives the same part."""
        level = _level(some)
        if self.level is not None and level != self.level:
            return level > self.level
        return (row + 1) * _GOLDEN % _WHOLE < self.part * _WHOLE


def choose(kinds: Iterable[Some], share: float) -> Chosen:
    """The documents that save most for the live time that they need if they fall back, up to a share of that time."""
    return Worth(kinds).chosen(share)


class Worth:
    """Documents by what they are worth, the most first: which share of cost and prompts a share of live time is."""

    def __init__(self, kinds: Iterable[Some]) -> None:
        by_level: dict[int, Some] = {}
        for some in kinds:
            if some.live_s > 0.0:
                known = by_level.get(_level(some), Some(0.0, 0.0, 0.0))
                by_level[_level(some)] = Some(
                    known.prompts + some.prompts, known.live_s + some.live_s, known.usd + some.usd
                )
        self._levels = sorted(by_level, reverse=True)
        ordered = [by_level[level] for level in self._levels]
        self._live_s = _shares([each.live_s for each in ordered])
        self._usd = _shares([each.usd for each in ordered])
        self._prompts = _shares([each.prompts for each in ordered])

    def chosen(self, share: float) -> Chosen:
        """As `choose`; where nothing is known of them, a part of all."""
        if not self._levels:
            return Chosen(share, share, share, None, share)
        if share <= 0.0:
            return Chosen(0.0, 0.0, 0.0, self._levels[0], 0.0)
        at = next((n for n, end in enumerate(self._live_s[1:]) if end >= share), len(self._levels) - 1)
        begin, end = self._live_s[at : at + 2]
        part = min(1.0, (share - begin) / (end - begin))

        def within(shares: Sequence[float]) -> float:
            return shares[at] + part * (shares[at + 1] - shares[at])

        return Chosen(share, within(self._usd), within(self._prompts), self._levels[at], part)


def _level(some: Some) -> int:
    return floor(log2(some.usd / some.live_s) * _LEVELS) if some.usd > 0.0 and some.live_s > 0.0 else -(2**31)


def _shares(amounts: Sequence[float]) -> list[float]:
    whole = sum(amounts) or 1.0
    return [0.0, *(each / whole for each in accumulate(amounts))]
