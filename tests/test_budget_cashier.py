"""The cash cashier: no cap is passed, whatever answers, is billed, gets lost or cannot be read."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from random import Random
from threading import Timer
from typing import Any

import anyio
import polars as pl
import pytest
from asking import MODEL, TARGET
from hypothesis import given, settings
from hypothesis import strategies as st
from sharedfiles import locked
from stores import in_flight, manifest, prompt, sealed
from vclock import run

from pipeline.budget.book import SpendBook
from pipeline.budget.caps import Spending
from pipeline.budget.cashier import ESTIMATE_AFTER, SEEN_COLUMNS, Bill, Cashier, Lengths, Seen, seen_in, worst_case_usd
from pipeline.budget.joint import JointBook
from pipeline.calls import charge_lost, journal, record_failures
from pipeline.dispatch.desk import Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.errors import BudgetReached, Halted, PipelineError
from pipeline.events import Event, Message
from pipeline.prices import Rates, cost, fixed_rates, rates
from pipeline.prompts import Prompt, Text, Tools, Turn
from pipeline.providers.stored import parse_stored
from pipeline.records import Failure, Limits, Media, Reply, Usage
from pipeline.store.run import RunStore
from pipeline.targets import Route, Target

RATES = fixed_rates(1.0, 10.0)  # USD per million tokens
AT = 1_780_000_000.0
WORST = Decimal("0.001013")
"""13 tokens of input, with the margin for a low estimate, and 100 of output."""
TIMEOUT = Failure("transient", "timeout", "no complete answer in time", billed=True)
BROKEN = Failure("transient", "network", "the connection broke")
REFUSED = Failure("transient", "network", "no connection", sent=False)
OVERLOADED = Failure("transient", "server", "overloaded", http_status=503)
UNREAD = Failure("transient", "malformed_reply", "cut", http_status=200, billed=True, most_requests=3, raw=b'{"candi')
Outcome = Reply | Failure


def asked(row: int, *, longest: int | None = 100) -> Prompt:
    """A prompt of 10 tokens, whose content is its row's own."""
    one = prompt(row)
    return replace(one, params=replace(one.params, max_output_tokens=longest)).known_as(f"content {row}", MODEL)


def target_of(rates: Rates | None, model: str = MODEL) -> Target:
    return replace(TARGET, rates=rates, model=model)


def answer(output_tokens: int = 10, *, model: str = "gemini-3.5-flash-lite", **fields: Any) -> Reply:
    """A reply as the provider reads it, not priced yet."""
    usage = fields.pop("usage", Usage(10, output_tokens=output_tokens))
    return Reply("text", "ok", usage=usage, model=model, raw=b"{}", finished_at=AT, **fields)


@dataclass
class Service:
    """Answers as told, and remembers what it billed and how many requests were in flight at once."""

    outcomes: Callable[[int], Outcome]  # by number of the request
    billed_usd: Decimal = Decimal(0)
    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    price: Rates = RATES
    billed: Callable[[int], Usage] | None = None  # where it is not what the outcome says
    latency_s: float = 1.0

    async def send(self, one: Prompt, target: Target) -> Outcome:
        number, outcome = self.requests, self.outcomes(self.requests)
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if isinstance(outcome, Reply) and self.billed is None:
            self.billed_usd += cost(outcome.usage, "any", at(), own=self.price) or 0
        elif self.billed is not None:
            self.billed_usd += cost(self.billed(number), "any", at(), own=self.price) or 0
        try:
            await anyio.sleep(self.latency_s)
        finally:
            self.in_flight -= 1
        return outcome


def at() -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(AT, UTC)


@dataclass
class Course:
    """One session: what came of it."""

    spending: Spending
    replies: dict[int, Reply] = field(default_factory=dict)
    stopped: PipelineError | None = None
    told: list[str] = field(default_factory=list)


def session(
    store: RunStore,
    service: Service,
    rows: Iterable[int],
    cap_usd: str | None = None,
    *,
    own: Rates | None = RATES,
    book: SpendBook | None = None,
    concurrency: int = 50,
    of: Callable[[int], Prompt] = asked,
    **caps: Any,
) -> Course:
    """Ask for these rows under a cap, in virtual time, with what the store knows of earlier sessions."""
    spending = Spending(Decimal(cap_usd) if cap_usd else None, store.spent_usd(), book=book, **caps)
    course = Course(spending)

    def tell(event: Event) -> None:
        assert isinstance(event, Message)
        course.told.append(f"{event.kind}: {event.message}")

    async def main() -> None:
        target = replace(target_of(own), limits=Limits(rpm=0, tpm=0, concurrency=concurrency))
        route = Route((target,))
        cashier = Cashier(spending, tell, seen_in(store.calls(SEEN_COLUMNS)))
        if store.lost:
            charge_lost(store, cashier, route)
        send = journal(service.send, store, cashier, lambda prompt, reply, answered: None)
        dispatcher = Dispatcher(send, route, admit=cashier.admit, wall=lambda: AT + anyio.current_time(), rng=Random(1))
        call = record_failures(dispatcher.submit, store)

        async def ask(row: int) -> None:
            try:
                course.replies[row] = await call(of(row), route)
            except Halted as halted:
                course.stopped = halted.reason

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dispatcher.run)
            async with anyio.create_task_group() as documents:
                for row in rows:
                    documents.start_soon(ask, row)
            dispatcher.close()

    run(main)
    assert spending.reserved_usd == 0, "every reservation was settled"
    return course


