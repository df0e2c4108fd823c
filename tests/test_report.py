import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from asking import MODEL
from commands import UNLIMITED, Ran, small_job
from stores import CENT, answer, failed, killed, manifest, opened, paid, prompt, result

from pipeline.console.failures import show_failures
from pipeline.console.reports import show_standing, show_summary
from pipeline.errors import RunStateError
from pipeline.events import SessionEnded, SessionStarted
from pipeline.records import Usage
from pipeline.report import Failure, failures, summarize
from pipeline.report.calls import frames
from pipeline.report.causes import CAUSE_KEYS, Cause, cure_of
from pipeline.report.finding import every, find_run, in_use, newest
from pipeline.run.status import Status as RunStatus
from pipeline.store.manifest import read as read_manifest
from pipeline.store.manifest import write
from pipeline.store.run import RunStore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "notes"


def log(directory: Path, *events: dict[str, object]) -> Path:
    """A run directory that has nothing but a manifest and these events."""
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / "manifest.json", manifest())
    lines = [orjson.dumps({"at": "2026-11-22T20:00:00Z", **event}) for event in events]
    (directory / "run.log").write_bytes(b"".join(line + b"\n" for line in lines))
    return directory


REDO = "`pipeline run jobs/notes.toml --offline --retry truncated`"
TRY = "may pass by itself: `pipeline run jobs/notes.toml --offline` tries again"


def start(rows: int = 10) -> dict[str, object]:
    return {"event": "start", "rows": rows, "pid": 1}


def progress(seconds: float) -> dict[str, object]:
    return {"event": "progress", "seconds": seconds, "rows_done": 1}


def end(seconds: float, status: str = "finished") -> dict[str, object]:
    return {"event": "end", "status": status, "seconds": seconds, "reason": ""}


# ---- sums


def test_a_run_directory_without_calls_is_all_zeros(directory: Path) -> None:
    with opened(directory):
        pass
    summary = summarize(directory)
    assert (summary.rows, summary.done, summary.calls, summary.attempts, summary.cost_usd) == (0, 0, 0, 0, Decimal(0))
    assert (summary.usage, summary.calls_by_step) == (Usage(), {})
    assert (summary.latency_p50_s, summary.latency_p95_s, summary.seconds) == (None, None, 0)


def spend(store: RunStore) -> None:
    """Three rows: two with an answer, the second of two calls; one that failed."""
    store.log(SessionStarted(5, 1))
    store.append_call(prompt(0), MODEL, paid(latency_s=1.0, usage=Usage(100, 20, 30, 4, 5)))
    store.append_result(result(0))
    store.append_call(prompt(1, "m", step="map"), MODEL, paid(latency_s=2.0, attempts=3, rate_limited=2))
    store.append_call(
        prompt(1, "r", step="reduce", level=1), MODEL, paid(latency_s=9.0, cost_usd=Decimal("0.000000000001"))
    )
    store.append_result(result(1, "truncated", "truncated"))
    store.append_call(prompt(2), MODEL, failed("quota", rate_limited=7))
    store.append_result(result(2, "error", "quota"))


