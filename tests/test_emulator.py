import asyncio
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from corpus import make_text
from drawing import png
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import stats

from pipeline.emulator import Emulator, EmulatorOptions, Faults, parse_faults, serve
from pipeline.emulator.answers import json_value, language, summarize
from pipeline.emulator.counting import count, cut
from pipeline.emulator.limits import ALGORITHMS, next_midnight
from pipeline.records import EMULATOR_FIELD, EMULATOR_HEADER, EMULATOR_RESPONSE_ID

MODEL = "gemini-3.5-flash-lite"
NOON = datetime(2026, 11, 22, 20, 0, tzinfo=ZoneInfo("UTC")).timestamp()  # 12:00 Pacific, second 00
ARTICLE = (
    "Summarize in two sentences:\n\n"
    "The river town of Alder flooded on Monday. Nobody was hurt when the river rose. "
    "Engineers had warned the town council about the river wall. The council had postponed the repair. "
    "A bakery gave away bread. The wall will now be rebuilt by the town."
)


class Client:
    """An emulator in process, with a clock that the test moves."""

    def __init__(self, options: EmulatorOptions | None = None, *, key: str | None = "AQ.key", **flags: Any) -> None:
        self.now = NOON
        self.emulator = Emulator(options or EmulatorOptions(**flags), clock=lambda: self.now)
        self.headers: dict[str, str] = {} if key is None else {"x-goog-api-key": key}

    def request(self, method: str, path: str, headers: dict[str, str] | None = None, **kwargs: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.emulator)
            async with httpx.AsyncClient(transport=transport, base_url="http://emulator") as client:
                return await client.request(method, path, headers=self.headers | (headers or {}), **kwargs)

        return asyncio.run(send())

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, **kwargs)

    def generate(
        self,
        text: str = ARTICLE,
        *,
        model: str = MODEL,
        version: str = "v1beta",
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        body = {"contents": [{"role": "user", "parts": [{"text": text}]}], **fields}
        return self.request("POST", f"/{version}/models/{model}:generateContent", json=body, headers=headers)

    def count(self, body: object) -> httpx.Response:
        return self.request("POST", f"/v1beta/models/{MODEL}:countTokens", json=body)

    def stats(self, query: str = "") -> dict[str, Any]:
        told: dict[str, Any] = self.request("GET", f"/emulator/stats{query}").json()
        return told


def error(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()["error"]
    assert body["code"] == response.status_code
    return body


def text_of(response: httpx.Response) -> str:
    return str(response.json()["candidates"][0]["content"]["parts"][-1]["text"])


# routes and keys


def test_an_answer_has_the_recorded_shape() -> None:
    response = Client().generate()
    assert response.status_code == 200
    body = response.json()
    assert list(body) == [EMULATOR_FIELD, "candidates", "usageMetadata", "modelVersion", "responseId"]
    assert body["modelVersion"] == "emulator"
    candidate = body["candidates"][0]
    assert candidate["content"]["role"] == "model"
    assert (candidate["finishReason"], candidate["index"]) == ("STOP", 0)
    usage = body["usageMetadata"]
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + usage["candidatesTokenCount"]
    assert usage["promptTokensDetails"] == [{"modality": "TEXT", "tokenCount": usage["promptTokenCount"]}]
    assert usage["serviceTier"] == "standard"
    assert "thoughtsTokenCount" not in usage


def test_every_response_is_dated_by_the_servers_clock_and_names_no_retry_time() -> None:
    client = Client(rpm=1, offset_s=7.0)
    for response in (client.generate(), client.generate(), client.get("/nowhere")):
        assert parsedate_to_datetime(response.headers["date"]).timestamp() == NOON + 7
        assert "retry-after" not in response.headers
        assert response.headers["content-type"] == "application/json; charset=UTF-8"


def test_the_served_tier_is_told_in_header_and_usage() -> None:
    response = Client().generate(serviceTier="FLEX")
    assert response.headers["x-gemini-service-tier"] == "flex"
    assert response.json()["usageMetadata"]["serviceTier"] == "flex"


def test_response_ids_are_unique() -> None:
    client = Client()
    assert len({client.generate().json()["responseId"] for _ in range(5)}) == 5


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_both_versions_are_served(version: str) -> None:
    assert Client().generate(version=version).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/v2/models/gemini-3.8-flash:generateContent"),
        ("GET", "/v1/models/gemini-3.8-flash:generateContent"),
        ("POST", "/v1/models/gemini-3.8-flash"),
        ("POST", "/v1/models/gemini-3.8-flash:doWhat"),
        ("GET", "/v1/models/gemini-3.8-flash:get"),
    ],
)
def test_an_unknown_path_is_a_404_in_json(method: str, path: str) -> None:
    assert error(Client().request(method, path))["status"] == "NOT_FOUND"


def test_a_request_without_key_is_refused_with_403() -> None:
    refused = error(Client(key=None).generate())
    assert refused["code"] == 403
    assert refused["status"] == "PERMISSION_DENIED"
    assert refused["message"].startswith("Method doesn't allow unregistered callers")
    assert "details" not in refused


def test_a_wrong_key_is_refused_with_400() -> None:
    refused = error(Client(key="invalid").generate())
    assert refused["code"] == 400
    assert refused["message"] == "API key not valid. Please pass a valid API key."
    info, localized = refused["details"]
    assert info == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }
    assert localized["message"] == refused["message"]


def test_only_configured_keys_are_accepted_when_there_are_some() -> None:
    assert Client(keys=frozenset({"AQ.key"})).generate().status_code == 200
    assert Client(keys=frozenset({"AQ.other"})).generate().status_code == 400


def test_a_key_in_the_query_is_accepted() -> None:
    response = Client(key=None).request("GET", "/v1beta/models?key=AIza-something")
    assert response.status_code == 200


