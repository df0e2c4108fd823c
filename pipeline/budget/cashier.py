"""The cashier: what a request may cost, what is reserved for those in flight, and what each has cost.

Every request that may be billed is reserved at its worst case right before it leaves, and settled when it has come
back: by what its reply cost, by nothing where the service refused it, and by its worst case where nobody can know.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

import polars as pl

from pipeline.budget.beside import Beside
from pipeline.budget.caps import Spending
from pipeline.errors import BudgetReached, PipelineError
from pipeline.events import Notify, PriceNoted
from pipeline.models import assumed
from pipeline.prices import FREE, LONG_PROMPT_TOKENS, MOST_SEARCHES, cost
from pipeline.prompts import Prompt
from pipeline.records import Failure, Lane, Reply, Usage
from pipeline.store.parts import IS_REQUEST
from pipeline.targets import Target

ESTIMATE_AFTER = 20
"""Readable replies of a step after which one that cannot be read is taken for their mean; until then for its worst."""

ESTIMATE_MARGIN = 1.3
"""Room for a low token estimate in the reserved worst case: its error is below this for 95 % of documents."""
_TRIES = 3  # a book that is locked is waited for before each; one that reads and never writes would be asked for ever
_STANDARD: Lane = "standard"
_TOLD_RATIO = Decimal("1.05")  # of a reckoned price: what differs less is no news to a person
_NONE = Decimal(0)
_TOKENS = ("input_tokens_est", "input_tokens", "tool_tokens", "output_tokens", "thinking_tokens")
SEEN_COLUMNS = ("step", "chunk", "paid", "cost_usd", "worst_usd", "usage_estimated", *_TOKENS)


@dataclass(slots=True)
class Lengths:
    """Sums over the readable replies of one step: what one that cannot be read is likely to have cost."""

    replies: int = 0
    estimated_tokens: int = 0  # of input, before they were sent
    input_tokens: int = 0
    output_tokens: int = 0  # with thinking
    thinking_tokens: int = 0

    def add(self, estimated_tokens: int, usage: Usage, replies: int = 1) -> None:
        """Count one reply, or several together."""
        self.replies += replies
        self.estimated_tokens += estimated_tokens
        self.input_tokens += usage.input_tokens + usage.tool_tokens
        self.output_tokens += usage.output_tokens + usage.thinking_tokens
        self.thinking_tokens += usage.thinking_tokens

    def likely(self, estimated_tokens: int) -> Usage | None:
        """Tokens of one more reply; None while too few are known."""
        if self.replies < ESTIMATE_AFTER or not self.estimated_tokens:
            return None
        given = round(estimated_tokens * self.input_tokens / self.estimated_tokens)
        return Usage(given, output_tokens=round(self.output_tokens / self.replies))


@dataclass(slots=True)
class Seen:
    """What the replies so far have shown of this service's bills; those of earlier sessions are put in at the start."""

    replies: int = 0  # to requests that were reserved for
    ratio: Decimal = Decimal(1)  # the most that was billed of what a request was reckoned to cost at most
    steps: dict[str, Lengths] = field(default_factory=dict)


class Bill(NamedTuple):
    """What a request cost, what more it may have cost (None: unknown), and what it was reckoned to cost at most."""

    cost_usd: Decimal | None
    at_most_usd: Decimal | None
    worst_usd: Decimal | None  # None: it was not reserved for, as there is no cap, or its price is unknown
    standard_usd: Decimal | None = None  # of an answer in another lane, what it would have cost in standard; in a
    # rehearsal, which costs nothing, what that lane would save by the tables

    @property
    def is_free(self) -> bool:
        """Whether it is certain that nothing was billed."""
        return self.cost_usd == 0 and self.at_most_usd == 0


