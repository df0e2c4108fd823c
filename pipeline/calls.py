"""The durable call: `await call(prompt)` returns the reply, whether it is bought now or was bought before a crash.

    replay         this run has the reply to this content → return it, nothing is sent
    single_flight  the same content is in flight for another row → wait for that one
    cached         (when the job asks) an earlier run was answered the same → return that
    budget         reserve the worst case; wait, then stop, rather than pass the cap
    dispatch       (dispatch.py) wait for quota, send, classify, retry or fail
    journal        append what came back before anything is done with it

One concern each, each calling exactly the next one down.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

import anyio

from pipeline.cache import AnswerCache
from pipeline.errors import BudgetReached, Halted, PipelineError
from pipeline.flows import Call
from pipeline.prices import LONG_PROMPT_TOKENS, MODELS, Rates, cost, model_info
from pipeline.records import Prompt, Reply, Usage, Verdict
from pipeline.spend import SpendBook
from pipeline.store.lines import Sent
from pipeline.store.run import RunStore

Send = Callable[[Prompt], Awaitable[Reply | Verdict]]

_WARN_SHARE = Decimal("0.8")
_ESTIMATE_MARGIN = 1.3
"""Room for a low token estimate in the reserved worst case: its error is below this for 95 % of documents."""


@dataclass(slots=True)
class Saved:
    """Calls that need not be made, and what they would have cost."""

    identical: int = 0  # one of this run with the same content gave the answer
    cached: int = 0  # an earlier run gave it
    usd: Decimal = Decimal(0)  # replies of unknown price count nothing

    @property
    def calls(self) -> int:
        """Both together."""
        return self.identical + self.cached


def replay(call: Call, store: RunStore, saved: Saved) -> Call:
    """Answer from journal and parts what this run bought before. What another row bought costs this one nothing."""

    async def replayed(prompt: Prompt) -> Reply:
        bought = store.reply(prompt.fingerprint) or await store.sealed_reply(prompt.fingerprint)
        if bought is None:
            return await call(prompt)
        if bought.row == prompt.row:
            return bought.reply
        saved.identical += 1
        saved.usd += bought.reply.cost_usd or 0
        return shared(bought.reply)

    return replayed


def single_flight(call: Call, saved: Saved) -> Call:
    """Send the same content once at a time: whoever asks meanwhile gets the same reply, at no cost."""
    flights: dict[str, _Flight] = {}

    async def once(prompt: Prompt) -> Reply:
        while flight := flights.get(prompt.fingerprint):
            if flight.landed is None:
                flight.landed = anyio.Event()
            await flight.landed.wait()
            if flight.reply is not None:
                saved.identical += 1
                saved.usd += flight.reply.cost_usd or 0
                return shared(flight.reply)
        flight = flights[prompt.fingerprint] = _Flight()
        try:
            flight.reply = await call(prompt)
            return flight.reply
        finally:
            del flights[prompt.fingerprint]
            if flight.landed is not None:
                flight.landed.set()

    return once


@dataclass(slots=True)
class _Flight:
    landed: anyio.Event | None = None  # made by the first who waits: nearly nobody does
    reply: Reply | None = None  # stays None when the leader was withdrawn: the next in line then sends


def shared(reply: Reply) -> Reply:
    """The same answer for a row that did not buy it."""
    return replace(reply, usage=Usage(), cost_usd=Decimal(0), attempts=0, rate_limited=0, latency_s=0.0, raw=b"")


def cached(call: Call, cache: AnswerCache | None, own: Rates | None, saved: Saved) -> Call:
    """Answer from the cache what an earlier run bought, and put there what is bought now. Only whole answers count."""
    if cache is None:
        return call

    async def looked_up(prompt: Prompt) -> Reply:
        known = await cache.get(prompt.fingerprint)
        if known is not None:
            saved.cached += 1
            saved.usd += cost(known.usage, known.model or prompt.params.model, datetime.now(UTC), own=own) or 0
            return shared(known)
        reply = await call(prompt)
        cache.put(prompt.fingerprint, reply)
        return reply

    return looked_up


class Cap(NamedTuple):
    """One cap on spending and what counts against it; `name` as in "the budget"."""

    name: str
    usd: Decimal
    spent_usd: Decimal
    hint: str


@dataclass(slots=True)
class Spending:
    """USD spent by this run so far and reserved for calls under way, against its caps (None: no cap).

    The caps of day and month are on the spending of all runs in `book`, UTC.
    """

    cap_usd: Decimal | None
    spent_usd: Decimal = Decimal(0)
    reserved_usd: Decimal = Decimal(0)
    book: SpendBook | None = None
    day_cap_usd: Decimal | None = None
    month_cap_usd: Decimal | None = None
    warned: set[str] = field(default_factory=set)  # caps of which 80 % were told

    @property
    def capped(self) -> bool:
        """Whether there is any cap."""
        return any(usd is not None for usd in (self.cap_usd, self.day_cap_usd, self.month_cap_usd))

    def caps(self) -> Iterator[Cap]:
        """Every cap that there is, as it stands now."""
        if self.cap_usd is not None:
            hint = "raise `[budget] max_usd` or `--max-cost`; the same command then continues"
            yield Cap("the budget", self.cap_usd, self.spent_usd, hint)
        if self.book is None:
            return
        day_usd, month_usd = self.book.spent()
        for name, key, cap, spent, period in (
            ("the day's budget", "max_usd_per_day", self.day_cap_usd, day_usd, "tomorrow (UTC)"),
            ("the month's budget", "max_usd_per_month", self.month_cap_usd, month_usd, "next month (UTC)"),
        ):
            if cap is not None:
                yield Cap(name, cap, spent, f"the same command continues {period}, or now with a higher [budget] {key}")

    def unkept(self) -> BudgetReached | None:
        """Why the caps over several runs cannot be kept, if so: what the others spend, or this one, cannot be told."""
        trouble = self.book.trouble if self.book is not None else None
        if trouble is None or (self.day_cap_usd is None and self.month_cap_usd is None):
            return None
        return BudgetReached(
            f"the budget of the day or month cannot be kept: {trouble}",
            "what was answered is kept; the same command continues when the file can be used again",
        )

    def passed_by(self, worst_usd: Decimal) -> Cap | None:
        """The first cap that one more call could pass."""
        return next((cap for cap in self.caps() if cap.spent_usd + self.reserved_usd + worst_usd > cap.usd), None)

    def bought(self, reply: Reply) -> None:
        """Count a reply for the other runs of the project, as soon as it is in the journal."""
        if self.book is not None and reply.cost_usd:
            self.book.add(reply.cost_usd)

    def warnings(self) -> Iterator[Cap]:
        """Each cap once, when 80 % of it are spent."""
        for cap in self.caps():
            if cap.name not in self.warned and cap.spent_usd >= cap.usd * _WARN_SHARE:
                self.warned.add(cap.name)
                yield cap


def budget(
    call: Call,
    spending: Spending,
    own: Rates | None,
    halt: Callable[[PipelineError], None],
    tell: Callable[[str, dict[str, object]], None],
) -> Call:
    """Admit a call only if its worst case fits under every cap beside all that is under way.

    A call that does not fit waits for others to settle; when none is left, or a cap cannot be kept, `halt` stops the
    run. `tell` hears of a cap of which 80 % are spent.
    """
    settled = anyio.Event()

    async def within(prompt: Prompt) -> Reply:
        nonlocal settled
        worst = worst_case_usd(prompt, own)
        while cap := spending.passed_by(worst):
            if not spending.reserved_usd:
                reason = BudgetReached(
                    f"the next call could pass {cap.name} of ${cap.usd} "
                    f"(${cap.spent_usd:.4f} spent, at most ${worst:.4f} for this call)",
                    cap.hint,
                )
                halt(reason)
                raise Halted(reason)
            await settled.wait()
        if unkept := spending.unkept():
            halt(unkept)
            raise Halted(unkept)
        spending.reserved_usd += worst
        try:
            reply = await call(prompt)
            spending.spent_usd += reply.cost_usd or 0
            for near in spending.warnings():
                share = near.spent_usd / near.usd
                tell("budget", {"message": f"{share:.0%} of {near.name} of ${near.usd} is spent"})
            return reply
        finally:
            spending.reserved_usd -= worst
            settled.set()
            settled = anyio.Event()

    return within if spending.capped else call


def worst_case_usd(prompt: Prompt, own: Rates | None) -> Decimal:
    """USD of this prompt with the longest answer that it allows, at today's price; 0 where the price is unknown."""
    params = prompt.params
    return _worst_usd(params.model, prompt.input_tokens_est, params.max_output_tokens, own) or Decimal(0)


