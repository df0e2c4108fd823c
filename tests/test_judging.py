"""What an answer is held to before it is its row's, and the one call more where it is not met."""

import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chinese import said_in_chinese
from commands import Ran
from serving import served, stats
from test_flows import LONG, Service, chunked, run, text, told

from jobs import make_job, write_job
from pipeline.emulator.answers import json_value
from pipeline.errors import InputError, JobError
from pipeline.job import Job, load
from pipeline.prompts import Prompt, Text
from pipeline.providers.gemini import request
from pipeline.providers.openai import build_request
from pipeline.records import Document, Reply, Usage
from pipeline.schemas import schema_of
from pipeline.schemas.checks import checks_of
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
    said_in_chinese(caught.value)
    return caught.value


def test_a_schema_is_a_line_a_table_a_file_or_a_class(tmp_path: Path) -> None:
    line = make_job(tmp_path, output={"schema": "n: int"}).schema
    assert line
    assert make_job(tmp_path, output={"schema": line.value}).schema == line
    (tmp_path / "n.schema.json").write_text(line.text)
    assert make_job(tmp_path, output={"schema": {"file": "n.schema.json"}}).schema == line
    for folder, kind in (("one", "int"), ("other", "str")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "its_models.py").write_text(
            f"from pydantic import BaseModel\nclass N(BaseModel):\n    n: {kind}\n"
        )
        made = make_job(tmp_path / folder, output={"schema": {"class": "its_models:N"}}).schema
        assert made and made.value["properties"]["n"]["type"] == {"int": "integer", "str": "string"}[kind]
    assert "its_models" not in sys.modules, "another job may have one of that name"
    assert make_job(tmp_path).schema is None


def test_a_class_beside_the_job_file_is_found(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    (tmp_path / "topics.csv").write_text("topic\nx\n")
    (tmp_path / "beside_models.py").write_text("from pydantic import BaseModel\nclass N(BaseModel):\n    n: int\n")
    path = write_job(
        tmp_path, output={"schema": {"class": "beside_models:N"}}, input={"path": str(tmp_path / "topics.csv")}
    )
    assert cli("check", str(path), "--offline").code == 0


@pytest.mark.parametrize(
    "module",
    [
        "raise SystemExit(0)",
        "class E(BaseException): pass\nraise E",
        "import sys\nsys.path.clear()\nclass N: pass",
        "raise ValueError('long\\n' * 9_000)",
    ],
)
def test_whatever_a_module_does_it_is_a_schema_that_cannot_be_used(tmp_path: Path, module: str) -> None:
    (tmp_path / "odd_models.py").write_text(module)
    before = sys.path[:]
    error = refused(tmp_path, output={"schema": {"class": "odd_models:N"}})
    assert "odd_models" in error.message and len(error.message) < 900 and sys.path == before


def test_what_a_module_prints_does_not_stand_in_our_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loud_models.py").write_text(
        "print('hello')\nfrom pydantic import BaseModel\nclass N(BaseModel): n: int"
    )
    make_job(tmp_path, output={"schema": {"class": "loud_models:N"}})
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("mood", "`:` is missing"),
        ({"file": "gone.json"}, "cannot read"),
        ({"file": "job.toml"}, "is no JSON"),
        ({"file": "a.json", "type": "object"}, "`type` stands beside `file`"),
        ({"class": "nowhere_at_all:Model"}, "nowhere_at_all cannot be used: ModuleNotFoundError"),
        ({"class": "json:Model"}, "json has no `Model`"),
        ({"class": "json:JSONDecoder"}, "it has no JSON Schema"),
        ({"class": "json"}, "names no class"),
        ({"files": "a.json"}, "`files` is no word of a schema"),
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
    tree = {"$defs": {"N": {"properties": {"next": {"$ref": "#/$defs/N"}}, "required": ["next"]}}, "$ref": "#/$defs/N"}
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    endless = refused(tmp_path, output={"schema": {"file": "tree.json"}})
    assert "#/$defs/N requires itself" in endless.message and "`required`" in endless.hint
    with pytest.raises(InputError, match="has a property `status`") as caught:
        output_schema(pl.Schema(), Path("x.csv"), make_job(tmp_path, output={"schema": "status: str"}).answer_columns)
    assert "prefix" in caught.value.hint
    prefixed = make_job(tmp_path, output={"schema": "status: str", "prefix": "its_"}).answer_columns
    assert "its_status" in output_schema(pl.Schema(), Path("x.csv"), prefixed)


