"""Picks are a fair and bounded sample of what a survey found."""

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import picks
from pipeline.plan.picks import Effort, Picks
from pipeline.plan.survey import Survey, survey
from pipeline.source import open_source


def found_of(sizes: Iterable[int], kinds: Iterable[int] | None = None, **flags: Iterable[bool]) -> Survey:
    size = pl.Series("size", list(sizes), dtype=pl.UInt32)
    kind = pl.Series("kind", list(kinds or [0] * len(size)), dtype=pl.UInt8)
    repeats, empty = (
        pl.Series(name, list(flags.get(name, [False] * len(size))), dtype=pl.Boolean) for name in ("repeat", "empty")
    )
    hashes = pl.DataFrame({"hash": pl.int_range(len(size), dtype=pl.UInt64, eager=True).hash()})
    facts, marks, digests = (
        [frame.slice(start, height) for start in range(0, max(1, len(size)), height)]
        for frame, height in ((pl.DataFrame([size, kind, empty]), 700), (repeats.to_frame(), 900), (hashes, 700))
    )
    return Survey(len(size), facts, marks, (), digests)


def sizes(found: Survey) -> pl.Series:
    return pl.concat(found.slices())["size"]


def flags(found: Survey) -> pl.DataFrame:
    return pl.concat(found.slices())


def kinds(found: Survey) -> pl.Series:
    return pl.concat(found.slices())["kind"]


def mixed(rows: int, seed: int = 1) -> Survey:
    choose = random.Random(seed)
    return found_of(
        [int(choose.lognormvariate(6, 1.2)) for _ in range(rows)],
        [choose.choice((0, 0, 1, 2)) for _ in range(rows)],
        repeat=[choose.random() < 0.05 for _ in range(rows)],
        empty=[choose.random() < 0.03 for _ in range(rows)],
    )


def within(rows: int, size_bytes: int) -> Effort:
    """At most so many rows, and so many bytes, are looked at."""
    return Effort(rows, size_bytes, rows, size_bytes)


# ---- which rows are picked


def test_a_table_within_bounds_is_taken_whole() -> None:
    found = mixed(500)
    chosen = picks.pick(found, None, within(500, int(sizes(found).sum())))
    assert chosen.whole
    assert chosen.numbers.to_list() == list(range(500))


@pytest.mark.parametrize("short", [(1, 0), (0, 1)])
def test_one_more_row_or_byte_makes_it_a_sample(short: tuple[int, int]) -> None:
    found = mixed(2000)
    chosen = picks.pick(found, None, within(2000 - short[0], int(sizes(found).sum()) - short[1]))
    assert not chosen.whole


def test_only_wanted_rows_are_picked_and_stand_for_wanted_rows() -> None:
    found = mixed(3000)
    wanted = pl.Series([row % 3 == 0 for row in range(3000)])
    for chosen in (picks.pick(found, wanted, within(5000, 10**9)), picks.pick(found, wanted, within(400, 10**9))):
        assert all(row % 3 == 0 for row in chosen.numbers)
        assert sum(stratum.rows for stratum in chosen.populations.values()) == 1000
        assert sum(stratum.size_bytes for stratum in chosen.populations.values()) == sizes(found).filter(wanted).sum()
    nothing = picks.pick(found, pl.Series([False] * 3000), within(400, 10**9))
    assert nothing.whole
    assert len(nothing.numbers) == 0 == len(picks.pick_pilot(found, pl.Series([False] * 3000), 10).numbers)


