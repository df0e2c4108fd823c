# ruff: noqa: E501  (bodies and counts stand on one line each)
"""Answers in every form that services, relays and broken lines give them: what is there is kept, nothing raises."""

import gzip
import json
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_providers_gemini import ASKED, OK, answer, generate, prompt

from pipeline.prices import cost, fixed_rates
from pipeline.providers.answers import Answer, Unread, parse_reply, read_answer
from pipeline.providers.encoding import TooLarge, Undecodable, decoded
from pipeline.providers.foreign import MOST_FIELDS
from pipeline.providers.gemini import GeminiConnection
from pipeline.providers.transport import Wire
from pipeline.providers.usage import read_usage
from pipeline.records import Failure, Reply, Usage
from pipeline.tokens import estimate

NOON = datetime(2026, 11, 22, 10, tzinfo=UTC)
WHOLE: dict[str, Any] = orjson.loads(answer(usageMetadata={"promptTokenCount": 5, "candidatesTokenCount": 2}))


def with_text(text: str) -> bytes:
    """A body whose text is written as given, between its quotes."""
    return answer(text="@@").replace(b"@@", text.encode())


def kept(raw: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """The reply that one request gives, which reads the same from its stored bytes."""
    reply = generate(httpx.Response(status, stream=httpx.ByteStream(raw), headers=headers))
    assert isinstance(reply, Reply), reply
    again = parse_reply(reply.raw)
    same = ("text", "status", "finish_reason", "error_kind", "error", "response_id", "raw")
    assert [getattr(reply, name) for name in same] == [getattr(again, name) for name in same]
    return reply


def refused(raw: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Failure:
    failure = generate(httpx.Response(status, stream=httpx.ByteStream(raw), headers=headers))
    assert isinstance(failure, Failure), failure
    return failure


# --- bytes ---


@pytest.mark.case("R2", "D13")
@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (with_text(r"a\ud83d"), "a�"),
        (with_text(r"\ude00b"), "�b"),
        (with_text(r"\ud83d\ud83d\ude00"), "�😀"),
        (with_text(r"\\ud83d"), "\\ud83d"),  # a backslash, and no escape
        (answer(text="@@").replace(b"@@", b"caf\xe9"), "caf�"),
        (b"\xef\xbb\xbf" + answer(), "text"),
        (answer(text="größe 😀").decode().encode("utf-16"), "größe 😀"),
        (answer(text="größe").decode().encode("utf-16-be"), "größe"),
        (answer(text="größe").decode().encode("utf-32"), "größe"),
        (answer() + b"\0\0\0", "text"),
        (answer() + b"\n<!-- proxied -->", "text"),
        (b")]}'\n" + answer(), "text"),
        (b"\n\n  " + answer() + b"\r\n", "text"),
        (b"callback(" + answer() + b");", "text"),
        (with_text("a\tb\nc"), "a\tb\nc"),  # control characters as they are
        (with_text(r"it\'s \x41"), r"it\'s \x41"),  # escapes that JSON has not
        (answer(avgLogprobs="@@").replace(b'"@@"', b"NaN"), "text"),
        (answer(score="@@").replace(b'"@@"', b"-Infinity"), "text"),
        (answer(debug="@@").replace(b'"@@"', b"[" * 100_000 + b"]" * 100_000), "text"),
        (answer(debug="@@").replace(b'"@@"', b'{"a":' * 5_000 + b"1" + b"}" * 5_000), "text"),
        (answer(debug="@@").replace(b'"@@"', b"9" * 5_000), "text"),
        (b'{"candidates":[],' + answer()[1:], "text"),  # one name twice: the last counts
        (orjson.dumps(answer().decode()), "text"),  # a JSON text in a JSON string
    ],
)
def test_odd_bytes_are_read_and_what_is_no_text_becomes_one_sign(raw: bytes, text: str) -> None:
    reply = kept(raw)
    assert (reply.status, reply.text) == ("ok", text) and reply.usage.input_tokens == 5


@pytest.mark.case("R2")
@pytest.mark.parametrize("charset", ["gbk", "gb18030", '"big5"', "Shift_JIS"])
def test_a_body_in_the_encoding_that_its_header_names_is_read_and_stored_in_utf8(charset: str) -> None:
    raw = answer(text="東京 text").decode().encode(charset.strip('"'))
    reply = kept(raw, headers={"content-type": f"application/json; charset={charset}"})
    assert reply.text == "東京 text" and "東京".encode() in reply.raw


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "zip"])
def test_no_name_of_an_encoding_is_more_than_a_reply_can_bear(charset: str) -> None:
    raw = answer(text="a\\ud83db").replace(b"STOP", b"STOP\xff").replace(b"\\\\u", b"\\u")
    assert isinstance(kept(raw, headers={"content-type": f"application/json; charset={charset}"}), Reply)


