"""A shard that is done, in few files: its parts together, one of calls and one of results, and nothing made of them.

    calls/part-000001-000250.parquet, results/part-000001-000250.parquet    in the place of 250 files each

Either file is put in its place, then `parts.jsonl` in one go names these two and no other, then the files of one part
are removed, and the journal without lines and `content.sqlite` with them. A part is the same in both places; so between
any two of these steps all is there, and the next start removes the files that `parts.jsonl` does not name and whose
parts lie in others.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.store import compacted, content, parts, seals
from pipeline.store.batches import FOLDER
from pipeline.store.export import rows_a_group, widest
from pipeline.store.journal import SYNCED, is_blank, journal_paths
from pipeline.store.manifest import SHARDED_VERSION, Lock, Manifest
from pipeline.store.manifest import read as read_manifest
from pipeline.store.manifest import write as write_manifest
from pipeline.store.state import check_parts

_SCHEMAS = {"calls": parts.CALLS_SCHEMA, "results": parts.RESULTS_SCHEMA}


def compact(directory: Path) -> bool:
    """Put a shard's parts together, if all is sealed and the disk lets it; returns whether that was done.

    For whoever has the run directory, once it is closed. It reads no other than before, in as much memory. Raises
    `RunStateError` for what is damaged, and where another process writes there.
    """
    lock = Lock(directory / "lock")
    try:
        known, manifest = check_parts(directory), read_manifest(directory / "manifest.json")
        journals = journal_paths(directory)
        if not (known and manifest and all(map(is_blank, journals))) or manifest.after or (directory / FOLDER).exists():
            return False
        with suppress(OSError):
            _put_together(directory, manifest, known)
            for path in (*journals, directory / SYNCED, *content.files(directory)):
                path.unlink(missing_ok=True)
            return True
        return False
    finally:
        lock.release()


def _put_together(directory: Path, manifest: Manifest, known: dict[str, seals.Sealed]) -> None:
    if manifest.version < SHARDED_VERSION:  # whoever knows files of one part only would take the directory for empty
        write_manifest(directory / "manifest.json", replace(manifest, version=SHARDED_VERSION))
    sealed = []
    for kind, schema in _SCHEMAS.items():
        files = parts.files(directory / kind)
        noted = known.get(f"{kind}/{files[0].name}") if len(files) == 1 else None
        sealed.append(noted or _together(directory / kind, schema, manifest.run))
    seals.rewrite(directory, sealed)
    known = seals.read(directory)
    for kind in _SCHEMAS:
        for path in list(parts.superfluous(directory / kind, known)):
            path.unlink()


def _together(directory: Path, schema: pl.Schema, run: str) -> seals.Sealed:
    """One file of all parts in a directory, in its place and on the disk. Raises OSError, and `RunStateError`."""
    paths = parts.part_paths(directory)
    heights: dict[int, int] = {}

    def frames() -> Iterator[pl.DataFrame]:
        for path in paths:
            frame = parts.read_part(path, schema.names())
            heights[parts.part_number(path)] = frame.height
            yield frame

    width = widest(frames())
    rows = sum(heights.values())
    final = directory / compacted.name(list(heights))
    hidden = final.with_name(f".{final.name}.tmp")
    metadata = {parts.OWNER: run, compacted.PARTS: compacted.told(heights)}
    trouble: list[RunStateError] = []

    def source(columns: list[str] | None, *_: object) -> Iterator[pl.DataFrame]:
        try:
            for frame in frames():
                yield frame if columns is None else frame.select(columns)
        except RunStateError as error:  # the writer would make another one of it
            trouble.append(error)
            raise

    hidden.touch(0o600)
    try:
        with hidden.open("wb") as file:
            register_io_source(source, schema=schema).sink_parquet(
                file,
                compression="zstd",
                row_group_size=rows_a_group(rows, len(schema), width),
                metadata=metadata,
                maintain_order=True,
            )
            file.flush()
            os.fsync(file.fileno())
        machine.replace(hidden, final)
    except (pl.exceptions.PolarsError, OSError) as error:  # a full disk is a fault of the format to the writer
        with suppress(OSError):
            hidden.unlink()
        raise trouble[0] if trouble else OSError(str(error)) from None
    machine.sync_directory(directory)
    return seals.Sealed(f"{directory.name}/{final.name}", rows, final.stat().st_size, seals.digest_of(final))
