"""A run's batches in virtual time, before an emulator: every row once, whatever happens on the way."""

import stat
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from desks import HOUR, KEY, MODEL, NOON, OPENAI, TARGET, Night, prompt_of, without_threads

from pipeline.batch import common, room, submitting
from pipeline.batch.desk import BatchDesk
from pipeline.budget.caps import Spending
from pipeline.emulator.batch_faults import BATCH_KINDS
from pipeline.errors import AuthError, RunStateError, ServiceError
from pipeline.models import Model
from pipeline.store import batched
from pipeline.store.parts import read_part
from pipeline.targets import Target


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "notes"


def polls(asked: list[tuple[str, str]]) -> int:
    return sum(method == "GET" and path.startswith("/v1beta/batches") for method, path in asked)


def creates(asked: list[tuple[str, str]]) -> int:
    return sum("batchGenerateContent" in path for _, path in asked)


def test_what_is_added_is_answered_by_one_batch_and_billed_once(directory: Path) -> None:
    night = Night(directory)
    seen = night.session(30)
    assert sorted(seen.answered) == list(range(30)) and not seen.live
    assert all(text.startswith(f"Row {row}:") for row, text in seen.answered.items())
    assert set(night.lines.values()) == {1} and len(night.lines) == 30
    (state,) = night.states()
    assert (state.stage, state.ok, state.lines, state.status) == ("cleared", 30, 30, "succeeded")
    assert 1800 <= seen.seconds < 1800 + 300
    assert seen.told == ["batch 1 succeeded: 30 answered"]
    assert {reply.lane for reply in seen.bought} == {"batch"} and {reply.latency_s for reply in seen.bought} == {0.0}
    assert state.ended_at and {reply.finished_at for reply in seen.bought} == {state.ended_at}


def test_an_answer_costs_half_of_what_it_costs_live(directory: Path) -> None:
    seen = Night(directory).session(3)
    for reply in seen.bought:
        assert reply.cost_usd and reply.standard_usd == 2 * reply.cost_usd


def test_a_batch_is_cut_when_it_is_full(directory: Path) -> None:
    night = Night(directory)
    tokens = sum(prompt_of(row).input_tokens_est for row in range(40))
    seen = night.session(40, batch_tokens={TARGET.quota: tokens})
    states = night.states()
    assert len(seen.answered) == 40 and 4 <= len(states) <= 6
    assert all(state.input_tokens_est <= tokens / 4 for state in states)


def test_rows_with_the_same_content_are_asked_once(directory: Path) -> None:
    night = Night(directory)
    seen = night.session([prompt_of(0), prompt_of(1), prompt_of(0).known_as("f0" * 16, "other")])
    assert len(seen.answered) == 2 and sum(night.lines.values()) == 2


def test_a_prompt_whose_answer_came_since_it_was_looked_for_is_not_asked_again(directory: Path) -> None:
    night, waits = Night(directory), []

    def look(desk: BatchDesk) -> bool:
        number = desk.waits(prompt_of(0), TARGET.model)
        waits.append((number, number is not None and desk.is_open(number)))
        return False

    night.session(30, until=look)
    assert waits[-1] == (1, False) and (1, True) in waits


# ---- killed, at any moment


def check_once(night: Night, rows: int, *, told: object = None) -> None:
    night.now += 7
    seen = night.session(rows)
    assert sorted(seen.answered) == list(range(rows)), (told, seen.told)
    assert set(night.lines.values()) == {1} and len(night.lines) == rows, (told, seen.told)


BRIEF: dict[str, Any] = {"batch_pending_s": 20, "batch_run_s": 20}
LOST = ("", "create_cut*1", "create_late=40*1", "create_late=90*1", "create_cut*1,list_lag=30", "upload_lost*1")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "faults", [pytest.param(each, marks=() if "late=40" in each else pytest.mark.long) for each in LOST]
)
def test_a_kill_at_any_request_buys_nothing_twice_and_loses_no_row(directory: Path, faults: str, after: bool) -> None:
    moments = 0
    for moment in range(1, 60):
        night = Night(directory.with_name(f"{moment}"), faults, **BRIEF)
        first = night.session(3, kill=(moment, after))
        check_once(night, 3, told=(moment, first.asked))
        if not first.killed:
            break
        moments += 1
    assert moments > 8


