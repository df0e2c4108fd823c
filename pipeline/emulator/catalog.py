"""The text models that are served, as of 2026-11-22, and how their names resolve.

Names, limits and routing follow the service's model pages; retired families answer 404 and name their successor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GENERATE = ("generateContent", "countTokens", "createCachedContent", "batchGenerateContent")
EMBED = ("embedContent", "countTokens")
SUCCESSOR = "gemini-3.8-flash"
_RETIRED = ("gemini-1.0-", "gemini-1.5-", "gemini-2.0-", "gemini-pro-vision")


@dataclass(frozen=True, slots=True)
class Model:
    """One served model; token limits per request."""

    name: str
    input_token_limit: int = 1_048_576
    output_token_limit: int = 65_536
    methods: tuple[str, ...] = GENERATE
    beta_only: bool = False

    def resource(self) -> dict[str, Any]:
        """The body of `GET /models/{name}`."""
        words = self.name.replace("-", " ").title()
        resource: dict[str, Any] = {
            "name": f"models/{self.name}",
            "version": "001",
            "displayName": words,
            "description": f"{words}, as the emulator serves it",
            "inputTokenLimit": self.input_token_limit,
            "outputTokenLimit": self.output_token_limit,
            "supportedGenerationMethods": list(self.methods),
        }
        if self.methods == GENERATE:
            resource |= {"temperature": 1, "topP": 0.95, "topK": 64, "maxTemperature": 2, "thinking": True}
        return resource


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model("gemini-4-argon"),
        Model("gemini-3.8-flash"),
        Model("gemini-3.7-flash"),
        Model("gemini-3.6-flash"),
        Model("gemini-3.5-flash"),
        Model("gemini-3.5-flash-lite"),
        Model("gemini-3.1-flash-lite"),
        Model("gemini-3.1-pro-preview"),
        Model("gemini-3-flash-preview"),
        Model("gemini-2.5-pro"),
        Model("gemini-2.5-flash"),
        Model("gemini-2.5-flash-lite"),
        Model("gemini-flash-latest", beta_only=True),
        Model("gemini-flash-lite-latest", beta_only=True),
        Model("gemini-pro-latest", beta_only=True),
        Model("gemini-embedding-001", 2_048, 1, EMBED),
        Model("gemini-embedding-2", 8_192, 1, EMBED),
    )
}

ROUTES: Mapping[str, str] = {
    "gemini-3.7-flash": "gemini-3.8-flash",  # both since 2026-10-08
    "gemini-3.5-flash": "gemini-3.6-flash",
    "gemini-flash-latest": "gemini-3.8-flash",
    "gemini-flash-lite-latest": "gemini-3.5-flash-lite",
    "gemini-pro-latest": "gemini-3.1-pro-preview",
}


def models_of(version: str) -> list[Model]:
    """The models that API version `version` lists."""
    return [model for model in MODELS.values() if version == "v1beta" or not model.beta_only]


def find(name: str, version: str) -> Model | None:
    """The model of that name, or None when this API version does not have it."""
    model = MODELS.get(name)
    return None if model is None or (model.beta_only and version != "v1beta") else model


def retired(name: str) -> bool:
    """Whether `name` belongs to a family that was shut down."""
    return name.startswith(_RETIRED)
