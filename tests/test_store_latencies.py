"""How long batches took, kept for the runs to come."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.plan.latency import HALF_LIFE_S, Latency, learned, seen
from pipeline.store.batch_states import BatchState, after
from pipeline.store.latencies import KEPT_S, Took, earlier, note, took

NOW = 1_790_000_000.0
ACCOUNT, MODEL = "gemini@generativelanguage.googleapis.com/0123", "gemini-3.5-flash-lite"
QUOTA = f"{ACCOUNT}/{MODEL}"


def asked(number: int = 1, **more: Any) -> BatchState:
    """A batch that was handed in an hour ago."""
    told: dict[str, Any] = {
        "attempt": 1,
        "file": f"pp-{number}",
        "target": "",
        "endpoint": ACCOUNT.partition("/")[0],
        "account": ACCOUNT,
        "model": MODEL,
        "rows": 5,
        "lines": 5,
        "size_bytes": 100,
        "sha256": "ab",
        "input_tokens_est": 50,
        "worst_usd": Decimal(1),
        "changes": None,
    }
    state = after(None, number, "cut", NOW - 4_000, told)
    state = after(after(state, number, "uploaded", NOW - 3_800, {}), number, "asking", NOW - 3_700, {})
    state = after(state, number, "asked", NOW - 3_600, {"name": f"batches/{number}", "status": "pending"})
    return replace(state, **more)


def taken(number: int, seconds: float, at: float = NOW) -> BatchState:
    times = {"asked_at": at - seconds, "ended_at": at, "taken_at": at}
    return asked(number, status="succeeded", stage="taken", **times)


@pytest.mark.parametrize(
    ("state", "seconds", "end"),
    [
        (asked(), 3_600.0, "open"),
        (asked(cancelling=True), 3_600.0, "open"),
        (taken(1, 700.0), 700.0, "done"),
        (asked(status="succeeded", ended_at=NOW - 600), 3_000.0, "done"),  # and not taken yet
        (asked(status="expired", stage="given_up", ended_at=NOW - 600), 3_000.0, "never"),
        (asked(status="cancelled", stage="taken", ended_at=NOW - 600), 3_000.0, "open"),
        (asked(status="failed", stage="given_up", ended_at=NOW - 3_590), 10.0, "open"),
        (asked(status="succeeded", ended_at=NOW - 9_000), 0.0, "done"),  # its clock is slow
    ],
)
def test_what_a_batch_says_of_how_long_they_take(state: BatchState, seconds: float, end: str) -> None:
    assert took(state, NOW) == Took("batches/1", QUOTA, seconds, end, took_at(state))  # type: ignore[arg-type]


def took_at(state: BatchState) -> float:
    return state.ended_at or NOW


def test_one_that_is_not_with_the_service_says_nothing() -> None:
    assert took(asked(asked_at=None), NOW) is None


def test_what_is_over_is_kept_once_for_the_runs_to_come(tmp_path: Path) -> None:
    path = tmp_path / "state" / "batches.jsonl"
    assert earlier(path, QUOTA, NOW) == []
    for _ in range(3):
        note(path, [taken(1, 700.0), asked(2)], NOW)
    note(path, [taken(3, 900.0), replace(taken(4, 5.0), model="another")], NOW)
    assert [one.seconds for one in earlier(path, QUOTA, NOW)] == [700.0, 900.0]
    assert [one.seconds for one in earlier(path, f"{ACCOUNT}/another", NOW)] == [5.0]
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_old_counts_less_and_in_the_end_nothing(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    note(path, [taken(1, 60.0)], NOW)
    (half,) = seen(earlier(path, QUOTA, NOW + HALF_LIFE_S), NOW + HALF_LIFE_S)
    assert half.weight == 0.5
    assert earlier(path, QUOTA, NOW + KEPT_S) == []
    assert learned([half]).done_by(120.0) > Latency().done_by(120.0)


def test_a_torn_or_foreign_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    note(path, [taken(1, 60.0)], NOW)
    foreign = b'{"seconds": 1}\n[]\n{"name":"a","quota":"q","seconds":-1,"end":"done","at":1}\n\xff\n'
    path.write_bytes(path.read_bytes() + foreign + b'{"name": "batches/7", "quo')
    assert [one.seconds for one in earlier(path, QUOTA, NOW)] == [60.0]


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    for begin in range(0, 16_000, 2_000):
        note(path, [taken(number, 60.0, NOW + number) for number in range(begin, begin + 2_000)], NOW)
    assert path.stat().st_size < 2_500_000
    kept = earlier(path, QUOTA, NOW)
    assert len(kept) >= 5_000 and kept[-1].at == NOW + 15_999


def test_a_place_that_cannot_be_written_keeps_nobody_from_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    note(tmp_path / "file" / "batches.jsonl", [taken(1, 60.0)], NOW)
    assert earlier(tmp_path / "file" / "batches.jsonl", QUOTA, NOW) == []
