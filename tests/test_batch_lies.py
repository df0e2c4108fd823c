"""A service of batches that lies, or that somebody else speaks for: what it may make a run believe, spend or write."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from desks import HOUR, OPENAI, TARGET, Lie, Night, without_threads

from pipeline.budget.book import SpendBook
from pipeline.budget.caps import Spending
from pipeline.targets import Target


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "notes"


def of_batches(change: Callable[[dict[str, Any]], None]) -> Lie:
    """Changes what is told of a batch."""

    def lie(request: httpx.Request, body: bytes) -> bytes | None:
        if request.method != "GET" or "/batches/" not in request.url.path:
            return None
        told = orjson.loads(body)
        change(told)
        return orjson.dumps(told)

    return lie


def refusing(status: int, message: str) -> Lie:
    """Refuses to create a batch."""

    def lie(request: httpx.Request, body: bytes) -> httpx.Response | None:
        if "batchGenerateContent" not in request.url.path:
            return None
        return httpx.Response(status, json={"error": {"code": status, "status": "BAD", "message": message}})

    return lie


@pytest.mark.parametrize(
    ("target", "when"),
    [
        *((TARGET, when) for when in ("1970-01-02T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")),
        *((OPENAI, when) for when in (-1e300, -5, 1e12, 1e300)),
    ],
)
def test_what_a_batch_cost_counts_today_whenever_its_service_says_that_it_ended(
    directory: Path, target: Target, when: object
) -> None:
    def change(told: dict[str, Any]) -> None:
        told.get("metadata", told)["completed_at" if target == OPENAI else "endTime"] = when

    night = Night(directory, target=target)
    book = SpendBook(directory.parents[1] / "spend.sqlite", "p", "run", wall=night.wall)
    night.spending = Spending(None, book=book, day_cap_usd=Decimal(10))
    night.lie = of_batches(change)
    assert len(night.session(3).answered) == 3
    (state,) = night.states()
    assert state.usd and book.spent()[0] == state.usd
    assert state.asked_at and state.ended_at and state.asked_at <= state.ended_at <= night.now


@pytest.mark.parametrize("status", [400, 413])
def test_a_batch_that_is_refused_is_not_handed_in_for_ever(directory: Path, status: int) -> None:
    night = Night(directory)
    night.lie = refusing(status, "no")
    seen = night.session(3)
    assert sorted(seen.live) == [0, 1, 2] and len(seen.answered) == 3 and not night.lines
    assert len(night.states()) == 2


@pytest.mark.parametrize("target", [TARGET, OPENAI])
def test_what_is_told_of_another_batch_is_not_taken_for_ours(directory: Path, target: Target) -> None:
    def change(told: dict[str, Any]) -> None:
        for each in (told, told.get("metadata", told)):
            each["id" if target == OPENAI else "name"] = "other" if target == OPENAI else "batches/other"

    night = Night(directory, target=target)
    night.lie = of_batches(change)
    seen = night.session(3, last_call_s=2 * HOUR)
    assert sorted(seen.live) == [0, 1, 2] and not any(":download" in path for _, path in seen.asked)
