"""JSONL values reach the prompt and the output as they stand in the file, or their line is named."""

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import orjson
import polars as pl
import pytest
from commands import Ran
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import documents, fields, refused, refused_rows, write

from pipeline.source import open_source


def shown(path: str, **options: str) -> list[dict[str, str]]:
    """What a template prints for each cell."""
    return [{name: str(value) for name, value in row.items() if value is not None} for row in fields(path, **options)]


@pytest.mark.case("T5")
def test_each_object_has_its_own_keys(tmp_path: Path) -> None:
    rows = [
        {"id": 0, "meta": {"key_0": 0}},
        {"id": 1, "meta": {"key_1": 1}},
        {"id": 2, "meta": {}, "tags": [{"a": 1}, {"b": [2, {"c": None}]}]},
        {"id": 3},
    ]
    found = fields(write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), id="id")
    assert [{name: value for name, value in row.items() if value is not None} for row in found] == rows


@pytest.mark.case("T6")
@pytest.mark.parametrize(
    "numbers",
    [
        ["9007199254740993", "1.5"],
        ["3", "1.5"],
        ["18446744073709551616", "-170141183460469231731687303715884105729", "1"],
        ["9223372036854775807", "-9223372036854775808", "9223372036854775808"],
        ["0.1", "1234567.125", "-0.5"],
        ["0.1000000000000000055511151231257827"],
    ],
)
def test_numbers_keep_their_digits(tmp_path: Path, numbers: list[str]) -> None:
    for start in ('{"v":', '{"v": '):  # as most tools write, and as Python's json does
        path = write(tmp_path / "a.jsonl", "".join(f"{start}{number}}}\n" for number in numbers))
        assert [row["v"] for row in shown(path)] == numbers


@pytest.mark.case("T6")
def test_where_compares_numbers_that_are_exact_texts_to_the_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"v":3,"w":1e2}\n{"v":1.50,"w":7}\n{"w":null}\n')
    assert open_source(path, where="v >= 3").count() == 1
    assert open_source(path, where="w > 7 OR w IS NULL").count() == 2
    assert open_source(path, where="v < 3 AND w = 7").count() == 1
    path = write(tmp_path / "b.jsonl", '{"v":18446744073709551617}\n{"v":18446744073709551616}\n')
    assert open_source(path, where="v = 18446744073709551617").count() == 1


@pytest.mark.case("T7")
@pytest.mark.parametrize(
    "cells",
    [
        ["1", "true"],
        ["1", "[1,2]", '{"a":1}'],
        ["[]", '{"a":{"b":[]}}'],
        ['"text"', "7", '"7 \\"x\\""', "null", "false"],
        ["[1]", '["a"]', '[{"a":1},2,null]'],
        ['{"a":1}', '{"a":"x"}', '{"a":[1]}'],
    ],
)
def test_mixed_types_keep_each_its_own(tmp_path: Path, cells: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", "".join(f'{{"id":{row},"k":{cell}}}\n' for row, cell in enumerate(cells)))
    assert open_source(path).json_columns == {"k"}
    assert [row["k"] for row in fields(path, id="id")] == [json.loads(cell) for cell in cells]


@pytest.mark.case("T7")
def test_an_id_or_a_text_of_mixed_types_is_refused_with_column_lines_and_both_types(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"k":"x"}\n{"k":"y"}\n{"k":true}\n')
    said = f"column `k` of {path} holds text ({path}, line 1); true or false ({path}, line 3)"
    assert refused(lambda: open_source(path, id="k")).message == said
    assert refused(lambda: open_source(path, text="k")).message == said
    path = write(tmp_path / "b.jsonl", '{"k":"x"}\n{"k":18446744073709551616}\n{"k":7}\n')
    source = open_source(path, id="k")
    source.check()
    assert [document.key for document in documents(source)] == ["x", "18446744073709551616", "7"]
    path = write(tmp_path / "c.jsonl", '{"k":"7"}\n{"k":7}\n')
    assert 'k is not unique: 1 value repeats (first: "7", rows 0 and 1)' in refused_rows(path, id="k").message


@pytest.mark.case("T7")
def test_files_of_a_glob_may_differ_in_types(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"a":1}\n')
    write(tmp_path / "b.jsonl.gz", gzip.compress(b'{"a":[1],"b":"x"}\n'))
    path = str(tmp_path / "*.jsonl*")
    assert fields(path) == [{"a": 1, "b": None}, {"a": [1], "b": "x"}]


@pytest.mark.case("T12")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r'{"a":"\ud83d"}', r"line 3, column `a`: \ud83d is half a character"),
        (r'{"b":1,"a":["\ude00 x"]}', r"line 3, column `a`: \ude00 is half a character"),
        (r'{"a\ud83d":1}', r"line 3, column `a\ud83d`: \ud83d is half a character"),
        ('{"a":1,"b":2,"a":3}', "line 3: the key `a` stands twice"),
        (f'{{"a": {"[" * 300}{"]" * 300}}}', "line 3 is nested too deeply"),
        ('{"a": {"x": 1, "x": 1}}', "line 3: the key `x` stands twice"),
        (r'{"a":1,"\u0061":"b:c"}', "line 3: the key `a` stands twice"),
        ('{"a":NaN}', "line 3: NaN is not JSON"),
        ('{"a":-Infinity}', "line 3: -Infinity is not JSON"),
        ('{"a": ', "line 3, column"),
        ("[1, 2]", "line 3 is not a JSON object"),
        ('{"a":1}{"a":2}', "line 3, column 8: not JSON"),
        ('{"a":1}\r{"a":2}', "line 3, column"),
    ],
)
def test_a_line_that_says_nothing_certain_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"a": "\\ud83d\\ude00"}}\n\n{line}\n')
    error = refused(lambda: open_source(path))
    assert error.message.startswith(f"{path}, {said}") and error.hint


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a": "ok"}\n{"a": "\xff"}\n')
    assert refused(lambda: open_source(path)).message == f"{path}, line 2, byte 8: not UTF-8 (\\xff)"
    path = write(tmp_path / "b.jsonl", "\n\n")
    assert refused(lambda: open_source(path)).message == f"{path} is empty"
    error = refused(lambda: open_source(write(tmp_path / "c.jsonl", '[{"a": 1},\n{"a": 2}]\n')))
    assert "line 1, column" in error.message and "jq" in error.hint


