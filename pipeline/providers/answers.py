"""What a response body says: one `Reply`, whatever form a service or relay gave its answer. Pure, and never raises.

Read are a generateContent response, the pieces of a stream of them (server-sent events, a JSON array, one after the
other), the same inside a wrapper, and OpenAI's chat completion, whole or in pieces.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import orjson

from pipeline.providers.extras import Beside, as_text
from pipeline.providers.foreign import MOST_FIELDS, dumped, folded, mapping, mappings, read_values, string, whole_number
from pipeline.providers.reasons import (
    BLOCKED,
    CALLED,
    RECITATION,
    TRUNCATED,
    UNSAID,
    block_reason,
    finish_reason,
)
from pipeline.providers.usage import read_usage
from pipeline.records import EMULATOR_FIELD, EMULATOR_RESPONSE_ID, ErrorKind, Lane, Reply, Status, Usage

MOST_NAME_CHARS = 200


class Unread(NamedTuple):
    """A body that holds no answer: why, and how many requests a prompt may make in all when that is all that comes.

    `refused`: it is an error object, which says that nothing was generated, unless `usage` names counts, of `model`.
    """

    why: str
    most_requests: int = 3
    refused: bool = False
    usage: object = None
    model: str = ""


class Answer(NamedTuple):
    """An answer in whichever form it came, before it is judged."""

    text: str
    finish: str | None
    candidates: bool
    block: str
    usage: object
    model: str
    response_id: str
    emulated: bool
    pieces: int = 1
    beside: Beside | None = None  # the text, where there is anything
    continuation: str = ""  # what goes on with it
    fate: str = ""  # what the service says of the model's end
    cut: str = ""  # why it broke off, where it did: there is text, and no end of it
    tier: str = ""  # in which it was served, as the service names it

    def as_body(self) -> bytes:
        """A response body that reads as this answer does."""
        others = self.beside.as_candidate() if self.beside else {}
        parts = [{"text": self.text}, *others.pop("parts", ())]
        candidate = {"content": {"parts": parts}, "finishReason": self.finish, **others}
        candidate |= {"continuationToken": self.continuation} if self.continuation else {}
        marks = {EMULATOR_FIELD: True} if self.emulated else {}
        body = dumped(
            {
                "candidates": [candidate] * self.candidates,
                "promptFeedback": {"blockReason": self.block},
                "usageMetadata": {**mapping(self.usage), **({"serviceTier": self.tier} if self.tier else {})},
                "modelVersion": self.model,
                "responseId": self.response_id,
                **marks,
            }
        )
        return b"data: " + body + b"\n\n" if self.cut else body  # what is no stream does not break off


def parse_reply(raw: bytes) -> Reply:
    """Read a response body; whatever it is, a `Reply` comes back and nothing is raised.

    Only finish reason STOP, or none at all as relays send it, with some text is `ok`. Text before a block or a cut is
    kept. Usage is marked `estimated` where a count was missing or impossible; an input that is unknown is left 0.
    """
    answer = read_answer(raw)
    if isinstance(answer, Unread):
        return Reply("", "error", error_kind="malformed_reply", error=answer.why, usage=Usage(estimated=True), raw=raw)
    return judge(answer, raw)


def judge(answer: Answer, raw: bytes, input_tokens_est: int = 0, asked: str = "") -> Reply:
    """The reply that an answer is; what was sent, and the model `asked`, bound its counts, or stand in for them."""
    lists = answer.beside.told(answer.text) if answer.beside else {}
    status, error_kind, error = _outcome(answer, "function_calls" in lists)
    if answer.cut:
        status, error_kind, error = "truncated", "truncated", f"{answer.cut}: what had come is kept"
    usage = read_usage(answer.usage, answer.text, input_tokens_est, answer.model or bare_model(asked))
    if answer.cut:
        usage = replace(usage, estimated=True)  # the service may have gone on
    if answer.beside and (searches := answer.beside.searches):
        usage = replace(usage, searches=searches)
    return Reply(
        text=answer.text,
        status=status,
        finish_reason=answer.finish or answer.block or None,
        error_kind=error_kind,
        error=error,
        usage=usage,
        model=answer.model,
        response_id=answer.response_id,
        raw=raw,
        emulated=answer.emulated,
        extras=as_text(lists),
        fate=answer.fate,
        lane=lane_of(answer.tier),
        continuation=answer.continuation if answer.finish == "CONTINUATION" else "",
    )


def read_answer(raw: bytes) -> Answer | Unread:
    """Find the answer in a response body."""
    if not raw.strip():
        return Unread("the answer is empty")
    reading = read_values(raw)
    pieces = [_native(piece) for piece in _objects(reading.values)]
    if not pieces:
        page = raw.lstrip()[:1] == b"<"
        return Unread("the answer is a web page" if page else "the answer is no JSON object, or was cut short")
    answer = _joined(pieces)
    error = next((piece["error"] for piece in pieces if is_error(piece.get("error"))), None)
    if error is not None and not (answer.text and answer.finish):
        if answer.text and not reading.holed:
            return answer._replace(cut="the answer ended with an error")
        return Unread("the answer is an error", refused=not answer.text, usage=answer.usage, model=answer.model)
    if reading.holed or (reading.streamed and answer.candidates and not (answer.finish or reading.ended)):
        if answer.text and not reading.holed:
            return answer._replace(cut="the answer was cut short")
        return Unread("the answer was cut short", usage=answer.usage, model=answer.model)
    if not (answer.candidates or answer.block or answer.usage):
        names = ", ".join(name for name in islice(pieces[0], MOST_FIELDS) if _PLAIN_NAME.fullmatch(name))[:100]
        return Unread(
            f"the answer has neither candidates nor choices (its fields: {names or 'none'}): "
            "are [endpoint] base_url and provider those of the service?",
            most_requests=2,
        )
    return answer


def is_error(error: object) -> bool:
    """Whether a value under `error` says that something failed: not null, nor a code of 0 without more."""
    if isinstance(error, dict):
        code = error.get("code")
        if code in (0, 200, "0", "200", "OK", "ok"):
            return False
        return bool(code) or any(string(inner) for inner in error.values())
    if isinstance(error, list):
        return any(map(is_error, error))
    if isinstance(error, str):
        return error.strip().lower() not in ("", "0", "ok", "none", "null", "success", "false")
    return bool(error)


_LANES: dict[str, Lane] = {"flex": "flex", "priority": "priority"}


def lane_of(tier: str) -> Lane:
    """The lane that a service names; one that names none has served as it always did.

    Google says `flex`, `standard` or `priority`, Vertex AI `ON_DEMAND_FLEX` and the like, OpenAI `default`.
    """
    return _LANES.get(tier.strip().lower().removeprefix("on_demand_"), "standard")


def bare_model(name: str) -> str:
    """`gemini-x` of `models/gemini-x` and of `publishers/google/models/gemini-x`."""
    return name.rpartition("models/")[2]


# --- forms ------------------------------------------------------------------------------------------------------------

_PLAIN_NAME = re.compile(r"[A-Za-z_][\w\-]{0,30}", re.ASCII)
_WRAPPERS = ("response", "data", "result", "body")
_ANSWERS = ("candidates", "choices", "promptFeedback", "prompt_feedback")


def _objects(values: Sequence[object]) -> list[dict[str, Any]]:
    """The objects among the values and in their arrays, out of a wrapper if they are in one."""
    return [_unwrapped(found) for value in values for found in mappings(value)]


def _unwrapped(piece: dict[str, Any]) -> dict[str, Any]:
    if any(name in piece for name in _ANSWERS):
        return piece
    inner = (mapping(piece.get(name)) for name in _WRAPPERS)
    # The counts may stand beside the wrapper.
    return next((piece | found for found in inner if any(name in found for name in _ANSWERS)), piece)


def _native(piece: dict[str, Any]) -> dict[str, Any]:
    """A chat completion, or a piece of one, in the form of a generateContent response; anything else as it is."""
    if "choices" not in piece or "candidates" in piece:
        return piece
    named = {"modelVersion": piece.get("model"), "responseId": piece.get("id"), "usage": piece.get("usage")}
    candidates = []
    for choice in mappings(piece["choices"])[:1]:
        message = mapping(choice.get("message")) or mapping(choice.get("delta"))
        content = message.get("content")
        finish = choice.get("finish_reason") or ("content_filter" if message.get("refusal") else None)
        text = choice.get("text") if content is None else content
        candidate = {"content": text, "finishReason": finish}
        if message.get("tool_calls"):
            candidate["toolCalls"] = message["tool_calls"]
        elif message.get("function_call"):  # of old: one, without a number
            candidate["toolCalls"] = [{"function": message["function_call"]}]
        candidates.append(candidate)
    return {**piece, **named, "candidates": candidates}


def _joined(pieces: Sequence[Mapping[str, Any]]) -> Answer:
    """One answer of all pieces: their texts one after the other, of the counts and reasons the last."""
    texts: list[str] = []
    finish: str | None = None
    block = model = response_id = token = fate = tier = ""
    usage: dict[str, Any] = {}
    candidates = emulated = False
    beside = Beside()
    for piece in pieces:
        fields = piece if "usageMetadata" in piece else folded(piece) | dict(piece)
        candidate = _first(mappings(fields.get("candidates")))
        if candidate is not None:
            candidates = True
            texts.append(_text(candidate.get("content")))
            beside.take(candidate)
            token = string(candidate.get("continuationToken", candidate.get("continuation_token"))) or token
            finish = finish_reason(candidate.get("finishReason", candidate.get("finish_reason"))) or finish
        feedback = folded(mapping(fields.get("promptFeedback") or fields.get("promptfeedback")))
        block = block_reason(feedback.get("blockreason")) or block
        counts = fields.get("usageMetadata") or fields.get("usagemetadata") or fields.get("usage")
        usage = _counted(usage, mapping(counts))
        model = bare_model(string(fields.get("modelVersion") or fields.get("modelversion")))[:MOST_NAME_CHARS] or model
        response_id = string(fields.get("responseId") or fields.get("responseid"))[:MOST_NAME_CHARS] or response_id
        emulated = emulated or is_marked(piece)
        fate = _fate(fields.get("modelStatus") or fields.get("modelstatus")) or fate
        tier = _tier(fields, mapping(counts)) or tier
    found = beside if beside else None
    return Answer(
        "".join(texts),
        finish,
        candidates,
        block,
        usage,
        model,
        response_id,
        emulated,
        len(pieces),
        found,
        token,
        fate,
        tier=tier,
    )


def _counted(before: dict[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a piece and of those before it: each is of the whole so far, so that none can shrink."""

    def grew(name: str, value: object) -> bool:
        known = whole_number(before.get(name))
        return known is None or (whole_number(value) or 0) >= known

    return before | {name: value for name, value in now.items() if grew(name, value)}


