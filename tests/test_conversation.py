"""Several turns of one row, asked one after the other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from serving import served, stats
from sessions import run_through
from test_flows import Service, failed, run, told

from jobs import PLAIN, Sections, make_job
from pipeline.errors import InputError, JobError
from pipeline.flows import MOST_CHARACTERS, Answer
from pipeline.job import Job
from pipeline.prompts import Prompt
from pipeline.records import Document, Media, Reply, Usage
from pipeline.run import prepare
from pipeline.run.prepare import Options

TALK: Sections = {
    **PLAIN,
    "prompt": {"flow": "conversation", "turns": ["Say {{ topic }}", "Louder", "And {{ topic }} once more"]},
}
SAID = ["Say fog", "Louder", "And fog once more"]


def talk(directory: Path, **sections: Any) -> Job:
    return make_job(directory, TALK, **sections)


def row(**fields: object) -> Document:
    return Document(7, "key", {"topic": "fog", **fields})


def turns(prompt: Prompt) -> list[str]:
    return [f"{turn.role}: {turn.text}" for turn in prompt.content]


def answers(answer: Answer) -> object:
    return json.loads(answer.final.extras)["answers"]


def test_each_turn_is_asked_with_the_turns_and_the_answers_before_it(tmp_path: Path) -> None:
    service = Service()
    answer = run(talk(tmp_path), row(), service)
    texts = ["a0.0", "t1.1", "t2.2"]
    assert [turns(prompt) for prompt in service.asked] == [
        ["user: Say fog"],
        ["user: Say fog", "model: a0.0", "user: Louder"],
        ["user: Say fog", "model: a0.0", "user: Louder", "model: t1.1", "user: And fog once more"],
    ]
    assert [(p.step, p.level, p.chunk, p.chunks) for p in service.asked] == [
        ("answer", 0, 0, 3),
        ("turn", 1, 1, 3),
        ("turn", 2, 2, 3),
    ]
    assert service.most_in_flight == 1
    assert [reply.text for reply in answer.replies] == texts == answers(answer)
    assert (answer.final.text, answer.final.status, answer.chunks) == (texts[-1], "ok", 1)
    assert answer.input_tokens_est == sum(prompt.input_tokens_est for prompt in service.asked)


def test_further_turns_come_from_a_column(tmp_path: Path) -> None:
    for turns_of_row in (["More", "Less"], '["More", "Less"]'):
        service = Service()
        run(
            talk(tmp_path, prompt={"turns": ["Say {{ topic }}"], "turns_column": "more"}),
            row(more=turns_of_row),
            service,
        )
        assert turns(service.asked[-1])[::2] == ["user: Say fog", "user: More", "user: Less"]
    service = Service()
    run(talk(tmp_path, prompt={"turns": None, "turns_column": "more"}), row(more=["{{ sent as it stands }}"]), service)
    assert [turns(prompt) for prompt in service.asked] == [["user: {{ sent as it stands }}"]]
    assert [prompt.step for prompt in service.asked] == ["answer"]


@pytest.mark.parametrize(
    ("cell", "kind", "error"),
    [
        (None, "empty_input", "the column more is empty"),
        ([], "empty_input", "the column more is empty"),
        ("[1]", "invalid_messages", "the column more: turn 1 is no text"),
        (["a", " "], "invalid_messages", "the column more: turn 2 is empty"),
        ("what?", "invalid_messages", "the column more: it is no JSON"),
        ({"a": 1}, "invalid_messages", "the column more: it is no list of texts"),
    ],
)
def test_a_cell_without_turns_is_told(tmp_path: Path, cell: object, kind: str, error: str) -> None:
    service = Service()
    answer = run(talk(tmp_path, prompt={"turns": None, "turns_column": "more"}), row(more=cell), service)
    assert (service.asked, answer.final.status, answer.final.error_kind) == ([], "invalid", kind)
    assert answer.final.error == error


def test_it_goes_on_from_the_conversation_and_the_examples_of_the_row(tmp_path: Path) -> None:
    service = Service()
    job = talk(
        tmp_path,
        input={"messages": "before"},
        prompt={"turns": ["And {{ topic }}?"], "examples": [{"input": "a", "output": "b"}]},
    )
    before = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    before.append({"role": "assistant", "content": "Hello"})
    run(job, row(before=before), service)
    (prompt,) = service.asked
    assert turns(prompt) == ["user: a", "model: b", "user: Hi", "model: Hello", "user: And fog?"]
    assert prompt.params.system == "Be kind."


@pytest.mark.parametrize("at", [0, 1])
def test_a_turn_that_fails_ends_the_row_with_what_was_paid_and_answered(tmp_path: Path, at: int) -> None:
    service = Service(lambda prompt: failed() if prompt.chunk == at else told(prompt))
    answer = run(talk(tmp_path), row(), service)
    assert (answer.final.status, answer.final.error_kind, answer.final.text) == ("error", "server", "")
    assert len(answer.replies) == len(service.asked) == at + 1
    assert answers(answer) == ["a0.0"][:at]


def test_a_turn_that_is_answered_without_text_ends_the_row(tmp_path: Path) -> None:
    service = Service(lambda prompt: replace(told(prompt), text="", extras='{"function_calls":[]}'))
    answer = run(talk(tmp_path), row(), service)
    assert (answer.final.status, answer.final.error_kind, len(answer.replies)) == ("error", "empty_answer", 1)


def test_what_a_filter_withholds_in_the_last_turn_is_what_the_row_came_to(tmp_path: Path) -> None:
    withheld = Reply("", "blocked", error_kind="answer_blocked", error="withheld", usage=Usage(5, 0, 1))
    service = Service(lambda prompt: withheld if prompt.chunk == 2 else told(prompt))
    answer = run(talk(tmp_path), row(), service)
    assert replace(answer.final, extras="") == withheld
    assert answers(answer) == ["a0.0", "t1.1"]


def test_an_answer_that_was_cut_is_carried_on_and_told(tmp_path: Path) -> None:
    cut = Reply("half", "truncated", error_kind="truncated", usage=Usage(9, 0, 9))
    service = Service(lambda prompt: cut if prompt.chunk == 0 else told(prompt))
    answer = run(talk(tmp_path), row(), service)
    assert (answer.final.status, answer.final.text) == ("truncated", "t2.2")
    assert answer.final.error == "1 of 3 part answers reached max_output_tokens"
    assert answers(answer) == ["half", "t1.1", "t2.2"]


def test_what_came_beside_the_last_answer_stays(tmp_path: Path) -> None:
    service = Service(lambda prompt: replace(told(prompt), extras='{"urls":[]}'))
    answer = run(talk(tmp_path), row(), service)
    assert json.loads(answer.final.extras) == {"urls": [], "answers": ["a0.0", "t1.1", "t2.2"]}


def test_a_template_that_fails_is_found_before_anything_is_paid(tmp_path: Path) -> None:
    service = Service()
    answer = run(talk(tmp_path, prompt={"turns": ["Say", "{{ topic / 2 }}"]}), row(), service)
    assert (service.asked, answer.final.error_kind) == ([], "template_error")


def test_answers_that_no_context_holds_end_the_row_with_what_was_paid(tmp_path: Path) -> None:
    service = Service(lambda prompt: replace(told(prompt), text="word " * (MOST_CHARACTERS // 5)))
    answer = run(talk(tmp_path), row(), service)
    assert (answer.final.status, answer.final.error_kind) == ("invalid", "too_long")
    assert len(answer.replies) == 1


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ({"turns": None}, 'flow = "conversation" needs turns, or turns_column'),
        ({"flow": None, "template": "a"}, 'turns are asked with flow = "conversation"'),
        ({"template": "a"}, "turns take the place of the template"),
        ({"turns": ["{{ topic"]}, "turns, number 1"),
    ],
)
def test_a_job_says_what_a_conversation_is(tmp_path: Path, prompt: dict[str, Any], why: str) -> None:
    with pytest.raises(JobError) as wrong:
        talk(tmp_path, prompt=prompt)
    assert why in str(wrong.value)


def test_a_conversation_is_not_cut(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="do not go together"):
        talk(tmp_path, input={"text": "t"}, chunk={"max_tokens": 64}, reduce={"template": "{{ parts }}"})


def test_a_change_of_a_turn_is_another_job(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"turns": [*SAID[:1], "Softer"]},
        {"turns_column": "more"},
        {"flow": None, "turns": None, "template": "Say {{ topic }}"},
    ]
    assert len({talk(tmp_path, prompt=change).fingerprint for change in changes}) == 4


# ---- whole runs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    (tmp_path / "topics.csv").write_text("topic,answers\nfog,1\nrain,2\n")
    return tmp_path


@pytest.mark.parametrize("provider", ["gemini", "openai"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_all_answers_stand_in_a_column_of_the_output(here: Path, provider: str, suffix: str) -> None:
    with served(model_version=None) as url:
        job = talk(
            here,
            limits={"rpm": 0, "tpm": 0},
            endpoint={"provider": provider, "base_url": url},
            output={"path": f"out{suffix}"},
        )
        ended = run_through(prepare.prepare(job, Options()))
        assert stats(url)["answered"] == 6
    assert ended.stopped is None and ended.summary.calls == 6
    read: Any = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}[suffix]
    out = read(f"out{suffix}")
    assert out["status"].to_list() == ["ok", "ok"] and out["calls"].to_list() == [3, 3]
    assert out["input_answers"].cast(pl.String).to_list() == ["1", "2"], "a column of that name is renamed"
    told_of = [json.loads(cell) for cell in out["answers"]] if suffix == ".csv" else out["answers"].to_list()
    assert [len(each) for each in told_of] == [3, 3]
    assert [each[-1] for each in told_of] == out["response"].to_list()


def test_a_column_of_turns_must_be_there(here: Path) -> None:
    with pytest.raises(InputError, match="column `more` is not in"):
        prepare.prepare(talk(here, prompt={"turns_column": "more"}), Options())


def test_only_the_last_answer_is_held_to_the_schema(tmp_path: Path) -> None:
    def reply(prompt: Prompt) -> Reply:
        return replace(
            told(prompt), text='{"loud": true}' if prompt.chunk == 2 and prompt.step != "repair" else "Fine."
        )

    job = talk(tmp_path, output={"schema": "loud: bool", "repair": True})
    service = Service(reply)
    answer = run(job, row(), service)
    assert [prompt.params.schema is not None for prompt in service.asked] == [False, False, True]
    assert (answer.final.status, answers(answer)) == ("ok", ["Fine.", "Fine.", '{"loud": true}'])
    service = Service(lambda prompt: replace(told(prompt), text="Fine."))
    answer = run(job, row(), service)
    assert [prompt.step for prompt in service.asked] == ["answer", "turn", "turn", "repair"]
    assert (answer.final.status, answer.final.error_kind) == ("invalid", "schema")
    assert answers(answer) == ["Fine.", "Fine.", "Fine."]


def test_files_of_a_row_stand_before_its_first_turn(tmp_path: Path) -> None:
    job = talk(tmp_path, input={"image": "picture"})
    media = Media("image", "image/png", "0" * 32, 10, 258)
    service = Service()
    run(job, replace(row(), media=(media,)), service)
    assert [[turn.parts.count(media) for turn in prompt.content] for prompt in service.asked][-1] == [1, 0, 0, 0, 0]


def test_a_row_that_a_filter_ended_goes_on_from_there_when_it_is_retried(here: Path) -> None:
    (here / "topics.csv").write_text("topic\n" + "".join(f"topic {number}\n" for number in range(20)))
    with served(model_version=None, faults="block:0.3") as url:
        job = talk(here, limits={"rpm": 0, "tpm": 0}, endpoint={"base_url": url})
        run_through(prepare.prepare(job, Options()))
        ended = pl.read_ndjson("results/out.jsonl").filter(status="blocked")
        assert 5 < ended.height < 20 and set(ended["answers"].list.len()) == {0, 1, 2}
        for _ in range(12):
            run_through(prepare.prepare(job, Options(retry=frozenset({"blocked"}))))
            out = pl.read_ndjson("results/out.jsonl")
            if set(out["status"]) == {"ok"}:
                break
        seen = stats(url)
    assert set(out["status"]) == {"ok"} and set(out["answers"].list.len()) == {3}
    assert seen["answered"] - seen["faults"]["block"] == 3 * 20, "no turn that was answered is asked again"