def test_a_rehearsal_is_answered_in_the_formats_that_a_schema_names() -> None:
    forms = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
    properties = {form: {"type": "string", "format": form} for form in forms}
    schema = schema_of({"type": "object", "properties": properties, "required": list(properties)})
    assert schema.judge(json.dumps(json_value("Whatever was asked.", schema.value)))[1] == ""


@pytest.mark.parametrize(
    "properties",
    [
        {"*": {"type": "string"}},
        {"^x.*$": {"type": "string"}},
        {"a": {"type": "object", "properties": {"*": {"type": "integer"}}}},
    ],
)
def test_a_property_that_no_column_can_be_called_as_is_refused_before_it_is_bought(
    tmp_path: Path, properties: dict[str, Any]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"type": "object", "properties": properties}))
    job = make_job(tmp_path, output={"schema": {"file": "a.json"}})
    with pytest.raises(InputError, match="no column can be called so"):
        output_schema(pl.Schema(), Path("x.csv"), job.answer_columns)


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("citations", {"tools": {"google_search": True}}),
        ("redacted", {"redact": {"kinds": ["email"]}}),
        ("answers", {"prompt": {"template": None, "flow": "conversation", "turns": ["Say {{ topic }}"]}}),
    ],
)
def test_a_property_called_as_another_column_of_the_answers_is_refused_before_it_is_bought(
    tmp_path: Path, name: str, sections: dict[str, Any]
) -> None:
    job = make_job(tmp_path, output={"schema": f"{name}: str"}, **sections)
    with pytest.raises(InputError, match=f"property `{name}`, and the output has such a column"):
        output_schema(pl.Schema(), Path("x.csv"), job.answer_columns)
    assert output_schema(
        pl.Schema(),
        Path("x.csv"),
        make_job(tmp_path, output={"schema": f"{name}: str", "prefix": "its_"}, **sections).answer_columns,
    )


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


def test_what_may_be_of_several_types_is_json_itself_in_a_jsonl(here: Path, cli: Callable[..., Ran]) -> None:
    (here / "topics.csv").write_text("topic,any\nfirst,1\n")
    schema = {"type": "object", "properties": {"any": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}}
    path = write_job(here, output={"path": "out.jsonl", "schema": schema | {"required": ["any"]}})
    assert cli("run", path, "--offline").code == 0
    line = json.loads((here / "out-offline.jsonl").read_text())
    assert (line["any"], line["input_any"]) == (0, "1")


@pytest.mark.parametrize("provider", ["gemini", "openai", "vertex"])
def test_every_protocol_answers_by_the_schema(here: Path, cli: Callable[..., Ran], provider: str) -> None:
    (here / "topics.csv").write_text("topic\nfirst\nsecond\n")
    path = write_job(here, endpoint={"provider": provider}, output={"path": "out.csv", "schema": MOOD})
    assert cli("run", path, "--offline").code == 0
    assert set(pl.read_csv("out-offline.csv")["mood"]) <= {"good", "bad"}