@pytest.mark.parametrize("stage", ["running", "killed", "sealed", "closed", "continued"])
def test_the_numbers_are_the_same_while_running_after_a_crash_and_after_the_end(directory: Path, stage: str) -> None:
    if stage in ("running", "sealed"):
        with opened(directory) as store:
            spend(store)
            if stage == "sealed":
                anyio.run(store.seal)
            summary = summarize(directory)
            listed = failures(directory)
    else:
        with killed(directory) as store:
            spend(store)
            if stage == "closed":
                store.close()
        if stage == "continued":
            with opened(directory):
                pass
        summary, listed = summarize(directory), failures(directory)
    assert (summary.rows, summary.done, summary.waiting) == (5, 3, 1)
    assert dict(summary.outcomes) == {"ok": 1, "truncated": 1, "blocked": 0, "invalid": 0, "error": 1}
    assert (summary.calls, summary.calls_by_step) == (3, {"answer": 1, "map": 1, "reduce": 1})
    assert (summary.attempts, summary.rate_limited) == (1 + 3 + 1 + 5, 2 + 7)
    assert summary.usage == Usage(100 + 12 + 12, 20, 30 + 34 + 34, 4, 5)
    assert (summary.cost_usd, summary.unpriced) == (2 * CENT + Decimal("0.000000000001"), 0)
    assert summary.input_tokens_est == 30
    assert (summary.latency_p50_s, summary.latency_p95_s) == pytest.approx((2.0, 9.0), rel=0.01)
    assert listed == [
        Failure(1, "key 1", "truncated", "truncated", "truncated trouble"),
        Failure(2, "key 2", "error", "quota", "quota trouble"),
    ]


def test_calls_of_unfinished_rows_are_counted_where_they_wait(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0)
        store.append_call(prompt(1), MODEL, paid())
        anyio.run(store.seal)
        assert (summarize(directory).calls, summarize(directory).cost_usd) == (2, 2 * CENT)
    assert (summarize(directory).calls, summarize(directory).cost_usd) == (2, 2 * CENT)


def test_a_row_that_succeeds_at_last_is_no_failure_and_both_tries_are_counted(directory: Path) -> None:
    with opened(directory) as store:
        for row in (3, 1):
            store.append_call(prompt(row), MODEL, failed())
            store.append_result(result(row, "error", "server"))
        answer(store, 2, "blocked", "recitation")
    assert [failure.row for failure in failures(directory)] == [1, 2, 3]
    with opened(directory) as store:
        answer(store, 1)
        store.append_result(result(3, "error", "network"))
        for listed in (failures(directory), failures(directory)):
            assert [(failure.row, failure.error_kind) for failure in listed] == [(2, "recitation"), (3, "network")]
            anyio.run(store.seal)
    summary = summarize(directory)
    assert (summary.outcomes["ok"], summary.outcomes["error"], summary.outcomes["blocked"]) == (1, 1, 1)
    assert (summary.waiting, summary.calls, summary.attempts) == (1, 2, 2 + 5 + 5)


def test_one_unknown_price_makes_the_cost_unknown(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0)
        store.append_call(prompt(1), MODEL, paid(cost_usd=None))
    summary = summarize(directory)
    assert (summary.cost_usd, summary.unpriced) == (CENT, 1)
    assert summary.as_json()["cost_usd"] is None


def test_a_failure_without_a_price_leaves_the_cost_known(directory: Path) -> None:
    with opened(directory) as store:
        store.append_call(prompt(0), MODEL, failed(cost_usd=None))
    assert summarize(directory).unpriced == 0


def test_the_json_has_stable_keys_and_counts_tool_tokens_as_input(directory: Path) -> None:
    with opened(directory) as store:
        spend(store)
    assert summarize(directory).as_json() == {
        "run": "notes",
        "rehearsal": True,
        "status": "interrupted",
        "rows": 5,
        "ok": 1,
        "truncated": 1,
        "blocked": 0,
        "invalid": 0,
        "error": 1,
        "causes": [
            {"cause": "truncated", "rows": 1, "cost_usd": 0.01, "cure": REDO, "cure_usd": None},
            {"cause": "quota", "rows": 1, "cost_usd": 0.01, "cure": TRY, "cure_usd": None},
        ],
        "calls": 3,
        "attempts": 10,
        "rate_limited": 9,
        "shed": 0,
        "identical": 0,
        "cached": 0,
        "saved_usd": 0.0,
        "generation": 1,
        "kept": 0,
        "kept_usd": 0.0,
        "before_usd": 0.0,
        "input_tokens": 129,
        "cached_tokens": 20,
        "output_tokens": 98,
        "thinking_tokens": 4,
        "cost_usd": 0.02,
        "at_most_usd": 0.0,
        "uncertain": 0,
        "usage_estimated": 0,
        "targets": {},
        "lanes": {"standard": {"calls": 3, "cost_usd": 0.02, "saved_usd": 0.0, "late": 0, "fell_back": {}}},
        "batches": [],
        "left_out": [],
        "models_noted": [],
        "seconds": 0.0,
        "bound_s": {},
        "accuracy": None,
        "output": "results/notes.csv",
        "output_finished": None,
        "run_dir": str(directory),
    }
    orjson.dumps(summarize(directory).as_json())


