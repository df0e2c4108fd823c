"""What a model would refuse for every row is refused before anything is sent, and what it ignores is said."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from commands import Ran
from serving import served, stats

from jobs import make_job, write_job
from pipeline.errors import JobError
from pipeline.run.fitting import check_fits, ignored, life, misspelt

TODAY = date(2026, 11, 29)


def refused(tmp_path: Path, day: date = TODAY, **model: Any) -> str:
    """Why these settings are refused; empty: they are not."""
    try:
        check_fits(make_job(tmp_path, model=model), day)
    except JobError as error:
        return f"{error.message} / {error.hint}"
    return ""


@pytest.mark.parametrize(
    ("model", "thinking", "hint"),
    [
        ("gemini-3.8-flash", "minimal", 'its least level is "low"'),
        ("gemini-flash-latest", "minimal", 'its least level is "low"'),
        ("gemini-3.8-flash", 0, 'thinking = "low"'),
        ("gemini-3.5-flash-lite", 512, 'thinking = "minimal"'),
        ("gemini-2.5-flash-lite", "low", "a budget in tokens"),
        ("publishers/google/models/gemini-2.5-pro", "low", "a budget in tokens"),
    ],
)
def test_thinking_that_the_model_refuses(tmp_path: Path, model: str, thinking: object, hint: str) -> None:
    why = refused(tmp_path, name=model, thinking=thinking)
    assert f"[model] thinking = {thinking!r}: " in why and hint in why


@pytest.mark.parametrize(
    ("model", "thinking"),
    [
        ("gemini-3.8-flash", "low"),
        ("gemini-3.6-flash", "minimal"),
        ("gemini-3.5-flash-lite", "minimal"),
        ("gemini-2.5-flash-lite", 0),
        ("gemini-2.5-pro", -1),
        ("somebody-elses", "minimal"),
        ("somebody-elses", 12),
    ],
)
def test_thinking_that_it_takes_or_of_which_nothing_is_known(tmp_path: Path, model: str, thinking: object) -> None:
    assert refused(tmp_path, name=model, thinking=thinking) == ""


def test_of_a_model_that_another_answers_for_both_forms_may_be_right(tmp_path: Path) -> None:
    off = date(2026, 12, 1)
    assert refused(tmp_path, name="gemini-2.5-pro", thinking="low")
    assert not refused(tmp_path, off, name="gemini-2.5-pro", thinking="low")
    assert not refused(tmp_path, off, name="gemini-2.5-pro", thinking=0)
    assert not refused(tmp_path, off, name="gemini-2.5-pro", thinking="minimal")


def test_an_answer_longer_than_one_request_may_be(tmp_path: Path) -> None:
    why = refused(tmp_path, name="gemini-4-argon", max_output_tokens=32_769)
    assert "at most 32,768 tokens a request" in why and "stream = true" in why
    assert not refused(tmp_path, name="gemini-4-argon", max_output_tokens=500_000, stream=True)
    assert not refused(tmp_path, name="gemini-4-argon", max_output_tokens=32_768)
    assert not refused(tmp_path, name="gemini-3.8-flash", max_output_tokens=65_536)


def test_openais_protocol_is_not_held_to_googles_rules(tmp_path: Path) -> None:
    job = make_job(tmp_path, model={"name": "gemini-3.8-flash", "thinking": "minimal"}, endpoint={"provider": "openai"})
    check_fits(job, TODAY)


def test_what_a_model_ignores_is_one_sentence(tmp_path: Path) -> None:
    job = make_job(tmp_path, model={"name": "gemini-3.8-flash", "temperature": 0, "top_k": 3})
    assert list(ignored(job, TODAY)) == ["gemini-3.8-flash ignores [model] temperature, top_k: Gemini 3.6 and later do"]
    assert not list(ignored(make_job(tmp_path, model={"name": "gemini-3.8-flash", "seed": 0}), TODAY))
    assert not list(ignored(make_job(tmp_path, model={"temperature": 0}), TODAY))


@pytest.mark.parametrize(
    ("model", "day", "told"),
    [
        ("gemini-2.5-pro", date(2026, 11, 30), "off on 2026-12-01, then answered by gemini-3.8-flash"),
        ("gemini-2.5-pro", date(2026, 12, 1), "deprecated, answered by gemini-3.8-flash"),
        ("gemini-4-argon", date(2026, 11, 30), "price doubles on 2026-12-01"),
        ("gemini-4-argon", date(2026, 12, 1), ""),
        ("gemini-3.8-flash", date(2026, 12, 31), "price doubles on 2027-01-01"),
        ("gemini-3.8-flash", date(2027, 1, 1), ""),
        ("gemini-3.5-flash-lite", TODAY, ""),
        ("somebody-elses", TODAY, ""),
    ],
)
def test_the_life_of_a_model(tmp_path: Path, model: str, day: date, told: str) -> None:
    assert life(make_job(tmp_path, model={"name": model}), day) == told


def test_check_estimate_and_run_say_it_and_nothing_is_sent_that_is_refused(
    tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "topics.csv").write_text("topic\nrain\nsnow\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.of-the-tests-0123456789")
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        model = {"name": "gemini-3.8-flash", "temperature": 0, "labels": {"team": "x"}}
        job = write_job(tmp_path, model=model, limits={"rpm": 0, "tpm": 0})
        for command in (("check", job), ("estimate", job), ("run", job, "--yes")):
            ran = cli(*command)
            assert ran.code == 0
            assert (ran.out + ran.err).count("gemini-3.8-flash ignores [model] temperature") == 1, command
        assert stats(url)["requests"] == 2
        refused_job = write_job(tmp_path, model={"name": "gemini-3.8-flash", "thinking": "minimal"})
        for command in (("check", refused_job), ("estimate", refused_job), ("run", refused_job, "--yes")):
            ran = cli(*command)
            assert ran.code == 2 and "[model] thinking = 'minimal': gemini-3.8-flash refuses it" in ran.out + ran.err
        assert stats(url)["requests"] == 2


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gemini-3.5-flsh-lite", "gemini-3.5-flash-lite"),
        ("google/Gemini-3.5-flahs", "gemini-3.5-flash"),
        ("gemini-3.5-flash", None),
        ("gemini-3.9-flash", None),  # a newer one, for all we know
        ("gemini-3.5-flash-preview-09", None),
        ("qwen3:8b", None),
    ],
)
def test_a_name_that_is_almost_one_of_geminis_is_told(tmp_path: Path, name: str, meant: str | None) -> None:
    told = [f"no model {name} is known here: did you mean {meant}?"] if meant else []
    assert list(misspelt(make_job(tmp_path, model={"name": name}))) == told


def test_a_misspelt_model_is_refused_at_google_and_told_at_a_relay(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ("jobs/extract.toml", "--model", "gemini-3.5-flsh-lite")
    for command in ("estimate", "check", "run"):
        ran = cli(command, *typed)
        assert ran.code == 2 and "did you mean gemini-3.5-flash-lite?" in ran.err + ran.out, command
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
    ran = cli("estimate", *typed)
    assert ran.code == 0 and "did you mean gemini-3.5-flash-lite?" in " ".join(ran.out.split())
