"""Flex in the dispatcher: what is turned away goes on in standard, and is no outage, no refusal and no attempt."""

from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from random import Random
from typing import Any, TypeVar

import anyio
import pytest
from asking import MODEL, UNLIMITED, ask
from matrix import Outcome, assert_kept, cases
from servers import EPOCH, World, answer_all, documents, small
from vclock import run

from pipeline.dispatch.desk import Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.dispatch.flex import is_shed
from pipeline.events import Event, FlexShed, LimitSet, Outage
from pipeline.prompts import Prompt
from pipeline.quota.quota import GIVE_UP_S
from pipeline.records import FLEX_S, FLEX_TRIES, Failure, FromFlex, Lane, Limits, QuotaHit, Reply, Usage
from pipeline.targets import Route, Target

Result = TypeVar("Result")
FLEX = Target("gemini", "https://example", "project", MODEL, choice="flex")
SHED = Failure("transient", "server", "HTTP 503: overloaded", http_status=503)
NO_ROOM = Failure("rate_limit", "quota", "HTTP 429: resource unavailable", http_status=429)
IN_VAIN = Failure("transient", "timeout", "no complete answer in time", billed=True)
MINUTE = QuotaHit("PerMinute", "requests", "minute")
REFUSED = Failure("rate_limit", "quota", "slow down", http_status=429, retry_after_s=3.0, quota=(MINUTE,))
BROKEN = Failure("transient", "server", "HTTP 500: internal", http_status=500)


@dataclass
class Service:
    """Answers in both lanes; in flex as told by the moment, after so long. Remembers who came when, and in which."""

    in_flex: Callable[[float, int], Failure | None] = lambda now, number: None
    flex_s: float = 5.0
    standard_s: float = 1.0
    asked: list[tuple[float, int, Lane]] = field(default_factory=list)  # when, row, lane
    on_event: list[Event] = field(default_factory=list)
    finished: dict[int, float] = field(default_factory=dict)  # row → when
    fell_back: dict[int, FromFlex | None] = field(default_factory=dict)  # row → why it is asked in standard

    async def send(self, prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        now = anyio.current_time()
        self.asked.append((now, prompt.row, target.lane))
        self.fell_back[prompt.row] = tries.fell_back
        failure = self.in_flex(now, len(self.asked)) if target.lane == "flex" else None
        await anyio.sleep(self.flex_s if target.lane == "flex" else self.standard_s)
        self.finished[prompt.row] = anyio.current_time()
        return failure or Reply("text", "ok", usage=Usage(prompt.input_tokens_est), lane=target.lane)

    def lanes(self, row: int = 0) -> list[Lane]:
        return [lane for _, asked, lane in self.asked if asked == row]

    def dispatcher(self, targets: Sequence[Target] = (FLEX,), limits: Limits = UNLIMITED, **options: Any) -> Dispatcher:
        route = Route(tuple(replace(target, limits=limits) for target in targets))
        return Dispatcher(
            self.send,
            route,
            wall=lambda: EPOCH + anyio.current_time(),
            rng=Random(1),
            on_event=self.on_event.append,
            **options,
        )


def answered(
    service: Service,
    rows: int = 1,
    limits: Limits = UNLIMITED,
    last_call: float = inf,
    beside: Callable[[Dispatcher], Coroutine[None, None, None]] | None = None,
    **options: Any,
) -> tuple[Dispatcher, dict[int, Reply]]:
    """What becomes of so many rows, in virtual time that begins with 0."""
    replies: dict[int, Reply] = {}

    async def main() -> Dispatcher:
        dispatcher = service.dispatcher(limits=limits, **options)
        dispatcher.call_last(last_call)

        async def submit(row: int) -> None:
            replies[row] = await dispatcher.submit(ask(row, tokens=100))

        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.run)
            if beside:
                group.start_soon(beside, dispatcher)
            async with anyio.create_task_group() as documents:
                for row in range(rows):
                    documents.start_soon(submit, row)
            dispatcher.close()
        assert {quota.ledger.in_flight() for quota in dispatcher.quotas} == {(0, 0)}
        assert dispatcher.sent == dispatcher.attempts + dispatcher.rate_limited + dispatcher.shed
        return dispatcher

    return run(main), replies


# --- one prompt ---------------------------------------------------------------------------------------------------


def test_what_the_job_wants_in_flex_is_asked_there_and_nothing_else_is() -> None:
    service = Service()
    dispatcher, replies = answered(service, 5)
    assert {lane for _, _, lane in service.asked} == {"flex"}
    assert [reply.lane for reply in replies.values()] == ["flex"] * 5 and dispatcher.flex == (5, 0)
    plain = Service()
    answered(plain, 5, targets=[replace(FLEX, choice="standard")])
    assert {lane for _, _, lane in plain.asked} == {"standard"}


