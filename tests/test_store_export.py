import csv
import json
import os
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import result

from pipeline.errors import InputChanged, InputError, OutputError, RunStateError
from pipeline.records import Result
from pipeline.source.order import BLOCK_ROWS, reading_order
from pipeline.store import export as exports
from pipeline.store import parts
from pipeline.store.export import RESULT_COLUMNS, ROW, Form, Unsealed, attempt, export, output_schema
from pipeline.store.place import Counted, held

FORMATS = (".parquet", ".csv", ".jsonl")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / "notes" / "results"
    directory.mkdir(parents=True)
    return directory


def seal(results: Path, *sealed: Iterable[Result]) -> None:
    """One part for each group."""
    for number, group in enumerate(sealed, parts.newest(results) + 1):
        parts.write_part(parts.results_frame(group), results, number)


def batches(frame: pl.DataFrame, size: int = 4) -> list[pl.DataFrame]:
    numbered = frame.with_row_index(ROW).with_columns(pl.col(ROW).cast(pl.Int64))
    return [numbered.slice(start, size) for start in range(0, frame.height, size)]


def write(frame: pl.DataFrame, results: Path, path: Path, rows: int | None = None, size: int = 4) -> pl.DataFrame:
    put(batches(frame, size), frame.schema, results, path, frame.height if rows is None else rows)
    return read(path)


def put(
    frames: Iterable[pl.DataFrame],
    own: pl.Schema,
    results: Path,
    path: Path,
    rows: int,
    overwrite: bool = True,
    keys: Callable[[pl.DataFrame], list[str]] | None = None,
    **form: Any,
) -> Counted:
    """Write the table in its place, as a run does."""
    counted: list[Counted] = []
    shape = Form(path.suffix, **form)

    def write(file: BinaryIO) -> Counted:
        counted.append(export(lambda: frames, own, results, file, shape, rows, keys))
        return counted[0]

    with held(path, results.parent, rows, overwrite, lambda file: attempt(own, shape, file)) as place:
        place.replace([write], lambda: None)
    return counted[0]


def read(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    return pl.read_csv(path, infer_schema=False) if path.suffix == ".csv" else pl.read_ndjson(path)


IDS = pl.DataFrame({"id": [f"d{row}" for row in range(10)]})


# ---- cells that a spreadsheet would run

RUN = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\tx",
    " =1",
    "\u3000\u200b=1",
    "\x00=1",
    "＝1",
    "＋1",
    "－1",
    "＠A",
    "\u2212 1",
]
CELLS = [*RUN, "plain", "a=b", "'=1", "x\n=1", "", None]


@pytest.mark.case("D16")
def test_csv_safe_puts_a_quote_before_text_that_a_spreadsheet_would_run(tmp_path: Path, results: Path) -> None:
    own = pl.DataFrame({"=text": CELLS, "kind": pl.Series(CELLS, dtype=pl.Categorical), "number": [-1] * len(CELLS)})
    seal(results, [result(row, response=cell, error=cell) for row, cell in enumerate(CELLS)])
    path = tmp_path / "out.csv"
    put(batches(own), own.schema, results, path, own.height, csv_safe=True)
    with path.open(newline="") as file:
        header, *table = csv.reader(file, strict=True)
    assert header[0] == "'=text", "a header is a cell too"
    safe = [f"'{cell}" if cell in RUN else cell or "" for cell in CELLS]
    for column in ("'=text", "kind", "response", "error"):
        assert [row[header.index(column)] for row in table] == safe, column
    assert {row[header.index("number")] for row in table} == {"-1"}, "numbers are numbers"


def test_a_csv_for_excel_has_a_mark_of_its_encoding_and_the_line_ends_of_windows(tmp_path: Path, results: Path) -> None:
    own = pl.DataFrame({"文": ["评论\nzwei", "3"]})
    seal(results, [result(0, response="答")])
    put(batches(own), own.schema, results, tmp_path / "out.csv", 2, excel=True)
    raw = (tmp_path / "out.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf") and raw.count(b"\r\n") == 3
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file, strict=True))
    assert (rows[0][0], rows[1][0], rows[1][2]) == ("文", "评论\nzwei", "答")


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_csv_safe_and_in_other_formats_text_stays_as_it_is(tmp_path: Path, results: Path, suffix: str) -> None:
    own = pl.DataFrame({"text": ["=1+1"]})
    put(batches(own), own.schema, results, tmp_path / f"out{suffix}", 1, csv_safe=suffix != ".csv")
    assert read(tmp_path / f"out{suffix}")["text"].to_list() == ["=1+1"]


