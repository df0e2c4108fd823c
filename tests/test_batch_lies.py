"""A service of batches that lies, or that somebody else speaks for: what it may make a run believe, spend or write."""

import gzip
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import orjson
import polars as pl
import pytest
from desks import HOUR, KEY, OPENAI, TARGET, Lie, Night, prompt_of, without_threads

from pipeline.batch.taking import found_in
from pipeline.budget.book import SpendBook
from pipeline.budget.caps import Spending
from pipeline.errors import RunStateError
from pipeline.providers.batches import disk
from pipeline.providers.batches.base import Line
from pipeline.providers.blotting import BlottedLines
from pipeline.providers.encoding import Unpacking
from pipeline.records import Reply
from pipeline.store.batch_lines import Key
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


# ---- what it repeats of prompts


def of_results(change: Callable[[list[bytes]], list[bytes]]) -> Lie:
    """Changes the lines of results."""

    def lie(request: httpx.Request, body: bytes) -> bytes | None:
        is_of_results = request.url.path.endswith((":download", "/content"))
        return b"".join(change(body.splitlines(keepends=True))) if is_of_results else None

    return lie


ECHO = f"cannot read {prompt_of(1).text[:60]} with {KEY}"


def fails_lines(lines: list[bytes]) -> list[bytes]:
    error = {"code": 3, "message": ECHO}
    return [orjson.dumps({"key": orjson.loads(line)["key"], "error": error}) + b"\n" for line in lines]


def fails(told: dict[str, Any]) -> None:
    told.update(done=True, error={"code": 3, "message": ECHO})
    told["metadata"]["state"] = "BATCH_STATE_FAILED"
    told.pop("response", None)
    told["metadata"].pop("output", None)


@pytest.mark.parametrize(
    "lie",
    [of_results(fails_lines), of_batches(fails), refusing(400, ECHO), refusing(404, ECHO), refusing(503, ECHO)],
    ids=["line", "batch", "refused", "no model", "perhaps made"],
)
def test_no_prompt_and_no_key_comes_back_from_what_a_service_says(directory: Path, lie: Lie) -> None:
    night = Night(directory)
    night.lie = lie
    seen = night.session([prompt_of(1)])
    parts = [pl.read_parquet(path) for path in directory.glob("batched/part-*.parquet")]
    said = " ".join([*seen.told, str(seen.stopped), *(str(part["error"].to_list()) for part in parts)])
    assert "cannot read" in said
    assert "word31" not in said and KEY not in said


def test_a_message_without_prompts_stays_as_it_is(directory: Path) -> None:
    night = Night(directory)
    night.lie = refusing(400, "models/gemini-3.5-flash-lite has no batches: see the page of models")
    assert any("has no batches: see the page of models" in told for told in night.session(3).told)


# ---- results without an end


def test_results_without_an_end_are_given_up_and_nothing_is_left_of_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "MOST_RESULTS_BYTES", 100_000)
    night = Night(directory)
    night.lie = of_results(lambda lines: lines * 100)
    seen = night.session(3)
    assert sorted(seen.live) == [0, 1, 2] and any("larger than" in told for told in seen.told)
    assert sum(path.endswith(":download") for _, path in seen.asked) == 2
    assert not list(directory.glob("batches/*results*")) and not list(directory.glob("batches/.*"))


def test_a_gzip_bomb_of_results_is_given_up_by_name_and_nothing_is_left_of_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "MOST_RESULTS_BYTES", 100_000)
    bomb = gzip.compress(b"{}\n" * (8 << 20))
    night = Night(directory)
    night.lie = of_results(lambda lines: [bomb])
    seen = night.session(3)
    assert sorted(seen.live) == [0, 1, 2] and any("larger than" in told for told in seen.told)
    assert not list(directory.glob("batches/*results*")) and not list(directory.glob("batches/.*"))


