"""Google's own SDK as a client of Vertex AI's paths, over a socket: what it understands is the wire protocol."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import google.auth.transport.requests
import pytest
from google import genai
from google.genai import errors, types
from google.oauth2 import service_account
from google_accounts import account_file
from serving import served, stats

MODEL = "gemini-3.5-flash-lite"
PROJECT, LOCATION = "project-of-a-test", "europe-west4"


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with served(token_s=1.0) as url:
        yield url


class Bearer(google.auth.credentials.Credentials):
    """A token that somebody got somewhere."""

    def __init__(self, token: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.token = token

    def refresh(self, request: Any) -> None:
        """It is what it is."""


@contextmanager
def sdk(base_url: str, token: str = "ya29.a-token", project: str = PROJECT, **options: Any) -> Iterator[genai.Client]:
    client = genai.Client(
        vertexai=True,
        credentials=Bearer(token),
        project=project,
        location=LOCATION,
        http_options=types.HttpOptions(base_url=base_url, **options),
    )
    try:
        yield client
    finally:
        client.close()


def test_generate_content_of_a_project_at_a_location(base_url: str) -> None:
    config = types.GenerateContentConfig(
        system_instruction="Be brief.",
        max_output_tokens=64,
        labels={"team": "x"},
        thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW),
    )
    with sdk(base_url) as client:
        for model in (MODEL, f"publishers/google/models/{MODEL}", f"google/{MODEL}"):
            answer = client.models.generate_content(model=model, contents="The river flooded.", config=config)
            assert answer.text and answer.model_version == MODEL
            usage = answer.usage_metadata
            assert usage is not None and usage.traffic_type is types.TrafficType.ON_DEMAND


def test_tokens_are_counted_with_the_system_instruction(base_url: str) -> None:
    with sdk(base_url) as client:
        plain = client.models.count_tokens(model=MODEL, contents="The river flooded.")
        more = client.models.count_tokens(
            model=MODEL,
            contents="The river flooded.",
            config=types.CountTokensConfig(system_instruction="Be very brief in all that you say."),
        )
    assert plain.total_tokens and more.total_tokens and more.total_tokens > plain.total_tokens


def test_models_are_listed_and_looked_up_without_a_project_in_the_path(base_url: str) -> None:
    with sdk(base_url) as client:
        names = [model.name for model in client.models.list(config={"query_base": True})]
        assert f"publishers/google/models/{MODEL}" in names
        assert client.models.get(model=MODEL).name == f"publishers/google/models/{MODEL}"


def test_express_mode_takes_a_key(base_url: str) -> None:
    options = types.HttpOptions(base_url=base_url)
    client = genai.Client(vertexai=True, api_key="AQ.express", http_options=options)
    try:
        assert client.models.generate_content(model=MODEL, contents="Say yes.").text
        assert client.models.count_tokens(model=MODEL, contents="Say yes.").total_tokens
        bad = genai.Client(vertexai=True, api_key="invalid", http_options=options)
        with pytest.raises(errors.ClientError, match="API key not valid") as refused:
            bad.models.generate_content(model=MODEL, contents="Say yes.")
        assert refused.value.code == 400
        bad.close()
    finally:
        client.close()


@pytest.mark.parametrize(
    ("token", "project", "code", "words"),
    [
        ("invalid", PROJECT, 401, "invalid authentication credentials"),
        ("ya29.good", "denied-project", 403, "Permission 'aiplatform.endpoints.predict' denied on resource"),
    ],
)
def test_what_is_refused_is_told_as_google_tells_it(
    base_url: str, token: str, project: str, code: int, words: str
) -> None:
    with sdk(base_url, token, project) as client, pytest.raises(errors.ClientError, match=words) as refused:
        client.models.generate_content(model=MODEL, contents="Say yes.")
    assert refused.value.code == code


def test_an_unknown_model_is_no_publisher_model_of_the_project(base_url: str) -> None:
    with sdk(base_url) as client, pytest.raises(errors.ClientError, match="Publisher Model `projects/") as refused:
        client.models.generate_content(model="gemini-none", contents="Say yes.")
    assert refused.value.code == 404


def test_a_token_that_the_emulator_gave_ends(base_url: str, tmp_path: Path) -> None:
    path = account_file(tmp_path / "account.json", f"{base_url}/token")
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    account = service_account.Credentials.from_service_account_file(str(path), scopes=scopes)  # type: ignore[no-untyped-call]
    account.refresh(google.auth.transport.requests.Request())
    ends_at = time.monotonic() + 1.0
    with sdk(base_url, account.token) as client:
        assert client.models.generate_content(model=MODEL, contents="Say yes.").text
        time.sleep(max(0.0, ends_at - time.monotonic()) + 0.1)
        with pytest.raises(errors.ClientError) as refused:
            client.models.generate_content(model=MODEL, contents="Say yes.")
    assert refused.value.code == 401
    assert refused.value.details["error"]["details"][0]["reason"] == "ACCESS_TOKEN_EXPIRED"


def test_a_turn_needs_a_role_and_a_key_is_no_token(base_url: str) -> None:
    place = f"{base_url}/v1/projects/{PROJECT}/locations/{LOCATION}/publishers/google/models/{MODEL}"
    body = b'{"contents": [{"parts": [{"text": "hi"}]}]}'
    for method in ("generateContent", "countTokens"):
        assert "use a valid role" in told(f"{place}:{method}", body, {"authorization": "Bearer t"})
        assert "API keys are not supported" in told(f"{place}:{method}", body, {"x-goog-api-key": "AQ.key"})
        assert "missing required authentication" in told(f"{place}:{method}", body, {})


def told(url: str, body: bytes, headers: dict[str, str]) -> str:
    request = Request(url, body, {"content-type": "application/json", **headers})
    with pytest.raises(HTTPError) as refused:
        build_opener(ProxyHandler({})).open(request)
    with refused.value as response:
        return response.read().decode()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"rpm": 1}, "generate_content_requests_per_minute_per_project_per_base_model with base model"),
        ({"tpm": 10}, "generate_content_input_tokens_per_minute_per_base_model with base model"),
        ({"rpm": 1, "quota_details": "opaque"}, "error-code-429"),
        ({"faults": "429"}, "error-code-429"),
    ],
    ids=str,
)
def test_a_quota_is_named_by_its_metric_alone_and_capacity_not_at_all(limits: dict[str, Any], words: str) -> None:
    with served(**limits) as url, sdk(url) as client:
        with pytest.raises(errors.ClientError, match=words) as refused:
            for _ in range(2):
                client.models.generate_content(model=MODEL, contents="Say yes, and nothing else.")
        assert refused.value.code == 429 and "details" not in refused.value.details["error"]
        assert stats(url)["by_status"]["429"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_tools_streams_and_answers_that_go_on(stream: bool) -> None:
    text = "The river flooded the town. The town had postponed the wall. A bakery gave away bread. The town rebuilds."
    config = types.GenerateContentConfig(
        tools=[types.Tool(google_search=types.GoogleSearch())], automatic_continuation=True, labels={"team": "x"}
    )
    with served(part_tokens=7) as url, sdk(url) as client:
        if stream:
            pieces = list(client.models.generate_content_stream(model="gemini-4-argon", contents=text, config=config))
        else:
            pieces = [client.models.generate_content(model="gemini-4-argon", contents=text, config=config)]
        requests = stats(url)["requests"]
    with served() as url, sdk(url) as client:
        whole = client.models.generate_content(model="gemini-4-argon", contents=text)
    assert "".join(each.text or "" for each in pieces) == whole.text and requests > 2
    last = pieces[-1]
    assert last.candidates and last.candidates[0].grounding_metadata and last.usage_metadata
    assert last.usage_metadata.traffic_type is types.TrafficType.ON_DEMAND
