"""Columns that stand in the path: directories named `key=value`, as Hive, Spark and polars write them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from urllib.parse import unquote

import polars as pl

_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"-?[1-9]\d{0,17}|0")

Cells = Mapping[str, str | int | None]


def partitions(paths: Sequence[str], own: pl.Schema, texts: bool) -> tuple[pl.Schema, dict[str, Cells]]:
    """Types of the columns on the paths, and their values for each path.

    A column of the files' `own` wins over one on the path. Whole numbers are such where every path has one, unless
    all columns are `texts`.
    """
    written = {path: dict(_pairs(path)) for path in paths}
    names = dict.fromkeys(name for pairs in written.values() for name in pairs if name not in own)
    schema = pl.Schema()
    cells: dict[str, dict[str, str | int | None]] = {path: {} for path in paths}
    for name in names:
        values = [pairs.get(name) for pairs in written.values()]
        whole = not texts and all(value is None or _WHOLE.fullmatch(value) for value in values)
        schema[name] = pl.Int64() if whole and any(values) else pl.String()
        for path, value in zip(paths, values, strict=True):
            cells[path][name] = int(value) if value is not None and schema[name] == pl.Int64 else value
    return schema, dict(cells)


def _pairs(path: str) -> list[tuple[str, str | None]]:
    found = (part.partition("=") for part in PurePath(path).parent.parts)
    pairs = ((_decoded(key), _decoded(value)) for key, mark, value in found if key and mark and value)
    return [(key, None if value == _NULL else value) for key, value in pairs]


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text
