"""The durable call: `await call(prompt)` returns the reply, whether it is bought now or was bought before a crash.

    replay         this run has the reply to this content → return it, nothing is sent
    single_flight  the same content is in flight for another row → wait for that one
    cached         (when the job asks) an earlier run was answered the same → return that
    dispatch       (dispatch.py) wait for quota, reserve the worst case (budget.py), send, classify, retry or fail
    journal        price what came back, and append it before anything is done with it

One concern each, each calling exactly the next one down.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal

import anyio

from pipeline.budget.cashier import Bill, Cashier, has_come
from pipeline.cache import AnswerCache
from pipeline.flows import Call
from pipeline.prices import Rates, cost
from pipeline.records import ErrorKind, Failure, Prompt, Reply, Usage, changed
from pipeline.store.run import RunStore

Send = Callable[[Prompt], Awaitable[Reply | Failure]]


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
            unread_usd = store.unread_usd(prompt.fingerprint)
            return replace(bought.reply, unread_usd=unread_usd) if unread_usd else bought.reply
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
    free = Decimal(0)
    return replace(
        reply,
        usage=Usage(),
        cost_usd=free,
        at_most_usd=free,
        unread_usd=free,
        attempts=0,
        rate_limited=0,
        latency_s=0.0,
        raw=b"",
    )


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


Tries = dict[str, list[int]]
"""Content → failed attempts and refusals for quota, while it has no outcome."""


def record_failures(call: Call, store: RunStore, tries: Tries) -> Call:
    """Keep the outcome of a prompt that failed without an answer, for the report; it is not replayed."""

    async def recorded(prompt: Prompt) -> Reply:
        reply = await call(prompt)
        if reply.raw:
            return reply
        tries.pop(prompt.fingerprint, None)
        store.append_call(prompt, reply)
        return changed(reply, unread_usd=store.unread_usd(prompt.fingerprint))

    return recorded


def journal(send: Send, store: RunStore, cashier: Cashier, tries: Tries, bought: Callable[[Reply, bool], None]) -> Send:
    """Wrap one request: what comes back is priced and appended to the journal before anyone sees it.

    So is a request that was billed, or may have been, without an answer: an unreadable reply, one that never came, one
    that was given up in flight. `bought` is told of all that was paid for, and whether it was answered.
    """

    def unanswered(prompt: Prompt, failure: Failure) -> None:
        bill = cashier.unanswered(prompt, failure)
        if bill is None or (bill.is_free and not failure.raw):
            store.append_ended(prompt)
            return
        reply = unread(prompt, failure.error_kind, failure.message, bill)
        reply = replace(reply, raw=failure.raw, usage=Usage(estimated=has_come(failure)), finished_at=time.time())
        store.append_call(prompt, reply, answered=False)
        cashier.charge(bill)
        bought(reply, False)

    async def kept(prompt: Prompt) -> Reply | Failure:
        store.append_sent(prompt)
        try:
            outcome = await send(prompt)
        except BaseException:
            unanswered(prompt, GIVEN_UP)
            raise
        if isinstance(outcome, Failure):
            unanswered(prompt, outcome)
            counts = tries.setdefault(prompt.fingerprint, [0, 0])
            counts[outcome.kind in ("rate_limit", "day_quota", "spend_limit")] += 1
            return outcome
        failed, refused = tries.pop(prompt.fingerprint, (0, 0))
        usage = cashier.reckoned(prompt, outcome.usage)
        if usage is not outcome.usage:
            outcome = changed(outcome, usage=usage)
        bill = cashier.answered(prompt, outcome)
        reply = changed(
            outcome,
            attempts=failed + 1,
            rate_limited=refused,
            cost_usd=bill.cost_usd,
            at_most_usd=bill.at_most_usd,
            worst_usd=bill.worst_usd,
            unread_usd=store.unread_usd(prompt.fingerprint),
        )
        store.append_call(prompt, reply)
        cashier.charge(bill)
        bought(reply, True)
        return reply

    return kept


def charge_lost(store: RunStore, cashier: Cashier) -> tuple[int, Decimal | None]:
    """Count what a killed session had in flight at its worst case; returns the number of requests, and their sum."""
    worst: list[Decimal | None] = []
    for sent in store.lost:
        prompt = sent.prompt
        bill = cashier.lost(prompt, f"{store.identity}/{sent.fingerprint}/{sent.at}", sent.at)
        worst.append(bill.at_most_usd)
        if bill.is_free:
            store.append_ended(prompt)
            continue
        reply = unread(prompt, "network", "it was in flight when its session was killed", bill, attempts=1)
        store.append_call(prompt, replace(reply, finished_at=sent.at or time.time()), answered=False)
    store.lost = ()
    return len(worst), None if None in worst else sum((usd for usd in worst if usd), Decimal(0))


GIVEN_UP = Failure("transient", "network", "given up in flight: what came of it is not known")


def unread(prompt: Prompt, kind: ErrorKind, error: str, bill: Bill, attempts: int = 0) -> Reply:
    """What is kept of a request that was, or may have been, billed without an answer."""
    return Reply(
        "",
        "error",
        error_kind=kind,
        error=error,
        model=prompt.params.model,
        attempts=attempts,
        cost_usd=bill.cost_usd,
        at_most_usd=bill.at_most_usd,
        worst_usd=bill.worst_usd,
    )
