import os
import resource
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import orjson
import pytest
from asking import MODEL
from chinese import said_in_chinese
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import AT, CENT, abandon, answer, failed, killed, manifest, opened, paid, prompt, result, sealed

from pipeline import report
from pipeline.errors import RunStateError
from pipeline.events import Progressed, SessionStarted, Stopped
from pipeline.providers.stored import parse_stored
from pipeline.records import PASSING, STATUSES, ErrorKind, Status, Usage
from pipeline.report.finding import in_use
from pipeline.store import parts, run, state
from pipeline.store.journal import read as read_journal
from pipeline.store.run import RunStore
from pipeline.store.state import Outcomes, is_passing, load


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def journals(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("journal-*"))


def part_names(directory: Path) -> list[str]:
    return sorted(f"{path.parent.name}/{path.name}" for path in directory.glob("*/part-*"))


def refused(directory: Path, **changes: Any) -> RunStateError:
    with pytest.raises(RunStateError) as caught:
        RunStore(directory, parse_stored).open(manifest(**changes))
    said_in_chinese(caught.value)
    return caught.value


# ---- the outcome of every row in one byte

SET = st.tuples(st.integers(0, 300), st.sampled_from(STATUSES), st.booleans())


@given(st.lists(SET), st.booleans(), st.lists(SET))
def test_outcomes_are_a_dict_in_one_byte_a_row(
    before: list[tuple[int, Status, bool]], settle: bool, after: list[tuple[int, Status, bool]]
) -> None:
    outcomes, model = Outcomes(), dict[int, tuple[Status, bool]]()
    for row, status, passing in before:
        outcomes.set(row, status, passing)
        model[row] = status, passing
    if settle:
        outcomes.settle()
        model = {row: (status, False) for row, (status, _) in model.items()}
    for row, status, passing in after:
        outcomes.set(row, status, passing)
        model[row] = status, passing
    for row in range(320):
        assert outcomes.done(row) == (row in model and not model[row][1])
        assert outcomes.is_ok(row) == (model.get(row) == ("ok", False))
    for status in STATUSES:
        assert outcomes.count(status) == sum(known == status for known, _ in model.values())
        assert outcomes.count(status, lasting=True) == sum(known == (status, False) for known in model.values())
    assert outcomes.waiting() == sum(passing for _, passing in model.values())


def test_a_far_row_costs_one_byte_for_each_row_before_it() -> None:
    outcomes = Outcomes()
    tracemalloc.start()
    try:
        outcomes.set(10_000_000, "ok", False)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcomes.done(10_000_000) and not outcomes.done(9_999_999) and not outcomes.done(20_000_000)
    assert 10_000_000 <= held < 12_000_000


@pytest.mark.parametrize("kind", sorted(PASSING))
def test_a_failure_that_may_pass_is_tried_again(directory: Path, kind: ErrorKind) -> None:
    with opened(directory) as store:
        store.append_result(result(0, "error", kind))
        assert not store.outcomes.done(0)
    with opened(directory) as store:
        assert not store.outcomes.done(0)
        assert (store.outcomes.waiting(), store.outcomes.count("error")) == (1, 1)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("ok", None),
        ("truncated", "truncated"),
        ("blocked", "prompt_blocked"),
        ("blocked", "recitation"),
        ("invalid", "empty_input"),
        ("error", "malformed_reply"),
        ("error", "empty_answer"),
        ("error", "invalid_request"),
        ("error", "too_long"),
    ],
)
def test_every_other_outcome_stays(directory: Path, status: Status, kind: ErrorKind | None) -> None:
    assert not is_passing(result(0, status, kind))
    with killed(directory) as store:
        answer(store, 0, status, kind)
        assert store.outcomes.done(0)
    for _ in range(2):  # from the journal, then from a part
        with opened(directory) as store:
            assert store.outcomes.done(0)


# ---- keeping and replaying


def test_a_paid_reply_is_replayed_and_a_failure_is_not(directory: Path) -> None:
    with killed(directory) as store:
        store.append_call(prompt(0), MODEL, paid("bought"))
        store.append_call(prompt(1), MODEL, failed())
        store.append_call(prompt(2), MODEL, paid(raw=b"<html>"))
        for known in (0, 2):
            assert store.reply(f"content {known}") is not None
        assert store.reply("content 1") is None
    with opened(directory) as store:
        bought = store.reply("content 0")
        assert bought is not None and (bought.row, bought.reply.text, bought.reply.cost_usd) == (0, "bought", CENT)
        unreadable = store.reply("content 2")
        assert unreadable is not None and unreadable.reply.error_kind == "malformed_reply"
        assert store.reply("content 1") is None


def test_what_was_appended_is_in_the_file_when_append_returns(directory: Path) -> None:
    with killed(directory) as store:
        answer(store, 0)
        [path] = directory.glob("journal-*.jsonl")
        assert path.read_bytes().count(b"\n") == 3


