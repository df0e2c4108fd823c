"""Quantiles of latencies in bounded memory."""

from math import ceil

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.latencies import LONGEST_S, SHORTEST_S, Latencies

TIMES = st.lists(st.floats(SHORTEST_S, LONGEST_S), min_size=1, max_size=200)


@given(parts=st.lists(TIMES, min_size=1, max_size=4), share=st.floats(0, 1))
def test_every_quantile_is_within_one_percent_of_a_latency_that_was_seen(
    parts: list[list[float]], share: float
) -> None:
    latencies = Latencies()
    for part in parts:
        latencies.add(pl.Series(part, dtype=pl.Float64))
    every = sorted(time for part in parts for time in part)
    assert latencies.quantile(share) == pytest.approx(every[max(1, ceil(share * len(every))) - 1], rel=0.0101)


@pytest.mark.case("D17")
def test_any_number_of_latencies_takes_the_same_room() -> None:
    latencies = Latencies()
    for factor in range(20):
        latencies.add(pl.Series([1e-9 * 1.001**number for number in range(factor, 60_000, 7)], dtype=pl.Float64))
    assert len(latencies.bins) <= 1_746


def test_what_is_no_latency_is_left_out() -> None:
    latencies = Latencies()
    latencies.add(pl.Series([], dtype=pl.Float64))
    latencies.add(pl.Series([None, float("nan")], dtype=pl.Float64))
    assert latencies.quantile(0.5) is None
    latencies.add(pl.Series([0.0, -1.0, float("inf")], dtype=pl.Float64))
    assert latencies.quantile(0) == pytest.approx(SHORTEST_S, rel=0.02)
    assert latencies.quantile(1) == pytest.approx(LONGEST_S, rel=0.02)