@pytest.mark.parametrize("shed", [SHED, NO_ROOM, IN_VAIN])
def test_what_flex_turns_away_three_times_is_asked_in_standard_and_has_had_one_attempt(shed: Failure) -> None:
    service = Service(lambda now, number: shed)
    dispatcher, replies = answered(service)
    assert service.lanes() == ["flex", "flex", "flex", "standard"]
    assert (replies[0].status, replies[0].attempts, replies[0].rate_limited) == ("ok", 1, 0)
    assert (dispatcher.shed, dispatcher.attempts, dispatcher.flex) == (3, 1, (0, 3))
    assert service.fell_back == {0: "turned_away"}


def test_between_its_requests_in_flex_a_prompt_waits_longer_and_longer() -> None:
    pauses: list[list[float]] = []
    for seed in range(20):
        service = Service(lambda now, number: SHED)
        answered(service, rows=seed % 3 + 1)
        times = [at for at, row, lane in service.asked if row == 0]
        pauses.append([later - before - service.flex_s for before, later in pairwise(times)])
    assert all(0 <= first <= 30 and 0 <= second <= 60 for first, second, _ in pauses)
    assert max(second for _, second, _ in pauses) > 30


def test_a_refusal_for_quota_is_one_in_flex_too() -> None:
    service = Service(lambda now, number: REFUSED if number == 1 else None)
    dispatcher, replies = answered(service)
    assert service.lanes() == ["flex", "flex"]
    assert (replies[0].rate_limited, dispatcher.rate_limited, dispatcher.shed) == (1, 1, 0)


def test_other_failures_cost_an_attempt_and_a_try() -> None:
    service = Service(lambda now, number: BROKEN)
    _, replies = answered(service)
    assert service.lanes() == ["flex"] * FLEX_TRIES + ["standard"]
    assert (replies[0].status, replies[0].attempts) == ("ok", 4)
    assert service.fell_back == {0: "failed"}


@pytest.mark.parametrize(
    ("failure", "shed"),
    [
        (SHED, True),
        (NO_ROOM, True),
        (IN_VAIN, True),
        (replace(SHED, http_status=504), True),
        (replace(SHED, http_status=498), True),
        (REFUSED, False),
        (BROKEN, False),
        (Failure("transient", "timeout", "no connection in time", sent=False), False),
        (Failure("transient", "network", "the connection broke"), False),
        (Failure("day_quota", "quota", "PerDay", 429), False),
        (Failure("spend_limit", "quota", "no money", 429), False),
    ],
)
def test_what_counts_as_turned_away(failure: Failure, shed: bool) -> None:
    assert is_shed(failure) is shed


