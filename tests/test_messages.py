"""Few-shot turns and conversations of a row: what is sent, and which rows are not."""

import json
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from google import genai
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from serving import served, stats
from sessions import run_through

from jobs import CHUNKED, Sections, make_job
from pipeline import estimating, flows
from pipeline.errors import InputError, JobError
from pipeline.estimating import Wishes
from pipeline.flows.messages import NoConversationError, conversation
from pipeline.job import Job
from pipeline.prompts import Prompt
from pipeline.providers import gemini, openai
from pipeline.records import Document, Reply
from pipeline.run import prepare
from pipeline.run.ending import Ended
from pipeline.run.prepare import Options
from pipeline.tokens import estimate

MODEL = "gemini-3.5-flash-lite"
EXAMPLES = [{"input": "Say rain", "output": "Rain."}, {"input": "Say 雪", "output": "雪。"}]
GEMINIS = [
    {"role": "user", "parts": [{"text": "Hi"}]},
    {"role": "model", "parts": [{"text": "Hello. "}, {"text": "What is it?"}]},
    {"role": "user", "parts": [{"text": "The weather"}]},
]
OPENAIS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": [{"type": "text", "text": "Hello. "}, {"type": "text", "text": "What is it?"}]},
    {"role": "user", "content": "The weather"},
]
SAID = [("user", "Hi"), ("model", "Hello. What is it?"), ("user", "The weather")]
TALK: Sections = {
    "input": {"path": "talks.jsonl", "messages": "talk"},
    "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": 50},
    "output": {"path": "out.jsonl"},
}


def asked(job: Job, **fields: Any) -> tuple[Prompt | None, flows.Answer]:
    """The one prompt of a row, if there is one."""
    prompts: list[Prompt] = []

    async def call(prompt: Prompt) -> Reply:
        prompts.append(prompt)
        return Reply("fine", "ok")

    answer = anyio.run(flows.run, Document(0, "0", fields), job, call)
    assert len(prompts) <= 1
    return (prompts[0] if prompts else None), answer


def turns(prompt: Prompt | None) -> list[tuple[str, str]]:
    assert prompt
    return [(turn.role, turn.text) for turn in prompt.content]


# ---- examples


def test_examples_stand_before_each_prompt_and_are_counted(tmp_path: Path) -> None:
    prompt, _ = asked(make_job(tmp_path, prompt={"examples": EXAMPLES}), topic="fog")
    told = [("user", "Say rain"), ("model", "Rain."), ("user", "Say 雪"), ("model", "雪。"), ("user", "Say fog")]
    assert prompt and turns(prompt) == told
    assert prompt.input_tokens_est == sum(estimate(text) for _, text in told)


def test_examples_are_part_of_what_is_bought(tmp_path: Path) -> None:
    with_them, without = make_job(tmp_path, prompt={"examples": EXAMPLES}), make_job(tmp_path)
    assert with_them.fingerprint != without.fingerprint
    assert "examples" not in without.identity["prompt"], "earlier runs stay what they were"
    names = [asked(job, topic="fog")[0] for job in (with_them, without)]
    assert len({prompt.fingerprint("m") for prompt in names if prompt}) == 2


def test_pieces_have_the_examples_and_merging_calls_have_not(tmp_path: Path) -> None:
    prompts: list[Prompt] = []

    async def call(prompt: Prompt) -> Reply:
        prompts.append(prompt)
        return Reply("part", "ok")

    job = make_job(tmp_path, CHUNKED, prompt={"examples": EXAMPLES})
    anyio.run(flows.run, Document(0, "0", {}, "A sentence of some words. " * 60), job, call)
    assert {(prompt.step, len(prompt.content)) for prompt in prompts} == {("map", 5), ("reduce", 1)}


@pytest.mark.parametrize("example", [{"input": "a"}, {"input": "a", "output": " "}, {"input": "", "output": "b"}])
def test_an_example_is_whole(tmp_path: Path, example: dict[str, str]) -> None:
    with pytest.raises(JobError, match="examples"):
        make_job(tmp_path, prompt={"examples": [example]})


# ---- the conversation of a row


@pytest.mark.parametrize("messages", [GEMINIS, OPENAIS, json.dumps(GEMINIS), json.dumps(OPENAIS)])
def test_a_conversation_of_either_shape_is_sent_as_it_was(tmp_path: Path, messages: Any) -> None:
    prompt, answer = asked(make_job(tmp_path, TALK), talk=messages)
    assert prompt and turns(prompt) == SAID
    assert answer.final.status == "ok"
    assert prompt.params.system == ("Be brief." if "system" in str(messages) else None)
    assert prompt.input_tokens_est == sum(estimate(text) for _, text in SAID) + estimate(prompt.params.system or "")


def test_the_system_message_of_a_row_wins_over_the_jobs(tmp_path: Path) -> None:
    job = make_job(tmp_path, TALK, prompt={"system": "Be kind."})
    systems = [asked(job, talk=talk)[0] for talk in (GEMINIS, OPENAIS)]
    assert [prompt and prompt.params.system for prompt in systems] == ["Be kind.", "Be brief."]


