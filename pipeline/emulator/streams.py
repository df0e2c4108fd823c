"""`streamGenerateContent`: an answer in pieces, as events or as one array, and what goes wrong on its way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import orjson

from pipeline.emulator import bodies
from pipeline.emulator.http import Response

Body = dict[str, Any]
Form = Literal["sse", "array"]

EVENTS = "text/event-stream"
_PIECES = 4  # of a text
_BROKEN = orjson.dumps(bodies.error(503, bodies.OVERLOADED), option=orjson.OPT_INDENT_2) + b"\n\n"
FAULTS = ("stream_error", "stream_short", "stream_idle", "stream_unended")


def pieces(body: Body) -> list[Body]:
    """The pieces of an answer of `generateContent`: counts in each, growing; the reason why it ended in the last."""
    if not body.get("candidates"):
        return [body]
    (candidate,) = body["candidates"]
    *before, last = candidate["content"].get("parts") or [{"text": ""}]
    if "text" not in last:
        return [body]
    step = max(1, -(-len(last["text"]) // _PIECES))
    texts = [last["text"][at : at + step] for at in range(0, len(last["text"]), step)] or [""]
    marks = {name: value for name, value in last.items() if name != "text"}
    output = body.get("usageMetadata", {}).get("candidatesTokenCount", 0)
    told = []
    for number, text in enumerate(texts, 1):
        is_last = number == len(texts)
        part = {"text": text, **(marks if is_last else {})}
        inner: Body = {"content": {"parts": [*(before if number == 1 else ()), part], "role": "model"}, "index": 0}
        if is_last:
            inner |= {name: value for name, value in candidate.items() if name != "content"}
        piece = {**body, "candidates": [inner]}
        if "usageMetadata" in body and not is_last:
            piece["usageMetadata"] = _counted(body["usageMetadata"], output - output * number // len(texts))
        told.append(piece)
    return told


def _counted(counts: Mapping[str, Any], missing: int) -> Body:
    """The counts of a piece, with so many tokens of output still to come; a zero is left out."""
    less = {name: counts[name] - missing for name in ("candidatesTokenCount", "totalTokenCount") if name in counts}
    return {name: value for name, value in {**counts, **less}.items() if value}


def streamed(body: Body, form: Form, pause_s: float, tier: str) -> Response:
    """The answer in pieces that come so many seconds after one another."""
    told = [orjson.dumps(piece) for piece in pieces(body)]
    if form == "sse":
        frames = [b"data: " + piece + b"\r\n\r\n" for piece in told]
        return in_pieces(frames, pause_s, tier)
    frames = [(b"[" if not number else b",\r\n") + piece for number, piece in enumerate(told)]
    return replace(in_pieces([*frames, b"]"], pause_s, tier), content_type=bodies.JSON)


def in_pieces(frames: Sequence[bytes], pause_s: float, tier: str | None = None) -> Response:
    """The response of these frames."""
    return Response(200, b"".join(frames), EVENTS, tier, frames=tuple(frames), pause_s=pause_s)


def odd_stream(kind: str | None, response: Response) -> Response:
    """The stream with that fault on its way."""
    change = _CHANGES.get(kind or "")
    if change is None or response.content_type != EVENTS:
        return response
    half = response.frames[: max(1, len(response.frames) // 2)]
    frames = change(half, response.frames)
    return replace(
        response,
        body=b"".join(frames),
        frames=tuple(frames),
        broken="idle" if kind == "stream_idle" else response.broken,
    )


_CHANGES: Mapping[str, Callable[[Sequence[bytes], Sequence[bytes]], Sequence[bytes]]] = {
    "stream_error": lambda half, frames: [*half, _BROKEN],
    "stream_short": lambda half, frames: half,
    "stream_idle": lambda half, frames: half,
    "stream_unended": lambda half, frames: [*frames[:-1], frames[-1].rstrip()],
}