def test_a_kill_at_any_event_buys_nothing_twice_and_loses_no_row(directory: Path) -> None:
    moments = 0
    for moment in range(2, 40):
        night = Night(directory.with_name(f"{moment}"), **BRIEF)
        first = night.session(3, kill_event=moment)
        check_once(night, 3, told=moment)
        if not first.killed:
            break
        moments += 1
    assert moments > 12


@pytest.mark.long
@pytest.mark.parametrize("faults", ["create_cut*1,list_lag=50", "create_late=59*1", "create_late=130*2"])
@pytest.mark.parametrize("event", range(4, 16))
def test_three_kills_one_after_another_buy_nothing_twice(directory: Path, faults: str, event: int) -> None:
    for request in range(1, 16):
        night = Night(directory.with_name(f"{request}"), faults, **BRIEF)
        night.session(3, kill_event=event)
        night.session(3, kill=(request, True))
        night.session(3, kill=(request + 1, False))
        check_once(night, 3, told=(request, event))


def test_a_create_that_arrives_after_its_file_was_deleted_makes_nothing_that_is_billed(directory: Path) -> None:
    night = Night(directory, "create_late=300*1", **BRIEF)
    seen = night.session(5, until=lambda desk: bool(night.emulator.stats.batches["created"]))
    night.now += 600
    check_once(night, 5)
    assert creates(seen.asked) == 2
    assert [state.attempt for state in night.states()] == [2]


def test_a_second_batch_of_ours_is_cancelled_and_told(directory: Path) -> None:
    night = Night(directory)
    first = night.session(4, leave=True)
    assert creates(first.asked) == 1 and night.states()[0].stage == "asked"
    label = night.states()[0].file
    night.twin(label)
    seen = night.session(4)
    assert any("a second one of ours" in each for each in seen.told)
    assert set(night.lines.values()) == {1} and len(night.lines) == 4


# ---- every fault


ROWS = 40
SPOILED = {"line_differs:0.2", "line_stranger:0.2", "line_swapped:0.2"}
"""So much of the first batch is wrong that the run stops."""


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    with pytest.MonkeyPatch.context() as patched:
        without_threads(patched)
        return Night(tmp_path_factory.mktemp("truth") / "runs" / "n").session(ROWS).answered


@pytest.mark.parametrize("kind", BATCH_KINDS)
@pytest.mark.parametrize("rate", ["*1", ":0.2"])
def test_whatever_fails_each_row_has_its_own_answer(
    directory: Path, truth: dict[int, str], kind: str, rate: str
) -> None:
    night = Night(directory, f"{kind}{rate}")
    seen = night.session(ROWS, last_call_s=6 * HOUR)
    if f"{kind}{rate}" in SPOILED:
        assert isinstance(seen.stopped, ServiceError) and not seen.answered
        assert "not the answers to what it asked" in str(seen.stopped)
        seen = night.session(ROWS, last_call_s=6 * HOUR)
        assert sorted(seen.live) == list(range(ROWS))
    assert seen.stopped is None and seen.answered == truth
    assert seen.seconds < 6 * HOUR + 300
    assert not any(state.is_open for state in night.states())


@pytest.mark.long
@pytest.mark.parametrize("kind", BATCH_KINDS)
def test_whatever_fails_two_by_two_each_row_has_its_own_answer(
    directory: Path, truth: dict[int, str], kind: str
) -> None:
    for other in BATCH_KINDS:
        night = Night(directory.with_name(other), f"{kind}:0.3,{other}*2")
        for _ in range(4):
            seen = night.session(ROWS, last_call_s=6 * HOUR)
            assert {row: truth[row] for row in seen.answered} == seen.answered, other
            if seen.stopped is None:
                break
        assert len(seen.answered) == ROWS, other


