from dataclasses import dataclass
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dispatch.lookahead import DEPTH, MAX_WAIT_S, PATIENCE, Lookahead

AGAIN, FINISHING, OTHERS = range(3)


@dataclass(eq=False)
class Item:
    size: float
    gone: bool = False


def take(
    ready: Lookahead[Item], room: float, now: float = 0.0, *, fits_at: float = inf, until: float = inf
) -> Item | None:
    """`fits_at` for whatever does not fit now."""
    return ready.take(now, room, lambda item: item.size <= room, lambda item: fits_at, lambda now: until)


def taken(ready: Lookahead[Item], room: float) -> float:
    """The size of what is taken: there is something."""
    item = take(ready, room)
    assert item is not None
    return item.size


def filled(sizes: list[float], queue: int = OTHERS, rng: Random | None = None) -> tuple[Lookahead[Item], list[Item]]:
    ready: Lookahead[Item] = Lookahead(rng)
    items = [Item(size) for size in sizes]
    for item in items:
        ready.add(item, item.size, queue, 0.0)
    return ready, items


def test_the_largest_that_fits_goes() -> None:
    ready, _ = filled([5, 90, 40, 60])
    assert [taken(ready, 60) for _ in range(2)] == [60, 40]
    assert take(ready, 4) is None
    assert len(list(ready)) == 2


def test_what_is_sent_again_goes_before_reduces_and_these_before_the_rest() -> None:
    ready: Lookahead[Item] = Lookahead(None)
    for queue, size in ((OTHERS, 30), (FINISHING, 20), (AGAIN, 10)):
        ready.add(Item(size), size, queue, 0.0)
    assert [taken(ready, 100) for _ in range(3)] == [10, 20, 30]


@pytest.mark.parametrize("room", [100, inf])
def test_backwards_the_last_lane_comes_first(room: float) -> None:
    ready: Lookahead[Item] = Lookahead(None)
    for queue, size in ((AGAIN, 30), (FINISHING, 20), (OTHERS, 10), (AGAIN, 31)):
        ready.add(Item(size), size, queue, 0.0)
    first = ready.take(0.0, room, lambda item: True, lambda item: inf, lambda now: inf, backwards=True)
    assert first is not None and first.size == 10
    assert [taken(ready, room) for _ in range(3)] == [*((30, 31) if room == inf else (31, 30)), 20]


def test_without_a_limit_they_go_in_the_order_they_came() -> None:
    ready, items = filled([5, 90, 40, 60] * 200)
    assert [take(ready, inf) for _ in items] == items


def test_who_waited_too_long_goes_next_and_all_wait_until_it_fits() -> None:
    ready, (large, small) = filled([90, 5])
    late = MAX_WAIT_S + 1
    assert take(ready, 50, late) is None
    assert ready.next_wanted(late) is large
    assert take(ready, 90, late) is large
    assert take(ready, 50, late) is small


def test_the_oldest_is_waited_for_once_that_is_short_against_its_age() -> None:
    ready, (large, small) = filled([90, 5])
    assert take(ready, 50, 100.0, fits_at=100.0 + 1.1 * PATIENCE * 100.0) is small
    ready.add(small, 5, OTHERS, 100.0)
    assert take(ready, 50, 101.0, fits_at=101.0 + 0.9 * PATIENCE * 101.0) is None
    assert ready.next_wanted(101.0) is large
    assert take(ready, 90, 103.0) is large
    assert take(ready, 50, 103.0) is small


def test_none_is_waited_for_beyond_the_end_of_the_minute_unless_it_must_be() -> None:
    ready, (large, small) = filled([90, 5])
    assert take(ready, 50, 100.0, fits_at=101.0, until=100.5) is small
    ready.add(small, 5, OTHERS, 100.0)
    late = MAX_WAIT_S + 1.0
    assert take(ready, 50, late, fits_at=late + 1.0, until=late + 0.5) is None
    assert ready.next_wanted(late) is large


def test_the_time_of_fitting_is_asked_for_no_oftener_than_it_can_matter() -> None:
    """One answer holds until it is within the patience: others going before can only move it away."""
    ready, _ = filled([90, *[5] * 1000])
    asked = []

    def fits_at(item: Item) -> float:
        asked.append(item.size)
        return now + 20.0

    for now in range(300):
        item = ready.take(float(now), 50, lambda item: item.size <= 50, fits_at, lambda now: inf)
        assert item is not None and item.size == 5
    assert len(asked) <= 300 / 14 + 1


def test_small_ones_are_not_passed_over_forever() -> None:
    ready, (small,) = filled([5])
    for now in range(0, 2000, 10):
        large = Item(90)
        ready.add(large, 90, OTHERS, float(now))
        taken = take(ready, 100, float(now))
        assert taken is not None
        if taken is small:
            assert now > MAX_WAIT_S
            return
    raise AssertionError("never taken")


def test_time_waited_before_counts_when_it_is_told() -> None:
    ready, (small,) = filled([5], queue=FINISHING)
    ready.add(large := Item(90), 90, AGAIN, 500.0, since=100.0)
    assert take(ready, 50, 99.0 + MAX_WAIT_S) is small
    ready.add(small, 5, FINISHING, 500.0)
    late = 101.0 + MAX_WAIT_S
    assert take(ready, 50, late) is None
    assert ready.next_wanted(late) is large


def test_what_is_gone_is_neither_taken_nor_waited_for() -> None:
    ready, items = filled([5, 90, 40])
    items[0].gone = items[1].gone = True
    assert list(ready) == [items[2]]
    assert ready.next_wanted(0.0) is items[2]
    assert take(ready, 100) is items[2]
    assert take(ready, inf) is None
    assert ready.next_wanted(0.0) is None
    assert not ready


def test_beyond_the_window_sizes_are_mixed() -> None:
    """Sorted input: with a pool larger than the window, what leaves first is not all small."""
    ready, _ = filled([float(size) for size in range(8 * DEPTH)], rng=Random(1))
    first = [taken(ready, inf) for _ in range(DEPTH)]
    assert sum(first[DEPTH // 2 :]) / (DEPTH / 2) < 2 * DEPTH
    later = [taken(ready, inf) for _ in range(4 * DEPTH)]
    assert 3 * DEPTH < sum(later) / len(later) < 6 * DEPTH


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 100)), max_size=400),
    st.lists(st.tuples(st.integers(0, 120), st.booleans()), max_size=400),
    st.booleans(),
)
def test_everything_comes_out_once_or_is_gone(
    entries: list[tuple[int, int]], takes: list[tuple[int, bool]], mixed: bool
) -> None:
    ready: Lookahead[Item] = Lookahead(Random(0) if mixed else None)
    items = []
    for queue, size in entries:
        items.append(Item(size))
        ready.add(items[-1], size, queue, 0.0)
    rng, out = Random(1), []
    for room, lose in takes:
        if lose and items:
            rng.choice(items).gone = True
        item = take(ready, room)
        if item is not None:
            assert item.size <= room and not item.gone
            out.append(item)
            item.gone = True
    while (item := take(ready, 1000)) is not None:
        out.append(item)
        item.gone = True
    assert len(set(map(id, out))) == len(out)
    assert all(item.gone for item in items)
    assert not ready
