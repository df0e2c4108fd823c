"""The counts of a reply made sane, in one place: whatever a service says, the sum can be billed and bounds nothing.

Nothing is negative, the cached part is within the prompt, no count is beyond what the model can do, and what is missing
is inferred from the total or from what was sent and answered. Whatever is not as the service named it is marked.
"""

import math

from pipeline.models import assumed, model_info
from pipeline.providers.foreign import any_number, folded, mapping, mappings
from pipeline.records import Usage
from pipeline.tokens import estimate

MOST_OUTPUT_TOKENS = 65_536
"""The longest answer of any text model in one request, as documented on 2026-11-22."""

_PROMPT = ("prompttokencount", "prompttokens", "inputtokens")
_OUTPUT = ("candidatestokencount", "completiontokens", "outputtokens")
_THINKING = ("thoughtstokencount", "reasoningtokens")
_CACHED = ("cachedcontenttokencount", "cachedtokens")
_TOOL = ("tooluseprompttokencount",)
_TOTAL = ("totaltokencount", "totaltokens")
_DETAILS = ("prompttokensdetails", "inputtokensdetails", "completiontokensdetails", "outputtokensdetails")
"""Where the OpenAI form keeps its parts: `reasoning_tokens` is within `completion_tokens` there."""


class _Counts:
    """The counts of one reply by name; `odd` once one of them is no count that can be."""

    def __init__(self, metadata: object) -> None:
        own = folded(mapping(metadata))
        self.inner: dict[str, object] = {}
        for name in _DETAILS:
            if isinstance(own.get(name), dict):
                self.inner |= folded(own[name])
        self.own = own
        self.odd = False

    def named(self, names: tuple[str, ...], most: float) -> int | None:
        """The count under the first of `names` that has one; None when it is missing or beyond `most`."""
        for values in (self.own, self.inner) if self.inner else (self.own,):
            for name in names:
                value = values.get(name)
                if value is None:
                    continue
                number = value if type(value) is int else any_number(value)
                if number is not None and 0 <= number <= most:
                    return math.ceil(number)
                self.odd = True
                return None
        return None

    def summed(self, name: str, most: float) -> int | None:
        """The sum of a count's parts by modality, where the count itself is missing; None when there are none."""
        if name not in self.own:
            return None
        parts = [any_number(part.get("tokenCount", part.get("token_count"))) for part in mappings(self.own.get(name))]
        total = sum(number for number in parts if number is not None and number > 0)
        if not total:
            return None
        self.odd = True
        return math.ceil(min(total, most))

    def of_sound(self, name: str) -> int:
        """The sound among a count's parts by modality; 0 where they are not told."""
        parts = mappings(self.own.get(name)) if name in self.own else ()
        told = (
            any_number(part.get("tokenCount", part.get("token_count")))
            for part in parts
            if part.get("modality") == "AUDIO"
        )
        return math.ceil(sum(number for number in told if number is not None and 0 < number < math.inf))


def names_tokens(metadata: object) -> bool:
    """Whether `usageMetadata` or `usage` has a count above 0."""
    return any((any_number(value) or 0) > 0 for value in mapping(metadata).values())


def read_usage(metadata: object, text: str, sent_tokens: int = 0, model: str = "") -> Usage:
    """Tokens as they are billed, of `usageMetadata` or `usage` beside an answer of `text`.

    `sent_tokens` is our estimate of the input and takes the place of a prompt count that is missing or impossible. Of
    impossible counts an output is counted from its text; thinking, that nobody sees, is taken at what `model` can do.
    """
    info = model_info(model)
    most_input = assumed(model).context_tokens
    most_output = max(MOST_OUTPUT_TOKENS, info.max_output_tokens) if info else most_input
    counts = _Counts(metadata)
    prompt = counts.named(_PROMPT, most_input) or counts.summed("prompttokensdetails", most_input) or 0
    cached = counts.named(_CACHED, math.inf) or 0
    tool = counts.named(_TOOL, most_input) or counts.summed("tooluseprompttokensdetails", most_input) or 0
    total = counts.named(_TOTAL, most_input + 2 * most_output) or 0
    odd_before, counts.odd = counts.odd, False
    output = counts.named(_OUTPUT, math.inf) or counts.summed("candidatestokensdetails", most_output) or 0
    thinking = counts.named(_THINKING, math.inf) or 0
    is_told = not counts.odd and bool(thinking or ((prompt or total) and (output or not text)))
    estimated = counts.odd or odd_before
    if "thoughtstokencount" not in counts.own and output >= thinking:
        output -= thinking
    if thinking > most_output:
        thinking, estimated = most_output, True
    if output > most_output:
        output, estimated, is_told = (estimate(text) if text else most_output), True, False

    if not prompt:
        estimated = True
        rest = total - (output or estimate(text)) - thinking - tool
        # A rest far above what was sent is not the prompt: thinking that the service does not name.
        prompt = rest if rest > 0 and (not sent_tokens or rest <= 2 * sent_tokens + 16) else sent_tokens
    if cached > prompt:
        apart = bool(total) and total >= prompt + cached + output + thinking + tool and prompt + cached <= most_input
        prompt, cached, estimated = (prompt + cached, cached, True) if apart else (prompt, 0, True)
    unnamed = min(total - prompt - output - thinking - tool, most_output)
    if unnamed > 0:
        # Gemini's chat completions leave thinking out of `completion_tokens`, and only the total has it: that is exact.
        estimated, is_told = estimated or not (output and "completiontokens" in counts.own), True
        if output or not text:
            thinking += unnamed
        else:
            output = unnamed
    elif text and not output and not thinking:
        output, estimated = estimate(text), True
    sound = min(counts.of_sound("prompttokensdetails") - counts.of_sound("cachetokensdetails"), prompt - cached)
    return Usage(prompt, cached, output, thinking, tool, estimated, is_told, sound_tokens=max(0, sound))
