"""The durable call: `await call(prompt)` returns the reply, whether it is bought now or was bought before a crash.

    fallback         blocked, cut or too long here → ask the next target that takes this over
    continued        the answer says that it goes on → ask for its rest, each time by a call of its own
    replay           this run has the reply to this content → return it, nothing is sent
    single_flight    the same content is in flight for another row → wait for that one
    kept_before      (after an edit) an earlier generation of this run bought it → return that, nothing is sent
    cached           (when the job asks) an earlier run was answered the same → return that
    left             (when the job asks) it goes to a batch → its document is left until that is in
    packed           (when the job asks) short prompts meet, and are asked together
    record_failures  keep the outcome of what ended without an answer
    desk             (dispatch/) wait for quota, reserve the worst case (budget/), send, classify, retry or fail
    journal          price what came back, and append it before anything is done with it
    send             (providers/) one request

One concern each, each calling exactly the next one down; `durable` puts them together.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

import anyio
import orjson

from pipeline.answer_columns import moved
from pipeline.budget.cashier import Bill, Cashier, has_come, worst_case_usd
from pipeline.cache import AnswerCache
from pipeline.dispatch.desk import Admit, Desk, Send, Tries
from pipeline.packing import Packing
from pipeline.packs import apart, packed
from pipeline.prompts import Prompt
from pipeline.records import ErrorKind, Failure, FromFlex, Reply, Usage, changed
from pipeline.store.earlier import Earlier
from pipeline.store.lines import Sent
from pipeline.store.run import RunStore
from pipeline.targets import Route, Target

Call = Callable[[Prompt, Route], Awaitable[Reply]]
"""Answers a prompt by one of the targets of a route."""
Generate = Callable[[Prompt, Target], Awaitable[Reply | Failure]]
Ready = Callable[[Prompt, Target], Awaitable[Prompt | Failure]]
"""Puts what a prompt names where the target finds it; nothing of that is billed."""
Parks = Callable[[Prompt, Route], Awaitable[None]]
"""Raises `Parked` for a prompt that is left to a batch."""
Bought = Callable[[Prompt, Reply, bool], None]
"""Is told of all that was paid for, and whether it was answered."""


@dataclass(slots=True)
class Saved:
    """Calls that need not be made, and what they would have cost."""

    identical: int = 0  # one of this run with the same content gave the answer
    cached: int = 0  # an earlier run gave it
    usd: Decimal = Decimal(0)  # replies of unknown price count nothing
    kept: int = 0  # replies that an earlier generation of this run bought, taken over in this session
    kept_usd: Decimal = Decimal(0)  # what they cost then
    _open: dict[int, list[tuple[bool, Decimal]]] = field(default_factory=dict)  # by row that is not closed yet

    def add(self, row: int, usd: Decimal | None, *, is_cached: bool = False) -> None:
        """One call of a row that need not be made."""
        self._add(is_cached, usd or Decimal(0), 1)
        self._open.setdefault(row, []).append((is_cached, usd or Decimal(0)))

    def close(self, row: int, *, is_parked: bool = False) -> None:
        """The row is closed; one that is parked is opened again, and saves the same once more."""
        for is_cached, usd in self._open.pop(row, ()) if self._open else ():
            if is_parked:
                self._add(is_cached, usd, -1)

    def _add(self, is_cached: bool, usd: Decimal, sign: int) -> None:
        self.cached += sign * is_cached
        self.identical += sign * (not is_cached)
        self.usd += sign * usd

    @property
    def calls(self) -> int:
        """Both together."""
        return self.identical + self.cached


def durable(
    generate: Generate,
    desk: Callable[[Send, Admit], Desk],
    store: RunStore,
    cashier: Cashier,
    cache: AnswerCache | None,
    saved: Saved,
    bought: Bought,
    packing: Packing | None = None,
    ready: Ready | None = None,
    parks: Parks | None = None,
    earlier: Earlier | None = None,
) -> tuple[Call, Desk]:
    """The whole chain, and the desk in it, which has to run for calls to be made."""
    opened = desk(journal(generate, store, cashier, bought, ready), cashier.admit)
    call = record_failures(opened.submit, store)
    call = packed(call, packing, partial(_unread_usd, store))
    call = left(call, parks)
    call = cached(call, cache, saved)
    call = kept_before(call, earlier, store, saved)
    call = single_flight(call, saved)
    return continued(replay(call, store, saved)), opened


def fallback(call: Call) -> Call:
    """Ask others where the answer is of a kind that they take over; what those before were asked is paid for too.

    It stands above the chain of a job that has such targets, and of no other.
    """

    async def asked(prompt: Prompt, route: Route) -> Reply:
        reply = await call(prompt, route)
        while (others := route.after(reply)) is not None:
            route, before = others, reply
            reply = await call(prompt, route)
            if not reply.text and before.text:  # a part of an answer is more than none
                before, reply = reply, before
            reply = changed(reply, before=(*reply.before, changed(before, before=()), *before.before))
        return reply

    return asked


MOST_CALLS_AN_ANSWER = 64
"""Of one answer that goes on: a context of 1,048,576 tokens has room for 32 of 32,768 each."""


def continued(call: Call) -> Call:
    """Ask on where an answer goes on, by the target that gave it; each part is a call of its own, and paid as one.

    The text is that of all parts, what became of it that of the last. One that does not go on any more, as the service
    names the same place again, or that takes too many requests, stays as far as it came.
    """

    async def whole(prompt: Prompt, route: Route) -> Reply:
        reply = await call(prompt, route)
        parts: list[Reply] = []
        while (
            reply.continuation and reply.finish_reason == "CONTINUATION"
        ):  # of a pack that goes on its rows have ended
            if reply.continuation == prompt.params.continuation or len(parts) + 1 == MOST_CALLS_AN_ANSWER:
                break
            parts.append(reply)
            written = reply.usage.output_tokens + reply.usage.thinking_tokens
            prompt, route = prompt.going_on(reply.continuation, written), route.back_to(reply)
            reply = await call(prompt, route)
        return joined(parts, reply) if parts else reply

    return whole


def joined(parts: list[Reply], last: Reply) -> Reply:
    """The answer that these are, one after another."""
    lists: dict[str, list[object]] = {}
    text = ""
    for each in (*parts, last):
        for name, found in moved(each.extras, len(text)).items():
            lists[name] = [*lists.get(name, ()), *found]
        text += each.text
    return changed(
        last,
        text=text,
        extras=orjson.dumps(lists).decode() if lists else "",
        before=(*last.before, *(changed(each, before=()) for each in parts)),
    )


def replay(call: Call, store: RunStore, saved: Saved) -> Call:
    """Answer from journal and parts what this run bought before, of any model of the route.

    What another row bought costs this one nothing.
    """

    async def replayed(prompt: Prompt, route: Route) -> Reply:
        for model in route.models:
            fingerprint = prompt.fingerprint(model)
            bought = store.reply(fingerprint) or await store.sealed_reply(fingerprint, prompt.row)
            if bought is None:
                continue
            if bought.row == prompt.row:
                unread_usd = _unread_usd(store, prompt, route)
                return replace(bought.reply, unread_usd=unread_usd) if unread_usd else bought.reply
            saved.add(prompt.row, bought.reply.cost_usd)
            return shared(bought.reply)
        return await call(prompt, route)

    return replayed


def single_flight(call: Call, saved: Saved) -> Call:
    """Send the same content once at a time: whoever may be answered by the same model gets the same reply, at no cost.

    One that failed, or that a model gave which is not on the route, is no answer to a prompt of another route.
    """
    flights: dict[str, _Flight] = {}

    async def once(prompt: Prompt, route: Route) -> Reply:
        content = tuple(map(prompt.fingerprint, route.models))
        while flight := _one_of(flights, content):
            if flight.landed is None:
                flight.landed = anyio.Event()
            await flight.landed.wait()
            reply = flight.reply
            if reply is not None and (flight.content == content or reply.asked in route.models):
                saved.add(prompt.row, reply.cost_usd)
                return shared(reply)
        flight = _Flight(content)
        flights.update(dict.fromkeys(content, flight))
        try:
            flight.reply = await call(prompt, route)
            return flight.reply
        finally:
            for each in content:
                del flights[each]
            if flight.landed is not None:
                flight.landed.set()

    return once


@dataclass(slots=True)
class _Flight:
    content: tuple[str, ...]  # under each model that may answer
    landed: anyio.Event | None = None  # made by the first who waits: nearly nobody does
    reply: Reply | None = None  # stays None when the leader was withdrawn: the next in line then sends


def _one_of(flights: dict[str, _Flight], content: tuple[str, ...]) -> _Flight | None:
    if len(content) == 1:  # nearly always
        return flights.get(content[0])
    return next((flights[each] for each in content if each in flights), None)


def shared(reply: Reply) -> Reply:
    """The same answer for a row that did not buy it."""
    free = Decimal(0)
    return replace(
        reply,
        usage=Usage(),
        cost_usd=free,
        standard_usd=None,
        at_most_usd=free,
        unread_usd=free,
        attempts=0,
        rate_limited=0,
        latency_s=0.0,
        raw=b"",
    )


def kept_before(call: Call, earlier: Earlier | None, store: RunStore, saved: Saved) -> Call:
    """Answer with what an earlier generation bought, and keep it as this one's: it costs the row what it cost then."""
    if earlier is None:
        return call

    async def looked_up(prompt: Prompt, route: Route) -> Reply:
        reply = await earlier.find(prompt, route.models)
        if reply is None:
            return await call(prompt, route)
        store.append_kept(prompt, reply.asked, reply)
        saved.kept += 1
        saved.kept_usd += reply.cost_usd or 0
        return reply

    return looked_up


