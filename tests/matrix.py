"""Rows of the dispatcher's test matrix: one world, one dispatcher, and what must hold in every run."""

from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from servers import SERVERS, World, answer_all, dispatcher_for
from vclock import run

from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.events import Event
from pipeline.prompts import Prompt
from pipeline.records import Limits, Reply

SEEDS = (1, 2, 3)


@dataclass
class Outcome:
    world: World
    dispatcher: Dispatcher
    replies: list[Reply]
    events: list[tuple[float, Event]] = field(default_factory=list)

    @property
    def rpm(self) -> int:
        """The limit that is kept at the end; 0: none."""
        return self.dispatcher.quotas[0].limits.rpm or 0

    @property
    def tpm(self) -> int:
        return self.dispatcher.quotas[0].limits.tpm or 0


def cases_of(names: str, rows: dict[str, tuple[Any, ...]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `cases` for each of these rows by name, but quick on every other server only: of the next row the others."""
    quick = [
        pytest.param(server, SEEDS[n % 3], False, *row, id=f"{name}-{server}")
        for at, (name, row) in enumerate(rows.items())
        for n, server in enumerate(SERVERS)
        if n % 2 == at % 2
    ]
    full = [
        pytest.param(server, seed, True, *row, id=f"{name}-{server}-{seed}-full", marks=pytest.mark.long)
        for name, row in rows.items()
        for server in SERVERS
        for seed in SEEDS
    ]
    return pytest.mark.parametrize(f"server, seed, full, {names}", quick + full)


def cases(function: Callable[..., None]) -> Callable[..., None]:
    """Every server: with one seed and a short run, or (`long`) with each seed and a run of full length."""
    quick = [pytest.param(server, SEEDS[n % 3], False, id=f"{server}") for n, server in enumerate(SERVERS)]
    full = [
        pytest.param(server, seed, True, id=f"{server}-{seed}-full", marks=pytest.mark.long)
        for server in SERVERS
        for seed in SEEDS
    ]
    marked: Callable[..., None] = pytest.mark.parametrize(("server", "seed", "full"), quick + full)(function)
    return marked


def dispatch(
    world: World,
    prompts: list[Prompt],
    limits: Limits,
    *,
    at_once: int = 1000,
    beside: Callable[[World], Coroutine[Any, Any, None]] | None = None,
    **options: Any,
) -> Outcome:
    """Answer all prompts and check what must hold in every run."""

    async def main() -> Outcome:
        events: list[tuple[float, Event]] = []
        dispatcher = dispatcher_for(
            world, limits, on_event=lambda event: events.append((world.now(), event)), **options
        )
        async with anyio.create_task_group() as group:
            if beside is not None:
                group.start_soon(beside, world)
            replies = await answer_all(dispatcher, prompts, at_once=at_once)
            group.cancel_scope.cancel()
        return Outcome(world, dispatcher, replies, events)

    outcome = run(main)
    dispatcher = outcome.dispatcher
    assert [quota.ledger.in_flight() for quota in dispatcher.quotas] == [(0, 0)], (
        "every reservation is settled or released"
    )
    assert dispatcher.sent == len(world.left) == dispatcher.attempts + dispatcher.rate_limited
    assert dispatcher.rate_limited == len(world.refused)
    assert dispatcher.in_flight == dispatcher.ready == 0
    return outcome


def assert_kept(outcome: Outcome, prompts: list[Prompt], limits: Limits) -> None:
    """All answered, nothing refused, and no 60 s above the limits wherever they begin."""
    assert Counter(reply.status for reply in outcome.replies) == {"ok": len(prompts)}
    assert outcome.world.refused == []
    requests, tokens = outcome.world.most_in_a_window()
    assert limits.rpm is not None and requests <= limits.rpm
    assert limits.tpm is not None and tokens <= limits.tpm
