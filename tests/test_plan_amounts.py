"""Sums of calls, and the kinds of script."""

from random import Random

import polars as pl
import pytest
from corpus import make_text
from hypothesis import given
from hypothesis import strategies as st
from plans import kind_of

from pipeline.plan.amounts import KINDS, Cell, Tier, Work, add, kind_column, total

SHORT, LONG = Tier("map", False), Tier("map", True)


def test_totals_and_unions_of_work() -> None:
    one: Work = {SHORT: Cell(1, 10, 2, 3, 4), LONG: Cell(1, 300_000)}
    other: Work = {SHORT: Cell(2, 20, 0, 1, 0), Tier("answer", False): Cell(5)}
    both: dict[Tier, Cell] = {}
    for work in (one, other):
        add(both, work)
    assert both == {SHORT: Cell(3, 30, 2, 4, 4), LONG: Cell(1, 300_000), Tier("answer", False): Cell(5)}
    assert total(both) == total(one).plus(total(other)) == Cell(9, 300_030, 2, 4, 4)
    assert total({}) == Cell()
    assert Cell(1).plus(Cell(1, 2, 3, 4, 5), 0.5) == Cell(1.5, 1, 1.5, 2, 2.5)


@given(st.text())
def test_a_column_of_kinds_is_as_each_text_for_itself(text: str) -> None:
    column = pl.col("text").str
    frame = pl.DataFrame({"text": [text]}, schema={"text": pl.String})
    kinds = frame.select(kind_column(column.len_bytes(), column.len_chars())).to_series()
    assert kinds.dtype == pl.UInt8
    assert kinds.to_list() == [kind_of(text)]


@pytest.mark.parametrize(
    ("kind", "sorts"),
    [
        ("ascii", ("english", "code", "json", "csv", "log")),
        ("accented", ("german", "french")),
        ("mixed", ("chat",)),
        ("two-byte", ("russian", "arabic")),
        ("dense", ("chinese", "japanese", "korean", "mixed")),
    ],
)
def test_each_sort_of_text_has_its_kind(kind: str, sorts: tuple[str, ...]) -> None:
    assert {KINDS[kind_of(make_text(sort, 3000, Random(1)))] for sort in sorts} == {kind}
