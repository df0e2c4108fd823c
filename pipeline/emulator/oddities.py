"""What relays, proxies and broken services make of an answer: the faults inside a response that was made and billed."""

import gzip
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import orjson

from pipeline.emulator import bodies, chat
from pipeline.emulator.http import Response

Body = dict[str, Any]

DEAREST = "gemini-4-argon"
_UNKNOWN = "relay-large-2"
_BLANKS = 16 * 2**20  # bytes that are deflated once
_TIMES = 32
_DEPTH = 300
_EARLY_BYTES = 12  # of a gzip member that are missing at its end: its checksum and a little more
_SPLIT = 2  # a stream's first piece has this part of the text
_CODED: tuple[tuple[bytes, bytes], ...] = ((b"content-encoding", b"gzip"),)


@dataclass(frozen=True, slots=True)
class Billed:
    """What the server bills for one answer, whatever it tells of it."""

    model: str
    input_tokens: int
    output_tokens: int
    thinking_tokens: int = 0
    cached_tokens: int = 0  # part of the input


def odd_bill(kind: str | None, billed: Billed, output_limit: int) -> Billed:
    """The bill of an answer with that fault; `output_limit` is what the request allows."""
    match kind:
        case "overlong":
            return replace(billed, output_tokens=4 * output_limit, thinking_tokens=0)
        case "no_prompt_count":
            return replace(billed, thinking_tokens=5_000)
        case "hidden_thinking":
            return replace(billed, thinking_tokens=max(0, min(200, output_limit - billed.output_tokens)))
        case "cached":
            return replace(billed, cached_tokens=billed.input_tokens // 2)
        case "dearer":
            return replace(billed, model=DEAREST)
        case _:
            return billed


def odd_body(kind: str | None, body: Body, shown: Mapping[str, str]) -> Body:
    """The JSON of the answer with that fault in it; `body` is changed, `shown` are the request's headers."""
    usage = body.get("usageMetadata", {})
    match kind:
        case "nousage":
            del body["usageMetadata"]
        case "no_prompt_count":
            body["usageMetadata"] = {name: usage[name] for name in _COUNTS if name in usage}
        case "hidden_thinking":
            usage.pop("thoughtsTokenCount", None)
        case "zero_counts":
            body["usageMetadata"] = dict.fromkeys(("promptTokenCount", *_COUNTS), 0)
        case "cached":
            usage["cachedContentTokenCount"] = usage["promptTokenCount"] // 2
        case "cached_over":
            usage["cachedContentTokenCount"] = 5 * usage["promptTokenCount"] + 5_000
        case "negative":
            usage |= {"cachedContentTokenCount": -5_000, "thoughtsTokenCount": -3}
        case "absurd":
            usage |= {"promptTokenCount": 99_999_999_999_999, "totalTokenCount": 99_999_999_999_999}
        case "text_counts":
            usage |= {"promptTokenCount": str(usage["promptTokenCount"])}
            usage |= {name: float(usage[name]) for name in _COUNTS if name in usage}
        case "dearer":
            body["modelVersion"] = DEAREST
        case "unpriced":
            body["modelVersion"] = _UNKNOWN
        case "error0":
            body["error"] = {"code": 0, "message": "success"}
        case "finish_stop" | "finish_length" | "finish_2":
            name = kind.removeprefix("finish_")
            body["candidates"][0]["finishReason"] = int(name) if name.isdecimal() else name
        case "openai":
            return chat.completion(body)
        case "echo":
            body["debug"] = {"upstream": shown}
    return body


_COUNTS = ("candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount")


def changes_bytes(kind: str | None) -> bool:
    """Whether that fault stands in the bytes of the answer, which is then told whole."""
    return kind in _BYTES


def odd_response(kind: str | None, response: Response) -> Response:
    """The response with that fault in its bytes, its head or its way to the client."""
    change = _BYTES.get(kind or "")
    if change is not None:
        response = replace(response, body=change(response.body))
    return replace(response, **_FIELDS.get(kind or "", {}))


_TEXT = re.compile(rb'"(?:text|content)":"')


def _in_text(inserted: bytes) -> Callable[[bytes], bytes]:
    return lambda body: _TEXT.sub(lambda found: found[0] + inserted, body, count=1)


def _pieces(body: bytes) -> list[Body]:
    """The answer as a stream tells it: the text in two pieces, the reason why it ended in the last."""
    whole: Body = orjson.loads(body)
    if "choices" in whole:
        return chat.pieces(whole)
    *before, part = whole["candidates"][0]["content"].get("parts") or [{"text": ""}]
    half = len(part["text"]) // _SPLIT

    def piece(parts: list[Body], **ending: Any) -> Body:
        return {**whole, "candidates": [{"content": {"parts": parts, "role": "model"}, "index": 0, **ending}]}

    first = piece([*before, part | {"text": part["text"][:half]}])
    return [first, piece([part | {"text": part["text"][half:]}], finishReason=whole["candidates"][0]["finishReason"])]


def _events(body: bytes) -> bytes:
    return b"".join(b"data: " + orjson.dumps(piece) + b"\r\n\r\n" for piece in _pieces(body))


def _two_members(body: bytes) -> bytes:
    half = len(body) // 2
    return gzip.compress(body[:half]) + gzip.compress(body[half:])


@lru_cache(maxsize=1)
def _blanks() -> tuple[bytes, int]:
    """Deflated blanks that may stand `_TIMES` times after one another, and the checksum of them all."""
    blanks = b" " * _BLANKS
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflate.compress(blanks) + deflate.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(_TIMES):
        checksum = zlib.crc32(blanks, checksum)
    return block, checksum


def _bomb(body: bytes) -> bytes:
    """A sound gzip member: blanks, then the answer."""
    block, checksum = _blanks()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = (_TIMES * _BLANKS + len(body)) % 2**32
    tail = zlib.crc32(body, checksum).to_bytes(4, "little") + size.to_bytes(4, "little")
    head = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff"
    return head + block * _TIMES + deflate.compress(body) + deflate.flush() + tail


_BYTES: Mapping[str, Callable[[bytes], bytes]] = {
    "surrogate": _in_text(rb"\ud83d"),
    "bad_utf8": _in_text(b"\xff\xc3"),
    "bom": lambda body: b"\xef\xbb\xbf" + body,
    "deep": lambda body: body[:-1] + b',"debug":' + b"[" * _DEPTH + b"]" * _DEPTH + b"}",
    "sse": _events,
    "json_array": lambda body: orjson.dumps(_pieces(body)),
    "cut_json": lambda body: body[: len(body) // 2],
    "html200": lambda _body: bodies.html_page(200, "OK"),
    "empty_body": lambda _body: b"",
}

_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "201": {"status": 201},
    "203": {"status": 203},
    "206": {"status": 206},
    "sse": {"content_type": "text/event-stream"},
    "html200": {"content_type": bodies.HTML},
    "two_gzip": {"headers": _CODED, "coding": _two_members},
    "x_gzip": {"headers": ((b"content-encoding", b"x-gzip"),), "coding": gzip.compress},
    "false_gzip": {"headers": _CODED},
    "cut_gzip": {"headers": _CODED, "coding": lambda body: gzip.compress(body)[:-_EARLY_BYTES]},
    "bomb": {"headers": _CODED, "coding": _bomb},
    "big_header": {"headers": ((b"x-trace", b"t" * 65_536),)},
    "two_lengths": {"broken": "two_lengths"},
    "bad_chunk": {"broken": "bad_chunk"},
    "endless": {"broken": "endless"},
    "truncated": {"broken": "truncated"},
    "paid_reset": {"broken": "reset"},
    "paid_hang": {"broken": "hang"},
}