def test_with_a_template_the_conversation_is_what_was_said_before(tmp_path: Path) -> None:
    job = make_job(tmp_path, TALK, prompt={"template": "And {{ topic }}?", "examples": EXAMPLES[:1]})
    prompt, _ = asked(job, talk=GEMINIS[:2], topic="snow")
    assert turns(prompt) == [("user", "Say rain"), ("model", "Rain."), *SAID[:2], ("user", "And snow?")]
    nothings: list[Any] = [None, "", "[]", []]
    for nothing in nothings:
        prompt, _ = asked(job, talk=nothing, topic="snow")
        assert turns(prompt)[2:] == [("user", "And snow?")]
    _, answer = asked(job, talk=GEMINIS, topic="snow")
    assert answer.final.error == (
        "the column talk: the last message is the user's, and the template would be another of theirs"
    )


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (GEMINIS[:2], "the last message is the model's: there is nothing to be answered"),
        ([GEMINIS[1], GEMINIS[2]], "message 1 is the model's: the user begins"),
        ([GEMINIS[0], GEMINIS[2]], "message 2 is the user's again: the two take turns"),
        ([*OPENAIS, OPENAIS[0]], "message 5 is a system message: only the first one may be"),
        ([OPENAIS[0], *OPENAIS[:2]], "message 2 is a system message: only the first one may be"),
        ([{"role": "user", "content": " \n"}], "message 1 is empty"),
        ([{"role": "user", "parts": []}], "message 1 is empty"),
        ([{"role": "user"}], "message 1 has no text: it stands in parts, or in content"),
        ([{"role": "user", "content": 7}], "message 1 has no text: it stands in parts, or in content"),
        ([{"role": "user", "content": "a", "parts": [{"text": "a"}]}], "message 1 has both parts and content"),
        (
            [{"role": "tool", "content": "a"}],
            "message 1 has the role tool: user, model, assistant and system are",
        ),
        (
            [{"role": "my name is Ann", "content": "a"}],
            "message 1 has no role that is known: user, model, assistant and system are",
        ),
        (["Hi"], "message 1 is no object with a role and a text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "message 1 has a part that is not text: only text can be sent",
        ),
        (
            [{"role": "user", "parts": [{"text": "a", "inlineData": {}}]}],
            "message 1 has a part that is not text: only text can be sent",
        ),
        (
            [{"role": "user", "content": "a", "tool_calls": [{"id": "1"}]}],
            "message 1 has tool_calls: only text can be sent",
        ),
        ("{", "it is no JSON"),
        ("[" * 5000, "it is no JSON"),
        ('{"role": "user"}', "it is no list of messages"),
    ],
)
def test_a_conversation_that_cannot_be_asked_says_why(tmp_path: Path, messages: Any, why: str) -> None:
    prompt, answer = asked(make_job(tmp_path, TALK), talk=messages)
    final = answer.final
    assert (prompt, final.status, final.error_kind) == (None, "invalid", "invalid_messages")
    assert final.error == f"the column talk: {why}"