@pytest.mark.parametrize("charset", ["latin-7000", "utf-8", "iso-8859-1"])
def test_a_header_that_names_a_false_encoding_changes_nothing(charset: str) -> None:
    reply = kept(answer(text="größe"), headers={"content-type": f"application/json;charset={charset}"})
    assert reply.text == "größe"


@pytest.mark.case("R7", "R6")
@pytest.mark.parametrize(
    ("label", "packed"),
    [
        ("gzip", gzip.compress(answer()[:40]) + gzip.compress(answer()[40:])),
        ("x-gzip", gzip.compress(answer())),
        ("X-GZip , identity", gzip.compress(answer())),
        ("gzip, gzip", gzip.compress(gzip.compress(answer()))),
        ("", gzip.compress(answer())),
        ("br", gzip.compress(answer())),
        ("deflate", zlib.compress(answer())),
        ("deflate", zlib.compress(answer())[2:-4]),
        ("deflate", answer()),
        ("gzip", answer()),
        ("br", answer()),
        ("gzip", gzip.compress(answer()) + b"\0" * 512),
        ("gzip", gzip.compress(answer()) + b"garbage"),
        ("gzip", gzip.compress(answer())[:-4]),  # its checksum is cut off, and nothing of the answer
        ("utf-8", answer()),
    ],
)
def test_what_is_packed_is_unpacked_by_what_it_is_whatever_it_is_called(label: str, packed: bytes) -> None:
    reply = kept(packed, headers={"content-encoding": label} if label else {})
    assert reply.status == "ok" and reply.raw == answer()


@pytest.mark.case("R6")
@pytest.mark.parametrize(
    ("label", "body", "words"),
    [
        ("gzip", b"\x00\x01\x02", "labelled gzip"),
        ("br", b"\x8b\x02\x80abc", "labelled br"),
        ("zstd", b"\x28\xb5\x2f\xfdabc", "labelled zstd"),
        ("gzip", gzip.compress(answer())[:30] + b"\xff" * 40, "damaged"),
    ],
)
def test_a_false_encoding_is_asked_for_once_more_and_named(label: str, body: bytes, words: str) -> None:
    failure = refused(body, headers={"content-encoding": label})
    assert (failure.kind, failure.error_kind) == ("transient", "malformed_reply") and words in failure.message
    assert failure.billed and failure.most_requests == 2


@pytest.mark.case("D7")
def test_a_bomb_is_unpacked_no_further_than_the_ceiling() -> None:
    bomb = gzip.compress(b" " * 2**26)
    with pytest.raises(TooLarge):
        decoded(bomb, "gzip", 2**20)
    with pytest.raises(TooLarge):
        decoded(gzip.compress(bomb), "gzip, gzip", 2**20)
    with pytest.raises(TooLarge):
        decoded(gzip.compress(b" " * 2**19) * 3, "gzip", 2**20)
    assert len(decoded(gzip.compress(b" " * 2**20), "gzip", 2**20)) == 2**20
    failure = refused(bomb, headers={"content-encoding": "gzip"})
    assert "larger than 16 MiB" in failure.message and failure.billed and failure.most_requests == 2


@settings(deadline=None)
@given(st.binary(), st.sampled_from(["gzip", "deflate", "br", "", "gzip, deflate"]))
def test_decoding_never_raises_but_what_it_says(body: bytes, label: str) -> None:
    with suppress(TooLarge, Undecodable):
        assert len(decoded(body, label, 10_000)) <= max(10_000, len(body))


# --- responses ---


@pytest.mark.case("R5")
@pytest.mark.parametrize("status", [200, 201, 202, 203, 206, 207, 226, 299])
def test_any_2xx_with_a_whole_answer_is_kept(status: int) -> None:
    assert kept(OK, status).text == "OK"


@pytest.mark.case("R5")
@pytest.mark.parametrize(
    "error",
    [None, {}, "", 0, False, [], {"code": 0}, {"code": "0"}, {"code": 0, "message": "success"}, {"code": 200}, "ok"],
)
def test_an_error_that_is_none_beside_an_answer_is_none(error: object) -> None:
    assert kept(answer(error=error)).status == "ok"


