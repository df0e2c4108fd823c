"""Whole runs over a socket while the files that they share with others cannot be used; and what runs leave there."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
from commands import UNLIMITED, Ran, small_job
from serving import served, stats
from sessions import run_through
from sharedfiles import damage

from jobs import PLAIN, Sections, write_job
from pipeline import estimating
from pipeline.budget.live import read_sum
from pipeline.errors import BudgetReached, QuotaExhausted
from pipeline.events import BookTrouble
from pipeline.job import load
from pipeline.run import checks, prepare
from pipeline.run.engine import Monitor

ROWS = 150
Meddling = Callable[[Path], None]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setattr("pipeline.sharedfile.RETRY_S", 0.2)
    monkeypatch.setattr("pipeline.sharedfile.PATIENCE_S", 0.2)
    (tmp_path / "topics.csv").write_text("topic\n" + "".join(f"topic {number}\n" for number in range(ROWS)))
    return tmp_path


def place(name: str) -> Path:
    return Path(os.environ["XDG_STATE_HOME"]) / "prompt-pipeline" / name


@contextmanager
def holding() -> Iterator[Meddling]:
    """Another process that locks a file, and keeps it locked."""
    others: list[sqlite3.Connection] = []

    def lock(path: Path) -> None:
        others.append(sqlite3.connect(path, isolation_level=None))
        others[-1].execute("BEGIN EXCLUSIVE")

    try:
        yield lock
    finally:
        for other in others:
            other.close()


class Run:
    """One session of the job, with something done to a shared file after the tenth answer."""

    def __init__(
        self, here: Path, url: str, meddle: Callable[[], None] = lambda: None, **sections: dict[str, Any]
    ) -> None:
        limits = {"rpm": 6000, "tpm": 0, "concurrency": 8}
        asked: Sections = {"endpoint": {"base_url": url}, "limits": limits, **sections}
        self.job = load(write_job(here, PLAIN, **asked))
        self._meddle = meddle
        self.notices: list[str] = []
        prepared = prepare.prepare(self.job, prepare.Options())
        self.ended = run_through(prepared, self._watch)

    async def _watch(self, monitor: Monitor) -> None:
        try:
            while monitor.calls < 10:  # noqa: ASYNC110  the monitor tells nobody
                await anyio.sleep(0.001)
            self._meddle()
            await anyio.sleep_forever()
        finally:
            self.notices = [event.message for event in monitor.notices if isinstance(event, BookTrouble)]


# A lock on the book of spending is met when more is in flight than ever before: at the tenth answer twenty are at most.
WIDE = {"rpm": 0, "tpm": 0, "concurrency": 60}


@pytest.mark.parametrize("fault", ["locked", "damaged"])
def test_a_quota_book_that_fails_in_mid_run_stops_nothing(here: Path, fault: str) -> None:
    with served(latency_s=0.02) as url, holding() as lock:
        meddle = lock if fault == "locked" else damage
        run = Run(here, url, lambda: meddle(place("quota.sqlite")))
        assert stats(url)["bought_twice"] == 0
    assert run.ended.exit_code == 0 and run.ended.summary.outcomes["ok"] == ROWS
    assert len(run.notices) == 1 and str(place("quota.sqlite")) in run.notices[0]


@pytest.mark.parametrize("fault", ["locked", "damaged"])
def test_a_day_cap_that_cannot_be_kept_stops_the_run_resumable(here: Path, fault: str) -> None:
    with served(latency_s=0.1, model_version=None) as url:
        cap = {"max_usd_per_day": 5.0}
        with holding() as lock:
            meddle = lock if fault == "locked" else damage
            run = Run(here, url, lambda: meddle(place("spend.sqlite")), budget=cap, limits=WIDE)
        stopped = run.ended.stopped
        assert isinstance(stopped, BudgetReached) and run.ended.exit_code == 3
        assert str(place("spend.sqlite")) in stopped.message and "the same command continues" in stopped.hint
        answered = run.ended.summary.outcomes["ok"]
        assert 10 <= answered < ROWS, "in flight is kept, and nothing is sent any more"
        assert stats(url)["answered"] == answered
        assert str(place("spend.sqlite")) in run.notices[0]
        if fault == "damaged":
            for part in place("spend.sqlite").parent.glob("spend.sqlite*"):
                part.unlink()
        more = Run(here, url, budget=cap)
        assert more.ended.exit_code == 0 and more.ended.summary.outcomes["ok"] == ROWS
        seen = stats(url)
        assert (seen["answered"], seen["bought_twice"]) == (ROWS, 0)


def test_without_such_a_cap_the_run_goes_on_and_writes_what_it_spent_when_it_can(here: Path) -> None:
    with served(latency_s=0.1, model_version=None) as url:
        with holding() as lock:
            run = Run(here, url, lambda: lock(place("spend.sqlite")), budget={"max_usd": 5.0}, limits=WIDE)
        assert run.ended.exit_code == 0 and run.ended.summary.outcomes["ok"] == ROWS
        assert len(run.notices) == 2 and "could not be written" in run.notices[1]
        with closing(sqlite3.connect(place("spend.sqlite"))) as db:
            entered = db.execute("SELECT coalesce(sum(nano_usd), 0) FROM spend").fetchone()[0]
        beside = sum(map(read_sum, place("spend.sqlite").parent.glob("spend.sqlite-*.live")))  # the next run enters it
        written = (entered + beside) * Decimal("1e-9")
        assert Decimal(0) < written < run.ended.summary.cost_usd
        left = f"${run.ended.summary.cost_usd - written:.6f} that this run spent"
        assert run.notices[1].startswith(left)


def test_a_used_up_day_is_remembered_until_it_is_forgotten(here: Path) -> None:
    with served(rpd=20) as url:
        first = Run(here, url, limits={"rpm": 6000, "tpm": 0, "rpd": 1000})
        assert isinstance(first.ended.stopped, QuotaExhausted)
        before = stats(url)
        assert before["answered"] == 20
        counted = first.ended.summary
        assert (counted.attempts, counted.rate_limited) == (20, before["rate_limited"]), "of rows not finished too"
        again = Run(here, url)
        assert isinstance(again.ended.stopped, QuotaExhausted) and again.ended.exit_code == 3
        assert "it returns at" in again.ended.stopped.message and "--forget" in again.ended.stopped.hint
        assert stats(url)["requests"] == before["requests"], "nothing is sent"

        def quota(forget: bool) -> str:
            steps = anyio.run(checks.examine, again.job.path, {}, prepare.Options(), forget)
            return next(f"{step.found}: {step.remark}" for step in steps if step.name == "quota")

        assert "day used up: the day returns at" in quota(False)
        expected = anyio.run(estimating.estimate, prepare.prepare(first.job, prepare.Options()), estimating.Wishes())
        assert expected.plan.timeline.bound == "rpd", "the plan begins with the next day"
        assert quota(True).startswith("forgotten: day used up") and quota(True).startswith("forgotten: nothing")
        third = Run(here, url)
        assert isinstance(third.ended.stopped, QuotaExhausted)
        assert stats(url)["requests"] > before["requests"], "the service is asked again"
    with closing(sqlite3.connect(place("quota.sqlite"))) as db:
        assert db.execute("SELECT requests FROM days").fetchall() == [(20,)], "what was sent is not forgotten"


@pytest.mark.case("O7")
def test_after_a_row_was_appended_only_that_row_is_bought(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED)
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert cli("run", job, "--yes").code == 0
        with (here / "words.csv").open("a") as table:
            table.write("eta\n")
        assert cli("run", job, "--yes").code == 0
        assert stats(url)["requests"] == 7
