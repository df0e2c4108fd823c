"""Whole runs in flex over a socket: what they ask, cost and report, under a cap, killed, and beside other targets."""

import os
import signal
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from commands import UNLIMITED, Ran, small_job
from forking import Forked, forked
from serving import served, stats, wait_for

from pipeline.report import summarize

ROWS = 200
PRICE_IN, PRICE_OUT = Decimal("0.30e-6"), Decimal("2.50e-6")  # of gemini-3.5-flash-lite in standard


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is turned away is asked again at once."""
    monkeypatch.setattr("pipeline.dispatch.flex.PAUSE_S", 0.01)
    monkeypatch.setattr("pipeline.dispatch.flex.FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


def many(here: Path, url: str, extra: str = "", lane: str = "flex") -> Path:
    """A job over `ROWS` short rows in a lane."""
    path = small_job(here, f'[endpoint]\nbase_url = "{url}"\n{UNLIMITED}\n{extra}')
    (here / "words.csv").write_text("word\n" + "".join(f"word number {n}\n" for n in range(ROWS)))
    path.write_text(path.read_text().replace("[output]", f'lane = "{lane}"\n[output]', 1))
    return path


def calls_of(here: Path, run: str = "small") -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((here / "runs" / run / "calls").glob("*.parquet"))])


def test_a_run_in_flex_costs_half_and_says_what_that_saved(here: Path, cli: Callable[..., Ran]) -> None:
    with served() as url:
        ran = cli("run", many(here, url), "--yes", "--json")
        (bill,) = stats(url)["billed"]
    assert (ran.code, ran.json["ok"]) == (0, ROWS), ran.err
    standard = float(bill["input_tokens"] * PRICE_IN + bill["output_tokens"] * PRICE_OUT)
    assert ran.json["cost_usd"] == pytest.approx(standard / 2)
    assert ran.json["lanes"] == {
        "flex": {
            "calls": ROWS,
            "cost_usd": pytest.approx(standard / 2),
            "saved_usd": pytest.approx(standard / 2),
            "late": 0,
            "fell_back": {},
        }
    }
    assert "saved" in cli("report", "small").out
    assert set(calls_of(here)["lane"]) == {"flex"}


def test_what_is_turned_away_goes_on_in_standard_and_each_call_costs_what_its_lane_does(
    here: Path, cli: Callable[..., Ran]
) -> None:
    with served(flex_share=0.4) as url:
        ran = cli("run", many(here, url), "--yes", "--json")
        counted = stats(url)
    assert (ran.code, ran.json["ok"], ran.json["attempts"]) == (0, ROWS, ROWS), ran.err
    assert counted["bought_twice"] == 0 and counted["shed"] == counted["requests"] - ROWS > 100
    assert ran.json["shed"] == counted["shed"]
    assert f"turned away in flex {counted['shed']}" in " ".join(cli("report", "small").out.split())
    lanes = ran.json["lanes"]
    assert lanes["flex"]["calls"] + lanes["standard"]["calls"] == ROWS
    assert lanes["flex"]["fell_back"] == {"turned_away": lanes["standard"]["calls"]}
    assert f"fell back {lanes['standard']['calls']} of flex turned away" in " ".join(cli("report", "small").out.split())
    assert 0.65 < lanes["flex"]["calls"] / ROWS < 0.9  # 1 - 0.6³ = 0.78
    priced = calls_of(here).with_columns(
        standard=pl.col("input_tokens") * float(PRICE_IN) + pl.col("output_tokens") * float(PRICE_OUT),
        cost=pl.col("cost_usd").cast(pl.Float64),
    )
    for lane, factor in (("flex", 0.5), ("standard", 1.0)):
        own = priced.filter(pl.col("lane") == lane)
        assert own["cost"].to_list() == pytest.approx((own["standard"] * factor).to_list())
    assert ran.json["cost_usd"] == pytest.approx(priced["cost"].sum())


def test_a_changed_lane_buys_nothing_again(here: Path, cli: Callable[..., Ran]) -> None:
    with served() as url:
        first = cli("run", many(here, url, lane="standard"), "--yes", "--limit", ROWS // 2, "--json")
        second = cli("run", many(here, url), "--yes", "--json")
        assert (second.code, stats(url)["answered"]) == (0, ROWS), second.err
    assert {name: lane["calls"] for name, lane in second.json["lanes"].items()} == dict.fromkeys(
        ("standard", "flex"), ROWS // 2
    )
    assert first.json["lanes"].keys() == {"standard"}


def test_a_cap_is_a_cap_whatever_is_turned_away(here: Path, cli: Callable[..., Ran]) -> None:
    with served(flex_share=0.5) as url:
        cap = 0.001
        ran = cli("run", many(here, url, f"[budget]\nmax_usd = {cap}"), "--yes", "--json")
        report = cli("report", "small", "--json").json
    assert ran.code == 3, ran.err
    calls = calls_of(here)
    assert report["cost_usd"] == pytest.approx(float(calls["cost_usd"].sum()))
    assert 0.5 * cap < report["cost_usd"] <= cap
    assert report["ok"] > 20 and set(calls["lane"]) == {"flex", "standard"}


def test_openais_protocol_has_flex_too(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with served(flex_share=0.5) as url:
        job = many(here, url)
        job.write_text(job.read_text().replace("[endpoint]", '[endpoint]\nprovider = "openai"'))
        ran = cli("run", job, "--yes", "--json")
        counted = stats(url)
    assert (ran.code, ran.json["ok"]) == (0, ROWS), ran.err
    assert set(ran.json["lanes"]) == {"flex", "standard"} and counted["shed"] > 50


def test_each_target_has_its_own_lane(here: Path, cli: Callable[..., Ran]) -> None:
    with served(latency_s=0.02) as url:
        targets = "".join(
            f'[[target]]\nname = "{name}"\n{lane}limits = {{ concurrency = 4 }}\nkey_env = "{key}"\n'
            for name, lane, key in (("slow", "", "GEMINI_API_KEY"), ("fast", 'lane = "standard"\n', "OTHER_KEY"))
        )
        os.environ["OTHER_KEY"] = "AQ.other"
        try:
            ran = cli("run", many(here, url, targets), "--yes", "--json")
        finally:
            del os.environ["OTHER_KEY"]
    assert (ran.code, ran.json["ok"]) == (0, ROWS), ran.err
    served_by = calls_of(here).group_by("target", "lane").len().sort("target")
    assert served_by.select("target", "lane").rows() == [("fast", "standard"), ("slow", "flex")]


def test_own_prices_are_told_to_hold_in_flex_too_unless_a_factor_is_named(here: Path, cli: Callable[..., Ran]) -> None:
    with served() as url:
        job = many(here, url)
        plain = job.read_text()
        job.write_text(plain.replace("lane =", "prices = { input = 1, output = 2 }\nlane ="))
        (told,) = cli("estimate", job, "--json").json["notices"]
        assert told == "[model] prices hold in flex too; if they cost less there, add flex = 0.5 to them"
        job.write_text(plain.replace("lane =", "prices = { input = 1, output = 2, flex = 0.25 }\nlane ="))
        assert cli("estimate", job, "--json").json["notices"] == []
        ran = cli("run", job, "--yes", "--limit", 5, "--json").json
    assert ran["lanes"]["flex"]["saved_usd"] == pytest.approx(3 * ran["cost_usd"])


_DRIVER = """
from pipeline.dispatch import flex
flex.PAUSE_S = 0.02
from pipeline.store.run import RunStore
RunStore.__init__.__kwdefaults__["seal_rows"] = 7
"""


@pytest.mark.parametrize("after", [20, 90, 150])
def test_a_run_that_is_killed_in_flex_goes_on_and_buys_nothing_again(here: Path, after: int) -> None:
    with served(flex_share=0.6, latency_s=0.02) as url:
        job = many(here, url, "concurrency = 8")

        def start() -> Forked:
            return forked("run", job, "--yes", "--json", cwd=here, patch=_DRIVER)

        run = start()
        wait_for(url, "answered", after, run)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        lanes = summarize(here / "runs" / "small").lanes
        standard = lanes["standard"].calls if "standard" in lanes else 0  # of the first 20 it may have answered none
        assert sum(lanes["flex"].fell_back.values()) == standard and {*lanes["flex"].fell_back} <= {"turned_away"}
        run = start()
        _, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        counted = stats(url)
    assert counted["answered"] <= ROWS + 8 and counted["bought_twice"] <= 8
    table = pl.read_parquet(here / "out.parquet")
    assert table.height == ROWS and set(table["status"]) == {"ok"}
    assert set(calls_of(here).filter("paid")["lane"]) == {"flex", "standard"}
    lanes = summarize(here / "runs" / "small").lanes
    assert sum(lanes["flex"].fell_back.values()) == lanes["standard"].calls


def test_an_estimate_in_flex_is_what_the_run_costs_when_half_is_served(here: Path, cli: Callable[..., Ran]) -> None:
    with served(flex_share=0.5) as url:
        standard = cli("estimate", many(here, url, lane="standard"), "--json").json["cost_usd"]
        made = cli("estimate", many(here, url), "--json").json
        ran = cli("run", many(here, url), "--yes", "--json").json
    assert made["cost_usd"]["expected"] == pytest.approx(standard["expected"] * 0.5625)  # an eighth pays the full price
    assert made["cost_usd"]["low"] == pytest.approx(standard["low"] / 2)
    assert made["cost_usd"]["high"] == pytest.approx(standard["high"])
    parts = {part["lane"]: part["prompts"] for part in made["lanes"]}
    assert parts == {"flex": ROWS * 7 // 8, "standard": ROWS // 8}
    paid = sum(lane["cost_usd"] for lane in ran["lanes"].values())
    full = paid + sum(lane["saved_usd"] for lane in ran["lanes"].values())
    assert paid / full == pytest.approx(0.5625, abs=0.05)
    for lane, calls in parts.items():
        assert ran["lanes"][lane]["calls"] == pytest.approx(calls, abs=ROWS * 0.07)
