"""What each fault of a reply sends, and what the server says that it billed for it."""

import asyncio
import gzip
import socket
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import orjson
import pytest
from commands import Ran
from serving import served, stats
from vclock import run as run_virtual

from pipeline.emulator import Emulator, EmulatorOptions, parse_faults
from pipeline.emulator.faults import GROUPS, KINDS
from pipeline.emulator.limits import next_midnight

MODEL = "gemini-3.5-flash-lite"
KEY = "AQ.key-of-the-test"
NOON = datetime(2026, 11, 22, 20, 0, tzinfo=ZoneInfo("UTC")).timestamp()
PROMPT = "Summarize:\n\nThe river town of Alder flooded on Monday. Nobody was hurt. The wall will be rebuilt."
BODY = orjson.dumps({"contents": [{"parts": [{"text": PROMPT}]}], "generationConfig": {"maxOutputTokens": 200}})
PLAIN = "no fault"


class Played(dict[str, Any]):
    """One request to an emulator with one fault: `status`, `headers`, `raw` (as sent) and what it billed."""

    @property
    def body(self) -> Any:
        return orjson.loads(self["raw"])

    @property
    def text(self) -> str:
        return str(self.body["candidates"][0]["content"]["parts"][-1]["text"])

    @property
    def usage(self) -> dict[str, Any]:
        told: dict[str, Any] = self.body["usageMetadata"]
        return told


def play(fault: str, **flags: Any) -> Played:
    """Ask once, in process, and read the bytes as they stand on the wire."""
    options = EmulatorOptions(faults=parse_faults("" if fault == PLAIN else fault), **flags)
    emulator = Emulator(options, clock=lambda: NOON)
    sent: list[Any] = []

    received = iter(({"type": "http.request", "body": BODY},))

    async def receive() -> dict[str, Any]:
        return next(received, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/v1beta/models/{MODEL}:generateContent",
        "query_string": b"",
        "headers": [(b"x-goog-api-key", KEY.encode()), (b"user-agent", b"test")],
    }
    with suppress(ConnectionResetError):
        asyncio.run(emulator(scope, receive, send))
    if not sent:
        return Played(stats=emulator.stats.body())
    raw = b"".join(message.get("body", b"") for message in sent)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Played(status=sent[0]["status"], headers=headers, raw=raw, stats=emulator.stats.body())


WHOLE = play(PLAIN)


def billed(played: Played) -> dict[str, Any]:
    entry: dict[str, Any]
    (entry,) = played["stats"]["billed"]
    return entry


def test_an_answer_without_fault_is_billed_as_it_is_counted() -> None:
    assert billed(WHOLE) == {
        "bill": "yes",
        "model": MODEL,
        "requests": 1,
        "input_tokens": WHOLE.usage["promptTokenCount"],
        "cached_tokens": 0,
        "output_tokens": WHOLE.usage["candidatesTokenCount"],
        "thinking_tokens": 0,
    }
    assert WHOLE["stats"]["billed_unread"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_billed_is_what_the_table_of_faults_says(kind: str) -> None:
    bill = KINDS[kind].bill
    found = play(kind)["stats"]
    assert [entry["bill"] for entry in found["billed"]] == ([] if bill == "no" else [bill])
    assert found["answered"] == (bill == "yes")
    assert found["billed_unread"] == (bill in ("unread", "lost"))


# counts


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("cached_over", {"cachedContentTokenCount": 5 * WHOLE.usage["promptTokenCount"] + 5_000}),
        ("negative", {"cachedContentTokenCount": -5_000, "thoughtsTokenCount": -3}),
        ("absurd", {"promptTokenCount": 99_999_999_999_999, "totalTokenCount": 99_999_999_999_999}),
        ("text_counts", {"promptTokenCount": str(WHOLE.usage["promptTokenCount"])}),
    ],
)
def test_odd_counts_are_told_beside_the_whole_answer_and_change_no_bill(kind: str, told: dict[str, Any]) -> None:
    played = play(kind)
    assert played.text == WHOLE.text
    assert told.items() <= played.usage.items()
    assert billed(played) == billed(WHOLE)


def test_a_usage_without_a_prompt_count_has_much_thinking_that_is_billed() -> None:
    played = play("no_prompt_count")
    entry = billed(played)
    assert "promptTokenCount" not in played.usage and played.usage["thoughtsTokenCount"] == 5_000
    assert played.usage["totalTokenCount"] == entry["input_tokens"] + entry["output_tokens"] + 5_000
    assert entry["thinking_tokens"] == 5_000


