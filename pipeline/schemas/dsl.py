"""A schema in one line, as `sentiment: positive|negative, score: float, topics: [str], name: str?`, to JSON Schema."""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.schemas.mistake import SchemaError

TYPES: Mapping[str, Mapping[str, str]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
}
_TOKEN = re.compile(r"""\s*(?:(?P<mark>[\[\]{}:,?|])|"(?P<quoted>[^"]*)"|(?P<word>[^\s\[\]{}:,?|"]+))""")
_MOST_NESTED = 16


def read(text: str) -> dict[str, Any]:
    """The JSON Schema of an object with these fields. Raises `SchemaError` at the place that cannot be read.

    A field with `?` may be left out, and may be null. `[x]` is a list, `{…}` an object, `a|b` one of several texts;
    a text with blanks or marks stands in double quotes.
    """
    return _Reader(text).fields("")


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []  # kind, text, place
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                raise SchemaError(f'a `"` is not closed, at character {at + 1} of {text!r}')
            kind = str(found.lastgroup)
            self._tokens.append((kind, found[kind], found.start(kind)))
            at = found.end()
        self._next = 0

    def fields(self, closing: str, depth: int = 0) -> dict[str, Any]:
        if depth > _MOST_NESTED:
            raise SchemaError(f"it is nested deeper than {_MOST_NESTED}: {self._text!r}")
        properties: dict[str, Any] = {}
        required = []
        while not self._is(closing):
            kind, name, at = self._take("the name of a field")
            if kind == "mark":
                raise self._wrong("the name of a field", name, at)
            if name in properties:
                raise SchemaError(f"`{name}` is there twice in {self._text!r}")
            optional = self._took("?")
            self._expect(":")
            properties[name], nullable = self._type(depth)
            if optional or nullable:
                properties[name] = _nullable(properties[name])
            else:
                required.append(name)
            if not self._took(",") and not self._is(closing):
                _, found, at = self._take("`,`")
                raise self._wrong("`,`", found, at)
        if closing:
            self._expect(closing)
        if not properties:
            raise SchemaError(f"there is no field in {self._text!r}")
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def _type(self, depth: int) -> tuple[dict[str, Any], bool]:
        """A type, and whether a `?` follows it."""
        kind, word, at = self._take("a type")
        schema: dict[str, Any]
        if (kind, word) == ("mark", "["):
            items, nullable = self._type(depth + 1)
            self._expect("]")
            schema = {"type": "array", "items": _nullable(items) if nullable else items}
        elif (kind, word) == ("mark", "{"):
            schema = self.fields("}", depth + 1)
        elif kind == "mark" or depth > _MOST_NESTED:
            raise self._wrong("a type", word, at)
        elif kind == "word" and word in TYPES and not self._is("|"):
            schema = dict(TYPES[word])
        else:
            schema = {"type": "string", "enum": self._texts(kind, word, at)}
        return schema, self._took("?")

    def _texts(self, kind: str, word: str, at: int) -> list[str]:
        """One of several texts, of which the first is taken."""
        texts = [word]
        alone = kind == "word" and not self._is("|")
        while self._took("|"):
            kind, word, at = self._take("a text")
            if kind == "mark":
                raise self._wrong("a text", word, at)
            if kind == "word" and word in TYPES:
                break
            texts.append(word)
        else:
            if alone:
                raise self._wrong(f"a type ({', '.join(TYPES)}, [list], {{fields}}, one|of|several)", word, at)
            if len(set(texts)) < len(texts):
                raise SchemaError(f"`{'|'.join(texts)}` names a text twice")
            if texts[0] not in TYPES or kind == "quoted":
                return texts
        raise SchemaError(
            f"`{word if word in TYPES else texts[0]}` is a type and stands among texts in {self._text!r}",
            "a text that is called like a type stands in double quotes; a field of several types needs JSON Schema",
        )

    def _is(self, mark: str) -> bool:
        """Whether this mark, or the end where there is none, comes next."""
        if self._next == len(self._tokens):
            return not mark
        kind, text, _ = self._tokens[self._next]
        return bool(mark) and (kind, text) == ("mark", mark)

    def _took(self, mark: str) -> bool:
        taken = self._is(mark)
        self._next += taken
        return taken

    def _take(self, what: str) -> tuple[str, str, int]:
        if self._next == len(self._tokens):
            raise SchemaError(f"{what} is missing at the end of {self._text!r}")
        self._next += 1
        return self._tokens[self._next - 1]

    def _expect(self, mark: str) -> None:
        _, found, at = self._take(f"`{mark}`")
        if not self._tokens[self._next - 1][:2] == ("mark", mark):
            raise self._wrong(f"`{mark}`", found, at)

    def _wrong(self, what: str, found: str, at: int) -> SchemaError:
        return SchemaError(f"`{found}` stands where {what} should, at character {at + 1} of {self._text!r}")


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, or null; a list of texts has no null in it that every service takes."""
    if "enum" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    kind = schema.get("type")
    return schema if isinstance(kind, list) or "anyOf" in schema else {**schema, "type": [kind, "null"]}
