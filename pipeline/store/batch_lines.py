"""The lines of a batch: its file of requests as it is sent, and beside it what is needed to read its answers.

    batches/000003.requests.jsonl    as sent; holds prompts
    batches/000003.keys.parquet      whose each line is, in document order

Both are hidden until the batch is cut, and count for nothing without its `cut` event.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

import polars as pl

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.prompts import Prompt
from pipeline.records import Reply, Step, changed
from pipeline.store import parts
from pipeline.store.batch_states import BatchState, cannot_write
from pipeline.store.lines import Call, Sent, sent_of

NAMED = re.compile(
    r"(?P<hidden>\.?)(?P<number>[0-9]{6,})\.(?:requests\.jsonl|keys\.parquet|results\.jsonl)(?:\.(?:tmp|part))?"
)
"""The files of a batch, and what is written of them under a hidden name; whatever else lies there is not ours."""
_UNSENT = "Nothing of this batch was sent."
_WRITTEN_BYTES = 2**20


class Key(NamedTuple):
    """Whose a line is; its name in the batch is the fingerprint."""

    fingerprint: str
    row: int
    key: str
    step: Step
    level: int
    chunk: int
    chunks: int
    input_tokens_est: int
    max_output_tokens: int | None
    sound_tokens: int  # what it may cost depends on these two as well
    may_search: bool

    @staticmethod
    def of(prompt: Prompt, model: str) -> "Key":
        """That of a prompt which `model` is asked."""
        return Key(*attrgetter(*Key._fields)(sent_of(prompt, model, 0.0)))

    def prompt(self, model: str) -> Prompt:
        """What was asked, without its text; of its files the sound is there, as one."""
        return Sent(model=model, **self._asdict()).prompt

    def call(self, reply: Reply, *, paid: bool = True, late: bool = False) -> Call:
        """What is kept of the reply to it; not `paid`: a failure that ends it, or a line that cannot be read."""
        place = self.row, self.key, self.step, self.level, self.chunk, self.chunks
        return Call(*place, self.fingerprint, self.input_tokens_est, without_body(reply), paid, b"", late)


def without_body(reply: Reply) -> Reply:
    """A reply as it is kept: its body only where nothing else says what came."""
    return reply if not reply.raw or reply.error_kind == "malformed_reply" else changed(reply, raw=b"")


_SCHEMA = pl.Schema(
    {
        "fingerprint": pl.String,
        "row": pl.Int64,
        "key": pl.String,
        "step": pl.String,
        "level": pl.Int32,
        "chunk": pl.Int32,
        "chunks": pl.Int32,
        "input_tokens_est": pl.Int64,
        "max_output_tokens": pl.Int64,
        "sound_tokens": pl.Int64,
        "may_search": pl.Boolean,
    }
)
_PLACE = itemgetter(1, 4, 5)  # row, level, chunk


class Draft:
    """A batch that is being put together, in hidden files; killed, nothing of it was sent and nothing is left of it."""

    def __init__(
        self,
        directory: Path,
        number: int,
        run: str,
        in_place: Callable[["Draft", Decimal | None, float | None], BatchState],
        dropped: Callable[[int], None],
    ) -> None:
        """`in_place` makes a batch of it when its files are where they belong; `dropped` hears that it is none."""
        self.number = number
        self.lines = 0
        self.size_bytes = 0
        self.input_tokens_est = 0
        self.fingerprints: dict[str, Key] = {}
        self._rows: set[int] = set()
        self._run, self._in_place, self._dropped = run, in_place, dropped
        self._requests, self._keys = requests_path(directory, number), keys_path(directory, number)
        self._hidden = self._requests.with_name(f".{self._requests.name}.tmp")
        self._digest = hashlib.sha256()
        self._file: BinaryIO
        try:
            self._hidden.touch(0o600)
            self._file = self._hidden.open("wb", buffering=_WRITTEN_BYTES)
        except OSError as error:
            raise cannot_write(self._requests, error) from None

    def add(self, key: Key, line: bytes) -> None:
        """Put one line in, its line feed included. Raises ValueError for a content that is in it already."""
        if key.fingerprint in self.fingerprints:
            raise ValueError(f"row {key.row} asks what batch {self.number} asks already")
        try:
            self._file.write(line)
        except OSError as error:
            raise cannot_write(self._requests, error) from None
        self._digest.update(line)
        self.fingerprints[key.fingerprint] = key
        self._rows.add(key.row)
        self.lines += 1
        self.size_bytes += len(line)
        self.input_tokens_est += key.input_tokens_est

    @property
    def rows(self) -> int:
        """Rows that have a line in it."""
        return len(self._rows)

    @property
    def sha256(self) -> str:
        """Of all its lines so far, in hexadecimal."""
        return self._digest.hexdigest()

    def cut(self, worst_usd: Decimal | None = None, at: float | None = None) -> BatchState:
        """Make a batch of it, forced to the disk: to be called in a thread. Nothing may be added meanwhile.

        `worst_usd` is what all of its lines may cost at most; `at` is now, unless told. Raises `RunStateError` when the
        disk refuses, ValueError where nothing is in it.
        """
        if not self.lines:
            raise ValueError("a batch has lines")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            parts.write_frame(_frame(self.fingerprints.values()), self._keys, self._run, _UNSENT)
            self._file.close()
            machine.replace(self._hidden, self._requests)
            machine.sync_directory(self._requests.parent)
        except OSError as error:
            raise cannot_write(self._requests, error) from None
        finally:
            with suppress(OSError):
                self._file.close()
        return self._in_place(self, worst_usd, at)

    def discard(self) -> None:
        """Make nothing of it; what is in it was not sent."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._hidden.unlink()
        self._dropped(self.number)


def requests_path(directory: Path, number: int) -> Path:
    """The lines of a batch, as they are sent."""
    return directory / f"{number:06d}.requests.jsonl"


def keys_path(directory: Path, number: int) -> Path:
    """Whose they are."""
    return directory / f"{number:06d}.keys.parquet"


def results_path(directory: Path, number: int) -> Path:
    """The lines of its results, as they came."""
    return directory / f"{number:06d}.results.jsonl"


def read_keys(directory: Path, number: int) -> list[Key]:
    """Whose the lines of a batch are, in document order."""
    return [Key(*row) for row in _read(keys_path(directory, number), _SCHEMA.names()).iter_rows()]


def read_fingerprints(directory: Path, number: int) -> pl.Series:
    """What the lines of a batch ask."""
    return _read(keys_path(directory, number), ["fingerprint"])["fingerprint"]


def read_rows(directory: Path, number: int) -> list[int]:
    """The rows that have lines in a batch, in document order."""
    return _read(keys_path(directory, number), ["row"])["row"].unique(maintain_order=True).to_list()


def _frame(keys: Iterable[Key]) -> pl.DataFrame:
    ordered = sorted(keys, key=_PLACE)
    return pl.DataFrame(dict(zip(_SCHEMA.names(), zip(*ordered, strict=True), strict=True)), schema=_SCHEMA)


def _read(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    try:
        return parts.read_part(path, columns)
    except RunStateError:
        raise RunStateError(
            f"{path} is {'damaged' if path.exists() else 'missing'}: nobody knows which rows wait for that batch"
            "\nNothing was bought or written.",
            "restore it from a backup",
        ) from None
