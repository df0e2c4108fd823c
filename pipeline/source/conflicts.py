"""Whether an output, or a run on object storage, would be its own input."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import InputError
from pipeline.source.documents import Source
from pipeline.source.finding import matches
from pipeline.urls import is_url

_OF_A_RUN = (
    "000001/rows.parquet",
    "000001/shards/00000/input.parquet",
    "000001/shards/00000/life-000001-000001/parts.jsonl",
    "000001/shards/00000/life-000001-000001/calls/part-000001.parquet",
)
"""Names as its objects have them, by which the input's pattern is tried."""


def output_conflict(source: Source, out_path: str) -> None:
    """Raise `InputError` when writing `out_path` would overwrite the input, or the input's glob would match it."""
    if source.table.is_documents:  # no output is a document
        return
    if source.table.remote or is_url(out_path):
        is_input = source.table.path == out_path
    else:
        out = Path(out_path)
        is_input = out.exists() and any(out.samefile(path) for path in source.paths)
    if is_input:
        raise InputError(f"the output {out_path} is the input", "choose another [output] path")
    if _would_read(source, out_path):
        raise InputError(
            f"the output {out_path} would be read as input by {source.table.path}", "write it to another directory"
        )


def run_conflict(source: Source, url: str) -> None:
    """Raise `InputError` when tables of a run at `url` would be read as input: then no later start could go on."""
    place = unquote(urlsplit(url).path) if url.startswith("file:") else url
    if any(_would_read(source, f"{place}/{name}") for name in _OF_A_RUN):
        raise InputError(
            f"tables of the run in {url} would be read as input by {source.table.path}", "choose another [run] path"
        )


def _would_read(source: Source, path: str) -> bool:
    if source.table.remote or is_url(path):
        pattern, target = (*source.table.path.split("/"),), (*path.split("/"),)
    else:
        pattern, target = Path(source.table.path).absolute().parts, Path(path).absolute().parts
    return (source.table.remote or source.table.path not in source.paths) and matches(pattern, target)
