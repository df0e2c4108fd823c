"""The command line: flags → one function → exit code. Everything heavy is imported by the command that needs it."""

import sys
import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from pipeline.errors import InputError, JobError, PipelineError

if TYPE_CHECKING:
    from pipeline.job import Job
    from pipeline.plan import Plan

INTERRUPTED, BUG = 130, 70

app = typer.Typer(
    help="Bulk LLM calls from a table to a table: quota-perfect, paid once, priced before they are sent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Algorithm(StrEnum):
    """How a server may count a minute's quota."""

    fixed = "fixed"
    log = "log"
    counter = "counter"
    bucket = "bucket"


JobPath = Annotated[Path, typer.Argument(metavar="JOB", help="job file, e.g. jobs/summarize.toml")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
Offline = Annotated[bool, typer.Option("--offline", help="answers from the embedded emulator: no key, no cost")]
Out = Annotated[str | None, typer.Option("--out", metavar="PATH", help="write the results here")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="another model than the job's")]
Rpm = Annotated[int | None, typer.Option("--rpm", help="requests per minute; 0: no limit")]
Tpm = Annotated[int | None, typer.Option("--tpm", help="input tokens per minute; 0: no limit")]
Rpd = Annotated[int | None, typer.Option("--rpd", help="requests per day")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="only the first N rows")]


def main() -> NoReturn:
    """Run the command line; the process ends with its exit code."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted before anything was sent.\n")
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
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _known(inner))), None)
    return None


@app.command()
def run(
    job: JobPath,
    offline: Offline = False,
    limit: Limit = None,
    max_cost: Annotated[str | None, typer.Option(metavar="USD", help="stop before this is passed")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="start anew; the old run is kept beside it")] = False,
    retry: Annotated[
        str | None,
        typer.Option(metavar="KINDS", help="redo rows with these statuses or causes, e.g. truncated,blocked"),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="with --retry: redo them with this [model] setting"),
    ] = None,
    skip_failed: Annotated[bool, typer.Option("--skip-failed", help="do not retry rows that failed before")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask before spending")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="sleep until the day's quota resets, then go on")] = False,
    out: Out = None,
    model: Model = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    json: Json = False,
    show_config: Annotated[bool, typer.Option("--show-config", help="say where each setting comes from")] = False,
) -> None:
    """Start this job's run, or continue it."""
    import anyio

    from pipeline import console, running, session

    loaded = _load(job, out, model, rpm, tpm, rpd)
    if show_config:
        _show_config(loaded)
        return
    changed = _changes(changes, retry)
    options = session.Options(
        offline, limit, _usd(max_cost), fresh, _kinds(retry), skip_failed, wait, _canonical(changed)
    )
    redo = _load(job, out, model, rpm, tpm, rpd, changed) if changed else None
    prepared = session.prepare(loaded, options, redo)

    def confirm(plan: "Plan", continued: bool) -> None:
        console.show_start(plan, loaded.name, str(prepared.directory), continued, offline)
        if not (offline or yes or plan.prompts == 0):
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise JobError("nobody is here to say yes to the cost", "add `--yes`, and perhaps `--max-cost USD`")
            typer.confirm("Continue?", abort=True, err=True)

    ended = anyio.run(running.run, prepared, confirm, console.watch, backend_options=_backend())
    if json:
        console.show_json(ended.summary.as_json())
    else:
        console.show_summary(ended.summary, console.err)
    if ended.stopped:
        console.show_error(ended.stopped, "stopped")
    elif ended.interrupted:
        console.show_hint("nothing is lost; the same command continues")
    elif ended.exit_code == 1:
        console.show_hint(f"`pipeline report {prepared.directory} --failed` lists the rows that are not ok")
    raise typer.Exit(ended.exit_code)


@app.command()
def estimate(
    job: JobPath,
    offline: Offline = False,
    limit: Limit = None,
    model: Model = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    json: Json = False,
) -> None:
    """Dry run: prompts, tokens, cost, time, days of quota. No network, no key, nothing is sent."""
    import anyio

    from pipeline import console, session

    loaded = _load(job, None, model, rpm, tpm, rpd)
    prepared = session.prepare(loaded, session.Options(offline=offline, limit=limit))
    plan = anyio.run(session.estimate, prepared)
    if json:
        console.show_json(console.plan_json(plan))
    else:
        console.show_plan(plan, loaded.name, loaded.spec.input.path)


@app.command()
def report(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="run directory; default: the newest")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="list the rows that are not ok")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="first compare every sealed part with its checksum")] = False,
    json: Json = False,
) -> None:
    """What happened, also while it runs."""
    from dataclasses import asdict

    from pipeline import console
    from pipeline import report as reports

    directory = run if run is not None else reports.newest()
    if verify:
        console.err.print(f"{reports.verify(directory):,} sealed parts are whole")
    if failed:
        failures = reports.failures(directory)
        if json:
            console.show_json([asdict(failure) for failure in failures])
        else:
            console.show_failures(failures)
        return
    summary = reports.summarize(directory)
    if json:
        console.show_json(summary.as_json())
    else:
        console.show_summary(summary)


@app.command()
def runs(json: Json = False) -> None:
    """Every run and its state."""
    from pipeline import console
    from pipeline import report as reports

    summaries = [reports.summarize(directory) for directory in reports.every()]
    if json:
        console.show_json([summary.as_json() for summary in summaries])
    elif summaries:
        console.show_runs(summaries)
    else:
        console.show_hint("no runs yet: `pipeline run jobs/summarize.toml --offline` makes one")