@pytest.mark.case("R5")
def test_a_whole_answer_beside_an_error_or_under_a_false_status_is_kept() -> None:
    assert kept(answer(error={"code": 503, "message": "late"})).status == "ok"
    assert kept(OK, 500).text == "OK"
    assert kept(answer("MAX_TOKENS"), 500).status == "truncated"
    assert refused(answer("SAFETY", None), 500).kind == "transient"


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize(
    ("raw", "most"),
    [
        (b"", 3),
        (b" \r\n", 3),
        (OK[:100], 3),
        (b"OK", 3),
        (b"<html><title>Log in to the network</title></html>", 3),
        (b"null", 3),
        (b"[]", 3),
        (b'data: {"candidates":[{"content":{"parts":[{"text":"On"}]}}]}\n\n', 3),
        (b'data: {"candidates":[{"content":{"parts":[{"text":"On"}]}}]}\n\ndata: {"candida', 3),
        (b'{"type":"message","content":[{"type":"text","text":"hi"}]}', 2),
        (b"{}", 2),
    ],
)
def test_a_body_without_an_answer_may_be_billed_and_is_asked_for_again_as_often_as_it_may_pass(
    status: int, raw: bytes, most: int
) -> None:
    failure = refused(raw, status)
    assert (failure.kind, failure.error_kind, failure.http_status) == ("transient", "malformed_reply", status)
    assert (failure.billed, failure.most_requests, failure.raw) == (True, most, raw)
    assert parse_reply(raw).error_kind == ("truncated" if b"On" in raw else "malformed_reply")


def test_of_a_body_without_an_answer_the_start_is_kept() -> None:
    assert len(refused(b"x" * 10**6).raw) == 65_536


def test_another_interface_is_named_with_the_setting() -> None:
    message = refused(b'{"id":"m","type":"message","content":[],"stop_reason":"end_turn"}').message
    assert "stop_reason" in message and "[endpoint] base_url" in message


# --- finish reasons ---


@pytest.mark.case("R8")
@pytest.mark.parametrize(
    ("finish", "folded", "status"),
    [
        ("stop", "STOP", "ok"),
        ("Stop", "STOP", "ok"),
        (1, "STOP", "ok"),
        ("1", "STOP", "ok"),
        (1.0, "STOP", "ok"),
        ("FinishReason.STOP", "STOP", "ok"),
        ("FINISH_REASON_STOP", "STOP", "ok"),
        ("finishReasonStop", "STOP", "ok"),
        ("end_turn", "STOP", "ok"),
        ("stop_sequence", "STOP", "ok"),
        (0, "FINISH_REASON_UNSPECIFIED", "ok"),
        ("", None, "ok"),
        ("length", "MAX_TOKENS", "truncated"),
        ("max_tokens", "MAX_TOKENS", "truncated"),
        ("maxTokens", "MAX_TOKENS", "truncated"),
        ("max-output-tokens", "MAX_TOKENS", "truncated"),
        (2, "MAX_TOKENS", "truncated"),
        ("content_filter", "SAFETY", "blocked"),
        ("content-filter", "SAFETY", "blocked"),
        (3, "SAFETY", "blocked"),
        ("FinishReason.SAFETY", "SAFETY", "blocked"),
        ("recitation", "RECITATION", "blocked"),
        (4, "RECITATION", "blocked"),
        (5, "OTHER", "error"),
        ("tool_calls", "TOOL_CALLS", "error"),
        (99, "99", "error"),
        (True, "OTHER", "error"),
        ({"name": "STOP"}, "OTHER", "error"),
    ],
)
def test_finish_reasons_are_folded_to_the_enum(finish: object, folded: str | None, status: str) -> None:
    body = {"candidates": [{"content": {"parts": [{"text": "text"}]}, "finishReason": finish}], "usageMetadata": {}}
    reply = kept(orjson.dumps(body))
    assert (reply.finish_reason, reply.status, reply.text) == (folded, status, "text")


@pytest.mark.case("R8")
@pytest.mark.parametrize(
    ("reason", "folded"), [("safety", "SAFETY"), (4, "PROHIBITED_CONTENT"), ("BlockReason.OTHER", "OTHER")]
)
def test_block_reasons_are_folded_too(reason: object, folded: str) -> None:
    reply = kept(orjson.dumps({"prompt_feedback": {"block_reason": reason}}))
    assert (reply.status, reply.error_kind, reply.finish_reason) == ("blocked", "prompt_blocked", folded)