def test_a_bearer_token_is_the_wrong_kind_of_credential() -> None:
    refused = error(Client().generate(headers={"authorization": "Bearer AQ.key"}))
    assert refused["code"] == 401
    assert refused["details"][0]["reason"] == "ACCESS_TOKEN_TYPE_UNSUPPORTED"
    assert refused["details"][0]["metadata"]["method"] == (
        "google.ai.generativelanguage.v1beta.GenerativeService.GenerateContent"
    )


# models


def test_an_unknown_model_is_a_404() -> None:
    assert error(Client().generate(model="gemini-does-not-exist"))["message"] == (
        "models/gemini-does-not-exist is not found for API version v1beta, or is not supported for generateContent. "
        "Call ModelService.ListModels to see the list of available models and their supported methods."
    )


def test_an_embedding_model_does_not_generate() -> None:
    assert "is not supported for generateContent" in error(Client().generate(model="gemini-embedding-001"))["message"]


def test_a_retired_model_names_its_successor() -> None:
    assert error(Client().generate(model="gemini-2.0-flash"))["message"] == (
        "This model models/gemini-2.0-flash is no longer available. Please update your code to use "
        "models/gemini-3.8-flash"
    )


def test_aliases_live_on_v1beta_only() -> None:
    client = Client()
    assert client.generate(model="gemini-flash-latest").status_code == 200
    assert client.generate(model="gemini-flash-latest", version="v1").status_code == 404


def test_a_name_is_routed_to_the_model_that_answers() -> None:
    client = Client(model_version=None, routes={"gemini-2.5-pro": "gemini-3.8-flash"})
    for asked, served in {
        MODEL: MODEL,
        "gemini-3.7-flash": "gemini-3.8-flash",
        "gemini-3.5-flash": "gemini-3.6-flash",
        "gemini-flash-lite-latest": MODEL,
        "gemini-2.5-pro": "gemini-3.8-flash",
    }.items():
        assert client.generate(model=asked).json()["modelVersion"] == served


def test_any_model_is_served_when_asked_for() -> None:
    response = Client(any_model=True, model_version=None).generate(model="gemini-9-flash")
    assert response.json()["modelVersion"] == "gemini-9-flash"


def test_models_are_listed_page_by_page() -> None:
    client, token, names = Client(), "", []
    while True:
        page = client.get(f"/v1beta/models?pageSize=4&pageToken={token}").json()
        assert len(page["models"]) <= 4
        names += [model["name"] for model in page["models"]]
        if not (token := page.get("nextPageToken", "")):
            break
    assert names == [model["name"] for model in client.get("/v1beta/models?pageSize=1000").json()["models"]]
    assert "models/gemini-pro-latest" in names
    assert "models/gemini-pro-latest" not in client.get("/v1/models").text
    assert client.get("/v1/models?pageToken=x").status_code == 400


def test_one_model_tells_its_limits() -> None:
    model = Client().get(f"/v1/models/{MODEL}").json()
    assert model["name"] == f"models/{MODEL}"
    assert (model["inputTokenLimit"], model["outputTokenLimit"]) == (1_048_576, 65_536)
    assert "generateContent" in model["supportedGenerationMethods"]
    assert Client().get("/v1/models/gemini-nothing").status_code == 404


def test_a_model_that_may_stream_more_is_listed_with_that_and_answers_less_at_once() -> None:
    client, argon = Client(), "gemini-4-argon"
    assert client.get(f"/v1/models/{argon}").json()["outputTokenLimit"] == 65_536
    for tokens, status in ((32_768, 200), (32_769, 400)):
        assert client.generate(model=argon, generationConfig={"maxOutputTokens": tokens}).status_code == status


# reading requests


def test_both_spellings_and_cases_are_accepted_at_every_level() -> None:
    response = Client(thinking_tokens=5).generate(
        system_instruction={"parts": [{"text": "s"}]},
        generation_config={"max_output_tokens": "50", "thinkingConfig": {"thinking_level": "low"}},
        safetySettings=[{"category": "harm_category_harassment", "threshold": "block_none"}],
        labels={"team": "x"},
        store=False,
        cachedContent=None,
    )
    assert response.status_code == 200
    assert response.json()["usageMetadata"]["thoughtsTokenCount"] == 5


def test_an_unknown_field_is_named_as_sent() -> None:
    refused = error(Client().generate(system_instructions={}))
    description = 'Invalid JSON payload received. Unknown name "system_instructions": Cannot find field.'
    assert refused == {
        "code": 400,
        "message": description,
        "status": "INVALID_ARGUMENT",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"description": description}]}
        ],
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"generationConfig": {"cached_content": "x"}},
            "Invalid JSON payload received. Unknown name \"cached_content\" at 'generation_config': Cannot find field.",
        ),
        (
            {"generationConfig": {"thinkingConfig": {"level": 1}}},
            "Invalid JSON payload received. Unknown name \"level\" at 'generation_config.thinking_config': "
            "Cannot find field.",
        ),
        (
            {"contents": [{"parts": [{"text": "a", "txt": "b"}]}]},
            "Invalid JSON payload received. Unknown name \"txt\" at 'contents[0].parts[0]': Cannot find field.",
        ),
        (
            {"generationConfig": {"responseSchema": {"properties": {"a": {"additionalProperties": False}}}}},
            'Invalid JSON payload received. Unknown name "additionalProperties" at '
            "'generation_config.response_schema.properties.a': Cannot find field.",
        ),
        (
            {"generationConfig": {"maxOutputTokens": 1.5}},
            "Invalid value at 'generation_config.max_output_tokens' (TYPE_INT32), 1.5",
        ),
        ({"store": "yes"}, "Invalid value at 'store' (TYPE_BOOL), \"yes\""),
        (
            {"serviceTier": "fast"},
            "Invalid value at 'service_tier' (type.googleapis.com/google.ai.generativelanguage.v1beta.ServiceTier), "
            '"fast"',
        ),
    ],
)
def test_what_does_not_fit_the_message_is_refused_where_it_stands(fields: dict[str, Any], message: str) -> None:
    assert error(Client().generate(**fields))["message"] == message


