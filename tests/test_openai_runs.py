"""Whole runs of a job with `provider = "openai"`: offline, over a socket, refused, stopped, killed and gone on with."""

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from commands import UNLIMITED, Ran, small_job
from forking import Forked, forked
from serving import served, stats, wait_for
from test_docs import PAGES, blocks

from pipeline.emulator import parse_faults
from pipeline.emulator.limits import next_midnight

KEY = "sk-key-that-no-file-may-hold"
ENDPOINT = '[endpoint]\nprovider = "openai"\n'


def job(here: Path, url: str = "", limits: str = UNLIMITED) -> Path:
    return small_job(here, f'{ENDPOINT}base_url = "{url}"\n{limits}' if url else f"{ENDPOINT}{limits}")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_a_rehearsal_speaks_the_protocol_of_the_job(here: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("run", job(here), "--offline", "--json")
    assert (ran.code, ran.json["ok"]) == (0, 6), ran.err
    calls = pl.concat([pl.read_parquet(path) for path in here.glob("runs/small-offline/calls/*.parquet")])
    assert set(calls["endpoint"]) == {"openai@emulator"}


@pytest.mark.parametrize("path", ["", "/v1/", "/v1beta/openai", "/api/v1", "/v1/chat/completions"])
def test_a_run_over_a_socket_costs_what_the_service_bills(here: Path, cli: Callable[..., Ran], path: str) -> None:
    with served(thinking_tokens=9) as url:
        ran = cli("run", job(here, f"{url}{path}"), "--yes", "--json")
        (bill,) = stats(url)["billed"]
    assert (ran.code, ran.json["ok"]) == (0, 6), ran.err
    assert ran.json["input_tokens"] == bill["input_tokens"]
    price = bill["input_tokens"] * 0.30e-6 + (bill["output_tokens"] + bill["thinking_tokens"]) * 2.50e-6
    assert ran.json["cost_usd"] == pytest.approx(price, rel=1e-6)


def test_check_estimate_run_and_report_against_an_emulator(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(marked=True) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        path = job(here, "https://relay.example/v1")
        checked = cli("check", path)
        assert checked.code == 0 and "openai@127.0.0.1" in checked.out + checked.err
        assert cli("estimate", path, "--json").json["prompts"] == 6
        exact = cli("estimate", path, "--exact")
        assert exact.code != 0 and "OpenAI's protocol has no request that counts tokens" in exact.err
        ran = cli("run", path, "--yes", "--json")
        assert (ran.code, ran.json["ok"], ran.json["cost_usd"]) == (0, 6, 0.0), "a rehearsal"
        assert cli("report", "small-rehearsal").code == 0


def test_a_path_without_a_listing_is_told_with_what_it_may_be(here: Path, cli: Callable[..., Ran]) -> None:
    with served() as url:
        checked = cli("check", job(here, f"{url}/elsewhere"))
    told = " ".join((checked.out + checked.err).split())
    assert checked.code != 0 and "Most end in /v1" in told and "--limit 1" in told


@pytest.mark.parametrize(
    ("faults", "code", "words"),
    [
        ("expired401", 2, "refuses"),
        ("no_quota429", 3, "You exceeded your current quota"),
        ("no_channel", 3, "无可用渠道"),
    ],
)
def test_what_stops_a_run_is_told_and_no_file_holds_the_key(
    here: Path, cli: Callable[..., Ran], faults: str, code: int, words: str
) -> None:
    with served(faults=faults) as url:
        ran = cli("run", job(here, url), "--yes")
    assert ran.code == code and words in ran.err, ran.err
    assert KEY not in ran.err + ran.out
    assert not any(file.is_file() and KEY.encode() in file.read_bytes() for file in here.rglob("*"))


def test_a_days_quota_stops_a_run_that_can_be_continued(here: Path, cli: Callable[..., Ran]) -> None:
    to_noon_s = next_midnight(time.time()) - time.time() - 43_200  # a wait of minutes may be that of a rolling day
    with served(rpd=4, offset_s=to_noon_s) as url:
        ran = cli("run", job(here, url), "--yes")
        assert ran.code == 3 and "day" in ran.err
        assert stats(url)["answered"] == 4 and stats(url)["rate_limited"] <= 4


def test_a_pace_that_is_granted_is_kept(here: Path, cli: Callable[..., Ran]) -> None:
    with served(rpm=600) as url:
        ran = cli("run", job(here, url, "[limits]\nrpm = 600\ntpm = 0"), "--yes")
        assert ran.code == 0 and stats(url)["rate_limited"] == 0, ran.err


def test_busy_relays_are_waited_for_and_filtered_prompts_are_rows_of_their_own(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dispatch.retries.BACKOFF_FIRST_S", 0.01)
    with served(faults="quota500*1,filter400*1,nested503*1") as url:
        ran = cli("run", job(here, url), "--yes", "--json")
    assert ran.json["ok"] == 5, ran.err
    table = pl.read_parquet("out.parquet").filter(pl.col("status") != "ok")
    assert table.select("status", "error_kind").rows() == [("blocked", "prompt_blocked")]


def test_a_run_that_is_killed_goes_on_and_buys_nothing_again(tmp_path: Path) -> None:
    rows = 400
    (tmp_path / "words.csv").write_text("word\n" + "".join(f"word number {n}\n" for n in range(rows)))
    with served(latency_s=0.02) as url:
        path = job(tmp_path, url, f"{UNLIMITED}\nconcurrency = 4")
        (tmp_path / "words.csv").write_text("word\n" + "".join(f"word number {n}\n" for n in range(rows)))

        def start() -> Forked:
            return forked("run", path, "--yes", "--json", cwd=tmp_path, env={"OPENAI_API_KEY": KEY})

        process = start()
        wait_for(url, "answered", rows // 4, process)
        process.kill()
        process.communicate()
        time.sleep(0.1)  # what was in flight ends
        at_kill = stats(url)["answered"]
        out, err = start().communicate(timeout=60)
        seen = stats(url)
    assert out, err.decode()
    result = json.loads(out)
    assert (result["ok"], result["rows"]) == (rows, rows)
    assert rows // 4 <= at_kill < rows
    assert seen["answered"] - rows <= 4, "no more than what was in flight is bought again"


PAGE = PAGES["docs/services.md"]


@pytest.mark.parametrize("number", range(len(blocks(PAGE, "toml"))))
def test_each_example_of_the_page_is_checked_and_run_as_it_says(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (here / "reviews.csv").write_text("id,review\nr1,Works as promised.\nr2,Arrived broken.\n")
    (here / "reviews.toml").write_text(blocks(PAGE, "toml")[number])
    monkeypatch.delenv("OPENAI_API_KEY")
    with served(models=("gpt-5-mini", "qwen3:8b")) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)  # in place of the address in the example
        for line in blocks(PAGE, "sh")[number].splitlines():
            first, *rest = shlex.split(line, comments=True)
            if first == "export":
                monkeypatch.setenv(*rest[0].replace("…", "0123456789").split("=", 1))
                continue
            assert first == "pipeline"
            ran = cli(*rest, *(["--yes"] if rest[0] == "run" else []))
            assert ran.code == 0, ran.err + ran.out
        assert stats(url)["answered"] == 2, "the second run buys only what the first left"
    assert len(pl.read_csv("results/reviews.csv").filter(status="ok")) == 2


def test_the_rehearsal_of_the_page_is_one(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "reviews.csv").write_text("id,review\nr1,Works as promised.\nr2,Arrived broken.\n")
    (here / "reviews.toml").write_text(blocks(PAGE, "toml")[0])
    serve, run = (shlex.split(line) for line in blocks(PAGE, "sh")[-1].splitlines())
    flags = dict(zip(serve[2::2], serve[3::2], strict=True))
    faults, model = parse_faults(flags["--faults"]), flags["--model"]
    with served(marked=True, rpm=int(flags["--rpm"]), models=(model,)) as url:
        for setting in run[:2]:
            name, value = setting.split("=", 1)
            monkeypatch.setenv(name, value.replace("http://127.0.0.1:8089", url))
        ran = cli(*run[3:], "--yes")
    assert faults.rates and ran.code == 0, ran.err
    assert len(pl.read_csv("results/reviews-rehearsal.csv").filter(status="ok")) == 2