def picked_by_stratum(chosen: Picks) -> Counter[int]:
    return Counter(chosen.strata.to_list())


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.sampled_from((0, 1, 2)), st.sampled_from("-----re")), max_size=120),
    st.integers(1, 80),
    st.integers(1, 200_000),
    st.integers(0, 3),
)
def test_picks_are_within_bounds_and_cover_every_stratum(
    rows: list[tuple[int, int, str]], most_rows: int, most_bytes: int, seed: int
) -> None:
    found = found_of(
        (row[0] for row in rows),
        [row[1] for row in rows],
        repeat=[row[2] == "r" for row in rows],
        empty=[row[2] == "e" for row in rows],
    )
    chosen = picks.pick(found, None, within(most_rows, most_bytes), seed)
    counts = picked_by_stratum(chosen)
    assert set(counts) == set(chosen.populations)
    assert all(count <= chosen.populations[number].rows for number, count in counts.items())
    assert chosen.numbers.to_list() == sorted(set(chosen.numbers))
    assert len(chosen.numbers) == len(chosen.strata)
    least_bytes = sum(stratum.largest_bytes for stratum in chosen.populations.values())
    assert chosen.whole or len(chosen.numbers) <= max(most_rows, len(counts))
    assert sizes(found).gather(chosen.numbers).sum() <= max(most_bytes, least_bytes)
    again = picks.pick(found, None, within(most_rows, most_bytes), seed)
    assert again.numbers.to_list() == chosen.numbers.to_list()


def test_a_stratum_is_of_one_kind_and_about_one_size() -> None:
    found = mixed(5000)
    chosen = picks.pick(found, None, within(10_000, 10**9))
    for number in range(picks._REPEAT):
        rows = chosen.numbers.filter(chosen.strata == number)
        if len(rows):
            mine = sizes(found).gather(rows).to_list()
            assert kinds(found).gather(rows).n_unique() == 1
            assert max(mine) <= max(1, min(mine)) * 1.4143
    assert flags(found)["repeat"].gather(chosen.numbers.filter(chosen.strata == picks._REPEAT)).all()
    assert flags(found)["empty"].gather(chosen.numbers.filter(chosen.strata == picks._EMPTY)).all()


def test_a_stratum_gets_rows_by_its_bytes_and_a_few_at_least() -> None:
    found = mixed(50_000)
    chosen = picks.pick(found, None, within(3000, 10**9))
    counts = picked_by_stratum(chosen)
    assert len(chosen.numbers) == 3000
    ordinary = {number: stratum for number, stratum in chosen.populations.items() if number < picks._REPEAT}
    whole_bytes = sum(stratum.size_bytes for stratum in ordinary.values())
    for number, stratum in ordinary.items():
        assert counts[number] >= min(stratum.rows, picks._LEAST_PICKED[0])
        share = 3000 * stratum.size_bytes / whole_bytes
        if 50 < share < stratum.rows * 0.9:
            assert counts[number] == pytest.approx(share, rel=0.25)
    assert counts[picks._REPEAT] == counts[picks._EMPTY] == picks._LEAST_PICKED[0]


def test_every_row_of_a_stratum_is_as_likely() -> None:
    found = found_of([1000] * 40)
    times = Counter(row for seed in range(400) for row in picks.pick(found, None, within(10, 10**6), seed).numbers)
    assert len(times) == 40
    assert all(60 <= count <= 140 for count in times.values())  # 100 expected, standard deviation 8.7


def test_one_giant_is_picked_though_it_breaks_the_bound() -> None:
    found = found_of([100] * 1000 + [10**9])
    chosen = picks.pick(found, None, within(500, 10**6))
    assert 1000 in chosen.numbers
    assert len(chosen.numbers) == 2


# ---- a pilot


@pytest.mark.parametrize("rows", [1, 3, 20, 200])
def test_a_pilot_has_every_kind_and_nothing_that_is_not_sent(rows: int) -> None:
    found = mixed(5000)
    pilot = picks.pick_pilot(found, None, rows)
    assert len(pilot.numbers) == rows
    assert kinds(found).gather(pilot.numbers).n_unique() == min(3, rows)
    assert not flags(found).select(pl.col("repeat") | pl.col("empty")).to_series().gather(pilot.numbers).any()
    assert pilot.numbers.to_list() == picks.pick_pilot(found, None, rows).numbers.to_list()
    assert rows < 20 or pilot.numbers.to_list() != picks.pick_pilot(found, None, rows, seed=1).numbers.to_list()


