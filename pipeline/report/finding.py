"""Which run is meant by what somebody typed: a directory, the name of a run or of a job, a job file, or nothing.

`NAME@2` is its second generation."""

import difflib
import glob
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.errors import RunStateError
from pipeline.places import RUNS, SUFFIXES, run_directory
from pipeline.store import afar
from pipeline.store.manifest import read as read_manifest
from pipeline.store.place import STAMP
from pipeline.urls import is_url

_ASIDE = re.compile(STAMP + r"\Z")
_NUMBERED = re.compile(r"@\d+\Z")
_MOST_NAMES = 6  # told of those that there are


def find_run(text: str | None = None, *, sums: bool = False) -> Path:
    """The run directory that `text` means: of a job its real run, or else the rehearsal that was written to last.

    None is the run that goes on, or else the one that was written to last. Of a run on object storage it is a copy as
    that is now, of its shards that are done with `sums` these alone. Raises `RunStateError` where there is none, and
    where several go on.
    """
    directory = _found(text)
    if directory.parent == RUNS and not _NUMBERED.search(text or "") and not _ASIDE.search(directory.name):
        directory = afar.newest_of(directory) or directory  # another machine may have begun a generation since
    afar.bring(directory, sums=sums)
    return directory


def _found(text: str | None) -> Path:
    if text is None:
        running = [directory for directory in every() if in_use(directory)]
        if len(running) > 1:
            raise RunStateError("several runs go on: which one?", f"name one of {_named(running)}")
        return running[0] if running else newest()
    stem, at, number = text.rpartition("@")
    is_numbered = bool(at) and number.isdecimal()
    if is_url(text):
        return _generation(_found(stem), int(number)) if is_numbered else _copy_of(text)
    for directory in (Path(text), RUNS / text):
        if _is_run(directory):
            return directory
    name = Path(text).stem if text.endswith(".toml") else text
    if is_numbered:
        return _generation(_found(stem), int(number))
    if "/" not in name:
        kinds = [directory for kind in SUFFIXES if _is_run(directory := run_directory(name, kind))]
        if kinds:
            return kinds[0] if kinds[0] == run_directory(name, "real") else max(kinds, key=_written_at)
    if text.endswith(".toml") and (urls := _afar_of(Path(text))):
        rehearsals = (copy for url in urls[1:] if (copy := afar.copy_of(url)))
        return afar.copy_of(urls[0]) or next(rehearsals, None) or _copy_of(urls[0])
    there = list(every())
    close = difflib.get_close_matches(Path(name).name, [directory.name for directory in there], n=1, cutoff=0.5)
    meant = f"did you mean {RUNS / close[0]}? " if close else ""
    have = f"there are {_named(there)}; " if there and not close else ""
    what = (
        f"no run of the job {text} is in {RUNS}/" if text.endswith(".toml") else f"{text} is no run and no job's name"
    )
    raise RunStateError(what, f"{meant}{have}`pipeline runs` lists all")


def _copy_of(url: str) -> Path:
    if (place := afar.copy_of(url)) is None:
        raise RunStateError(f"there is no run in {url}", "its URL is what [run] path says, and the name of its job")
    return place


def _afar_of(job: Path) -> list[str]:
    """Where the run of a job file may lie that none here has led, and its rehearsals; empty where it names no place."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        path = str(tomllib.loads(job.read_text("utf-8"))["run"]["path"])
        return [afar.run_url(path, job.stem, kind) for kind in SUFFIXES]
    return []


def _generation(directory: Path, number: int) -> Path:
    """The directory of an earlier generation of a run, or the run's own."""
    there = _generations(directory)
    if number not in there and (copy := afar.generation_of(directory, number)):
        return copy
    if number not in there and (root := afar.root_of(directory)):
        have = ", ".join(map(str, range(1, afar.newest(root) + 1)))
        raise RunStateError(f"{root.url} has no generation {number}", f"there are {have}")
    if number not in there:
        have = ", ".join(map(str, sorted(there)))
        raise RunStateError(f"{directory} has no generation {number}", f"there are {have}; `pipeline runs` lists all")
    return there[number]


def before(directory: Path) -> Path:
    """The generation before this one. Raises `RunStateError` where there is none."""
    there = _generations(directory)
    known = read_manifest(directory / "manifest.json")
    earlier = [number for number in there if known and number < known.generation]
    if not earlier and known and (copy := afar.generation_of(directory, known.generation - 1)):
        afar.bring(copy)
        return copy
    if not earlier:
        raise RunStateError(
            f"{directory} has no generation before it",
            "an edit of its job or input, or `--fresh`, begins the next; `pipeline diff RUN RUN` compares any two",
        )
    afar.bring(there[max(earlier)])
    return there[max(earlier)]


def _generations(directory: Path) -> dict[int, Path]:
    """Those of a run by number, its own among them; `--fresh` set some aside that nothing else names."""
    manifest = read_manifest(directory / "manifest.json")
    line = [directory.with_name(name) for name in (manifest.after if manifest else ())]
    name = _ASIDE.sub("", directory.name)
    aside = sorted(directory.parent.glob(f"{glob.escape(name)}.*/manifest.json"))
    there: dict[int, Path] = {}
    for path in (*(each.parent for each in aside), *reversed(line), directory):
        with suppress(RunStateError):
            if (known := read_manifest(path / "manifest.json")) and manifest and known.job == manifest.job:
                there[known.generation] = path
    return there


def newest(runs: Path = RUNS) -> Path:
    """The run directory that was written to last. Raises `RunStateError` when there is none."""
    found = list(every(runs))
    if not found:
        raise RunStateError(f"no runs in {runs}/", "`pipeline run jobs/summarize.toml --offline` makes one")
    return max(found, key=_written_at)


def every(runs: Path = RUNS) -> Iterator[Path]:
    """Every run directory, by name."""
    return iter(sorted(path.parent for path in runs.glob("*/manifest.json")))


def in_use(directory: Path) -> bool:
    """Whether a living process writes into the run directory, or into the run of which it is a working copy."""
    return afar.is_led(directory)


def _is_run(directory: Path) -> bool:
    return (directory / "manifest.json").exists()


def _written_at(directory: Path) -> float:
    log = directory / "run.log"
    return log.stat().st_mtime if log.exists() else 0


def _named(directories: Iterable[Path]) -> str:
    names = [directory.name for directory in directories]
    return ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
