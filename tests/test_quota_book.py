import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sharedfiles import Clock, damage, locked

from pipeline.errors import RunStateError
from pipeline.quota.book import (
    GROUP_OF,
    GROUP_S,
    KEEP_S,
    LEARNED_FOR_S,
    Known,
    MemoryBook,
    QuotaBook,
    read_known,
)
from pipeline.sharedfile import RETRY_S

DAY = "2026-11-22"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "quota.sqlite"


def sent(path: Path, now: float, endpoint: str = "m") -> list[int | None]:
    """The tokens of all that a run finds which begins now."""
    with QuotaBook(path, endpoint) as book:
        return [send.tokens for send in book.news(now)]


def test_sends_and_counts_outlive_the_process_that_wrote_them(path: Path) -> None:
    with QuotaBook(path, "gemini/m") as book:
        first = book.send(1000.0, 70, DAY)
        book.send(1001.0, 30, DAY)
        book.settle(first, 75)
    with QuotaBook(path, "gemini/m") as later:
        assert [(send.at, send.tokens) for send in later.news(1002.0)] == [(1000.0, 75), (1001.0, 30)]
        assert later.requests_on(DAY) == 2
        assert later.requests_on("2026-11-23") == 0


def test_a_refund_takes_out_the_send_and_its_count(path: Path) -> None:
    with QuotaBook(path, "gemini/m") as book:
        book.refund(book.send(1000.0, 70, DAY))
        book.refund(book.send(1000.0, 70, DAY))
        assert book.requests_on(DAY) == 0
        book.send(1000.001, 50, DAY)
    assert sent(path, 1001.0, "gemini/m") == [None, 50]


def test_sends_in_a_burst_are_written_together_and_none_is_forgotten(path: Path) -> None:
    with QuotaBook(path, "m") as book:
        entries = [book.send(1000.0, number, DAY) for number in range(1, 12)]
        assert sent(path, 1001.0) == [1], "the first at once, the others soon"
        assert book.requests_on(DAY) == 11
        book.settle(entries[0], 101)
        book.settle(entries[1], 102)
        book.refund(entries[2])
        for number in range(12, 12 + GROUP_OF):
            book.send(1000.0, number, DAY)
        assert 102 in sent(path, 1001.0)
        assert len(sent(path, 1001.0)) >= 10
        assert book.requests_on(DAY) == 10 + GROUP_OF
        book.refund(entries[4])
        assert book.requests_on(DAY) == 9 + GROUP_OF
    assert sent(path, 1001.0) == [101, 102, 4, None, *range(6, 12 + GROUP_OF)]


def test_at_an_even_pace_every_send_is_in_the_file_before_it_leaves(path: Path) -> None:
    with QuotaBook(path, "m") as book, QuotaBook(path, "m") as other:
        for number in range(50):
            book.send(1000.0 + number * 1.01 * GROUP_S, number, DAY)
            assert [send.tokens for send in other.news(1001.0)] == [number]


def test_endpoints_do_not_mix(path: Path) -> None:
    with QuotaBook(path, "gemini/a") as one, QuotaBook(path, "gemini/b") as other:
        one.send(1000.0, 70, DAY)
        one.learn("requests", 600.0, 1000.0)
        assert other.requests_on(DAY) == 0
        assert other.news(1001.0) == []
        assert other.known(DAY, 1001.0) == Known()


def test_news_are_what_others_sent_once_each(path: Path) -> None:
    with QuotaBook(path, "m") as one, QuotaBook(path, "m") as other:
        assert one.news(999.0) == other.news(999.0) == []
        one.send(1000.0, 70, DAY)
        assert [send.tokens for send in other.news(1000.0)] == [70]
        assert other.news(1000.0) == []
        other.send(1001.0, 30, DAY)
        assert other.news(1001.0) == []
        assert [send.tokens for send in one.news(1001.0)] == [30]
        assert one.requests_on(DAY) == other.requests_on(DAY) == 2