# --- streams, arrays, other services' forms ---


def piece(text: str, **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **more}]}


PIECES = [
    piece("One ") | {"usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 2, "totalTokenCount": 22}},
    piece("two\u2028", thought=False) | {"usageMetadata": {"promptTokenCount": 20, "totalTokenCount": 23}},
    piece("three", finishReason="STOP")
    | {"usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 4, "totalTokenCount": 24}}
    | {"modelVersion": "gemini-3.8-flash", "responseId": "id"},
]
DUMPED = [json.dumps(one, ensure_ascii=False) for one in PIECES]


@pytest.mark.case("R9")
@pytest.mark.parametrize(
    "raw",
    [
        "".join(f"data: {one}\n\n" for one in DUMPED),
        "".join(f"data: {one}\r\n\r\n" for one in DUMPED),
        "".join(f"data:{one}\r\r" for one in DUMPED),
        "\n".join(f"data: {one}" for one in DUMPED),  # no blank lines
        "\ufeff: ping\n\n" + "".join(f"event: message\nid: 7\nretry: 10\ndata: {one}\n\n" for one in DUMPED),
        "".join(f"data: {one}\n\n" for one in DUMPED) + "data: [DONE]\n\n",
        "".join(f"data: {one}\n\n" for one in DUMPED)[:-2],
        "".join("".join(f"data: {line}\n" for line in json.dumps(one, indent=1).split("\n")) + "\n" for one in PIECES),
        "[" + ",\r\n".join(DUMPED) + "]",
        "[" + ",\n".join(DUMPED),  # the bracket at its end is cut off, and nothing of the answer
        "\n".join(DUMPED),
        "".join(DUMPED),
    ],
)
def test_the_pieces_of_a_stream_are_one_answer(raw: str) -> None:
    reply = kept(raw.encode())
    assert (reply.text, reply.status, reply.finish_reason) == ("One two\u2028three", "ok", "STOP")
    assert reply.usage == Usage(20, 0, 4) and (reply.model, reply.response_id) == ("gemini-3.8-flash", "id")


@pytest.mark.case("R9")
@pytest.mark.parametrize("cut", range(0, 260, 13))
def test_half_a_stream_is_no_answer(cut: int) -> None:
    raw = "".join(f"data: {one}\n\n" for one in DUMPED).encode()
    end = raw.index(b'"finishReason"')
    failure = refused(raw[: min(cut * 2, end)])
    assert failure.error_kind == "malformed_reply" and failure.billed


@pytest.mark.case("R9")
def test_an_error_in_the_middle_of_a_stream_is_no_answer() -> None:
    raw = f'data: {DUMPED[0]}\n\n{{"error":{{"code":503,"message":"overloaded","status":"UNAVAILABLE"}}}}\n'
    failure = refused(raw.encode())
    assert (failure.kind, failure.billed, failure.most_requests) == ("transient", True, 3)
    alone = refused(b'[{"error":{"code":503,"message":"overloaded"}}]')
    assert (alone.kind, alone.error_kind, alone.billed) == ("transient", "server", False)


def test_a_hole_in_a_stream_is_no_answer() -> None:
    assert refused(f"data: {DUMPED[0]}\n\ndata: {{torn\n\ndata: {DUMPED[2]}\n\n".encode()).billed


@pytest.mark.case("R9")
@pytest.mark.case("R3")
@pytest.mark.parametrize(
    "raw",
    [
        b"data: " + orjson.dumps({**WHOLE, "candidates": [{"content": {"parts": [{"text": "te"}]}}]}) + b"\n\n",
        orjson.dumps({"error": {"code": 500, "message": "late"}, "usageMetadata": WHOLE["usageMetadata"]}),
        b"data: " + orjson.dumps({**WHOLE, "candidates": [{"content": {"parts": [{"text": "te"}]}}]})
        + b'\n\n{"error": {"code": 503, "message": "overloaded"}}\n\n',
    ],
    ids=["a stream cut short", "an error", "a stream that ends with an error"],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 500, 429])
def test_what_cannot_be_used_tells_its_counts_all_the_same(raw: bytes, status: int) -> None:
    failure = refused(raw, status)
    assert failure.billed and failure.usage == Usage(5, 0, 2)


@pytest.mark.case("R3")
@pytest.mark.parametrize("status", [200, 429])
def test_an_error_whose_counts_are_all_0_is_not_billed(status: int) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    failure = refused(orjson.dumps({"error": {"code": 429, "message": "slow down"}, "usage": usage}), status)
    assert (failure.billed, failure.usage, failure.error_kind) == (False, None, "quota")


def test_openais_form_is_read_whole_and_in_pieces() -> None:
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "total_tokens": 35,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gemini-3.8-flash",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": usage,
    }
    reply = kept(orjson.dumps(whole))
    assert (reply.text, reply.status, reply.finish_reason) == ("hello", "ok", "STOP")
    assert (reply.model, reply.response_id) == ("gemini-3.8-flash", "chatcmpl-1")
    assert reply.usage == Usage(20, 8, 10, 5) and not reply.usage.estimated
    deltas = [
        {"model": "m", "choices": [{"delta": {"role": "assistant", "content": "hel"}, "finish_reason": None}]},
        {"model": "m", "choices": [{"delta": {"content": "lo"}, "finish_reason": "length"}]},
        {"model": "m", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}},
    ]
    stream = b"".join(b"data: " + orjson.dumps(delta) + b"\n\n" for delta in deltas) + b"data: [DONE]\n\n"
    reply = kept(stream)
    assert (reply.text, reply.status, reply.usage) == ("hello", "truncated", Usage(20, 0, 2))
    refusal = {"choices": [{"message": {"content": None, "refusal": "I cannot"}, "finish_reason": None}]}
    assert kept(orjson.dumps(refusal)).status == "blocked"
    listed = {
        "choices": [{"message": {"content": [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "hi"}]}}]
    }
    assert kept(orjson.dumps(listed)).text == "hi"


