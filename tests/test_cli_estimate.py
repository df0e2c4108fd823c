"""`pipeline estimate` as a user types it."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from commands import UNLIMITED, Ran, small_job
from playing import playing
from rich.cells import cell_len
from serving import served, stats

from pipeline.plan.picks import Effort
from pipeline.store.parts import read_parts


def with_key(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


def test_everything_at_once_fits_80_columns(here: Path, cli: Callable[..., Ran]) -> None:
    rows = ["id,body", *(f"a-rather-long-identifier-{row},{'word ' * (row * 40)}" for row in range(60))]
    (here / "long.csv").write_text("\n".join([*rows, "again," + "word " * 80, "none,", ""]))
    (here / "long.toml").write_text(
        '[input]\npath = "long.csv"\nid = "id"\ntext = "body"\n[prompt]\ntemplate = "{{ text }}"\n'
        '[chunk]\nmax_tokens = 500\n[reduce]\ntemplate = "{{ parts }}"\n[model]\nname = "gemini-2.5-flash"\n'
        '[limits]\nrpm = 5\ntpm = 2000\nrpd = 20\n[output]\npath = "out.parquet"\n'
    )
    ran = cli("estimate", "long.toml", "--compare", "--by", "07:00")
    assert ran.code == 0, ran.err
    assert [line for line in ran.out.splitlines() if cell_len(line) > 80] == []
    for word in ("repeat an earlier row", "empty, not sent", "cut into pieces", "does not fit", "days of quota"):
        assert word in ran.out
    assert "switched off on 2026-12-01" in " ".join(ran.out.split())
    assert "word word" not in ran.out, "text of the input is not shown"


def test_a_pilot_is_part_of_the_run(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    job = small_job(here, UNLIMITED)
    with served(model_version=None, tokenizer="fine") as url:
        with_key(monkeypatch, url)
        before = cli("estimate", job, "--json").json
        piloted = cli("estimate", job, "--pilot", 4, "--yes", "--json")
        assert piloted.code == 0, piloted.err
        after = piloted.json
        assert stats(url)["answered"] == 4
        assert not (here / "out.parquet").exists()
        assert cli("report", "--json").json["status"] == "pilot"
        ran = cli("run", job, "--yes", "--json").json
        assert stats(url)["answered"] == 6
    assert "pilot of 4 rows: 4 calls, $" in piloted.err
    assert "pilot: 4 rows (4 ok), 4 calls, $" in piloted.err and "kept for the run" in piloted.err
    assert before["bounds_only"] and not after["bounds_only"]
    assert (after["documents"], after["documents_done"], after["prompts"]) == (2, 4, 2)
    assert after["based_on"] == "4 answers of this run"
    assert len(after["steps"]["answer"]["answer_tokens"]) == 3
    assert (ran["ok"], ran["calls"]) == (6, 6)
    assert ran["accuracy"]["total"]["calls"] == [6, 6], "what the pilot bought is on both sides"
    calls = pl.concat(read_parts(here / "runs" / "small" / "calls", ("row", "input_tokens", "cost_usd")))
    assert sorted(calls["row"]) == list(range(6))
    bought = int(calls["input_tokens"].sum())
    assert abs(bought - ran["accuracy"]["total"]["input_tokens"][0]) <= 0.05 * bought


def test_a_pilot_asks_before_it_spends_and_keeps_the_budget(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED)
    with served(model_version=None) as url:
        with_key(monkeypatch, url)
        unasked = cli("estimate", job, "--pilot", 3)
        assert (unasked.code, unasked.out) == (2, "")
        assert "--yes" in unasked.err
        assert stats(url)["answered"] == 0
        capped = cli("estimate", job, "--pilot", 3, "--yes", "--max-cost", "0.0000001")
        assert capped.code == 3
        assert stats(url)["answered"] == 0


def test_an_exact_count_corrects_the_estimate_and_spends_nothing(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tokenizer="fine") as url:
        with_key(monkeypatch, url)
        plain = cli("estimate", "jobs/generate.toml", "--json").json
        exact = cli("estimate", "jobs/generate.toml", "--exact", "--json").json
        assert stats(url)["answered"] == 0
        ran = cli("run", "jobs/generate.toml", "--rpm", 0, "--tpm", 0, "--yes", "--json").json
    assert exact["based_on"] == "24 counted prompts"
    assert exact["input_tokens"] == pytest.approx(ran["input_tokens"], rel=0.01)
    width = exact["input_tokens_range"]["high"] - exact["input_tokens_range"]["low"]
    assert width < plain["input_tokens_range"]["high"] - plain["input_tokens_range"]["low"]
    assert abs(plain["input_tokens"] - ran["input_tokens"]) > abs(exact["input_tokens"] - ran["input_tokens"])


def test_an_exact_count_needs_a_key_and_a_service_that_counts(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = cli("estimate", "jobs/generate.toml", "--exact")
    assert ran.code == 2
    assert "GEMINI_API_KEY" in ran.err
    with served() as url:
        with_key(monkeypatch, url)
        monkeypatch.setenv("GEMINI_API_KEY", "invalid-key")
        ran = cli("estimate", "jobs/generate.toml", "--exact")
    assert ran.code == 2
    assert "API key not valid" in ran.err
    assert "invalid-key" not in ran.err


NO_COUNTS: list[object] = [0, "0", -5, 1.5, 10**18, "many", None, True, [], {"n": 1}]


@pytest.mark.case("S7")
@pytest.mark.parametrize(
    "counted",
    [
        *[{"totalTokens": value} for value in NO_COUNTS],
        {},
        [],
        "5",
        {"totaltokens": 5},
    ],
    ids=str,
)
def test_a_count_that_is_none_is_told_and_taken_for_nothing(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, counted: object
) -> None:
    with playing() as service:
        service.counted = counted
        with_key(monkeypatch, service.url)
        ran = cli("estimate", small_job(here, UNLIMITED), "--exact")
        assert not service.answered, "nothing is bought"
    assert ran.code == 3 and "Traceback" not in ran.err
    assert "the service counts no prompt" in ran.err and "without --exact nothing is asked" in ran.err


def test_compare_lists_models_and_what_saves(here: Path, cli: Callable[..., Ran]) -> None:
    made = cli("estimate", "jobs/summarize.toml", "--compare", "--json").json
    cheapest = [offer for offer in made["offers"] if offer["cheapest"]]
    assert len(cheapest) == 1
    same = next(
        offer for offer in made["offers"] if (offer["model"], offer["lane"]) == ("gemini-3.5-flash-lite", "standard")
    )
    assert same["cost_usd"] == pytest.approx(made["cost_usd"]["expected"])
    assert cheapest[0]["cost_usd"] <= same["cost_usd"]
    assert {"flex", "batch", "chunk_size", "shared_prefix"} == {saving["what"] for saving in made["savings"]}


def test_by_says_whether_it_fits_and_what_would(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, "[limits]\nrpm = 1\ntpm = 0")
    made = cli("estimate", job, "--by", "2999-01-01 07:00", "--json").json["deadline"]
    assert made["fits"] and made["margin_s"] > 0
    assert cli("estimate", job, "--by", "").code == 2, "a variable that is not set is no time"
    late = cli("estimate", job, "--by", "yesterday")
    assert late.code == 2
    assert "yesterday" in late.err and "07:00" in late.err


def test_an_estimate_writes_nothing(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", small_job(here, UNLIMITED), "--offline", "--limit", 3)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert cli("estimate", small_job(here, UNLIMITED), "--offline", "--compare").code == 0
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    written = {path.name for path in after if after[path] != before.get(path)}
    assert written <= {"words.csv", "small.toml"}, "made again by the test itself"


def test_the_whole_table_is_counted_on_request(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.estimating.USUAL", Effort(2, 10**6, 2, 10**6))
    job = small_job(here, UNLIMITED)
    assert 0 < cli("estimate", job, "--json").json["sampled_rows"] < 6
    assert cli("estimate", job, "--all", "--json").json["sampled_rows"] == 0


def test_when_all_is_done_it_says_so(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    assert cli("run", job, "--offline").code == 0
    again = cli("estimate", job, "--offline", "--pilot", 3, "--compare", "--by", "07:00")
    assert (again.code, again.err) == (0, "")
    assert "6   all done" in again.out and "nothing is left to be sent" in again.out
    assert "$" not in again.out
    assert "all 6 rows are done: nothing is left to be sent" in cli("run", job, "--offline").err


def test_a_budget_that_is_too_small_is_told_before_the_run(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, "[budget]\nmax_usd = 0.0002")
    (expected,) = cli("estimate", job, "--json").json["notices"]
    assert "is expected to reach [budget] max_usd, $0.0002" in expected
    (possible,) = cli("estimate", job, "--max-cost", "0.0006", "--json").json["notices"]
    assert "may reach --max-cost, $0.0006" in possible, "the flag wins"
    assert cli("estimate", job, "--max-cost", "5", "--json").json["notices"] == []
    assert cli("estimate", job, "--offline", "--json").json["notices"] == [], "the emulator costs nothing"
    assert cli("estimate", job, "--max-cost", "lots").code == 2


def test_a_column_in_a_system_instruction_is_told_to_stay_as_it_stands(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    plain = job.read_text()
    told = "[prompt] system is sent as it stands: {{ word }} in it is not filled in"
    job.write_text(plain.replace("[model]", 'system = "Explain {{word}}."\n[model]', 1))
    assert told in cli("estimate", job, "--json").json["notices"][0]
    assert told in " ".join(cli("run", job, "--offline").err.split())
    job.write_text(plain.replace("[model]", 'system = "Leave {{name}} as it is."\n[model]', 1))
    assert cli("estimate", job, "--json").json["notices"] == []


def test_what_a_run_has_spent_counts_to_its_budget(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED)
    with served(model_version=None) as url:
        with_key(monkeypatch, url)
        spent = cli("run", job, "--yes", "--limit", 3, "--json").json["cost_usd"]
        left = cli("estimate", job, "--json").json["cost_usd"]
        cap = f"{spent / 2 + left['high']:.8f}"
        assert cap > f"{left['high']:.8f}"
        assert "reach --max-cost" in cli("estimate", job, "--max-cost", cap, "--json").json["notices"][0]
        assert "reach --max-cost" in cli("run", job, "--yes", "--max-cost", cap).err


def test_a_run_of_another_job_under_this_name_is_told(here: Path, cli: Callable[..., Ran]) -> None:
    assert cli("run", small_job(here, UNLIMITED), "--offline").code == 0
    made = cli("estimate", small_job(here, UNLIMITED, "Tell {{ word }}"), "--offline", "--json").json
    assert made["documents"] == 6
    assert "[prompt] template" in made["notices"][0] and "begins generation 2" in made["notices"][0]


def test_a_rehearsal_can_be_estimated_beside_real_answers(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED)
    with served() as url:
        with_key(monkeypatch, url)
        assert cli("run", job, "--yes").code == 0
    assert cli("estimate", job, "--offline").code == 0
    assert cli("run", job, "--offline", "--json").json["output"] == "out-offline.parquet"


def test_prices_of_the_job_stand_beside_the_list(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here)
    assert "as planned above" not in cli("estimate", job, "--compare").out
    job.write_text(job.read_text().replace("[output]", "prices = { input = 1.0, output = 2.0 }\n[output]"))
    assert "this job as planned above: $0.0003" in cli("estimate", job, "--compare").out


def test_a_row_that_is_not_sent_does_not_rule_models_out(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    (here / "words.csv").write_text("word\n" + "word " * 1_200_000 + "\nbeta\n")
    made = cli("estimate", job, "--compare", "--json").json
    assert made["found"]["too_long"]["rows"] == 1
    assert all(offer["fits"] for offer in made["offers"])


def test_ctrl_c_ends_the_question_before_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = small_job(here, UNLIMITED)
    with served() as url:
        with_key(monkeypatch, url)
        terminal, end = pty.openpty()
        command = [sys.executable, "-m", "pipeline", "estimate", str(job), "--pilot", "2"]
        with subprocess.Popen(command, stdin=end, stdout=end, stderr=end) as process:
            os.close(end)
            said = b""
            while b"Continue?" not in said:
                said += os.read(terminal, 1024)
            time.sleep(0.5)  # a signal just before the read would only be seen after it
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(timeout=10) == 130
            finally:
                process.kill()
        os.close(terminal)
        assert stats(url)["answered"] == 0


def test_a_cost_that_was_declined_binds_nobody_to_the_job(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served() as url:
        with_key(monkeypatch, url)
        assert cli("run", small_job(here, UNLIMITED)).code == 2, "nobody is here to agree"
        changed = small_job(here, UNLIMITED, "Tell {{ word }}")
        assert cli("estimate", changed, "--json").json["notices"] == []
        assert cli("run", changed, "--yes", "--limit", 2).code == 0
        edited = cli("run", small_job(here, UNLIMITED), "--yes", "--json")
    assert edited.code == 0 and edited.json["generation"] == 2, "two rows bind it"


def test_what_comes_of_limits_that_never_grow_is_said_where_it_is_another_time(
    here: Path, cli: Callable[..., Ran]
) -> None:
    job = small_job(here)
    for rows, is_said in ((2, False), (400, True)):
        (here / "words.csv").write_text("word\n" + "".join(f"word {row}\n" for row in range(rows)))
        said = cli("estimate", job)
        assert said.code == 0, said.err
        assert ("if the limits never grow it takes" in said.out) is is_said, said.out
