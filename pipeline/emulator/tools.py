"""What the tools of a request leave in its answer: searches, pages, code that was run, function calls."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.emulator import bodies
from pipeline.emulator.answers import json_value

Fields = Mapping[str, Any]

_RESULT_TOKENS = 150  # of what one search, page or run gives the model to read
_URL = re.compile(r"https?://[^\s\"'<>)\]]+")
_MOST_URLS = 20
_CODE = "print(len(text))"


@dataclass(frozen=True, slots=True)
class Used:
    """What tools add to an answer: parts before its text, fields of the candidate, tokens that are billed as input.

    `call` is a function call, which stands in the place of the text.
    """

    call: Fields | None = None
    parts: tuple[Fields, ...] = ()
    fields: Fields = field(default_factory=dict)
    input_tokens: int = 0


def use(fields: Fields, asked: str, text: str) -> Used:
    """What the tools of the request `fields` do for the prompt `asked` and the answer `text`."""
    tools: dict[str, Any] = {name: value for tool in fields.get("tools") or () for name, value in tool.items()}
    call = _call(tools.get("functionDeclarations") or (), fields.get("toolConfig") or {}, asked)
    if call is not None:
        return Used(call)
    beside: dict[str, Any] = {}
    parts: tuple[Fields, ...] = ()
    read = 0
    if "googleSearch" in tools:
        beside["groundingMetadata"] = grounding = _grounding(asked, text)
        read += len(grounding["webSearchQueries"])
    if "urlContext" in tools and (urls := list(dict.fromkeys(_URL.findall(asked)))[:_MOST_URLS]):
        beside["urlContextMetadata"] = {"urlMetadata": [_page(url) for url in urls]}
        read += len(urls)
    if "codeExecution" in tools:
        result = {"outcome": "OUTCOME_OK", "output": f"{len(asked)}\n"}
        parts = ({"executableCode": {"language": "PYTHON", "code": _CODE}}, {"codeExecutionResult": result})
        read += 1
    return Used(None, parts, beside, read * _RESULT_TOKENS)


def _call(declared: Any, config: Fields, asked: str) -> Fields | None:
    """The first function that may be called, with arguments made of the prompt; None where none is."""
    calling = config.get("functionCallingConfig") or {}
    allowed = calling.get("allowedFunctionNames") or ()
    if calling.get("mode") == "NONE":
        return None
    for function in declared if isinstance(declared, list) else ():
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            raise bodies.refusal(400, "* GenerateContentRequest.tools[0].function_declarations[0].name: is required\n")
        if not allowed or name in allowed:
            schema = next((function[key] for key in _SCHEMAS if function.get(key)), None)
            return {"functionCall": {"name": name, "args": _arguments(asked, schema)}}
    return None


_SCHEMAS = ("parametersJsonSchema", "parameters_json_schema", "parameters")


def _arguments(asked: str, schema: Any) -> Any:
    if schema is None:
        return {}
    try:
        return json_value(asked, schema)
    except (TypeError, ValueError, AttributeError):
        raise bodies.refusal(400, "The specified schema is not a valid schema.") from None


def _grounding(asked: str, text: str) -> dict[str, Any]:
    """Two searches and two sources, of which the first supports the first half of the answer."""
    words = asked.split()[:6] or ["nothing"]
    half = text[: len(text) // 2]
    segment = {"endIndex": len(half.encode()), "text": half}  # a start at 0 is left out
    sources = [
        {"web": {"uri": f"https://example.org/{number}", "title": f"Example {number}", "domain": "example.org"}}
        for number in (1, 2)
    ]
    supports = [{"segment": segment, "groundingChunkIndices": [0], "confidenceScores": [0.9]}] if half else []
    found = {
        "webSearchQueries": [" ".join(words), " ".join([*words[:3], "news"])],
        "searchEntryPoint": {"renderedContent": "<div></div>"},
        "groundingChunks": sources,
        "groundingSupports": supports,
    }
    return {name: value for name, value in found.items() if value}


def _page(url: str) -> dict[str, str]:
    """A page whose address has 404 in it is not there."""
    status = "ERROR" if "404" in url else "SUCCESS"
    return {"retrievedUrl": url, "urlRetrievalStatus": f"URL_RETRIEVAL_STATUS_{status}"}


def written(call: Fields) -> str:
    """A function call as the text that its tokens are counted by."""
    return orjson.dumps(call).decode()
