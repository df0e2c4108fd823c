"""Files that were replaced under their names: rows that are done, and were asked about others than lie there now.

A start compares the size and the time of each file with those of the last one, and looks into a file where they differ:
whether the prompt of its row was asked before tells whether its content is the same.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import anyio.to_thread
import polars as pl

from pipeline import flows
from pipeline.documents import listing
from pipeline.documents.collecting import Collected
from pipeline.errors import Halted
from pipeline.plan.survey import Survey
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import Document, Reply
from pipeline.run.planning import look
from pipeline.run.prepare import Session
from pipeline.source.documents import ROW
from pipeline.store import digests, parts
from pipeline.store.manifest import differences
from pipeline.store.manifest import read as read_manifest
from pipeline.store.state import Batch, is_unused, load
from pipeline.store.whole import whole_of

_AT_ONCE = 50_000  # rows whose prompts are looked for in one pass over what was asked


async def with_replaced(session: Session, found: Survey | None = None) -> Session:
    """The session, with the rows that are done and whose files are no longer what was asked about.

    `found` is a look over its table, taken where there is none. Documents are known by their content, all others by
    what was asked about them. Raises `RunStateError` for a damaged directory.
    """
    directory, held = session.directory, session.source.table.documents
    is_watched = session.source.path_columns or held is not None
    known = read_manifest(directory / "manifest.json") if is_watched else None
    if known is None or differences(known, session.manifest()) or is_unused(directory):
        return session  # an edit of job or table asks each row by its content anyway
    if held is not None:
        return replace(session, replaced=await anyio.to_thread.run_sync(_changed, session, held))
    found = found or await look(session)
    touched = digests.touched(directory, found.digests, found.rows, session.hashed)
    if not len(touched):
        return session
    outcomes, unsealed = load(directory, parse_stored)
    done = {row for row in touched if outcomes.done(row)}
    keys: list[str] = []
    sought: dict[str, str] = {}  # a row's key, by each name that its prompt may have been asked under
    whole = replace(session, options=replace(session.options, pilot=None))
    for batch in whole.documents(done.__contains__):
        for document in await anyio.to_thread.run_sync(list, batch):  # their files are read meanwhile
            prompt = await _first_prompt(document, session)
            if prompt is not None:
                models = session.job.models_of(prompt.step)
                sought.update((prompt.fingerprint(model), document.key) for model in models)
            elif outcomes.lasting(document.row) != "invalid":
                keys.append(document.key)
        if len(sought) >= _AT_ONCE:
            keys += await anyio.to_thread.run_sync(_never_asked, session, sought, unsealed)
            sought = {}
    keys += await anyio.to_thread.run_sync(_never_asked, session, sought, unsealed)
    return replace(session, replaced=tuple(keys))


def _changed(session: Session, held: Collected) -> tuple[str, ...]:
    """The keys of rows that are done, and whose documents say something else than those that the run has read."""
    paths, keys = listing.changed(session.directory, held), list[str]()
    if paths:
        source, (outcomes, _) = session.source, load(session.directory, parse_stored)
        for frame in source.batches(columns=list(dict.fromkeys(["path", source.id or "path"]))):
            changed = frame.filter(pl.col("path").is_in(paths))
            keys += (key for row, key in zip(changed[ROW], source.keys(changed), strict=True) if outcomes.done(row))
    return tuple(keys)


async def _first_prompt(document: Document, session: Session) -> Prompt | None:
    """What a row is asked first; None where nothing can be sent."""
    asked: list[Prompt] = []

    async def call(prompt: Prompt) -> Reply:
        asked.append(prompt)
        raise Halted

    with suppress(Halted):
        await flows.run(document, session.job, call)
    return asked[0] if asked else None


def _never_asked(session: Session, sought: dict[str, str], unsealed: Batch) -> Iterable[str]:
    """The keys of rows that this run asked under none of their names, whatever the answer was."""
    if not sought:
        return ()
    names = pl.Series(list(sought))
    asked = {sought[call.fingerprint] for call in unsealed.calls if call.fingerprint in sought}
    for path in whole_of(session.directory, parse_stored).calls:
        calls = parts.read_part(path, ("fingerprint",))["fingerprint"]
        asked.update(sought[name] for name in calls.filter(calls.is_in(names.implode())))
    return [key for key in dict.fromkeys(sought.values()) if key not in asked]
