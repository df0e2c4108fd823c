"""What waits in which batch: a million contents take 12 MB."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable

_BITS = 2**25
"""Of a million contents that do not wait 3 % are looked for in every batch all the same."""


class Waiting:
    """Contents by the batch in which they wait: 8 bytes each, sorted, and a bit.

    Two of a million share their 8 bytes once in 40 million runs. Then one is asked again after the other's batch.
    """

    def __init__(self) -> None:
        self._names: dict[int, array[int]] = {}
        self._bits = bytearray()  # which may be among them; of a batch that is dropped they stay
        self._last = 0  # the batch in which one was found: rows come in the order in which they were cut

    def add(self, batch: int, contents: Iterable[str]) -> None:
        """Let contents wait in a batch; takes 1 µs each."""
        if not self._bits:
            self._bits = bytearray(_BITS // 8)
        names = array("q", sorted(map(hash, contents)))
        bits = self._bits
        for name in names:
            bits[name % _BITS >> 3] |= 1 << (name & 7)
        self._names[batch] = names

    def drop(self, batch: int) -> None:
        """Let nothing wait in a batch any more."""
        self._names.pop(batch, None)

    def find(self, content: str) -> int | None:
        """The batch in which a content waits."""
        name = hash(content)
        if not self._names or not self._bits[name % _BITS >> 3] & 1 << (name & 7):
            return None
        names = self._names.copy()  # another thread may drop one
        if (last := names.pop(self._last, None)) is not None and _has(last, name):
            return self._last
        for batch, others in names.items():
            if _has(others, name):
                self._last = batch
                return batch
        return None


def _has(names: "array[int]", name: int) -> bool:
    at = bisect_left(names, name)
    return at < len(names) and names[at] == name
