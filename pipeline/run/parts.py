"""A session by the parts of its table: its shards, or all of it."""

from collections.abc import Iterator
from dataclasses import replace

from pipeline.errors import RunStateError
from pipeline.run.prepare import Session
from pipeline.source import Source
from pipeline.source.shares import copied, spanned
from pipeline.source.tables import Span
from pipeline.store.afar import bring, bring_input, copy_of, run_url
from pipeline.store.units import Shard, is_cut, read


def shard_source(source: Source, shard: Shard) -> Source:
    """The rows of a shard as a source of their own, which count from 0, and whose keys without an id do not.

    It can be pickled, and is read in any process that sees the same files. `source` is the whole table's, with all that
    was chosen of it: columns, files, rules. Raises `RunStateError` where its rows are gone.
    """
    if shard.pieces:
        spans = [(piece.file, Span(piece.first, piece.rows)) for piece in shard.pieces]
        return spanned(source, shard.first_row, shard.rows, spans)
    if not shard.input.is_file() and not bring_input(shard):
        raise RunStateError(
            f"{shard.input} is missing: the rows of a shard stand in it\nWhat was answered is kept.",
            "restore it from a backup, or begin anew with `--fresh`, which keeps the answers beside",
        )
    return copied(source, shard.first_row, shard.rows, shard.input)


def shards_of(session: Session) -> list[Shard]:
    """How its whole table is cut, in row order; no shards where it is not, or where another table was.

    Raises `RunStateError` where the word of it is gone or damaged.
    """
    if not is_cut(session.directory):
        return []
    source, shards = read(session.directory)
    return shards if source == session.source.first(None).whole_fingerprint else []


def parts_of(session: Session) -> Iterator[Session]:
    """The session, or of a run of shards one for each shard whose rows it covers, in row order."""
    if not is_cut(session.directory):
        yield session
        return
    for shard in read(session.directory)[1]:
        if (rows := min(shard.rows, session.rows - shard.first_row)) > 0:
            yield replace(session, source=shard_source(session.source, shard), rows=rows, place=shard.directory)


def looked_at(session: Session) -> Session:
    """The session with a copy of its run at hand, where that lies on object storage; nothing of it is changed.

    Blocks. Raises `RunStateError`.
    """
    path = session.job.spec.run.path
    if path is None or session.options.fresh:
        return session
    place = copy_of(run_url(path, session.job.name, session.kind))
    if place is None:
        return session
    bring(place)
    return replace(session, place=place)
