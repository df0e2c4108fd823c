"""A run is a rehearsal or real as a whole, however the emulator was reached, and the two never mix."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import polars as pl
import pytest
from asking import opening
from commands import UNLIMITED, Ran, small_job
from forwarding import forwarding
from serving import served, stats
from sessions import run_through

from pipeline.emulator import Emulator, EmulatorOptions
from pipeline.emulator.http import Receive, Scope, Send
from pipeline.errors import ServiceError
from pipeline.job import Job, load
from pipeline.run import prepare
from pipeline.run.ending import Ended

Cli = Callable[..., Ran]


@pytest.fixture(autouse=True)
def key(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    return here


@pytest.mark.case("O5")
@pytest.mark.parametrize("way", ["variable", "base_url", "tunnel"])
def test_a_served_rehearsal_is_apart_however_it_was_reached(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    job = small_job(here, UNLIMITED)
    plain = job.read_text()
    with served(marked=True) as emulator, served() as service, forwarding(emulator) as tunnel:
        if way == "variable":
            monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", emulator)
        elif way == "base_url":
            job.write_text(plain + f'\n[endpoint]\nbase_url = "{emulator}"\n')
        else:
            monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", tunnel.url)
        first = cli("run", job, "--json")
        assert first.out, first.err
        rehearsed = first.json
        assert stats(service)["requests"] == 0
        assert (rehearsed["rehearsal"], rehearsed["ok"], rehearsed["cost_usd"]) == (True, 6, 0.0)
        assert (rehearsed["run_dir"], rehearsed["output"]) == ("runs/small-rehearsal", "out-rehearsal.parquet")
        assert not (here / "out.parquet").exists()

        job.write_text(plain)
        tunnel.target = service
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", tunnel.url if way == "tunnel" else service)
        real = cli("run", job, "--yes", "--json").json
        assert stats(service)["answered"] == 6, "all are bought: the rehearsal answered none of them"
        assert (real["rehearsal"], real["ok"], real["run_dir"]) == (False, 6, "runs/small")
        assert real["cost_usd"] > 0
        labels = {Path(each["run_dir"]).name: each["rehearsal"] for each in json.loads(cli("runs", "--json").out)}
        assert labels == {"small": False, "small-rehearsal": True}
        assert "rehearsal: the emulator's answers" in cli("report", "runs/small-rehearsal").out
        assert "rehearsal" in cli("runs").out


@pytest.mark.case("O5")
def test_a_rehearsal_shares_neither_books_nor_cache(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    job = small_job(here, UNLIMITED + "\n[cache]\n[budget]\nmax_usd_per_day = 5.0")
    state = Path(os.environ["XDG_STATE_HOME"]) / "prompt-pipeline"
    with served(marked=True) as emulator, served() as service, forwarding(emulator) as tunnel:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", tunnel.url)
        assert cli("run", job).code == 0
        assert cli("run", job, "--fresh", "--json").json["cached"] == 6, "rehearsals have a cache of their own"
        assert not (state / "spend.sqlite").exists() and not (state / "quota.sqlite").exists()
        tunnel.target = service
        assert cli("run", job, "--yes", "--json").json["cached"] == 0
        assert stats(service)["answered"] == 6


@pytest.mark.case("O6")
def test_an_estimate_learns_nothing_from_a_rehearsal(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    job = small_job(here, UNLIMITED)
    before = cli("estimate", job, "--json").json
    with served(marked=True) as emulator:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", emulator)
        assert cli("run", job).code == 0
        monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL")
        after = cli("estimate", job, "--json").json
        for key in ("prompts", "documents_done", "cost_usd", "input_tokens", "output_tokens", "based_on"):
            assert after[key] == before[key], key
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", emulator)
        pilot = cli("estimate", small_job(here, UNLIMITED, "Tell {{ word }}"), "--pilot", 2, "--json")
        assert pilot.code == 0 and "runs/small-rehearsal was made" in pilot.err, "a pilot of a rehearsal is one too"


def turning(job: Job, monkeypatch: pytest.MonkeyPatch, emulator_first: bool, after: int) -> Ended:
    """Run the job while the service behind its address becomes an emulator, or stops being one, after some answers."""
    apps = [
        Emulator(EmulatorOptions(marked=marked, model_version=None)) for marked in (emulator_first, not emulator_first)
    ]
    asked = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += scope["path"].endswith(":generateContent")
        await apps[asked > after](scope, receive, send)

    opened = opening(httpx.ASGITransport(app))

    return run_through(prepare.prepare(job, prepare.Options()), opening=opened)


@pytest.mark.case("O5")
def test_a_real_run_that_meets_an_emulator_in_its_middle_stops_and_takes_nothing_of_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load(small_job(here, UNLIMITED + "\nconcurrency = 1"))
    ended = turning(job, monkeypatch, emulator_first=False, after=2)
    assert ended.exit_code == 3 and isinstance(ended.stopped, ServiceError)
    assert "emulator" in ended.stopped.message
    assert ended.summary.done == ended.summary.outcomes["ok"] == ended.summary.calls == 2
    kept = b"".join(path.read_bytes() for path in Path("runs/small").rglob("*") if path.is_file())
    assert b"pipelineEmulator" not in kept
    assert pl.read_parquet("out.parquet")["status"].to_list().count("pending") == 4
    whole = turning(job, monkeypatch, emulator_first=False, after=99)
    assert whole.exit_code == 0 and whole.summary.calls == 6, "the same command goes on"


@pytest.mark.case("O5")
def test_a_rehearsal_that_is_answered_by_a_real_service_stops_and_says_that_it_may_bill(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load(small_job(here, UNLIMITED + "\nconcurrency = 1"))
    ended = turning(job, monkeypatch, emulator_first=True, after=2)
    assert ended.exit_code == 3 and isinstance(ended.stopped, ServiceError)
    assert "may bill" in ended.stopped.message
    assert ended.summary.directory == Path("runs/small-rehearsal") and ended.summary.done == 2


@pytest.mark.case("D15")
def test_a_real_job_that_bears_the_name_of_a_rehearsal_never_takes_its_answers(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED)
    assert cli("run", job, "--offline").code == 0
    namesake = here / "small-offline.toml"
    namesake.write_text(job.read_text())
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        refused = cli("run", namesake, "--yes")
        assert refused.code == 2 and "emulator" in refused.err and "--fresh" in refused.err
        assert stats(url)["requests"] == 0 and not (here / "out.parquet").exists()
        assert cli("estimate", namesake, "--json").json["documents_done"] == 0
        assert cli("run", namesake, "--yes", "--fresh").code == 0
        assert stats(url)["answered"] == 6


@pytest.mark.case("D15")
@pytest.mark.parametrize("name", ["..toml", ".toml", "...toml", "a\nb.toml", "a\x1b[2J.toml"])
def test_a_job_whose_name_cannot_name_a_directory_is_refused(here: Path, cli: Cli, name: str) -> None:
    path = here / name
    path.write_text(small_job(here).read_text())
    refused = cli("run", path, "--offline")
    assert refused.code == 2 and "name" in refused.err
    assert not (here / "runs").exists()


def test_offline_a_days_quota_is_not_obeyed_unless_asked(here: Path, cli: Cli) -> None:
    job = small_job(here, "[limits]\nrpm = 2\nrpd = 3")
    ran = cli("run", job, "--offline")
    assert ran.code == 0 and ran.err.count("`--pace`") == 1 and "rpm, rpd" in ran.err
    assert "rpm, rpd" in cli("estimate", job, "--offline").out
    assert "--pace" not in cli("estimate", job).out, "a real run always obeys them"
    paced = cli("run", job, "--offline", "--pace", "--fresh", "--rpm", 6000)
    assert paced.code == 3 and "day's quota" in paced.err
    flagged = cli("run", job, "--offline", "--rpd", 4, "--fresh")
    assert flagged.code == 3 and "day's quota" in flagged.err


def test_the_day_of_a_rehearsal_is_its_own(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    job = small_job(here, "[limits]\nrpm = 0\ntpm = 0\nrpd = 4")
    with served(marked=True) as emulator:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", emulator)
        for flags, calls in (([], 4), ([], 4), (["--fresh"], 4)):
            ran = cli("run", job, "--json", *flags)
            assert ran.code == 3 and ran.json["calls"] == calls and "day's quota" in ran.err
        assert stats(emulator)["requests"] == 8, "one that goes on has had its day, and the next has one of its own"
        job.rename("other.toml")
        foreseen = cli("run", "other.toml", "--dry-run", "--json").json
        assert foreseen["nights"] == 2 and foreseen["days"][0]["prompts"] == 4, (
            "6 calls at 4 a day, whatever others had"
        )


def test_estimates_look_at_the_real_run_beside_a_rehearsal(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED)
    with served(marked=True) as emulator:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", emulator)
        assert cli("run", job).code == 0
        monkeypatch.delenv("GEMINI_API_KEY")
        before = stats(emulator)["requests"]
        told = [cli("estimate", job, "--json", *flags).json for flags in ([], ["--sample", 6])]
        assert [each["prompts"] for each in told] == [6, 6] and told[0]["cost_usd"] == told[1]["cost_usd"]
        assert stats(emulator)["requests"] == before
