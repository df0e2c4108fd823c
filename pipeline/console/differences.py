"""Two runs side by side: what differs of their settings, what they came to, and answers beside each other."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, zip_longest
from typing import Any

import orjson
from rich.text import Text

from pipeline.console.rows import paged, show_line
from pipeline.console.screen import Screen, count, duration, money, out, show_grid, styled, things
from pipeline.language import Data
from pipeline.report.differences import Comparison, MatchedBy, Row, Setting, Side
from pipeline.terminal import one_line

_BESIDE_CELLS = 100
"""On a terminal of so many cells answers stand beside each other, else below."""
_GAP = " │ "
_ANSWER_CHARS = 1_200
"""Of an answer at most, from a little before the place where it begins to differ; `pipeline show` has all."""
_BEFORE_CHARS = 100
_ALONE_CHARS = 300
"""Of an answer that has none beside it."""
_SHORT_VALUE = 60
_PAGED_ROWS = 2_000
"""Shown on a terminal: a pager is given all at once."""
_WORD = re.compile(r"[^\W\u2e80-\u9fff\uac00-\ud7af]+|\s+|.", re.DOTALL)  # in Chinese each character
_MATCHED: Mapping[MatchedBy, str] = {
    "id": "found in both by their ids",
    "table": "found in both by their numbers: it is the same table",
    "content": "found in both by their content",
    "number": "compared by their numbers: there are no ids, and their contents cannot be compared. Where rows were put"
    " in or taken out, one number is of two rows",
}


def show_differences(found: Comparison, rows: int | None, to: Screen = out) -> None:
    """What differs between two runs, and so many rows whose answers do; None: all."""
    with paged(to):
        old, new = found.old, found.new
        for side in (old, new):
            kind = "" if side.manifest.kind == "real" else f"   {side.manifest.kind}: the emulator's answers"
            told = f"generation {side.manifest.generation}   {side.summary.status}"
            told += f"   {duration(side.summary.seconds)}{kind}"
            to.print(styled(("+ " if side is new else "- ", "bold"), Data(f"{side.directory}   "), (told, "dim")))
        _show_settings(found, to)
        _show_numbers(found, to)
        _show_rows(found, rows, to)


def show_differences_json(found: Comparison, rows: int | None) -> None:
    """A document of what differs, then one a line for each row that does, up to so many."""
    show_line(found.as_json())
    for row in islice(found.differing(), rows):
        show_line(row.as_json())


def _show_settings(found: Comparison, to: Screen) -> None:
    to.print()
    if found.tables_differ:
        name = one_line(found.new.manifest.source_path)
        to.print(styled((f"the input is another or has changed: {name}", "yellow")))
    if not found.settings:
        to.print("no setting differs that can change an answer", style="dim")
    for setting in found.settings:
        _show_setting(setting, to)


def _show_setting(setting: Setting, to: Screen) -> None:
    old, new = _written(setting.old), _written(setting.new)
    if all(len(text) <= _SHORT_VALUE and "\n" not in text for text in (old, new)):
        to.print(styled((Data(f"{one_line(setting.name)}   "), "bold"), Data(f"{one_line(old)} → {one_line(new)}")))
        return
    to.print(styled((Data(one_line(setting.name)), "bold")))
    for line in islice(difflib.unified_diff(old.splitlines(), new.splitlines(), n=1, lineterm=""), 2, None):
        is_place = line.startswith("@@")
        style = "dim" if is_place else {"+": "green", "-": "red"}.get(line[:1], "")
        to.print(styled((Data("  …" if is_place else f"  {line[:1]} {line[1:]}"), style)), indent=4)


def _written(value: Any) -> str:
    """A value as a person reads it: text as it stands, all else as JSON."""
    if value is None:
        return "unset"
    if isinstance(value, str):
        return value
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 if len(str(value)) > _SHORT_VALUE else 0).decode()


def _show_numbers(found: Comparison, to: Screen) -> None:
    old, new = found.old, found.new
    rows = [("rows with an outcome", old.rows.height, new.rows.height)]
    rows += [
        (Data(f"  {cause}"), old.outcomes.get(cause, 0), new.outcomes.get(cause, 0))
        for cause in dict.fromkeys((*old.outcomes, *new.outcomes))
    ]
    lines = [(name, count(before), count(after), _more(before, after)) for name, before, after in rows]
    lines.append(("paid by the run itself", *_usd(_paid(old), _paid(new))))
    both, (before, after) = found.counts["same"] + found.counts["changed"], found.matched.sums
    lines.append((f"of {things(both, 'row')} in both", "", "", ""))
    for name, *tokens in (
        ("  tokens in", before.input_tokens, after.input_tokens),
        ("  tokens out", before.output_tokens, after.output_tokens),
    ):
        lines.append((name, count(tokens[0]), count(tokens[1]), _off(*tokens)))
    lines.append(("  cost", *_usd(before.usd, after.usd)))
    to.print()
    show_grid(("", "before", "after", ""), lines, to)


def _paid(side: Side) -> float | None:
    return None if side.summary.unpriced else float(side.summary.cost_usd)


def _usd(old: float | None, new: float | None) -> tuple[str, str, str]:
    before, after = ("unknown" if usd is None else money(usd) for usd in (old, new))
    return before, after, "" if old is None or new is None else _off(old, new)


def _more(old: int, new: int) -> str:
    return f"{new - old:+,}" if old != new else ""


def _off(old: float, new: float) -> str:
    return f"{new / old - 1:+.1%}" if old and old != new else ""


def _show_rows(found: Comparison, rows: int | None, to: Screen) -> None:
    counts = found.counts
    told = f"{count(counts['same'])} the same, {count(counts['changed'])} changed"
    told += f", {count(counts['new'])} new, {count(counts['gone'])} gone"
    if counts["not_reached"]:
        told += f", {count(counts['not_reached'])} not reached by the second so far"
    to.print(styled("\n", ("rows  ", "bold"), f"{told}; {_MATCHED[found.matched.by]}"))
    for before, after, number in found.moved:
        to.print(styled(f"  {things(number, 'row')}: ", Data(f"{one_line(before)} → {one_line(after)}")))
    most = rows if not to.is_terminal else _PAGED_ROWS if rows is None else min(rows, _PAGED_ROWS)
    left = counts["changed"] + counts["new"] + counts["gone"]
    for row in islice(found.differing(), most):
        left -= 1
        _show_row(row, to)
    if left:
        how = "`--all` shows them, `--rows N` so many" if most == rows else "`--all --json` has them"
        to.print(styled("\n", (f"{things(left, 'row')} more: {how}", "dim")))


def _show_row(row: Row, to: Screen) -> None:
    remark = "   its input changed too" if row.has_changed else ""
    to.print(styled("\n", (_named(row), "bold"), f"   {row.change}   ", (Data(_told(row)), "yellow"), (remark, "dim")))
    if row.change != "changed":
        alone = _answer(row.new or row.old)
        to.print(_indented(alone if len(alone) <= _ALONE_CHARS else f"{alone[:_ALONE_CHARS]} …", to))
        return
    old, new = _marked(*_excerpts(_answer(row.old), _answer(row.new)))
    if to.is_terminal and to.width >= _BESIDE_CELLS:
        _show_beside(old, new, to)
        return
    for mark, text in (("-", old), ("+", new)):
        to.print(_indented(text, to, mark))


def _named(row: Row) -> str:
    either = row.new or row.old
    assert either
    return Data(one_line(either["key"])) if either["key"] != str(either["row"]) else f"row {either['row']}"


def _told(row: Row) -> str:
    """What became of the row in both."""
    outcomes = [one_line(_outcome(side)) for side in (row.old, row.new) if side]
    return " → ".join(dict.fromkeys(outcomes))


def _outcome(row: Mapping[str, Any]) -> str:
    cause = None if row["status"] == "ok" else row["error_kind"] or row["finish_reason"]
    return " ".join(filter(None, (row["status"], cause)))


def _answer(row: Mapping[str, Any] | None) -> str:
    return (row and (row["response"] or row["error"])) or "none"


def _excerpts(old: str, new: str) -> tuple[str, str]:
    """Both as far as they are shown: of long ones from a little before the first difference."""
    begin = 0
    if max(len(old), len(new)) > _ANSWER_CHARS:
        alike = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        begin = max(0, alike - _BEFORE_CHARS)
    cut = []
    for text in (old, new):
        left = len(text) - begin - _ANSWER_CHARS
        more = f" … {count(left)} more characters" if left > 0 else ""
        cut.append(f"{'…' if begin else ''}{text[begin : begin + _ANSWER_CHARS]}{more}")
    return cut[0], cut[1]


def _marked(old: str, new: str) -> tuple[Text, Text]:
    """Both with the words marked that the other has not."""
    words = _WORD.findall(old), _WORD.findall(new)
    parts: tuple[list[str | tuple[str, str]], ...] = ([], [])
    for how, a, b, c, d in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for side, text in ((0, "".join(words[0][a:b])), (1, "".join(words[1][c:d]))):
            parts[side].append(Data(text) if how == "equal" else (Data(text), "bold"))
    return styled(*parts[0]), styled(*parts[1])


def _show_beside(old: Text, new: Text, to: Screen) -> None:
    width = (to.width - len(_GAP) - 2) // 2
    for left, right in zip_longest(_lines(old, width, to), _lines(new, width, to), fillvalue=Text("")):
        to.print(Text.assemble("  ", left, " " * (width - left.cell_len), (_GAP, "dim"), right), indent=0)


def _indented(text: str | Text, to: Screen, mark: str = " ") -> Text:
    lines = _lines(styled(Data(text)) if isinstance(text, str) else text, to.width - 4 if to.is_terminal else None, to)
    return Text("\n").join(Text.assemble((f"{mark} ", "bold"), "  " if mark == " " else "", line) for line in lines)


def _lines(text: Text, width: int | None, to: Screen) -> Iterable[Text]:
    lines: Iterator[Text] = iter(text.split("\n", allow_blank=True))
    for line in lines:
        line.expand_tabs(4)
        if width is None:
            yield line
        else:
            yield from line.wrap(to, width) or [Text("")]
