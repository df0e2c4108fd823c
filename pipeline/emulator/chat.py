"""OpenAI's chat completions: a request becomes what `generateContent` asks, and its answers and refusals become these.

Under `/v1beta/openai/` it is Google's own form of them, which hides thinking and wraps errors in an array; under any
other path it is OpenAI's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from pipeline.emulator import bodies
from pipeline.emulator.http import Response
from pipeline.emulator.messages import Refusal
from pipeline.emulator.streams import in_pieces
from pipeline.emulator.wire import Ask
from pipeline.models import Model

Body = dict[str, Any]

GOOGLES = "v1beta/openai"
_CREATED = 1_795_305_600
_EFFORTS = ("minimal", "low", "medium", "high", "xhigh")
_SPLIT = 2  # a stream's first piece has this part of the text
_PLACES = {
    "temperature": "temperature",
    "top_p": "topP",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
}
_NAMES = {
    *_PLACES,
    *("model", "messages", "stop", "n", "reasoning_effort", "response_format", "service_tier", "stream"),
    *("stream_options", "extra_body", "user", "metadata", "store", "logit_bias", "logprobs", "top_logprobs", "tools"),
    *("tool_choice", "parallel_tool_calls", "modalities", "verbosity", "prompt_cache_key", "safety_identifier"),
}
_FINISHES = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
}


@dataclass(frozen=True, slots=True)
class Chat:
    """One request: who is asked for what, and in which form the answer is told."""

    model: str
    ask: Ask
    googles: bool
    stream: bool = False
    with_usage: bool = False  # a stream tells its counts, in a last piece

    def told(self, body: Body, *, may_stream: bool, pause_s: float = 0.0) -> Response:
        """The answer in this form; `body` is that of `generateContent`, or has this form already."""
        if "choices" not in body:
            body = completion(body, self.googles)
        if not (self.stream and may_stream):
            return Response(200, orjson.dumps(body))
        return in_pieces(events(pieces(body, self.with_usage)), pause_s)


def read(body: bytes, path: str) -> Chat:
    """Read a request body; raises `Refusal` (400)."""
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _wrong("We could not parse the JSON body of your request.") from None
    if not isinstance(asked, dict):
        raise _wrong("The body must be an object.")
    if strange := sorted(asked.keys() - _NAMES):
        raise _wrong(f"Unrecognized request argument supplied: {strange[0]}")
    asked = {name: value for name, value in asked.items() if value is not None}
    if not isinstance(asked.get("model"), str) or not asked["model"]:
        raise _wrong("you must provide a model parameter")
    if not isinstance(asked.get("messages"), list) or not asked["messages"]:
        raise _wrong("Missing required parameter: 'messages'.")
    config = _config(asked)
    contents: list[Body] = []
    fields: Body = {"contents": contents, **({"generationConfig": config} if config else {})}
    system: list[Body] = []
    for number, message in enumerate(asked["messages"]):
        role, parts = _message(message, number)
        if role == "system":
            system += parts
        else:
            contents.append({"role": role, "parts": parts})
    if system:
        fields["systemInstruction"] = {"parts": system}
    fields |= _functions(asked)
    tier = asked.get("service_tier", "standard")
    options = asked.get("stream_options")
    return Chat(
        asked["model"].removeprefix("models/"),
        Ask(fields, config, tier if tier in ("flex", "priority") else "standard"),
        GOOGLES in path,
        asked.get("stream") is True,
        isinstance(options, dict) and options.get("include_usage") is True,
    )


def _config(asked: Mapping[str, Any]) -> Body:
    if "max_tokens" in asked and "max_completion_tokens" in asked:
        raise _wrong("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
    config: Body = {}
    for name, place in _PLACES.items():
        if name in asked:
            if isinstance(asked[name], bool) or not isinstance(asked[name], int | float):
                raise _wrong(f"Invalid type for '{name}': expected a number.")
            config[place] = asked[name]
    stop = asked.get("stop", [])
    config |= {"stopSequences": (stop,) if isinstance(stop, str) else tuple(stop)} if stop else {}
    config |= {"candidateCount": asked["n"]} if "n" in asked else {}
    if effort := asked.get("reasoning_effort"):
        if effort not in ("none", *_EFFORTS):
            raise _wrong(f"Invalid value: '{effort}'. Supported values are: {', '.join(_EFFORTS)}.")
        config["thinkingConfig"] = {"thinkingBudget": 0} if effort == "none" else {"thinkingLevel": effort.upper()}
    form = asked.get("response_format") or {}
    match form.get("type", "text") if isinstance(form, dict) else None:
        case "text":
            pass
        case "json_object":
            config["responseMimeType"] = "application/json"
        case "json_schema" if isinstance(form.get("json_schema"), dict):
            config["responseMimeType"] = "application/json"
            config["responseJsonSchema"] = form["json_schema"].get("schema")
        case _:
            raise _wrong("Invalid value for 'response_format'.")
    return config


_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


def _functions(asked: Mapping[str, Any]) -> Body:
    """Tools and the choice among them, as `generateContent` has them."""
    tools = asked.get("tools") or []
    declared = [each.get("function") for each in tools if isinstance(each, dict) and each.get("type") == "function"]
    if not isinstance(tools, list) or len(declared) != len(tools) or not all(isinstance(one, dict) for one in declared):
        raise _wrong("Invalid value for 'tools'.")
    choice = asked.get("tool_choice", "auto")
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        config = {"mode": "ANY", "allowedFunctionNames": [choice["function"].get("name")]}
    elif isinstance(choice, str) and choice in _MODES and declared:
        config = {"mode": _MODES[choice]}
    elif "tool_choice" in asked:
        raise _wrong("Invalid value for 'tool_choice'.")
    if not declared:
        return {}
    return {"tools": [{"functionDeclarations": declared}], "toolConfig": {"functionCallingConfig": config}}


def _message(message: object, number: int) -> tuple[str, list[Body]]:
    roles = {"system": "system", "developer": "system", "user": "user", "assistant": "model", "tool": "user"}
    role = roles.get(str(message.get("role"))) if isinstance(message, dict) else None
    if role is None or not isinstance(message, dict):
        raise _wrong(f"Invalid value for 'messages[{number}].role'.")
    content = message.get("content")
    if isinstance(content, str):
        return role, [{"text": content}]
    if not isinstance(content, list) or not content:
        raise _wrong(f"Invalid value for 'messages[{number}].content': expected a string.")
    return role, [_part(part, number) for part in content]


def _part(part: object, number: int) -> Body:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {"text": part["text"]}
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)}} if url.startswith("https://"):
            return {"fileData": {"mimeType": "image/jpeg", "fileUri": url}}
        case {"type": "image_url", "image_url": {"url": str(url)}} | {"type": "file", "file": {"file_data": str(url)}}:
            head, _, data = url.partition(";base64,")
            if head.startswith("data:") and data:
                return {"inlineData": {"mimeType": head.removeprefix("data:"), "data": data}}
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": "wav" | "mp3" as form}}:
            return {"inlineData": {"mimeType": f"audio/{form}", "data": data}}
    raise _wrong(f"Invalid value for 'messages[{number}].content'.")


# --- answers ----------------------------------------------------------------------------------------------------------


def completion(body: Body, hides_thinking: bool = False) -> Body:
    """A chat completion of the body of `generateContent`; with `hides_thinking` only the total tells of it."""
    candidate = next(iter(body.get("candidates", ())), None)
    text, finish = None, "content_filter"  # a prompt that was blocked
    calls: list[Body] = []
    if candidate is not None:
        parts = candidate["content"].get("parts", ())
        texts = [part["text"] for part in parts if "text" in part and not part.get("thought")]
        text = "".join(texts) if texts else None
        calls = [_tool_call(part["functionCall"], n) for n, part in enumerate(parts) if "functionCall" in part]
        finish = "tool_calls" if calls else _FINISHES.get(candidate["finishReason"], candidate["finishReason"])
    told: Body = {name: body[name] for name in ("error", "debug") if name in body}
    if "usageMetadata" in body:
        told["usage"] = _usage(body["usageMetadata"], hides_thinking)
        if tier := body["usageMetadata"].get("serviceTier"):
            told["service_tier"] = "default" if tier == "standard" else tier
    return {
        "id": f"chatcmpl-{body['responseId']}",
        "object": "chat.completion",
        "created": _CREATED,
        "model": body["modelVersion"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})},
                "finish_reason": finish,
            }
        ],
        **told,
    }


def _tool_call(call: Body, number: int) -> Body:
    function = {"name": call["name"], "arguments": orjson.dumps(call["args"]).decode()}
    return {"id": f"call_{number}", "type": "function", "function": function}


def _usage(counts: Mapping[str, Any], hides_thinking: bool) -> Body:
    thinking = counts.get("thoughtsTokenCount", 0)
    told = {
        "prompt_tokens": counts.get("promptTokenCount"),
        "completion_tokens": counts.get("candidatesTokenCount", 0) + (0 if hides_thinking else thinking),
        "total_tokens": counts.get("totalTokenCount"),
    }
    if "cachedContentTokenCount" in counts:
        told["prompt_tokens_details"] = {"cached_tokens": counts["cachedContentTokenCount"]}
    if thinking and not hides_thinking:
        told["completion_tokens_details"] = {"reasoning_tokens": thinking}
    return {name: value for name, value in told.items() if value is not None}


def pieces(body: Body, with_usage: bool = True) -> list[Body]:
    """The answer as a stream tells it: the text in two pieces, then why it ended, then the counts."""
    (choice,) = body["choices"]
    text = choice["message"]["content"] or ""
    half = len(text) // _SPLIT
    common = {**body, "object": "chat.completion.chunk"}
    usage = common.pop("usage", None)

    def piece(delta: Body, finish: object = None) -> Body:
        return {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    told = [piece({"role": "assistant", "content": text[:half]}), piece({"content": text[half:]})]
    for number, call in enumerate(choice["message"].get("tool_calls", ())):
        function, cut = call["function"], len(call["function"]["arguments"]) // _SPLIT
        first = {**call, "index": number, "function": {**function, "arguments": function["arguments"][:cut]}}
        rest = {"index": number, "function": {"arguments": function["arguments"][cut:]}}
        told += [piece({"tool_calls": [first]}), piece({"tool_calls": [rest]})]
    told.append(piece({}, choice["finish_reason"]))
    return [*told, {**common, "choices": [], "usage": usage}] if with_usage and usage else told


def events(told: Sequence[Body]) -> list[bytes]:
    """Server-sent events, and the one that says that these are all."""
    return [*(b"data: " + orjson.dumps(piece) + b"\n\n" for piece in told), b"data: [DONE]\n\n"]


def listing(models: Sequence[Model], googles: bool) -> Body:
    """The body of `GET /models`."""
    return {"object": "list", "data": [resource(model, googles) for model in models]}


def resource(model: Model, googles: bool) -> Body:
    """The body of `GET /models/{name}`."""
    name = f"models/{model.name}" if googles else model.name
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "google"}


# --- refusals ---------------------------------------------------------------------------------------------------------

_BAD_KEY = "Incorrect API key provided. You can find your API key at https://platform.openai.com/account/api-keys."


def no_key(googles: bool) -> Refusal:
    """401, or of Google 403: there is no bearer token."""
    message = (
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth"
        " (i.e. Authorization: Bearer YOUR_KEY)."
    )
    return bodies.no_key() if googles else Refusal(401, as_error(message, "invalid_request_error", None))


def bad_key(message: str = _BAD_KEY) -> Refusal:
    """401: the token is none of the service's."""
    return Refusal(401, as_error(message, "invalid_request_error", "invalid_api_key"))


