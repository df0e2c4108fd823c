"""Words and numbers on the screen."""

import os
import re
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text
from stores import manifest

from pipeline.console import count, duration, money, notice, show_columns, show_grid, things
from pipeline.console.failures import show_causes
from pipeline.console.reports import seconds, show_accuracy
from pipeline.console.screen import Screen, folded
from pipeline.events import DayUsedUp, LimitSet, Outage, QuotaShared, RequestsLost, Stopped, TargetLeftOut
from pipeline.language import Data
from pipeline.records import Status
from pipeline.report.accuracy import Accuracy, Amounts
from pipeline.report.causes import Cause


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
    assert "".join(lines).replace(" ", "") == line.replace(" ", ""), "not a character is lost"
    assert all(each.startswith(" " * indent) for each in lines[1:])
    for each in lines:
        assert cell_len(each) <= width or not re.search(r"\S[ 客]|客\S", each.strip(" ")) or "`" in each
    if line.count("`") == 2 * line.count("`pipeline check JOB`"):
        assert all(each.count("`") % 2 == 0 for each in lines)


def test_chinese_is_folded_between_characters_and_no_line_begins_with_its_punctuation() -> None:
    text = Text("用量按《估算》计：`pipeline check JOB` 会说明，共 12,345 个请求（其中 3 个失败）。")
    assert folded(text, 20, 2).plain.split("\n") == [
        "用量按《估算》计：",
        "  `pipeline check JOB`",
        "  会说明，共 12,345",
        "  个请求（其中 3 个",
        "  失败）。",
    ]


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


def test_a_long_path_moves_no_other_remark(narrow: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"/home/somebody/.cache/{'x' * 30}"
    show_columns(narrow, [("rows", "13 ok", "7 not reached"), ("run", Data(path), "a copy of s3://bucket/runs")])
    assert lines_of(capsys)[0] == "  rows  13 ok   7 not reached"


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


def test_what_helps_stands_below_its_cause_where_there_is_no_room_beside_it(
    narrow: Screen, capsys: pytest.CaptureFixture[str]
) -> None:
    of = manifest(offline=False, identity={"model": {"max_output_tokens": 50}})
    show_causes([Cause("truncated", 1_176, Decimal(1)), Cause("answer_blocked", 9, Decimal(0))], of, narrow)
    assert lines_of(capsys) == [
        "  truncated  1,176",
        "    `pipeline run jobs/notes.toml --retry truncated --set max_output_tokens=100`",
        "    costs at most about $2.00",
        "  answer_blocked  9",
        "    a `[[target]]` with another model may answer: `fallback`",
    ]
    show_causes([Cause("too_long", 3, Decimal(0))], of, narrow)
    assert lines_of(capsys) == ["  cause     rows  what helps", "  too_long     3  `[chunk]` cuts long texts"]


def test_nothing_is_folded_on_its_way_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().print("word " * 40)
    show_grid(("run", "what"), [("x" * 100, "word " * 40)], Screen())
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_dumb_terminal_is_as_wide_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda stream: os.terminal_size((40, 24)))
    Screen().print("the request quota of the day is used up: it opens again at midnight")
    assert lines_of(capsys) == ["the request quota of the day is used up:", "  it opens again at midnight"]
    monkeypatch.setenv("COLUMNS", "30")
    assert Screen().width == 30


def test_what_goes_on_with_a_run_says_where_its_workers_were() -> None:
    ran = manifest(workers=8, on_ray=True)
    assert ran.again() == "pipeline run jobs/notes.toml --offline --on ray --workers 8"
    assert replace(ran, job_path="notes").again() == "pp.run(job, offline=True, on='ray', workers=8)"
