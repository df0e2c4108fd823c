# ruff: noqa: E501  (bodies stand here as they were recorded or reported)
"""Chat completions as services and relays really send them: answers, counts and refusals, through the whole client.

From public bug reports and recorded traffic of OpenAI, Azure, Groq, OpenRouter, DeepSeek, Alibaba, Zhipu, vLLM, Ollama,
llama.cpp, LiteLLM, one-api, new-api and Gemini's own `/v1beta/openai/`.
"""

from collections.abc import Mapping
from typing import Any

import httpx
import orjson
import pytest
from test_providers_openai import generate

from pipeline.providers.failures import classify
from pipeline.records import Failure, QuotaHit, Reply, Usage
from pipeline.tokens import estimate


def error(message: str, type: str | None = None, code: object = None, **more: object) -> dict[str, Any]:
    """An error in OpenAI's envelope."""
    return {"error": {"message": message, "type": type, "param": None, "code": code, **more}}


GEMINI_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, head to: "
    "https://ai.google.dev/gemini-api/docs/rate-limits. \n* Quota exceeded for metric: generativelanguage.googleapis.com/"
    "generate_content_free_tier_requests, limit: 20, model: gemini-2.5-flash\nPlease retry in 41.065029449s."
)
EXHAUSTED = {
    "error": {"code": 429, "message": "Resource has been exhausted (e.g. check quota).", "status": "RESOURCE_EXHAUSTED"}
}
BUSY = "当前分组上游负载已饱和，请稍后再试"

