"""What fell back from batches, by cause: kept on the disk, each prompt once, whatever was killed."""

from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from asking import MODEL
from batch_stores import cut
from desks import HOUR, NOON, OPENAI, TARGET, Night, without_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import opened, paid, prompt

from pipeline.batch.desk import BatchDesk
from pipeline.console.reports import show_summary
from pipeline.errors import RunStateError
from pipeline.report import summarize
from pipeline.store import fallen
from pipeline.store.batch_lines import Key
from pipeline.store.fallen import FROM_BATCH, FromBatch
from pipeline.targets import Target

ROWS = 10


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "notes"


def counts(directory: Path) -> dict[str, int]:
    return fallen.read(directory / "batches").causes


# ---- the file

NAMES = [f"{number:064x}" for number in (1 << 240, 2 << 240, 7 << 230, (1 << 256) - 1)]
CAUSES: list[FromBatch] = list(FROM_BATCH)


@given(
    st.lists(st.tuples(st.sets(st.sampled_from(NAMES)), st.sampled_from([*CAUSES, None]), st.booleans()), max_size=8)
)
@settings(max_examples=50, deadline=None)
def test_each_prompt_counts_once_by_its_newest_cause_unless_a_batch_answered_it(
    tmp_path_factory: pytest.TempPathFactory, notes: list[tuple[set[str], FromBatch | None, bool]]
) -> None:
    folder, newest = tmp_path_factory.mktemp("batches"), dict[str, tuple[FromBatch, bool]]()
    for names, cause, again in notes:
        if cause is None:
            fallen.forget(folder, names)
            newest = {name: why for name, why in newest.items() if name not in names}
        else:
            fallen.note(folder, names, cause, again=again)
            newest.update(dict.fromkeys(names, (cause, again)))
    found = fallen.read(folder)
    assert found.causes == Counter(cause for cause, again in newest.values() if not again)
    assert found.perhaps == {name[: fallen.DIGITS]: cause for name, (cause, again) in newest.items() if again}


def test_a_note_that_a_kill_cut_short_is_none_and_the_next_ones_are_read(tmp_path: Path) -> None:
    fallen.note(tmp_path, NAMES[:2], "expired")
    with (tmp_path / fallen.NAME).open("ab") as file:
        file.write(array("Q", [int(NAMES[2][:16], 16) + 1]).tobytes()[:5])
    assert fallen.read(tmp_path).causes == {"expired": 2}
    fallen.note(tmp_path, NAMES[3:], "missing")
    assert fallen.read(tmp_path).causes == {"expired": 2, "missing": 1}


def test_where_it_cannot_be_written_or_read_that_is_told(tmp_path: Path) -> None:
    (tmp_path / fallen.NAME).mkdir()
    for attempt in (lambda: fallen.note(tmp_path, NAMES, "missing"), lambda: fallen.read(tmp_path).causes):
        with pytest.raises(RunStateError, match=fallen.NAME):
            attempt()


# ---- what a night notes


@pytest.mark.parametrize(
    ("faults", "flags", "session", "cause"),
    [
        ("line_error=13", {}, {}, "line_failed"),
        ("line_missing", {}, {}, "missing"),
        ("line_differs", {}, {}, "not_believed"),
        ("batch_failed", {}, {}, "failed"),
        ("count_short", {}, {}, "failed"),
        ("", {"batch_pending_s": 9 * HOUR}, {"last_call_s": HOUR}, "called_in"),
        ("cancel_ignored", {"batch_pending_s": 2 * HOUR}, {"last_call_s": HOUR}, "called_in"),
        ("create_429", {}, {"last_call_s": 2 * HOUR}, "not_sent"),
        ("", {"batch_pending_s": 9 * HOUR}, {"cancel_after_s": 300}, "called_in"),
        ("", {"target": OPENAI, "batch_run_s": 9 * HOUR}, {"last_call_s": HOUR}, "called_in"),
    ],
)
def test_each_prompt_that_a_batch_did_not_answer_is_noted_with_its_cause(
    directory: Path, faults: str, flags: dict[str, Any], session: dict[str, Any], cause: str
) -> None:
    night = Night(directory, faults, **flags)
    seen = night.session(ROWS, **session)
    if seen.stopped:  # the first batch of a run is not to be believed
        assert counts(directory) == {cause: ROWS}
        seen = night.session(ROWS)
    assert len(seen.answered) == ROWS and seen.live
    assert counts(directory) == {cause: len(set(seen.live))}


def test_what_goes_into_one_more_batch_and_is_answered_there_did_not_fall_back(directory: Path) -> None:
    night = Night(directory, "line_error=13:0.5", seed=3)
    seen = night.session(30)
    first, second = night.states()
    assert first.failed > second.failed == len(seen.live) > 0
    assert counts(directory) == {"line_failed": len(seen.live)}


