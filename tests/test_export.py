"""`pipeline export`: what is in the table of a run that goes on, that ended, or that an edit left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from commands import UNLIMITED, Ran, small_job
from halfway import Halfway, run_watched, session
from polars.testing import assert_frame_equal

from pipeline.errors import PipelineError
from pipeline.run.engine import Monitor
from pipeline.run.exporting import view
from pipeline.store.place import Counted

Cli = Callable[..., Ran]
RUN = Path("runs/small")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


def read(path: str) -> pl.DataFrame:
    if path.endswith(".csv"):
        return pl.read_csv(path, infer_schema=False)
    return pl.read_ndjson(path) if path.endswith(".jsonl") else pl.read_parquet(path)


def files() -> dict[Path, bytes]:
    """What the run keeps; its log and what tells how it stands go on meanwhile."""
    return {
        path: path.read_bytes()
        for path in RUN.rglob("*")
        if path.is_file() and path.name not in ("run.log", "status.json")
    }


def test_a_run_that_goes_on_is_exported_as_it_is_though_nothing_is_sealed(here: Path) -> None:
    seen: list[Any] = []

    def look(monitor: Monitor) -> bool:
        if monitor.done < 3:
            return False
        before, now = files(), view(RUN)
        assert not any(path.parent.name == "results" for path in before), "all is in the journal"
        counted = now.put(Path("so-far.parquet"), overwrite=False)
        assert files() == before, "it only reads"
        with pytest.raises(PipelineError, match=r"out\.parquet is the output of runs/small, which goes on"):
            now.put(Path("out.parquet"), overwrite=True)
        seen.append(counted)
        return True

    assert run_watched(session(here), Halfway(3), look) == 0
    assert (seen[0].rows, seen[0].finished) == (6, 3)
    table = pl.read_parquet("so-far.parquet")
    assert table["word"].to_list() == ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    assert sorted(table["status"]) == ["ok"] * 3 + ["pending"] * 3
    whole = pl.read_parquet("out.parquet")
    final = table.filter(status="ok")
    assert_frame_equal(final, whole.join(final.select("word"), on="word", how="semi"))


def test_a_run_that_ended_is_exported_in_each_format_and_in_its_own_place(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED)
    assert cli("run", job, "--offline").code == 0
    ran = cli("export", "small", "--format", "csv", "--format", "jsonl", "--to", "other.parquet", "--json")
    assert ran.code == 0, ran.err
    assert ran.json == {
        "run_dir": "runs/small-offline",
        "rehearsal": True,
        "lacks": [],
        "files": [
            {"file": name, "rows": 6, "finished": 6}
            for name in ("other.parquet", "out-offline-export.csv", "out-offline-export.jsonl")
        ],
    }
    own = pl.read_parquet("out-offline.parquet")
    assert_frame_equal(pl.read_parquet("other.parquet"), own)
    assert read("out-offline-export.csv").columns == own.columns == read("out-offline-export.jsonl").columns
    assert read("out-offline-export.jsonl")["response"].to_list() == own["response"].to_list()
    Path("out-offline.parquet").unlink()
    back = cli("export", "--to", "out-offline.parquet")
    assert back.code == 0 and "6 rows; offline: the emulator's answers" in back.err
    assert cli("run", job, "--offline").code == 0, "what it wrote there is its own"


def test_a_run_that_has_not_begun_has_all_rows_of_its_table(here: Path, cli: Cli) -> None:
    assert cli("run", small_job(here, UNLIMITED), "--offline").code == 0
    Path("runs/small-offline/run.log").unlink()
    assert cli("export", "--to", "whole.csv").code == 0
    assert read("whole.csv")["status"].to_list() == ["ok"] * 6
    for part in Path("runs/small-offline").glob("*/part-*"):
        part.unlink()
    Path("runs/small-offline/parts.jsonl").unlink()
    assert cli("export", "--to", "none.csv").code == 0
    assert read("none.csv")["status"].to_list() == ["pending"] * 6
    Path("words.csv").unlink()
    assert cli("export", "--to", "nothing.csv").code == 0
    assert read("nothing.csv").height == 0


def test_a_killed_run_of_an_older_version_is_exported(here: Path) -> None:
    shutil.copytree(Path(__file__).parent / "data" / "run_of_4e32c8b", here, dirs_exist_ok=True)
    found = view(Path("runs/job"))
    assert found.put(Path("table.jsonl"), overwrite=False) == Counted(12, 6) and not found.lacks
    assert read("table.jsonl")["id"].to_list() == [f"r{row}" for row in range(12)]


def test_a_file_that_is_named_without_its_flag_is_told_the_flag(here: Path, cli: Cli) -> None:
    told = cli("export", "words", "out 1.csv")
    assert told.code == 2 and "one run is exported at a time, and 2 are named: words, out 1.csv" in told.err
    assert "`pipeline export words --to 'out 1.csv'`" in told.err
    assert "2 are named: words, b.csv" in cli("export", "--to", "a.csv", "--json", "words", "b.csv").err


def test_no_file_is_replaced_unasked_and_the_input_never(here: Path, cli: Cli) -> None:
    assert cli("run", small_job(here, UNLIMITED), "--offline").code == 0
    assert cli("export").code == 0
    refused = cli("export")
    assert refused.code == 2 and "out-offline-export.parquet is there already" in refused.err
    assert "--to" in refused.err and "--out" not in refused.err
    assert cli("export", "--overwrite").code == 0
    assert "is the input" in cli("export", "--to", "words.csv", "--overwrite").err
    assert "must end in one of" in cli("export", "--to", "table.xlsx").err
    assert "inside a run directory" in cli("export", "--to", "runs/small-offline/results/part-000009.parquet").err
    assert (here / "words.csv").read_text().startswith("word\nalpha")


def test_an_earlier_generation_has_its_own_answers_beside_the_input_that_it_had(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED)
    for template in ("Say {{ word }}", "Sing {{ word }}"):
        job.write_text(job.read_text().replace("Say {{ word }}", template))
        assert cli("run", job, "--offline").code == 0
    ran = cli("export", "small@1", "--json")
    assert (
        ran.json["files"] == [{"file": "out-offline-export@1.parquet", "rows": 6, "finished": 6}]
        and not ran.json["lacks"]
    )
    table = pl.read_parquet("out-offline-export@1.parquet")
    assert table["word"][0] == "alpha" and "Say alpha" in table["response"][0]
    assert "Sing alpha" in pl.read_parquet("out-offline.parquet")["response"][0]

    with (here / "words.csv").open("a") as file:
        file.write("eta\n")
    told = cli("export", "small@1", "--to", "bare.csv")
    assert (
        told.code == 0
        and "not in it: the columns of the input, but for the id: words.csv is not what it was" in told.err
    )
    bare = read("bare.csv")
    assert bare["row"].to_list() == [str(row) for row in range(6)] and "word" not in bare.columns
    assert "Say alpha" in bare["response"][0]


def test_what_is_read_out_of_answers_is_there_as_long_as_the_job_reads_the_same(here: Path, cli: Cli) -> None:
    job = here / "jobs" / "extract.toml"
    assert cli("run", job, "--offline").code == 0
    whole = read("results/feedback-offline.jsonl")
    job.write_text(job.read_text().replace("You read customer comments", "Read what customers say"))
    same = cli("export", "extract", "--to", "same.jsonl", "--json").json
    assert not same["lacks"]
    assert_frame_equal(read("same.jsonl"), whole)
    job.write_text(job.read_text().replace("  urgent: bool", "  urgent: bool,\n  mood: str"))
    other = cli("export", "extract", "--to", "other.jsonl", "--json").json
    assert other["lacks"] == [f"the columns that are read out of answers: {job} is not what it was"]
    assert_frame_equal(read("other.jsonl"), whole.drop("sentiment", "topics", "request", "order_id", "urgent"))
    job.unlink()
    gone = cli("export", "extract", "--to", "gone.jsonl", "--json").json
    assert not gone["lacks"]  # the run keeps what its job said
    assert_frame_equal(read("gone.jsonl"), whole)


def test_what_redact_hid_is_back_in_the_answers(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED + "\n[redact]\nkinds = ['email']\nrestore = true\n")
    (here / "words.csv").write_text("word\nask ann@example.org\nnobody\n")
    assert cli("run", job, "--offline").code == 0
    assert cli("export", "--to", "all.jsonl").code == 0
    assert [json.loads(line)["response"] for line in Path("all.jsonl").read_text().splitlines()] == pl.read_parquet(
        "out-offline.parquet"
    )["response"].to_list()
    assert "ann@example.org" in Path("all.jsonl").read_text().split("response")[1]