@pytest.mark.parametrize("empty", [None, "", "[]", []])
def test_an_empty_cell_is_an_empty_row(tmp_path: Path, empty: Any) -> None:
    _, answer = asked(make_job(tmp_path, TALK), talk=empty)
    assert (answer.final.status, answer.final.error_kind) == ("invalid", "empty_input")


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "parts", "text"]), inner),
)


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "model", "system"]) | CELLS, "parts": CELLS})))
def test_no_cell_breaks_the_reading_and_what_is_read_can_be_sent(messages: list[Any]) -> None:
    try:
        system, said = conversation(messages, "user")
    except NoConversationError:
        return
    assert system is None or system.strip()
    assert [turn.role for turn in said] == ["user", "model"] * (len(said) // 2) + ["user"] * bool(said)
    assert all(turn.text.strip() for turn in said)


def test_it_goes_out_in_the_shape_of_each_protocol(tmp_path: Path) -> None:
    prompt, _ = asked(make_job(tmp_path, TALK), talk=OPENAIS)
    assert prompt
    sent = json.loads(gemini.build_request(prompt))
    assert sent["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert [(each["role"], each["parts"][0]["text"]) for each in sent["contents"]] == SAID
    sent = json.loads(openai.build_request(prompt, "gpt-4o"))
    told = [(each["role"].replace("assistant", "model"), each["content"]) for each in sent["messages"]]
    assert told == [("system", "Be brief."), *SAID]


# ---- whole runs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    return tmp_path


def table(path: str) -> None:
    """Three rows: a conversation, one that ends with the model, none."""
    rows: list[dict[str, Any]] = [{"id": "a", "talk": GEMINIS}, {"id": "b", "talk": GEMINIS[:2]}, {"id": "c"}]
    if path.endswith(".parquet"):
        pl.DataFrame(rows).write_parquet(path)
    elif path.endswith(".csv"):
        cells = [json.dumps(row["talk"]) if "talk" in row else "" for row in rows]
        pl.DataFrame({"id": ["a", "b", "c"], "talk": cells}).write_csv(path)
    else:
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("path", ["talks.parquet", "talks.jsonl", "talks.csv"])
@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_a_column_of_each_kind_of_table_is_answered_and_estimated(here: Path, path: str, provider: str) -> None:
    table(path)
    with served(model_version=None) as url:
        job = make_job(
            here,
            TALK,
            input={"path": path, "id": "id"},
            limits={"rpm": 0, "tpm": 0},
            endpoint={"provider": provider, "base_url": url},
            output={"path": "out.parquet"},
        )
        planned = anyio.run(estimating.estimate, prepare.prepare(job, Options()), Wishes()).plan
        ended: Ended = run_through(prepare.prepare(job, Options()))
        assert stats(url)["answered"] == 1
    assert ended.stopped is None
    assert planned.prompts.expected == 1 and planned.found["invalid_messages"].rows == 1
    out = pl.read_parquet("out.parquet")
    assert out["status"].to_list() == ["ok", "invalid", "invalid"]
    assert out["error_kind"].to_list() == [None, "invalid_messages", "empty_input"]
    assert "talk" in out.columns and out["input_tokens"][0] > 0


def test_a_table_without_one_conversation_is_refused_before_anything_is_sent(here: Path) -> None:
    Path("talks.jsonl").write_text("".join('{"talk": [{"role": "model", "content": "a"}]}\n' for _ in range(3)))
    with pytest.raises(JobError, match="the user begins") as wrong:
        prepare.prepare(make_job(here, TALK), Options())
    assert "It fails on each of 3 rows" in wrong.value.message


def test_a_column_that_is_not_there_or_no_conversation_is_told(here: Path) -> None:
    Path("talks.jsonl").write_text('{"talk": 7}\n')
    with pytest.raises(InputError, match="column `chat` is not in"):
        prepare.prepare(make_job(here, TALK, input={"messages": "chat"}), Options())
    pl.DataFrame({"talk": [7]}).write_parquet("talks.parquet")
    with pytest.raises(InputError, match="is a list, or its JSON text"):
        prepare.prepare(make_job(here, TALK, input={"path": "talks.parquet"}), Options())


def test_which_column_it_is_and_whether_a_template_follows_makes_another_job(tmp_path: Path) -> None:
    changes: list[Sections] = [{}, {"input": {"messages": "chat"}}, {"prompt": {"template": "More"}}]
    assert len({make_job(tmp_path, TALK, **change).fingerprint for change in changes}) == 3


def test_without_a_conversation_a_template_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"\[prompt\] template is missing"):
        make_job(tmp_path, TALK, input={"messages": None})
    with pytest.raises(JobError, match="do not go together"):
        make_job(tmp_path, CHUNKED, input={"messages": "talk"})


# ---- other people's clients


def bought_once(url: str) -> int:
    """How often the one prompt that an emulator was asked was answered."""
    (answers,) = stats(url, prompts=True)["prompts"].values()
    return int(answers)


def test_googles_and_openais_clients_ask_what_a_conversation_and_its_examples_are_sent_as(here: Path) -> None:
    """The emulator tells prompts apart by all that was said: it saw one prompt, four times."""
    Path("talks.jsonl").write_text(json.dumps({"talk": GEMINIS}) + "\n")
    shots = [text for example in EXAMPLES for text in (example["input"], example["output"])]
    said = [*zip(["user", "model"] * len(EXAMPLES), shots, strict=True), *SAID]
    with served(model_version=None) as url:
        for provider in ("gemini", "openai"):
            job = make_job(
                here,
                TALK,
                prompt={"examples": EXAMPLES},
                limits={"rpm": 0, "tpm": 0},
                endpoint={"provider": provider, "base_url": url},
            )
            assert run_through(prepare.prepare(job, Options(fresh=True, overwrite=True))).stopped is None
        options = types.HttpOptions(base_url=url, api_version="v1beta")
        with genai.Client(api_key="AQ.key", vertexai=False, http_options=options) as google:
            contents: Any = [{"role": role, "parts": [{"text": text}]} for role, text in said]
            assert google.models.generate_content(model=MODEL, contents=contents).text
        messages: Any = [{"role": role.replace("model", "assistant"), "content": text} for role, text in said]
        with OpenAI(api_key="sk-key", base_url=f"{url}/v1", max_retries=0) as client:
            assert client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content
        assert bought_once(url) == 4


def test_openais_client_asks_what_a_system_message_is_sent_as(here: Path) -> None:
    Path("talks.jsonl").write_text(json.dumps({"talk": OPENAIS}) + "\n")
    with served(model_version=None) as url:
        endpoint = {"provider": "openai", "base_url": url}
        job = make_job(here, TALK, limits={"rpm": 0, "tpm": 0}, endpoint=endpoint)
        assert run_through(prepare.prepare(job, Options())).stopped is None
        with OpenAI(api_key="sk-key", base_url=f"{url}/v1", max_retries=0) as client:
            messages: Any = [{"role": "system", "content": "Be brief."}]
            messages += [{"role": role.replace("model", "assistant"), "content": text} for role, text in SAID]
            client.chat.completions.create(model=MODEL, messages=messages)
        assert bought_once(url) == 2