def test_a_seal_moves_finished_documents_to_parts_and_carries_the_others_on(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0)
        store.append_call(prompt(1, "half done", step="map"), MODEL, paid("part"))
        store.append_call(prompt(2), MODEL, failed())
        store.append_result(result(2, "error", "server", calls=0, cost_usd=Decimal(0)))
        anyio.run(store.seal)
        assert journals(directory) == ["journal-000002.jsonl"]
        assert part_names(directory) == ["calls/part-000001.parquet", "results/part-000001.parquet"]
        assert sealed(directory, "calls")["fingerprint"].to_list() == ["content 0", "content 2"]
        assert sealed(directory, "calls")["text"].to_list() == [None, ""]
        assert sealed(directory, "results")["response"].to_list() == ["answer 0", None]
        assert store.reply("content 0") is None
        assert store.reply("half done") is not None
        store.append_result(result(1))
    assert sealed(directory, "calls")["row"].to_list() == [0, 2, 1]
    assert sealed(directory, "results")["row"].to_list() == [0, 2, 1]


def test_the_calls_of_a_failed_document_wait_for_its_next_try(directory: Path) -> None:
    with opened(directory) as store:
        store.append_call(prompt(0, "map 0", step="map"), MODEL, paid("part"))
        store.append_call(prompt(0, "map 1", step="map"), MODEL, failed())
        store.append_result(result(0, "error", "server"))
    with opened(directory) as store:
        assert not store.outcomes.done(0)
        assert store.reply("map 0") is not None and store.reply("map 1") is None
        store.append_call(prompt(0, "map 1", step="map"), MODEL, paid("other part"))
        store.append_result(result(0))
    calls = sealed(directory, "calls")
    assert sorted(calls.filter("paid")["fingerprint"]) == ["map 0", "map 1"]
    assert calls.height == 3
    assert sealed(directory, "results")["status"].to_list() == ["error", "ok"]


def test_a_seal_without_a_result_leaves_everything_as_it_is(directory: Path) -> None:
    with opened(directory) as store:
        store.append_call(prompt(0), MODEL, paid())
        anyio.run(store.seal)
        assert (journals(directory), part_names(directory)) == (["journal-000001.jsonl"], [])
    assert (journals(directory), part_names(directory)) == (["journal-000001.jsonl"], [])


def test_lines_that_come_during_a_seal_go_to_the_next_journal(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(directory) as store:
        answer(store, 0)

        async def seal_slowly() -> None:
            writing, go_on = anyio.Event(), anyio.Event()
            write = parts.write_part

            def write_later(*part: Any) -> Any:
                anyio.from_thread.run_sync(writing.set)
                anyio.from_thread.run(go_on.wait)
                return write(*part)

            monkeypatch.setattr(parts, "write_part", write_later)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.seal)
                await writing.wait()
                answer(store, 1)
                tasks.cancel_scope.cancel()  # a seal is finished even when the run is not
                go_on.set()

        anyio.run(seal_slowly)
        monkeypatch.undo()
        assert sealed(directory, "results")["row"].to_list() == [0]
        assert journals(directory) == ["journal-000002.jsonl"]
        assert store.reply("content 1") is not None
    assert sealed(directory, "results")["row"].to_list() == [0, 1]


def test_spending_counts_sealed_and_unsealed_calls_and_nothing_for_an_unknown_price(directory: Path) -> None:
    with opened(directory) as store:
        assert store.spent_usd() == 0
        answer(store, 0)
        anyio.run(store.seal)
        answer(store, 1)
        store.append_call(prompt(2), MODEL, paid(cost_usd=Decimal("0.000000000001")))
        store.append_call(prompt(3), MODEL, paid(cost_usd=None))
        store.append_call(prompt(4), MODEL, failed())
        assert store.spent_usd() == Decimal("0.020000000001")
    with opened(directory) as store:
        assert store.spent_usd() == Decimal("0.020000000001")


def test_reopen_names_rows_by_status_or_kind_until_they_have_a_new_outcome(directory: Path) -> None:
    outcomes: list[tuple[Status, ErrorKind | None]] = [
        ("ok", None),
        ("truncated", "truncated"),
        ("blocked", "prompt_blocked"),
        ("blocked", "recitation"),
        ("error", "too_long"),
        ("error", "server"),
    ]
    with opened(directory) as store:
        for row, (status, kind) in enumerate(outcomes):
            answer(store, row, status, kind)
    with opened(directory) as store:
        store.reopen(frozenset({"truncated", "recitation"}))
        assert [row for row in range(6) if not store.outcomes.done(row)] == [1, 3, 5]
        assert store.outcomes.count("blocked") == 2
        answer(store, 1)
    with opened(directory) as store:
        assert [row for row in range(6) if not store.outcomes.done(row)] == [5]
        assert store.outcomes.is_ok(1)
        store.reopen(frozenset({"truncated"}))
        assert store.outcomes.done(1), "its newest outcome is not truncated any more"
        store.outcomes.settle()
        assert all(store.outcomes.done(row) for row in range(6))
        store.reopen(frozenset({"recitation"}), passing=False)
        assert [row for row in range(6) if not store.outcomes.done(row)] == [3], "what failed is left alone"


