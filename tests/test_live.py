"""How a run is shown while it goes on: the block, the lines, and both for a run of another process."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import orjson
import pytest
from commands import Ran
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from vclock import run

from pipeline.calls import Saved
from pipeline.console import watch
from pipeline.console.live import LINES_S, block, ended, flowing, line, news, shortened
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.quota.standing import Meter, QuotaStanding
from pipeline.records import Step
from pipeline.run import status as statuses
from pipeline.run.engine import Monitor
from pipeline.run.status import Mark, Recent, Status, status_of
from pipeline.store.manifest import Lock

NOW_S = 1_796_000_000.0
QUOTA = QuotaStanding("main", Meter(329, 350, True), Meter(400_000, 1_000_000, False), None, 41, 64, "requests", None)
WORKING = Status(
    NOW_S,
    NOW_S - 1_260.0,
    6_000,
    2_101,
    6_310,
    17_902,
    outcomes={"ok": 2_089, "truncated": 8, "blocked": 4},
    failures={"truncated": 8, "prompt_blocked": 4},
    in_flight=41,
    waiting=1_204,
    refused=3,
    quotas=(QUOTA,),
    lanes={"standard": 3_786, "flex": 2_524},
    cost_usd=8.91,
    projected_usd=25.1,
    cap_usd=30.0,
    left_usd=21.09,
    calls_per_min=331.2,
    eta_s=2_100.0,
)
LAST = (7, "合同-0007", "这份合同规定了双方的义务。\nmore")
ASLEEP = replace(
    WORKING, in_flight=0, eta_s=None, calls_per_min=None, waits_for="day_quota", waits_until_s=NOW_S + 29_520.0
)

SHOWN = {
    60: """\
6,310/17,902 calls 35%   ▕███       ▏   2,101 of 6,000 rows
331 calls a minute   rpm 94% of 350 binds
  tpm 40% of 1,000,000 (learned)   41 in flight, 1,204 wait
$8.91   about $25.10 in all   budget $30.00, $21.09 left
  flex 40%   standard 60%
12 not ok   8 truncated   4 prompt_blocked
  3 refused for quota
eta 35 min
last: 合同-0007: 这份合同规定了双方的义务。""",
    80: """\
6,310/17,902 calls 35%   ▕███       ▏   2,101 of 6,000 rows
331 calls a minute   rpm 94% of 350 binds   tpm 40% of 1,000,000 (learned)
  41 in flight, 1,204 wait
$8.91   about $25.10 in all   budget $30.00, $21.09 left   flex 40%
  standard 60%
12 not ok   8 truncated   4 prompt_blocked   3 refused for quota
eta 35 min
last: 合同-0007: 这份合同规定了双方的义务。""",
    120: """\
