"""Flags that several commands take, and what their values mean."""

import sys
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completing
from pipeline.errors import JobError
from pipeline.language import spoken
from pipeline.terminal import visible

if TYPE_CHECKING:
    from decimal import Decimal

    from pipeline.job import Job

_PATIENCE_S = 1.0


class Cluster(StrEnum):
    """Where workers may be, beside as processes of this machine."""

    RAY = "ray"


def _heard(context: typer.Context, path: Path) -> Path:
    """The path of a job; one that is a pipe or a terminal is read here, where Ctrl-C ends the wait for it."""
    try:
        is_plain = path.is_file() or path.is_dir() or not path.exists()
    except OSError:  # which is told where it is loaded
        is_plain = True
    if is_plain or context.resilient_parsing:
        return path
    from pipeline.job.loading import hear

    said = f"{path} is no file: the job is read from it, to its end (Ctrl-D where you type it)"
    telling = Timer(_PATIENCE_S, lambda: sys.stderr.write(f"{visible(spoken(said))}\n"))
    telling.daemon = True
    if sys.stderr.isatty():
        telling.start()
    try:
        hear(path)
    finally:
        telling.cancel()
    return path


JobPath = Annotated[
    Path,
    typer.Argument(
        metavar="JOB",
        help="job file, e.g. jobs/summarize.toml",
        autocompletion=completing.job_files,
        callback=_heard,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document; a failure prints { error, hint }")]
Run = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="run directory, name of a run or a job, or job file; default: the one that goes on, or else the one that"
        " was written to last",
        autocompletion=completing.run_names,
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        help="a rehearsal: the built-in emulator answers with extracts of the prompt, at no cost and without the job's"
        " [limits]",
    ),
]
Out = Annotated[str | None, typer.Option("--out", metavar="PATH", help="write the results there")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="use another model than the job's", autocompletion=completing.model_names
    ),
]
Rpm = Annotated[
    int | None,
    typer.Option("--rpm", min=0, metavar="N", help="requests per minute; wins over the job file; 0: no limit"),
]
Tpm = Annotated[
    int | None,
    typer.Option("--tpm", min=0, metavar="N", help="input tokens per minute; wins over the job file; 0: no limit"),
]
Rpd = Annotated[
    int | None,
    typer.Option("--rpd", min=0, metavar="N", help="requests per day; wins over the job file; 0: no limit"),
]
MaxCost = Annotated[
    str | None,
    typer.Option(
        "--max-cost", metavar="USD", help="stop before the run's cost passes this; wins over [budget] max_usd"
    ),
]
Pace = Annotated[
    bool,
    typer.Option(
        "--pace",
        help="with --offline: keep to the job's [limits] all the same; --rpm, --tpm and --rpd hold in any case",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask before spending; needed where nobody can answer")]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help="only the first N rows; a later run does the rest"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=256,
        metavar="N",
        help="have so many processes of this machine make the calls, together under the one quota and budget",
    ),
]
ForWorkers = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=256, metavar="N", help="of a run by so many workers"),
]
On = Annotated[
    Cluster | None,
    typer.Option(
        "--on",
        help="have the workers on a Ray cluster: that of RAY_ADDRESS, or else one of their own on this machine;"
        " `--workers` is how many, by default what the rate takes",
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65_535,
        metavar="N",
        help="serve metrics for Prometheus there while the run goes on, at /metrics; 0 picks a free port",
    ),
]
MetricsHost = Annotated[
    str | None,
    typer.Option(
        "--metrics-host",
        metavar="ADDRESS",
        help="address for that; this machine alone is answered without it, on 127.0.0.1",
    ),
]
Sample = Annotated[
    int | None,
    typer.Option(
        "--sample",
        min=1,
        metavar="N",
        help="only N rows of all kinds and lengths, always the same; they are kept, and a later run does the rest",
    ),
]


class Declined(typer.Abort):
    """Whoever was asked said no."""


def load_job(
    path: Path,
    out: str | None,
    model: str | None,
    rpm: int | None,
    tpm: int | None,
    rpd: int | None,
    changes: Mapping[str, object] | None = None,
) -> "Job":
    """The job file with the flags in place. Raises `JobError`."""
    from pipeline.job import load

    flags = {"output.path": out, "model.name": model, "limits.rpm": rpm, "limits.tpm": tpm, "limits.rpd": rpd}
    return load(path, flags | {f"model.{key}": value for key, value in (changes or {}).items()})


def parse_changes(items: list[str] | None, retry: str | None) -> dict[str, object]:
    """What `--set` says: a value as TOML writes it, or else a text. Raises `JobError`."""
    from pipeline.run.wishes import check_changes

    if items and retry is None:
        raise JobError("--set needs --retry", "`--retry truncated --set max_output_tokens=2000` redoes just those rows")
    found: dict[str, object] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        key = key.strip().removeprefix("model.")
        if not equals or not key.replace("_", "").isalnum():
            raise JobError(f"--set {item} is not KEY=VALUE", "for instance `--set max_output_tokens=2000`")
        check_changes({key: value}, "--set")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            found[key] = value.strip()
    return found


def parse_usd(text: str | None) -> "Decimal | None":
    """An amount above 0. Raises `JobError`."""
    from pipeline.run.wishes import usd

    return None if text is None else usd(text, "--max-cost")


def parse_kinds(text: str | None) -> frozenset[str]:
    """Statuses and causes of rows to be redone. Raises `JobError`."""
    from pipeline.run.wishes import kinds

    return frozenset() if text is None else kinds(text.split(","), "--retry")
