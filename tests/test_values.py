import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Literal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cells import as_text, cells, json_cells, kind, texts, written
from pipeline.templates import Template
from pipeline.values import Exact, Unreadable, json_text

MAP = pl.Map(pl.String(), pl.Decimal(5, 2))
DATES = pl.Map(pl.String(), pl.Date())


def printed(column: pl.Series) -> list[str]:
    """What `{{ x }}` makes of each value."""
    template = Template("{{ x }}", "job.toml")
    return [template.render({"x": value}) for value in cells(column)]


@pytest.mark.case("T9")
@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pl.Series([0.1], dtype=pl.Float32), "0.1"),
        (pl.Series([16_777_216.0], dtype=pl.Float32), "16777216.0"),
        (pl.Series([0.1], dtype=pl.Float16), "0.1"),
        (pl.Series([65_504.0], dtype=pl.Float16), "65504.0"),
        (pl.Series([-1.5e-07], dtype=pl.Float16), "-0.0000002"),
        (pl.Series([Decimal("1.50")]), "1.50"),
        (pl.Series([Decimal("12345678901234567890123456.10")]), "12345678901234567890123456.10"),
        (pl.Series([[Decimal("1.50"), None]]), "[1.50, None]"),
        (pl.Series([[0.1, 0.2]], dtype=pl.List(pl.Float32)), "[0.1, 0.2]"),
        (pl.Series([[0.1, 0.2]], dtype=pl.Array(pl.Float32, 2)), "[0.1, 0.2]"),
        (pl.Series([[date(2024, 1, 2)]]), "[2024-01-02]"),
        (pl.Series([[[date(2024, 1, 2)], []]]), "[[2024-01-02], []]"),
        (pl.Series([{"price": Decimal("1.50"), "on": date(2024, 1, 2)}]), "{'price': 1.50, 'on': 2024-01-02}"),
        (pl.Series([[{"at": time(1, 2, 3)}]]), "[{'at': 01:02:03}]"),
        (pl.Series([{"a": Decimal("1.50"), "b": None}], dtype=MAP), "{'a': 1.50, 'b': None}"),
        (pl.Series([[{"a": Decimal("1.50")}], []], dtype=pl.List(MAP)).head(1), "[{'a': 1.50}]"),
        (pl.Series([{"m": {"a": date(2024, 1, 2)}}], dtype=pl.Struct({"m": DATES})), "{'m': {'a': 2024-01-02}}"),
        (pl.Series([{1: 0.1}], dtype=pl.Map(pl.Int8(), pl.Float32())), "{1: 0.1}"),
        (pl.Series([{date(2024, 1, 2): [0.1]}], dtype=pl.Map(pl.Date(), pl.List(pl.Float32()))), "{2024-01-02: [0.1]}"),
        (pl.Series([["a", 'b"c']]), "['a', 'b\"c']"),
        (pl.Series([True]), "True"),
        (pl.Series([[True, None]]), "[True, None]"),
        (pl.Series([datetime(2024, 1, 2, 3, 4, 5)]), "2024-01-02 03:04:05"),
        (pl.Series([timedelta(days=1, seconds=3)]), "1 day, 0:00:03"),
        (pl.Series([2**63], dtype=pl.UInt64), "9223372036854775808"),
        (pl.Series([2**100], dtype=pl.Int128), str(2**100)),
        (pl.Series(["red"], dtype=pl.Categorical), "red"),
        (pl.Series([None], dtype=pl.Null), ""),
    ],
)
def test_a_value_prints_as_a_person_would_write_it(column: pl.Series, text: str) -> None:
    assert printed(column) == [text]


@pytest.mark.case("T9")
@pytest.mark.parametrize(
    ("dtype", "number", "text"),
    [
        (pl.Datetime("ns"), 1_704_164_645_123_456_789, "2024-01-02 03:04:05.123456789"),
        (pl.Datetime("ns"), -1, "1969-12-31 23:59:59.999999999"),
        (pl.Datetime("ns", "Europe/Berlin"), 1_704_164_645_000_000_001, "2024-01-02 04:04:05.000000001+01:00"),
        (pl.Datetime("ns"), 1_704_164_645_000_000_000, "2024-01-02 03:04:05"),
        (pl.Time, 3_723_000_000_001, "01:02:03.000000001"),
        (pl.Duration("ns"), 3_000_000_001, "0:00:03.000000001"),
        (pl.Duration("us"), 3_000_001, "0:00:03.000001"),
    ],
)
def test_nanoseconds_have_all_nine_digits(dtype: pl.DataType, number: int, text: str) -> None:
    assert printed(pl.Series([number]).cast(dtype)) == [text]
    assert printed(pl.Series([[number]]).cast(pl.List(dtype))) == [f"[{text}]"]


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_moment_of_a_nanosecond_column_is_exact(number: int) -> None:
    (text,) = printed(pl.Series([number]).cast(pl.Datetime("ns")))
    moment, _, fraction = text.partition(".")
    seconds = (datetime.fromisoformat(moment) - datetime(1970, 1, 1)) // timedelta(seconds=1)
    assert seconds * 10**9 + int(fraction.ljust(9, "0") or 0) == number


