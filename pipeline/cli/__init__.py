"""The command line: flags → one function → exit code. Everything heavy is imported by the command that needs it."""

import errno
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from pipeline.cli import inspect, jobs
from pipeline.errors import PipelineError, RunStateError

INTERRUPTED, BUG = 130, 70

app = typer.Typer(
    help="Bulk LLM calls from a table to a table: quota-perfect, paid once, priced before they are sent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    jobs.run,
    jobs.estimate,
    inspect.report,
    inspect.runs,
    inspect.models,
    inspect.check,
    inspect.emulate,
):
    app.command()(_command)


def main() -> NoReturn:
    """Run the command line; the process ends with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character stops no run
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. What was paid for is kept.\n")
        sys.exit(INTERRUPTED)
    except BaseException as error:
        sys.exit(_explain(error))


def _explain(error: BaseException) -> int:
    """Say what went wrong, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "pipeline"
        sys.stderr.write(f"error: {error.format_message()}\n\nhint: `{command} --help` shows what it takes\n")
        return 2
    if isinstance(error, typer.Abort):
        sys.stderr.write("Nothing was sent.\n")
        return INTERRUPTED
    known = _known(error)
    if known is not None:
        from pipeline.console import show_error

        show_error(known)
        return known.exit_code
    import traceback

    traceback.print_exception(error)
    sys.stderr.write(
        "\nThis is a bug of prompt-pipeline. Every answer that was paid for is in the run directory.\n"
        "hint: the same command continues; the lines above belong in a bug report\n"
    )
    return BUG


def _known(error: BaseException) -> PipelineError | None:
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _drop_stdout()
        return RunStateError(f"cannot write: {error.strerror}", "make room, then run the same command again")
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _known(inner))), None)
    return None


def _drop_stdout() -> None:
    """Let what stdout still holds go nowhere: where it did not fit, it would fail again at the process's end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
