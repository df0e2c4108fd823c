"""Writes docs/reference.md from the code: `.venv/bin/python tests/reference.py`."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel

from pipeline import errors, events
from pipeline.cli.app import app
from pipeline.console.checks import STEP_KEYS
from pipeline.console.plans_json import PLAN_KEYS
from pipeline.console.settings import SETTING_KEYS
from pipeline.emulator.batch_faults import BATCH_GROUPS
from pipeline.emulator.faults import GROUPS, Bill
from pipeline.environment import VARIABLES
from pipeline.job import settings
from pipeline.records import CAUSES, FROM_FLEX, PASSING, STATUS_MEANS
from pipeline.report import RUN_KEYS
from pipeline.report.calls import CALL_COLUMNS, CALL_MEANS
from pipeline.report.causes import CAUSE_KEYS
from pipeline.report.differences import DIFF_KEYS
from pipeline.run.webhook import POST_KEYS
from pipeline.sections import JobFile
from pipeline.store.export import COLUMN_MEANS, PENDING, RESULT_COLUMNS
from pipeline.store.fallen import FROM_BATCH
from pipeline.store.parts import CALLS_SCHEMA, RESULTS_SCHEMA
from pipeline.store.units import SCHEMA as SHARDS_SCHEMA

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"

_HEAD = """# Reference

This page is made from the code by `.venv/bin/python tests/reference.py`, and a test compares the two: change the words
in the code, beside what they describe.

