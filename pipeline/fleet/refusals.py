"""What a fleet does not do, refused by name before anything is spent."""

from collections.abc import Sequence

from pipeline.errors import JobError, RunStateError
from pipeline.fleet.standing import shard_session
from pipeline.run.generations import changed
from pipeline.run.prepare import Session
from pipeline.run.replaced import with_replaced
from pipeline.source import run_conflict
from pipeline.store.afar import run_url
from pipeline.store.state import is_unused
from pipeline.store.units import Shard, is_cut


def check_job(session: Session) -> None:
    """Raise `JobError` for a job or a flag that needs one process, `InputError` for a run that is its own input."""
    job, options = session.working, session.options
    for each in job.asked:
        if each.spec.model.lane in ("batch", "auto"):
            raise _not(f"lane = {each.spec.model.lane!r}", "batches are handed in by one process: run it without")
        if each.spec.model.prefix_cache:
            raise _not(f"prefix_cache = {each.spec.model.prefix_cache!r}", "one process keeps explicit caches")
    for is_set, name in (
        (options.pilot is not None, "--sample" if options.sampled else "--pilot"),
        (options.by is not None, "--by"),
        (options.leave, "--leave"),
        (options.cancel_batches, "--cancel-batches"),
    ):
        if is_set:
            raise _not(name, "leave one of the two out")
    if (path := session.job.spec.run.path) is not None:
        run_conflict(session.source, run_url(path, session.job.name, session.kind))


def check_elsewhere(session: Session) -> None:
    """Raise `JobError` for rows that name files, where workers may run on machines that do not have them."""
    source = session.source
    if session.job.spec.run.path is not None and (source.path_columns or source.sends_scans):
        named = f"column {source.path_columns[0]} names files" if source.path_columns else "scanned documents are files"
        raise JobError(
            f"{named}, which workers on other machines may not have: with [run] path they share no folder",
            "let a column of Parquet hold the files themselves, or leave [run] path out and share a folder",
        )


def check_run(session: Session) -> None:
    """Raise `RunStateError` for a run that was begun by one process, or from another job or input."""
    options = session.options
    if options.fresh or not session.directory.exists():
        return
    if not is_cut(session.directory) and not is_unused(session.directory):
        raise RunStateError(
            f"{session.directory} was begun by one process, and its table is not cut into shards\nNothing was sent.",
            "the same command without `--workers` and `--on` goes on with it; `--fresh` begins anew",
        )
    if change := changed(session):
        raise RunStateError(
            "the job or its input changed since this run was begun, and several workers keep no answers over an edit\n"
            + "\n".join(f"  {line}" for line in change.lines)
            + "\nNothing was sent.",
            "undo the change, or begin anew with `--fresh`, which keeps the old run beside",
        )


async def check_files(session: Session, shards: Sequence[Shard]) -> None:
    """Raise `RunStateError` where files were replaced under their names that rows were asked about."""
    if not session.source.path_columns:
        return
    for shard in shards:
        if (shard.directory / "manifest.json").exists():
            own = await with_replaced(shard_session(session, shard, shard.rows))
            if own.replaced:
                raise RunStateError(
                    f"files were replaced under their names that rows were asked about: {', '.join(own.replaced[:5])}"
                    f"{', …' * (len(own.replaced) > 5)}\nNothing was sent.",
                    "put them back, or begin anew with `--fresh`, which keeps the old run beside",
                )


def _not(what: str, hint: str) -> JobError:
    return JobError(f"{what} does not go with several workers", hint)
