"""Why an answer ended, or was not given: every spelling of services and relays as the enums of Gemini have it."""

import re
from collections.abc import Sequence
from functools import lru_cache

UNSAID = "FINISH_REASON_UNSPECIFIED"
_FINISH_NUMBERS = (
    UNSAID,
    "STOP",
    "MAX_TOKENS",
    "SAFETY",
    "RECITATION",
    "OTHER",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MALFORMED_FUNCTION_CALL",
    "IMAGE_SAFETY",
    "UNEXPECTED_TOOL_CALL",
)
"""By their numbers in the enum of `google.ai.generativelanguage.v1beta.Candidate`."""
_BLOCK_NUMBERS = ("", "SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY")
_FINISH_OTHERWISE = {
    "END_TURN": "STOP",
    "STOP_SEQUENCE": "STOP",
    "EOS": "STOP",
    "COMPLETE": "STOP",
    "COMPLETED": "STOP",
    "FINISHED": "STOP",
    "LENGTH": "MAX_TOKENS",
    "MAX_OUTPUT_TOKENS": "MAX_TOKENS",
    "MAX_LENGTH": "MAX_TOKENS",
    "MODEL_LENGTH": "MAX_TOKENS",
    "MODEL_CONTEXT_WINDOW_EXCEEDED": "MAX_TOKENS",
    "CONTENT_FILTER": "SAFETY",
    "CONTENT_FILTERED": "SAFETY",
    "REFUSAL": "SAFETY",
    "UNSPECIFIED": UNSAID,
}
"""What relays and other services call it."""
TRUNCATED = frozenset({"MAX_TOKENS", "CONTINUATION"})
CALLED = frozenset({"TOOL_CALLS", "FUNCTION_CALL", "TOOL_USE"})
"""How a chat names the end of an answer that calls functions."""
RECITATION = frozenset({"RECITATION", "IMAGE_RECITATION"})
BLOCKED = frozenset(
    {
        "SAFETY",
        "PROHIBITED_CONTENT",
        "BLOCKLIST",
        "SPII",
        "LANGUAGE",
        "MODEL_ARMOR",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_OTHER",
    }
)


def finish_reason(value: object) -> str | None:
    """The finish reason as the enum spells it, of any spelling of it or of its number; an unknown one as it is."""
    name = _reason(value, _FINISH_NUMBERS, "FINISH_REASON_")
    return _FINISH_OTHERWISE.get(name, name) or None


def block_reason(value: object) -> str:
    """The reason why a prompt was blocked, likewise; empty when there is none."""
    name = _reason(value, _BLOCK_NUMBERS, "BLOCK_REASON_").removeprefix("BLOCKED_REASON_")
    return "" if name == "UNSPECIFIED" else name


def _reason(value: object, numbers: Sequence[str], prefix: str) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return "OTHER"
    value = value.strip()[:64]
    if value.isdecimal() and int(value) < len(numbers):
        return numbers[int(value)]
    return _spelled(value, prefix)


@lru_cache(maxsize=1024)
def _spelled(value: str, prefix: str) -> str:
    # FinishReason.STOP, maxTokens, content-filter
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[\s\-]+", "_", value.rpartition(".")[2] or value)
    return spaced.upper().removeprefix(prefix)
