"""Words, numbers and columns on the screen. Data goes to stdout, everything else to stderr."""

import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal

import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.errors import PipelineError

Row = tuple[str, str, str]
"""Name, value and remark."""

_NUMBER = re.compile(r"\s*[-+$]{0,2}[\d,.]+( ?%| M|[* ])?|\?||as said|not seen|nothing")  # or what stands for one

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def money(amount: Decimal | float) -> str:
    """USD with as many places as a small amount needs."""
    value = float(amount)
    if value == 0:
        return "$0.00"
    return f"${value:,.2f}" if value >= 0.995 else f"${value:.4f}" if value >= 0.0001 else f"${value:.6f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 12 s, 34 min, 5 h 12 min, 2 d 3 h."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def count(number: float) -> str:
    """A number of things: 17,902, or 48.1 M above ten million."""
    return f"{number / 1e6:,.1f} M" if number >= 10_000_000 else f"{round(number):,}"


def things(number: float, name: str) -> str:
    """1 row, 2 rows."""
    return f"{count(number)} {name}" if round(number) == 1 else f"{count(number)} {name}s"


def busy(text: str) -> AbstractContextManager[object]:
    """Say what is being done while it takes a while, where stderr is a terminal."""
    return err.status(text) if err.is_terminal else nullcontext()


def show_error(error: PipelineError, word: str = "error") -> None:
    """`error: what`, where, then a blank line and the next command."""
    err.print(Text.assemble((f"{word}: ", "bold red" if word == "error" else "bold yellow"), error.message))
    if error.hint:
        show_hint(error.hint)


def show_hint(text: str) -> None:
    """The next command."""
    err.print(Text.assemble("\n", ("hint: ", "bold cyan"), text))


def show_json(value: object) -> None:
    """One JSON document on stdout, in UTF-8 wherever it goes."""
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.flush()


def show_columns(to: Console, rows: Sequence[Row]) -> None:
    """Name, value and remark in columns; the remark starts where the longest value with one ends."""
    names = max(len(row[0]) for row in rows)
    values = max((len(row[1]) for row in rows if row[2]), default=0)
    for name, value, remark in rows:
        to.print(Text.assemble((f"  {name:<{names}}  ", "dim"), f"{value:<{values}}   {remark}".rstrip()))


def show_grid(headers: Sequence[str], lines: Sequence[Sequence[str]], to: Console = out) -> None:
    """A table whose columns are as wide as their cells, numbers to the right; nothing is wrapped or cut."""
    columns = list(zip(*lines, strict=True)) if lines else [()] * len(headers)
    widths = [max(map(cell_len, (header, *cells))) for header, cells in zip(headers, columns, strict=True)]
    to_the_right = [all(_NUMBER.fullmatch(cell) for cell in cells) for cells in columns]
    for number, row in enumerate((headers, *lines)):
        padded = (
            " " * (width - cell_len(cell)) + cell if right else cell + " " * (width - cell_len(cell))
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        )
        to.print("  ".join(padded).rstrip(), style="" if number else "dim", markup=False)
