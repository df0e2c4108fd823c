"""Values and templates through a whole run, offline: which rows run, which do not, and what reaches the model."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from commands import Ran

FAR = 2**62
JOB = """
[input]
path = "in.parquet"
{input}
[prompt]
template = '''{template}'''
[model]
name = "gemini-3.5-flash-lite"
[output]
path = "out.{suffix}"
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(template: str, input: str = "", suffix: str = "parquet") -> str:
    Path("job.toml").write_text(JOB.format(template=template, input=input, suffix=suffix), "utf-8")
    return "job.toml"


@pytest.mark.case("T8")
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize(
    ("dtype", "far"),
    [(pl.Datetime("ms"), FAR), (pl.Duration("ms"), FAR), (pl.Date, 2**31 - 1), (pl.List(pl.Datetime("us")), [-FAR])],
)
def test_a_value_out_of_range_makes_its_row_invalid_and_others_run(
    cli: Callable[..., Ran], dtype: pl.DataType, far: object, suffix: str
) -> None:
    near: object = [0] if isinstance(far, list) else 0
    if suffix == "csv" and dtype not in (pl.Datetime("ms"), pl.Date):
        return  # which a CSV cannot hold
    numbers = pl.Series("at", [near, far, None], dtype=pl.Int32 if dtype == pl.Date else None)
    pl.DataFrame({"at": numbers.cast(dtype), "n": [1, 2, 3]}).write_parquet("in.parquet")
    path = job("When? {{ at }} {{ n }}", suffix=suffix)
    assert cli("check", path, "--offline").code == 0
    assert cli("estimate", path).code == 0
    assert cli("run", path, "--offline", "--yes").code == 1
    written = Path(f"out-offline.{suffix}")
    frame = (
        pl.read_parquet(written)
        if suffix == "parquet"
        else pl.read_csv(written)
        if suffix == "csv"
        else pl.read_ndjson(written)
    )
    assert frame["status"].to_list() == ["ok", "invalid", "ok"]
    assert frame["error_kind"][1] == "template_error"
    number = far[0] if isinstance(far, list) else far
    assert "column at" in frame["error"][1] and str(number) in frame["error"][1]


@pytest.mark.case("T8")
@pytest.mark.parametrize("dtype", [pl.Datetime("ms"), pl.Duration("ms")])
def test_an_id_out_of_range_is_an_id(cli: Callable[..., Ran], dtype: pl.DataType) -> None:
    pl.DataFrame({"at": pl.Series([FAR, 2**61, 5]).cast(dtype), "n": [1, 2, 3]}).write_parquet("in.parquet")
    path = job("{{ n }}", 'id = "at"')
    assert cli("check", path, "--offline").code == 0
    assert cli("estimate", path).code == 0
    assert cli("run", path, "--offline", "--yes").code == 0
    pl.DataFrame({"at": pl.Series([FAR, FAR]).cast(dtype), "n": [1, 2]}).write_parquet("in.parquet")
    ran = cli("check", path, "--offline")
    assert ran.code == 2 and "at is not unique" in ran.out and str(FAR) in ran.out


@pytest.mark.case("P1", "P4", "P5", "T15")
@pytest.mark.parametrize(
    ("template", "input", "word", "hint"),
    [
        ("{{ txet[:3] }}", "", "txet", "`text`"),
        ("{% if score > 3 %}x{% endif %}", "", "`score` is text", "score|float"),
        ("{{ order-id }}", "", "not a column", 'row["order-id"]'),
        ("{{ text }}", 'text = "body"', "`text`", 'row["text"]'),
    ],
)
def test_what_is_wrong_with_every_row_is_said_before_anything_is_sent(
    cli: Callable[..., Ran], template: str, input: str, word: str, hint: str
) -> None:
    Path("in.csv").write_text("order-id,text,body,score\n1,a,b,10\n", "utf-8")
    path = job(template, input)
    Path(path).write_text(Path(path).read_text("utf-8").replace("in.parquet", "in.csv"), "utf-8")
    for command in (("check", path, "--offline"), ("estimate", path), ("run", path, "--offline", "--yes")):
        ran = cli(*command)
        said = ran.out + ran.err
        assert ran.code == 2 and word in said and hint in said and "line 1" in said
    assert not Path("runs").exists()