def test_a_relay_that_misshapes_json_is_put_right_by_a_repair(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "topics.csv").write_text("topic\n" + "\n".join(f"number {number}" for number in range(30)) + "\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    faults = ",".join(f"{kind}:0.2" for kind in ("fenced_json", "prose_json", "broken_json", "wrong_json"))
    with served(faults=faults) as url:
        endpoint = {"provider": "openai", "base_url": url}
        limits = {"rpm": 0, "tpm": 0}
        path = write_job(here, endpoint=endpoint, limits=limits, output={"schema": MOOD, "repair": True})
        assert cli("run", path, "--yes").code == 0
        bought = stats(url)["answered"]
    table = pl.read_ndjson("results/out.jsonl")
    assert set(table["status"]) == {"ok"} and set(table["mood"]) <= {"good", "bad"}
    assert table["calls"].sum() == bought > 32


def test_schema_checks_and_targets_are_shown_as_they_were_read(here: Path, cli: Callable[..., Ran]) -> None:
    job = checked(here, LOW, f"{LOW}retry = true", sections=TARGETS)
    shown = cli("run", job.path, "--show-config")
    assert shown.code == 0, shown.err
    told = {line.split()[0]: line for line in shown.out.splitlines() if line.strip()}
    assert MOOD in told["output.schema"] and "score < 5" in told["check.1.holds"] and "True" in told["check.2.retry"]
    assert "strong" in told["target.2.name"] and "check.1.escalate" not in told


# ---- the page

PAGE = (Path(__file__).parent.parent / "docs" / "structured.md").read_text("utf-8")


def test_the_jobs_of_the_page_run_as_they_stand(here: Path, cli: Callable[..., Ran]) -> None:
    (table,) = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)
    (here / "reviews.csv").write_text(table)
    line, written, held = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
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
    (here / "checked.toml").write_text(held)
    assert cli("run", "checked.toml", "--offline").code in (0, 1)
    results = pl.read_parquet("results/checked-offline.parquet")
    assert set(results["error_kind"].drop_nulls()) <= {"check"}
    assert checks_of([*re.findall(r"holds = \"(response ~ .*?)\"`", PAGE)], ())
    usual = schema_of("order: {id: str, placed: date?}").columns("")
    (of_struct,) = re.findall(r"and `(.*?)` for a field of a struct", PAGE)
    (day,) = re.findall(r"`(DATE '.*?')`", PAGE)
    assert checks_of([f"{of_struct} <> 'x'", f'"order".placed > {day}'], usual)
    table = pl.read_parquet("results/reviews-offline.parquet")
    assert table.schema["mood"] == pl.String and table.schema["score"] == pl.Float64


# ---- checks


def checked(directory: Path, *checks: str, sections: str = "", schema: str = MOOD) -> Job:
    path = write_job(directory, output={"schema": schema} if schema else {})
    path.write_text(path.read_text() + "".join(f"\n[[check]]\n{check}" for check in checks) + f"\n{sections}")
    return load(path)


LOW = 'holds = "score < 5"\nmessage = "score must be below 5"\n'
HIGH = '{"mood": "good", "score": 9}'


def test_a_row_for_which_a_check_does_not_hold_is_invalid_and_its_answer_is_kept(tmp_path: Path) -> None:
    job = checked(tmp_path, LOW, 'holds = "LENGTH(response) < 5"')
    answer = run(job, ROW, answers(HIGH))
    assert (answer.final.status, answer.final.error_kind, answer.final.text) == ("invalid", "check", HIGH)
    assert answer.final.error == "score must be below 5; this does not hold: LENGTH(response) < 5"
    assert run(checked(tmp_path, LOW), ROW, answers(GOOD)).final.status == "ok"


@pytest.mark.parametrize(
    ("holds", "does"),
    [
        ("mood = 'good' AND score BETWEEN 0 AND 3", True),
        ("ARRAY_LENGTH(tags) >= 2", True),
        ("ARRAY_CONTAINS(tags, 'z')", False),
        ("who.name ILIKE 'a%'", True),
        ("response ~ '^[{]'", True),
        ("note IS NULL OR LENGTH(note) < 3", True),
        ("LENGTH(note) < 3", False),
        ("input_tokens > 5 AND input_tokens < 1000", True),
        ("day > DATE '2026-01-01'", True),
        ("CAST(mood AS INT) = 1", False),
    ],
)
def test_a_check_sees_the_answer_its_columns_and_the_size_of_the_prompt(tmp_path: Path, holds: str, does: bool) -> None:
    schema = "mood: good|bad, score: int, tags: [str], who: {name: str}, note: str?, day: date"
    said = {"mood": "good", "score": 3, "tags": ["a", "b"], "who": {"name": "Ann"}, "day": "2026-11-29"}
    job = checked(tmp_path, f'holds = "{holds}"', schema=schema)
    assert (run(job, ROW, answers(json.dumps(said))).final.status == "ok") == does


