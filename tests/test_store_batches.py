"""The batches of a run on disk: what is cut, noted and taken is there after any crash, once."""

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from asking import MODEL, TARGET
from batch_stores import calls, cut, drafted, fetched, find, key, line, take, to_asked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import AT, CENT, answer, killed, manifest, opened, prompt
from test_store_run import Crash, steps

from pipeline import report
from pipeline.errors import RunStateError
from pipeline.providers.stored import parse_stored
from pipeline.store import batch_states, batched
from pipeline.store.batch_lines import Key
from pipeline.store.batch_states import BatchState, Stage
from pipeline.store.batches import is_out
from pipeline.store.manifest import read as read_manifest
from pipeline.store.run import RunStore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "notes"


def test_what_is_cut_is_on_the_disk_with_its_checksum_and_whose_its_lines_are(directory: Path) -> None:
    with killed(directory) as store:
        state = cut(store.batches, 3, 1, 2)
        content = store.batches.requests_path(1).read_bytes()
        assert content == line(3) + line(1) + line(2)
        assert (state.size_bytes, state.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (state.rows, state.lines, state.input_tokens_est, state.worst_usd) == (3, 3, 30, Decimal("0.5"))
        assert (state.model, state.endpoint, state.account) == (TARGET.model, TARGET.endpoint, TARGET.account)
        assert state.file == f"pp-{store.identity[:8]}-1-1" and len(state.file) <= 40
        assert [each.row for each in store.batches.keys(1)] == [1, 2, 3], "in document order"
    assert is_out(directory) == [state]
    with opened(directory) as store:
        assert store.batches.all() == store.batches.open() == [state]
        assert store.batches.keys(1) == [key(1), key(2), key(3)] and store.batches.waiting_rows(1) == [1, 2, 3]


def test_a_key_is_the_prompt_without_its_text(directory: Path) -> None:
    asked = prompt(4, "a piece", step="map", level=1, chunk=2, chunks=9)
    known = Key.of(asked, MODEL).prompt(MODEL)
    assert known.fingerprint(MODEL) == "a piece" and known.text == ""
    assert replace(known, content=asked.content) == replace(asked, params=known.params)
    assert known.params.max_output_tokens == asked.params.max_output_tokens


def test_a_content_waits_from_the_moment_it_is_added_until_its_answer_is_found(directory: Path) -> None:
    with killed(directory) as store:
        draft = drafted(store.batches, 1, 2)
        assert [store.batches.out(f"content {row}") for row in (1, 2, 3)] == [1, 1, None]
        draft.cut()
        assert [store.batches.out(f"content {row}") for row in (1, 2, 3)] == [1, 1, None]
        with pytest.raises(ValueError, match="row 2 asks what batch 2 asks already"):
            drafted(store.batches, 2, 2)
    with opened(directory) as store:
        assert [store.batches.out(f"content {row}") for row in (1, 2, 3)] == [1, 1, None]
        to_asked(store.batches, 1)
        store.batches.results_path(1).write_bytes(b"results")
        store.batches.note(1, "fetched")
        assert take(store.batches, 1).ok == 2
        assert [store.batches.out(f"content {row}") for row in (1, 2, 3)] == [None, None, None]
        assert [find(store, row) for row in (1, 2, 3)] == ["answer 1", "answer 2", None]


def test_nothing_is_left_of_a_draft_that_was_not_cut(directory: Path) -> None:
    with killed(directory) as store:
        drafted(store.batches, 1)
        drafted(store.batches, 2).discard()
        assert [store.batches.out(f"content {row}") for row in (1, 2)] == [1, None]
    with opened(directory) as store:
        assert store.batches.out("content 1") is None and not store.batches.all()
        assert list((directory / "batches").iterdir()) == []
        with pytest.raises(ValueError, match="has lines"):
            store.batches.draft(TARGET).cut()


def test_several_drafts_are_batches_of_their_own(directory: Path) -> None:
    with opened(directory) as store:
        one, other = drafted(store.batches, 1), drafted(store.batches, 2)
        assert other.cut().number == 2 and one.cut().number == 1
        assert [store.batches.out(f"content {row}") for row in (1, 2)] == [1, 2]
        assert drafted(store.batches, 3).number == 3


def test_files_that_hold_prompts_are_the_users_alone_and_go(directory: Path) -> None:
    with killed(directory) as store:
        draft = drafted(store.batches, 1)
        (hidden,) = (directory / "batches").glob(".*")
        assert stat.S_IMODE(hidden.stat().st_mode) == 0o600
        draft.cut()
        assert stat.S_IMODE(store.batches.requests_path(1).stat().st_mode) == 0o600
        assert stat.S_IMODE((directory / "batches").stat().st_mode) == 0o700
        number = fetched(store.batches, 2)
        take(store.batches, number)
        store.batches.note(1, "given_up")
        assert list((directory / "batches").iterdir()) == []


def test_results_of_which_some_were_not_believed_are_kept(directory: Path) -> None:
    with opened(directory) as store:
        number = fetched(store.batches, 1, 2)
        state = store.batches.take(number, list(calls(store.batches, number))[:1], refused=1)
        assert (state.ok, state.refused, state.usd) == (1, 1, CENT)
    with opened(directory) as store:
        assert store.batches.results_path(number).read_bytes() == b"results"
        assert not store.batches.requests_path(number).exists()


def test_a_run_with_batches_is_left_alone_by_older_versions(directory: Path) -> None:
    def layout() -> int:
        known = read_manifest(directory / "manifest.json")
        assert known
        return known.version

    with opened(directory) as store:
        answer(store, 0)
    assert layout() == 2 and not (directory / "batches").exists() and is_out(directory) == []
    with opened(directory) as store:
        drafted(store.batches, 1)
        assert layout() == 3
    with opened(directory):
        assert layout() == 3
    (directory / "batches.jsonl").unlink()
    with pytest.raises(RunStateError, match=r"batches\.jsonl is missing"):
        RunStore(directory, parse_stored).open(manifest())
    with pytest.raises(RunStateError, match=r"batches\.jsonl is missing"):
        is_out(directory)


def test_the_same_lines_go_again_under_another_name(directory: Path) -> None:
    with opened(directory) as store:
        first = to_asked(store.batches, cut(store.batches, 1).number)
        second = store.batches.again(1)
        assert (second.attempt, second.stage, second.name, second.asked_at) == (2, "cut", "", None)
        assert second.file == first.file[:-1] + "2" and (second.sha256, second.cut_at) == (first.sha256, first.cut_at)
        assert store.batches.out("content 1") == 1 and store.batches.requests_path(1).exists()


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ((), "asked"),
        ((), "fetched"),
        (("upload", "uploaded"), "asked"),
        (("upload", "uploaded", "asking"), "asking"),
        (("upload", "uploaded", "asking", "asked"), "uploaded"),
        (("given_up",), "upload"),
        (("given_up",), "cancelling"),
        (("given_up", "cleared"), "given_up"),
        ((), "taken"),
    ],
)
def test_an_order_that_cannot_be_is_refused_and_not_written(
    directory: Path, before: tuple[Stage, ...], event: Stage
) -> None:
    with opened(directory) as store:
        cut(store.batches, 1)
        for stage in before:
            store.batches.note(1, stage)
        known = store.batches.of(1)
        with pytest.raises(ValueError, match=event):
            store.batches.note(1, event)
        assert store.batches.of(1) == known
    with opened(directory) as store:
        assert store.batches.of(1) == known


