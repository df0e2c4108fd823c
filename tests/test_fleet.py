"""Several workers, which are real processes: one quota and one budget, each row once, whoever is killed."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from forking import Forked, forked
from serving import served, stats, wait_for
from test_kill import IN_FLIGHT, summarize_job

from pipeline.fleet.standing import standing
from pipeline.job import load
from pipeline.places import spend_file
from pipeline.providers.stored import parse_stored
from pipeline.run import prepare
from pipeline.store import units

_SMALL = "import pipeline.fleet.shards as shards; shards.LEAST_ROWS = 10"


def start(cwd: Path, url: str, *arguments: str, workers: int = 2, key: str = "AQ.test", patch: str = _SMALL) -> Forked:
    keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": key}
    flags = ("--yes", "--json", "--workers", str(workers))
    return forked("run", "job.toml", *flags, *arguments, cwd=cwd, patch=patch, env=keyed)


def ended(process: Forked) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert out, err.decode()
    told: dict[str, Any] = json.loads(out)
    return told


def workers_of(driver: int) -> list[int]:
    """Processes that a driver has begun."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(driver)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def are_there(pids: list[int]) -> list[int]:
    """Those that still run."""
    there = []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            there += [pid] * (state != "Z")
    return there


def spent_of(limit: int) -> float:
    """What counts against the cap of a session here that covers so many rows."""

    async def look() -> float:
        session = prepare.prepare(load(Path("job.toml")), prepare.Options(limit=limit))
        stands = standing(session, units.read(session.directory)[1], parse_stored)
        stands.close()
        return float(stands.spent_usd)

    return anyio.run(look)


def check_once(here: Path, url: str, documents: int, killed: int) -> None:
    """Every row once and in order, and nothing bought twice but what was in flight."""
    bought = stats(url, prompts=True)
    output = pl.read_parquet(here / "output.parquet")
    assert output["id"].to_list() == [f"r{n}" for n in range(documents)]
    assert set(output["status"]) == {"ok"}
    twice = sum(count - 1 for count in bought["prompts"].values())
    assert twice <= killed * IN_FLIGHT
    assert bought["answered"] - twice == len(bought["prompts"])
    calls = pl.concat([pl.read_parquet(path) for path in (here / "runs/job/shards").glob("*/calls/*.parquet")])
    calls = calls.filter("paid")
    assert calls["fingerprint"].n_unique() == calls.height == len(bought["prompts"])
    assert output["calls"].sum() == calls.height


def test_a_run_by_several_workers_comes_to_what_a_run_of_one_process_does(tmp_path: Path) -> None:
    alone, many = tmp_path / "alone", tmp_path / "many"
    for here in (alone, many):
        here.mkdir()
        summarize_job(here, 45)
    keyed = {"GEMINI_API_KEY": "AQ.test"}
    with served() as url:
        said = forked("run", "job.toml", "--yes", "--json", cwd=alone, env=keyed | {"GOOGLE_GEMINI_BASE_URL": url})
        one, several = ended(said), ended(start(many, url))
        check = stats(url)
    assert check["rate_limited"] == 0
    for name in ("status", "rows", "ok", "calls", "input_tokens", "output_tokens", "cost_usd"):
        assert one[name] == several[name], name
    varies = ["latency_s", "finished_at"]
    left, right = (pl.read_parquet(here / "output.parquet") for here in (alone, many))
    assert left.drop(varies, strict=False).equals(right.drop(varies, strict=False))
    assert len(list((many / "runs/job/shards").iterdir())) > 2


@pytest.mark.parametrize(("kills", "documents"), [(3, 90), pytest.param(30, 900, marks=pytest.mark.long, id="long")])
def test_a_killed_worker_is_replaced_and_each_row_comes_out_once(tmp_path: Path, kills: int, documents: int) -> None:
    summarize_job(tmp_path, documents)
    chance, killed = random.Random(kills), 0
    with served(latency_s=0.15, latency_jitter_s=0.1) as url:
        driver = start(tmp_path, url)
        while killed < kills and driver.poll() is None:
            wait_for(url, "answered", 10 * (killed + 1), driver)
            time.sleep(chance.uniform(0.0, 0.3))  # real time: other processes are watched
            if pids := workers_of(driver.pid):
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(pids), signal.SIGKILL)
                    killed += 1
            time.sleep(1.0)
        result = ended(driver)
        check_once(tmp_path, url, documents, killed)
    assert killed and (result["status"], result["ok"], result["rows"]) == ("finished", documents, documents)
    log = [json.loads(line) for line in (tmp_path / "runs/job/run.log").read_text().splitlines()]
    assert Counter(line["event"] for line in log)["worker_lost"] >= 1


