"""Words, numbers and columns on the screen. Data goes to stdout, everything else to stderr.

All of it passes `Screen`, on which the text of others is only text: no markup, nothing that a terminal obeys.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from json import dumps
from typing import Any

import orjson
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from pipeline.errors import PipelineError
from pipeline.terminal import escaped_json, one_line, visible

Row = tuple[str, str, str]
"""Name, value and remark."""

_NUMBER = re.compile(r"\s*[-+$]{0,2}[\d,.]+( ?%| M|[* ])?|\?||as said|not seen|nothing")  # or what stands for one


def styled(*parts: str | tuple[str, str]) -> Text:
    """Parts with or without a style, of which nothing is obeyed or hidden; line feeds stay."""
    return Text.assemble(*(visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts))


class Screen(Console):
    """A console whose every word, however it comes, is text."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`; a plain string is `styled`."""
        super().print(*(styled(each) if isinstance(each, str) else each for each in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As `Console.render`, once more for text that was made elsewhere."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def on_broken_pipe(self) -> None:
        """Whoever read it has enough, as `head` has: that ends nothing."""
        self.quiet = True


out = Screen()
err = Screen(stderr=True)


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
    err.print(styled((f"{word}: ", "bold red" if word == "error" else "bold yellow"), error.message))
    if error.hint:
        show_hint(error.hint)


def show_hint(text: str) -> None:
    """The next command."""
    err.print(styled("\n", ("hint: ", "bold cyan"), text))


def show_json(value: object) -> None:
    """One JSON document on stdout, in UTF-8 wherever it goes; what a terminal would obey is escaped in it."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except TypeError:  # half a character, as in the name of a file
        text = dumps(value, indent=2)
    sys.stdout.buffer.write(f"{escaped_json(text)}\n".encode())
    sys.stdout.flush()


def show_failure(error: PipelineError) -> None:
    """What went wrong as the one JSON document on stdout."""
    show_json({"error": error.message, "hint": error.hint})


def show_columns(to: Console, rows: Sequence[Row]) -> None:
    """Name, value and remark in columns; the remark starts where the longest value with one ends."""
    shown = [tuple(map(one_line, row)) for row in rows]
    names = max(cell_len(row[0]) for row in shown)
    values = max((cell_len(row[1]) for row in shown if row[2]), default=0)
    for name, value, remark in shown:
        line = f"{_padded(value, values)}   {remark}".rstrip()
        to.print(styled((f"  {_padded(name, names)}  ", "dim"), line))


def show_grid(headers: Sequence[str], lines: Sequence[Sequence[str]], to: Console = out) -> None:
    """A table whose columns are as wide as their cells, numbers to the right; nothing is wrapped or cut."""
    lines = [tuple(map(one_line, line)) for line in lines]
    columns = list(zip(*lines, strict=True)) if lines else [()] * len(headers)
    widths = [max(map(cell_len, (header, *cells))) for header, cells in zip(headers, columns, strict=True)]
    to_the_right = [all(_NUMBER.fullmatch(cell) for cell in cells) for cells in columns]
    for number, row in enumerate((headers, *lines)):
        padded = (
            " " * (width - cell_len(cell)) + cell if right else _padded(cell, width)
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        )
        to.print("  ".join(padded).rstrip(), style="" if number else "dim")


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))