def test_reading_changes_nothing(directory: Path) -> None:
    with killed(directory) as store:
        spend(store)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    summarize(directory)
    failures(directory)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


# ---- status and time


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], "interrupted"),
        ([start()], "interrupted"),
        ([start(), progress(10)], "interrupted"),
        ([start(), end(12)], "finished"),
        ([start(), end(12, "stopped")], "stopped"),
        ([start(), end(12, "interrupted")], "interrupted"),
        ([start(), end(12), start()], "interrupted"),
        ([start(), start(), end(12)], "finished"),
        ([start(), end(12), {"event": "limit", "rpm": 10}], "finished"),
    ],
)
def test_the_last_session_says_how_the_run_stands(
    directory: Path, events: Sequence[dict[str, object]], status: str
) -> None:
    assert summarize(log(directory, *events)).status == status


def test_a_session_without_an_end_is_running_only_while_its_process_lives(directory: Path) -> None:
    with opened(directory) as store:
        store.log(SessionStarted(3, 1))
        assert in_use(directory)
        assert (summarize(directory).status, summarize(directory).rows) == ("running", 3)
        store.log(SessionEnded(1.5, 0, 0, Decimal(0), 0, 0, Decimal(0), 0, 0, "stopped", ""))
        assert summarize(directory).status == "stopped"
    assert not in_use(directory)
    assert summarize(directory).status == "stopped"


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        ([start(), progress(10), progress(20), end(25.5)], 25.5),
        ([start(), progress(10), progress(20)], 20),
        ([start(), end(5), start(), end(7)], 12),
        ([start(), progress(10), progress(20), start(), progress(10), end(11)], 31),
        ([start(), start(), start(), progress(10)], 10),
        ([start(), end(5), start()], 5),
    ],
)
def test_time_is_summed_over_sessions_and_of_a_killed_one_until_its_last_sign_of_life(
    directory: Path, events: Sequence[dict[str, object]], seconds: float
) -> None:
    assert summarize(log(directory, *events)).seconds == seconds


