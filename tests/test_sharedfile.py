"""What may happen to a shared file in mid-run, with a real second connection and real damage."""

import os
import re
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from sharedfiles import Clock, damage, locked

from pipeline.documents.spool import Spool
from pipeline.errors import RunStateError
from pipeline.sharedfile import RETRY_S, SharedFile
from pipeline.shelves import SqliteShelf

SCHEMA = "CREATE TABLE IF NOT EXISTS things (name TEXT)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "shared.sqlite"


def opened(path: Path, clock: Clock) -> tuple[SharedFile, list[str]]:
    file = SharedFile(path, SCHEMA, name="The book", hint="mend it", clock=clock)
    told: list[str] = []
    file.on_trouble = told.append
    return file, told


def put(file: SharedFile, name: str) -> bool:
    return file.write(lambda db: db.execute("INSERT INTO things VALUES (?)", (name,))) is not None


def names(file: SharedFile) -> list[str] | None:
    return file.read(lambda db: [name for (name,) in db.execute("SELECT name FROM things")])


def test_a_short_lock_is_nobodys_business(path: Path) -> None:
    clock = Clock()
    file, told = opened(path, clock)
    with file:
        with locked(path):
            began = time.perf_counter()
            assert not put(file, "a")
            assert time.perf_counter() - began < 0.5, "the event loop stands still so long"
            began = time.perf_counter()
            assert not put(file, "a") and names(file) is None, "left alone for a while"
            assert time.perf_counter() - began < 0.05
        clock.now += RETRY_S
        assert put(file, "a") and names(file) == ["a"]
        assert told == [] and file.trouble is None


def test_a_lasting_lock_is_told_once_and_ends(path: Path) -> None:
    clock = Clock()
    file, told = opened(path, clock)
    with file:
        for _ in range(2):
            with locked(path):
                for _ in range(3):
                    assert not put(file, "a")
                    clock.now += RETRY_S
                assert file.trouble == f"The book {path} cannot be used: database is locked"
                assert names(file) == [], "readers wait for nobody"
                assert file.trouble, "and do not end it"
            assert put(file, "a")
            assert file.trouble is None
            file.write(lambda db: db.execute("DELETE FROM things"))
        assert len(told) == 1 and told[0].startswith(f"The book {path} cannot be used: database is locked")


def test_damage_is_told_at_once_and_a_new_file_is_used(path: Path) -> None:
    clock = Clock()
    file, told = opened(path, clock)
    with file:
        assert put(file, "a")
        damage(path)
        assert not put(file, "b")
        assert len(told) == 1 and file.trouble
        for part in path.parent.iterdir():
            part.unlink()
        assert not put(file, "b"), "not yet"
        clock.now += RETRY_S
        assert put(file, "c") and names(file) == ["c"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_place_that_is_gone_is_no_end_either(path: Path, tmp_path: Path) -> None:
    clock = Clock()
    file, told = opened(path, clock)
    with file:
        damage(path)
        assert not put(file, "a")
        path.parent.rename(tmp_path / "elsewhere")
        path.parent.write_text("a file in its place")
        clock.now += RETRY_S
        assert not put(file, "a")
        assert re.search("File exists|Not a directory", file.trouble or "") and len(told) == 1


def test_a_full_disk_undoes_the_transaction(path: Path) -> None:
    clock = Clock()
    file, told = opened(path, clock)
    with file:
        assert put(file, "a")

        def too_much(db: sqlite3.Connection) -> int:
            db.execute("INSERT INTO things VALUES ('b')")
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
            return db.execute("INSERT INTO things VALUES (zeroblob(1000000))").rowcount

        assert file.write(too_much) is None
        assert "full" in told[0]
        clock.now += RETRY_S
        assert names(file) == ["a"]


def test_a_mistake_of_the_program_is_not_taken_for_a_fault_of_the_file(path: Path) -> None:
    file, _ = opened(path, Clock())
    with file, pytest.raises(sqlite3.ProgrammingError):
        file.read(lambda db: db.execute("SELECT ?", ()).fetchall())


def test_what_others_write_is_noticed_also_by_a_new_connection(path: Path) -> None:
    clock = Clock()
    file, _ = opened(path, clock)
    other, _ = opened(path, clock)
    with file, other:
        assert file.read(file.changed) and put(other, "a")
        assert file.read(lambda db: [file.changed(db), file.changed(db)]) == [True, False]
        with locked(path):
            assert not put(file, "b")
        clock.now += RETRY_S
        assert file.read(lambda db: [file.changed(db)]) == [True], "nobody knows what it missed"


@pytest.mark.parametrize("content", [b"not a database, " * 1000, None])
def test_a_file_that_cannot_be_opened_is_named_with_the_way_out(path: Path, content: bytes | None) -> None:
    path.parent.mkdir()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(RunStateError) as caught:
        opened(path, Clock())
    assert str(path) in caught.value.message and caught.value.hint == "mend it"


def test_a_file_that_is_locked_is_not_to_be_moved_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sharedfile.PATIENCE_S", 0.05)
    path.parent.mkdir()
    with locked(path), pytest.raises(RunStateError, match="database is locked") as caught:
        opened(path, Clock())
    assert caught.value.hint.startswith("another process keeps it locked")


@pytest.mark.case("D2")
def test_a_pipe_in_its_place_is_not_waited_for(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(RunStateError, match="it is no file"):
        opened(path, Clock())
    with SharedFile(path, SCHEMA, name="The book", hint="mend it", disposable=True) as file:
        assert "it is no file" in file.made_anew and put(file, "a")


def test_a_second_connection_of_this_process_leaves_the_locks_of_the_first(path: Path) -> None:
    """What closes a file lets go of all its locks: another process would then remove the log that is written to."""
    (cache, spool), clock = (path.with_name(name) for name in ("cache.sqlite", "spool.sqlite")), Clock()
    openings: dict[Path, Callable[[], object]] = {
        path: lambda: opened(path, clock)[0].__enter__(),
        cache: lambda: anyio.run(_shelved, cache),
        spool: lambda: Spool(spool),
    }
    path.parent.mkdir()
    for place, opening in openings.items():
        _held = opening(), opening()
        other = f"import sqlite3; db = sqlite3.connect({str(place)!r}); db.execute('PRAGMA user_version').fetchall()"
        subprocess.run([sys.executable, "-S", "-c", other + "; db.close()"], check=True)
        assert place.with_name(f"{place.name}-wal").exists(), place.name


async def _shelved(path: Path) -> SqliteShelf:
    shelf = SqliteShelf(path, 1, 1)
    await shelf.open()
    return shelf