def test_marks_blank_lines_and_deep_or_wide_objects_are_read(tmp_path: Path) -> None:
    deep = '{"d":' + "[" * 100 + "]" * 100 + "}"
    path = write(tmp_path / "a.jsonl", f'\ufeff{{"a":"\\u0000\\/"}}\r\n\n  \n{{}}\n{deep}')
    assert [row["a"] for row in fields(path)] == ["\0/", None, None]
    names = [f"k{number}" for number in range(2000)]
    path = write(tmp_path / "b.jsonl", "".join(json.dumps(dict.fromkeys(names, row)) + "\n" for row in range(50)))
    assert fields(path, where="k1999 = 7") == [dict.fromkeys(names, 7)]
    path = write(tmp_path / "c.jsonl", '{"d":' + "[" * 3000 + "]" * 3000 + "}")
    assert f"{path}, line 1" in refused(lambda: open_source(path)).message


numbers = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["1.50", "1E5", "0.10", "-0.0", "1e-7", "100000000000000000000.0"]),
)
leaves = st.one_of(numbers, st.sampled_from(["null", "true", '"x"', '"a:b"', '"1.50"', '"\\u003a\\""', '"中"']))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.dictionaries(st.sampled_from(["p", "q:"]), inner, max_size=2).map(
            lambda pairs: "{" + ", ".join(f'"{name}": {value}' for name, value in pairs.items()) + "}"
        ),
    ),
    max_leaves=6,
)


