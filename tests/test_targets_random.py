"""Random jobs over several targets with faults, in virtual time: each prompt ends, in time, and no limit is passed."""

from collections import Counter
from dataclasses import replace
from random import Random

import anyio
from asking import MODEL, ask
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import EPOCH, SERVERS, World
from vclock import run

from pipeline.dispatch.desk import Admit, Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.errors import AuthError, BudgetReached, Halted
from pipeline.prompts import Prompt
from pipeline.records import ALWAYS, Failure, Limits, Reply, Takes
from pipeline.targets import Route, Target

DOWN = Failure("transient", "server", "overloaded", http_status=503)
FAULTS = {
    "down": DOWN,
    "away": Failure("transient", "network", "no connection", sent=False),
    "full": Failure("rate_limit", "quota", "slow down", http_status=429),
    "asks": Failure("rate_limit", "quota", "slow down", http_status=429, retry_after_s=5.0),
    "leaked": Failure("auth", "auth", "leaked", http_status=403),
}
ANY_TAKES = st.sets(st.sampled_from(sorted(ALWAYS)), min_size=1).map(frozenset)
FAULT = st.tuples(
    st.sampled_from([0.0, 5.0, 60.0, 200.0]), st.sampled_from([2.0, 30.0, 600.0]), st.sampled_from(sorted(FAULTS))
)


@st.composite
def targets(draw: st.DrawFn, faults: bool) -> tuple[Target, World]:
    limits = Limits(
        rpm=draw(st.sampled_from([0, 6, 60, 120, None])),
        tpm=draw(st.sampled_from([0, 0, 1_000, 20_000, None])),
        rpd=draw(st.sampled_from([None, None, 30])) if faults else None,
        concurrency=draw(st.sampled_from([None, 1, 4])),
    )
    target = Target(
        "gemini",
        "https://example",
        "project",
        draw(st.sampled_from([MODEL, "gemini-3.8-flash"])),
        limits=limits,
        priority=draw(st.sampled_from([1, 1, 2, 3])),
        takes=draw(ANY_TAKES) if faults else ALWAYS,
        weight=draw(st.sampled_from([0.0, 0.0, 1.0, 3.0])),
    )
    times = draw(st.lists(FAULT, max_size=2)) if faults else []

    def fault(t: float) -> Failure | None:
        return next((FAULTS[kind] for at, length, kind in times if at <= t < at + length), None)

    world = World(
        draw(st.sampled_from(sorted(SERVERS))), limits.rpm or 15, limits.tpm or 20_000, latency=(1.0, 0.3), fault=fault
    )
    if limits.rpm == 0:
        world.meters["requests"] = SERVERS["log"](10**9)
    if limits.tpm == 0:
        world.meters["tokens"] = SERVERS["log"](10**9)
    return target, world


class Played:
    """One job: `submitted` is when, how large and over which targets each prompt is; `admit` as of a `Dispatcher`."""

    def __init__(
        self,
        several: list[tuple[Target, World]],
        submitted: list[tuple[float, int, set[int]]],
        admit: Admit = lambda prompt, target: True,
    ) -> None:
        self.admit = admit
        self.worlds = {f"t{at}": world for at, (_, world) in enumerate(several)}
        named = [replace(target, name=f"t{at}", project=f"t{at}") for at, (target, _) in enumerate(several)]
        self.targets = sorted(named, key=lambda target: target.priority)
        self.routes = [
            Route(
                tuple(t for t in self.targets if int(t.name[1:]) % len(several) in {at % len(several) for at in some})
            )
            for _, _, some in submitted
        ]
        self.submitted = submitted
        for world in self.worlds.values():
            world.true_tokens = {row: tokens for row, (_, tokens, _) in enumerate(submitted)}
        self.ended: dict[int, Reply | Halted] = {}
        self.sent: Counter[str] = Counter()
        self.looks = 0
        self.took_s = 0.0
        run(self._play)

    async def _play(self) -> None:
        async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
            self.sent[target.name] += 1
            return await self.worlds[target.name].send(prompt)

        def wall() -> float:
            self.looks += 1
            return EPOCH + anyio.current_time()

        async def one(row: int) -> None:
            at, tokens, _ = self.submitted[row]
            await anyio.sleep(at)
            try:
                self.ended[row] = await desk.submit(ask(row, tokens=tokens), self.routes[row])
            except Halted as halted:
                self.ended[row] = halted

        desk = Dispatcher(send, Route(tuple(self.targets)), admit=self.admit, wall=wall, rng=Random(1))
        async with anyio.create_task_group() as runner:
            runner.start_soon(desk.run)
            async with anyio.create_task_group() as group:
                for row in range(len(self.submitted)):
                    group.start_soon(one, row)
            self.took_s = anyio.current_time()
            desk.close()

    def hold(self) -> None:
        """What is true of every job."""
        assert len(self.ended) == len(self.submitted)
        for target in self.targets:
            requests, tokens = self.worlds[target.name].most_in_a_window()
            assert not target.limits.rpm or requests <= target.limits.rpm
            assert not target.limits.tpm or tokens <= target.limits.tpm
        assert self.looks < 50_000 + 200 * len(self.targets) ** 2 * (self.took_s + sum(self.sent.values())), "it spins"
        for row, ended in self.ended.items():
            if isinstance(ended, Reply) and ended.error_kind == "too_long":
                most = max(target.limits.tpm or 10**9 for target in self.routes[row].targets)
                assert self.submitted[row][1] > most