REFUSALS: Mapping[str, tuple[int, object, str, str]] = {
    # OpenAI itself, and what is modelled on it
    "no money": (
        429,
        error(
            "You exceeded your current quota, please check your plan and billing details. For more information on this error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
            "insufficient_quota",
            "insufficient_quota",
        ),
        "spend_limit",
        "quota",
    ),
    "tokens per minute": (
        429,
        error(
            "Rate limit reached for gpt-4.1 in organization org-x on tokens per min (TPM): Limit 30000, Used 28039, Requested 3906. Please try again in 3.89s. Visit https://platform.openai.com/account/rate-limits to learn more.",
            "tokens",
            "rate_limit_exceeded",
        ),
        "rate_limit",
        "quota",
    ),
    "a rolling day": (
        429,
        error(
            "Rate limit reached for gpt-5.4-mini in organization org-x on requests per day (RPD): Limit 50, Used 50, Requested 1. Please try again in 28m48s. You can increase your rate limit by adding a payment method to your account at https://platform.openai.com/account/billing.",
            "requests",
            "rate_limit_exceeded",
        ),
        "rate_limit",
        "quota",
    ),
    "a day": (
        429,
        error(
            "Rate limit reached for gpt-5.4-mini in organization org-x on requests per day (RPD): Limit 50, Used 50, Requested 1. Please try again in 23h28m48s. You can increase your rate limit by adding a payment method to your account at https://platform.openai.com/account/billing.",
            "requests",
            "rate_limit_exceeded",
        ),
        "day_quota",
        "quota",
    ),
    "larger than a whole minute": (
        429,
        error(
            "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 45000. The input or output tokens must be reduced in order to run successfully.",
            "tokens",
            "rate_limit_exceeded",
        ),
        "reject",
        "too_long",
    ),
    "the same of Groq": (
        413,
        error(
            "Request too large for model `llama-3.3-70b-versatile` in organization `org_x` service tier `on_demand` on tokens per minute (TPM): Limit 12000, Requested 33000, please reduce your message size and try again.",
            "tokens",
            "rate_limit_exceeded",
        ),
        "reject",
        "too_long",
    ),
    "context": (
        400,
        error(
            "This model's maximum context length is 4097 tokens. However, your messages resulted in 6988 tokens. Please reduce the length of the messages.",
            "invalid_request_error",
            "context_length_exceeded",
        ),
        "reject",
        "too_long",
    ),
    "context, in newer words": (
        400,
        error(
            "Your input exceeds the context window of this model. Please adjust your input and try again.",
            "invalid_request_error",
            "context_length_exceeded",
        ),
        "reject",
        "too_long",
    ),
    "context, in words of tomorrow": (
        400,
        error("No.", "invalid_request_error", "context_length_exceeded"),
        "reject",
        "too_long",
    ),
    "wrong key": (
        401,
        error(
            "Incorrect API key provided: sk-abc. You can find your API key at https://platform.openai.com/account/api-keys.",
            "invalid_request_error",
            "invalid_api_key",
        ),
        "auth",
        "auth",
    ),
    "region": (
        403,
        error(
            "Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"
        ),
        "auth",
        "auth",
    ),
    "unknown model": (
        404,
        error(
            "The model `gpt-9` does not exist or you do not have access to it.",
            "invalid_request_error",
            "model_not_found",
        ),
        "fatal",
        "invalid_request",
    ),
    "parameter": (
        400,
        error(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "invalid_request_error",
            "unsupported_parameter",
        ),
        "fatal",
        "invalid_request",
    ),
    "value of a parameter": (
        400,
        error(
            "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported.",
            "invalid_request_error",
            "unsupported_value",
        ),
        "fatal",
        "invalid_request",
    ),
    "flagged prompt": (
        400,
        error(
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy. Please try again with a different prompt.",
            "invalid_request_error",
            "invalid_prompt",
        ),
        "reject",
        "prompt_blocked",
    ),
    "overloaded": (
        503,
        error("The engine is currently overloaded, please try again later", "server_error", "service_unavailable"),
        "transient",
        "server",
    ),
    "Azure's filter": (
        400,
        error(
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify your prompt and retry.",
            None,
            "content_filter",
            status=400,
            innererror={"code": "ResponsibleAIPolicyViolation"},
        ),
        "reject",
        "prompt_blocked",
    ),
    "Azure's pace": (
        429,
        error(
            "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-02-01 have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 26 seconds.",
            None,
            "429",
        ),
        "rate_limit",
        "quota",
    ),
    "Alibaba's filter": (
        400,
        error("Input data may contain inappropriate content.", "data_inspection_failed", "data_inspection_failed"),
        "reject",
        "prompt_blocked",
    ),
    "DeepSeek's filter": (
        400,
        error("Content Exists Risk", "invalid_request_error", "invalid_request_error"),
        "reject",
        "prompt_blocked",
    ),
    "DeepSeek's unknown model": (
        400,
        error("Model Not Exist", "invalid_request_error", "invalid_request_error"),
        "fatal",
        "invalid_request",
    ),
    "Zhipu's unknown model": (
        400,
        {"error": {"code": "1211", "message": "模型不存在，请检查模型代码。"}},
        "fatal",
        "invalid_request",
    ),
    "OpenRouter's unknown model": (
        400,
        {"error": {"message": "foo/bar is not a valid model ID", "code": 400}, "user_id": "u"},
        "fatal",
        "invalid_request",
    ),
    "OpenRouter's purse": (
        402,
        {
            "error": {
                "message": "This request requires more credits, or fewer max_tokens. You requested up to 65536 tokens, but can only afford 2000.",
                "code": 402,
            }
        },
        "spend_limit",
        "quota",
    ),
    "OpenRouter's day": (
        429,
        {
            "error": {
                "message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day",
                "code": 429,
            }
        },
        "day_quota",
        "quota",
    ),
    "behind OpenRouter": (
        429,
        {
            "error": {
                "message": "Provider returned error",
                "code": 429,
                "metadata": {"raw": "google/gemini is temporarily rate-limited upstream."},
            }
        },
        "rate_limit",
        "quota",
    ),
    # servers of one's own
    "vLLM's context": (
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 16384 tokens. However, you requested 19591 tokens (9591 in the messages, 10000 in the completion). Please reduce the length of the messages or completion. None",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        "reject",
        "too_long",
    ),
    "vLLM's unknown model": (
        404,
        {
            "object": "error",
            "message": "The model `x` does not exist.",
            "type": "NotFoundError",
            "param": None,
            "code": 404,
        },
        "fatal",
        "invalid_request",
    ),
    "llama.cpp's context": (
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size, try increasing it",
                "type": "exceed_context_size_error",
            }
        },
        "reject",
        "too_long",
    ),
    "Ollama's unknown model": (
        404,
        error('model "llama9" not found, try pulling it first', "not_found_error"),
        "fatal",
        "invalid_request",
    ),
    # one-api, new-api and their kind
    "busy": (
        429,
        error(f"{BUSY} (request id: 20260521174921838127707FxeB1sRH)", "upstream_error", "bad_response_status_code"),
        "rate_limit",
        "quota",
    ),
    "busy, with the code of a channel without money": (
        429,
        error(BUSY, "insufficient_quota", "insufficient_quota"),
        "rate_limit",
        "quota",
    ),
    "busy, with the code of a closed account": (
        429,
        error("当前分组负载已饱和，请稍后再试，或升级账户以提升服务质量。", "billing_not_active", "billing_not_active"),
        "rate_limit",
        "quota",
    ),
    "busy under 503": (503, error(BUSY, "new_api_error"), "transient", "server"),
    "no channel": (
        503,
        error("当前分组 default 下对于模型 gpt-9 无可用渠道 (request id: x)", "new_api_error", "model_not_found"),
        "fatal",
        "server",
    ),
    "no channel, in English": (
        503,
        error(
            "No available channel for model gpt-9 under group default (distributor) (request id: x)",
            "new_api_error",
            "model_not_found",
        ),
        "fatal",
        "server",
    ),
    "user without quota": (
        403,
        error("用户额度不足, 剩余额度: ＄-0.10", "new_api_error", "insufficient_user_quota"),
        "spend_limit",
        "quota",
    ),
    "token without quota": (
        401,
        error("该令牌额度已用尽 !token.UnlimitedQuota && token.RemainQuota = -100", "new_api_error"),
        "spend_limit",
        "quota",
    ),
    "token without quota, shorter": (403, error("令牌额度已用尽", "one_api_error"), "spend_limit", "quota"),
    "expired token": (401, error("该令牌已过期", "new_api_error"), "auth", "auth"),
    "expired token in a 500": (500, error("该令牌已过期", "one_api_error"), "auth", "auth"),
    "expired token in a 200": (200, {"success": False, "message": "该令牌已过期"}, "auth", "auth"),
    "quota text in a 500": (500, error(GEMINI_QUOTA, "upstream_error", "do_request_failed"), "rate_limit", "quota"),
    "quota text in a 500 that says so": (
        500,
        {"error": {"message": GEMINI_QUOTA, "type": "upstream_error", "code": 500}},
        "rate_limit",
        "quota",
    ),
    "429 as 502, in an array": (502, [EXHAUSTED], "rate_limit", "quota"),
    "429 in the text of a 502": (
        502,
        error("upstream status code 429: Too Many Requests", "upstream_error"),
        "rate_limit",
        "quota",
    ),
    "JSON in a string": (
        500,
        error(f"status_code=429, {orjson.dumps(EXHAUSTED).decode()}", "upstream_error"),
        "rate_limit",
        "quota",
    ),
    "code 403 in a 500": (500, {"error": {"code": 403, "message": "denied", "type": "new_api_error"}}, "auth", "auth"),
    "LiteLLM around OpenAI": (
        429,
        error(
            "litellm.RateLimitError: RateLimitError: OpenAIException - Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Used 28000, Requested 3906. Please try again in 3.89s.",
            "None",
            "429",
        ),
        "rate_limit",
        "quota",
    ),
    # Gemini's own compatible endpoint
    "Gemini's wrong key, in an array": (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "API key not valid. Please pass a valid API key.",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
        "auth",
        "auth",
    ),
    "Gemini's region, in an array": (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "User location is not supported for the API use.",
                    "status": "FAILED_PRECONDITION",
                }
            }
        ],
        "auth",
        "auth",
    ),
    "a page": (
        502,
        "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>",
        "transient",
        "server",
    ),
    "a page of another site": (404, "<!doctype html><title>Not Found</title>", "fatal", "invalid_request"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_means_what_it_says_wherever_it_comes_from(name: str) -> None:
    status, body, kind, error_kind = REFUSALS[name]
    raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
    failure = generate(httpx.Response(status, content=raw))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.error_kind, failure.http_status) == (kind, error_kind, status)
    assert not failure.billed and failure.message.startswith(f"HTTP {status}")