[Job file](#job-file) · [Commands](#commands) · [Exit codes](#exit-codes) · [Output](#output) ·
[JSON](#json) · [Errors](#errors) · [Environment](#environment) · [Faults of the emulator](#faults-of-the-emulator) ·
[Faults of batches](#faults-of-batches) · [Tables of the run directory](#tables-of-the-run-directory) ·
[Events of run.log](#events-of-runlog)
"""
_BILLS: Mapping[Bill, str] = {
    "no": "no",
    "yes": "yes",
    "unread": "yes, and cannot be read",
    "lost": "yes, and never arrives whole",
}


def sections() -> dict[str, type[BaseModel]]:
    """Section name → its model, in file order."""
    found = {}
    for name, field in JobFile.model_fields.items():
        options = (field.annotation, *get_args(field.annotation))
        found[name] = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return found


def commands() -> dict[str, Any]:
    """Name of each command → the command, in the order of the help."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def exceptions() -> list[type[errors.PipelineError]]:
    """What can stop a run, in the order of the module."""
    own = (each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.PipelineError))
    return [each for each in own if each is not errors.PipelineError]


def page() -> str:
    """The whole page."""
    parts = (_HEAD, _job_file(), _commands(), _exit_codes(), _output(), _json(), _errors(), _environment(), _faults())
    return "\n".join(
        line for part in (*parts, _tables(), _events()) for line in ([part] if isinstance(part, str) else part)
    )


def _job_file() -> Iterator[str]:
    yield "## Job file\n"
    yield "`pipeline settings NAME` shows one with an example; `pipeline settings --schema` prints a JSON Schema.\n"
    for section in settings.sections():
        yield f"### {section.head}\n\n{_linked(section.about)}\n"
        yield from _table(
            ("setting", "type", "default", "what it is"),
            (
                (f"`{each.key}`", each.kind, _default(each), _linked(each.about.replace("\n", " ")))
                for each in section.settings
            ),
        )


def _default(setting: settings.Setting) -> str:
    return "required" if setting.required else f"`{setting.default}`" if setting.default else ""


def _linked(text: str) -> str:
    """Pages that are named, as links from this one."""
    return re.sub(r"\bdocs/((\w+)\.md[\w#\-]*)", r"[\2](\1)", text)


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    yield from _table(
        ("command", "what it does"),
        ((f"`{_usage(name, each)}`", _paragraphs(each.help)[0]) for name, each in commands().items()),
    )
    yield "`pipeline --version` (`-V`) tells the version, `pipeline help COMMAND` or `pipeline COMMAND --help` what"
    yield "a command takes. `pipeline --install-completion` has bash, zsh, fish or PowerShell complete commands, flags,"
    yield "job files, runs, models and settings; `pipeline --show-completion` prints the script for it.\n"
    for name, command in commands().items():
        yield f"### {_usage(name, command)}\n"
        for paragraph in _paragraphs(command.help):
            if paragraph.split(":")[0] not in GROUPS:
                yield (
                    f"{paragraph} [these](#faults-of-the-emulator).\n" if paragraph.endswith(":") else f"{paragraph}\n"
                )
        yield f"`{command.epilog}`\n"
        options = [each for each in command.params if each.opts[0].startswith("-") and each.name != "help"]
        yield from _table(("flag", "default", "what it does"), (_flag(each) for each in options))


def _usage(name: str, command: Any) -> str:
    arguments = [each for each in command.params if not each.opts[0].startswith("-")]
    return " ".join(("pipeline", name, *(each.metavar if each.required else f"[{each.metavar}]" for each in arguments)))


def _flag(option: Any) -> tuple[str, str, str]:
    takes, default = f" {option.metavar}", option.default
    if option.is_flag:
        takes, default = "", None
    elif option.type_descriptor.is_choice:
        takes = f" {'|'.join(each.value for each in option.type_descriptor.choices)}"
        default = default and default.value
    flags = ", ".join(f"`{each}{takes}`" for each in reversed(option.opts))
    return flags, "" if default in (None, "") else f"`{default}`", option.help


def _paragraphs(text: str) -> list[str]:
    return [" ".join(each.split()) for each in text.split("\n\n")]


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield from _table(("code", "meaning"), ((str(code), meaning) for code, meaning in errors.EXIT_CODES.items()))


def _output() -> Iterator[str]:
    yield "## Output\n"
    yield "### Columns\n"
    yield "They follow the input's own columns.\n"
    columns = ((f"`{name}`", f"{RESULT_COLUMNS[name]}", means) for name, means in COLUMN_MEANS.items())
    yield from _table(("column", "type", "what stands in it"), columns)
    yield "### Status\n"
    statuses = (*STATUS_MEANS.items(), (PENDING, "not reached yet"))
    yield from _table(("`status`", "meaning"), ((f"`{name}`", means) for name, means in statuses))
    yield "### Causes\n"
    yield from _table(
        ("`error_kind`", "what happened", "tried again by the next run"),
        ((f"`{kind}`", means, "yes" if kind in PASSING else "no") for kind, means in CAUSES.items()),
    )
    yield from _calls()


def _calls() -> Iterator[str]:
    yield "### export --calls\n"
    yield "A line a call, and one for requests that failed, after those; no prompt, no answer, no id of a row.\n"
    columns = ((f"`{name}`", f"{CALL_COLUMNS[name]}", means) for name, means in CALL_MEANS.items())
    yield from _table(("column", "type", "what stands in it"), columns)


def _json() -> Iterator[str]:
    yield "## JSON\n"
    yield "### run --json, report --json\n"
    yield from _table(("key", "what it is"), ((f"`{key}`", means) for key, means in RUN_KEYS.items()))
    yield "Each of `causes`:\n"
    yield from _table(("key", "what it is"), ((f"`{key}`", means) for key, means in CAUSE_KEYS.items()))
    yield "#### What fell back\n"
    yield "Each prompt counts once, for each lane that was to answer it and did not.\n"
    named = (("batch", FROM_BATCH), ("flex", FROM_FLEX))
    causes = ((f"`{lane}`", f"`{cause}`", means) for lane, told in named for cause, means in told.items())
    yield from _table(("from", "cause", "what happened"), causes)
    yield "### Posts of [alerts]\n"
    yield 'With `format = "json"`; with the others only `text` is posted.\n'
    yield from _table(("field", "what it is"), ((f"`{key}`", means) for key, means in POST_KEYS.items()))
    yield "### estimate --json\n"
    yield "A row of the table is a document here, and a call is a prompt.\n"
    yield from _table(("key", "what it is"), ((f"`{key}`", means) for key, means in PLAN_KEYS.items()))
    yield "### diff --json\n"
    yield "A document of what differs; then one a line for each row that is shown: `change`, `row_changed` (whether its"
    yield "input differs; null where nobody knows), and `old` and `new`, the row in both runs.\n"
    yield from _table(("key", "what it is"), ((f"`{key}`", means) for key, means in DIFF_KEYS.items()))
    yield "### check --json\n"
    yield from _table(("key", "what it is"), ((f"`{key}`", means) for key, means in STEP_KEYS.items()))
    yield "### settings --json\n"
    yield "A list of settings.\n"
    yield from _table(("key", "what it is"), ((f"`{key}`", means) for key, means in SETTING_KEYS.items()))


def _errors() -> Iterator[str]:
    yield "## Errors\n"
    yield "They stop the command: `error: …`, an empty line, `hint: …` with the next thing to do.\n"
    yield from _table(
        ("error", "exit code", "meaning"),
        ((f"`{each.__name__}`", str(each.exit_code), _paragraphs(each.__doc__ or "")[0]) for each in exceptions()),
    )


def _environment() -> Iterator[str]:
    yield "## Environment\n"
    yield from _table(("variable", "what it decides"), ((f"`{name}`", means) for name, means in VARIABLES.items()))


def _faults() -> Iterator[str]:
    yield "## Faults of the emulator\n"
    yield "For `pipeline emulate --faults`. `GET /emulator/stats` tells what was billed.\n"
    for group, kinds in GROUPS.items():
        yield f"### {group.capitalize()}\n"
        rows = ((f"`{name}`", fault.says, _BILLS[fault.bill]) for name, fault in kinds.items())
        yield from _table(("fault", "what is sent", "billed"), rows)
    yield "## Faults of batches\n"
    yield (
        "For `pipeline emulate --batch-faults`: NAME:RATE, NAME\\*N (the first N) or NAME (all), several with commas"
        " between; after `=` stands another number than the usual one, as in `list_lag=60`. They are drawn apart, and"
        " may meet in one batch. A line that is answered is billed, whatever becomes of its answer.\n"
    )
    for group, batch_kinds in BATCH_GROUPS.items():
        yield f"### {group.capitalize()}\n"
        told = (
            (f"`{name}`", fault.says, fault.value and f"{fault.usual}: {fault.value}")
            for name, fault in batch_kinds.items()
        )
        yield from _table(("fault", "what happens", "number"), told)


def _tables() -> Iterator[str]:
    yield "## Tables of the run directory\n"
    for name, schema in (("calls", CALLS_SCHEMA), ("results", RESULTS_SCHEMA)):
        columns = ", ".join(f"`{column}` {dtype}" for column, dtype in schema.items())
        also = " and, of what batches bought, `batched/part-*.parquet`" if name == "calls" else ""
        yield f"`{name}/part-*.parquet`{also}: {columns}\n"
    columns = ", ".join(f"`{column}` {dtype}" for column, dtype in SHARDS_SCHEMA.items())
    yield (
        f"`shards.parquet` of a run of several workers: {columns}. `first_row` is counted without the rows that `where`"
        " leaves out, and the `row` of a table in `shards/00017/` from there. `file` is the place of a Parquet file"
        " among those of the input; without one the rows of the shard are in its `input.parquet`\n"
    )


def _events() -> Iterator[str]:
    yield "## Events of run.log\n"
    yield "One JSON object a line, with the time `at`, the `event` and, of one of several targets, `target`:\n"
    told = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)]
    yield from _table(
        ("event", "with", "meaning"),
        (
            _event(each.kind, each, (own.name for own in fields(each) if own.name != "target"))
            for each in told
            if hasattr(each, "kind")
        ),
    )


def _event(name: str, event: type, own: Iterable[str]) -> tuple[str, str, str]:
    return f"`{name}`", ", ".join(f"`{field}`" for field in own), _paragraphs(event.__doc__ or "")[0]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield _row(head)
    yield f"|{'---|' * len(head)}"
    yield from map(_row, rows)
    yield ""


def _row(cells: tuple[str, ...]) -> str:
    escaped = "\\|"  # also within backticks
    return "|" + "|".join(f" {cell.replace('|', escaped)} " if cell else "  " for cell in cells) + "|"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.stdout.write(f"{PAGE} is written\n")
