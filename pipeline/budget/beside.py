"""What is reserved beside the requests in flight: for explicit caches by name, for batches that are out by number."""

from collections.abc import Callable
from decimal import Decimal

from pipeline.budget.caps import Spending

_NONE = Decimal(0)


class Beside:
    """A part of what `spending` has reserved. Of batches less is spent than is reserved: who has no room may wait."""

    def __init__(self, spending: Spending, is_idle: Callable[[], bool]) -> None:
        """`is_idle` says whether nothing else is reserved."""
        self._spending, self._is_idle = spending, is_idle
        self._caches: dict[str, Decimal] = {}
        self._batches: dict[int, Decimal] = {}
        self._endless: set[int] = set()  # batches of which nobody knows whether they will end
        self.waits_for_batches = False  # what has no room beside them waits until they are settled
        self.on_room: Callable[[], None] = lambda: None  # is told when less is reserved

    @property
    def usd(self) -> Decimal:
        """All of it."""
        return sum(self._caches.values(), self._spending.batches_usd)

    @property
    def may_become_less(self) -> bool:
        """Whether waiting may help who has no room."""
        return self.waits_for_batches and not self._batches.keys() <= self._endless

    def reserve(self, name: str, usd: Decimal) -> bool:
        """Reserve in place of what is under this name; False where that could pass a cap: then it is nothing."""
        self.give_back(name)
        if not self._spending.capped:
            return True
        if self._spending.blind or self._spending.reserve(usd) is not None:
            return False
        self._caches[name] = usd
        if self._spending.blind:  # the others would not know of it, should this process be killed
            self.give_back(name)
            return False
        return True

    def give_back(self, name: str) -> None:
        """Reserve nothing more under this name."""
        self._spending.reserved_usd -= self._caches.pop(name, _NONE)
        self._settle()

    def reserve_more(self, number: int, usd: Decimal) -> bool:
        """Reserve so much more for a batch; False where that could pass a cap: then all stays as it is."""
        spending = self._spending
        if not spending.capped:
            return True
        if spending.blind or spending.passed_by(usd) is not None:
            return False
        before = self._batches.get(number, _NONE)
        self.owe(number, before + usd)
        if spending.blind:
            self.owe(number, before)
            return False
        return True

    def owe(self, number: int, usd: Decimal) -> None:
        """Reserve this for a batch, whatever the caps are now: it is handed in, or it is less than was reserved."""
        if not self._spending.capped:
            return
        self._batches[number] = usd
        if not usd:
            del self._batches[number]
        self._spending.keep(sum(self._batches.values(), _NONE))
        self._settle()

    def wait_no_more(self, number: int) -> None:
        """A batch stays reserved for, and nobody waits for the room that it may leave: it does not end."""
        self._endless.add(number)
        self.on_room()

    def _settle(self) -> None:
        if not self._caches and self._is_idle():
            self._spending.reserved_usd = self._spending.batches_usd  # a sum of long decimals is rounded
        self._spending.release()
        self.on_room()
