"""What is asked: content and the params of its answer. Who answers is a `Target`; the two meet in a fingerprint."""

import hashlib
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Literal

import orjson

from pipeline.records import Media, Resolution, Step

_ALWAYS_HASHED = 10
"""Fields of `Params` of November 2026, up to `safety`: a later one stands behind them."""


@dataclass(frozen=True, slots=True)
class Text:
    """A part of a turn that is text."""

    text: str


Part = Text | Media
"""What a turn is made of."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says in one go."""

    role: Literal["user", "model"]
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


Content = tuple[Turn, ...]


def said(text: str, media: tuple[Media, ...] = ()) -> Content:
    """The content that is one text, and the files before it."""
    return (Turn("user", (*media, Text(text))),)


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model may call; `parameters` are a JSON Schema, as JSON, or empty."""

    name: str
    description: str = ""
    parameters: str = ""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the model may do besides answering; `google_search` are its options as JSON, empty: it may not search."""

    google_search: str = ""
    url_context: bool = False
    code_execution: bool = False
    functions: tuple[Function, ...] = ()
    mode: str | None = None  # "auto", "any", "none" or "validated"
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Params:
    """What changes an answer beside content and model, the same for every prompt of one step; None: the default."""

    system: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    thinking: str | int | None = None  # a level ("minimal" … "xhigh"), or a budget in tokens (0 off, -1 automatic)
    response_mime_type: str | None = None
    safety: tuple[tuple[str, str], ...] = ()  # (category, threshold)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    media_resolution: Resolution | None = None
    schema: str | None = None  # JSON Schema of the answer, as JSON
    tools: Tools | None = None
    continuation: str = ""  # of the answer that is to go on, as the reply before named it
    packed: bool = False  # it may be asked together with others; of how many is no part of it


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked; it knows no service. `chunk` counts from 0 of `chunks`; for a reduce step within its level."""

    row: int
    key: str
    step: Step
    content: Content
    params: Params
    input_tokens_est: int
    level: int = 0  # reduce level, from 1; 0 for answer and map
    chunk: int = 0
    chunks: int = 1
    members: "tuple[Prompt, ...]" = ()  # of a pack: the prompts that it asks together
    _fingerprints: dict[str, str] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def text(self) -> str:
        """All of its text."""
        if (single := alone(self.content)) is not None:
            return single
        texts = (part.text for turn in self.content for part in turn.parts if isinstance(part, Text))
        return "\n".join(texts)

    @property
    def media(self) -> tuple[Media, ...]:
        """All of its files."""
        if alone(self.content) is not None:
            return ()
        return tuple(part for turn in self.content for part in turn.parts if isinstance(part, Media))

    @property
    def sound_tokens(self) -> int:
        """Of its files that have sound; a video is taken as if all of it were, as how much of it is, is not known."""
        return sum(file.tokens for file in self.media if file.kind in ("audio", "video"))

    @property
    def may_search(self) -> bool:
        """Whether searches may come on top of its tokens."""
        return self.params.tools is not None and bool(self.params.tools.google_search)

    def going_on(self, continuation: str, written_tokens: int) -> "Prompt":
        """The same again, for the rest of its answer, of which so many tokens are read again."""
        params = replace(self.params, continuation=continuation)
        return replace(self, step="rest", params=params, input_tokens_est=self.input_tokens_est + written_tokens)

    def fingerprint(self, model: str) -> str:
        """The name of the answer that `model` gives to it: see `fingerprint`. Worked out once."""
        known = self._fingerprints.get(model)
        if known is None:
            known = self._fingerprints[model] = fingerprint(self.content, self.params, model)
        return known

    def known_as(self, fingerprint: str, model: str) -> "Prompt":
        """Itself, under the fingerprint of an answer: its content is not at hand any more."""
        self._fingerprints[model] = fingerprint
        return self


def fingerprint(content: Content, params: Params, model: str) -> str:
    """The name of an answer: equal content, params and model have one answer, which is bought once.

    Who serves the model, whose key pays and how fast are no part of it. One text is hashed as it stands, which is what
    versions of November 2026 did: what they bought is found.
    """
    digest = hashlib.blake2b(_digest(params, model), digest_size=16)
    if (single := alone(content)) is not None and content[0].role == "user":
        digest.update(single.encode("utf-8", "surrogatepass"))
    else:
        digest.update(b"\xff")  # in no UTF-8: no text begins like this
        for turn in content:
            digest.update(repr((turn.role, [_named(part) for part in turn.parts])).encode())
    return digest.hexdigest()


def alone(content: Content) -> str | None:
    """The text of a content that is one text."""
    if len(content) == 1 and len(content[0].parts) == 1 and isinstance(part := content[0].parts[0], Text):
        return part.text
    return None


def _named(part: Part) -> tuple[tuple[str, str], ...]:
    """What a part is to an answer: a file is its content, wherever it lies."""
    if isinstance(part, Text):
        return (("text", part.text),)
    return (("mime_type", part.mime_type), ("digest", part.digest))


@lru_cache(maxsize=256)
def _digest(params: Params, model: str) -> bytes:
    """Of the model and of what is set. The first ten params count always: a new one buys nothing again."""
    hashed = {"model": model} | {
        field.name: value
        for number, field in enumerate(fields(params))
        if (value := getattr(params, field.name)) != field.default or number < _ALWAYS_HASHED
    }
    return hashlib.blake2b(orjson.dumps(hashed), digest_size=16).digest()
