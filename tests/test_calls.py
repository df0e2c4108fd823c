"""The durable call, layer by layer."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from stores import CENT, manifest, paid, prompt, result

from pipeline.calls import (
    Saved,
    Spending,
    budget,
    journal,
    lost_usd,
    record_failures,
    replay,
    shared,
    single_flight,
    worst_case_usd,
)
from pipeline.errors import BudgetReached, Halted, PipelineError
from pipeline.flows import Call
from pipeline.prices import fixed_rates
from pipeline.providers.gemini import parse_reply
from pipeline.records import Prompt, Reply, Usage, Verdict
from pipeline.spend import SpendBook
from pipeline.store.lines import Sent
from pipeline.store.run import RunStore

RATES = fixed_rates(1.0, 10.0)  # USD per million tokens


def in_store(path: Path, test: Callable[[RunStore], object]) -> None:
    """Run an async test body with an open store."""

    async def body() -> None:
        store = RunStore(path / "run", parse_reply)
        store.open(manifest())
        try:
            await test(store)
        finally:
            store.close()

    anyio.run(body)


class Seller:
    """A call that counts what it sells; each sale takes a moment of the event loop."""

    def __init__(self, *replies: Reply) -> None:
        self.sold: list[Prompt] = []
        self._replies = list(replies)

    async def __call__(self, asked: Prompt) -> Reply:
        self.sold.append(asked)
        await anyio.lowlevel.checkpoint()
        return self._replies.pop(0) if self._replies else paid(f"for {asked.fingerprint}", cost_usd=Decimal("0.001"))


def test_what_the_journal_holds_is_not_bought_again(tmp_path: Path) -> None:
    async def body(store: RunStore) -> None:
        seller = Seller()
        saved = Saved()
        call = replay(seller, store, saved)
        store.append_call(prompt(0, "same"), paid("kept"))
        own, other = await call(prompt(0, "same")), await call(prompt(7, "same"))
        assert (own.text, other.text, seller.sold) == ("kept", "kept", [])
        assert own.usage.input_tokens > 0 and own.cost_usd
        assert other.usage == Usage() and other.cost_usd == 0
        assert (await call(prompt(0, "another"))).text == "for another"
        assert (saved.identical, saved.usd) == (1, CENT), "a row's own reply is no saving"

    in_store(tmp_path, body)


def test_what_was_sealed_long_ago_is_not_bought_again(tmp_path: Path) -> None:
    async def body(store: RunStore) -> None:
        seller, saved = Seller(), Saved()
        call = replay(seller, store, saved)
        store.append_call(prompt(0, "same"), paid("kept"))
        store.append_result(result(0))
        await store.seal()
        other = await call(prompt(90_000, "same"))
        assert (other.text, other.usage, other.cost_usd, seller.sold) == ("kept", Usage(), 0, [])
        assert (saved.identical, saved.usd) == (1, CENT)
        own = await call(prompt(0, "same"))
        assert (own.text, own.cost_usd, saved.identical) == ("kept", CENT, 1), "a row that is tried again pays once"

    in_store(tmp_path, body)


def test_the_same_content_is_in_flight_once() -> None:
    async def body() -> None:
        seller = Seller()
        saved = Saved()
        call = single_flight(seller, saved)
        replies: dict[int, Reply] = {}

        async def ask(row: int, content: str) -> None:
            replies[row] = await call(prompt(row, content))

        async with anyio.create_task_group() as tasks:
            for row in range(5):
                tasks.start_soon(ask, row, "same")
            tasks.start_soon(ask, 5, "other")
        assert [asked.fingerprint for asked in seller.sold] == ["same", "other"]
        assert sum(reply.usage != Usage() for reply in replies.values()) == 2
        assert {replies[row].text for row in range(5)} == {"for same"}
        assert (saved.identical, saved.usd) == (4, Decimal("0.004"))
        await call(prompt(9, "same"))
        assert len(seller.sold) == 3, "a flight ends when it lands; what was bought is the journal's to remember"

    anyio.run(body)


def test_when_the_leader_is_withdrawn_the_next_in_line_sends() -> None:
    async def body() -> None:
        gate = anyio.Event()
        asked: list[int] = []

        async def slow(one: Prompt) -> Reply:
            asked.append(one.row)
            if one.row == 0:
                await gate.wait()
            return paid()

        call = single_flight(slow, Saved())
        replies: list[Reply] = []

        async def follow() -> None:
            replies.append(await call(prompt(1, "same")))

        async with anyio.create_task_group() as everyone, anyio.create_task_group() as leader:
            leader.start_soon(call, prompt(0, "same"))
            await anyio.wait_all_tasks_blocked()
            everyone.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            leader.cancel_scope.cancel()
        assert asked == [0, 1]
        assert replies[0].usage != Usage(), "the follower bought it itself"

    anyio.run(body)


def test_a_failed_leader_fails_its_followers_alike_and_free() -> None:
    async def body() -> None:
        refused = Reply("", "invalid", error_kind="invalid_request", error="no", attempts=1)
        call = single_flight(Seller(refused), Saved())
        replies: list[Reply] = []

        async def ask(row: int) -> None:
            replies.append(await call(prompt(row, "same")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, 0)
            tasks.start_soon(ask, 1)
        assert [reply.error_kind for reply in replies] == ["invalid_request"] * 2
        assert sorted(reply.attempts for reply in replies) == [0, 1]

    anyio.run(body)


def test_a_shared_reply_costs_nothing() -> None:
    reply = shared(paid("text", cost_usd=Decimal("0.5")))
    assert (reply.text, reply.cost_usd, reply.usage, reply.attempts, reply.raw) == ("text", 0, Usage(), 0, b"")


def priced(row: int, *, longest: int = 100) -> Prompt:
    one = prompt(row)
    return replace(one, params=replace(one.params, max_output_tokens=longest))


def untold(event: str, numbers: dict[str, object]) -> None:
    """Nobody listens to the warnings of the budget."""


def test_the_worst_case_is_the_longest_answer_at_todays_price() -> None:
    assert worst_case_usd(priced(0), RATES) == Decimal("0.000001") * 13 + Decimal("0.00001") * 100
    unknown = replace(priced(0), params=replace(priced(0).params, model="nobody-knows"))
    assert worst_case_usd(unknown, None) == 0


def test_lost_requests_may_have_cost_their_worst_cases() -> None:
    sent = Sent("f", 0, "gemini-3.5-flash-lite", 10, 100)
    assert lost_usd([sent, sent], RATES) == 2 * worst_case_usd(priced(0), RATES)
    assert lost_usd([sent, sent._replace(model="nobody-knows")], None) is None


def test_a_long_prompt_is_reserved_at_the_long_rate() -> None:
    near = replace(priced(0), input_tokens_est=190_000)
    near = replace(near, params=replace(near.params, model="gemini-2.5-pro"))
    assert worst_case_usd(near, None) > Decimal("2.5e-6") * 200_000


def test_the_budget_is_never_passed_and_stops_the_run() -> None:
    async def body() -> None:
        halted: list[PipelineError] = []
        spending = Spending(cap_usd=Decimal("0.0031"))
        seller = Seller()
        highest = Decimal(0)

        async def watched(asked: Prompt) -> Reply:
            nonlocal highest
            highest = max(highest, spending.spent_usd + spending.reserved_usd)
            return await seller(asked)

        call = budget(watched, spending, RATES, halted.append, untold)
        stopped: list[Halted] = []

        async def ask(row: int) -> None:
            try:
                await call(priced(row))
            except Halted as halt:
                stopped.append(halt)

        async with anyio.create_task_group() as tasks:
            for row in range(10):
                tasks.start_soon(ask, row)
        # worst case 0.001013, real cost 0.001: three calls cost 0.003, and a fourth could pass 0.0031
        assert len(seller.sold) == 3
        assert highest <= Decimal("0.0031")
        assert spending.spent_usd == Decimal("0.003") and spending.reserved_usd == 0
        assert len(stopped) == 7
        assert isinstance(halted[0], BudgetReached) and "--max-cost" in halted[0].hint
        assert halted[0].exit_code == 3

    anyio.run(body)


def test_calls_wait_for_reservations_to_settle_before_the_budget_stops_anything() -> None:
    async def body() -> None:
        spending = Spending(cap_usd=Decimal("0.0101"))
        cheap = [paid(cost_usd=Decimal("0.0001")) for _ in range(20)]
        call = budget(Seller(*cheap), spending, RATES, pytest.fail, untold)
        async with anyio.create_task_group() as tasks:
            for row in range(20):  # the worst cases together are twice the cap, the real costs a fifth of it
                tasks.start_soon(call, priced(row))
        assert spending.spent_usd == Decimal("0.002")

    anyio.run(body)


def test_a_withdrawn_call_gives_its_reservation_back() -> None:
    async def body() -> None:
        spending = Spending(cap_usd=Decimal(1))

        async def never(asked: Prompt) -> Reply:
            await anyio.sleep_forever()
            raise AssertionError

        call = budget(never, spending, RATES, pytest.fail, untold)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, priced(0))
            await anyio.wait_all_tasks_blocked()
            assert spending.reserved_usd > 0
            tasks.cancel_scope.cancel()
        assert spending.reserved_usd == 0

    anyio.run(body)


@pytest.mark.parametrize("period", ["day", "month"])
def test_a_cap_on_all_runs_counts_what_the_others_spent(tmp_path: Path, period: str) -> None:
    name = f"the {period}'s budget"

    async def body() -> None:
        with SpendBook(tmp_path / "s", "p") as book, SpendBook(tmp_path / "s", "p") as others:
            others.add(Decimal("0.0075"))
            spending = Spending(None, book=book, **{f"{period}_cap_usd": Decimal("0.0101")})
            halted: list[PipelineError] = []
            told: list[str] = []

            async def buying(asked: Prompt) -> Reply:
                reply = await Seller()(asked)
                spending.bought(reply)
                return reply

            def tell(event: str, numbers: dict[str, object]) -> None:
                told.append(str(numbers["message"]))

            call = budget(buying, spending, RATES, halted.append, tell)
            await call(priced(0))
            await call(priced(1))
            assert told == [f"84% of {name} of $0.0101 is spent"], "once"
            with pytest.raises(Halted):
                await call(priced(2))
            assert others.spent() == (Decimal("0.0095"), Decimal("0.0095"))
            assert halted[0].exit_code == 3
            assert halted[0].message.startswith(f"the next call could pass {name} of $0.0101 ($0.0095 spent")

    anyio.run(body)


def test_a_cap_on_all_runs_that_cannot_be_kept_stops_the_run_and_no_other_cap_does(tmp_path: Path) -> None:
    async def body() -> None:
        with SpendBook(tmp_path / "s", "p") as book:
            halted: list[PipelineError] = []

            def buying(spending: Spending) -> Call:
                return budget(Seller(), spending, RATES, halted.append, untold)

            capped = buying(Spending(None, book=book, month_cap_usd=Decimal(1)))
            await capped(priced(0))
            book.trouble = "the disk is full"
            await buying(Spending(Decimal(1), book=book))(priced(1))
            assert not halted
            with pytest.raises(Halted):
                await capped(priced(2))
            assert halted[0].exit_code == 3 and "the disk is full" in halted[0].message
            assert "the same command continues" in halted[0].hint

    anyio.run(body)


def test_without_a_cap_nothing_stands_in_the_way() -> None:
    seller = Seller()
    assert budget(seller, Spending(None), RATES, pytest.fail, untold) is seller


def test_a_reply_is_priced_and_in_the_journal_before_anyone_sees_it(tmp_path: Path) -> None:
    async def body(store: RunStore) -> None:
        answers: list[Reply | Verdict] = [
            Verdict("rate_limit", "quota", "slow down"),
            Verdict("transient", "server", "overloaded"),
            replace(paid("text"), model="gemini-3.5-flash-lite", usage=Usage(1000, output_tokens=10), cost_usd=None),
        ]

        async def send(asked: Prompt) -> Reply | Verdict:
            assert asked.fingerprint in store._batch.in_flight
            return answers.pop(0)

        bought: list[Reply] = []
        kept = journal(send, store, None, {}, bought.append)
        assert isinstance(await kept(prompt(0)), Verdict)
        assert isinstance(await kept(prompt(0)), Verdict)
        assert store.reply("content 0") is None and not store._batch.in_flight
        reply = await kept(prompt(0))
        assert not store._batch.in_flight
        assert isinstance(reply, Reply)
        assert reply.cost_usd == Decimal("0.000325")
        assert (reply.attempts, reply.rate_limited) == (2, 1)
        on_disk = store.reply("content 0")
        assert on_disk and on_disk.reply.text == "text" and on_disk.reply.attempts == 2
        assert bought == [reply]

    in_store(tmp_path, body)


def test_a_prompt_that_failed_is_recorded_but_not_replayed(tmp_path: Path) -> None:
    async def body(store: RunStore) -> None:
        failed = Reply("", "error", error_kind="server", error="overloaded", attempts=5)
        tries = {"content 3": [5, 0]}
        call = record_failures(Seller(failed), store, tries)
        assert await call(prompt(3)) is failed
        assert store.reply("content 3") is None and not tries

    in_store(tmp_path, body)