def test_in_a_pilot_a_row_counts_by_the_root_of_its_size() -> None:
    found = found_of([100] * 900 + [10_000] * 100)  # one in ten, but ten times as likely
    assert sizes(found).gather(picks.pick_pilot(found, None, 100).numbers).to_list().count(10_000) == 53


def test_rows_are_told_with_the_stratum_that_they_may_be_picked_from() -> None:
    found = found_of(
        [100, 101, 100, 10_000, 100, 0],
        [0, 0, 4, 0, 0, 0],
        repeat=[False] * 4 + [True, False],
        empty=[False] * 5 + [True],
    )
    told = picks.about(found)(pl.Series([5, 4, 3, 2, 1, 0, 0, 99])).sort("row")
    assert told["row"].to_list() == [0, 1, 2, 3, 4, 5]
    assert told["kind"].to_list() == [0, 0, 4, 0, 0, 0]
    assert told["rows"].to_list() == [2, 2, 1, 1, None, None]
    strata = told["stratum"].to_list()
    assert strata[0] == strata[1] and len(set(strata[:4])) == 3
    assert strata[4:] == [None, None]


def test_a_pilot_of_a_small_table_is_all_of_it() -> None:
    assert picks.pick_pilot(found_of([10, 20, 30]), None, 50).numbers.to_list() == [0, 1, 2]


def test_a_sample_has_the_shortest_and_the_heaviest_of_each_kind() -> None:
    lengths = [50] * 100 + [1000] * 500 + [9000] * 100
    found = found_of(lengths * 2, [0] * 700 + [4] * 700)
    for rows in (4, 6, 20):
        numbers = picks.pick_sample(found, None, rows).numbers
        seen = set(zip(kinds(found).gather(numbers), sizes(found).gather(numbers), strict=True))
        assert len(numbers) == rows and {(0, 50), (4, 50), (0, 9000), (4, 9000)} <= seen
    assert {*picks.pick_sample(found, None, 6).numbers} <= {*picks.pick_sample(found, None, 7).numbers}


def test_a_run_asks_first_what_a_sample_would_have_among_rows_that_are_near() -> None:
    near = mixed(5000)
    assert picks.pick_first(near, None) == tuple(picks.pick_sample(near, None, picks.FIRST).numbers)
    left = pl.Series([row % 2 == 1 for row in range(5000)])
    assert all(row % 2 for row in picks.pick_first(near, left)) and len(picks.pick_first(near, left)) == picks.FIRST
    far = found_of(range(1, picks.FIRST_WITHIN + 5000))
    assert max(picks.pick_first(far, None)) < picks.FIRST_WITHIN


# ---- the documents of the picked rows


@pytest.mark.parametrize("most_rows", [1, 10, 400, 20_000])
def test_documents_are_those_of_the_picked_rows(tmp_path: Path, most_rows: int) -> None:
    rows = 10_000
    table = pl.DataFrame({"id": range(rows), "body": ["word " * (row % 7 + 1) for row in range(rows)]})
    table.write_parquet(tmp_path / "in.parquet")
    source = open_source(str(tmp_path / "in.parquet"), id="id", text="body", where="id % 2 = 0")
    found = survey(source, 5000)
    chosen = picks.pick(found, None, within(most_rows, 10**9))
    made = list(picks.documents(source, chosen))
    assert [document.row for document in made] == chosen.numbers.to_list()
    assert [document.key for document in made] == [str(2 * row) for row in chosen.numbers]
    assert [len(document.text or "") for document in made] == found.at(chosen.numbers)["size"].to_list()


def test_documents_of_nothing_read_nothing(tmp_path: Path) -> None:
    pl.DataFrame({"body": ["some"] * 10}).write_parquet(tmp_path / "in.parquet")
    source = open_source(str(tmp_path / "in.parquet"), text="body")
    chosen = picks.pick(survey(source, 10), pl.Series([False] * 10), within(5, 1000))
    assert list(picks.documents(source, chosen)) == []
