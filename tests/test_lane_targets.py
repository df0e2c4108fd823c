"""Several targets with lanes of their own: what the estimate says of each, and what the run does."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from serving import served
from sessions import run_through

from jobs import PLAIN, write_job
from pipeline import estimating
from pipeline.estimating import Wishes
from pipeline.job import load
from pipeline.run import prepare
from pipeline.run.prepare import Options
from pipeline.store import batched
from pipeline.store.parts import part_paths, read_part

ROWS = 300
Parts = Mapping[tuple[str, bool], float]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(batch=True, batch_pending_s=0.3, batch_run_s=0.3, batch_spread=1.0) as url:
        yield url


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(1, 4):
        monkeypatch.setenv(f"KEY_{number}", f"AQ.key-of-the-test-{number}")
    monkeypatch.setattr("pipeline.batch.watching.POLL_S", (0.2, 1.0))
    pl.DataFrame({"topic": [f"number {row}" for row in range(ROWS)]}).write_parquet(tmp_path / "topics.parquet")


def written(path: Path, url: str, targets: list[dict[str, Any]], more: str = "") -> Path:
    """A job with these targets, each with a key of its own."""
    written = write_job(
        path,
        PLAIN,
        input={"path": "topics.parquet"},
        endpoint={"base_url": url},
        model={"name": "gemini-3.5-flash-lite", "max_output_tokens": 20},
        limits={"rpm": 6000, "tpm": 0},
    )
    lines = [more]
    for number, target in enumerate(targets, 1):
        lines += ["[[target]]", f'name = "t{number}"', f'key_env = "KEY_{number}"']
        lines += [f"{name} = {json.dumps(value)}" for name, value in target.items() if name != "rpm"]
        lines += [f"limits = {{ rpm = {target['rpm']} }}"] if "rpm" in target else []
    written.write_text(written.read_text() + "\n" + "\n".join(lines) + "\n")
    return written


def calls_of(directory: Path, *columns: str) -> pl.DataFrame:
    """Columns of what a run bought, live and in batches."""
    paths = [*part_paths(directory / "calls"), *batched.part_paths(directory)]
    return pl.concat([read_part(each, columns) for each in paths])


def both(path: Path, url: str, targets: list[dict[str, Any]], hours: float | None) -> tuple[Parts, Parts]:
    """Calls by target, in batches or live: as the estimate says, and as the run bought them."""
    job = written(path, url, targets)
    by = None if hours is None else datetime.now(UTC) + timedelta(hours=hours)
    session = prepare.prepare(load(job), Options(by=by))
    made = anyio.run(estimating.estimate, session, Wishes(by=by)).plan
    planned: dict[tuple[str, bool], float] = defaultdict(float)
    for each in made.lanes:
        for part in each.parts:
            planned[part.target, part.lane == "batch"] += part.prompts
    for of in made.targets:
        planned[of.name, False] = of.prompts - planned[of.name, True]
    ended = run_through(prepare.prepare(load(job), Options(by=by)))
    assert ended.exit_code == 0, ended.stopped
    calls = calls_of(session.directory, "target", "lane")
    asked = Counter((target, lane == "batch") for target, lane in calls.iter_rows())
    assert asked.total() == ROWS
    return planned, asked


BATCH, AUTO, FLEX, STANDARD = ({"lane": lane} for lane in ("batch", "auto", "flex", "standard"))


CASES: list[list[dict[str, Any]]] = [
    [AUTO],
    [BATCH, STANDARD],
    [BATCH, BATCH],
    [AUTO, BATCH, STANDARD],
    [{**BATCH, "weight": 1}, {**BATCH, "weight": 3}],
    [STANDARD, BATCH],
    [BATCH, FLEX],
    [AUTO, STANDARD],
    [{**BATCH, "weight": 3}, {**STANDARD, "weight": 1}],
    [BATCH, {**STANDARD, "priority": 2, "fallback": ["outage"]}],
    [STANDARD, {**BATCH, "priority": 2}],
    [{**BATCH, "rpm": 2000}, BATCH, BATCH],
    [{**STANDARD, "weight": 3}, {**STANDARD, "weight": 1}],
]


@pytest.mark.parametrize(
    ("case", "hours"),
    [
        pytest.param(case, hours, marks=() if case < 5 and hours == 20.0 else pytest.mark.long)
        for case in range(len(CASES))
        for hours in (None, 20.0, 0.5)
    ],
)
def test_what_each_target_does_in_which_lane_is_what_the_estimate_says(
    tmp_path: Path, url: str, case: int, hours: float | None
) -> None:
    planned, asked = both(tmp_path, url, CASES[case], hours)
    for number in range(1, len(CASES[case]) + 1):
        name = f"t{number}"
        assert asked[name, True] == pytest.approx(planned[name, True], abs=max(3, 0.02 * ROWS))
        # Live calls go to whoever has room, and these few are over within a second.
        all_of, all_planned = (sum(of[name, lane] for lane in (True, False)) for of in (asked, planned))
        assert all_of == pytest.approx(all_planned, abs=0.1 * ROWS)


def test_a_round_that_nobody_planned_is_divided_as_the_first_one(tmp_path: Path, url: str) -> None:
    check = """[[check]]\nholds = "response NOT LIKE '%2%' AND response NOT LIKE '%3%'"\nretry = true"""
    session = prepare.prepare(load(written(tmp_path, url, [BATCH, BATCH], check)), Options(limit=80))
    run_through(session)
    calls = calls_of(session.directory, "target", "lane", "step").filter(step="retry")
    asked = Counter(calls.select("target", "lane").iter_rows())
    assert min(asked["t1", "batch"], asked["t2", "batch"]) > 8 and asked.total() == 32
