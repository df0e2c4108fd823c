"""The spending of a run that several accounts pay: each in its own book, the caps over all of them."""

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from pipeline.budget.book import SpendBook


class JointBook:
    """A `caps.Book` of several; a cap counts what any of them has spent.

    What is in flight is held in each: nobody knows beforehand who will have been asked for it. So a killed run counts
    against others at more than its worst case, and never at less.
    """

    def __init__(self, books: Mapping[str, SpendBook]) -> None:
        """`books` by account, at least one."""
        self._books = books
        self._first = next(iter(books.values()))

    @property
    def trouble(self) -> str | None:
        """Why one of them cannot be used."""
        return next((book.trouble for book in self._books.values() if book.trouble), None)

    @property
    def on_trouble(self) -> Callable[[str], None]:
        """Who hears of it."""
        return self._first.on_trouble

    @on_trouble.setter
    def on_trouble(self, heard: Callable[[str], None]) -> None:
        for book in self._books.values():
            book.on_trouble = heard

    @property
    def made_anew(self) -> str:
        """What is told of one that was damaged."""
        return next((book.made_anew for book in self._books.values() if book.made_anew), "")

    @property
    def blind(self) -> bool:
        """Whether nothing is seen of the others for some seconds in any of them."""
        return any(book.blind for book in self._books.values())

    def insist(self) -> None:
        """Look again now, however long that takes."""
        for book in self._books.values():
            book.insist()

    def spent(self) -> tuple[Decimal, Decimal]:
        """USD of this day, and of this month."""
        return _sums(book.spent() for book in self._books.values())

    def lost(self) -> tuple[Decimal, Decimal]:
        """USD of them that killed runs may have spent."""
        return _sums(book.lost() for book in self._books.values())

    def add(self, usd: Decimal, account: str = "") -> None:
        """Count what a request cost, or may have cost."""
        self._books.get(account, self._first).add(usd)

    def add_once(self, name: str, usd: Decimal, at: float, account: str = "") -> None:
        """Count an amount on the day of `at` (epoch seconds), once for each name."""
        self._books.get(account, self._first).add_once(name, usd, at)

    def hold(self, usd: Decimal) -> None:
        """Let the other runs count what this one has in flight, should it be killed."""
        for book in self._books.values():
            book.hold(usd)

    def keep(self, usd: Decimal) -> None:
        """Let the other runs count what this one has out in batches."""
        for book in self._books.values():
            book.keep(usd)

    def release(self) -> None:
        """This run has nothing in flight; a killed session of it may have had another target first."""
        for book in self._books.values():
            book.release()


def _sums(pairs: Iterable[tuple[Decimal, Decimal]]) -> tuple[Decimal, Decimal]:
    days, months = zip(*pairs, strict=True)
    return sum(days, Decimal(0)), sum(months, Decimal(0))
