from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import PASSING, STATUSES, Document, ErrorKind, Reply, Status, Usage

COUNTS = st.integers(0, 10**9)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.booleans())


@settings(deadline=None)
@given(USAGES, USAGES, USAGES)
def test_usages_add_up_in_any_order(a: Usage, b: Usage, c: Usage) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Usage() == a


def test_a_sum_with_an_estimated_part_is_estimated() -> None:
    assert Usage(1, 2, 3, 4, 5) + Usage(10, 20, 30, 40, 50, estimated=True) == Usage(11, 22, 33, 44, 55, estimated=True)


def test_status_and_error_names_are_all_listed() -> None:
    assert get_args(Status) == STATUSES
    assert set(get_args(ErrorKind)) > PASSING


def test_an_answer_that_was_paid_for_is_never_among_the_failures_that_pass() -> None:
    assert not PASSING & {"truncated", "prompt_blocked", "answer_blocked", "recitation", "empty_answer"}


@pytest.mark.parametrize("record", [Document(0, "a", {}), Usage(), Reply("", "ok")], ids=lambda r: type(r).__name__)
def test_records_do_not_change(record: object) -> None:
    name = fields(record)[0].name  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        setattr(record, name, None)
