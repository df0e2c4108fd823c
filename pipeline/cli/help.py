"""How the help of each command looks: options by what they are about, whole summaries, one example at the end."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from pipeline import machine
from pipeline.errors import InputError, JobError, PipelineError

Options = Mapping[str, tuple[str, ...]]
"""Heading → the options below it."""

GROUPS: Mapping[str, Options] = {
    "run": {
        "Which rows": ("--limit", "--sample", "--retry", "--set", "--skip-failed", "--fresh"),
        "What it may cost": ("--max-cost", "--yes"),
        "How fast, and by whom": ("--rpm", "--tpm", "--rpd", "--pace", "--workers", "--on"),
        "Until when": ("--by", "--wait", "--leave", "--cancel-batches"),
        "In place of what the job says": ("--offline", "--model", "--out", "--overwrite"),
        "What is told": ("--dry-run", "--show-config", "--json", "--metrics-port", "--metrics-host"),
    },
    "estimate": {
        "Which rows": ("--limit", "--sample", "--all"),
        "What is asked first": ("--pilot", "--exact", "--max-cost", "--yes"),
        "How fast, and until when": ("--rpm", "--tpm", "--rpd", "--pace", "--by"),
        "In place of what the job says": ("--offline", "--model"),
        "What is told": ("--compare", "--json"),
    },
    "emulate": {
        "Where": ("--host", "--port"),
        "Quotas": ("--rpm", "--tpm", "--rpd", "--algorithm", "--key-ends-after"),
        "Answers": ("--latency", "--jitter", "--pause", "--part-tokens", "--model"),
        "Flex": ("--flex-share", "--flex-wait"),
        "Batches": ("--batch", "--batch-pending", "--batch-run", "--batch-tokens", "--batch-faults", "--time-scale"),
        "Faults": ("--faults", "--seed"),
    },
}
"""Options of the commands that have many; what is in no group stands below all of them."""

_RANGE = re.compile(r"  \[[\d.<=]*x[^]]*\]|; [\d.<=]*x[^];]*")
"""As typer tells it: `  [x>=1]`, or behind a default; who is out of it is told so."""
_LEAST_TERM = 16  # cells for the names beside what they mean


class Interrupted(Exception):
    """Ctrl-C in a command."""


class Command(TyperCommand):
    """One command; its epilog is an example, typed as it stands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's; one argument too many is explained where it is known what was meant by it."""
        first, meant = _TOO_MANY.get(self.name or "", ("", None))
        ctx.allow_extra_args = meant is not None
        left = super().parse_args(ctx, args)
        if left and meant and not ctx.resilient_parsing:
            raise meant([ctx.params[first], *left])
        return left

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`JOB`, where typer writes `{JOB}`."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options below their headings."""
        arguments, options = [], {}
        for each in self.get_params(ctx):
            name, means = each.get_help_record(ctx) or ("", "")
            if each.param_type_name == "argument":
                arguments.append((name.partition(" <")[0], means.removesuffix("  [required]")))
            else:
                options[max(each.opts, key=len)] = (name, _RANGE.sub("", means))
        groups = {
            head: [options.pop(name) for name in names] for head, names in GROUPS.get(self.name or "", {}).items()
        }
        for head, rows in {"Arguments": arguments, **groups, "Options": list(options.values())}.items():
            _write_list(formatter, head, rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example, which no line break cuts."""
        with formatter.section("Example"):
            formatter.write(f"{'':>{formatter.current_indent}}{self.epilog}\n")


class Commands(TyperGroup):
    """All of them. Ctrl-C is kept from typer, which makes a wordless end of it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`help NAME` is `NAME --help`, and `help` is `--help`."""
        if args[:1] == ["help"]:
            args = args[1:2] if ctx.resilient_parsing else [*args[1:2], "--help"]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Below their headings, each with its whole summary."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, each in self.commands.items():
            summary = " ".join((each.help or "").partition("\n\n")[0].split())
            panel = each.rich_help_panel if isinstance(each, TyperCommand) else None
            groups.setdefault(panel or "Commands", []).append((name, summary))
        for head, rows in groups.items():
            _write_list(formatter, head, rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Where the help goes on."""
        formatter.write("\n`pipeline help COMMAND` shows one, with an example.\n")

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """As typer's, but for Ctrl-C."""
        with _told():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """As typer's, but for Ctrl-C."""
        with _told():
            return super().invoke(ctx)


def _several_tables(names: Sequence[str]) -> PipelineError:
    """What a shell makes of `init *.csv`."""
    endings = {Path(name.removesuffix(".gz")).suffix + ".gz" * name.endswith(".gz") for name in names}
    folders = {os.path.dirname(name) for name in names}  # noqa: PTH120 (`Path` says "." for none)
    hint = f"name one of them, or a folder: `pipeline init {machine.quoted(names[0])}`"
    if len(endings) == len(folders) == 1:
        pattern = machine.quoted(os.path.join(folders.pop(), f"*{endings.pop()}"))  # noqa: PTH118
        hint = f"a pattern in quotes is one table of all its files: `pipeline init {pattern}`"
    return InputError(f"a job has one input, and {len(names)} are named: {', '.join(names[:3])}{_more(names)}", hint)


def _place_for_a_table(names: Sequence[str]) -> PipelineError:
    run, place = (machine.quoted(str(name)) for name in names[:2])
    return JobError(
        f"one run is exported at a time, and {len(names)} are named: {', '.join(names[:3])}{_more(names)}",
        f"a file is named with --to: `pipeline export {run} --to {place}`",
    )


def _more(names: Sequence[str]) -> str:
    return ", …" if len(names) > 3 else ""


_TOO_MANY = {"init": ("what", _several_tables), "export": ("run", _place_for_a_table)}
"""Commands that are often given one argument too many: the name of the one that they take, and what is said then."""


def _write_list(formatter: Any, head: str, rows: list[tuple[str, str]]) -> None:
    """Names and what they mean, side by side; a long name stands above."""
    if rows:
        with formatter.section(head):
            formatter.write_dl(rows, col_max=max(_LEAST_TERM, formatter.width // 3))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