class Cashier:
    """Reserves for every request that leaves under a cap, and says what each has cost, or may have.

    Nobody knows before the first replies what is really billed: thinking may come on top of the longest answer, or a
    dearer model may answer. So few requests are in flight at first, twice as many as replies have come, and reserved is
    the worst case times the largest part of it that was ever billed. What passes a cap all the same is at most what the
    requests in flight are billed beyond that, when it happens for the first time.
    """

    def __init__(
        self,
        spending: Spending,
        tell: Notify = lambda event: None,
        seen: Seen | None = None,
        allow_unpriced: bool = False,
        is_held_elsewhere: bool = False,
    ) -> None:
        """`tell` hears of what a person may want to know; `is_held_elsewhere`: another reserves for requests."""
        self._spending, self._tell = spending, tell
        self._seen = seen or Seen()
        self._allow_unpriced, self._is_held_elsewhere = allow_unpriced, is_held_elsewhere
        self.beside = Beside(spending, lambda: not (self._held or self._lost))
        self._held: dict[str, tuple[Decimal | None, Decimal]] = {}  # content → worst case, and what is reserved for it
        self._lost: dict[str, tuple[Decimal | None, Decimal]] = {}  # the same of those that nobody hears of for now
        self._unpriced: str | None = None  # a model that answered at a price that nobody knows
        self._told: set[object] = set()

    def admit(self, prompt: Prompt, target: Target) -> bool:
        """Reserve for one request to `target`; False while those in flight may leave room for it.

        Raises `BudgetReached` when nothing is in flight and it could pass a cap, or when a cap cannot be kept.
        """
        if not self._spending.capped:
            return True
        for _ in range(_TRIES):
            admitted = self._reserved(prompt, target)
            if admitted is not None:
                return admitted
        raise self._spending.unkept() or BudgetReached(
            "the budget of the day or month cannot be kept: what is in flight cannot be noted for other runs",
            "the same command continues when the file can be used again",
        )

    def _reserved(self, prompt: Prompt, target: Target) -> bool | None:
        """See `admit`; None where nothing is in flight and the others cannot be told what would be."""
        if unkept := self._unkept():
            raise unkept
        if self._held and (self._spending.blind or len(self._held) >= 2 * self._seen.replies):
            return False
        worst = worst_case_usd(prompt, target)
        held = (worst or _NONE) * self._seen.ratio
        cap = self._spending.reserve(held)
        if cap is None and self._spending.blind:  # the others would not know of it, should this process be killed
            self._spending.reserved_usd -= held
            return False if self._held else None
        if cap is None:
            self._held[prompt.fingerprint(target.model)] = worst, held
            return True
        if self._held or self._lost or self.beside.may_become_less:
            return False
        lost = (
            f", up to ${cap.lost_usd:.4f} of it by what was in flight when a run was killed, or is out in batches"
            if cap.lost_usd
            else ""
        )
        raise BudgetReached(
            f"the next call could pass {cap.name} of ${cap.amount} "
            f"(${cap.spent_usd:.4f} spent{lost}, at most ${held:.4f} for this call)",
            cap.hint,
        )

    def lose(self, prompt: Prompt, target: Target) -> None:
        """Nobody hears for now what became of a request: it stays reserved for, until it is settled all the same."""
        name = prompt.fingerprint(target.model)
        if name in self._held:
            self._lost[name] = self._held.pop(name)

    def lost(self, prompt: Prompt, target: Target, name: str, at: float) -> Bill:
        """Count a request that was in flight when its session was killed, at `at`, as its worst case.

        Against the caps of day and month it counts once for each `name`: who counts it may be killed too.
        """
        most = self._most_usd(prompt, target)
        self._spending.spend_once(name, most or _NONE, at, target.account)
        return Bill(_NONE, most, None)

    def reckoned(self, prompt: Prompt, usage: Usage) -> Usage:
        """The counts of a reply; one whose output was not told is taken to have thought as others of its step.

        Thinking is billed and never seen: a service that leaves it out leaves nothing to count it by.
        """
        lengths = self._seen.steps.get(prompt.step)
        if usage.output_told or usage.thinking_tokens or prompt.params.thinking == 0:
            return usage
        if not lengths or lengths.replies < ESTIMATE_AFTER:
            return usage
        return replace(usage, thinking_tokens=round(lengths.thinking_tokens / lengths.replies))

    @property
    def is_capped(self) -> bool:
        """Whether there is any cap: without one nothing is reserved."""
        return self._spending.capped

    def worst_usd(self, prompt: Prompt, target: Target) -> Decimal:
        """What one request is reckoned to cost at most, by what was billed so far; 0 where its price is unknown."""
        return (worst_case_usd(prompt, target) or _NONE) * self._seen.ratio

    def batched(self, prompt: Prompt, target: Target, usage: Usage, model: str, at: float) -> Bill:
        """What an answer cost that came with a batch, of that `model` at that time (epoch seconds); see `settle`."""
        worst = worst_case_usd(prompt, target) if self._spending.capped else None
        return self._bill(prompt, target, usage, model, at, worst, None)

    def settle(self, number: int, once: str, usd: Decimal, at: float, account: str) -> None:
        """Count what all of a batch cost, and reserve nothing more for it.

        Against the caps of day and month it counts once for each name `once`, on the day of `at`: a kill may come
        before what was bought is kept.
        """
        self._spending.spend_once(once, usd, at, account)
        self.beside.owe(number, _NONE)

    def answered(self, prompt: Prompt, target: Target, reply: Reply) -> Bill:
        """Settle a request that was answered: it costs what the lane does in which the service says that it served."""
        worst, held = self._settle(prompt, target)
        served = target.asked_in(reply.lane)
        bill = self._bill(prompt, served, reply.usage, reply.model, reply.finished_at, worst, held)
        self._seen.replies += held is not None
        return bill

    def _bill(
        self,
        prompt: Prompt,
        target: Target,
        usage: Usage,
        answered: str,
        finished_at: float,
        worst: Decimal | None,
        held: Decimal | None,
    ) -> Bill:
        at, model = datetime.fromtimestamp(finished_at, UTC), answered or target.model
        usd = _cost(usage, model, at, target)
        more: Decimal | None = _NONE
        if usd is None:
            model = target.model
            usd = _cost(usage, model, at, target)
            self._tell_unpriced(answered, model, usd)
            more = _beyond(usd, self._most_usd(prompt, target, worst, held))
        elif usage.estimated:
            more = _beyond(usd, self._most_usd(prompt, target, worst, held))
        else:
            self._learn(prompt, usage, usd, worst)
        return Bill(usd, more, worst, _standard_usd(usage, model, at, target))

    def unanswered(self, prompt: Prompt, target: Target, failure: Failure) -> Bill | None:
        """Settle a request that came back without an answer; None where the service did not bill it.

        A reply that came is taken for a usual one of its step, or for what it says of tokens where that is more, and
        one that never came for nothing; against the caps both count as their worst case. An error is not billed
        (Google's billing FAQ: neither 400 nor 500), but one that names tokens.
        """
        worst, held = self._settle(prompt, target)
        if not may_be_billed(failure):
            self._spending.release()
            return None
        most = self._most_usd(prompt, target, worst, held)
        usd = self._likely_usd(prompt, target, most) if has_come(failure) else _NONE
        if failure.usage is not None:
            told = _cost(failure.usage, failure.model or target.model, datetime.now(UTC), target)
            if told is not None:
                usd = max(usd or _NONE, told)
                self._heed(told, worst)
        return Bill(usd, _beyond(usd, most), worst)

    def charge(self, bill: Bill, account: str = "") -> None:
        """Count a bill against the caps, before it is in the journal; `account` pays it."""
        self._spending.spend((bill.cost_usd or _NONE) + (bill.at_most_usd or _NONE), account)
        self._spending.release()

    def _unkept(self) -> PipelineError | None:
        if self._unpriced is not None:
            return BudgetReached(
                f"{self._unpriced} answers, whose price is unknown: the budget cannot be kept",
                "set [model] prices = { input = …, output = … } and run again",
            )
        return self._spending.unkept(patient=not self._held)

    def _settle(self, prompt: Prompt, target: Target) -> tuple[Decimal | None, Decimal | None]:
        name = prompt.fingerprint(target.model)
        worst, held = self._held.pop(name, None) or self._lost.pop(name, None) or (None, None)
        if self._is_held_elsewhere:
            worst = worst_case_usd(prompt, target)
        left = self._spending.reserved_usd - (held or _NONE)
        # A sum of long decimals is rounded.
        self._spending.reserved_usd = left if self._held or self._lost else self.beside.usd
        return worst, held

    def _most_usd(
        self, prompt: Prompt, target: Target, worst: Decimal | None = None, held: Decimal | None = None
    ) -> Decimal | None:
        """What was reserved for it, else what would be."""
        if worst is not None and held is not None:
            return held
        worst = worst_case_usd(prompt, target)
        return None if worst is None else worst * self._seen.ratio

    def _likely_usd(self, prompt: Prompt, target: Target, most: Decimal | None) -> Decimal | None:
        lengths = self._seen.steps.get(prompt.step)
        usage = lengths.likely(prompt.input_tokens_est) if lengths else None
        return most if usage is None else _cost(usage, target.model, datetime.now(UTC), target)

    def _learn(self, prompt: Prompt, usage: Usage, usd: Decimal, worst: Decimal | None) -> None:
        lengths = self._seen.steps.get(prompt.step)
        if lengths is None:
            lengths = self._seen.steps[prompt.step] = Lengths()
        lengths.add(prompt.input_tokens_est, usage)
        self._heed(usd, worst)

    def _heed(self, usd: Decimal, worst: Decimal | None) -> None:
        """Reserve from now on for what was billed beyond the worst case."""
        if worst and usd > worst * self._seen.ratio:
            self._seen.ratio = usd / worst
            doubled = math.ceil(math.log2(self._seen.ratio))
            if self._seen.ratio >= _TOLD_RATIO and doubled not in self._told:
                self._told.add(doubled)
                times = f"{self._seen.ratio:.3g} times"
                text = f"a call cost {times} what was reckoned at most: so much is reserved from now on"
                self._tell(PriceNoted(text))

    def _tell_unpriced(self, answered: str, asked: str, usd: Decimal | None) -> None:
        if usd is None and not self._allow_unpriced:
            self._unpriced = answered
        if answered not in self._told:
            self._told.add(answered)
            counted = "nothing" if usd is None else f"what {asked} costs, and as its worst case against a budget"
            text = f"{answered} answers, whose price is unknown: it counts as {counted}; [model] prices can name it"
            self._tell(PriceNoted(text))