def test_a_run_that_has_ended_shares_no_longer_but_its_sends_count(path: Path) -> None:
    with QuotaBook(path, "m") as other:
        with QuotaBook(path, "m") as ended:
            ended.send(1000.0, 70, DAY)
        other.send(1001.0, 30, DAY)
        with QuotaBook(path, "m") as later:
            assert [(later.lives(send.who), send.tokens) for send in later.news(1002.0)] == [(False, 70), (True, 30)]


def test_others_read_what_was_settled_and_what_was_refunded(path: Path) -> None:
    with QuotaBook(path, "m") as one, QuotaBook(path, "m") as other:
        first, second = (other.send(1000.0 + number, 50, DAY) for number in range(2))
        one.news(1001.0)
        other.settle(first, 70)
        assert one.news(1001.0) == []
        other.flush()
        assert [(send.number, send.tokens) for send in one.news(1001.0)] == [(first.number, 70)]
        other.refund(second)
        assert [(send.number, send.tokens) for send in one.news(1001.0)] == [(second.number, None)]
        assert other.news(1001.0) == [], "its own need no reading"


def test_what_is_sent_in_a_burst_is_in_the_file_when_it_is_flushed(path: Path) -> None:
    with QuotaBook(path, "m") as one, QuotaBook(path, "m") as other:
        for number in range(3):
            one.send(1000.0, number, DAY)
        assert [send.tokens for send in other.news(1000.0)] == [0]
        one.flush()
        assert [send.tokens for send in other.news(1000.0)] == [1, 2]


def test_what_is_asked_for_is_heard_by_others(path: Path) -> None:
    with QuotaBook(path, "m") as one, QuotaBook(path, "m") as other:
        other.ask(1000.0, 900)
        other.ask(1001.0, 800)
        one.ask(1001.0, 700)
        assert [(send.number, send.at, send.tokens) for send in one.news(1001.0)] == [(None, 1001.0, 800)]
        assert one.news(1001.0) == []


def test_old_sends_are_forgotten_and_counts_are_not(path: Path) -> None:
    with QuotaBook(path, "m") as book:
        book.send(1000.0, 70, DAY)
        assert sent(path, 1000.0 + KEEP_S + 1) == []
        assert book.requests_on(DAY) == 1


def test_a_run_of_many_hours_keeps_the_file_small(path: Path) -> None:
    with QuotaBook(path, "m") as book:
        sizes = []
        for hour in range(5):
            for second in range(3600):
                book.settle(book.send(1000.0 + 3600.0 * hour + second, 70, DAY), 60)
            sizes.append(path.stat().st_size)
        assert book.requests_on(DAY) == 5 * 3600
    assert sizes[-1] <= sizes[0] + 8192


def test_a_learned_limit_is_believed_for_some_hours(path: Path) -> None:
    with QuotaBook(path, "m") as book:
        book.learn("tokens", 250_000.0, 1000.0)
        book.learn("tokens", 240_000.0, 1001.0)
        assert book.known(DAY, 2000.0) == Known(tpm=240_000.0)
        assert book.known(DAY, 1002.0 + LEARNED_FOR_S) == Known()


def test_what_was_let_through_so_far_speaks_against_no_limit_that_a_job_names(path: Path) -> None:
    with QuotaBook(path, "m") as book:
        book.learn("tokens", 250_000.0, 1000.0, refused=False)
        known = book.known(DAY, 2000.0)
        assert (known.limit("tokens", None), known.limit("tokens", 4_000_000)) == (250_000.0, None)
        book.learn("tokens", 200_000.0, 1001.0)
        assert book.known(DAY, 2000.0).limit("tokens", 4_000_000) == 200_000.0, "more was refused"
        book.learn("tokens", 190_000.0, 1002.0, refused=False)
        assert book.known(DAY, 2000.0).limit("tokens", 4_000_000) == 200_000.0
        book.learn("tokens", 300_000.0, 1003.0, refused=False)
        known = book.known(DAY, 2000.0)
        assert (known.limit("tokens", None), known.limit("tokens", 4_000_000)) == (300_000.0, None)


