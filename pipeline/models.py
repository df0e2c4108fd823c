"""What is known of each model: its sizes, and what becomes of its name. The one table of such facts.

Gemini's models as documented on 2026-11-22. Others are used by naming their prices in the job.
"""

import re
from dataclasses import dataclass
from datetime import date

DOCUMENTED = date(2026, 11, 22)
"""Day on which this table was last compared with the service's pages."""

MIN_CACHED_PROMPT_TOKENS = 4096
"""Shorter prompts are never served from the implicit cache: Gemini 3 and 4 as documented on 2026-09-07."""


@dataclass(frozen=True, slots=True)
class Model:
    """A text model: its sizes in tokens, and what becomes of its name.

    From `off` on (UTC), requests are silently routed to `successor` and billed at its rates.
    """

    name: str
    context_tokens: int = 1_048_576
    max_output_tokens: int = 65_536  # of one answer that is not streamed, which is how it is asked here
    listed_output_tokens: int = 65_536  # what the service names as the limit, streamed answers included
    continues: bool = False  # a longer answer goes on in further requests, each up to those limits
    shared_context: bool = False  # prompt and answer must fit into the context together
    min_cached_tokens: int = MIN_CACHED_PROMPT_TOKENS
    off: date | None = None
    successor: str | None = None
    alias_of: str | None = None
    new_projects: bool = True  # offered to projects that have not used it yet
    minimal_thinking: bool = True  # takes the thinking level "minimal"
    explicit_caches: bool = True  # what prompts begin with may be kept there, for a price by the hour
    budgets: bool = False  # thinking is set by a budget in tokens, not by a level
    searches_by_prompt: bool = False  # a prompt that searched is billed, not each search
    sampled: bool = True  # heeds temperature, topP and topK; the others accept and ignore them
    batch_tokens: int = 2_000_000  # of input that may wait in batches at once: of the lowest tier, or the least seen


MODELS: tuple[Model, ...] = (
    Model(
        "gemini-4-argon",
        max_output_tokens=32_768,
        continues=True,
        shared_context=True,
        sampled=False,
        explicit_caches=False,
    ),
    Model("gemini-3.8-flash", minimal_thinking=False, sampled=False, batch_tokens=3_000_000),
    Model(
        "gemini-3.7-flash", sampled=False, off=date(2026, 10, 8), successor="gemini-3.8-flash", batch_tokens=3_000_000
    ),
    Model("gemini-3.6-flash", sampled=False, batch_tokens=3_000_000),
    Model("gemini-3.5-flash", off=date(2026, 10, 8), successor="gemini-3.6-flash", batch_tokens=3_000_000),
    Model("gemini-3.5-flash-lite", batch_tokens=10_000_000),
    Model("gemini-3.1-flash-lite", off=date(2027, 5, 7), batch_tokens=10_000_000),
    Model("gemini-3.1-pro-preview", batch_tokens=5_000_000),
    Model("gemini-3-flash-preview"),
    Model(
        "gemini-2.5-pro",
        min_cached_tokens=2048,
        budgets=True,
        searches_by_prompt=True,
        off=date(2026, 12, 1),
        successor="gemini-3.8-flash",
        batch_tokens=5_000_000,
    ),
    Model(
        "gemini-2.5-flash",
        min_cached_tokens=2048,
        budgets=True,
        searches_by_prompt=True,
        off=date(2026, 12, 1),
        successor="gemini-3.5-flash-lite",
        batch_tokens=3_000_000,
    ),
    Model(
        "gemini-2.5-flash-lite",
        min_cached_tokens=2048,
        budgets=True,
        searches_by_prompt=True,
        new_projects=False,
        batch_tokens=10_000_000,
    ),
    Model("gemini-flash-latest", alias_of="gemini-3.8-flash"),
    Model("gemini-flash-lite-latest", alias_of="gemini-3.5-flash-lite"),
    Model("gemini-pro-latest", alias_of="gemini-3.1-pro-preview"),
)
"""Gemini's text models."""

EMBEDDERS: tuple[Model, ...] = (
    Model("gemini-embedding-001", 2_048, 1, 1),
    Model("gemini-embedding-2", 8_192, 1, 1),
)
"""Models that answer no prompt: the emulator lists them as the service does."""

RETIRED = ("gemini-1.0-", "gemini-1.5-", "gemini-2.0-", "gemini-pro-vision")
"""How the names of families begin that were shut down: 404."""

_BY_NAME = {model.name: model for model in MODELS}

_VERSION = re.compile(r"(?:[-@](?:latest|stable|preview|exp|\d[\d-]*))+$")


def model_info(name: str) -> Model | None:
    """Context and output size of a model, or None for one this version does not know."""
    plain = plain_name(name)
    return _BY_NAME.get(plain) or _BY_NAME.get(_VERSION.sub("", plain))


def assumed(name: str) -> Model:
    """The model of that name; of one that is not known the usual sizes are assumed."""
    return model_info(name) or Model(plain_name(name))


def plain_name(name: str) -> str:
    """`gemini-x` of `models/gemini-x`, `publishers/google/models/Gemini-X`, `google/gemini-x`; a tuned one's whole."""
    return name if name.startswith("tunedModels/") else name.strip().rsplit("/", 1)[-1].lower()


def answering(name: str, day: date) -> str:
    """The model that answers requests for `name` on `day` (UTC), and that is billed for."""
    model = model_info(name)
    if model is None:
        return plain_name(name)
    routed = model.alias_of or (model.successor if model.off and model.off <= day else None)
    return answering(routed, day) if routed else model.name


def is_version_of(answered: str, asked: str) -> bool:
    """Whether the model that answered is the one that was asked: a version of it, or whom an alias stands for.

    Of a model of one's own the name says nothing: its answers bear that of the one it was made of.
    """
    if asked.startswith(("tunedModels/", "projects/")):
        return True
    own = model_info(asked)
    names = {plain_name(asked), *((own.name, own.alias_of) if own else ())}
    given = plain_name(answered).removesuffix(":latest")
    return any(name and (given == name or _VERSION.sub("", given) == _VERSION.sub("", name)) for name in names)
