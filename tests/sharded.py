"""A run in shards, each run as if it were alone: what a fleet leaves behind, without one."""

import os
import time
from collections.abc import Collection
from dataclasses import replace
from decimal import Decimal

from sessions import run_through

from pipeline.events import SessionEnded, SessionPlanned, SessionStarted
from pipeline.fleet.shards import cut, shard_source
from pipeline.providers.stored import parse_stored
from pipeline.report.tallies import write_done
from pipeline.run.prepare import Session
from pipeline.store.run import RunStore
from pipeline.store.units import Shard


def shard_session(whole: Session, shard: Shard, limit: int | None = None) -> Session:
    """The session of one shard."""
    rows = shard.rows if limit is None else limit
    options = replace(whole.options, pilot=frozenset(range(rows)))  # a pilot writes no table
    return replace(whole, source=shard_source(whole.source, shard), rows=rows, place=shard.directory, options=options)


def run_in_shards(whole: Session, *, begun: Collection[int] | None = None, half: Collection[int] = ()) -> list[Shard]:
    """Run a session's table shard by shard: those that are `begun` (None: all), the first row only of those in `half`.

    A shard that is whole has its sums.
    """
    shards = cut(whole, 1)
    store = RunStore(whole.directory, parse_stored)
    store.open(whole.manifest())
    steps = {"answer": [9, 900, 90, 0.0]}
    store.log(SessionPlanned(time.time(), whole.rows, False, steps, 1.0, "a guess", {}))
    store.log(SessionStarted(whole.rows, os.getpid()))
    for shard in shards:
        if begun is None or shard.number in begun:
            run_through(shard_session(whole, shard, 1 if shard.number in half else None))
            assert write_done(shard.directory, shard.rows) == (shard.number not in half)
    store.log(SessionEnded(1.5, 0, 0, Decimal(0), 0, 0, Decimal(0), 0, 0, status="finished", reason=""))
    store.close()
    return shards