@pytest.mark.parametrize("seed", range(3))
def test_scrambled_answers_are_refused(directory: Path, truth: dict[int, str], seed: int) -> None:
    night = Night(directory, "line_swapped:0.4", seed=seed)
    seen = night.session(ROWS)
    assert seen.stopped is not None and not seen.answered
    state = night.states()[0]
    assert state.refused == ROWS and state.usd, "they are paid for"
    results = directory / "batches" / f"{state.number:06d}.results.jsonl"
    assert results.exists() and stat.S_IMODE(results.stat().st_mode) == 0o600


def test_lines_that_fail_go_into_one_more_batch_and_then_are_asked_at_once(directory: Path) -> None:
    night = Night(directory, "line_error=13:0.5", seed=3)
    seen = night.session(ROWS)
    assert len(seen.answered) == ROWS and seen.live and set(seen.live) == seen.at_once
    first, second = night.states()
    assert (second.lines, second.failed) == (first.failed, len(seen.live))


def test_what_was_tried_twice_is_not_tried_again_by_the_next_session(directory: Path) -> None:
    night = Night(directory, "line_error=13", seed=3)
    night.session(4, leave=True)
    for _ in range(2):
        night.now += HOUR
        left = night.session(4, leave=True)
    night.now += HOUR
    assert left.live == [] or sorted(left.live) == [0, 1, 2, 3]
    assert len(night.states()) == 2
    assert len(night.session(4).answered) == 4


def test_what_the_service_refuses_for_good_is_not_asked_again(directory: Path) -> None:
    night = Night(directory, "line_error=3*1")
    seen = night.session(4)
    assert not seen.live and len(night.states()) == 1 and night.states()[0].failed == 1
    assert sorted(seen.answered.values())[0] == "", "its outcome is found, and it is no answer"


def test_too_much_enqueued_is_waited_for(directory: Path) -> None:
    night = Night(directory, "create_429*2")
    seen = night.session(4)
    assert len(seen.answered) == 4 and not seen.live
    assert 1800 + 900 <= seen.seconds < 1800 + 1300
    assert [each for each in seen.told if "too much is enqueued" in each] == [
        "batch 1: too much is enqueued, it is asked again in 5 min",
        "batch 1: too much is enqueued, it is asked again in 10 min",
    ]


