"""The first rows of a run: finished before the others, and told."""

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from asking import Stub, opening_of
from sessions import run_through

from jobs import CHUNKED, make_job
from pipeline import estimating
from pipeline.events import FirstAnswered
from pipeline.plan.picks import FIRST
from pipeline.prompts import Prompt
from pipeline.records import Reply, Usage
from pipeline.report.reading import Answers
from pipeline.run import prepare
from pipeline.run.engine import Monitor
from pipeline.targets import Target

ROWS = 400


class Service(Stub):
    """Answers at once, and remembers of which rows."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def generate(self, prompt: Prompt, target: Target) -> Reply:
        self.asked.append(prompt.row)
        usage = Usage(prompt.input_tokens_est, output_tokens=3)
        return Reply("an answer", "ok", finish_reason="STOP", usage=usage, model=target.model, raw=b"{}")


def prepared(here: Path, rows: int = ROWS, **sections: Any) -> prepare.Session:
    texts = [f"text {row}. " + "More words of it. " * (150 if row % 4 == 0 else 3) for row in range(rows)]
    pl.DataFrame({"body": texts}).write_parquet("table.parquet")
    limits = {"rpm": 450, "tpm": 0}
    return prepare.prepare(
        make_job(here, CHUNKED, input={"path": "table.parquet", "text": "body"}, limits=limits, **sections),
        prepare.Options(),
    )


def until_told(session: prepare.Session, service: Service) -> list[str]:
    """What is told until the first rows are there, when the run is stopped, or until its end."""
    told: list[str] = []

    async def watch(monitor: Monitor) -> None:
        while True:
            told.extend(event.message for event in monitor.notices if isinstance(event, FirstAnswered))
            monitor.notices.clear()
            if told:
                os.kill(os.getpid(), signal.SIGINT)
                await anyio.sleep_forever()
            await anyio.sleep(0.01)

    run_through(session, watch, opening_of(service))
    return told


def test_a_few_rows_of_all_lengths_are_finished_first_and_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    service, session = Service(), prepared(here)
    told = until_told(session, service)
    command = f"`pipeline show {session.directory}`"
    assert told == [f"the first {FIRST} rows are there, of all kinds and lengths ({FIRST} ok): {command}"]
    done = [row["row"] for row in Answers(session.directory).rows()]
    assert {row % 4 == 0 for row in done} == {True, False}
    assert len(done) < 2 * FIRST and len(service.asked) < ROWS / 4, "the others did not go before them"
    assert len(set(service.asked)) <= len(done) + FIRST, "others were hardly begun"


def test_a_run_of_a_minute_has_none(here: Path) -> None:
    plan, _ = anyio.run(estimating.foreseen, prepared(here, 60))
    assert plan.first == ()
