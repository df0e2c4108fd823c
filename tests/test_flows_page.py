"""What the pages on flows and on redaction show can be saved and run as it stands."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from commands import Ran
from test_docs import PAGES

PAGE = PAGES["docs/flows.md"] + PAGES["docs/redaction.md"]
EXAMPLES = {
    match[1]: match[0]
    for match in re.finditer(r"```toml\n# ([\w-]+)\.toml\n.*?\n```\n\n```sh\n.*?\n```", PAGE, re.DOTALL)
}


def save_tables(here: Path) -> None:
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)\n```", PAGE, re.DOTALL):
        (here / name).write_text(text + "\n", "utf-8")


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_runs_as_it_stands(here: Path, cli: Callable[..., Ran], name: str) -> None:
    save_tables(here)
    example = EXAMPLES[name]
    job, shell = re.findall(r"```(?:toml|sh)\n(.*?)\n```", example, re.DOTALL)
    (here / f"{name}.toml").write_text(job, "utf-8")
    for line in shell.splitlines():
        program, *typed = shlex.split(line)
        assert program == "pipeline"
        ran = cli(*typed)
        assert ran.code == 0, ran.err + ran.out
    if "[chunk]" in job:  # a text that is not cut would show nothing of it
        assert cli("report", f"{name}-offline", "--json").json["calls"] > 1
    (written,) = (here / "results").iterdir()
    read = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}[written.suffix]
    assert set(read(written)["status"]) == {"ok"}  # type: ignore[operator]


def test_every_table_of_the_page_is_used() -> None:
    assert all(f'"{name}"' in PAGE for name in re.findall(r"<!-- file: (\S+) -->", PAGE))
    assert len(EXAMPLES) == PAGE.count("```toml") == PAGE.count("```sh")
