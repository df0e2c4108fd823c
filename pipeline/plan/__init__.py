"""What is left to do and what it will take: the job's own flows, run over predicted replies. Nothing is sent."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from random import Random

from pipeline import flows
from pipeline.job import Job
from pipeline.plan.amounts import Range
from pipeline.prices import CHECKED, MODELS, cost, model_info
from pipeline.records import Document, Limits, Prompt, Reply, Step, Usage
from pipeline.tokens import estimate

SAMPLE_ROWS = 20_000
"""More rows than this are planned from at most this many of them, one of each stretch of neighbours."""

UNKNOWN_LIMITS = Limits(rpm=5, tpm=250_000)
"""What a run starts with when a limit is not configured: the smallest that has been seen granted (2026-10)."""

_RPM_SHARE, _TPM_SHARE = 0.99, 0.97  # of the limit that the dispatcher reaches, measured in the limiter tests
_TAIL_S = 10.0  # answers of the last requests
_WORD = "word "
_WORDS_PER_TOKEN = 10_000 / estimate(_WORD * 10_000)
_UNBOUNDED_OUTPUT_TOKENS = 1000  # expected length of an answer that nothing bounds


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of the job will do, as far as it can be known before it."""

    documents: int  # left to do
    documents_done: int
    documents_chunked: int
    longest_chunks: int
    documents_refused: int  # not sent at all: empty, or too long
    prompts_by_step: dict[Step, int]
    input_tokens: int
    output_tokens: Range
    cost_usd: Range | None  # None: the price is unknown
    seconds: float
    nights: int  # days of quota needed
    bottleneck: str  # rpm, tpm, rpd, or none
    model: str
    prices_dated: str
    sampled_rows: int  # 0: every row was planned
    assumptions: tuple[str, ...]

    @property
    def prompts(self) -> int:
        """Calls over all steps."""
        return sum(self.prompts_by_step.values())


@dataclass
class _Tally:
    """Sums over the planned documents."""

    documents: int = 0
    chunked: int = 0
    longest: int = 0
    refused: int = 0
    input_tokens: int = 0
    output_expected: int = 0
    output_high: int = 0
    low_usd: Decimal = Decimal(0)
    expected_usd: Decimal = Decimal(0)
    high_usd: Decimal = Decimal(0)
    unpriced: bool = False


def _nothing(fingerprint: str) -> Reply | None:
    return None