def test_all_problems_of_a_body_are_told_at_once() -> None:
    refused = error(Client().generate(one=1, two=2))
    assert refused["message"].count("Cannot find field.") == 2
    assert len(refused["details"][0]["fieldViolations"]) == 2


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"', b"\xff"])
def test_a_body_that_is_no_json_object_is_a_400(body: bytes) -> None:
    refused = Client().request("POST", f"/v1/models/{MODEL}:generateContent", content=body)
    assert error(refused)["status"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "fields",
    [
        {"contents": []},
        {"contents": [{"role": "user"}]},
        {"contents": [{"role": "robot", "parts": [{"text": "hi"}]}]},
        {"contents": [{"parts": [{"text": "hi"}]}, {"role": "model", "parts": [{"text": "hello"}]}]},
        {"contents": [{"parts": [{"text": ""}]}]},
        {"generationConfig": {"maxOutputTokens": 0}},
        {"generationConfig": {"maxOutputTokens": -1}},
        {"generationConfig": {"candidateCount": 2}},
        {"generationConfig": {"responseMimeType": "text/html"}},
        {"generationConfig": {"responseSchema": {"type": "STRING"}, "responseJsonSchema": {"type": "string"}}},
        {"generationConfig": {"thinkingConfig": {"thinkingBudget": 0, "thinkingLevel": "low"}}},
        {"generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": {"enum": 5}}},
        {
            "generationConfig": {
                "responseMimeType": "application/json",
                "responseJsonSchema": {"type": "integer", "minimum": 1e30},
            }
        },
    ],
)
def test_what_the_model_refuses_is_a_400(fields: dict[str, Any]) -> None:
    assert error(Client().generate(**fields))["status"] == "INVALID_ARGUMENT"


def test_a_body_past_the_services_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.emulator.http.MAX_BODY", 1_000)
    assert error(Client().generate("x" * 1_000))["message"] == "Request payload size exceeds the limit: 1000 bytes."