@pytest.mark.case("T8")
@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        (pl.Datetime("ms"), 1_704_164_645_000_000),
        (pl.Datetime("ms"), 2**63 - 1),
        (pl.Datetime("us"), -(2**63)),
        (pl.Datetime("us", "Asia/Tokyo"), 2**62),
        (pl.Duration("ms"), 2**62),
        (pl.Date, 2**31 - 1),
        (pl.Date, -(2**31)),
    ],
)
def test_a_value_that_python_has_no_type_for_is_named(dtype: pl.DataType, number: int) -> None:
    column = pl.Series("when", [None, 0, number]).cast(pl.Int32 if dtype == pl.Date else pl.Int64).cast(dtype)
    null, zero, far = cells(column)
    assert null is None and not isinstance(zero, Unreadable)
    assert isinstance(far, Unreadable) and "when" in str(far) and str(number) in str(far)
    nested = cells(pl.DataFrame({"when": column}).select(pl.struct("when").implode().alias("rows")).to_series())
    assert isinstance(nested[0], Unreadable)
    assert texts(column)[0] is None and str(number) in str(texts(column)[2])
    shown = pl.DataFrame({"when": column}).select(as_text("when", dtype)).to_series()
    assert shown.n_unique() == 3


@pytest.mark.parametrize("edge", [date.min, date.max])
def test_the_first_and_the_last_year_are_there(edge: date) -> None:
    moment = datetime.combine(edge, time.max if edge == date.max else time.min)
    assert cells(pl.Series([edge])) == [edge]
    assert cells(pl.Series([moment], dtype=pl.Datetime("us"))) == [moment]


def test_decimals_compare_among_themselves() -> None:
    prices = cells(pl.Series([Decimal("10.00"), Decimal("9.50")]))
    assert Template("{{ a < b }} {{ b < a }} {{ [a, b]|min }}", "w").render(dict(zip("ab", prices, strict=True))) == (
        "False True 9.50"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ x|float > 1 }}", "True"),
        ("{{ x|int }}", "1"),
        ("{{ x ~ '' }}", "1.50"),
        ("{{ x|replace('.', ',') }}", "1,50"),
        ("{{ x.split('.')[0] }}", "1"),
        ("{% if x %}y{% endif %}", "y"),
        ("{{ x|tojson }}", "1.50"),
        (
            "{{ x > 1 }} {{ 1 < x < 2 }} {{ x < 1.5 }} {{ x == 1.5 }} {{ x != 1.5 }} {{ x >= x }}",
            "True True False True False True",
        ),
        ("{{ x in [1.5] }} {{ x is eq(1.5) }} {{ x is gt 1 }} {{ x == '1.50' }}", "True True True False"),
        ("{{ x * 2 }} {{ 1 + x }} {{ -x }} {{ x|round(1) }} {{ x|abs }}", "3.0 2.5 -1.5 1.5 1.5"),
        ("{{ [x]|tojson }}", "[1.50]"),
    ],
)
def test_a_decimal_in_a_template(source: str, text: str) -> None:
    assert Template(source, "w").render({"x": Exact("1.50")}) == text


# ---- JSON in


@pytest.mark.case("T5", "T6")
@pytest.mark.parametrize(
    "text",
    [
        '{"key_0":0}',
        '{"key_1" : [1.0, true, null]}',
        "[1, {}]",
        "9007199254740993",
        "1.5",
        "true",
        str(10**60),
        "[1e2]",
    ],
)
def test_a_json_cell_prints_as_it_stands(text: str) -> None:
    template = Template("{{ x }}", "w")
    (value,) = json_cells(pl.Series([text]))
    assert template.render({"x": value}) == ("True" if text == "true" else text)


def test_a_json_cell_is_an_object_to_the_template() -> None:
    (value,) = json_cells(pl.Series(['{"a": {"b": [9007199254740993, 0.1, 0.10000000000000000001]}, "c": "x"}']))
    source = (
        "{{ x.a.b[0] }} {{ x.a.b[1] }} {{ x.a.b[2] }} {{ x.c }} {{ x['c']|upper }}{% for k in x %} {{ k }}{% endfor %}"
    )
    assert Template(source, "w").render({"x": value}) == "9007199254740993 0.1 0.10000000000000000001 x X a c"


# ---- JSON out


@pytest.mark.case("P6")
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("<b> & 'x' \"", '"<b> & \'x\' \\""'),
        ("客户\n", '"客户\\n"'),
        (2**100, str(2**100)),
        ([1, 1.5, None, True], "[1, 1.5, null, true]"),
        ({"a": {"b": []}, "c": {}}, '{"a": {"b": []}, "c": {}}'),
        ([Exact("1.50"), date(2024, 1, 2)], '[1.50, "2024-01-02"]'),
        (math.nan, "null"),
    ],
)
def test_json_is_not_escaped_and_exact(value: object, text: str) -> None:
    assert Template("{{ x|tojson }}", "w").render({"x": value}) == text


