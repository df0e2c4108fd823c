"""A row without what must not be sent."""

from contextlib import suppress
from dataclasses import replace

import orjson

from pipeline.job import Job
from pipeline.records import Document
from pipeline.redaction import Hidden, Redactor
from pipeline.values import Fields, Unreadable

_MOST_NESTED = 64
"""Levels of a cell that is JSON; a conversation has five."""


def redacted(document: Document, job: Job, redactor: Redactor) -> tuple[Document, Hidden]:
    """The row as it may be sent, and what its placeholders stand for: the same whenever it is asked of the same row."""
    fields = {name: _opened(name, value) if name in job.talks else value for name, value in document.fields.items()}
    hidden = Hidden(redactor, [*fields.values(), document.text])
    shown = Fields((name, hidden.value(value)) for name, value in fields.items())
    text = None if document.text is None else hidden.text(document.text)
    return replace(document, fields=shown, text=text), hidden


def _opened(column: str, cell: object) -> object:
    """What a cell of JSON text says: an escape in it may stand for any character. One that is no JSON is not sent."""
    if isinstance(cell, str):
        with suppress(orjson.JSONDecodeError):
            cell = orjson.loads(cell)
    return Unreadable(column, f"more than {_MOST_NESTED} levels") if _is_deep(cell) else cell


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_MOST_NESTED):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, dict | list) for each in level)