def test_a_client_that_leaves_while_sending_gets_nothing() -> None:
    emulator, sent = Emulator(), []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    path, headers = f"/v1/models/{MODEL}:generateContent", [(b"x-goog-api-key", b"AQ.k")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    asyncio.run(emulator(scope, receive, send))
    assert sent == []
    assert emulator.stats.in_flight == 0


def test_missing_contents_are_told_in_the_services_words() -> None:
    refused = Client().request("POST", f"/v1/models/{MODEL}:generateContent", json={})
    assert error(refused)["message"] == "* GenerateContentRequest.contents: contents is not specified\n"


def test_limits_of_single_models_are_kept() -> None:
    client = Client()
    minimal = {"thinkingConfig": {"thinkingLevel": "minimal"}}
    assert client.generate(model="gemini-3.8-flash", generationConfig=minimal).status_code == 400
    assert client.generate(generationConfig=minimal).status_code == 200
    long = {"maxOutputTokens": 32_769}
    assert client.generate(model="gemini-4-argon", generationConfig=long).status_code == 400
    assert client.generate(generationConfig=long).status_code == 200


def test_a_prompt_over_the_context_is_refused() -> None:
    refused = error(Client().generate("字" * (2 * 1_048_576)))
    assert refused["message"] == "The input token count exceeds the maximum number of tokens allowed (1048576)."


def test_a_conversation_is_answered_from_its_last_turn() -> None:
    turns = [
        {"role": "user", "parts": [{"text": "First question."}]},
        {"role": "model", "parts": [{"text": "First answer."}]},
        {"role": "user", "parts": [{"text": "Second question."}]},
    ]
    assert text_of(Client().generate(contents=turns)) == "Second question."


# answers


def test_the_answer_is_made_of_the_texts_own_sentences() -> None:
    answer = text_of(Client().generate())
    assert answer.startswith("The river town of Alder flooded on Monday.")
    assert "Summarize" not in answer
    for sentence in answer.split(". "):
        assert sentence in ARTICLE


def test_chinese_sentences_are_told_apart() -> None:
    text = "今天下雨了。河水上涨，河边的路被淹没。面包店免费发放面包。河水明天会退去。市长来到河边。"
    answer = summarize(text)
    assert answer.startswith("今天下雨了。")
    assert len(answer) < len(text)
    assert answer.count("。") == 3
    assert " " not in answer
    assert (language(text), language(ARTICLE)) == ("zh", "en")


def test_the_same_prompt_gets_the_same_answer() -> None:
    assert text_of(Client().generate()) == text_of(Client(seed=5).generate())


def test_an_answer_is_cut_at_max_output_tokens() -> None:
    response = Client().generate(generationConfig={"maxOutputTokens": 4})
    assert response.json()["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert text_of(response) == "The river town of"
    assert response.json()["usageMetadata"]["candidatesTokenCount"] == 4


def test_thinking_counts_toward_max_output_tokens() -> None:
    usage = Client(thinking_tokens=100).generate(generationConfig={"maxOutputTokens": 104}).json()["usageMetadata"]
    assert (usage["thoughtsTokenCount"], usage["candidatesTokenCount"]) == (100, 4)
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + 104


def test_thinking_that_takes_it_all_leaves_no_parts_and_no_counter() -> None:
    body = Client(thinking_tokens=100).generate(generationConfig={"maxOutputTokens": 100}).json()
    assert body["candidates"] == [{"content": {}, "finishReason": "MAX_TOKENS", "index": 0}]
    assert "candidatesTokenCount" not in body["usageMetadata"]
    assert body["usageMetadata"]["thoughtsTokenCount"] == 100


def test_a_thinking_budget_of_zero_turns_thinking_off() -> None:
    response = Client(thinking_tokens=100).generate(generationConfig={"thinkingConfig": {"thinkingBudget": 0}})
    assert "thoughtsTokenCount" not in response.json()["usageMetadata"]


def test_thoughts_are_shown_when_asked_for() -> None:
    response = Client(thinking_tokens=9).generate(generationConfig={"thinkingConfig": {"includeThoughts": True}})
    thought, answer = response.json()["candidates"][0]["content"]["parts"]
    assert thought["thought"] is True
    assert "thought" not in answer


def test_an_answer_ends_before_a_stop_sequence() -> None:
    assert text_of(Client().generate(generationConfig={"stopSequences": ["Alder", "flooded"]})) == "The river town of "


def test_json_is_answered_as_json() -> None:
    response = Client().generate(generationConfig={"responseMimeType": "application/json"})
    answer = httpx.Response(200, text=text_of(response)).json()
    assert answer["language"] == "en"
    assert answer["summary"].startswith("The river town")


def test_json_follows_the_schema() -> None:
    schema = {
        "type": "OBJECT",
        "properties": {
            "title": {"type": "STRING", "maxLength": 10},
            "score": {"type": "INTEGER", "minimum": 1.5, "maximum": 5},
            "tags": {"type": "ARRAY", "items": {"type": "STRING", "enum": ["a", "b"]}, "minItems": 2},
            "good": {"type": "BOOLEAN"},
        },
        "propertyOrdering": ["score", "title"],
        "required": ["title"],
    }
    config = {"responseMimeType": "application/json", "responseSchema": schema}
    answer = httpx.Response(200, text=text_of(Client().generate(generationConfig=config))).json()
    assert list(answer) == ["score", "title", "tags", "good"]
    assert answer["title"] == "The river "
    assert answer["score"] == 2
    assert len(answer["tags"]) == 2
    assert set(answer["tags"]) <= {"a", "b"}
    assert answer["good"] is True


def test_an_enum_is_answered_as_plain_text() -> None:
    config = {"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING", "enum": ["red", "blue"]}}
    assert text_of(Client().generate(generationConfig=config)) in {"red", "blue"}


def test_json_schema_references_unions_and_recursion_end() -> None:
    node = {
        "type": "object",
        "properties": {
            "name": {"type": ["string", "null"]},
            "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            "when": {"type": "string", "format": "date"},
            "other": True,
        },
        "required": ["next"],
    }
    value = json_value("Text.", {"$ref": "#/$defs/Node", "$defs": {"Node": node}})
    assert value["name"] == "Text."
    assert value["when"] == "2026-01-01"
    assert value["other"] is None
    while value is not None:
        value = value["next"]


_leaf = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "maxLength": 3},
        {"type": "integer", "minimum": 3},
        {"type": "number", "maximum": -2.5},
        {"type": "boolean"},
        {"enum": ["x", 1]},
        {"const": 7},
    ]
)
_schema = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.builds(lambda items, n: {"type": "array", "items": items, "minItems": n}, inner, st.integers(0, 2)),
        st.builds(
            lambda fields: {"type": "object", "properties": fields, "required": sorted(fields)},
            st.dictionaries(st.sampled_from("abc"), inner),
        ),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
    ),
    max_leaves=6,
)


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    if "anyOf" in schema:
        return any(satisfies(value, one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    match schema["type"]:
        case "object":
            fields = schema["properties"]
            return set(value) == set(fields) and all(satisfies(value[name], fields[name]) for name in fields)
        case "array":
            return len(value) >= schema["minItems"] and all(satisfies(item, schema["items"]) for item in value)
        case "string":
            return isinstance(value, str) and len(value) <= schema.get("maxLength", len(value))
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and value >= 3
        case _:
            return isinstance(value, float) and value <= -2.5


@settings(deadline=None)
@given(_schema)
def test_simple_schemas_are_satisfied(schema: dict[str, Any]) -> None:
    assert satisfies(json_value("One. Two. Three. Four.", schema), schema)


@settings(deadline=None)
@given(st.text(), st.integers(0, 40), st.sampled_from(["coarse", "fine", "subword"]))
def test_a_cut_text_has_as_many_tokens_as_it_may(text: str, tokens: int, tokenizer: Any) -> None:
    prefix = cut(text, tokens, tokenizer)
    assert text.startswith(prefix)
    assert count(prefix, tokenizer) == min(tokens, count(text, tokenizer))


# counting


def test_count_tokens_and_generate_agree() -> None:
    client = Client()
    fields: dict[str, Any] = {"systemInstruction": {"parts": [{"text": "You are a careful editor of news."}]}}
    contents = [{"parts": [{"text": ARTICLE}]}]
    nested = {"model": f"models/{MODEL}", "contents": contents, **fields}
    counted = client.count({"generateContentRequest": nested, "contents": [{"parts": [{"text": "not counted"}]}]})
    total = counted.json()["totalTokens"]
    assert counted.json()["promptTokensDetails"] == [{"modality": "TEXT", "tokenCount": total}]
    assert total == client.generate(**fields).json()["usageMetadata"]["promptTokenCount"]
    without = client.count({"contents": contents}).json()["totalTokens"]
    assert without == client.generate().json()["usageMetadata"]["promptTokenCount"]
    assert total > without


def test_count_tokens_uses_no_quota() -> None:
    client = Client(rpm=1)
    for _ in range(3):
        assert client.count({"contents": [{"parts": [{"text": "hi"}]}]}).status_code == 200
    assert client.generate().status_code == 200


@pytest.mark.parametrize("body", [{}, {"generateContentRequest": {"contents": [{"parts": [{"text": "hi"}]}]}}])
def test_count_tokens_refuses_an_incomplete_request(body: dict[str, Any]) -> None:
    assert Client().count(body).status_code == 400


def test_two_tokenizers_count_differently() -> None:
    counts = [
        Client(tokenizer=tokenizer).generate().json()["usageMetadata"]["promptTokenCount"]
        for tokenizer in ("coarse", "fine")
    ]
    assert counts[0] < counts[1]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the weather report", 3),
        ("internationalization", 4),
        ("snakeCase HTTPS", 4),
        ("2024", 4),
        ("f(x)\n\n    return", 7),
        ("für", 2),
        ("погода вечером", 4),
        ("こんにちは", 2),
        ("👍👍", 2),
        ("，。", 2),
        ("", 0),
    ],
)
def test_subwords(text: str, tokens: int) -> None:
    assert count(text, "subword") == tokens


