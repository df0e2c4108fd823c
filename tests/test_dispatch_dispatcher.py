"""What becomes of a prompt; that the limits are kept is in test_quota_matrix.py."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import anyio
import orjson
import pytest
from asking import UNLIMITED, ask, dispatcher_of
from servers import EPOCH, World, answer_all, dispatcher_for, documents
from vclock import run

from pipeline.dispatch.counting import LONGEST_COUNT_S
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.quotas import Violation, exhausted
from pipeline.errors import AuthError, Halted, JobError, PipelineError, QuotaExhausted, ServiceError
from pipeline.events import Event, LongWait, Outage
from pipeline.prompts import Prompt
from pipeline.providers.failures import classify
from pipeline.quota.book import MemoryBook, QuotaBook
from pipeline.quota.daily import next_reset
from pipeline.quota.quota import GIVE_UP_S
from pipeline.quota.waits import LONGEST_WAIT_S
from pipeline.records import PASSING, Failure, Limits, QuotaHit, Reply, Step, Usage

Result = TypeVar("Result")
MINUTE = QuotaHit("PerMinute", "requests", "minute")
REFUSED = Failure("rate_limit", "quota", "slow down", http_status=429, retry_after_s=3.0, quota=(MINUTE,))
DAY_FULL = Failure("day_quota", "quota", "PerDay", 429, 30.0, (QuotaHit("PerDay", "requests", "day", 20),))
BROKEN = Failure("transient", "server", "overloaded", http_status=503)
NO_RESPONSE = Failure("transient", "network", "no connection", sent=False)
REJECTED = Failure("reject", "invalid_request", "no such field", http_status=400)


def prompt(row: int = 0, tokens: int = 100, step: Step = "answer") -> Prompt:
    return ask(row, step=step, tokens=tokens)


class Service:
    """Answers each request with the next of `script`, then with replies; remembers when requests came."""

    def __init__(self, script: Iterable[Failure | Reply] = (), latency_s: float = 1.0) -> None:
        self.script = list(script)
        self.latency_s = latency_s
        self.times: list[float] = []
        self.rows: list[int] = []
        self.finished = 0

    async def send(self, one: Prompt) -> Reply | Failure:
        self.times.append(anyio.current_time())
        self.rows.append(one.row)
        outcome = self.script.pop(0) if self.script else Reply("text", "ok", usage=Usage(one.input_tokens_est))
        await anyio.sleep(self.latency_s)
        self.finished += 1
        return outcome


def wall() -> float:
    return EPOCH + anyio.current_time()


def dispatching(
    service: Service, body: Callable[[Dispatcher], Awaitable[Result]], limits: Limits = UNLIMITED, **options: Any
) -> Result:
    """Run `body` beside a dispatcher in front of `service`, in virtual time."""

    async def main() -> Result:
        asked: dict[str, Any] = {"wall": wall, "rng": Random(1)} | options
        dispatcher = dispatcher_of(service.send, limits, **asked)
        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.run)
            result = await body(dispatcher)
            dispatcher.close()
        assert dispatcher.in_flight == dispatcher.ready == 0
        assert [quota.ledger.in_flight() for quota in dispatcher.quotas] == [(0, 0)]
        return result

    return run(main)


def one_reply(service: Service, limits: Limits = UNLIMITED, **options: Any) -> Reply:
    return dispatching(service, lambda dispatcher: dispatcher.submit(prompt()), limits, **options)


def stopped(service: Service, limits: Limits = UNLIMITED, **options: Any) -> PipelineError | None:
    """The reason with which the only prompt was withheld."""

    async def body(dispatcher: Dispatcher) -> PipelineError | None:
        with pytest.raises(Halted) as caught:
            await dispatcher.submit(prompt())
        with pytest.raises(Halted) as again:
            await dispatcher.submit(prompt(1))
        assert again.value.reason is caught.value.reason
        return caught.value.reason

    return dispatching(service, body, limits, **options)


def waits(told: list[LongWait]) -> Callable[[Event], None]:
    """What listens to the dispatcher and keeps the waits that it tells."""

    def on_event(event: Event) -> None:
        if isinstance(event, LongWait):
            told.append(event)

    return on_event


# --- one prompt ---------------------------------------------------------------------------------------------------


def test_an_answer_is_handed_through_with_its_count_of_requests() -> None:
    reply = one_reply(Service())
    assert (reply.text, reply.status, reply.attempts, reply.rate_limited) == ("text", "ok", 1, 0)


def test_a_rejected_prompt_is_not_sent_again() -> None:
    service = Service([REJECTED])
    reply = one_reply(service)
    assert (reply.status, reply.error_kind, reply.raw, reply.attempts) == ("invalid", "invalid_request", b"", 1)
    assert reply.error == "no such field"
    assert reply.finished_at == EPOCH + 1.0
    assert len(service.times) == 1


def test_what_may_pass_is_sent_again_with_growing_random_pauses() -> None:
    service = Service([BROKEN, NO_RESPONSE, BROKEN])
    reply = one_reply(service)
    assert (reply.status, reply.attempts, reply.rate_limited) == ("ok", 4, 0)
    pauses = [later - before - 1.0 for before, later in pairwise(service.times)]
    assert all(0 <= pause <= 2**n + 0.01 for n, pause in enumerate(pauses))


def test_attempts_are_bounded() -> None:
    service = Service([BROKEN] * 9)
    reply = one_reply(service, max_attempts=3)
    assert (reply.status, reply.error_kind, reply.attempts) == ("error", "server", 3)
    assert len(service.times) == 3


def test_a_delay_that_the_service_asks_for_is_kept() -> None:
    service = Service([replace(BROKEN, retry_after_s=20.0)])
    assert one_reply(service).status == "ok"
    assert service.times[1] >= 21.0


def test_a_refusal_for_quota_costs_no_attempt_and_holds_all_until_it_is_known_what_became_of_the_others() -> None:
    service = Service([REFUSED])

    async def body(dispatcher: Dispatcher) -> list[Reply]:
        replies: list[Reply] = []

        async def submit(row: int) -> None:
            replies.append(await dispatcher.submit(prompt(row)))

        async with anyio.create_task_group() as group:
            group.start_soon(submit, 0)
            await anyio.sleep(1.1)
            group.start_soon(submit, 1)
        assert (dispatcher.rate_limited, dispatcher.attempts, dispatcher.sent) == (1, 2, 3)
        return replies

    replies = dispatching(service, body)
    assert sorted((reply.attempts, reply.rate_limited) for reply in replies) == [(1, 0), (1, 1)]
    assert service.rows == [0, 1, 0]
    assert service.times[1] >= 1.5, "until then others that were on their way might have been refused as well"
    assert 4.0 <= service.times[2] <= 4.3, "the refused one waits for the 3 s that it was told"


def test_more_refusals_than_attempts_do_not_lose_the_prompt() -> None:
    assert one_reply(Service([REFUSED] * 30), max_attempts=2).rate_limited == 30


def test_refusals_without_details_are_asked_ever_more_slowly_by_one_request_at_a_time() -> None:
    opaque = replace(REFUSED, quota=(), retry_after_s=None)

    async def body(dispatcher: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(5):
                group.start_soon(dispatcher.submit, prompt(row))

    service = Service([opaque] * 12, latency_s=0.1)
    dispatching(service, body)
    probes = service.times[5:12]
    pauses = [later - before for before, later in pairwise(probes)]
    assert all(later > 1.2 * before for before, later in zip(pauses, pauses[2:], strict=False) if before < 30)
    assert len(service.times) == 17


def test_a_service_that_only_refuses_is_not_asked_forever() -> None:
    opaque = replace(REFUSED, quota=(), retry_after_s=None)
    service = Service([opaque] * 10_000)
    assert isinstance(stopped(service), ServiceError)
    assert GIVE_UP_S <= service.times[-1] <= GIVE_UP_S + 120
    assert len(service.times) < 50


def test_a_prompt_of_more_tokens_than_a_minute_allows_is_refused_at_once() -> None:
    service = Service()

    async def body(dispatcher: Dispatcher) -> Reply:
        return await dispatcher.submit(prompt(tokens=5000))

    reply = dispatching(service, body, Limits(rpm=60, tpm=4000))
    assert (reply.status, reply.error_kind, reply.attempts) == ("invalid", "too_long", 0)
    assert reply.error and "5,000" in reply.error and "4,000" in reply.error
    assert service.times == []


def test_a_large_prompt_is_counted_by_the_service_first() -> None:
    counted: list[int] = []

    async def count_tokens(one: Prompt) -> int | Failure:
        counted.append(one.row)
        await anyio.sleep(0.1)
        return 3000 if one.row == 0 else 9000 if one.row == 1 else BROKEN

    async def body(dispatcher: Dispatcher) -> list[Reply]:
        sizes = (5000, 300, 300, 10)
        return [await dispatcher.submit(prompt(row, tokens)) for row, tokens in enumerate(sizes)]

    replies = dispatching(Service(), body, Limits(rpm=600, tpm=4000), count_tokens=count_tokens)
    assert [reply.error_kind for reply in replies] == [None, "too_long", None, None]
    assert counted == [0, 1, 2], "the small one is not worth the question"


def test_a_count_that_never_comes_holds_up_nothing_for_long() -> None:
    async def count_tokens(one: Prompt) -> int | Failure:
        await anyio.sleep(300.0)
        return 3000

    service = Service()

    async def body(dispatcher: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(100):
                group.start_soon(dispatcher.submit, prompt(row, 3000))

    dispatching(service, body, Limits(rpm=600, tpm=100_000), count_tokens=count_tokens)
    assert service.times[0] == pytest.approx(LONGEST_COUNT_S, abs=0.2)
    assert service.times[-1] < 240.0, "300,000 tokens take three minutes"


@pytest.mark.parametrize("ended_by", ["halt", "cancel"])
def test_no_count_is_waited_for_at_the_end(ended_by: str) -> None:
    async def count_tokens(one: Prompt) -> int | Failure:
        await anyio.sleep(300.0)
        return 3000

    async def body(dispatcher: Dispatcher) -> None:
        async def submit(row: int) -> None:
            with pytest.raises(Halted):
                await dispatcher.submit(prompt(row, 3000))

        async with anyio.create_task_group() as group:
            for row in range(20):
                group.start_soon(submit, row)
            await anyio.sleep(2.0)
            if ended_by == "halt":
                dispatcher.halt(None)
            else:
                group.cancel_scope.cancel()

    async def main() -> None:
        service = Service()
        dispatcher = dispatcher_of(service.send, Limits(rpm=600, tpm=10_000), wall=wall, count_tokens=count_tokens)
        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.run)
            await body(dispatcher)
            dispatcher.close()
        assert anyio.current_time() < 2.1
        assert service.times == []

    run(main)


def test_a_prompt_that_was_counted_teaches_nothing_about_estimates() -> None:
    """Which prompts go depends on their estimates where they have no count: only these tell how far off such are."""

    async def count_tokens(one: Prompt) -> int:
        return 3000

    async def body(dispatcher: Dispatcher) -> list[float]:
        ratios = []
        for row, tokens in ((0, 1000), (1, 60)):
            await dispatcher.submit(prompt(row, tokens))
            ratios.append(dispatcher.costs[0].calibrations.margin("answer").ratio)
        return ratios

    service = Service([Reply("text", "ok", usage=Usage(3000)), Reply("text", "ok", usage=Usage(90))])
    ratios = dispatching(service, body, Limits(rpm=600, tpm=4000), count_tokens=count_tokens)
    assert ratios == pytest.approx([1.0, 1.5])


def test_a_limit_that_is_only_assumed_refuses_nothing() -> None:
    async def body(dispatcher: Dispatcher) -> Reply:
        return await dispatcher.submit(prompt(tokens=300_000))

    assert dispatching(Service(), body, Limits()).status == "ok"


def test_a_prompt_that_a_named_limit_rules_out_is_refused_when_it_is_known() -> None:
    hit = QuotaHit("Tokens", "tokens", "minute", 2000)
    service = Service([replace(REFUSED, quota=(hit,))])

    async def body(dispatcher: Dispatcher) -> Reply:
        return await dispatcher.submit(prompt(tokens=3000))

    reply = dispatching(service, body, Limits(rpm=600, tpm=4000))
    assert (reply.error_kind, reply.rate_limited) == ("too_long", 1)


# --- what stops a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure("auth", "auth", "bad key", 403), AuthError),
        (Failure("spend_limit", "quota", "prepayment credits are depleted", 429), QuotaExhausted),
        (Failure("fatal", "invalid_request", "no such model", 404), JobError),
        (Failure("fatal", "server", "gone", None), ServiceError),
        (DAY_FULL, QuotaExhausted),
    ],
)
def test_some_failures_stop_the_run_and_keep_the_prompt_for_the_next(
    failure: Failure, error: type[PipelineError]
) -> None:
    service = Service([failure])
    reason = stopped(service)
    assert type(reason) is error
    assert reason.message and reason.hint
    assert len(service.times) == 1


def test_a_used_up_day_says_when_it_returns() -> None:
    reason = stopped(Service([DAY_FULL]))
    assert reason is not None
    assert "2026-11-23 08:00 UTC" in reason.message
    assert "--wait" in reason.hint
    assert reason.exit_code == 3


def test_the_day_returns_at_midnight_of_its_zone() -> None:
    reason = stopped(Service([DAY_FULL]), replace(UNLIMITED, reset_zone="Asia/Tokyo"))
    assert reason is not None and "2026-11-23 15:00 UTC" in reason.message


def test_with_wait_the_day_is_slept_through() -> None:
    events: list[str] = []
    service = Service([DAY_FULL])
    reply = one_reply(service, wait=True, on_event=lambda event: events.append(event.kind))
    assert (reply.status, reply.rate_limited) == ("ok", 1)
    assert next_reset(EPOCH) <= EPOCH + service.times[1] <= next_reset(EPOCH) + 66
    assert events.count("day") == 1


@pytest.mark.parametrize("limits", [{"rpm": 0}, {"tpm": 0}, {"rpd": 0}, {"rpm": 0, "tpm": 0, "rpd": 0}])
def test_a_model_that_is_not_offered_is_not_waited_for_and_the_job_is_not_blamed(limits: dict[str, Any]) -> None:
    """As the service words it: the limit is 0, which it leaves out, and a short delay that means nothing."""
    options = EmulatorOptions(**limits)
    none = tuple(Violation(name, 0, 29.1) for name in limits)
    failure = classify(429, {}, orjson.dumps(exhausted(none, "gemini-2.5-pro", EPOCH, options)))
    service = Service([failure])
    reason = stopped(service, wait=True)
    assert isinstance(reason, QuotaExhausted)
    assert "gemini-2.5-pro is not offered to this project" in reason.message
    assert "--model" in reason.hint
    assert len(service.times) == 1


def test_the_days_requests_are_counted_over_runs(tmp_path: Path) -> None:
    def run_once(submitted: int) -> tuple[int, PipelineError | None]:
        service = Service()

        async def body(dispatcher: Dispatcher) -> PipelineError | None:
            try:
                for row in range(submitted):
                    await dispatcher.submit(prompt(row))
            except Halted as halted:
                return halted.reason
            return None

        with QuotaBook(tmp_path / "book", "m") as book:
            reason = dispatching(service, body, Limits(rpm=0, tpm=0, rpd=10), book=book)
        return len(service.times), reason

    assert run_once(7) == (7, None)
    sent, reason = run_once(7)
    assert sent == 3
    assert isinstance(reason, QuotaExhausted)
    assert run_once(1)[0] == 0


def test_nothing_leaves_while_what_another_machine_sent_may_count() -> None:
    service = Service()

    async def body(dispatcher: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(100):
                group.start_soon(dispatcher.submit, prompt(row))

    book = MemoryBook()
    book.unseen_until = EPOCH + 40.0
    dispatching(service, body, Limits(rpm=600, tpm=0), book=book)
    assert len(service.times) == 100 and 40.0 <= min(service.times) < 41.5


def test_failed_requests_count_to_the_day_and_refused_ones_do_not(tmp_path: Path) -> None:
    service = Service([BROKEN, REFUSED, BROKEN, REJECTED])

    async def body(dispatcher: Dispatcher) -> None:
        await dispatcher.submit(prompt())
        await dispatcher.submit(prompt(1))

    with QuotaBook(tmp_path / "book", "m") as book:
        dispatching(service, body, Limits(rpm=0, tpm=0, rpd=100), book=book)
        assert book.requests_on("2026-11-22") == 4


# --- stopping -----------------------------------------------------------------------------------------------------


def test_halt_withholds_what_waits_and_finishes_what_is_in_flight() -> None:
    service = Service(latency_s=5.0)
    outcomes: dict[int, object] = {}

    async def body(dispatcher: Dispatcher) -> None:
        async def submit(row: int) -> None:
            try:
                outcomes[row] = (await dispatcher.submit(prompt(row))).status
            except Halted as halted:
                outcomes[row] = halted.reason

        async with anyio.create_task_group() as group:
            for row in range(5):
                group.start_soon(submit, row)
            await anyio.sleep(1.0)
            assert (dispatcher.in_flight, dispatcher.ready) == (2, 3)
            dispatcher.halt(None)
            dispatcher.halt(JobError("later reasons do not replace the first"))
            await anyio.sleep(1.0)
            assert outcomes == {2: None, 3: None, 4: None}

    dispatching(service, body, replace(UNLIMITED, concurrency=2))
    assert outcomes == {0: "ok", 1: "ok", 2: None, 3: None, 4: None}
    assert service.finished == 2


def test_after_halt_a_failure_in_flight_is_not_sent_again() -> None:
    service = Service([BROKEN], latency_s=5.0)

    async def body(dispatcher: Dispatcher) -> None:
        async with anyio.create_task_group() as group:

            async def submit() -> None:
                with pytest.raises(Halted):
                    await dispatcher.submit(prompt())

            group.start_soon(submit)
            await anyio.sleep(1.0)
            dispatcher.halt(None)

    dispatching(service, body)
    assert len(service.times) == 1


@pytest.mark.parametrize("stop", ["halt", "close after cancel"])
def test_run_ends_at_once_though_the_pace_is_slow(stop: str) -> None:
    async def body(dispatcher: Dispatcher) -> float:
        async with anyio.create_task_group() as group:
            for row in range(3):
                group.start_soon(quietly, dispatcher, row)
            await anyio.sleep(2.0)
            if stop == "halt":
                dispatcher.halt(None)
            else:
                group.cancel_scope.cancel()
        return anyio.current_time()

    async def quietly(dispatcher: Dispatcher, row: int) -> None:
        try:
            await dispatcher.submit(prompt(row))
        except Halted:
            return

    async def main() -> None:
        service = Service()
        dispatcher = dispatcher_of(service.send, Limits(rpm=1, tpm=10_000), wall=wall)
        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.run)
            await body(dispatcher)
            dispatcher.close()
        assert anyio.current_time() < 3.0

    run(main)


def test_a_prompt_cancelled_while_it_waits_is_withdrawn() -> None:
    service = Service()

    async def body(dispatcher: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.submit, prompt(0))
            await anyio.sleep(0.1)
            with anyio.move_on_after(0.5):
                await dispatcher.submit(prompt(1))
            assert dispatcher.ready == 0

    dispatching(service, body, replace(UNLIMITED, concurrency=1))
    assert service.rows == [0]


def test_a_prompt_cancelled_in_flight_is_finished_all_the_same() -> None:
    service = Service(latency_s=5.0)

    async def body(dispatcher: Dispatcher) -> None:
        with anyio.move_on_after(1.0):
            reply = await dispatcher.submit(prompt(0))
            assert reply.status == "ok"
            assert 5.0 <= anyio.current_time() < 5.2
        assert service.finished == 1

    dispatching(service, body, Limits(rpm=600, tpm=10_000))


def test_a_prompt_cancelled_in_flight_is_not_sent_again() -> None:
    service = Service([BROKEN], latency_s=5.0)

    async def body(dispatcher: Dispatcher) -> None:
        with anyio.move_on_after(1.0) as scope:
            await dispatcher.submit(prompt(0))
        assert scope.cancelled_caught
        assert 5.0 <= anyio.current_time() < 5.2

    dispatching(service, body)
    assert len(service.times) == 1


def test_a_bug_in_send_comes_out_of_run() -> None:
    async def send(one: Prompt) -> Reply | Failure:
        raise ZeroDivisionError

    async def main() -> None:
        dispatcher = dispatcher_of(send, Limits(rpm=600, tpm=10_000), wall=wall)
        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.run)
            await dispatcher.submit(prompt())

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    assert caught.value.subgroup(ZeroDivisionError)


def test_cancelling_the_program_at_any_moment_leaves_no_reservation_open() -> None:
    """Every await in turn: the clock stops at many instants, everything is cancelled, and the ledger is closed."""
    for step in range(60):
        world = World("log", 600, 100_000, seed=step)
        prompts = documents(world, [500, 2500, 9000] * 40)
        prompts = [replace(one, step="reduce" if one.row % 5 == 0 else "map") for one in prompts]

        async def main(world: World = world, prompts: list[Prompt] = prompts, step: int = step) -> Dispatcher:
            dispatcher = dispatcher_for(world, Limits(rpm=600, tpm=100_000))
            with anyio.move_on_after(0.013 + 0.21 * step):
                await answer_all(dispatcher, prompts, at_once=50)
            return dispatcher

        dispatcher = run(main)
        assert [quota.ledger.in_flight() for quota in dispatcher.quotas] == [(0, 0)]
        assert dispatcher.in_flight == 0
        assert len(world.left) == dispatcher.sent


def test_submitters_that_come_and_go_lose_nothing_and_stop_nothing() -> None:
    world = World("counter", 3000, 10**6, seed=4)
    prompts = documents(world, [300] * 600)
    rng, answered, cancelled = Random(9), [], []

    async def main() -> Dispatcher:
        dispatcher = dispatcher_for(world, Limits(rpm=3000, tpm=10**6))

        async def submit(one: Prompt) -> None:
            with anyio.move_on_after(rng.uniform(0.0, 30.0)) as scope:
                answered.append(await dispatcher.submit(one))
            if scope.cancelled_caught:
                cancelled.append(one)

        async with anyio.create_task_group() as runner:
            runner.start_soon(dispatcher.run)
            async with anyio.create_task_group() as group:
                for one in prompts:
                    group.start_soon(submit, one)
            dispatcher.close()
        return dispatcher

    dispatcher = run(main)
    assert len(answered) + len(cancelled) == 600
    assert min(len(answered), len(cancelled)) > 100
    assert [quota.ledger.in_flight() for quota in dispatcher.quotas] == [(0, 0)]
    assert dispatcher.ready == dispatcher.in_flight == 0
    assert world.refused == []


# --- order, slots, outages ----------------------------------------------------------------------------------------


def test_reduces_go_before_new_maps() -> None:
    service = Service(latency_s=1.0)

    async def body(dispatcher: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(4):
                group.start_soon(dispatcher.submit, prompt(row, step="map"))
            await anyio.sleep(0.5)
            group.start_soon(dispatcher.submit, prompt(9, step="reduce"))

    dispatching(service, body, replace(UNLIMITED, concurrency=1))
    assert service.rows == [0, 9, 1, 2, 3]


def test_the_first_rows_go_before_others_with_all_that_is_asked_for_them() -> None:
    service = Service(latency_s=1.0)

    async def body(dispatcher: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(4):
                group.start_soon(dispatcher.submit, prompt(row, step="map"))
            await anyio.sleep(0.5)
            for row in (7, 8, 7):
                group.start_soon(dispatcher.submit, prompt(row, step="map"))

    dispatching(service, body, replace(UNLIMITED, concurrency=1), first=frozenset({7}))
    assert service.rows == [0, 7, 7, 1, 2, 3, 8]


def test_what_is_sent_again_goes_before_what_was_never_sent() -> None:
    service = Service([BROKEN], latency_s=1.0)

    async def body(dispatcher: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(6):
                group.start_soon(dispatcher.submit, prompt(row))

    dispatching(service, body, replace(UNLIMITED, concurrency=1))
    assert service.rows == [0, 1, 0, 2, 3, 4, 5], "after a pause of less than a second"


def test_no_more_are_in_flight_than_slots() -> None:
    world = World("bucket", 10**6, 10**9)
    prompts = documents(world, [10] * 300)

    async def main() -> None:
        await answer_all(dispatcher_for(world, Limits(rpm=0, tpm=0, concurrency=17)), prompts)

    run(main)
    assert world.most_in_flight == 17


@dataclass
class Course:
    """How a run went whose service failed at times."""

    world: World
    replies: list[Reply]
    outages: list[float]  # when a person was told something

    def lost(self) -> int:
        return sum(reply.status != "ok" for reply in self.replies)

    def sent(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at, _ in self.world.left)


def course(world: World, count: int, rpm: int) -> Course:
    prompts = documents(world, [100] * count)
    outages: list[float] = []

    def heard(event: Event) -> None:
        if isinstance(event, Outage):
            outages.append(anyio.current_time())

    async def main() -> list[Reply]:
        return await answer_all(dispatcher_for(world, Limits(rpm=rpm, tpm=10**6), on_event=heard), prompts)

    return Course(world, run(main), outages)


@pytest.mark.parametrize("lasts_s", [20.0, 300.0])
@pytest.mark.parametrize("latency", [(1.0, 0.3), (2.0, 0.9), (15.0, 0.3)])
def test_an_outage_is_waited_out_by_single_probes_and_loses_nothing(
    latency: tuple[float, float], lasts_s: float
) -> None:
    """Answers to what left before it may come for half a minute: they do not mean that the service is back."""
    ends = 60.0 + lasts_s
    world = World("log", 600, 10**6, seed=2, fault=lambda t: BROKEN if 60.0 <= t < ends else None, latency=latency)
    went = course(world, 2000, 600)
    assert went.lost() == 0
    assert went.sent(61.0, ends) < 15
    assert max(reply.attempts for reply in went.replies) <= 4
    assert len(went.outages) == 2
    assert 60.0 < went.outages[0] < 66.0
    assert ends < went.outages[1] < ends + 90.0
    assert world.refused == []


@pytest.mark.parametrize("rpm", [5, 15, 60])
def test_an_outage_at_a_slow_pace_uses_no_prompt_up(rpm: int) -> None:
    """The first that fails is not the only one that is sent until the outage is noticed."""
    for seed in range(3):
        world = World("log", rpm, 10**6, seed=seed, fault=lambda t: BROKEN if 120.0 <= t < 240.0 else None)
        assert course(world, 5 * rpm, rpm).lost() == 0


def by_chance(probability: float, during: Callable[[float], bool] = lambda t: False) -> Callable[[float], Any]:
    rng = Random(3)
    return lambda t: BROKEN if during(t) or rng.random() < probability else None


@pytest.mark.parametrize("rpm", [30, 120, 600])
def test_overloads_by_chance_do_not_slow_the_run_down(rpm: int) -> None:
    world = World("log", rpm, 10**6, seed=8, fault=by_chance(0.15))
    went = course(world, 6 * rpm, rpm)
    assert world.left[-1][0] < 1.05 * 60.0 * len(world.left) / rpm + 10.0
    assert went.lost() <= 2, "a third of one was to be expected, of 3,600 and five attempts"
    assert went.outages == []


def test_after_an_outage_the_whole_rate_is_back_though_some_fail() -> None:
    world = World("log", 600, 10**6, seed=8, fault=by_chance(0.15, lambda t: 200.0 < t < 260.0))
    went = course(world, 6000, 600)
    assert went.lost() <= 2
    assert min(went.sent(60.0 * minute, 60.0 * (minute + 1)) for minute in range(6, 12)) >= 590


def test_a_server_that_takes_only_some_at_once_is_relieved() -> None:
    """Ten are served, more are told 503: soon about as many are in flight, and few prompts use up their attempts."""
    world = World("log", 600, 10**6, seed=8, latency=(10.0, 0.3))
    prompts = documents(world, [100] * 1500)
    served, refused = 0, 0
    slots: list[int] = []
    dispatcher: Dispatcher

    async def send(one: Prompt) -> Reply | Failure:
        nonlocal served, refused
        if served >= 10:
            await anyio.sleep(0.15)
            refused += 1
            return BROKEN
        served += 1
        outcome = await world.send(one)
        served -= 1
        slots.append(dispatcher.quotas[0].slots.count)
        return outcome

    async def main() -> list[Reply]:
        nonlocal dispatcher
        dispatcher = dispatcher_of(send, Limits(rpm=600, tpm=10**6), wall=world.wall, rng=Random(1))
        return await answer_all(dispatcher, prompts)

    replies = run(main)
    assert sorted(slots)[len(slots) // 2] < 20
    assert refused < 0.8 * len(replies), "2.9 if nothing relieves it"
    assert sum(reply.status != "ok" for reply in replies) < 0.01 * len(replies), "a quarter, likewise"
    assert world.admitted[-1][0] < 1.1 * 10.5 * len(replies) / 10


@pytest.mark.parametrize(("breaking", "others"), [(4, 0), (20, 300)])
def test_prompts_that_break_the_server_end_though_each_may_be_the_probe(breaking: int, others: int) -> None:
    """Some fail whatever is tried: alone or among others, each is sent five times and no more."""
    world = World("log", 600, 10**6, seed=1)
    prompts = documents(world, [100] * (breaking + others))
    tried: list[int] = []

    async def send(one: Prompt) -> Reply | Failure:
        tried.append(one.row)
        await anyio.sleep(0.1)
        return BROKEN if one.row < breaking else await world.send(one)

    async def main() -> list[Reply]:
        return await answer_all(
            dispatcher_of(send, Limits(rpm=600, tpm=10**6), wall=world.wall, rng=Random(1)), prompts
        )

    replies = run(main)
    assert sum(reply.status == "ok" for reply in replies) == others
    assert all(tried.count(row) == 5 for row in range(breaking))


def test_a_service_that_stays_down_stops_the_run() -> None:
    world = World("log", 600, 10**6, fault=lambda t: BROKEN)
    prompts = documents(world, [100] * 2000)

    async def main() -> float:
        with pytest.raises(ExceptionGroup) as caught:
            await answer_all(dispatcher_for(world, Limits(rpm=600, tpm=10**6), max_attempts=5), prompts)
        assert caught.value.subgroup(lambda error: isinstance(error, Halted) and type(error.reason) is ServiceError)
        return anyio.current_time()

    assert run(main) < GIVE_UP_S + 200


def test_progress_can_be_read() -> None:
    world = World("log", 600, 100_000)
    prompts = documents(world, [100] * 900)

    async def main() -> None:
        dispatcher = dispatcher_for(world, Limits(rpm=600, tpm=100_000))
        async with anyio.create_task_group() as group:
            group.start_soon(answer_all, dispatcher, prompts)
            await anyio.sleep(70.0)
            (quota,) = dispatcher.standing
            assert quota.rpm and quota.rpm.limit == 600 and 582 <= quota.rpm.used <= 600
            assert quota.tpm and quota.tpm.used / quota.tpm.limit == pytest.approx(0.6, abs=0.03)
            assert (quota.binds, quota.in_flight, quota.opens_at_s) == ("requests", dispatcher.in_flight, None)
            assert dispatcher.quotas[0].limits == Limits(rpm=600, tpm=100_000)
            assert dispatcher.quotas[0].slots.count < inf
            assert dispatcher.sent == dispatcher.in_flight + dispatcher.answered
            assert dispatcher.ready == 900 - dispatcher.sent

    run(main)


# ---- waits that the service asks for


@pytest.mark.case("S3")
@pytest.mark.parametrize(
    ("asked_s", "until"),
    [
        (86_400.0, "2026-11-24 "),
        (2.3e9, " UTC"),  # a date in 2099
        (7200.0, " UTC"),
        (1e30, " UTC"),
    ],
)
def test_one_prompt_waits_at_most_its_ceiling_and_is_told_once_until_when(asked_s: float, until: str) -> None:
    told: list[LongWait] = []
    service = Service([replace(BROKEN, retry_after_s=asked_s)])

    async def body(dispatcher: Dispatcher) -> Reply:
        async with anyio.create_task_group() as group:
            group.start_soon(watch, dispatcher)
            replies.append(await dispatcher.submit(prompt()))
        return replies[0]

    seen: list[float | None] = []
    replies: list[Reply] = []

    async def watch(dispatcher: Dispatcher) -> None:
        await anyio.sleep(60.0)
        seen.append(dispatcher.waits_until)

    reply = dispatching(service, body, on_event=waits(told))
    assert (reply.status, reply.attempts) == ("ok", 2)
    assert service.times[1] - service.times[0] == pytest.approx(LONGEST_WAIT_S, abs=2.0)
    assert len(told) == 1 and "the service asks to wait until " in told[0].message
    assert "it is asked again at " in told[0].message and "overloaded" in told[0].message
    assert told[0].until == pytest.approx(EPOCH + 1.0 + LONGEST_WAIT_S)
    assert seen == [pytest.approx(told[0].until)], "while it waits, somebody can say until when"


@pytest.mark.case("S3")
def test_a_service_that_keeps_asking_ends_the_row_for_the_next_run() -> None:
    service = Service([replace(BROKEN, retry_after_s=86_400.0)] * 9)
    reply = one_reply(service)
    assert (reply.status, reply.error_kind, reply.attempts) == ("error", "server", 2)
    assert reply.error_kind in PASSING
    assert service.times[-1] <= LONGEST_WAIT_S + 10.0


@pytest.mark.case("S3")
def test_others_are_sent_while_one_waits() -> None:
    service = Service([replace(BROKEN, retry_after_s=86_400.0)])

    async def body(dispatcher: Dispatcher) -> list[float]:
        finished: list[float] = []

        async def ask(row: int) -> None:
            await dispatcher.submit(prompt(row))
            finished.append(anyio.current_time())

        async with anyio.create_task_group() as group:
            for row in range(100):
                group.start_soon(ask, row)
        return finished

    finished = dispatching(service, body, Limits(rpm=0, tpm=0, concurrency=4))
    assert finished[-2] < 40.0 < LONGEST_WAIT_S < finished[-1]


@pytest.mark.case("S3")
@pytest.mark.parametrize("asked_s", [float("nan"), float("inf"), -float("inf"), -5.0, 0.0, None])
@pytest.mark.parametrize("failure", [BROKEN, REFUSED, DAY_FULL])
def test_a_wait_that_is_no_time_is_none(failure: Failure, asked_s: float | None) -> None:
    service = Service([replace(failure, retry_after_s=asked_s)])
    reply = one_reply(service, wait=True)
    assert reply.status == "ok"
    if failure is not DAY_FULL:
        assert service.times[1] - service.times[0] < 10.0


@pytest.mark.case("S3")
def test_a_refusal_holds_no_longer_than_the_ceiling_and_is_told() -> None:
    told: list[LongWait] = []
    service = Service([replace(REFUSED, retry_after_s=5000.0)])
    reply = one_reply(service, on_event=waits(told))
    assert reply.status == "ok"
    assert service.times[1] == pytest.approx(LONGEST_WAIT_S + 1.0, abs=2.0)
    assert len(told) == 1 and "asked again at" in told[0].message


@pytest.mark.case("S3")
def test_a_refusal_that_asks_for_a_day_and_names_none_is_no_used_up_day() -> None:
    told: list[LongWait] = []
    refusal = classify(429, {"retry-after": "86400"}, b"too many requests")
    service = Service([refusal] * 1000)
    reason = stopped(service, on_event=waits(told), wait=True)
    assert isinstance(reason, ServiceError) and "refused every request for 30 minutes" in reason.message
    assert GIVE_UP_S - LONGEST_WAIT_S <= service.times[-1] <= GIVE_UP_S and len(service.times) < 10
    assert "asks to wait until 2026-11-23 22:00 UTC (HTTP 429: too many requests); it is asked again" in told[0].message
    among_others = Service([refusal])
    assert one_reply(among_others).status == "ok", "the next may be let through"


def test_an_ordinary_minutes_wait_is_not_told() -> None:
    told: list[str] = []
    service = Service([REFUSED, replace(BROKEN, retry_after_s=30.0)])
    assert one_reply(service, on_event=lambda event: told.append(event.kind)).status == "ok"
    assert "wait" not in told


@pytest.mark.parametrize(("most", "requests"), [(3, 3), (2, 2), (1, 1), (None, 5), (9, 5)])
@pytest.mark.case("R3")
def test_what_cannot_be_read_is_asked_for_so_often_and_no_more(most: int | None, requests: int) -> None:
    unread = Failure("transient", "malformed_reply", "cut", http_status=200, billed=True, most_requests=most)
    service = Service([unread] * 9)
    reply = one_reply(service)
    assert (reply.status, reply.error_kind, reply.attempts) == ("error", "malformed_reply", requests)
    assert len(service.times) == requests


@pytest.mark.case("R3")
def test_only_the_failures_for_that_cause_count_towards_its_bound() -> None:
    unread = Failure("transient", "malformed_reply", "cut", http_status=200, billed=True, most_requests=3)
    service = Service([BROKEN, BROKEN, unread, unread])
    reply = one_reply(service)
    assert (reply.status, reply.attempts) == ("ok", 5)


@pytest.mark.case("R3")
@pytest.mark.parametrize(
    ("raw", "status", "longest_s"),
    [(b'{"candidates": [{"con', 200, 60.0), (b"", None, 60.0), (b"<html>", 200, inf), (b"", 200, inf)],
)
def test_a_service_whose_answers_cannot_be_read_is_no_outage(raw: bytes, status: int | None, longest_s: float) -> None:
    """A page, or nothing, is a gateway's: then one request at a time asks whether the service is back."""
    unread = Failure("transient", "malformed_reply", "cut", status, billed=True, most_requests=3, raw=raw)
    service = Service([unread] * 99)

    async def body(dispatcher: Dispatcher) -> list[Reply]:
        replies: list[Reply] = []

        async def ask(row: int) -> None:
            replies.append(await dispatcher.submit(prompt(row)))

        async with anyio.create_task_group() as group:
            for row in range(12):
                group.start_soon(ask, row)
        return replies

    events: list[str] = []
    replies = dispatching(service, body, on_event=lambda event: events.append(event.kind))
    assert {(reply.status, reply.error_kind, reply.attempts) for reply in replies} == {("error", "malformed_reply", 3)}
    assert ("outage" in events) is (longest_s == inf)
    assert service.times[-1] < longest_s


