"""How long the batches of all runs of a user took: one line each, in the state directory, without key or prompt.

It only makes plans better, so what cannot be read or written is passed over.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from pipeline import machine
from pipeline.process import make_private
from pipeline.store.batch_states import BatchState

KEPT_S = 180 * 86_400.0
"""An older batch says nothing any more."""
_MOST_BYTES = 2_000_000  # some 10,000 batches; then old ones are left out

End = Literal["done", "never", "open"]
"""Of a batch: its results came; it expired; it was cancelled or failed, or is waited for: it takes longer than that."""
_ENDS: tuple[End, ...] = get_args(End)


@dataclass(frozen=True, slots=True)
class Took:
    """One batch: how long it took, or was out without results."""

    name: str  # the service's
    quota: str  # as `Target.quota`
    seconds: float
    end: End
    at: float  # when that was known, in epoch seconds


def took(state: BatchState, now: float) -> Took | None:
    """What a batch of this run says of how long they take, at `now`; None: it is not with the service yet.

    One that failed is no slow one: what is wrong is its file, or how much is enqueued.
    """
    if state.asked_at is None or not state.name:
        return None
    end: End = "done" if state.status == "succeeded" else "never" if state.status == "expired" else "open"
    known_at = now if state.is_open and end == "open" else state.ended_at or state.at
    quota = f"{state.account}/{state.model}"
    return Took(state.name, quota, max(0.0, known_at - state.asked_at), end, known_at)


def note(path: Path, states: Iterable[BatchState], now: float) -> None:
    """Keep those of a run's batches that are over, for the runs to come; each once."""
    known = {one.name for one in _read(path)}
    over = [took(state, now) for state in states if not state.is_open]
    lines = [orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in over if one and one.name not in known]
    if not lines:
        return
    with suppress(OSError):
        make_private(path.parent)
        if path.exists() and path.stat().st_size > _MOST_BYTES:
            _shorten(path, now)
        fd = machine.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(fd, b"".join(lines))
        finally:
            os.close(fd)


def earlier(path: Path, quota: str, now: float) -> list[Took]:
    """The batches of all runs that had this quota."""
    return [one for one in _read(path) if one.quota == quota and now - one.at < KEPT_S]


def _shorten(path: Path, now: float) -> None:
    """The newest half; what another run adds at this very moment may be lost."""
    kept = sorted((one for one in _read(path) if now - one.at < KEPT_S), key=lambda one: one.at)
    new = path.with_name(f"{path.name}.new")
    fd = machine.open_file(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(fd, "wb") as file:
        file.writelines(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in kept[len(kept) // 2 :])
    machine.replace(new, path)


def _read(path: Path) -> Iterator[Took]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        with suppress(ValueError, LookupError, TypeError):  # a torn line, or one of another version
            yield _one(orjson.loads(line))


def _one(told: dict[str, Any]) -> Took:
    seconds, at = float(told["seconds"]), float(told["at"])
    if told["end"] not in _ENDS or not seconds >= 0.0:
        raise ValueError
    return Took(str(told["name"]), str(told["quota"]), seconds, told["end"], at)
