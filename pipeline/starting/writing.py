"""Where a job that is begun lies, with its output: nothing that is there is written over."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import get_args

from pipeline import machine
from pipeline.errors import InputError, JobError
from pipeline.places import Kind, beside, run_directory
from pipeline.starting.words import EXAMPLE, Language

_KINDS: tuple[Kind, ...] = get_args(Kind)


def example(language: Language) -> str:
    """That table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(EXAMPLE[language])
    return text.getvalue()


def job_path(stem: str, to: str | None) -> Path:
    """Where the job goes: the place that is named, or one whose run directory is free. Raises `JobError`."""
    path = Path(to) if to is not None else Path(f"{_free(stem, _has_run)}.toml")
    if path.suffix != ".toml":
        raise JobError(
            f"--to {to} is not the name of a job file", f"it ends in .toml: `--to {path.stem or 'job'}.toml`"
        )
    if path.stem.startswith(".") or not path.stem.isprintable():
        raise JobError(f"--to {to!r} is no name that a run could have", "give it a plain name such as summarize.toml")
    if path.exists() or path.is_symlink():
        other = _free(path.stem, lambda name: path.with_stem(name).exists() or _has_run(name))
        raise JobError(f"{path} is there already, and is not written over", f"add `--to {path.with_stem(other)}`")
    return path


def output_path(stem: str, suffix: str, folder: str = "results") -> str:
    """An output that is not there yet, and no rehearsal's either."""
    name = _free(stem, lambda each: any(beside(Path(folder, f"{each}{suffix}"), kind).exists() for kind in _KINDS))
    return f"{folder}/{name}{suffix}"


def free_name(stem: str, suffix: str) -> str:
    """A name that no file here has."""
    return f"{_free(stem, lambda name: Path(f'{name}{suffix}').exists())}{suffix}"


@contextmanager
def written(files: Mapping[Path, str]) -> Iterator[None]:
    """New files, each whole; none of them is left where one cannot be made, or the block fails."""
    made: list[Path] = []
    try:
        for path, text in files.items():
            _create(path, text, made)
        yield
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def renew(path: Path, text: str) -> None:
    """Put a text in the place of a file that is there, all at once. Raises OSError."""
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        hidden.write_text(text, "utf-8", newline="\n")
        machine.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def _create(path: Path, text: str, made: list[Path]) -> None:
    elsewhere = "name another place with `--to FILE`"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path.parent}: {error.strerror}", elsewhere) from None
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            made.append(path)
            file.write(text)
    except FileExistsError:
        raise JobError(f"{path} is there already, and is not written over", elsewhere) from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", elsewhere) from None


def _free(stem: str, is_taken: Callable[[str], bool]) -> str:
    """The name, or else the name with the first number that is free."""
    return next(name for number in count(1) if not is_taken(name := stem if number == 1 else f"{stem}-{number}"))


def _has_run(stem: str) -> bool:
    return any(run_directory(stem, kind).exists() for kind in _KINDS)
