"""`pipeline check`: every step is tried, whatever else fails, and what a run would refuse fails in the same words."""

import errno
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import UNLIMITED, Ran, small_job
from google_accounts import account_file
from rich.cells import cell_len
from serving import served
from test_docs import PAGES, blocks
from test_keys import REFUSED
from test_secrets import echoing

from pipeline import console
from pipeline.console.screen import Screen
from pipeline.emulator import EmulatorOptions
from pipeline.run.steps import Step, Steps

KEY = "AQ.of-the-tests-0123456789"
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        yield url


@pytest.fixture
def check(cli: Callable[..., Ran]) -> Check:
    """`check --json` as {step: what is told of it}; the exit code goes with what passed."""

    def run(*arguments: object) -> dict[str, Any]:
        ran = cli("check", *arguments, "--json")
        assert ran.code == (0 if ran.json["passed"] else 2) and ran.err == ""
        assert ran.json["passed"] == all(each["state"] == "passed" for each in ran.json["steps"])
        return {each["step"]: each for each in ran.json["steps"]}

    return run


@contextmanager
def answering(status: int, body: Any) -> Iterator[str]:
    """A service that answers every GET with this."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments: object) -> None:
            """The test's own streams stay clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def states(steps: dict[str, Any]) -> dict[str, str]:
    return {name: each["state"] for name, each in steps.items()}


EVERY = [
    "job",
    "template",
    "input",
    "columns",
    "limits",
    "key",
    "network",
    "country",
    "model",
    "quota",
    "output",
    "run",
]


def test_every_step_of_a_good_job_passes_with_its_numbers(here: Path, check: Check, service: str) -> None:
    steps = check(small_job(here, "[limits]\nrpm = 1000"))
    assert states(steps) == dict.fromkeys(EVERY, "passed")
    assert steps["input"]["rows"] == 6 and steps["limits"]["rpm"] == 1000
    assert steps["network"]["latency_ms"] > 0 and steps["network"]["connect_ms"] > 0
    assert (
        steps["model"]["models_offered"] == len(steps["model"]["models"]) > 3
        and steps["key"]["found"] == "GEMINI_API_KEY"
    )
    assert not (here / "runs").exists() and not (here / "out.parquet").exists()