@pytest.mark.parametrize(
    ("words", "seconds"), [("20s", 20), ("1m30s", 90), ("863ms", 0.863), ("28m48s", 1_728), ("20 seconds", 20)]
)
def test_a_wait_is_read_as_openai_writes_it(words: str, seconds: float) -> None:
    body = error(f"Rate limit reached for m on requests per min (RPM): Limit 3, Used 3. Please try again in {words}.")
    assert classify(429, {}, orjson.dumps(body)).retry_after_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7), ({"retry-after-ms": "1500"}, 1.5), ({"retry-after-ms": "soon"}, None), ({}, None)],
)
def test_a_wait_is_read_from_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert classify(429, headers, b"{}").retry_after_s == seconds


TPM = QuotaHit("tokens_per_minute", "tokens", "minute", 30_000)


@pytest.mark.parametrize(
    ("message", "hits"),
    [
        ("Rate limit reached for m on tokens per min (TPM): Limit 30000, Used 28039, Requested 3906.", (TPM,)),
        ("Rate limit reached for m on tokens per minute (TPM): Limit 30000, Used 28039.", (TPM,)),
        ("on requests per min. Limit: 3 / min. Please", (QuotaHit("requests_per_minute", "requests", "minute", 3),)),
        ("on requests per day (RPD): Limit 50, Used", ()),
        ("on tokens per day (TPD): Limit 500000, Used", ()),
        ("Rate limit exceeded: free-models-per-day.", (QuotaHit("free_models_per_day", "requests", "day"),)),
        ("Rate limit exceeded: free-models-per-min.", ()),
        ("Rate limit reached.", ()),
    ],
)
def test_a_limit_is_named_in_openais_words(message: str, hits: tuple[QuotaHit, ...]) -> None:
    assert classify(429, {}, orjson.dumps(error(message))).quota == hits


