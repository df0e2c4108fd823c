"""Whether an output would be its own input."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import InputError
from pipeline.source.documents import Source


def output_conflict(source: Source, out_path: str) -> None:
    """Raise `InputError` when writing `out_path` would overwrite the input, or the input's glob would match it."""
    out = Path(out_path)
    if source.table.remote or source.table.is_documents:  # no output is a document
        return
    if out.exists() and any(out.samefile(path) for path in source.paths):
        raise InputError(f"the output {out_path} is the input", "choose another [output] path")
    pattern, target = Path(source.table.path).absolute(), out.absolute()
    if source.table.path not in source.paths and _matches(pattern.parts, target.parts):
        raise InputError(
            f"the output {out_path} would be read as input by {source.table.path}", "write it to another directory"
        )


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(pattern[1:], parts[start:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(pattern[1:], parts[1:])
