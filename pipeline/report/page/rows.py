"""The rows of the page, packed: columns in blocks, and texts cut so that the page stays small, whatever they hold."""

import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson
import polars as pl

from pipeline.errors import PipelineError
from pipeline.records import STATUSES
from pipeline.report.reading import Answers

BYTES = 6_900_000
"""Of rows, packed, at most: with base64 the page is below 10 MB."""
PLAIN_BYTES = 120_000_000
"""Of the same before it was packed, at most: a browser holds all of it, and texts that repeat pack into nothing."""
ROWS = 100_000
"""Rows that are shown at most, evenly spread over the run, but for those that failed."""
FAILED = 20_000
"""Rows that are not ok and are shown beside them at most."""
CALLS = 50_000
"""Calls of rows with several that are shown at most."""
LENGTHS = (*(round(20_000 * 0.9**step) for step in range(66)), 0)
"""Characters after which every text may be cut: the most with which all of it fits into `BYTES`."""
STRETCHES, STRETCH = 8, 128
"""Rows from which that is told: so many times so many beside each other, as they are packed."""
CUT = "\0"
"""Ends a text that was cut."""

_BLOCK = 4_096
_KEY_CHARS, _ERROR_CHARS = 200, 300
_ROW = (
    *("row", "key", "status", "error_kind", "error", "model", "target", "input_tokens", "output_tokens"),
    *("thinking_tokens", "cost_usd", "latency_s", "calls", "response"),
)
_CALL = ("row", "step", "level", "chunk", "chunks", "status", "text", "late")
_TEXTS = {"rows": "answer", "inputs": "input", "calls": "answer"}

