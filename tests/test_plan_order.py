"""Rows that are sorted by length."""

import polars as pl
import pytest
from servers import lognormal

from pipeline.plan.order import NOTICED, detour
from pipeline.plan.pace import Load
from pipeline.records import Limits
from pipeline.source.documents import BATCH_ROWS

LIMITS = Limits(rpm=1000, tpm=2_000_000)


def load(sizes: list[int]) -> Load:
    return Load(len(sizes), sum(sizes))


def test_mixed_rows_take_no_detour_and_sorted_ones_what_the_dispatcher_takes() -> None:
    sizes = lognormal(50_000, 2000, 1)
    assert detour(pl.Series(sizes), None, load(sizes), LIMITS) < 1.02
    ascending = detour(pl.Series(sorted(sizes)), None, load(sizes), LIMITS)
    assert ascending == pytest.approx(0.9875 / 0.758, rel=0.05), "measured on the dispatcher in virtual time"
    assert detour(pl.Series(sorted(sizes, reverse=True)), None, load(sizes), LIMITS) == pytest.approx(
        ascending, rel=0.02
    )


def test_within_one_batch_rows_are_mixed_anyway() -> None:
    sizes = sorted(lognormal(BATCH_ROWS, 2000, 1))
    assert detour(pl.Series(sizes), None, load(sizes), LIMITS) == 1.0


def test_only_rows_that_are_left_count() -> None:
    sizes = [1] * BATCH_ROWS + [3999] * BATCH_ROWS
    both = load(sizes)
    assert detour(pl.Series(sizes), None, both, LIMITS) > NOTICED
    left = pl.Series([True] * BATCH_ROWS + [False] * BATCH_ROWS)
    assert detour(pl.Series(sizes), left, load(sizes[:BATCH_ROWS]), LIMITS) == 1.0


@pytest.mark.parametrize("limits", [Limits(rpm=1000, tpm=0), Limits(rpm=0, tpm=1000), Limits()])
def test_one_meter_alone_knows_no_order(limits: Limits) -> None:
    sizes = sorted(lognormal(10_000, 2000, 1))
    assert detour(pl.Series(sizes), None, load(sizes), limits) == 1.0


def test_no_rows_take_no_detour() -> None:
    assert detour(pl.Series([], dtype=pl.UInt32), None, Load(0, 0), LIMITS) == 1.0
