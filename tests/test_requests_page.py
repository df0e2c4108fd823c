"""The jobs of the page on requests run as they stand there."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from commands import Ran
from test_docs import PAGES, blocks

JOBS = blocks(PAGES["docs/requests.md"], "toml")
COLUMNS = [{"search_queries", "citations", "urls"}, {"function_calls"}]


def test_every_job_has_its_columns_here() -> None:
    assert len(JOBS) == len(COLUMNS)


@pytest.mark.parametrize("number", range(len(JOBS)))
def test_a_job_of_the_page_runs_and_has_the_columns_that_it_says(
    here: Path, cli: Callable[..., Ran], number: int
) -> None:
    (here / "firms.csv").write_text("firm,page\nAcme,https://example.com/acme\n")
    (here / "mails.csv").write_text("mail\nThe printer is on fire.\n")
    (here / "page.toml").write_text(JOBS[number])
    estimated = cli("estimate", "page.toml", "--offline", "--json").json
    ran = cli("run", "page.toml", "--offline", "--json")
    assert (ran.code, ran.json["ok"]) == (0, 1), ran.err
    bounds, read = estimated["input_tokens_range"], any("not counted" in each for each in estimated["assumptions"])
    assert read or bounds["low"] <= ran.json["input_tokens"] <= bounds["high"]
    (path,) = (here / "results").iterdir()
    table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ndjson(path)
    assert set(table.columns) >= COLUMNS[number]
    assert all(table[name][0] is not None for name in COLUMNS[number])