def _tier(fields: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    """The tier that served: Google names it among the counts, OpenAI beside them."""
    named = (counts.get("serviceTier"), counts.get("service_tier"), counts.get("trafficType"))
    return next(filter(None, map(string, (*named, fields.get("service_tier")))), "")[:MOST_NAME_CHARS]


_ENDING = ("DEPRECATED", "RETIRED")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


def _fate(status: object) -> str:
    """What `modelStatus` says of the model's end, in our words: its message is foreign text. Empty: nothing."""
    fields = folded(mapping(status)) if status else {}
    stage = string(fields.get("modelstage")).upper().removeprefix("MODEL_STAGE_")
    if stage not in _ENDING:
        return ""
    day = _DAY.match(string(fields.get("retirementtime")))
    return f"{stage.lower()}{f', and ends on {day[0]}' if day else ''}"


def is_marked(body: Mapping[str, Any]) -> bool:
    """Whether an object bears the emulator's mark."""
    named = (string(body.get(name)) for name in ("responseId", "response_id", "id"))
    return EMULATOR_FIELD in body or any(EMULATOR_RESPONSE_ID in name for name in named)


def _first(candidates: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The candidate that is the answer: the first with text, else the first."""
    if len(candidates) > 1:
        candidates = sorted(candidates, key=lambda one: not _text(one.get("content")))
    return candidates[0] if candidates else None


def _text(content: object) -> str:
    """The text of a candidate's content, thoughts left out: of its parts, or of what stands in their place."""
    if isinstance(content, dict):
        content = content.get("parts", content.get("text"))
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return _as_text(content)
    return "".join(_part(part) for part in content)


def _part(part: object) -> str:
    if not isinstance(part, dict):
        return _as_text(part)
    if part.get("thought") in (True, 1, "true", "True") or part.get("type") in ("thinking", "reasoning"):
        return ""
    return _as_text(part.get("text"))


def _as_text(value: object) -> str:
    """A text; one that a relay has taken for JSON is JSON again."""
    if isinstance(value, str) or value is None:
        return value or ""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # deeper than it can write
        return ""


# --- outcome ----------------------------------------------------------------------------------------------------------


def _outcome(answer: Answer, calls: bool) -> tuple[Status, ErrorKind | None, str | None]:
    finish, text = answer.finish, answer.text
    if answer.block and not text and not finish:
        return "blocked", "prompt_blocked", f"the prompt was blocked: {_name(answer.block)}"
    if not answer.candidates:
        return "error", "empty_answer", "the answer has no candidates"
    if finish in TRUNCATED:
        words = "the answer reached the output limit" if text else "the output limit was reached before any text"
        return "truncated", "truncated", words
    if finish in RECITATION:
        return "blocked", "recitation", "the answer was cut because it repeats published text"
    if finish in BLOCKED:
        return "blocked", "answer_blocked", f"the answer was blocked: {finish}"
    if finish not in (None, "STOP", UNSAID) and not (calls and finish in CALLED):
        return "error", "malformed_reply", f"the answer ended with {_name(finish)}"
    if not text and not calls:
        return "error", "empty_answer", "the answer has no text"
    return "ok", None, None


def _name(value: str) -> str:
    """A finish or block reason as a message may show it: it is foreign text."""
    return value if value.replace("_", "").isalnum() and value.isascii() else "a reason without a name"