@pytest.mark.parametrize(
    ("sort", "characters_per_token"),
    [
        ("english", (4.0, 4.8)),
        ("german", (3.5, 4.4)),
        ("russian", (3.2, 4.2)),
        ("arabic", (3.0, 4.0)),
        ("chinese", (1.4, 1.9)),
        ("japanese", (1.5, 2.2)),
        ("korean", (1.4, 2.0)),
        ("csv", (1.4, 2.2)),
    ],
)
def test_subwords_are_as_long_as_those_of_real_vocabularies(
    sort: str, characters_per_token: tuple[float, float]
) -> None:
    text = make_text(sort, 20_000, Random(1))
    low, high = characters_per_token
    assert low < len(text) / count(text, "subword") < high


def test_media_is_counted_by_modality() -> None:
    image = {"inlineData": {"mimeType": "image/png", "data": b64encode(png()).decode()}}
    usage = Client().generate(contents=[{"parts": [{"text": "Look."}, image]}]).json()["usageMetadata"]
    assert {"modality": "IMAGE", "tokenCount": 1120} in usage["promptTokensDetails"]


@pytest.mark.parametrize("data", ["aGk=", "a", "***"])
def test_what_is_no_image_is_refused(data: str) -> None:
    image = {"inlineData": {"mimeType": "image/png", "data": data}}
    assert Client().generate(contents=[{"parts": [{"text": "Look."}, image]}]).status_code == 400


# quotas

Request = tuple[float, int]


def fixed(log: list[Request], limit: int, now: float, amount: int) -> bool:
    return sum(n for at, n in log if at // 60 == now // 60) + amount <= limit


def sliding(log: list[Request], limit: int, now: float, amount: int) -> bool:
    return sum(n for at, n in log if at > now - 60) + amount <= limit


def weighted(log: list[Request], limit: int, now: float, amount: int) -> bool:
    window = now // 60
    last = sum(n for at, n in log if at // 60 == window - 1)
    this = sum(n for at, n in log if at // 60 == window)
    return last * (1 - (now / 60 - window)) + this + amount <= limit + 1e-9


def bucket(log: list[Request], limit: int, now: float, amount: int) -> bool:
    level, since = float(limit), 0.0
    for at, n in log:
        level, since = min(limit, level + (at - since) * limit / 60) - n, at
    return min(limit, level + (now - since) * limit / 60) + 1e-9 >= amount


BRUTE: dict[str, Callable[[list[Request], int, float, int], bool]] = {
    "fixed": fixed,
    "log": sliding,
    "counter": weighted,
    "bucket": bucket,
}
_steps = st.lists(st.tuples(st.integers(0, 480).map(lambda n: n / 8), st.integers(1, 9)), max_size=40)


@pytest.mark.parametrize("name", sorted(BRUTE))
@settings(deadline=None)
@given(limit=st.integers(1, 20), steps=_steps)
def test_each_algorithm_admits_what_its_definition_admits(name: str, limit: int, steps: list[Request]) -> None:
    meter, now = ALGORITHMS[name](limit), 0.0
    log: list[Request] = []
    for pause, amount in steps:
        now += pause
        delay = meter.delay(now, amount)
        assert (delay == 0) == BRUTE[name](log, limit, now, amount)
        assert delay >= 0
        if delay == 0:
            meter.add(now, amount)
            log.append((now, amount))


@pytest.mark.parametrize("name", ["fixed", "log", "bucket"])
@settings(deadline=None)
@given(limit=st.integers(9, 20), steps=_steps)
def test_the_delay_that_is_told_is_long_enough_and_not_longer(name: str, limit: int, steps: list[Request]) -> None:
    meter, now = ALGORITHMS[name](limit), 0.0
    log: list[Request] = []
    for pause, amount in steps:
        now += pause
        delay = meter.delay(now, amount)
        if delay == 0:
            meter.add(now, amount)
            log.append((now, amount))
        else:
            assert BRUTE[name](log, limit, now + delay + 1e-6, amount)
            assert not BRUTE[name](log, limit, now + delay - 1e-3, amount)


@pytest.mark.parametrize("algorithm", sorted(BRUTE))
def test_requests_per_minute_are_refused_past_the_limit(algorithm: Any) -> None:
    client = Client(rpm=3, algorithm=algorithm)
    assert [client.generate().status_code for _ in range(4)] == [200, 200, 200, 429]
    client.now += 120
    assert client.generate().status_code == 200


def test_an_offset_moves_the_minutes_boundary() -> None:
    client = Client(rpm=1, offset_s=59.0)
    assert client.generate().status_code == 200
    client.now += 1
    assert client.generate().status_code == 200


def test_quotas_are_per_key_and_model() -> None:
    client = Client(rpm=1)
    assert client.generate().status_code == 200
    assert client.generate(model="gemini-3.8-flash").status_code == 200
    assert client.generate(headers={"x-goog-api-key": "AQ.second"}).status_code == 200
    assert client.generate().status_code == 429


def test_rejected_requests_count_only_when_told_to() -> None:
    for count_rejected, status in ((False, 200), (True, 429)):
        client = Client(rpm=2, algorithm="log", count_rejected=count_rejected)
        for _ in range(2):
            client.generate()
        client.now += 30
        for _ in range(2):
            assert client.generate().status_code == 429
        client.now += 31
        assert client.generate().status_code == status


def test_failed_requests_count_unless_told_not_to() -> None:
    for count_failed, status in ((True, 429), (False, 200)):
        client = Client(rpm=1, faults=parse_faults("503*1"), count_failed=count_failed)
        assert client.generate().status_code == 503
        assert client.generate().status_code == status


def test_what_the_front_end_refuses_uses_no_quota_and_what_the_model_refuses_does() -> None:
    client = Client(rpm=1)
    assert client.generate(nonsense=1).status_code == 400
    assert client.generate(generationConfig={"maxOutputTokens": 0}).status_code == 400
    assert client.generate().status_code == 429


HELP = {
    "@type": "type.googleapis.com/google.rpc.Help",
    "links": [
        {
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        }
    ],
}
EXCEEDED = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "head to: https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to: "
    "https://ai.dev/rate-limit. "
)
METRIC = "generativelanguage.googleapis.com/"


def test_the_429_of_a_minute_quota_field_by_field() -> None:
    client = Client(rpm=2)
    client.now += 8.613807284
    client.generate(), client.generate()
    refused = error(client.generate())
    message, delay = refused.pop("message").split("\nPlease retry in ")
    assert message == (
        f"{EXCEEDED}\n* Quota exceeded for metric: {METRIC}generate_requests_per_model, limit: 2, model: {MODEL}"
    )
    assert float(delay.removesuffix("s.")) == pytest.approx(51.386192716, abs=1e-6)
    violation = {
        "quotaMetric": f"{METRIC}generate_requests_per_model",
        "quotaId": "GenerateRequestsPerMinutePerProjectPerModel",
        "quotaDimensions": {"location": "global", "model": MODEL},
        "quotaValue": "2",
    }
    assert refused == {
        "code": 429,
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            HELP,
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "51s"},
        ],
    }