def seen_in(frames: Iterable[pl.DataFrame]) -> Seen:
    """What the calls of earlier sessions have shown, from the columns `SEEN_COLUMNS` of the store's calls."""
    seen = Seen()
    for frame in frames:
        paid = frame.filter("paid")
        requests = paid.filter(IS_REQUEST)
        seen.replies += requests.height - requests["worst_usd"].null_count()
        counted = paid.filter(~pl.col("usage_estimated"))
        reserved = counted.filter(pl.col("worst_usd") > 0)
        ratio = (reserved["cost_usd"].cast(pl.Float64) / reserved["worst_usd"].cast(pl.Float64)).max()
        if isinstance(ratio, float):
            seen.ratio = max(seen.ratio, Decimal(ratio))
        sums = counted.group_by("step").agg(IS_REQUEST.sum().alias("replies"), pl.col(*_TOKENS).sum())
        for step, replies, *tokens in sums.iter_rows():
            estimated, given, tool, output, thinking = tokens
            usage = Usage(given, output_tokens=output, thinking_tokens=thinking, tool_tokens=tool)
            seen.steps.setdefault(step, Lengths()).add(estimated, usage, replies)
    return seen


def may_be_billed(failure: Failure) -> bool:
    """Whether a failed request may have been billed: it was sent, and nothing that can be read came back."""
    return failure.billed or (failure.kind == "transient" and failure.sent and failure.http_status is None)