def cached(call: Call, cache: AnswerCache | None, saved: Saved) -> Call:
    """Answer from the cache what an earlier run bought, and put there what is bought now. Only whole answers count."""
    if cache is None:
        return call

    async def looked_up(prompt: Prompt, route: Route) -> Reply:
        for target in route:
            known = await cache.get(prompt.fingerprint(target.model), target)
            if known is not None:
                at, model = datetime.now(UTC), known.model or target.model
                saved.add(prompt.row, target.usd(known.usage, model, at), is_cached=True)
                return shared(known)
        reply = await call(prompt, route)
        if (answered := route.that_gave(reply)) is not None:
            cache.put(prompt.fingerprint(answered.model), answered, reply)
        return reply

    return looked_up


def left(call: Call, parks: Parks | None) -> Call:
    """Leave to a batch what belongs into one."""
    if parks is None:
        return call

    async def asked(prompt: Prompt, route: Route) -> Reply:
        await parks(prompt, route)
        return await call(prompt, route)

    return asked


def record_failures(call: Call, store: RunStore) -> Call:
    """Keep the outcome of a prompt that failed without an answer, for the report; it is not replayed."""

    async def recorded(prompt: Prompt, route: Route) -> Reply:
        reply = await call(prompt, route)
        if reply.raw:
            return reply
        store.append_call(prompt, route.first.model, reply)
        return changed(reply, unread_usd=_unread_usd(store, prompt, route))

    return recorded


