"""A spend cap over whole runs with batches: never passed, and no run stops for what batches will not cost."""

import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from serving import served, stats
from sessions import run_through

from jobs import write_job
from pipeline.budget.cashier import worst_case_usd
from pipeline.errors import BudgetReached
from pipeline.job import load
from pipeline.prompts import Params, Prompt, said
from pipeline.run import prepare
from pipeline.run.ending import Ended
from pipeline.run.prepare import Options
from pipeline.store.batch_states import read
from pipeline.targets import Target

ROWS = 12
LONGEST = 2000
"""Tokens that an answer may have: the emulator's have far fewer."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(batch=True, batch_pending_s=0.3, batch_run_s=0.3, batch_spread=1.0) as url:
        yield url


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setattr("pipeline.batch.watching.POLL_S", (0.2, 1.0))


def done(path: Path, url: str, usd: Decimal, **options: Any) -> Ended:
    texts = [" ".join(f"Sentence {n} of text {row} says so." for n in range(8)) for row in range(ROWS)]
    pl.DataFrame({"id": [f"r{row}" for row in range(ROWS)], "body": texts}).write_parquet(path / "in.parquet")
    job = write_job(
        path,
        {
            "input": {"path": "in.parquet", "id": "id", "text": "body"},
            "prompt": {"template": "{{ text }}"},
            "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": LONGEST, "lane": "batch"},
            "limits": {"rpm": 0, "tpm": 0},
            "budget": {"max_usd": float(usd)},
            "endpoint": {"base_url": url},
            "output": {"path": "out.parquet"},
        },
    )
    return run_through(prepare.prepare(load(job), Options(**options)))


def worst() -> Decimal:
    """Of one row in a batch."""
    prompt = Prompt(0, "", "answer", said(""), Params(max_output_tokens=LONGEST), 70)
    usd = worst_case_usd(prompt, Target("gemini", "http://h", "p", "gemini-3.5-flash-lite", "batch"))
    assert usd
    return usd


def test_a_run_whose_worst_case_is_above_its_cap_is_done_batch_by_batch_within_it(tmp_path: Path, url: str) -> None:
    cap = round(4 * worst(), 6)
    ended = done(tmp_path, url, cap)
    assert ended.exit_code == 0, ended.stopped
    output = pl.read_parquet("out.parquet")
    assert output["status"].to_list() == ["ok"] * ROWS and output["cost_usd"].sum() < cap / 4
    assert stats(url)["batches"]["lines_billed_twice"] == 0


def test_a_run_that_leaves_stops_where_a_cap_has_no_room_and_goes_on_later(tmp_path: Path, url: str) -> None:
    cap = round(4 * worst(), 6)
    first = done(tmp_path, url, cap, leave=True)
    assert first.exit_code == 3
    (directory,) = Path("runs").iterdir()
    out = [state for state in read(directory).values() if state.is_open]
    assert out and sum(state.worst_usd or 0 for state in out) <= cap
    for _ in range(60):  # each takes what is back, and puts as much into the next as the cap has room for
        ended = done(tmp_path, url, cap, leave=True)
        if ended.exit_code != 3:
            break
        time.sleep(0.2)
    assert ended.exit_code == 0, ended.stopped


def test_a_cap_that_has_no_room_for_one_row_stops_the_run(tmp_path: Path, url: str) -> None:
    ended = done(tmp_path, url, round(worst() / 4, 7))
    assert isinstance(ended.stopped, BudgetReached) and ended.summary.calls == 0