@pytest.mark.parametrize(
    ("limit", "left", "reset", "told"),
    [
        ("500", "0", "120ms", True),
        ("500", "0", "60s", True),
        ("500", "3", "120ms", False),  # that is not what refused it
        ("14400", "0", "2m59.56s", False),  # a day's
        ("many", "0", "1s", False),
        ("0", "0", "", False),
    ],
)
def test_a_header_names_the_limit_that_is_used_up(limit: str, left: str, reset: str, told: bool) -> None:
    names = {"x-ratelimit-limit-requests": limit, "X-RateLimit-Remaining-Requests": left}
    headers = {
        **names,
        "x-ratelimit-reset-requests": reset,
        "x-ratelimit-limit-tokens": "9",
        "x-ratelimit-remaining-tokens": "1",
    }
    assert classify(429, headers, b"{}").quota == (
        (QuotaHit("requests_per_minute", "requests", "minute", int(limit)),) if told else ()
    )
    assert classify(503, headers, b"{}").quota == ()


# ---- answers


def answer(content: object = "text", finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"id": "c1", "model": "m-1", "choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}


SAID = estimate("text")
USAGES: Mapping[str, tuple[object, Usage]] = {
    "whole": ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}, Usage(9, 0, 4)),
    "missing": (None, Usage(11, 0, SAID, estimated=True)),
    "zero": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(11, 0, SAID, estimated=True)),
    "hidden thinking": (
        {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 113},
        Usage(9, 0, 4, 100),
    ),
    "thinking within": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 64,
            "total_tokens": 73,
            "completion_tokens_details": {"reasoning_tokens": 60},
        },
        Usage(9, 0, 4, 60),
    ),
    "thinking beside": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 0,
            "total_tokens": 69,
            "completion_tokens_details": {"reasoning_tokens": 60},
        },
        Usage(9, 0, 0, 60),
    ),
    "output missing": ({"prompt_tokens": 9, "total_tokens": 13}, Usage(9, 0, 4, estimated=True)),
    "cached": (
        {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 8}},
        Usage(9, 8, 4),
    ),
    "strings": ({"prompt_tokens": "9", "completion_tokens": "4", "total_tokens": "13"}, Usage(9, 0, 4)),
    "details of null": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "total_tokens": 13,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
        Usage(9, 0, 4),
    ),
}


