"""What of a run directory is whole: one file of an earlier generation that is lost costs no more than it held."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import RunStateError
from pipeline.records import Parse
from pipeline.store import batched, parts, seals
from pipeline.store.journal import is_blank, journal_paths
from pipeline.store.state import Batch, unsealed_of, whose


class Whole(NamedTuple):
    """Parts that are there as they were sealed, the oldest first, and what is not sealed; `lost` is all else."""

    unsealed: Batch
    results: tuple[Path, ...]
    calls: tuple[Path, ...]  # those of batches before others; of `calls/` only those whose results are there
    lost: tuple[Path, ...]


def whole_of(directory: Path, parse: Parse) -> Whole:
    """Look through a directory that nobody writes to, whatever became of its files. Its manifest can be read."""
    known: Mapping[str, seals.Sealed] = {}
    with suppress(RunStateError):  # the parts that are there are then taken as they are
        known = seals.read(directory)
    there = [path for kind in ("calls", "results") for path in parts.files(directory / kind)]
    paths = {directory / name for name in known} | {*there, *batched.there(directory)}
    run = whose(directory).run
    good = {path for path in paths if _is_whole(path, known, run)}
    lost = sorted(paths - good)
    results = tuple(path for path in parts.part_paths(directory / "results") if parts.file_of(path) in good)
    finished = set(map(parts.part_number, results))
    calls = [path for path in parts.part_paths(directory / "calls") if parts.part_number(path) in finished]
    try:
        calls = [*batched.part_paths(directory), *calls]
        unsealed = unsealed_of(directory, parse)
    except RunStateError:
        unsealed = Batch(0)
        lost += [path for path in journal_paths(directory) if not is_blank(path)] or [directory / seals.NAME]
    return Whole(unsealed, results, tuple(path for path in calls if parts.file_of(path) in good), tuple(lost))


def _is_whole(path: Path, known: Mapping[str, seals.Sealed], run: str) -> bool:
    """Whether a part is as long as it was, or, where nobody noted that, is one of this run."""
    try:
        if seals.noted(path, known):
            return path.stat().st_size == known[f"{path.parent.name}/{path.name}"].size
        parts.check_owner(path, run)
    except (OSError, RunStateError):
        return False
    return True
