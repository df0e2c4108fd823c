"""Runs that share one quota: together they use it, each gets its part, and none is refused."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import anyio
import pytest
from matrix import cases, cases_of
from servers import WINDOW_S, World, answer_all, dispatcher_for, documents, heavy, lognormal, small
from sharedfiles import Clock
from vclock import run

from pipeline.calibration import EXACT
from pipeline.prompts import Prompt
from pipeline.quota.book import QuotaBook
from pipeline.quota.ledger import TokenLedger
from pipeline.quota.pacer import JITTER_S
from pipeline.quota.server_clock import MinutePhase
from pipeline.quota.sharing import ASKED_FOR_S, SHARER_S, Sharing
from pipeline.records import Failure, Limits, Reply

DAY = "2026-11-22"


@dataclass
class Together:
    """Several runs on one world; each begins at its own time."""

    world: World
    sends: list[tuple[float, int, int]] = field(default_factory=list)  # when, which run, true tokens
    last: dict[int, float] = field(default_factory=dict)  # when each run sent its last prompt

    def run(
        self, parts: Sequence[list[Prompt]], begins: Sequence[float], path: Path, *, unset: int = -1, **limits: Any
    ) -> None:
        """All with these limits, but for the run `unset`."""

        async def one(which: int) -> None:
            async def send(prompt: Prompt) -> Reply | Failure:
                self.sends.append((self.world.now(), which, self.world.true_tokens[prompt.row]))
                self.last[which] = self.world.now()
                return await self.world.send(prompt)

            await anyio.sleep(begins[which])
            with QuotaBook(path, "m") as book:
                known = Limits() if which == unset else Limits(**limits)
                dispatcher = dispatcher_for(self.world, known, book=book, send=send)
                await answer_all(dispatcher, parts[which])

        async def main() -> None:
            async with anyio.create_task_group() as group:
                for which in range(len(parts)):
                    group.start_soon(one, which)

        run(main)

    def use(self, begin: float, end: float) -> float:
        """Of the meter that binds most, in whole minutes: tokens leave in waves, as those before expire."""
        minute_s = WINDOW_S + JITTER_S
        end = begin + (end - begin) // minute_s * minute_s
        tokens = [one for at, one in self.world.admitted if begin < at <= end]
        return max(len(tokens) / self.world.rpm, sum(tokens) / self.world.tpm) * minute_s / (end - begin)

    def part(self, which: int, begin: float, end: float) -> float:
        """What one run had of the requests or of the tokens, whichever is more."""
        both = [(run, tokens) for at, run, tokens in self.sends if begin < at <= end]
        own = [tokens for run, tokens in both if run == which]
        return max(len(own) / len(both), sum(own) / sum(tokens for _, tokens in both))


def split(prompts: list[Prompt], counts: Sequence[int]) -> Iterator[list[Prompt]]:
    source = iter(prompts)
    for count in counts:
        yield [next(source) for _ in range(count)]


@cases_of(
    "binds, counts, together, overall",
    {
        "requests": ("requests", (1700, 1300), 0.98, 0.98),
        "requests-three-runs": ("requests", (1700, 700, 600), 0.98, 0.98),
        "requests-one-ends-early": ("requests", (2400, 300), 0.98, 0.98),
        "requests-of-a-low-limit": ("slow", (500, 400), 0.95, 0.95),
        "tokens": ("tokens", (1700, 1300), 0.87, 0.98),  # the second must first learn the minute
        "tokens-three-runs": ("tokens", (1700, 700, 600), 0.91, 0.97),
        "tokens-one-ends-early": ("tokens", (2200, 500), 0.84, 0.98),
        "tokens-heavy-tail": ("heavy", (450, 350), 0.76, 0.96),  # .77 to .99, on average .91
    },
)
def test_runs_use_one_quota_together(
    server: str,
    seed: int,
    full: bool,
    tmp_path: Path,
    binds: str,
    counts: tuple[int, ...],
    together: float,
    overall: float,
) -> None:
    """The second begins after 65 s, the third after 95; `overall` includes what is left when the others have ended.

    `together` is of the whole minutes in which all run.
    """
    rpm, tpm = {
        "requests": (600, 10_000_000),
        "slow": (150, 10_000_000),
        "tokens": (6000, 300_000),
        "heavy": (600, 1_000_000),
    }[binds]
    counts = tuple(2 * count for count in counts) if full else counts
    tokens = {
        "requests": lambda: small(sum(counts), 100, seed),
        "slow": lambda: small(sum(counts), 100, seed),
        "tokens": lambda: lognormal(sum(counts), 500, seed),
        "heavy": lambda: heavy(sum(counts), 6700, 330_000, seed),
    }[binds]()
    runs = Together(World(server, rpm, tpm, seed=seed))
    begins = (0.0, 65.0, 95.0)[: len(counts)]
    runs.run(list(split(documents(runs.world, tokens), counts)), begins, tmp_path / "book", rpm=rpm, tpm=tpm)
    assert len(runs.world.refused) <= (1 if binds == "slow" else 0)  # by a counter, whose burst both may use at once
    assert runs.use(begins[-1], min(runs.last.values())) >= together
    assert runs.world.dispatched() >= overall


@cases
def test_a_run_without_limits_joins_one_that_knows_them(server: str, seed: int, full: bool, tmp_path: Path) -> None:
    """Five requests a minute, less than what the other sends, would have it wait until that one ends."""
    count = 3000 if full else 1500
    runs = Together(World(server, 300, 1_000_000, seed=seed))
    parts = list(split(documents(runs.world, small(count, 100, seed)), (count - 300, 300)))
    runs.run(parts, (0.0, 65.0), tmp_path / "book", unset=1, rpm=300, tpm=1_000_000)
    assert runs.part(1, 65.0, 185.0) > 0.2
    assert len(runs.world.refused) <= 6
    assert runs.world.dispatched() >= 0.95


@cases
def test_two_runs_share_one_quota(server: str, seed: int, full: bool, tmp_path: Path) -> None:
    """Both meters bind alike; one run with the same prompts has .93 to .95: it takes the largest first."""
    runs = Together(World(server, 600, 300_000, seed=seed))
    prompts = documents(runs.world, lognormal(3000, 500, seed))
    runs.run(list(split(prompts, (2000, 1000))), (0.0, 65.0), tmp_path / "book", rpm=600, tpm=300_000)
    assert runs.world.refused == []
    assert runs.use(65.0, min(runs.last.values())) >= 0.97
    assert runs.world.dispatched() >= 0.88


@cases_of("binds", {"requests": ("requests",), "tokens": ("tokens",)})
def test_each_of_two_runs_gets_its_part(server: str, seed: int, full: bool, tmp_path: Path, binds: str) -> None:
    """Also the second, that needs a larger margin at first and does not know the server's minute."""
    rpm, tpm = (600, 10_000_000) if binds == "requests" else (6000, 300_000)
    runs = Together(World(server, rpm, tpm, seed=seed))
    prompts = documents(runs.world, lognormal(3000, 500, seed))
    runs.run(list(split(prompts, (1800, 1200))), (0.0, 65.0), tmp_path / "book", rpm=rpm, tpm=tpm)
    assert runs.part(1, 65.0, 245.0) >= 0.35
    assert runs.part(0, 65.0, 245.0) >= 0.35


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "book"


