"""The command line as a user meets it: streams, exit codes, words. Runs in a copy of jobs/ and sample_data/."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from commands import UNLIMITED, Ran, small_job
from serving import served, stats

RUN_KEYS = [
    "run",
    "rehearsal",
    "status",
    "rows",
    "ok",
    "truncated",
    "blocked",
    "invalid",
    "error",
    "causes",
    "calls",
    "attempts",
    "rate_limited",
    "shed",
    "identical",
    "cached",
    "saved_usd",
    "generation",
    "kept",
    "kept_usd",
    "before_usd",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "thinking_tokens",
    "cost_usd",
    "at_most_usd",
    "uncertain",
    "usage_estimated",
    "targets",
    "lanes",
    "batches",
    "left_out",
    "models_noted",
    "seconds",
    "bound_s",
    "output",
    "output_finished",
    "run_dir",
    "accuracy",
]
ESTIMATE_KEYS = [
    *("documents", "documents_done", "documents_chunked", "prompts", "prompts_range", "prompts_by_step"),
    *("input_tokens", "input_tokens_range", "output_tokens", "cost_usd", "steps", "targets"),
    *("lanes", "batches", "found"),
    *("seconds", "finish_at", "nights", "days", "bottleneck", "model", "prices_dated", "sampled_rows"),
    *("bounds_only", "based_on", "assumptions", "notices", "deadline", "offers", "savings"),
]
JOBS = ("summarize", "generate", "extract", "describe", "read_pdf")


@pytest.mark.parametrize("name", JOBS)
def test_the_shipped_jobs_run_offline(here: Path, cli: Callable[..., Ran], name: str) -> None:
    ran = cli("run", f"jobs/{name}.toml", "--offline", "--rpm", 0, "--tpm", 0, "--json")
    assert ran.code == 0, ran.err
    result = ran.json
    assert list(result) == RUN_KEYS
    assert result["status"] == "finished"
    assert result["ok"] == result["rows"] > 0
    assert result["cost_usd"] == 0
    assert Path(result["output"]).exists()


@pytest.mark.parametrize("name", JOBS)
def test_the_estimate_counts_the_prompts_of_the_run(here: Path, cli: Callable[..., Ran], name: str) -> None:
    estimate = cli("estimate", f"jobs/{name}.toml", "--json").json
    assert list(estimate) == ESTIMATE_KEYS
    assert estimate["cost_usd"]["low"] <= estimate["cost_usd"]["expected"] <= estimate["cost_usd"]["high"]
    ran = cli("run", f"jobs/{name}.toml", "--offline", "--rpm", 0, "--tpm", 0, "--json").json
    assert ran["calls"] == estimate["prompts"]
    assert abs(ran["input_tokens"] - estimate["input_tokens"]) < 0.15 * ran["input_tokens"]


def test_summaries_are_in_input_order_with_the_promised_columns(here: Path, cli: Callable[..., Ran]) -> None:
    assert cli("run", "jobs/summarize.toml", "--offline", "--rpm", 0, "--tpm", 0).code == 0
    table = pl.read_parquet("results/summaries-offline.parquet")
    own = pl.read_parquet("sample_data/licences.parquet")
    assert table["doc_id"].to_list() == own["doc_id"].to_list()
    assert table.columns == [name for name in own.columns if name != "body"] + [
        "status",
        "response",
        "error_kind",
        "error",
        "finish_reason",
        "model",
        "target",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "thinking_tokens",
        "usage_estimated",
        "cost_usd",
        "calls",
        "chunks",
        "attempts",
        "latency_s",
        "finished_at",
    ]
    assert set(table["model"]) == {"emulator"}
    assert table.schema["error_kind"] == pl.String
    chunked = table.filter(pl.col("chunks") > 1)
    assert (chunked["calls"] > chunked["chunks"]).all()
    assert (table.filter(pl.col("chunks") == 1)["calls"] == 1).all()


def test_running_again_buys_nothing_again(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    first = cli("run", job, "--offline", "--json").json
    before = pl.read_parquet("out-offline.parquet")
    again = cli("run", job, "--offline", "--json").json
    assert again["calls"] == first["calls"] == 6
    assert pl.read_parquet("out-offline.parquet").equals(before)


def test_limit_runs_the_first_rows_and_the_next_run_the_rest(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    first = cli("run", job, "--offline", "--limit", 2, "--json").json
    assert (first["rows"], first["calls"]) == (2, 2)
    assert pl.read_parquet("out-offline.parquet")["word"].to_list() == ["alpha", "beta"]
    rest = cli("run", job, "--offline", "--json").json
    assert (rest["rows"], rest["ok"], rest["calls"]) == (6, 6, 6)


def test_the_commands_of_hints_can_be_typed_as_they_are(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED, template="{{ word }}").rename(here / "my job.toml").name
    assert "`pipeline estimate 'my job.toml'`" in cli("check", job, "--offline").err
    (here / "words.csv").write_text('word\nalpha\n" "\n')
    assert "`pipeline report 'runs/my job-offline' --failed`" in cli("run", job, "--offline").err


def test_rows_beyond_a_smaller_limit_are_told_apart(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    cli("run", job, "--offline")
    fewer = cli("run", job, "--offline", "--limit", 2, "--overwrite")
    assert fewer.code == 0 and pl.read_parquet("out-offline.parquet").height == 2
    assert "rows 2 ok 4 more are kept beyond `--limit`" in " ".join(fewer.err.split())
    assert "against the estimate" not in fewer.err, "that was made for two rows, and six were bought"
    told = cli("runs", "--json").json[0]
    assert (told["rows"], told["ok"], told["calls"]) == (2, 2, 6)
    assert cli("runs").out.splitlines()[1].split()[1:7] == ["1", "finished", "2", "/", "2", "2"]


def test_identical_prompts_are_sent_once(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    (here / "words.csv").write_text("word\n" + "same\n" * 20 + "other\n")
    ran = cli("run", job, "--offline", "--json").json
    assert (ran["ok"], ran["calls"], ran["identical"]) == (21, 2, 19)
    assert "19 by identical prompts, worth $0.00" in cli("report").out
    table = pl.read_parquet("out-offline.parquet")
    assert table["response"].n_unique() == 2
    assert table["calls"].sum() == 2


def test_a_changed_prompt_begins_a_generation_and_keeps_the_old_one(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", small_job(here, UNLIMITED), "--offline")
    job = small_job(here, UNLIMITED, template="Sing {{ word }}")
    edited = cli("run", job, "--offline", "--json")
    assert edited.code == 0 and edited.json["generation"] == 2
    assert "generation 2" in edited.err and "[prompt] template" in edited.err
    fresh = cli("run", job, "--offline", "--fresh", "--json").json
    assert (fresh["generation"], fresh["kept"], fresh["calls"]) == (3, 0, 6)
    assert len(list((here / "runs").glob("small-offline*"))) == 3


def test_limits_and_output_may_change(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    cli("run", job, "--offline")
    again = cli("run", job, "--offline", "--out", "other.csv", "--rpm", 5000)
    assert again.code == 0
    assert pl.read_csv("other.csv").height == 6


def test_a_real_run_speaks_the_wire_and_counts_money(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(model_version=None) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        ran = cli("run", small_job(here, UNLIMITED), "--yes", "--json")
    assert ran.code == 0, ran.err
    table = pl.read_parquet("out.parquet")
    price = int(table["input_tokens"].sum()) * 0.30e-6 + int(table["output_tokens"].sum()) * 2.50e-6
    assert ran.json["cost_usd"] == pytest.approx(price, rel=1e-6)
    assert table["cost_usd"].sum() == pytest.approx(price, rel=1e-6)
    assert set(table["model"]) == {"gemini-3.5-flash-lite"}


def test_nobody_there_to_say_yes(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    ran = cli("run", small_job(here, UNLIMITED))
    assert ran.code == 2 and "--yes" in ran.err and ran.out == ""


def test_a_bad_key_stops_before_anything_is_spent(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "invalid-secret-key")
        ran = cli("run", small_job(here, UNLIMITED), "--yes")
        assert stats(url)["answered"] == 0
    assert ran.code == 2
    assert "API key not valid" in ran.err
    assert "invalid-secret-key" not in ran.err + ran.out
    for path in (here / "runs").rglob("*"):
        assert path.is_dir() or b"invalid-secret-key" not in path.read_bytes()


def test_day_quota_stops_resumable(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    with served(rpd=4) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        ran = cli("run", small_job(here, UNLIMITED), "--yes")
        assert ran.code == 3
        assert "day" in ran.err
        assert pl.read_parquet("out.parquet")["status"].to_list().count("ok") == 4
        assert set(pl.read_parquet("out.parquet")["status"]) == {"ok", "pending"}
        report = cli("report", "--json").json
        assert (report["status"], report["ok"]) == ("stopped", 4)


def test_budget_stops_before_it_is_passed(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    with served(model_version=None) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        ran = cli("run", small_job(here, UNLIMITED), "--yes", "--max-cost", "0.00014", "--json")
        assert ran.code == 3
        assert 0 < ran.json["cost_usd"] <= 0.00014
        assert 0 < ran.json["ok"] < 6
        more = cli("run", small_job(here, UNLIMITED), "--yes", "--max-cost", "1", "--json")
    assert more.code == 0
    assert more.json["calls"] == 6


def test_limits_are_told_where_something_is_left_to_be_sent(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        command = ("run", small_job(here, "[limits]\nrpm = 6000"), "--yes")  # the tokens a minute are not set
        assert "limit: 250,000 tokens a minute (assumed" in cli(*command).err
        again = cli(*command)
    assert again.code == 0 and "all 6 rows are done: nothing is left to be sent" in again.err
    assert "a minute" not in again.err


def test_failed_rows_give_exit_code_1_and_are_listed(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(faults="block*2") as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        ran = cli("run", small_job(here, UNLIMITED), "--yes", "--json")
        assert ran.code == 1
        assert (ran.json["blocked"], ran.json["ok"]) == (2, 4)
        listed = cli("report", "runs/small", "--failed", "--json").json
        assert [row["status"] for row in listed] == ["blocked", "blocked"]
        assert {row["error_kind"] for row in listed} == {"prompt_blocked"}
        assert "prompt_blocked" in cli("report", "--failed").out
        again = cli("run", small_job(here, UNLIMITED), "--yes", "--json").json
        assert (again["blocked"], again["calls"]) == (2, 6)
        redone = cli("run", small_job(here, UNLIMITED), "--yes", "--retry", "blocked", "--skip-failed", "--json")
        assert redone.code == 0
        assert redone.json["calls"] == 8


def test_retry_with_set_redoes_just_those_rows_and_only_once(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED)
    job.write_text(job.read_text().replace("max_output_tokens = 50", "max_output_tokens = 6"))
    long = "a word that goes on and on until the answer has no room for the rest of it"
    (here / "words.csv").write_text(f"word\nshort\n{long}\nlonger {long}\n")
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        first = cli("run", job, "--yes", "--json").json
        assert (first["ok"], first["truncated"], first["calls"]) == (1, 2, 3)
        still = cli("run", job, "--yes", "--retry", "truncated", "--set", "max_output_tokens=8", "--json").json
        assert (still["truncated"], still["calls"]) == (2, 5)
        again = cli("run", job, "--yes", "--retry", "truncated", "--set", "max_output_tokens=8", "--json")
        assert again.json["calls"] == 5, "they were redone so already"
        assert "redo of 0 rows: nothing is left to be sent" in again.err
        whole = cli("run", job, "--yes", "--retry", "truncated", "--set", "model.max_output_tokens=200", "--json")
        assert (whole.json["ok"], whole.json["calls"], whole.code) == (3, 7, 0)
        assert [each["accuracy"]["total"]["calls"] for each in (still, again.json, whole.json)] == [[2, 2]] * 3
        last = cli("run", job, "--yes", "--json").json
        assert last["calls"] == 7, "the run is still that of the job file"
        assert last["accuracy"]["total"]["calls"] == [3, 3] and not last["accuracy"]["redo"]


@pytest.mark.parametrize("flag", ["--rpm", "--tpm", "--rpd"])
@pytest.mark.parametrize("command", ["run", "estimate"])
def test_a_limit_below_zero_is_the_flags_mistake_and_not_the_job_files(
    here: Path, cli: Callable[..., Ran], command: str, flag: str
) -> None:
    ran = cli(command, small_job(here), "--offline", flag, "-1")
    assert ran.code == 2 and flag in ran.err and "small.toml" not in ran.err


def test_a_job_comes_through_a_pipe_and_one_without_an_end_is_refused(here: Path, cli: Callable[..., Ran]) -> None:
    text = small_job(here).read_text().replace("max_output_tokens = 50", "max_output_tokens = 1")
    pipe = here / "piped.toml"
    os.mkfifo(pipe)

    def piped(*arguments: str) -> Ran:
        writing = threading.Thread(target=pipe.write_text, args=(text,), daemon=True)
        writing.start()
        ran = cli("run", pipe, "--offline", "--json", *arguments)
        writing.join(10)
        return ran

    assert "max_output_tokens = 1\n" in text
    assert piped().json["truncated"] == 6
    # The job is looked at twice, and the pipe read once.
    assert piped("--retry", "truncated", "--set", "max_output_tokens=50").json["ok"] == 6
    endless = cli("check", "/dev/zero", "--offline")
    assert endless.code == 2 and "/dev/zero is no job file: it has more than 16,777,216 bytes" in endless.err


def test_set_is_checked(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    assert "--set needs --retry" in cli("run", job, "--offline", "--set", "max_output_tokens=8").err
    for bad, words in (
        ("max_output_tokens", "not KEY=VALUE"),
        ("name=other", "cannot change"),
        ("max_output_token=8", "did you mean `max_output_tokens`"),
        ("max_output_tokens=many", "[model] max_output_tokens"),
    ):
        ran = cli("run", job, "--offline", "--retry", "truncated", "--set", bad)
        assert ran.code == 2 and words in ran.err, ran.err


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda text: text.replace("bodi", "body").replace('text = "body"', 'text = "bodi"'),
            ["bodi", "did you mean `body`"],
        ),
        (lambda text: text.replace("{{ title }}", "{{ titel }}"), ["{{ titel }}", "did you mean `title`"]),
        (
            lambda text: text.replace("max_tokens = 2000", "max_token = 2000"),
            ["`max_token`", "did you mean `max_tokens`"],
        ),
        (lambda text: text.replace("gemini-3.5-flash-lite", "gemini-3.5-flsh-lite"), ["flsh", "gemini-3.5-flash-lite"]),
        (lambda text: text.replace('id = "doc_id"', 'id = "lang"'), ["lang is not unique", "rows"]),
        (lambda text: text.replace("results/summaries.parquet", "sample_data/licences.parquet"), ["is the input"]),
        (
            lambda text: text.replace("licences.parquet", "licenses.parquet", 1),
            ["licenses.parquet", "licences.parquet"],
        ),
        (lambda text: text + "\nrpm = = 3", ["not valid TOML"]),
        (lambda text: text.replace("overlap_tokens = 100", "overlap_tokens = 1500"), ["overlap_tokens"]),
    ],
)
def test_a_mistake_is_explained_before_anything_happens(
    here: Path, cli: Callable[..., Ran], edit: Callable[[str], str], words: list[str]
) -> None:
    job = here / "jobs" / "summarize.toml"
    job.write_text(edit(job.read_text()))
    for command in (["run", job, "--offline"], ["estimate", job]):
        ran = cli(*command)
        assert ran.code == 2
        assert ran.out == ""
        assert ran.err.startswith("error: ")
        assert "Traceback" not in ran.err
        for word in words:
            assert word in ran.err
    assert not (here / "runs").exists()


def test_no_key_names_the_variables(here: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("run", "jobs/generate.toml", "--yes")
    assert ran.code == 2
    assert "GEMINI_API_KEY and GOOGLE_API_KEY are both unset" in ran.err
    assert "hint: `export GEMINI_API_KEY=…`, or try without one: `--offline`" in ran.err
    assert not (here / "runs").exists()


def test_an_offline_run_does_not_replace_real_answers(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED)
    with served() as url:
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert cli("run", job, "--yes").code == 0
    monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL")
    real = (here / "out.parquet").read_bytes()
    assert cli("run", job, "--offline", "--json").json["output"] == "out-offline.parquet"
    assert (here / "out.parquet").read_bytes() == real


def test_show_config_says_where_a_value_comes_from(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:1")
    lines = cli("run", "jobs/summarize.toml", "--rpm", 7, "--show-config").out.splitlines()
    found = {line.split()[0]: line for line in lines if line.strip()}
    assert "7" in found["limits.rpm"] and found["limits.rpm"].endswith("flag")
    assert found["endpoint.base_url"].endswith("GOOGLE_GEMINI_BASE_URL")
    assert found["limits.tpm"].rpartition(":")[0].endswith("jobs/summarize.toml")
    assert found["limits.rpd"].endswith("default")


def test_plain_output_fits_80_columns(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", "jobs/extract.toml", "--offline", "--rpm", 0, "--tpm", 0)
    texts = [cli("estimate", f"jobs/{name}.toml").out for name in JOBS]
    texts += [cli(command).out for command in ("report", "runs", "models")]
    for line in "\n".join(texts).splitlines():
        assert len(line) <= 100, line


def test_runs_and_report_without_runs(here: Path, cli: Callable[..., Ran]) -> None:
    assert cli("runs").code == 0
    ran = cli("report")
    assert ran.code == 2 and "no runs" in ran.err
    assert cli("report", "nowhere").code == 2


def test_json_is_the_only_thing_on_stdout(here: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("run", small_job(here, UNLIMITED), "--offline", "--json")
    assert json.loads(ran.out)["run"] == "small"
    for line in json.loads(cli("models", "--json").out)["models"]:
        for price in line["lanes"].values():
            assert (price["input"], price["output"]) == (line["input"] / 2, line["output"] / 2)
            assert price["cached"] <= line["cached"]
    (pro,) = [line for line in json.loads(cli("models", "--json").out)["models"] if "3.1-pro" in line["model"]]
    assert pro["input"] == 2 and pro["note"].endswith("above 200,000 tokens: input 4, output 18, cached 0.4")
    assert json.loads(cli("runs", "--json").out)[0]["run"] == "small"


@pytest.mark.parametrize("bad", [["run"], ["run", "jobs/summarize.toml", "--nope"], ["nonsense"]])
def test_wrong_usage_is_2(cli: Callable[..., Ran], here: Path, bad: list[str]) -> None:
    assert cli(*bad).code == 2


def test_bad_flag_values_are_explained(cli: Callable[..., Ran], here: Path) -> None:
    job = small_job(here)
    assert "not an amount" in cli("run", job, "--offline", "--max-cost", "lots").err
    assert "no status or cause" in cli("run", job, "--offline", "--retry", "blokced").err
    assert cli("run", job, "--offline", "--retry", " ,").err.startswith("error: --retry names no status and no cause")
    assert "'--on': 'dask' is not one of 'ray'" in cli("run", job, "--offline", "--on", "dask").err
    assert "unknown fault" in cli("emulate", "--faults", "fire:0.1").err
    for flags in (["--retry", "truncated"], ["--skip-failed"]):
        assert f"{flags[0]} is of the rows that were tried" in cli("run", job, "--offline", "--fresh", *flags).err


def test_a_stream_that_knows_only_ascii_stops_nothing(here: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    (here / "jobs" / "extract.toml").rename(here / "jobs" / "Übung.toml")

    def said(*arguments: str) -> bytes:
        command = [sys.executable, "-m", "pipeline", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, check=True).stdout

    assert b"?bung" in said("estimate", "jobs/Übung.toml")
    ran = said("run", "jobs/Übung.toml", "--offline", "--rpm", "0", "--tpm", "0", "--json")
    assert json.loads(ran.decode("utf-8"))["run"] == "Übung", "JSON is UTF-8 all the same"


def test_a_damaged_run_does_not_hide_the_others(here: Path, cli: Callable[..., Ran]) -> None:
    assert cli("run", small_job(here, UNLIMITED), "--offline").code == 0
    (here / "runs" / "broken").mkdir()
    (here / "runs" / "broken" / "manifest.json").write_text("{")
    ran = cli("runs")
    assert ran.code == 0
    assert "runs/small-offline" in ran.out
    assert "runs/broken/manifest.json" in ran.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_under_stdout_is_told_without_a_traceback(here: Path, root: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        ended = [
            subprocess.run(
                [sys.executable, *unbuffered, "-m", "pipeline", "models", *form],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                cwd=here,
                env=environment,
            )
            for unbuffered in ([], ["-u"])
            for form in ([], ["--json"])
        ]
    for each in ended:
        assert each.returncode == 2, each.stderr
        assert "No space left" in each.stderr
        assert "Traceback" not in each.stderr and "Exception" not in each.stderr


def test_no_batches_are_left_with_an_emulator_that_ends(here: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("run", str(small_job(here, UNLIMITED)), "--offline", "--leave")
    assert ran.code == 2 and "the built-in emulator ends with the run" in ran.err and "emulate --batch" in ran.err
