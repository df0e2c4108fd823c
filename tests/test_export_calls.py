"""`pipeline export --calls`: the table of the calls of a run."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import httpx
import polars as pl
import pytest
from asking import Stub, opening, opening_of
from commands import UNLIMITED, Ran, small_job
from halfway import Halfway, run_watched, session
from polars.testing import assert_frame_equal
from sessions import run_through
from stores import manifest, paid, prompt

from pipeline.emulator import Emulator, EmulatorOptions, parse_faults
from pipeline.events import RequestFailed
from pipeline.job import load
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import Failure, Reply, Usage
from pipeline.report.calls import CALL_COLUMNS, CALL_MEANS, frames
from pipeline.run import prepare
from pipeline.run.engine import Monitor
from pipeline.store.run import RunStore
from pipeline.targets import Target

Cli = Callable[..., Ran]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


def table(directory: Path) -> pl.DataFrame:
    return pl.concat(frames(directory))


def test_every_call_and_every_failed_request_has_a_line(here: Path, cli: Cli) -> None:
    emulator = Emulator(EmulatorOptions(marked=False, model_version=None, faults=parse_faults("400*1,503*1")))
    prepared = prepare.prepare(load(small_job(here, UNLIMITED)), prepare.Options())
    ended = run_through(prepared, opening=opening(httpx.ASGITransport(emulator)))
    ran = cli("export", "small", "--calls", "calls.csv", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["files"] == [{"file": "calls.csv", "calls": 8}]
    found = pl.read_csv("calls.csv")
    assert found.columns == list(CALL_MEANS)
    assert dict(found.group_by("what").len().iter_rows()) == {"answer": 5, "outcome": 1, "failed": 2}
    answers = found.filter(what="answer")
    assert answers["input_tokens"].sum() == ended.summary.usage.input_tokens
    assert answers["cost_usd"].sum() == pytest.approx(float(ended.summary.cost_usd or 0))
    assert sorted(answers["attempt"]) == [1, 1, 1, 1, 2] and answers["latency_s"].min() is not None
    failed = found.filter(what="failed").sort("http_status")
    assert failed["http_status"].to_list() == [400, 503] and failed["attempt"].to_list() == [1, 1]
    assert failed["error_kind"].to_list() == ["invalid_request", "server"]
    assert found["requests"].sum() == 7
    assert all(word not in Path("calls.csv").read_text() for word in ("alpha", "Say", "AQ.test"))


def test_parquet_and_jsonl_say_the_same(here: Path, cli: Cli) -> None:
    assert cli("run", small_job(here, UNLIMITED), "--offline").code == 0
    ran = cli("export", "small", "--calls", "calls.parquet")
    assert ran.code == 0 and "6 lines of calls; offline: the emulator's answers" in ran.err
    assert cli("export", "small", "--calls", "calls.jsonl").code == 0
    found = pl.read_parquet("calls.parquet")
    assert found.schema == pl.Schema(CALL_COLUMNS)
    lines = pl.read_ndjson("calls.jsonl")
    same = ["row", "what", "step", "model", "status", "input_tokens", "cost_usd", "latency_s"]
    assert_frame_equal(lines.select(same), found.select(same), check_dtypes=False)
    assert not Path("out-offline-export.parquet").exists(), "the table of rows was not asked for"


def test_a_run_that_goes_on_is_read_and_not_touched(here: Path) -> None:
    seen: list[pl.DataFrame] = []

    def look(monitor: Monitor) -> bool:
        if monitor.done < 3:
            return False
        seen.append(table(Path("runs/small")))
        return True

    assert run_watched(session(here), Halfway(3), look) == 0
    assert seen[0]["what"].to_list() == ["answer"] * 3
    assert table(Path("runs/small"))["what"].to_list() == ["answer"] * 6


class Formulas(Stub):
    """A service that names models and answers as a spreadsheet would run them."""

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        return Reply("yes", "ok", usage=Usage(5), raw=b"{}", model="-1+1", response_id="=HYPERLINK(1)")


def test_what_a_service_says_is_no_formula(here: Path, cli: Cli) -> None:
    run_through(session(here), opening=opening_of(Formulas()))
    assert cli("export", "small", "--calls", "calls.csv").code == 0
    found = pl.read_csv("calls.csv")
    assert set(found["response_id"]) == {"'=HYPERLINK(1)"} and set(found["model"]) == {"'-1+1"}


def test_of_a_pack_one_line_is_the_request_and_many_failures_are_one_line(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run", parse_stored)
    store.open(manifest())
    for number in range(3):
        each = prompt(number, step="pack", chunk=number, chunks=3)
        store.append_call(each, "m", paid(f"{number}", cost_usd=Decimal("0.5")))
    store.log(RequestFailed(7_000, "quota", 429, "standard"))
    store.close()
    log = tmp_path / "run" / "run.log"
    log.write_bytes(log.read_bytes() + b'{"event":"failed","requests":-1}\n{"failed"\n')
    found = table(tmp_path / "run")
    assert found["requests"].to_list() == [1, 0, 0, 7_000]
    assert found["cost_usd"].sum() == 1.5
    assert found.filter(what="failed").select("row", "attempt", "latency_s").row(0) == (None, None, None)


def test_the_output_the_input_and_what_is_there_are_not_replaced(here: Path, cli: Cli) -> None:
    assert cli("run", small_job(here, UNLIMITED), "--offline").code == 0
    for name in ("out-offline.parquet", "words.csv"):
        before = Path(name).read_bytes()
        ran = cli("export", "small", "--calls", name, "--overwrite")
        assert ran.code == 2 and name in ran.err
        assert Path(name).read_bytes() == before
    Path("mine.csv").write_text("mine")
    assert cli("export", "small", "--calls", "mine.csv").code == 2 and Path("mine.csv").read_text() == "mine"
    assert cli("export", "small", "--calls", "mine.csv", "--overwrite").code == 0
    assert cli("export", "small", "--calls", "mine.txt").code == 2