@pytest.mark.parametrize(
    ("tier", "quota", "metric", "quota_id"),
    [
        (0, "rpm", "generate_content_free_tier_requests", "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"),
        (0, "rpd", "generate_content_free_tier_requests", "GenerateRequestsPerDayPerProjectPerModel-FreeTier"),
        (
            0,
            "tpm",
            "generate_content_free_tier_input_token_count",
            "GenerateContentInputTokensPerModelPerMinute-FreeTier",
        ),
        (1, "rpm", "generate_requests_per_model", "GenerateRequestsPerMinutePerProjectPerModel"),
        (1, "rpd", "generate_requests_per_model_per_day", "GenerateRequestsPerDayPerProjectPerModel"),
        (
            1,
            "tpm",
            "generate_content_paid_tier_input_token_count",
            "GenerateContentPaidTierInputTokensPerModelPerMinute",
        ),
        (
            2,
            "tpm",
            "generate_content_paid_tier_2_input_token_count",
            "GenerateContentPaidTierInputTokensPerModelPerMinute-PaidTier2",
        ),
    ],
)
def test_quotas_are_named_by_tier(tier: Any, quota: str, metric: str, quota_id: str) -> None:
    limit: dict[str, Any] = {quota: 100 if quota == "tpm" else 1}
    client = Client(tier=tier, **limit)
    refused = [response for response in (client.generate() for _ in range(3)) if response.status_code == 429]
    details = {detail["@type"].rpartition(".")[2]: detail for detail in error(refused[0])["details"]}
    (violation,) = details["QuotaFailure"]["violations"]
    assert (violation["quotaMetric"], violation["quotaId"]) == (METRIC + metric, quota_id)


def test_input_tokens_per_minute_count_the_prompt_only() -> None:
    prompt = Client().generate().json()["usageMetadata"]["promptTokenCount"]
    client = Client(tpm=2 * prompt)
    assert [client.generate().status_code for _ in range(3)] == [200, 200, 429]
    assert f"limit: {2 * prompt}," in error(client.generate())["message"]


def test_every_violated_quota_is_told() -> None:
    client = Client(rpm=1, tpm=100, rpd=1)
    client.generate()
    refused = error(client.generate())
    assert refused["message"].count("* Quota exceeded for metric") == 3
    assert len(refused["details"][1]["violations"]) == 3


def test_a_day_quota_ends_at_midnight_pacific() -> None:
    client = Client(rpd=2)
    assert [client.generate().status_code for _ in range(3)] == [200, 200, 429]
    client.now = NOON + 12 * 3600 - 1
    assert client.generate().status_code == 429
    client.now += 1
    assert client.generate().status_code == 200


def test_a_day_quota_tells_a_short_delay_or_the_true_one() -> None:
    delays = {}
    for day_delay in ("short", "true"):
        client = Client(rpd=1, tier=0, day_delay=day_delay)
        client.now += 18.934970551
        client.generate()
        refused = error(client.generate())
        delays[day_delay] = (refused["message"].rpartition(" ")[2], refused["details"][2]["retryDelay"])
    assert delays["short"][0].startswith("41.065029")
    assert delays["short"][1] == "41s"
    assert delays["true"][0].startswith("11h59m41.065029")
    assert delays["true"][1] == f"{12 * 3600 - 19}s"


