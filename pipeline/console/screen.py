"""Words, numbers and columns on the screen. Data goes to stdout, everything else to stderr.

All of it passes `Screen`, on which the text of others is only text: no markup, nothing that a terminal obeys.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from decimal import Decimal
from json import dumps
from typing import Any

import orjson
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from pipeline.errors import PipelineError
from pipeline.language import Data, spoken
from pipeline.terminal import escaped_json, one_line, visible

Row = tuple[str, str, str]
"""Name, value and remark."""

_WIDE = r"\u2e80-\u2fff\u3040-\ua4cf\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of languages without spaces: a line may break between any two."""
_CLOSING, _OPENING = r"、。〉》」』】〕〗！），．：；？｝’”…", r"〈《「『【〔〖（｛‘“"
_UNIT = re.compile(
    rf"[{_OPENING}]*(?:[{_WIDE}]|(?:`[^`\n]*`|[^\s{_WIDE}{_CLOSING}{_OPENING}])+|[{_CLOSING}]|[{_OPENING}])[{_CLOSING}]*"
)
"""A word, a character of Chinese with its punctuation, or a command in backticks, which is copied whole."""
_GAP = "   "
_SOON_S = 1.0  # before it is worth a word that documents are read
_MOST_VALUE = 40  # cells: a longer value, as a path, moves no other remark
_LEAST_REMARK = 24  # cells beside the values: a remark that has less goes on below them
_MOST_MISTAKES = 8
_NUMBER = re.compile(r"\s*[-+$]{0,2}[\d,.]+( ?%| M|[* ])?|\?||as said|not seen|nothing")  # or what stands for one


def styled(*parts: str | tuple[str, str]) -> Text:
    """Parts with or without a style, of which nothing is obeyed or hidden; line feeds stay.

    A part of ours is said in the terminal's language; text of others that is a part of its own is `language.Data`.
    """
    return Text.assemble(*(_said(part) if isinstance(part, str) else (_said(part[0]), part[1]) for part in parts))


def _said(text: str) -> str:
    return visible(spoken(text))