@contextmanager
def opened(path: Path) -> Iterator[RunStore]:
    """The run directory, sealed at the end."""
    store = RunStore(path / "run", parse_stored)
    store.open(manifest())
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    """An open run directory."""
    with opened(tmp_path) as store:
        yield store


# ---- what a request may cost


def test_the_worst_case_is_the_longest_answer_at_todays_price() -> None:
    assert worst_case_usd(asked(0), target_of(RATES)) == WORST
    assert worst_case_usd(asked(0), target_of(None, "nobody-knows")) is None


def test_a_long_prompt_is_reserved_at_the_long_rate() -> None:
    near = replace(asked(0), input_tokens_est=190_000)
    worst = worst_case_usd(near, target_of(None, "gemini-3.1-pro-preview"))
    assert worst is not None and worst > Decimal("4e-6") * 200_000


def test_what_is_asked_in_flex_is_reserved_at_the_standard_price_and_billed_at_that_of_the_lane_that_served() -> None:
    cashier, asked_in = Cashier(Spending(Decimal(1))), replace(target_of(None), lane="flex")
    assert worst_case_usd(asked(0), asked_in) == worst_case_usd(asked(0), target_of(None))
    flex, elsewhere = (cashier.answered(asked(0), asked_in, answer(lane=lane)) for lane in ("flex", "standard"))
    assert flex.cost_usd is not None and flex.cost_usd * 2 == flex.standard_usd == elsewhere.cost_usd
    assert elsewhere.standard_usd is None
    urgent = cashier.answered(asked(0), asked_in, answer(lane="priority"))
    assert urgent.standard_usd is not None and urgent.cost_usd == urgent.standard_usd * Decimal("1.8")


def test_own_prices_hold_in_every_lane_but_for_the_factors_that_are_named() -> None:
    cashier = Cashier(Spending(None))
    for own, times in ((RATES, 1), (fixed_rates(1.0, 10.0, flex=0.25), Decimal("0.25"))):
        bill = cashier.answered(asked(0), target_of(own), answer(lane="flex"))
        assert bill.standard_usd is not None and bill.cost_usd == bill.standard_usd * times


@pytest.mark.case("S8")
def test_the_longest_answer_of_an_unknown_model_is_that_of_no_shorter_one() -> None:
    unknown, known = (target_of(RATES, name) for name in ("nobody-knows", "gemini-3.8-flash"))
    assert worst_case_usd(asked(0, longest=None), unknown) == worst_case_usd(asked(0, longest=None), known)


# ---- caps


def test_the_budget_is_never_passed_and_stops_the_run(store: RunStore) -> None:
    service = Service(lambda number: answer(99))  # 0.001: three of them, and a fourth could pass 0.0031
    course = session(store, service, range(10), "0.0031")
    assert service.requests == 3 and course.spending.spent_usd == Decimal("0.003")
    assert isinstance(course.stopped, BudgetReached) and "--max-cost" in course.stopped.hint
    assert course.stopped.exit_code == 3
    assert course.stopped.message.startswith("the next call could pass the budget of $0.0031 ($0.0030 spent, at most")


def test_calls_wait_for_others_to_settle_before_the_budget_stops_anything(store: RunStore) -> None:
    """The worst cases together are twice the cap, the real costs a fifth of it."""
    course = session(store, Service(lambda number: answer(9)), range(20), "0.0101")
    assert course.stopped is None and course.spending.spent_usd == Decimal("0.002")


def test_without_a_cap_nothing_stands_in_the_way(store: RunStore) -> None:
    service = Service(lambda number: answer())
    session(store, service, range(50))
    assert service.most_in_flight == 50


@pytest.mark.parametrize("period", ["day", "month"])
def test_a_cap_on_all_runs_counts_what_the_others_spent(tmp_path: Path, store: RunStore, period: str) -> None:
    name = f"the {period}'s budget"
    with SpendBook(tmp_path / "s", "p", "run") as book, SpendBook(tmp_path / "s", "p", "run") as others:
        others.add(Decimal("0.0075"))
        caps: dict[str, Any] = {f"{period}_cap_usd": Decimal("0.0101")}
        course = session(store, Service(lambda number: answer(99)), range(3), book=book, concurrency=1, **caps)
        assert others.spent() == (Decimal("0.0095"), Decimal("0.0095"))
        assert course.stopped is not None and course.stopped.exit_code == 3
        assert course.stopped.message.startswith(f"the next call could pass {name} of $0.0101 ($0.0095 spent")


def test_a_cap_says_how_much_of_what_is_spent_may_not_be(tmp_path: Path, store: RunStore) -> None:
    with SpendBook(tmp_path / "s", "p", "killed") as killed:
        killed.hold(Decimal("0.0075"))
    with SpendBook(tmp_path / "s", "p", "run") as book:
        caps: dict[str, Any] = {"month_cap_usd": Decimal("0.0101"), "concurrency": 1}
        course = session(store, Service(lambda number: answer(99)), range(3), book=book, **caps)
    told = "($0.0095 spent, up to $0.0075 of it by what was in flight when a run was killed,"
    assert course.stopped is not None and told in course.stopped.message


