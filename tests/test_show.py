"""`pipeline show`: rows of a run, and what was asked for one."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import anyio
import pytest
from commands import UNLIMITED, Ran, small_job
from stores import answer, opened, result

from pipeline.console.rows import paged
from pipeline.console.screen import Screen
from pipeline.errors import RunStateError
from pipeline.report.reading import Answers


def test_where_there_is_no_row_it_says_so(here: Path, cli: Callable[..., Ran], tmp_path: Path) -> None:
    with opened(tmp_path / "begun"):
        pass
    begun = cli("show", tmp_path / "begun")
    assert (begun.code, begun.out, begun.err.strip()) == (0, "", "no row was reached yet")
    assert cli("show", tmp_path / "begun", "--failed").err.strip() == "no row has such a status"
    assert cli("show", tmp_path / "begun", "--json").err == ""


def test_a_row_is_shown_with_its_prompt_its_reply_and_what_it_took(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", small_job(here, UNLIMITED), "--offline")
    told = cli("show", "small", "2").out
    assert "row 2" in told and "Say gamma" in told and "1 call" in told and "tokens in" in told
    assert cli("show", "2").out == told, "a row alone is of the run that was written to last"
    row = cli("show", "small.toml", "2", "--json").json
    assert row["asked"][0]["prompt"] == [{"role": "user", "text": "Say gamma"}]
    assert row["asked"][0]["text"] == row["response"] and row["calls"] == 1
    (here / "words.csv").write_text("word\nother\n")
    told = cli("show", "small", "2").out
    assert "words.csv is not what it was" in told and "Say" not in told.split("reply:")[0]


def test_an_earlier_generation_is_shown_with_the_prompts_of_its_own_job(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, '[output.schema]\ntype = "object"\nproperties = { a = { type = "string" } }\n' + UNLIMITED)
    job.write_text(job.read_text().replace('"words.csv"', '"words.csv"\nid = "word"'))
    cli("run", job, "--offline")
    before = cli("show", "small", "beta", "--json").json
    job.write_text(job.read_text().replace("Say ", "Sing "))
    (here / "words.csv").write_text("word\nnew\nbeta\n")
    assert cli("run", job, "--offline").code == 0
    assert cli("show", "small@1", "beta", "--json").json == before
    assert before["asked"][0]["prompt"] == [{"role": "user", "text": "Say beta"}]
    assert "words.csv is not what it was" in cli("show", "small@1", "gamma").out


def test_pieces_and_merges_are_shown_with_their_prompts(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", "jobs/summarize.toml", "--offline")
    rows = [json.loads(line) for line in cli("show", "summarize", "--json").out.splitlines()]
    long = next(row for row in rows if row["chunks"] > 1)
    asked = cli("show", "summarize", long["key"], "--json").json["asked"]
    assert len(asked) == long["calls"] and all("prompt" in each for each in asked)
    merge = next(each for each in asked if each["step"] == "reduce")
    piece = next(each for each in asked if each["step"] == "map")
    assert piece["text"] in merge["prompt"][-1]["text"]
    told = cli("show", "summarize", long["key"]).out
    assert f"map, 1 of {long['chunks']}" in told and "reduce, level 1" in told


def test_rows_are_listed_by_status_and_at_random(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", small_job(here, UNLIMITED), "--offline")
    assert len(cli("show", "small").out.splitlines()) == 6
    assert cli("show", "small", "--failed").out == ""
    some = cli("show", "small", "--sample", 2).out
    assert len(some.splitlines()) == 2 and some == cli("show", "small", "--sample", 2).out
    refused = cli("show", "small", "--status", "okay")
    assert refused.code == 2 and "okay is no status" in refused.err
    assert "no run and no job's name" in cli("show", "nowhere").err
    assert "has the id or the number 99" in cli("show", "small", "99").err


def test_what_redact_hides_stays_hidden(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED + '\n[redact]\nkinds = ["email"]\nrestore = true')
    (here / "words.csv").write_text("word\nann@example.com\n")
    cli("run", job, "--offline")
    told = cli("show", "small", "0").out
    assert "[EMAIL_1]" in told and "ann@example.com" not in told


def test_the_newest_outcome_is_shown_and_an_id_that_is_a_number_wins_over_a_row(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "notes"
    with opened(directory) as store:
        answer(store, 0, "blocked", "prompt_blocked")
        store.append_result(replace(result(1), key="2"))
        anyio.run(store.seal)
        answer(store, 0)
        store.append_result(replace(result(2), key="7"))
        answers = Answers(directory)
    assert [(row["row"], row["status"]) for row in answers.rows()] == [(1, "ok"), (0, "ok"), (2, "ok")]
    assert answers.find("2")["row"] == 1 and answers.find("key 0")["status"] == "ok"
    assert answers.find("1")["row"] == 1, "a number that is no id"
    assert [call["paid"] for call in answers.calls(0, "answer 0")] == [True, True]
    with pytest.raises(RunStateError, match="has the id or the number 9"):
        answers.find("9")


def test_a_pager_is_told_that_what_it_is_given_is_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Screen, "is_terminal", True)
    for own, found in ((None, "utf-8"), ("dos", "dos")):
        with patch.dict(os.environ, {"LESSCHARSET": own} if own else {}):
            if own is None:
                os.environ.pop("LESSCHARSET", None)
            paged(Screen())
            assert os.environ["LESSCHARSET"] == found
