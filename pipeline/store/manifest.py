"""What a run belongs to: written once, atomically; and the lock that lets one process write."""

import os
import shlex
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.places import Kind

VERSION = 2
"""Layout of a new run directory. In layout 1 journals had neither first line nor checksums."""
BATCHED_VERSION = 3
"""Layout of one that has had batches; a newer one is refused. Whoever does not know them would buy what is in them."""
SHARDED_VERSION = 4
"""Layout of one that consists of shards: whoever does not know them would take it for empty."""

_ANSWERS: Mapping[Kind, str] = {
    "real": "the service's answers",
    "offline": "the embedded emulator's answers",
    "rehearsal": "a served emulator's answers",
}
_OF_LATER = ("generation", "after", "before_usd")
_WORDS = ("system", "template")  # settings whose values are the text of prompts


@dataclass(frozen=True, slots=True)
class Manifest:
    """The job and the input that a run was started with."""

    job: str
    job_path: str
    fingerprint: str  # of all in the job that can change an answer
    identity: Mapping[str, Mapping[str, Any]]  # what that fingerprint hashes, to say what differs
    source: str  # fingerprint of the input
    source_path: str
    output: str
    model: str
    offline: bool
    created_at: str
    prices_dated: str
    versions: Mapping[str, str] | None = None
    version: int = VERSION
    run: str = ""  # what its journals begin with; empty in layout 1
    plain_journals: int = 0  # journals up to this number are of layout 1
    rehearsal: bool = False  # answered by a served emulator; `offline` by the embedded one
    generation: int = 1  # of the run: an edit that can change answers begins the next
    after: tuple[str, ...] = ()  # directories of earlier generations, the newest first, whose answers are kept
    before_usd: str = "0"  # what those may have cost, in all: it counts against the caps of this one
    workers: int = 0  # that the last session had, of a run that consists of shards
    on_ray: bool = False  # where they were

    @property
    def kind(self) -> Kind:
        """Who answers the run."""
        return "offline" if self.offline else "rehearsal" if self.rehearsal else "real"

    def again(self, retry: str = "", max_output_tokens: int | None = None, sample: int = 0) -> str:
        """What goes on with the run, as it would be typed: a command, or the call of a job that stands in no file."""
        if self.job_path == self.job:
            job = f"pp.load(job, model={{'max_output_tokens': {max_output_tokens}}})" if max_output_tokens else "job"
            said = (
                ("offline=True", self.offline),
                (f"retry='{retry}'", retry),
                (f"sample={sample}", sample),
                ("on='ray'", self.on_ray),
                (f"workers={self.workers}", self.workers),
            )
            return f"pp.run({', '.join([job, *(argument for argument, is_said in said if is_said)])})"
        flags = (
            (" --offline", self.offline),
            (f" --retry {retry}", retry),
            (f" --set max_output_tokens={max_output_tokens}", max_output_tokens),
            (f" --sample {sample}", sample),
            (" --on ray", self.on_ray),
            (f" --workers {self.workers}", self.workers),
        )
        return f"pipeline run {shlex.quote(self.job_path)}{''.join(flag for flag, is_said in flags if is_said)}"


_SHAPE = TypeAdapter(Manifest)


