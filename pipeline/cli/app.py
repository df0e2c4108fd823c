"""Flags → one function → exit code. Everything heavy is imported by the command that needs it."""

import sys
from collections.abc import Callable, Mapping
from json import dumps
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from pipeline.cli import comparing, exporting, inspect, jobs, settings, starting, watching
from pipeline.cli.flags import Declined
from pipeline.cli.help import Command, Commands, Interrupted
from pipeline.environment import check_directory, check_threads
from pipeline.errors import BUG, DECLINED, PipelineError, as_known
from pipeline.language import Data, spoken
from pipeline.process import INTERRUPTED, LEAST_FILES, files_left, flush_or_drop, make_fit, too_few_files
from pipeline.terminal import KEY_SHAPED, escaped_json, visible
from pipeline.version import __version__

app = typer.Typer(
    cls=Commands,
    help="Bulk LLM calls from a table to a table: quota-perfect, paid once, priced before they are sent.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
_COMMANDS: Mapping[str, Mapping[Callable[..., None], str]] = {
    "From a table to a run": {
        starting.init: "pipeline init sample_data/products.csv",
        inspect.check: "pipeline check jobs/summarize.toml",
        jobs.estimate: "pipeline estimate jobs/summarize.toml",
        jobs.run: "pipeline run jobs/summarize.toml --offline",
    },
    "What came of it": {
        watching.watch: "pipeline watch summarize",
        inspect.report: "pipeline report summarize --failed",
        inspect.show: "pipeline show summarize --sample 3",
        comparing.diff: "pipeline diff summarize@1 summarize@2",
        exporting.export: "pipeline export summarize --to summaries.csv",
        inspect.runs: "pipeline runs",
    },
    "To look up, and to rehearse": {
        settings.settings: "pipeline settings limits.rpm",
        inspect.models: "pipeline models",
        inspect.emulate: "pipeline emulate --rpm 60 --faults 503:0.05",
    },
}
"""Heading → the commands below it, each with its example."""
for _panel, _commands in _COMMANDS.items():
    for _command, _example in _commands.items():
        app.command(cls=Command, rich_help_panel=_panel, epilog=_example)(_command)


@app.callback(invoke_without_command=True)
def _bare(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="name and version")] = False,
) -> None:
    if version:
        sys.stdout.write(f"prompt-pipeline {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stdout.write(f"{context.get_help()}\n")
        raise typer.Exit


_bare.__doc__ = app.info.help


def command_line() -> NoReturn:
    """Run what was typed; the process ends with its exit code."""
    make_fit()
    try:
        _refuse_half_characters(sys.argv[1:])
        check_directory()
        check_threads()
        if (left := files_left()) < LEAST_FILES:
            raise too_few_files(left)
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except BaseException as error:
        sys.exit(_explain(error))


def _refuse_half_characters(arguments: list[str]) -> None:
    for number, argument in enumerate(arguments, 1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            what = f"argument {number} is not UTF-8: {argument}"
            raise PipelineError(what, "rename the file, or mend the flag") from None


def _explain(error: BaseException) -> int:
    """Say what went wrong, on stdout as well where JSON was asked for, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if _is_interrupt(error):
        _say("\nInterrupted. What was paid for is kept.\n")
        return _in_json("interrupted", "the same command continues", INTERRUPTED)
    if isinstance(error, typer.Abort):  # by Ctrl-C at the question too
        _say("Nothing was sent.\n")
        code = DECLINED if isinstance(error, Declined) else INTERRUPTED
        return _in_json("not agreed to: nothing was sent", "", code)
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        hint = f"`{context.command_path if context else 'pipeline'} --help` shows what it takes"
        known: PipelineError | None = PipelineError(error.format_message().replace("Value error, ", ""), hint)
    else:
        known = as_known(error) or _gone_directory(error)
    if known is not None:
        from pipeline.console import show_error

        flush_or_drop()
        show_error(known)
        return _in_json(known.message, known.hint, known.exit_code)
    import traceback

    _say(Data(KEY_SHAPED.sub("…", "".join(traceback.format_exception(error)))))
    hint = "the same command continues; the lines above belong in a bug report"
    _say(f"\nThis is a bug of prompt-pipeline. Every answer that was paid for is in the run directory.\nhint: {hint}\n")
    return _in_json(f"a bug: {type(error).__name__}", hint, BUG)


def _is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, as it is or as what it hit made of it: a class half made, a group of tasks."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_interrupt, error.exceptions))
    return isinstance(error, KeyboardInterrupt | Interrupted) or isinstance(error.__cause__, KeyboardInterrupt)


def _gone_directory(error: BaseException) -> PipelineError | None:
    """What a file that is not found means where the directory that one is in was removed meanwhile."""
    if isinstance(error, FileNotFoundError):
        try:
            check_directory()
        except PipelineError as gone:
            return gone
    return None


def _in_json(message: str, hint: str, code: int) -> int:
    """The error as the one JSON document on stdout, in a line, for a program that reads it.

    Nothing is imported for it: what a signal cut off in the middle of its import cannot be imported again.
    """
    if "--json" in sys.argv:
        told = dumps({"error": message, "hint": hint, "exit_code": code})
        sys.stdout.buffer.write(f"{escaped_json(told)}\n".encode())
        sys.stdout.flush()
    return code


def _say(text: str) -> None:
    sys.stderr.write(visible(spoken(text)))
