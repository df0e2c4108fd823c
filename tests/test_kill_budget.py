"""Real processes under a cap: whatever is killed, breaks or cannot be read, the server bills no more than that."""

import json
import random
import signal
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from serving import served, stats, wait_for
from tables import figure
from test_kill import events, start, summarize_job

from pipeline.prices import cost
from pipeline.records import Usage


def billed_usd(url: str) -> Decimal:
    """What the server says that it billed, answers that nobody got included."""
    total = Decimal(0)
    for bill in stats(url)["billed"]:
        usage = Usage(bill["input_tokens"], 0, bill["output_tokens"], bill["thinking_tokens"])
        total += cost(usage, bill["model"], datetime.now(UTC)) or Decimal(0)
    return total


def settled(url: str) -> None:
    """Wait until the service is done with what a killed run had asked: the next one's are those in flight."""
    while stats(url)["in_flight"]:
        time.sleep(0.005)  # real time: another process is being watched


def killed(path: Path, url: str, kills: int, *arguments: str, seed: int = 0) -> int:
    """SIGKILL the run at a moment when requests are in flight, again and again; returns how often."""
    chance = random.Random(seed)
    for number in range(kills):
        settled(url)
        process = start(path, url, *arguments)
        answered = stats(url)["answered"]
        while process.poll() is None:
            seen = stats(url)
            if seen["in_flight"] and seen["answered"] >= answered + number % 3:
                break
            time.sleep(0.005)  # real time: another process is being watched
        time.sleep(chance.uniform(0.0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            return number
    return kills


@pytest.mark.case("D5")
@pytest.mark.parametrize(
    ("section", "kills"),
    [
        pytest.param("max_usd = 0.03", 4, id="run"),
        pytest.param("max_usd_per_day = 0.03", 4, id="day"),
        pytest.param("max_usd = 0.1", 60, id="run, long", marks=pytest.mark.long),
        pytest.param("max_usd_per_month = 0.1", 60, id="month, long", marks=pytest.mark.long),
    ],
)
def test_no_kill_lets_a_cap_be_passed(tmp_path: Path, section: str, kills: int) -> None:
    summarize_job(tmp_path, 400, f"[budget]\n{section}\n")
    cap = Decimal(section.split("= ")[1])
    # Near the worst case each: 190 tokens of thinking, and the client is gone before the answer comes. So slow that a
    # run cannot come to its cap before it is killed: on a machine with much to do that takes a while.
    with served(latency_s=0.2, latency_jitter_s=0.2, thinking_tokens=150, marked=False, model_version=None) as url:
        assert killed(tmp_path, url, kills) >= min(kills, 4)
        out, err = start(tmp_path, url).communicate(timeout=120)
        billed = billed_usd(url)
        result = json.loads(out)
        assert result["status"] == "stopped", err.decode()
        time.sleep(0.5)  # what was in flight at the last kill
        assert billed_usd(url) == billed <= cap
    assert Decimal(str(result["cost_usd"])) <= billed
    assert billed <= Decimal(str(result["cost_usd"])) + Decimal(str(result["at_most_usd"])) <= cap
    lost = [event for event in events(tmp_path) if event["event"] == "lost"]
    assert result["uncertain"] == sum(event["requests"] for event in lost) > 0


@pytest.mark.case("D5")
def test_what_a_killed_run_had_in_flight_counts_against_the_day_in_other_runs(tmp_path: Path) -> None:
    with served(latency_s=0.5, thinking_tokens=190, marked=False, model_version=None) as url:
        for name in ("one", "two", "three", "four", "last"):
            (tmp_path / name).mkdir()
            summarize_job(tmp_path / name, 100, "[budget]\nmax_usd_per_day = 0.02\n")
        for name in ("one", "two", "three", "four"):
            settled(url)
            process = start(tmp_path / name, url)
            while process.poll() is None and stats(url)["in_flight"] < 4:
                time.sleep(0.005)  # real time: another process is being watched
            process.send_signal(signal.SIGKILL)
            process.communicate()
        out, err = start(tmp_path / "last", url).communicate(timeout=120)
        assert json.loads(out)["status"] == "stopped", err.decode()
        time.sleep(0.5)  # what was in flight at the last kill
        assert billed_usd(url) <= Decimal("0.02")


@pytest.mark.case("D1", "D3", "D4", "R3")
@pytest.mark.parametrize(
    "fault",
    [
        "paid_reset",
        "cut_json",
        "overlong",
        "dearer",
        "unpriced",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("paid_hang", "html200", "empty_body", "false_gzip")),
    ],
)
def test_no_reply_lets_a_cap_be_passed(tmp_path: Path, fault: str) -> None:
    """Half of all requests go wrong in one way, each billed; those may that are in flight with the first that does.

    These are ten at most, once five rows went ahead well, and cost less than the cap; the dearest model costs more.
    """
    cap = Decimal("0.06" if fault == "dearer" else "0.02")
    summarize_job(tmp_path, 300, f"[budget]\nmax_usd = {cap}\n[endpoint]\ntimeout_s = 1\n")
    faults = f"{fault}:0.5"
    with served(faults=faults, thinking_tokens=150, marked=False, model_version=None, seed=1) as url:
        out, err = start(tmp_path, url).communicate(timeout=300)
        billed = billed_usd(url)
    result = json.loads(out)
    assert result["status"] == "stopped", err.decode()
    assert billed <= cap
    counted = Decimal(str(result["cost_usd"])) + Decimal(str(result["at_most_usd"]))
    assert billed <= counted + Decimal("1e-8") and counted <= cap
    if fault not in ("overlong", "dearer", "false_gzip"):  # read whole: their counts are exact
        assert result["uncertain"] + result["usage_estimated"] > 0


@pytest.mark.case("D3")
def test_what_a_second_ctrl_c_gives_up_is_charged_and_told(tmp_path: Path) -> None:
    summarize_job(tmp_path, 30, "[budget]\nmax_usd = 1\n")
    with served(latency_s=0.5, marked=False, model_version=None) as url:
        process = start(tmp_path, url)
        wait_for(url, "in_flight", 3, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        result = json.loads(out)
        assert process.returncode == 130, err.decode()
        assert result["uncertain"] >= 1 and result["at_most_usd"] > 0
        more = start(tmp_path, url)
        out, err = more.communicate(timeout=60)
        assert b"killed with" not in err, "it is known already"
        assert json.loads(out)["ok"] == 30
        assert json.loads(out)["uncertain"] == result["uncertain"]
    calls = pl.concat([pl.read_parquet(path) for path in (tmp_path / "runs/job/calls").glob("*.parquet")])
    assert figure(calls.filter(~pl.col("paid"))["at_most_usd"].min()) > 0


@pytest.mark.case("D3")
def test_a_process_that_was_stopped_for_longer_than_the_timeout_is_charged_for_what_it_missed(tmp_path: Path) -> None:
    summarize_job(tmp_path, 40, "[budget]\nmax_usd = 0.01\n[endpoint]\ntimeout_s = 1\n")
    with served(latency_s=0.3, thinking_tokens=150, marked=False, model_version=None) as url:
        process = start(tmp_path, url)
        for _ in range(2):
            while process.poll() is None and not stats(url)["in_flight"]:
                time.sleep(0.01)
            process.send_signal(signal.SIGSTOP)
            time.sleep(1.5)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.3)
        out, err = process.communicate(timeout=60)
        billed = billed_usd(url)
    result = json.loads(out)
    assert billed <= Decimal("0.01"), err.decode()
    assert billed <= Decimal(str(result["cost_usd"])) + Decimal(str(result["at_most_usd"])) <= Decimal("0.01")
