# ruff: noqa: E501  (recorded bodies stand here as they came)
import math

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.providers.failures import (
    MESSAGE_CHARS,
    classify,
    clean,
    read_fault,
    unanswered,
    without_prompt,
)
from pipeline.providers.named import http_date, parse_duration
from pipeline.providers.transport import Lost
from pipeline.records import QuotaHit

E1 = r"""{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT",
 "details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID","domain":"googleapis.com",
   "metadata":{"service":"generativelanguage.googleapis.com"}},
  {"@type":"type.googleapis.com/google.rpc.LocalizedMessage","locale":"en-US","message":"API key not valid. Please pass a valid API key."}]}}"""
E2 = r"""{"error":{"code":403,"message":"Method doesn't allow unregistered callers (callers without established identity). Please use API Key or other form of API consumer identity to call this API.","status":"PERMISSION_DENIED"}}"""
E3 = r"""{"error":{"code":429,
 "message":"You exceeded your current quota, please check your plan and billing details. For more information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to: https://ai.dev/rate-limit. \n* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: 20, model: gemini-2.5-flash-lite\nPlease retry in 41.065029449s.",
 "status":"RESOURCE_EXHAUSTED",
 "details":[
  {"@type":"type.googleapis.com/google.rpc.Help","links":[{"description":"Learn more about Gemini API quotas","url":"https://ai.google.dev/gemini-api/docs/rate-limits"}]},
  {"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaMetric":"generativelanguage.googleapis.com/generate_content_free_tier_requests","quotaId":"GenerateRequestsPerDayPerProjectPerModel-FreeTier","quotaDimensions":{"location":"global","model":"gemini-2.5-flash-lite"},"quotaValue":"20"}]},
  {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"41s"}]}}"""
E4 = r"""{"error":{"code":429,
 "message":"You exceeded your current quota, please check your plan and billing details. For more information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to: https://ai.dev/rate-limit. \n* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_paid_tier_2_input_token_count, limit: 3000000, model: gemini-3.8-flash\nPlease retry in 51.386192716s.",
 "status":"RESOURCE_EXHAUSTED",
 "details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaMetric":"generativelanguage.googleapis.com/generate_content_paid_tier_2_input_token_count","quotaId":"GenerateContentPaidTierInputTokensPerModelPerMinute-PaidTier2","quotaDimensions":{"location":"global","model":"gemini-3.8-flash"},"quotaValue":"3000000"}]},
  {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"14s"}]}}"""
E5 = r"""{"error":{"code":429,
 "message":"You exceeded your current quota, please check your plan and billing details. For more information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to: https://ai.dev/rate-limit. \n* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_input_token_count, limit: 0, model: gemini-2.5-pro\n* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: 0, model: gemini-2.5-pro\nPlease retry in 29.083414095s.",
 "status":"RESOURCE_EXHAUSTED",
 "details":[
  {"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[
   {"quotaMetric":"generativelanguage.googleapis.com/generate_content_free_tier_input_token_count","quotaId":"GenerateContentInputTokensPerModelPerDay-FreeTier","quotaDimensions":{"location":"global","model":"gemini-2.5-pro"}},
   {"quotaMetric":"generativelanguage.googleapis.com/generate_content_free_tier_input_token_count","quotaId":"GenerateContentInputTokensPerModelPerMinute-FreeTier","quotaDimensions":{"location":"global","model":"gemini-2.5-pro"}},
   {"quotaMetric":"generativelanguage.googleapis.com/generate_content_free_tier_requests","quotaId":"GenerateRequestsPerMinutePerProjectPerModel-FreeTier","quotaDimensions":{"location":"global","model":"gemini-2.5-pro"}},
   {"quotaMetric":"generativelanguage.googleapis.com/generate_content_free_tier_requests","quotaId":"GenerateRequestsPerDayPerProjectPerModel-FreeTier","quotaDimensions":{"location":"global","model":"gemini-2.5-pro"}}]},
  {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"29s"}]}}"""
E6 = r"""{"error":{"code":429,"message":"Quota exceeded for quota metric 'Generate Content API requests per minute' and limit 'GenerateContent request limit per minute for a region' of service 'generativelanguage.googleapis.com' for consumer 'project_number:0'.","status":"RESOURCE_EXHAUSTED",
 "details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"RATE_LIMIT_EXCEEDED","domain":"googleapis.com","metadata":{"quota_metric":"generativelanguage.googleapis.com/generate_content_requests","service":"generativelanguage.googleapis.com","quota_limit_value":"0","quota_limit":"GenerateContentRequestsPerMinutePerProjectPerRegion","quota_location":"us-south1","quota_unit":"1/min/{project}/{region}","consumer":"projects/0"}},
  {"@type":"type.googleapis.com/google.rpc.Help","links":[{"description":"Request a higher quota limit.","url":"https://cloud.google.com/docs/quotas/help/request_increase"}]}]}}"""