# ---- which outcome stands in which row


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_come_in_input_order_whatever_the_order_they_were_answered_in(
    tmp_path: Path, results: Path, suffix: str
) -> None:
    order = list(range(10))
    random.Random(4).shuffle(order)
    seal(results, *([result(row)] for row in order))
    table = write(IDS, results, tmp_path / f"out{suffix}", size=3)
    assert table["id"].to_list() == IDS["id"].to_list()
    assert table["response"].to_list() == [f"answer {row}" for row in range(10)]


def test_the_later_outcome_of_a_row_wins(tmp_path: Path, results: Path) -> None:
    first = [result(row, "error", "server") for row in range(10)]
    seal(results, first, [result(3), result(8, "blocked", "recitation")], [result(8, response="at last")])
    table = write(IDS, results, tmp_path / "out.parquet")
    assert table["status"].to_list() == ["error"] * 3 + ["ok"] + ["error"] * 4 + ["ok", "error"]
    assert (table["response"][8], table["error"][8], table["error_kind"][0]) == ("at last", None, "server")


def test_what_is_not_sealed_yet_follows_the_parts_that_were_there_when_it_was_read(
    tmp_path: Path, results: Path
) -> None:
    seal(results, [result(0), result(1)], [result(1), result(2)])
    unsealed = Unsealed(1, parts.results_frame([result(1, status="truncated"), result(3)]))
    with (tmp_path / "out.csv").open("wb") as file:
        frames = batches(IDS, 4)
        counted = export(lambda: frames, IDS.schema, results, file, Form(".csv"), 5, unsealed=unsealed)
    assert counted == Counted(5, 3)
    assert read(tmp_path / "out.csv")["status"].to_list() == ["ok", "truncated", "pending", "ok", "pending"]


def test_a_row_without_an_outcome_is_pending_and_otherwise_empty(tmp_path: Path, results: Path) -> None:
    seal(results, [result(2)], [])
    table = write(IDS, results, tmp_path / "out.parquet")
    assert table["status"].to_list() == ["pending"] * 2 + ["ok"] + ["pending"] * 7
    pending = table.row(0, named=True)
    assert {name for name, value in pending.items() if value is not None} == {"id", "status"}


def test_without_any_part_every_row_is_pending(tmp_path: Path, results: Path) -> None:
    table = write(IDS, results, tmp_path / "out.parquet")
    assert table["status"].to_list() == ["pending"] * 10
    assert table.schema == output_schema(IDS.schema, Path("out.parquet"))


@pytest.mark.parametrize("rows", [1, 4, 5, 10])
def test_only_the_rows_of_this_run_are_written(tmp_path: Path, results: Path, rows: int) -> None:
    seal(results, [result(row) for row in range(10)])
    assert write(IDS, results, tmp_path / "out.csv", rows)["id"].to_list() == IDS["id"].to_list()[:rows]


def test_no_more_batches_are_read_than_the_rows_need(tmp_path: Path, results: Path) -> None:
    read_batches: list[int] = []

    def counted() -> Iterator[pl.DataFrame]:
        for number, batch in enumerate(batches(pl.DataFrame({"id": list(range(1000))}))):
            read_batches.append(number)
            yield batch

    put(counted(), pl.Schema({"id": pl.Int64}), results, tmp_path / "out.csv", 6)
    assert read_batches == [0, 1, 2]


@pytest.mark.case("O1")
def test_rows_that_the_input_has_lost_are_told_and_nothing_is_replaced(tmp_path: Path, results: Path) -> None:
    seal(results, [result(row) for row in (0, 1, 2)])
    (tmp_path / "out.csv").write_text("what was there")
    with pytest.raises(InputChanged, match="has 2 rows now, and had 3"):
        put(batches(IDS.head(2)), IDS.schema, results, tmp_path / "out.csv", 3)
    assert (tmp_path / "out.csv").read_text() == "what was there"