def test_a_reply_bought_for_a_row_tried_again_is_not_lost_to_a_kill(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0, "truncated", "truncated")
    with killed(directory) as store:
        store.reopen(frozenset({"truncated"}))
        assert store.reply("content 0") is None
        store.append_call(prompt(0), MODEL, paid("a second try"))
    for _ in range(2):  # a run in between that does not ask for it keeps it as well
        with opened(directory) as store:
            bought = store.reply("content 0")
            assert bought is not None and bought.reply.text == "a second try"
            assert store.spent_usd() == 2 * CENT
    with opened(directory) as store:
        store.reopen(frozenset({"truncated"}))
        store.append_result(result(0, response="a second try"))
    results = sealed(directory, "results")
    assert results["status"].to_list() == ["truncated", "ok"]
    assert results["cost_usd"].to_list() == [CENT, 2 * CENT], "a row costs what all its replies cost"
    assert sealed(directory, "calls").height == 2


def test_a_row_that_is_redone_costs_what_each_of_its_replies_cost(directory: Path) -> None:
    with opened(directory) as store:
        for row in range(2):
            answer(store, row, "truncated", "truncated")
        store.append_call(prompt(2), MODEL, paid("half", usage=Usage(12, 0, 34, estimated=True)))
        store.append_result(result(2, "truncated", "truncated"))
    with opened(directory) as store:
        store.reopen(frozenset({"truncated"}))
        for row, usd in ((0, 5 * CENT), (1, None)):
            store.append_call(prompt(row), MODEL, paid("whole", cost_usd=usd))
            store.append_result(result(row, cost_usd=usd))
        store.append_result(result(2, cost_usd=Decimal(0)))  # another row bought the answer to the same
    results = sealed(directory, "results")[3:]
    assert results["cost_usd"].to_list() == [6 * CENT, None, CENT]
    assert results["usage_estimated"].to_list() == [False, False, True], "what was not told of the first try"


