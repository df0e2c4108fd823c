"""The models that are served, as `pipeline.models` has them, and how this protocol tells of them."""

from typing import Any

from pipeline.models import DOCUMENTED, EMBEDDERS, MODELS, RETIRED, Model, answering

SUCCESSOR = "gemini-3.8-flash"
"""What the service names to who asks for a retired model."""

_GENERATE = ("generateContent", "countTokens", "createCachedContent", "batchGenerateContent")
_EMBED = ("embedContent", "countTokens")
_BY_NAME = {model.name: model for model in (*MODELS, *EMBEDDERS)}


def models_of(version: str) -> list[Model]:
    """The models that API version `version` lists: an alias only in v1beta."""
    return [model for model in _BY_NAME.values() if version == "v1beta" or not model.alias_of]


def find(name: str, version: str) -> Model | None:
    """The model of that name, or None when this API version does not have it."""
    model = _BY_NAME.get(name)
    return None if model is None or (model.alias_of and version != "v1beta") else model


def any_model(name: str) -> Model:
    """The model of that name, or one like the others where none is known."""
    return _BY_NAME.get(name) or Model(name)


def routed(name: str) -> Model:
    """The model that answers for `name`, on the day of the table: later ones change nothing here."""
    return any_model(answering(name, DOCUMENTED) if name in _BY_NAME else name)


def retired(name: str) -> bool:
    """Whether `name` belongs to a family that was shut down."""
    return name.startswith(RETIRED)


def methods(model: Model) -> tuple[str, ...]:
    """What may be asked of it."""
    if model in EMBEDDERS:
        return _EMBED
    return tuple(method for method in _GENERATE if model.explicit_caches or method != "createCachedContent")


def resource(model: Model) -> dict[str, Any]:
    """The body of `GET /models/{name}`."""
    words = model.name.replace("-", " ").title()
    told: dict[str, Any] = {
        "name": f"models/{model.name}",
        "version": "001",
        "displayName": words,
        "description": f"{words}, as the emulator serves it",
        "inputTokenLimit": model.context_tokens,
        "outputTokenLimit": model.listed_output_tokens,
        "supportedGenerationMethods": list(methods(model)),
    }
    if model not in EMBEDDERS:
        told |= {"temperature": 1, "topP": 0.95, "topK": 64, "maxTemperature": 2, "thinking": True}
    return told