def test_a_used_up_day_is_remembered_until_it_is_over(path: Path) -> None:
    with QuotaBook(path, "m") as book:
        book.close_day(90_000.0, 1000.0)
    assert read_known(path, "m", DAY, 2000.0) == Known(day_opens_at=90_000.0)
    with QuotaBook(path, "m") as later, QuotaBook(path, "other") as other:
        assert later.known(DAY, 1000.0 + 2 * LEARNED_FOR_S) == Known(day_opens_at=90_000.0)
        assert later.known(DAY, 90_000.0) == Known()
        assert other.known(DAY, 2000.0) == Known()


def test_what_was_learned_can_be_forgotten_and_what_was_sent_not(path: Path) -> None:
    with QuotaBook(path, "m") as book, QuotaBook(path, "other") as other:
        for each in (book, other):
            each.send(1000.0, 70, DAY)
            each.learn("requests", 60.0, 1000.0)
            each.close_day(90_000.0, 1000.0)
        book.forget()
    assert read_known(path, "m", DAY, 2000.0) == Known(1)
    assert read_known(path, "other", DAY, 2000.0) == Known(1, 60.0, None, 90_000.0)


def test_while_the_book_is_locked_the_run_counts_for_itself_and_writes_it_later(path: Path) -> None:
    clock = Clock()
    with QuotaBook(path, "m", clock=clock) as book, QuotaBook(path, "m") as other:
        first = book.send(1000.0, 10, DAY)
        with locked(path):
            began = time.perf_counter()
            entries = [book.send(1001.0 + number, 20 + number, DAY) for number in range(40)]
            book.refund(first)
            book.refund(entries[0])
            book.settle(entries[1], 99)
            book.learn("tokens", 5000.0, 1041.0)
            assert time.perf_counter() - began < 1.0, "it waits for the lock once, and shortly"
            assert book.requests_on(DAY) == 39
        assert other.requests_on(DAY) == 1
        clock.now += RETRY_S
        book.send(1042.0, 70, DAY)
        assert book.requests_on(DAY) == other.requests_on(DAY) == 40
        assert sent(path, 1042.0) == [None, 99, *range(22, 60), 70]
        assert other.known(DAY, 1042.0).tpm == 5000.0
        book.settle(entries[2], 100)
    assert 100 in sent(path, 1042.0)


def test_a_damaged_book_costs_a_run_neither_its_counts_nor_its_memory(path: Path) -> None:
    clock = Clock()
    told: list[str] = []
    with QuotaBook(path, "m", clock=clock) as book:
        book.on_trouble = told.append
        book.send(1000.0, 10, DAY)
        assert book.requests_on(DAY) == 1
        damage(path)
        for number in range(2000):
            clock.now += 1.0
            entry = book.send(1001.0 + number, 10, DAY)
        book.refund(entry)
        assert book.requests_on(DAY) == 2000
        assert book.news(3001.0) == [] and book.known(DAY, 3001.0) == Known()
        assert len(book._unwritten) <= KEEP_S + 1
        assert len(told) == 1 and str(path) in told[0]
    with QuotaBook(path, "m") as book:
        assert "set aside" in book.made_anew


def test_a_book_that_is_replaced_in_mid_run_is_used_and_what_others_wrote_there_is_left_alone(path: Path) -> None:
    clock = Clock()
    with QuotaBook(path, "m", clock=clock) as book:
        old = [book.send(1000.0 + number, 10, DAY) for number in range(2)]
        damage(path)
        book.send(1002.0, 20, DAY)
        for part in path.parent.iterdir():
            part.unlink()
        with QuotaBook(path, "m") as other:
            for number in range(2):
                other.send(1003.0 + number, 30, DAY)
            clock.now += RETRY_S
            book.settle(old[0], 11)
            book.refund(old[1])
            assert sent(path, 1005.0) == [30, 30, 20, 11, None]


