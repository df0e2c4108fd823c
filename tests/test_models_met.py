"""Another model that answers, and one that ends, is told once: while the run goes on, and in its summary."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pytest
from commands import Ran, small_job
from google import genai
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st
from serving import served, stats

from pipeline.models import MODELS, answering, is_version_of
from pipeline.providers.answers import parse_reply

KEY = "AQ.of-the-tests-0123456789"


@pytest.mark.parametrize(
    ("answered", "asked"),
    [
        ("gemini-3.8-flash", "gemini-3.8-flash"),
        ("models/gemini-3.8-flash", "publishers/google/models/gemini-3.8-flash"),
        ("gemini-3.5-flash-lite-001", "gemini-3.5-flash-lite"),
        ("gemini-3.8-flash", "gemini-flash-latest"),
        ("gpt-5-mini-2025-08-07", "gpt-5-mini"),
        ("gpt-5-mini", "openai/gpt-5-mini"),
        ("llama3:latest", "llama3"),
        ("gemini-3.8-flash", "tunedModels/mine"),
    ],
)
def test_a_version_or_whom_an_alias_stands_for_is_the_model_that_was_asked(answered: str, asked: str) -> None:
    assert is_version_of(answered, asked)


@pytest.mark.parametrize(
    ("answered", "asked"),
    [("gemini-3.8-flash", "gemini-2.5-pro"), ("gemini-3.5-flash", "gemini-3.5-flash-lite"), ("gpt-5", "gpt-5-mini")],
)
def test_another_model_is_another_model(answered: str, asked: str) -> None:
    assert not is_version_of(answered, asked)


@pytest.mark.parametrize("day", [date(2026, 11, 30), date(2026, 12, 1), date(2027, 1, 1)])
def test_who_answers_by_our_table_is_told_as_another_where_a_name_was_switched_off(day: date) -> None:
    for model in MODELS:
        served_by = answering(model.name, day)
        is_off = model.off is not None and model.off <= day and model.successor is not None
        assert is_version_of(served_by, model.name) != is_off, model.name


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)


def run(here: Path, cli: Callable[..., Ran], model: str, extra: str = "", **options: Any) -> tuple[Ran, Ran, str]:
    """A run of six rows, its report as JSON, and what its log says of models."""
    with served(**options) as url:
        path = small_job(here, f'[limits]\nrpm = 0\ntpm = 0\n[endpoint]\nbase_url = "{url}"\n{extra}', model=model)
        ran = cli("run", path, "--yes")
        assert stats(url)["answered"] == 6
    log = (here / "runs/small/run.log").read_text()
    return (
        ran,
        cli("report", "small", "--json"),
        "\n".join(line for line in log.splitlines() if '"event":"model"' in line),
    )


def test_a_model_that_answers_for_another_is_told_once_and_in_the_summary(here: Path, cli: Callable[..., Ran]) -> None:
    ran, report, log = run(here, cli, "gemini-3.6-flash", routes={"gemini-3.6-flash": "gemini-3.8-flash"})
    told = "gemini-3.8-flash answers where gemini-3.6-flash was asked, at its price"
    assert report.json["models_noted"] == [told] and log.count(told) == 1
    assert " ".join((ran.out + ran.err).split()).count(told) == 2, "while it runs, and in the summary"


def test_a_model_that_ends_is_told_in_our_words(here: Path, cli: Callable[..., Ran]) -> None:
    ran, report, log = run(here, cli, "gemini-3.6-flash", model_stage="DEPRECATED")
    told = "the service says that gemini-3.6-flash is deprecated, and ends on 2027-01-01"
    assert report.json["models_noted"] == [told] and log.count(told) == 1 and told in " ".join(ran.err.split())


@pytest.mark.parametrize("options", [{}, {"model_stage": "STABLE"}, {"model_stage": "SOMETHING_NEW"}])
def test_nothing_is_told_of_a_model_that_answers_as_asked(
    here: Path, cli: Callable[..., Ran], options: dict[str, Any]
) -> None:
    _, report, log = run(here, cli, "gemini-3.6-flash", **options)
    assert report.json["models_noted"] == [] and log == ""


def test_a_rehearsal_says_nothing_of_the_service(here: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("run", small_job(here, model="gemini-2.5-flash-lite"), "--offline", "--json")
    assert ran.code == 0 and ran.json["models_noted"] == []


@given(st.recursive(st.none() | st.text() | st.integers(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_whatever_stands_for_a_stage_nothing_raises(status: Any) -> None:
    for told in (status, {"modelStage": status, "retirementTime": status}):
        body = {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}], "modelStatus": told}
        try:
            raw = orjson.dumps(body)
        except TypeError:
            continue
        assert parse_reply(raw).status == "ok"


def test_googles_sdk_reads_the_stage() -> None:
    with served(model_stage="DEPRECATED") as url:
        client = genai.Client(api_key="AQ.key", vertexai=False, http_options=types.HttpOptions(base_url=url))
        answer = client.models.generate_content(model="gemini-3.6-flash", contents="It rains.")
        client.close()
    assert answer.model_status and answer.model_status.model_stage is types.ModelStage.DEPRECATED
