"""What a run refuses to start with or to go on with, and what it makes do with."""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import JobError, RunStateError, ServiceError
from pipeline.events import FewFiles, Notify
from pipeline.job import Job
from pipeline.models import model_info
from pipeline.prices import effective_rates
from pipeline.process import too_few_files
from pipeline.quota.slots import CAP
from pipeline.records import Failure, Limits, Reply
from pipeline.report.finding import in_use
from pipeline.run.prepare import Options, Session
from pipeline.store import afar
from pipeline.store.batches import is_out
from pipeline.store.manifest import read as read_manifest
from pipeline.store.state import is_unused
from pipeline.store.units import is_cut

SPARE_FILES = 16
"""Files that a run opens beside its sockets now and then: parts, the output, names looked up; 3 at once were seen."""


def set_aside(directory: Path) -> None:
    """Keep an earlier run, whatever state it is in, beside the new one, under its name and the present time."""
    if not directory.exists():
        return
    if in_use(directory):
        raise RunStateError(f"{directory} is in use", "stop that run first")
    _refuse_orphans(directory)
    try:
        directory.rename(aside_of(directory))
    except OSError as error:
        raise RunStateError(
            f"{directory} cannot be set aside: {error.strerror}\nIt is as it was, and nothing was sent.",
            f"mend the permissions of {directory.parent}, or leave out `--fresh`",
        ) from None


def check_alone(session: Session) -> None:
    """Raise `JobError` where one process would go on with what a fleet began, and `RunStateError` for its place."""
    if session.job.spec.run.path is not None:
        raise JobError(
            "[run] path is for a run of several workers: one process writes its run in runs/ here\nNothing was sent.",
            "add `--workers N` (or `--on ray`), or leave [run] path out",
        )
    check_place(session)
    if is_cut(session.directory) and not is_unused(session.directory) and not session.options.fresh:
        raise RunStateError(
            f"{session.directory} was begun by several workers, and its table is cut into shards\nNothing was sent.",
            "add `--workers N` (or `--on ray`) to go on with it; `--fresh` begins anew",
        )


def check_place(session: Session) -> None:
    """Raise `RunStateError` where the run directory here is not the working copy of what the job says, or is one."""
    path, directory = session.job.spec.run.path, session.directory
    if session.options.fresh or not directory.exists():
        return
    known = afar.read(directory)
    if path is None and known is not None:
        raise RunStateError(
            f"{directory} is the working copy of a run in {known.url}, and [run] path is not there any more"
            "\nNothing was sent.",
            "put [run] path back, or begin anew here with `--fresh`",
        )
    if path is None:
        return
    url = afar.run_url(path, session.job.name, session.kind)
    if known is None and not is_unused(directory):
        raise RunStateError(
            f"{directory} holds a run of this machine, and [run] path says that it lies in {url}\nNothing was sent.",
            "leave [run] path out to go on with it, or begin anew there with `--fresh`, which keeps it beside",
        )
    if known is not None and not known.url.startswith(f"{url}/"):
        raise RunStateError(
            f"{directory} is the working copy of a run in {known.url}, and [run] path says {url}\nNothing was sent.",
            "put [run] path back, or begin anew there with `--fresh`",
        )


def aside_of(directory: Path) -> Path:
    """Where a run directory is set aside at this moment."""
    return directory.with_name(f"{directory.name}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")


def _refuse_orphans(directory: Path) -> None:
    """Raise `RunStateError` where batches of the run are with a service: set aside, nobody would collect them."""
    known, out = None, []
    with suppress(RunStateError):  # one that cannot be read is set aside all the same
        known, out = read_manifest(directory / "manifest.json"), is_out(directory)
    if known is None or known.kind == "offline" or not out:  # the embedded emulator's ended with it
        return
    batches = "1 batch is" if len(out) == 1 else f"{len(out):,} batches are"
    raise RunStateError(
        f"{batches} with the service, {sum(state.lines for state in out):,} calls of the run in {directory}:"
        " set aside, it would not get the answers, and they are paid for all the same"
        "\nNothing was sent, and nothing was moved.",
        "with the job as it was the same command without `--fresh` collects them, or calls them off with"
        " `--cancel-batches`",
    )


def refuse_unpriced(job: Job, options: Options) -> None:
    """Raise `JobError` for a cap on spending that could not be kept because nobody knows what a call costs."""
    for each in job.asked:
        _refuse_unpriced(each, options, "[[target]]" if job.targets else "[model]")


def _refuse_unpriced(job: Job, options: Options, section: str) -> None:
    caps, model = job.spec.budget, job.model
    capped = any((caps.max_usd, caps.max_usd_per_day, caps.max_usd_per_month, options.max_cost_usd))
    if not capped or caps.allow_unpriced:
        return
    if effective_rates(model, datetime.now(UTC).date(), "standard", long=False, own=job.own_rates) is None:
        raise JobError(
            f"there is a budget, but the price of {model} is unknown: it could not be kept",
            f"set {section} prices = {{ input = …, output = … }}, or [budget] allow_unpriced = true",
        )
    unbounded = [
        params
        for params in (job.params, job.reduce_params, job.refine_params)
        if params and not params.max_output_tokens
    ]
    if unbounded and model_info(model) is None:
        raise JobError(
            f"there is a budget, but nobody knows how long an answer of {model} may be: it could not be kept",
            "set [model] max_output_tokens, or [budget] allow_unpriced = true",
        )


def within_files(limits: Limits, left: int, heard: Notify) -> Limits:
    """The limits with as many requests in flight as there are files `left` to open; told where that is fewer.

    Raises `PipelineError` where there are none.
    """
    sockets = max(left - SPARE_FILES, left // 4)
    if sockets >= (limits.concurrency or CAP):
        return limits
    if sockets < 1:
        raise too_few_files(left)
    message = f"at most {sockets} calls at once: this process may open only {left} files more (`ulimit -n`)"
    heard(FewFiles(message))
    return replace(limits, sockets=sockets)


def stranger(session: Session, endpoint: str, outcome: Reply | Failure) -> ServiceError | None:
    """Why this outcome counts as nothing: in the middle of a run another service answers than at its start."""
    variable = session.job.protocol.base_url_variable
    if outcome.emulated and not session.rehearsal:
        return ServiceError(
            f"{endpoint} answers as an emulator now, and did not at the start: none of its answers was taken",
            f"look at {variable}, [endpoint] base_url and the proxy; the same command then goes on",
        )
    # A failure without the mark may be a proxy's: only an answer is certainly another service's.
    if session.rehearsal and not outcome.emulated and isinstance(outcome, Reply):
        return ServiceError(
            f"{endpoint} answered as an emulator at the start, and does not now: a real service may have answered,"
            " and may bill what was in flight. None of its answers was taken",
            f"look at {variable}, [endpoint] base_url and the proxy before you run it again",
        )
    return None
