"""What an answer is held to before it is its row's, and the one call more where it is not met."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from commands import Ran
from test_flows import LONG, Service, chunked, run, text, told

from jobs import make_job, write_job
from pipeline.errors import InputError, JobError
from pipeline.job import load
from pipeline.prompts import Prompt, Text
from pipeline.providers.gemini import request
from pipeline.providers.openai import build_request
from pipeline.records import Document, Reply, Usage
from pipeline.store.export import output_schema
from pipeline.tokens import estimate

MOOD = "mood: good|bad, score: int"
GOOD, BAD = '{"mood": "good", "score": 3}', '{"mood": "fine", "score": 3}'
ROW = Document(7, "key", {"topic": "x"})


def answers(*texts: str | Reply) -> Service:
    """A service that gives these answers, one after the other."""
    left = list(texts)

    def reply(prompt: Prompt) -> Reply:
        given = left.pop(0)
        return given if isinstance(given, Reply) else Reply(given, "ok", usage=Usage(10, 0, 5), raw=b"{}")

    return Service(reply)


# ---- the job


def refused(directory: Path, **sections: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        make_job(directory, **sections)
    return caught.value


def test_a_schema_is_a_line_a_table_a_file_or_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = make_job(tmp_path, output={"schema": "n: int"}).schema
    assert line
    assert make_job(tmp_path, output={"schema": line.value}).schema == line
    (tmp_path / "n.schema.json").write_text(line.text)
    assert make_job(tmp_path, output={"schema": {"file": "n.schema.json"}}).schema == line
    monkeypatch.syspath_prepend(str(tmp_path))  # so that it is forgotten afterwards
    (tmp_path / "judging_models.py").write_text("from pydantic import BaseModel\nclass N(BaseModel):\n    n: int\n")
    made = make_job(tmp_path, output={"schema": {"class": "judging_models:N"}}).schema
    assert made and made.value["properties"]["n"]["type"] == "integer"
    assert make_job(tmp_path).schema is None


def test_a_class_beside_the_job_file_is_found(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    (tmp_path / "topics.csv").write_text("topic\nx\n")
    (tmp_path / "beside_models.py").write_text("from pydantic import BaseModel\nclass N(BaseModel):\n    n: int\n")
    path = write_job(
        tmp_path, output={"schema": {"class": "beside_models:N"}}, input={"path": str(tmp_path / "topics.csv")}
    )
    assert cli("check", str(path), "--offline").code == 0


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("mood", "`:` is missing"),
        ({"file": "gone.json"}, "cannot read"),
        ({"file": "job.toml"}, "is no JSON"),
        ({"file": "a.json", "type": "object"}, "`type` stands beside `file`"),
        ({"class": "nowhere_at_all:Model"}, "nowhere_at_all cannot be imported: ModuleNotFoundError"),
        ({"class": "json:Model"}, "json has no `Model`"),
        ({"class": "json:JSONDecoder"}, "has no JSON Schema"),
        ({"class": "json"}, "names no class"),
        ({"type": "object", "allOf": [{}]}, "$ has `allOf`"),
        (3, "schema"),
    ],
)
def test_a_schema_that_cannot_be_asked_for_is_refused_with_its_place(tmp_path: Path, schema: Any, said: str) -> None:
    error = refused(tmp_path, output={"schema": schema})
    assert said in error.message and str(tmp_path / "job.toml") in error.message


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    for output in ({"repair": True}, {"prefix": "x"}):
        assert "there is none" in refused(tmp_path, output=output).message
    mime = refused(tmp_path, output={"schema": MOOD}, model={"response_mime_type": "text/plain"})
    assert "response_mime_type" in mime.message
    whole = refused(tmp_path, output={"schema": {"type": "array"}}, endpoint={"provider": "openai"})
    assert "OpenAI" in whole.message
    with pytest.raises(InputError, match="has a property `status`") as caught:
        output_schema(pl.Schema(), Path("x.csv"), make_job(tmp_path, output={"schema": "status: str"}).answer_columns)
    assert "prefix" in caught.value.hint
    prefixed = make_job(tmp_path, output={"schema": "status: str", "prefix": "its_"}).answer_columns
    assert "its_status" in output_schema(pl.Schema(), Path("x.csv"), prefixed)


def test_each_protocol_is_told_the_schema_in_its_form(tmp_path: Path) -> None:
    service = answers(GOOD)
    run(make_job(tmp_path, output={"schema": MOOD}), ROW, service)
    (prompt,) = service.asked
    config = request(prompt)["generationConfig"]
    assert config["responseMimeType"] == "application/json" and config["responseJsonSchema"]["required"] == [
        "mood",
        "score",
    ]
    told = json.loads(build_request(prompt, "gpt-x"))["response_format"]
    assert told["type"] == "json_schema" and told["json_schema"]["strict"] is True
    assert told["json_schema"]["schema"]["properties"]["score"] == {"type": "integer"}
    assert prompt.params.schema
    assert prompt.input_tokens_est == estimate("Say x") + estimate(prompt.params.schema)


# ---- answers


@pytest.mark.parametrize("said", [GOOD, f"```json\n{GOOD}\n```", f"Here: {GOOD}"])
def test_a_valid_answer_is_the_json_of_it(tmp_path: Path, said: str) -> None:
    answer = run(make_job(tmp_path, output={"schema": MOOD}), ROW, answers(said))
    assert (answer.final.status, answer.final.text) == ("ok", GOOD)
    assert [reply.usage for reply in answer.replies] == [Usage(10, 0, 5)]


def test_an_invalid_answer_is_kept_and_its_row_invalid(tmp_path: Path) -> None:
    answer = run(make_job(tmp_path, output={"schema": MOOD}), ROW, answers(BAD))
    assert (answer.final.status, answer.final.error_kind, answer.final.text) == ("invalid", "schema", BAD)
    assert answer.final.error == '$.mood: the value is not one of "good" or "bad"'
    assert len(answer.replies) == 1


def repairing(directory: Path, *texts: str | Reply) -> tuple[Any, Service]:
    service = answers(*texts)
    return run(make_job(directory, output={"schema": MOOD, "repair": True}), ROW, service), service


def test_a_repair_shows_the_answer_and_what_is_wrong_and_is_paid_too(tmp_path: Path) -> None:
    answer, service = repairing(tmp_path, BAD, GOOD)
    first, second = service.asked
    assert (first.step, second.step) == ("answer", "repair")
    assert second.content[:1] == first.content and second.params == first.params
    assert [(turn.role, turn.parts) for turn in second.content[1:]] == [
        ("model", (Text(BAD),)),
        (
            "user",
            (
                Text(
                    'This is not the JSON that was asked for: $.mood: the value is not one of "good" or "bad".'
                    " Answer again with the whole JSON, and nothing else."
                ),
            ),
        ),
    ]
    assert second.input_tokens_est > first.input_tokens_est
    assert (answer.final.status, answer.final.text) == ("ok", GOOD)
    assert [reply.usage for reply in answer.replies] == [Usage(10, 0, 5)] * 2


@pytest.mark.parametrize(
    ("second", "status", "kept"),
    [
        (BAD.replace("fine", "so so"), "invalid", BAD.replace("fine", "so so")),
        (Reply("", "blocked", error_kind="answer_blocked"), "invalid", BAD),
        (Reply(GOOD[:9], "truncated", error_kind="truncated"), "invalid", BAD),
        (Reply("", "error", error_kind="server"), "error", ""),
    ],
)
def test_what_a_repair_does_not_mend_stays_invalid_and_what_may_pass_is_tried_again(
    tmp_path: Path, second: str | Reply, status: str, kept: str
) -> None:
    answer, service = repairing(tmp_path, BAD, second)
    assert len(service.asked) == len(answer.replies) == 2
    assert (answer.final.status, answer.final.text) == (status, kept)
    assert answer.replies[-1] == answer.final


@pytest.mark.parametrize("status", ["truncated", "blocked", "error"])
def test_only_a_whole_answer_is_judged(tmp_path: Path, status: Any) -> None:
    reply = Reply('{"mood"', status, error_kind="server")
    answer, service = repairing(tmp_path, reply)
    assert answer.final == reply and len(service.asked) == 1


def test_pieces_are_free_text_and_only_what_concludes_a_row_has_the_schema(tmp_path: Path) -> None:
    service = Service(lambda prompt: Reply(GOOD, "ok") if prompt.params.schema else told(prompt))
    job = chunked(tmp_path, output={"schema": MOOD, "repair": True}, reduce={"max_input_tokens": 128})
    many = " ".join(f"Sentence {number} is here." for number in range(600))
    answer = run(job, text(many), Service(lambda p: Reply(GOOD if p.params.schema else "word " * 40, "ok")))
    assert answer.final.text == GOOD and answer.chunks > 30
    answer = run(job, text(LONG), service)
    assert [bool(prompt.params.schema) for prompt in service.of("map")] == [False] * answer.chunks
    *others, last = service.of("reduce")
    assert last.params.schema and not any(prompt.params.schema for prompt in others)
    assert answer.final.text == GOOD
    whole = Service(lambda prompt: Reply(GOOD, "ok"))
    run(job, text("short"), whole)
    assert [bool(prompt.params.schema) for prompt in whole.asked] == [True]


def test_a_merged_answer_is_repaired_too_and_kept_where_that_is_in_vain(tmp_path: Path) -> None:
    job = chunked(tmp_path, output={"schema": MOOD, "repair": True})
    service = Service(lambda prompt: Reply(BAD, "ok") if prompt.params.schema else told(prompt))
    answer = run(job, text(LONG), service)
    assert (answer.final.status, answer.final.error_kind, answer.final.text) == ("invalid", "schema", BAD)
    assert [prompt.step for prompt in service.asked[-2:]] == ["reduce", "repair"]
    assert len(answer.replies) == len(service.asked)


# ---- a run


def test_a_run_writes_a_typed_column_for_each_property(here: Path, cli: Callable[..., Ran]) -> None:
    (here / "topics.csv").write_text("topic,score\nfirst,1\nsecond,2\n")
    for suffix in ("parquet", "csv", "jsonl"):
        schema = "mood: good|bad, score: float, day: date, who: {name: str, tags: [str]}"
        path = write_job(here, output={"path": f"out.{suffix}", "schema": schema})
        ran = cli("run", str(path), "--offline", "--overwrite", "--fresh", "--json")
        assert ran.code == 0, ran.err
    table = pl.read_parquet("out-offline.parquet")
    assert dict(table.schema)["who"] == pl.Struct({"name": pl.String, "tags": pl.List(pl.String)})
    assert [table.schema[name] for name in ("mood", "score", "day")] == [pl.String, pl.Float64, pl.Date]
    assert table["input_score"].to_list() == ["1", "2"]
    who = json.loads(table["response"][0])["who"]
    assert table["who"][0] == who
    assert json.loads(pl.read_csv("out-offline.csv")["who"][0]) == who
    assert json.loads((here / "out-offline.jsonl").read_text().splitlines()[0])["who"] == who


def test_a_job_with_a_schema_is_loaded_as_it_is_shown(tmp_path: Path) -> None:
    path = write_job(tmp_path, output={"schema": MOOD})
    assert load(path).spec.output.model_dump(by_alias=True)["schema"] == MOOD


# ---- the page

PAGE = (Path(__file__).parent.parent / "docs" / "structured.md").read_text("utf-8")


def test_the_jobs_of_the_page_run_as_they_stand(here: Path, cli: Callable[..., Ran]) -> None:
    (table,) = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)
    (here / "reviews.csv").write_text(table)
    line, written = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (here / "review.schema.json").write_text(json.dumps(tomllib.loads(written)["output"]["schema"]))
    (here / "models.py").write_text(
        "from pydantic import BaseModel\nclass Review(BaseModel):\n    mood: str\n    score: float | None = None\n"
    )
    named = [
        line.replace(re.findall(r"schema = .*", line)[0], form) for form in re.findall(r"`(schema = \{.*?\})`", PAGE)
    ]
    assert len(named) == 2
    for number, job in enumerate((line, written, *named)):
        (here / f"job{number}.toml").write_text(job)
        ran = cli("run", f"job{number}.toml", "--offline", "--overwrite")
        assert ran.code == 0, ran.err
        assert "2 ok" in ran.err
    table = pl.read_parquet("results/reviews-offline.parquet")
    assert table.schema["mood"] == pl.String and table.schema["score"] == pl.Float64
