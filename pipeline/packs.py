"""Rows that wait for each other and are asked together: a layer of the durable call, and what it does with the reply.

Each row's own flow makes its own prompt and awaits its own reply. Here prompts of equal params and route meet: the
first of a pack waits until it is full, or nobody new has come for a moment, sends the pack, and hands out what
`apart` made of the reply. Whoever got no answer is asked again in a pack of half the size, and then alone.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

import anyio

from pipeline.errors import Halted
from pipeline.models import assumed
from pipeline.packing import Packing, answers_in, is_json, item_tokens, keys_of, pack_of, shared_out, usd_shared_out
from pipeline.prompts import Params, Prompt
from pipeline.providers.answers import Answer
from pipeline.records import PASSING, Reply, Usage, changed
from pipeline.targets import Route
from pipeline.tokens import estimate

Call = Callable[[Prompt, Route], Awaitable[Reply]]
Unread = Callable[[Prompt, Route], Decimal | None]
"""What requests for a prompt cost that brought it no answer."""

MOMENT_S = 0.25
"""How long a pack waits for one more row: rows that are read together come within some ms of each other."""
_FREE = Decimal(0)


def packed(call: Call, packing: Packing | None, unread_usd: Unread) -> Call:
    """Ask short prompts of equal params and route together."""
    if packing is None:
        return call
    open_packs: dict[tuple[Params, Route, int], _Pack] = {}

    async def together(prompt: Prompt, route: Route) -> Reply:
        if not packing.takes(prompt):
            return await call(prompt, route)
        for rows in dict.fromkeys((packing.rows, packing.rows // 2)):
            outcome = await meet(prompt, route, rows) if rows > 1 else None
            if outcome is not None:
                return changed(outcome, unread_usd=unread_usd(prompt, route))
        return await call(prompt, route)

    async def meet(prompt: Prompt, route: Route, rows: int) -> Reply | None:
        """The reply to a prompt that was asked with others; None where it got none of its own."""
        place = prompt.params, route, rows
        while True:
            pack = open_packs.get(place)
            if pack is None or not pack.has_room_for(prompt):
                if pack is not None:
                    pack.full.set()
                pack = open_packs[place] = _Pack(rows, packing.room(prompt.params))
            pack.add(prompt)
            if pack.members[0] is prompt:
                return await lead(pack, place)
            await pack.wait(prompt)
            if pack.halted is not None:
                raise pack.halted
            if pack.outcomes is not None:
                return pack.outcomes[id(prompt)]

    async def lead(pack: _Pack, place: tuple[Params, Route, int]) -> Reply | None:
        first, route = pack.members[0], place[1]
        try:
            await pack.filled()
            if open_packs.get(place) is pack:
                del open_packs[place]
            pack.left = True
            if len(pack.members) == 1:
                return await call(first, route)
            longest = min(assumed(target.model).max_output_tokens for target in route)
            asked = pack_of(pack.members, longest)
            reply = await call(asked, route)
            pack.outcomes = {
                id(member): each for member, each in zip(asked.members, _outcomes(asked, reply), strict=True)
            }
            return pack.outcomes[id(first)]
        except Halted as halted:
            pack.halted = halted
            raise
        finally:
            if open_packs.get(place) is pack:
                del open_packs[place]
            pack.landed.set()

    return together


@dataclass(eq=False)
class _Pack:
    rows: int
    room: int  # tokens
    members: list[Prompt] = field(default_factory=list)
    left: bool = False
    full: anyio.Event = field(default_factory=anyio.Event)
    landed: anyio.Event = field(default_factory=anyio.Event)
    outcomes: dict[int, Reply | None] | None = None  # stays None when the first was withdrawn: the others meet again
    halted: Halted | None = None

    def has_room_for(self, prompt: Prompt) -> bool:
        return not self.full.is_set() and item_tokens(prompt) <= self.room

    def add(self, prompt: Prompt) -> None:
        self.members.append(prompt)
        self.room -= item_tokens(prompt)
        if len(self.members) >= self.rows:
            self.full.set()

    async def filled(self) -> None:
        """Until there are enough of them, or nobody new has come for a moment."""
        while not self.full.is_set():
            before = len(self.members)
            with anyio.move_on_after(MOMENT_S):
                await self.full.wait()
            if len(self.members) == before:
                return

    async def wait(self, prompt: Prompt) -> None:
        """Until the pack has come back; withdrawn before it left, a prompt is asked no more."""
        try:
            await self.landed.wait()
        finally:
            if not self.left and not self.landed.is_set():
                self.members.remove(prompt)
                self.room += item_tokens(prompt)


def _outcomes(pack: Prompt, reply: Reply) -> tuple[Reply | None, ...]:
    """What a pack's reply is to each of its prompts: an answer, a failure that is no matter of any of them, or None."""
    if reply.members:
        return reply.members
    if reply.raw or reply.error_kind not in PASSING:
        return (None,) * len(pack.members)
    quiet = changed(reply, attempts=0, rate_limited=0)
    return reply, *(quiet,) * (len(pack.members) - 1)