def has_come(failure: Failure) -> bool:
    """Whether something came back of a request that may have been billed, though it cannot be read."""
    return failure.billed and failure.error_kind not in ("timeout", "network")


def worst_case_usd(prompt: Prompt, target: Target) -> Decimal | None:
    """USD of this prompt with the longest answer that it allows, at today's price; None: the price is unknown.

    What is asked in flex may be answered, and billed, in standard: a relay need not know of flex.
    """
    if target.lane == "flex":
        target = target.asked_in("standard")
    model = assumed(target.model)
    longest = prompt.params.max_output_tokens or model.max_output_tokens
    if model.continues:  # the rest of a longer answer is asked for by requests of their own
        longest = min(prompt.params.max_output_tokens or model.listed_output_tokens, model.listed_output_tokens)
    given = math.ceil(prompt.input_tokens_est * ESTIMATE_MARGIN)
    if prompt.input_tokens_est <= LONG_PROMPT_TOKENS < given:
        given = LONG_PROMPT_TOKENS + 1
    searches = MOST_SEARCHES if prompt.may_search else 0
    sound_tokens = math.ceil(prompt.sound_tokens * ESTIMATE_MARGIN)
    usage = Usage(given, output_tokens=longest, searches=searches, sound_tokens=sound_tokens)
    return _cost(usage, target.model, datetime.now(UTC), target)


def _cost(usage: Usage, model: str, at: datetime, target: Target) -> Decimal | None:
    return target.usd(usage, model, at)


def _standard_usd(usage: Usage, model: str, at: datetime, target: Target) -> Decimal | None:
    """What an answer of another lane would have cost in standard, `Bill.standard_usd`."""
    if target.lane == "standard":
        return None
    if target.rates != FREE:
        return _cost(usage, model, at, target.asked_in("standard"))
    model = target.model  # an emulator answers as a model of its own
    here, there = (cost(usage, model, at, lane) for lane in (target.lane, _STANDARD))
    return None if here is None or there is None else there - here


def _beyond(usd: Decimal | None, most: Decimal | None) -> Decimal | None:
    """What may have to be paid beyond `usd`."""
    return None if most is None else max(_NONE, most - (usd or _NONE))