def test_a_killed_driver_leaves_nobody_and_the_same_command_goes_on(tmp_path: Path) -> None:
    summarize_job(tmp_path, 90)
    with (tmp_path / "job.toml").open("a") as job:
        job.write("[budget]\nmax_usd_per_day = 5\n")
    with served(latency_s=0.15, latency_jitter_s=0.1) as url:
        driver = start(tmp_path, url)
        wait_for(url, "answered", 30, driver)
        pids = workers_of(driver.pid)
        driver.kill()
        driver.communicate()
        began = time.monotonic()
        while are_there(pids) and time.monotonic() - began < 5:
            time.sleep(0.05)
        assert pids and not are_there(pids)
        sent = stats(url)["answered"]
        time.sleep(0.5)
        assert stats(url)["answered"] == sent, "nobody sends any more"
        result = ended(start(tmp_path, url))
        check_once(tmp_path, url, 90, 0)  # what was in flight came back, and was kept
    assert (result["status"], result["ok"]) == ("finished", 90)
    with sqlite3.connect(spend_file()) as book:
        (counted,) = book.execute("SELECT sum(nano_usd) FROM spend").fetchone()
    book.close()
    usd = result["cost_usd"] + result["at_most_usd"]
    assert counted >= usd * 1e9 - 1000, "what came back to nobody counts for the day, too"


def test_a_cap_holds_over_all_workers_and_over_their_deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summarize_job(tmp_path, 200, "")
    cap = 0.012
    with served(latency_s=0.1) as url:
        driver = start(tmp_path, url, "--max-cost", str(cap), workers=3)
        wait_for(url, "answered", 20, driver)
        os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
        first = ended(driver)
        again = ended(start(tmp_path, url, "--max-cost", str(cap), workers=3))
    assert driver.returncode == 3, driver.communicate()[1].decode()[-3000:]
    assert again["cost_usd"] <= cap
    assert first["ok"] <= again["ok"] < 200
    assert again["cost_usd"] <= spent_of(limit=10) + 1e-9, "a smaller limit leaves no cost out"
    paid = [pl.read_parquet(path) for path in (tmp_path / "runs/job/shards").glob("*/calls/*.parquet")]
    reckoned = pl.concat(paid).filter("paid")["worst_usd"]
    assert reckoned.is_not_null().all(), "what a call was reckoned to cost at most teaches the next session"


def test_the_output_is_written_while_workers_are_at_it(tmp_path: Path) -> None:
    summarize_job(tmp_path, 120, "")
    often = f"{_SMALL}; import pipeline.run.interim as interim; interim.EVERY_S, interim.ROW_S = 0.5, 0.0"
    with served(latency_s=0.3) as url:
        driver = start(tmp_path, url, patch=often)
        wait_for(url, "answered", 10, driver)
        began = time.monotonic()
        while not (tmp_path / "output.parquet").exists() and time.monotonic() - began < 30:
            time.sleep(0.05)
        found = Counter(pl.read_parquet(tmp_path / "output.parquet")["status"])
        assert driver.poll() is None and found["ok"] and found["ok"] + found["pending"] == 120
        result = ended(driver)
        check_once(tmp_path, url, 120, 0)
    assert result["ok"] == 120


def test_a_price_that_nobody_knows_is_told_once_over_all_shards(tmp_path: Path) -> None:
    summarize_job(tmp_path, 30, "")
    with served(model_version="nor-this") as url:
        _, err = start(tmp_path, url).communicate(timeout=60)
    assert err.decode().count("nor-this answers, whose price is unknown") == 1


