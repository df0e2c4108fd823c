"""What batches bought: counted wherever calls are, found again by content, and of no use where it would not do."""

import os
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import polars as pl
import pytest
from asking import MODEL, ROUTE
from batch_stores import calls, cut, drafted, fetched, find, key, take, to_asked
from stores import AT, CENT, answer, body, killed, manifest, opened, paid, prompt, result
from test_store_content import break_index

from pipeline import console, report
from pipeline.budget.cashier import SEEN_COLUMNS, seen_in
from pipeline.calls import Saved, replay
from pipeline.errors import RunStateError
from pipeline.events import SessionStarted
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import ErrorKind, Reply, Status
from pipeline.run.guards import set_aside
from pipeline.store import batched, content, parts
from pipeline.store.batches import Batches
from pipeline.store.lines import Call
from pipeline.store.manifest import Manifest
from pipeline.store.manifest import read as read_manifest
from pipeline.store.manifest import write as write_manifest
from pipeline.store.run import RunStore
from pipeline.targets import Route


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "notes"


def reply(row: int, finish: str = "STOP", usd: Decimal = CENT, text: str = "") -> Reply:
    """That of a batch, at half the standard price."""
    raw = body(text or f"answer {row}", finish)
    return paid(raw=raw, cost_usd=usd, standard_usd=2 * usd, lane="batch", latency_s=0.0)


def bought(batches: Batches, replies: dict[int, Reply], *, at: float | None = None) -> int:
    """A batch that is cut at that time and taken with these replies."""
    number = drafted(batches, *replies).cut(at=at).number
    to_asked(batches, number)
    batches.results_path(number).write_bytes(b"results")
    batches.note(number, "fetched")
    batches.take(number, [each.call(replies[each.row]) for each in batches.keys(number)])
    return number


def test_what_batches_bought_counts_in_every_sum(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0)
        bought(store.batches, {row: reply(row) for row in (1, 2, 3)})
        assert store.cost_usd() == store.spent_usd() == 4 * CENT
        assert sum(frame.height for frame in store.calls(("row",))) == 4
        assert seen_in(store.calls(SEEN_COLUMNS)).steps["answer"].replies == 4
    summary = report.summarize(directory)
    assert (summary.cost_usd, summary.calls, summary.attempts) == (4 * CENT, 4, 4)
    assert summary.usage.output_tokens == 4 * 34
    assert summary.latency_p50_s == pytest.approx(1.25, rel=0.01), "one of a batch tells no latency"
    assert report.verify(directory) == 3


