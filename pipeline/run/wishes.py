"""What may be asked of a run beyond its job, by whoever asks: each as it is said, with the name it was said by."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import get_args

from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.plan.timing import next_time, time_after
from pipeline.records import STATUSES, ErrorKind

_MOST_PLACES = 9
"""Before the point of an amount, less one: who types more has slipped."""


def usd(text: str, said: str) -> Decimal:
    """An amount above 0. Raises `JobError`."""
    try:
        amount = Decimal(text.removeprefix("$"))
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount.adjusted() > _MOST_PLACES:
        raise JobError(f"{said} {text} is not an amount in USD", f"for instance `{said} 2.50`")
    if amount <= 0:
        raise JobError(f"{said} must be above 0", "`pipeline estimate` says what the job costs")
    return amount


def kinds(names: Iterable[str], said: str) -> frozenset[str]:
    """Statuses and causes of rows to be redone. Raises `JobError`."""
    named = frozenset(name.strip() for name in names if name.strip())
    known = {*STATUSES[1:], *get_args(ErrorKind)}
    if not named:  # of a variable that is not set: nothing would be redone, without a word
        raise JobError(f"{said} names no status and no cause", f"they are {', '.join(sorted(known))}")
    if unknown := sorted(named - known):
        raise JobError(f"{said}: {unknown[0]} is no status or cause", f"they are {', '.join(sorted(known))}")
    return named


def check_changes(changes: Mapping[str, object], said: str) -> Mapping[str, object]:
    """[model] settings as `--set` changes them. Raises `JobError` for one that makes another run."""
    for key in changes:
        if key in ("name", "prices"):
            raise JobError(
                f"{said} cannot change [model] {key}", "another model is another run: `--fresh --model NAME`"
            )
    return changes


def canonical(changes: Mapping[str, object]) -> str | None:
    """The same changes always as the same JSON; None for none."""
    return json.dumps(changes, sort_keys=True, ensure_ascii=False) if changes else None


def deadline(job: Job, by: str | datetime | None) -> datetime | None:
    """The moment that `run --by` means, or `[run] by`. Raises `JobError` where `--by` would change nothing."""
    keeps_to_it = any("deadline" in target.takes for target, _ in job.targets)
    if by is not None and not keeps_to_it and all(each.choice == "standard" for each in job.asked):
        raise JobError(
            "--by is kept by way of `[model] lane` and of targets with the fallback `deadline`: the job names none",
            "`pipeline estimate JOB --by TIME` says whether it ends in time",
        )
    return moment(job, by, may_be_past=by is None)


def moment(job: Job, by: str | datetime | None, *, may_be_past: bool = False) -> datetime | None:
    """What `--by` means, or else `[run] by`, which a run that has batches out may have missed."""
    if isinstance(by, datetime):
        by = by.astimezone().isoformat()
    text = job.spec.run.by if by is None else by
    return None if text is None else (time_after if may_be_past else next_time)(text, datetime.now(UTC))


def check_sampled(sample: int | None, workers: int | None, on: object) -> None:
    """Raise `JobError` for a sample that several workers would ask: one process picks its rows and asks them."""
    if sample is not None and (workers is not None or on is not None):
        raise JobError("--sample does not go with several workers", "leave one of the two out")


def check_leave(leave: bool, offline: bool) -> None:
    """Raise `JobError` where batches could not be left with anybody."""
    if leave and offline:
        raise JobError(
            "--leave leaves batches with the service, and the built-in emulator ends with the run",
            "`pipeline emulate --batch` keeps them; [endpoint] base_url is its address",
        )