@pytest.mark.case("O1")
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_row_with_another_key_than_it_was_asked_under_is_told_by_its_number(
    tmp_path: Path, results: Path, suffix: str
) -> None:
    seal(results, [result(row, response=f"answer {row}") for row in range(10)])
    keyed = pl.DataFrame({"key": [f"key {row}" for row in range(10)], "n": list(range(10))})
    path = tmp_path / f"out{suffix}"

    def ids(frame: pl.DataFrame) -> list[str]:
        return [str(key) for key in frame["key"]]

    put(batches(keyed), keyed.schema, results, path, 10, keys=ids)
    assert read(path)["response"].to_list() == [f"answer {row}" for row in range(10)], "a column may be called `key`"
    before = path.read_bytes()
    swapped = keyed[[0, 1, 2, 4, 3, 5, 6, 7, 8, 9]]
    with pytest.raises(InputChanged, match="row 3 of the input is 'key 4' now, and was 'key 3'"):
        put(batches(swapped), keyed.schema, results, path, 10, keys=ids)
    assert path.read_bytes() == before


@given(
    history=st.lists(st.lists(st.tuples(st.integers(0, 24), st.sampled_from(["ok", "error", "blocked"])), max_size=12)),
    size=st.integers(1, 30),
    rows=st.integers(1, 25),
)
@settings(max_examples=25, deadline=None)
def test_any_history_of_parts_comes_out_as_a_dict_would_have_it(
    tmp_path_factory: pytest.TempPathFactory, history: list[list[tuple[int, Any]]], size: int, rows: int
) -> None:
    at = tmp_path_factory.mktemp("any")
    directory = at / "runs" / "any" / "results"
    directory.mkdir(parents=True)
    newest: dict[int, Result] = {}
    for number, group in enumerate(history, 1):
        outcomes = {row: result(row, status, response=f"{row} in {number}") for row, status in group}
        newest |= outcomes
        seal(directory, outcomes.values())
    frame = pl.DataFrame({"n": list(range(25))})
    table = write(frame, directory, at / "out.parquet", rows, size)
    assert table.select("n", "status", "response").rows() == [
        (row, newest[row].status, newest[row].response) if row in newest else (row, "pending", None)
        for row in range(rows)
    ]


# ---- columns and types


def test_the_columns_of_the_input_come_first_and_a_result_column_keeps_its_name(tmp_path: Path, results: Path) -> None:
    frame = pl.DataFrame({"status": ["mine"], "id": [1], "response": ["theirs"], "row": [9], "key": ["k"]})
    seal(results, [result(0)])
    table = write(frame, results, tmp_path / "out.parquet")
    assert table.columns[:6] == ["input_status", "id", "input_response", "row", "key", "status"]
    assert table.row(0)[:7] == ("mine", 1, "theirs", 9, "k", "ok", "answer 0")


@pytest.mark.parametrize("name", ["status", "cost_usd", "input_tokens"])
def test_an_output_may_be_the_input_again_and_again(name: str, tmp_path: Path, results: Path) -> None:
    frame = pl.DataFrame({name: ["2nd"], f"input_{name}": ["1st"], "id": [1]})
    seal(results, [result(0)])
    table = write(frame, results, tmp_path / "out.csv")
    own = table.columns[: len(table.columns) - len(RESULT_COLUMNS)]
    assert own == list(output_schema(frame.schema, Path("out.csv")))[:3] and own[2] == "id"
    assert own[0] == f"input_input_{name}" and own[1] in (f"input_{name}", f"input_input_input_{name}")
    assert table.row(0)[:2] == ("2nd", "1st") and table["status"].to_list() == ["ok"]


