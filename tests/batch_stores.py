"""Batches of a run directory as they are cut, asked for, fetched and taken, without a service."""

from collections.abc import Iterator
from decimal import Decimal

import anyio
import orjson
from asking import MODEL, TARGET
from stores import paid, prompt

from pipeline.store.batch_lines import Draft, Key
from pipeline.store.batch_states import BatchState
from pipeline.store.batches import Batches
from pipeline.store.lines import Call
from pipeline.store.run import RunStore


def line(row: int) -> bytes:
    return orjson.dumps({"key": f"content {row}", "request": f"asked of row {row}"}) + b"\n"


def key(row: int) -> Key:
    return Key.of(prompt(row), MODEL)


def drafted(batches: Batches, *rows: int) -> Draft:
    draft = batches.draft(TARGET)
    for row in rows:
        draft.add(key(row), line(row))
    return draft


def cut(batches: Batches, *rows: int) -> BatchState:
    return drafted(batches, *rows).cut(Decimal("0.5"))


def to_asked(batches: Batches, number: int) -> BatchState:
    for stage in ("upload", "uploaded", "asking"):
        batches.note(number, stage)
    return batches.note(number, "asked", name=f"batches/{number}")


def fetched(batches: Batches, *rows: int) -> int:
    """A batch whose results are there."""
    number = to_asked(batches, cut(batches, *rows).number).number
    batches.results_path(number).write_bytes(b"results")
    batches.note(number, "fetched")
    return number


def calls(batches: Batches, number: int, *, late: bool = False) -> Iterator[Call]:
    for each in batches.keys(number):
        yield each.call(paid(f"answer {each.row}", lane="batch"), late=late)


def take(batches: Batches, number: int) -> BatchState:
    return batches.take(number, list(calls(batches, number)))


def find(store: RunStore, row: int) -> str | None:
    found = anyio.run(store.sealed_reply, f"content {row}")
    return found.reply.text if found else None