def test_the_report_tells_lanes_and_batches(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(directory) as store:
        answer(store, 0)
        number = fetched(store.batches, 1, 2, 3, 4)
        kept = [each.call(reply(each.row), late=each.row == 1) for each in store.batches.keys(number)[:2]]
        store.batches.take(number, kept, failed=1, missing=1)
        cut(store.batches, 5, 6)
        store.log(SessionStarted(9, 1))
    told = report.summarize(directory).as_json()
    assert told["lanes"] == {
        "batch": {"calls": 2, "cost_usd": 0.02, "saved_usd": 0.02, "late": 1, "fell_back": {}},
        "standard": {"calls": 1, "cost_usd": 0.01, "saved_usd": 0.0, "late": 0, "fell_back": {}},
    }
    batches = told["batches"]
    assert isinstance(batches, list)
    assert [each["stage"] for each in batches] == ["taken", "cut"]
    taken = {name: batches[0][name] for name in ("ok", "failed", "missing", "refused", "late", "cost_usd", "lines")}
    assert taken == {"ok": 1, "failed": 1, "missing": 1, "refused": 0, "late": 1, "cost_usd": 0.02, "lines": 4}
    assert batches[1]["worst_usd"] == 0.5
    assert batches[0]["asked_at"] and batches[0]["taken_at"] and batches[1]["asked_at"] is None
    console.show_summary(report.summarize(directory))
    console.show_runs([report.summarize(directory)])
    shown = capsys.readouterr().out
    assert "1 of them out, with 2 calls for at most $0.5000" in shown and "failed 1 + missing 1 + late 1" in shown
    assert "$0.0200 would be saved" in shown and "batch 2 + standard 1" in shown
    assert "interrupted, 1 batch out" in shown
    assert "1 ok" in shown and "2 in batches   6 not reached" in shown


ENDS: list[tuple[str, Status, ErrorKind]] = [
    ("SAFETY", "blocked", "answer_blocked"),
    ("MAX_TOKENS", "truncated", "truncated"),
    ("RECITATION", "blocked", "recitation"),
]


@pytest.mark.parametrize(("finish", "status", "kind"), ENDS)
@pytest.mark.parametrize("again", [False, True])
def test_whatever_ended_a_prompt_is_found_with_its_status(
    directory: Path, finish: str, status: Status, kind: ErrorKind, again: bool
) -> None:
    with opened(directory) as store:
        bought(store.batches, {1: reply(1, finish)})
        found = anyio.run(store.sealed_reply, "content 1")
    if again:
        with opened(directory) as store:
            found = anyio.run(store.sealed_reply, "content 1")
    assert found and (found.row, found.batch) == (1, 1)
    known = reply(1, finish)
    assert (found.reply.status, found.reply.error_kind, found.reply.error) == (status, kind, known.error)
    assert replace(found.reply, raw=b"", unread_usd=Decimal(0)) == replace(known, raw=b"")


def test_an_answer_that_goes_on_says_where(directory: Path) -> None:
    with opened(directory) as store:
        part = replace(reply(1, "CONTINUATION"), continuation="here")
        assert part.status == "truncated"
        bought(store.batches, {1: part})
        found = anyio.run(store.sealed_reply, "content 1")
    assert found and found.reply.continuation == "here" and found.reply.finish_reason == "CONTINUATION"


def test_a_failure_that_ends_a_prompt_is_found_and_a_line_that_cannot_be_read_is_not(directory: Path) -> None:
    refused = Reply("", "invalid", error_kind="invalid_request", error="refused (400)", lane="batch", finished_at=1.0)
    unread = Reply("", "error", error_kind="malformed_reply", at_most_usd=CENT, lane="batch", finished_at=1.0)
    with opened(directory) as store:
        number = fetched(store.batches, 1, 2)
        one, other = store.batches.keys(number)
        state = store.batches.take(number, [one.call(refused, paid=False), other.call(unread, paid=False)])
        assert (state.ok, state.failed) == (0, 1)
        found = anyio.run(store.sealed_reply, "content 1")
        assert found and (found.reply.status, found.reply.error_kind) == ("invalid", "invalid_request")
        assert find(store, 2) is None
        assert store.cost_usd() == 0 and store.spent_usd() == CENT
    assert report.summarize(directory).uncertain == 1


def test_a_large_batch_is_kept_in_several_parts(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "PART_CALLS", 3)
    monkeypatch.setattr(batched, "PART_BYTES", 50)
    with opened(directory) as store:
        texts = {row: "x" * (60 if row == 4 else 1) for row in range(8)}
        number = bought(store.batches, {row: reply(row, text=text) for row, text in texts.items()})
        heights = [parts.read_part(path, ("row",)).height for path in batched.part_paths(directory)]
        assert heights == [3, 2, 3] and [part.rows for part in store.batches.of(number).parts] == heights
    with opened(directory) as store:
        assert [find(store, row) for row in range(8)] == list(texts.values())
    assert report.verify(directory) == 3


def test_what_was_bought_live_stands_before_what_came_late_and_the_newest_batch_before_others(directory: Path) -> None:
    for index in (None, "anew"):
        if index:
            (directory / content.NAME).unlink()
        with opened(directory) as store:
            if not index:
                answer(store, 1)
                anyio.run(store.seal)
                late, twice = ({row: reply(row, text=text) for row in (1, 2)} for text in ("one", "two"))
                bought(store.batches, late)
                bought(store.batches, twice)
            assert [find(store, row) for row in (1, 2)] == ["answer 1", "two"]


def test_late_is_what_was_answered_elsewhere_meanwhile(directory: Path) -> None:
    with opened(directory) as store:
        number = fetched(store.batches, 1, 2, 3, 4)
        answer(store, 1)
        anyio.run(store.seal)
        store.append_call(prompt(2), MODEL, paid())
        store.append_result(result(3, "blocked", "answer_blocked"))
        assert [store.is_late(number, key(row)) for row in (1, 2, 3, 4)] == [True, True, False, False]
        store.batches.note(number, "released")
        assert [store.is_late(number, key(row)) for row in (1, 2, 3, 4)] == [True, True, True, False]
        bought(store.batches, {4: reply(4)})
        assert store.is_late(number, key(4)), "a later batch answered it"


def asked(store: RunStore, row: int) -> str:
    """What the durable call says of a row: an old answer, or that it asks."""

    async def ask(prompt: Prompt, route: Route) -> Reply:
        return Reply("asked", "ok")

    async def look() -> str:
        return (await replay(ask, store, Saved())(prompt(row), ROUTE)).text

    return anyio.run(look)


def outcomes(directory: Path) -> None:
    """A row that was blocked, one whose answer was judged, one that is well, one that failed for now; by a batch."""
    with opened(directory) as store:
        bought(store.batches, {1: reply(1, "SAFETY"), 2: reply(2), 3: reply(3), 4: reply(4, "SAFETY")}, at=AT)
        store.append_result(result(1, "blocked", "answer_blocked"))
        store.append_result(result(2, "error", "schema", response="answer 2"))
        store.append_result(result(3))
        store.append_result(result(4, "error", "network"))


def test_a_row_that_is_tried_again_on_request_is_not_given_what_would_not_do(directory: Path) -> None:
    outcomes(directory)
    with opened(directory) as store:
        assert [asked(store, row) for row in (1, 2, 3, 4)] == ["answer 1", "answer 2", "answer 3", "answer 4"]
        store.reopen(frozenset({"blocked", "schema"}))
        assert [asked(store, row) for row in (1, 2, 3, 4)] == ["asked", "asked", "answer 3", "answer 4"]


def test_a_redo_over_several_sessions_asks_once_and_its_row_costs_every_try(directory: Path) -> None:
    outcomes(directory)
    after = result(1).finished_at
    assert after
    kinds = frozenset({"blocked", "schema"})
    with opened(directory) as store:
        store.reopen(kinds)
        assert [asked(store, row) for row in (1, 2)] == ["asked", "asked"]
        bought(store.batches, {1: reply(1, "SAFETY", text="more"), 2: reply(2)}, at=after.timestamp() + 1)
        assert [asked(store, row) for row in (1, 2)] == ["more", "answer 2"], "cut after the outcome"
    with opened(directory) as store:
        store.reopen(kinds)
        assert [asked(store, row) for row in (1, 2)] == ["more", "answer 2"]
        later = result(1).finished_at
        assert later
        for row, status, kind in ((1, "blocked", "answer_blocked"), (2, "error", "schema")):
            store.append_result(
                result(row, status, kind, response="answer 2", finished_at=later.replace(year=2027))  # type: ignore[arg-type]
            )
    rows = pl.concat(parts.read_parts(directory / "results", ("row", "cost_usd"))).group_by("row").last()
    assert rows.filter(row=1)["cost_usd"].to_list() == rows.filter(row=2)["cost_usd"].to_list() == [2 * CENT]
    with opened(directory) as store:
        store.reopen(kinds)
        assert [asked(store, row) for row in (1, 2)] == ["asked", "asked"], "a new wish asks anew"


def test_a_row_that_another_bought_for_pays_nothing(directory: Path) -> None:
    with opened(directory) as store:
        bought(store.batches, {1: reply(1)})
        saved = Saved()

        async def look() -> Reply:
            return await replay(never, store, saved)(prompt(9, "content 1"), ROUTE)

        found = anyio.run(look)
        assert (found.text, found.usage.input_tokens, saved.identical) == ("answer 1", 0, 1) and found.cost_usd == 0


async def never(prompt: Prompt, route: Route) -> Reply:
    raise AssertionError("nothing is to be asked")


def test_an_index_that_breaks_is_built_again_at_once_and_then_stops_the_run(directory: Path) -> None:
    with opened(directory) as store:
        bought(store.batches, {1: reply(1)})
        break_index(directory)
        assert find(store, 1) == "answer 1"
        break_index(directory)
        with pytest.raises(RunStateError, match="nobody finds what batches bought"):
            find(store, 1)
    with opened(directory) as store:
        assert find(store, 1) == "answer 1"


def test_batches_are_taken_while_rows_are_sealed_and_contents_looked_up(directory: Path) -> None:
    async def both(store: RunStore) -> None:
        batches = {number: range(number * 100, number * 100 + 50) for number in range(1, 9)}
        kept: dict[int, list[Call]] = {}
        for number, rows in batches.items():
            assert fetched(store.batches, *rows) == number
            kept[number] = list(calls(store.batches, number))
        taken: set[int] = set()

        async def take_all(numbers: range) -> None:
            for number in numbers:
                await anyio.to_thread.run_sync(store.batches.take, number, kept[number])
                taken.add(number)

        async def seal_rows() -> None:
            row = 10_000
            while len(taken) < len(batches):
                answer(store, row := row + 1)
                await store.seal()
                assert await store.sealed_reply(f"content {row}")

        async def look_up() -> None:
            while len(taken) < len(batches):
                for number, rows in batches.items():
                    was_taken = number in taken
                    is_out = store.batches.out(f"content {rows[0]}")
                    found = await store.sealed_reply(f"content {rows[0]}")
                    assert found or is_out == number, "what neither waits nor is found would be bought again"
                    assert found or not was_taken
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_all, range(1, 5))
            tasks.start_soon(take_all, range(5, 9))
            tasks.start_soon(seal_rows)
            tasks.start_soon(look_up)

    with opened(directory) as store:
        anyio.run(both, store)
        cost_usd = store.cost_usd()
        assert cost_usd == CENT * (400 + len(list((directory / "results").iterdir())))
    assert report.summarize(directory).cost_usd == cost_usd
    report.verify(directory)