def refused(response: Response, googles: bool) -> Response:
    """A refusal of `generateContent` in this form; what relays and proxies say is left as it is."""
    body = orjson.loads(response.body) if response.body.startswith(b"{") else None
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or "status" not in error:
        return response
    if googles:
        return replace(response, body=orjson.dumps([body]))
    if error["status"] != bodies.CANONICAL.get(response.status):
        return response
    headers: list[tuple[bytes, bytes]] = []
    match response.status:
        case 429:
            told, headers = _too_fast(error)
        case 404:
            told = as_error(error["message"], "invalid_request_error", "model_not_found")
        case 400 if "maximum number of tokens" in error["message"]:
            limit = error["message"].partition("(")[2].partition(")")[0]
            message = f"This model's maximum context length is {limit} tokens. Please reduce the length."
            told = as_error(message, "invalid_request_error", "context_length_exceeded")
        case status:
            told = as_error(error["message"], "server_error" if status >= 499 else "invalid_request_error", None)
    return replace(response, body=orjson.dumps(told), headers=(*response.headers, *headers))


def _too_fast(error: Body) -> tuple[Body, list[tuple[bytes, bytes]]]:
    """A 429 in OpenAI's words, and its headers."""
    violations = [each for detail in error.get("details", ()) for each in detail.get("violations", ())]
    if not violations:
        return as_error(error["message"], "requests", "rate_limit_exceeded"), []
    quota, limit = violations[0]["quotaId"], violations[0].get("quotaValue", "0")
    meter = "tokens" if "Token" in quota else "requests"
    window, short = ("day", "D") if "PerDay" in quota else ("min", "M")
    wait = error["message"].rpartition("retry in ")[2].removesuffix(".")
    model = violations[0]["quotaDimensions"]["model"]
    message = (
        f"Rate limit reached for {model} in organization org-emulator on {meter} per {window}"
        f" ({meter[0].upper()}P{short}): Limit {limit}, Used {limit}, Requested 1. Please try again in {wait}."
        " Visit https://platform.openai.com/account/rate-limits to learn more."
    )
    headers = {"limit": limit, "remaining": "0", "reset": wait}
    told = [(f"x-ratelimit-{name}-{meter}".encode(), value.encode()) for name, value in headers.items()]
    return as_error(message, meter, "rate_limit_exceeded"), told


def as_error(message: str, kind: str, code: str | None) -> Body:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _wrong(message: str) -> Refusal:
    return bodies.refusal(400, message)
