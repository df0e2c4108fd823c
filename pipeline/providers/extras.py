"""What comes beside the text of an answer, gathered over its pieces: searches, sources, pages, code, function calls.

It becomes one JSON object (`records.Reply.extras`) of plain lists, whatever form a service or relay gave it; a list
that would be empty is left out. Pure, and never raises.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.providers.foreign import MOST_FIELDS, folded, mapping, mappings, string, whole_number

_CALL, _CODE, _RUN = "functionCall", "executableCode", "codeExecutionResult"


@dataclass(slots=True)
class Beside:
    """What was found beside the text so far, in the fields of a candidate of `generateContent`."""

    parts: list[dict[str, Any]] = field(default_factory=list)  # that are no text
    grounding: dict[str, Any] = field(default_factory=dict)
    urls: dict[str, Any] = field(default_factory=dict)
    deltas: dict[int, dict[str, str]] = field(default_factory=dict)  # function calls of a chat, by their number

    def take(self, candidate: Mapping[str, Any]) -> None:
        """One more piece."""
        fields = folded(candidate)
        self.grounding |= folded(mapping(fields.get("groundingmetadata")))
        self.urls |= folded(mapping(fields.get("urlcontextmetadata")))
        for part in _parts(fields.get("content")):
            named = folded(part)
            for name in (_CALL, _CODE, _RUN):
                inner = named.get(name.lower())
                if isinstance(inner, dict) and not named.get("thought") and len(self.parts) < MOST_FIELDS:
                    self.parts.append({name: inner})
        for number, call in enumerate(mappings(fields.get("toolcalls"))[:MOST_FIELDS]):
            place = whole_number(call.get("index"))
            told = mapping(call.get("function"))
            known = self.deltas.setdefault(number if place is None else place, {"name": "", "args": ""})
            known["name"] += string(told.get("name"))
            arguments = told.get("arguments")
            known["args"] += arguments if isinstance(arguments, str) else "" if arguments is None else _json(arguments)

    def __bool__(self) -> bool:
        return bool(self.parts or self.grounding or self.urls or self.deltas)

    def as_candidate(self) -> dict[str, Any]:
        """Fields of a candidate that read as this does; its parts stand under `parts`."""
        found = {"groundingMetadata": self.grounding, "urlContextMetadata": self.urls}
        return {"parts": self._all_parts()} | {name: value for name, value in found.items() if value}

    def _all_parts(self) -> list[dict[str, Any]]:
        calls = [{_CALL: {"name": each["name"], "args": each["args"]}} for _, each in sorted(self.deltas.items())]
        return [*self.parts, *calls]

    @property
    def searches(self) -> int:
        """Searches that were made."""
        return len(_strings(self.grounding.get("websearchqueries"))) + len(
            _strings(self.grounding.get("imagesearchqueries"))
        )

    def told(self, text: str) -> dict[str, list[Any]]:
        """The lists, by name; `text` is the answer, in which citations have their places."""
        parts = self._all_parts()
        lists: dict[str, list[Any]] = {
            "search_queries": _strings(self.grounding.get("websearchqueries")),
            "citations": list(_citations(self.grounding, text)),
            "urls": list(_urls(self.urls)),
            "code": _code(parts),
            "function_calls": [_call(part[_CALL]) for part in parts if _CALL in part],
        }
        return {name: found[:MOST_FIELDS] for name, found in lists.items() if found}


def _parts(content: object) -> list[dict[str, Any]]:
    return mappings(content.get("parts")) if isinstance(content, dict) else mappings(content)


def _strings(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str) and each] if isinstance(value, list) else []


def _call(call: Mapping[str, Any]) -> dict[str, str]:
    args = folded(call).get("args")
    return {"name": string(call.get("name")), "args": args if isinstance(args, str) else _json(args or {})}


def _code(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, str | None]]:
    """Each piece of code with what came of it: the result that follows it."""
    found: list[dict[str, str | None]] = []
    for part in parts:
        if _CODE in part:
            language, code = (string(part[_CODE].get(name)) for name in ("language", "code"))
            found.append({"language": language.lower(), "code": code, "outcome": None, "output": None})
        elif _RUN in part:
            if not found or found[-1]["outcome"] is not None:
                found.append({"language": None, "code": None, "outcome": None, "output": None})
            outcome = string(part[_RUN].get("outcome")).upper().removeprefix("OUTCOME_").lower()
            found[-1] |= {"outcome": outcome, "output": string(part[_RUN].get("output"))}
    return found


def _urls(metadata: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    for each in map(folded, mappings(metadata.get("urlmetadata"))):
        status = string(each.get("urlretrievalstatus")).upper().removeprefix("URL_RETRIEVAL_STATUS_").lower()
        yield {"url": string(each.get("retrievedurl")), "status": status}


def _citations(metadata: Mapping[str, Any], text: str) -> Iterable[dict[str, Any]]:
    """Each source once for each passage that it supports; one that supports none in particular, once."""
    chunks = [folded(chunk) for chunk in mappings(metadata.get("groundingchunks"))]
    sources = [folded(mapping(chunk.get("web") or chunk.get("retrievedcontext"))) for chunk in chunks]
    named = [{name: string(source.get(name)) or None for name in ("uri", "title", "domain")} for source in sources]
    raw, cited = text.encode("utf-8", "replace"), set()
    for support in map(folded, mappings(metadata.get("groundingsupports"))[:MOST_FIELDS]):
        passage = _passage(folded(mapping(support.get("segment"))), text, raw)
        numbers = support.get("groundingchunkindices")
        for number in numbers[:MOST_FIELDS] if isinstance(numbers, list) else ():
            at = whole_number(number)
            if at is not None and at < len(named):
                cited.add(at)
                yield named[at] | passage
    for at, source in enumerate(named):
        if at not in cited:
            yield source | {"text": None, "start": None, "end": None}


def _passage(segment: Mapping[str, Any], text: str, raw: bytes) -> dict[str, Any]:
    """The passage and its place in characters: the service counts bytes within a part, and leaves out a 0."""
    said = string(segment.get("text"))
    start, end = whole_number(segment.get("startindex", 0)), whole_number(segment.get("endindex"))
    if start is not None and end is not None and raw[start:end].decode("utf-8", "replace") == said:
        at = len(raw[:start].decode("utf-8", "replace"))
    else:
        at = text.find(said) if said else -1
    if at < 0 or not said:
        return {"text": said or None, "start": None, "end": None}
    return {"text": said, "start": at, "end": at + len(said)}


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a number of more than 64 bits, or deeper than it can write
        try:
            return json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return ""


def as_text(lists: Mapping[str, list[Any]]) -> str:
    """The JSON object; empty where there is nothing."""
    return _json(dict(lists)) if lists else ""
