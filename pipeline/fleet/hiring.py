"""Who does the work of a run, where that is not one process: `--workers` and `--on`."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import ceil

from pipeline.errors import JobError
from pipeline.fleet import processes
from pipeline.fleet.refusals import check_elsewhere, check_job, check_run
from pipeline.fleet.run import by_fleet
from pipeline.fleet.shards import firsts
from pipeline.installed import installing
from pipeline.run.parts import looked_at
from pipeline.run.prepare import Session
from pipeline.run.run import Work
from pipeline.store.lease import Busy
from pipeline.store.units import is_cut

CALLS_A_WORKER = 500
"""Calls a second that leave a worker room on one core; see docs/measured.md."""
LEAST_WORKERS = 2
"""On Ray: with one alone nothing goes on while another takes its place."""


def split(session: Session, workers: int | None, pilot: int | None = None) -> tuple[Session, list[int]]:
    """The session as so many workers do it, and the first rows of the shards that it has, or would have.

    Raises what the run would, and for a `pilot` before.
    """
    if pilot is not None:
        raise JobError("--pilot runs some rows in one process, which then does the others too", "leave --workers out")
    check_job(session)
    found = looked_at(session)
    check_run(found)
    workers = workers or workers_for(found.limits.rpm, os.cpu_count() or 1)
    return replace(session, workers=workers), firsts(found, workers)


def unasked(session: Session, workers: int | None, on_ray: bool) -> Iterator[str]:
    """That a cluster was not asked how many workers it takes, where the shards that there would be hang on that."""
    is_known = workers is not None or (is_cut(session.directory) and not session.options.fresh)
    if on_ray and not is_known and os.environ.get("RAY_ADDRESS", "local") != "local":
        yield (
            "the cluster was not asked for its CPUs: shards are counted for the workers that this machine would take,"
            " and with `--workers N` for N"
        )


@contextmanager
def hired(session: Session, workers: int | None, on_ray: bool, busy: Busy) -> Iterator[Work | None]:
    """What does the work, while the block goes on; None: this process alone. Raises `JobError`."""
    if not on_ray and workers is None:
        yield None
        return
    check_job(session)
    if on_ray:
        check_elsewhere(session)
        with _on_ray(session, workers, busy) as work:
            yield work
    elif workers is not None:
        yield by_fleet(processes.launch, workers, busy)


@contextmanager
def _on_ray(session: Session, workers: int | None, busy: Busy) -> Iterator[Work]:
    try:
        from pipeline.fleet import on_ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise JobError(
            "--on ray needs ray, which is not installed", f"`{installing('ray')}`; `--workers N` does without it"
        ) from None
    cpus = workers or workers_for(session.limits.rpm, os.cpu_count() or 1)
    with ExitStack() as open_while:
        with busy("starting Ray"):
            cluster = open_while.enter_context(on_ray.connected(cpus))
        number = workers or workers_for(session.limits.rpm, cluster.cpus)
        yield by_fleet(cluster.launch, number, busy, on_ray=True)


def workers_for(rpm: int | None, cpus: int) -> int:
    """How many workers a rate takes, where nobody says; `rpm` None or 0: no limit is known."""
    needed = ceil(rpm / 60 / CALLS_A_WORKER) if rpm else cpus
    return max(LEAST_WORKERS, min(needed, cpus))
