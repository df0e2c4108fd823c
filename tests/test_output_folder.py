"""An output that is a folder: a table of each shard, or of all rows, put in place together and never unasked."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import polars as pl
import pytest
from commands import UNLIMITED, Ran, small_job
from polars.testing import assert_frame_equal
from sharded import run_in_shards

from pipeline.errors import InputError, OutputError
from pipeline.fleet import shards
from pipeline.job import load
from pipeline.run.output import output_place, replaced
from pipeline.run.prepare import Options, Session, prepare
from pipeline.store.folder import Folder, held_folder
from pipeline.store.place import Counted

TIMES = ("finished_at", "latency_s")


def job(here: Path, output: str, name: str = "small") -> Path:
    path = small_job(here, UNLIMITED)
    path.write_text(path.read_text().replace('"out.parquet"', f'"{output}"'))
    return path.rename(here / f"{name}.toml")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_of_one_process_writes_one_file_into_its_folder(here: Path, cli: Callable[..., Ran]) -> None:
    path = job(here, "results/words/")
    assert cli("check", path, "--offline").code == 0
    for _ in range(2):
        assert cli("run", path, "--offline").code == 0
    assert names(here / "results/words-offline") == ["part-00000.parquet"]
    told = cli("report", "small", "--json").json
    assert (told["output"], told["output_finished"]) == ("results/words-offline/", 6)
    assert pl.read_parquet("results/words-offline")["word"].to_list() == told_words()
    assert cli("export").code == 0 and (here / "results/words-offline-export.parquet").exists()


def told_words() -> list[str]:
    return ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


def test_the_name_of_a_folder_says_the_form_of_its_files(here: Path, cli: Callable[..., Ran]) -> None:
    assert cli("run", job(here, "results/words.csv/"), "--offline").code == 0
    assert names(here / "results/words-offline.csv") == ["part-00000.csv"]
    assert cli("run", job(here, "results/", "other"), "--offline", "--out", "results/v1.2/").code == 0
    assert names(here / "results/v1.2") == ["part-00000.parquet"]
    assert "a folder: with / at its end" in cli("check", job(here, "/", "root"), "--offline").out


def in_shards(here: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None = None) -> Session:
    monkeypatch.setattr(shards, "LEAST_ROWS", 2)
    return prepare(load(job(here, "results/words.jsonl/")), Options(offline=True, limit=limit))


def test_each_shard_has_a_file_and_together_they_are_the_table(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = in_shards(here, monkeypatch)
    run_in_shards(whole, half=[1])
    with output_place(whole) as place:
        assert isinstance(place, Folder)
        assert replaced(whole, place) == Counted(6, 5)
    parts = [pl.read_ndjson(here / f"results/words-offline.jsonl/part-{number:05d}.jsonl") for number in range(3)]
    assert [part["word"].to_list() for part in parts] == [told_words()[at : at + 2] for at in (0, 2, 4)]
    assert pl.concat(part["status"] for part in parts).to_list() == ["ok", "ok", "ok", "pending", "ok", "ok"]
    joined = prepare(load(job(here, "all.jsonl")), Options(offline=True))
    with output_place(joined) as place:
        assert place is not None
        replaced(joined, place)
    whole_table = pl.read_ndjson("all-offline.jsonl").drop(TIMES)
    assert_frame_equal(pl.concat(part.drop(TIMES) for part in parts), whole_table)
    limited = in_shards(here, monkeypatch, limit=3)
    with pytest.raises(InputError, match="holds 5 finished rows, and this run would write 3"), output_place(limited):
        pass


def folder(here: Path, run: str = "small", overwrite: bool = False) -> Folder:
    with held_folder(here / "out", here / "runs" / run, None, ".csv", overwrite, lambda file: None) as held:
        return held


def filled(*texts: bytes, finished: int = 1) -> list[Callable[[BinaryIO], Counted]]:
    def write(text: bytes) -> Callable[[BinaryIO], Counted]:
        return lambda file: Counted(file.write(text), finished)

    return [write(text) for text in texts]


def test_a_folder_of_others_is_not_touched_unasked(here: Path) -> None:
    (here / "runs/small").mkdir(parents=True)
    (here / "runs/other").mkdir()
    (here / "out").mkdir()
    (here / "out/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already, and no run that is kept here wrote it"):
        folder(here)
    folder(here, overwrite=True).replace(filled(b"a"), lambda: None)
    assert names(here / "out") == ["notes.txt", "part-00000.csv"]
    with pytest.raises(InputError, match=r"1 finished row of another run, .*runs/small"):
        folder(here, "other")
    (here / "file").write_text("")
    with (
        pytest.raises(InputError, match="is a file"),
        held_folder(here / "file", here / "runs/small", None, ".csv", False, lambda file: None),
    ):
        pass


def test_all_files_take_their_places_or_none(here: Path) -> None:
    (here / "runs/small").mkdir(parents=True)
    folder(here).replace(filled(b"a", b"b", b"c"), lambda: None)

    def full(file: BinaryIO) -> Counted:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        folder(here).replace([*filled(b"x", b"y"), full], lambda: None)
    with pytest.raises(OutputError, match="holds 3 finished rows of an earlier run"):
        folder(here).replace(filled(b"xyz", finished=0), lambda: None)
    assert names(here / "out") == ["part-00000.csv", "part-00001.csv", "part-00002.csv"]
    assert (here / "out/part-00000.csv").read_bytes() == b"a"
    (here / "out/.part-00001.csv.0123456789abcdef.tmp").write_bytes(b"of a kill")
    folder(here).replace(filled(b"x", finished=3), lambda: None)
    assert names(here / "out") == ["part-00000.csv"], "tables of parts that there are no more would be read as rows"