def test_a_small_piece_that_unpacks_to_much_is_passed_on_in_parts_that_memory_holds() -> None:
    whole = [b"x" * (64 << 20), b"", b"y" * (1 << 20), b"{}\n"]
    packed = b"".join(gzip.compress(part) for part in whole)
    sizes: list[int] = []
    unpacking = Unpacking(lambda part: sizes.append(len(part)))
    tracemalloc.start()
    try:
        unpacking.take(packed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    unpacking.end()
    assert len(packed) < 100_000 and sum(sizes) == sum(map(len, whole))
    assert max(sizes) <= 1 << 20 and peak < 8 << 20


def test_a_line_that_nobody_could_hold_is_cut_and_the_others_are_whole() -> None:
    passed: list[bytes] = []
    lines = BlottedLines("AQ.secret-key", passed.append, 1000)
    lines.take(b"first\nlong")
    for _ in range(100_000):
        lines.take(b"x" * 100)
    lines.take(b"end\nlast AQ.secret-key")
    lines.end()
    first, long, last = b"".join(passed).split(b"\n")
    assert (first, last) == (b"first", b"last ***") and 1000 < len(long) < 1200 and not long.endswith(b"end")


def test_of_strangers_no_more_are_kept_than_there_are_lines() -> None:
    keys = {key.fingerprint: key for key in (Key.of(prompt_of(row), "m") for row in range(3))}
    found = found_in([b"x"] * 1000, keys, lambda line, model, tokens: Line("other", Reply("text", "ok", raw=b"x")), "m")
    assert found.strangers == 1000 and len(found.refused) == 3 and not any(reply.raw for _, reply in found.refused)


# ---- what lies in the folder of batches


def test_a_start_removes_nothing_that_is_not_ours(directory: Path) -> None:
    night = Night(directory)
    night.session(3, leave=True)
    others = [directory / "batches" / name for name in (".profile", "1.notes", "2026.csv", ".git")]
    for other in others[:-1]:
        other.write_text("mine")
    others[-1].mkdir()
    ours = [directory / "batches" / name for name in (".000002.requests.jsonl.tmp", "000002.keys.parquet")]
    for half in ours:
        half.write_text("half")
    night.session(3, leave=True)
    assert all(other.exists() for other in others) and not any(half.exists() for half in ours)


# ---- a run directory that was copied, or laid back in part


def test_a_batch_of_a_copy_of_the_run_is_let_be_and_told(directory: Path) -> None:
    night = Night(directory)
    night.session(3, leave=True)
    night.twin(night.states()[0].file.replace("-1-1", "-2-1"))
    seen = night.session(3)
    assert any("of a copy of this run" in told for told in seen.told)
    assert len(seen.answered) == 3 and not any(":cancel" in path for _, path in seen.asked)


@pytest.mark.parametrize(("is_noted", "told"), [(True, "was cut off"), (False, "is older than what was bought since")])
def test_an_earlier_list_of_batches_is_refused_and_what_was_bought_since_stays(
    directory: Path, is_noted: bool, told: str
) -> None:
    night = Night(directory)
    night.session(3, leave=True)
    events = directory / "batches.jsonl"
    earlier = events.read_bytes()
    night.now += HOUR
    assert len(night.session(3).answered) == 3
    newest = events.read_bytes()
    events.write_bytes(earlier)
    if not is_noted:
        (directory / "batches.synced").unlink()
    with pytest.raises(RunStateError, match=told):
        night.session(3)
    events.write_bytes(newest)
    seen = night.session(3)
    assert len(seen.answered) == 3 and set(night.lines.values()) == {1}


def test_keys_that_were_exchanged_between_two_batches_are_refused_and_nothing_is_bought_again(directory: Path) -> None:
    night = Night(directory)
    night.session(3, leave=True)
    night.session(6, leave=True)
    first, second = sorted(directory.glob("batches/*.keys.parquet"))

    def exchange() -> None:
        aside = first.rename(first.with_name("aside"))
        second.rename(first)
        aside.rename(second)

    exchange()
    night.now += HOUR
    seen = night.session(6)
    assert isinstance(seen.stopped, RunStateError) and "is of another batch" in str(seen.stopped) and not seen.live
    exchange()
    assert len(night.session(6).answered) == 6 and set(night.lines.values()) == {1}


@pytest.mark.parametrize("target", [TARGET, OPENAI])
def test_a_create_that_is_answered_with_another_batch_is_looked_for(directory: Path, target: Target) -> None:
    def lie(request: httpx.Request, body: bytes) -> bytes | None:
        if request.method != "POST" or not request.url.path.endswith((":batchGenerateContent", "/batches")):
            return None
        told = orjson.loads(body)
        told["id" if target == OPENAI else "name"] = "old" if target == OPENAI else "batches/old"
        told.get("metadata", {})["label" if target == OPENAI else "displayName"] = "pp-another-1-1"
        return orjson.dumps(told)

    night = Night(directory, target=target)
    night.lie = lie
    seen = night.session(3)
    assert len(seen.answered) == 3 and not seen.live and set(night.lines.values()) == {1}