def test_what_others_send_is_heard_of_in_a_book_that_is_begun_anew_in_mid_run(path: Path) -> None:
    clock = Clock()
    with QuotaBook(path, "m", clock=clock) as book, QuotaBook(path, "m") as before:
        for number in range(5):
            before.send(1000.0 + number, 10, DAY)
        assert len(book.news(1005.0)) == 5
        damage(path)
        with QuotaBook(path, "m") as other:  # it sets the damaged one aside
            other.send(1006.0, 20, DAY)
            assert book.news(1006.0) == []
            clock.now += RETRY_S
            assert [send.tokens for send in book.news(1006.0)] == [20]
            other.send(1007.0, 30, DAY)
            assert [send.tokens for send in book.news(1007.0)] == [30]


def test_forgetting_says_when_it_cannot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sharedfile.PATIENCE_S", 0.05)
    with QuotaBook(path, "m") as book, locked(path), pytest.raises(RunStateError, match="cannot be changed now"):
        book.forget()


def test_what_is_known_is_read_beside_a_run_and_after_it(path: Path) -> None:
    assert read_known(path, "gemini/m", DAY, 2000.0) == Known()
    assert not path.parent.exists(), "asking makes no book"
    with QuotaBook(path, "gemini/m") as book:
        book.send(1000.0, 70, DAY)
        book.learn("requests", 600.0, 1000.0)
        assert read_known(path, "gemini/m", DAY, 2000.0) == Known(1, 600.0, None)
        book.learn("tokens", 250_000.0, 1500.0)
    content = path.read_bytes()
    assert read_known(path, "gemini/m", DAY, 2000.0) == Known(1, 600.0, 250_000.0)
    assert read_known(path, "gemini/m", "2026-11-23", 1001.0 + LEARNED_FOR_S) == Known(0, None, 250_000.0)
    assert read_known(path, "gemini/other", DAY, 2000.0) == Known()
    assert path.read_bytes() == content


def notables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")


def some_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE days (endpoint TEXT, day TEXT, requests INTEGER, PRIMARY KEY (endpoint, day))")


HALF_MADE = {
    "empty": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "half a page": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(80)),
    "no tables": notables,
    "some tables": some_tables,
}


@pytest.mark.case("D2")
@pytest.mark.parametrize("how", HALF_MADE)
def test_a_half_made_book_is_an_empty_one(path: Path, how: str) -> None:
    path.parent.mkdir()
    HALF_MADE[how](path)
    assert read_known(path, "m", DAY, 2000.0) == Known()
    with QuotaBook(path, "m") as book:
        assert book.made_anew == ""
        book.send(1000.0, 1, DAY)
        book.flush()
        assert (book.trouble, book.requests_on(DAY)) == (None, 1)
    assert read_known(path, "m", DAY, 2000.0).requests == 1


def test_a_book_of_an_earlier_version_keeps_its_counts_and_limits(path: Path) -> None:
    with QuotaBook(path, "m") as book:
        book.learn("requests", 600.0, 1000.0)
        book.send(1000.0, 70, DAY)
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE sent RENAME TO sends")
    with QuotaBook(path, "m") as book:
        assert book.made_anew == ""
        assert book.known(DAY, 1001.0) == Known(1, 600.0)
        assert book.news(1001.0) == []


