"""Files within a request, as the service looks at them and counts them."""

import io
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.emulator import bodies
from pipeline.media import TAKEN, Facts, facts_of, tokens_by_rule
from pipeline.records import MediaKind, Resolution

FilesOf = Callable[[str], Facts | None]
"""The uploaded file that an address names, or None; raises `Refusal` for one that cannot be used."""
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
    return _tokens(data.get("mimeType", ""), facts_of(io.BytesIO(content), len(content)), model, resolution)


def _url_safe(text: str) -> str:
    """Base64 in one of its two alphabets: like the service's parser, both are read, with padding or without."""
    text = text.translate(_TO_URL_SAFE)
    if strange := set(text) - _LETTERS:
        raise ValueError(f"{len(strange)} characters are not of base64")
    return text + "=" * (-len(text) % 4)


def linked_tokens(data: Mapping[str, Any], files: FilesOf, model: str, resolution: str) -> Counter[str]:
    """Tokens of `fileData`: of one that was uploaded here; of one elsewhere, that nobody fetches, the least."""
    mime_type, uri = data.get("mimeType", ""), data.get("fileUri", "")
    facts = files(uri)
    if facts is None and not uri.startswith(("https://", "gs://")):
        raise bodies.refusal(400, f"Unsupported file URI type: {uri[:40]}")
    return _tokens(mime_type, facts or Facts(mime_type, 0, pages=1, seconds=1), model, resolution)


def nothing_stored(uri: str) -> Facts | None:
    """The files of a service without a place for any."""
    return None


def _tokens(mime_type: str, facts: Facts, model: str, resolution: str) -> Counter[str]:
    """Tokens of a file by modality, by the published rules; raises `Refusal` as the service does."""
    if mime_type == "text/plain":
        return Counter(TEXT=max(1, facts.size_bytes // 4))
    kind = _KINDS.get(mime_type)
    if kind is None:
        raise bodies.refusal(400, f"Unsupported MIME type: {mime_type}")
    if facts.mime_type not in TAKEN[kind]:
        what = "The document has no pages." if kind == "pdf" else f"Unable to process input {kind}."
        raise bodies.refusal(400, f"{what} Please retry or report in https://developers.generativeai.google/guide")
    return Counter({_MODALITIES[kind]: tokens_by_rule(kind, facts, model, _RESOLUTIONS.get(resolution))})
