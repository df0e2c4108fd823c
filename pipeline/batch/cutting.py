"""How large a batch is: as large as what may wait at once, and early answers, allow.

A document may stand in two of them: its rows are then opened once more, which costs less than to keep it together.
"""

from dataclasses import dataclass

from pipeline.providers.batches.base import Bounds
from pipeline.store.batch_lines import Draft

LEAST_LINES = 1_000
"""A smaller batch is not worth its waiting; only a project that may have little enqueued at once gets one."""
PARTS = 50
"""Of a run's prompts one batch has so large a part at most: a first one comes back early."""
_OF_TOKENS = 4
"""So many batches fill what may be enqueued: while one is waited for, others are answered."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a batch has, or is to have: requests, bytes of their file, estimated tokens of input."""

    lines: int
    size_bytes: int
    tokens: int

    def holds(self, other: "Size") -> bool:
        """Whether the other one is no larger in anything; one line is never too large."""
        if other.lines == 1:
            return True
        return other.lines <= self.lines and other.size_bytes <= self.size_bytes and other.tokens <= self.tokens

    def with_one_more(self, size_bytes: int, tokens: int) -> "Size":
        """Itself and one request."""
        return Size(self.lines + 1, self.size_bytes + size_bytes, self.tokens + tokens)


def size_of(draft: Draft) -> Size:
    """What it has."""
    return Size(draft.lines, draft.size_bytes, draft.input_tokens_est)


def full_at(bounds: Bounds, prompts: int, enqueued_tokens: int) -> Size:
    """The most that a batch has, in a run of so many prompts, where so many tokens may wait in batches at once."""
    lines = min(bounds.lines, max(LEAST_LINES, prompts // PARTS))
    return Size(lines, bounds.bytes, enqueued_tokens // _OF_TOKENS)