# ---- the day in which a request was sent


def around_midnight(failure: Failure, sent_before_s: float, limits: Limits = UNLIMITED) -> tuple[Service, Reply | None]:
    """One prompt sent so long before midnight and refused 4 s later; then what became of it."""
    start = next_reset(EPOCH) - sent_before_s
    service = Service([failure], latency_s=4.0)

    def clock() -> float:
        return start + anyio.current_time()

    async def body(dispatcher: Dispatcher) -> Reply | None:
        try:
            return await dispatcher.submit(prompt())
        except Halted:
            return None

    return service, dispatching(service, body, limits, wall=clock)


@pytest.mark.case("S4")
@pytest.mark.parametrize("limits", [UNLIMITED, Limits(rpm=60, tpm=0, rpd=100)])
def test_a_refusal_for_the_day_counts_for_the_day_that_it_was_sent_in(limits: Limits) -> None:
    service, reply = around_midnight(DAY_FULL, sent_before_s=3.0, limits=limits)
    assert reply is not None and reply.status == "ok" and service.times[1] < 20.0


@pytest.mark.case("S4")
def test_a_day_that_is_refused_in_itself_is_closed() -> None:
    service, reply = around_midnight(DAY_FULL, sent_before_s=-1.0)
    assert reply is None and len(service.times) == 1


@pytest.mark.case("S4")
def test_the_servers_clock_may_be_behind() -> None:
    """By ours the new day had begun when it was sent; the server refused it in the old one."""
    behind = replace(DAY_FULL, served_at=next_reset(EPOCH) - 1.0)
    _, reply = around_midnight(behind, sent_before_s=-1.0)
    assert reply is not None and reply.status == "ok"
    mad = replace(DAY_FULL, served_at=next_reset(EPOCH) - 86_400.0)
    assert around_midnight(mad, sent_before_s=-1.0)[1] is None, "a clock that is a day off tells no day"