def journal(generate: Generate, store: RunStore, cashier: Cashier, bought: Bought, ready: Ready | None = None) -> Send:
    """One request: what comes back is priced and appended to the journal before anyone sees it.

    So is a request that was billed, or may have been, without an answer: an unreadable reply, one that never came, one
    that was given up in flight. Its files are made `ready` before it is noted as sent: who is killed meanwhile bought
    nothing.
    """

    def keep(prompt: Prompt, model: str, reply: Reply, answered: bool) -> Reply:
        if not prompt.members:
            store.append_call(prompt, model, reply, answered=answered)
            return reply
        parts = apart(prompt, reply, answered)
        store.append_pack(prompt, model, parts)
        return changed(reply, members=tuple(each if is_answer else None for _, each, is_answer in parts))

    def unanswered(prompt: Prompt, target: Target, failure: Failure) -> None:
        bill = cashier.unanswered(prompt, target, failure)
        if bill is None or (bill.is_free and not failure.raw):
            store.append_ended(prompt, target.model)
            return
        reply = unread(target, failure.error_kind, failure.message, bill)
        reply = replace(reply, raw=failure.raw, usage=Usage(estimated=has_come(failure)), finished_at=time.time())
        # Before the journal: a kill between the two counts a request twice, and never not at all.
        cashier.charge(bill, target.account)
        keep(prompt, target.model, reply, answered=False)
        bought(prompt, reply, False)

    async def kept(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        made: Prompt | Failure = prompt
        if ready is not None and prompt.media:
            try:
                made = await ready(prompt, target)
            except BaseException:
                unanswered(prompt, target, NOT_SENT)
                raise
        if isinstance(made, Failure):
            unanswered(prompt, target, made)
            return made
        store.append_sent(prompt, target.model)
        try:
            outcome = await generate(made, target)
        except BaseException:
            unanswered(prompt, target, GIVEN_UP)
            raise
        if isinstance(outcome, Failure):
            unanswered(prompt, target, outcome)
            return outcome
        usage = cashier.reckoned(prompt, outcome.usage)
        if usage is not outcome.usage:
            outcome = changed(outcome, usage=usage)
        bill = cashier.answered(prompt, target, outcome)
        reply = changed(
            outcome,
            asked=target.model,
            target=target.name,
            attempts=tries.failed + 1,
            rate_limited=tries.refused,
            fell_back=_fell_back(target, outcome, tries),
            cost_usd=bill.cost_usd,
            standard_usd=bill.standard_usd,
            at_most_usd=bill.at_most_usd,
            worst_usd=bill.worst_usd,
            unread_usd=store.unread_usd(prompt.fingerprint(target.model)),
        )
        cashier.charge(bill, target.account)
        reply = keep(prompt, target.model, reply, answered=True)
        bought(prompt, reply, True)
        return reply

    return kept


def _fell_back(target: Target, reply: Reply, tries: Tries) -> FromFlex | None:
    """Why a reply is not of flex that was asked in it, now or before."""
    if reply.lane == "flex":
        return None
    return tries.fell_back or ("by_service" if target.lane == "flex" else None)


def charge_lost(store: RunStore, cashier: Cashier, route: Route) -> tuple[int, Decimal | None]:
    """Count what a killed session had in flight at its worst case; returns the number of requests, and their sum."""
    worst: list[Decimal | None] = []
    for sent, target, bill in lost_bills(store, cashier, route):
        prompt = sent.prompt
        worst.append(bill.at_most_usd)
        if bill.is_free:
            store.append_ended(prompt, sent.model)
            continue
        reply = unread(target, "network", "it was in flight when its session was killed", bill, attempts=1)
        store.append_call(prompt, sent.model, replace(reply, finished_at=sent.at or time.time()), answered=False)
    store.lost = ()
    return len(worst), None if None in worst else sum((usd for usd in worst if usd), Decimal(0))


def lost_bills(store: RunStore, cashier: Cashier, route: Route) -> Iterator[tuple[Sent, Target, Bill]]:
    """Count what a killed session had in flight at its worst case, and keep no word of it yet."""
    for sent in store.lost:
        target = max(route.asking(sent.model), key=lambda one: _dear(sent.prompt, one))  # which it was is not kept
        yield sent, target, cashier.lost(sent.prompt, target, f"{store.identity}/{sent.fingerprint}/{sent.at}", sent.at)


def _dear(prompt: Prompt, target: Target) -> Decimal:
    """What it may cost there at most; more than anything where nobody knows."""
    worst = worst_case_usd(prompt, target)
    return Decimal("Infinity") if worst is None else worst


NOT_SENT = Failure("transient", "network", "given up before it was sent", sent=False)
GIVEN_UP = Failure("transient", "network", "given up in flight: what came of it is not known")


def unread(target: Target, kind: ErrorKind, error: str, bill: Bill, attempts: int = 0) -> Reply:
    """What is kept of a request that was, or may have been, billed without an answer."""
    return Reply(
        "",
        "error",
        error_kind=kind,
        error=error,
        model=target.model,
        lane=target.lane,
        attempts=attempts,
        cost_usd=bill.cost_usd,
        at_most_usd=bill.at_most_usd,
        worst_usd=bill.worst_usd,
    )


def _unread_usd(store: RunStore, prompt: Prompt, route: Route) -> Decimal | None:
    """USD of requests for this prompt, to any model of its route, whose replies could not be read; None: unknown."""
    sums = [store.unread_usd(prompt.fingerprint(model)) for model in route.models]
    return sum((usd for usd in sums if usd), Decimal(0)) if None not in sums else None
