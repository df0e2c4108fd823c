"""The lanes of a plan: what goes where, what that costs, and that an estimate says it."""

import json
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from commands import Ran, small_job
from plans import START, given, make, topics
from serving import served
from test_store_latencies import taken

from jobs import make_job
from pipeline import plan
from pipeline.batch.room import Room, tokens_known
from pipeline.job import Job
from pipeline.places import latencies_file
from pipeline.plan.latency import Latency, Seen, learned
from pipeline.store.latencies import note
from pipeline.targets import Target, project_of

NAME = "gemini-3.5-flash-lite"


def job_in(tmp_path: Path, lane: str, **limits: int) -> Job:
    """720 rows would take an hour and some seconds at this limit."""
    model = {"name": NAME, "max_output_tokens": 100, "lane": lane}
    return make_job(tmp_path, model=model, limits={"rpm": 12, "tpm": 0, **limits})


def planned(tmp_path: Path, lane: str, hours: float | None, latency: Latency | None = None, **limits: int) -> plan.Plan:
    asked = given(job_in(tmp_path, lane, **limits), topics(720))
    by = None if hours is None else START + timedelta(hours=hours)
    asked = replace(asked, by=by, latency=latency or asked.latency)
    return anyio.run(plan.make, asked, START)


def test_a_job_in_the_standard_lane_has_no_others(tmp_path: Path) -> None:
    made = planned(tmp_path, "standard", 10)
    assert made.lanes == () and made.cost_usd == make(job_in(tmp_path, "standard"), topics(720)).cost_usd


@pytest.mark.parametrize("lane", ["flex", "batch", "auto"])
@pytest.mark.parametrize("hours", [1.2, 3, 10, None])
def test_every_call_is_in_one_lane_and_their_costs_are_that_of_the_plan(
    tmp_path: Path, lane: str, hours: float | None
) -> None:
    made, standard = planned(tmp_path, lane, hours), planned(tmp_path, "standard", hours)
    assert made.cost_usd and standard.cost_usd
    (lanes,) = made.lanes
    assert sum(part.prompts for part in lanes.parts) == pytest.approx(720)
    usd = sum(float(part.cost_usd or 0) for part in lanes.parts)
    assert usd == pytest.approx(float(made.cost_usd.expected), rel=1e-6)
    assert made.cost_usd.low < made.cost_usd.expected < made.cost_usd.high
    assert made.cost_usd.expected <= standard.cost_usd.expected
    assert float(made.steps["answer"].cost_usd or 0) == pytest.approx(usd)


def test_a_last_call_leaves_the_time_that_the_live_lanes_need(tmp_path: Path) -> None:
    made = planned(tmp_path, "batch", 10)
    part, ahead = made.lanes[0].parts
    assert part.lane == "batch" and part.last_call
    assert (round(part.prompts), ahead.lane, round(ahead.prompts)) == (715, "standard", 5)
    left_s = (START + timedelta(hours=10) - part.last_call).total_seconds()
    assert left_s > made.timeline.seconds
    assert made.lanes[0].lanes.in_time == 1.0


def test_what_does_not_fit_goes_to_batch(tmp_path: Path) -> None:
    made = planned(tmp_path, "auto", 0.5)
    lanes = made.lanes[0].lanes
    assert 0.3 < lanes.in_time < 0.6 and lanes.batch > 0.4


def test_batches_that_are_quick_cost_less_by_a_near_deadline(tmp_path: Path) -> None:
    quick = learned([Seen(300.0, "done")] * 500)
    slow, fast = planned(tmp_path, "batch", 2), planned(tmp_path, "batch", 2, quick)
    assert slow.cost_usd and fast.cost_usd
    assert fast.cost_usd.expected < slow.cost_usd.expected


def test_what_may_wait_at_once_is_a_part_of_the_live_time(tmp_path: Path) -> None:
    made = planned(tmp_path, "batch", 6, batch_tokens=1_000)
    assert made.lanes[0].given.room_s == pytest.approx(made.timeline.seconds * 1_000 / made.load.input_tokens)


