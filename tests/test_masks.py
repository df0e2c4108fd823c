"""Which rows are meant, told by ranges, is what is said of each row."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.masks import Mask, Range, Ranges
from pipeline.records import STATUSES
from pipeline.run.prepare import Session
from pipeline.run.rows import Left, wanted
from pipeline.store.state import Outcomes

RANGES = st.lists(
    st.one_of(
        st.lists(st.booleans(), max_size=9),
        st.tuples(st.integers(0, 9), st.booleans()),
    ),
    max_size=6,
)


def told(mask: Mask, rows: int, height: int) -> list[bool]:
    """What a mask says of all rows, asked for so many at a time."""
    slices = [mask.slice(start, min(height, rows - start)).to_list() for start in range(0, rows, height)]
    return [each for one in slices for each in one]


@given(RANGES, st.integers(1, 12))
def test_ranges_say_of_each_row_what_theirs_say(ranges: Sequence[Any], height: int) -> None:
    made = [
        Range(*each) if isinstance(each, tuple) else Range(len(each), pl.Series(each, dtype=pl.Boolean))
        for each in ranges
    ]
    expected = [each for one in ranges for each in (([one[1]] * one[0]) if isinstance(one, tuple) else one)]
    mask = Ranges(made)
    assert told(mask, len(expected), height) == expected
    assert mask.sum() == sum(expected)


@given(
    st.lists(st.none() | st.tuples(st.sampled_from(STATUSES), st.booleans()), max_size=12),
    st.integers(0, 5),
    st.none() | st.frozensets(st.integers(0, 14)),
    st.booleans(),
    st.integers(1, 9),
)
def test_what_is_left_is_what_is_wanted_of_each_row(
    states: Sequence[Any], more: int, pilot: frozenset[int] | None, is_redo: bool, height: int
) -> None:
    outcomes, rows = Outcomes(), len(states) + more
    for row, state in enumerate(states):
        if state is not None:
            outcomes.set(row, *state)
    options = SimpleNamespace(pilot=pilot)
    session = cast(Session, SimpleNamespace(redo=object() if is_redo else None, options=options, rows=rows))
    expected = list(map(wanted(session, outcomes), range(rows)))
    left = Left(session, outcomes)
    assert told(left, rows, height) == expected
    assert left.sum() == sum(expected)
