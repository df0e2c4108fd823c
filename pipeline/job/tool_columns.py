"""Columns of the output for what tools left beside an answer; `providers.extras` says what that is."""

from collections.abc import Callable
from typing import Any

import polars as pl

from pipeline.answer_columns import AnswerColumn
from pipeline.sections import Tools

_TEXT: pl.DataType = pl.String()
_NUMBER: pl.DataType = pl.Int64()


def tool_columns(tools: Tools | None) -> tuple[AnswerColumn, ...]:
    """Those of the tools that a job names."""
    if tools is None:
        return ()
    found: list[AnswerColumn] = []
    if tools.google_search is not False:
        found.append(
            AnswerColumn("search_queries", pl.List(_TEXT), "what was searched for", "extras", _list("search_queries"))
        )
        found.append(
            _column(
                "citations",
                {"uri": _TEXT, "title": _TEXT, "domain": _TEXT, "text": _TEXT, "start": _NUMBER, "end": _NUMBER},
                "sources, with the text that each supports and where it stands in the answer, in characters",
            )
        )
    if tools.url_context:
        found.append(_column("urls", {"url": _TEXT, "status": _TEXT}, "pages that were read, and how that went"))
    if tools.code_execution:
        fields = ("language", "code", "outcome", "output")
        found.append(_column("code", dict.fromkeys(fields, _TEXT), "what was run at the service, and what came of it"))
    if tools.function:
        found.append(
            _column("function_calls", {"name": _TEXT, "args": _TEXT}, "functions that the model calls; args are JSON")
        )
    return tuple(found)


def _column(name: str, fields: dict[str, pl.DataType], means: str) -> AnswerColumn:
    def cell(extras: Any) -> list[dict[str, Any]] | None:
        told = extras.get(name)
        return None if told is None else [{field: each.get(field) for field in fields} for each in told]

    return AnswerColumn(name, pl.List(pl.Struct(fields)), means, "extras", cell)


def _list(name: str) -> Callable[[Any], Any]:
    return lambda extras: extras.get(name)