def test_what_is_told_of_a_batch_is_kept_with_its_times(directory: Path) -> None:
    with opened(directory) as store:
        cut(store.batches, 1)
        store.batches.note(1, "upload", at=AT)
        store.batches.note(1, "uploaded", remote_file="files/1")
        store.batches.note(1, "asking", at=AT + 1)
        store.batches.note(1, "asked", at=AT + 2, name="batches/1")
        store.batches.note(1, "state", status="running")
        known = store.batches.note(1, "cancelling", ended_at=AT + 3)
        with pytest.raises(ValueError, match="says nothing of colour"):
            store.batches.note(1, "state", colour="red")
    assert (known.asking_at, known.asked_at, known.ended_at, known.cancelling) == (AT + 1, AT + 2, AT + 3, True)
    assert (known.name, known.remote_file, known.status, known.stage) == ("batches/1", "files/1", "running", "asked")
    assert is_out(directory) == [known]


def test_rows_do_not_wait_for_a_batch_that_was_released_and_it_stays_open(directory: Path) -> None:
    with killed(directory) as store:
        number = fetched(store.batches, 1)
        store.batches.note(number, "released")
        assert store.batches.out("content 1") is None
    with opened(directory) as store:
        assert store.batches.out("content 1") is None and is_out(directory) == store.batches.open() != []
        state = store.batches.take(number, list(calls(store.batches, number, late=True)))
        assert (state.ok, state.late, state.usd) == (0, 1, CENT)