class Screen(Console):
    """A console whose every word, however it comes, is text."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)

    @property
    def size(self) -> ConsoleDimensions:
        """As `Console.size`, which takes every dumb terminal to have 80 columns."""
        if not self.is_dumb_terminal:
            return super().size
        given, size = os.environ.get("COLUMNS", ""), os.terminal_size((0, 0))
        for stream in (sys.__stderr__, sys.__stdout__, sys.__stdin__):
            with suppress(AttributeError, ValueError, OSError):  # closed, or no terminal
                size = os.get_terminal_size(stream.fileno())  # type: ignore[union-attr]
                break
        return ConsoleDimensions(int(given) if given.isdecimal() else size.columns or 80, size.lines or 25)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def print(self, *objects: Any, indent: int | None = None, **options: Any) -> None:
        """As `Console.print`; a plain string is `styled`, and on a terminal a long line is folded between words.

        What follows is indented by `indent` cells, or by two more than the line.
        """
        shown = [styled(each) if isinstance(each, str) else each for each in objects]
        if self.is_terminal:
            shown = [folded(each, self.width, indent) if isinstance(each, Text) else each for each in shown]
        super().print(*shown, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As `Console.render`, once more for text that was made elsewhere."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def on_broken_pipe(self) -> None:
        """Whoever read it has enough, as `head` has: that ends nothing."""
        self.quiet = True


def folded(text: Text, width: int, indent: int | None = None) -> Text:
    """`text` with lines of at most `width` cells, broken between words and never in a command: a long one stays."""
    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        plain = line.plain
        inner = len(plain) - len(plain.lstrip(" ")) + 2 if indent is None else indent
        first, *others = line.divide(_breaks(plain, width, inner))
        first.rstrip()
        lines.append(first)
        for other in others:
            other.rstrip()
            lines.append(Text.assemble(" " * inner, other))
    return Text("\n", style=text.style).join(lines)


def _breaks(line: str, width: int, indent: int) -> list[int]:
    """Where the lines begin into which `line` is folded, but the first."""
    found: list[int] = []
    begin, room, is_empty = 0, width, True
    for unit in _UNIT.finditer(line):
        if not is_empty and cell_len(line[begin : unit.end()]) > room:
            begin, room = unit.start(), width - indent
            found.append(begin)
        is_empty = False
    return found


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
    return err.status(spoken(text)) if err.is_terminal else nullcontext()


@contextmanager
def reading() -> Iterator[Callable[[int, int], None]]:
    """Say how many documents are read, where stderr is a terminal and it takes a while."""
    begun, status = time.monotonic(), err.status(spoken("reading documents"))

    def heard(read: int, all: int) -> None:
        if err.is_terminal and time.monotonic() > begun + _SOON_S:
            status.update(f"{spoken('reading documents')}: {count(read)} / {count(all)}")
            status.start()

    try:
        yield heard
    finally:
        status.stop()


def show_error(error: PipelineError, word: str = "error") -> None:
    """`error: what`, where, then a blank line and the next command; of several mistakes in a file each with its own."""
    all_of_them = (error, *error.others)
    for number, each in enumerate(all_of_them[:_MOST_MISTAKES]):
        before = "\n" if number else ""
        err.print(styled(before, (f"{word}: ", "bold red" if word == "error" else "bold yellow"), each.message))
        if each.hint and error.others:
            err.print(styled(("hint: ", "bold cyan"), each.hint))
    if left := all_of_them[_MOST_MISTAKES:]:
        err.print(f"\n{things(len(left), 'more mistake')}: `pipeline check` shows all")
    if error.hint and not error.others:
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
    """What went wrong as the one JSON document on stdout, in a line."""
    told = dumps({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
    sys.stdout.buffer.write(f"{escaped_json(told)}\n".encode())
    sys.stdout.flush()


def show_columns(to: Screen, rows: Sequence[Row]) -> None:
    """Name, value and remark in columns; the remark starts where the longest value with one ends, but for paths."""
    shown = [tuple(one_line(spoken(cell)) for cell in row) for row in rows]
    names = max(cell_len(row[0]) for row in shown)
    values = max((length for row in shown if row[2] and (length := cell_len(row[1])) <= _MOST_VALUE), default=0)
    start = 4 + names
    beside = start + values + len(_GAP)
    room = max(_LEAST_REMARK, *(cell_len(unit) for row in shown for unit in _UNIT.findall(row[2])), 0)
    below = beside if beside + room <= to.width else start
    for name, value, remark in shown:
        line = f"{_padded(value, values)}{_GAP}{remark}".rstrip()
        to.print(styled((Data(f"  {_padded(name, names)}  "), "dim"), Data(line)), indent=below if remark else start)


def show_grid(headers: Sequence[str], lines: Sequence[Sequence[str]], to: Screen = out) -> None:
    """A table whose columns are as wide as their cells, numbers to the right; nothing is cut.

    On a terminal that is too narrow words in the last column are folded, or else each row is told cell by cell.
    """
    to_the_right = [all(_NUMBER.fullmatch(line[at]) for line in lines) for at in range(len(headers))]
    headers = [spoken(header) for header in headers]
    lines = [tuple(one_line(spoken(cell)) for cell in line) for line in lines]
    columns = list(zip(*lines, strict=True)) if lines else [()] * len(headers)
    widths = [max(map(cell_len, (header, *cells))) for header, cells in zip(headers, columns, strict=True)]
    before_last = sum(widths[:-1]) + 2 * len(widths) - 2
    too_wide = to.is_terminal and before_last + widths[-1] > to.width
    if too_wide and (to_the_right[-1] or to.width - before_last < _LEAST_REMARK):
        _show_one_by_one(headers, lines, to, numbered=to_the_right[0])
        return
    for number, row in enumerate((headers, *lines)):
        padded = (
            " " * (width - cell_len(cell)) + cell if right else _padded(cell, width)
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        )
        to.print(Data("  ".join(padded).rstrip()), indent=before_last, style="" if number else "dim")


def _show_one_by_one(headers: Sequence[str], lines: Sequence[Sequence[str]], to: Screen, *, numbered: bool) -> None:
    """Each row under its first cell, as `header cell`; a cell without a header stands alone, an empty one nowhere."""
    if not numbered:
        to.print(Data(headers[0]), style="dim")
    names = [header.strip() for header in headers[1:]]
    for first, *cells in lines:
        to.print(Data(f"{headers[0]} {first}" if numbered else first))
        indent = len(first) - len(first.lstrip(" ")) + 2
        told = (f"{name} {cell.strip()}".strip() for name, cell in zip(names, cells, strict=True) if cell.strip())
        line = ""
        for each in told:
            if line and indent + cell_len(line + _GAP + each) > to.width:
                to.print(Data(" " * indent + line))
                line = ""
            line = f"{line}{_GAP}{each}" if line else each
        to.print(Data(" " * indent + line))


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))