@contextmanager
def no_room(path: Path) -> Iterator[None]:
    """No file may grow beyond what this one has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_log_is_json_lines_with_numbers_and_survives_a_full_disk(directory: Path) -> None:
    with opened(directory) as store:
        store.log(SessionStarted(3, 1))
        store.log(Progressed(1.0, 2, 3, Decimal("0.5"), 0, 0, Decimal(0), 3, 0))
        with no_room(directory / "run.log"):
            store.log(Stopped("no room"))
    lines = [orjson.loads(line) for line in (directory / "run.log").read_bytes().splitlines()]
    assert [(line["event"], line.get("rows"), line.get("cost_usd")) for line in lines] == [
        ("start", 3, None),
        ("progress", None, 0.5),
    ]


# ---- back-pressure and the writer's loop


def ready(store: RunStore, waiters: int = 1) -> Callable[[], Any]:
    """Whether `room` lets that many through before and after a seal."""

    async def tried() -> tuple[int, int]:
        through: list[int] = []

        async def wait(number: int) -> None:
            await store.room()
            through.append(number)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for number in range(waiters):
                    tasks.start_soon(wait, number)
                await anyio.wait_all_tasks_blocked()
                before = len(through)
                await store.seal()
        return before, len(through)

    return tried


def test_new_documents_wait_while_two_seals_of_answers_are_open(directory: Path) -> None:
    with opened(directory, seal_rows=2) as store:
        for row in range(3):
            answer(store, row)
        assert anyio.run(ready(store)) == (1, 1)
        for row in range(3, 7):
            answer(store, row)
        assert anyio.run(ready(store, waiters=3)) == (0, 3)
        for row in range(7, 11):
            answer(store, row)
        assert anyio.run(ready(store, waiters=2)) == (0, 2)


def test_new_documents_wait_while_two_seals_of_bytes_are_open(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SEAL_BYTES", 5_000)
    with opened(directory) as store:
        answer(store, 0)
        assert anyio.run(ready(store)) == (1, 1)
        for row in range(1, 20):
            answer(store, row)
        assert anyio.run(ready(store)) == (0, 1)


def test_calls_carried_on_from_earlier_never_hold_up_new_documents(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SEAL_BYTES", 5_000)
    with killed(directory) as store:
        for chunk in range(40):
            store.append_call(prompt(0, f"map {chunk}", step="map", chunk=chunk), MODEL, paid())
    with opened(directory) as store:
        assert (directory / "journal-000002.jsonl").stat().st_size > 10_000

        async def enter() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.keep)
                with anyio.fail_after(5):
                    await store.room()
                await anyio.sleep(0.05)  # a hundred rounds of `keep`
                tasks.cancel_scope.cancel()

        monkeypatch.setattr(run, "SYNC_S", 0.0005)
        anyio.run(enter)
        assert journals(directory) == ["journal-000002.jsonl"], "there is nothing new to seal"
        assert store.reply("map 39") is not None


def test_the_writer_syncs_and_seals_by_itself(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SYNC_S", 0)
    with opened(directory, seal_rows=2) as store:

        async def kept() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.keep)
                answer(store, 0)
                answer(store, 1)
                with anyio.fail_after(5):
                    while journals(directory) != ["journal-000002.jsonl"]:
                        await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()

        anyio.run(kept)
        assert sealed(directory, "results")["row"].to_list() == [0, 1]


# ---- taking the directory


def test_a_new_directory_and_all_in_it_belong_to_the_user_alone(directory: Path) -> None:
    store = RunStore(directory, parse_stored)
    assert store.open(manifest()) is False
    answer(store, 0)
    anyio.run(store.seal)
    store.log(Stopped("no room"))
    store.close()
    modes = {path.relative_to(directory).as_posix(): path.stat().st_mode & 0o777 for path in directory.rglob("*")}
    assert {name for name, mode in modes.items() if mode == 0o700} == {"calls", "results"}
    assert {name for name, mode in modes.items() if mode == 0o600} == modes.keys() - {"calls", "results"}
    assert modes.keys() - {"calls", "results"} == {
        "manifest.json",
        "lock",
        "run.log",
        "parts.jsonl",
        "content.sqlite",
        "journal-000002.jsonl",
        "synced",
        "calls/part-000001.parquet",
        "results/part-000001.parquet",
    }
    assert directory.stat().st_mode & 0o777 == 0o700
    assert store.open(manifest()) is True
    store.close()


def test_another_job_or_input_is_refused_with_what_differs_and_what_is_kept(directory: Path) -> None:
    with opened(directory) as store:
        for row in range(3):
            answer(store, row)
    error = refused(directory, identity={"model": {"name": "pro", "stop": ["END"], "temperature": 0.5}}, source="s1")
    assert error.message.splitlines() == [
        f"{directory} was made from a different job or input",
        "  the input: notes.csv is not what it was when the run was started",
        "  [model] name: gemini-3.5-flash-lite → pro",
        "3 results are kept there.",
    ]
    assert "generation" in error.hint
    with opened(directory) as store:
        assert store.outcomes.count("ok") == 3


@pytest.mark.case("D15")
def test_a_job_file_elsewhere_with_the_same_name_is_told(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "a.toml").touch()
    store = RunStore(directory, parse_stored)
    store.open(manifest(job_path=str(tmp_path / "a.toml")))
    answer(store, 0)
    store.close()
    error = refused(directory, source="s1", job_path="b/a.toml")
    assert f"  the job file: {tmp_path}/a.toml, and this is b/a.toml" in error.message.splitlines()
    assert "another name" in error.hint
    (tmp_path / "a.toml").unlink()  # it was moved
    assert "another name" not in refused(directory, source="s1", job_path="b/a.toml").hint


def test_answers_without_a_manifest_belong_to_nobody(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0)
    (directory / "manifest.json").unlink()
    error = refused(directory)
    assert "manifest.json is gone" in error.message and "move the directory away" in error.hint
    assert sealed(directory, "results").height == 1


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file/notes: Not a directory" in refused(tmp_path / "file" / "notes").message
    (tmp_path / "notes" / "lock").mkdir(parents=True)
    assert f"cannot write {tmp_path / 'notes/lock'}: Is a directory" in refused(tmp_path / "notes").message


def test_a_refused_directory_is_free_for_the_next(directory: Path) -> None:
    with opened(directory):
        pass
    (directory / "journal-000009.jsonl").write_bytes(b"damaged\n{}\n")
    assert "line 1 of" in refused(directory).message
    (directory / "journal-000009.jsonl").unlink()
    with opened(directory) as store:
        answer(store, 0)


def test_a_damaged_part_stops_the_start_and_nothing_is_touched(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0)
    (directory / "results" / "part-000001.parquet").write_bytes(b"half")
    before = journals(directory), part_names(directory)
    assert "results/part-000001.parquet is damaged" in refused(directory).message
    assert (journals(directory), part_names(directory)) == before


_HOLDER = """
import sys
from stores import manifest, paid, prompt
from pathlib import Path
from asking import MODEL
from pipeline.providers.stored import parse_stored
from pipeline.store.run import RunStore
store = RunStore(Path(sys.argv[1]), parse_stored)
store.open(manifest())
store.append_call(prompt(0), MODEL, paid("bought before the kill"))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_living_holder_is_named_and_a_killed_one_is_replaced_without_loss(directory: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(directory)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert f"is in use by process {holder.pid} on " in refused(directory).message
        assert in_use(directory)
        assert report.summarize(directory).calls == 1
        holder.kill()
    assert not in_use(directory)
    with opened(directory) as store:
        bought = store.reply("content 0")
        assert bought is not None and bought.reply.text == "bought before the kill"


# ---- what was in flight


def lost(directory: Path) -> list[str]:
    """What a start finds that was in flight; nobody is told."""
    with killed(directory) as store:
        return [sent.fingerprint for sent in store.lost]


def test_a_start_finds_what_was_in_flight_at_a_kill(directory: Path) -> None:
    with killed(directory) as store:
        for row in range(5):
            store.append_sent(prompt(row), MODEL)
        store.append_call(prompt(0), MODEL, paid())
        store.append_call(prompt(1), MODEL, failed())
        store.append_ended(prompt(2), MODEL)
    for _ in range(2):  # until somebody was told
        assert lost(directory) == ["content 3", "content 4"]
    with killed(directory) as store:
        (first, _) = store.lost
        assert (first.row, first.model, first.input_tokens_est, first.max_output_tokens) == (3, MODEL, 10, 100)
        store.append_call(first.prompt, MODEL, failed("network", at_most_usd=CENT), answered=False)
        store.append_ended(prompt(4), MODEL)
    assert lost(directory) == []


def test_what_is_in_flight_is_carried_over_a_seal_and_a_crash_in_it(directory: Path) -> None:
    with killed(directory) as store:
        store.append_sent(prompt(0), MODEL)
        answer(store, 0)
        store.append_sent(prompt(1), MODEL)
        store.append_sent(prompt(2), MODEL)
        anyio.run(store.seal)
        store.append_call(prompt(1), MODEL, paid())
        store.append_result(result(1))
        with steps(directory, SEAL.index("fsync calls")), suppress(Crash):
            anyio.run(store.seal)
    assert lost(directory) == ["content 2"]


def test_a_clean_end_leaves_nothing_in_flight(directory: Path) -> None:
    with opened(directory) as store:
        store.append_sent(prompt(0), MODEL)
        answer(store, 0)
    assert lost(directory) == []


# ---- a crash between any two steps


class Crash(Exception):
    """The process dies here."""


@contextmanager
def steps(directory: Path, last: int | None = None) -> Iterator[list[str]]:
    """Every step that reaches the disk, by name. The process dies before number `last`; a write then is torn."""
    taken: list[str] = []

    def named(place: int | str | Path) -> str | None:
        if isinstance(place, int):
            node = os.fstat(place).st_ino
            found = (path for path in (directory, *directory.rglob("*")) if path.stat().st_ino == node)
            place = next(found, directory.parent)
        path = Path(place)
        return str(path.relative_to(directory)) if directory in (path, *path.parents) else None

    def watch(patch: pytest.MonkeyPatch, owner: Any, verb: str, only: str = "") -> None:
        take = getattr(owner, verb)

        def step(place: Any, *arguments: Any, **options: Any) -> Any:
            name = named(place)
            if name is None or not name.endswith(only):
                return take(place, *arguments, **options)
            taken.append(f"{verb} {name}")
            if last is not None and len(taken) > last:
                if verb == "write" and len(taken) == last + 1:
                    take(place, arguments[0][: len(arguments[0]) // 2])
                raise Crash(taken[-1])
            return take(place, *arguments, **options)

        patch.setattr(owner, verb, step)

    with pytest.MonkeyPatch.context() as patch:
        for verb in ("open", "write"):
            watch(patch, os, verb, ".jsonl")
        for verb in ("fdatasync", "fsync"):
            watch(patch, os, verb)
        for verb in ("touch", "replace", "unlink"):
            watch(patch, Path, verb)
        yield taken


def price(number: int) -> Decimal:
    """Different for every call, so that a sum tells which calls are in it."""
    return Decimal(2**number) / 10**9


BOUGHT = {"0 map": 0, "0 reduce": 0, "1": 1, "2 map": 2, "3 map 0": 3, "3 map 1": 3}
TOTAL = sum(map(price, range(len(BOUGHT))), Decimal(0))


def buy_and_finish(store: RunStore) -> None:
    """Two finished documents, one that failed for now with a part bought, one half done."""
    for number, (content, row) in enumerate(BOUGHT.items()):
        store.append_call(prompt(row, content), MODEL, paid(f"text of {content}", price(number)))
    store.append_call(prompt(2, "2 map 1"), MODEL, failed())
    store.append_result(result(0, response="text of 0 reduce"))
    store.append_result(result(1, response="text of 1"))
    store.append_result(result(2, "error", "server"))


def assert_whole(directory: Path) -> None:
    """Nothing lost and nothing twice: as it lies there, after the next start, and after the end of the run."""
    for _ in range(2):
        summary = report.summarize(directory)
        assert (summary.cost_usd, summary.calls) == (TOTAL, len(BOUGHT))
        assert (summary.attempts, summary.usage.output_tokens) == (len(BOUGHT) + 5, 34 * len(BOUGHT))
        assert (summary.outcomes["ok"], summary.outcomes["error"], summary.waiting) == (2, 1, 1)
        with opened(directory) as store:
            assert store.spent_usd() == TOTAL
            assert [store.outcomes.done(row) for row in range(5)] == [True, True, False, False, False]
            for content in ("2 map", "3 map 0", "3 map 1"):
                bought = store.reply(content)
                assert bought is not None and bought.reply.text == f"text of {content}"
            assert store.reply("1") is None and store.reply("2 map 1") is None
    with opened(directory) as store:
        store.append_result(result(2))
        store.append_result(result(3))
    assert Counter(sealed(directory, "results")["row"]) == {0: 1, 1: 1, 2: 2, 3: 1}
    assert Counter(sealed(directory, "calls")["fingerprint"]) == dict.fromkeys((*BOUGHT, "2 map 1"), 1)
    assert sealed(directory, "results").filter(row=0)["response"].to_list() == ["text of 0 reduce"]
    assert not list(directory.glob("*/.*"))


SEAL = (
    "open journal-000002.jsonl",
    "write journal-000002.jsonl",
    "fdatasync journal-000002.jsonl",
    "fsync .",
    "open parts.jsonl",
    "write parts.jsonl",
    "touch calls/.part-000001.parquet.tmp",
    "fsync calls/.part-000001.parquet.tmp",
    "replace calls/.part-000001.parquet.tmp",
    "fsync calls",
    "touch results/.part-000001.parquet.tmp",
    "fsync results/.part-000001.parquet.tmp",
    "replace results/.part-000001.parquet.tmp",
    "fsync results",
    "open parts.jsonl",
    "write parts.jsonl",
    "fsync parts.jsonl",
    "unlink journal-000001.jsonl",
)


def test_a_seal_takes_these_steps(directory: Path) -> None:
    with opened(directory) as store:
        buy_and_finish(store)
        with steps(directory) as taken:
            anyio.run(store.seal)
    assert tuple(taken) == SEAL
    assert_whole(directory)


@pytest.mark.parametrize("how", ["seal", "close"])
@pytest.mark.parametrize("step", range(len(SEAL)), ids=SEAL)
def test_a_crash_in_a_seal_loses_nothing_and_doubles_nothing(directory: Path, step: int, how: str) -> None:
    with killed(directory) as store:
        buy_and_finish(store)
        with steps(directory, step) as taken, pytest.raises(Crash):
            anyio.run(store.seal) if how == "seal" else store.close()
        assert taken[: step + 1] == list(SEAL[: step + 1])
    assert_whole(directory)


RECOVERY = (
    "unlink results/.part-000001.parquet.tmp",
    "unlink calls/part-000001.parquet",
    "open journal-000003.jsonl",
    "write journal-000003.jsonl",
    "fdatasync journal-000003.jsonl",
    "fsync .",
    "open parts.jsonl",
    "write parts.jsonl",
    "touch calls/.part-000002.parquet.tmp",
    "fsync calls/.part-000002.parquet.tmp",
    "replace calls/.part-000002.parquet.tmp",
    "fsync calls",
    "touch results/.part-000002.parquet.tmp",
    "fsync results/.part-000002.parquet.tmp",
    "replace results/.part-000002.parquet.tmp",
    "fsync results",
    "open parts.jsonl",
    "write parts.jsonl",
    "fsync parts.jsonl",
    "unlink journal-000001.jsonl",
    "unlink journal-000002.jsonl",
    "unlink reserve",
)


def leave_half_a_seal(directory: Path) -> None:
    with killed(directory) as store:
        buy_and_finish(store)
        half = SEAL.index("replace results/.part-000001.parquet.tmp")
        with steps(directory, half), suppress(Crash):
            anyio.run(store.seal)
    with (directory / "journal-000002.jsonl").open("ab") as journal:
        journal.write(b'{"call": {"row": 4, "te')


def test_a_recovery_takes_these_steps(directory: Path) -> None:
    leave_half_a_seal(directory)
    with steps(directory) as taken, killed(directory):
        assert tuple(taken) == RECOVERY
    assert_whole(directory)


@pytest.mark.parametrize("step", range(len(RECOVERY)), ids=RECOVERY)
def test_a_crash_in_a_recovery_loses_nothing_and_doubles_nothing(directory: Path, step: int) -> None:
    leave_half_a_seal(directory)
    with steps(directory, step), pytest.raises(Crash, match=f"^{RECOVERY[step]}$"), killed(directory):
        pass
    assert_whole(directory)


FIRST_START = (
    "touch .manifest.json.tmp",
    "fsync .manifest.json.tmp",
    "replace .manifest.json.tmp",
    "fsync .",
    "open journal-000001.jsonl",
    "write journal-000001.jsonl",
    "fdatasync journal-000001.jsonl",
    "fsync .",
    "open parts.jsonl",
    "write parts.jsonl",
)


@pytest.mark.parametrize("last", range(len(FIRST_START)))
def test_a_crash_in_the_first_start_leaves_a_directory_that_starts(directory: Path, last: int) -> None:
    with steps(directory, last) as taken, pytest.raises(Crash), killed(directory):
        pass
    assert tuple(taken) == FIRST_START[: last + 1]
    with killed(directory) as store:
        buy_and_finish(store)
    assert_whole(directory)


@pytest.mark.parametrize("number", range(10))
def test_a_torn_append_loses_that_line_only(directory: Path, number: int) -> None:
    with killed(directory) as store, suppress(Crash), steps(directory, number):
        buy_and_finish(store)
    with opened(directory) as store:
        kept = sum(price(call) for call in range(min(number, len(BOUGHT))))
        assert store.spent_usd() == kept
        assert sum(store.outcomes.count(status) for status in STATUSES) == max(0, number - len(BOUGHT) - 1)


def fill(directory: Path, kind: str, number: int) -> None:
    """Let the next part of this kind meet a full disk."""
    path = directory / kind / f".part-{number:06d}.parquet.tmp"
    path.symlink_to("/dev/full")


@pytest.mark.parametrize("kind", ["calls", "results"])
def test_a_seal_that_finds_the_disk_full_is_told_and_nothing_newer_is_sealed_over_it(
    directory: Path, kind: str
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    store = RunStore(directory, parse_stored)
    store.open(manifest())
    buy_and_finish(store)
    fill(directory, kind, 1)
    with pytest.raises(RunStateError, match=f"{kind}/part-000001.parquet: No space left on device"):
        anyio.run(store.seal)
    store.append_result(result(9))  # an answer that was in flight meanwhile
    store.close()
    assert not list(directory.glob("results/part-*"))
    with opened(directory) as store:
        assert store.outcomes.is_ok(9) and store.outcomes.is_ok(0)
    (row,) = sealed(directory, "results").filter(row=9)["row"]
    assert row == 9
    assert Counter(sealed(directory, "results")["row"]) == {0: 1, 1: 1, 2: 1, 9: 1}


def test_a_journal_that_cannot_be_carried_on_fails_the_seal_and_keeps_the_old_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(directory, parse_stored)
    store.open(manifest())
    buy_and_finish(store)

    def full(fd: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunStateError, match=r"journal-000002\.jsonl: No space left"):
        patch.setattr(os, "write", full)
        anyio.run(store.seal)
    store.close()
    assert_whole(directory)


def test_a_journal_that_never_held_a_line_is_not_missed_after_a_seal_that_fails(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with killed(directory) as store:
        buy_and_finish(store)
        with monkeypatch.context() as patch, pytest.raises(RunStateError, match=r"journal-000002\.jsonl: Input/output"):
            patch.setattr(os, "write", broken)
            anyio.run(store.seal)
    assert (directory / "journal-000002.jsonl").stat().st_size == 0
    with monkeypatch.context() as patch, pytest.raises(RunStateError, match=r"part-000002\.parquet: Input/output"):
        patch.setattr(Path, "touch", broken)
        with killed(directory):
            pass
    assert_whole(directory)


def test_a_close_that_fails_gives_the_directory_back_all_the_same(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(directory, parse_stored)
    store.open(manifest())
    buy_and_finish(store)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(parts, "write_part", lambda *_: (_ for _ in ()).throw(Crash()))
        store.close()
    assert not in_use(directory)
    assert_whole(directory)


# ---- reading while somebody else writes


@pytest.mark.parametrize("step", range(len(SEAL) + 1), ids=[*SEAL, "end"])
def test_a_seal_under_the_readers_eyes_is_counted_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The reader looks at the parts before the seal, and at the journals when it stands at `step`, then it ends."""
    with killed(directory) as store:
        buy_and_finish(store)
        look, sealing = state._unsealed, iter([True])

        def look_late(*where: Any) -> Any:
            if not next(sealing, False):
                return look(*where)
            with steps(directory, step), suppress(Crash):
                anyio.run(store.seal)
            with suppress(OSError):
                abandon(store._lock)
            seen = look(*where)
            opened_meanwhile = RunStore(directory, parse_stored)
            opened_meanwhile.open(manifest())
            opened_meanwhile.close()
            return seen

        monkeypatch.setattr(state, "_unsealed", look_late)
        summary = report.summarize(directory)
        monkeypatch.undo()
    assert (summary.cost_usd, summary.calls, summary.outcomes.total()) == (TOTAL, len(BOUGHT), 3)


def test_a_journal_that_vanishes_while_it_is_read_was_sealed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed(directory) as store:
        buy_and_finish(store)
        sealing = iter([True])

        def read_late(*arguments: Any) -> Any:
            if next(sealing, False):
                anyio.run(store.seal)
            return read_journal(*arguments)

        monkeypatch.setattr("pipeline.store.state.read", read_late)
        outcomes, unsealed = load(directory, parse_stored)
        monkeypatch.undo()
    assert (outcomes.count("ok"), outcomes.count("error"), unsealed.sealed, unsealed.results) == (2, 1, 1, {})
    assert sorted(call.fingerprint for call in unsealed.calls) == ["2 map", "3 map 0", "3 map 1"]


@pytest.mark.case("D12")
def test_a_journal_that_is_carried_on_under_the_readers_eyes_is_not_missed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start without anything to seal removes it while a report has read which journals there are."""
    with killed(directory) as store:
        store.append_call(prompt(0), MODEL, paid())
    look, starting = state._unsealed, iter([True])

    def look_late(*where: Any) -> Any:
        if next(starting, False):
            with killed(directory):
                pass
        return look(*where)

    monkeypatch.setattr(state, "_unsealed", look_late)
    _, unsealed = load(directory, parse_stored)
    assert [call.fingerprint for call in unsealed.calls] == ["content 0"]


# ---- any history of sessions and kills

ROW = st.integers(0, 4)
ACTION = st.one_of(
    st.tuples(st.just("buy"), ROW, st.integers(0, 2)),
    st.tuples(st.just("fail"), ROW, st.just(0)),
    st.tuples(st.just("lose"), ROW, st.integers(0, 2)),
    st.tuples(st.just("finish"), ROW, st.sampled_from([0, 1, 2])),
    st.tuples(st.just("seal"), st.just(0), st.just(0)),
)
SESSION = st.tuples(st.lists(ACTION, max_size=12), st.none() | st.integers(0, 40))


ENDS: list[tuple[Status, ErrorKind | None]] = [("ok", None), ("error", "server"), ("blocked", "prompt_blocked")]


class History:
    """What was bought and answered, as the one who paid remembers it."""

    def __init__(self) -> None:
        self.paid: dict[str, Decimal] = {}
        self.unread: Counter[str] = Counter()
        self.uncertain = Decimal(0)
        self.failed = 0
        self.outcomes: dict[int, str] = {}

    def done(self, row: int) -> bool:
        return self.outcomes.get(row, "error") != "error"

    def act(self, store: RunStore, verb: str, row: int, number: int) -> None:
        content = f"{row} {number}"
        if verb == "seal":
            anyio.run(store.seal)
        elif self.done(row):
            return
        elif verb == "fail":
            store.append_call(prompt(row, f"{content} failed"), MODEL, failed())
            self.failed += 1
        elif verb == "lose":
            usd = price(self.unread.total())
            lost = failed(
                "malformed_reply", raw=b"{", cost_usd=usd, at_most_usd=CENT, finished_at=AT + self.unread.total()
            )
            store.append_call(prompt(row, content), MODEL, lost, answered=False)
            self.unread[content] += 1
            self.uncertain += usd + CENT
        elif verb == "finish":
            status, kind = ENDS[number]
            store.append_result(result(row, status, kind))
            self.outcomes[row] = status
        elif store.reply(content) is None:
            assert content not in self.paid, "bought twice"
            store.append_call(prompt(row, content), MODEL, paid(content, price(len(self.paid))))
            self.paid[content] = price(len(self.paid))

    def check(self, store: RunStore) -> None:
        assert store.spent_usd() == sum(self.paid.values(), Decimal(0)) + self.uncertain
        for content in self.unread:
            assert bool(store.unread_usd(content)) != self.done(int(content[0]))
        assert [store.outcomes.done(row) for row in range(5)] == [self.done(row) for row in range(5)]
        for content in self.paid:
            if not self.done(int(content[0])):
                bought = store.reply(content)
                assert bought is not None and bought.reply.text == content


@given(st.lists(SESSION, max_size=5))
@settings(max_examples=40, deadline=None)
def test_no_history_of_kills_loses_or_doubles_anything(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[tuple[list[tuple[str, int, int]], int | None]]
) -> None:
    directory = tmp_path_factory.mktemp("history") / "notes"
    history = History()
    for actions, last in sessions:
        with suppress(Crash), steps(directory, last), killed(directory) as store:
            history.check(store)
            for action in actions:
                history.act(store, *action)
    with opened(directory) as store:
        history.check(store)
        for row in range(5):
            history.act(store, "finish", row, 0)
    results, calls = sealed(directory, "results"), sealed(directory, "calls")
    assert dict(results.select("row", "status").iter_rows()) == {row: history.outcomes[row] for row in range(5)}
    assert Counter(results.filter(status="ok")["row"]).total() + Counter(
        results.filter(status="blocked")["row"]
    ).total() == len(history.outcomes)
    assert Counter(calls.filter("paid")["fingerprint"]) == dict.fromkeys(history.paid, 1)
    assert calls.filter(paid=False).height == history.failed + history.unread.total()
