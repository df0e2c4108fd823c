"""Where the answer to a content was sealed, so that an identical prompt far down the input is not sent again.

`content.sqlite` in the run directory: a hash of each answered prompt's fingerprint → number of the calls part, or of
what a batch bought (`store.batched`). Nothing is in it that the parts do not say: missing or damaged, it is built again
from them. 10 million answers take 0.25 GB of disk and no memory.

Of what was bought live only whole answers are in it: until its row is finished a reply is in the journal. Of batches
all that ends a prompt is, since the row is put together from it afterwards: a blocked one would be bought again else.
What was bought live stands before what a batch bought, which came late then.
"""

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import polars as pl

from pipeline import machine
from pipeline.errors import RunStateError
from pipeline.records import JUDGED, Reply, Usage
from pipeline.store import batched, parts

NAME = "content.sqlite"
OPEN_PARTS = 4
"""Parts whose answers are kept at hand: an input that repeats itself in order asks one part many times."""

_PARTS_AT_ONCE = 250  # a million answers, whose hashes take 16 MB

_USAGE = {"usage_estimated": "estimated"} | {
    name: name
    for name in ("input_tokens", "cached_tokens", "output_tokens", "thinking_tokens", "tool_tokens", "searches")
}
_REPLY = (
    *("finish_reason", "model", "endpoint", "lane", "fell_back", "response_id"),
    *("latency_s", "attempts", "rate_limited"),
    *("cost_usd", "standard_usd", "at_most_usd", "worst_usd"),
)
_WHAT = ("generation", "status", "error_kind", "error", "continuation", "target")
_ENDING = ("paid", "cost_usd", "at_most_usd")
_ENDS = pl.col("paid") | ((pl.col("cost_usd") == 0) & (pl.col("at_most_usd") == 0))
"""Of what a batch bought: not a request that may have been billed without an answer, for which another is made."""

_IS_AROUND = (
    pl.col("response").str.contains(r"^[\[{]") & pl.col("text").str.contains(pl.col("response"), literal=True)
).fill_null(False)
"""Of a call whether its text has the JSON that is the response of its row, and more beside it, which was left off."""


READ_COLUMNS = ("row", "fingerprint", "paid", "text", "extras", "finished_at", *_WHAT, *_REPLY, *_USAGE)
"""What a reply is read from."""


class Answered(NamedTuple):
    """An answer of this run, and the row that bought it."""

    row: int
    reply: Reply
    batch: int | None = None  # that bought it; such a one may be of any status


