"""What one pass tells of each row is what Python says of it."""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import kind_of

from pipeline import spill
from pipeline.errors import InputError
from pipeline.plan import survey
from pipeline.plan.survey import Survey
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
    folder: Path, table: Mapping[str, Sequence[object] | pl.Series], suffix: str = "parquet", **options: object
) -> Source:
    path = folder / f"in.{suffix}"
    frame = pl.DataFrame(table)
    (frame.write_parquet if suffix == "parquet" else frame.write_csv)(path)
    return open_source(str(path), **options)  # type: ignore[arg-type]


def table(found: Survey) -> pl.DataFrame:
    """All that is told of the rows."""
    return pl.concat(found.slices())


def flags(found: Survey, name: str) -> pl.Series:
    return table(found)[name]


# ---- what a row is


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_every_row_is_measured_as_python_would(tmp_path: Path, suffix: str) -> None:
    topics = ["é", "x", "x", "x", "x", "x", "x", "é", "x", "x"]
    source = source_of(tmp_path, {"topic": topics, "body": TEXTS}, suffix, text="body", columns=["topic"])
    found = survey.survey(source, 10)
    bodies = [text or "" for text in TEXTS]
    content = list(zip(topics, bodies, strict=True))
    assert table(found)["size"].to_list() == [len((topic + body).encode()) for topic, body in content]
    assert table(found)["kind"].to_list() == [kind_of(topic + body) for topic, body in content]
    assert flags(found, "empty").to_list() == [not body.strip() for body in bodies]
    assert flags(found, "repeat").to_list() == [
        bool(body.strip()) and content[:row].count((topic, body)) > 0 for row, (topic, body) in enumerate(content)
    ]
    assert found.first_repeats == ((7, 0), (9, 5))
    told = table(found)
    assert [told[name].dtype for name in ("size", "kind", "repeat", "empty")] == [
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
        assert table(found)["size"].dtype == pl.UInt32
        assert flags(found, "empty").sum() == 0
    assert table(survey.survey(source_of(tmp_path, columns, columns=["n", "flag"]), 3))["size"].to_list() == [9, 5, 5]


def test_the_same_in_other_columns_is_no_repeat(tmp_path: Path) -> None:
    columns = {"a": ["x", "y", "x", "x", None, ""], "b": ["y", "x", "x", "y", "", None]}
    found = survey.survey(source_of(tmp_path, columns, columns=["a", "b"]), 6)
    assert flags(found, "repeat").to_list() == [False, False, False, True, False, False]


def test_a_template_without_columns_asks_the_same_of_every_row(tmp_path: Path) -> None:
    found = survey.survey(source_of(tmp_path, {"n": [1, 2, 3]}), 3)
    assert flags(found, "repeat").to_list() == [False, True, True]
    assert table(found)["size"].to_list() == [0, 0, 0]


def test_only_the_first_rows_are_surveyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_FRAME_ROWS", 3)
    source = source_of(tmp_path, {"body": TEXTS}, text="body")
    for rows in (0, 1, 3, 4, 8, 10):
        found = survey.survey(source, rows)
        assert table(found).height == rows == found.rows
    assert flags(survey.survey(source, 8), "repeat").to_list() == [False] * 7 + [True]


def test_keys_are_ids_or_else_row_numbers(tmp_path: Path) -> None:
    named = source_of(tmp_path, {"id": [f"k{row}" for row in range(10)], "body": TEXTS}, id="id", text="body")
    assert survey.keys_of(named, {7, 1}) == {1: "k1", 7: "k7"}
    assert survey.keys_of(source_of(tmp_path, {"body": TEXTS}, text="body"), {7, 1}) == {1: "1", 7: "7"}
    assert survey.keys_of(named, set()) == {}


def test_the_first_repeats_name_the_rows_that_they_repeat(tmp_path: Path) -> None:
    found = survey.survey(source_of(tmp_path, {"body": TEXTS}, text="body"), 10)
    assert found.first_repeats == ((7, 0), (9, 5))


# ---- a table beyond one slice


@given(
    st.lists(st.sampled_from(["", " ", "a", "b", "c", "d", "研究"]), max_size=60),
    st.sampled_from([1, 2, 7, 100]),
    st.sampled_from([1, 3, 8, 100]),
)
def test_repeats_are_found_whatever_slices_and_groups_they_lie_in(texts: list[str], height: int, group: int) -> None:
    smaller = patch.multiple(survey, _SLICE_ROWS=height, _GROUP_ROWS=group, _FRAME_ROWS=2)
    with tempfile.TemporaryDirectory() as folder, smaller:
        source = source_of(Path(folder), {"body": pl.Series(texts, dtype=pl.String)}, text="body")
        found = survey.survey(source, len(texts))
        said = [(row, text) for row, text in enumerate(texts) if text.strip()]
        repeats = [row for row, text in said if text in texts[:row]]
        assert flags(found, "repeat").arg_true().to_list() == repeats
        assert flags(found, "empty").arg_true().to_list() == [row for row, text in enumerate(texts) if not text.strip()]
        assert found.first_repeats == tuple((row, texts.index(texts[row])) for row in repeats[: survey.EXAMPLES])
        assert table(found)["row"].to_list() == list(range(len(texts)))
        assert table(found)["size"].to_list() == [len(text.encode()) for text in texts]


def test_what_is_told_of_some_rows_is_what_is_told_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_SLICE_ROWS", 300)
    monkeypatch.setattr(survey, "_FRAME_ROWS", 100)
    source = source_of(tmp_path, {"body": ["x" * (row % 977) for row in range(1000)]}, text="body")
    found = survey.survey(source, 1000)
    for rows in ([], [0], [299, 300, 999], range(0, 1000, 7)):
        numbers = pl.Series(rows, dtype=pl.UInt32)
        assert found.at(numbers).equals(table(found)[numbers.cast(pl.Int64)])


def test_no_room_beside_the_table_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path, {"body": [f"{row}" for row in range(1000)]}, text="body")
    monkeypatch.setattr(spill, "_IN_MEMORY_BYTES", 1)
    with Path("/dev/full").open("w+b", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: full)
        with pytest.raises(InputError, match="cannot look over the table: No space left on device"):
            survey.survey(source, 1000)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.sets(st.integers(0, 59)), st.sets(st.integers(1, 59)))
def test_within_ranges_a_row_repeats_only_what_stands_in_its_own(
    hashes: list[int], bounds: set[int], cuts: set[int]
) -> None:
    rows = len(hashes)
    places = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    slices = [pl.DataFrame({"hash": pl.Series(hashes[a:b], dtype=pl.UInt64)}) for a, b in pairwise(places)]
    facts = [each.with_columns(size=pl.lit(1, pl.UInt32), kind=pl.lit(0, pl.UInt8), empty=False) for each in slices]
    first_repeats = tuple((row, hashes.index(each)) for row, each in enumerate(hashes) if each in hashes[:row])
    found = Survey(rows, facts, [], first_repeats, slices).within(sorted({0, *bounds}))
    starts = sorted({0, rows, *(bound for bound in bounds if bound < rows)})
    expected = [hashes[row] in hashes[a:row] for a, b in pairwise(starts) for row in range(a, b)]
    assert flags(found, "repeat").to_list() == expected
    assert found.repeated() == sum(expected)
    assert [row for row, _ in found.first_repeats] == [row for row, repeats in enumerate(expected) if repeats]
