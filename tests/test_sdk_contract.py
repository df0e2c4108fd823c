"""Google's own SDK drives the emulator over a socket: what it understands is the wire protocol."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import anyio
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel
from serving import served, stats

from pipeline.schemas import gemini, schema_of

MODEL = "gemini-3.5-flash-lite"
TEXT = "The river flooded the town. The town had postponed the wall. A bakery gave away bread. The town rebuilds."


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with served(thinking_tokens=7, marked=True, model_version="emulator") as url:
        yield url


@contextmanager
def sdk(base_url: str, version: str = "v1beta", key: str = "AQ.key") -> Iterator[genai.Client]:
    options = types.HttpOptions(base_url=base_url, api_version=version)
    client = genai.Client(api_key=key, vertexai=False, http_options=options)
    try:
        yield client
    finally:
        client.close()


def answer_of(response: types.GenerateContentResponse, finish: types.FinishReason) -> types.Candidate:
    """The only answer, which ended so."""
    assert response.candidates is not None
    (answer,) = response.candidates
    assert answer.finish_reason is finish
    return answer


def usage_of(response: types.GenerateContentResponse) -> types.GenerateContentResponseUsageMetadata:
    assert response.usage_metadata is not None
    return response.usage_metadata


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_generate_content_with_every_setting(base_url: str, version: str) -> None:
    config = types.GenerateContentConfig(
        system_instruction="You are terse.",
        max_output_tokens=64,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        seed=1,
        stop_sequences=["never said"],
        thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW, include_thoughts=True),
        safety_settings=[
            types.SafetySetting(
                category=types.HarmCategory.HARM_CATEGORY_HARASSMENT,
                threshold=types.HarmBlockThreshold.BLOCK_ONLY_HIGH,
            )
        ],
        service_tier=types.ServiceTier.FLEX,
        labels={"team": "x"},
    )
    with sdk(base_url, version) as client:
        response = client.models.generate_content(model=MODEL, contents=TEXT, config=config)
    assert response.text is not None and response.text.startswith("The river flooded the town.")
    assert response.model_version == "emulator"
    assert response.response_id
    content = answer_of(response, types.FinishReason.STOP).content
    assert content is not None and content.parts is not None
    assert content.parts[0].thought is True
    usage = usage_of(response)
    assert usage.thoughts_token_count == 7
    assert usage.prompt_token_count is not None and usage.candidates_token_count is not None
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count + 7
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details[0].modality is types.MediaModality.TEXT
    received = response.sdk_http_response
    assert received is not None and received.headers is not None
    assert received.headers["x-gemini-service-tier"] == "flex"


def test_json_by_pydantic_model_is_parsed(base_url: str) -> None:
    class Summary(BaseModel):
        title: str
        tags: list[str]
        score: float | None = None

    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=Summary)
    with sdk(base_url) as client:
        response = client.models.generate_content(model=MODEL, contents=TEXT, config=config)
    assert isinstance(response.parsed, Summary)
    assert response.parsed.title
    assert response.parsed.tags


def test_json_by_json_schema_is_valid_json(base_url: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    config = types.GenerateContentConfig(response_mime_type="application/json", response_json_schema=schema)
    with sdk(base_url) as client:
        response = client.models.generate_content(model=MODEL, contents=TEXT, config=config)
    assert json.loads(response.text or "") == {"n": 3}


def test_a_chat_sends_its_history(base_url: str) -> None:
    with sdk(base_url) as client:
        chat = client.chats.create(model=MODEL)
        assert chat.send_message("First question.").text == "First question."
        assert chat.send_message("Second question.").text == "Second question."


def test_an_answer_cut_by_thinking_has_no_text(base_url: str) -> None:
    config = types.GenerateContentConfig(max_output_tokens=5)
    with sdk(base_url) as client:
        response = client.models.generate_content(model=MODEL, contents=TEXT, config=config)
    assert response.text is None
    answer_of(response, types.FinishReason.MAX_TOKENS)
    assert usage_of(response).candidates_token_count is None


def test_count_tokens_agrees_with_usage(base_url: str) -> None:
    with sdk(base_url) as client:
        counted = client.models.count_tokens(model=MODEL, contents=TEXT)
        response = client.models.generate_content(model=MODEL, contents=TEXT)
    assert counted.total_tokens == usage_of(response).prompt_token_count


def test_models_are_listed_over_pages_and_got_by_name(base_url: str) -> None:
    with sdk(base_url) as client:
        names = [model.name for model in client.models.list(config={"page_size": 5})]
        model = client.models.get(model=MODEL)
    assert f"models/{MODEL}" in names
    assert len(names) == len(set(names)) > 10
    assert model.input_token_limit == 1_048_576
    assert "generateContent" in (model.supported_actions or [])


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")  # the SDK's own
def test_the_async_client_is_served_alike(base_url: str) -> None:
    """It speaks through aiohttp, as it does wherever that is installed."""

    async def ask() -> tuple[types.GenerateContentResponse, types.CountTokensResponse]:
        options = types.HttpOptions(base_url=base_url, api_version="v1beta")
        async with genai.Client(api_key="AQ.key", vertexai=False, http_options=options).aio as client:
            with pytest.raises(errors.ClientError) as caught:
                await client.models.generate_content(model="gemini-does-not-exist", contents="hi")
            assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
            counted = await client.models.count_tokens(model=MODEL, contents=TEXT)
            return await client.models.generate_content(model=MODEL, contents=TEXT), counted

    response, counted = anyio.run(ask)
    with sdk(base_url) as client:
        same = client.models.generate_content(model=MODEL, contents=TEXT)
    assert response.text == same.text
    assert usage_of(response) == usage_of(same)
    assert usage_of(response).prompt_token_count == counted.total_tokens


def test_errors_arrive_as_the_sdks_classes(base_url: str) -> None:
    with sdk(base_url, key="invalid") as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=MODEL, contents="hi")
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert caught.value.message == "API key not valid. Please pass a valid API key."
    with sdk(base_url) as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="gemini-does-not-exist", contents="hi")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    with sdk(base_url, "v1") as client, pytest.raises(errors.ClientError) as caught:
        client.models.get(model="gemini-flash-latest")
    assert caught.value.code == 404
    with sdk(base_url) as client, pytest.raises(errors.ClientError, match="max_output_tokens must be positive"):
        client.models.generate_content(model=MODEL, contents="hi", config={"max_output_tokens": -1})


def test_a_429_arrives_with_its_details() -> None:
    with served(rpm=1, tier=2) as url, sdk(url) as client:
        client.models.generate_content(model=MODEL, contents="hi")
        with pytest.raises(errors.ClientError) as caught:
            client.models.generate_content(model=MODEL, contents="hi")
        assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
        details = {detail["@type"].rpartition(".")[2]: detail for detail in caught.value.details["error"]["details"]}
        assert details["QuotaFailure"]["violations"][0]["quotaValue"] == "1"
        assert details["RetryInfo"]["retryDelay"].endswith("s")
        assert stats(url)["by_status"] == {"200": 1, "429": 1}


def test_the_sdks_own_retries_get_past_faults() -> None:
    retry = types.HttpRetryOptions(attempts=4, initial_delay=0.01, max_delay=0.01, jitter=0.0)
    with served(faults="503*1,500*1,html502*1") as url, sdk(url) as client:
        config = types.GenerateContentConfig(http_options=types.HttpOptions(retry_options=retry))
        assert client.models.generate_content(model=MODEL, contents="Hello.", config=config).text == "Hello."
        assert stats(url)["faults"] == {"503": 1, "500": 1, "html502": 1}


def test_an_overload_is_a_server_error_and_a_blocked_prompt_is_an_answer() -> None:
    with served(faults="503*1,block*1") as url, sdk(url) as client:
        with pytest.raises(errors.ServerError) as caught:
            client.models.generate_content(model=MODEL, contents="hi")
        assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")
        response = client.models.generate_content(model=MODEL, contents="hi")
        assert response.candidates is None
        assert response.prompt_feedback is not None
        assert response.prompt_feedback.block_reason is types.BlockedReason.PROHIBITED_CONTENT


def test_connections_break_for_real() -> None:
    with served(faults="reset*1,truncated*1") as url, sdk(url) as client:
        for words in ("[Rr]eset", "incomplete|closed"):
            with pytest.raises(Exception, match=words):
                client.models.generate_content(model=MODEL, contents="hi")
        assert client.models.generate_content(model=MODEL, contents="hi").text == "hi"
        assert stats(url)["answered"] == 1


class Part(BaseModel):
    name: str
    amount: float | None = None


class Machine(BaseModel):
    kind: Literal["pump", "valve"]
    parts: list[Part]


@pytest.mark.parametrize("form", ["response_json_schema", "response_schema"])
def test_an_answer_by_our_form_of_a_schema_and_by_the_older_one_of_the_sdk_is_valid(base_url: str, form: str) -> None:
    schema = schema_of(Machine.model_json_schema())
    told = gemini(schema.value) if form == "response_json_schema" else Machine
    config = types.GenerateContentConfig.model_validate({"response_mime_type": "application/json", form: told})
    with sdk(base_url) as client:
        answer = client.models.generate_content(model=MODEL, contents=TEXT, config=config)
    assert not schema.judge(answer.text or "").trouble
    assert Machine.model_validate_json(answer.text or "").parts


def test_misshaped_json_comes_as_it_is_named_and_is_right_once_it_was_shown() -> None:
    schema = schema_of(Machine.model_json_schema())
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_json_schema=gemini(schema.value)
    )
    valid = {"fenced_json": True, "prose_json": True, "broken_json": False, "wrong_json": False}
    for fault, is_valid in valid.items():
        with served(faults=fault) as url, sdk(url) as client:
            first = client.models.generate_content(model=MODEL, contents=TEXT, config=config).text or ""
            assert ((not schema.judge(first).trouble) == is_valid and schema.judge(first).text != first) or not is_valid
            turns = [("user", TEXT), ("model", first), ("user", "Again, please.")]
            again = client.models.generate_content(
                model=MODEL,
                contents=[types.Content(role=role, parts=[types.Part(text=text)]) for role, text in turns],
                config=config,
            )
            assert not schema.judge(again.text or "").trouble


# ---- batches


@pytest.fixture(scope="module")
def batches_url() -> Iterator[str]:
    with served(batch=True, batch_pending_s=0.1, batch_run_s=0.1, batch_spread=1) as url:
        yield url


def ended(client: genai.Client, job: types.BatchJob) -> types.BatchJob:
    """The batch when nothing will change any more."""
    assert job.name is not None
    until = time.monotonic() + 20
    while not (found := client.batches.get(name=job.name)).done:
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def file_of(client: genai.Client, path: Path, count: int) -> types.File:
    lines = ({"key": f"k{n}", "request": {"contents": [{"parts": [{"text": f"Say {n}."}]}]}} for n in range(count))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return client.files.upload(file=path, config={"mime_type": "jsonl", "display_name": "lines"})


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_a_batch_is_made_of_a_file_and_its_results_are_downloaded(
    batches_url: str, version: str, tmp_path: Path
) -> None:
    with sdk(batches_url, version) as client:
        file = file_of(client, tmp_path / "lines.jsonl", 30)
        assert file.name is not None
        job = client.batches.create(model=MODEL, src=file.name, config={"display_name": "night"})
        assert (job.state, job.display_name) == (types.JobState.JOB_STATE_PENDING, "night")
        client.files.delete(name=file.name)
        done = ended(client, job)
        assert done.state is types.JobState.JOB_STATE_SUCCEEDED
        assert done.create_time is not None and done.end_time is not None and done.create_time < done.end_time
        assert done.dest is not None and done.dest.file_name is not None
        client.files.download(file=done.dest.file_name, destination=tmp_path / "results.jsonl")
        with pytest.raises(errors.ClientError, match="40 characters"):
            client.files.delete(name=done.dest.file_name)
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    answers = {each["key"]: types.GenerateContentResponse.model_validate(each["response"]) for each in results}
    assert {key: answer.text for key, answer in answers.items()} == {f"k{n}": f"Say {n}." for n in range(30)}
    assert usage_of(answers["k3"]).total_token_count


def test_a_batch_of_requests_inline_is_read_in_its_place(batches_url: str) -> None:
    requests = [
        types.InlinedRequest(
            contents=TEXT, metadata={"key": "a"}, config=types.GenerateContentConfig(max_output_tokens=5)
        ),
        types.InlinedRequest(contents="Say this.", metadata={"key": "b"}),
    ]
    with sdk(batches_url) as client:
        dest = ended(client, client.batches.create(model=MODEL, src=requests)).dest
    assert dest is not None and dest.inlined_responses is not None
    first, second = dest.inlined_responses
    assert first.response is not None and second.response is not None
    answer_of(first.response, types.FinishReason.MAX_TOKENS)
    assert (second.metadata, second.response.text) == ({"key": "b"}, "Say this.")


def test_batches_are_listed_over_pages_cancelled_and_deleted(tmp_path: Path) -> None:
    with served(batch=True, batch_pending_s=60) as url, sdk(url) as client:
        file = file_of(client, tmp_path / "lines.jsonl", 2)
        assert file.name is not None
        jobs = [client.batches.create(model=MODEL, src=file.name, config={"display_name": f"{n}"}) for n in range(5)]
        assert [job.display_name for job in client.batches.list(config={"page_size": 2})] == ["4", "3", "2", "1", "0"]
        names = [job.name or "" for job in jobs]
        client.batches.cancel(name=names[0])
        assert ended(client, jobs[0]).state is types.JobState.JOB_STATE_CANCELLED
        client.batches.delete(name=names[1])
        assert names[1] not in {job.name for job in client.batches.list()}
        with pytest.raises(errors.ClientError) as caught:
            client.batches.get(name=names[1])
        assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


def test_what_is_more_than_may_be_enqueued_is_a_client_error(tmp_path: Path) -> None:
    with served(batch=True, batch_tokens=10) as url, sdk(url) as client:
        file = file_of(client, tmp_path / "lines.jsonl", 20)
        assert file.name is not None
        with pytest.raises(errors.ClientError) as caught:
            client.batches.create(model=MODEL, src=file.name)
        assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
