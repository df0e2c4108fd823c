"""Commands that buy nothing: `report`, `runs`, `models`, `check`, `emulate`."""

import errno
import shlex
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.flags import JobPath, Json, Model, Offline, Run
from pipeline.errors import InputError, JobError, PipelineError, RunStateError, as_known
from pipeline.language import Data
from pipeline.terminal import visible

_LONGEST_S = 86_400.0
_LARGEST_SCALE = 1e6


class Algorithm(StrEnum):
    """How a server may count a minute's quota."""

    fixed = "fixed"
    log = "log"
    counter = "counter"
    bucket = "bucket"


def report(
    run: Run = None,
    failed: Annotated[
        bool,
        typer.Option("--failed", help="the rows that are not ok: by cause, with what helps and costs, then one by one"),
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="first compare every sealed part with its checksum")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="write the report as one page that opens offline")
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="with --html: without answers, ids of rows, messages, paths and the job")
    ] = False,
    json: Json = False,
) -> None:
    """What happened, also while it runs."""
    from dataclasses import asdict
    from functools import partial
    from time import time

    from pipeline import console
    from pipeline import report as reports
    from pipeline.report.finding import find_run
    from pipeline.run import status
    from pipeline.store.manifest import read as read_manifest

    if no_text and html is None:
        raise JobError("--no-text is of the page that --html FILE writes")
    directory = find_run(run, sums=not (verify or failed or html))
    if verify:
        console.err.print(f"{reports.verify(directory):,} sealed parts are whole")
    if html is not None:
        from pipeline.report.page import page
        from pipeline.run.asking import inputs

        manifest = read_manifest(directory / "manifest.json")
        assert manifest
        content = page(directory, text=not no_text, inputs=partial(inputs, directory, manifest)).encode()
        try:
            html.touch(0o600)
            html.write_bytes(content)
        except OSError as error:
            raise InputError(f"cannot write {html}: {error.strerror}", "name another file after --html") from None
        console.err.print(f"{html}: {len(content) / 1e6:,.1f} MB")
    if failed:
        from pipeline.run.asking import input_rows

        failures = reports.failures(directory)
        manifest = read_manifest(directory / "manifest.json")
        assert manifest
        numbers: dict[int, int] = {}
        with suppress(PipelineError, OSError):  # job or table are not what they were: nobody knows
            numbers = input_rows(directory, manifest, [failure.row for failure in failures])
        if json:
            told = (asdict(failure) | {"input_row": numbers.get(failure.row)} for failure in failures)
            console.show_json(list(told))
        else:
            console.show_failures(failures, manifest, numbers)
        return
    summary = reports.summarize(directory)
    if json:
        console.show_json(summary.as_json())
    else:
        console.show_summary(summary)
        console.show_standing(summary, status.read(directory), time())


def show(
    run: Run = None,
    row: Annotated[
        str | None, typer.Argument(metavar="ROW", help="id of a row, or its number; alone it is of the default run")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="rows that are not ok")] = False,
    status: Annotated[
        str | None,
        typer.Option("--status", metavar="STATUSES", help="rows with these statuses, e.g. truncated,blocked"),
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, metavar="N", help="N rows at random, always the same")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="print a JSON document a line, of a row with all that was asked for it")
    ] = False,
) -> None:
    """Answers of a run, or one row: what was asked, and what came back.

    Prompts are stored nowhere: they are made again by the job as it was then, where the row is what it was. On a
    terminal the user's pager shows it ($PAGER).
    """
    import anyio

    from pipeline import console
    from pipeline.records import STATUSES
    from pipeline.report.finding import find_run
    from pipeline.report.reading import Answers
    from pipeline.run.asking import asked
    from pipeline.store.manifest import read as read_manifest

    wanted = set(STATUSES[1:]) if failed else set(STATUSES)
    if status is not None:
        given = {each.strip() for each in status.split(",")}
        if unknown := sorted(given - set(STATUSES)):
            raise JobError(f"--status: {unknown[0] or 'nothing'} is no status", f"they are {', '.join(STATUSES)}")
        wanted &= given
    try:
        directory = find_run(run)
    except RunStateError:
        if run is None or row is not None:
            raise
        try:
            directory, row = find_run(), run
            Answers(directory).find(row)
        except RunStateError:
            find_run(run)
    answers = Answers(directory)
    if row is None:
        rows = answers.sample(sample, wanted) if sample else answers.rows(wanted)
        if json:
            console.show_rows_json(rows)
        else:
            every = status is None and not failed
            console.show_rows(rows, "no row was reached yet" if every else "no row has such a status")
        return
    found = answers.find(row)
    calls = answers.calls(found["row"], found["response"])
    manifest = read_manifest(directory / "manifest.json")
    assert manifest
    made = anyio.run(asked, directory, manifest, found["row"], found["key"], calls)
    if json:
        console.show_row_json(found, calls, made)
    else:
        console.show_row(found, calls, made)


