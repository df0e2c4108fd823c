"""`generateContent` and `countTokens` as values: what a request asks, and the bodies that answer it."""

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import orjson

from pipeline.emulator import bodies
from pipeline.emulator.counting import Tokenizer, count, count_json
from pipeline.emulator.files import FilesOf, inline_tokens, linked_tokens, nothing_stored
from pipeline.emulator.messages import Refusal, parse, read
from pipeline.emulator.schema import COUNT_REQUEST, GENERATE_REQUEST
from pipeline.models import Model

Fields = Mapping[str, Any]

_MIME_TYPES = ("text/plain", "application/json", "application/xml", "application/yaml", "text/x.enum")
_ROLES = ("user", "model", "function")


@dataclass(frozen=True, slots=True)
class Ask:
    """What one `generateContent` asks, canonical in its spelling; `fields` is the whole request."""

    fields: Fields
    config: Fields
    tier: str  # flex, standard or priority
    stream: Literal["", "sse", "array"] = ""  # how the answer comes in pieces; empty: whole
    cached_tokens: int = 0  # of the cache that it names, which `fields` begin with

    @property
    def text(self) -> str:
        """The text of the last turn."""
        return "\n".join(part["text"] for part in self.fields["contents"][-1]["parts"] if "text" in part)

    @property
    def schema(self) -> Any:
        """The JSON shape that is asked for, if any."""
        return self.config.get("responseSchema") or self.config.get("responseJsonSchema")

    @property
    def thinking(self) -> Fields:
        """The thinking settings; empty when none are sent."""
        return self.config.get("thinkingConfig") or {}

    @property
    def continuation(self) -> str:
        """What names the place where the answer goes on, in either place that clients put it; empty: it begins."""
        return str(self.fields.get("continuationToken") or self.config.get("continuationToken") or "")

    @property
    def resumed(self) -> tuple[int, int]:
        """Where the answer goes on, in characters, and how many tokens were written; raises `Refusal` (400)."""
        token = self.continuation
        if not token:
            return 0, 0
        try:
            prompt, at, written = map(int, b64decode(token, validate=True).split(b"/"))
        except ValueError:
            prompt, at, written = -1, 0, 0
        if prompt != self.prompt_hash() or min(at, written) < 0:
            raise _invalid("GenerateContentRequest.generation_config.continuation_token: invalid continuation token.")
        return at, written

    def token(self, at: int, written: int) -> str:
        """What names that place in the answer."""
        return b64encode(b"%d/%d/%d" % (self.prompt_hash(), at, written)).decode()

    def prompt_hash(self) -> int:
        """64 bits of what was asked: turns and system instruction, not the model and not its settings."""
        asked = [self.fields.get("contents"), self.fields.get("systemInstruction")]
        dumped = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
        return int.from_bytes(blake2b(dumped, digest_size=8).digest(), "big")


def read_generate(body: bytes, stream: Literal["", "sse", "array"] = "") -> Ask:
    """Read a `generateContent` body, answered whole or as `stream`; raises `Refusal` for what the front end refuses."""
    return _ask(parse(GENERATE_REQUEST, body), stream)


def read_request(request: object) -> Ask:
    """Read the request of a line of a batch; raises `Refusal`."""
    return _ask(read(GENERATE_REQUEST, request))


def _ask(fields: Fields, stream: Literal["", "sse", "array"] = "") -> Ask:
    tier = fields.get("serviceTier", "standard")
    return Ask(fields, fields.get("generationConfig") or {}, "standard" if tier == "unspecified" else tier, stream)


def read_count(body: bytes) -> Fields:
    """Read a `countTokens` body in either form; returns the request to be counted."""
    fields = parse(COUNT_REQUEST, body)
    nested: Fields | None = fields.get("generateContentRequest")
    if nested is None:
        _check_contents(fields, "CountTokensRequest")
        return {"contents": fields["contents"]}
    if not nested.get("model"):
        raise _invalid("CountTokensRequest.generate_content_request.model: model is not specified")
    _check_contents(nested, "CountTokensRequest.generate_content_request")
    return nested


def check(ask: Ask, model: Model) -> None:
    """Refuse (400) what the model refuses, in the words of the service where they are known."""
    _check_contents(ask.fields, "GenerateContentRequest")
    last = ask.fields["contents"][-1]
    if last.get("role") == "model":
        raise bodies.refusal(400, "Please ensure that multiturn requests end with a user turn.")
    if not any(part.get("text") or _other_data(part) for part in last["parts"]):
        raise _invalid("GenerateContentRequest.contents: the last user turn must not be empty text")
    _check_config(ask, model)


