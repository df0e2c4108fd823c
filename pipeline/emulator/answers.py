"""The emulator's answers: sentences of the prompt itself, picked the same way every time."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

LOOK_CHARS = 8_000  # of the text that are read: a quarter of a millisecond of scoring, whatever the prompt's length
_SENTENCES = 3
_SCORED = 32  # sentences
_SENTENCE_CHARS = 400
_ENDS = (*(end + quote + " " for end in ".!?…" for quote in ("", '"', "”", ")")), "。", "！", "？")
_CLOSING = "”’」』"
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_ITEMS = 100  # of an array that asks for more
_DEPTH = 8  # nesting of a schema up to which optional fields are filled

_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
"""What stands for a text of such a format."""


def summarize(text: str) -> str:
    """The first sentence of the text and the two that share most words with the rest, in their order.

    A short opening paragraph over a longer rest is an instruction and is passed over.
    """
    sentences = _sentences(_body(text)[:LOOK_CHARS])
    if len(sentences) <= _SENTENCES:
        return _join(sentences)
    words = [_words(sentence) for sentence in sentences]
    frequency = Counter(chain.from_iterable(words))
    scores = [sum(map(frequency.__getitem__, found)) / (len(found) + 4) for found in words]
    central = sorted(range(1, len(sentences)), key=lambda i: (-scores[i], i))[: _SENTENCES - 1]
    return _join([sentences[i] for i in sorted([0, *central])])


def language(text: str) -> str:
    """`zh`, `ja` or `ko` where such script prevails, else `en`."""
    sample = text[:LOOK_CHARS]
    cjk = _CJK.findall(sample)
    if len(cjk) * 4 < len(sample):
        return "en"
    if any("\u3040" <= char <= "\u30ff" for char in cjk):
        return "ja"
    return "ko" if any("\uac00" <= char <= "\ud7af" for char in cjk) else "zh"


def json_value(text: str, schema: Mapping[str, Any] | None) -> Any:
    """A value that satisfies `schema` (OpenAPI subset or JSON Schema); without one, a summary and its language.

    Raises TypeError, ValueError or AttributeError for what is no schema. Patterns and conditions are not honoured.
    """
    summary = summarize(text)
    if not schema:
        return {"summary": summary, "language": language(text)}
    return _fill(schema, summary, schema, 0)


def _body(text: str) -> str:
    head, _, rest = text.partition("\n\n")
    return rest if len(head) <= 300 and len(rest) > len(head) else text


def _sentences(text: str) -> list[str]:
    for end in _ENDS:  # replacing is several times faster than a regular expression that looks at every character
        text = text.replace(end, end + "\n")
    for quote in _CLOSING:
        text = text.replace("\n" + quote, quote + "\n")
    return [piece.strip()[:_SENTENCE_CHARS] for piece in text.split("\n") if piece.strip()][:_SCORED]


def _words(sentence: str) -> set[str]:
    """Words long enough to mean something; characters where words are not set apart."""
    return {word for word in sentence.lower().split() if len(word) > 3} if " " in sentence else set(sentence)


def _join(sentences: list[str]) -> str:
    out = ""
    for sentence in sentences:
        out += sentence if not out or _CJK.match(sentence) or out[-1] in "。！？" + _CLOSING else f" {sentence}"
    return out


def _fill(schema: Any, text: str, root: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > 2 * _DEPTH:  # `true` allows anything; a schema may require itself
        return None
    if "$ref" in schema:
        return _fill(_resolve(schema["$ref"], root), text, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][len(text) % len(schema["enum"])]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return _fill(schema[union][0 if depth < _DEPTH else -1], text, root, depth + 1)
    kind = _type(schema)
    return _FILLERS[kind if kind in _FILLERS else "string"](schema, text, root, depth)


def _type(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    return str(kind).lower()


def _resolve(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    node: Any = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        node = node.get(name, {}) if name and isinstance(node, dict) else node
    return node if isinstance(node, dict) and "$ref" not in node else {}


def _fill_object(schema: Mapping[str, Any], text: str, root: Mapping[str, Any], depth: int) -> Any:
    properties = schema.get("properties") or {}
    names = [name for name in schema.get("propertyOrdering") or properties if name in properties]
    names += [name for name in properties if name not in names]
    if depth >= _DEPTH:
        names = [name for name in names if name in (schema.get("required") or ())]
    return {name: _fill(properties[name], text, root, depth + 1) for name in names}


def _fill_array(schema: Mapping[str, Any], text: str, root: Mapping[str, Any], depth: int) -> Any:
    least = int(schema.get("minItems") or 0)
    if depth >= _DEPTH and not least:
        return []
    length = min(max(least, 1), int(schema.get("maxItems", max(least, 1))))
    return [_fill(schema.get("items") or {}, text, root, depth + 1) for _ in range(min(length, _ITEMS))]


def _fill_string(schema: Mapping[str, Any], text: str, _root: Mapping[str, Any], _depth: int) -> str:
    if (form := schema.get("format")) in _FORMATS:
        return _FORMATS[form]
    padded = text.ljust(min(int(schema.get("minLength") or 0), LOOK_CHARS), ".")
    return padded[: int(schema["maxLength"])] if "maxLength" in schema else padded


def _fill_number(schema: Mapping[str, Any], _text: str, _root: Mapping[str, Any], _depth: int) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 2) - 1)
    value: float = min(max(0, low), high)
    return math.ceil(value) if _type(schema) == "integer" else value


_FILLERS: Mapping[str, Callable[[Mapping[str, Any], str, Mapping[str, Any], int], Any]] = {
    "string": _fill_string,
    "object": _fill_object,
    "array": _fill_array,
    "number": _fill_number,
    "integer": _fill_number,
    "boolean": lambda _schema, _text, _root, _depth: True,
    "null": lambda _schema, _text, _root, _depth: None,
}