def test_a_cap_on_all_runs_that_cannot_be_kept_stops_the_run_and_no_other_cap_does(
    tmp_path: Path, store: RunStore
) -> None:
    with SpendBook(tmp_path / "s", "p", "run") as book:
        service = Service(lambda number: answer())
        assert session(store, service, range(1), "1", book=book).stopped is None
        book.trouble = "the disk is full"
        stopped = session(store, service, [1], book=book, month_cap_usd=Decimal(1)).stopped
        assert stopped is not None and stopped.exit_code == 3 and "the disk is full" in stopped.message
        assert "the same command continues" in stopped.hint and service.requests == 1


@pytest.mark.parametrize("lock_s", [0.3, None])
def test_a_run_does_not_spend_beside_others_while_their_book_is_locked(
    tmp_path: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch, lock_s: float | None
) -> None:
    """After a lock of a tenth of a second it went by its own counts for five, and so could its neighbours."""
    if lock_s is None:
        monkeypatch.setattr("pipeline.sharedfile.PATIENCE_S", 0.2)
    path, cap = tmp_path / "s", Decimal("0.1")
    with SpendBook(path, "p", "run") as book, SpendBook(path, "p", "other") as others, ExitStack() as lock:
        others.add(WORST)

        class Shared(Service):
            async def send(self, one: Prompt, target: Target) -> Outcome:
                number, outcome = self.requests, await super().send(one, target)
                if number == 1:
                    other = lock.enter_context(closing(sqlite3.connect(path, check_same_thread=False)))
                    other.execute("BEGIN EXCLUSIVE")
                    if lock_s is not None:
                        Timer(lock_s, other.rollback).start()
                if number == 3:
                    others.add(cap - 20 * WORST)
                return outcome

        service = Shared(lambda number: answer(99))
        stopped = session(store, service, range(90), book=book, day_cap_usd=cap).stopped
        assert stopped is not None and stopped.exit_code == 3 and service.billed_usd <= 19 * WORST
        assert ("could pass the day's budget" if lock_s else "budget of the day or month cannot be kept") in str(
            stopped
        )