def test_every_format_is_typed_from_the_first_row_though_all_values_are_missing(tmp_path: Path, results: Path) -> None:
    nothing = replace(result(0, "error", "server"), error=None, error_kind=None, cost_usd=None, finished_at=None)
    seal(results, [nothing])
    frame = pl.DataFrame({"id": [None, None]}, schema={"id": pl.String})
    tables = {suffix: write(frame, results, tmp_path / f"out{suffix}") for suffix in FORMATS}
    schema = output_schema(frame.schema, Path("out.parquet"))
    assert tables[".parquet"].schema == schema
    assert {suffix: table.columns for suffix, table in tables.items()} == {suffix: list(schema) for suffix in FORMATS}
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [list(schema)] * 2
    assert [line["status"] for line in lines] == ["error", "pending"]


def test_the_same_table_comes_out_of_every_format(tmp_path: Path, results: Path) -> None:
    text = 'two\nlines, "quoted" 第一行 😀'
    full = result(1, "truncated", "truncated", response=text, cost_usd=Decimal("0.000000000001"), latency_s=1.5)
    seal(results, [result(0), full])
    frame = pl.DataFrame({"id": ["a", "b", "c"], "day": [date(2026, 11, 22)] * 3})
    tables = {suffix: write(frame, results, tmp_path / f"out{suffix}") for suffix in FORMATS}
    parquet = tables[".parquet"]
    assert parquet.schema["cost_usd"] == pl.Float64
    assert parquet["cost_usd"].to_list() == [0.01, 1e-12, None]
    for suffix in (".csv", ".jsonl"):
        table = tables[suffix]
        for name, dtype in parquet.schema.items():
            if dtype.is_temporal():
                assert [value and str(value)[:10] for value in table[name]] == [
                    value and str(value)[:10] for value in parquet[name]
                ]
            else:
                cells = table[name] == "true" if dtype == pl.Boolean and suffix == ".csv" else table[name]
                assert cells.cast(dtype).to_list() == parquet[name].to_list(), (suffix, name)


@pytest.mark.case("T9")
def test_a_number_that_json_lacks_is_its_word_and_not_null(tmp_path: Path, results: Path) -> None:
    values = [1.5, None, float("nan"), float("inf"), -float("inf"), -0.0, 1e300, 5e-324]
    path = tmp_path / "out.jsonl"
    for dtype in (pl.Float64, pl.Float32):
        frame = pl.DataFrame({"v": pl.Series(values[:6], dtype=dtype), "text": ['é,"\n'] * 6})
        put(batches(frame), frame.schema, results, path, 6)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["v"] for row in rows] == [1.5, None, "NaN", "Infinity", "-Infinity", 0.0]
        assert {row["text"] for row in rows} == {'é,"\n'} and str(rows[5]["v"]) == "-0.0"
    frame = pl.DataFrame({"v": values[6:]})
    put(batches(frame), frame.schema, results, path, 2)
    assert [json.loads(line)["v"] for line in path.read_text().splitlines()] == values[6:]


