"""What can stop a run, as the person who started it should read it.

    PipelineError            a person can mend it; printed as `error: …`, a blank line, `hint: …`
    ├── JobError          2  the job file, a template or a flag
    ├── InputError        2  the table that is read, or a place that cannot be written to
    ├── InputChanged      3  the table that is read is not what it was when the run began; resumable
    ├── OutputError       3  the answers are there, and their table could not be written; resumable
    ├── RunStateError     2  the run directory: locked, of another job, damaged
    ├── AuthError         2  the key, the project, the region or the proxy's login was refused
    ├── BudgetReached     3  the next call could pass a spend cap, or one cannot be kept; resumable
    ├── QuotaExhausted    3  the day's quota is used up; resumable
    ├── BatchesOut        3  batches are with the service, and are collected by the same command; resumable
    ├── BatchesCancelled  3  a run took its batches back, and asked nothing in their place; resumable
    ├── ServiceError      3  the service is down, or refuses everything alike; resumable
    └── RowsFailed        3  the first rows of a run all failed for one cause; resumable
    Halted                   inside the program only: no new call is admitted, the document stays as it is
    Parked                   the same: the answer comes with a batch, and the document is opened again then

A failed prompt is none of these: it is data in its row (`records.Result`). The number is the exit code: 2 says that
nothing was spent: in the middle of a run such an error has a 3 (`resumable_once`).
"""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

RESUMABLE = 3
"""Exit code of what stopped a run that had sent requests already."""

DECLINED = 4
"""Exit code where whoever was asked whether to go on said no."""

BUG = 70
"""Exit code of what is an error of the program itself."""

KEPT = "\nWhat was answered is kept."
"""Added to what stopped a run that has answers."""

EXIT_CODES: Mapping[int, str] = {
    0: "all rows are ok",
    1: "finished; some rows are not ok",
    2: "could not start: job, template, input, output, key, run directory or environment, or a cost that nobody was"
    " there to agree to (`--yes` does); nothing was spent",
    3: "stopped early and can be continued: a spend cap, the day's quota, an input that changed, an output that could"
    " not be written, batches that are with the service,"
    " a service that is down, the first 20 rows of a run that all failed for one cause, or what is a 2"
    " before the first request (a full disk, a key that is refused) in the middle of a run",
    DECLINED: "whoever was asked said no to the cost, before the first request: nothing was sent",
    130: "interrupted; can be continued",
    BUG: "a bug of prompt-pipeline; what was paid for is kept",
}
"""Every code that the process ends with, and what it means."""

_PLACES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, then run the same command again"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise `ulimit -n`, then run the same command again"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "mend the permissions of the place, then run the same command again"
    ),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENOLCK, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR),
        "check the disk or the path, then run the same command again",
    ),
}
"""What the system may refuse in any place, by no fault of the program: number → what to do."""


class PipelineError(Exception):
    """Stops the run; `hint` is the next thing to do, often a command."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.others: tuple[PipelineError, ...] = ()  # what else is wrong, where all of it was looked for


def as_known(error: BaseException) -> PipelineError | None:
    """What a person can mend in `error`, an exception group or a refusal of the system; None for a bug."""
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, OSError) and error.errno in _PLACES:
        place = f" {error.filename}" if isinstance(error.filename, str) else ""
        return RunStateError(f"the system refuses{place}: {error.strerror}", _PLACES[error.errno])
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := as_known(inner))), None)
    return None


def bug_in(error: BaseException) -> PipelineError:
    """What is told elsewhere of an error of the program, whose traceback is on stderr: where it was.

    Nothing of what it says is told: that may be of a prompt.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    place, trace = "", error.__traceback__
    while trace is not None:
        _, package, module = trace.tb_frame.f_code.co_filename.rpartition("/pipeline/")
        if package:
            place = f" in pipeline/{module}, line {trace.tb_lineno}"
        trace = trace.tb_next
    bug = PipelineError(
        f"ended by an error of the program ({type(error).__name__}{place}), which belongs in a bug report with the"
        " traceback on stderr; what was answered is kept",
        "the same command continues",
    )
    bug.exit_code = BUG
    return bug


def cannot_write(place: str | Path, error: OSError) -> "RunStateError":
    """What a run says of a place in its directory that the system refuses."""
    return RunStateError(
        f"cannot write {place}: {error.strerror}\nWhat is kept there is untouched.",
        "make room or mend its permissions, then run the same command again",
    )


@contextmanager
def resumable_once(
    spent: Callable[[PipelineError], bool], answered: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Give a known error of the block exit code 3 instead of 2 when something was `spent` before it came.

    It is told as well that what was `answered` is kept.
    """
    try:
        yield
    except Exception as error:
        known = as_known(error)
        if known is None or known.exit_code == RESUMABLE or not spent(known):
            raise
        known.exit_code = RESUMABLE
        if answered():
            known.message += KEPT
        raise known from error


class JobError(PipelineError):
    """The job file, a template or a flag is wrong."""


class InputError(PipelineError):
    """The input table cannot be read as the job says, or the output cannot be written."""


class InputChanged(PipelineError):
    """The input changed under a run: nothing more can be asked of it, and no answer put beside its rows."""

    exit_code = 3


class OutputError(PipelineError):
    """The output cannot be written, or must not be; every answer is safe in the run directory."""

    exit_code = 3


class RunStateError(PipelineError):
    """The run directory belongs to another job, is in use, or is damaged."""


class AuthError(PipelineError):
    """The key, the project, the region or the proxy's login was refused."""


class BudgetReached(PipelineError):
    """The next call could pass a spend cap, or nobody can tell whether it would."""

    exit_code = 3


class QuotaExhausted(PipelineError):
    """The day's quota of this project and model is used up, or it has none."""

    exit_code = 3


class BatchesOut(PipelineError):
    """Batches are with the service: whoever left them there collects them later."""

    exit_code = 3


class BatchesCancelled(PipelineError):
    """A run took its batches back, and asked nothing in their place."""

    exit_code = 3


class ServiceError(PipelineError):
    """The service does not answer, or refuses every request for the same reason."""

    exit_code = 3


class RowsFailed(PipelineError):
    """The first rows of a run all failed for one cause: it is the job's, not the rows'."""

    exit_code = 3


class Halted(Exception):
    """No new call is admitted; raised to every document that asks for one. `reason` is None after Ctrl-C."""

    def __init__(self, reason: PipelineError | None = None) -> None:
        super().__init__(str(reason) if reason else "interrupted")
        self.reason = reason


class Parked(Exception):
    """The prompt waits in a batch of that number, or for one: its document is closed, and opened again later."""

    def __init__(self, batch: int = 0) -> None:
        super().__init__(f"batch {batch}")
        self.batch = batch
