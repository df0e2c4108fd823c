"""What earlier generations of a run bought, found by content: an edit of job or input buys only what is new.

A generation is a run directory of its own; an edited job begins the next, and the directories before it stay as they
were. Every reply that was paid for is found, whatever became of it: a blocked one is not bought again either.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import orjson
import polars as pl

from pipeline.errors import RunStateError
from pipeline.prompts import Params, Prompt
from pipeline.records import Parse, Reply, changed
from pipeline.store import parts
from pipeline.store.content import OPEN_PARTS, READ_COLUMNS, hash_of, reply_of
from pipeline.store.manifest import Manifest
from pipeline.store.manifest import read as read_manifest
from pipeline.store.unwanted import CALL_COLUMNS, OUTCOME_COLUMNS, Unwanted
from pipeline.store.whole import Whole, whole_of

_PARAMS = frozenset(field.name for field in fields(Params))
_CAPPED = ("model", "reduce", "refine")
_CAP = "max_output_tokens"


class Earlier:
    """The replies of earlier generations, newest first: `directories` are theirs. Reads only.

    The index is made of the parts on the first look, in a temporary database: a second for a million calls. What is
    gone or damaged has no answers, and is named in `missing`.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        parse: Parse,
        unwanted: frozenset[str] = frozenset(),
        present: Path | None = None,
    ) -> None:
        """What rows with one of the `unwanted` statuses or causes were answered is none: that is asked for again.

        So is what the `present` generation took over for such a row.
        """
        self._directories = directories
        self._parse = parse
        self._unwanted = unwanted
        self._present = present
        self._places: list[tuple[int, Path, Path]] = []  # generation, its directory, a part of calls
        self._unsealed: dict[str, Reply] = {}
        self._refused: frozenset[str] = frozenset()  # what will not do of the present generation
        self._parts: dict[int, tuple[dict[str, int], pl.DataFrame]] = {}
        self._caps: tuple[int | None, ...] = ()
        self._changes: tuple[Mapping[str, Any], ...] = ()
        self._index: sqlite3.Connection | None = None
        self._reading = anyio.Lock()
        self.missing: list[Path] = []

    async def find(self, prompt: Prompt, models: Iterable[str]) -> Reply | None:
        """The reply to this prompt by one of the `models` asked: nothing is paid for it once more.

        An answer that ended by itself is the same under every limit on its length that it keeps to. One that a row was
        given on request, by `--set`, stands in place of the one that would not do. One that was cut at a lower limit
        is kept too, until it is asked for again.
        """
        if not self._directories:
            return None
        await self._opened()
        for model in models:
            if (found := await self._by(prompt, model)) is not None:
                return changed(found, asked=model, unread_usd=Decimal(0), raw=b"")
        return None

    async def _by(self, prompt: Prompt, model: str) -> Reply | None:
        if (fingerprint := prompt.fingerprint(model)) in self._refused:
            return None
        exact = await self._kept(fingerprint)
        if exact is not None and exact.status == "ok":
            return exact
        own, cut = prompt.params.max_output_tokens, None
        for cap in self._caps:
            if cap == own:
                continue
            found = await self._under(prompt, model, {_CAP: cap})
            if found is None:
                continue
            if found.status == "ok" and _keeps_to(found, own):
                return found
            if found.status == "truncated" and cap is not None and (own is None or cap < own):
                cut = found
        for changes in self._changes if exact is not None else ():
            found = await self._under(prompt, model, changes)
            if found is not None and found.status == "ok":
                return found
        return exact or cut

    def close(self) -> None:
        """Give back what the index takes."""
        if self._index is not None:
            self._index.close()

    async def _under(self, prompt: Prompt, model: str, changes: Mapping[str, Any]) -> Reply | None:
        """The reply to this prompt with other params."""
        params = replace(prompt.params, **{name: value for name, value in changes.items() if name in _PARAMS})
        return await self._kept(replace(prompt, params=params).fingerprint(str(changes.get("name", model))))

    async def _kept(self, fingerprint: str) -> Reply | None:
        found = self._unsealed.get(fingerprint)
        if found is None or found.status != "ok":  # a row that was redone later may have its answer in a part
            found = await self._sealed(fingerprint) or found
        return found

    async def _sealed(self, fingerprint: str) -> Reply | None:
        assert self._index is not None
        known = self._index.execute("SELECT place FROM content WHERE hash = ?", (hash_of(fingerprint),)).fetchone()
        if known is None:
            return None
        place = known[0]
        async with self._reading:
            part = self._parts.pop(place, None)
            if part is None:
                try:
                    part = await anyio.to_thread.run_sync(self._read, place)
                except RunStateError:  # it was moved away meanwhile: what was in it is bought again
                    return None
            self._parts[place] = part
            if len(self._parts) > OPEN_PARTS:
                del self._parts[next(iter(self._parts))]
        numbers, frame = part
        if fingerprint not in numbers:
            return None
        row = frame.row(numbers[fingerprint], named=True)
        return changed(reply_of(row), generation=row["generation"] or self._places[place][0])

    async def _opened(self) -> None:
        if self._index is None:
            async with self._reading:
                if self._index is None:
                    await anyio.to_thread.run_sync(self._open)

    def _open(self) -> None:
        index = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        index.execute("PRAGMA journal_mode = OFF")
        index.execute("CREATE TABLE content (hash INTEGER PRIMARY KEY, place INTEGER NOT NULL, ok INTEGER NOT NULL)")
        caps: dict[int | None, None] = {}
        changes: dict[str, None] = {}
        for directory in reversed(self._directories):  # the newest last: it stands
            try:
                manifest = read_manifest(directory / "manifest.json")
            except RunStateError:
                manifest = None
            if manifest is None:
                self.missing.append(directory)
                continue
            self._take_in(index, directory, manifest, changes)
            caps.update(dict.fromkeys(_caps_of(manifest)))
        if self._present is not None and self._unwanted:
            self._refused = self._refused_of(whole_of(self._present, self._parse))
        self._changes = tuple(orjson.loads(each) for each in changes)
        caps.update((each[_CAP], None) for each in self._changes if isinstance(each.get(_CAP), int))
        self._caps = tuple(caps)
        self._index = index

    def _take_in(
        self, index: sqlite3.Connection, directory: Path, manifest: Manifest, changes: dict[str, None]
    ) -> None:
        whole = whole_of(directory, self._parse)
        self.missing += whole.lost
        changes.update((result.changes, None) for result in whole.unsealed.results.values() if result.changes)
        unwanted, unread = Unwanted(self._unwanted), set()
        for path in whole.results:
            try:
                frame = parts.read_part(path, ("changes", *(OUTCOME_COLUMNS if self._unwanted else ())))
            except RunStateError:
                self.missing.append(path)
                unread.add(directory / "calls" / path.name)
                continue
            changes.update(dict.fromkeys(frame["changes"].drop_nulls().unique()))
            if self._unwanted:
                unwanted.take_in(frame.select(OUTCOME_COLUMNS))
        refused = self._refused_unsealed(unwanted, whole)
        for path in whole.calls:
            if path in unread:
                continue
            try:
                frame = parts.read_part(path, (*CALL_COLUMNS, *(("text",) if self._unwanted else ()))).filter("paid")
            except RunStateError:
                self.missing.append(path)
                continue
            self._places.append((manifest.generation, directory, path))
            self._enter(index, frame, unwanted.among(frame) if self._unwanted else None)
        self._forget(index, refused)
        for call in whole.unsealed.calls:
            known = self._unsealed.get(call.fingerprint)
            if not call.paid or call.fingerprint in refused:
                continue
            if known is None or known.status != "ok" or call.reply.status == "ok":
                generation = call.reply.generation or manifest.generation
                self._unsealed[call.fingerprint] = changed(call.reply, generation=generation)

    def _enter(self, index: sqlite3.Connection, calls: pl.DataFrame, refused: pl.DataFrame | None) -> None:
        """Let the calls of the newest place be found."""
        index.execute("BEGIN")
        if refused is not None:
            self._forget(index, dict(refused.iter_rows()))
            calls = calls.join(refused, on="fingerprint", how="anti")
        place = len(self._places) - 1
        entries = sorted(
            (hash_of(fingerprint), place, status == "ok")
            for fingerprint, status in calls.select("fingerprint", "status").iter_rows()
        )
        index.executemany(
            "INSERT INTO content VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET place = excluded.place, ok = excluded.ok WHERE excluded.ok >= ok",
            entries,
        )
        index.execute("COMMIT")

    def _forget(self, index: sqlite3.Connection, refused: Mapping[str, bool]) -> None:
        """Answers that are asked for again are not looked for in older generations either; an answer that was not
        judged stands there before one that was cut or blocked."""
        for fingerprint, is_ok in refused.items():
            index.execute("DELETE FROM content WHERE hash = ? AND ok <= ?", (hash_of(fingerprint), is_ok))
            if (known := self._unsealed.get(fingerprint)) and (is_ok or known.status != "ok"):
                del self._unsealed[fingerprint]

    def _refused_unsealed(self, unwanted: Unwanted, whole: Whole) -> dict[str, bool]:
        """Takes in the outcomes that are not sealed, the newest."""
        if not self._unwanted:
            return {}
        unwanted.take_in(parts.results_frame(whole.unsealed.results.values()).select(OUTCOME_COLUMNS))
        finished = pl.col("row").is_in(list(whole.unsealed.results))
        calls = parts.calls_frame(whole.unsealed.calls, {})
        frames = unwanted.among(calls.filter(finished)), unwanted.among_unfinished(calls.filter(~finished))
        return dict(pl.concat(frames).iter_rows())

    def _refused_of(self, whole: Whole) -> frozenset[str]:
        """What the present generation was answered for rows that are tried again."""
        unwanted = Unwanted(self._unwanted)
        for path in whole.results:
            unwanted.take_in(parts.read_part(path, OUTCOME_COLUMNS))
        refused = set(self._refused_unsealed(unwanted, whole))
        for path in whole.calls:
            refused.update(unwanted.among(parts.read_part(path, (*CALL_COLUMNS, "text")))["fingerprint"])
        return frozenset(refused)

    def _read(self, place: int) -> tuple[dict[str, int], pl.DataFrame]:
        _, directory, path = self._places[place]
        calls = parts.read_part(path, READ_COLUMNS).filter("paid")
        if path.parent.name == "calls":
            number = parts.part_number(path)
            results = parts.read_part(parts.part_path(directory / "results", number), ("row", "response"))
            calls = calls.join(results, on="row", how="left", maintain_order="left")
            calls = calls.with_columns(pl.coalesce("text", "response").alias("text")).drop("response")
        calls = calls.with_columns(pl.lit(0).alias("unread_usd")).sort(pl.col("status") == "ok", maintain_order=True)
        return {fingerprint: at for at, fingerprint in enumerate(calls["fingerprint"])}, calls


def _keeps_to(reply: Reply, cap: int | None) -> bool:
    return cap is None or reply.usage.output_tokens + reply.usage.thinking_tokens <= cap


def _caps_of(manifest: Manifest) -> Iterator[int | None]:
    """Every limit on the length of an answer that a job names."""
    sections: Iterable[Mapping[str, Any]] = (manifest.identity.get(name) or {} for name in _CAPPED)
    for section in sections:
        cap = section.get(_CAP)
        if cap is None or isinstance(cap, int):
            yield cap


def line_of(runs: Path, manifest: Manifest) -> tuple[Path, ...]:
    """The directories of the generations before this one, newest first."""
    return tuple(runs / name for name in manifest.after)


def told_missing(earlier: Earlier) -> Iterator[str]:
    """What has no answers any more, for a person."""
    for path in earlier.missing:
        held = "it held" if path.suffix in (".parquet", ".jsonl") else "that generation bought"
        yield f"{path} is gone or damaged: what only {held} is bought again"
