"""Tools: what is asked of the service, what is read out of its answers, and what it costs."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import orjson
import polars as pl
import pytest
from asking import TARGET, ask
from commands import Ran
from google import genai
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import served, stats

from pipeline.budget.cashier import worst_case_usd
from pipeline.errors import JobError
from pipeline.job import load
from pipeline.prices import cost, fixed_rates
from pipeline.prompts import Params, Tools
from pipeline.providers.answers import parse_reply, read_answer
from pipeline.providers.gemini import build_request
from pipeline.providers.openai import build_request as build_chat
from pipeline.records import Usage

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
FUNCTION = """
[[tools.function]]
name = "file_ticket"
description = "Opens a ticket."
parameters = { type = "object", properties = { title = { type = "string" } }, required = ["title"] }
"""


def write(
    here: Path, tools: str, extra: str = "", output: str = "out.parquet", model: str = "gemini-3.8-flash"
) -> Path:
    (here / "words.csv").write_text(
        "word\nrivers and https://example.com/a and https://example.com/404\nschöne Häuser\n"
    )
    path = here / "job.toml"
    path.write_text(
        '[input]\npath = "words.csv"\n[prompt]\ntemplate = "Tell of {{ word }}. It is long. It is wide."\n'
        f'[model]\nname = "{model}"\nmax_output_tokens = 500\n[output]\npath = "{output}"\n'
        f"[limits]\nrpm = 0\ntpm = 0\n{extra}\n{tools}"
    )
    return path


def asked(here: Path, tools: str) -> Tools:
    found = load(write(here, tools)).params.tools
    assert found is not None
    return found


def body(*parts: dict[str, Any], finish: str = "STOP", **more: Any) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "finishReason": finish, **more}
    return orjson.dumps(
        {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2}}
    )


# --- the request ---


def test_every_tool_has_its_place_in_a_request(here: Path) -> None:
    tools = asked(
        here,
        '[tools]\ngoogle_search = true\nurl_context = true\ncode_execution = true\nmode = "any"\n'
        f'allowed = ["file_ticket"]\n{FUNCTION}',
    )
    sent = orjson.loads(build_request(ask(text="hi", params=Params(tools=tools))))
    assert sent["tools"] == [
        {"googleSearch": {}},
        {"urlContext": {}},
        {"codeExecution": {}},
        {
            "functionDeclarations": [
                {
                    "name": "file_ticket",
                    "description": "Opens a ticket.",
                    "parametersJsonSchema": {
                        "type": "object",
                        "properties": {"title": {"type": "string"}},
                        "required": ["title"],
                    },
                }
            ]
        },
    ]
    assert sent["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["file_ticket"]}}


def test_options_of_a_search_are_sent_as_they_stand(here: Path) -> None:
    tools = asked(here, "[tools]\ngoogle_search = { searchTypes = { webSearch = {} } }")
    sent = orjson.loads(build_request(ask(text="hi", params=Params(tools=tools))))
    assert sent["tools"] == [{"googleSearch": {"searchTypes": {"webSearch": {}}}}] and "toolConfig" not in sent


@pytest.mark.parametrize(("mode", "choice"), [("any", "required"), ("auto", "auto"), ("none", "none")])
def test_functions_in_a_chat(here: Path, mode: str, choice: str) -> None:
    second = FUNCTION.replace("file_ticket", "close_ticket")
    allowed = 'allowed = ["close_ticket"]\n' if mode == "any" else ""
    tools = asked(here, f'[tools]\nmode = "{mode}"\n{allowed}{FUNCTION}{second}')
    sent = orjson.loads(build_chat(ask(text="hi", params=Params(tools=tools)), "m"))
    names = [each["function"]["name"] for each in sent["tools"]]
    assert names == (["close_ticket"] if allowed else ["file_ticket", "close_ticket"])
    assert sent["tool_choice"] == choice


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ("[tools]", "names no tool"),
        ('[tools]\nmode = "any"\ngoogle_search = true', "there is no [[tools.function]]"),
        (f'[tools]\nallowed = ["file_ticket"]\n{FUNCTION}', '`allowed` needs mode = "any"'),
        (f'[tools]\nmode = "any"\nallowed = ["other"]\n{FUNCTION}', "which is no [[tools.function]]"),
        (FUNCTION + FUNCTION, "two functions are called file_ticket"),
        ('[[tools.function]]\nname = "no name"', "is no name of a function"),
        ('[[tools.function]]\nname = "f"\nparameters = { type = "string" }', "a JSON Schema of an object"),
        (f'[endpoint]\nprovider = "openai"\n[tools]\ngoogle_search = true\n{FUNCTION}', "has no word for it"),
        (f'[endpoint]\nprovider = "openai"\n[tools]\nmode = "validated"\n{FUNCTION}', "has no word for it"),
        ("[chunk]\nmax_tokens = 64\n[reduce]\ntemplate = '{{ parts }}'\n[tools]\nurl_context = true", "asked whole"),
    ],
)
def test_tools_that_cannot_be_asked_for_are_refused(here: Path, tools: str, why: str) -> None:
    path = write(here, tools)
    path.write_text(path.read_text().replace("[input]", "[input]\ntext = 'word'"))
    with pytest.raises(JobError) as caught:
        load(path)
    assert why in "\n".join([caught.value.message, *(other.message for other in caught.value.others)])


def test_tools_change_the_fingerprint_and_their_absence_does_not(here: Path) -> None:
    bare = load(write(here, ""))
    assert "tools" not in bare.identity
    assert len({load(write(here, tools)).fingerprint for tools in ("", "[tools]\nurl_context = true", FUNCTION)}) == 3


# --- the answer ---


def test_what_a_search_found_is_told_with_its_places_in_characters() -> None:
    text = "Häuser sind schön. Flüsse auch."
    grounding = {
        "webSearchQueries": ["häuser", "flüsse"],
        "groundingChunks": [
            {"web": {"uri": "https://a", "title": "A", "domain": "a"}},
            {"web": {"uri": "https://b"}},
        ],
        "groundingSupports": [
            {"segment": {"endIndex": len("Häuser sind schön.".encode()), "text": "Häuser sind schön."}},
            {
                "segment": {"startIndex": len("Häuser sind schön. ".encode()), "endIndex": 99, "text": "Flüsse auch."},
                "groundingChunkIndices": [0, 7, "x"],
            },
        ],
    }
    reply = parse_reply(body({"text": text}, groundingMetadata=grounding))
    extras = orjson.loads(reply.extras)
    assert extras["search_queries"] == ["häuser", "flüsse"] and reply.usage.searches == 2
    assert extras["citations"] == [
        {"uri": "https://a", "title": "A", "domain": "a", "text": "Flüsse auch.", "start": 19, "end": 31},
        {"uri": "https://b", "title": None, "domain": None, "text": None, "start": None, "end": None},
    ]
    assert text[19:31] == "Flüsse auch."


def test_code_and_what_came_of_it_go_together_and_are_no_text() -> None:
    reply = parse_reply(
        body(
            {"executableCode": {"language": "PYTHON", "code": "1/0"}},
            {"codeExecutionResult": {"outcome": "OUTCOME_FAILED", "output": "ZeroDivisionError"}},
            {"executableCode": {"language": "PYTHON", "code": "1"}},
            {"text": "one"},
        )
    )
    assert reply.text == "one" and orjson.loads(reply.extras) == {
        "code": [
            {"language": "python", "code": "1/0", "outcome": "failed", "output": "ZeroDivisionError"},
            {"language": "python", "code": "1", "outcome": None, "output": None},
        ]
    }


def test_an_answer_that_is_a_function_call_is_an_answer() -> None:
    reply = parse_reply(body({"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "Em"}))
    assert (reply.status, reply.text, reply.error) == ("ok", "", None)
    assert orjson.loads(reply.extras) == {"function_calls": [{"name": "f", "args": '{"a":1}'}]}


def test_function_calls_of_a_chat_and_of_its_pieces() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"choices": [{"message": {"content": None, "tool_calls": [call, call]}, "finish_reason": "tool_calls"}]}
    whole = parse_reply(orjson.dumps(message))
    deltas = [
        {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}},
        {"index": 1, "id": "d", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "function": {"arguments": '{"a": 1}'}},
    ]
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"tool_calls": [delta]}}]} for delta in deltas]
    events.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    streamed = parse_reply(
        b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    )
    for reply in (whole, streamed):
        assert (reply.status, reply.finish_reason) == ("ok", "TOOL_CALLS")
        assert orjson.loads(reply.extras) == {"function_calls": [{"name": "f", "args": '{"a": 1}'}] * 2}
    old = {"choices": [{"message": {"function_call": call["function"]}, "finish_reason": "function_call"}]}
    assert orjson.loads(parse_reply(orjson.dumps(old)).extras)["function_calls"] == [{"name": "f", "args": '{"a": 1}'}]


def test_an_answer_without_tools_has_nothing_beside_it() -> None:
    assert parse_reply(body({"text": "one"})).extras == ""


def test_a_body_made_anew_of_an_answer_reads_as_it_did() -> None:
    raw = body(
        {"text": "x"}, {"functionCall": {"name": "f", "args": {}}}, groundingMetadata={"webSearchQueries": ["q"]}
    )
    answer = read_answer(raw)
    again = parse_reply(answer.as_body())  # type: ignore[union-attr]
    assert again.extras == parse_reply(raw).extras and again.text == "x"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_NAMED = {
    "groundingMetadata": ("webSearchQueries", "groundingChunks", "groundingSupports"),
    "urlContextMetadata": ("urlMetadata",),
}
_KNOWN = (
    "web",
    "uri",
    "segment",
    "text",
    "startIndex",
    "endIndex",
    "groundingChunkIndices",
    "retrievedUrl",
    "name",
    "args",
)
_FIELDS = st.dictionaries(st.sampled_from(_KNOWN), _JSON | st.dictionaries(st.sampled_from(_KNOWN), _JSON), max_size=4)
_ANY = _JSON | _FIELDS | st.lists(_FIELDS | _JSON, max_size=3)


@settings(deadline=None, max_examples=150)
@given(
    st.fixed_dictionaries(
        {name: st.dictionaries(st.sampled_from(inner), _ANY, max_size=3) | _ANY for name, inner in _NAMED.items()}
    ),
    st.lists(st.dictionaries(st.sampled_from(("functionCall", "executableCode", "codeExecutionResult", "text")), _ANY)),
    st.lists(_FIELDS | st.dictionaries(st.sampled_from(("function", "index")), _ANY)) | _ANY,
)
def test_whatever_stands_there_nothing_raises_and_the_columns_can_be_made(
    here_is: dict[str, Any], parts: list[Any], calls: Any
) -> None:
    candidate = {"content": {"parts": parts}, "finishReason": "SOMETHING_NEW", "toolCalls": calls, **here_is}
    raw = json.dumps({"candidates": [candidate]}).encode("utf-8", "replace")
    reply = parse_reply(raw)
    if reply.extras:
        lists = orjson.loads(reply.extras)
        assert all(isinstance(found, list) and found for found in lists.values())
        assert all(isinstance(each["args"], str) for each in lists.get("function_calls", ()))


# --- money ---


@pytest.mark.parametrize(
    ("model", "searches", "usd"),
    [("gemini-3.8-flash", 3, "0.042"), ("gemini-2.5-flash-lite", 3, "0.035"), ("gemini-2.5-flash-lite", 0, "0")],
)
def test_a_search_costs_what_google_asks(model: str, searches: int, usd: str) -> None:
    whole, bare = (cost(Usage(100, 0, 10, searches=each), model, NOON) for each in (searches, 0))
    assert whole is not None and bare is not None and whole - bare == Decimal(usd)


def test_own_prices_of_a_search() -> None:
    own = fixed_rates(0, 0, search_usd=5)
    assert cost(Usage(searches=2), "any", NOON, own=own) == Decimal("0.01")
    assert cost(Usage(searches=2), "any", NOON, own=fixed_rates(0, 0)) == Decimal("0.028")


def test_ten_searches_are_reserved_for_a_call_that_may_search() -> None:
    params = Params(max_output_tokens=10)
    usd = [
        worst_case_usd(ask(params=each), TARGET) for each in (params, Params(max_output_tokens=10, tools=Tools("{}")))
    ]
    assert usd[0] is not None and usd[1] is not None and usd[1] - usd[0] == Decimal("0.14")


# --- whole runs ---


def test_a_run_with_every_tool_has_a_column_for_each(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.of-the-tests-0123456789")
    tools = "[tools]\ngoogle_search = true\nurl_context = true\ncode_execution = true"
    with served() as url:
        path = write(here, tools, f'[endpoint]\nbase_url = "{url}"')
        estimated = cli("estimate", path, "--json").json
        ran = cli("run", path, "--yes", "--json")
        (bill,) = stats(url)["billed"]
    assert (ran.code, ran.json["ok"]) == (0, 2), ran.err
    table = pl.read_parquet("out.parquet")
    assert table["search_queries"].to_list()[1] == ["Tell of schöne Häuser. It is", "Tell of schöne news"]
    (first, *others) = table["citations"].to_list()[1]
    response = table["response"][1]
    assert first["uri"] == "https://example.org/1" and response[first["start"] : first["end"]] == first["text"]
    assert [each["text"] for each in others] == [None]
    assert table["urls"].to_list() == [
        [
            {"url": "https://example.com/a", "status": "success"},
            {"url": "https://example.com/404.", "status": "error"},
        ],
        None,
    ]
    assert table["code"].to_list()[1][0]["outcome"] == "ok"
    assert "function_calls" not in table.columns
    tokens = bill["input_tokens"] * 0.75e-6 + (bill["output_tokens"] + bill["thinking_tokens"]) * 3.75e-6
    assert ran.json["cost_usd"] == pytest.approx(tokens + 4 * 0.014, rel=1e-6)
    assert ran.json["input_tokens"] == bill["input_tokens"], "with what tools gave the model to read"
    low, expected, high = (estimated["cost_usd"][name] for name in ("low", "expected", "high"))
    assert low < 4 * 0.014 < expected < ran.json["cost_usd"] + 0.01 and high > 20 * 0.014
    assert any("expected to search 2 times" in each for each in estimated["assumptions"])
    (here / "words.csv").write_text("word\nrivers\nlakes\nwells\n")
    learned = cli("estimate", path, "--json").json
    assert not any("expected to search" in each for each in learned["assumptions"])
    assert learned["cost_usd"]["expected"] > 6 * 0.014


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_functions_over_either_protocol(
    here: Path, cli: Callable[..., Ran], suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-key")
    cells = []
    for provider in ("gemini", "openai"):
        path = write(here, FUNCTION, f'[endpoint]\nprovider = "{provider}"', f"out-{provider}.{suffix}")
        path = path.rename(here / f"{provider}.toml")
        ran = cli("run", path, "--offline", "--json")
        assert (ran.code, ran.json["ok"]) == (0, 2), ran.err
        name = f"out-{provider}-offline.{suffix}"
        table = pl.read_csv(name) if suffix == "csv" else pl.read_ndjson(name)
        cells.append([json.loads(each) if suffix == "csv" else each for each in table["function_calls"].to_list()])
        assert table["status"].to_list() == ["ok", "ok"] and table["response"].null_count() == 2
    assert cells[0] == cells[1] and cells[0][1][0]["name"] == "file_ticket"
    assert json.loads(cells[0][1][0]["args"])["title"].startswith("Tell of schöne Häuser.")


def test_a_function_call_is_an_answer_where_a_schema_is_asked_for_too(here: Path, cli: Callable[..., Ran]) -> None:
    path = write(here, FUNCTION)
    schema = 'schema = { type = "object", properties = { mood = { type = "string" } }, required = ["mood"] }'
    path.write_text(path.read_text().replace('path = "out.parquet"', f'path = "out.parquet"\n{schema}'))
    ran = cli("run", path, "--offline", "--json")
    assert (ran.code, ran.json["ok"]) == (0, 2), ran.err
    table = pl.read_parquet("out-offline.parquet")
    assert table["function_calls"].null_count() == 0 and table["mood"].to_list() == [None, None]


# --- other clients ---


def test_googles_sdk_reads_what_the_emulator_says_of_tools() -> None:
    def function(title: str) -> str:
        """Open a ticket."""
        return title

    config = types.GenerateContentConfig(
        tools=[
            types.Tool(google_search=types.GoogleSearch()),
            types.Tool(url_context=types.UrlContext()),
            types.Tool(code_execution=types.ToolCodeExecution()),
        ]
    )
    calling = types.GenerateContentConfig(
        tools=[function],
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        tool_config=types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY)
        ),
    )
    with served() as url:
        client = genai.Client(api_key="AQ.key", vertexai=False, http_options=types.HttpOptions(base_url=url))
        found = client.models.generate_content(
            model="gemini-3.8-flash", contents="Read https://example.com/a. It is wide.", config=config
        )
        called = client.models.generate_content(model="gemini-3.8-flash", contents="It broke.", config=calling)
        client.close()
    assert found.candidates
    (candidate,) = found.candidates
    grounding, pages = candidate.grounding_metadata, candidate.url_context_metadata
    assert grounding and grounding.web_search_queries and grounding.grounding_chunks and grounding.grounding_supports
    assert pages and pages.url_metadata
    assert pages.url_metadata[0].url_retrieval_status is types.UrlRetrievalStatus.URL_RETRIEVAL_STATUS_SUCCESS
    assert found.executable_code and found.code_execution_result and found.text
    assert found.usage_metadata and found.usage_metadata.tool_use_prompt_token_count
    assert called.function_calls and called.function_calls[0].args == {"title": "It broke."}


@pytest.mark.parametrize("path", ["/v1", "/v1beta/openai"])
@pytest.mark.parametrize("stream", [False, True])
def test_openais_sdk_reads_function_calls(path: str, stream: bool) -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    tools: Any = [{"type": "function", "function": {"name": "file_ticket", "parameters": schema}}]
    messages: Any = [{"role": "user", "content": "It broke."}]
    with served() as url, openai.OpenAI(api_key="sk-key", base_url=f"{url}{path}", max_retries=0) as client:
        if stream:
            with client.chat.completions.stream(
                model="gemini-3.8-flash", messages=messages, tools=tools, tool_choice="required"
            ) as events:
                answer: Any = events.get_final_completion()
        else:
            answer = client.chat.completions.create(
                model="gemini-3.8-flash", messages=messages, tools=tools, tool_choice="required"
            )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"title": "It broke."}