6,310/17,902 calls 35%   ▕███       ▏   2,101 of 6,000 rows
331 calls a minute   rpm 94% of 350 binds   tpm 40% of 1,000,000 (learned)   41 in flight, 1,204 wait
$8.91   about $25.10 in all   budget $30.00, $21.09 left   flex 40%   standard 60%
12 not ok   8 truncated   4 prompt_blocked   3 refused for quota
eta 35 min
last: 合同-0007: 这份合同规定了双方的义务。""",
}


def test_in_the_first_minute_calls_are_counted_as_the_quota_beside_them_counts() -> None:
    rpm = Meter(13, 60, told=True)
    quota = QuotaStanding("m", rpm, None, None, 0, 8, "", None)
    begun = Status(at_s=NOW_S, started_at_s=NOW_S - 15, rows=40, rows_done=13, calls=13, calls_planned=40)
    begun = replace(begun, quotas=(quota,), calls_per_min=52.0)
    assert "13 calls in 15 s   rpm 22% of 60" in "\n".join(block(begun, 80))
    later = replace(begun, started_at_s=NOW_S - 61)
    assert "52 calls a minute   rpm 22% of 60" in "\n".join(block(later, 80))


@pytest.mark.parametrize("width", SHOWN)
def test_the_block_fits_and_says_all_of_it(width: int) -> None:
    assert "\n".join(block(WORKING, width, LAST)) == SHOWN[width]


def test_rows_that_an_earlier_session_left_not_ok_are_told_from_those_with_a_cause_of_this_one() -> None:
    one = replace(WORKING, failures={"prompt_blocked": 1})
    assert "12 not ok   1 prompt_blocked   11 of earlier sessions   3 refused for quota" in block(one, 120)


@pytest.mark.case("S3")
def test_while_it_waits_the_block_says_until_when_and_why_and_no_time_left() -> None:
    shown = block(ASLEEP, 78)
    assert shown[-1] == "waits until 09:05:20 UTC (8 h 12 min)   the day's quota is used up"
    assert not any("eta" in each for each in shown)


def test_the_block_says_what_is_alarming_as_long_as_it_lasts() -> None:
    alarming = replace(
        WORKING, alerts={"errors": "7.2% of the last 1,000 rows failed: 60 server, 12 prompt_blocked", "x": "x"}
    )
    assert block(alarming, 60)[-3:] == [
        "eta 35 min",
        "alert: 7.2% of the last 1,000 rows failed: 60 server, 12…",
        "  alert: x",
    ]
    assert "alert" not in "".join(block(WORKING, 60))


def test_the_block_tells_of_batches_and_of_no_end_that_nobody_knows() -> None:
    standing = replace(WORKING, batches_out=2, batch_lines=1_995, oldest_batch_at_s=NOW_S - 3_900)
    out = replace(standing, last_call_at_s=NOW_S + 3_600, waits_for="batches", eta_s=None, no_eta="nobody knows")
    assert block(out, 80)[-1] == "2 batches out: 1,995 calls   oldest 65 min   last call 01:53:20 UTC"


def test_a_stopping_run_says_what_it_waits_for() -> None:
    assert block(replace(WORKING, stopping=True, in_flight=1), 60) == [
        "stopping: 1 reply to come (Ctrl-C again: abandon)"
    ]


@given(st.lists(st.text("ab 合é", min_size=1, max_size=90), max_size=8), st.sampled_from([60, 80, 120]))
def test_no_line_is_wider_than_the_screen(parts: list[str], width: int) -> None:
    assert all(cell_len(each) <= width for each in flowing(parts, width))


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("short", 5, "short"),
        ("one two three", 9, "one two…"),
        ("onetwothree", 6, "onetw…"),
        ("这份合同规定了", 8, "这份合…"),
    ],
)
def test_a_text_is_cut_between_words(text: str, width: int, short: str) -> None:
    assert shortened(text, width) == short


def test_what_others_wrote_is_only_text() -> None:
    shown = block(WORKING, 80, (1, "a\x1b[31m\nb", "\x1b]0;title\x07 answer"))[-1]
    assert "\x1b" not in shown and "\n" not in shown


def test_a_line_says_the_same_without_what_only_moves() -> None:
    assert line(WORKING) == "6,310/17,902 calls 35%  2,101 of 6,000 rows  $8.91  12 not ok  eta 35 min"


def test_calls_that_the_cache_answers_count_as_done_and_those_that_repeat_another_were_never_planned() -> None:
    monitor = Monitor(rows=10, prompts=20, calls=5, saved=Saved(identical=9, cached=2))
    assert line(status_of(monitor, Mark(), NOW_S)).startswith("7/20 calls 35%")


def test_a_plan_that_was_too_small_never_passes_100_percent() -> None:
    assert line(status_of(Monitor(rows=10, prompts=10, calls=12), Mark(), NOW_S)).startswith("12/12 calls 100%")


def test_calls_that_no_plan_foresaw_are_no_progress_and_as_many_more_are_to_come() -> None:
    """20 packs of 40 are back, and 30 of their rows were asked once more: half of it is done."""
    made: Counter[Step] = Counter({"pack": 20, "retry": 30})
    began = time.monotonic() - 100
    monitor = Monitor(rows=400, prompts=40, planned={"pack": 40}, calls=50, made=made, started_at=began)
    shown = line(status_of(monitor, Mark(), NOW_S))
    assert shown.startswith("50/100 calls 50%") and "eta" in shown


def test_the_time_left_forgets_the_slow_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred slow seconds at the start are soon forgotten; without answers there is no time to tell."""
    monitor, recent, now = Monitor(rows=2000, prompts=2000, started_at=0.0), Recent(), 0.0
    monkeypatch.setattr("pipeline.run.engine.time.monotonic", lambda: now)

    def after(seconds: int, a_second: int) -> str:
        nonlocal now
        for _ in range(seconds):
            now, monitor.calls, since = now + 1.0, monitor.calls + a_second, recent.since(monitor)
        return line(status_of(monitor, since, NOW_S))

    assert "no eta: too few answers" in after(100, 0)
    assert after(10, 1).endswith("  eta 6 h 5 min"), "the first minutes count in full"
    assert after(125, 5).endswith("  eta 5 min")
    assert "no eta: too few answers" in after(121, 0)


# ---- lines, where no block can be drawn


def said(monitor: Monitor, seconds: float, capsys: pytest.CaptureFixture[str]) -> list[str]:
    async def main() -> None:
        with anyio.move_on_after(seconds):
            await watch(monitor)

    run(main)
    return capsys.readouterr().err.splitlines()


def test_a_log_says_once_that_everything_waits_and_again_when_something_changes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", anyio.current_time)
    monitor = Monitor(rows=10, prompts=10, calls=2)
    told = {"rate_limited": 0, "in_flight": 0, "ready": 8, "waits_until": 1e6, "standing": (QUOTA,)}
    monitor.desk = cast(Dispatcher, SimpleNamespace(**told))
    assert said(monitor, 20 * 3_600, capsys) == [
        "00:00:15 UTC  2/10 calls 20%  0 of 10 rows  $0.00  waits until 1970-01-12 13:46 UTC (11 d 13 h)"
        "  for the minute's quota, or as the service asked"
    ]
    monitor.calls = 3
    assert len(said(monitor, 3_600, capsys)) == 1