@pytest.mark.case("T5", "T6", "T7")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c:"]), values, min_size=1), min_size=1, max_size=5))
def test_whatever_json_says_comes_back_to_the_digit(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    lines = ["{" + ",".join(f'"{name}":{value}' for name, value in row.items()) + "}" for row in rows]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    source = open_source(path)
    frame = pl.concat(list(source.batches(columns=list(source.schema))))

    def exact(text: str) -> object:
        return json.loads(text, parse_float=Decimal)

    for line, row in zip(lines, frame.iter_rows(named=True), strict=True):
        told = {
            name: exact(cell if name in source.json_columns else orjson.dumps(cell).decode())
            for name, cell in row.items()
            if name in source.schema and cell is not None
        }
        assert told == {name: value for name, value in exact(line).items() if value is not None}  # type: ignore[attr-defined]


JOB = """
[input]
path = "in.jsonl"
id = "id"
[prompt]
template = "About {{ meta }} and {{ v }}"
[model]
name = "gemini-3.5-flash-lite"
[output]
path = "out.jsonl"
"""


@pytest.mark.case("T5", "T6", "T7")
def test_objects_and_digits_reach_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "job.toml", JOB)
    lines = [
        '{"id":"a","meta":{"key_0":0},"v":9007199254740993}',
        '{"id":"b","meta":{"key_1":1.50},"v":"1.50 \\"x\\""}',
        '{"id":"c","v":true,"meta":null}',
    ]
    write(tmp_path / "in.jsonl", "\n".join(lines))
    for suffix in ("jsonl", "parquet", "csv"):
        assert cli("run", "job.toml", "--offline", "--out", f"out.{suffix}", "--fresh", "--yes").code == 0
    written = (tmp_path / "out.jsonl").read_text().splitlines()
    assert '"meta":{"key_1":1.50},"v":"1.50 \\"x\\""' in written[1]
    assert [list(json.loads(line).items())[:3] for line in written] == [
        [("id", "a"), ("meta", {"key_0": 0}), ("v", 9007199254740993)],
        [("id", "b"), ("meta", {"key_1": 1.5}), ("v", '1.50 "x"')],
        [("id", "c"), ("meta", None), ("v", True)],
    ]
    for frame in (pl.read_parquet("out.parquet"), pl.read_csv("out.csv", infer_schema=False)):
        assert frame["meta"].to_list() == ['{"key_0":0}', '{"key_1":1.50}', None]
        assert frame["v"].to_list() == ["9007199254740993", '1.50 "x"', "true"]


@pytest.mark.case("T6")
def test_minus_zero_stays_as_it_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"v":-0}\n{"v": -0 , "w": "-0"}\n{"v":-0.0}\n{"v":[-0,0]}\n')
    assert [str(row["v"]) for row in fields(path)] == ["-0", "-0", "-0.0", "[-0,0]"]


@pytest.mark.case("T5")
def test_a_key_may_be_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"":"x","a":1}\n{"":"y","a":{"":2}}\n')
    assert [str(row[""]) for row in fields(path)] == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ('[{"a":1},{"a":2}]\n', "jq -c '.[]' "),
        ('[\n{"a":1}\n]\n', "jq -c '.[]' "),
        ('{\n"a":1\n}\n', "jq -c '.' "),
        ('{"a":1}{"a":2}\n', "jq -c '.' "),
        ('{"a":1}\n{"a":2}{"a":3}\n', "jq -c '.' "),
        ('{"a":1e400}\n', "in quotes"),
        ('{"a":1}\n{"a":2\n{"a":3}\n', "mend the line"),
        ('{"a":1}\n{"a":2', "sed '$d' "),
    ],
)
def test_json_that_is_no_lines_is_answered_with_the_command_that_makes_them(
    tmp_path: Path, content: str, hint: str
) -> None:
    assert hint in refused(lambda: open_source(write(tmp_path / "a.jsonl", content))).hint


@pytest.mark.parametrize("where", [None, "other > 0"])
def test_an_id_that_stands_twice_or_nowhere_is_named_alike_whether_it_is_text_or_a_number(
    tmp_path: Path, where: str | None
) -> None:
    def told(*ids: str) -> str:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(f'{{"id": {id}, "other": 1}}\n' for id in ids).replace('"id": -, ', ""))
        return refused(lambda: open_source(str(path), id="id", where=where).check()).message

    assert told("1", "7", "1") == "id is not unique: 1 value repeats (first: 1, rows 0 and 2)"
    assert told('"a"', "2", '"a"') == 'id is not unique: 1 value repeats (first: "a", rows 0 and 2)'
    assert told("2", '"x"', '"2"') == 'id is not unique: 1 value repeats (first: "2", rows 0 and 2)'
    assert told("9" * 30, '"x"', "9" * 30).endswith(f'(first: "{"9" * 30}", rows 0 and 2)')
    assert told("1", "-", "null") == "id is empty in row 1"
    assert told('"a"', '"a"', "-") == "id is empty in row 2"
    assert open_source(str(tmp_path / "a.jsonl"), where=where).count() == 3


def test_many_keys_of_one_name_late_in_a_long_object_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{" + ",".join(f'"{number}":1' for number in range(200_000)) + ',"7":2,"8":3}')
    assert refused(lambda: open_source(str(path))).message == f"{path}, line 1: the key `7` stands twice"


def test_a_colon_that_is_escaped_hides_no_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "b", "a": "\\u003A"}')
    assert refused(lambda: open_source(str(path))).message.endswith("line 1: the key `a` stands twice")