Inputs = Callable[[Callable[[int], bool], int], Iterator[tuple[int, str]]]
"""The texts of the rows that are wanted, as they may be shown, each no longer than so many characters and one more.

Raises `PipelineError` where the table cannot tell any more."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows as lines of JSON, gzipped, and what is to be said of them."""

    content: bytes
    told: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which rows are shown; `several` are those whose calls are shown too."""

    flags: bytearray
    rows: int
    several: pl.Series
    told: dict[str, Any] = field(default_factory=dict)

    def sample(self) -> "_Chosen":
        """All of few; of many some stretches, evenly spread."""
        every = [row for row, flag in enumerate(self.flags) if flag]
        step = max(STRETCH, len(every) // STRETCHES)
        kept = [row for start in range(0, len(every), step) for row in every[start : start + STRETCH]]
        flags = bytearray(len(self.flags))
        for row in kept:
            flags[row] = 1
        return _Chosen(flags, len(kept), self.several.filter(self.several.is_in(kept)))


def packed(answers: Answers, inputs: Inputs | None) -> Rows:
    """The rows of a run with their inputs, or with the reason why these cannot be shown."""
    chosen = _choose(answers)
    sample, why_not = chosen.sample(), ""
    try:
        blocks = list(_blocks(answers, inputs, sample, LENGTHS[0]))
    except (PipelineError, OSError) as error:
        blocks, inputs, why_not = list(_blocks(answers, None, sample, LENGTHS[0])), None, str(error).splitlines()[0]
    share = chosen.rows / max(1, sample.rows)

    def fits(chars: int) -> bool:
        content, plain = _gzipped(_encoded(block, chars) for block in blocks)
        return share * len(content) <= BYTES and share * plain <= PLAIN_BYTES

    first = min(bisect_left(LENGTHS, True, key=fits), len(LENGTHS) - 1)
    for chars in LENGTHS[first:]:
        cut: Counter[str] = Counter()
        content, plain = _gzipped(_encoded(block, chars, cut) for block in _blocks(answers, inputs, chosen, chars))
        if len(content) <= BYTES and plain <= PLAIN_BYTES:
            break
    return Rows(content, {**chosen.told, "chars": chars, "cut": cut, "no_inputs": why_not, "has_inputs": bool(inputs)})


def _choose(answers: Answers) -> _Chosen:
    highest, total = 0, 0
    for frame in answers.frames(("row",)):
        total += frame.height
        highest = max([highest, *frame["row"].top_k(1)])
    step, flags, left_failed, failed = max(1, -(-total // ROWS)), bytearray(highest + 1), FAILED, 0
    several: list[int] = []
    left_calls, of_several = CALLS, 0
    for frame in answers.frames(("row", "status", "calls", "chunks")):
        spread = frame.filter(pl.col("row") % step == 0)
        others = frame.filter((pl.col("row") % step != 0) & (pl.col("status") != "ok"))
        failed += others.height
        others = others.head(left_failed)
        left_failed -= others.height
        shown = pl.concat([spread, others])
        for row in shown["row"]:
            flags[row] = 1
        asked_more = shown.filter((pl.col("calls") > 1) | (pl.col("chunks") > 1))
        for row, calls in asked_more.select("row", "calls").iter_rows():
            of_several += 1
            if calls <= left_calls:
                left_calls -= calls
                several.append(row)
    shown_rows = sum(flags)
    told = {
        "rows": shown_rows,
        "of": total,
        "failed_left_out": failed - (FAILED - left_failed),
        "several": len(several),
        "of_several": of_several,
    }
    return _Chosen(flags, shown_rows, pl.Series("row", several, dtype=pl.Int64), told)


def _blocks(answers: Answers, inputs: Inputs | None, chosen: _Chosen, chars: int) -> Iterator[dict[str, Any]]:
    """What is shown, texts cut after one character more than `chars`: so that one knows."""
    for frame in answers.frames(_ROW):
        some = frame.filter(pl.Series([chosen.flags[row] == 1 for row in frame["row"]], dtype=pl.Boolean))
        if some.height:
            yield {"rows": _columns(some, chars)}
    if inputs:
        texts = inputs(lambda row: row < len(chosen.flags) and chosen.flags[row] == 1, chars)
        while block := list(islice(texts, _BLOCK)):
            yield {"inputs": {"row": _steps([row for row, _ in block]), "input": [text for _, text in block]}}
    if chosen.several.len():
        for frame in answers.call_frames(_CALL):
            some = frame.filter(pl.col("row").is_in(chosen.several.implode()))
            if some.height:
                yield {"calls": _call_columns(some, chars)}


def _columns(frame: pl.DataFrame, chars: int) -> dict[str, Any]:
    numbers = frame.select(
        pl.col("key").str.slice(0, _KEY_CHARS),
        pl.col("error").str.slice(0, _ERROR_CHARS),
        pl.col("input_tokens", "output_tokens", "thinking_tokens", "calls"),
        pl.col("cost_usd").cast(pl.Float64).round_sig_figs(4),
        pl.col("latency_s").round_sig_figs(3),
        pl.col("response").str.slice(0, chars + 1).alias("answer"),
    )
    return {
        "row": _steps(frame["row"]),
        "status": [STATUSES.index(status) for status in frame["status"]],
        **{name: _coded(frame[name]) for name in ("error_kind", "model", "target")},
        **numbers.to_dict(as_series=False),
    }


def _call_columns(frame: pl.DataFrame, chars: int) -> dict[str, Any]:
    return {
        "row": _steps(frame["row"]),
        **frame.select("level", "chunk", "chunks", "late").to_dict(as_series=False),
        "status": [STATUSES.index(status) for status in frame["status"]],
        "step": _coded(frame["step"]),
        "answer": frame["text"].str.slice(0, chars + 1).to_list(),
    }


def _steps(rows: Iterable[int]) -> list[int]:
    """The first row, then how much further each is than the one before: mostly 1."""
    numbers = list(rows)
    return [number - before for before, number in zip([0, *numbers], numbers, strict=False)]


def _coded(column: pl.Series) -> dict[str, Any]:
    """A column of few different texts, each by its number."""
    texts = column.unique(maintain_order=True).to_list()
    places = {text: number for number, text in enumerate(texts)}
    return {"of": texts, "at": [places[text] for text in column]}


def _encoded(block: dict[str, Any], chars: int, cut: Counter[str] | None = None) -> bytes:
    [(kind, columns)] = block.items()
    name = _TEXTS[kind]
    texts: Sequence[str | None] = columns[name]
    if cut is not None:
        cut[kind] += sum(text is not None and len(text) > chars for text in texts)
    short = [text if text is None or len(text) <= chars else text[:chars] + CUT for text in texts]
    return orjson.dumps({kind: {**columns, name: short}}, option=orjson.OPT_APPEND_NEWLINE)


def _gzipped(lines: Iterable[bytes]) -> tuple[bytes, int]:
    """The lines, packed, and how many bytes they are."""
    press, plain, found = zlib.compressobj(6, zlib.DEFLATED, 31), 0, []
    for line in lines:
        plain += len(line)
        found.append(press.compress(line))
    return b"".join([*found, press.flush()]), plain