async def make(
    job: Job,
    batches: Iterable[Iterable[Document]],
    rows: int,
    done: Callable[[int], bool],
    bought: Callable[[str], Reply | None] = _nothing,
    limits: Limits | None = None,
) -> Plan:
    """Plan every row that is not `done`, or an even sample of many, under `limits` (default: the job's).

    `rows` is the table's length.

    A prompt whose fingerprint has a reply that was `bought` already is not counted: the run replays it.
    """
    steps: Counter[Step] = Counter()
    tally = _Tally()
    left = sum(not done(row) for row in range(rows))
    every = max(1, math.ceil(left / SAMPLE_ROWS))
    seen = chosen = 0
    pick = Random(0)  # a fixed stride would see only one language of a table that alternates two
    now = datetime.now(UTC)
    limits = limits or job.limits

    async def predicted(prompt: Prompt) -> Reply:
        if (known := bought(prompt.fingerprint)) is not None:
            return known
        steps[prompt.step] += 1
        expected, high = predicted_output(prompt)
        tally.input_tokens += prompt.input_tokens_est
        tally.output_expected += expected
        tally.output_high += high
        for name, output in (("low_usd", 0), ("expected_usd", expected), ("high_usd", high)):
            price = cost(
                Usage(prompt.input_tokens_est, output_tokens=output), prompt.params.model, now, own=job.own_rates
            )
            tally.unpriced |= price is None
            setattr(tally, name, getattr(tally, name) + (price or 0))
        return Reply(
            _WORD * int(expected * _WORDS_PER_TOKEN),
            "ok",
            model=prompt.params.model,
            usage=Usage(prompt.input_tokens_est, 0, expected),
        )

    for batch in batches:
        for document in batch:
            if done(document.row):
                continue
            place = seen % every
            if place == 0:
                chosen = pick.randrange(every)
            seen += 1
            if place != chosen:
                continue
            answer = await flows.run(document, job, predicted)
            tally.documents += 1
            tally.refused += answer.chunks == 0
            tally.chunked += answer.chunks > 1
            tally.longest = max(tally.longest, answer.chunks)
    scale = left / tally.documents if tally.documents else 0.0
    by_step = {step: round(count * scale) for step, count in steps.items()}
    seconds, nights, bottleneck = duration(sum(by_step.values()), round(tally.input_tokens * scale), limits)
    money = Decimal(str(scale))
    return Plan(
        documents=left,
        documents_done=rows - left,
        documents_chunked=round(tally.chunked * scale),
        longest_chunks=tally.longest,
        documents_refused=round(tally.refused * scale),
        prompts_by_step=by_step,
        input_tokens=round(tally.input_tokens * scale),
        output_tokens=Range(0, round(tally.output_expected * scale), round(tally.output_high * scale)),
        cost_usd=None
        if tally.unpriced
        else Range(tally.low_usd * money, tally.expected_usd * money, tally.high_usd * money),
        seconds=seconds,
        nights=nights,
        bottleneck=bottleneck,
        model=job.params.model,
        prices_dated=CHECKED.isoformat(),
        sampled_rows=tally.documents if every > 1 else 0,
        assumptions=tuple(_assumptions(job, limits)),
    )


def predicted_output(prompt: Prompt) -> tuple[int, int]:
    """Expected and longest answer in tokens, before anything is known of this job's answers."""
    known = model_info(prompt.params.model) or MODELS[0]
    bound = prompt.params.max_output_tokens
    if bound is None:
        return min(_UNBOUNDED_OUTPUT_TOKENS, known.max_output_tokens), known.max_output_tokens
    return max(1, bound // 2), bound


def duration(prompts: int, input_tokens: int, limits: Limits) -> tuple[float, int, str]:
    """Seconds, days of quota and the binding limit for this much work under `limits` (None: unknown, 0: none)."""
    if not prompts:
        return 0.0, 0, "none"
    rpm = UNKNOWN_LIMITS.rpm if limits.rpm is None else limits.rpm
    tpm = UNKNOWN_LIMITS.tpm if limits.tpm is None else limits.tpm
    requests_s = prompts / (rpm * _RPM_SHARE) * 60 if rpm else 0.0
    tokens_s = input_tokens / (tpm * _TPM_SHARE) * 60 if tpm else 0.0
    busy_s = max(requests_s, tokens_s)
    bottleneck = "none" if not busy_s else "rpm" if requests_s >= tokens_s else "tpm"
    days = math.ceil(prompts / limits.rpd) if limits.rpd else 1
    if days > 1:
        last_day = busy_s * (prompts - (days - 1) * limits.rpd) / prompts if limits.rpd else 0.0
        by_day = (days - 1) * 86_400 + last_day
        if by_day > busy_s:
            return by_day + _TAIL_S, days, "rpd"
    return busy_s + _TAIL_S, max(days, math.ceil(busy_s / 86_400)), bottleneck


def _assumptions(job: Job, limits: Limits) -> Iterable[str]:
    if limits.rpm is None or limits.tpm is None:
        yield (
            f"[limits] are not set: time is at the first {UNKNOWN_LIMITS.rpm} requests and "
            f"{UNKNOWN_LIMITS.tpm:,} tokens a minute; a run grows from there"
        )
    if job.params.max_output_tokens is None:
        yield "[model] max_output_tokens is not set: the highest cost is every answer at the model's limit"
    else:
        yield "answers are expected at half of max_output_tokens"