E7 = r"""{"error":{"code":429,"message":"Resource has been exhausted (e.g. check quota).","status":"RESOURCE_EXHAUSTED"}}"""
E7B = r"""{"error":{"code":429,"message":"Resource exhausted. Please try again later. Please refer to https://cloud.google.com/vertex-ai/generative-ai/docs/error-code-429 for more details.","status":"RESOURCE_EXHAUSTED"}}"""
E7C = r"""{"error":{"code":429,"message":"Quota exceeded for aiplatform.googleapis.com/generate_content_requests_per_minute_per_project_per_base_model with base model: gemini-pro. Please submit a quota increase request. https://cloud.google.com/vertex-ai/docs/generative-ai/quotas-genai.","status":"RESOURCE_EXHAUSTED"}}"""
NO_FLEX = r"""{"error":{"message":"Flex is not available for this model.","type":"invalid_request_error","param":"service_tier","code":null}}"""
BAD_TIER = r"""{"error":{"message":"Invalid service_tier argument","type":"invalid_request_error","param":"service_tier","code":null}}"""
E8 = r"""{"error":{"code":429,"message":"You exceeded your current quota, please check your plan and billing details. For more information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to: https://ai.dev/rate-limit. ","status":"RESOURCE_EXHAUSTED",
 "details":[{"@type":"type.googleapis.com/google.rpc.Help","links":[{"description":"Learn more about Gemini API quotas","url":"https://ai.google.dev/gemini-api/docs/rate-limits"}]}]}}"""
E10 = r"""[{"error":{"code":400,"message":"User location is not supported for the API use.","status":"FAILED_PRECONDITION"}}]"""
E11 = r"""{"error":{"code":404,"message":"models/gemini-does-not-exist-ext162 is not found for API version v1beta, or is not supported for generateContent. Call ModelService.ListModels to see the list of available models and their supported methods.","status":"NOT_FOUND"}}"""
E13 = r"""{"error":{"code":503,"message":"The model is overloaded. Please try again later.","status":"UNAVAILABLE"}}"""
E13_DEMAND = r"""{"error":{"code":503,"message":"This model is currently experiencing high demand. Spikes in demand are usually temporary. Please try again later.","status":"UNAVAILABLE"}}"""
E14 = r"""{"error":{"code":500,"message":"An internal error has occurred. Please retry or report in https://developers.generativeai.google/guide/troubleshooting","status":"INTERNAL"}}"""
E15 = r"""{"error":{"code":504,"message":"Deadline expired before operation could complete.","status":"DEADLINE_EXCEEDED"}}"""
E16 = r"""{"error":{"code":499,"message":"The operation was cancelled.","status":"CANCELLED"}}"""
E17 = r"""{"error":{"code":401,"message":"Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.","status":"UNAUTHENTICATED",
 "details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"ACCESS_TOKEN_TYPE_UNSUPPORTED","metadata":{"method":"google.ai.generativelanguage.v1beta.GenerativeService.GenerateContent","service":"generativelanguage.googleapis.com"}}]}}"""
E19 = r"""{"error":{"code":400,"message":"Invalid JSON payload received. Unknown name \"system_instruction\": Cannot find field.","status":"INVALID_ARGUMENT",
 "details":[{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"description":"Invalid JSON payload received. Unknown name \"system_instruction\": Cannot find field."}]}]}}"""
E20 = r"""{"error":{"code":400,"message":"The input token count exceeds the maximum number of tokens allowed (1048576).","status":"INVALID_ARGUMENT"}}"""


def body_of(code: int, message: str, status: str, reason: str | None = None) -> bytes:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}]
    error = {"code": code, "message": message, "status": status}
    return orjson.dumps({"error": error | ({"details": details} if reason else {})})


