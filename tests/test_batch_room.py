"""What one more batch finds at the service: learned, held, and shared by the runs of a project."""

from math import inf
from pathlib import Path

import pytest

from pipeline.batch.room import HOLDS_S, KEPT_S, MOST_BATCHES, MOST_FILE_BYTES, Room

ACCOUNT, QUOTA = "gemini@h/p", "gemini@h/p/m"


class Clock:
    now = 1_795_377_600.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["alone", "shared"])
def room(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Room:
    return Room("run", tmp_path / "batches.sqlite" if request.param == "shared" else None, wall=clock)


def wait_s(room: Room, name: str, tokens: int = 10, allowed: int = 40) -> float:
    return room.wait_s(name, ACCOUNT, QUOTA, tokens, allowed)


def enter(room: Room, *names: str, tokens: int = 10) -> None:
    for name in names:
        room.enter(name, ACCOUNT, QUOTA, tokens)


def test_so_many_tokens_wait_at_once_and_no_more(room: Room) -> None:
    enter(room, "a", "b", "c")
    assert wait_s(room, "d") == 0
    enter(room, "d")
    assert wait_s(room, "d") == 0, "it does not stand in its own way"
    assert wait_s(room, "e") == inf
    assert room.wait_s("e", ACCOUNT, f"{QUOTA}-lite", 10, 40) == 0, "another model has tokens of its own"
    room.leave("b")
    assert wait_s(room, "e") == 0


def test_one_that_is_alone_always_goes(room: Room) -> None:
    assert wait_s(room, "a", tokens=10**9) == 0


def test_so_many_batches_of_ours_are_there_at_once(room: Room) -> None:
    enter(room, *map(str, range(MOST_BATCHES)), tokens=0)
    assert wait_s(room, "one more", 0) == inf
    room.leave("3")
    assert wait_s(room, "one more", 0) == 0


def test_a_refusal_is_waited_out_and_halves_what_may_wait(room: Room, clock: Clock) -> None:
    assert room.tokens_of(QUOTA, 10_000_000) == 10_000_000
    held = []
    for _ in range(4):
        held.append(room.refused(QUOTA, 10_000_000, tokens=2_000_000, lines=100_000))
        assert wait_s(room, "a") == held[-1]
        clock.now += held[-1]
        assert wait_s(room, "a") == 0
    assert held == [*HOLDS_S, HOLDS_S[-1]]
    assert room.tokens_of(QUOTA, 10_000_000) == 10_000_000 // 16
    room.let_in(QUOTA)
    assert room.refused(QUOTA, 0, 1, 1) == HOLDS_S[0], "another row of refusals"


def test_what_may_wait_is_not_halved_below_batches_of_a_thousand(room: Room) -> None:
    for _ in range(20):
        room.refused(QUOTA, 10_000_000, tokens=1_000_000, lines=2_000)
    assert room.tokens_of(QUOTA, 0) == 4 * 500_000


def test_a_batch_that_was_answered_doubles_what_may_wait(room: Room) -> None:
    room.answered(QUOTA, 10_000_000)
    assert room.tokens_of(QUOTA, 10_000_000) == 20_000_000
    for _ in range(20):
        room.answered(QUOTA, 10_000_000)
    assert room.tokens_of(QUOTA, 10_000_000) == 1_000_000_000


def test_a_batch_is_too_large_when_it_is_refused_alone_again_and_again(room: Room) -> None:
    enter(room, "other")
    for _ in range(3):
        assert not room.is_too_large("a", ACCOUNT, QUOTA)
        room.refused(QUOTA, 100, 50, 2000)
    assert not room.is_too_large("a", ACCOUNT, QUOTA)
    room.leave("other")
    assert room.is_too_large("a", ACCOUNT, QUOTA)


def test_the_tokens_of_one_that_was_cancelled_count_until_another_is_let_in(room: Room) -> None:
    enter(room, "a", "b", "c")
    room.leave("a", freed=False)
    assert wait_s(room, "d", tokens=20) == inf
    enter(room, "d")
    room.let_in(QUOTA)
    assert wait_s(room, "e") == 0
    room.leave("b", freed=False)
    room.leave("c", freed=False)
    room.leave("d", freed=False)
    assert wait_s(room, "e", tokens=40) == 0, "those alone hold up nobody: one has to be tried"


def test_what_is_two_days_old_counts_nowhere(room: Room, clock: Clock) -> None:
    enter(room, "a", tokens=40)
    room.stored("a", ACCOUNT, MOST_FILE_BYTES)
    assert wait_s(room, "b") == inf and not room.has_space(ACCOUNT, 1)
    clock.now += KEPT_S + 1
    assert wait_s(room, "b") == 0 and room.has_space(ACCOUNT, 1)


def test_files_have_so_much_space(room: Room) -> None:
    assert room.has_space(ACCOUNT, 2 * MOST_FILE_BYTES), "one that is alone always has it"
    room.stored("a", ACCOUNT, MOST_FILE_BYTES - 10)
    assert room.has_space(ACCOUNT, 10) and not room.has_space(ACCOUNT, 11) and room.has_space("another", 11)
    room.deleted("a")
    assert room.has_space(ACCOUNT, 11)


def test_runs_of_one_project_see_each_other_and_what_was_learned_lasts(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "batches.sqlite"
    first, second = Room("one", path, wall=clock), Room("two", path, wall=clock)
    enter(first, "a", tokens=40)
    first.stored("a", ACCOUNT, MOST_FILE_BYTES)
    assert wait_s(second, "b") == inf and not second.has_space(ACCOUNT, 1)
    first.close()
    assert wait_s(second, "b") == inf, "it is at the service, whether its run goes on or not"
    again = Room("one", path, wall=clock)
    again.leave("a")
    again.deleted("a")
    assert wait_s(second, "b") == 0 and second.has_space(ACCOUNT, 1)
    again.answered(QUOTA, 10)
    assert second.tokens_of(QUOTA, 10) == 20


def test_without_its_file_a_run_counts_its_own(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "batches.sqlite"
    room = Room("one", path, wall=clock)
    path.unlink()
    enter(room, "a", tokens=40)
    assert wait_s(room, "b") == inf
    room.refused(QUOTA, 100, 1, 1)
    assert wait_s(room, "b") == HOLDS_S[0]


def test_a_clock_that_was_set_back_leaves_nobody_waiting_for_a_year(room: Room, clock: Clock) -> None:
    clock.now += 365 * 86_400
    enter(room, *map(str, range(MOST_BATCHES)))
    room.stored("file", ACCOUNT, MOST_FILE_BYTES)
    room.refused(QUOTA, 40, 10, 10)
    clock.now -= 365 * 86_400
    assert wait_s(room, "a") == 0 and room.has_space(ACCOUNT, 1)