def write(path: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    hidden = path.with_name(f".{path.name}.tmp")
    hidden.touch(0o600)
    with hidden.open("wb") as file:
        written = asdict(manifest)
        if manifest.generation == 1:  # as versions wrote it that know of no other
            written = {name: value for name, value in written.items() if name not in _OF_LATER}
        if not manifest.workers:
            del written["workers"], written["on_ray"]
        file.write(orjson.dumps(written, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        file.flush()
        os.fsync(file.fileno())
    hidden.chmod(0o600)
    machine.replace(hidden, path)
    machine.sync_directory(path.parent)


def read(path: Path) -> Manifest | None:
    """The manifest, or None where there is none.

    Raises `RunStateError` for one that cannot be read, and where something beside it would be waited for without end.
    """
    try:
        _check_files(path.parent)
        written = path.read_bytes()
        data = orjson.loads(written)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunStateError(
            f"cannot read {path}: {error.strerror}", "check the disk or the path, then run the same command again"
        ) from None
    except orjson.JSONDecodeError as error:
        raise RunStateError(f"cannot read {path}: {error}", "restore it, or start anew with `--fresh`") from None
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SHARDED_VERSION:
        raise RunStateError(
            f"{path.parent} was made by a newer prompt-pipeline (layout {version}, this one knows {SHARDED_VERSION})",
            "upgrade prompt-pipeline, or start anew with `--fresh`",
        )
    try:
        _SHAPE.validate_json(written, strict=True)
        return Manifest(**{**data, "after": tuple(data.get("after", ()))})
    except (ValidationError, TypeError):
        raise RunStateError(f"{path} is not a manifest", "restore it, or start anew with `--fresh`") from None


def _check_files(directory: Path) -> None:
    """Raise `RunStateError` for a pipe, a socket or a device in a run directory: to open one may take for ever."""
    for place in (directory, *(directory / name for name in ("calls", "results", "batches", "batched"))):
        for entry in list(os.scandir(place)) if place.is_dir() else ():
            if not (entry.is_file() or entry.is_dir()) and os.path.lexists(entry.path):
                raise RunStateError(f"{entry.path} is not a file", "move it away, and restore what was there")


def in_place_of(known: Manifest, manifest: Manifest) -> Manifest:
    """The manifest of a directory that was not used yet, for another job or input: what came before it stays."""
    return replace(
        manifest,
        run=known.run,
        plain_journals=known.plain_journals,
        version=known.version,
        generation=known.generation,
        after=known.after,
        before_usd=known.before_usd,
    )


def differences(old: Manifest, new: Manifest) -> list[str]:
    """What differs in ways that can change an answer, one line each, without the values of prompts."""
    lines = []
    if old.kind != new.kind:
        lines.append(f"who answers: it holds {_ANSWERS[old.kind]}, this run would add {_ANSWERS[new.kind]}")
    if old.source != new.source:
        named = (new.identity.get("input") or {}).get("path", new.source_path)  # another where its content names it
        table = new.source_path if named == new.source_path else "the table"
        lines.append(f"the input: {table} is not what it was when the run was started")
    for section in sorted(old.identity.keys() | new.identity.keys()):
        before, after = old.identity.get(section) or {}, new.identity.get(section) or {}
        lines += [
            f"[{section}] {key}{'' if key in _WORDS else _change(before.get(key), after.get(key))}"
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
    return lines


def _change(before: object, after: object) -> str:
    shown = [str(value) if value is not None else "unset" for value in (before, after)]
    return f": {shown[0]} → {shown[1]}" if all(len(text) <= 40 and "\n" not in text for text in shown) else ""


class Lock:
    """The right to write into one run directory; the system gives it back when the holder dies.

    Raises `RunStateError` when another process has it, and where the file system cannot say.
    """

    def __init__(self, path: Path) -> None:
        self._fd = machine.open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            machine.lock(self._fd)
        except OSError as error:
            holder = ""
            if isinstance(error, BlockingIOError):
                holder = machine.read_at(self._fd, 200, 0).decode("utf-8", "replace").strip() or "another process"
            self.release()
            if not holder:
                raise RunStateError(
                    f"{path} cannot be locked: {error.strerror}\nTwo runs could write there at once; nothing was sent.",
                    "run in a directory on a disk of this machine: some network file systems lock nothing",
                ) from None
            raise RunStateError(
                f"{path.parent} is in use by {holder}",
                f"`pipeline report {shlex.quote(str(path.parent))}` shows its progress",
            ) from None
        with suppress(OSError):  # only a courtesy to whoever asks
            machine.set_mode(self._fd, 0o600)
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"process {os.getpid()} on {socket.gethostname()}".encode())

    @staticmethod
    def held(path: Path) -> bool:
        """Whether a living process writes into the directory of this lock file: none, where nothing can be locked."""
        try:
            with path.open("rb") as file:
                return machine.is_locked(file.fileno())
        except OSError:
            return False

    def release(self) -> None:
        """Let another process write."""
        fd, self._fd = self._fd, -1
        with suppress(OSError):
            os.close(fd)
