"""Documents as files: whether a path means them, and the table that they are."""

import codecs
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipeline.documents import KINDS, Found, survey
from pipeline.documents.collecting import SCHEMA, Collected, Heard, collect
from pipeline.errors import InputError
from pipeline.source import tables
from pipeline.source.tables import Table

_TOLD = 3  # documents, or folders, that are named


def found_documents(path: str) -> Found | None:
    """The documents that a path means; None where it means tables, or nothing at all.

    A folder is one of documents if it holds more of them than of tables. Raises `InputError` for a pattern that
    matches both, and for a folder where it is not so clear.
    """
    at = Path(path)
    suffix = at.suffix.lower()
    if "://" in path or suffix in tables.KINDS or (suffix not in KINDS and at.is_file()):
        return None
    found = survey(path)
    if not found.files:
        return None
    beside = {ending: number for ending, number in found.others.items() if ending in tables.KINDS}
    if beside and (not at.is_dir() or sum(beside.values()) >= len(found.files)):
        kinds = sorted({*beside, *(Path(file.path).suffix for file in found.files)})
        raise InputError(
            f"{path} has tables and documents: {', '.join(kinds)}",
            f"name one kind, as `{Path(found.root) / '**' / ('*' + Path(found.files[0].path).suffix)}`",
        )
    return found


def described(held: Collected, sends_scans: bool) -> tuple[str, tuple[str, ...]]:
    """How many documents of which kinds there are, and what of them is worth a warning."""
    found = held.found
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(found.kinds.items()))
    others = ", ".join(f"{number:,} {ending or 'without a suffix'}" for ending, number in sorted(found.others.items()))
    sent = "are scanned, and sent as PDFs" if sends_scans else 'are scanned, and not sent without `scans = "send"`'
    warnings = (
        ("folders may not be looked into", found.unread),
        ("cannot be read", held.unread),
        (sent, held.scans),
        ("have pages without text", held.bare),
    )
    told = tuple(f"{len(which):,} {what}: {_first(which)}" for what, which in warnings if which)
    return f"{kinds}{f'; passed over: {others}' if others else ''}", told


def _first(which: Sequence[str]) -> str:
    return "; ".join([*which[:_TOLD], *([f"and {len(which) - _TOLD:,} more"] if len(which) > _TOLD else [])])


def open_folder(
    path: str, found: Found, encoding: str | None, of_tables: str | None, spool: Path, heard: Heard
) -> Table:
    """The table of documents, one a row, each read when it is asked for. Raises `InputError`."""
    if of_tables is not None:
        raise InputError(
            f"{path} has documents, not tables", "leave out [input] separator, which is for .csv, and sheet, for .xlsx"
        )
    named = None if encoding is None or codecs.lookup(encoding).name in ("utf-8", "utf-8-sig") else encoding
    return table_of(path, collect(found, spool, named, heard), named)


def table_of(path: str, held: Collected, encoding: str | None) -> Table:
    """Documents as a table."""
    return Table(path, (path,), "documents", "", pl.Schema(SCHEMA), False, encoding, documents=held)
