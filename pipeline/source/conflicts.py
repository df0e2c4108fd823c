"""Whether an output would be its own input."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.source.documents import Source
from pipeline.source.finding import matches
from pipeline.urls import is_url


def output_conflict(source: Source, out_path: str) -> None:
    """Raise `InputError` when writing `out_path` would overwrite the input, or the input's glob would match it."""
    if source.table.is_documents:  # no output is a document
        return
    if source.table.remote or is_url(out_path):
        pattern, target = (*source.table.path.split("/"),), (*out_path.split("/"),)
        is_input = source.table.path == out_path
    else:
        out = Path(out_path)
        pattern, target = Path(source.table.path).absolute().parts, out.absolute().parts
        is_input = out.exists() and any(out.samefile(path) for path in source.paths)
    if is_input:
        raise InputError(f"the output {out_path} is the input", "choose another [output] path")
    if (source.table.remote or source.table.path not in source.paths) and matches(pattern, target):
        raise InputError(
            f"the output {out_path} would be read as input by {source.table.path}", "write it to another directory"
        )