def test_a_log_says_that_a_stopped_run_waits_and_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(rows=10, prompts=20, calls=5, answered=5, stopping=True)
    told = {"rate_limited": 0, "in_flight": 4, "ready": 0, "waits_until": None, "standing": ()}
    monitor.desk = cast(Dispatcher, SimpleNamespace(**told))
    (only,) = said(monitor, LINES_S + 1.0, capsys)
    assert re.fullmatch(r"\d\d:\d\d:\d\d UTC  stopping: 4 replies to come \(Ctrl-C again: abandon\)", only)


# ---- a run of another process


@pytest.fixture
def going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "runs" / "docs"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    write(directory, ASLEEP)
    return directory


def write(directory: Path, status: Status) -> None:
    (directory / statuses.NAME).write_bytes(orjson.dumps(asdict(status)))


Cli = Callable[..., Ran]


@pytest.mark.parametrize("named", [[], ["docs"], ["docs.toml"], ["runs/docs"]])
def test_watch_prints_how_a_run_stands_once(going_on: Path, cli: Cli, named: list[str]) -> None:
    lock = Lock(going_on / "lock")
    told: dict[str, Any] = cli("watch", *named, "--json").json
    lock.release()
    assert (told["state"], told["waits_for"], told["rows_done"]) == ("running", "day_quota", 2_101)
    assert told["waits_until"] == "2026-11-30T09:05:20+00:00" and told["quotas"][0]["rpm"]["limit"] == 350


def test_watch_is_of_the_run_that_goes_on_and_says_where_nothing_tells_how_it_stands(going_on: Path, cli: Cli) -> None:
    assert "killed after 2,101 of 6,000 rows" in cli("watch").err
    (going_on / statuses.NAME).unlink()
    assert "does not tell how its run stands" in cli("watch", "docs").err


def test_watch_ends_with_the_run_and_says_how(going_on: Path, cli: Cli) -> None:
    reason = "the day's quota of this project and model is used up"
    write(going_on, replace(WORKING, state="stopped", reason=reason, exit_code=3, goes_on_at_s=NOW_S + 60))
    ran = cli("watch", "docs")
    assert ran.code == 0 and "stopped after 2,101 of 6,000 rows, $8.91, exit code 3" in ran.err
    assert reason in ran.err and "the same command goes on from 00:54:20 UTC" in ran.err


def test_of_a_killed_run_watch_says_so(going_on: Path, cli: Cli) -> None:
    told = cli("watch", "docs").err
    assert "killed after 2,101 of 6,000 rows, $8.91\n" in told and "`pipeline report` counts it" in told
    assert ended(replace(WORKING, rows=1, rows_done=1, state="finished", exit_code=0)) == [
        "finished after 1 of 1 row, $8.91, exit code 0"
    ]


@pytest.mark.parametrize("dumb", [False, True])
def test_watch_draws_a_block_on_a_terminal_and_lines_on_a_dumb_one(going_on: Path, dumb: bool) -> None:
    lock = Lock(going_on / "lock")
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "dumb" if dumb else "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    watching = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "watch", "docs"],
        cwd=going_on.parent.parent,
        env=environment,
        stderr=follower,
        stdout=subprocess.DEVNULL,
    )
    os.close(follower)
    shown = b""
    try:
        while b"quota is used up" not in shown:
            shown += os.read(leader, 65_536)
        with (going_on / "run.log").open("a") as log:
            log.write(json.dumps({"event": "outage", "message": "HTTP 503"}) + "\n")
        while b"HTTP 503" not in shown:
            shown += os.read(leader, 65_536)
        lock.release()
        while b"killed after" not in shown:
            shown += os.read(leader, 65_536)
        assert watching.wait(20) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(leader)
    assert (b"\x1b[2K" in shown or b"\x1b[1A" in shown) is not dumb
    assert (b"UTC  6,310/17,902 calls 35%" in shown) is dumb


@pytest.mark.parametrize(
    ("logged", "told"),
    [
        ({"event": "outage", "message": "HTTP 503", "target": "main"}, "main: outage: HTTP 503"),
        ({"event": "day", "message": "the day's quota is used up"}, "the day's quota is used up"),
        ({"event": "halt", "message": "the budget"}, ""),
        ({"event": "progress", "calls": 3}, ""),
        (["event"], ""),
    ],
)
def test_of_the_log_only_what_a_person_should_know_is_news(logged: object, told: str) -> None:
    assert news(json.dumps(logged).encode()) == told
    assert news(b'{"event": "da') == ""


def test_what_is_spent_and_left_is_said_of_the_nearest_cap() -> None:
    from pipeline.budget.caps import Spending

    monitor = Monitor(rows=10, prompts=20, calls=10, cost_usd=Decimal(3), began_usd=Decimal(1))
    monitor.spending = Spending(Decimal(5), Decimal(3))
    told = status_of(monitor, Mark(), NOW_S)
    assert (told.cap_usd, told.left_usd, told.projected_usd) == (5.0, 2.0, 5.0)