def test_a_check_of_free_text_needs_no_schema(tmp_path: Path) -> None:
    job = checked(tmp_path, 'holds = "LENGTH(response) <= 3"\nretry = true', schema="")
    answer = run(job, ROW, service := answers("too long", "ok!"))
    assert (answer.final.status, answer.final.text) == ("ok", "ok!")
    said = service.asked[1].content[-1].parts[0]
    assert said == Text("Your answer will not do: this does not hold: LENGTH(response) <= 3. Answer again.")


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ('holds = "scor < 5"', "there is no column `scor`"),
        ('holds = "score"', "is Int64, not true or false"),
        ('holds = "score <"', "holds = 'score <'"),
        ('holds = "mood < NOW()"', "another condition at another time"),
        ('holds = "score < 5"\nretry = true\nescalate = "b"', "set one of the two"),
        ('holds = "score < 5"\nescalate = "b"', "which is no [[target]]"),
        ('hold = "score < 5"', "did you mean `holds`?"),
        ('holds = "TRUE"', "no condition on one answer"),
        ('holds = "COUNT(*) > 1"', "no condition on one answer"),
        ('holds = "MAX(score) < 5"', "no condition on one answer"),
        ('holds = "LENGHT(response) < 5"', "docs/structured.md names those"),
        ('holds = "LENGTH(tags) < 5"', "ARRAY_LENGTH counts"),
        ("holds = \"day > '2026-01-31'\"", "DATE '2026-01-31'"),
        ("holds = \"order.id <> ''\"", "stands in double quotes"),
    ],
)
def test_a_check_that_cannot_be_judged_is_refused(tmp_path: Path, check: str, said: str) -> None:
    columns = "score: int, mood: str, tags: [str], day: date, order: {id: str}"
    with pytest.raises(JobError) as caught:
        checked(tmp_path, check, schema=columns)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_retry_tells_the_model_what_was_wrong_and_is_paid_too(tmp_path: Path) -> None:
    job = checked(tmp_path, f"{LOW}retry = true")
    answer = run(job, ROW, service := answers(HIGH, GOOD))
    assert (answer.final.status, answer.final.text, len(answer.replies)) == ("ok", GOOD, 2)
    assert [prompt.step for prompt in service.asked] == ["answer", "retry"]
    model, user = service.asked[1].content[1:]
    assert model.parts == (Text(HIGH),) and "score must be below 5" in user.parts[0].text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("second", "kind", "kept"),
    [
        ('{"mood": "bad", "score": 8}', "check", '{"mood": "bad", "score": 8}'),
        (BAD, "check", HIGH),
        (Reply("", "blocked", error_kind="answer_blocked"), "check", HIGH),
        (Reply("", "error", error_kind="network"), "network", ""),
    ],
)
def test_what_a_retry_does_not_mend_stays_invalid(tmp_path: Path, second: str | Reply, kind: str, kept: str) -> None:
    answer = run(checked(tmp_path, f"{LOW}retry = true"), ROW, service := answers(HIGH, second))
    assert (answer.final.error_kind, answer.final.text) == (kind, kept)
    assert len(service.asked) == len(answer.replies) == 2 and answer.replies[-1] == answer.final


def test_a_repair_and_a_retry_are_two_calls_more_and_no_third(tmp_path: Path) -> None:
    path = write_job(tmp_path, output={"schema": MOOD, "repair": True})
    path.write_text(f"{path.read_text()}\n[[check]]\n{LOW}retry = true\n")
    answer = run(load(path), ROW, service := answers(BAD, HIGH, HIGH))
    assert [prompt.step for prompt in service.asked] == ["answer", "repair", "retry"]
    assert (answer.final.status, answer.final.error_kind, len(answer.replies)) == ("invalid", "check", 3)


def test_checks_change_the_fingerprint(tmp_path: Path) -> None:
    jobs = [checked(tmp_path), checked(tmp_path, LOW), checked(tmp_path, f"{LOW}retry = true")]
    assert len({job.fingerprint for job in jobs}) == 3


TARGETS = """
[[target]]
name = "cheap"
model = "gemini-3.5-flash-lite"
[[target]]
name = "strong"
model = "gemini-3.8-flash"
fallback = ["check"]
"""


def test_a_stronger_target_is_asked_where_a_check_does_not_hold(here: Path, cli: Callable[..., Ran]) -> None:
    (here / "topics.csv").write_text("topic\nshort\na much longer one than that\nalso short\n")
    check = 'holds = "LENGTH(response) < 20"\nescalate = "strong"\n'
    job = checked(here, check, sections=TARGETS, schema="")
    estimated = cli("estimate", str(job.path), "--offline", "--json").json
    assert (estimated["prompts"], estimated["prompts_range"]["high"]) == (3, 6)
    ran = cli("run", str(job.path), "--offline", "--json")
    assert ran.code == 1, ran.err
    table = pl.read_ndjson("results/out-offline.jsonl")
    assert table["status"].to_list() == ["ok", "invalid", "ok"]
    assert table["target"].to_list() == ["cheap", "strong", "cheap"] and table["calls"].to_list() == [1, 2, 1]
    again = cli("run", str(job.path), "--offline", "--json")
    assert again.json["calls"] == ran.json["calls"] == 4


