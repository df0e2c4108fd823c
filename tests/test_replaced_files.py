"""Files that are replaced under their names: what was asked about another one is asked anew, and nothing else is."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from commands import Ran
from drawing import png
from serving import served, stats

from jobs import PLAIN, Sections, write_job
from pipeline.source import files
from pipeline.store import digests

Start = Callable[..., Any]

SEEN: Sections = {
    **PLAIN,
    "input": {"path": "table.csv", "id": "id", "image": "picture"},
    "prompt": {"template": "Describe this image."},
    "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": 100},
    "limits": {"rpm": 0, "tpm": 0},
    "output": {"path": "out.parquet"},
}
COLOURS = {"red": (200, 0, 0), "blue": (0, 0, 200), "green": (0, 200, 0)}


def picture(colour: tuple[int, int, int]) -> bytes:
    """A picture; all of them have one size."""
    return png(colour=colour).ljust(200, b"\0")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(model_version=None) as url:
        yield url


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    for name, colour in COLOURS.items():
        (tmp_path / f"{name}.png").write_bytes(picture(colour))
    (tmp_path / "table.csv").write_text('id,picture\nr,red.png\nb,"[""blue.png"", ""red.png""]"\ng,./green.png\n')
    return tmp_path


@pytest.fixture
def start(here: Path, url: str, cli: Callable[..., Ran]) -> Start:
    """Run the job, and say how many requests that took, and what the command said."""

    def started(*flags: object, **sections: Any) -> tuple[int, Any]:
        job = write_job(here, SEEN, endpoint={"base_url": url}, **sections)
        before = stats(url)["requests"]
        ran = cli("run", job, "--yes", "--json", *flags)
        assert ran.code in (0, 1), ran.err
        return stats(url)["requests"] - before, ran

    return started


def replaced(path: Path, colour: tuple[int, int, int], *, same_time: bool = False) -> None:
    """Another picture in the place of one."""
    before = path.stat()
    path.write_bytes(picture(colour))
    assert path.stat().st_size == before.st_size
    later_ns = before.st_mtime_ns + (0 if same_time else 1)
    os.utime(path, ns=(later_ns, later_ns))


def test_a_picture_that_is_replaced_is_asked_about_anew_and_nothing_else_is(here: Path, start: Start) -> None:
    assert start()[0] == 3
    first = pl.read_parquet("out.parquet")
    assert start()[0] == 0
    replaced(here / "green.png", (9, 9, 9))
    asked, ran = start()
    assert asked == 1
    assert "generation 2" in ran.err and "files were replaced under their names: those of row g" in ran.err
    assert "1 changed" in ran.err and "2 answers kept" in ran.err
    again = pl.read_parquet("out.parquet")
    assert first["id"].to_list() == again["id"].to_list() == ["r", "b", "g"]
    assert again["output_tokens"].equals(first["output_tokens"]), "the emulator sees no colours"
    assert start()[0] == 0


def test_files_that_were_only_touched_are_looked_into_once_and_keep_their_answers(
    here: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    kept = (here / "runs/job/rows.parquet").read_bytes()
    for name in COLOURS:
        shutil.copyfile(here / f"{name}.png", here / "copy")
        (here / "copy").rename(here / f"{name}.png")
        os.utime(here / f"{name}.png", (1, 1))
    asked, ran = start()
    assert asked == 0 and "generation" not in ran.err
    assert (here / "runs/job/rows.parquet").read_bytes() != kept
    read: list[str] = []
    digest_of = files.digest_of

    def reading(file: Any) -> str:
        read.append(Path(file.name).name)
        return digest_of(file)

    monkeypatch.setattr(files, "digest_of", reading)
    assert start()[0] == 0 and read == ["red.png"], "the first row tries the template; of the others all is known"
    os.utime(here / "red.png", (2, 2))
    asked, ran = start(prompt={"template": "Another question."})
    assert asked == 3 and "[prompt] template" in ran.err and "files were replaced" not in ran.err


def test_what_keeps_size_and_time_is_not_noticed_and_an_edit_of_the_table_carries_its_row(
    here: Path, start: Start
) -> None:
    start()
    replaced(here / "green.png", (9, 9, 9), same_time=True)
    assert start()[0] == 0
    (here / "blue.png").rename(here / "sky.png")
    (here / "table.csv").write_text("id,picture\nr,red.png\nb,sky.png\ng,./green.png\n")
    asked, ran = start()
    assert asked == 1, "of three rows one has other files"
    assert "the input: table.csv is not what it was" in ran.err and "files were replaced" not in ran.err


def test_a_file_that_was_missing_and_one_that_is_gone(here: Path, start: Start) -> None:
    (here / "green.png").rename(here / "away.png")
    assert start()[0] == 2
    (here / "away.png").rename(here / "green.png")
    (here / "blue.png").unlink()
    asked, ran = start()
    assert asked == 1 and "those of rows b, g" in ran.err
    told = dict(pl.read_parquet("out.parquet").select("id", "status").iter_rows())
    assert told == {"r": "ok", "b": "invalid", "g": "ok"}
    (here / "blue.png").write_text("no picture")
    assert start()[0] == 0 and not (here / "runs/job.2").exists(), "it cannot be sent either way"


def test_a_row_that_was_not_asked_yet_is_asked_with_what_lies_there(here: Path, start: Start) -> None:
    assert start("--limit", 1)[0] == 1
    replaced(here / "green.png", (9, 9, 9))
    asked, ran = start()
    assert asked == 2 and "generation" not in ran.err
    replaced(here / "green.png", (8, 8, 8))
    assert start("--limit", 2, "--overwrite")[0] == 0, "it is not among them"
    asked, ran = start()
    assert asked == 1 and "those of row g" in ran.err


def test_the_dry_run_and_the_check_say_so_and_write_nothing(here: Path, start: Start, cli: Callable[..., Ran]) -> None:
    start()
    replaced(here / "red.png", (9, 9, 9))
    before = (here / "runs/job/rows.parquet").read_bytes()
    estimated = cli("estimate", here / "job.toml", "--json").json
    assert estimated["prompts"] == 2
    told = " ".join(cli("check", here / "job.toml").out.split())
    assert "generation 2 begins: files were replaced under their names: those of rows r, b" in told
    assert (here / "runs/job/rows.parquet").read_bytes() == before and not (here / "runs/job.1").exists()


def test_of_a_run_that_says_nothing_of_its_files_nothing_is_told(
    here: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "MOST_ROWS", 2)
    start()
    replaced(here / "green.png", (9, 9, 9))
    asked, ran = start()
    assert asked == 0 and "generation" not in ran.err


def test_answers_of_a_cache_are_found_there_again(here: Path, start: Start) -> None:
    start(cache={"max_age_days": 7.0})
    shutil.rmtree(here / "runs")
    assert start("--overwrite", cache={"max_age_days": 7.0})[0] == 0
    for name in COLOURS:
        os.utime(here / f"{name}.png", (1, 1))
    assert start(cache={"max_age_days": 7.0})[0] == 0
