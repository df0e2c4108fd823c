"""What may be spent: the caps of the run, of the day and of the month, and what counts against them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple, Protocol

from pipeline.errors import BudgetReached


class Book(Protocol):
    """What all runs of a project spend, day by day."""

    on_trouble: Callable[[str], None]

    @property
    def trouble(self) -> str | None:
        """Why it cannot be used, if so."""
        ...

    @property
    def made_anew(self) -> str:
        """What is told of one that was damaged; empty where it was not."""
        ...

    @property
    def blind(self) -> bool:
        """Whether nothing is seen of the others for some seconds, nor shown to them: its file is locked."""
        ...

    def insist(self) -> None:
        """Look again now, however long that takes; if it is in vain, that is `trouble`."""
        ...

    def spent(self) -> tuple[Decimal, Decimal]:
        """USD of this day, and of this month."""
        ...

    def lost(self) -> tuple[Decimal, Decimal]:
        """USD of them that others may spend: what killed runs had in flight, what runs have out in batches."""
        ...

    def add(self, usd: Decimal, account: str = "") -> None:
        """Count what a request cost, or may have cost; `account` says who pays, where there are several."""
        ...

    def add_once(self, name: str, usd: Decimal, at: float, account: str = "") -> None:
        """Count an amount on the day of `at` (epoch seconds), once for each name."""
        ...

    def hold(self, usd: Decimal) -> None:
        """Let the other runs count what this one has in flight, should it be killed."""
        ...

    def keep(self, usd: Decimal) -> None:
        """Let the other runs count what this one has out in batches, whether it goes on or not."""
        ...

    def release(self) -> None:
        """This run has nothing in flight."""
        ...


class Cap(NamedTuple):
    """One cap on spending and what counts against it; `name` as in "the budget"."""

    name: str
    usd: Decimal
    spent_usd: Decimal
    hint: str
    lost_usd: Decimal = Decimal(0)  # of what is spent: what killed runs had in flight, at its worst case

    @property
    def amount(self) -> str:
        """The cap as it is written, in USD: 5 and not 5.0."""
        return f"{self.usd.normalize():f}"


@dataclass(slots=True)
class Spending:
    """USD spent by this run so far and reserved for requests in flight, against its caps (None: no cap).

    What is spent counts what requests may have cost that nobody can know. The caps of day and month are on the spending
    of all runs in `book`, UTC.
    """

    cap_usd: Decimal | None
    spent_usd: Decimal = Decimal(0)
    reserved_usd: Decimal = Decimal(0)
    batches_usd: Decimal = Decimal(0)  # of what is reserved, for batches that are out
    book: Book | None = None
    day_cap_usd: Decimal | None = None
    month_cap_usd: Decimal | None = None

    @property
    def capped(self) -> bool:
        """Whether there is any cap."""
        return any(usd is not None for usd in (self.cap_usd, self.day_cap_usd, self.month_cap_usd))

    @property
    def _shared(self) -> bool:
        """Whether there is a cap on what all runs spend."""
        return self.day_cap_usd is not None or self.month_cap_usd is not None

    def caps(self) -> Iterator[Cap]:
        """Every cap that there is, as it stands now."""
        if self.cap_usd is not None:
            hint = "raise `[budget] max_usd` or `--max-cost`; the same command then continues"
            yield Cap("the budget", self.cap_usd, self.spent_usd, hint)
        if self.book is None or not self._shared:
            return
        spent, lost = self.book.spent(), self.book.lost()
        for which, name, key, cap, period in (
            (0, "the day's budget", "max_usd_per_day", self.day_cap_usd, "tomorrow (UTC)"),
            (1, "the month's budget", "max_usd_per_month", self.month_cap_usd, "next month (UTC)"),
        ):
            if cap is not None:
                hint = f"the same command continues {period}, or now with a higher [budget] {key}"
                yield Cap(name, cap, spent[which], hint, lost[which])

    @property
    def blind(self) -> bool:
        """Whether what the others spend is not known for some seconds, though a cap asks for it."""
        return self.book is not None and self._shared and self.book.blind

    def unkept(self, patient: bool = False) -> BudgetReached | None:
        """Why the caps over several runs cannot be kept, if so: what the others spend, or this one, cannot be told.

        `patient`: a lock is waited for first.
        """
        if self.book is None or not self._shared:
            return None
        if patient and self.book.blind:
            self.book.insist()
        trouble = self.book.trouble
        if trouble is None:
            return None
        return BudgetReached(
            f"the budget of the day or month cannot be kept: {trouble}",
            "the same command continues when the file can be used again",
        )

    def passed_by(self, worst_usd: Decimal) -> Cap | None:
        """The first cap that one more request could pass."""
        return next((cap for cap in self.caps() if cap.spent_usd + self.reserved_usd + worst_usd > cap.usd), None)

    def reserve(self, usd: Decimal) -> Cap | None:
        """Reserve for one more request, unless it could pass a cap: then that cap is returned."""
        if cap := self.passed_by(usd):
            return cap
        self.reserved_usd += usd
        if self.book is not None:
            self.book.hold(self.reserved_usd - self.batches_usd)
        return None

    def keep(self, usd: Decimal) -> None:
        """Reserve so much for all batches that are out, whatever the caps are; the other runs count it too."""
        self.reserved_usd += usd - self.batches_usd
        self.batches_usd = usd
        if self.book is not None:
            self.book.keep(usd)

    def spend_once(self, name: str, usd: Decimal, at: float, account: str) -> None:
        """Count an amount on the day of `at` (epoch seconds); for the other runs once for each name."""
        self.spent_usd += usd
        if self.book is not None and usd:
            self.book.add_once(name, usd, at, account)

    def spend(self, usd: Decimal, account: str = "") -> None:
        """Count an amount, for the other runs of the project too."""
        self.spent_usd += usd
        if self.book is not None and usd:
            self.book.add(usd, account)

    def release(self) -> None:
        """Tell the book when nothing is in flight any more, and all of it is counted."""
        if self.book is not None and self.reserved_usd <= self.batches_usd:
            self.book.release()
