"""The first rows of a run: a few of all kinds and lengths that are finished before the rest fills the quota, so that
somebody can judge the answers within a minute."""

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import aclosing
from pathlib import Path
from shlex import quote

import anyio

from pipeline.events import FirstAnswered, Notify
from pipeline.records import STATUSES, Document, Result
from pipeline.run.feeds import Gate, read


class FirstRows:
    """Their feed, which reads the table up to the last of them, and who says when they are done."""

    def __init__(
        self,
        rows: Collection[int],
        documents: Callable[[Callable[[int], bool]], Iterable[Iterable[Document]]],
        directory: Path,
        heard: Notify,
    ) -> None:
        self.gate = Gate()
        self.rows = frozenset(rows)
        self._documents, self._directory, self._heard = documents, directory, heard
        self._left = set(rows)
        self.opened = anyio.Event()
        self._came_to: Counter[str] = Counter()

    async def batches(self) -> AsyncGenerator[list[Document]]:
        """The documents of these rows; then those of others may be opened.

        Not before: what one of these asks would wait for another row that asked the same, and goes later.
        """
        left = len(self.rows)
        try:
            async with aclosing(read(self._documents(self.rows.__contains__))) as batches:
                async for batch in batches:
                    left -= len(batch)
                    if batch:
                        yield batch
                    if left <= 0:
                        return
        finally:
            self.opened.set()

    def ended(self, result: Result) -> None:
        """A row of the run got its outcome; once it is the last of these, that is told."""
        if result.row not in self._left:
            return
        self._left.remove(result.row)
        self._came_to[result.status] += 1
        if not self._left:
            came_to = ", ".join(f"{self._came_to[each]} {each}" for each in STATUSES if self._came_to[each])
            command = f"`pipeline show {quote(str(self._directory))}`"
            told = f"the first {len(self.rows)} rows are there, of all kinds and lengths ({came_to}): {command}"
            self._heard(FirstAnswered(told))
