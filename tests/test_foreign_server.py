"""Whole runs against a server that none of us wrote, in the words of several services, with failures of its own."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import polars as pl
import pytest
from commands import Ran
from llmock_server import fail, llmock, told

ROWS = 60
DIALECTS = {
    "openai": ("openai", ""),
    "groq": ("openai", "/groq/openai/v1"),
    "mistral": ("openai", "/mistral/v1"),
    "together": ("openai", "/together/v1"),
    "gemini": ("gemini", "/gemini"),
}
"""What is spoken, and where."""


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setattr("pipeline.dispatch.retries.BACKOFF_FIRST_S", 0.01)


def job(here: Path, dialect: str, url: str, limits: str = "rpm = 0", rows: int = ROWS) -> Path:
    provider, path = DIALECTS[dialect]
    (here / "words.csv").write_text("word\n" + "".join(f"word of number {n}\n" for n in range(rows)))
    (here / "job.toml").write_text(
        f'[input]\npath = "words.csv"\n[prompt]\ntemplate = "Say {{{{ word }}}}"\n'
        '[model]\nname = "gemini-2.5-flash"\nmax_output_tokens = 50\nprices = { input = 1, output = 2 }\n'
        f'[endpoint]\nprovider = "{provider}"\nbase_url = "{url}{path}"\n'
        f'[limits]\ntpm = 0\nconcurrency = 8\n{limits}\n[output]\npath = "out.parquet"\n'
    )
    return here / "job.toml"


FAILURES: list[Mapping[str, float]] = [
    {"status": 429, "retry_after": 0.2, "times": 3},
    *({"status": s, "times": 2} for s in (500, 502, 503)),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with llmock() as url:
        yield url


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_run_gets_past_the_failures_of_a_foreign_server(
    here: Path, cli: Callable[..., Ran], server: str, dialect: str
) -> None:
    fail(server, "*generateContent" if dialect == "gemini" else "*/chat/completions", *FAILURES)
    ran = cli("run", job(here, dialect, server), "--yes", "--json")
    assert (ran.code, ran.json["ok"]) == (0, ROWS), ran.err
    table = pl.read_parquet("out.parquet")
    assert table["word"].to_list() == [f"word of number {n}" for n in range(ROWS)]
    assert min(table["input_tokens"]) > 0 and min(table["output_tokens"]) > 0 and not any(table["usage_estimated"])
    asked = [each for each in told(server, "requests")["requests"] if each["method"] == "POST"]
    bought = Counter(each["fingerprint"] for each in asked if each["status"] == 200)
    assert len(bought) == ROWS and set(bought.values()) == {1}, "every answer is bought once"
    assert Counter(each["status"] for each in asked) == {200: ROWS, 429: 3, 500: 2, 502: 2, 503: 2}
    assert told(server, "verdict")["errors"] == 0, "waits that were asked for are waited, and none is asked for ever"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_that_knows_nothing_of_flex_answers_in_standard_and_is_paid_so(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, server: str, dialect: str
) -> None:
    monkeypatch.setattr("pipeline.dispatch.flex.PAUSE_S", 0.05)
    fail(server, "*generateContent" if dialect == "gemini" else "*/chat/completions", {"status": 503, "times": 2})
    path = job(here, dialect, server)
    path.write_text(path.read_text().replace("output = 2 }", 'output = 2, flex = 0.5 }\nlane = "flex"'))
    ran = cli("run", path, "--yes", "--json")
    assert (ran.code, ran.json["ok"], ran.json["attempts"]) == (0, ROWS, ROWS), ran.err
    lanes = ran.json["lanes"]
    assert {lane: each["calls"] for lane, each in lanes.items()} == {"flex": 0, "standard": ROWS}
    assert lanes["flex"]["fell_back"] == {"by_service": ROWS}
    assert ran.json["cost_usd"] == pytest.approx(ran.json["input_tokens"] * 1e-6 + ran.json["output_tokens"] * 2e-6)
    (told_once,) = ran.json["models_noted"]
    assert told_once.startswith("what is asked in flex is answered in standard")


@pytest.mark.parametrize("dialect", ["openai", "gemini"])
def test_a_granted_pace_is_kept_without_a_refusal(here: Path, cli: Callable[..., Ran], dialect: str) -> None:
    with llmock("--rpm", "1200") as url:
        ran = cli("run", job(here, dialect, url, "rpm = 1200", rows=40), "--yes", "--json")
        seen = told(url, "verdict")
    assert (ran.code, ran.json["ok"], seen["faults_injected"]) == (0, 40, 0), ran.err


def test_a_prompt_beyond_its_context_is_a_row_of_its_own(here: Path, cli: Callable[..., Ran]) -> None:
    with llmock("--context-window", "64") as url:
        path = job(here, "openai", url, rows=3)
        (here / "words.csv").write_text(f"word\none\n{'many words ' * 100}\nthree\n")
        ran = cli("run", path, "--yes", "--json")
    assert ran.code == 1
    rows = pl.read_parquet("out.parquet").select("status", "error_kind").rows()
    assert rows == [("ok", None), ("invalid", "too_long"), ("ok", None)]


def test_check_finds_its_models(here: Path, cli: Callable[..., Ran], server: str) -> None:
    path = job(here, "openai", server)
    unknown = cli("check", path)
    path.write_text(path.read_text().replace("gemini-2.5-flash", "gpt-4o"))
    known = cli("check", path)
    assert known.code == 0 and "openai@127.0.0.1" in known.out + known.err
    assert unknown.code != 0 and "gemini-2.5-flash" in unknown.out + unknown.err
