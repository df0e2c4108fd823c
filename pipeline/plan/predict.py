"""What the service is expected to count and to answer, as far as anything is learned of it."""

from math import ceil
from typing import Literal

from pipeline.models import assumed
from pipeline.plan.amounts import Cell
from pipeline.plan.learned import Learned
from pipeline.prices import EXPECTED_SEARCHES
from pipeline.prompts import Prompt
from pipeline.records import Step
from pipeline.tokens import estimate

Scenario = Literal["low", "expected", "high"]
"""Every answer as short as can be, as expected, at the longest that the job allows."""
SCENARIOS: tuple[Scenario, ...] = ("low", "expected", "high")

UNBOUNDED_OUTPUT_TOKENS = 1000
"""Expected length of an answer that nothing bounds."""

_WORD = "word "
_WORDS_PER_TOKEN = 10_000 / estimate(_WORD * 10_000)
_NAME_TOKENS = estimate("fullname " * 1000) / 1000
_TO_LETTERS = str.maketrans("0123456789", "ghijklmnop")


class Predictor:
    """Predicts counts and answers for prompts about texts of some kind of script (`amounts.KINDS`)."""

    def __init__(self, learned: Learned, model: str) -> None:
        self._learned, self._model = learned, model

    def knows(self, step: Step) -> bool:
        """Whether there are any answers of the step."""
        return self._learned.lengths.knows(step)

    def of(self, prompt: Prompt, kind: int, scenario: Scenario) -> tuple[Cell, str]:
        """The prompt as the service will count it with its answer as expected, and a text as the scenario has it.

        The text differs from prompt to prompt. Of known lengths it has one by chance, since on each depends what is
        merged at once; its bounds are those of the mean of as many answers as are known.
        """
        ratio, name = self._learned.ratio(prompt.step, kind).value, prompt.fingerprint(self._model)
        tokens = prompt.input_tokens_est * ratio
        known = self._learned.lengths.of(prompt.step, prompt.input_tokens_est, kind)
        if known is None:
            bound = prompt.params.max_output_tokens
            answer_tokens: tuple[float, float] = (predicted_output(bound, self._model, "expected"), 0.0)
            text_tokens: float = predicted_output(bound, self._model, scenario)
        else:
            answer_tokens = known.output_tokens, known.thinking_tokens
            side = SCENARIOS.index(scenario) - 1
            doubt = side * self._learned.lengths.error(prompt.step, known.answers) if side else 0.0
            times = known.lengths[int(name[16:24], 16) % len(known.lengths)]
            text_tokens = known.output_tokens * times * (1 + doubt)
        words = round((text_tokens / ratio - _NAME_TOKENS) * _WORDS_PER_TOKEN)
        text = f"{name[:8].translate(_TO_LETTERS)} {_WORD * words}"
        sound = ratio * sum(file.tokens for file in prompt.media if file.kind == "audio")
        cached, tools = tokens * self._learned.cached_share, prompt.params.tools
        if tools is None:
            return Cell(1, tokens, cached, *answer_tokens, sound_tokens=sound), text
        searches = self._learned.searches if self._learned.searches is not None else EXPECTED_SEARCHES
        given = tokens + self._learned.tool_tokens
        return Cell(1, given, cached, *answer_tokens, searches if tools.google_search else 0.0, sound), text

    def rest(self, prompt: Prompt, first: Cell, scenario: Scenario, stream: bool) -> Cell | None:
        """The further requests for an answer that one request does not give whole; None: there are none.

        Each reads again what was written so far. Before any answer is known, all that is written counts with the first.
        """
        model, lengths = assumed(self._model), self._learned.lengths
        if not model.continues:
            return None
        if lengths.knows(prompt.step):
            number, part = self._learned.rests, first.answer_tokens
        else:
            part = model.listed_output_tokens if stream else model.max_output_tokens
            number = ceil(predicted_output(prompt.params.max_output_tokens, self._model, scenario) / part) - 1
        if number <= 0:
            return None
        given = number * first.input_tokens + part * number * (number + 1) / 2
        each = lengths.of("rest", round(given / number), 0)
        written = (number * each.output_tokens, number * each.thinking_tokens) if each else (0.0, 0.0)
        return Cell(number, given, given * self._learned.cached_share, *written)


def predicted_output(bound: int | None, model: str, scenario: Scenario) -> int:
    """Tokens of an answer within `bound`, before anything is known of the job's answers."""
    longest = assumed(model).max_output_tokens if bound is None else bound
    expected = min(UNBOUNDED_OUTPUT_TOKENS, longest) if bound is None else max(1, bound // 2)
    return {"low": 0, "expected": expected, "high": longest}[scenario]
