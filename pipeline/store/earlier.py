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
from pipeline.store import batched, parts
from pipeline.store.content import OPEN_PARTS, READ_COLUMNS, hash_of, reply_of
from pipeline.store.manifest import Manifest
from pipeline.store.manifest import read as read_manifest
from pipeline.store.state import load_unsealed

_PARAMS = frozenset(field.name for field in fields(Params))
_CAPPED = ("model", "reduce", "refine")
_CAP = "max_output_tokens"


class Earlier:
    """The replies of earlier generations, newest first: `directories` are theirs. Reads only.

    The index is made of the parts on the first look, in a temporary database: a second for a million calls. A
    directory that is gone or damaged has no answers, and is in `missing`.
    """

    def __init__(self, directories: Sequence[Path], parse: Parse, unwanted: frozenset[str] = frozenset()) -> None:
        """Replies with one of the `unwanted` statuses or causes are none: these are asked for again."""
        self._directories = directories
        self._parse = parse
        self._unwanted = unwanted
        self._places: list[tuple[int, Path, Path]] = []  # generation, its directory, a part of calls
        self._unsealed: dict[str, Reply] = {}
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
        exact = await self._wanted(prompt.fingerprint(model))
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
        return await self._wanted(replace(prompt, params=params).fingerprint(str(changes.get("name", model))))

    async def _wanted(self, fingerprint: str) -> Reply | None:
        found = self._unsealed.get(fingerprint)
        if found is None or found.status != "ok":  # a row that was redone later may have its answer in a part
            found = await self._sealed(fingerprint) or found
        if found is None or {found.status, found.error_kind} & self._unwanted:
            return None
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
                if manifest is None:
                    raise RunStateError(f"{directory} is gone")
                self._take_in(index, directory, manifest, changes)
            except RunStateError:
                self.missing.append(directory)
                continue
            caps.update(dict.fromkeys(_caps_of(manifest)))
        self._changes = tuple(orjson.loads(each) for each in changes)
        caps.update((each[_CAP], None) for each in self._changes if isinstance(each.get(_CAP), int))
        self._caps = tuple(caps)
        self._index = index

    def _take_in(
        self, index: sqlite3.Connection, directory: Path, manifest: Manifest, changes: dict[str, None]
    ) -> None:
        unsealed = load_unsealed(directory, self._parse)
        sealed = [path for path in parts.part_paths(directory / "calls") if parts.part_number(path) <= unsealed.sealed]
        for path in (*batched.part_paths(directory), *sealed):
            place = len(self._places)
            self._places.append((manifest.generation, directory, path))
            frame = parts.read_part(path, ("fingerprint", "paid", "status")).filter("paid")
            entries = sorted(
                (hash_of(fingerprint), place, status == "ok") for fingerprint, _, status in frame.iter_rows()
            )
            index.execute("BEGIN")
            index.executemany(
                "INSERT INTO content VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET place = excluded.place, ok = excluded.ok WHERE excluded.ok >= ok",
                entries,
            )
            index.execute("COMMIT")
        for path in parts.part_paths(directory / "results"):
            changes.update(dict.fromkeys(parts.read_part(path, ("changes",))["changes"].drop_nulls().unique()))
        changes.update((result.changes, None) for result in unsealed.results.values() if result.changes)
        for call in unsealed.calls:
            known = self._unsealed.get(call.fingerprint)
            if call.paid and (known is None or known.status != "ok" or call.reply.status == "ok"):
                generation = call.reply.generation or manifest.generation
                self._unsealed[call.fingerprint] = changed(call.reply, generation=generation)

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
    """Which directories have no answers any more, for a person."""
    for path in earlier.missing:
        yield f"{path} is gone or damaged: what only that generation bought is bought again"
