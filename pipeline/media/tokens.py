"""What media count as, by the rules that Google publishes: an estimate, as the pages call their numbers maxima."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.media.sizes import Facts
from pipeline.records import MediaKind, Resolution


class _Rule(NamedTuple):
    image: int
    frame: int  # of a video, one a second
    page: int


_GEMINI_3: Mapping[Resolution | None, _Rule] = {
    None: _Rule(1120, 70, 560),
    "low": _Rule(280, 70, 280),
    "medium": _Rule(560, 70, 560),
    "high": _Rule(1120, 280, 1120),
}
_GEMINI_2: Mapping[Resolution | None, _Rule] = {
    None: _Rule(256, 256, 256),
    "low": _Rule(64, 64, 64),
    "medium": _Rule(256, 256, 256),
    "high": _Rule(256, 256, 256),
}
"""Page on media resolution, 2026-09-19."""
_SECOND_OF_SOUND, _SECOND_OF_SOUND_2 = 25, 32
_TILE_PIXELS, _TILE_TOKENS, _MOST_SCANNED = 768, 258, 2048
_SMALL_PIXELS = 384
_OLD = re.compile(r"gemini-(?:1|2)[.\-]")


def tokens_by_rule(kind: MediaKind, facts: Facts, model: str, resolution: Resolution | None = None) -> int:
    """Tokens of a file for `model`; the models of other makers are taken to count as Gemini 3 does.

    The text of a PDF, which the service counts beside its pages where resolution is low, is not in it.
    """
    old = _OLD.match(model) is not None
    rule = (_GEMINI_2 if old else _GEMINI_3)[resolution]
    sound = _SECOND_OF_SOUND_2 if old else _SECOND_OF_SOUND
    if kind == "image":
        scanned = old and resolution in (None, "high")
        return rule.image + _scanned(facts) if scanned else rule.image
    if kind == "pdf":
        return rule.page * max(1, facts.pages)
    return max(1, math.ceil(facts.seconds)) * (sound if kind == "audio" else sound + rule.frame)


def _scanned(facts: Facts) -> int:
    """What Gemini 2.5 adds for a look at the parts of a large image: 258 for each 768 × 768, as its older rule says."""
    if max(facts.width, facts.height) <= _SMALL_PIXELS:
        return 0
    tiles = math.ceil(facts.width / _TILE_PIXELS) * math.ceil(facts.height / _TILE_PIXELS)
    return min(_MOST_SCANNED, tiles * _TILE_TOKENS)