def prompt_tokens(
    fields: Fields, tokenizer: Tokenizer, model: str = "", files: FilesOf = nothing_stored
) -> Counter[str]:
    """Input tokens of a request by modality: turns, system instruction, tools and schema, and one to start.

    `files` finds what `fileData` names, and raises `Refusal` for what cannot be used.
    """
    texts, tokens = [], Counter({"TEXT": 1})
    config = fields.get("generationConfig") or {}
    resolution = config.get("mediaResolution", "")
    for content in (fields.get("systemInstruction") or {}, *(fields.get("contents") or ())):
        for part in content.get("parts") or ():
            if "text" in part:
                texts.append(part["text"])
            elif "inlineData" in part:
                tokens += inline_tokens(part["inlineData"], model, resolution)
            elif "fileData" in part:
                tokens += linked_tokens(part["fileData"], files, model, resolution)
            else:
                texts.append(orjson.dumps(part).decode())
    apart = fields.get("tools"), config.get("responseSchema") or config.get("responseJsonSchema")
    tokens["TEXT"] += sum(count(text, tokenizer) for text in texts)
    tokens["TEXT"] += sum(count_json(value, tokenizer) for value in apart if value)
    return tokens


def token_counts(tokens: Counter[str]) -> dict[str, Any]:
    """The body of `countTokens`."""
    return {"totalTokens": tokens.total(), "promptTokensDetails": _details(tokens)}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer before it is put on the wire; `parts` empty: the candidate has no text at all."""

    parts: Sequence[Fields]
    finish_reason: str
    output_tokens: int = 0
    thinking_tokens: int = 0
    tool_tokens: int = 0  # that tools gave it to read
    fields: Fields = field(default_factory=dict)  # of the candidate, beside its content


def usage(tokens: Counter[str], tier: str, output: int = 0, thinking: int = 0, tool: int = 0) -> dict[str, Any]:
    """The usage counters; as in protobuf JSON, a zero is left out."""
    counters = {
        "promptTokenCount": tokens.total(),
        "candidatesTokenCount": output,
        "toolUsePromptTokenCount": tool,
        "totalTokenCount": tokens.total() + output + thinking + tool,
        "promptTokensDetails": _details(tokens),
        "thoughtsTokenCount": thinking,
        "serviceTier": tier,
    }
    return {name: value for name, value in counters.items() if value}


def answered(answer: Answer, counters: Fields, model: str, response_id: str) -> dict[str, Any]:
    """The body of an answer."""
    content = {"parts": answer.parts, "role": "model"} if answer.parts else {}
    return {
        "candidates": [{"content": content, "finishReason": answer.finish_reason, "index": 0, **answer.fields}],
        "usageMetadata": counters,
        "modelVersion": model,
        "responseId": response_id,
    }


def blocked(counters: Fields, model: str, response_id: str) -> dict[str, Any]:
    """The body for a prompt that the safety filter refused: no candidates."""
    return {
        "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": counters,
        "modelVersion": model,
        "responseId": response_id,
    }


def _details(tokens: Counter[str]) -> list[dict[str, Any]]:
    return [{"modality": modality, "tokenCount": n} for modality, n in tokens.items() if n]


def _other_data(part: Fields) -> bool:
    return any(name in part for name in ("inlineData", "fileData", "functionCall", "functionResponse", "toolResponse"))


def _check_contents(fields: Fields, message: str) -> None:
    if not fields.get("contents"):
        raise _invalid(f"{message}.contents: contents is not specified")
    for i, content in enumerate(fields["contents"]):
        if (content.get("role") or "user") not in _ROLES:
            raise bodies.refusal(400, "Please use a valid role: user, model.")
        if not content.get("parts"):
            raise _invalid(f"{message}.contents[{i}].parts: contents.parts must not be empty.")


def _check_config(ask: Ask, model: Model) -> None:
    config, prefix = ask.config, "GenerateContentRequest.generation_config"
    limit = config.get("maxOutputTokens")
    if limit is not None and limit <= 0:
        raise _invalid(f"{prefix}.max_output_tokens: max_output_tokens must be positive.")
    is_whole = not ask.stream and not ask.continuation
    if limit is not None and is_whole and limit > model.max_output_tokens < model.listed_output_tokens:
        raise _invalid(f"{prefix}.max_output_tokens: at most {model.max_output_tokens} without streaming.")
    if config.get("candidateCount", 1) != 1:
        raise bodies.refusal(400, "Multiple candidates is not enabled for this model")
    if config.get("responseMimeType", "text/plain") not in _MIME_TYPES:
        allowed = ", ".join(f"`{mime_type}`" for mime_type in _MIME_TYPES)
        raise _invalid(f"{prefix}.response_mime_type: allowed mimetypes are {allowed}.")
    if config.get("responseSchema") and config.get("responseJsonSchema"):
        raise _invalid(f"{prefix}: only one of response_schema and response_json_schema may be set.")
    if "thinkingBudget" in ask.thinking and "thinkingLevel" in ask.thinking:
        raise bodies.refusal(400, "You can only set only one of thinking budget and thinking level.")
    if ask.thinking.get("thinkingLevel") == "MINIMAL" and not model.minimal_thinking:
        raise bodies.refusal(400, "Thinking level MINIMAL is not supported for this model.")


def _invalid(violation: str) -> Refusal:
    return bodies.refusal(400, f"* {violation}\n")