def test_days_of_23_and_25_hours_end_at_midnight_too() -> None:
    for month, day, hours in ((3, 8, 23), (11, 1, 25), (6, 1, 24)):
        start = datetime(2026, month, day, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
        assert next_midnight(start) == start + hours * 3600
        assert next_midnight(start + 3600) == start + hours * 3600


def test_a_limit_of_zero_leaves_out_its_value() -> None:
    refused = error(Client(rpm=0, tpm=0, rpd=0, tier=0).generate())
    assert refused["message"].count("limit: 0,") == 3
    violations = refused["details"][1]["violations"]
    assert len(violations) == 3
    assert all("quotaValue" not in violation for violation in violations)


@pytest.mark.parametrize("faults", ["", "503*1", "html502*1", "429*1", "block*1", "nousage*1", "empty*1"])
def test_every_response_says_that_it_is_emulated(faults: str) -> None:
    client = Client(faults=parse_faults(faults))
    answers = [
        client.generate(),
        client.generate(model="gemini-does-not-exist"),
        client.generate(text=""),
        client.get("/v1beta/models?pageSize=1"),
        client.get(f"/v1beta/models/{MODEL}"),
        client.get("/elsewhere"),
        client.count({"contents": [{"parts": [{"text": "hi"}]}]}),
    ]
    for answer in answers:
        assert answer.headers[EMULATOR_HEADER] == "1"
        assert answer.text.startswith("<") or answer.json()[EMULATOR_FIELD] is True
    assert client.generate().json()["responseId"].startswith(EMULATOR_RESPONSE_ID)


def test_an_emulator_that_plays_the_service_itself_bears_no_mark() -> None:
    answer = Client(marked=False).generate()
    assert EMULATOR_HEADER not in answer.headers
    assert EMULATOR_FIELD not in answer.json()
    assert not answer.json()["responseId"].startswith(EMULATOR_RESPONSE_ID)


def test_an_opaque_429_has_no_details() -> None:
    client = Client(rpm=1, quota_details="opaque", marked=False)
    client.generate()
    assert client.generate().json() == {
        "error": {
            "code": 429,
            "message": "Resource has been exhausted (e.g. check quota).",
            "status": "RESOURCE_EXHAUSTED",
        }
    }


# faults


def test_faults_are_read_from_a_spec() -> None:
    assert parse_faults("503:0.05, 500*3") == Faults((("503", 0.05),), (("500", 3),))
    assert parse_faults("hang") == Faults((("hang", 1.0),))
    assert parse_faults("") == Faults()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("teapot:0.1", "unknown fault 'teapot'; there are 201, 203"),
        ("503:2", "a rate from 0 to 1"),
        ("503:often", "a rate from 0 to 1"),
        ("503*0", "how many of the first requests"),
        ("503:0.7,500:0.7", "add up to 1.4"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("*", r"\*")):
        parse_faults(spec)


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("400", 400, "invalid argument"),
        ("403", 403, "reported as leaked"),
        ("408", 408, "Request Timeout"),
        ("413", 413, "<!DOCTYPE html>"),
        ("429", 429, "Resource has been exhausted"),
        ("499", 499, "The operation was cancelled."),
        ("500", 500, "An internal error has occurred."),
        ("504", 504, "Deadline expired before operation could complete."),
        ("html502", 502, "<!DOCTYPE html>"),
        ("bare429", 429, "You exceeded your current quota"),
        ("prepaid", 429, "prepayment credits are depleted"),
        ("location", 400, "FAILED_PRECONDITION"),
        ("nested503", 503, '{\\"error\\":'),
    ],
)
def test_a_fault_answers_with_its_body(kind: str, status: int, words: str) -> None:
    response = Client(faults=parse_faults(kind)).generate()
    assert response.status_code == status
    assert words in response.text


def test_both_texts_of_an_overload_occur() -> None:
    client = Client(faults=parse_faults("503"))
    texts = Counter(error(client.generate(f"Text {n}."))["message"].split(".")[0] for n in range(30))
    assert set(texts) == {"The model is overloaded", "This model is currently experiencing high demand"}


def test_a_relays_error_comes_in_an_array() -> None:
    (item,) = Client(faults=parse_faults("array429")).generate().json()
    assert item["error"]["code"] == 429


def test_garbage_is_a_200_that_is_no_answer() -> None:
    response = Client(faults=parse_faults("garbage")).generate()
    assert response.status_code == 200
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        response.json()


def test_a_blocked_prompt_has_no_candidates() -> None:
    body = Client(faults=parse_faults("block")).generate().json()
    assert body["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT"}
    assert "candidates" not in body
    assert body["usageMetadata"]["totalTokenCount"] == body["usageMetadata"]["promptTokenCount"]


@pytest.mark.parametrize(
    ("kind", "reason"), [("empty", "STOP"), ("safety", "SAFETY"), ("max_tokens_empty", "MAX_TOKENS")]
)
def test_a_withheld_answer_has_no_parts(kind: str, reason: str) -> None:
    (candidate,) = Client(faults=parse_faults(kind)).generate().json()["candidates"]
    assert candidate == {"content": {}, "finishReason": reason, "index": 0}


def test_a_recitation_is_cut_in_the_middle() -> None:
    response = Client(faults=parse_faults("recitation")).generate()
    assert response.json()["candidates"][0]["finishReason"] == "RECITATION"
    assert text_of(Client().generate()).startswith(text_of(response))


def test_usage_can_be_missing() -> None:
    assert "usageMetadata" not in Client(faults=parse_faults("nousage")).generate().json()


@pytest.mark.parametrize("kind", ["reset", "truncated"])
def test_a_lost_connection_raises_what_the_caller_chose(kind: str) -> None:
    options = EmulatorOptions(faults=parse_faults(kind))
    client = Client(options)
    with pytest.raises(ConnectionResetError):
        client.generate()
    client.emulator = Emulator(options, connection_lost=httpx.ReadError)
    with pytest.raises(httpx.ReadError):
        client.generate()
    assert client.stats()["answered"] == 0


def test_a_hanging_request_ends_when_the_client_gives_up() -> None:
    client = Client(faults=parse_faults("hang"))

    async def give_up() -> None:
        transport = httpx.ASGITransport(client.emulator)
        async with httpx.AsyncClient(transport=transport, base_url="http://emulator", headers=client.headers) as http:
            body = {"contents": [{"parts": [{"text": "hi"}]}]}
            async with asyncio.timeout(0.05):
                await http.post(f"/v1/models/{MODEL}:generateContent", json=body)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert client.stats()["in_flight"] == 0
    assert client.stats()["faults"] == {"hang": 1}


