"""What is reserved beside the requests in flight, by name: explicit caches, and batches that are out."""

from collections.abc import Callable
from decimal import Decimal

from pipeline.budget.caps import Spending

_NONE = Decimal(0)


class Beside:
    """A part of what `spending` has reserved. Of batches less is spent than is reserved: who has no room may wait."""

    def __init__(self, spending: Spending, is_idle: Callable[[], bool]) -> None:
        """`is_idle` says whether nothing else is reserved."""
        self._spending, self._is_idle = spending, is_idle
        self._usd: dict[str, Decimal] = {}
        self._batches: set[str] = set()
        self.waits_for_batches = False  # what has no room beside them waits until they are settled
        self.on_room: Callable[[], None] = lambda: None  # is told when less is reserved

    @property
    def usd(self) -> Decimal:
        """All of it."""
        return sum(self._usd.values(), _NONE)

    @property
    def may_become_less(self) -> bool:
        """Whether waiting may help who has no room."""
        return self.waits_for_batches and bool(self._batches)

    def reserve(self, name: str, usd: Decimal) -> bool:
        """Reserve in place of what is under this name; False where that could pass a cap: then it is nothing."""
        self.give_back(name)
        return self._add(name, usd)

    def reserve_more(self, name: str, usd: Decimal) -> bool:
        """Reserve so much more for a batch; False where that could pass a cap: then all stays as it is."""
        if not self._add(name, usd):
            return False
        self._batches.add(name)
        return True

    def owe(self, name: str, usd: Decimal) -> None:
        """Reserve for a batch that an earlier session handed in, whatever the caps are now."""
        self.give_back(name)
        if self._spending.capped:
            self._usd[name] = usd
            self._batches.add(name)
            self._spending.owe(usd)

    def give_back(self, name: str, usd: Decimal | None = None) -> None:
        """Reserve nothing more under this name, or so much less."""
        if name in self._usd:
            less = self._usd[name] if usd is None else usd
            self._usd[name] -= less
            self._spending.reserved_usd -= less
            if self._usd[name] <= 0:
                del self._usd[name]
                self._batches.discard(name)
        if not self._usd and self._is_idle():
            self._spending.reserved_usd = _NONE  # a sum of long decimals is rounded
        self._spending.release()
        self.on_room()

    def _add(self, name: str, usd: Decimal) -> bool:
        if not self._spending.capped:
            return True
        if self._spending.blind or self._spending.reserve(usd) is not None:
            return False
        self._usd[name] = self._usd.get(name, _NONE) + usd
        if self._spending.blind:  # the others would not know of it, should this process be killed
            self.give_back(name, usd)
            return False
        return True
