"""Tables in files, and what a source makes of them."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chinese import said_in_chinese

from pipeline.errors import InputError
from pipeline.records import Document
from pipeline.source import Source, open_source


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def documents(source: Source, size: int = 4096) -> list[Document]:
    return [document for frame in source.batches(size=size) for document in source.documents(frame)]


def fields(path: str, **options: Any) -> list[dict[str, object]]:
    """All columns of all rows, after the check."""
    source = open_source(path, **options)
    source.check()
    shown = source.showing(list(source.schema))
    return [dict(document.fields) for document in documents(shown)]


def save(frame: pl.DataFrame, path: str) -> None:
    """Write the frame in the form that the file's name says."""
    writers: dict[str, Callable[[str], object]] = {
        "parquet": frame.write_parquet,
        "csv": frame.write_csv,
        "jsonl": frame.write_ndjson,
    }
    writers[path.rpartition(".")[2]](path)


def figure(value: object) -> float:
    """A sum, a mean or an extreme of a column of numbers, for which polars promises no type."""
    assert isinstance(value, int | float | Decimal)
    return float(value)


def refused(action: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        action()
    assert "\x1b" not in caught.value.message and "Resolved plan" not in caught.value.message
    said_in_chinese(caught.value)
    return caught.value


def refused_rows(path: str, **options: Any) -> InputError:
    return refused(lambda: open_source(path, **options).check())