def test_what_was_sent_for_rows_that_did_not_finish_is_counted(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_after = {**progress(9), "attempts": 4, "rate_limited": 20, "shed": 2}
    stopped = {**end(5, "stopped"), "attempts": 3, "rate_limited": 7, "shed": 3}
    summary = summarize(log(directory, start(), killed_after, start(), stopped))
    assert (summary.attempts, summary.rate_limited, summary.shed) == (7, 27, 5)
    show_summary(summary)
    assert "unanswered 39 failed 7 + refused for quota 27 + turned away in flex 5" in " ".join(
        capsys.readouterr().out.split()
    )


def test_failed_requests_after_the_last_numbers_of_a_killed_session_are_counted_as_the_table_of_calls_has_them(
    directory: Path,
) -> None:
    failed = {"event": "failed", "at": "2026-11-30T07:00:00Z", "http_status": 503, "lane": "standard"}
    tail = [
        failed | {"requests": 2, "cause": "server"},
        failed | {"requests": 3, "cause": "quota", "http_status": 429},
        failed | {"requests": 4, "cause": "server", "lane": "flex", "shed": True},
    ]
    before = {**progress(9), "attempts": 1, "rate_limited": 1, "failed": {"server": 1}}
    summary = summarize(log(directory, start(), failed | {"requests": 1, "cause": "server"}, before, *tail))
    assert (summary.attempts - summary.calls, summary.rate_limited, summary.shed) == (3, 3, 4)
    assert sum(frame["requests"].sum() for frame in frames(directory)) == summary.calls + 3 + 3 + 4


def test_of_a_run_that_was_killed_asleep_the_time_goes_by_its_last_sign(directory: Path) -> None:
    begun = {**start(), "at": "2026-11-30T07:00:00Z"}
    at_s = datetime(2026, 11, 30, 9, tzinfo=UTC).timestamp()
    seen = {"state": "running", "started_at_s": at_s - 7_200.0, "at_s": at_s, "bound_s": {"rpd": 7_000.0}}
    log(directory, begun, progress(10))
    (directory / "status.json").write_bytes(orjson.dumps(seen))
    summary = summarize(directory)
    assert (summary.seconds, summary.bound_s) == (7_200.0, {"rpd": 7_000.0})
    assert summarize(log(directory, begun, progress(10), end(7))).seconds == 7
    later = {**start(), "at": "2026-11-30T10:00:00Z"}
    assert summarize(log(directory, begun, progress(10), later)).seconds == 10, "it is of the session before"


def test_rows_that_are_not_ok_have_their_number_in_the_input_beside_that_of_the_run(
    here: Path, cli: Callable[..., Ran]
) -> None:
    job = small_job(here, UNLIMITED)
    job.write_text(
        job.read_text()
        .replace('"words.csv"\n', "\"words.csv\"\nwhere = \"word in ('beta', 'epsilon')\"\n")
        .replace("max_output_tokens = 50", "max_output_tokens = 1")
    )
    assert cli("run", job, "--offline").code == 1
    told = cli("report", "small-offline", "--failed")
    assert [line.split()[:2] for line in told.out.splitlines()[-3:]] == [["row", "input"], ["0", "1"], ["1", "4"]]
    assert [each["input_row"] for each in cli("report", "small-offline", "--failed", "--json").json] == [1, 4]
    (here / "words.csv").write_text("word\nother\n")
    assert {each["input_row"] for each in cli("report", "small-offline", "--failed", "--json").json} == {None}


def test_why_it_was_not_faster_is_summed_over_sessions_the_killed_ones_too(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_after = {**progress(100), "bound_s": {"rpm": 90.0, "server": 10.0}}
    ended = {**end(100), "bound_s": {"rpm": 60.04, "slots": 39.5, "source": 0.5, "moon": 0.01}}
    log(directory, start(), progress(50), killed_after, start(), end(7, "stopped"), start(), progress(99), ended)
    summary = summarize(directory)
    told = {"rpm": 150.0, "slots": 39.5, "server": 10.0, "source": 0.5, "moon": 0.0}
    assert summary.as_json()["bound_s"] == told and list(summary.bound_s) == list(told)
    show_summary(summary)
    assert (
        "75% waiting for rpm, 20% for a place among the calls in flight, 5% for the service\n"
        in capsys.readouterr().out
    )
    show_summary(summarize(log(directory, start(), {**end(3), "bound_s": {"cpu": 3.0}})))
    assert "waiting" not in capsys.readouterr().out, "of three seconds nobody asks that"


def test_what_was_saved_is_summed_over_sessions(directory: Path) -> None:
    first = {**end(5), "identical": 3, "cached": 1, "saved_usd": "0.001"}
    second = {**progress(9), "identical": 2, "cached": 0, "saved_usd": "0.0005"}
    summary = summarize(log(directory, start(), first, start(), second))
    assert (summary.identical, summary.cached, summary.saved_usd) == (5, 1, Decimal("0.0015"))


def test_why_a_target_was_left_out_is_told_of_the_last_session(directory: Path) -> None:
    left: dict[str, object] = {"event": "target", "target": "free"}
    older: dict[str, object] = {"event": "target", "message": "paid is left out: refused"}
    log(directory, start(), left | {"message": "no money"}, end(3), start(), left | {"message": "used up"}, older)
    assert summarize(directory).left_out == ("free is left out: used up", "paid is left out: refused")


def test_rows_are_those_of_the_last_session(directory: Path) -> None:
    assert summarize(log(directory, start(10), end(1), start(20))).rows == 20


def test_rows_that_a_smaller_limit_leaves_out_are_not_taken_for_those_that_it_lacks(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run takes its rows in a random order: what was done before may all be behind the first three."""
    with opened(directory) as store:
        for row in (1, 7, 8):
            answer(store, row)
        store.log(SessionStarted(3, 1))
        show_summary(summarize(directory))
        assert "rows 1 ok 2 not reached 2 more are kept beyond" in " ".join(capsys.readouterr().out.split())
        for row in (0, 2):
            answer(store, row)
    show_summary(summarize(directory))
    assert "rows 3 ok 2 more are kept beyond" in " ".join(capsys.readouterr().out.split())


def test_a_torn_line_in_the_log_is_passed_over(directory: Path) -> None:
    path = log(directory, start(), progress(10), end(12)) / "run.log"
    path.write_bytes(path.read_bytes() + b'{"at":"2026-11-22T20:00:00Z","eve')
    summary = summarize(directory)
    assert (summary.status, summary.seconds) == ("finished", 12)


# ---- which directory


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunStateError, match="is not a run directory") as caught:
            summarize(place)
        assert "pipeline runs" in caught.value.hint


@pytest.mark.parametrize("kind", ["calls", "results"])
def test_a_damaged_part_is_named_as_the_reason(directory: Path, kind: str) -> None:
    with opened(directory) as store:
        answer(store, 0)
    path = directory / kind / "part-000001.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunStateError, match=f"{kind}.* is damaged"):
        summarize(directory)


def test_the_newest_run_is_the_one_written_to_last(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(RunStateError, match="no runs in") as caught:
        newest(runs)
    assert "pipeline run" in caught.value.hint
    for name in ("b", "a", "c"):
        with opened(runs / name) as store:
            store.log(SessionStarted(1, 1))
    (runs / "not a run").mkdir()
    assert [path.name for path in every(runs)] == ["a", "b", "c"]
    os.utime(runs / "a" / "run.log", (4e9, 4e9))
    assert newest(runs) == runs / "a"


# ---- read by one process while another writes

_WRITER = """
import sys
from pathlib import Path
import anyio
from asking import MODEL
from stores import answer, opened, paid, prompt
with opened(Path(sys.argv[1])) as store:
    store.append_call(prompt(10**6), MODEL, paid())
    print("started", flush=True)
    for row in range(150):
        answer(store, row)
        if row % 10 == 9:
            anyio.run(store.seal)
"""


def test_a_report_is_right_at_every_second_of_a_run_that_seals_all_the_time(directory: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(directory)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
    )
    seen = []
    with writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"started\n"
        while writer.poll() is None:
            summary = summarize(directory)
            assert summary.cost_usd == summary.calls * CENT
            assert summary.outcomes["ok"] <= summary.calls - 1 <= summary.outcomes["ok"] + 1
            seen.append(summary.calls)
    assert writer.returncode == 0
    assert seen == sorted(seen), "a number once shown never shrinks"
    assert (summarize(directory).calls, summarize(directory).outcomes["ok"]) == (151, 150)


@pytest.mark.case("D3", "R3")
def test_what_may_have_been_paid_is_told(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(directory) as store:
        spend(store)
        lost = failed("timeout", attempts=0, at_most_usd=CENT)
        store.append_call(prompt(7), MODEL, lost, answered=False)
        counts = {"cost_usd": CENT, "at_most_usd": CENT, "usage": Usage(estimated=True)}
        unread = failed("malformed_reply", attempts=0, raw=b"{", **counts)
        store.append_call(prompt(8), MODEL, unread, answered=False)
    summary = summarize(directory)
    assert (summary.at_most_usd, summary.uncertain, summary.usage_estimated) == (2 * CENT, 2, 1)
    assert summary.cost_usd == 3 * CENT + Decimal("0.000000000001") and summary.calls == 3
    show_summary(summary)
    text = " ".join(capsys.readouterr().out.split())
    assert "and at most $0.0200 more for 2 requests whose replies never came or could not be read" in text
    assert "or have no known price" in text, "an answer of a model that is in no table is one of them"
    with opened(directory) as store:
        store.append_call(prompt(9), MODEL, failed("timeout", attempts=0, at_most_usd=None), answered=False)
    assert summarize(directory).as_json()["at_most_usd"] is None


def test_a_run_is_found_by_its_path_its_name_its_job_and_its_job_file(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", "jobs/generate.toml", "--offline", "--yes")
    path = here / "runs" / "generate-offline"
    for name in ("generate-offline", "runs/generate-offline", path, "generate", "jobs/generate.toml"):
        assert cli("report", name, "--json").json["run"] == "generate"
    missed = cli("report", "generaet")
    assert missed.code == 2 and "generaet is no run and no job's name" in missed.err
    assert "did you mean runs/generate-offline?" in missed.err
    lost = cli("report", "zzz.toml")
    assert "no run of the job zzz.toml is in runs/" in lost.err
    assert "did you mean" not in lost.err and "there are generate-offline" in lost.err


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        (
            {"state": "stopped", "reason": "the day is used up\nWhat was answered is kept.", "goes_on": 3600.0},
            "it stopped: the day is used up. What was answered is kept. It can go on in 60 min, at 2026-11-30 09:00"
            " UTC: `pipeline run jobs/notes.toml --offline`",
        ),
        (
            {"state": "stopped", "reason": "the key has expired", "hint": "renew it; the same command then goes on"},
            "it stopped: the key has expired. It can go on: `pipeline run jobs/notes.toml --offline`"
            " hint: renew it; the same command then goes on",
        ),
        (
            {"state": "running", "waits_for": "day_quota", "until": 7200.0},
            "it waits for the day's quota, for 2 h more, until 2026-11-30 10:00 UTC",
        ),
        (
            {"state": "running", "waits_for": "batches"},
            "it waits for batches; nobody knows until when",
        ),
        ({"state": "killed"}, "it was killed, or its machine went down"),
        ({"state": "interrupted"}, "it was interrupted. It can go on: `pipeline run jobs/notes.toml --offline`"),
        ({"state": "finished"}, ""),
    ],
)
def test_a_report_says_why_a_run_ended_or_waits_and_what_to_type(
    directory: Path, standing: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime(2026, 11, 30, 8, tzinfo=UTC).timestamp()
    ahead = {name: now + standing[given] for name, given in _AHEAD.items() if given in standing}
    told = {name: value for name, value in standing.items() if name not in _AHEAD.values()}
    show_standing(
        summarize(log(directory, start())), RunStatus(now - 9.0, now - 99.0, 10, 1, 1, 10, **told, **ahead), now
    )
    assert " ".join(capsys.readouterr().out.split()).startswith(words)
    show_standing(summarize(directory), None, now)  # of an older version


_AHEAD = {"goes_on_at_s": "goes_on", "waits_until_s": "until"}


def test_of_a_job_the_real_run_is_meant_before_its_rehearsals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for at, name in enumerate(("notes-rehearsal", "notes-offline", "notes")):
        log(Path("runs") / name, start())
        os.utime(Path("runs") / name / "run.log", (1e9 - at, 1e9 - at))
        assert find_run("notes") == find_run("elsewhere/notes.toml")
        assert find_run("notes") == Path("runs") / ("notes" if name == "notes" else "notes-rehearsal")
    assert find_run() == Path("runs/notes-rehearsal"), "which was written to last"


def test_a_generation_is_found_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log(Path("runs/notes.earlier"), start())
    write(log(Path("runs/notes"), start()) / "manifest.json", manifest(generation=2, after=("notes.earlier", "gone")))
    assert find_run("notes@2") == find_run("notes") == Path("runs/notes")
    assert find_run("notes@1") == find_run("notes.toml@1") == Path("runs/notes.earlier")
    with pytest.raises(RunStateError, match="runs/notes has no generation 3") as caught:
        find_run("notes@3")
    assert caught.value.hint.startswith("there are 1, 2; ")


def test_the_run_that_goes_on_is_meant_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log(Path("runs/other"), start())
    os.utime("runs/other/run.log", (4e9, 4e9))
    with opened(Path("runs/one")):
        assert find_run() == Path("runs/one")
        with opened(Path("runs/two")), pytest.raises(RunStateError, match="several runs go on") as caught:
            find_run()
        assert caught.value.hint == "name one of one, two"
    assert find_run() == Path("runs/other")


def test_rows_that_are_not_ok_are_told_by_cause_with_what_helps_and_costs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    of = manifest(offline=False, identity={"model": {"max_output_tokens": 400}})
    cut = [Failure(row, f"k{row}", "truncated", "truncated", "cut", 0.01) for row in range(3)]
    others = [
        Failure(7, "k7", "error", "server", "503", 0.0),
        Failure(8, "k8", "invalid", "schema", "no JSON", 0.02),
        Failure(9, "k9", "invalid", "empty_input", "empty", 0.0),
    ]
    show_failures([*cut, *others], of, {})
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:5]}
    assert told["truncated"] == (
        "3 `pipeline run jobs/notes.toml --retry truncated --set max_output_tokens=800` costs at most about $0.0600"
    )
    assert told["schema"] == "1 `pipeline run jobs/notes.toml --retry schema` costs about $0.0200"
    assert told["server"] == "1 may pass by itself: `pipeline run jobs/notes.toml` tries again"
    assert told["empty_input"] == "1 mend the table: the next run buys only what changed"
    assert [line.split()[0] for line in lines[7:]] == ["0", "1", "2", "7", "8", "9"]
    assert cure_of(Cause("truncated", 1, None), of).usd is None, "a price is unknown"


def test_causes_are_told_by_the_newest_outcome_with_what_helps(directory: Path, cli: Callable[..., Ran]) -> None:
    usd = Decimal("0.02")
    with opened(directory) as store:
        store.log(SessionStarted(5, 1))
        for row in range(4):
            store.append_result(result(row, "error", "server"))
        anyio.run(store.seal)
        store.append_result(result(0))
        store.append_result(result(1, "truncated", "truncated", cost_usd=usd))
        anyio.run(store.seal)
        store.append_result(result(2, "truncated", "truncated", cost_usd=usd))
        store.append_result(result(9, "blocked", "prompt_blocked"))  # beyond the table as it is now
        while_running = summarize(directory).causes
    assert while_running == (Cause("truncated", 2, 2 * usd), Cause("server", 1, CENT))
    of = read_manifest(directory / "manifest.json")
    assert of
    write(directory / "manifest.json", replace(of, offline=False))
    told = cli("report", directory)
    assert "truncated     2  `pipeline run jobs/notes.toml --retry truncated` costs about $0.0400" in told.out
    causes = cli("report", directory, "--json").json["causes"]
    assert [each["cause"] for each in causes] == ["truncated", "server"]
    assert causes[0]["cost_usd"] == causes[0]["cure_usd"] == 0.04 and causes[1]["cure_usd"] is None
    assert causes[1]["cure"] == "may pass by itself: `pipeline run jobs/notes.toml` tries again"
    assert causes[0].keys() == CAUSE_KEYS.keys()
