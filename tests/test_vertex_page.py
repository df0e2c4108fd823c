"""The jobs of docs/vertex.md, as a person runs them: real processes, and tokens that end in mid-run."""

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from commands import Ran
from forking import Forked, forked
from google_accounts import account_file, metadata_server, token_server
from serving import served, stats, wait_for

PAGE = (Path(__file__).parent.parent / "docs" / "vertex.md").read_text("utf-8")
PLAIN, REGIONS, EXPRESS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
ROWS = 120


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    (tmp_path / "comments.csv").write_text("id,comment\n" + "".join(f"c{n},Comment {n}.\n" for n in range(ROWS)))
    return tmp_path


@pytest.fixture
def url(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The emulator, which takes a while and gives the account's tokens; each is good for a second."""
    with served(latency_s=0.2, token_s=1.0) as served_at:
        monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", served_at)
        account = account_file(here / "account.json", f"{served_at}/token")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        yield served_at


def start(here: Path, job: str, *arguments: str) -> Forked:
    (here / "job.toml").write_text(job)
    return forked(*arguments, cwd=here)


def ran(here: Path, job: str, *arguments: str, code: int = 0) -> Ran:
    process = start(here, job, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err.decode()
    assert b"Traceback" not in err
    return Ran(process.wait(), out.decode(), err.decode())


def paced(job: str, at_once: int) -> str:
    """The same job with so many calls in flight, and no pace: a minute would be the least."""
    return job.replace("[output]", f"[limits]\nrpm = 0\ntpm = 0\nconcurrency = {at_once}\n\n[output]")


def slow(job: str) -> str:
    """So that it takes longer than a token lives."""
    return paced(job, 8)


def test_the_job_of_the_page_is_checked_estimated_killed_and_finished_over_several_tokens(here: Path, url: str) -> None:
    assert "offered to my-project at europe-west4" in ran(here, PLAIN, "check", "job.toml").out
    slip = ran(here, PLAIN, "check", "job.toml", "--model", "gemini-3.5-flsh-lite", code=2).out
    assert "did you mean gemini-3.5-flash-lite" in slip and 'location = "global"' in slip
    assert ran(here, PLAIN, "estimate", "job.toml", "--json").json["prompts"] == ROWS
    killed = start(here, slow(PLAIN), "run", "job.toml", "--yes")
    wait_for(url, "answered", 30, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    result = ran(here, slow(PLAIN), "run", "job.toml", "--yes", "--json").json
    assert (result["status"], result["ok"]) == ("finished", ROWS)
    seen = stats(url)
    assert seen["bought_twice"] <= 8 and "401" not in seen["by_status"], "no token was used after its end"
    output = pl.read_parquet("results/comments.parquet")
    assert output["id"].to_list() == [f"c{n}" for n in range(ROWS)] and (output["cost_usd"] > 0).all()
    calls = pl.concat([pl.read_parquet(path) for path in Path("runs/job/calls").glob("*.parquet")])
    assert set(calls.filter("paid")["endpoint"]) == {f"vertex@{url.removeprefix('http://')}"}
    assert f"{ROWS} ok" in ran(here, PLAIN, "report", "job").out


@pytest.mark.parametrize("job", [PLAIN, REGIONS, EXPRESS], ids=["one region", "two regions", "express"])
def test_a_rehearsal_needs_no_credentials_and_speaks_the_same_protocol(here: Path, job: str) -> None:
    assert ran(here, job, "run", "job.toml", "--offline", "--yes", "--json").json["ok"] == ROWS
    calls = pl.concat([pl.read_parquet(path) for path in Path("runs/job-offline/calls").glob("*.parquet")])
    assert set(calls["endpoint"]) == {"vertex@emulator"}


def test_two_regions_answer_one_job_and_each_row_says_which(here: Path, url: str) -> None:
    ran(here, slow(REGIONS), "run", "job.toml", "--yes")
    found = Counter(pl.read_parquet("results/comments.parquet")["target"])
    assert set(found) == {"netherlands", "belgium"} and found.total() == ROWS and min(found.values()) > ROWS / 4


def test_in_express_mode_a_key_is_asked_for_and_no_credentials(
    here: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "another-project")
    assert "VERTEX_KEY is unset" in ran(here, EXPRESS, "check", "job.toml", code=2).out
    monkeypatch.setenv("VERTEX_KEY", "AQ.a-key-of-express-mode")
    assert "vertex@127.0.0.1" in ran(here, EXPRESS, "check", "job.toml").out
    assert ran(here, paced(EXPRESS, 4), "run", "job.toml", "--yes", "--json", "--limit", "3").json["ok"] == 3


def test_without_the_extra_it_is_named_though_nothing_answers_either(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but Vertex AI's tokens goes without google-auth."""
    (here / "google").mkdir()
    (here / "google" / "__init__.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(here))
    monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", "http://127.0.0.1:9")
    checked = ran(here, PLAIN, "check", "job.toml", code=2).out
    for told in (checked, ran(here, PLAIN, "run", "job.toml", "--yes", code=2).err):
        assert "not installed: google-auth and requests" in told and "google-auth<3" in told
    assert "nothing listens there" in checked
    assert ran(here, PLAIN, "run", "job.toml", "--offline", "--yes", "--json").json["ok"] == ROWS


def test_a_token_server_that_fails_for_a_while_is_told_of_and_ends_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is renewed after half of its two seconds: the server refuses that, and not once it has ended."""
    given_at: list[float] = []

    def refusal() -> tuple[int, object] | None:
        if given_at and time.monotonic() < given_at[0] + 1.7:
            return 403, {"error": "access_denied"}
        given_at.append(time.monotonic())
        return None

    with served(latency_s=0.2) as served_at, token_server() as server:
        server.life_s, server.instead = 2, refusal
        monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", served_at)
        account = account_file(here / "account.json", server.url)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        said = ran(here, slow(PLAIN), "run", "job.toml", "--yes").err
    assert "no access token: access_denied" in said and "the old one is good for" in said


def test_a_machine_of_googles_gives_the_tokens_of_its_own_account(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metadata server, as google-auth finds it by these variables."""
    with served() as served_at, metadata_server() as host:
        monkeypatch.delenv("NO_GCE_CHECK")
        monkeypatch.setenv("GCE_METADATA_HOST", host)
        monkeypatch.setenv("GCE_METADATA_IP", host)
        monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", served_at)
        assert ran(here, paced(PLAIN, 16), "run", "job.toml", "--yes", "--json").json["ok"] == ROWS


def test_a_target_on_vertex_ai_beside_another_service_has_the_address_that_its_variable_names(
    here: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a rehearsal of the one would have bought from the other."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.a-key-of-a-test")
    mixed = REGIONS.replace('provider = "vertex"\nproject = "my-project"\n', "").replace(
        'name = "belgium"\nlocation = "europe-west1"', 'name = "belgium"\nprovider = "vertex"\nproject = "my-project"'
    )
    mixed = mixed.replace('location = "europe-west4"\n', "")
    ran(here, slow(mixed), "run", "job.toml", "--yes")
    found = Counter(pl.read_parquet("results/comments.parquet")["target"])
    assert set(found) == {"netherlands", "belgium"} and found.total() == ROWS