def other_layout(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE learned (what TEXT)")


def cut(path: Path) -> None:
    with QuotaBook(path, "m") as book:
        book.send(1000.0, 1, DAY)
    path.write_bytes(path.read_bytes()[:6000])


DAMAGED: dict[str, Callable[[Path], object]] = {
    "no database": lambda path: path.write_bytes(b"not a database, " * 1000),
    "other layout": other_layout,
    "cut": cut,
    "a directory": lambda path: path.mkdir(),
}


@pytest.mark.case("D2")
@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_book_is_set_aside_and_told(path: Path, how: str) -> None:
    path.parent.mkdir()
    DAMAGED[how](path)
    assert read_known(path, "m", DAY, 2000.0) == Known()
    with QuotaBook(path, "m") as book:
        assert str(path) in book.made_anew and "set aside as quota.sqlite.damaged-" in book.made_anew
        book.send(1000.0, 1, DAY)
        book.flush()
        assert (book.trouble, book.requests_on(DAY)) == (None, 1)
    assert len(list(path.parent.glob("quota.sqlite.damaged-*"))) == 1


def test_what_is_known_is_read_where_nothing_can_be_written(path: Path) -> None:
    with QuotaBook(path, "m") as book:
        book.send(1000.0, 1, DAY)
    before = sorted(path.parent.iterdir())
    assert read_known(path, "m", DAY, 2000.0).requests == 1
    assert sorted(path.parent.iterdir()) == before == [path], "not even a lock file"


@pytest.mark.case("D2")
def test_a_place_out_of_reach_is_told_with_what_to_mend(path: Path) -> None:
    path.parent.parent.mkdir(exist_ok=True, parents=True)
    path.parent.write_text("a file in its place")
    with pytest.raises(RunStateError, match="cannot be used") as caught:
        QuotaBook(path, "m")
    assert f"mend the permissions of {path.parent}" in caught.value.hint


def test_kill_9_loses_no_send(path: Path) -> None:
    """A process that is killed in the middle of writing leaves every finished entry, and a book that works."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.quota.book import QuotaBook\n"
        f"book = QuotaBook(Path({str(path)!r}), 'm')\n"
        "for number in range(10**6):\n"
        f"    book.send(1000.0 + 0.02 * number, number, {DAY!r})\n    print(number, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(200):
            last = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        last = max([last, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
    with QuotaBook(path, "m") as book:
        tokens = [send.tokens for send in book.news(1010.0)]
        assert tokens[: last + 1] == list(range(last + 1))
        assert book.requests_on(DAY) == len(tokens)
        book.send(1001.0, 1, DAY)


def test_a_sign_of_life_that_cannot_be_read_or_removed_stops_nothing(path: Path) -> None:
    with QuotaBook(path, "gemini/m") as book:
        path.with_name(f"{path.name}-0.live").mkdir()  # as for root, who may read and remove any file
        book.send(1000.0, 70, DAY)
        assert sent(path, 1001.0, "gemini/m") == [70]
        assert book.trouble is None


def test_a_run_that_was_killed_is_no_other_run_and_its_sends_count(path: Path) -> None:
    code = (
        "import time\nfrom pathlib import Path\nfrom pipeline.quota.book import QuotaBook\n"
        f"book = QuotaBook(Path({str(path)!r}), 'm')\nbook.send(1000.0, 70, {DAY!r})\nbook.ask(1000.0, 5)\n"
        "print('sent', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "sent\n"
        with QuotaBook(path, "m") as beside:
            assert [(beside.lives(send.who), send.tokens) for send in beside.news(1001.0)] == [(True, 70), (True, 5)]
        process.kill()
        process.wait()
    with QuotaBook(path, "m") as later:
        assert [(later.lives(send.who), send.tokens) for send in later.news(1002.0)] == [(False, 70), (False, 5)]
        later.send(1002.0, 1, DAY)
    assert list(path.parent.glob("*.live")) == [], "nothing lies about"


def test_two_processes_count_together(path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom pipeline.quota.book import QuotaBook\n"
        f"book = QuotaBook(Path({str(path)!r}), 'm')\n"
        f"for number in range(300): book.send(1000.0 + number, 1, {DAY!r})\nbook.close()\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    with QuotaBook(path, "m") as book:
        assert book.requests_on(DAY) == 600


def test_entering_a_send_is_cheap(path: Path) -> None:
    """On the event loop's thread: it must not hold up what is in flight."""
    with QuotaBook(path, "m") as book:
        began = time.perf_counter()
        for number in range(500):
            book.send(1000.0 + number, 1, DAY)
            book.news(1000.0 + number)
        assert (time.perf_counter() - began) / 500 < 0.002


def test_a_book_in_memory_counts_days_and_knows_nobody_else() -> None:
    book = MemoryBook()
    book.refund(book.send(1000.0, 5, DAY))
    book.send(1000.0, 5, DAY)
    assert book.requests_on(DAY) == 1
    book.ask(1000.0, 5)
    book.flush()
    assert book.news(1001.0) == []
    book.close_day(90_000.0, 1000.0)
    assert book.known(DAY, 1001.0) == Known()
