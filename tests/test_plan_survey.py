"""What one pass tells of each row is what Python says of it, and picks are a fair and bounded sample."""

import random
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import kind_of

from pipeline.plan import survey
from pipeline.plan.survey import Picks, Survey
from pipeline.source import open_source
from pipeline.source.documents import Source

TEXTS = [
    "plain words",
    "",
    None,
    " \t\r\n",
    "\x1c\x1f\u3000",
    "研究发现",
    "naïve café élève",
    "plain words",
    "a b",
    "研究发现",
]


def source_of(
    folder: Path, table: Mapping[str, Sequence[object]], suffix: str = "parquet", **options: object
) -> Source:
    path = folder / f"in.{suffix}"
    frame = pl.DataFrame(table)
    (frame.write_parquet if suffix == "parquet" else frame.write_csv)(path)
    return open_source(str(path), **options)  # type: ignore[arg-type]


def found_of(sizes: Iterable[int], kinds: Iterable[int] | None = None, **flags: Iterable[bool]) -> Survey:
    size = pl.Series("size", list(sizes), dtype=pl.UInt32)
    no = [False] * len(size)
    return Survey(
        size,
        pl.Series("kind", list(kinds or [0] * len(size)), dtype=pl.UInt8),
        pl.Series("repeat", list(flags.get("repeats", no)), dtype=pl.Boolean),
        pl.Series("empty", list(flags.get("empty", no)), dtype=pl.Boolean),
        (),
    )


def mixed(rows: int, seed: int = 1) -> Survey:
    choose = random.Random(seed)
    return found_of(
        [int(choose.lognormvariate(6, 1.2)) for _ in range(rows)],
        [choose.choice((0, 0, 1, 2)) for _ in range(rows)],
        repeats=[choose.random() < 0.05 for _ in range(rows)],
        empty=[choose.random() < 0.03 for _ in range(rows)],
    )


# ---- what a row is


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_every_row_is_measured_as_python_would(tmp_path: Path, suffix: str) -> None:
    topics = ["é", "x", "x", "x", "x", "x", "x", "é", "x", "x"]
    source = source_of(tmp_path, {"topic": topics, "body": TEXTS}, suffix, text="body", columns=["topic"])
    found = survey.survey(source, 10)
    bodies = [text or "" for text in TEXTS]
    content = list(zip(topics, bodies, strict=True))
    assert found.sizes.to_list() == [len((topic + body).encode()) for topic, body in content]
    assert found.kinds.to_list() == [kind_of(topic + body) for topic, body in content]
    assert found.empty.to_list() == [not body.strip() for body in bodies]
    assert found.repeats.to_list() == [
        bool(body.strip()) and content[:row].count((topic, body)) > 0 for row, (topic, body) in enumerate(content)
    ]
    assert found.first_repeats == ((7, 0), (9, 5))
    assert [column.dtype for column in (found.sizes, found.kinds, found.repeats, found.empty)] == [
        pl.UInt32,
        pl.UInt8,
        pl.Boolean,
        pl.Boolean,
    ]


def test_a_blank_character_is_what_strip_removes() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    left = pl.Series(characters).str.contains(survey._NOT_BLANK).to_list()
    assert [
        character for character, kept in zip(characters, left, strict=True) if kept != bool(character.strip())
    ] == []


def test_columns_that_are_not_text_count_as_text(tmp_path: Path) -> None:
    columns: dict[str, Sequence[object]] = {
        "n": [12345, None, 7],
        "flag": [True, False, True],
        "list": [[1, 2], None, [3]],
        "record": [{"x": 1}, {"x": None}, {"x": 3}],
        "for": [timedelta(1), None, timedelta(2)],
        "nothing": [None, None, None],
    }
    for name in columns:
        found = survey.survey(source_of(tmp_path, columns, columns=[name]), 3)
        assert found.sizes.dtype == pl.UInt32
        assert found.empty.sum() == 0
    assert survey.survey(source_of(tmp_path, columns, columns=["n", "flag"]), 3).sizes.to_list() == [9, 5, 5]


def test_the_same_in_other_columns_is_no_repeat(tmp_path: Path) -> None:
    columns = {"a": ["x", "y", "x", "x", None, ""], "b": ["y", "x", "x", "y", "", None]}
    found = survey.survey(source_of(tmp_path, columns, columns=["a", "b"]), 6)
    assert found.repeats.to_list() == [False, False, False, True, False, False]


def test_a_template_without_columns_asks_the_same_of_every_row(tmp_path: Path) -> None:
    found = survey.survey(source_of(tmp_path, {"n": [1, 2, 3]}), 3)
    assert found.repeats.to_list() == [False, True, True]
    assert found.sizes.to_list() == [0, 0, 0]


