"""Batches that are being put together, one for each target: reserved for line by line, and cut when they are full."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

import anyio
import anyio.to_thread

from pipeline.batch.common import Common
from pipeline.batch.cutting import Size, full_at, size_of
from pipeline.prompts import Prompt
from pipeline.store.batch_lines import Draft, Key
from pipeline.targets import Target

IDLE_S = 60.0
"""What was put together is cut when nothing comes any more for so long, and nothing is waited for."""


@dataclass(slots=True, eq=False)
class _Drafted:
    """One of them."""

    draft: Draft
    full: Size
    added_at: float
    worst_usd: Decimal = Decimal(0)
    held_usd: Decimal = Decimal(0)  # reserved for it, and for some lines more


class Drafts:
    """All of them."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self._drafted: dict[Target, _Drafted] = {}
        self._to_cut: set[Target] = set()
        self._cutting: set[int] = set()

    @property
    def lines(self) -> int:
        """Requests in them."""
        return sum(each.draft.lines for each in self._drafted.values())

    def numbers(self) -> set[int]:
        """The numbers that they will have as batches."""
        return {each.draft.number for each in self._drafted.values()} | self._cutting

    async def put(self, prompt: Prompt, target: Target, line: bytes) -> int | None:
        """Add a line; the number of its batch, or None where it is too large, or a cap leaves no room for it.

        Raises `RunStateError` for the disk.
        """
        common = self._common
        bounds, tokens = common.services[target].bounds, prompt.input_tokens_est
        if len(line) > bounds.bytes:
            return None
        drafted = self._drafted.get(target)
        if drafted and not drafted.full.holds(size_of(drafted.draft).with_one_more(len(line), tokens)):
            await self._cut(target)
            drafted = self._drafted.get(target)
        if drafted is None:
            full = full_at(bounds, common.plan.prompts, common.allowed_tokens(target.quota, target.model))
            draft = common.store.draft(target, common.plan.changes)
            drafted = self._drafted[target] = _Drafted(draft, full, anyio.current_time())
        if not self._reserved(drafted, prompt, target):
            self._to_cut.add(target)
            return None
        drafted.draft.add(Key.of(prompt, target.model), line)
        drafted.added_at = anyio.current_time()
        return drafted.draft.number

    def flush(self) -> None:
        """Have all of them cut."""
        self._to_cut.update(self._drafted)

    async def cut_due(self) -> None:
        """Cut those that are to be cut. Raises `RunStateError` for the disk."""
        is_idle = self._is_idle
        for target, drafted in list(self._drafted.items()):
            if target in self._to_cut or (is_idle and anyio.current_time() >= drafted.added_at + IDLE_S):
                await self._cut(target)

    @property
    def are_due(self) -> bool:
        """Whether one is to be cut."""
        return bool(self._to_cut)

    def next_at(self) -> Iterable[float]:
        """When each is to be looked at again, by the loop's clock: none while a batch is waited for."""
        return [each.added_at + IDLE_S for each in self._drafted.values()] if self._is_idle else []

    def drop_all(self) -> list[tuple[int, list[Key]]]:
        """Make no batches of them: their numbers, and whose the lines of each are."""
        dropped = [(each.draft.number, list(each.draft.fingerprints.values())) for each in self._drafted.values()]
        for target in list(self._drafted):
            self._drop(target)
        return dropped

    @property
    def _is_idle(self) -> bool:
        """Whether no batch is waited for."""
        return not any(state.is_waited_for for state in self._common.store.open())

    def _reserved(self, drafted: _Drafted, prompt: Prompt, target: Target) -> bool:
        """Reserve for one more line, for some at a time: where a cap is over several runs each is a transaction."""
        cashier = self._common.cashier
        if not cashier.is_capped:
            return True
        worst_usd = drafted.worst_usd + cashier.worst_usd(prompt, target.asked_in("batch"))
        short, number = worst_usd - drafted.held_usd, drafted.draft.number
        if short > 0:
            for more in (short + worst_usd / 4, short):
                if cashier.beside.reserve_more(number, more):
                    drafted.held_usd += more
                    break
            else:
                return False
        drafted.worst_usd = worst_usd
        return True

    async def _cut(self, target: Target) -> None:
        self._to_cut.discard(target)
        drafted = self._drafted.get(target)
        if drafted is None:
            return
        if not drafted.draft.lines:
            self._drop(target)
            return
        del self._drafted[target]
        number = drafted.draft.number
        self._cutting.add(number)
        cashier = self._common.cashier
        cashier.beside.owe(number, drafted.worst_usd)
        worst_usd = drafted.worst_usd if cashier.is_capped else None
        try:
            await anyio.to_thread.run_sync(drafted.draft.cut, worst_usd, self._common.wall())
        finally:
            self._cutting.discard(number)
        self._common.again_in(number, 0.0)

    def _drop(self, target: Target) -> None:
        self._to_cut.discard(target)
        draft = self._drafted.pop(target).draft
        self._common.cashier.beside.owe(draft.number, Decimal(0))
        draft.discard()