def test_a_missing_key_hides_nothing_else(
    here: Path, check: Check, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    job = small_job(here, template="Say {{ wrod }}", model="gemini-3.5-flsh-lite")
    steps = check(job)
    assert states(steps) == dict.fromkeys(
        ["job", "template", "input", "limits", "network", "output", "run"], "passed"
    ) | {
        "columns": "failed",
        "key": "failed",
        "country": "skipped",
        "model": "skipped",
    }
    assert "did you mean `word`?" in steps["columns"]["hint"] and "both unset" in steps["key"]["found"]
    assert "did you mean gemini-3.5-flash-lite?" in steps["model"]["remark"]


def test_a_template_that_does_not_parse_and_a_table_that_is_not_there_hide_nothing_else(
    here: Path, check: Check, service: str
) -> None:
    job = small_job(here, template="Say {{ word")
    (here / "words.csv").unlink()
    steps = check(job)
    failed = {name for name, state in states(steps).items() if state == "failed"}
    assert failed == {"template", "input"}
    assert steps["key"]["state"] == steps["model"]["state"] == steps["network"]["state"] == "passed"
    assert steps["columns"]["state"] == steps["output"]["state"] == steps["run"]["state"] == "skipped"
    (here / "words.csv").write_text("word\na\n")
    assert check(job)["output"]["state"] == "passed"


def test_all_mistakes_of_a_job_file_are_told_with_their_lines(here: Path, cli: Callable[..., Ran]) -> None:
    path = here / "bad.toml"
    path.write_text(
        '[input]\npath = "words.csv"\nidd = "x"\n[prompt]\ntemplate = "a"\n[model]\nnmae = "m"\ntop_p = 7\n'
        f'thinking = "hgih"\napi_key = "{KEY}"\n[output]\npath = "x.xlsx"\n'
    )
    ran = cli("check", path)
    assert ran.code == 2 and KEY not in ran.out
    told = re.findall(r"✗ job +\S*bad\.toml:(\d+): (.*)", ran.out)
    assert [(what.split(":")[0], int(line)) for line, what in told] == [
        ("`idd` is not a setting of [input]", 3),
        ("`nmae` is not a setting of [model]", 7),
        ("`api_key` is not a setting of [model]", 10),
        ("[model] top_p", 8),
        ("[model] thinking", 9),
        ("[output]", 12),
    ]
    assert "a key never stands in a job file" in ran.out
    assert re.findall(r"error: \S*bad\.toml:(\d+): (.*)", cli("run", path).err) == told
    assert "6 steps failed, 10 could not be tried" in ran.out


def test_the_table_is_looked_at_though_another_part_of_the_job_is_wrong(here: Path, check: Check) -> None:
    path = small_job(here)
    path.write_text(path.read_text().replace("max_output_tokens", "max_output_tokns"))
    steps = check(path)
    assert (steps["job"]["state"], steps["input"]["state"], steps["input"]["rows"]) == ("failed", "passed", 6)
    (here / "words.csv").write_text("word,\na\n")
    steps = check(path)
    assert steps["input"]["state"] == "failed" and "words.csv, line 2 has 1 cell" in steps["input"]["found"]
    assert {steps[name]["state"] for name in ("template", "columns", "output", "run")} == {"skipped"}


def test_a_job_file_that_is_not_there(here: Path, check: Check) -> None:
    steps = check("jobs/sumarize.toml")
    assert steps["job"]["hint"] == "did you mean jobs/summarize.toml?"
    assert {each["state"] for name, each in steps.items() if name != "job"} == {"skipped"}


def test_offline_nothing_of_a_service_is_asked(here: Path, check: Check) -> None:
    steps = check("jobs/summarize.toml", "--offline")
    assert states(steps) == dict.fromkeys([each for each in EVERY if each not in ("key", "country", "quota")], "passed")


def test_a_model_that_is_not_offered(here: Path, check: Check, service: str) -> None:
    steps = check("jobs/summarize.toml", "--model", "gemini-3.5-flsh-lite")
    assert steps["model"]["state"] == "failed" and "gemini-3.5-flash-lite" in steps["model"]["hint"]
    assert steps["key"]["state"] == "passed"


def test_a_key_that_is_refused(here: Path, check: Check, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "invalid-key-of-the-tests")
    steps = check("jobs/summarize.toml")
    assert steps["key"]["state"] == "failed" and steps["network"]["state"] == "passed"
    assert "API key not valid" in steps["key"]["found"] and "copy the key again" in steps["key"]["hint"]


def test_nobody_answers(here: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
    steps = check("jobs/summarize.toml")
    assert steps["network"]["state"] == "failed" and "127.0.0.1:9 refuses the connection" in steps["network"]["found"]
    assert steps["key"]["state"] == steps["country"]["state"] == steps["model"]["state"] == "skipped"
    assert steps["output"]["state"] == "passed"


@pytest.mark.parametrize("name", REFUSED)
def test_each_refusal_of_a_listing_is_of_the_key_or_of_the_country(
    here: Path, check: Check, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    status, body, cure = REFUSED[name]
    with answering(status, body) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        steps = check(small_job(here, UNLIMITED))
    failed = "country" if name == "E10" else "key"
    assert [each for each, state in states(steps).items() if state == "failed"] == [failed]
    assert cure in steps[failed]["hint"] and KEY not in json.dumps(steps)
    assert steps["network"]["state"] == "passed" and steps["model"]["state"] == "skipped"


def test_a_relay_that_has_no_listing(here: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with answering(404, {"error": {"code": 404, "message": "no route"}}) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        steps = check(small_job(here, UNLIMITED))
    assert steps["model"]["state"] == "failed" and "does not answer as it should" in steps["model"]["found"]
    assert steps["key"]["state"] == "skipped" and steps["network"]["state"] == "passed"


def test_where_the_key_was_found_and_who_can_read_it_there(
    here: Path, check: Check, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    (here / ".env").write_text(f"GEMINI_API_KEY={KEY}\n")
    (here / ".env").chmod(0o644)
    small_job(here, UNLIMITED)
    steps = check("small.toml")
    assert steps["key"]["found"] == "GEMINI_API_KEY in .env" and "chmod 600 .env" in steps["key"]["warnings"][0]


def test_a_second_key_in_the_other_variable_is_warned_of(
    here: Path, check: Check, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    assert check("jobs/summarize.toml")["key"]["warnings"] == []
    monkeypatch.setenv("GOOGLE_API_KEY", "AQ.another-key-of-the-tests")  # google-genai takes this one
    assert check("jobs/summarize.toml")["key"]["warnings"] == [
        "GOOGLE_API_KEY holds another key, which other programs may take"
    ]


def test_what_a_run_would_refuse_fails_in_the_same_words(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(job: Path) -> str:
        checked, ran = cli("check", job), cli("run", job, "--yes")
        assert (checked.code, ran.code) == (2, 2)
        said = ran.err.removeprefix("error: ").splitlines()[0]
        assert said in checked.out
        return said

    with served(any_model=True) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        job = small_job(here, '[cache]\nurl = "redis://127.0.0.1:1/0"\npassword_env = "UNSET"')
        assert "UNSET is unset" in both(job)
        assert cli("run", small_job(here, UNLIMITED), "--yes").code == 0
        other = small_job(here, UNLIMITED, "Tell {{ word }}")
        assert "generation 2 begins: [prompt] template" in cli("check", other).out
        (here / "elsewhere").mkdir()
        copied = here / "elsewhere" / "small.toml"
        copied.write_text(other.read_text())
        assert "runs/small was made from a different job" in both(copied)
        capped = small_job(here, "[budget]\nmax_usd = 1").rename(here / "capped.toml")
        capped.write_text(capped.read_text().replace("out.parquet", "other.parquet").replace("-lite", "-huge"))
        assert "the price of gemini-3.5-flash-huge is unknown" in both(capped)


def test_a_disk_that_is_full_or_cannot_be_written_fails_as_the_run_does(
    here: Path, cli: Callable[..., Ran], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED)

    def both() -> str:
        checked, ran = cli("check", job, "--json"), cli("run", job, "--yes")
        assert checked.code == ran.code == 2
        (failed,) = [step for step in checked.json["steps"] if step["state"] == "failed"]
        assert "".join(failed["found"].split()) in "".join(ran.err.split())
        return str(failed["found"])

    (here / "runs").symlink_to("nowhere")
    assert both().startswith("cannot write runs/small: ")
    (here / "runs").unlink()
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        full.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
        assert both().startswith("cannot write runs/small: less than 8 MB are left there")
    assert cli("check", job).code == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    (here / "state").mkdir()
    (here / "state" / "prompt-pipeline").write_text("no directory")
    assert both().startswith(f"The quota book {here}/state/prompt-pipeline/quota.sqlite cannot be used")


def test_what_earlier_runs_learned_is_shown_and_forgotten(
    here: Path, cli: Callable[..., Ran], check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here)
    with served(rpd=4) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        assert cli("run", job, "--yes", "--rpm", "0", "--tpm", "0").code == 3
        assert "day used up" in check(job)["quota"]["found"]
        assert "limited by requests a day" in cli("estimate", job).out
        assert check(job, "--forget")["quota"]["found"] == "forgotten: day used up"
        assert check(job)["quota"]["found"] == "nothing learned"
        assert check(job, "--forget")["quota"]["found"] == "forgotten: nothing"
    assert cli("check", job, "--forget", "--offline").code == 2


def test_a_job_that_speaks_openais_protocol(here: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    job = small_job(here, f'{UNLIMITED}\n[endpoint]\nprovider = "openai"')
    with served() as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        steps = check(job)
        assert steps["key"]["state"] == "failed" and "`export OPENAI_API_KEY=…`" in steps["key"]["hint"]
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert states(check(job)) == dict.fromkeys(EVERY, "passed")


def test_vertex_without_credentials_and_with_them(here: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    job = small_job(here, f'{UNLIMITED}\n[endpoint]\nprovider = "vertex"\nproject = "p"\nlocation = "europe-west4"')
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(here / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with served(token_s=60.0) as url:
        monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", url)
        steps = check(job)
        assert [name for name, state in states(steps).items() if state == "failed"] == ["key"]
        assert "no Google credentials" in steps["key"]["found"] and steps["network"]["state"] == "passed"
        account = account_file(here / "account.json", f"{url}/token")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        steps = check(job)
        assert states(steps) == dict.fromkeys(EVERY, "passed") and steps["key"]["found"] == "Google's credentials"


TWO = '[[target]]\nname = "free"\nkey_env = "FREE_KEY"\n[[target]]\nname = "paid"\nkey_env = "PAID_KEY"\n'


def test_each_of_several_targets_has_its_steps(
    here: Path, cli: Callable[..., Ran], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREE_KEY", "invalid-free")
    monkeypatch.setenv("PAID_KEY", "AQ.paid-key")
    ran = cli("check", small_job(here, f"{UNLIMITED}\n{TWO}"), "--json")
    told = {(each["target"], each["step"]): each["state"] for each in ran.json["steps"]}
    assert ran.code == 2
    assert (told["free", "key"], told["paid", "key"]) == ("failed", "passed")
    assert (told["free", "model"], told["paid", "model"]) == ("skipped", "passed")
    monkeypatch.delenv("FREE_KEY")
    shown = cli("check", here / "small.toml").out
    assert re.search(r"\n\ntarget free\n✓ limits .*\n✗ key .*FREE_KEY is unset", shown)
    assert re.search(r"\n\ntarget paid\n✓ limits .*\n✓ key .*\n", shown) and "\n\nall\n✓ output" in shown


def test_an_emulator_beside_a_real_service(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREE_KEY", "AQ.free-key")
    monkeypatch.setenv("PAID_KEY", "AQ.paid-key")
    with served() as real, served(EmulatorOptions()) as emulated:
        one, two = TWO.split("[[target]]")[1:]
        targets = f'[[target]]{one}base_url = "{real}"\n[[target]]{two}base_url = "{emulated}"\n'
        ran = cli("check", small_job(here, f"{UNLIMITED}\n{targets}"))
    assert ran.code == 2 and "an emulator answers for paid, and none for" in ran.out


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_word_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps()
    words = "the service refuses what it is asked for in many words and says why"
    steps.passes("network", "gemini@host", words)
    steps.append(Step("key", "failed", f"{words}\n{words}", hint=words, warnings=(words,), target="free"))
    steps.skips("model")
    steps.append(Step("limits", "passed", words, target="一个名字很长的服务" * 2))
    screen = Screen()
    monkeypatch.setattr(Screen, "is_terminal", True)
    screen.width = width
    with screen.capture() as captured:
        console.show_steps(steps, screen)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", captured.get()).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert " ".join(" ".join(lines).split()).count(words) == 6


@pytest.mark.parametrize("number", range(len(blocks(PAGES["docs/keys.md"], "toml"))))
def test_each_job_of_the_page_on_keys_passes_where_its_key_is(
    here: Path, check: Check, service: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (here / "comments.csv").write_text("comment\nGood.\n")
    (here / "page.toml").write_text(blocks(PAGES["docs/keys.md"], "toml")[number])
    monkeypatch.delenv("GEMINI_API_KEY")
    (here / ".env").write_text(f"TEAM_KEY={KEY}\n")
    monkeypatch.setattr("pipeline.keys.stores.from_keyring", lambda name: KEY if name == "gemini/team" else "")
    secret = "projects/my-project/secrets/gemini-key"
    monkeypatch.setattr("pipeline.keys.stores.from_secret_manager", lambda name: KEY if name == secret else "")
    assert check("page.toml")["key"]["state"] == "passed"
    assert os.environ.get("TEAM_KEY") is None


def test_a_relay_that_repeats_the_key(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    with echoing(repr) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        ran = cli("check", small_job(here, UNLIMITED))
    assert ran.code == 2 and KEY not in ran.out + ran.err


def test_marks_are_ascii_where_the_stream_takes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr("sys.stdout", stream)
    console.show_steps(Steps([Step("job", "passed", "a"), Step("key", "failed", "b"), Step("model", "skipped", "c")]))
    assert stream.buffer.getvalue().startswith(b"+ job    a\nx key    b\n- model  c\n")
