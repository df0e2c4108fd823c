"""The durable call, layer by layer."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from asking import MODEL, ROUTE, TARGET
from stores import CENT, in_flight, manifest, paid, prompt, result

from pipeline.budget.caps import Spending
from pipeline.budget.cashier import Cashier
from pipeline.calls import Saved, journal, record_failures, replay, shared, single_flight
from pipeline.dispatch.desk import Tries
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import Failure, FromFlex, Lane, Reply, Usage
from pipeline.store.run import RunStore
from pipeline.targets import Route, Target


def in_store(path: Path, test: Callable[[RunStore], Awaitable[object]]) -> None:
    """Run an async test body with an open store."""

    async def body() -> None:
        store = RunStore(path / "run", parse_stored)
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

    async def __call__(self, asked: Prompt, route: Route) -> Reply:
        self.sold.append(asked)
        await anyio.lowlevel.checkpoint()
        return (
            self._replies.pop(0)
            if self._replies
            else paid(f"for {asked.fingerprint(MODEL)}", cost_usd=Decimal("0.001"))
        )


def test_what_the_journal_holds_is_not_bought_again(tmp_path: Path) -> None:
    async def body(store: RunStore) -> None:
        seller = Seller()
        saved = Saved()
        call = replay(seller, store, saved)
        store.append_call(prompt(0, "same"), MODEL, paid("kept"))
        own, other = await call(prompt(0, "same"), ROUTE), await call(prompt(7, "same"), ROUTE)
        assert (own.text, other.text, seller.sold) == ("kept", "kept", [])
        assert own.usage.input_tokens > 0 and own.cost_usd
        assert other.usage == Usage() and other.cost_usd == 0
        assert (await call(prompt(0, "another"), ROUTE)).text == "for another"
        assert (saved.identical, saved.usd) == (1, CENT), "a row's own reply is no saving"

    in_store(tmp_path, body)


def test_what_was_sealed_long_ago_is_not_bought_again(tmp_path: Path) -> None:
    async def body(store: RunStore) -> None:
        seller, saved = Seller(), Saved()
        call = replay(seller, store, saved)
        store.append_call(prompt(0, "same"), MODEL, paid("kept"))
        store.append_result(result(0))
        await store.seal()
        other = await call(prompt(90_000, "same"), ROUTE)
        assert (other.text, other.usage, other.cost_usd) == ("kept", Usage(), Decimal(0)) and not seller.sold
        assert (saved.identical, saved.usd) == (1, CENT)
        own = await call(prompt(0, "same"), ROUTE)
        assert (own.text, own.cost_usd, saved.identical) == ("kept", CENT, 1), "a row that is tried again pays once"

    in_store(tmp_path, body)


def test_the_same_content_is_in_flight_once() -> None:
    async def body() -> None:
        seller = Seller()
        saved = Saved()
        call = single_flight(seller, saved)
        replies: dict[int, Reply] = {}

        async def ask(row: int, content: str) -> None:
            replies[row] = await call(prompt(row, content), ROUTE)

        async with anyio.create_task_group() as tasks:
            for row in range(5):
                tasks.start_soon(ask, row, "same")
            tasks.start_soon(ask, 5, "other")
        assert [asked.fingerprint(MODEL) for asked in seller.sold] == ["same", "other"]
        assert sum(reply.usage != Usage() for reply in replies.values()) == 2
        assert {replies[row].text for row in range(5)} == {"for same"}
        assert (saved.identical, saved.usd) == (4, Decimal("0.004"))
        await call(prompt(9, "same"), ROUTE)
        assert len(seller.sold) == 3, "a flight ends when it lands; what was bought is the journal's to remember"

    anyio.run(body)


@pytest.mark.parametrize(
    ("answered", "sold"), [(MODEL, ["alone"]), ("gemini-3.8-flash", ["both", "alone"]), ("", ["both", "alone"])]
)
def test_rows_of_two_rules_share_an_answer_that_either_may_get(answered: str, sold: list[str]) -> None:
    """The same content: one rule leads to two models, the other to one of them; a failure is nobody else's."""

    async def body() -> None:
        both = Route((TARGET, replace(TARGET, model="gemini-3.8-flash")))
        asked: list[str] = []

        async def slow(one: Prompt, route: Route) -> Reply:
            asked.append("both" if route == both else "alone")
            await anyio.lowlevel.checkpoint()
            return replace(paid(), asked=answered) if answered else Reply("", "error", error_kind="server")

        call = single_flight(slow, Saved())

        async def ask(row: int, route: Route) -> None:
            await call(prompt(row, "same"), route)

        async with anyio.create_task_group() as tasks:
            for row, route in enumerate((ROUTE, both) if sold == ["alone"] else (both, ROUTE)):
                tasks.start_soon(ask, row, route)
        assert asked == sold

    anyio.run(body)


