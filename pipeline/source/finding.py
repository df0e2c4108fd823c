"""The files that a path means, and of which kind of table they are."""

import difflib
import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError

Kind = Literal["csv", "parquet", "jsonl", "sheet", "documents"]

KINDS: dict[str, tuple[Kind, str]] = {  # suffix → (kind, separator)
    ".csv": ("csv", ","),
    ".tsv": ("csv", "\t"),
    ".parquet": ("parquet", ""),
    ".jsonl": ("jsonl", ""),
    ".ndjson": ("jsonl", ""),
    ".xlsx": ("sheet", ""),
}
_INSTEAD = {
    ".json": "make it JSON lines: `jq -c '.[]' in.json > out.jsonl`",
    **dict.fromkeys((".doc", ".rtf", ".odt"), "save it as .docx"),
    **dict.fromkeys((".xls", ".xlsm", ".xlsb", ".ods"), "save it as .xlsx, or its sheet as CSV UTF-8"),
}
_ASIDE = {"_temporary", "_delta_log", "_spark_metadata"}
"""Directories of Spark and Delta that hold files which are not of the table."""


def find(path: str) -> list[str]:
    """The files that a path or a pattern means. Raises `InputError` where there is none."""
    at = Path(path)
    if at.is_file():
        return [path]
    if glob.has_magic(path) and not at.is_dir():
        found = [file for file in sorted(glob.glob(path, recursive=True)) if not is_note(Path(file), at.parts)]  # noqa: PTH207
        files = [file for file in found if Path(file).is_file()]
        for other in sorted({*found} - {*files}):  # what bears a table's name is never left out without a word
            if _suffix(other) in KINDS and not any(file.startswith(f"{other}{os.sep}") for file in files):
                raise _no_file(other)
        if files:
            return files
        raise InputError(f"no file matches {path}", _nearby(at) or "paths are relative to the directory you are in")
    if os.path.lexists(path):
        raise _no_file(path)
    raise InputError(f"there is no {path}", _nearby(at) or "paths are relative to the directory you are in")


def _no_file(path: str) -> InputError:
    at = Path(path)
    if at.is_dir():
        for within in ("*", "**/*"):
            found = islice((file.name for file in at.glob(within) if _suffix(file.name) in KINDS), 1)
            for name in found:
                return InputError(f"{path} is a directory", f"name its files: `{at}/{within}{_ending(name)}`")
        return InputError(f"{path} is a directory", "there is no table in it, and no document")
    if not at.exists():
        return InputError(f"{path} is a link that leads nowhere", "bring back what it leads to, or remove it")
    return InputError(f"{path} is not a file", "a table is read more than once: write it to a file first")


def matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of a path are what a pattern means; `**` is any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(matches(pattern[1:], parts[start:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(pattern[1:], parts[1:])


def is_note(file: Path, asked: Sequence[str]) -> bool:
    """Whether a writer of tables put the file beside them, unasked: `_SUCCESS`, what a job left, a table's log."""
    unknown = _suffix(file.name) not in KINDS and file.name.startswith("_")
    return unknown or not _ASIDE.difference(asked).isdisjoint(file.parts[:-1])


def _nearby(at: Path) -> str:
    if not at.parent.is_dir():
        return f"there is no directory {at.parent}"
    names = sorted(file.name for file in at.parent.iterdir() if _suffix(file.name) in KINDS)
    if close := difflib.get_close_matches(at.name, names, n=1):
        return f"did you mean `{at.parent / close[0]}`?"
    return f"there are {', '.join(names[:8])}{', …' if len(names) > 8 else ''} in {at.parent}" if names else ""


def _ending(name: str) -> str:
    """The suffix as it stands, with that of a packed file."""
    packed = ".gz" if name.endswith(".gz") else ""
    return f"{Path(name.removesuffix('.gz')).suffix}{packed}"


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix.lower()


def kind_of(paths: Sequence[str]) -> tuple[Kind, str]:
    """Of which kind the files are, and its separator. Raises `InputError` where they are of none, or of several."""
    for path in paths:
        suffix = _suffix(path)
        if suffix not in KINDS or (path.endswith(".gz") and suffix == ".parquet"):
            known = f"the known ones are {' '.join(KINDS)}, text also with .gz"
            raise InputError(f"{path} is not a kind of table that can be read", _INSTEAD.get(suffix, known))
        if KINDS[suffix] != KINDS[_suffix(paths[0])]:
            raise InputError(f"{paths[0]} and {path} are of different kinds", "one run reads tables of one kind")
    return KINDS[_suffix(paths[0])]