@app.command()
def models(json: Json = False) -> None:
    """Prices in USD per million tokens, context sizes, and the date of the data."""
    from pipeline import console
    from pipeline.prices import CHECKED

    lines = console.models_json()
    if json:
        console.show_json({"prices_dated": CHECKED.isoformat(), "models": lines})
    else:
        console.show_models(lines)
        console.out.print(f"\nUSD per million tokens, standard lane; prices of {CHECKED}", style="dim")


@app.command()
def check(job: JobPath, offline: Offline = False, model: Model = None, json: Json = False) -> None:
    """Key, endpoint, model, columns, templates: everything that can be wrong, before anything is spent."""
    import anyio

    from pipeline import console, session

    loaded = _load(job, None, model, None, None, None)
    prepared = session.prepare(loaded, session.Options(offline=offline))
    found = anyio.run(session.check_service, prepared)
    facts = [("rows", f"{prepared.rows:,}", loaded.spec.input.path), *found]
    if json:
        console.show_json({name: value for name, value, _ in facts})
    else:
        console.show_pairs(facts)
        console.show_hint(f"`pipeline estimate {job}` says what it costs")


@app.command()
def emulate(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port; 0 picks a free one")] = 8089,
    rpm: Rpm = None,
    tpm: Tpm = None,
    rpd: Rpd = None,
    algorithm: Annotated[Algorithm, typer.Option(help="how it counts a minute")] = Algorithm.fixed,
    latency: Annotated[float, typer.Option(metavar="SECONDS", help="of every answer")] = 0.0,
    jitter: Annotated[float, typer.Option(metavar="SECONDS", help="up to this much more latency")] = 0.0,
    faults: Annotated[str, typer.Option(metavar="SPEC", help="e.g. 503:0.05,reset:0.01,429*3")] = "",
    seed: Annotated[int, typer.Option(help="of faults and latency")] = 0,
) -> None:
    """Serve the emulator: the Gemini protocol with quotas and faults, for rehearsals."""
    from pipeline import emulator

    try:
        parsed = emulator.parse_faults(faults)
    except ValueError as error:
        raise JobError(f"--faults: {error}", "`pipeline emulate --help` shows the flags") from None
    options = emulator.EmulatorOptions(
        rpm=rpm,
        tpm=tpm,
        rpd=rpd,
        algorithm=algorithm.value,
        latency_s=latency,
        latency_jitter_s=jitter,
        faults=parsed,
        seed=seed,
    )
    try:
        emulator.serve(options, host, port, ready=_say_ready)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror}", "`--port 0` picks a free one"
        ) from None


def _say_ready(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    sys.stderr.write(f"hint: `GOOGLE_GEMINI_BASE_URL={url} GEMINI_API_KEY=any pipeline run JOB --yes`; Ctrl-C stops\n")


def _load(
    path: Path,
    out: str | None,
    model: str | None,
    rpm: int | None,
    tpm: int | None,
    rpd: int | None,
    changes: Mapping[str, object] | None = None,
) -> "Job":
    from pipeline.job import load

    flags = {"output.path": out, "model.name": model, "limits.rpm": rpm, "limits.tpm": tpm, "limits.rpd": rpd}
    return load(path, flags | {f"model.{key}": value for key, value in (changes or {}).items()})


def _changes(items: list[str] | None, retry: str | None) -> dict[str, object]:
    """What `--set` says: a value as TOML writes it, or else a text. Raises `JobError`."""
    if items and retry is None:
        raise JobError("--set needs --retry", "`--retry truncated --set max_output_tokens=2000` redoes just those rows")
    found: dict[str, object] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        key = key.strip().removeprefix("model.")
        if not equals or not key.replace("_", "").isalnum():
            raise JobError(f"--set {item} is not KEY=VALUE", "for instance `--set max_output_tokens=2000`")
        if key in ("name", "prices"):
            raise JobError(f"--set cannot change [model] {key}", "another model is another run: `--fresh --model NAME`")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value.strip()
    return found


def _canonical(changes: Mapping[str, object]) -> str | None:
    from json import dumps

    return dumps(changes, sort_keys=True, ensure_ascii=False) if changes else None


def _show_config(job: "Job") -> None:
    from pipeline import console

    rows = [
        (f"{section}.{key}", _short(value), job.origins.get(f"{section}.{key}", "default"))
        for section, values in job.spec.model_dump().items()
        if values
        for key, value in values.items()
    ]
    console.show_pairs(rows)


def _short(value: object) -> str:
    text = str(value).splitlines()[0] if value not in (None, "", [], {}) else "-"
    return text if len(text) <= 48 else text[:47] + "…"


def _usd(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        amount = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        raise JobError(f"--max-cost {text} is not an amount in USD") from None
    if amount <= 0:
        raise JobError("--max-cost must be above 0", "`pipeline estimate` says what the job costs")
    return amount


def _kinds(text: str | None) -> frozenset[str]:
    if text is None:
        return frozenset()
    from typing import get_args

    from pipeline.records import STATUSES, ErrorKind

    kinds = frozenset(kind.strip() for kind in text.split(",") if kind.strip())
    known = {*STATUSES[1:], *get_args(ErrorKind)}
    if unknown := sorted(kinds - known):
        raise JobError(f"--retry: {unknown[0]} is no status or cause", f"they are {', '.join(sorted(known))}")
    return kinds


def _backend() -> dict[str, bool]:
    from importlib.util import find_spec

    return {"use_uvloop": find_spec("uvloop") is not None}
