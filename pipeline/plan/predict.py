"""What the service is expected to count and to answer, as far as anything is learned of it."""

from typing import Literal

from pipeline.job import Job
from pipeline.models import assumed
from pipeline.plan.amounts import Cell, Tier, Work
from pipeline.plan.learned import Learned
from pipeline.prompts import Prompt
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
        self.model = model
        self._learned = learned

    def call(self, prompt: Prompt, kind: int) -> Cell:
        """The prompt as the service will count it, and its answer as expected."""
        tokens = prompt.input_tokens_est * self._learned.ratio(prompt.step, kind).value
        known = self._learned.lengths.of(prompt.step, prompt.input_tokens_est, kind)
        cell = Cell(1, tokens, tokens * self._learned.cached_share)
        if known is None:
            return cell._replace(
                output_tokens=predicted_output(prompt.params.max_output_tokens, self.model, "expected")
            )
        return cell._replace(output_tokens=known.output_tokens, thinking_tokens=known.thinking_tokens)

    def text_tokens(self, prompt: Prompt, scenario: Scenario, kind: int) -> float:
        """Tokens of the answer's text: of known lengths one by chance, since on each depends what is merged at once.

        Its bounds are those of the mean of as many answers as are known.
        """
        known = self._learned.lengths.of(prompt.step, prompt.input_tokens_est, kind)
        if known is None:
            return predicted_output(prompt.params.max_output_tokens, self.model, scenario)
        side = SCENARIOS.index(scenario) - 1
        doubt = side * self._learned.lengths.error(prompt.step, known.answers) if side else 0.0
        times = known.lengths[int(prompt.fingerprint(self.model)[16:24], 16) % len(known.lengths)]
        return known.output_tokens * times * (1 + doubt)

    def text(self, prompt: Prompt, scenario: Scenario, kind: int) -> str:
        """A text that the service would count as so many tokens, another for each prompt."""
        tokens = self.text_tokens(prompt, scenario, kind) / self._learned.ratio(prompt.step, kind).value
        name = prompt.fingerprint(self.model)[:8].translate(_TO_LETTERS)
        return f"{name} {_WORD * round((tokens - _NAME_TOKENS) * _WORDS_PER_TOKEN)}"


def predicted_output(bound: int | None, model: str, scenario: Scenario) -> int:
    """Tokens of an answer within `bound`, before anything is known of the job's answers."""
    longest = assumed(model).max_output_tokens if bound is None else bound
    expected = min(UNBOUNDED_OUTPUT_TOKENS, longest) if bound is None else max(1, bound // 2)
    return {"low": 0, "expected": expected, "high": longest}[scenario]


def bounded(work: Work, job: Job, learned: Learned, scenario: Scenario) -> Work:
    """`work`, its answers as short or as long as can be where nothing is known of the step's."""

    def of(tier: Tier, cell: Cell) -> Cell:
        params = job.reduce_params if tier.step == "reduce" else job.params
        if params is None or learned.lengths.knows(tier.step):
            return cell
        each = predicted_output(params.max_output_tokens, job.model, scenario)
        return cell._replace(output_tokens=cell.prompts * each)

    return {tier: of(tier, cell) for tier, cell in work.items()}