@pytest.mark.parametrize("wrap", ["response", "data", "result"])
def test_a_wrapper_is_taken_off(wrap: str) -> None:
    assert kept(orjson.dumps({"code": 0, wrap: WHOLE})).text == "text"
    bare = {"candidates": WHOLE["candidates"]}
    apart = kept(orjson.dumps({"code": 0, wrap: bare, "usageMetadata": WHOLE["usageMetadata"], "modelVersion": "m"}))
    assert (apart.text, apart.usage, apart.model) == ("text", Usage(5, 0, 2), "m")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"candidates": WHOLE["candidates"][0]}, "text"),
        ({"candidates": [None, 5, WHOLE["candidates"][0]]}, "text"),
        ({"candidates": [{"content": {}}, WHOLE["candidates"][0]]}, "text"),
        ({"candidates": [{"content": "text"}]}, "text"),
        ({"candidates": [{"content": [{"text": "te"}, {"text": "xt"}]}]}, "text"),
        ({"candidates": [{"content": {"parts": "text"}}]}, "text"),
        ({"candidates": [{"content": {"parts": {"text": "text"}}}]}, "text"),
        ({"candidates": [{"content": {"parts": ["te", "xt", None]}}]}, "text"),
        ({"candidates": [{"content": {"text": "text"}}]}, "text"),
        ({"candidates": [{"content": {"parts": [{"text": 5}]}}]}, "5"),
        ({"candidates": [{"content": {"parts": [{"text": {"a": [1]}}]}}]}, '{"a":[1]}'),
        ({"candidates": [{"content": {"parts": [{"text": "hm", "thought": "true"}, {"text": "a", "thought": "false"}]}}]}, "a"),
        ({"candidates": [{"content": None}]}, ""),
        ({"candidates": [{"content": {"parts": [{"text": None}]}}]}, ""),
        ({"candidates": [{"content": {"parts": 0.5}}]}, "0.5"),
    ],
)  # fmt: skip
def test_parts_in_other_shapes_are_read(change: dict[str, Any], text: str) -> None:
    reply = kept(orjson.dumps(WHOLE | change))
    assert (reply.text, reply.error_kind) == (text, None if text else "empty_answer")
    assert reply.usage.input_tokens == 5


def test_snake_case_is_one_with_camel_case() -> None:
    body = {
        "candidates": [{"content": {"parts": [{"text": "hi"}]}, "finish_reason": "STOP"}],
        "usage_metadata": {"prompt_token_count": 7, "candidates_token_count": 2, "thoughts_token_count": 3},
        "model_version": "models/gemini-3.8-flash",
        "response_id": "id",
    }
    reply = kept(orjson.dumps(body))
    assert reply.usage == Usage(7, 0, 2, 3) and (reply.model, reply.response_id) == ("gemini-3.8-flash", "id")


