"""What a plan says."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from pipeline.calibration import Calibration
from pipeline.plan.amounts import Range, Work
from pipeline.plan.laned import LanePlan
from pipeline.plan.lengths import Answers
from pipeline.plan.pace import Load, Pace
from pipeline.plan.timing import Timeline
from pipeline.records import Step
from pipeline.source.order import Order


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Expected calls of one step."""

    prompts: float
    input_tokens: float
    answer_tokens: float  # output and thinking
    cost_usd: Decimal | None
    answers: Answers | None  # what is known of the length of its answers


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """Expected calls of one target."""

    name: str
    model: str
    prompts: float
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class PrefixPlan:
    """An explicit cache of what all prompts begin with; `why_not` is empty where the run makes one."""

    tokens: float
    saved_usd: Decimal | None  # by the price of cached tokens; None: unknown
    kept_usd: Range  # for making it, and for keeping it as long as the run takes: not at all, so long, twice as long
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """A row to show: its key, never its text."""

    row: int
    key: str
    remark: str


@dataclass(frozen=True, slots=True)
class Found:
    """Rows that a user may want to look at before the run: how many, and a few of them."""

    rows: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of the job will do, as far as it can be known before it. Ranges are at 95 %, or bounds."""

    model: str
    documents: int  # left to do
    documents_done: int
    documents_chunked: int
    found: Mapping[str, Found]  # by "repeats", "chunked" or a cause: those that there are
    steps: Mapping[Step, StepPlan]
    work: Work  # as expected, of what is to be bought
    out: Mapping[Step, int]  # calls that wait in batches already: of the plan only `load` and `timeline` have them
    spared: Work  # calls that are not made, since another row asks the same
    prompts: Range
    input_tokens: Range
    output_tokens: Range  # output and thinking
    cost_usd: Range | None  # None: the price is unknown
    load: Load
    pace: Pace
    calibrations: Mapping[Step, Calibration]  # of estimates of input, by step: what the run begins with
    timeline: Timeline
    order: Order | None  # in which a run reads the rows; None: that of the table
    first: tuple[int, ...]  # rows that it asks before all others
    sampled_rows: int  # 0: every row was planned
    bounded: bool  # the length of answers is not known: output and cost are bounds, not 95 %
    based_on: str  # what estimates are corrected by; may be empty
    assumptions: tuple[str, ...]
    targets: tuple[TargetPlan, ...]  # who answers how much, where the job names several
    notices: tuple[str, ...]
    prefix: PrefixPlan | None = None  # None: the job asks for no cache
    lanes: tuple[LanePlan, ...] = ()  # of each target that is not asked in standard alone
    divided: tuple[Mapping[str, float], ...] = ()
    """Calls that each target has as its part, before lanes, by its name and the number of the job's rule."""

    @property
    def calls_by_lane(self) -> dict[str, int]:
        """Calls that go to each lane at first; empty where all go to standard."""
        parts = [part for each in self.lanes for part in each.parts]
        counts: Counter[str] = Counter()
        for part in parts:
            counts[part.lane] += round(part.prompts)
        if counts:
            counts["standard"] += max(0, self.load.prompts - counts.total())
        return {lane: number for lane, number in counts.items() if number}

    @property
    def left_by_step(self) -> dict[Step, int]:
        """Calls that are to be answered, by step: those that are to be bought, and those that wait in batches."""
        return dict(Counter(self.prompts_by_step) + Counter(self.out))

    @property
    def prompts_by_step(self) -> dict[Step, int]:
        """Calls by step, rounded."""
        return {step: round(each.prompts) for step, each in self.steps.items()}