E9 = body_of(
    429,
    "Your prepayment credits are depleted. Please go to AI Studio at https://ai.studio/projects to manage your project and billing.",
    "RESOURCE_EXHAUSTED",
)
E12 = body_of(404, "This model models/gemini-2.5-flash is no longer available to new users.", "NOT_FOUND")
KEY_EXPIRED = body_of(400, "API key expired. Please renew the API key.", "INVALID_ARGUMENT", "API_KEY_INVALID")
KEY_NOT_FOUND = body_of(400, "API Key not found. Please pass a valid API key.", "INVALID_ARGUMENT")
LEAKED = body_of(403, "Your API key was reported as leaked. Please use another API key.", "PERMISSION_DENIED")
DISABLED = body_of(
    403, "Gemini API has not been used in project 0 before or it is disabled.", "PERMISSION_DENIED", "SERVICE_DISABLED"
)
BILLING_COUNTRY = body_of(
    403, "Access to generativelanguage.googleapis.com is restricted from your billing country", "PERMISSION_DENIED"
)
BAD_ARGUMENT = body_of(400, "Request contains an invalid argument.", "INVALID_ARGUMENT")
UNIMPLEMENTED = body_of(501, "Operation is not implemented, or supported, or enabled.", "UNIMPLEMENTED")

TABLE: dict[str, tuple[int, str | bytes, str, str]] = {
    "E1 wrong key": (400, E1, "auth", "auth"),
    "E1 expired key": (400, KEY_EXPIRED, "auth", "auth"),
    "E1 deleted key": (400, KEY_NOT_FOUND, "auth", "auth"),
    "E2 no key": (403, E2, "auth", "auth"),
    "E3 requests per day": (429, E3, "day_quota", "quota"),
    "E4 input tokens per minute": (429, E4, "rate_limit", "quota"),
    "E5 model not on this tier": (429, E5, "fatal", "quota"),
    "E6 service quota of zero": (429, E6, "fatal", "quota"),
    "E7 opaque": (429, E7, "rate_limit", "quota"),
    "E7b shared capacity": (429, E7B, "rate_limit", "quota"),
    "E7c Vertex AI names a metric": (429, E7C, "rate_limit", "quota"),
    "E8 boilerplate with the word billing": (429, E8, "rate_limit", "quota"),
    "E9 prepaid credit gone": (429, E9, "spend_limit", "quota"),
    "E10 region, in an array": (400, E10, "auth", "auth"),
    "E11 unknown model": (404, E11, "fatal", "invalid_request"),
    "E12 retired model": (404, E12, "fatal", "invalid_request"),
    "E13 overload": (503, E13, "transient", "server"),
    "E13 high demand": (503, E13_DEMAND, "transient", "server"),
    "E14 internal": (500, E14, "transient", "server"),
    "E15 deadline": (504, E15, "transient", "server"),
    "E16 cancelled": (499, E16, "transient", "server"),
    "E17 credential kind": (401, E17, "auth", "auth"),
    "E18 leaked key": (403, LEAKED, "auth", "auth"),
    "E18 service disabled": (403, DISABLED, "auth", "auth"),
    "E18 billing country": (403, BILLING_COUNTRY, "auth", "auth"),
    "E19 unknown field": (400, E19, "fatal", "invalid_request"),
    "E20 context overflow": (400, E20, "reject", "too_long"),
    "E20 on Vertex AI": (400, E20.replace("(1048576)", "1048576"), "reject", "too_long"),
    "invalid argument": (400, BAD_ARGUMENT, "reject", "invalid_request"),
    "method not offered": (501, UNIMPLEMENTED, "fatal", "invalid_request"),
    "402 without a word": (402, b"", "spend_limit", "quota"),
    "408 from a proxy": (408, b"Request Timeout", "transient", "timeout"),
    "413 page": (413, b"<html><title>413 Request Entity Too Large</title></html>", "reject", "invalid_request"),
    "422 of a relay": (422, b'{"detail":[{"loc":["body"],"msg":"field required"}]}', "reject", "invalid_request"),
    "502 page": (502, b"<html><head><title>502 Bad Gateway</title></head></html>", "transient", "server"),
    "503 text": (503, b"upstream connect error or disconnect/reset before headers", "transient", "server"),
    "404 page of a wrong base URL": (404, b"<!doctype html><title>Not Found</title>", "fatal", "invalid_request"),
    "redirect": (302, b"", "fatal", "invalid_request"),
    "no content": (204, b"", "transient", "server"),
    "flex of a model that has none": (400, NO_FLEX, "fatal", "invalid_request"),
    "a tier that is none": (400, BAD_TIER, "fatal", "invalid_request"),
    "498 where flex has no room": (498, b"", "transient", "server"),
    "529 of a front end": (529, b"", "transient", "server"),
}

