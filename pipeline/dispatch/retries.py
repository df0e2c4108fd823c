"""Whether and when a prompt goes again after a failure that may pass."""

from math import inf
from random import Random

from pipeline.dispatch.backlog import Waiting
from pipeline.errors import AuthError, PipelineError
from pipeline.quota.waits import LONGEST_WAIT_S, asked_s
from pipeline.records import ErrorKind, Failure, Reply, Status

BACKOFF_FIRST_S, BACKOFF_LONGEST_S = 1.0, 60.0


def is_enough(waiting: Waiting, failure: Failure, max_attempts: int) -> bool:
    """Whether a failure that may pass ends its prompt: by its attempts, by those for this cause, or by its waits."""
    waiting.bounded += failure.most_requests is not None
    if waiting.failed_here >= max_attempts or waiting.bounded >= (failure.most_requests or inf):
        return True
    return asked_s(failure) > 0 and waiting.waited_s >= LONGEST_WAIT_S


def pause_s(waiting: Waiting, failure: Failure, period_s: float, rng: Random) -> tuple[float, float]:
    """Seconds until a prompt that failed goes again, and how many of them the service asked for.

    `period_s` is the pace of requests: at a slow one a prompt that goes again too soon goes instead of all others, and
    an outage uses it up.
    """
    longest = min(BACKOFF_LONGEST_S, max(BACKOFF_FIRST_S, 2.0 * period_s) * 2 ** (waiting.failed_here - 1))
    asked = min(asked_s(failure), LONGEST_WAIT_S - waiting.waited_s)
    waiting.waited_s += asked
    return max(asked, rng.uniform(0.0, longest)), asked


def failed(status: Status, failure: Failure) -> Reply:
    """The end of a prompt by a failure."""
    return Reply("", status, error_kind=failure.error_kind, error=failure.message)


def too_long(tokens: int, takes: str) -> Reply:
    """The end of a prompt by its length; `takes` says how much the service takes."""
    message = f"The prompt has {tokens:,} input tokens; the service takes {takes}. Chunk the text smaller."
    return Reply("", "invalid", error_kind="too_long", error=message)


def left_alone(reason: PipelineError) -> Reply:
    """The end of a prompt that only others may answer who were left out; the next run tries it again."""
    kind: ErrorKind = "auth" if isinstance(reason, AuthError) else "quota"
    return Reply("", "error", error_kind=kind, error=f"nobody is left to ask: {reason.message}")