def lost_usd(lost: Iterable[Sent], own: Rates | None) -> Decimal | None:
    """What requests whose replies were lost may have cost at most; None: the price is unknown."""
    worst = [_worst_usd(sent.model, sent.input_tokens_est, sent.max_output_tokens, own) for sent in lost]
    return None if None in worst else sum((usd for usd in worst if usd), Decimal(0))


def _worst_usd(model: str, input_tokens_est: int, max_output_tokens: int | None, own: Rates | None) -> Decimal | None:
    longest = max_output_tokens or (model_info(model) or MODELS[0]).max_output_tokens
    usage = Usage(input_tokens=math.ceil(input_tokens_est * _ESTIMATE_MARGIN), output_tokens=longest)
    if input_tokens_est <= LONG_PROMPT_TOKENS < usage.input_tokens:
        usage = replace(usage, input_tokens=LONG_PROMPT_TOKENS + 1)
    return cost(usage, model, datetime.now(UTC), own=own)


Tries = dict[str, list[int]]
"""Content → failed attempts and refusals for quota, while it has no outcome."""


def record_failures(call: Call, store: RunStore, tries: Tries) -> Call:
    """Keep the outcome of a prompt that failed without an answer, for the report; it is not replayed."""

    async def recorded(prompt: Prompt) -> Reply:
        reply = await call(prompt)
        if not reply.raw:
            tries.pop(prompt.fingerprint, None)
            store.append_call(prompt, reply)
        return reply

    return recorded


def journal(send: Send, store: RunStore, own: Rates | None, tries: Tries, bought: Callable[[Reply], None]) -> Send:
    """Wrap one request: what comes back is priced and appended to the journal before anyone sees it.

    `bought` is told of every reply that was paid for.
    """

    async def kept(prompt: Prompt) -> Reply | Verdict:
        store.append_sent(prompt)
        outcome = await send(prompt)
        if isinstance(outcome, Verdict):
            store.append_ended(prompt)
            counts = tries.setdefault(prompt.fingerprint, [0, 0])
            counts[outcome.kind in ("rate_limit", "day_quota", "spend_limit")] += 1
            return outcome
        failed, refused = tries.pop(prompt.fingerprint, (0, 0))
        at = datetime.fromtimestamp(outcome.finished_at, UTC)
        reply = replace(
            outcome,
            attempts=failed + 1,
            rate_limited=refused,
            cost_usd=cost(outcome.usage, outcome.model or prompt.params.model, at, own=own),
        )
        store.append_call(prompt, reply)
        bought(reply)
        return reply

    return kept