def test_a_batch_that_is_refused_alone_again_and_again_is_cut_into_smaller_ones(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (submitting, room):
        monkeypatch.setattr(module, "LEAST_LINES", 2)
    tokens = sum(prompt_of(row).input_tokens_est for row in range(30))
    monkeypatch.setattr(common, "assumed", lambda name: Model(name, batch_tokens=4 * tokens))
    night = Night(directory, batch_tokens=tokens // 2)
    seen = night.session(30)
    assert len(seen.answered) == 30 and not seen.live and set(night.lines.values()) == {1}
    first, *others = night.states()
    assert first.stage in ("given_up", "cleared") and first.lines == 30 and not first.ok
    assert others and all(state.ok == state.lines < 30 for state in others)
    assert any("cut anew" in each for each in seen.told)


# ---- the end of a session


def test_who_leaves_goes_on_later_with_the_same_command(directory: Path) -> None:
    night = Night(directory)
    first = night.session(10, leave=True)
    assert first.seconds < 60 and not first.answered and [state.stage for state in night.states()] == ["asked"]
    again = night.session(10, leave=True)
    assert not again.answered and creates(again.asked) == 0
    night.now += HOUR
    seen = night.session(10, leave=True)
    assert len(seen.answered) == 10 and set(night.lines.values()) == {1}
    assert not list((directory / "batches").glob("*.jsonl")), "no prompt is left on the disk"


def test_what_is_with_the_service_has_its_prompts_in_files_that_only_the_owner_reads(directory: Path) -> None:
    night = Night(directory)
    night.session(10, leave=True)
    kept = [path for path in directory.rglob("*") if path.is_file()]
    with_prompts = [path for path in kept if b"word93" in path.read_bytes()]
    assert with_prompts == [directory / "batches" / "000001.requests.jsonl"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in with_prompts} == {0o600}
    assert not [path for path in kept if KEY.encode() in path.read_bytes() or b"upload_id" in path.read_bytes()]


def test_after_the_last_call_what_is_not_answered_is_asked_at_once(directory: Path) -> None:
    night = Night(directory, batch_pending_s=9 * HOUR)
    seen = night.session(10, last_call_s=2 * HOUR)
    assert sorted(seen.live) == list(range(10)) and len(seen.answered) == 10
    assert 2 * HOUR <= seen.seconds < 2 * HOUR + 130
    assert not night.lines and night.states()[0].status == "cancelled"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moment", [None, 1, 2, 3, 4, 5])
def test_a_cancelled_batch_that_ran_counts_at_its_most_whatever_is_killed(
    directory: Path, moment: int | None, after: bool
) -> None:
    """Nothing of it is handed out, and nobody tells what was billed."""
    night = Night(directory, "cancel_billed", batch_pending_s=600, batch_run_s=9 * HOUR)
    night.session(10, until=lambda desk: desk.standing.batches > 0 and night.wall() > NOON + HOUR)
    night.spending = cap("1")
    night.session(10, last_call_s=0, kill=None if moment is None else (moment, after))
    night.session(10, last_call_s=0)
    (state,) = night.states()
    assert (state.status, state.unbegun, state.missing) == ("cancelled", False, 10)
    assert 0 < _at_most_usd(directory) <= float(night.spending.spent_usd) + 1e-9


def test_a_batch_that_waited_still_when_it_was_cancelled_cost_nothing(directory: Path) -> None:
    night = Night(directory, batch_pending_s=9 * HOUR)
    night.session(10, last_call_s=2 * HOUR)
    assert night.states()[0].unbegun and not _at_most_usd(directory)


def test_a_batch_that_began_since_it_was_looked_at_last_counts_at_its_most(directory: Path) -> None:
    """It was seen waiting some minutes before."""
    night = Night(directory, "cancel_billed", batch_pending_s=2 * HOUR - 5, batch_run_s=9 * HOUR)
    night.session(10, last_call_s=2 * HOUR)
    assert not night.states()[0].unbegun and _at_most_usd(directory) > 0


def _at_most_usd(directory: Path) -> float:
    parts = [read_part(path, ("at_most_usd",)) for path in batched.part_paths(directory)]
    return float(sum(part["at_most_usd"].drop_nulls().sum() for part in parts))


def test_what_one_batch_was_called_in_with_is_asked_live_though_there_is_time_for_another(directory: Path) -> None:
    """It would be paid for twice."""
    night = Night(directory, batch_pending_s=9 * HOUR)
    seen = night.session(10, last_call_s=2 * HOUR, called=frozenset({1}))
    assert seen.at_once == set(range(10)) and night.states()[0].status == "cancelled"


def test_what_was_cancelled_and_goes_on_is_kept_as_late(directory: Path) -> None:
    night = Night(directory, "cancel_ignored", batch_pending_s=2 * HOUR)
    seen = night.session(10, last_call_s=HOUR)
    assert sorted(seen.live) == list(range(10)) and seen.seconds < HOUR + 150
    assert [(state.is_open, state.released) for state in night.states()] == [(True, True)]
    night.now += 3 * HOUR
    night.session(10, leave=True)
    (state,) = night.states()
    assert (state.stage, state.ok, state.late) == ("cleared", 0, 10) and state.usd


def test_a_batch_that_was_not_handed_in_by_the_last_call_is_given_up(directory: Path) -> None:
    night = Night(directory, "create_429")
    seen = night.session(10, last_call_s=2 * HOUR)
    assert len(seen.live) == 10 and seen.seconds < 2 * HOUR + 60
    assert [state.status for state in night.states()] == [""] and not night.states()[0].is_open


def test_all_batches_can_be_cancelled(directory: Path) -> None:
    night = Night(directory)
    seen = night.session(10, cancel_after_s=300)
    assert len(seen.live) == 10 and seen.seconds < 330 and night.states()[0].status == "cancelled"


# ---- other keys, and a service that does not tell


def test_a_batch_that_is_not_found_is_kept_and_told_once(directory: Path) -> None:
    night = Night(directory)
    night.session(4, leave=True)
    night.key = "AQ.another-key-of-another-project"
    seen = night.session(4, until=lambda desk: night.wall() > NOON + HOUR)
    assert [each for each in seen.told if "not found" in each] == [
        "batch 1 is not found at the service: is it the key of another project? It is kept, and looked for every 5 min"
    ]
    assert not seen.answered and not seen.live and [state.stage for state in night.states()] == ["asked"]
    night.key = KEY
    check_once(night, 4)


def test_a_batch_of_another_project_stops_the_run_before_anything_is_bought(directory: Path) -> None:
    night = Night(directory)
    night.session(4, leave=True)
    night.target = replace(TARGET, project="another")
    seen = night.session(4)
    assert isinstance(seen.stopped, RunStateError) and "of another project or key" in str(seen.stopped)
    assert not seen.live and creates(seen.asked) == 0
    night.target = TARGET
    check_once(night, 4)


def test_what_another_project_left_for_two_days_counts_at_its_most_and_is_asked_again(directory: Path) -> None:
    night = Night(directory)
    night.session(4, leave=True)
    night.target, night.now = replace(TARGET, project="another"), night.now + 48 * HOUR + 60.0
    seen = night.session(4, leave=True)
    assert seen.stopped is None and "was not collected in 48 hours" in " ".join(seen.told)
    given_up, other = night.states()
    assert (given_up.stage, given_up.ok, given_up.missing) == ("taken", 0, 4)
    assert 0 < _at_most_usd(directory) <= float(night.spending.spent_usd) + 1e-9
    assert (other.stage, other.lines, other.account) == ("asked", 4, night.target.account)
    seen = night.session(4)
    assert sorted(seen.answered) == [0, 1, 2, 3] and night.states()[0] == given_up


def test_a_batch_of_another_model_is_taken_beside_the_new_ones(directory: Path) -> None:
    night = Night(directory)
    night.session(4, leave=True)
    night.target = replace(TARGET, model="gemini-3.6-flash")
    night.now += HOUR
    night.session(0, leave=True)
    assert [(state.stage, state.ok, state.model) for state in night.states()] == [("cleared", 4, MODEL)]


def test_a_batch_of_a_target_that_has_another_name_now_is_taken(directory: Path) -> None:
    night = Night(directory)
    night.session(4, leave=True)
    night.target = replace(TARGET, name="renamed")
    check_once(night, 4)


def test_a_key_that_is_refused_ends_the_run_and_loses_nothing(directory: Path) -> None:
    night = Night(directory)
    night.session(4, leave=True)
    night.key = "invalid-key"
    seen = night.session(4)
    assert isinstance(seen.stopped, AuthError) and not seen.live
    night.key = KEY
    check_once(night, 4)


def test_polls_become_rarer_with_age_and_one_listing_serves_many(directory: Path) -> None:
    few = Night(directory.with_name("few"), batch_pending_s=23 * HOUR)
    assert polls(few.session(4).asked) < 400
    many = Night(directory.with_name("many"), batch_pending_s=23 * HOUR)
    tokens = sum(prompt_of(row).input_tokens_est for row in range(40))
    many.session(40, leave=True, batch_tokens={TARGET.quota: tokens // 3})
    seen = many.session(40, batch_tokens={TARGET.quota: 10**9})
    assert len(many.states()) > 10 and polls(seen.asked) < 1_000


def test_the_batches_of_a_rehearsal_are_asked_after_every_second(directory: Path) -> None:
    """Time passes faster there; those of a real run are asked after 15 s first."""
    rehearsed = Night(directory.with_name("rehearsed"), batch_pending_s=4, batch_run_s=4)
    assert 7 <= polls(rehearsed.session(4, is_rehearsal=True).asked) <= 11
    real = Night(directory.with_name("real"), batch_pending_s=4, batch_run_s=4)
    assert polls(real.session(4).asked) <= 2


# ---- money


def cap(usd: str) -> Spending:
    return Spending(Decimal(usd))


def test_a_batch_is_reserved_at_its_worst_and_settled_at_what_it_cost(directory: Path) -> None:
    night = Night(directory)
    night.spending = cap("1")
    night.session(10, leave=True)
    worst = night.states()[0].worst_usd
    assert worst and night.spending.reserved_usd == worst and night.spending.spent_usd == 0
    night.spending = cap("1")
    night.session(10, until=lambda desk: night.spending.reserved_usd == worst)
    assert night.spending.reserved_usd == worst, "over a restart too"
    night.now += HOUR
    night.spending = cap("1")
    seen = night.session(10)
    cost = sum(reply.cost_usd or 0 for reply in seen.bought)
    assert night.spending.reserved_usd == 0 and night.spending.spent_usd == cost == night.states()[0].usd
    assert 0 < cost < worst


def test_a_batch_is_cut_smaller_where_a_cap_leaves_less_room(directory: Path) -> None:
    free = Night(directory.with_name("free"))
    free.spending = cap("1")
    free.session(10, leave=True)
    worst = free.states()[0].worst_usd
    assert worst
    night = Night(directory)
    night.spending = cap(str(worst / 2))
    seen = night.session(10, leave=True)
    (state,) = night.states()
    assert 3 <= state.lines <= 6 and state.worst_usd and state.worst_usd <= worst / 2
    assert len(seen.live) == 10 - state.lines, "the others go on to where a cap is kept too"


def test_what_may_have_been_billed_and_was_not_handed_out_counts_against_a_cap(directory: Path) -> None:
    night = Night(directory, "line_missing*1")
    night.spending = cap("1")
    seen = night.session(10)
    paid = sum(reply.cost_usd or 0 for reply in seen.bought)
    assert night.spending.spent_usd > paid


# ---- OpenAI's protocol: no chosen names of files, no counts free of charge, and what was done is handed out


def test_a_batch_of_openais_protocol_lives_the_same_life(directory: Path) -> None:
    night = Night(directory, target=OPENAI)
    seen = night.session(10)
    assert len(seen.answered) == 10 and not seen.live and set(night.lines.values()) == {1}
    assert not any("countTokens" in path for _, path in seen.asked)


@pytest.mark.parametrize("faults", ["", pytest.param("create_cut*1,list_lag=40", marks=pytest.mark.long)])
@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_kill_in_openais_protocol_buys_nothing_twice(directory: Path, faults: str, after: bool) -> None:
    moments = 0
    for moment in range(1, 60):
        night = Night(directory.with_name(f"{moment}"), faults, target=OPENAI, **BRIEF)
        first = night.session(3, kill=(moment, after))
        check_once(night, 3, told=(moment, first.asked))
        if not first.killed:
            break
        moments += 1
    assert moments > 6


def test_what_a_cancelled_batch_had_answered_is_used(directory: Path) -> None:
    night = Night(directory, target=OPENAI, batch_pending_s=600, batch_run_s=1000)
    seen = night.session(20, last_call_s=1100)
    (state,) = night.states()
    assert 0 < state.ok < 20 and state.missing == 20 - state.ok and state.status == "cancelled"
    assert len(seen.answered) == 20 and len(seen.live) == state.missing
    parts = [read_part(path, ("at_most_usd",)) for path in batched.part_paths(directory)]
    assert parts and not sum(part["at_most_usd"].drop_nulls().sum() for part in parts), (
        "what it had done it has handed out"
    )


def test_a_batch_that_fails_for_what_is_enqueued_is_handed_in_again_and_is_no_try(directory: Path) -> None:
    night = Night(directory, target=OPENAI, batch_tokens=1)
    seen = night.session(3, last_call_s=3 * HOUR)
    held = [each for each in seen.told if "too much is enqueued" in each]
    assert 3 <= len(held) <= 11 and held[2].endswith("in 20 min") and held[-1].endswith("in 20 min")
    assert sorted(seen.live) == [0, 1, 2] and not night.states()[0].is_open


# ---- what is left at the service, and what is left of it here


def test_results_that_are_here_are_taken_though_the_service_has_forgotten_the_batch(directory: Path) -> None:
    night = Night(directory)
    night.session(5, leave=True)
    night.now += HOUR
    night.session(5, kill_event=5)  # between `fetched` and `taken`
    assert [state.stage for state in night.states()] == ["fetched"]
    night.forget_all()
    seen = night.session(5)
    assert len(seen.answered) == 5 and not seen.live


def test_results_that_are_gone_are_told_and_their_prompts_asked_again(directory: Path) -> None:
    night = Night(directory)
    night.spending = cap("1")
    night.session(5, leave=True)
    night.now += 72 * HOUR
    night.spending = cap("1")
    seen = night.session(5, last_call_s=12 * HOUR)
    assert len(seen.answered) == 5
    assert any("gone: they were kept for 48 hours" in each for each in seen.told)


@pytest.mark.parametrize("target", [TARGET, OPENAI])
def test_results_that_are_not_where_the_service_says_are_given_up_after_an_hour(
    directory: Path, target: Target
) -> None:
    """Its prompts are asked again, and what the batch may have cost counts at its most."""
    night = Night(directory, target=target, batch_pending_s=60, batch_run_s=60)
    night.spending = cap("1")
    night.lie = without_results
    seen = night.session(5, leave=True)
    for _ in range(5):  # as from cron: since when is on the disk
        night.now += 1100
        seen.told += night.session(5, leave=True).told
    night.lie = None
    seen.told += night.session(5).told
    first, second = night.states()
    assert (first.status, first.missing, second.ok) == ("succeeded", 5, 5)
    assert [each for each in seen.told if "for an hour" in each] == [
        "batch 1: its results are not at the service (HTTP 404), and are looked for for an hour",
        "the results of batch 1 are gone: nothing was there for an hour. What they may have cost counts at its most",
    ]
    assert _at_most_usd(directory) > 0


def test_results_that_come_late_are_taken(directory: Path) -> None:
    night = Night(directory, batch_pending_s=60, batch_run_s=60)
    night.lie = without_results
    night.session(5, until=lambda desk: night.wall() > NOON + 3000)
    night.lie = None
    check_once(night, 5)


def without_results(request: httpx.Request, body: bytes) -> httpx.Response | None:
    return httpx.Response(404) if ":download" in request.url.path or request.url.path.endswith("/content") else None


def test_files_are_deleted_at_the_service_as_soon_as_nobody_needs_them(directory: Path) -> None:
    night = Night(directory)
    night.session(5)
    assert [file for file in night.files() if not file.startswith("files/batch-")] == []


def test_a_full_storage_is_waited_out_and_told(directory: Path) -> None:
    night = Night(directory, storage_bytes=6_000)
    seen = night.session(20, last_call_s=20 * HOUR, batch_tokens={TARGET.quota: 2_000})
    assert len(seen.answered) == 20 and len(night.states()) > 1
    assert any("storage for files is full" in each for each in seen.told)


def test_replies_that_must_not_come_into_a_run_stop_it_and_none_is_kept(directory: Path) -> None:
    night = Night(directory)
    night.strange = ServiceError("an emulator answers")
    seen = night.session(5)
    assert seen.stopped is night.strange and not seen.bought
    assert [state.stage for state in night.states()] == ["fetched"]