def test_the_first_requests_fail_in_turn() -> None:
    client = Client(faults=parse_faults("503*2,500*1"))
    assert [client.generate(f"Text {n}.").status_code for n in range(4)] == [503, 503, 500, 200]


def outcomes(prompts: list[str], **flags: Any) -> dict[str, list[int]]:
    client = Client(**flags)
    seen: dict[str, list[int]] = {}
    for prompt in prompts:
        seen.setdefault(prompt, []).append(client.generate(prompt).status_code)
    return seen


@settings(max_examples=5, deadline=None)
@given(st.permutations([f"Text {n % 12}." for n in range(24)]))
def test_faults_hang_on_seed_and_prompt_not_on_order(prompts: list[str]) -> None:
    faults = parse_faults("503:0.3,500:0.2")
    ordered = outcomes(sorted(prompts), faults=faults, seed=1)
    assert outcomes(prompts, faults=faults, seed=1) == ordered
    assert outcomes(prompts, faults=faults, seed=2) != ordered
    assert {503, 500, 200} == {status for statuses in ordered.values() for status in statuses}


def test_a_failed_prompt_may_succeed_when_asked_again() -> None:
    client = Client(faults=parse_faults("503:0.5"), track_prompts=0)
    for n in range(20):
        assert 200 in [client.generate(f"Text {n}.").status_code for _ in range(12)]


def test_rates_are_met() -> None:
    faults = parse_faults("503:0.2,block:0.1")
    client = Client(faults=faults)
    for n in range(600):
        client.generate(f"Text {n}.")
    met = client.stats()["faults"]
    assert met["503"] == pytest.approx(120, abs=35)
    assert met["block"] == pytest.approx(60, abs=25)


# latency and counters


def test_latency_is_waited_for_and_the_callers_deadline_is_kept() -> None:
    client = Client(latency_s=0.01, latency_jitter_s=0.01)
    assert client.generate().status_code == 200
    slow = Client(latency_s=30.0)

    async def no_wait(delay: float) -> None:
        waited.append(delay)

    waited: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyio.sleep", no_wait)
        response = slow.generate(headers={"x-server-timeout": "20"})
    assert waited == [20.0]
    assert error(response)["status"] == "DEADLINE_EXCEEDED"


def test_counters_tell_what_happened() -> None:
    client = Client(rpm=4, faults=parse_faults("503*1"), log_size=2)
    client.generate("One."), client.generate("One."), client.generate("One."), client.generate("Two.")
    client.generate("Three.")
    client.count({"contents": [{"parts": [{"text": "hi"}]}]})
    stats = client.stats("?prompts=true&log=true")
    assert stats["requests"] == 5
    assert stats["answered"] == 3
    assert stats["rate_limited"] == 1
    assert stats["count_tokens"] == 1
    assert stats["by_status"] == {"200": 4, "429": 1, "503": 1}
    assert stats["faults"] == {"503": 1}
    assert (stats["in_flight"], stats["max_in_flight"]) == (0, 1)
    assert sorted(stats["prompts"].values()) == [1, 2]
    assert (stats["distinct_prompts"], stats["bought_twice"]) == (2, 1)
    assert [entry["status"] for entry in stats["log"]] == [200, 429]


def test_settings_do_not_make_another_prompt_of_it() -> None:
    client = Client()
    client.generate()
    client.generate(model="gemini-3.8-flash", generationConfig={"maxOutputTokens": 9})
    client.generate(systemInstruction={"parts": [{"text": "another"}]})
    assert sorted(client.stats("?prompts=true")["prompts"].values()) == [1, 2]


def test_prompts_are_counted_up_to_a_bound() -> None:
    client = Client(track_prompts=3)
    for n in range(5):
        client.generate(f"Text {n}.")
    assert client.stats()["distinct_prompts"] == 3
    assert client.stats()["answered"] == 5


def test_requests_in_flight_are_counted() -> None:
    client = Client(latency_s=0.01)

    async def many() -> None:
        transport = httpx.ASGITransport(client.emulator)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://emulator", headers=client.headers) as http,
            asyncio.TaskGroup() as group,
        ):
            for n in range(8):
                body = {"contents": [{"parts": [{"text": f"Text {n}."}]}]}
                group.create_task(http.post(f"/v1/models/{MODEL}:generateContent", json=body))

    asyncio.run(many())
    assert client.stats()["max_in_flight"] == 8


def test_the_emulator_speaks_http_only() -> None:
    async def never(*_: object) -> Any:
        pytest.fail("it answers")

    with pytest.raises(ValueError, match="HTTP only"):
        asyncio.run(Emulator()({"type": "websocket"}, never, never))


# behind a socket


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_served_emulator_ends_cleanly_on_a_signal_even_with_a_request_in_flight(number: signal.Signals) -> None:
    code = "from pipeline.emulator import *; serve(EmulatorOptions(faults=parse_faults('hang')), ready=print)"
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        url = httpx.URL(process.stdout.readline().strip())
        assert url.host == "127.0.0.1"
        with socket.create_connection((url.host, url.port)) as client:
            body = b'{"contents": [{"parts": [{"text": "hi"}]}]}'
            client.sendall(
                b"POST /v1/models/gemini-3.8-flash:generateContent HTTP/1.1\r\nhost: localhost\r\n"
                b"x-goog-api-key: AQ.k\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
            until = time.monotonic() + 30
            while stats(str(url))["faults"] == {}:
                assert time.monotonic() < until, "the emulator took no notice of the request"
            process.send_signal(number)
            assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""


def test_an_address_in_use_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(port=taken.getsockname()[1])
