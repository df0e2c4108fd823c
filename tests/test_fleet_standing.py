"""How the shards of a run stand as a session begins: what killed workers left counts before anything is sent."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import anyio
import polars as pl
import pytest
from asking import MODEL, ask
from stores import killed, paid, result

from jobs import PLAIN, make_job
from pipeline.budget.book import SpendBook
from pipeline.budget.caps import Spending
from pipeline.budget.cashier import Cashier, worst_case_usd
from pipeline.errors import BudgetReached
from pipeline.fleet import shards
from pipeline.fleet.shards import cut
from pipeline.fleet.standing import shard_session, standing
from pipeline.prompts import Params
from pipeline.providers.stored import parse_stored
from pipeline.records import Reply, Usage
from pipeline.run.prepare import Options, Session, prepare
from pipeline.run.services import target_of
from pipeline.store import untold
from pipeline.store.reserve import Reserve
from pipeline.store.units import Shard
from pipeline.targets import Route

BOUGHT_USD = Decimal("0.002")
SENT = ask(1, "how are you", tokens=100, params=Params(max_output_tokens=1000))


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setattr(shards, "LEAST_ROWS", 3)
    return of_rows(12)


def of_rows(number: int, retry: frozenset[str] = frozenset()) -> Session:
    pl.DataFrame({"topic": [f"t{row}" for row in range(number)]}).write_csv("rows.csv")
    return prepare(make_job(Path.cwd(), PLAIN, input={"path": "rows.csv"}), Options(retry=retry))


BOUGHT = ask(0, "who are you", params=SENT.params)


def leave(session: Session, shard: Shard, *, untold_usd: Decimal = Decimal(0)) -> None:
    """A worker has bought one answer there and has another request in flight; then it is killed."""
    with killed(shard.directory, shard_session(session, shard, shard.rows).manifest()) as store:
        store.append_sent(BOUGHT, MODEL)
        reply = Reply("I", "ok", usage=Usage(10, 10), model=MODEL, raw=b"{}", cost_usd=BOUGHT_USD)
        store.append_call(BOUGHT, MODEL, reply)
        store.append_sent(SENT, MODEL)
    untold.note(shard.directory, untold_usd)


@pytest.mark.parametrize("cap", [None, "enough", "spent"])
def test_what_killed_workers_had_in_flight_is_charged_before_anything_is_sent(
    tmp_path: Path, session: Session, cap: str | None
) -> None:
    """Each shard's task has it too, so it is not charged again once a life opens the shard; nor by a next session."""
    cut_up = cut(session, 2)
    assert len(cut_up) == 4
    leave(session, cut_up[0])
    leave(session, cut_up[2], untold_usd=Decimal("0.5"))
    target = target_of(session)
    worst = worst_case_usd(SENT, target)
    assert worst is not None
    now = 2 * (BOUGHT_USD + worst)
    caps = {None: None, "enough": now + worst, "spent": now + worst / 2}
    for _ in range(2):  # the first is killed before a worker has opened a shard
        with SpendBook(tmp_path / "book", "p", session.directory.name) as book:
            stands = standing(session, cut_up, parse_stored)
            stands.close()
            assert stands.spent_usd == 2 * BOUGHT_USD
            spending = Spending(caps[cap], stands.spent_usd, book=book)
            cashier = Cashier(spending)
            tasks = stands.charged(spending, cashier, Route((target,)))
            assert [task.spent_usd for task in tasks] == [BOUGHT_USD + worst, 0, BOUGHT_USD + worst, 0]
            assert spending.spent_usd == now
            assert book.spent()[0] == 2 * worst + Decimal("0.5"), "what nobody had heard of counts for the day, once"
            if cap == "spent":
                with pytest.raises(BudgetReached):
                    cashier.admit(SENT, target)
            else:
                assert cashier.admit(SENT, target)


def descriptors() -> int:
    """What this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("many", [20, pytest.param(200, marks=pytest.mark.long, id="long")])
def test_of_many_shards_that_were_begun_no_more_than_one_is_open_at_once(
    session: Session, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All the same each finds what it has bought, whether that is sealed or stands in its journal."""
    opened: list[int] = []
    take = Reserve.take

    def noted(self: Reserve) -> None:
        take(self)
        opened.append(descriptors())

    monkeypatch.setattr(shards, "LEAST_ROWS", 1)
    session = of_rows(many, retry=frozenset({"error"}))
    cut_up = cut(session, 50)
    assert len(cut_up) == many
    for shard in cut_up:
        with killed(shard.directory, shard_session(session, shard, shard.rows).manifest()) as store:
            store.append_call(BOUGHT, MODEL, paid("I"))
            if shard.number % 2:
                store.append_result(result(0))
    before = descriptors()
    monkeypatch.setattr(Reserve, "take", noted)
    stands = standing(session, cut_up, parse_stored)
    assert len(opened) == many and max(opened) <= before + 12
    assert descriptors() == before

    async def bought() -> None:
        for shard in cut_up:
            found = await stands.bought(replace(BOUGHT, row=shard.first_row))
            assert found and found.text == "I"
            assert descriptors() <= before + 12

    anyio.run(bought)
    stands.close()
    assert descriptors() == before
