"""A sample stands for all rows: whole strata exactly, sampled ones within intervals that keep what they promise."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import fmean
from typing import NamedTuple

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import picks as drawing
from pipeline.plan.picks import Effort, Picks, Stratum
from pipeline.plan.survey import Survey

Row = tuple[int, int, dict[str, float]]  # size, kind, amounts


class Expanded(NamedTuple):
    totals: dict[str, float]
    half_widths: dict[str, float]


def of_picks(picks: Picks, amounts: Sequence[Mapping[str, float]]) -> Expanded:
    names = dict.fromkeys(name for row in amounts for name in row)
    columns = {name: pl.Series([row.get(name, 0.0) for row in amounts], dtype=pl.Float64) for name in names}
    weight = picks.weights()
    totals = {name: float((weight * column).sum()) for name, column in columns.items()}
    return Expanded(totals, picks.half_widths(pl.DataFrame(columns)))


def expanded(rows: Sequence[Row], most_rows: int, seed: int = 0) -> Expanded:
    size = pl.Series([row[0] for row in rows], dtype=pl.UInt32)
    kind = pl.Series([row[1] for row in rows], dtype=pl.UInt8)
    no = pl.repeat(False, len(rows), eager=True)
    facts, repeats = pl.DataFrame({"size": size, "kind": kind, "empty": no}), pl.DataFrame({"repeat": no})
    picks = drawing.pick(
        Survey(len(rows), [facts], [repeats], ()), None, Effort(most_rows, 10**12, most_rows, 10**12), seed
    )
    return of_picks(picks, [rows[row][2] for row in picks.numbers])


def truth(rows: Sequence[Row], name: str) -> float:
    return sum(row[2].get(name, 0) for row in rows)


def of_strata(strata: Sequence[Stratum], rows: Sequence[tuple[int, Mapping[str, float]]]) -> Expanded:
    """Of the picked rows (stratum, amounts) of these strata."""
    numbers = pl.Series([row[0] for row in rows], dtype=pl.UInt16)
    picks = Picks(pl.Series(range(len(rows))), numbers, {stratum.number: stratum for stratum in strata})
    return of_picks(picks, [row[1] for row in rows])


def of_one_stratum(amounts: Sequence[float], everything: int) -> Expanded:
    return of_strata([Stratum(7, everything, 10 * everything, 100)], [(7, {"z": amount}) for amount in amounts])


# ---- what is exact


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 2), st.integers(0, 10**9)), min_size=1, max_size=60))
def test_the_whole_table_is_summed_exactly(rows: list[tuple[int, int, int]]) -> None:
    table = [(size, kind, {"z": float(amount), "one": 1.0}) for size, kind, amount in rows]
    assert expanded(table, len(table)) == ({"z": sum(row[2] for row in rows), "one": len(rows)}, {"z": 0.0, "one": 0.0})


@given(st.lists(st.integers(1, 10_000), min_size=80, max_size=200), st.integers(40, 79), st.integers(0, 5))
def test_a_constant_is_expanded_exactly_and_a_multiple_of_the_size_nearly(
    sizes: list[int], most_rows: int, seed: int
) -> None:
    table = [(size, 0, {"prompts": 1.0, "bytes": float(size)}) for size in sizes]
    totals, widths = expanded(table, most_rows, seed)
    assert totals["prompts"] == pytest.approx(len(sizes), rel=1e-12)
    assert widths["prompts"] == 0.0
    assert abs(totals["bytes"] - sum(sizes)) < 0.15 * sum(sizes)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=30),
    st.integers(0, 1000),
)
def test_parts_add_up_and_what_is_larger_stays_larger(rows: list[tuple[float, float]], unseen: int) -> None:
    everything = len(rows) + unseen
    amounts = [(0, {"small": small, "more": more, "both": small + more}) for small, more in rows]
    totals, _ = of_strata([Stratum(0, everything, 75 * everything, 100)], amounts)
    assert totals["both"] == pytest.approx(totals["small"] + totals["more"], rel=1e-9, abs=1e-6)
    for name, seen in (("small", sum(row[0] for row in rows)), ("both", sum(row[0] + row[1] for row in rows))):
        assert totals[name] >= seen * (1 - 1e-9) - 1e-6
    assert totals["both"] >= totals["small"] * (1 - 1e-9) - 1e-6


def test_an_amount_that_few_rows_have_is_zero_in_the_others() -> None:
    rows = [(0, {"rare": 1.0} if number == 0 else {"never": 0.0}) for number in range(10)]
    totals, widths = of_strata([Stratum(0, 100, 1000, 10)], rows)
    assert widths["rare"] > 10
    assert widths["never"] == 0.0
    assert totals == {"rare": 10.0, "never": 0.0}


def test_an_empty_table() -> None:
    picks = Picks(pl.Series([], dtype=pl.UInt32), pl.Series([], dtype=pl.UInt16), {})
    assert len(picks.weights()) == 0
    assert picks.half_widths(pl.DataFrame(schema={"z": pl.Float64})) == {"z": 0.0}


# ---- how wide


def test_the_width_of_a_stratum_is_the_textbook_one() -> None:
    amounts = [1.0, 2.0, 3.0, 4.0, 10.0]
    expansion = of_one_stratum(amounts, everything=20)
    assert expansion.totals["z"] == 80
    variance = sum((amount - 4) ** 2 for amount in amounts) / 4
    assert expansion.half_widths["z"] == pytest.approx(2.776 * (20**2 * (1 - 5 / 20) * variance / 5) ** 0.5, rel=1e-3)


def test_one_row_is_as_doubtful_as_its_widest_neighbour_and_alone_as_itself() -> None:
    alone = of_one_stratum([5.0], everything=3)
    assert alone.totals["z"] == 15
    assert alone.half_widths["z"] > 15

    def beside(amounts: Sequence[float]) -> float:
        strata = [Stratum(1, 10, 100, 10), Stratum(2, 3, 60, 20)]
        rows = [*((1, {"z": amount}) for amount in amounts), (2, {"z": 10.0})]
        return of_strata(strata, rows).half_widths["z"]

    assert beside([5.0] * 10) == 0.0
    assert 0 < beside([4.9, 5.1] * 5) < beside([4.0, 6.0] * 5)


# ---- whether the intervals hold


def tokens_of(choose: random.Random, size: int, kind: int) -> float:
    """Kind 0 holds prose and, one row in five, code: two thirds more tokens a byte."""
    code = kind == 0 and choose.random() < 0.2
    rate = 0.38 if code else (0.23, 0.28, 0.31)[kind]
    return round(size * rate * choose.lognormvariate(0, 0.1)) + 12


def plain(choose: random.Random) -> Row:
    size, kind = int(choose.lognormvariate(7, 1)), choose.choices((0, 1, 2), (6, 1, 3))[0]
    return size, kind, {"tokens": tokens_of(choose, size, kind), "prompts": 1.0}


def heavy(choose: random.Random) -> Row:
    """Pareto sizes with an infinite variance: a few rows are most of the bytes."""
    size, kind = min(10**8, int(300 * choose.paretovariate(1.2))), choose.choices((0, 1, 2), (6, 1, 3))[0]
    return size, kind, {"tokens": tokens_of(choose, size, kind), "prompts": 1.0}


def chunked(choose: random.Random) -> Row:
    """Above 1,000 tokens a row is cut, overlaps and is merged: calls and tokens jump with the number of pieces."""
    size, kind, amounts = heavy(choose)
    tokens = amounts["tokens"]
    if tokens <= 1000:
        return size, kind, amounts
    pieces = ceil((tokens - 100) / 900)
    return size, kind, {"tokens": tokens + 100 * (pieces - 1) + 250 * pieces, "prompts": pieces + ceil(pieces / 8)}


@pytest.mark.parametrize(("row", "most_rows"), [(plain, 150), (heavy, 400), (chunked, 250), (chunked, 1000)])
def test_intervals_hold_the_truth_as_often_as_they_say(row: Callable[[random.Random], Row], most_rows: int) -> None:
    choose = random.Random(5)
    table = [row(choose) for _ in range(4000)]
    expected = {name: truth(table, name) for name in ("tokens", "prompts")}
    errors: dict[str, list[float]] = {name: [] for name in expected}
    held = Counter[str]()
    for seed in range(200):
        totals, widths = expanded(table, most_rows, seed)
        for name, value in expected.items():
            errors[name].append(totals[name] - value)
            held[name] += abs(errors[name][-1]) <= widths[name] + 1e-9 * value
    for name, value in expected.items():
        assert held[name] >= 180, (name, held)
        spread = fmean(error**2 for error in errors[name]) ** 0.5
        assert abs(fmean(errors[name])) <= 0.3 * spread + 1e-9 * value, name
