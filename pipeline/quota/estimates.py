"""How many input tokens a prompt is expected to have, and how far off that may be."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, sqrt

from pipeline.records import Step
from pipeline.tokens import Calibration

FIRST_BIAS = 0.45
"""How far all estimates together may be off before any answer is in: ±30 % of the truth is 1.43 times the estimate."""
_CHOSEN_LOW = 1.2  # deviations; with 0.8, three refusals in 50 simulated hours of heavy-tailed prompts; with this none


@dataclass(frozen=True, slots=True, eq=False)
class Trust:
    """How to read an estimate: times `ratio`; one may be off by `spread`, all alike by `bias`, as parts of it."""

    ratio: float
    spread: float
    bias: float

    def tokens(self, estimated: int) -> int:
        """Expected tokens, rounded up."""
        return ceil(estimated * self.ratio)

    def at_most(self, tokens: int) -> int:
        """What so many expected tokens hardly exceed."""
        return ceil(tokens * (1.0 + self.bias + self.spread))


EXACT = Trust(1.0, 0.0, 0.0)


class Estimates:
    """One calibration for each step of a job: their prompts are built from different templates."""

    def __init__(self) -> None:
        self._steps: dict[Step, tuple[Calibration, Trust]] = {}

    def __iter__(self) -> Iterator[Trust]:
        return (trust for _, trust in self._steps.values())

    def trust(self, step: Step) -> Trust:
        """What the answers so far say about estimates of this step."""
        if step not in self._steps:
            calibration = Calibration()
            self._steps[step] = calibration, _trust(calibration)
        return self._steps[step][1]

    def observe(self, step: Step, estimated: int, actual: int) -> None:
        """Learn from one answer."""
        self.trust(step)
        calibration, _ = self._steps[step]
        calibration.observe(estimated, actual)
        self._steps[step] = calibration, _trust(calibration)


def _trust(calibration: Calibration) -> Trust:
    spread = calibration.margin - 1.0
    if not calibration.answers:
        return Trust(calibration.ratio, spread, FIRST_BIAS)
    # The mean of n answers is off by spread/√n; twice that, because a few long prompts weigh most. And what fills a
    # small gap is what was estimated smallest: more often too low than too high.
    bias = max(_CHOSEN_LOW * spread, 2.0 * spread / sqrt(calibration.answers))
    return Trust(calibration.ratio, spread, min(FIRST_BIAS, bias))