def prompts(most: int) -> st.SearchStrategy[list[tuple[float, int, set[int]]]]:
    one = st.tuples(
        st.sampled_from([0.0, 0.0, 1.0, 90.0]),
        st.sampled_from([10, 50, 300, 1_500]),
        st.sets(st.integers(0, 3), min_size=1),
    )
    return st.lists(one, min_size=1, max_size=most)


@settings(max_examples=200, derandomize=True)
@given(st.lists(targets(faults=True), min_size=1, max_size=4), prompts(60))
def test_every_prompt_ends_whatever_fails_and_no_limit_is_passed(
    several: list[tuple[Target, World]], submitted: list[tuple[float, int, set[int]]]
) -> None:
    Played(several, submitted).hold()


@settings(max_examples=200, derandomize=True)
@given(st.lists(targets(faults=False), min_size=1, max_size=4), st.integers(1, 150), st.sampled_from([10, 50, 300]))
def test_what_all_may_answer_takes_what_they_can_do_together(
    several: list[tuple[Target, World]], number: int, tokens: int
) -> None:
    """And a minute, for which those of a higher priority leave the rest to the others; half as much where unknown."""
    played = Played(several, [(0.0, tokens, {0, 1, 2, 3})] * number)
    played.hold()
    assert all(isinstance(ended, Reply) and ended.status == "ok" for ended in played.ended.values())
    limits = [target.limits for target in played.targets]
    per_minute = sum(
        min(10**9 if one.rpm == 0 else one.rpm or 5, (10**9 if one.tpm == 0 else one.tpm or 10_000) / tokens)
        for one in limits
    )
    in_turn_s = 4.0 * number / sum(one.concurrency or 30 for one in limits)
    assert played.took_s <= 1.2 * 60.0 * number / per_minute + 90.0 + in_turn_s


# ---- found by them


def job(*several: Target, tokens: int = 10, rows: int = 20, **faults: Failure) -> Played:
    """All rows over all targets, of which those that are named always fail."""

    def world(name: str) -> World:
        return World("log", 10**9, 10**9, fault=lambda t: faults.get(name))

    worlds = [(target, world(f"t{at}")) for at, target in enumerate(several)]
    return Played(worlds, [(0.0, tokens, set(range(len(several))))] * rows)


FREE = Target("gemini", "https://example", "project", MODEL, limits=Limits(rpm=600, tpm=0))


def test_a_prompt_that_only_a_target_takes_that_was_left_out_ends_the_run_and_does_not_wait_for_ever() -> None:
    small, large = replace(FREE, limits=Limits(rpm=0, tpm=1_000)), replace(FREE, limits=Limits(rpm=0, tpm=100_000))
    played = job(small, large, tokens=5_000, t1=FAULTS["leaked"])
    assert all(isinstance(ended, Halted) for ended in played.ended.values())
    [reason] = {type(ended.reason) for ended in played.ended.values() if isinstance(ended, Halted)}
    assert reason is AuthError


def test_no_target_waits_for_its_part_behind_one_that_has_no_cause_to_take_any() -> None:
    first = replace(FREE, limits=Limits(rpm=60, tpm=0))
    second, third = (
        replace(FREE, priority=2, weight=1.0, takes=frozenset[Takes]({cause})) for cause in ("outage", "full")
    )
    played = job(first, second, third, rows=400)
    assert played.sent["t1"] == 0 and played.sent["t2"] > 300
    assert played.took_s < 120.0


def test_no_row_is_lost_to_a_target_that_fails_while_another_of_its_rank_answers() -> None:
    played = job(FREE, replace(FREE, limits=Limits(rpm=6, tpm=0)), rows=2, t0=DOWN)
    assert {ended.status for ended in played.ended.values() if isinstance(ended, Reply)} == {"ok"}
    assert len(played.ended) == 2 and played.sent["t1"] == 2


def test_a_last_row_whose_attempts_are_used_up_goes_to_whom_an_outage_is_left() -> None:
    second, third = (replace(FREE, priority=2, takes=frozenset([cause])) for cause in ("outage", "day_quota"))
    assert job(FREE, second, rows=1, t0=DOWN).sent == {"t0": 5, "t1": 1}
    played = job(FREE, third, rows=1, t0=DOWN)
    assert played.sent == {"t0": 5}
    [ended] = played.ended.values()
    assert isinstance(ended, Reply) and (ended.status, ended.attempts) == ("error", 5)


def test_a_row_ends_as_it_failed_where_the_others_are_left_out_after_it() -> None:
    played = job(FREE, replace(FREE, priority=2), rows=1, t0=DOWN, t1=FAULTS["leaked"])
    [ended] = played.ended.values()
    assert isinstance(ended, Reply) and (ended.status, ended.error_kind) == ("error", "server")


def test_where_the_cap_leaves_nothing_for_the_paid_target_the_free_one_goes_on() -> None:
    def admit(prompt: Prompt, target: Target) -> bool:
        if target.priority == 2 and prompt.row >= 20:
            raise BudgetReached("the next call could pass the budget", "raise it")
        return True

    free, paid = (
        (replace(FREE, priority=rank, limits=Limits(rpm=60 * rank, tpm=0)), World("log", 10**9, 10**9))
        for rank in (1, 2)
    )
    played = Played([free, paid], [(0.0, 10, {0, 1})] * 200, admit)
    assert all(isinstance(ended, Reply) and ended.status == "ok" for ended in played.ended.values())
    assert played.sent["t0"] > 150
    only = Played([free, paid], [(0.0, 10, {1} if row == 50 else {0}) for row in range(60)], admit)
    assert any(isinstance(ended, Halted) for ended in only.ended.values()), "nobody else may answer one of them"