def test_an_answer_that_was_asked_in_flex_and_served_in_standard_is_none_of_flex() -> None:
    class Relay(Service):
        async def send(self, prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
            outcome = await super().send(prompt, target, tries)
            return replace(outcome, lane="standard") if isinstance(outcome, Reply) else outcome

    dispatcher, replies = answered(Relay())
    assert dispatcher.flex == (0, 0) and replies[0].lane == "standard"


# --- many ---------------------------------------------------------------------------------------------------------


def test_of_half_that_is_turned_away_one_in_eight_pays_the_standard_price() -> None:
    chance = Random(3)
    service = Service(lambda now, number: SHED if chance.random() < 0.5 else None)
    _, replies = answered(service, 2000)
    lanes = Counter(reply.lane for reply in replies.values())
    assert 0.10 < lanes["standard"] / 2000 < 0.15
    assert not any(isinstance(event, Outage) for event in service.on_event)


def test_with_a_last_call_what_is_turned_away_is_asked_in_flex_until_then() -> None:
    chance = Random(3)
    service = Service(lambda now, number: SHED if chance.random() < 0.8 else None)
    _, replies = answered(service, 300, Limits(rpm=600, tpm=0), last_call=8 * 3600.0)
    assert Counter(reply.lane for reply in replies.values()) == {"flex": 300}
    assert max(service.finished.values()) < 3600


def test_where_the_requests_of_a_day_are_counted_three_are_enough_all_the_same() -> None:
    service = Service(lambda now, number: SHED)
    answered(service, 1, Limits(rpm=600, tpm=0, rpd=1000), last_call=8 * 3600.0)
    assert service.lanes() == ["flex", "flex", "flex", "standard"]


def test_where_flex_turns_all_away_one_request_at_a_time_asks_and_after_half_an_hour_all_go_on_in_standard() -> None:
    service = Service(lambda now, number: SHED)
    dispatcher, replies = answered(service, 500, Limits(rpm=600, tpm=0))
    assert {reply.lane for reply in replies.values()} == {"standard"}
    assert {reply.attempts for reply in replies.values()} == {1}
    assert max(service.finished.values()) < GIVE_UP_S + 240
    in_vain = {row for _, row, lane in service.asked if lane == "flex"}
    assert {row for row, why in service.fell_back.items() if why == "turned_away"} == in_vain  # not who never was there
    assert 0 < len(in_vain) < 500 and set(service.fell_back.values()) == {"turned_away", None}
    in_flex = [at for at, _, lane in service.asked if lane == "flex"]
    assert len([at for at in in_flex if 120 < at < GIVE_UP_S]) < GIVE_UP_S / 30  # a probe a minute, not a storm
    assert len([event for event in service.on_event if isinstance(event, FlexShed)]) == 1
    assert not any(isinstance(event, Outage | LimitSet) for event in service.on_event)
    assert dispatcher.quotas[0].limits.rpm == 600


def test_flex_that_takes_again_is_used_again() -> None:
    service = Service(lambda now, number: SHED if now < 600 else None)
    _, replies = answered(service, 2000, Limits(rpm=600, tpm=0))
    lanes = Counter(reply.lane for reply in replies.values())
    assert lanes["flex"] > 1900
    told = [event.message for event in service.on_event if isinstance(event, FlexShed)]
    assert len(told) == 2 and told[-1] == "flex answers again"


def test_after_the_last_call_all_that_waits_is_asked_in_standard() -> None:
    service = Service(lambda now, number: SHED)
    _, replies = answered(service, 500, Limits(rpm=600, tpm=0), last_call=7200.0)
    assert {reply.status for reply in replies.values()} == {"ok"}
    assert max(at for at, _, lane in service.asked if lane == "flex") < 7200
    assert max(service.finished.values()) < 7200 + 60 + 10  # 500 at 600 a minute
    in_vain = {row for _, row, lane in service.asked if lane == "flex"}
    assert {row for row, why in service.fell_back.items() if why == "last_call"} == in_vain
    assert set(service.fell_back.values()) <= {"last_call", None}


def test_a_last_call_that_is_moved_while_all_waits_is_heeded_at_once() -> None:
    service = Service(lambda now, number: SHED)

    async def move(dispatcher: Dispatcher) -> None:
        await anyio.sleep(1000)
        dispatcher.call_last(anyio.current_time())

    answered(service, 500, Limits(rpm=600, tpm=0), last_call=7200.0, beside=move)
    assert 1000 < max(service.finished.values()) < 1000 + 70


def test_thousands_in_flight_at_the_last_call_are_waited_for_and_hold_nothing_up() -> None:
    service = Service(flex_s=FLEX_S)
    _, replies = answered(service, 3000, Limits(rpm=600, tpm=0), last_call=210.0)
    lanes = Counter(reply.lane for reply in replies.values())
    assert len(service.asked) == 3000  # nobody was asked twice
    assert lanes["flex"] == len([at for at, _, lane in service.asked if lane == "flex"]) == 2000
    in_standard = [service.finished[row] for _, row, lane in service.asked if lane == "standard"]
    assert max(in_standard) < 210 + 60 * len(in_standard) / 600 + 10


def test_of_few_sockets_and_of_a_number_that_is_set_both_lanes_together_have_no_more() -> None:
    chance = Random(5)
    for limits in (replace(UNLIMITED, concurrency=10), replace(UNLIMITED, sockets=10)):
        most = 0

        class Counted(Service):
            in_flight = 0

            async def send(self, prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
                nonlocal most
                self.in_flight += 1
                most = max(most, self.in_flight)
                try:
                    return await super().send(prompt, target, tries)
                finally:
                    self.in_flight -= 1

        answered(Counted(lambda now, number: SHED if chance.random() < 0.6 else None), 200, limits)
        assert 5 <= most <= 10


def test_an_outage_is_found_in_standard_and_told_once() -> None:
    """What fails in flex for another cause is soon asked in standard, and there the service is down."""
    is_down = True

    class Down(Service):
        async def send(self, prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
            outcome = await super().send(prompt, target, tries)
            return BROKEN if anyio.current_time() < 400 else outcome

    service = Down(standard_s=0.1, flex_s=0.1)
    _, replies = answered(service, 300, Limits(rpm=600, tpm=0))
    assert is_down and Counter(reply.status for reply in replies.values()) == {"ok": 300}
    told = [event.message for event in service.on_event if isinstance(event, Outage)]
    assert len(told) == 2 and told[-1].startswith("over")
    assert len([at for at, _, _ in service.asked if 100 < at < 400]) < 15
    assert Counter(reply.lane for reply in replies.values())["flex"] > 200


def test_a_target_beside_it_takes_what_flex_has_no_room_for() -> None:
    service = Service(lambda now, number: SHED)
    other = replace(FLEX, project="other", choice="standard", name="other")
    _, replies = answered(service, 200, Limits(rpm=600, tpm=0), targets=[replace(FLEX, name="flex"), other])
    assert {reply.status for reply in replies.values()} == {"ok"}
    assert max(service.finished.values()) < 120


# --- the quota ----------------------------------------------------------------------------------------------------


@dataclass
class FlexWorld(World):
    """A server that counts all lanes by one quota, and serves a share of flex after a while of its own."""

    share: float = 0.7

    async def send_in(self, prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        outcome = await self.send(prompt)
        if target.lane == "standard" or not isinstance(outcome, Reply):
            return outcome
        await anyio.sleep(self.rng.lognormvariate(3.0, 1.0))
        if self.rng.random() < self.share:
            return replace(outcome, lane="flex")
        return SHED if self.rng.random() < 0.5 else NO_ROOM


@cases
def test_the_whole_quota_is_used_and_never_refused_with_flex(server: str, seed: int, full: bool) -> None:
    limits = Limits(rpm=600, tpm=400_000)
    world = FlexWorld(server, 600, 400_000, seed=seed)
    prompts = documents(world, small(12_000 if full else 4_000, 300, seed))

    async def main() -> Outcome:
        events: list[tuple[float, Event]] = []
        dispatcher = Dispatcher(
            world.send_in,
            Route((replace(FLEX, limits=limits),)),
            wall=world.wall,
            rng=Random(seed),
            on_event=lambda event: events.append((world.now(), event)),
        )
        replies = await answer_all(dispatcher, prompts, at_once=2500)
        assert dispatcher.sent == len(world.left) == dispatcher.attempts + dispatcher.shed
        return Outcome(world, dispatcher, replies, events)

    outcome = run(main)
    assert_kept(outcome, prompts, limits)
    until = 0.8 * 60 * len(prompts) / 600  # later what waits to be asked once more is less than a minute's
    inside = [tokens for at, tokens in world.admitted if 120 < at <= until]
    assert max(len(inside) / 600, sum(inside) / 400_000) * 60 / (until - 120) >= 0.99
    lanes = Counter(reply.lane for reply in outcome.replies)
    assert lanes["flex"] / len(prompts) > 0.95


@pytest.mark.parametrize("night", [pytest.param(n, marks=pytest.mark.long if n >= 8 else ()) for n in range(60)])
def test_a_night_ends_in_time_whatever_flex_does_in_it(night: int) -> None:
    """From the last call on there is time for all in standard, and for a quarter of an hour in vain in flex."""
    rng = Random(night)
    rows, rpm = rng.choice([300, 1500, 4000]), rng.choice([60, 300, 1200])
    last_call = rng.choice([600.0, 3600.0, 4 * 3600.0])
    usual_s, share = rng.choice([3.0, 60.0, 400.0]), rng.random()
    changes = sorted(rng.uniform(0.0, last_call) for _ in range(4))  # of the share that is served

    class Night(Service):
        async def send(self, prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
            now = anyio.current_time()
            self.asked.append((now, prompt.row, target.lane))
            served = target.lane == "standard"
            if not served:
                part = share if sum(now > at for at in changes) % 2 == 0 else 0.05
                served = rng.random() < part
                latency_s = FLEX_S if not served and rng.random() < 0.3 else rng.expovariate(1.0 / usual_s)
                await anyio.sleep(min(latency_s, FLEX_S))
                served = served and latency_s < FLEX_S
            await anyio.sleep(rng.uniform(0.5, 8.0))
            self.finished[prompt.row] = anyio.current_time()
            if not served:
                return rng.choice([SHED, NO_ROOM, IN_VAIN])
            return Reply("text", "ok", usage=Usage(prompt.input_tokens_est), lane=target.lane)

    service = Night()
    _, replies = answered(service, rows, Limits(rpm=rpm, tpm=0), last_call=last_call)
    assert {reply.status for reply in replies.values()} == {"ok"}
    assert max([at for at, _, lane in service.asked if lane == "flex"], default=0.0) < last_call
    left = len([row for row in range(rows) if service.finished[row] > last_call])
    assert max(service.finished.values()) < last_call + max(60 * left / rpm, FLEX_S) * 1.02 + 90
