"""Who will answer how many of the calls, where a job names several targets: by their ranks, limits and weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import inf, log2

from pipeline.models import assumed
from pipeline.plan.amounts import Cell
from pipeline.plan.latency import PRIOR, Latency
from pipeline.plan.pace import Pace
from pipeline.prices import Rates
from pipeline.quota.limit import GROWTH_S, SLOW, SMALL
from pipeline.quota.pacer import WINDOW_S
from pipeline.quota.quota import FIRST_TPM
from pipeline.records import ALWAYS, LaneChoice, Limits, Takes

_MOST_TURNS = 1_000  # each ends a day's quota, the calls, what is more than a minute's, or a step of growth
_FAST = 1e9  # calls a minute, of one that has no limit


@dataclass(frozen=True, slots=True)
class Answerer:
    """A target as a plan sees it: `limits` with what earlier runs learned, `pace` as in `Pace`."""

    model: str
    pace: Pace
    name: str = ""
    own: Rates | None = None
    factor: Decimal = Decimal(1)
    priority: int = 1
    takes: frozenset[Takes] = ALWAYS
    weight: float = 0.0
    quota: str = ""  # whose limits are its limits too; empty: nobody's
    choice: LaneChoice = "standard"
    latency: Latency = PRIOR  # of its batches
    lost: float = 1.0  # share of a batch that is cancelled which is paid for nothing
    waiting_tokens: int | None = None  # that may wait in its batches, as far as is known

    @property
    def limits(self) -> Limits:
        """What it may be sent."""
        return self.pace.limits

    def left_today(self) -> float:
        """Requests of its day's quota."""
        if self.pace.opens_at:
            return 0.0
        return max(0.0, self.limits.rpd - self.pace.used_today) if self.limits.rpd else inf

    @property
    def grows(self) -> bool:
        """Whether a limit is to be learned."""
        return self.limits.rpm is None or self.limits.tpm is None

    @property
    def has_no_pace(self) -> bool:
        """Whether no limit of a minute holds for it."""
        return self.limits.rpm == 0 == self.limits.tpm

    def per_minute(self, mean_tokens: float, gone: float) -> float:
        """Calls with so many input tokens, that many minutes after the first."""
        requests = _allowed(self.limits.rpm, self.pace.first_rpm, gone)
        tokens = _allowed(self.limits.tpm, FIRST_TPM, gone)
        return min(_FAST, requests, tokens / mean_tokens if mean_tokens else inf)


def _allowed(limit: int | None, first: float, gone: float) -> float:
    """What a limit allows after so many minutes: one that is not known has grown, as `quota.limit` says, unrefused."""
    if limit is not None:
        return limit or inf
    steps, fast = gone * WINDOW_S / GROWTH_S, max(0.0, log2(SMALL / first))
    slow = min(500.0, max(0.0, steps - fast))  # enough for any speed
    return float(first * 2.0 ** min(steps, fast) * SLOW**slow)


def largest(answerers: Sequence[Answerer]) -> int:
    """Input tokens of the largest prompt that any of them takes."""
    contexts = [(each, assumed(each.model).context_tokens) for each in answerers]
    return max(min(context, each.limits.tpm or context) for each, context in contexts)


def apart(answerers: Sequence[Answerer]) -> list[Answerer]:
    """The first of each quota: another key of it is used when the first is refused, which no plan expects."""
    return list({each.quota or each.name: each for each in reversed(answerers)}.values())[::-1]


