"""What is said of the lanes of a plan."""

from collections.abc import Callable, Iterator
from datetime import datetime
from math import isfinite

from pipeline.console.screen import count, duration, money, show_grid
from pipeline.language import Data
from pipeline.plan import Plan
from pipeline.plan.laned import LanePart, LanePlan
from pipeline.plan.lanes import PATIENCE_S
from pipeline.plan.latency import Latency
from pipeline.records import FLEX_TRIES


def show_parts(plan: Plan, moment: Callable[[datetime], str]) -> None:
    """One line a lane: its calls, what they cost, and when it is called in; `moment` says a time."""
    named = len(plan.targets) > 1
    lines = []
    laned = {each.target for each in plan.lanes}
    others = [
        LanePart(each.name, "standard", each.prompts, each.cost_usd, None)
        for each in plan.targets
        if each.name not in laned and round(each.prompts)
    ]
    for part in (*(part for each in plan.lanes for part in each.parts), *others):
        usd = "?" if part.cost_usd is None else money(part.cost_usd)
        called = moment(part.last_call) if part.last_call else ""
        lines.append(
            (Data(f"  {part.lane}"), *([Data(part.target)] if named else []), count(part.prompts), usd, called)
        )
    show_grid(("  lane", *(["target"] if named else []), "calls", "cost", "last call"), lines)


def ends_by(plan: Plan) -> datetime | None:
    """When all is answered at the latest; None: nobody can say."""
    ends = [each.by if each.lanes.in_time >= 1.0 else None for each in plan.lanes]
    return None if None in ends else max(end for end in ends if end)


def told(plan: Plan, moment: Callable[[datetime], str]) -> Iterator[str]:
    """What a person should know of them."""
    for each in plan.lanes:
        name = f"{each.target}: " if each.target else ""
        yield from (f"{name}{line}" for line in _of(each, moment))


def _of(each: LanePlan, moment: Callable[[datetime], str]) -> Iterator[str]:
    made = each.lanes
    if made.in_time < 1.0 and each.by:
        later = "goes to batch at once, and comes later" if made.batch else "comes later"
        chance = f"; by then all is done with a chance of {made.chance:.0%}" if made.chance else ""
        yield f"{made.in_time:.0%} is sure to be done by {moment(each.by)}; the rest {later}{chance}"
    elif each.by and (made.batch or made.flex):
        yield (
            "what is not answered by the last call of its lane is asked in the lane above: by"
            f" {moment(each.by)} all is done"
        )
    elif made.batch:
        yield f"a batch that is not done after {duration(PATIENCE_S)} is called in, and its prompts are asked live"
    elif made.flex:
        yield f"what flex turns away {FLEX_TRIES} times is asked in standard"
    if made.batch or made.flex:
        yield "the cost ranges from all in time to all fallen back"
    seldom = 1.0 - each.given.fallen - made.batch
    if each.given.mode == "batch" and made.in_time == 1.0 and seldom >= 0.005:
        yield f"{seldom:.0%} goes to no batch: it would be back in time too seldom to save anything"
    if made.batch:
        yield _latency(each.given.latency)


def _latency(known: Latency) -> str:
    half, most = known.within(0.5), known.within(0.9)
    usual = f"half of all batches are done within {duration(half)}" if isfinite(half) else "most batches are never done"
    slow = f"one in ten takes over {duration(most)}" if isfinite(most) else "more than one in ten is never done"
    own = f" (learned from {known.weight:,.0f} of yours)" if known.weight >= 1.0 else ""
    return f"{usual}, {slow}{own}; nobody promises less than 24 h"
