"""How the shards of a run stand as a session begins: what is done, what it cost, and what is left."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path

import polars as pl

from pipeline.budget.caps import Spending
from pipeline.budget.cashier import SEEN_COLUMNS, Cashier, Seen, seen_in
from pipeline.calls import lost_bills
from pipeline.fleet.driver import Task
from pipeline.fleet.shards import shard_source
from pipeline.job import Job
from pipeline.masks import Range, Ranges
from pipeline.prompts import Prompt
from pipeline.records import Parse, Reply, Status
from pipeline.report.tallies import Tally, nothing_left, write_done
from pipeline.run.assembling import spending_of
from pipeline.run.prepare import Session
from pipeline.run.rows import Left, counted
from pipeline.source.shares import to_be_copied
from pipeline.store import untold
from pipeline.store.content import ContentIndex
from pipeline.store.run import RunStore
from pipeline.store.units import Shard, has_begun
from pipeline.targets import Route

_NONE = Decimal(0)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A shard that has a run directory."""

    session: Session
    store: RunStore  # closed: of a thousand open ones the descriptors and the room kept free would not do
    left: pl.Series  # Boolean, of its rows that the session covers


class Standing:
    """How the shards of a session stand; nothing of them is open but, until `close`, the answers of one."""

    def __init__(
        self,
        tasks: Sequence[Task],
        beyond: Sequence[Task],
        begun: Mapping[int, _Begun],
        done: Mapping[int, Tally],
        job: Job,
        is_capped: bool,
        is_afar: bool,
    ) -> None:
        """`tasks` are what the session covers; what was spent `beyond` counts against its caps too."""
        self._is_afar = is_afar
        self._tasks, self._begun, self._done, self._job = tasks, begun, done, job
        self._sealed: tuple[int, ContentIndex] | None = None  # of one shard: rows are planned in their order
        self._firsts = [task.shard.first_row for task in tasks]
        self.outcomes: Counter[Status] = sum((task.outcomes for task in tasks), Counter())
        self.spent_usd = sum((task.spent_usd for task in (*tasks, *beyond)), Decimal(0))
        self.cost_usd = sum((each.store.cost_usd() for each in begun.values()), Decimal(0))
        self.cost_usd += sum((each.bought.cost_usd for each in done.values()), Decimal(0))
        self.seen: Seen = seen_in(self._calls(None if is_capped else 2))

    @property
    def shards(self) -> int:
        """How many the session covers."""
        return len(self._tasks)

    @cached_property
    def left(self) -> tuple[Task, ...]:
        """What is to be done."""
        return tuple(filter(self._is_left, self._tasks))

    @property
    def rows(self) -> Ranges:
        """The rows of the table that are to be done."""
        return Ranges([Range(task.rows, self._left_of(task)) for task in self._tasks])

    async def bought(self, prompt: Prompt) -> Reply | None:
        """The reply that its shard has bought for a prompt."""
        number = self._task(prompt.row).shard.number
        if (begun := self._begun.get(number)) is None:
            return None
        for fingerprint in map(prompt.fingerprint, self._job.models_of(prompt.step)):
            found = begun.store.reply(fingerprint) or await self._answers(number).find(fingerprint)
            if found is not None:
                return found.reply
        return None

    def _answers(self, number: int) -> ContentIndex:
        """The sealed answers of a shard that was begun."""
        if self._sealed is None or self._sealed[0] != number:
            self._forget_answers()
            self._sealed = number, ContentIndex(self._begun[number].store.directory)
        return self._sealed[1]

    def _forget_answers(self) -> None:
        if self._sealed is not None:
            self._sealed[1].close()
            self._sealed = None

    def charged(self, spending: Spending, cashier: Cashier, route: Route) -> tuple[Task, ...]:
        """What is to be done, with what killed sessions left uncounted: before anything is sent.

        What was in flight where workers were killed a life counts too as it opens its shard, which may be late in the
        session: then the caps would be spent. What workers kept whose driver was gone the book has never heard of.
        """
        lost: dict[int, Decimal] = {}
        for number, each in self._begun.items():
            bills = [bill.at_most_usd or _NONE for *_, bill in lost_bills(each.store, cashier, route)]
            lost[number] = sum(bills, _NONE)
            for usd, at in untold.read(each.store.directory):
                if spending.book is not None:
                    spending.book.add_once(f"{each.store.identity}/untold/{at}", usd, at, route.first.account)
        return tuple(replace(task, spent_usd=task.spent_usd + lost.get(task.shard.number, _NONE)) for task in self.left)

    def close(self) -> None:
        """Let the workers have the directories; of those that no worker is given what they come to is noted anew."""
        left = {task.shard.number for task in self.left}
        self._forget_answers()
        for number, each in self._begun.items():
            if number not in left:  # of none where the run is afar
                write_done(each.session.directory, each.session.rows)

    def _task(self, row: int) -> Task:
        return self._tasks[bisect_right(self._firsts, row) - 1]

    def _left_of(self, task: Task) -> pl.Series | bool:
        begun = self._begun.get(task.shard.number)
        return begun.left if begun else task.shard.number not in self._done

    def _is_left(self, task: Task) -> bool:
        if self._is_afar and task.shard.number in self._begun:
            return True  # there a worker puts the sums
        return bool(Range(task.rows, self._left_of(task)).sum())

    def _calls(self, newest: int | None) -> Iterator[pl.DataFrame]:
        """Those of the shards that were begun: to read all that are done would take as long as the run is large."""
        for each in self._begun.values():
            yield from each.store.calls(SEEN_COLUMNS, newest)