def test_json_can_be_indented() -> None:
    assert json_text({"a": [1, {}], "b": []}, 2) == '{\n  "a": [\n    1,\n    {}\n  ],\n  "b": []\n}'
    assert json_text({"a": 1}, True) == json_text({"a": 1}, 2)


# ---- kinds


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (pl.String(), "text"),
        (pl.Int8(), "number"),
        (pl.Float32(), "number"),
        (pl.Decimal(10, 2), "number"),
        (pl.Date(), "time"),
        (pl.Duration(), "time"),
        (pl.Boolean(), "truth"),
        (pl.List(pl.Int8()), None),
        (pl.Null(), None),
    ],
)
def test_the_kind_of_a_column(dtype: pl.DataType, expected: str | None) -> None:
    assert kind(dtype) == expected


# ---- text out

MOMENTS = [1_704_164_645_123_456_789, 0, -1, None, 1_704_164_645_000_000_000]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_times_are_written_as_polars_writes_them(unit: Literal["ms", "us", "ns"], zone: str | None) -> None:
    per_unit = {"ms": 10**6, "us": 10**3, "ns": 1}[unit]
    numbers = pl.Series("v", [None if number is None else number // per_unit for number in MOMENTS])
    frame = numbers.cast(pl.Datetime(unit, zone)).to_frame()
    assert pl.DataFrame({"v": written(frame["v"], ".csv")}).write_csv() == frame.write_csv()
    nested = frame.select(v=pl.struct(a=pl.concat_list("v")))
    for each in (frame, nested):
        lines = [f'{{"v":{text}}}' for text in written(each["v"], ".jsonl").fill_null("null")]
        assert lines == each.write_ndjson().splitlines()


def test_dates_are_written_as_polars_writes_them() -> None:
    frame = pl.Series("v", [0, 19_000, -1_000_000, 90_000_000, None], dtype=pl.Int32).cast(pl.Date).to_frame()
    assert pl.DataFrame({"v": written(frame["v"], ".csv")}).write_csv() == frame.write_csv()


@pytest.mark.case("T8")
@pytest.mark.parametrize(
    ("dtype", "far"), [(pl.Datetime("ms"), 2**62), (pl.Datetime("us", "UTC"), -(2**63)), (pl.Date, -(2**31))]
)
def test_what_has_no_text_is_written_by_its_number(dtype: pl.DataType, far: int) -> None:
    column = pl.Series("v", [far, None]).cast(pl.Int32 if dtype == pl.Date else pl.Int64).cast(dtype)
    assert written(column, ".csv").to_list() == [str(far), None]
    assert written(column, ".jsonl").fill_null("null").to_list() == [str(far), "null"]
    nested = pl.DataFrame({"v": column}).select(v=pl.struct(a=pl.concat_list("v"))).to_series()
    assert written(nested, ".jsonl").to_list() == [f'{{"a":[{far}]}}', '{"a":[null]}']


@pytest.mark.case("T8", "T9")
def test_a_mapping_far_away_in_time_is_named_and_written_by_its_number() -> None:
    column = pl.Series("v", [{"a": 2**31 - 1, "b": None}, None, {}], dtype=pl.Map(pl.String(), pl.Int32())).cast(DATES)
    assert cells(column) == [
        Unreadable("v", f"{2**31 - 1} days since 1970, a date outside the years 1 to 9999"),
        None,
        {},
    ]
    assert written(column, ".jsonl").fill_null("null").to_list() == ['{"a":2147483647,"b":null}', "null", "{}"]
    assert column.to_frame().select(as_text("v", column.dtype))["v"].to_list()[0] == '{"v":{"a":2147483647,"b":null}}'


@pytest.mark.case("T5", "T9")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ m }}", '{"p":{"q":1.50,"é":null},"l":[1,[true,{}]]}'),
        ("{{ m.p }}", '{"q": 1.50, "é": null}'),
        ("{{ m.l }} {{ m.l[1] }} {{ m.l[1][1] }}", "[1, [true, {}]] [true, {}] {}"),
        ("{% for x in [m.p, m.l] %}{{ x }};{% endfor %}", '{"q": 1.50, "é": null};[1, [true, {}]];'),
        ("{{ m.p ~ '' }} {{ m.p|string }} {{ m.p|tojson }}", " ".join(['{"q": 1.50, "é": null}'] * 3)),
        ("{{ m.p.q + 1 }} {{ m.p.q > 1 }} {{ m.p.q is number }}", "2.5 True True"),
        ("{{ m.items()|list|length }} {{ m.l|length }} {{ m.p.get('q') }}", "2 2 1.50"),
    ],
)
def test_what_is_within_a_json_cell_prints_as_json(source: str, text: str) -> None:
    (cell,) = json_cells(pl.Series(['{"p":{"q":1.50,"é":null},"l":[1,[true,{}]]}']))
    assert Template(source, "t").render({"m": cell}) == text