def parts(answerers: Sequence[Answerer], calls: float, mean_tokens: float, within_s: float = inf) -> list[float]:
    """How many of so many calls each will answer, if none is down and all answers will do; all should be in in time."""
    sent = [0.0] * len(answerers)
    left = [each.left_today() if each.takes else 0.0 for each in answerers]
    todo, minutes, gone = calls, within_s / WINDOW_S - 1.0, 0.0  # minutes: to spare
    for _ in range(_MOST_TURNS):
        speeds, unhelped = _speeds(answerers, left, todo, mean_tokens, minutes, gone)
        together = sum(speeds)
        if todo <= 0.0 or not together:
            break
        turn = min(todo / together, *(left[at] / speed for at, speed in enumerate(speeds) if speed))
        least = min(each.priority for each, some in zip(answerers, left, strict=True) if some)
        first = sum(speed for each, speed in zip(answerers, speeds, strict=True) if each.priority == least)
        if first < together and todo > first:  # the others stop once the first can do the rest in a minute
            turn = min(turn, (todo - first) / together)
        if unhelped < together and (late := todo - unhelped * minutes) > 0.0:  # until the others are in time alone
            turn = min(turn, late / (together - unhelped))
        if any(each.grows for each in answerers):
            turn = min(turn, GROWTH_S / WINDOW_S)
        minutes -= turn
        gone += turn
        for at, speed in enumerate(speeds):
            sent[at] += speed * turn
            left[at] = max(0.0, left[at] - speed * turn)
        left = [0.0 if some < 1e-6 else some for some in left]
        todo -= together * turn
    if todo > 0.0 and (whole := sum(sent)):  # on later days as on this one
        return [some * calls / whole for some in sent]
    if todo > 0.0:
        return [calls / len(answerers)] * len(answerers)
    return sent


def _speeds(
    answerers: Sequence[Answerer],
    left: Sequence[float],
    todo: float,
    mean_tokens: float,
    minutes: float,
    gone: float,
) -> tuple[list[float], float]:
    """Calls a minute that each is sent now, and those of all together without who only helps to be in time."""
    speeds, helping = [0.0] * len(answerers), 0.0
    able = 0.0  # of those of lower priorities
    for priority in sorted({each.priority for each in answerers}):
        own = [at for at, each in enumerate(answerers) if each.priority == priority and left[at]]
        before = [each for at, each in enumerate(answerers) if each.priority < priority and left[at]]
        spent = any(each.priority < priority and each.takes and not left[at] for at, each in enumerate(answerers))
        for at in own:
            takes = answerers[at].takes
            speed = answerers[at].per_minute(mean_tokens, gone)
            if not before:
                speeds[at] = speed if not spent or "day_quota" in takes or "full" in takes else 0.0
            elif "full" in takes and todo > able:
                speeds[at] = speed
            elif "deadline" in takes and todo > able * minutes + 1e-6:
                speeds[at] = speed
                helping += speed
        weighted = [at for at in own if speeds[at] and answerers[at].weight]
        if len(weighted) > 1:
            unit = min(speeds[at] / answerers[at].weight for at in weighted)
            for at in weighted:
                speeds[at] = unit * answerers[at].weight
        able += sum(speeds[at] for at in own)
    return speeds, max(0.0, able - helping)


def joint(answerers: Sequence[Answerer], each_call: Cell, longest_answer: int | None) -> Pace:
    """The pace of those that answer side by side, for calls like `each_call`; a quota on tokens as one on input."""
    first = min(each.priority for each in answerers if each.takes)
    at_once = [each for each in answerers if each.priority == first or "full" in each.takes]
    limits = [_on_input(each, each_call, longest_answer) for each in at_once]
    beyond = [each.limits.rpd for each in answerers if each in at_once or "day_quota" in each.takes]
    pace = at_once[0].pace
    return replace(
        pace,
        limits=replace(
            limits[0],
            rpm=_sum([one.rpm for one in limits]),
            tpm=_sum([one.tpm for one in limits]),
            rpd=sum(rpd for rpd in beyond if rpd) if all(beyond) else None,
            concurrency=_bound([one.concurrency for one in limits]),
        ),
        used_today=sum(each.pace.used_today for each in at_once),
        opens_at=min(each.pace.opens_at for each in at_once),
    )


def _on_input(answerer: Answerer, each_call: Cell, longest_answer: int | None) -> Limits:
    """Its limits, the one on tokens in tokens of input: of what it counts they are a part."""
    limits = answerer.limits
    if limits.tokens == "input" or not limits.tpm or not each_call.input_tokens:
        return limits
    longest = longest_answer or assumed(answerer.model).max_output_tokens
    answer = each_call.answer_tokens if limits.tokens == "total" else longest * each_call.prompts
    return replace(limits, tpm=max(1, round(limits.tpm * each_call.input_tokens / (each_call.input_tokens + answer))))


def _sum(values: Sequence[int | None]) -> int | None:
    """Of limits: none at all (0) where one has none, unknown where one is."""
    if 0 in values:
        return 0
    return None if None in values else sum(value or 0 for value in values)


def _bound(values: Sequence[int | None]) -> int | None:
    return None if None in values else sum(value or 0 for value in values)