class ContentIndex:
    """The sealed answers of one run by content; one that fails is built again, once.

    Where there is none, as in a shard that is done, it is made when somebody looks for the first time. When that fails
    too, nothing is found any more; what batches bought must be, so there `find` raises. With `read_only` nothing is
    written: parts that are not in it yet are not found, and one that is made goes away with this.
    """

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self._read_only = read_only
        self._directory = directory
        self._path = directory / NAME
        self._indexed = 0  # number of the newest part of calls that is in
        self._of_batches: set[int] = set()  # parts of batches that are in, by their names
        self._usable = True
        self._built_again = 0  # times
        self._writing = RLock()  # a seal and a batch that is taken may meet
        self._parts: dict[int, tuple[dict[str, int], pl.DataFrame]] = {}
        self._reading = anyio.Lock()
        self._connections: list[sqlite3.Connection] = []
        try:
            self._connect()
        except (sqlite3.Error, OSError):
            self.close()
            self._give_up()
            with suppress(sqlite3.Error, OSError):
                self._connect()
                self._usable = True
        sealed = (*parts.part_paths(directory / "calls"), *batched.part_paths(directory))
        self._is_unmade = self.is_empty and bool(sealed)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in it."""
        return not self._indexed and not self._of_batches

    def catch_up(self) -> None:
        """Take in the parts that were sealed or taken since; runs in a thread while others look up."""
        with self._writing:
            try:
                self._take_in_all()
            except (sqlite3.Error, OSError, RunStateError):
                self._build_again(self._built_again)
            self._is_unmade = False

    def _take_in_all(self) -> None:
        newest = parts.newest(self._directory / "results")
        missing = [
            path
            for path in parts.part_paths(self._directory / "calls")
            if self._indexed < parts.part_number(path) <= newest
        ]
        for start in range(0, len(missing), _PARTS_AT_ONCE):
            self._take_in(missing[start : start + _PARTS_AT_ONCE])
        for path in batched.part_paths(self._directory):
            if batched.name_of(path) not in self._of_batches:
                self._take_in_batched(path)

    def _build_again(self, seen: int) -> None:
        """Make it anew from the parts, unless somebody did since `seen`; what breaks twice waits for the next start."""
        with self._writing:
            if self._built_again != seen:
                return
            self._give_up()
            if self._built_again or self._read_only:
                return
            self._built_again += 1
            with suppress(sqlite3.Error, OSError, RunStateError):
                self._connect()
                self._take_in_all()
                self._usable = True  # not before: what is not in yet would be bought again

    async def find(self, fingerprint: str) -> Answered | None:
        """The answer to this content; 6 µs where there is none, 50 µs in an open part, else 10 ms.

        Raises `RunStateError` where the index cannot be used, and this run buys by batches.
        """
        if self._is_unmade:
            await anyio.to_thread.run_sync(self.catch_up)
        if self._usable and self.is_empty:
            return None
        if not self._usable and (self._built_again or self._read_only) and self._may_miss:
            return None
        seen = self._built_again
        try:
            found = self._looked_up(fingerprint)
        except sqlite3.Error:
            await anyio.to_thread.run_sync(self._build_again, seen)
            try:
                found = self._looked_up(fingerprint)
            except sqlite3.Error:
                self._usable = False
                if self._may_miss:
                    return None
                raise RunStateError(
                    f"{self._path} cannot be used: without it nobody finds what batches bought"
                    "\nAll of it is kept, and nothing is bought twice.",
                    "make room or mend the disk, then run the same command again",
                ) from None
        if found is None:
            return None
        try:
            numbers, frame = await self._part(found)
        except RunStateError:  # the part was moved away: what was in it is bought again
            return None
        if fingerprint not in numbers:
            return None
        batch = batched.number_of(found) if found < 0 else None
        row = frame.row(numbers[fingerprint], named=True)
        return Answered(row["row"], reply_of(row), batch)

    def bought_by(self, fingerprint: str) -> int | None:
        """The batch that bought what is found for this content; 0: it was bought live. None: nothing is found."""
        if self._is_unmade:
            self.catch_up()
        try:
            found = self._looked_up(fingerprint)
        except sqlite3.Error:
            return None
        return None if found is None else 0 if found >= 0 else batched.number_of(found)

    @property
    def _may_miss(self) -> bool:
        """Whether what is not found may be bought again: not where batches buy what rows are put together from."""
        return self._read_only or not (self._directory / batched.FOLDER).exists()

    def _looked_up(self, fingerprint: str) -> int | None:
        """The part that has the answer. Raises `sqlite3.Error` where the index cannot be used."""
        if not self._usable:
            raise sqlite3.DatabaseError("it is not used any more")
        found = self._reader.execute("SELECT part FROM content WHERE hash = ?", (hash_of(fingerprint),)).fetchone()
        return None if found is None else int(found[0])

    def close(self) -> None:
        """Close the file."""
        while self._connections:
            with suppress(sqlite3.Error):
                self._connections.pop().close()

    def _connect(self) -> None:
        if self._read_only and self._path.exists():
            # Without a log beside it nobody writes: then not even the lock file of a reader is made.
            mode = "mode=ro" if self._path.with_name(f"{NAME}-wal").exists() else "immutable=1"
            self._reader = sqlite3.connect(f"{self._path.absolute().as_uri()}?{mode}", uri=True)
            self._connections.append(self._reader)
            self._indexed = self._reader.execute("SELECT EXISTS (SELECT 1 FROM content)").fetchone()[0]
            if self._indexed:
                return
        if self._read_only:
            self._reader = self._writer = self._opened("")  # a file without a name
            self._prepare()
            return
        machine.create(self._path)
        if self._is_cut():
            raise sqlite3.DatabaseError("the file is cut off")
        # A crash of the machine may cost the index, which is built again: so nothing waits for the disk.
        self._reader, self._writer = self._opened(self._path), self._opened(self._path)
        self._writer.execute("PRAGMA synchronous = OFF")
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._prepare()

    def _prepare(self) -> None:
        self._writer.execute("CREATE TABLE IF NOT EXISTS content (hash INTEGER PRIMARY KEY, part INTEGER NOT NULL)")
        self._writer.execute("CREATE TABLE IF NOT EXISTS batched (part INTEGER PRIMARY KEY)")
        self._indexed = self._reader.execute("PRAGMA user_version").fetchone()[0]
        self._of_batches = {part for (part,) in self._reader.execute("SELECT part FROM batched")}

    def _is_cut(self) -> bool:
        """Whether the file is shorter than it says: SQLite reads what is missing as if nothing were there."""
        with self._path.open("rb") as file:
            head = file.read(100)
        wal = self._path.with_name(f"{NAME}-wal")
        if len(head) < 100 or (wal.exists() and wal.stat().st_size):  # what is missing may be in there
            return False
        page = int.from_bytes(head[16:18], "big")
        pages = int.from_bytes(head[28:32], "big")
        return self._path.stat().st_size < pages * (65_536 if page == 1 else page)

    def _opened(self, path: Path | str) -> sqlite3.Connection:
        self._connections.append(sqlite3.connect(path, isolation_level=None, check_same_thread=False))
        return self._connections[-1]

    def _give_up(self) -> None:
        """Use it no more, and have it built anew; what is open stays so for whoever looks up just now."""
        self._usable, self._indexed = False, 0
        self._of_batches = set()
        if self._read_only:
            return
        for path in files(self._directory):
            with suppress(OSError):
                path.unlink()
        if self._path.is_dir():
            with suppress(OSError):
                self._path.rename(self._path.with_name(f"{NAME}.damaged"))

    def _take_in(self, paths: Sequence[Path]) -> None:
        """In one go, in the order of the file's pages: part by part a million answers take twice as long."""
        found = [
            pl.DataFrame({"hash": [*map(hash_of, self._answered(path))]}, {"hash": pl.Int64}).with_columns(
                part=pl.lit(parts.part_number(path), pl.Int64)
            )
            for path in paths
        ]
        newest = parts.part_number(paths[-1])
        with self._writer as db:
            db.execute("BEGIN IMMEDIATE")
            entries = pl.concat(found).sort("hash", "part").iter_rows()  # of a hash the newest part stands
            db.executemany("INSERT OR REPLACE INTO content VALUES (?, ?)", entries)
            db.execute(f"PRAGMA user_version = {newest}")
        self._indexed = newest

    def _answered(self, path: Path) -> pl.Series:
        """Of a part of calls what answers can be looked for by."""
        number = parts.part_number(path)
        frame = parts.read_part(path, ("row", "fingerprint", "status", "paid", "text"))
        frame = frame.filter(pl.col("paid") & (pl.col("status") == "ok"))
        # An answer that is the row's and would not do is no answer to go on with: `--retry` asks for another.
        results = parts.part_path(self._directory / "results", number)
        unwanted = parts.read_part(results, ("row", "error_kind")).filter(pl.col("error_kind").is_in(JUDGED))["row"]
        if not unwanted.is_empty():
            judged = parts.read_part(results, ("row", "response")).filter(pl.col("row").is_in(unwanted.implode()))
            frame = frame.join(judged, on="row", how="left").filter(
                ~(pl.col("row").is_in(unwanted.implode()) & (pl.col("text").is_null() | _IS_AROUND))
            )
        return frame["fingerprint"]

    def _take_in_batched(self, path: Path) -> None:
        """What was bought live stands; of batches the newest."""
        name = batched.name_of(path)
        frame = parts.read_part(path, ("fingerprint", *_ENDING)).filter(_ENDS)
        hashes = sorted(map(hash_of, frame["fingerprint"]))
        with self._writer as db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT INTO content VALUES (?, ?) ON CONFLICT DO UPDATE SET part = excluded.part"
                " WHERE part < 0 AND part > excluded.part",
                [(key, name) for key in hashes],
            )
            db.execute("INSERT OR REPLACE INTO batched VALUES (?)", (name,))
        self._of_batches.add(name)

    async def _part(self, number: int) -> tuple[dict[str, int], pl.DataFrame]:
        async with self._reading:
            part = self._parts.pop(number, None)
            if part is None:
                part = await anyio.to_thread.run_sync(self._read, number)
            self._parts[number] = part
            if len(self._parts) > OPEN_PARTS:
                del self._parts[next(iter(self._parts))]
        return part

    def _read(self, number: int) -> tuple[dict[str, int], pl.DataFrame]:
        if number < 0:
            calls = parts.read_part(batched.named(self._directory, number), READ_COLUMNS)
            answers = calls.filter(_ENDS)
            unread = calls.filter(~_ENDS)
        else:
            calls = parts.read_part(parts.part_path(self._directory / "calls", number), READ_COLUMNS)
            results = parts.read_part(parts.part_path(self._directory / "results", number), ("row", "response"))
            answers = calls.filter(pl.col("paid") & (pl.col("status") == "ok")).join(results, on="row", how="left")
            answers = answers.with_columns(pl.coalesce("text", "response").alias("text")).drop("response")
            unread = calls.filter(~pl.col("paid"))
        unread = unread.group_by("fingerprint").agg(pl.col("cost_usd").sum().alias("unread_usd"))
        answers = answers.join(unread, on="fingerprint", how="left").with_columns(pl.col("unread_usd").fill_null(0))
        return {fingerprint: at for at, fingerprint in enumerate(answers["fingerprint"])}, answers


def files(directory: Path) -> list[Path]:
    """What the index consists of, where it is there."""
    return [directory / f"{NAME}{suffix}" for suffix in ("", "-wal", "-shm")]


def gave(text: str, response: str | None) -> bool:
    """Whether a call with this text gave its row this response; of JSON what stood around it was left off."""
    return text == response or (response is not None and response[:1] in ("{", "[") and response in text)


def hash_of(fingerprint: str) -> int:
    """64 bits: two of 10 million contents share them once in 400,000 runs, and are told apart by the part."""
    return int.from_bytes(hashlib.blake2b(fingerprint.encode(), digest_size=8).digest(), "big", signed=True)


def reply_of(row: Mapping[str, Any]) -> Reply:
    """The reply that a row of calls is, from `READ_COLUMNS` and `unread_usd`."""
    return Reply(
        row["text"] or "",
        row["status"],
        error_kind=row["error_kind"],
        error=row["error"],
        usage=Usage(**{name: row[column] for column, name in _USAGE.items()}),
        extras=row["extras"] or "",
        target=row["target"] or "",
        continuation=row["continuation"] or "",
        finished_at=row["finished_at"].timestamp(),
        generation=row["generation"],
        **{name: row[name] for name in (*_REPLY, "unread_usd")},
    )
