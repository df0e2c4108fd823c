"""Spending by day and month, shared by processes."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from sharedfiles import Clock, locked

from pipeline.budget.book import SpendBook
from pipeline.budget.joint import JointBook
from pipeline.errors import RunStateError
from pipeline.sharedfile import RETRY_S

NOON = 1_795_348_800.0  # 2026-11-22 12:00 UTC
DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spend.sqlite"


def usd(*amounts: str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, amounts))


def test_the_file_is_for_the_user_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "spend.sqlite"
    with SpendBook(path, "project", "run") as book:
        book.add(Decimal("0.5"))
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600} and path.name in modes
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_day_and_a_month_begin_at_midnight_utc(path: Path) -> None:
    clock = Clock(NOON)
    with SpendBook(path, "p", "run", wall=clock) as book:
        assert book.spent() == usd("0", "0")
        book.add(Decimal("0.25"))
        book.add(Decimal("0.000000001"))
        assert book.spent() == usd("0.250000001", "0.250000001")
        clock.now = NOON + DAY / 2 - 1
        assert book.spent() == usd("0.250000001", "0.250000001")
        clock.now += 1
        assert book.spent() == usd("0", "0.250000001")
        book.add(Decimal("1.5"))
        assert book.spent() == usd("1.5", "1.750000001")
        clock.now = NOON + 9 * DAY  # 1 December
        assert book.spent() == usd("0", "0")


def test_less_than_a_billionth_counts_as_one(path: Path) -> None:
    with SpendBook(path, "p", "run") as book:
        book.add(Decimal("1e-12"))
        assert book.spent()[0] == Decimal("1e-9")


def test_what_another_process_spends_is_seen_at_once_and_other_projects_are_not(path: Path) -> None:
    clock = Clock(NOON)
    with SpendBook(path, "p", "run", wall=clock) as one, SpendBook(path, "p", "run", wall=clock) as other:
        one.add(Decimal(1))
        assert other.spent() == one.spent() == usd("1", "1")
        other.add(Decimal(2))
        assert one.spent() == other.spent() == usd("3", "3")
        with SpendBook(path, "q", "run", wall=clock) as stranger:
            assert stranger.spent() == usd("0", "0")


_SPENDER = """
import sys
from decimal import Decimal
from pathlib import Path
from pipeline.budget.book import SpendBook
from pipeline.budget.joint import JointBook
book = SpendBook(Path(sys.argv[1]), "p", "run")
for _ in range(50):
    book.add(Decimal("0.01"))