# --- counts ---


@pytest.mark.case("R1")
@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        # more cached than there is: the discount is not believed, unless the total says that it stands apart
        ({"promptTokenCount": 20, "cachedContentTokenCount": 5000, "candidatesTokenCount": 3}, Usage(20, 0, 3, estimated=True)),
        (
            {"promptTokenCount": 20, "cachedContentTokenCount": 5000, "candidatesTokenCount": 3, "totalTokenCount": 5023},
            Usage(5020, 5000, 3, estimated=True),
        ),
        ({"promptTokenCount": 20, "cachedContentTokenCount": -7, "candidatesTokenCount": 3}, Usage(20, 0, 3, estimated=True)),
        ({"promptTokenCount": 20, "cachedContentTokenCount": 20, "candidatesTokenCount": 3}, Usage(20, 20, 3)),
        ({"promptTokenCount": -20, "candidatesTokenCount": 3}, Usage(11, 0, 3, estimated=True)),
        ({"promptTokenCount": 20, "candidatesTokenCount": 3, "thoughtsTokenCount": -3}, Usage(20, 0, 3, estimated=True)),
        ({"promptTokenCount": "20", "candidatesTokenCount": 3.0}, Usage(20, 0, 3)),
        ({"promptTokenCount": "20.0", "candidatesTokenCount": "2.5"}, Usage(20, 0, 3)),
        ({"promptTokenCount": True, "candidatesTokenCount": 3}, Usage(11, 0, 3, estimated=True)),
        ({"promptTokenCount": [20], "candidatesTokenCount": 3}, Usage(11, 0, 3, estimated=True)),
        ([{"promptTokenCount": 20, "candidatesTokenCount": 3}], Usage(20, 0, 3)),
        ("20 tokens", Usage(11, 0, estimate("text"), estimated=True)),
        ({"promptTokenCount": 20}, Usage(20, 0, estimate("text"), estimated=True)),
        ({"promptTokenCount": 20, "totalTokenCount": 20}, Usage(20, 0, estimate("text"), estimated=True)),
    ],
)  # fmt: skip
def test_counts_are_made_sane(counts: object, usage: Usage) -> None:
    assert kept(answer(usageMetadata=counts)).usage == usage