def test_an_unknown_price_is_no_reason_for_another_lane(tmp_path: Path) -> None:
    model = {"name": "gemini-9-none", "lane": "auto"}
    made = make(make_job(tmp_path, model=model, limits={"rpm": 12, "tpm": 0}), topics(20))
    (lanes,) = made.lanes
    assert made.cost_usd is None and [part.lane for part in lanes.parts] == ["standard"]


# ---- the estimate says it


def lane_job(here: Path, lane: str, extra: str = "") -> Path:
    path = small_job(here, f"[limits]\nrpm = 1\ntpm = 0\n{extra}")
    path.write_text(path.read_text().replace("[model]\n", f'[model]\nlane = "{lane}"\n'))
    return path


def test_an_estimate_shows_lanes_last_calls_and_how_long_batches_take(here: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("estimate", lane_job(here, "batch"), "--by", "2999-01-01 07:00")
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    assert "batch 6 $" in said and "2999-01-01 06:" in said
    assert "asked in the lane above: by Tue 2999-01-01 07:00 all is done" in said
    assert "half of all batches are done within 96 min, one in ten takes over 11 h" in said
    assert "nobody promises less than 24 h" in said


def test_the_time_may_stand_in_the_job(here: Path, cli: Callable[..., Ran]) -> None:
    by = '[run]\nby = "2999-01-01 07:00"\n'
    made = cli("estimate", lane_job(here, "batch", by), "--json").json
    assert made["deadline"]["fits"]
    (part,) = made["lanes"]
    assert (part["lane"], part["prompts"], part["target"]) == ("batch", 6, "")
    assert part["last_call"].startswith(("2999-01-01T06", "2999-01-01T05", "2998-12-31"))
    assert part["cost_usd"] == pytest.approx(made["cost_usd"]["expected"], abs=1e-6)
    assert made["batches"][""]["own"] == 0.0 and made["batches"][""]["median_s"] == pytest.approx(5_750, abs=60)


def test_what_does_not_fit_is_told_with_what_comes_later(here: Path, cli: Callable[..., Ran]) -> None:
    soon = f"{datetime.now().astimezone() + timedelta(minutes=3):%Y-%m-%d %H:%M}"
    ran = cli("estimate", lane_job(here, "auto"), "--by", soon)
    said = " ".join(ran.out.split())
    assert "does not fit" in said and "the rest goes to batch at once, and comes later" in said


def test_auto_without_a_deadline_ends_within_a_day(here: Path, cli: Callable[..., Ran]) -> None:
    said = " ".join(cli("estimate", lane_job(here, "auto")).out.split())
    assert "tomorrow all is done" in said and "tomorrow at the latest" in said


def test_own_batches_are_learned_from(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    target = Target("gemini", "https://generativelanguage.googleapis.com", project_of("AQ.test"), NAME)
    states: list[Any] = [taken(number, 120.0, time.time()) for number in range(200)]
    note(latencies_file("real"), (replace(one, account=target.account, model=NAME) for one in states), time.time())
    ran = cli("estimate", lane_job(here, "batch"), "--by", "2999-01-01 07:00")
    assert "done within 120 s" in ran.out or "done within 2 min" in ran.out
    assert "learned from 200 of yours" in " ".join(ran.out.split())


def test_what_may_wait_in_batches_is_what_runs_learned(tmp_path: Path) -> None:
    path = tmp_path / "room.sqlite"
    assert tokens_known(path, "quota") is None
    with closing(Room("run", path)) as room:
        room.answered("quota", 1_000)
        assert tokens_known(path, "quota") == 2_000
        assert tokens_known(path, "another") is None
    assert tokens_known(path, "quota") == 2_000
    path.write_bytes(b"no database" * 100)
    assert tokens_known(path, "quota") is None


def test_compare_says_what_a_slower_lane_is_expected_to_cost_by_a_deadline(here: Path, cli: Callable[..., Ran]) -> None:
    job = lane_job(here, "standard")
    usual = cli("estimate", job, "--compare", "--json").json
    soon = f"{datetime.now().astimezone() + timedelta(minutes=12):%Y-%m-%d %H:%M}"
    pressed = cli("estimate", job, "--compare", "--by", soon, "--json").json

    def costs(made: Any) -> dict[str, float]:
        return {each["lane"]: each["cost_usd"] for each in made["offers"] if each["model"] == NAME}

    assert costs(usual)["batch"] == costs(usual)["flex"] < costs(pressed)["flex"]
    assert costs(pressed)["standard"] == costs(usual)["standard"]
    assert {each["lane"] for each in usual["offers"] if each["cheapest"]} == {"flex"}


def test_nothing_is_saved_by_a_lane_that_is_taken_already(here: Path, cli: Callable[..., Ran]) -> None:
    made = cli("estimate", lane_job(here, "flex"), "--compare", "--json").json
    assert not {"flex", "batch"} & {saving["what"] for saving in made["savings"]}


def test_a_run_begins_with_the_plan_of_its_estimate(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setattr("pipeline.batch.watching.POLL_S", (0.2, 1.0))
    with served(batch=True, batch_pending_s=0.2, batch_run_s=0.2, batch_spread=1.0) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        job = small_job(here, "[limits]\nrpm = 240\ntpm = 0")
        (here / "words.csv").write_text("word\n" + "".join(f"w{n}\n" for n in range(40)))
        job.write_text(job.read_text().replace("[model]\n", '[model]\nlane = "auto"\n'))
        quota = f"gemini@{url.removeprefix('http://')}/{project_of('AQ.test')}"
        quick = (replace(taken(n, 150.0, time.time()), account=quota, model=NAME) for n in range(400))
        note(latencies_file("real"), quick, time.time())
        by = f"{datetime.now().astimezone() + timedelta(minutes=7):%Y-%m-%d %H:%M}"
        estimated = cli("estimate", job, "--by", by, "--compare", "--json").json
        ran = cli("run", job, "--yes", "--by", by)
    assert ran.code == 0, ran.err
    standard = next(
        each["cost_usd"] for each in estimated["offers"] if (each["model"], each["lane"]) == (NAME, "standard")
    )
    events = [json.loads(line) for line in (here / "runs" / "small" / "run.log").read_text().splitlines()]
    first = next(event for event in events if event["event"] == "lanes")
    batch = sum(part["prompts"] for part in estimated["lanes"] if part["lane"] == "batch")
    assert batch > 0 and first["batch"] == pytest.approx(batch / 40, abs=0.05)
    usd = sum(part["cost_usd"] for part in estimated["lanes"])
    assert first["cost"] == pytest.approx(usd / standard, rel=0.03)
    assert pl.read_parquet("out.parquet")["status"].to_list() == ["ok"] * 40


def test_an_estimate_says_what_waits_in_batches_already(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    with served(batch=True, batch_pending_s=600.0) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        job = lane_job(here, "batch")
        assert cli("run", job, "--yes", "--leave").code == 3
        said = " ".join(cli("estimate", job).out.split())
    assert "1 batch, 6 calls, is with the service: the calls above are those that are in none" in said
    assert re.search(r"the first was handed in at \w{3} \d\d:\d\d", said)
    assert "calls 0 " in said


def test_every_target_stands_among_the_lanes(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KEY_A", "KEY_B"):
        monkeypatch.setenv(name, f"AQ.{name.lower()}")
    job = lane_job(here, "standard")
    for name, lane in (("cheap", "batch"), ("quick", "standard")):
        with job.open("a") as file:
            file.write(f'\n[[target]]\nname = "{name}"\nkey_env = "KEY_{"AB"[name == "quick"]}"\nlane = "{lane}"\n')
    said = cli("estimate", job).out
    assert re.search(r"batch +cheap +3 .*\n +flex +cheap +1 .*\n +standard +quick +2 ", said), said
    assert "goes to no batch" not in said