def test_when_the_leader_is_withdrawn_the_next_in_line_sends() -> None:
    async def body() -> None:
        gate = anyio.Event()
        asked: list[int] = []

        async def slow(one: Prompt, route: Route) -> Reply:
            asked.append(one.row)
            if one.row == 0:
                await gate.wait()
            return paid()

        call = single_flight(slow, Saved())
        replies: list[Reply] = []

        async def follow() -> None:
            replies.append(await call(prompt(1, "same"), ROUTE))

        async def lead() -> None:
            await call(prompt(0, "same"), ROUTE)

        async with anyio.create_task_group() as everyone, anyio.create_task_group() as leader:
            leader.start_soon(lead)
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
            replies.append(await call(prompt(row, "same"), ROUTE))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, 0)
            tasks.start_soon(ask, 1)
        assert [reply.error_kind for reply in replies] == ["invalid_request"] * 2
        assert sorted(reply.attempts for reply in replies) == [0, 1]

    anyio.run(body)


def test_a_shared_reply_costs_nothing() -> None:
    reply = shared(paid("text", cost_usd=Decimal("0.5")))
    assert (reply.text, reply.cost_usd, reply.usage, reply.attempts, reply.raw) == ("text", Decimal(0), Usage(), 0, b"")


def test_a_reply_is_priced_and_in_the_journal_before_anyone_sees_it(tmp_path: Path) -> None:
    async def body(store: RunStore) -> None:
        answers: list[Reply | Failure] = [
            Failure("rate_limit", "quota", "slow down"),
            Failure("transient", "server", "overloaded", http_status=503),
            replace(paid("text"), model="gemini-3.5-flash-lite", usage=Usage(1000, output_tokens=10), cost_usd=None),
        ]

        async def send(asked: Prompt, target: Target) -> Reply | Failure:
            assert in_flight(store.directory) == {asked.fingerprint(target.model)}
            return answers.pop(0)

        bought: list[tuple[Prompt, Reply, bool]] = []
        kept = journal(send, store, Cashier(Spending(None)), lambda *what: bought.append(what))
        assert isinstance(await kept(prompt(0), TARGET, Tries()), Failure)
        assert isinstance(await kept(prompt(0), TARGET, Tries(0, 1)), Failure)
        assert store.reply("content 0") is None and not in_flight(store.directory)
        reply = await kept(prompt(0), TARGET, Tries(1, 1))
        assert not in_flight(store.directory)
        assert isinstance(reply, Reply)
        assert reply.cost_usd == Decimal("0.000325")
        assert (reply.attempts, reply.rate_limited) == (2, 1)
        on_disk = store.reply("content 0")
        assert on_disk and on_disk.reply.text == "text" and on_disk.reply.attempts == 2
        assert [what[1:] for what in bought] == [(reply, True)]

    in_store(tmp_path, body)


@pytest.mark.parametrize(
    ("asked", "served", "before", "fell_back"),
    [
        ("flex", "flex", None, None),
        ("flex", "standard", None, "by_service"),
        ("standard", "standard", "last_call", "last_call"),
        ("standard", "standard", None, None),
        ("standard", "flex", "failed", None),
    ],
)
def test_why_a_reply_is_not_of_flex_is_kept_with_it(
    tmp_path: Path, asked: Lane, served: Lane, before: FromFlex | None, fell_back: FromFlex | None
) -> None:
    async def body(store: RunStore) -> None:
        async def send(prompt: Prompt, target: Target) -> Reply:
            return paid("text", model="gemini-3.5-flash-lite", lane=served)

        kept = journal(send, store, Cashier(Spending(None)), lambda *what: None)
        assert isinstance(await kept(prompt(0), TARGET.asked_in(asked), Tries(fell_back=before)), Reply)
        on_disk = store.reply("content 0")
        assert on_disk and on_disk.reply.fell_back == fell_back

    in_store(tmp_path, body)


def test_a_prompt_that_failed_is_recorded_but_not_replayed(tmp_path: Path) -> None:
    async def body(store: RunStore) -> None:
        failed = Reply("", "error", error_kind="server", error="overloaded", attempts=5)
        call = record_failures(Seller(failed), store)
        assert await call(prompt(3), ROUTE) == failed
        assert store.reply("content 3") is None

    in_store(tmp_path, body)