def standing(
    session: Session, shards: Sequence[Shard], parse: Parse, looked_into: Callable[[Shard], Path] | None = None
) -> Standing:
    """Look into what was begun of the rows that the session covers, one shard after another. Raises `RunStateError`.

    `looked_into` gives the directory to open for a shard of a run that is afar; None: the run lies here.
    """
    is_afar = looked_into is not None
    begun: dict[int, _Begun] = {}
    done: dict[int, Tally] = {}
    tasks: list[Task] = []
    beyond: list[Task] = []
    options = session.options
    for shard in shards:
        covered = max(0, min(shard.rows, session.rows - shard.first_row))
        if not covered and not has_begun(shard):
            continue
        rows = covered or shard.rows  # of one that a smaller `--limit` leaves out only the cost counts
        own = shard_session(session, shard, rows, is_afar)
        task = Task(shard, own.source, rows)
        if tally := nothing_left(shard, rows, options.retry):
            done[shard.number] = tally
            spent_usd = tally.bought.cost_usd + (tally.bought.at_most_usd or 0)
            task = Task(shard, own.source, rows, tally.outcomes, spent_usd)
        elif has_begun(shard):
            own = replace(own, place=looked_into(shard)) if looked_into else own
            store = RunStore(own.directory, parse)
            store.open(own.manifest())
            with closing(store):
                if options.retry:
                    store.reopen(options.retry, options.changes, passing=not options.skip_failed)
                elif options.skip_failed:
                    store.outcomes.settle()
                left = Left(own, store.outcomes).slice(0, rows)
                begun[shard.number] = _Begun(own, store, left)
                task = Task(shard, own.source, rows, counted(own, store.outcomes), store.spent_usd())
                store.forget()  # a bit a row is kept of it
        (tasks if covered else beyond).append(task)
    is_capped = spending_of(session, None, _NONE).capped
    return Standing(tasks, beyond, begun, done, session.working, is_capped, is_afar)


def shard_session(session: Session, shard: Shard, rows: int, is_afar: bool = False) -> Session:
    """The session as one of its shards is run; of a run that is afar the worker has the rows."""
    whole = session.source
    source = to_be_copied(whole, shard.first_row, shard.rows) if is_afar else shard_source(whole, shard)
    return replace(session, source=source, rows=rows, place=shard.directory)
