"""Prompts, replies and results as a run makes them, and a run directory that can be left as a crash leaves it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from asking import MODEL

from pipeline.errors import RunStateError
from pipeline.prompts import Params, Prompt, said
from pipeline.providers.answers import parse_reply
from pipeline.providers.stored import parse_stored
from pipeline.records import ErrorKind, Reply, Result, Status, Usage
from pipeline.store import parts
from pipeline.store.journal import Journal
from pipeline.store.manifest import Manifest
from pipeline.store.reserve import Reserve
from pipeline.store.run import RunStore
from pipeline.store.state import load

AT = 1_780_000_000.25
CENT = Decimal("0.01")
PARAMS = Params(max_output_tokens=100)


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "job": "notes",
        "job_path": "jobs/notes.toml",
        "fingerprint": "f0",
        "identity": {"model": {"name": "gemini-3.5-flash-lite", "temperature": 0.5, "stop": ["END"]}},
        "source": "s0",
        "source_path": "notes.csv",
        "output": "results/notes.csv",
        "model": "gemini-3.5-flash-lite",
        "offline": True,
        "created_at": "2026-11-22T20:00:00+00:00",
        "prices_dated": "2026-11-01",
    }
    return Manifest(**{**fields, **changes})


def prompt(row: int, content: str = "", **fields: Any) -> Prompt:
    """A prompt whose fingerprint is its content, by default its row's own."""
    values = {"step": "answer", "input_tokens_est": 10, **fields}
    made = Prompt(row=row, key=f"key {row}", content=said("what is sent"), params=PARAMS, **values)
    return made.known_as(content or f"content {row}", MODEL)


def body(text: str, finish: str = "STOP", *, indent: bool = False) -> bytes:
    """A response as the service sends it."""
    answer = {
        "candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish}],
        "usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 34, "totalTokenCount": 46},
        "modelVersion": "gemini-3.5-flash-lite-001",
        "responseId": "r-1",
    }
    return orjson.dumps(answer, option=orjson.OPT_INDENT_2 if indent else None)


def paid(text: str = "an answer", cost_usd: Decimal | None = CENT, *, raw: bytes | None = None, **fields: Any) -> Reply:
    """A reply as the provider reads it from a response."""
    values = {"endpoint": "gemini@example", "latency_s": 1.25, "finished_at": AT, "cost_usd": cost_usd, **fields}
    return replace(parse_reply(body(text) if raw is None else raw), **values)


def failed(kind: ErrorKind = "server", **fields: Any) -> Reply:
    """A prompt that failed without an answer."""
    values = {"attempts": 5, "finished_at": AT, **fields}
    return Reply("", "error", error_kind=kind, error=f"{kind} trouble", **values)


def result(row: int, status: Status = "ok", kind: ErrorKind | None = None, **fields: Any) -> Result:
    """The outcome of one document that took one call."""
    values: dict[str, Any] = {
        "response": f"answer {row}" if status in ("ok", "truncated") else None,
        "error": f"{kind} trouble" if kind else None,
        "usage": Usage(12, 0, 34),
        "cost_usd": CENT,
        "calls": 1,
        "chunks": 1,
        "attempts": 1,
        "finished_at": datetime(2026, 11, 22, 20, tzinfo=UTC),
        **fields,
    }
    return Result(row=row, key=f"key {row}", status=status, error_kind=kind, **values)


def answer(store: RunStore, row: int, status: Status = "ok", kind: ErrorKind | None = None, **fields: Any) -> None:
    """Buy the answer of a row and write its outcome."""
    store.append_call(prompt(row), MODEL, paid(f"answer {row}"))
    store.append_result(result(row, status, kind, **fields))


@contextmanager
def opened(directory: Path, **options: Any) -> Iterator[RunStore]:
    """The run directory, open, and closed at the end as a run that ends well closes it."""
    store = RunStore(directory, parse_stored, **options)
    store.open(manifest())
    try:
        yield store
    finally:
        store.close()


@contextmanager
def killed(directory: Path, of: Manifest | None = None, **options: Any) -> Iterator[RunStore]:
    """The run directory, open, and left at the end as SIGKILL leaves it."""
    store = RunStore(directory, parse_stored, **options)
    try:
        store.open(of or manifest())
        yield store
    finally:
        for name in ("_journal", "_log", "_lock", "_content", "_reserve"):
            with suppress(AttributeError, OSError, RunStateError):
                abandon(getattr(store, name))
        with suppress(AttributeError):
            for draft in store.batches._drafts.values():
                draft._file.close()


def in_flight(directory: Path) -> set[str]:
    """Fingerprints of the requests that a start which came now would find on their way."""
    return set(load(directory, parse_stored)[1].in_flight)


def abandon(held: Any) -> None:
    """Give back what the system takes from a dead process, without a last sync."""
    if isinstance(held, Journal):
        held._close()
    elif isinstance(held, Reserve):
        held.give_back()
    else:
        (held.release if hasattr(held, "release") else held.close)()


def sealed(directory: Path, kind: str) -> pl.DataFrame:
    """All parts of one kind, in the order they were sealed."""
    schema = parts.CALLS_SCHEMA if kind == "calls" else parts.RESULTS_SCHEMA
    return pl.concat([pl.DataFrame(schema=schema), *parts.read_parts(directory / kind, schema.names())])