RELAYS = {
    "429 dressed as 502": (502, orjson.loads(E7), "rate_limit"),
    "403 inside 500": (500, {"error": {"code": 403, "message": "denied", "type": "new_api_error"}}, "auth"),
    "no channel": (
        503,
        {"error": {"message": "no available channel", "type": "new_api_error", "code": "model_not_found"}},
        "fatal",
    ),
    "string code": (500, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, "rate_limit"),
    "number as a string": (500, {"error": {"message": "slow down", "code": "429"}}, "rate_limit"),
    "relay's own purse": (403, {"error": {"message": "x", "code": "insufficient_user_quota"}}, "spend_limit"),
    "purse behind a 429": (
        429,
        {"error": {"message": "check your plan and billing details", "code": "insufficient_quota"}},
        "spend_limit",
    ),
    "error is a string": (500, {"error": "busy"}, "transient"),
    "flat object": (500, {"code": 401, "message": "bad token"}, "auth"),
    "error inside a 200": (200, orjson.loads(E13), "transient"),
    "gRPC number beside the name": (
        502,
        {"error": {"code": 8, "message": "m", "status": "RESOURCE_EXHAUSTED"}},
        "rate_limit",
    ),
    "Interactions code": (401, {"error": {"code": "authentication", "message": "m"}}, "auth"),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_recorded_failure_means_what_the_table_says(name: str) -> None:
    status, body, kind, error_kind = TABLE[name]
    failure = classify(status, {}, body.encode() if isinstance(body, str) else body)
    assert (failure.kind, failure.error_kind, failure.http_status) == (kind, error_kind, status)
    assert failure.message.startswith(f"HTTP {status}") and failure.sent


@pytest.mark.parametrize("name", RELAYS)
def test_a_relay_is_believed_about_what_is_inside(name: str) -> None:
    status, body, kind = RELAYS[name]
    assert classify(status, {}, orjson.dumps(body)).kind == kind


@pytest.mark.parametrize("wrap", ["array", "string", "string in a sentence", "twice"])
def test_wrapping_changes_nothing(wrap: str) -> None:
    inner = {
        "array": f"[{E3}]",
        "string": orjson.dumps({"error": {"code": 500, "message": E3}}).decode(),
        "string in a sentence": orjson.dumps({"error": {"message": f"got status: 429. {E3}"}}).decode(),
        "twice": orjson.dumps({"error": {"message": orjson.dumps([{"error": {"message": E3}}]).decode()}}).decode(),
    }[wrap]
    wrapped, plain = classify(502, {}, inner.encode()), classify(429, {}, E3.encode())
    assert wrapped.kind == plain.kind == "day_quota"
    assert (wrapped.quota, wrapped.retry_after_s) == (plain.quota, plain.retry_after_s)


def test_quotas_are_read_from_the_violations() -> None:
    assert classify(429, {}, E3.encode()).quota == (
        QuotaHit("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests", "day", 20),
    )
    assert classify(429, {}, E4.encode()).quota == (
        QuotaHit("GenerateContentPaidTierInputTokensPerModelPerMinute-PaidTier2", "tokens", "minute", 3_000_000),
    )
    assert classify(429, {}, E6.encode()).quota == (
        QuotaHit("GenerateContentRequestsPerMinutePerProjectPerRegion", "requests", "minute", 0),
    )
    zero = classify(429, {}, E5.encode()).quota
    assert [(hit.meter, hit.window, hit.limit) for hit in zero] == [
        ("tokens", "day", 0),
        ("tokens", "minute", 0),
        ("requests", "minute", 0),
        ("requests", "day", 0),
    ]


def test_an_absent_quota_value_is_taken_from_the_message() -> None:
    body = E3.replace(',"quotaValue":"20"', "")
    assert classify(429, {}, body.encode()).quota[0].limit == 20
    assert classify(429, {}, body.replace(", limit: 20", "").encode()).kind == "fatal"


@pytest.mark.parametrize("value", ["ten", "-3", "1e3", 12.5, "9" * 18])
def test_a_quota_value_that_is_no_count_is_no_zero(value: object) -> None:
    violation = {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaValue": value}
    told = classify(429, {}, orjson.dumps({"error": {"code": 429, "details": [{"violations": [violation]}]}}))
    assert (told.kind, [hit.limit for hit in told.quota]) == ("rate_limit", [None])


def test_vertex_ai_names_a_quota_by_its_metric_alone_or_is_short_of_capacity() -> None:
    """Issues of 2024 to 2026 have the one; the other says nothing of the project's own limits."""
    requests = classify(429, {}, E7C.encode())
    assert [(hit.meter, hit.window, hit.limit) for hit in requests.quota] == [("requests", "minute", None)]
    tokens = E7C.replace(
        "generate_content_requests_per_minute_per_project", "embed_content_input_tokens_per_minute_per"
    )
    assert [hit.meter for hit in classify(429, {}, tokens.encode()).quota] == ["tokens"]
    assert classify(429, {}, E7B.encode()).of_capacity and not classify(429, {}, E7B.encode()).quota
    assert not any(classify(429, {}, body.encode()).of_capacity for body in (E3, E4, E7, E7C, E8))


def test_a_message_without_details_tells_only_a_zero() -> None:
    message = "Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: {}, model: gemini-2.5-pro"
    some = classify(429, {}, body_of(429, message.format(20), "RESOURCE_EXHAUSTED"))
    assert (some.kind, [hit.limit for hit in some.quota]) == ("rate_limit", [None])
    assert classify(429, {}, body_of(429, message.format(0), "RESOURCE_EXHAUSTED")).kind == "fatal"


@pytest.mark.parametrize(
    ("headers", "body", "wait_s"),
    [
        ({}, E3, 41.065029449),
        ({}, E4, 51.386192716),
        ({"Retry-After": "90"}, E4, 90.0),
        ({"retry-after": "3"}, E4, 51.386192716),
        ({"retry-after": "Sun, 22 Nov 2026 10:02:00 GMT", "date": "Sun, 22 Nov 2026 10:00:30 GMT"}, E7, 90.0),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:00 GMT", "date": "Sun, 22 Nov 2026 10:00:30 GMT"}, E7, 0.0),
        ({"retry-after": "5\x1f"}, E7, 5.0),
        ({"retry-after": "soon"}, E7, None),
        ({}, E7, None),
        ({}, '{"error":{"code":429,"message":"Please try again in 6m0s."}}', 360.0),
        ({}, '{"error":{"code":429,"message":"Please retry in 850.5ms."}}', 0.8505),
        ({}, '{"error":{"code":429,"message":"retry after 30 seconds"}}', 30.0),
        ({}, E5, None),
    ],
)
def test_the_longest_wait_wins(headers: dict[str, str], body: str, wait_s: float | None) -> None:
    assert classify(429, headers, body.encode()).retry_after_s == pytest.approx(wait_s)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Quota exceeded. Please retry in 18h26m22s.", "rate_limit"),
        ("Channel disabled for today's key. Please retry in 18h26m22s.", "rate_limit"),
        ("Rate limit reached on requests per day (RPD): Limit 1000. Please try again in 18h26m22s.", "day_quota"),
        ("You exceeded your daily quota. Please retry in 18h26m22s.", "day_quota"),
        ("每日请求次数已达上限. Please retry in 18h26m22s.", "day_quota"),
        ("Rate limit reached on requests per day (RPD): Limit 1000. Please try again in 7m12s.", "rate_limit"),
    ],
)
def test_a_wait_of_hours_is_the_quota_of_a_day_only_where_a_day_is_named(message: str, kind: str) -> None:
    assert classify(429, {}, body_of(429, message, "RESOURCE_EXHAUSTED")).kind == kind
    named = classify(429, {}, E3.replace("41s", "66382s").encode())
    assert (named.kind, named.retry_after_s) == ("day_quota", 66_382.0)