def test_only_the_first_rows_are_surveyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_FRAME_ROWS", 3)
    source = source_of(tmp_path, {"body": TEXTS}, text="body")
    for rows in (0, 1, 3, 4, 8, 10):
        found = survey.survey(source, rows)
        assert len(found.sizes) == len(found.kinds) == len(found.repeats) == len(found.empty) == rows
    assert survey.survey(source, 8).repeats.to_list() == [False] * 7 + [True]


def test_keys_are_ids_or_else_row_numbers(tmp_path: Path) -> None:
    named = source_of(tmp_path, {"id": [f"k{row}" for row in range(10)], "body": TEXTS}, id="id", text="body")
    assert survey.keys_of(named, {7, 1}) == {1: "k1", 7: "k7"}
    assert survey.keys_of(source_of(tmp_path, {"body": TEXTS}, text="body"), {7, 1}) == {1: "1", 7: "7"}
    assert survey.keys_of(named, set()) == {}


def test_the_first_repeats_name_the_rows_that_they_repeat(tmp_path: Path) -> None:
    found = survey.survey(source_of(tmp_path, {"body": TEXTS}, text="body"), 10)
    assert found.first_repeats == ((7, 0), (9, 5))


# ---- which rows are picked


def test_a_table_within_bounds_is_taken_whole() -> None:
    found = mixed(500)
    picks = survey.pick(found, None, 500, int(found.sizes.sum()))
    assert picks.whole
    assert picks.numbers.to_list() == list(range(500))
    assert picks.sizes.to_list() == found.sizes.to_list()


@pytest.mark.parametrize("short", [(1, 0), (0, 1)])
def test_one_more_row_or_byte_makes_it_a_sample(short: tuple[int, int]) -> None:
    found = mixed(2000)
    picks = survey.pick(found, None, 2000 - short[0], int(found.sizes.sum()) - short[1])
    assert not picks.whole


def test_only_wanted_rows_are_picked_and_stand_for_wanted_rows() -> None:
    found = mixed(3000)
    wanted = pl.Series([row % 3 == 0 for row in range(3000)])
    for picks in (survey.pick(found, wanted, 5000, 10**9), survey.pick(found, wanted, 400, 10**9)):
        assert all(row % 3 == 0 for row in picks.numbers)
        assert sum(stratum.rows for stratum in picks.populations.values()) == 1000
        assert sum(stratum.size_bytes for stratum in picks.populations.values()) == found.sizes.filter(wanted).sum()
    nothing = survey.pick(found, pl.Series([False] * 3000), 400, 10**9)
    assert nothing.whole
    assert len(nothing.numbers) == 0 == len(survey.pick_pilot(found, pl.Series([False] * 3000), 10).numbers)


def picked_by_stratum(picks: Picks) -> Counter[int]:
    return Counter(picks.strata.to_list())


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
        repeats=[row[2] == "r" for row in rows],
        empty=[row[2] == "e" for row in rows],
    )
    picks = survey.pick(found, None, most_rows, most_bytes, seed)
    counts = picked_by_stratum(picks)
    assert set(counts) == set(picks.populations)
    assert all(count <= picks.populations[number].rows for number, count in counts.items())
    assert picks.numbers.to_list() == sorted(set(picks.numbers))
    assert len(picks.numbers) == len(picks.strata)
    assert picks.sizes.to_list() == [rows[row][0] for row in picks.numbers]
    least_bytes = sum(stratum.largest_bytes for stratum in picks.populations.values())
    assert picks.whole or len(picks.numbers) <= max(most_rows, len(counts))
    assert picks.sizes.sum() <= max(most_bytes, least_bytes)
    again = survey.pick(found, None, most_rows, most_bytes, seed)
    assert again.numbers.to_list() == picks.numbers.to_list()


def test_a_stratum_is_of_one_kind_and_about_one_size() -> None:
    found = mixed(5000)
    picks = survey.pick(found, None, 10_000, 10**9)
    for number in range(survey._REPEAT):
        rows = picks.numbers.filter(picks.strata == number)
        if len(rows):
            sizes = found.sizes.gather(rows).to_list()
            assert found.kinds.gather(rows).n_unique() == 1
            assert max(sizes) <= max(1, min(sizes)) * 1.4143
    assert found.repeats.gather(picks.numbers.filter(picks.strata == survey._REPEAT)).all()
    assert found.empty.gather(picks.numbers.filter(picks.strata == survey._EMPTY)).all()


def test_a_stratum_gets_rows_by_its_bytes_and_a_few_at_least() -> None:
    found = mixed(50_000)
    picks = survey.pick(found, None, 3000, 10**9)
    counts = picked_by_stratum(picks)
    assert len(picks.numbers) == 3000
    ordinary = {number: stratum for number, stratum in picks.populations.items() if number < survey._REPEAT}
    whole_bytes = sum(stratum.size_bytes for stratum in ordinary.values())
    for number, stratum in ordinary.items():
        assert counts[number] >= min(stratum.rows, survey._LEAST_PICKED[0])
        share = 3000 * stratum.size_bytes / whole_bytes
        if 50 < share < stratum.rows * 0.9:
            assert counts[number] == pytest.approx(share, rel=0.25)
    assert counts[survey._REPEAT] == counts[survey._EMPTY] == survey._LEAST_PICKED[0]