def test_what_is_escalated_is_paid_at_the_price_of_whoever_is_asked(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "topics.csv").write_text("topic\n" + "\n".join(f"number {number}" for number in range(40)) + "\n")
    check = 'holds = "response LIKE \'%5%\'"\nescalate = "strong"\n'
    job = checked(here, check, sections=f"{TARGETS}\n[limits]\nrpm = 0\ntpm = 0", schema="")
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        before = cli("estimate", str(job.path), "--json").json
        ran = cli("run", str(job.path), "--yes", "--json").json
        billed = Counter(each["model"] for each in stats(url)["billed"] for _ in range(each["requests"]))
        (here / "runs" / "job").rename(here / "runs" / "earlier")
        learned = cli("estimate", str(job.path), "--json").json
    escalated = 40 - len([number for number in range(40) if "5" in str(number)])
    assert ran["calls"] == 40 + escalated == learned["prompts"] and billed["gemini-3.8-flash"] == escalated
    assert before["prompts"] == 40 and before["prompts_range"]["high"] == 80
    assert before["cost_usd"]["low"] <= ran["cost_usd"] <= before["cost_usd"]["high"]
    assert learned["cost_usd"]["expected"] == pytest.approx(ran["cost_usd"], rel=0.05)


def test_a_job_that_may_escalate_and_retry_is_planned_with_both(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "topics.csv").write_text("topic\n" + "\n".join(f"number {number}" for number in range(40)) + "\n")
    retried = "[[check]]\nholds = \"response NOT LIKE '%6%'\"\nretry = true\n"
    check = 'holds = "response NOT LIKE \'%5%\'"\nescalate = "strong"\n'
    job = checked(here, check, sections=f"{TARGETS}{retried}\n[limits]\nrpm = 0\ntpm = 0", schema="")
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ran = cli("run", str(job.path), "--yes", "--json").json
        (here / "runs" / "job").rename(here / "runs" / "earlier")
        learned = cli("estimate", str(job.path), "--json").json
    assert learned["prompts_by_step"] == {"answer": 40, "escalate": 4, "retry": 4} and ran["calls"] == 48
    assert any("need another call: retry 10%, escalate 10%" in each for each in learned["assumptions"])
    assert learned["cost_usd"]["expected"] == pytest.approx(ran["cost_usd"], rel=0.05)


def test_escalating_needs_a_target_that_takes_over_for_it(tmp_path: Path) -> None:
    for wrong in (
        TARGETS.replace('fallback = ["check"]', ""),
        TARGETS.replace("gemini-3.8-flash", "gemini-3.5-flash-lite"),
    ):
        with pytest.raises(JobError) as caught:
            checked(tmp_path, f'{LOW}escalate = "strong"', sections=wrong)
        assert "strong" in caught.value.message
    routes = '[[route]]\nwhere = "topic = \'x\'"\ntargets = ["cheap"]\n[[route]]\ntargets = ["cheap", "strong"]\n'
    with pytest.raises(JobError, match="a \\[\\[route\\]\\] does not lead there"):
        checked(tmp_path, f'{LOW}escalate = "strong"', sections=TARGETS + routes)


def test_rows_that_were_wrong_are_asked_again_on_demand(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "topics.csv").write_text("topic\nfirst\nsecond\n")
    path = write_job(here, output={"schema": MOOD}, limits={"rpm": 0, "tpm": 0})
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    with served(faults="wrong_json*1") as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert cli("run", path, "--yes").code == 1
        wrong = pl.read_ndjson("results/out.jsonl").filter(pl.col("status") == "invalid")
        assert wrong["error_kind"].to_list() == ["schema"] and wrong["response"][0].startswith("[{")
        assert wrong["mood"].to_list() == [None]
        assert cli("run", path, "--yes", "--retry", "schema").code == 0
    assert pl.read_ndjson("results/out.jsonl")["calls"].sum() == 2 and stats_of(here) == 3


def stats_of(here: Path) -> int:
    """Calls that were paid for."""
    calls = pl.concat([pl.read_parquet(path) for path in (here / "runs/job/calls").glob("*.parquet")])
    return calls.filter("paid").height