def test_the_date_header_is_passed_on() -> None:
    assert classify(503, {"Date": "Sun, 22 Nov 2026 10:00:00 GMT"}, b"").served_at == 1_795_341_600.0
    assert classify(503, {"Date": "yesterday"}, b"").served_at is None


def test_messages_of_quotas_say_which_and_of_whom() -> None:
    assert classify(429, {}, E3.encode()).message == (
        "HTTP 429: quota of gemini-2.5-flash-lite used up: requests per day (limit 20)"
    )
    assert "gemini-2.5-pro is not offered to this project" in classify(429, {}, E5.encode()).message


def test_neither_key_nor_quoted_prompt_reach_the_message() -> None:
    key, prompt = "AQ.secret-key-0123456789", "Summarize my diary of last week"
    told = (
        f'Invalid value at \'contents[0]\' (TYPE_STRING), "{prompt} "quoted" {prompt}", key {key}, sk-0123456789abcdef'
    )
    message = classify(400, {}, body_of(400, told, "INVALID_ARGUMENT"), secret=key).message
    assert message == "HTTP 400 INVALID_ARGUMENT: Invalid value at 'contents[0]' (TYPE_STRING), \"…\", key ***, ***"
    cut_off = classify(400, {}, f'{{"contents":[{{"parts":[{{"text":"{prompt}'.encode(), secret=key).message
    assert prompt[:9] not in cut_off
    assert 'Unknown name "system_instruction"' in classify(400, {}, E19.encode()).message