@pytest.mark.case("R4")
@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"candidatesTokenCount": 10, "thoughtsTokenCount": 5000, "totalTokenCount": 5030}, Usage(20, 0, 10, 5000, estimated=True)),
        ({"candidatesTokenCount": 10, "thoughtsTokenCount": 5000}, Usage(11, 0, 10, 5000, estimated=True)),
        ({"thoughtsTokenCount": 5000}, Usage(11, 0, 0, 5000, estimated=True)),
        ({"candidatesTokenCount": 10, "totalTokenCount": 5021}, Usage(11, 0, 10, 5000, estimated=True)),
        ({"totalTokenCount": 21}, Usage(20, 0, 1, estimated=True)),
        ({"completion_tokens": 0, "prompt_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 60}, "total_tokens": 70}, Usage(10, 0, 0, 60)),
        ({"completion_tokens": 70, "prompt_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 60}, "total_tokens": 80}, Usage(10, 0, 10, 60)),
        ({"input_tokens": 10, "output_tokens": 4}, Usage(10, 0, 4)),
        # parts by modality without their sum
        ({"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 20}, {"modality": "IMAGE", "tokenCount": 258}], "candidatesTokenCount": 10}, Usage(278, 0, 10, estimated=True)),
        ({"promptTokenCount": 20, "candidatesTokensDetails": [{"tokenCount": "4000"}, {"tokenCount": -9}, None, 7]}, Usage(20, 0, 4000, estimated=True)),
        ({"promptTokenCount": 20, "toolUsePromptTokensDetails": [{"tokenCount": 7000}], "candidatesTokenCount": 10}, Usage(20, 0, 10, 0, 7000, estimated=True)),
        ({"promptTokenCount": 20, "candidatesTokenCount": 10, "promptTokensDetails": [{"tokenCount": 5000}]}, Usage(20, 0, 10)),
    ],
)  # fmt: skip
def test_what_is_missing_is_inferred_and_marked(counts: dict[str, Any], usage: Usage) -> None:
    assert kept(answer(usageMetadata=counts)).usage == usage


@pytest.mark.case("R4")
def test_thinking_without_a_prompt_count_is_paid_for() -> None:
    counts = {"candidatesTokenCount": 10, "thoughtsTokenCount": 5000, "totalTokenCount": 5030}
    usage = kept(answer(usageMetadata=counts, modelVersion="gemini-3.5-flash-lite")).usage
    assert (cost(usage, "gemini-3.5-flash-lite", NOON) or 0) >= 0.0125


@pytest.mark.case("R11")
@pytest.mark.parametrize("absurd", [99_999_999_999_999, 10**18, 1e300, "9" * 200, 2**31, -(2**63)])
@pytest.mark.parametrize(
    "name",
    ["promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount", "toolUsePromptTokenCount", "totalTokenCount"],
)  # fmt: skip
def test_no_count_is_beyond_what_the_model_can_do(name: str, absurd: object) -> None:
    counts = {"promptTokenCount": 12, "candidatesTokenCount": 1, "totalTokenCount": 13} | {name: absurd}
    usage = kept(answer(usageMetadata=counts)).usage
    assert usage.estimated and usage.input_tokens in (11, 12) and usage.output_tokens == 1
    assert usage.thinking_tokens <= 65_536 and usage.cached_tokens == usage.tool_tokens == 0


def is_sane(usage: Usage, text: str) -> bool:
    counts = (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.thinking_tokens, usage.tool_tokens)
    return min(counts) >= 0 and max(counts) < 10**7 and usage.cached_tokens <= usage.input_tokens and (
        not text or usage.output_tokens + usage.thinking_tokens > 0
    )  # fmt: skip


# --- any mutation of a real body ---

BODIES = [
    OK,
    orjson.dumps({**WHOLE, "usageMetadata": {"promptTokenCount": 20, "cachedContentTokenCount": 8, "candidatesTokenCount": 2, "thoughtsTokenCount": 4, "toolUsePromptTokenCount": 1, "totalTokenCount": 27}}),
    "".join(f"data: {one}\n\n" for one in DUMPED).encode(),
    ("[" + ",".join(DUMPED) + "]").encode(),
    orjson.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}),
    b'{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":12,"totalTokenCount":12}}',
    b'{"error":{"code":429,"message":"Quota exceeded","status":"RESOURCE_EXHAUSTED","details":[{"retryDelay":"3s"}]}}',
]  # fmt: skip

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["STOP", "stop", 2, "NaN", "1e999", 99_999_999_999_999, -1, "-5", "\ud83d"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "parts", "error", "code", "message"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as its holder and its key."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        found += [(value, key), *nodes(inner)]
    return found


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    raw = draw(st.sampled_from(BODIES))
    if raw[:1] in (b"{", b"[") and draw(st.booleans()):
        value = orjson.loads(raw)
        for _ in range(draw(st.integers(1, 3))):
            places = nodes(value)
            if not places:
                break
            holder, key = draw(st.sampled_from(places))
            action = draw(st.sampled_from(["swap", "rename", "drop", "nest"]))
            if action == "rename" and isinstance(holder, dict):
                holder[draw(st.sampled_from([key.lower(), key.upper(), f"{key}s", "text", "error"]))] = holder.pop(key)
            elif action == "drop":
                del holder[key]
            elif action == "nest":
                holder[key] = draw(st.sampled_from([[holder[key]], {"value": holder[key]}, {str(key): holder[key]}]))
            else:
                holder[key] = draw(anything)
        return json.dumps(value).encode("utf-8", "surrogatepass")
    changed = bytearray(raw)
    for _ in range(draw(st.integers(0, 4))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    start, end = draw(st.integers(0, 3)), draw(st.integers(0, len(changed)))
    return bytes(changed[start : end if draw(st.booleans()) else None])


@pytest.mark.case("R1", "R2", "R11", "D13")
@settings(deadline=None, max_examples=400)
@given(mutated(), st.sampled_from([200, 200, 201, 429, 500]))
def test_any_mutation_of_a_body_gives_one_reply_or_failure_that_can_be_counted(raw: bytes, status: int) -> None:
    async def ask() -> Reply | Failure:
        async with Wire(httpx.MockTransport(lambda request: httpx.Response(status, content=raw))) as wire:
            return await GeminiConnection(wire, api_key="AQ.key-of-the-test-0123").generate(prompt(), ASKED)

    outcome = anyio.run(ask)
    if isinstance(outcome, Failure):
        assert outcome.message.isprintable() and len(outcome.raw) <= 65_536
        assert parse_reply(raw).raw == raw
        return
    assert is_sane(outcome.usage, outcome.text) and is_sane(parse_reply(raw).usage, "")
    outcome.text.encode()
    for own in (None, fixed_rates(1.0, 2.0, 0.1), fixed_rates(0, 0)):
        usd = cost(outcome.usage, outcome.model, NOON, own=own)
        assert usd is None or 0 <= usd < 1000
    assert (outcome.text, outcome.status) == (parse_reply(outcome.raw).text, parse_reply(outcome.raw).status)


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "promptTokenCount",
                "candidatesTokenCount",
                "thoughtsTokenCount",
                "cachedContentTokenCount",
                "toolUsePromptTokenCount",
                "totalTokenCount",
                "prompt_tokens",
                "completion_tokens",
            ]
        ),
        anything,
    ),
    st.sampled_from(["", "some words"]),
)
def test_usage_of_any_counts_is_sane(counts: dict[str, Any], text: str) -> None:
    for sent, model in ((0, ""), (11, "gemini-3.8-flash"), (11, "unknown")):
        usage = read_usage(counts, text, sent, model)
        assert is_sane(usage, text)
        named = counts.get("thoughtsTokenCount")
        if isinstance(named, int) and not isinstance(named, bool) and 0 <= named <= 65_536:
            assert usage.thinking_tokens >= named, "what was named is billed"