@pytest.mark.parametrize("name", USAGES)
def test_tokens_are_read_as_they_are_billed(name: str) -> None:
    usage, expected = USAGES[name]
    reply = generate(httpx.Response(200, json=answer(usage=usage)))
    assert isinstance(reply, Reply) and (reply.status, reply.text, reply.usage) == ("ok", "text", expected)


@pytest.mark.parametrize(
    ("body", "status", "error_kind", "text"),
    [
        (answer(), "ok", None, "text"),
        (answer(finish=None), "ok", None, "text"),
        (answer(finish="length"), "truncated", "truncated", "text"),
        (answer(None, "length"), "truncated", "truncated", ""),
        (answer(finish="content_filter"), "blocked", "answer_blocked", "text"),
        (answer(None, "content_filter"), "blocked", "answer_blocked", ""),
        (answer(None, "stop"), "error", "empty_answer", ""),
        (
            {"id": "c1", "choices": [{"index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}},
            "error",
            "empty_answer",
            "",
        ),
        ({"id": "c1", "choices": [], "usage": {"prompt_tokens": 9}}, "error", "empty_answer", ""),
        (answer(finish="tool_calls"), "error", "malformed_reply", "text"),
        (answer([{"type": "text", "text": "te"}, {"type": "text", "text": "xt"}]), "ok", None, "text"),
        ({"code": 0, "message": "success", "data": answer()}, "ok", None, "text"),
        ([answer()], "ok", None, "text"),
    ],
)
def test_an_answer_has_its_status_and_keeps_its_text(
    body: object, status: str, error_kind: str | None, text: str
) -> None:
    reply = generate(httpx.Response(200, json=body))
    assert isinstance(reply, Reply)
    assert (reply.status, reply.error_kind, reply.text) == (status, error_kind, text)


def test_thoughts_of_a_server_are_no_part_of_the_answer() -> None:
    body = answer()
    body["choices"][0]["message"] |= {"reasoning_content": "let me see", "reasoning": "let me see"}
    reply = generate(httpx.Response(200, json=body))
    assert isinstance(reply, Reply) and reply.text == "text"


def test_a_stream_that_nobody_asked_for_is_read_with_the_counts_of_its_last_piece() -> None:
    pieces: list[dict[str, Any]] = [
        {
            "id": "c1",
            "model": "m",
            "choices": [{"delta": {"role": "assistant", "content": "te"}, "finish_reason": None}],
        },
        {"id": "c1", "model": "m", "choices": [{"delta": {"content": "xt"}, "finish_reason": "stop"}], "usage": None},
        {
            "id": "c1",
            "model": "m",
            "choices": [],
            "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
        },
    ]
    raw = b"".join(b"data: " + orjson.dumps(piece) + b"\n\n" for piece in pieces)
    for end in (b"data: [DONE]\n\n", b""):
        reply = generate(httpx.Response(200, content=raw + end, headers={"content-type": "text/event-stream"}))
        assert isinstance(reply, Reply) and (reply.status, reply.text, reply.usage) == ("ok", "text", Usage(9, 0, 4))


def test_a_body_of_another_interface_says_what_to_look_at() -> None:
    failure = generate(httpx.Response(200, json={"output": [{"type": "message"}], "object": "response"}))
    assert isinstance(failure, Failure) and failure.billed
    assert "neither candidates nor choices" in failure.message and "base_url and provider" in failure.message
