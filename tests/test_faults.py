"""What goes wrong at the service, over a real socket: rows come out right, the run goes on, nothing is bought twice."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from serving import served, stats
from sessions import run_through

from jobs import PLAIN, Sections, write_job
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.errors import ServiceError
from pipeline.job import load
from pipeline.run import assembling, prepare
from pipeline.run.ending import Ended
from pipeline.run.services import Services

ROWS = 30


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setattr("pipeline.dispatch.retries.BACKOFF_FIRST_S", 0.01)
    (tmp_path / "topics.csv").write_text("topic\n" + "".join(f"topic {number}\n" for number in range(ROWS)))
    return tmp_path


def play(here: Path, url: str, **sections: dict[str, Any]) -> Ended:
    """One session of the job against the service at `url`."""
    asked: Sections = {"limits": {"rpm": 0, "tpm": 0}, "endpoint": {"base_url": url}, **sections}
    path = write_job(here, PLAIN, **asked)
    prepared = prepare.prepare(load(path), prepare.Options())
    return run_through(prepared)


def output() -> pl.DataFrame:
    return pl.read_ndjson("results/out.jsonl", schema_overrides={"error_kind": pl.String, "error": pl.String})


@pytest.mark.parametrize(
    "fault",
    ["500", "503", "504", "408", "499", "html502", "reset", "truncated", "garbage", "nested503", "bare429", "array429"],
)
def test_a_passing_fault_is_retried_and_every_row_answered(here: Path, fault: str) -> None:
    with served(faults=f"{fault}*3") as url:
        ended = play(here, url)
        seen = stats(url)
    summary = ended.summary
    kept = fault in ("truncated", "garbage")  # half an answer arrived: it may have been billed, and is kept as it is
    assert summary.outcomes["ok"] + summary.outcomes["error"] == ROWS
    assert seen["answered"] <= ROWS and seen["bought_twice"] == 0
    if not kept:
        assert summary.outcomes["ok"] == ROWS, output().filter(pl.col("status") != "ok")
        assert ended.exit_code == 0
        assert summary.attempts + summary.rate_limited == ROWS + 3
        assert summary.rate_limited == (3 if fault.endswith("429") else 0)


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("block", "blocked", "prompt_blocked"),
        ("safety", "blocked", "answer_blocked"),
        ("recitation", "blocked", "recitation"),
        ("empty", "error", "empty_answer"),
        ("max_tokens_empty", "truncated", "truncated"),
        ("400", "invalid", "invalid_request"),
        ("413", "invalid", "invalid_request"),
    ],
)
def test_an_outcome_that_stays_is_in_its_row_and_leaves_the_others_alone(
    here: Path, fault: str, status: str, kind: str
) -> None:
    with served(faults=f"{fault}*2") as url:
        ended = play(here, url)
        requests = stats(url)["requests"]
        again = play(here, url)
        assert stats(url)["requests"] == requests, "it stays: the next run does not ask again"
    assert ended.exit_code == again.exit_code == 1
    table = output()
    odd = table.filter(pl.col("status") != "ok")
    assert odd.height == 2 and table.height == ROWS
    assert set(odd["status"]) == {status} and set(odd["error_kind"]) == {kind}
    assert table["attempts"].to_list() == [1] * ROWS


@pytest.mark.parametrize(("fault", "kind"), [("503", "server"), ("reset", "network"), ("html502", "server")])
def test_rows_that_failed_for_a_passing_reason_are_tried_again_by_the_next_run(
    here: Path, fault: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(*arguments: object, **options: object) -> Dispatcher:
        return Dispatcher(*arguments, **options, max_attempts=2)  # type: ignore[arg-type]

    monkeypatch.setattr(assembling, "Dispatcher", impatient)
    with served(faults=f"{fault}:0.4") as url:
        first = play(here, url)
        bought = stats(url)["answered"]
    failed = output().filter(pl.col("status") == "error")
    assert first.exit_code == 1 and failed.height == ROWS - bought > 0
    assert set(failed["error_kind"]) == {kind} and set(failed["attempts"]) == {2}
    assert failed["error"].null_count() == 0
    with served() as url:
        again = play(here, url)
        assert stats(url)["answered"] == failed.height
    assert again.exit_code == 0 and again.summary.outcomes["ok"] == again.summary.calls == ROWS


def test_a_service_that_hangs_is_given_up_in_time(here: Path) -> None:
    with served(faults="hang*1") as url:
        ended = play(here, url, endpoint={"base_url": url, "timeout_s": 1.0})
    assert ended.summary.outcomes["ok"] == ROWS
    assert ended.summary.attempts == ROWS + 1


def test_a_region_that_is_refused_stops_the_run_at_once(here: Path) -> None:
    with served(faults="location") as url:
        ended = play(here, url, limits={"rpm": 0, "tpm": 0, "concurrency": 2})
        assert stats(url)["requests"] <= 2
    assert ended.stopped is not None and ended.exit_code == 2
    assert "location" in ended.stopped.message.lower()
    assert set(output()["status"]) == {"pending"}


def test_credit_that_is_used_up_stops_the_run(here: Path) -> None:
    with served(faults="prepaid") as url:
        ended = play(here, url, limits={"rpm": 0, "tpm": 0, "concurrency": 2})
    assert ended.exit_code == 3 and ended.stopped and "credit" in ended.stopped.message


def test_a_service_that_stays_away_stops_the_run_and_loses_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reached(services: Services) -> None:
        """It goes away right after that."""

    monkeypatch.setattr("pipeline.dispatch.loop.GIVE_UP_S", 1.0)
    monkeypatch.setattr(Services, "reach", reached)
    ended = play(here, "http://127.0.0.1:9", limits={"rpm": 0, "tpm": 0, "concurrency": 2})
    assert ended.exit_code == 3 and isinstance(ended.stopped, ServiceError)
    assert set(output()["status"]) <= {"error", "pending"}
    with served() as url:
        assert play(here, url).exit_code == 0