@pytest.fixture
def wall() -> Clock:
    """At the loop's 0."""
    return Clock(1000.0)


def sharing(book: QuotaBook, wall: Clock) -> tuple[Sharing, TokenLedger]:
    """A run that begins now and may send 1,000 tokens a minute."""
    ledger = TokenLedger(1000.0, MinutePhase())
    one = Sharing(book, wall, ledger)
    one.news(0.0)
    return one, ledger


def test_what_others_send_is_charged_when_it_left_and_corrected_when_it_is_settled(path: Path, wall: Clock) -> None:
    with QuotaBook(path, "m") as book, QuotaBook(path, "m") as other:
        one, ledger = sharing(book, wall)
        entries = [other.send(1000.0, 300, DAY), other.send(1001.0, 200, DAY)]
        wall.now = 1002.0
        assert one.news(2.0) == [0.0, 1.0]
        assert ledger.last_minute(2.0) == (2, 500)
        other.settle(entries[0], 250)
        other.flush()
        other.refund(entries[1])
        wall.now = 1003.0
        assert one.news(3.0) == []
        assert ledger.last_minute(3.0)[1] == 250
        assert ledger.last_minute(60.2)[1] == 250
        assert ledger.last_minute(60.4)[1] == 0, "by when it left, not by when it was heard of"


def test_a_run_is_counted_until_it_has_been_silent_for_long(path: Path, wall: Clock) -> None:
    with QuotaBook(path, "m") as book, QuotaBook(path, "m") as other:
        one, _ = sharing(book, wall)
        assert one.runs(0.0) == 1
        other.send(1000.0, 1, DAY)
        one.news(0.1)
        assert one.runs(SHARER_S - 0.1) == 2
        assert one.runs(SHARER_S + 0.1) == 1


def test_a_run_that_was_killed_shares_no_longer_and_one_that_only_asked_does(path: Path, wall: Clock) -> None:
    code = (
        "import time\nfrom pathlib import Path\nfrom pipeline.quota.book import QuotaBook\n"
        f"book = QuotaBook(Path({str(path)!r}), 'm')\nbook.send(1000.0, 70, {DAY!r})\nbook.ask(1000.0, 5)\n"
        "print('sent', flush=True)\ntime.sleep(60)\n"
    )
    with QuotaBook(path, "m") as book, QuotaBook(path, "m") as poor:
        one, ledger = sharing(book, wall)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as killed:
            assert killed.stdout is not None and killed.stdout.readline() == "sent\n"
            poor.ask(1000.0, 5)
            one.news(0.0)
            one.news(1.0)
            assert one.runs(1.0) == 3
            killed.kill()
        one.news(2.0)
        assert one.runs(2.0) == 2
        assert ledger.last_minute(2.0)[1] == 70, "what it sent counts all the same"


def test_who_has_had_little_asks_and_who_has_had_much_leaves_room(path: Path, wall: Clock) -> None:
    with QuotaBook(path, "m") as rich_book, QuotaBook(path, "m") as poor_book:
        rich, rich_ledger = sharing(rich_book, wall)
        rich_ledger.settle(rich_ledger.reserve(0.0, 900), None)
        rich_book.send(1000.0, 900, DAY)
        poor, poor_ledger = sharing(poor_book, wall)
        assert poor_ledger.last_minute(0.0)[1] == 900
        assert rich.room(0.0) == inf
        poor.ask(1.0, 150, EXACT)
        rich.news(1.0)
        assert rich.room(1.0) == -50, "150 of 1000 are to fit besides"
        assert poor.room(1.0) == inf
        wall.now += ASKED_FOR_S
        assert rich.room(1.0 + ASKED_FOR_S) == inf, "who asked may have been killed"
        rich.ask(4.0, 150, EXACT)
        poor.news(4.0)
        assert poor.room(4.0) == inf, "who has had much is not heard"