def runs(json: Json = False) -> None:
    """Every run and its state."""
    from pipeline import console
    from pipeline import report as reports
    from pipeline.report.finding import every

    summaries = []
    for directory in every():
        try:
            summaries.append(reports.summarize(directory))
        except (RunStateError, OSError) as error:  # the others are shown all the same
            damaged = as_known(error)
            if damaged is None:
                raise
            console.show_error(damaged)
    if json:
        console.show_json([summary.as_json() for summary in summaries])
    elif summaries:
        console.show_runs(summaries)
    else:
        console.show_hint("no runs yet: `pipeline run jobs/summarize.toml --offline` makes one")


def models(json: Json = False) -> None:
    """Prices and sizes of the known models.

    Prices are USD per million tokens, with the date of the data.
    """
    from pipeline import console
    from pipeline.prices import CHECKED

    lines = console.models_json()
    if json:
        console.show_json({"prices_dated": CHECKED.isoformat(), "models": lines})
    else:
        console.show_models(lines)
        console.out.print(f"\nUSD per million tokens, standard lane; prices of {CHECKED}", style="dim")
        console.out.print("flex and batch cost half, but for cached tokens: `--json` has all", style="dim")


def check(
    job: JobPath,
    offline: Offline = False,
    model: Model = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="forget the limits that earlier runs learned for this key and model, and that its day was used up: for"
            " instance after a change of tier",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """All that can be wrong, before it costs.

    Job file, table, columns, templates, limits, key, network, country, model, the place of the output, the run: each
    step is shown as passed or failed, and one that could not be tried as such; what `pipeline run` would refuse fails
    here in the same words. Nothing of it is charged. Exit code 0 where all passed, else 2.
    """
    import anyio

    from pipeline import console
    from pipeline.run import checks, prepare

    if forget and offline:
        raise JobError("--forget has nothing to forget with --offline: the emulator's limits are not kept")
    options = prepare.Options(offline=offline)
    with console.busy("checking"):
        steps = anyio.run(checks.examine, job, {"model.name": model}, options, forget)
    if json:
        console.show_json(console.steps_json(steps))
    else:
        console.show_steps(steps)
        if steps.passed:
            console.show_hint(f"`pipeline estimate {shlex.quote(str(job))}` says what it costs")
    if not steps.passed:
        raise typer.Exit(2)


def emulate(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="address to listen on; a loopback one answers this machine only")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="N", help="port; 0 picks a free one")] = 8089,
    rpm: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="requests per minute; 0: no model is offered")
    ] = None,
    tpm: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="input tokens per minute; 0: no model is offered")
    ] = None,
    rpd: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="requests per day; 0: no model is offered")
    ] = None,
    algorithm: Annotated[
        Algorithm,
        typer.Option(help="how it counts a minute: fixed window, sliding log, sliding-window counter or token bucket"),
    ] = Algorithm.fixed,
    latency: Annotated[float, typer.Option(metavar="SECONDS", help="how long every answer takes")] = 0.0,
    jitter: Annotated[float, typer.Option(metavar="SECONDS", help="up to so much longer, at random")] = 0.0,
    pause: Annotated[
        float, typer.Option(metavar="SECONDS", help="between two pieces of an answer that is streamed")
    ] = 0.0,
    part_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="an answer longer than this goes on in another request, as argon's do"),
    ] = None,
    flex_share: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="SHARE", help="of requests in flex that are served; others are turned away"),
    ] = 1.0,
    flex_wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="how much longer a request in flex takes, served or not: up to twice that"
        ),
    ] = 0.0,
    faults: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="what goes wrong, e.g. 503:0.05,reset:0.01,429*3; `list` says of each fault what is sent and what is"
            " billed",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(metavar="N", help="of faults and latency")] = 0,
    batch: Annotated[bool, typer.Option("--batch", help="batches are served too")] = False,
    batch_pending: Annotated[
        float, typer.Option(metavar="SECONDS", help="how long a batch waits before it runs: the median of a lognormal")
    ] = 1.0,
    batch_run: Annotated[float, typer.Option(metavar="SECONDS", help="how long it then runs, likewise")] = 2.0,
    time_scale: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="so many times as fast pass the waits of batches and the 48 hours of batches and files: with 3600 a"
            " batch of an hour takes a second; all times that are told are real ones",
        ),
    ] = 1.0,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="input tokens that may be enqueued in batches, by key and model"),
    ] = None,
    batch_faults: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="what goes wrong with batches, e.g. create_cut*1,list_lag=30; `list` says of each what happens",
        ),
    ] = "",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="a model that is served beside Gemini's, e.g. qwen3:8b; once for each"),
    ] = None,
    key_ends_after: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="a key has expired after N requests with it: what becomes of a run whose key does"
        ),
    ] = None,
) -> None:
    """Serve the protocols of Gemini and OpenAI, for rehearsals.

    With quotas, faults and batches, if asked for. What runs against it is a rehearsal, apart from real runs.

    A fault is NAME:RATE, NAME*N (the first N requests) or NAME (all of them), several with commas between:

    refused or failed: 400, 402, 403, 408, 413, 429, 499, 500, 503, 504, html502, array429, bare429, nested503,
    location, garbage

    money gone: prepaid, balance400, balance429, balance200, no_quota429, no_channel

    refused by relays: busy429, quota500, quota502, filter400, expired401

    long waits: wait_day, wait_2099, wait_2h, late_day

    answers without an answer: block, empty, safety, recitation, max_tokens_empty

    packs: pack_shuffled, pack_missing, pack_doubled, pack_wrong_key, pack_cut, pack_text

    JSON that is not as it was asked for: fenced_json, prose_json, broken_json, wrong_json

    odd counts: nousage, zero_counts, hidden_thinking, no_prompt_count, cached, cached_over, negative, absurd,
    text_counts, overlong, dearer, unpriced

    odd forms: 201, 203, 206, error0, finish_stop, finish_length, finish_2, surrogate, bad_utf8, bom, deep, sse,
    json_array, openai, echo, echo_error, two_gzip, x_gzip

    streams: stream_error, stream_short, stream_idle, stream_unended

    unreadable answers: cut_json, html200, empty_body, false_gzip, cut_gzip, big_header, two_lengths, bad_chunk,
    bomb, endless

    broken connections: reset, hang, truncated, paid_reset, paid_hang
    """
    from pipeline import console, emulator

    if "list" in (faults, batch_faults):
        for group, told in emulator.told() if faults == "list" else emulator.told_of_batches():
            console.out.print(group)
            console.show_columns(console.out, [(Data(name), says, "") for name, says in told])
        return
    flag = "--faults"
    try:
        parsed = emulator.parse_faults(faults)
        flag = "--batch-faults"
        parsed_of_batches = emulator.parse_batch_faults(batch_faults)
    except ValueError as error:
        raise JobError(f"{flag}: {error}", "`pipeline emulate --help` shows the flags") from None
    if batch_faults and not batch:
        raise JobError("--batch-faults has no batches to meet", "`--batch` serves them")
    times = {
        "--latency": latency,
        "--jitter": jitter,
        "--pause": pause,
        "--flex-wait": flex_wait,
        "--batch-pending": batch_pending,
        "--batch-run": batch_run,
    }
    for flag, seconds in times.items():
        if not 0 <= seconds <= _LONGEST_S:
            raise JobError(f"{flag} {seconds} is not a time from 0 to {_LONGEST_S:.0f} s")
    if not 0 < time_scale <= _LARGEST_SCALE:
        raise JobError(f"--time-scale {time_scale} is not a number above 0, up to {_LARGEST_SCALE:,.0f}")
    options = emulator.EmulatorOptions(
        rpm=rpm,
        tpm=tpm,
        rpd=rpd,
        algorithm=algorithm.value,
        latency_s=latency,
        latency_jitter_s=jitter,
        pause_s=pause,
        part_tokens=part_tokens,
        flex_share=flex_share,
        flex_wait_s=flex_wait,
        faults=parsed,
        seed=seed,
        batch=batch,
        batch_pending_s=batch_pending,
        batch_run_s=batch_run,
        time_scale=time_scale,
        batch_tokens=batch_tokens,
        batch_faults=parsed_of_batches,
        models=tuple(model or ()),
        key_ends_after=key_ends_after,
    )
    try:
        emulator.serve(options, host, port, ready=_say_ready)
    except OSError as error:
        hint = (
            "`--port 0` picks a free one" if error.errno == errno.EADDRINUSE else "`--host 127.0.0.1` is this machine"
        )
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}", hint) from None


def _say_ready(url: str) -> None:
    from pipeline import console

    sys.stdout.write(f"{visible(url)}\n")
    sys.stdout.flush()
    console.show_hint(
        f"`GOOGLE_GEMINI_BASE_URL={url} GEMINI_API_KEY=rehearsal pipeline run JOB` rehearses it, in"
        ' runs/JOB-rehearsal, apart from real answers; with provider = "openai" it is OPENAI_BASE_URL and'
        " OPENAI_API_KEY; Ctrl-C stops"
    )
