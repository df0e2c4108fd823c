"""Tokens of images, video, audio and PDF pages, by the published rules of each generation of models.

The numbers are the documented maxima (ai.google.dev, "Media resolution", 2026-09-19); a small image may count less. A
model is named as it answers: an older one that is routed to a newer one counts like the newer one.
"""

import math
from collections.abc import Mapping
from typing import Literal

Resolution = Literal["low", "medium", "high", "ultra_high"]
Kind = Literal["image", "video", "PDF"]

_Tokens = Mapping[Resolution | None, int]  # None: what the model does unless told

_GEMINI_3_4: Mapping[Kind, _Tokens] = {
    "image": {None: 1120, "low": 280, "medium": 560, "high": 1120, "ultra_high": 2240},
    "video": {None: 70, "low": 70, "medium": 70, "high": 280},  # a frame
    "PDF": {None: 560, "low": 280, "medium": 560, "high": 1120},  # a page
}
_GEMINI_2_5: Mapping[Kind, _Tokens] = {
    "image": {None: 2048, "low": 64, "medium": 256, "high": 2048},  # "256 + pan and scan (~2048)"
    "video": {None: 256, "low": 64, "medium": 256, "high": 256},
    "PDF": {None: 256, "low": 64, "medium": 256, "high": 256},
}
_AUDIO_3_4, _AUDIO_2_5 = 25, 32  # a second, at every resolution


def image_tokens(model: str, resolution: Resolution | None = None) -> int:
    """Most tokens of one image; `resolution` None is the model's default. `ValueError`: no such rule is published."""
    return _tokens(model, "image", resolution)


def video_tokens(model: str, seconds: float, resolution: Resolution | None = None, fps: float = 1.0) -> int:
    """Most tokens of a video with sound, sampled at `fps` frames a second. `ValueError`: no such rule is published."""
    return _whole(seconds * fps) * _tokens(model, "video", resolution) + audio_tokens(model, seconds)


def audio_tokens(model: str, seconds: float) -> int:
    """Tokens of so many seconds of sound. `ValueError`: no such rule is published."""
    return _whole(seconds * (_AUDIO_2_5 if _rules(model) is _GEMINI_2_5 else _AUDIO_3_4))


def pdf_tokens(model: str, pages: int, resolution: Resolution | None = None) -> int:
    """Most tokens of the pictures of so many pages; text that is in the file may count on top of them.

    `ValueError`: no such rule is published.
    """
    return pages * _tokens(model, "PDF", resolution)


def _tokens(model: str, kind: Kind, resolution: Resolution | None) -> int:
    rule = _rules(model)[kind]
    if resolution not in rule:
        names = ", ".join(name for name in rule if name)
        raise ValueError(f"{kind} has no resolution {resolution} with {model}; there are {names}")
    return rule[resolution]


def _rules(model: str) -> Mapping[Kind, _Tokens]:
    name = model.removeprefix("models/")
    if not name.startswith("gemini-") or name.startswith(("gemini-1", "gemini-2.0")):
        raise ValueError(f"no token rule for media is published for {model}")
    return _GEMINI_2_5 if name.startswith("gemini-2.5") else _GEMINI_3_4


def _whole(number: float) -> int:
    """Rounded up, but not for what binary fractions add: 30 s at 0.1 frames a second are 3 frames."""
    return math.ceil(round(number, 6))