def test_a_cached_part_of_the_prompt_is_told_and_billed() -> None:
    played = play("cached")
    assert billed(played)["cached_tokens"] == played.usage["cachedContentTokenCount"]
    assert played.usage["cachedContentTokenCount"] == WHOLE.usage["promptTokenCount"] // 2


def test_another_model_answers_and_bills_or_one_that_nobody_knows() -> None:
    dearer = play("dearer")
    assert dearer.body["modelVersion"] == billed(dearer)["model"] == "gemini-4-argon"
    assert play("unpriced").body["modelVersion"] == "relay-large-2"


def test_more_is_billed_than_the_request_allows() -> None:
    played = play("overlong")
    assert played.usage["candidatesTokenCount"] == billed(played)["output_tokens"] == 800


# forms


@pytest.mark.parametrize("kind", ["201", "203", "206"])
def test_a_whole_answer_comes_under_another_status(kind: str) -> None:
    played = play(kind)
    assert played["status"] == int(kind) and played.text == WHOLE.text


@pytest.mark.parametrize(("kind", "reason"), [("finish_stop", "stop"), ("finish_length", "length"), ("finish_2", 2)])
def test_the_finish_reason_is_spelled_otherwise(kind: str, reason: object) -> None:
    assert play(kind).body["candidates"][0]["finishReason"] == reason


def test_an_error_of_code_zero_stands_beside_the_answer() -> None:
    played = play("error0")
    assert played.body["error"]["code"] == 0 and played.text == WHOLE.text


@pytest.mark.parametrize(("kind", "inserted"), [("surrogate", rb'"text":"\ud83d'), ("bad_utf8", b'"text":"\xff\xc3')])
def test_the_text_holds_what_is_no_text(kind: str, inserted: bytes) -> None:
    assert inserted + WHOLE.text.encode() in play(kind)["raw"]


def test_bytes_before_and_levels_within() -> None:
    assert play("bom")["raw"].startswith(b"\xef\xbb\xbf{")
    deep = play("deep")["raw"]
    assert deep.endswith(b'"debug":' + b"[" * 300 + b"]" * 300 + b"}")


def test_a_stream_tells_the_same_text_in_pieces() -> None:
    sse = play("sse")
    events = [line.removeprefix("data: ") for line in sse["raw"].decode().split("\r\n") if line]
    pieces = [orjson.loads(event) for event in events]
    assert sse["headers"]["content-type"] == "text/event-stream"
    for told in (pieces, play("json_array").body):
        texts = [piece["candidates"][0]["content"]["parts"][0]["text"] for piece in told]
        assert len(texts) == 2 and "".join(texts) == WHOLE.text
        assert [piece["candidates"][0].get("finishReason") for piece in told] == [None, "STOP"]


def test_openai_s_shape_has_the_same_text_and_counts() -> None:
    body = play("openai").body
    assert body["choices"][0]["message"]["content"] == WHOLE.text
    assert body["usage"]["total_tokens"] == WHOLE.usage["totalTokenCount"]


@pytest.mark.parametrize("kind", ["echo", "echo_error"])
def test_the_key_comes_back_in_the_body(kind: str) -> None:
    played = play(kind)
    assert KEY.encode() in played["raw"]
    assert played["status"] == (200 if kind == "echo" else 500)


def _members(data: bytes) -> list[bytes]:
    found = []
    while data:
        reader = zlib.decompressobj(zlib.MAX_WBITS | 16)
        found.append(reader.decompress(data) + reader.flush())
        data = reader.unused_data
    return found


def test_compressed_forms() -> None:
    two, other, cut = play("two_gzip"), play("x_gzip"), play("cut_gzip")
    assert two["headers"]["content-encoding"] == cut["headers"]["content-encoding"] == "gzip"
    assert other["headers"]["content-encoding"] == "x-gzip"
    assert len(_members(two["raw"])) == 2
    for whole in (gzip.decompress(two["raw"]), gzip.decompress(other["raw"])):
        assert orjson.loads(whole)["candidates"] == WHOLE.body["candidates"]
    with pytest.raises(EOFError):
        gzip.decompress(cut["raw"])


def test_a_bomb_is_a_sound_member_a_thousandth_of_its_size() -> None:
    raw = play("bomb")["raw"]
    reader, size = zlib.decompressobj(zlib.MAX_WBITS | 16), 0
    end = b""
    while not reader.eof:
        end = reader.decompress(raw, 2**24)
        raw, size = reader.unconsumed_tail, size + len(end)
    assert size > 512 * 2**20 and end.endswith(b"}")


