"""What is asked of whoever speaks a service's batches; what there is at a service, and what a line of results says.

    line … → upload → create → get … → fetch → read_line …

Nothing here retries a create, waits for quota, or raises for what a service says.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from pipeline.prompts import Prompt
from pipeline.records import Failure, Reply

BatchStatus = Literal["pending", "running", "cancelling", "succeeded", "failed", "expired", "cancelled"]
BATCH_STATUSES: tuple[BatchStatus, ...] = get_args(BatchStatus)
ENDED: frozenset[BatchStatus] = frozenset({"succeeded", "failed", "expired", "cancelled"})
"""From these a batch goes on to no other."""


MOST_RESULTS_BYTES = 8 * 2**30
"""Of one batch: 20,000 of the longest answers of any model, of 65,536 tokens, have as many."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one batch has."""

    lines: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at the service, by the name that the service knows it by."""

    name: str
    sha256: str | None = None  # in hexadecimal; None: not told
    size: int | None = None  # bytes; None: not told


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """A batch as the service tells of it; None: not told."""

    name: str
    label: str  # as it was created with
    input_file: str | None
    status: BatchStatus  # "succeeded" only once there is something to fetch
    lines: int | None = None
    done: int | None = None  # of the lines, those that were answered
    failed: int | None = None  # those that were not
    created: float | None = None  # seconds since the epoch
    ended: float | None = None
    outputs: tuple[str, ...] = ()  # files of results
    inline: tuple[bytes, ...] | None = None  # the lines of results themselves, in the place of a file
    error: str = ""  # one line for a person, without key or prompt text
    over_limit: bool = False  # it ended since more was enqueued than the project may have: nothing is wrong with it

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Line:
    """What a line of results says: a reply that was paid for, or a failure, or neither, which is as if it were missing.

    `key` is None where the line names none.
    """

    key: str | None
    reply: Reply | None = None
    failure: Failure | None = None

    @property
    def body(self) -> bytes:
        """The body of a live response that reads as this line does: what is kept."""
        return self.reply.raw if self.reply else self.failure.raw if self.failure else b""


class Batches(Protocol):
    """The batches of one project at one service. A file or batch of another project is one that is not there."""

    bounds: Bounds

    async def line(self, key: str, prompt: Prompt, model: str) -> bytes | Failure:
        """The request for `prompt` as one line, which ends with a line feed; its large files are uploaded first."""
        ...

    async def upload(self, path: Path, name: str, sha256: str) -> RemoteFile | Failure:
        """Upload the file of lines at `path`; one that is there already under that name is taken if it is the same.

        `name` has at most 40 characters of `[a-z0-9-]`; `sha256` is in hexadecimal.
        """
        ...

    async def find_file(self, name: str) -> RemoteFile | Failure | None:
        """The file that was uploaded under `name`; None: there is none."""
        ...

    async def remove(self, file: RemoteFile) -> Failure | None:
        """Delete a file; none that is not there any more is a failure."""
        ...

    async def create(self, model: str, file: RemoteFile, label: str) -> RemoteBatch | Failure:
        """Have the lines of `file` answered by `model`: one request, as a second one makes a second batch.

        After a failure there may be a batch all the same: see `may_exist`.
        """
        ...

    async def get(self, name: str) -> RemoteBatch | Failure | None:
        """A batch as it is now; None: there is none of that name."""
        ...

    async def find_all(self) -> list[RemoteBatch] | Failure:
        """Every batch of the project, the newest first; never a part of them."""
        ...

    async def cancel(self, name: str) -> Failure | None:
        """Ask that no more of a batch's lines are answered."""
        ...

    async def fetch(self, batch: RemoteBatch, path: Path) -> Failure | None:
        """Put all lines of results into the file at `path`, which is there once it is whole."""
        ...

    async def count(self, line: bytes, model: str) -> int | Failure:
        """Input tokens of a line of requests as `model` counts them, free of charge; a failure where nobody does."""
        ...

    def read_line(self, line: bytes, model: str, input_tokens_est: int = 0) -> Line:
        """Read one line of results; `model` was asked, with so many tokens. Never raises."""
        ...


# --- what a failure means to a batch ----------------------------------------------------------------------------------


def may_exist(failure: Failure) -> bool:
    """Whether a create that failed so may have made a batch all the same."""
    refused = failure.http_status is not None and 400 <= failure.http_status < 500
    return failure.sent and (not refused or failure.http_status in (408, 499))


def is_too_large(failure: Failure) -> bool:
    """Whether a fetch was given up since results have no end, or might as well have none."""
    return failure.kind == "reject" and failure.error_kind == "too_long"


def is_storage_full(failure: Failure) -> bool:
    """Whether an upload was refused since the project's files fill its storage: waiting alone does not help."""
    return any("filestorage" in hit.quota_id.lower() for hit in failure.quota)


def is_enqueued_limit(failure: Failure) -> bool:
    """Whether a create was refused since enough is enqueued: it may be asked again later, or with fewer lines."""
    return failure.kind in ("rate_limit", "day_quota") and not is_storage_full(failure)