print("spent", flush=True)
sys.stdin.read()
"""


@contextmanager
def spending(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has spent half a dollar and goes on until it is killed."""
    arguments = [sys.executable, "-c", _SPENDER, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as spender:
        assert spender.stdout is not None and spender.stdout.readline() == b"spent\n"
        yield spender


@pytest.mark.parametrize("log", ["whole", "damaged", "removed"])
def test_sigkill_loses_nothing_that_was_added_whatever_becomes_of_the_log(path: Path, log: str) -> None:
    with spending(path) as spender:
        spender.kill()
    written_ahead = path.with_name(f"{path.name}-wal")
    if log == "damaged":
        written_ahead.write_bytes(bytes(byte ^ 1 for byte in written_ahead.read_bytes()))
    elif log == "removed":
        written_ahead.unlink()
    with SpendBook(path, "p", "run") as book:
        assert book.spent()[1] == Decimal("0.5")


@pytest.mark.case("D5")
def test_what_a_killed_session_spent_is_seen_all_the_time_and_then_stands_in_the_book(path: Path) -> None:
    with SpendBook(path, "p", "run") as book:
        with spending(path) as spender:
            assert book.spent()[1] == Decimal("0.5")
            spender.kill()
        assert book.spent()[1] == Decimal("0.5")
        with SpendBook(path, "p", "another") as other:
            assert book.spent() == other.spent() and other.spent()[1] == Decimal("0.5")
        book.add(Decimal(1))
        book.add(Decimal(1))
        assert book.spent()[1] == Decimal("2.5")
    assert not list(path.parent.glob("*.live"))


@pytest.mark.case("D5")
@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_a_book_that_lacks_what_a_killed_session_spent_is_refused(path: Path, how: str) -> None:
    with SpendBook(path, "p", "before") as book:
        book.add(Decimal(2))
    with spending(path) as spender:
        spender.kill()
    (live,) = path.parent.glob("*.live")
    live.unlink() if how == "removed" else live.write_bytes(b"0" * 29)
    with pytest.raises(RunStateError, match=r"\.live") as caught:
        SpendBook(path, "p", "run")
    command = re.match("`([^`]+)`, and run again", caught.value.hint)
    assert command, caught.value.hint
    subprocess.run(command[1], shell=True, check=True)
    with SpendBook(path, "p", "run") as book:
        assert Decimal(2) <= book.spent()[1] < Decimal("2.5"), "no more is lost than what stood there"
    assert not list(path.parent.glob("*.live"))


@pytest.mark.case("D5")
@pytest.mark.parametrize("left", [b"", b"\0" * 29])
def test_a_power_cut_loses_the_last_session_s_first_seconds_and_not_the_book(path: Path, left: bytes) -> None:
    with SpendBook(path, "p", "run") as book:
        book.add(Decimal(2))
    with spending(path) as spender:
        spender.kill()
    (live,) = path.parent.glob("*.live")
    live.write_bytes(left)
    with SpendBook(path, "p", "run") as book:
        assert Decimal(2) <= book.spent()[1] <= Decimal("2.5")
    assert not list(path.parent.glob("*.live"))


@pytest.mark.case("D5")
def test_what_a_session_spends_is_counted_whole_though_its_file_is_replaced_meanwhile(path: Path) -> None:
    with SpendBook(path, "p", "one") as one, SpendBook(path, "p", "other") as other:
        one.add(Decimal(1))
        _replace(path)
        one.add(Decimal(2))
        assert one.spent()[1] == 3
    with SpendBook(path, "p", "one") as one:
        assert one.spent()[1] == 3
        one.add(Decimal(4))
        _replace(path)
        other.add(Decimal(8))  # takes `one` for ended
        assert one.spent()[1] == other.spent()[1] == 15
        one.add(Decimal(16))
        assert one.spent()[1] == 31
    with SpendBook(path, "p", "run") as book:
        assert book.spent()[1] == 31


def test_a_long_session_enters_what_it_spent_now_and_then(path: Path) -> None:
    """For an older version, which reads nothing else, and should its file be lost."""
    clock = Clock(NOON)
    with SpendBook(path, "p", "one", wall=clock, clock=clock) as book, closing(sqlite3.connect(path)) as db:
        for number in range(200):
            book.add(Decimal(1))
            clock.now += 1.0
            if number % 10 == 9:
                (entered,) = db.execute("SELECT coalesce(sum(nano_usd), 0) FROM spend").fetchone()
                assert number - 60 <= entered / 10**9 <= number + 1 == book.spent()[0]
        assert len(list(path.parent.glob("*.live"))) == 1


@pytest.mark.case("D5")
def test_what_the_first_reply_cost_is_seen_at_once_though_the_book_is_locked_then(path: Path) -> None:
    with SpendBook(path, "p", "one") as one, SpendBook(path, "p", "other") as other:
        one.hold(Decimal(2))
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            one.add(Decimal(1))
            assert one.spent()[1] == 1
            assert other.spent()[1] == 1, "what it holds it settles itself"


def _replace(path: Path) -> None:
    for live in path.parent.glob("*.live"):
        copy = live.read_bytes()
        live.unlink()
        live.write_bytes(copy)


_HOLDER = """
import sys
from decimal import Decimal
from pathlib import Path
from pipeline.budget.book import SpendBook
from pipeline.budget.joint import JointBook
book = SpendBook(Path(sys.argv[1]), "p", "one", wall=lambda: float(sys.argv[2]))
book.hold(Decimal("0.25"))
book.hold(Decimal("0.125"))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.case("D5")
def test_what_a_killed_run_had_in_flight_counts_until_that_run_is_gone_on_with(path: Path) -> None:
    clock = Clock(NOON)
    arguments = [sys.executable, "-c", _HOLDER, str(path), str(NOON)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with SpendBook(path, "p", "two", wall=clock) as book:
            assert book.spent() == usd("0", "0"), "it settles it itself"
        holder.kill()
    with SpendBook(path, "p", "two", wall=clock) as book, SpendBook(path, "p", "one", wall=clock) as again:
        assert book.spent() == usd("0.25", "0.25"), "at least so much was in flight: it is not noted anew for less"
        assert again.spent() == usd("0", "0"), "it counts what it lost by its own journal"
        with SpendBook(path, "q", "one", wall=clock) as stranger:
            assert stranger.spent() == usd("0", "0")
        clock.now += DAY
        book.add(Decimal(1))
        assert book.spent() == usd("1", "1.25"), "it was sent yesterday"
        again.release()
        assert book.spent() == usd("1", "1")


@pytest.mark.case("D5")
def test_what_a_killed_run_had_in_flight_counts_from_the_kill_on_whoever_has_its_process_number(path: Path) -> None:
    arguments = [sys.executable, "-c", _HOLDER, str(path), str(NOON)]
    with SpendBook(path, "p", "two", wall=Clock(NOON)) as book:
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            assert book.spent() == usd("0", "0")
            holder.kill()
        assert book.spent() == usd("0.25", "0.25"), "though nothing was written since"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE held SET pid = ?", (os.getppid(),))
    with SpendBook(path, "p", "two", wall=Clock(NOON)) as book:
        assert book.spent() == usd("0.25", "0.25")


@pytest.mark.case("D5")
def test_a_killed_run_whose_process_number_is_given_again_counts(path: Path) -> None:
    """As of every first process of a container."""
    with SpendBook(path, "p", "killed") as book:
        book.hold(Decimal("0.25"))
    with SpendBook(path, "p", "next") as book:
        assert book.spent() == usd("0.25", "0.25")


def test_a_file_that_cannot_be_used_is_named(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(RunStateError) as caught:
        SpendBook(path, "p", "run")
    assert str(path) in caught.value.message and "move" in caught.value.hint


def test_what_is_spent_while_the_file_is_locked_counts_at_once_and_is_written_later(path: Path) -> None:
    clock = Clock()
    told: list[str] = []
    with SpendBook(path, "p", "run", clock=clock) as book, SpendBook(path, "p", "run") as others:
        book.on_trouble = told.append
        others.add(Decimal(1))
        with locked(path):
            began = time.perf_counter()
            for _ in range(10):
                book.add(Decimal("0.1"))
            assert time.perf_counter() - began < 0.5, "it waits for the lock once, and shortly"
            assert book.trouble is None
            clock.now += RETRY_S
            assert book.spent() == usd("2", "2")
            book.add(Decimal(1))
            assert book.spent() == usd("3", "3") and book.unwritten_usd == 2
            assert book.trouble and len(told) == 1
        assert others.spent() == usd("1", "1")
        clock.now += RETRY_S
        book.add(Decimal(1))
        assert book.trouble is None and book.unwritten_usd == 0
        assert book.spent() == others.spent() == usd("4", "4")


def test_at_the_end_a_lock_is_waited_for_and_what_could_not_be_written_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sharedfile.PATIENCE_S", 0.3)
    told: list[str] = []
    book = SpendBook(path, "p", "run")
    book.on_trouble = told.append
    with locked(path):
        book.add(Decimal("0.25"))
        assert told == []
        book.close()
    assert len(told) == 1 and told[0].startswith(f"$0.250000 that this run spent could not be written to {path}")
    with SpendBook(path, "p", "run") as book:
        assert book.spent() == usd("0", "0")


HALF_MADE = {
    "empty": b"",
    "zeros": bytes(4096),
    "half a page": b"SQLite format 3\0" + bytes(80),
}


@pytest.mark.case("D2")
@pytest.mark.parametrize("how", HALF_MADE)
def test_a_half_made_book_is_an_empty_one(path: Path, how: str) -> None:
    path.parent.mkdir()
    path.write_bytes(HALF_MADE[how])
    with SpendBook(path, "project", "run") as book:
        book.add(Decimal("0.5"))
        assert book.spent() == usd("0.5", "0.5") and book.trouble is None


@pytest.mark.case("D2")
@pytest.mark.parametrize("how", ["no database", "a few words", "other layout", "cut", "a directory"])
def test_a_damaged_book_is_refused_for_it_holds_what_was_spent(path: Path, how: str) -> None:
    path.parent.mkdir()
    if how == "no database":
        path.write_bytes(b"not a database, " * 1000)
    elif how == "a few words":
        path.write_bytes(b"oops\n")
    elif how == "a directory":
        path.mkdir()
    elif how == "cut":
        with SpendBook(path, "project", "run") as book:
            book.add(Decimal("0.5"))
        path.write_bytes(path.read_bytes()[:6000])
    else:
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE spend (what TEXT)")
    with pytest.raises(RunStateError, match="cannot be used") as caught:
        SpendBook(path, "project", "run")
    assert f"move {path} away" in caught.value.hint and "counts from zero" in caught.value.hint


@pytest.mark.case("D5")
def test_an_amount_with_a_name_counts_once_on_its_day_whoever_comes_with_it(path: Path) -> None:
    clock = Clock(NOON)
    with SpendBook(path, "p", "run", wall=clock) as book, SpendBook(path, "p", "run", wall=clock) as other:
        book.add_once("run/1", Decimal("0.25"), NOON - DAY)
        assert book.spent() == other.spent() == usd("0", "0.25"), "it was sent yesterday"
        for one in (book, other, book):
            one.add_once("run/1", Decimal("0.25"), NOON - DAY)
            one.add_once("run/2", Decimal("0.5"), 0.0)
        assert book.spent() == other.spent() == usd("0.5", "0.75")
    with SpendBook(path, "q", "run", wall=clock) as another:
        another.add_once("run/1", Decimal(1), NOON)
        assert another.spent() == usd("1", "1"), "another project's"


@pytest.mark.case("D5", "R1")
def test_no_amount_is_less_than_nothing(path: Path) -> None:
    with SpendBook(path, "p", "run", wall=Clock(NOON)) as book:
        book.add(Decimal("0.5"))
        book.add(Decimal("-0.4"))
        book.add_once("name", Decimal("-0.4"), NOON)
        assert book.spent() == usd("0.5", "0.5")


def test_an_amount_with_a_name_that_cannot_be_written_counts_for_this_run_and_is_written_later(path: Path) -> None:
    clock = Clock(NOON)
    with SpendBook(path, "p", "run", wall=clock, clock=clock) as book:
        with locked(path):
            book.add_once("run/1", Decimal("0.25"), NOON)
            assert book.spent() == usd("0.25", "0.25")
        clock.now += RETRY_S
        book.add(Decimal("0.5"))
        assert book.unwritten_usd == 0 and book.spent() == usd("0.75", "0.75")


@pytest.mark.case("D11")
@pytest.mark.parametrize("how", ["removed", "replaced", "its directory removed"])
def test_a_book_that_other_runs_would_not_see_is_trouble_until_it_is_there_again(path: Path, how: str) -> None:
    clock = Clock(NOON)
    with SpendBook(path, "p", "run", wall=clock, clock=clock) as book:
        told: list[str] = []
        book.on_trouble = told.append
        book.add(Decimal("0.25"))
        if how == "replaced":
            with SpendBook(path.with_name("other"), "p", "run", wall=clock):
                pass
            path.with_name("other").rename(path)
        elif how == "removed":
            path.unlink()
        else:
            shutil.rmtree(path.parent)
        book.add(Decimal("0.5"))
        assert book.trouble is not None and "removed or replaced" in book.trouble and len(told) == 1
        assert book.unwritten_usd == Decimal("0.5")
        clock.now += RETRY_S
        book.add(Decimal(1))
        assert book.trouble is None and book.unwritten_usd == 0
    with SpendBook(path, "p", "run", wall=clock) as other:
        assert other.spent()[0] in usd("1.5", "1.75")  # SQLite may find the replaced file's log beside the new one


def test_what_a_killed_session_held_is_released_whichever_account_comes_first(path: Path) -> None:
    def session(*accounts: str, done: bool) -> None:
        books = {account: SpendBook(path, account, "run") for account in accounts}
        JointBook(books).hold(Decimal(1))
        if done:
            JointBook(books).release()
        for book in books.values():
            book.close()

    def lost() -> Decimal:
        with closing(SpendBook(path, "a", "another run")) as other:
            other.spent()
            return other.lost()[0]

    session("a", "b", done=False)
    assert lost() == 1
    session("b", "a", done=True)
    assert lost() == 0