def test_unreadable_bodies() -> None:
    cut = play("cut_json")
    assert cut["headers"]["content-length"] == str(len(cut["raw"]))
    with pytest.raises(orjson.JSONDecodeError):
        cut.body  # noqa: B018
    assert play("html200")["raw"].startswith(b"<!DOCTYPE html>")
    assert play("empty_body")["raw"] == b""
    false = play("false_gzip")
    assert false["headers"]["content-encoding"] == "gzip" and false.text == WHOLE.text
    assert len(play("big_header")["headers"]["x-trace"]) == 65_536


# waits and money


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("402", 402, "Insufficient credits"),
        ("balance400", 400, "credit balance is too low"),
        ("balance429", 429, "余额不足"),
        ("balance200", 200, "余额不足"),
        ("no_channel", 503, "无可用渠道"),
        ("wait_2h", 503, '"retryDelay":"7200s"'),
        ("wait_day", 503, "overloaded"),
        ("wait_2099", 503, "overloaded"),
    ],
)
def test_money_that_is_gone_and_waits_that_are_long(kind: str, status: int, words: str) -> None:
    played = play(kind)
    assert played["status"] == status and words in played["raw"].decode()
    assert played["headers"].get("retry-after") == {
        "wait_day": "86400",
        "wait_2099": "Thu, 31 Dec 2099 23:59:59 GMT",
    }.get(kind)


@pytest.mark.parametrize(("before_s", "held"), [(3.0, True), (7_200.0, False)])
def test_a_day_s_refusal_is_held_past_midnight_where_that_is_near(before_s: float, held: bool) -> None:
    midnight = next_midnight(NOON)

    async def main() -> httpx.Response:
        started = asyncio.get_running_loop().time()
        emulator = Emulator(
            EmulatorOptions(faults=parse_faults("late_day")),
            clock=lambda: midnight - before_s + asyncio.get_running_loop().time() - started,
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(emulator), base_url="http://emulator") as http:
            path, headers = f"/v1beta/models/{MODEL}:generateContent", {"x-goog-api-key": KEY}
            return await http.post(path, content=BODY, headers=headers)

    response = run_virtual(main)
    assert response.status_code == 429
    assert "PerDay" in response.json()["error"]["details"][1]["violations"][0]["quotaId"]
    assert (parsedate_to_datetime(response.headers["date"]).timestamp() >= midnight) is held


# beneath HTTP, over a socket


def _exchange(url: str, most: int = 1 << 20) -> bytes:
    """What comes back over a socket of our own, up to `most` bytes."""
    at = httpx.URL(url)
    head = f"POST /v1beta/models/{MODEL}:generateContent HTTP/1.1\r\nhost: {at.host}\r\nx-goog-api-key: AQ.k\r\n"
    received = b""
    with socket.create_connection((at.host, at.port or 80), timeout=30) as client:
        client.sendall(f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
        while len(received) < most and (part := client.recv(65_536)):
            received += part
    return received


def test_bytes_that_are_no_http_reach_the_client_as_they_are() -> None:
    with served(faults="two_lengths*1,bad_chunk*1,endless*1,paid_reset*1") as url:
        head, _, body = _exchange(url).partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        assert head.startswith(b"HTTP/1.1 200") and len(set(lengths)) == 2
        assert b'"candidates"' in body
        assert b"transfer-encoding: chunked\r\n\r\nsize?\r\n" in _exchange(url)
        assert len(_exchange(url)) >= 1 << 20
        with pytest.raises(ConnectionResetError):
            _exchange(url)
        seen = stats(url)
        assert seen["faults"] == {"two_lengths": 1, "bad_chunk": 1, "endless": 1, "paid_reset": 1}
        assert seen["billed_unread"] == 4
        assert {entry["bill"]: entry["requests"] for entry in seen["billed"]} == {"unread": 3, "lost": 1}
        assert seen["in_flight"] == 0, "an endless body ends with its client"


# told


def test_every_fault_is_in_the_help_and_the_list(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    told = " ".join(cli("emulate", "--help").out.split())
    for group, kinds in GROUPS.items():
        assert f"{group}: {', '.join(kinds)}" in told
    listed = cli("emulate", "--faults", "list")
    for kind, fault in KINDS.items():
        assert any(line.split()[0] == kind and fault.says in line for line in listed.out.splitlines())


def test_an_unknown_fault_is_refused_with_all_that_there_are(cli: Callable[..., Ran]) -> None:
    refused = cli("emulate", "--faults", "cashed_over")
    assert refused.code == 2
    assert all(kind in refused.err for kind in KINDS)