def test_ctrl_c_lets_workers_finish_what_is_in_flight(tmp_path: Path) -> None:
    summarize_job(tmp_path, 90, "")
    with served(latency_s=0.3) as url:
        driver = start(tmp_path, url)
        wait_for(url, "in_flight", IN_FLIGHT, driver)
        pids = workers_of(driver.pid)
        driver.send_signal(signal.SIGINT)
        result = ended(driver)
        bought = stats(url)
    assert driver.returncode == 130 and not are_there(pids)
    assert result["ok"] == bought["answered"] > 0
    said, _ = forked("report", cwd=tmp_path).communicate(timeout=60)
    assert b"`pipeline run job.toml --workers 2`" in said


def test_what_a_fleet_does_not_do_is_refused_by_name(tmp_path: Path) -> None:
    summarize_job(tmp_path, 12, "")
    with served() as url:
        keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "AQ.test"}
        for flags, name in ((("--sample", "3"), "--sample"), (("--by", "23:59"), "--by"), (("--leave",), "--leave")):
            process = start(tmp_path, url, *flags)
            _, err = process.communicate(timeout=60)
            assert process.returncode == 2 and name in err.decode()
        assert stats(url)["answered"] == 0
        assert ended(start(tmp_path, url))["ok"] == 12
        anew = start(tmp_path, url, "--fresh", "--leave")
        assert anew.wait(timeout=60) == 2 and [each.name for each in (tmp_path / "runs").iterdir()] == ["job"]
        sampled = start(tmp_path, url, "--sample", "3")
        assert sampled.wait(timeout=60) == 2, "though all of it has been answered"
        for more in ([], ["--sample", "3"]):
            alone = forked("run", "job.toml", "--yes", *more, cwd=tmp_path, env=keyed)
            _, err = alone.communicate(timeout=60)
            assert alone.returncode == 2 and "--workers" in err.decode()
        assert stats(url)["answered"] == 12


def test_rows_are_left_redone_and_repeated_as_in_one_process(tmp_path: Path) -> None:
    words = [f"word{number % 37}" for number in range(60)]  # some repeat rows of their shard, some those of another
    pl.DataFrame({"word": words}).write_csv(tmp_path / "words.csv")
    (tmp_path / "job.toml").write_text(
        '[input]\npath = "words.csv"\n[prompt]\ntemplate = "Go on and on until {{ word }} has no room"\n'
        '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 6\n[output]\npath = "out.jsonl"\n'
    )

    patient = f"{_SMALL}; import pipeline.fleet.driver as driver; driver.FAIL_FAST_ROWS = 100"  # all are cut off

    def run(*flags: str, command: tuple[str, ...] = ("run", "--yes")) -> dict[str, Any]:
        flags = (*command[1:], "job.toml", "--json", "--offline", "--workers", "2", *flags)
        return ended(forked(command[0], *flags, cwd=tmp_path, patch=patient))

    for told in (run("--dry-run"), run(command=("estimate",))):
        assert told["prompts"] == 60, "the estimate is the run"
    some = run("--limit", "25")
    assert (some["rows"], some["truncated"]) == (25, 25)
    planned = json.loads((tmp_path / "runs/job-offline/run.log").read_text().splitlines()[0])["steps"]
    assert planned["answer"][0] == some["calls"]
    for told in (run("--dry-run"), run(command=("estimate",))):
        assert told["prompts"] == 60 - some["calls"]
    all_of_it = run()
    assert (all_of_it["rows"], all_of_it["truncated"]) == (60, 60)
    assert all_of_it["calls"] == 60, "each shard of ten asks its own ten"
    redone = run("--retry", "truncated", "--set", "max_output_tokens=200")
    assert (redone["ok"], redone["calls"]) == (60, 120)
    assert run("--retry", "truncated")["calls"] == 120, "nothing is left to be done"
    for shard in (tmp_path / "runs/job-offline/shards").iterdir():
        assert [len(list((shard / kind).iterdir())) for kind in ("calls", "results")] == [1, 1], "they are put together"
        assert not (shard / "content.sqlite").exists() and not list(shard.glob("journal-*"))
    written = [json.loads(line) for line in (tmp_path / "out-offline.jsonl").read_text().splitlines()]
    assert [line["word"] for line in written] == words
