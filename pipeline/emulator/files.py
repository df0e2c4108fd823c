"""Files within a request, as the service looks at them and counts them."""

import io
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.emulator import bodies
from pipeline.media import TAKEN, facts_of, tokens_by_rule
from pipeline.records import MediaKind, Resolution

_MODALITIES: Mapping[MediaKind, str] = {"image": "IMAGE", "audio": "AUDIO", "video": "VIDEO", "pdf": "DOCUMENT"}
_KINDS = {form: kind for kind, forms in TAKEN.items() for form in forms}
_TO_URL_SAFE = str.maketrans("+/", "-_")
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=")
_RESOLUTIONS: Mapping[str, Resolution] = {
    "MEDIA_RESOLUTION_LOW": "low",
    "MEDIA_RESOLUTION_MEDIUM": "medium",
    "MEDIA_RESOLUTION_HIGH": "high",
}


def inline_tokens(data: Mapping[str, Any], model: str, resolution: str) -> Counter[str]:
    """Tokens of `inlineData` by modality; raises `Refusal` (400) for what is no file, or not of that form."""
    try:
        content = urlsafe_b64decode(_url_safe(data.get("data") or ""))
    except ValueError:
        raise bodies.refusal(400, "Base64 decoding failed for inline data.") from None
    return tokens_of(data.get("mimeType", ""), content, model, resolution)


def _url_safe(text: str) -> str:
    """Base64 in one of its two alphabets: like the service's parser, both are read, with padding or without."""
    text = text.translate(_TO_URL_SAFE)
    if strange := set(text) - _LETTERS:
        raise ValueError(f"{len(strange)} characters are not of base64")
    return text + "=" * (-len(text) % 4)


def tokens_of(mime_type: str, content: bytes, model: str, resolution: str) -> Counter[str]:
    """Tokens of a file by modality, by the published rules; raises `Refusal` as the service does."""
    if mime_type == "text/plain":
        return Counter(TEXT=max(1, len(content) // 4))
    kind = _KINDS.get(mime_type)
    if kind is None:
        raise bodies.refusal(400, f"Unsupported MIME type: {mime_type}")
    facts = facts_of(io.BytesIO(content), len(content))
    if facts.mime_type not in TAKEN[kind]:
        what = "The document has no pages." if kind == "pdf" else f"Unable to process input {kind}."
        raise bodies.refusal(400, f"{what} Please retry or report in https://developers.generativeai.google/guide")
    return Counter({_MODALITIES[kind]: tokens_by_rule(kind, facts, model, _RESOLUTIONS.get(resolution))})