def apart(pack: Prompt, reply: Reply, answered: bool) -> list[tuple[Prompt, Reply, bool]]:
    """A pack's reply as replies to its prompts, in their order, each with whether it is an answer.

    What was paid is shared out to the last token: tokens by those that got an answer, the cost by all. What a request
    has once, as its attempts, stands at the first that got an answer.
    """
    members, texts = pack.members, _texts(pack, reply) if answered else [None] * len(pack.members)
    given = [float(item_tokens(member)) for member in members]
    said = [float(estimate(text)) if text else 0.0 for text in texts]
    heard = [own if text else 0.0 for own, text in zip(given, texts, strict=True)]
    usual = sum(said) / max(1, sum(text is not None for text in texts))
    weights = [own + (out or usual) for own, out in zip(given, said, strict=True)]
    usages, estimated = _usages(reply.usage, heard, said), shared_out(pack.input_tokens_est, heard)
    paid = reply.cost_usd, reply.worst_usd, reply.standard_usd
    costs, worst, standard = (usd_shared_out(usd, weights) for usd in paid)
    places = sorted(range(len(members)), key=lambda at: texts[at] is None)
    found = []
    for at, (member, text) in enumerate(zip(members, texts, strict=True)):
        chunk = places.index(at)
        kept = replace(member, step="pack", input_tokens_est=estimated[at], chunk=chunk, chunks=len(members))
        shares = {"cost_usd": costs[at], "worst_usd": worst[at], "standard_usd": standard[at]}
        part = changed(reply, text="", unread_usd=_FREE, **shares)
        if chunk:
            part = changed(part, raw=b"", at_most_usd=_FREE, attempts=0, rate_limited=0)
        found.append((kept, _answer(part, text, usages[at]) if text else _nothing(part, answered), text is not None))
    return found


def _texts(pack: Prompt, reply: Reply) -> list[str | None]:
    """The answers in a reply: of one that was withheld none, whatever there is of it."""
    if reply.status not in ("ok", "truncated"):
        return [None] * len(pack.members)
    keys = keys_of([member.text for member in pack.members])
    return answers_in(reply.text, keys, is_json(pack.members[0].params))


def _usages(usage: Usage, given: Sequence[float], said: Sequence[float]) -> list[Usage]:
    counts = (
        shared_out(usage.input_tokens, given),
        shared_out(usage.cached_tokens, given),
        shared_out(usage.output_tokens, said),
        shared_out(usage.thinking_tokens, said),
        shared_out(usage.tool_tokens, given),
    )
    return [Usage(*each, usage.estimated, usage.output_told) for each in zip(*counts, strict=True)]


def _answer(part: Reply, text: str, usage: Usage) -> Reply:
    """A reply to one prompt, with a body of its own."""
    counts = {
        "promptTokenCount": usage.input_tokens,
        "cachedContentTokenCount": usage.cached_tokens,
        "candidatesTokenCount": usage.output_tokens,
        "thoughtsTokenCount": usage.thinking_tokens,
        "toolUsePromptTokenCount": usage.tool_tokens,
    }
    answer = Answer(
        text=text,
        finish="STOP",
        candidates=True,
        block="",
        usage=counts,
        model=part.model,
        response_id=part.response_id,
        emulated=part.emulated,
    )
    return changed(
        part,
        text=text,
        status="ok",
        finish_reason="STOP",
        error_kind=None,
        error=None,
        usage=usage,
        raw=answer.as_body(),
    )


def _nothing(part: Reply, answered: bool) -> Reply:
    """What is kept of a prompt that a pack brought no answer: its part of the cost."""
    if not answered:
        return part
    why = "a pack's answer has none to this row that is certain"
    return changed(part, status="error", error_kind="malformed_reply", error=why, usage=Usage(), raw=b"")