def test_no_request_leaves_that_others_would_not_know_of_should_this_run_be_killed(
    tmp_path: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sharedfile.PATIENCE_S", 0.2)
    path, target = tmp_path / "s", target_of(RATES)
    with SpendBook(path, "p", "run") as book:
        cashier = Cashier(Spending(None, book=book, day_cap_usd=Decimal(1)), seen=Seen(replies=10))
        assert cashier.admit(asked(0), target)
        with locked(path):
            assert not cashier.admit(asked(1), target), "two in flight are not in the book"
            cashier.charge(cashier.answered(asked(0), target, answer()))
            with pytest.raises(BudgetReached, match="cannot be kept"):
                cashier.admit(asked(1), target)
        assert cashier.admit(asked(1), target)


# ---- D1: who answers has no price


@pytest.mark.case("D1")
@pytest.mark.parametrize("model", ["relay-7", "emulator", "gpt-of-the-relay", "", "tunedModels/mine"])
def test_an_answer_of_unknown_price_counts_as_the_jobs_model_and_as_its_worst_case(store: RunStore, model: str) -> None:
    service = Service(lambda number: answer(model=model), price=_table("gemini-3.5-flash-lite"))
    course = session(store, service, range(600), "0.02", own=None)
    assert service.billed_usd <= course.spending.spent_usd <= Decimal("0.02")
    assert course.stopped is None or service.requests < 600
    costs = {reply.cost_usd for reply in course.replies.values()}
    assert costs == {cost(Usage(10, output_tokens=10), "gemini-3.5-flash-lite", at())}
    told = [text for text in course.told if "whose price is unknown" in text]
    assert len(told) == (1 if model else 0), "once"
    assert bool(model) is (course.stopped is not None), "without a name the job's own model answered"


@pytest.mark.case("D1")
@pytest.mark.parametrize(
    "name",
    [
        "publishers/google/models/gemini-3.5-flash-lite",
        "projects/p/locations/global/publishers/google/models/gemini-3.5-flash-lite",
        "models/gemini-3.5-flash-lite",
        "google/gemini-3.5-flash-lite",
        "gemini-3.5-flash-lite-001",
        "gemini-3.5-flash-lite@001",
        "gemini-3.5-flash-lite-latest",
        "gemini-3.5-flash-lite-preview-09-2026",
        "Gemini-3.5-Flash-Lite",
    ],
)
def test_a_name_with_a_place_or_a_version_has_the_price_of_its_model(store: RunStore, name: str) -> None:
    course = session(store, Service(lambda number: answer(model=name)), range(3), "1", own=None)
    expected = cost(Usage(10, output_tokens=10), "gemini-3.5-flash-lite", at())
    assert {(reply.cost_usd, reply.at_most_usd) for reply in course.replies.values()} == {(expected, Decimal(0))}


@pytest.mark.case("D1")
def test_the_jobs_own_prices_hold_whatever_answers(store: RunStore) -> None:
    course = session(store, Service(lambda number: answer(model="relay-7")), range(600), "0.02")
    assert {reply.cost_usd for reply in course.replies.values()} == {Decimal("0.00011")}
    assert course.stopped is not None and not any("price" in text for text in course.told)


@pytest.mark.case("D1")
def test_where_nobody_knows_any_price_a_cap_stops_the_run_unless_that_is_allowed() -> None:
    unknown = target_of(None, "nobody-knows")
    for allowed in (False, True):
        cashier = Cashier(Spending(Decimal(1)), allow_unpriced=allowed)
        assert cashier.admit(asked(0), unknown)
        assert cashier.answered(asked(0), unknown, answer(model="nor-this")) == Bill(None, None, None)
        if allowed:
            assert cashier.admit(asked(0), unknown)
        else:
            with pytest.raises(BudgetReached, match="nor-this answers, whose price is unknown"):
                cashier.admit(asked(0), unknown)


def _table(model: str) -> Rates:
    found = rates(model, at().date())
    assert found is not None
    return found


# ---- D3: what was sent and never came back


@pytest.mark.case("D3")
@pytest.mark.parametrize("lost", [TIMEOUT, BROKEN])
def test_what_never_came_back_is_charged_at_its_worst_case_each_time(store: RunStore, lost: Failure) -> None:
    service = Service(lambda number: lost, billed=lambda number: Usage(10, output_tokens=100))
    course = session(store, service, range(600), "0.01")
    assert service.requests == 9, "of $0.001013 each"
    assert service.billed_usd <= course.spending.spent_usd == 9 * WORST <= Decimal("0.01")
    assert isinstance(course.stopped, BudgetReached)
    assert store.spent_usd() == 9 * WORST and store.cost_usd() == 0


@pytest.mark.case("D3")
@pytest.mark.parametrize("free", [REFUSED, OVERLOADED])
def test_what_never_left_and_what_failed_at_the_service_costs_nothing(store: RunStore, free: Failure) -> None:
    course = session(store, Service(lambda number: free if number < 3 else answer()), range(1), "0.01")
    assert course.replies[0].status == "ok" and course.spending.spent_usd == Decimal("0.00011")
    assert store.spent_usd() == Decimal("0.00011")


@pytest.mark.case("D3")
def test_a_charge_stays_over_restarts_and_seals(tmp_path: Path) -> None:
    service = Service(lambda number: TIMEOUT)
    for spent in (2, 4, 4, 4):
        with opened(tmp_path) as store:
            row = spent * 10
            concurrency = 1 if spent == 2 else 50
            session(store, service, range(row, row + 5), f"{spent * WORST}", concurrency=concurrency)
            assert store.spent_usd() == spent * WORST
    assert service.requests == 4


@pytest.mark.case("D3")
def test_a_charge_counts_for_the_day_and_the_month(tmp_path: Path, store: RunStore) -> None:
    with SpendBook(tmp_path / "s", "p", "run") as book:
        course = session(store, Service(lambda number: TIMEOUT), range(9), book=book, day_cap_usd=Decimal("0.004"))
        assert course.stopped is not None and "the day's budget" in course.stopped.message
        assert book.spent() == (3 * WORST, 3 * WORST)


@pytest.mark.case("D5")
def test_nothing_stays_held_of_a_run_that_ended_whatever_was_billed(tmp_path: Path, store: RunStore) -> None:
    """What is reserved is multiplied by what was seen, and such sums are rounded."""
    with SpendBook(tmp_path / "s", "p", "run") as book:
        service = Service(lambda number: answer(333 + number))
        session(
            store, service, range(60), book=book, day_cap_usd=Decimal(9), of=lambda row: asked(row, longest=70 + row)
        )
    with closing(sqlite3.connect(tmp_path / "s")) as db:
        assert db.execute("SELECT * FROM held").fetchall() == []


@pytest.mark.case("D3")
def test_what_is_given_up_in_flight_is_charged(store: RunStore) -> None:
    async def main() -> None:
        cashier = Cashier(Spending(Decimal(1)))
        service = Service(lambda number: answer(), latency_s=60.0)
        send = journal(service.send, store, cashier, lambda prompt, reply, answered: None)
        with anyio.move_on_after(1.0):
            assert cashier.admit(asked(0), target_of(RATES))
            await send(asked(0), target_of(RATES), Tries())

    run(main)
    assert store.spent_usd() == WORST and not in_flight(store.directory)


# ---- D4: more is billed than was reckoned


@pytest.mark.case("D4")
@pytest.mark.parametrize("times", [2, 5, 20])
def test_a_cap_holds_though_every_answer_is_longer_than_the_longest(store: RunStore, times: int) -> None:
    service = Service(lambda number: answer(usage=Usage(10, output_tokens=100, thinking_tokens=100 * times - 100)))
    cap = Decimal("0.2")
    course = session(store, service, range(600), f"{cap}")
    assert service.billed_usd == course.spending.spent_usd <= cap
    assert service.billed_usd > Decimal("0.8") * cap and isinstance(course.stopped, BudgetReached)
    assert any("times what was reckoned" in text for text in course.told)


@pytest.mark.parametrize(("more", "told"), [(1, 0), (40, 1)])
def test_what_costs_hardly_more_than_was_reckoned_is_no_news(store: RunStore, more: int, told: int) -> None:
    service = Service(lambda number: answer(usage=Usage(10, output_tokens=100, thinking_tokens=more)))
    course = session(store, service, range(6), "0.2")
    found = [text for text in course.told if "reckoned" in text]
    assert len(found) == told and all("a call cost 1.39 times what was reckoned at most" in text for text in found)


@pytest.mark.case("D4")
def test_before_the_first_reply_one_request_is_in_flight_and_what_it_shows_counts(store: RunStore) -> None:
    """Even where the first alone costs more than the cap."""
    service = Service(lambda number: answer(usage=Usage(10, output_tokens=4000)))
    course = session(store, service, range(600), "0.02")
    assert service.requests == 1 and course.stopped is not None


@pytest.mark.case("D4")
def test_a_dearer_model_that_answers_is_reserved_for(store: RunStore) -> None:
    dear = _table("gemini-3.1-pro-preview")
    service = Service(lambda number: answer(100, model="gemini-3.1-pro-preview"), price=dear)
    course = session(store, service, range(600), "0.02", own=None)
    assert Decimal("0.015") < service.billed_usd == course.spending.spent_usd <= Decimal("0.02")


@pytest.mark.case("D4")
def test_what_was_seen_is_known_to_the_next_session(tmp_path: Path) -> None:
    service = Service(lambda number: answer(usage=Usage(10, output_tokens=1000)))  # 0.01, ten times the worst case
    with opened(tmp_path) as store:
        session(store, service, range(3), "0.035")
    assert service.requests == 3
    with opened(tmp_path) as store:
        seen = seen_in(store.calls(SEEN_COLUMNS))
        assert (seen.replies, round(seen.ratio, 1)) == (3, Decimal("9.9"))
        course = session(store, service, range(3, 9), "0.045")
        assert service.requests == 4 and store.spent_usd() <= Decimal("0.045") and course.stopped is not None


@pytest.mark.case("D4")
def test_the_run_is_soon_as_wide_as_it_may_be(store: RunStore) -> None:
    service = Service(lambda number: answer())
    session(store, service, range(2000), "100", concurrency=500)
    assert service.most_in_flight == 500
    # 1, 2, 6, 18, 54, 162, 486 in seven seconds, and then all: ten seconds where four would do
    assert service.requests == 2000


# ---- R3: replies that cannot be read


@pytest.mark.case("R3")
def test_what_cannot_be_read_is_charged_at_its_worst_case_and_asked_for_so_often(store: RunStore) -> None:
    service = Service(lambda number: UNREAD, billed=lambda number: Usage(10, output_tokens=100))
    course = session(store, service, range(300), "0.01")
    assert service.requests == 9 and service.billed_usd <= course.spending.spent_usd <= Decimal("0.01")
    ended = [reply for reply in course.replies.values() if reply.error_kind == "malformed_reply"]
    assert all(reply.attempts == 3 and reply.unread_usd == 3 * WORST for reply in ended)


@pytest.mark.case("R3")
def test_the_price_of_what_cannot_be_read_is_that_of_its_step_once_it_is_known(store: RunStore) -> None:
    """The row costs what its replies cost, those that could not be read included; the caps count the worst case."""
    first = ESTIMATE_AFTER
    service = Service(lambda number: UNREAD if number in (first, first + 1) else answer(30 if number % 2 else 50))
    session(store, service, range(first), "1", concurrency=1)
    course = session(store, service, [first], "1", concurrency=1)
    reply = course.replies[first]
    likely = Decimal("0.00041")
    assert (reply.cost_usd, reply.unread_usd, reply.attempts) == (Decimal("0.00051"), 2 * likely, 3)
    known = first * likely + Decimal("0.00051")
    assert store.cost_usd() == known + 2 * likely
    assert store.spent_usd() == known + 2 * WORST == course.spending.spent_usd


@pytest.mark.case("R3")
def test_a_row_keeps_what_its_unread_replies_cost_over_a_restart(tmp_path: Path) -> None:
    service = Service(lambda number: UNREAD if number < 1 else TIMEOUT)
    with opened(tmp_path) as store:
        session(store, service, [0], f"{WORST * 2}", concurrency=1)
    service.outcomes = lambda number: answer(9)
    with opened(tmp_path) as store:
        course = session(store, service, [0], "1")
        assert (course.replies[0].cost_usd, course.replies[0].unread_usd) == (Decimal("0.0001"), WORST)


@pytest.mark.case("R3")
def test_the_start_of_what_could_not_be_read_is_kept(tmp_path: Path) -> None:
    from stores import result

    with opened(tmp_path) as store:
        session(store, Service(lambda number: UNREAD), [0])
        store.append_result(result(0, "error", "malformed_reply"))
    calls = sealed(tmp_path / "run", "calls")
    assert calls["raw"].to_list() == ['{"candi'] * 3 + [None]
    assert calls["paid"].to_list() == [False] * 4 and calls["attempts"].to_list() == [0, 0, 0, 3]
    assert calls["cost_usd"].sum() == 3 * WORST and calls["usage_estimated"].to_list() == [True] * 3 + [False]


@pytest.mark.case("R3")
def test_what_an_unreadable_reply_says_of_tokens_is_the_least_that_it_costs_and_is_reserved_for(
    store: RunStore,
) -> None:
    told = Usage(10, output_tokens=1000)
    service = Service(lambda number: replace(UNREAD, usage=told, model="any"), billed=lambda number: told)
    course = session(store, service, range(300), "0.02")
    assert store.cost_usd() == service.billed_usd == course.spending.spent_usd
    assert Decimal("0.01") < service.billed_usd <= Decimal("0.02")


@pytest.mark.case("R3")
def test_a_reply_without_counts_counts_as_its_worst_case_against_a_cap(store: RunStore) -> None:
    service = Service(lambda number: answer(usage=Usage(10, output_tokens=9, estimated=True)))
    course = session(store, service, range(300), "0.01")
    assert service.requests == 9 and course.spending.spent_usd == 9 * WORST
    assert store.cost_usd() == 9 * Decimal("0.0001")


@pytest.mark.case("R3")
def test_what_was_told_or_did_not_think_has_no_more_thinking(store: RunStore) -> None:
    def asked_so(row: int) -> Prompt:
        one = asked(row)
        return replace(one, params=replace(one.params, thinking=0)) if row == 31 else one

    told, untold = Usage(10, 0, 5, estimated=True), Usage(10, 0, 5, estimated=True, output_told=False)
    odd = {30: told, 31: untold}
    service = Service(lambda number: answer(usage=odd.get(number, Usage(10, 0, 5, 45))))
    course = session(store, service, range(32), of=asked_so, concurrency=1)
    assert [course.replies[row].usage.thinking_tokens for row in (29, 30, 31)] == [45, 0, 0]


# ---- D5: what a kill loses


@pytest.mark.case("D5")
def test_what_a_kill_lost_is_charged_once_for_the_run_and_for_its_day(tmp_path: Path) -> None:
    from stores import killed

    path = tmp_path / "s"
    with killed(tmp_path / "run") as store:
        store.append_sent(asked(0), MODEL)
        store.append_sent(asked(1), MODEL)
    for _ in range(3):  # killed again in the middle of it, twice after the book and before the journal
        with SpendBook(path, "p", "run") as book, killed(tmp_path / "run") as store:
            cashier = Cashier(Spending(Decimal(1), book=book))
            if store.lost:
                sent = store.lost[0]
                cashier.lost(sent.prompt, target_of(RATES), f"{store.identity}/{sent.fingerprint}/{sent.at}", sent.at)
    with SpendBook(path, "p", "run") as book:
        with killed(tmp_path / "run") as store:
            assert charge_lost(store, Cashier(Spending(Decimal(1), book=book)), Route((target_of(RATES),))) == (
                2,
                2 * WORST,
            )
            assert store.spent_usd() == 2 * WORST and store.lost == ()
        with opened(tmp_path) as store:
            assert store.lost == () and store.spent_usd() == 2 * WORST
        assert book.spent() == (2 * WORST, 2 * WORST)


@pytest.mark.parametrize("ill", ["one", "two"])
def test_a_book_that_can_be_read_and_not_written_ends_the_run_and_not_the_stack(tmp_path: Path, ill: str) -> None:
    """As on a disk that has become read-only: an empty transaction still succeeds there."""
    path = tmp_path / "s"
    with SpendBook(path, "one", "run") as one, SpendBook(path, "two", "run") as two:
        with closing(sqlite3.connect(path)) as db:
            db.execute(
                f"CREATE TRIGGER full BEFORE INSERT ON held WHEN NEW.project = '{ill}' "
                "BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END"
            )
        book = JointBook({"one": one, "two": two})
        cashier = Cashier(Spending(None, book=book, day_cap_usd=Decimal(1)))
        with pytest.raises(BudgetReached, match=r"cannot be kept: .*disk I/O error"):
            cashier.admit(asked(0), target_of(RATES))


def test_of_several_targets_that_may_have_been_asked_the_dearest_counts(tmp_path: Path) -> None:
    from stores import killed

    cheap = target_of(RATES)
    route = Route((cheap, replace(cheap, name="dear", price_factor=Decimal(3))))
    with killed(tmp_path / "run") as store:
        store.append_sent(asked(0), MODEL)
    with opened(tmp_path) as store:
        assert charge_lost(store, Cashier(Spending(Decimal(1))), route) == (1, 3 * WORST)


@pytest.mark.parametrize(
    "asked_for",
    [
        replace(asked(0), params=replace(asked(0).params, tools=Tools(google_search="{}"))),
        replace(asked(0), content=(Turn("user", (Media("audio", "audio/mp3", "x", 9, 5000), Text("what?"))),)),
    ],
    ids=["searches", "sound"],
)
def test_what_comes_on_top_of_tokens_counts_of_a_killed_request_too(tmp_path: Path, asked_for: Prompt) -> None:
    from stores import killed

    target = target_of(None, "gemini-3.1-flash-lite")
    with killed(tmp_path / "run") as store:
        store.append_sent(replace(asked_for, input_tokens_est=6000), target.model)
    most = worst_case_usd(replace(asked_for, input_tokens_est=6000), target)
    plain = worst_case_usd(replace(asked(0), input_tokens_est=6000), target)
    assert most is not None and plain is not None and most > plain
    with opened(tmp_path) as store:
        assert charge_lost(store, Cashier(Spending(Decimal(1))), Route((target,))) == (1, most)


def test_each_account_pays_its_own_and_a_cap_counts_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with SpendBook(path, "one", "run") as one, SpendBook(path, "two", "run") as two:
        book = JointBook({"one": one, "two": two})
        book.add(Decimal("0.25"), "one")
        book.add(Decimal("0.5"), "two")
        book.add_once("lost", Decimal(1), 0.0, "two")
        assert (one.spent()[0], two.spent()[0], book.spent()[0]) == (Decimal("0.25"), Decimal("1.5"), Decimal("1.75"))
        capped = Spending(None, book=book, day_cap_usd=Decimal(2))
        assert capped.reserve(Decimal("0.2")) is None and capped.reserve(Decimal("0.2")) is not None
    with SpendBook(path, "two", "another run") as later:
        assert later.spent()[0] == Decimal("1.7"), "with what was in flight when it ended"


@pytest.mark.case("D5")
@pytest.mark.parametrize("outcome", [answer(99), UNREAD], ids=["answered", "unread"])
def test_what_is_in_the_journal_is_in_the_book_whenever_a_kill_comes(
    tmp_path: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch, outcome: Reply | Failure
) -> None:
    """The other way round a kill between the two leaves a reply that no cap of the day counts."""
    append = store.append_call
    counted: list[bool] = []

    def watched(*arguments: Any, **options: Any) -> None:
        before = book.spent()[0]
        append(*arguments, **options)
        counted.append(before >= store.spent_usd())

    monkeypatch.setattr(store, "append_call", watched)
    with SpendBook(tmp_path / "s", "p", "run") as book:
        session(store, Service(lambda number: outcome), range(3), book=book, day_cap_usd=Decimal(1))
    assert counted and all(counted)


@pytest.mark.case("D5")
def test_a_rehearsal_loses_nothing(tmp_path: Path) -> None:
    from stores import killed

    with killed(tmp_path / "run") as store:
        store.append_sent(asked(0), MODEL)
    with opened(tmp_path) as store:
        assert charge_lost(store, Cashier(Spending(None)), Route((target_of(fixed_rates(0, 0)),))) == (1, Decimal(0))
        assert store.spent_usd() == 0 and not next(store.calls(("row",))).height


# ---- whatever happens

EVENTS = st.lists(
    st.one_of(
        st.just(TIMEOUT),
        st.just(BROKEN),
        st.just(REFUSED),
        st.just(OVERLOADED),
        st.just(UNREAD),
        st.integers(0, 100).map(answer),
    ),
    min_size=1,
    max_size=30,
)


@given(EVENTS, st.integers(1, 60), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_no_cap_is_passed_whatever_comes_back(
    tmp_path_factory: pytest.TempPathFactory, events: list[Outcome], tenths: int, concurrency: int
) -> None:
    """What can have been billed is billed in full; all of it fits under the cap, and nothing waits forever."""

    def billed(number: int) -> Usage:
        outcome = events[number % len(events)]
        if isinstance(outcome, Reply):
            return outcome.usage
        return Usage() if outcome in (REFUSED, OVERLOADED) else Usage(13, output_tokens=100)

    cap = WORST * tenths / 4
    with opened(tmp_path_factory.mktemp("caps")) as store:
        service = Service(lambda number: events[number % len(events)], billed=billed)
        course = session(store, service, range(25), f"{cap}", concurrency=concurrency)
        assert service.billed_usd <= course.spending.spent_usd <= cap
        assert store.spent_usd() == course.spending.spent_usd >= store.cost_usd() >= 0
        assert course.stopped is not None or len(course.replies) == 25
        known = sum((reply.cost_usd or 0) + (reply.unread_usd or 0) for reply in course.replies.values())
        assert known <= store.cost_usd()


def test_lengths_tell_a_usual_reply_when_enough_are_known() -> None:
    lengths = Lengths()
    for number in range(ESTIMATE_AFTER):
        assert lengths.likely(10) is None
        lengths.add(10, Usage(12, output_tokens=number, thinking_tokens=1))
    assert lengths.likely(20) == Usage(24, output_tokens=10)


@pytest.mark.case("R4")
def test_a_reply_whose_counts_were_inferred_has_thought_as_others_of_its_step(store: RunStore) -> None:
    bare = answer(usage=Usage(10, output_tokens=10, estimated=True, output_told=False))
    full = answer(usage=Usage(10, output_tokens=10, thinking_tokens=70))
    course = session(store, Service(lambda number: bare if number in (3, 40) else full), range(50), concurrency=1)
    thought = [course.replies[row].usage.thinking_tokens for row in range(50)]
    assert thought == [0 if row == 3 else 70 for row in range(50)], "the third came before enough was known"
    assert course.replies[40].cost_usd == course.replies[41].cost_usd


def test_what_was_seen_is_read_from_what_is_kept() -> None:
    row = {"step": "map", "chunk": 3, "paid": True, "cost_usd": 0.3, "worst_usd": 0.1, "usage_estimated": False}
    tokens = {"input_tokens_est": 10, "input_tokens": 12, "tool_tokens": 1, "output_tokens": 5, "thinking_tokens": 2}
    rows = [row | tokens, row | tokens | {"worst_usd": None}, row | tokens | {"paid": False, "cost_usd": 9.0}]
    seen = seen_in([pl.DataFrame(rows)])
    assert (seen.replies, round(seen.ratio, 6)) == (1, Decimal(3))
    assert seen.steps == {"map": Lengths(2, 20, 26, 14, 4)}
    pack = [row | tokens | {"step": "pack", "chunk": number} for number in range(4)]
    seen = seen_in([pl.DataFrame(pack)])
    assert seen.replies == 1 and seen.steps == {"pack": Lengths(1, 40, 52, 28, 8)}, "four rows of one request"
    assert seen_in([]) == Seen()


# ---- what is reserved beside the requests in flight


def test_a_batch_is_reserved_for_bit_by_bit_and_settled_once(tmp_path: Path) -> None:
    with SpendBook(tmp_path / "spend.sqlite", "project", "run") as book:
        spending = Spending(Decimal(1), book=book, day_cap_usd=Decimal(2))
        cashier = Cashier(spending)
        assert cashier.beside.reserve_more(1, Decimal("0.3"))
        assert cashier.beside.reserve_more(1, Decimal("0.6"))
        assert not cashier.beside.reserve_more(1, Decimal("0.2")) and cashier.beside.usd == Decimal("0.9")
        cashier.beside.owe(1, Decimal("0.8"))
        assert spending.reserved_usd == Decimal("0.8")
        for _ in range(2):  # a kill came before what was bought was kept
            cashier.settle(1, "run/batch 1", Decimal("0.25"), 0.0, "")
        assert spending.reserved_usd == 0 and book.spent()[0] == Decimal("0.25")


def test_what_an_earlier_session_handed_in_is_reserved_for_whatever_the_caps_are_now() -> None:
    spending = Spending(Decimal("0.01"))
    cashier = Cashier(spending)
    cashier.beside.owe(1, Decimal(3))
    assert spending.reserved_usd == 3 and not cashier.beside.reserve_more(2, Decimal("0.001"))
    without = Cashier(Spending(None))
    without.beside.owe(1, Decimal(3))
    assert without.beside.usd == 0


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_one_run_has_out_in_batches_counts_against_the_days_cap_of_the_others(
    tmp_path: Path, store: RunStore, goes_on: bool
) -> None:
    def capped(book: SpendBook) -> Cashier:
        return Cashier(Spending(None, book=book, day_cap_usd=Decimal(1)))

    path = tmp_path / "spend.sqlite"
    with ExitStack() as later, SpendBook(path, "project", "other") as other_book:
        first_book = later.enter_context(SpendBook(path, "project", "one"))
        first, other = capped(first_book), capped(other_book)
        assert first.beside.reserve_more(1, Decimal("0.7"))
        assert first.admit(asked(0), target_of(RATES)), "its own count once"
        if not goes_on:
            first_book.close()
        assert not other.beside.reserve_more(1, Decimal("0.4")) and other.beside.reserve_more(1, Decimal("0.2"))
        again = later.enter_context(SpendBook(path, "project", "one"))
        settled = capped(again)
        settled.beside.owe(1, Decimal("0.7"))
        settled.settle(1, "one/batch 1", Decimal("0.1"), 0.0, "")
        assert other.beside.reserve_more(1, Decimal("0.4"))


def test_nobody_waits_for_the_room_of_a_batch_that_does_not_end() -> None:
    cashier = Cashier(Spending(Decimal("0.01")))
    assert cashier.beside.reserve_more(1, Decimal("0.005")) and cashier.beside.reserve_more(2, Decimal("0.005"))
    cashier.beside.waits_for_batches = True
    cashier.beside.wait_no_more(1)
    assert not cashier.admit(asked(0), target_of(RATES)), "the second one may leave some"
    cashier.beside.wait_no_more(2)
    with pytest.raises(BudgetReached):
        cashier.admit(asked(0), target_of(RATES))


def test_a_prompt_without_room_waits_for_the_batches_that_are_out_and_then_goes() -> None:
    cashier = Cashier(Spending(Decimal("0.01")))
    assert cashier.beside.reserve_more(1, Decimal("0.01"))
    with pytest.raises(BudgetReached):
        cashier.admit(asked(0), target_of(RATES))

    async def main() -> None:
        sent: list[float] = []

        async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
            sent.append(anyio.current_time())
            return Reply("four", "ok")

        dispatcher = Dispatcher(send, Route((target_of(RATES),)), admit=cashier.admit)
        cashier.beside.waits_for_batches, cashier.beside.on_room = True, dispatcher.look_again
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dispatcher.run)
            tasks.start_soon(dispatcher.submit, asked(0))
            await anyio.sleep(500)
            assert not sent
            cashier.settle(1, "run/batch 1", Decimal("0.001"), AT, "")
            await anyio.sleep(1)
            dispatcher.close()
        assert 500 <= sent[0] < 501

    run(main)