@pytest.mark.case("T9")
def test_a_number_that_json_lacks_is_its_word_at_any_depth(tmp_path: Path, results: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    one = {"on": date(2024, 1, 2), "l": [{"x": nan, "s": 'é"', "d": Decimal("1.50")}]}
    deep: list[Any] = [one, None, {"on": None, "l": []}]
    frame = pl.DataFrame(
        {
            "list": [[1.0, nan, None], [], None],
            "array": pl.Series([[0.1, -infinite], None, [1.0, 2.0]], dtype=pl.Array(pl.Float32, 2)),
            "deep": deep,
            "ones": [[1], [2], None],
            "named": pl.Series([{"a": nan, "b": 1.5}, None, {}], dtype=pl.Map(pl.String(), pl.Float64())),
        }
    )
    path = tmp_path / "out.jsonl"
    put(batches(frame), frame.schema, results, path, 3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["list"] for row in rows] == [[1.0, "NaN", None], [], None]
    assert [row["array"] for row in rows] == [[0.1, "-Infinity"], None, [1.0, 2.0]]
    told = {"on": "2024-01-02", "l": [{"x": "NaN", "s": 'é"', "d": "1.50"}]}
    assert [row["deep"] for row in rows] == [told, None, {"on": None, "l": []}]
    assert [row["ones"] for row in rows] == [[1], [2], None]
    assert [row["named"] for row in rows] == [{"a": "NaN", "b": 1.5}, None, {}]


def test_results_have_the_documented_types() -> None:
    schema = output_schema(pl.Schema({"id": pl.String}), Path("out.csv"))
    assert list(schema) == ["id", *RESULT_COLUMNS]
    assert {name for name, dtype in schema.items() if dtype == pl.Null} == set()
    assert schema["finished_at"] == pl.Datetime("ms", "UTC")


HOLDS: dict[str, tuple[pl.DataType, set[str]]] = {
    "list": (pl.List(pl.Int64()), {".parquet", ".jsonl"}),
    "array": (pl.Array(pl.Int64(), 2), {".parquet", ".jsonl"}),
    "struct": (pl.Struct({"a": pl.Int64()}), {".parquet", ".jsonl"}),
    "binary": (pl.Binary(), {".parquet"}),
    "binary in a list": (pl.List(pl.List(pl.Binary())), {".parquet"}),
    "binary in a struct": (pl.Struct({"a": pl.Struct({"b": pl.Binary()})}), {".parquet"}),
    "mapping": (pl.Map(pl.String(), pl.Float64()), {".parquet", ".jsonl"}),
    "mapping by number": (pl.Map(pl.Int8(), pl.Float64()), {".parquet"}),
    "binary in a mapping": (pl.Map(pl.String(), pl.Binary()), {".parquet"}),
    "duration": (pl.Duration("us"), {".parquet", ".jsonl"}),
    "decimal": (pl.Decimal(10, 2), set(FORMATS)),
    "time": (pl.Time(), set(FORMATS)),
    "null": (pl.Null(), set(FORMATS)),
    "category": (pl.Categorical(), set(FORMATS)),
}
VALUES: dict[str, Any] = {
    "list": [1],
    "array": [1, 2],
    "struct": {"a": 1},
    "mapping": {"a": 1.5},
    "mapping by number": {1: 1.5},
    "binary in a mapping": {"a": b"\xff"},
    "binary": b"\xff",
    "binary in a list": [[b"\xff"]],
    "binary in a struct": {"a": {"b": b"\xff"}},
    "duration": timedelta(1),
    "decimal": Decimal("1.5"),
    "category": "x",
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", HOLDS)
def test_a_column_that_a_format_cannot_hold_is_refused_before_the_run_and_any_other_is_written(
    tmp_path: Path, results: Path, kind: str, suffix: str
) -> None:
    dtype, holds = HOLDS[kind]
    frame = pl.DataFrame({"mine": pl.Series([VALUES.get(kind)], dtype=dtype)})
    path = tmp_path / f"out{suffix}"
    if suffix in holds:
        assert write(frame, results, path).height == 1
        return
    with pytest.raises(InputError) as caught:
        output_schema(frame.schema, path)
    assert caught.value.message.startswith("column `mine` is a ") and f"{path} cannot hold" in caught.value.message
    assert ".parquet" in caught.value.hint


# ---- replaced whole or not at all


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_old_file_stays_when_reading_or_writing_fails(tmp_path: Path, results: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text("what was there")

    def broken() -> Iterator[pl.DataFrame]:
        yield batches(IDS)[0]
        raise InputError("the input is gone")

    with pytest.raises(InputError, match="the input is gone"):
        put(broken(), IDS.schema, results, path, 10)
    seal(results, [result(0)])
    whole = (results / "part-000001.parquet").read_bytes()
    (results / "part-000001.parquet").write_bytes(whole[:50])
    with pytest.raises(RunStateError, match=r"part-000001\.parquet is damaged"):
        write(IDS, results, path)
    assert path.read_text() == "what was there"
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "runs"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path: Path, results: Path, suffix: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    path = tmp_path / f"out{suffix}"
    path.write_text("what was there")

    def write(_: BinaryIO) -> Counted:
        with Path("/dev/full").open("wb") as full:
            return export(lambda: batches(IDS), IDS.schema, results, full, Form(suffix), 10)

    with held(path, results.parent, 10, True, lambda file: None) as place, pytest.raises(OutputError) as caught:
        place.replace([write], lambda: None)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith(f"cannot write {path}: No space left on device")
    assert f"Every answer is safe in {results.parent}." in caught.value.message
    assert "nothing twice" in caught.value.hint
    assert path.read_text() == "what was there"
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "runs"]


def test_the_new_file_is_on_the_disk_before_it_takes_the_old_ones_name(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def synced(fd: int) -> None:
        steps.append("fsync")
        fsync(fd)

    def renamed(path: Path, to: Path) -> Path:
        steps.append(f"rename to {to.name}")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write(IDS, results, tmp_path / "new" / "out.csv")
    assert steps == ["fsync", "fsync", "rename to output.json", "rename to out.csv", "fsync"], "the folder's at last"


def test_the_output_has_the_permissions_of_any_file_the_user_makes(tmp_path: Path, results: Path) -> None:
    before = os.umask(0o027)
    try:
        write(IDS, results, tmp_path / "out.csv")
    finally:
        os.umask(before)
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o640


# ---- bounded memory


def sealed_in(results: Path, order: list[int], size: int, answer: str = "answer") -> None:
    """Answers to rows in the order they came, in parts of `size`."""
    for start in range(0, len(order), size):
        row = pl.Series("row", sorted(order[start : start + size]), dtype=pl.Int64)
        answers = row.to_frame().with_columns(status=pl.lit("ok"), response=answer + " " + row.cast(pl.String))
        frame = pl.concat([pl.DataFrame(schema=parts.RESULTS_SCHEMA), answers], how="diagonal")
        parts.write_part(frame, results, parts.newest(results) + 1)


@pytest.mark.parametrize("ascending", [True, False])
def test_of_parts_with_long_and_short_rows_in_turns_only_what_is_due_is_held(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch, ascending: bool
) -> None:
    """40 parts of 1,000 rows, as a run of a sorted table leaves them; 400 rows were answered once more at the end."""
    rows = 40_000
    held: dict[int, int] = {}  # rows of each frame that is in memory
    most: list[int] = []
    read = exports.Segment.read

    def watched(self: exports.Segment, more: Sequence[str]) -> pl.DataFrame:
        frame = read(self, more)
        held[id(frame)] = frame.height
        weakref.finalize(frame, held.pop, id(frame))
        most.append(sum(held.values()))
        return frame

    monkeypatch.setattr(exports.Segment, "read", watched)
    order = reading_order([pl.Series(range(1, rows + 1) if ascending else range(rows, 0, -1), dtype=pl.UInt32)])
    assert order
    sealed_in(results, [row for batch in order.batches for block in batch for row in rows_of(block, rows)], 1000)
    sealed_in(results, list(range(0, rows, 100)), 100, "again")
    table = write(pl.DataFrame({"id": range(rows)}), results, tmp_path / "out.parquet", size=1024)
    assert table["id"].to_list() == list(range(rows))
    expected = [f"{'answer' if row % 100 else 'again'} {row}" for row in range(rows)]
    assert table["response"].to_list() == expected
    assert 1000 <= max(most) <= 3000, "of 40,000; as many as in file order"


def rows_of(block: int, rows: int) -> range:
    return range(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS))


def test_a_part_is_read_piece_by_piece_where_its_rows_lie_far_apart(tmp_path: Path, results: Path) -> None:
    sealed_in(results, [3, 4, 4_100, 40_000, 40_001, 99_999], 6)
    kept = exports.ResultsByRow(results)
    assert [kept.between(row, row + 9)[ROW].to_list() for row in (0, 4_099, 20_000, 40_000, 90_000, 99_990)] == [
        [3, 4],
        [4_100],
        [],
        [40_000, 40_001],
        [],
        [99_999],
    ]
    pieces = [each for part, path in enumerate(parts.part_paths(results)) for each in exports.segments(part, path)]
    assert [(each.first, each.last) for each in pieces] == [(3, 4_100), (40_000, 40_001), (99_999, 99_999)]


_BIG = """
import sys
from pathlib import Path
import polars as pl
from pipeline.store import parts
from pipeline.store.export import ROW, Form, export

rows, size, results = 50_000, 500, Path(sys.argv[1])
for number in range(rows // size):
    row = pl.int_range(number * size, (number + 1) * size, eager=True)
    answers = pl.DataFrame({"row": row, "status": ["ok"] * size, "response": [f"{n:08}" * 400 for n in row]})
    frame = pl.concat([pl.DataFrame(schema=parts.RESULTS_SCHEMA), answers], how="diagonal")
    parts.write_part(frame, results, number + 1)

def batches():
    for start in range(0, rows, 4096):
        row = pl.int_range(start, min(start + 4096, rows), eager=True).alias(ROW)
        yield pl.DataFrame([row, row.cast(pl.String).alias("id")])

def peak_kb():  # getrusage would count the peak of the process that started this one
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

before = peak_kb()
for path in sys.argv[2:]:
    with open(path, "wb") as file:
        export(batches, pl.Schema({"id": pl.String}), results, file, Form(Path(path).suffix), rows)
    print((peak_kb() - before) // 1024)
"""


def test_50_000_answers_in_100_parts_are_exported_without_holding_them_all(tmp_path: Path, results: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    paths = [tmp_path / "out.csv", tmp_path / "out.parquet"]
    run = subprocess.run(
        [sys.executable, "-c", _BIG, str(results), *map(str, paths)], capture_output=True, text=True, check=True
    )
    assert paths[0].stat().st_size > 160_000_000
    csv_mb, both_mb = map(int, run.stdout.split())
    assert csv_mb < 130, run.stdout
    assert both_mb < 250, run.stdout  # with row groups of polars' own size: 330
    for scan in (pl.scan_csv(paths[0], infer_schema=False), pl.scan_parquet(paths[1])):
        in_order = (pl.col("response").str.head(8).cast(pl.Int64) == pl.col("id").cast(pl.Int64)).all()
        assert scan.select(pl.len(), in_order, pl.col("id").last()).collect(engine="streaming").row(0) == (
            50_000,
            True,
            "49999",
        )


@pytest.mark.case("O2")
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_full_disk_is_told_as_one_and_not_as_a_fault_of_the_format(suffix: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has a device that is always full")
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("wb", buffering=0) as file:
        attempt(IDS.schema, Form(suffix), file)


def footer_bytes(path: Path) -> int:
    """Length of a Parquet file's footer, which tells of each row group; it stands before the last four bytes."""
    return int.from_bytes(path.read_bytes()[-8:-4], "little")


def test_fewer_rows_of_long_answers_are_held_until_they_are_written(tmp_path: Path, results: Path) -> None:
    frame = pl.DataFrame({"n": pl.int_range(5_000, eager=True)})
    footers = []
    for characters in (1, 10_000, 1_000_000):  # one group, four, and what the writer's notes of many make the best
        seal(results, [replace(result(row), response="x" * characters) for row in range(4)])
        put(batches(frame, 1_000), frame.schema, results, tmp_path / "out.parquet", 5_000)
        assert pl.scan_parquet(tmp_path / "out.parquet").select(pl.len()).collect().item() == 5_000
        footers.append(footer_bytes(tmp_path / "out.parquet"))
    assert footers[0] + 1_000 < footers[1] and footers[1] + 3_000 < footers[2]


@pytest.mark.parametrize("last", [False, True])
def test_rows_that_are_long_in_one_place_only_make_every_group_small(tmp_path: Path, results: Path, last: bool) -> None:
    """As a table is that was sorted by length; but one long row alone does not."""
    footers = []
    for long_rows in (0, 1, 9_000):
        texts = ["short"] * (20_000 - long_rows)
        texts[len(texts) * last : len(texts) * last] = ["x" * 10_000] * long_rows
        frame = pl.DataFrame({"n": pl.Series(texts)})
        put(batches(frame, 1_000), frame.schema, results, tmp_path / "out.parquet", 20_000)
        assert pl.read_parquet(tmp_path / "out.parquet", columns=["n"]).equals(frame)
        footers.append(footer_bytes(tmp_path / "out.parquet"))
    assert footers[0] == pytest.approx(footers[1], abs=200)
    assert footers[2] > footers[0] + 3_000
