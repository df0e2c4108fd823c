"""A long text as pieces that fit a token budget, cut where a reader would pause and overlapping as asked.

Boundaries are those of semantic-text-splitter (Unicode sentences and words, so Chinese without spaces too). Alone it is
quadratic in the text, asks a token counter about the text five to seven times over, and overlaps by whole units only:
two characters or fewer at 84 % of the joins of long paragraphs (measured 2026-11). So it is asked for one boundary at a
time, in characters, which it counts itself: how many characters fit is found here by one or two estimates, and the
overlap is taken from the offsets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from semantic_text_splitter import TextSplitter

from pipeline.tokens import estimate

_COSTLIEST_CHARACTER = 3  # tokens, whatever stands before it
_FILL = 16  # a piece is full when less than a 16th of its room is left
_OVERLAP_FILL = 8  # the same of an overlap, before its start moves to a good place
_LOOKAHEAD = 64  # characters behind the reach of a piece, by which the splitter knows a word or sentence goes on
_CONTEXT = 256  # characters before an overlap, by which the splitter knows where its words and characters begin
_LONGEST_CLUSTER = 16  # characters of one emoji with its joiners
_SAMPLE = 2_000  # characters, for the first guess at characters per token
_GUESSES = 6  # by proportion; then by halves
_GROWTH = 8  # a guess is at most this often as long as the one before


@dataclass(frozen=True, slots=True)
class Piece:
    """Character offsets into the text; the first `overlap` characters repeat the end of the previous piece."""

    start: int
    end: int
    overlap: int


def split(text: str, max_tokens: int, overlap_tokens: int = 0) -> list[Piece]:
    """Cut `text` into pieces of at most `max_tokens` by `tokens.estimate`, overlap included; none for the empty text.

    `"".join(text[p.start + p.overlap : p.end] for p in pieces)` is the text. A piece ends at a paragraph if it can,
    else at a sentence, a word, a character as readers see it, but not before half of what fits. An overlap is at most
    `overlap_tokens` and starts, in its older half, at the best of the same places.

    A character takes up to 3 tokens: one that alone is above `max_tokens` becomes a piece of its own, and the overlap
    leaves room for one, so there is none when `max_tokens` is 3 or less. Raises ValueError unless
    0 <= `overlap_tokens` < `max_tokens`.
    """
    if not 0 <= overlap_tokens < max_tokens:
        raise ValueError(f"overlap_tokens must be at least 0 and below max_tokens: {overlap_tokens}, {max_tokens}")
    overlap_tokens = min(overlap_tokens, max(0, max_tokens - _COSTLIEST_CHARACTER))
    pace = _SAMPLE / max(1, estimate(text[:_SAMPLE]))  # characters per token, a first guess
    pieces: list[Piece] = []
    body = end = 0
    while end < len(text):
        start = _overlap_start(text, body, end, overlap_tokens, pace) if end and overlap_tokens else end
        body = end
        end, pace = _piece_end(text, start, body, max_tokens, overlap_tokens, pace)
        pieces.append(Piece(start, end, body - start))
    return pieces


def _piece_end(text: str, start: int, body: int, limit: int, overlap_limit: int, pace: float) -> tuple[int, float]:
    """End of the piece that begins at `start` and is new from `body` on, and its characters per token."""
    room = range(limit - (limit - overlap_limit) // _FILL, limit + 1)
    length, tokens = _longest(lambda n: estimate(text[start : start + n]), body - start, len(text) - start, room, pace)
    reach = max(start + length, body + 1)
    pace = length / tokens if tokens else pace
    if reach == len(text):
        return reach, pace
    if len(text) - reach <= length and estimate(text[start:]) <= limit:  # no piece of its own for a little rest
        return len(text), pace
    least = max(body + 1, min((body + reach) // 2, reach - _LONGEST_CLUSTER))
    end = _boundary(text, body, least, reach, reach)
    # Three equal marks cost more than four: the part can be above the limit that the whole just met.
    return (end if tokens < limit or estimate(text[start:end]) <= limit else reach), pace


def _overlap_start(text: str, begin: int, end: int, limit: int, pace: float) -> int:
    """Where the overlap on `text[begin:end]` starts; `end` when not even a character fits."""
    room = range(limit - limit // _OVERLAP_FILL, limit + 1)
    length, tokens = _longest(lambda n: estimate(text[end - n : end]), 0, end - begin, room, pace)
    first = end - length
    if first in (begin, end):
        return first
    last = min(first + max(length // 2, min(length, _LONGEST_CLUSTER)), end - 1)
    start = _boundary(text, max(begin, first - _CONTEXT), first, last, first)
    return start if tokens < limit or estimate(text[start:end]) <= limit else first


def _boundary(text: str, begin: int, least: int, reach: int, full: int) -> int:
    """The best place from `least` to `reach` to end what starts at `begin`: the first from `full` on, else the last.

    The splitter ends a chunk before a paragraph that does not fit whole, be it after a heading of two words. Then this
    goes on with the sentences of that paragraph.
    """
    end = begin
    while end < least:
        splitter = TextSplitter((full - end, reach - end), trim=False)
        end += len(splitter.chunks(text[end : reach + _LOOKAHEAD])[0])
    return end


def _longest(size: Callable[[int], int], least: int, most: int, room: range, pace: float) -> tuple[int, int]:
    """A length above `least` and up to `most` whose size is in `room`, else the longest whose size is not above it.

    Returns it with its size; `least`, which is not measured, and 0 when none is within.
    """
    fits, fits_size, over = least, 0, most + 1
    aim = (room[0] + room[-1]) / 2
    length = min(max(int(aim * pace), least + 1), most)
    for attempt in count():
        if over - fits <= 1:
            break
        tokens = size(length)
        if tokens <= room[-1]:
            fits, fits_size = length, tokens
            if tokens in room or length == most:
                break
        else:
            over = length
        guess = int(length * aim / tokens) if attempt < _GUESSES else (fits + over) // 2
        length = max(fits + 1, min(guess, over - 1, _GROWTH * length))
    return fits, fits_size