def test_another_runs_events_are_not_taken_for_ours(directory: Path, tmp_path: Path) -> None:
    with opened(directory) as store:
        cut(store.batches, 1)
    other = tmp_path / "runs" / "other"
    with opened(other):
        pass
    (other / "batches.jsonl").write_bytes((directory / "batches.jsonl").read_bytes())
    with pytest.raises(RunStateError, match=r"line 1 of .*batches\.jsonl is damaged, or belongs to another run"):
        RunStore(other, parse_stored).open(manifest())


def test_an_event_that_was_changed_stops_the_start(directory: Path) -> None:
    with opened(directory) as store:
        to_asked(store.batches, cut(store.batches, 1).number)
    path = directory / "batches.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"upload"', b'"uploae"'))
    with pytest.raises(RunStateError, match=r"line 3 of .*batches\.jsonl is damaged"):
        RunStore(directory, parse_stored).open(manifest())


def test_a_disk_that_takes_half_a_line_is_asked_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(directory) as store:
        cut(store.batches, 1)
        write = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, content: write(fd, content[: max(1, len(content) // 2)]))
            known = store.batches.note(1, "upload")
    with opened(directory) as store:
        assert store.batches.of(1) == known


def test_a_full_disk_is_told_and_nothing_half_written_stays(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(directory) as store:
        cut(store.batches, 1)
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(RunStateError, match=r"cannot write .*No space left"):
                store.batches.note(1, "upload")
            with pytest.raises(RunStateError, match=r"cannot write .*No space left"):
                drafted(store.batches, 2).cut()
        assert store.batches.of(1).stage == "cut"
        store.batches.note(1, "upload")
    with opened(directory) as store:
        assert [state.number for state in store.batches.all()] == [1]


# ---- a crash anywhere


def history(store: RunStore) -> None:
    """One batch taken, one out, one given up."""
    take(store.batches, fetched(store.batches, 0, 1))
    to_asked(store.batches, cut(store.batches, 2).number)
    cut(store.batches, 3)
    store.batches.note(3, "given_up")
    store.batches.note(3, "cleared")


def test_events_that_were_cut_off_are_refused_and_one_that_a_crash_tore_is_none(directory: Path) -> None:
    with opened(directory) as store:
        history(store)
    path = directory / "batches.jsonl"
    whole, states = path.read_bytes(), batch_states.read(directory)
    for size in (at + 1 for at, byte in enumerate(whole[:-1]) if byte == 10):
        path.write_bytes(whole[:size])
        with pytest.raises(RunStateError, match="was cut off"):
            batch_states.read(directory)
        with pytest.raises(RunStateError, match=r"was cut off"), opened(directory):
            pass
    path.write_bytes(whole + b'{"batch":4')
    assert batch_states.read(directory) == states
    path.write_bytes(whole[: len(whole) // 2])
    (directory / "batches.synced").write_bytes(b"\0" * 20)  # a power cut may leave that
    assert batch_states.read(directory) != states


def test_cut_at_any_byte_the_events_are_those_up_to_there(directory: Path) -> None:
    with opened(directory) as store:
        history(store)
    (directory / "batches.synced").unlink()
    path = directory / "batches.jsonl"
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    states = []
    for end in ends:
        path.write_bytes(whole[:end])
        states.append(batch_states.read(directory))
    assert len(states) == len(ends) and states[-1][3].stage == "cleared"
    for size in range(ends[0], len(whole) + 1):
        path.write_bytes(whole[:size])
        assert batch_states.read(directory) == states[sum(end <= size for end in ends) - 1]
    for size in range(ends[0]):
        path.write_bytes(whole[:size])
        with pytest.raises(RunStateError, match="is empty"):
            batch_states.read(directory)


def test_events_that_were_changed_anywhere_are_refused_or_are_those_before(directory: Path) -> None:
    with opened(directory) as store:
        take(store.batches, fetched(store.batches, 0, 1))
        to_asked(store.batches, cut(store.batches, 2).number)
    (directory / "batches.synced").unlink()
    path = directory / "batches.jsonl"
    whole = path.read_bytes()
    known = []
    for end in (at + 1 for at, byte in enumerate(whole) if byte == 10):
        path.write_bytes(whole[:end])
        known.append(batch_states.read(directory))

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 10**6), st.integers(0, 12), st.binary(max_size=12))
    def change(at: int, gone: int, put: bytes) -> None:
        at %= len(whole)
        path.write_bytes(whole[:at] + put + whole[at + gone :])
        with suppress(RunStateError):
            assert batch_states.read(directory) in known

    change()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_no_history_of_events_and_torn_lines_is_read_another_way(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("batches") / "notes"
    with opened(directory):
        pass
    known: dict[int, BatchState] = {}
    for _ in range(data.draw(st.integers(1, 4))):
        with killed(directory) as store:
            assert {state.number: state for state in store.batches.all()} == known
            for _ in range(data.draw(st.integers(0, 8))):
                number = data.draw(st.integers(1, 3))
                event = data.draw(st.sampled_from(sorted({*batch_states.ASIDES, *batch_states.AFTER})))
                with suppress(ValueError, KeyError, RunStateError):
                    if number not in known:
                        known[number] = cut(store.batches, number) if number == len(known) + 1 else known[number]
                    elif event == "cut":
                        known[number] = store.batches.again(number)
                    elif event == "taken":
                        known[number] = take(store.batches, number)
                    else:
                        if event == "fetched":
                            store.batches.results_path(number).write_bytes(b"results")
                        known[number] = store.batches.note(number, event)
        if (directory / "batches.jsonl").exists():
            with (directory / "batches.jsonl").open("ab") as file:
                file.write(b'{"batch":1,"event":"upl'[: data.draw(st.integers(0, 22))])
    waiting = {number for number, state in known.items() if state.is_waited_for}
    with opened(directory) as store:
        assert {number for number in known if store.batches.out(f"content {number}")} == waiting
        taken = {number for number, state in known.items() if state.is_taken}
        assert {number for number in known if find(store, number)} == taken
        assert store.cost_usd() == CENT * len(taken) == report.summarize(directory).cost_usd


def test_parts_of_a_batch_that_was_not_taken_are_void_and_taken_again(directory: Path) -> None:
    with killed(directory) as store:
        number = fetched(store.batches, 1, 2)
        list(batched.write(calls(store.batches, number), directory, number, store.identity))
        assert report.summarize(directory).cost_usd == 0
    for _ in range(2):
        with killed(directory) as store:
            assert store.cost_usd() == 0 and store.batches.out("content 1") == number
            assert not list((directory / "batched").iterdir())
    with opened(directory) as store:
        take(store.batches, number)
        assert store.cost_usd() == 2 * CENT == report.summarize(directory).cost_usd
    assert report.verify(directory) == 1


CUT = (
    "fsync batches/.000001.requests.jsonl.tmp",
    "touch batches/.000001.keys.parquet.tmp",
    "fsync batches/.000001.keys.parquet.tmp",
    "replace batches/.000001.keys.parquet.tmp",
    "fsync batches",
    "replace batches/.000001.requests.jsonl.tmp",
    "fsync batches",
    "open batches.jsonl",
    "write batches.jsonl",
    "fsync batches.jsonl",
)


def test_a_batch_is_cut_in_these_steps(directory: Path) -> None:
    with opened(directory) as store:
        draft = drafted(store.batches, 1, 2)
        with steps(directory) as taken:
            draft.cut()
    assert tuple(taken) == CUT


@pytest.mark.parametrize("step", range(len(CUT)), ids=CUT)
def test_a_crash_while_a_batch_is_cut_leaves_it_whole_or_not_at_all(directory: Path, step: int) -> None:
    with killed(directory) as store:
        draft = drafted(store.batches, 1, 2)
        with steps(directory, step) as taken, pytest.raises(Crash):
            draft.cut()
        assert taken == list(CUT[: step + 1])
    for _ in range(2):
        with killed(directory) as store:
            if states := store.batches.open():
                content = store.batches.requests_path(1).read_bytes()
                assert hashlib.sha256(content).hexdigest() == states[0].sha256 and content == line(1) + line(2)
                assert [store.batches.out(f"content {row}") for row in (1, 2)] == [1, 1]
                assert step == len(CUT) - 1, "the event was written whole"
            else:
                assert not list((directory / "batches").iterdir()) and store.batches.out("content 1") is None
    with opened(directory) as store:
        assert cut(store.batches, 7).number == 1 + (step == len(CUT) - 1)


BEGUN = (
    "open batches.jsonl",
    "write batches.jsonl",
    "fsync batches.jsonl",
    "fsync .",
    "touch .manifest.json.tmp",
    "fsync .manifest.json.tmp",
    "replace .manifest.json.tmp",
    "fsync .",
)


@pytest.mark.parametrize("step", range(len(BEGUN)), ids=BEGUN)
def test_a_crash_before_the_first_batch_leaves_a_run_that_begins_it(directory: Path, step: int) -> None:
    with killed(directory) as store:
        answer(store, 0)
        with steps(directory, step) as taken, pytest.raises(Crash):
            store.batches.draft(TARGET)
        assert taken == list(BEGUN[: step + 1])
    with opened(directory) as store:
        assert store.batches.all() == [] and store.cost_usd() == CENT
        cut(store.batches, 1)
    assert len(is_out(directory)) == 1


TAKE = (
    "touch batched/.part-000001-00.parquet.tmp",
    "fsync batched/.part-000001-00.parquet.tmp",
    "replace batched/.part-000001-00.parquet.tmp",
    "fsync batched",
    "touch batched/.part-000001-01.parquet.tmp",
    "fsync batched/.part-000001-01.parquet.tmp",
    "replace batched/.part-000001-01.parquet.tmp",
    "fsync batched",
    "open batches.jsonl",
    "write batches.jsonl",
    "fsync batches.jsonl",
    "open parts.jsonl",
    "write parts.jsonl",
    "fsync parts.jsonl",
    "unlink batches/000001.requests.jsonl",
    "unlink batches/000001.keys.parquet",
    "unlink batches/000001.results.jsonl",
)


def test_a_batch_is_taken_in_these_steps(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "PART_CALLS", 2)
    with opened(directory) as store:
        number = fetched(store.batches, 1, 2, 3)
        kept = list(calls(store.batches, number))
        with steps(directory) as taken:
            store.batches.take(number, kept)
    assert tuple(taken) == TAKE


@pytest.mark.parametrize("step", range(len(TAKE)), ids=TAKE)
def test_a_crash_while_a_batch_is_taken_loses_nothing_and_doubles_nothing(
    directory: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "PART_CALLS", 2)
    with killed(directory) as store:
        number = fetched(store.batches, 1, 2, 3)
        kept = list(calls(store.batches, number))
        with steps(directory, step) as taken, pytest.raises(Crash):
            store.batches.take(number, kept)
        assert taken == list(TAKE[: step + 1])
    is_taken = step > TAKE.index("write batches.jsonl")
    for _ in range(2):
        assert report.summarize(directory).cost_usd == is_taken * 3 * CENT
        with killed(directory) as store:
            assert store.batches.of(number).is_taken == is_taken and store.spent_usd() == is_taken * 3 * CENT
            assert [store.batches.out(f"content {row}") for row in (1, 3)] == [None if is_taken else number] * 2
            assert store.batches.results_path(number).exists() != is_taken
    with opened(directory) as store:
        if not is_taken:
            take(store.batches, number)
        assert [find(store, row) for row in (1, 2, 3)] == ["answer 1", "answer 2", "answer 3"]
        assert not list((directory / "batches").iterdir())
    assert report.summarize(directory).cost_usd == 3 * CENT and report.verify(directory) == 2
    assert not list(directory.glob("*/.*"))
