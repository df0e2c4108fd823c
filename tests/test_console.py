"""Words and numbers on the screen."""

import re
import time
from collections import Counter
from decimal import Decimal
from types import SimpleNamespace
from typing import cast

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text
from vclock import run

from pipeline.batch.desk import BatchDesk, Standing
from pipeline.calls import Saved
from pipeline.console import count, duration, money, notice, progress_line, show_columns, show_grid, things
from pipeline.console.progress import QUIET_S, Recent, fitting_line, stopping_line, watch
from pipeline.console.reports import seconds, show_accuracy
from pipeline.console.screen import Screen, folded
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.events import DayUsedUp, LimitSet, LongWait, Outage, QuotaShared, RequestsLost, Stopped, TargetLeftOut
from pipeline.records import Status, Step
from pipeline.report.accuracy import Accuracy, Amounts
from pipeline.run.engine import Monitor


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "$0.00"), (Decimal("14.434"), "$14.43"), (1234.5, "$1,234.50"), (0.0495, "$0.0495"), (0.000012, "$0.000012")],
)
def test_money_has_the_places_that_a_small_amount_needs(amount: float, text: str) -> None:
    assert money(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (12, "12 s"),
        (99, "99 s"),
        (2052, "34 min"),
        (5 * 3600 + 720, "5 h 12 min"),
        (7200, "2 h"),
        (51 * 3600, "2 d 3 h"),
        (96 * 3600, "4 d"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_latencies_are_said_without_an_exponent() -> None:
    said = [seconds(value) for value in (0.0, 1e-6, 0.001, 0.00914, 0.744, 2.04, 9.96, 61.7)]
    assert said == [*["under 0.001 s"] * 2, "0.001 s", "0.0091 s", "0.74 s", "2 s", "10 s", "62 s"]


def test_large_counts_are_short() -> None:
    assert (count(17_902), count(48_100_000)) == ("17,902", "48.1 M")


MOSTLY_WELL = Counter[Status]({"ok": 98_500, "error": 500})


def test_one_thing_is_said_as_one() -> None:
    assert (things(1, "row"), things(0, "row"), things(2500, "call")) == ("1 row", "0 rows", "2,500 calls")


def test_progress_shows_calls_rows_cost_and_failures() -> None:
    outcomes = Counter[Status]({"ok": 30, "blocked": 2})
    monitor = Monitor(rows=100, prompts=200, outcomes=outcomes, calls=50, cost_usd=Decimal("1.25"), answered=32)
    line = progress_line(monitor, bar=True)
    assert line.startswith("50/200 calls  25%  ▕██        ▏  32 rows")
    assert "$1.25" in line and "2 not ok" in line and "eta" in line
    assert len(line) <= 80


def test_progress_names_the_lanes_where_they_are_not_all_the_usual_one() -> None:
    monitor = Monitor(rows=100, prompts=200, calls=50)
    monitor.lanes.update({"standard": 50})
    assert "standard" not in progress_line(monitor, bar=False)
    monitor.lanes.update({"standard": -10, "flex": 8, "batch": 2})
    assert "  batch 4% flex 16%  " in progress_line(monitor, bar=False)


@pytest.mark.parametrize(("width", "shown"), [(58, "2 batches out: 1,995 calls"), (118, "oldest 65 min  last call ")])
def test_progress_tells_of_batches_and_nothing_of_it_is_cut(width: int, shown: str) -> None:
    now = time.time()
    monitor = Monitor(rows=2_000, prompts=2_000, calls=5)
    standing = Standing(2, 1_995, now - 3_900, 0, now + 15, now + 3_600)
    monitor.batches = cast(BatchDesk, SimpleNamespace(standing=standing))
    line = fitting_line(monitor, width)
    assert shown in line and len(line) <= width and ("oldest" in line) == (width > 58)


def test_progress_fits_the_line_without_its_bar() -> None:
    monitor = Monitor(rows=100_000, prompts=200_000, outcomes=MOSTLY_WELL, calls=150_000)
    with_bar, without = (progress_line(monitor, bar=bar) for bar in (True, False))
    assert "▕" in with_bar and "▕" not in without and "eta" in without
    assert fitting_line(monitor, len(with_bar)) == with_bar
    assert fitting_line(monitor, len(with_bar) - 1) == without


@pytest.mark.parametrize("width", [48, 58, 78])
def test_what_a_narrow_terminal_must_show_is_shown(width: int) -> None:
    monitor = Monitor(rows=100_000, prompts=200_000, outcomes=MOSTLY_WELL, calls=150_000)
    monitor.desk = cast(Dispatcher, SimpleNamespace(use=(0.97, 0.5), rate_limited=12, waits_until=0, in_flight=40))
    line = fitting_line(monitor, width)
    assert "150,000/200,000 calls" in line and len(line) <= width
    monitor.stopping = True
    assert "Ctrl-C again" in stopping_line(monitor, 58) and len(stopping_line(monitor, 58)) <= 58


@pytest.mark.case("S3")
def test_while_everything_waits_the_line_says_until_when_instead_of_the_time_left() -> None:
    monitor = Monitor(rows=10, prompts=20, calls=5, answered=5)
    assert "eta" in progress_line(monitor, bar=False)
    monitor.desk = cast(Dispatcher, SimpleNamespace(use=(0.0, 0.0), rate_limited=0, waits_until=4_102_448_402.0))
    line = progress_line(monitor, bar=False)
    assert line.endswith("waits until 01:00:02 UTC") and "eta" not in line
    text = "the service asks to wait until 14:02 UTC (HTTP 503)"
    assert notice(LongWait(text, 1.0)) == text


def test_a_log_says_that_a_stopped_run_waits_and_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(rows=10, prompts=20, calls=5, answered=5, stopping=True)
    monitor.desk = cast(Dispatcher, SimpleNamespace(use=(0.0, 0.0), rate_limited=0, waits_until=0, in_flight=4))

    async def main() -> None:
        with anyio.move_on_after(QUIET_S + 1.0):
            await watch(monitor)

    run(main)
    assert capsys.readouterr().err.splitlines() == ["stopping: waiting for 4 replies (Ctrl-C again to abandon them)"]


def test_a_log_says_once_that_everything_waits_and_again_when_something_changes_or_after_an_hour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.console.progress.time.time", anyio.current_time)
    monitor = Monitor(rows=10, prompts=10, calls=2)

    class Waiting:
        rate_limited, in_flight, waits_until = 0, 0, 1e6

        @property
        def use(self) -> tuple[float, float]:
            return max(0.0, 1 - anyio.current_time() / 60), 0.0  # the minute passes

    monitor.desk = cast(Dispatcher, Waiting())

    def said(hours: float) -> list[str]:
        async def main() -> None:
            with anyio.move_on_after(hours * 3600 + 1):
                await watch(monitor)

        run(main)
        return capsys.readouterr().err.splitlines()

    assert said(0.9) == ["2/10 calls  20%  0 rows  $0.00  waits until 13:46:40 UTC"]
    assert len(said(3.1)) == 4
    monitor.desk = cast(Dispatcher, SimpleNamespace(use=(0.0, 0.0), rate_limited=0, waits_until=None))
    assert len(said(0.1)) == 24, "a sign of life, while it works"


def test_progress_counts_calls_that_need_not_be_made() -> None:
    line = progress_line(Monitor(rows=10, prompts=20, calls=5, saved=Saved(identical=3, cached=2)), bar=False)
    assert line.startswith("10/20 calls  50%")


def test_progress_of_a_plan_that_was_too_small_never_passes_100_percent() -> None:
    line = progress_line(Monitor(rows=10, prompts=10, calls=12), bar=False)
    assert line.startswith("12/12 calls 100%")


def test_calls_that_no_plan_foresaw_are_no_progress_and_as_many_more_are_to_come() -> None:
    """20 packs of 40 are back, and 30 of their rows were asked once more: half of it is done."""
    made: Counter[Step] = Counter({"pack": 20, "retry": 30})
    monitor = Monitor(
        rows=400, prompts=40, planned={"pack": 40}, calls=50, made=made, started_at=time.monotonic() - 100
    )
    line = progress_line(monitor, bar=False)
    assert line.startswith("50/100 calls  50%") and "eta" in line


def test_the_time_left_goes_by_the_pace_of_the_last_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred slow seconds at the start are soon forgotten; without answers there is no time to tell."""
    monitor, recent, now = Monitor(rows=2000, prompts=2000, started_at=0.0), Recent(), 0.0
    monkeypatch.setattr("pipeline.run.engine.time.monotonic", lambda: now)

    def after(seconds: int, a_second: int) -> str:
        nonlocal now
        for _ in range(seconds):
            now, monitor.calls, since = now + 1.0, monitor.calls + a_second, recent.since(monitor)
        return progress_line(monitor, bar=False, since=since)

    assert "eta" not in after(100, 0)
    assert after(10, 1).endswith("eta 6 h 5 min"), "the first minutes count in full"
    assert after(125, 5).endswith("eta 5 min")
    assert "eta" not in after(121, 0)


def test_every_event_has_words() -> None:
    learned = notice(LimitSet("requests", 1500, "learned"))
    assert "(learned; " in learned and "--forget" in learned and len(learned) < 80
    assumed = notice(LimitSet("tokens", 250_000, "assumed"))
    assert "(assumed; " in assumed and "grows" in assumed and len(assumed) < 80
    assert notice(LimitSet("requests", 1500, "measured")) == ("limit: 1,500 requests a minute (measured)")
    assert notice(LimitSet("requests", 1, "measured")) == ("limit: 1 request a minute (measured)")
    assert notice(QuotaShared(2)) == "2 runs on this machine share this quota, this one included"
    assert "no other run" in notice(QuotaShared(1))
    assert notice(RequestsLost(8, Decimal("0.0142"))) == (
        "the last session ended with 8 request(s) in flight: they may have cost up to $0.0142 and are sent again"
    )
    assert "unknown sum" in notice(RequestsLost(8, None))
    assert "cost" not in notice(RequestsLost(8, Decimal(0)))
    assert notice(Outage("overloaded")) == "outage: overloaded"
    assert notice(Outage("overloaded", target="备用")) == "备用: outage: overloaded"
    assert notice(TargetLeftOut("its key expired", target="free")) == "free is left out: its key expired"
    assert notice(DayUsedUp("The day's quota is used up.", 0.0)) == "The day's quota is used up."
    assert notice(Stopped("told at the end")) == ""


@pytest.mark.parametrize(
    ("estimated_s", "actual_s", "said"),
    [(5.0, 1.2, "5 s → 1 s"), (2.1, 1.9, "as said"), (100.0, 120.0, "+20.0%"), (5.0, 120.0, "+2300%")],
)
def test_short_times_are_told_as_they_are(
    capsys: pytest.CaptureFixture[str], estimated_s: float, actual_s: float, said: str
) -> None:
    known = {"answer": Amounts(3, 100, 50, Decimal(1)), "total": Amounts(3, 100, 50, Decimal(1))}
    show_accuracy(Accuracy(known, known, estimated_s, actual_s, ""))
    assert capsys.readouterr().out.splitlines()[1].split("as said", 4)[-1].strip() == said


# ---- long lines on a terminal


WORDS = st.lists(st.one_of(st.text("ab客`", min_size=1, max_size=9), st.just("`pipeline check JOB`")), max_size=12)


@given(WORDS, st.integers(8, 40), st.integers(0, 6))
def test_a_line_is_folded_between_words_and_never_in_a_command(words: list[str], width: int, indent: int) -> None:
    line = " ".join(words)
    lines = folded(Text(line), width, indent).plain.split("\n")
    assert " ".join(each.strip(" ") for each in lines) == line.strip(" "), "not a character is lost"
    assert all(each.startswith(" " * indent) for each in lines[1:])
    for each in lines:
        assert cell_len(each) <= width or " " not in each.strip(" ") or "`" in each
    if line.count("`") == 2 * line.count("`pipeline check JOB`"):
        assert all(each.count("`") % 2 == 0 for each in lines)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of 60 columns."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed, without its colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()


def test_remarks_are_folded_beside_their_values_or_below_them(
    narrow: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    show_columns(narrow, [("rows", "13", "of them seven that are cut into pieces, and two that are empty")])
    assert lines_of(capsys) == [
        "  rows  13   of them seven that are cut into pieces, and two",
        "             that are empty",
    ]
    show_columns(narrow, [("rows", "13", "samples/licences.parquet"), ("model", "gemini-3.5-flash-lite", "offered")])
    assert lines_of(capsys) == [
        "  rows   13                      samples/licences.parquet",
        "  model  gemini-3.5-flash-lite   offered",
    ]
    show_columns(narrow, [("endpoint", "gemini@generativelanguage", "a/longer/path/to/the/licences.parquet")])
    assert lines_of(capsys) == [
        "  endpoint  gemini@generativelanguage",
        "            a/longer/path/to/the/licences.parquet",
    ]


def test_a_table_that_is_too_wide_is_told_cell_by_cell(narrow: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [("7", "error", "no answer in time, for five attempts; twice refused")]
    show_grid(("row", "status", "what happened"), lines, narrow)
    assert lines_of(capsys) == [
        "row  status  what happened",
        "  7  error   no answer in time, for five attempts; twice",
        "             refused",
    ]
    show_grid(("run", "status", "", "cost"), [("runs/" + "x" * 40, "finished", "offline", "$0.00")], narrow)
    assert lines_of(capsys) == [
        "run",
        "runs/" + "x" * 40,
        "  status finished   offline   cost $0.00",
    ]
    wide = ("n", *(f"column {number}" for number in range(8)))
    show_grid(wide, [("1", *("100" for _ in wide[1:])), ("2", *("" for _ in wide[1:]))], narrow)
    assert max(map(len, told := lines_of(capsys))) <= 60
    assert told[0] == "n 1" and told[1].startswith("  column 0 100   column 1 100")


def test_nothing_is_folded_on_its_way_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().print("word " * 40)
    show_grid(("run", "what"), [("x" * 100, "word " * 40)], Screen())
    assert len(capsys.readouterr().out.splitlines()) == 3