def test_every_row_of_a_stratum_is_as_likely() -> None:
    found = found_of([1000] * 40)
    times = Counter(row for seed in range(400) for row in survey.pick(found, None, 10, 10**6, seed).numbers)
    assert len(times) == 40
    assert all(60 <= count <= 140 for count in times.values())  # 100 expected, standard deviation 8.7


def test_one_giant_is_picked_though_it_breaks_the_bound() -> None:
    found = found_of([100] * 1000 + [10**9])
    picks = survey.pick(found, None, 500, 10**6)
    assert 1000 in picks.numbers
    assert len(picks.numbers) == 2


# ---- a pilot


@pytest.mark.parametrize("rows", [1, 3, 20, 200])
def test_a_pilot_has_every_kind_and_nothing_that_is_not_sent(rows: int) -> None:
    found = mixed(5000)
    pilot = survey.pick_pilot(found, None, rows)
    assert len(pilot.numbers) == rows
    assert found.kinds.gather(pilot.numbers).n_unique() == min(3, rows)
    assert not (found.repeats | found.empty).gather(pilot.numbers).any()
    assert pilot.numbers.to_list() == survey.pick_pilot(found, None, rows).numbers.to_list()
    assert rows < 20 or pilot.numbers.to_list() != survey.pick_pilot(found, None, rows, seed=1).numbers.to_list()


def test_in_a_pilot_a_row_counts_by_the_root_of_its_size() -> None:
    found = found_of([100] * 900 + [10_000] * 100)  # one in ten, but ten times as likely
    assert found.sizes.gather(survey.pick_pilot(found, None, 100).numbers).to_list().count(10_000) == 53


def test_strata_are_of_one_kind_and_about_one_size_and_leave_out_what_is_not_sent() -> None:
    found = found_of(
        [100, 101, 100, 10_000, 100, 0],
        [0, 0, 4, 0, 0, 0],
        repeats=[False] * 4 + [True, False],
        empty=[False] * 5 + [True],
    )
    strata = survey.strata(found).to_list()
    assert strata[0] == strata[1]
    assert len(set(strata[:4])) == 3
    assert strata[4:] == [None, None]


def test_a_pilot_of_a_small_table_is_all_of_it() -> None:
    assert survey.pick_pilot(found_of([10, 20, 30]), None, 50).numbers.to_list() == [0, 1, 2]


# ---- rows that are as likely as one another


def test_rows_are_picked_evenly_within_both_bounds() -> None:
    found = found_of([10, 1000] * 5000, repeats=[row < 100 for row in range(10_000)], empty=[False, True] * 5000)
    picks = survey.pick_evenly(found, None, 400, 10**9)
    assert len(picks.numbers) == len(set(picks.numbers)) == 400
    assert picks.numbers.is_sorted()
    assert not (found.repeats | found.empty).gather(picks.numbers).any()
    assert 150 < (picks.numbers < 5000).sum() < 250
    assert picks.numbers.to_list() == survey.pick_evenly(found, None, 400, 10**9).numbers.to_list()
    assert picks.numbers.to_list() != survey.pick_evenly(found, None, 400, 10**9, seed=1).numbers.to_list()
    assert len(survey.pick_evenly(found, None, 400, 101).numbers) == 11
    assert len(survey.pick_evenly(found, None, 400, 1).numbers) == 1


def test_all_rows_of_a_small_table_are_picked_evenly() -> None:
    found, wanted = found_of([10, 20, 30]), pl.Series([True, False, True])
    assert survey.pick_evenly(found, wanted, 9, 99).numbers.to_list() == [0, 2]
    assert survey.pick_evenly(found, pl.Series([False] * 3), 9, 99).numbers.to_list() == []


# ---- the documents of the picked rows


@pytest.mark.parametrize("most_rows", [1, 10, 400, 20_000])
def test_documents_are_those_of_the_picked_rows(tmp_path: Path, most_rows: int) -> None:
    rows = 10_000
    source = source_of(
        tmp_path,
        {"id": range(rows), "body": ["word " * (row % 7 + 1) for row in range(rows)]},
        id="id",
        text="body",
        where="id % 2 = 0",
    )
    found = survey.survey(source, 5000)
    picks = survey.pick(found, None, most_rows, 10**9)
    made = [document for batch in survey.documents(source, picks) for document in batch]
    assert [document.row for document in made] == picks.numbers.to_list()
    assert [document.key for document in made] == [str(2 * row) for row in picks.numbers]
    assert [len(document.text or "") for document in made] == picks.sizes.to_list()


def test_documents_of_nothing_read_nothing(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"body": TEXTS}, text="body")
    picks = survey.pick(survey.survey(source, 10), pl.Series([False] * 10), 5, 1000)
    assert list(survey.documents(source, picks)) == []