def test_who_looked_for_an_answer_before_its_batch_was_taken_looks_again(directory: Path) -> None:
    outcomes(directory)
    with opened(directory) as store:
        number = fetched(store.batches, 7)
        assert asked(store, 7) == "asked"
        take(store.batches, number)
        assert store.batches.out("content 7", 7) == number and store.batches.out("content 7", 8) == number
        assert asked(store, 7) == "answer 7" and store.batches.out("content 8", 8) is None
        store.reopen(frozenset({"blocked"}))
        assert store.batches.out("content 1", 1) is None, "an old answer, which would not do"
    with opened(directory) as store:
        assert store.batches.out("content 7", 7) is None, "nobody looked before"


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_batch_that_finds_the_disk_full_is_taken_when_there_is_room(
    directory: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(batched, "PART_CALLS", 1)
    with opened(directory) as store:
        number = fetched(store.batches, 1, 2, 3)
        kept = list(calls(store.batches, number))
        for last in range(3):
            with monkeypatch.context() as patch, pytest.raises(RunStateError, match="cannot write"):
                fill(patch, broken, last)
                store.batches.take(number, kept)
            assert not store.batches.of(number).is_taken and store.batches.out("content 1") == number
            assert store.cost_usd() == 0
        take(store.batches, number)
        assert store.cost_usd() == 3 * CENT and find(store, 3) == "answer 3"
    assert report.verify(directory) == 3


def fill(patch: pytest.MonkeyPatch, broken: str, last: int) -> None:
    """The disk refuses what is `broken` after so many times."""
    owner = os if broken == "fsync" else Path
    usual, done = getattr(owner, broken), [0]

    def refused(*arguments: object) -> object:
        done[0] += 1
        if done[0] > last:
            raise OSError(28, "No space left on device")
        return usual(*arguments)

    patch.setattr(owner, broken, refused)


def test_a_part_that_was_moved_away_is_missed_until_its_line_goes_too(directory: Path) -> None:
    with opened(directory) as store:
        bought(store.batches, {1: reply(1)})
    (part,) = batched.part_paths(directory)
    part.unlink()
    with pytest.raises(RunStateError, match="is missing") as caught:
        report.summarize(directory)
    assert "its calls are then bought again" in caught.value.hint
    lines = (directory / "parts.jsonl").read_bytes().splitlines(keepends=True)
    (directory / "parts.jsonl").write_bytes(b"".join(line for line in lines if b"batched/" not in line))
    with opened(directory) as store:
        assert find(store, 1) is None and store.cost_usd() == 0 and store.batches.out("content 1") is None


def test_a_part_of_another_run_is_refused(directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "other"
    for place in (directory, other):
        with opened(place) as store:
            bought(store.batches, {1: reply(1)})
    name = "part-000002-00.parquet"
    (directory / "batched" / name).write_bytes((other / "batched" / "part-000001-00.parquet").read_bytes())
    with pytest.raises(RunStateError, match="belongs to another run"):
        RunStore(directory, parse_stored).open(manifest())


def test_a_run_whose_batches_are_out_is_not_set_aside(directory: Path) -> None:
    with opened(directory) as store:
        cut(store.batches, 1, 2)
    set_aside(directory)  # of the embedded emulator, which ended with its run
    with opened(directory) as store:
        cut(store.batches, 1, 2)
    write_manifest(directory / "manifest.json", replace(known(directory), offline=False))
    with pytest.raises(RunStateError, match="1 batch is with the service, 2 calls") as caught:
        set_aside(directory)
    assert directory.exists() and "without `--fresh`" in caught.value.hint
    write_manifest(directory / "manifest.json", replace(known(directory), offline=True))
    with killed(directory) as store:
        store.batches.note(1, "given_up")
    write_manifest(directory / "manifest.json", replace(known(directory), offline=False))
    set_aside(directory)
    assert not directory.exists()


def known(directory: Path) -> Manifest:
    found = read_manifest(directory / "manifest.json")
    assert found
    return found
