"""`pipeline init`: a job file for a table or a folder."""

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pipeline import machine
from pipeline.errors import InputError, PipelineError
from pipeline.language import VARIABLE, Data, current, spoken
from pipeline.process import quick_imports
from pipeline.terminal import one_line

if TYPE_CHECKING:
    from pipeline.starting import Begun, Found, Language


class TaskName(Enum):
    """What a job may be begun for."""

    summarize = "summarize"
    generate = "generate"
    extract = "extract"
    classify = "classify"
    translate = "translate"
    images = "images"


_SHOWN = 20
_DOES = {
    "summarize": "bullet points of each text",
    "generate": "a text from what stands in each row",
    "extract": "a form filled in from each text",
    "classify": "one of several classes for each text",
    "translate": "a translation of each text",
    "images": "a question about each file",
}
"""Each template in a few words."""


def init(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="TABLE|FOLDER",
            help="a table, a pattern of tables, or a folder of documents, images, sound or videos; default: the one"
            " table that is here, or else an example",
        ),
    ] = None,
    template: Annotated[
        TaskName | None,
        typer.Option("--template", help="what is to be done; default: what fits the columns"),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="the column that is asked about")] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="FILE", help="the job file; default: here, named as the input"),
    ] = None,
) -> None:
    """Write a job file for a table or a folder.

    It is made from the columns that are there, with a comment on each setting, and it is checked as a run would check
    it. Nothing is sent, and nothing is written over. At most two questions are asked, and none without a terminal.
    """
    with quick_imports():
        from pipeline import console, starting
        from pipeline.starting import Task

    asking = sys.stdin.isatty() and sys.stderr.isatty()
    if what is None:
        what = _only_input(asking)
    with ExitStack() as kept:
        with console.busy("reading the table"):
            opening = starting.opened_example(_language() or "en") if what is None else starting.opened(what)
            found = kept.enter_context(opening)
        task, why = starting.chosen(found.profile)
        if template is not None:
            task, why = template.value, "as `--template` says"
        elif asking:
            does = {name: told for name, told in _DOES.items() if name != "images" or found.profile.media}
            wanted = cast(Task, _asked("What is to be done?", does, task))
            task, why = wanted, why if wanted == task else "as you chose"
        others = [each.name for each in found.profile.texts] if task not in ("generate", "images") else []
        if text is None and asking and len(others) > 1:
            text = _asked("Which column is asked about?", dict.fromkeys(others, ""), others[0])
        with console.busy("checking the job"):
            begun = starting.begin(found, task, _language(), text=text, to=to)
    _show(begun, found, why)


def _only_input(asking: bool) -> str | None:
    """What a bare `pipeline init` is about: the one table that is here, or what is chosen; None: nothing is here."""
    from pipeline import starting

    here = starting.around(Path())
    tables = [name for name in here if not name.endswith("/")]
    if len(tables) == 1:
        return tables[0]
    if here and asking:
        return _asked("Which of these?", dict.fromkeys(here, ""), here[0])
    if here:
        shown = "\n".join(here[:_SHOWN])
        raise InputError(f"say what the job is about; here are:\n{shown}", f"`pipeline init {_shell(here[0])}`")
    if starting.holds_any(Path()):
        raise InputError(
            "there is no table here, but there are files that could be asked about",
            "`pipeline init .` makes a row of each; in an empty folder `pipeline init` makes an example",
        )
    return None


def _asked(question: str, options: Mapping[str, str], default: str) -> str:
    """One of the options, each with what it means, by its name or its number."""
    from pipeline import console

    numbered = {str(number): option for number, option in enumerate(options, 1)}
    rows = [(number, Data(option), options[option]) for number, option in numbered.items()]
    console.show_columns(console.err, rows)
    while True:
        answer = str(typer.prompt(spoken(question), default=one_line(default), err=True)).strip()
        if answer == one_line(default):
            return default
        if answer in options or answer in numbered:
            return answer if answer in options else numbered[answer]
        console.err.print("that is none of these: type its number")


def _show(begun: "Begun", found: "Found", why: str) -> None:
    from pipeline import console

    start, spec = begun.start, begun.job.spec
    console.out.print(Data(f"{begun.job.path}: {start.task}, {spoken(why)}"))
    count = console.things(found.rows, "row")
    told = f"{count}, written just now" if found.listed else count
    rows: list[tuple[str, str, str]] = [("input", Data(start.path), told)]
    if spec.input.encoding:
        rows.append(("encoding", Data(spec.input.encoding), "found by looking at it: compare a few characters"))
    if start.text:
        longest = f"the longest has some {start.longest_tokens:,} tokens"
        if spec.chunk:
            longest = f"the longest has some {start.longest_tokens:,} tokens; cut above {spec.chunk.max_tokens:,}"
        rows.append(("text", Data(start.text.name), longest))
    rows.append(("id", "the row number" if start.id is None else Data(start.id), ""))
    rows.append(("output", Data(spec.output.path), ""))
    console.show_columns(console.out, rows)
    if found.left_out:
        console.out.print(f"{console.things(found.left_out, 'file')} of the folder left out: of another kind")
    for warning in found.warnings:
        console.out.print(warning)
    if start.task == "translate" and start.answer_tokens < 2 * start.longest_tokens:
        console.out.print("the longest texts are too long for one answer, and their translations may be cut")
    console.out.print()
    console.out.print("next:")
    program, job = _program(), _shell(str(begun.job.path))
    for command in ("estimate", "check", "run"):
        console.out.print(Data(f"  {program} {command} {job}"))
    rehearsal = f"{program} run {job} --offline"
    if _has_key(begun):
        console.show_hint(f"`{rehearsal}` rehearses it without a key, at no cost")
    else:
        console.show_hint(
            f"the key first: `export GEMINI_API_KEY=…`; `{rehearsal}` rehearses it without one, at no cost"
        )


def _has_key(begun: "Begun") -> bool:
    from pipeline.job.job import key_of

    try:
        key_of(begun.job)
    except PipelineError:
        return False
    return True


def _language() -> "Language | None":
    """The language that the terminal's user reads, where it is told; None: that of the input."""
    return "zh" if current() == "zh" else "en" if os.environ.get(VARIABLE) else None


def _program() -> str:
    """How this program is called from here."""
    called = sys.argv[0]
    if called.endswith("__main__.py"):
        return f"{_shell(sys.executable)} -m pipeline"
    found = shutil.which("pipeline")
    if Path(called).name == "pipeline" and not (found and Path(called).exists() and Path(found).samefile(called)):
        return _shell(called)
    return "pipeline"


def _shell(word: str) -> str:
    """A word as the shell takes it; a name that begins like a flag is written as a path."""
    if word.startswith("-"):
        word = f"./{word}"
    return machine.quoted(word)
