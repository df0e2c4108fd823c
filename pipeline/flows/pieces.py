"""A long text as the pieces that are asked about, each with what stands around it where the job wants that."""

import re

from pipeline.chunking import Piece, split
from pipeline.headings import above, headings
from pipeline.sections import Chunk
from pipeline.tokens import estimate

_MOST_ROOM_TOKENS = 256
_TITLE_CHARACTERS = 80
_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)*")


def pieces_of(text: str, chunk: Chunk) -> list[str]:
    """What `{{ text }}` inserts for each piece: at most `max_tokens` by estimate, whatever stands around it."""
    if chunk.context is None:
        return [text[piece.start : piece.end] for piece in split(text, chunk.max_tokens, chunk.overlap_tokens)]
    if estimate(text) <= chunk.max_tokens:
        return [text]
    room = min(chunk.max_tokens // 4, _MOST_ROOM_TOKENS)  # for the headings and the marks
    cut = split(text, chunk.max_tokens - room, chunk.overlap_tokens or chunk.max_tokens // 16)
    starts = [piece.start + piece.overlap for piece in cut]
    places = [_BLANK_LINES.match(text, start).end() for start in starts]  # type: ignore[union-attr]
    paths = above(headings(text), places)
    return [_in_context(text, piece, path, chunk.max_tokens) for piece, path in zip(cut, paths, strict=True)]


def _in_context(text: str, piece: Piece, path: list[str], max_tokens: int) -> str:
    """A piece below its headings and the end of the one before it, as much of them as there is room for."""
    start = piece.start + piece.overlap
    body, tail = text[start : piece.end], text[piece.start : start].strip()
    titles = [title if len(title) <= _TITLE_CHARACTERS else f"{title[:_TITLE_CHARACTERS]}…" for title in path]
    for before in dict.fromkeys((tail, "")):
        for first in range(len(titles) + 1):  # the outermost go first
            made = _marked(titles[first:], before, body)
            if estimate(made) <= max_tokens:
                return made
    return body


def _marked(titles: list[str], tail: str, body: str) -> str:
    lines = [f"Headings above it: {' > '.join(titles)}"] if titles else []
    lines += [f"The part before it ends: …{tail}"] if tail else []
    return "\n".join(["[Context, not part of this text]", *lines, "[This text]", body]) if lines else body
