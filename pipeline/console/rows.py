"""Rows of a run and their answers; of one row all that was asked, and what came back."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from typing import Any

import orjson

from pipeline.console.screen import Screen, count, duration, err, money, out, styled, things
from pipeline.language import Data
from pipeline.prompts import Prompt
from pipeline.report.reading import shown
from pipeline.run.asking import Asked
from pipeline.terminal import escaped_json, one_line

_PAGED_ROWS = 2_000
"""Listed on a terminal: a pager is given all at once."""
_ANSWER_CHARS = 100


def show_rows(rows: Iterable[Mapping[str, Any]], none: str) -> None:
    """A line for each row: number, id, status, and how its answer begins; `none` is said where there is no row."""
    left = iter(rows)
    if (first := next(left, None)) is None:
        err.print(none)
        return
    left = chain([first], left)
    with paged():
        for row in islice(left, _PAGED_ROWS) if out.is_terminal else left:
            text = one_line(row["response"] or row["error"] or "")
            short = text if len(text) <= _ANSWER_CHARS else text[: _ANSWER_CHARS - 1] + "…"
            own = (
                f"{row['row']:>6}  " if row["key"] == str(row["row"]) else f"{row['row']:>6}  {one_line(row['key'])}  "
            )
            status = (Data(row["status"]), "" if row["status"] == "ok" else "yellow")
            out.print(styled((Data(own), "dim"), status, Data(f"  {short}")))
        if next(left, None) is not None:
            out.print(f"the first {_PAGED_ROWS:,} rows; `--json` has all", style="dim")


def show_row(row: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], asked: Asked) -> None:
    """One row: each prompt with its reply in the order in which they were asked, then the answer."""
    with paged():
        out.print(styled((f"row {row['row']}", "bold"), Data(f"   {one_line(row['key'])}   "), _numbers(row)))
        for name in ("error_kind", "error"):
            if row[name]:
                out.print(styled((Data(f"  {one_line(row[name])}"), "yellow")))
        if asked.why_not:
            out.print(styled((f"  the prompts cannot be made again: {one_line(asked.why_not)}", "yellow")))
        told = set()
        for prompt, at in asked.prompts:
            told.add(at)
            _show_prompt(prompt, None if at is None else calls[at])
        for at, call in enumerate(calls):
            if at not in told:
                _show_call(call)
        out.print(styled("\n", ("answer", "bold")))
        out.print(styled(Data(row["response"]) if row["response"] else "none"))


def show_rows_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """A document a line for each row."""
    for row in rows:
        show_line(shown(row))


def show_row_json(row: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], asked: Asked) -> None:
    """One row with its calls, each with its prompt where that is known."""
    prompts = {at: prompt for prompt, at in asked.prompts if at is not None}
    made = [
        shown(call) | ({"prompt": [_turn(each) for each in _turns(prompts[at])]} if at in prompts else {})
        for at, call in enumerate(calls)
    ]
    show_line(shown(row) | {"no_prompts": asked.why_not, "asked": made})


def paged(to: Screen = out) -> AbstractContextManager[object]:
    """What is printed meanwhile is shown by the user's pager, on a terminal."""
    if not to.is_terminal:
        return nullcontext()
    os.environ.setdefault("LESS", "-FRX")
    # Where the locale is missing or C, as in containers, less shows each byte of 中文 as <E4>: what we write is UTF-8.
    os.environ.setdefault("LESSCHARSET", "utf-8")
    return to.pager(styles=True)


def _show_prompt(prompt: Prompt, call: Mapping[str, Any] | None) -> None:
    if call is None:
        out.print(styled("\n", (_place(prompt.step, prompt.level, prompt.chunk, prompt.chunks), "bold")))
        out.print("  answered by a call of another row or run, or not yet", style="dim")
    else:
        out.print(styled("\n", (_of_call(call), "bold"), f"   {_numbers(call)}"))
    for side, text in _turns(prompt):
        out.print(f"{side}:", style="dim")
        out.print(styled(Data(text)))
    if call is not None:
        _show_reply(call)


def _show_call(call: Mapping[str, Any]) -> None:
    out.print(styled("\n", (_of_call(call), "bold"), f"   {_numbers(call)}"))
    _show_reply(call)


def _show_reply(call: Mapping[str, Any]) -> None:
    out.print("reply:" if call["paid"] else "no reply:", style="dim")
    out.print(styled(Data(call["text"] or call["error"] or "") or "none"))
    if call["extras"]:
        out.print("beside it:", style="dim")
        out.print(styled(Data(call["extras"])))


def _of_call(call: Mapping[str, Any]) -> str:
    return _place(call["step"], call["level"], call["chunk"], call["chunks"])


def _place(step: str, level: int, chunk: int, chunks: int) -> str:
    return step + (f", level {level}" if level else "") + (f", {chunk + 1} of {chunks}" if chunks > 1 else "")


def _turns(prompt: Prompt) -> list[tuple[str, str]]:
    system = [("system", prompt.params.system)] if prompt.params.system else []
    return [*system, *((turn.role, turn.text or "(a file)") for turn in prompt.content)]


def _turn(turn: tuple[str, str]) -> dict[str, str]:
    return {"role": turn[0], "text": turn[1]}


def _numbers(of: Mapping[str, Any]) -> str:
    output = (of["output_tokens"] or 0) + (of["thinking_tokens"] or 0)
    cost = "cost unknown" if of["cost_usd"] is None else money(of["cost_usd"])
    calls = [things(of["calls"], "call")] if "calls" in of else []
    tokens = f"{count(of['input_tokens'] or 0)} tokens in, {count(output)} out"
    lane = [of["lane"]] if of.get("lane", "standard") != "standard" else []
    seconds = f"{of['latency_s']:.2f} s" if of["latency_s"] < 10 else duration(of["latency_s"])
    return "   ".join([of["status"], of["model"] or "", *lane, *calls, tokens, cost, seconds])


def show_line(value: object) -> None:
    """A JSON document in a line on stdout; what a terminal would obey is escaped in it."""
    sys.stdout.buffer.write(f"{escaped_json(orjson.dumps(value).decode())}\n".encode())
    sys.stdout.flush()