def test_what_may_go_into_another_batch_is_noted_as_that_until_it_is_there_or_asked_live(directory: Path) -> None:
    night = Night(directory, "line_error=13*3")
    night.session(ROWS, until=lambda desk: bool(desk.standing.answered))
    found = fallen.read(directory / "batches")
    assert not found.causes and list(found.perhaps.values()) == ["line_failed"] * 3
    seen = night.session(ROWS)
    assert not seen.live and fallen.read(directory / "batches") == ({}, {})


@pytest.mark.parametrize("target", [TARGET, OPENAI])
def test_what_expired_twice_is_told_as_that(directory: Path, target: Target) -> None:
    night = Night(directory, "batch_expired", target=target)
    live: list[int] = []
    for _ in range(5):
        live += night.session(ROWS, leave=True).live
        night.now += 49 * HOUR
    assert live and counts(directory) == {"expired": len(live)}  # half of it was done, and OpenAI hands that out


def test_what_was_not_cut_by_its_last_call_was_not_sent(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchDesk, "flush", lambda desk: None)
    night = Night(directory)
    seen = night.session(ROWS, last_call_s=30)
    assert sorted(seen.live) == list(range(ROWS)) and not night.states()
    assert counts(directory) == {"not_sent": ROWS}


def test_a_batch_that_is_not_found_until_its_last_call_is_told_as_that(directory: Path) -> None:
    night = Night(directory)
    night.session(ROWS, leave=True)
    night.forget_all()
    seen = night.session(ROWS, last_call_s=HOUR)
    assert len(seen.live) == ROWS and counts(directory) == {"not_found": ROWS}


def test_a_late_answer_that_is_used_after_all_did_not_fall_back(directory: Path) -> None:
    night = Night(directory, "cancel_ignored", batch_pending_s=2 * HOUR)
    night.session(ROWS, last_call_s=HOUR, until=lambda desk: night.wall() > NOON + HOUR + 60)
    killed = night.session(ROWS, last_call_s=0, kill_event=2)  # right before `released`, what fell back is noted
    assert killed.killed and not killed.live and counts(directory) == {"called_in": ROWS}
    night.now += 3 * HOUR
    seen = night.session(ROWS)
    assert len(seen.answered) == ROWS and not seen.live and counts(directory) == {}


@pytest.mark.parametrize(
    ("faults", "which"),
    [
        ("line_error=13:0.4", ("taken",)),
        pytest.param("line_error=13:0.4", None, marks=pytest.mark.long),
        pytest.param("batch_failed", None, marks=pytest.mark.long),
        pytest.param("line_missing", None, marks=pytest.mark.long),
    ],
)
def test_a_kill_at_any_event_counts_each_prompt_once(directory: Path, faults: str, which: Sequence[str] | None) -> None:
    def night_of(name: str) -> Night:
        return Night(directory.with_name(name), faults, batch_pending_s=20, batch_run_s=20, seed=2)

    whole = night_of("whole")
    whole.session(6)
    log = (whole.directory / "batches.jsonl").read_text().splitlines()[1:]
    events = [at for at, line in enumerate(log, 1) if which is None or any(f'"{each}"' in line for each in which)]
    assert len(events) > 1
    for moment in (at for event in events for at in (2 * event, 2 * event + 1)):  # right before it, and right after
        night = night_of(f"{moment}")
        first = night.session(6, kill_event=moment)
        noted = counts(night.directory)
        night.now += 7
        second = night.session(6)
        live = {*first.live, *second.live}
        assert first.killed and len(second.answered) == 6
        assert sum(counts(night.directory).values()) == len(live) >= sum(noted.values()), moment


# ---- what the report says of it


def test_the_report_says_what_fell_back_from_each_lane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "runs" / "notes"
    with opened(directory) as store:
        keys = [Key.of(prompt(row, NAMES[row]), MODEL) for row in range(4)]
        cut(store.batches, 0)
        store.batches.fell_back(keys[1:], "called_in")
        store.batches.fell_back(keys[1:2], "missing")
        store.batches.fell_back(keys[2:], "line_failed", again=True)
        store.append_call(prompt(3, NAMES[3]), MODEL, paid())
        store.append_call(prompt(7), MODEL, paid(fell_back="last_call"))
        store.append_call(prompt(8), MODEL, paid(lane="flex"))
    summary = summarize(directory)
    lanes: Any = summary.as_json()["lanes"]
    assert {lane: (told["calls"], told["fell_back"]) for lane, told in lanes.items()} == {
        "batch": (0, {"line_failed": 1, "missing": 1}),  # what may go into another batch and was not answered is none
        "flex": (1, {"last_call": 1}),
        "standard": (2, {}),
    }
    show_summary(summary)
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    at = shown.index("fell back 2 of batch line failed 1 + missing 1")
    assert shown[at - 1 : at + 2 : 2] == ["lanes flex 1 + standard 2", "1 of flex last call 1"]