@settings(deadline=None)
@given(st.text(), st.text(min_size=8, alphabet="abcdefgh-_XYZ"))
def test_clean_makes_one_short_printable_line_without_the_secret(text: str, secret: str) -> None:
    line = clean(f"{text}{secret}{text}", secret)
    assert len(line) <= MESSAGE_CHARS and line.isprintable() and secret not in line


@settings(deadline=None)
@given(st.integers(), st.dictionaries(st.sampled_from(["Date", "retry-after", "x"]), st.text()), st.binary())
def test_classify_never_raises(status: int, headers: dict[str, str], body: bytes) -> None:
    failure = classify(status, headers, body)
    assert failure.http_status == status and len(failure.message) <= MESSAGE_CHARS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["error", "code", "message", "status", "details", "violations", "quotaId", "quotaMetric", "quotaValue", "metadata", "quota_limit", "retryDelay", "reason", "type"]), inner
    ),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from([200, 400, 403, 429, 502]), json_values)
def test_classify_never_raises_for_json_of_any_shape(status: int, value: object) -> None:
    failure = classify(status, {}, orjson.dumps(value))
    assert failure.retry_after_s is None or 0 <= failure.retry_after_s < math.inf


@settings(deadline=None)
@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1))
def test_protobuf_durations_come_back(seconds: int, nanos: int) -> None:
    assert parse_duration(f"{seconds}.{nanos:09d}s") == pytest.approx(seconds + nanos / 1e9)
    assert parse_duration(f"{seconds}s") == seconds


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(0, 59), st.integers(0, 59_999_999_999))
def test_go_durations_come_back(hours: int, minutes: int, nanos: int) -> None:
    text = f"{hours}h{minutes}m{nanos // 10**9}.{nanos % 10**9:09d}s"
    assert parse_duration(text) == pytest.approx(hours * 3600 + minutes * 60 + nanos / 1e9)


@pytest.mark.parametrize("text", ["", "s", "34", "-3s", "1e3s", "34s ", "1d", "٣s", "nan"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert parse_duration(text) is None


@settings(deadline=None)
@given(st.text())
def test_http_date_never_raises(text: str) -> None:
    assert http_date(text) is None or isinstance(http_date(text), float)


def test_read_fault_sees_no_error_in_an_answer() -> None:
    assert read_fault(b'{"candidates":[{"content":{"parts":[{"text":"{}"}]}}],"usageMetadata":{}}') is None
    assert read_fault(b"[]") is None


@pytest.mark.parametrize(
    ("lost", "error_kind"),
    [
        (Lost("not_connected", sent=False, message="refused"), "network"),
        (Lost("timeout", sent=True, message="no complete answer in time"), "timeout"),
        (Lost("broken", sent=True, message="Server\ndisconnected"), "network"),
    ],
)
def test_a_lost_request_is_worth_another_try(lost: Lost, error_kind: str) -> None:
    failure = unanswered(lost)
    assert (failure.kind, failure.error_kind, failure.http_status) == ("transient", error_kind, None)
    assert failure.sent == lost.sent and failure.message.isprintable()


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ("HTTP 400: no: Write about the sea and the wind, please", 'HTTP 400: no: "…", please'),
        ("HTTP 400: no: about the sea and the wind", 'HTTP 400: no: "…"'),
        ("HTTP 400: no: Write about th…", 'HTTP 400: no: "…"…'),  # cut off where it was too long
        ("HTTP 400: be brief, said you", 'HTTP 400: "…", said you'),  # a short text, and all of it
        ("HTTP 400: about the sea", "HTTP 400: about the sea"),  # a few words are anybody's
        ("HTTP 503: The model is overloaded.", "HTTP 503: The model is overloaded."),
    ],
)
def test_what_a_message_repeats_of_the_prompt_is_left_out(message: str, left: str) -> None:
    assert without_prompt(message, "Write about the sea\nand the  wind", "be brief", "x") == left