@pytest.mark.case("R3")
@pytest.mark.parametrize(
    ("usage", "text", "is_told"),
    [
        (None, "text", False),
        ([], "", False),
        ("20 tokens", "text", False),
        ({"promptTokenCount": 20}, "text", False),
        ({"promptTokenCount": 20, "candidatesTokenCount": 3, "thoughtsTokenCount": "much"}, "text", False),
        ({"promptTokenCount": 20, "candidatesTokenCount": 3}, "text", True),
        ({"candidatesTokenCount": 3}, "text", False),
        ({"promptTokenCount": 20, "totalTokenCount": 90}, "text", True),
        ({"promptTokenCount": 20, "totalTokenCount": 20}, "", True),
    ],
)
def test_usage_knows_whether_the_answers_length_was_told(usage: object, text: str, is_told: bool) -> None:
    assert read_usage(usage, text, 20).output_told is is_told


@pytest.mark.case("D7")
def test_of_a_million_fields_the_first_are_looked_at() -> None:
    junk = {f"junk_{number}": 1 for number in range(MOST_FIELDS)}
    late = orjson.dumps(junk | {"usage_metadata": {"prompt_token_count": 7}})
    early = orjson.dumps({"usage_metadata": {"prompt_token_count": 7}} | junk)
    assert isinstance(read_answer(late), Unread)
    answer = read_answer(early)
    assert isinstance(answer, Answer) and answer.usage == {"prompt_token_count": 7}


@pytest.mark.parametrize(
    "more",
    [
        b'"usageMetadata": {"odd": @}',
        b'"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"x": @}}}]}}]',
        b'"candidates": [{"groundingMetadata": {"odd": @}}]',
    ],
)
@pytest.mark.parametrize("odd", [b"[" * 300 + b"]" * 300, b"[" * 2_000 + b"]" * 2_000, b"1" * 30, b"-" + b"9" * 19])
def test_an_answer_in_pieces_is_kept_whatever_stands_beside_it(more: bytes, odd: bytes) -> None:
    body = b"data: " + answer(text="a") + b"\n\ndata: {" + more.replace(b"@", odd) + b"}\n\n"
    assert kept(body).text == "a"
    found = read_answer(body)
    again = read_answer(found.as_body()) if isinstance(found, Answer) else found
    assert isinstance(again, Answer) and again.text == "a"


@pytest.mark.parametrize(
    "last", [{}, {"candidatesTokenCount": 1}, {"candidatesTokenCount": 0, "promptTokenCount": None}]
)
def test_the_counts_of_a_stream_do_not_shrink(last: dict[str, Any]) -> None:
    counts = {"promptTokenCount": 9, "candidatesTokenCount": 70, "thoughtsTokenCount": 500}
    pieces = [answer(text="a", usageMetadata=counts), answer(text="b", usageMetadata={**counts, **last})]
    reply = kept(b"".join(b"data: " + piece + b"\n\n" for piece in pieces))
    assert (reply.text, reply.usage) == ("ab", Usage(9, 0, 70, 500))
