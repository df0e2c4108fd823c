"""The output of whole runs: tried before the first call, held to its rows, replaced only when that loses nothing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import polars as pl
import pytest
from commands import UNLIMITED, Ran, small_job
from forking import forked
from serving import served, stats, wait_for

from pipeline.errors import OutputError
from pipeline.store.place import Counted, held

Cli = Callable[..., Ran]
ROWS = 60


@pytest.fixture
def service(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


# ---- the input changes under a run


def table_job(here: Path, id: str = 'id = "id"', suffix: str = ".csv") -> Path:
    (here / "t.csv").write_text("id,word\n" + "".join(f"k{row},word {row}\n" for row in range(ROWS)))
    path = here / "job.toml"
    path.write_text(
        f'[input]\npath = "t.csv"\n{id}\n[prompt]\ntemplate = "Say {{{{ word }}}}"\n'
        '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 50\n'
        f'[limits]\nrpm = 0\ntpm = 0\nconcurrency = 4\n[output]\npath = "out{suffix}"\n'
    )
    return path


def reordered(path: Path) -> None:
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(rows)]) + "\n")


def shortened(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:-20]) + "\n")


def edited(path: Path) -> None:
    path.write_text(path.read_text().replace("word 50", "WORD 50"))


def edited_in_its_old_time(path: Path) -> None:
    seen = path.stat()
    with path.open("r+") as file:
        text = file.read().replace("word 50", "WORD 50")
        file.seek(0)
        file.write(text)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def appended(path: Path) -> None:
    with path.open("a") as file:
        file.write("k60,word 60\n")


def replaced(path: Path) -> None:
    other = path.with_name("other.csv")
    other.write_text(path.read_text().replace("word 7\n", "word seven\n"))
    other.rename(path)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.case("O1")
@pytest.mark.parametrize(
    ("change", "id"),
    [
        *((change, 'id = "id"') for change in (shortened, replaced, removed)),
        *((change, "") for change in (reordered, edited_in_its_old_time, appended)),
        *(pytest.param(change, "", marks=pytest.mark.long) for change in (shortened, edited, replaced, removed)),
        *(
            pytest.param(change, 'id = "id"', marks=pytest.mark.long)
            for change in (edited, appended, reordered, edited_in_its_old_time)
        ),
    ],
)
def test_an_input_that_changes_under_a_run_ends_it_with_words_and_all_answers_safe(
    here: Path, change: Callable[[Path], None], id: str
) -> None:
    job = table_job(here, id)
    original = (here / "t.csv").read_bytes()
    with served(latency_s=0.1) as url:
        keyed = {"GEMINI_API_KEY": "AQ.test", "GOOGLE_GEMINI_BASE_URL": url}
        run = forked("run", job, "--yes", env=keyed)
        wait_for(url, "answered", 4, run)
        change(here / "t.csv")
        said = run.communicate(timeout=60)[1].decode()
        assert run.returncode == 3, said
        assert "the input" in said and "t.csv" in said and "safe in runs/job" in said
        assert "Traceback" not in said
        assert not (here / "out.csv").exists(), "no answer stands beside another row"

        (here / "t.csv").write_bytes(original)
        again = forked("run", job, "--yes", env=keyed)
        assert again.wait() == 0, again.communicate()
        assert stats(url)["bought_twice"] == 0 and stats(url)["answered"] == ROWS
    table = pl.read_csv(here / "out.csv")
    assert table["id"].to_list() == [f"k{row}" for row in range(ROWS)]
    assert all(f"word {row}" in answer for row, answer in enumerate(table["response"]))


@pytest.mark.case("O1")
def test_a_file_that_is_only_touched_or_replaced_by_its_copy_is_what_it_was(here: Path) -> None:
    job = table_job(here)
    with served(latency_s=0.1) as url:
        keyed = {"GEMINI_API_KEY": "AQ.test", "GOOGLE_GEMINI_BASE_URL": url}
        run = forked("run", job, "--yes", env=keyed)
        wait_for(url, "answered", 4, run)
        (here / "copy.csv").write_bytes((here / "t.csv").read_bytes())
        (here / "copy.csv").rename(here / "t.csv")
        said = run.communicate(timeout=60)[1].decode()
        assert run.returncode == 0, said


# ---- tried before the first call


@pytest.mark.case("O2", "D15")
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("folder.csv", "is a directory"),
        ("words.csv/out.csv", "is a file, not a directory"),
        ("words.csv", "is the input"),
        ("/", "must end in one of"),
        ("./", "must end in one of"),
        ("words.csv/", "is a file"),
        ("runs/small/", "inside a run directory"),
        ("link/results.csv/", "inside a run directory"),
        ("runs/small/out.csv", "inside a run directory"),
        ("runs/small/results/part-000001.parquet", "inside a run directory"),
        ("runs/another/parts.jsonl", "inside a run directory"),
        ("link/results/part-000001.parquet", "inside a run directory"),
        ("loop.csv", "leads nowhere"),
        ("pipe.csv", "is not a file"),
        ("n" * 300 + ".csv", "too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_spent(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, service: None, output: str, words: str
) -> None:
    (here / "folder.csv").mkdir()
    (here / "runs" / "small").mkdir(parents=True)
    (here / "link").symlink_to(here / "runs" / "small")
    (here / "loop.csv").symlink_to(here / "loop.csv")
    os.mkfifo(here / "pipe.csv")
    job = small_job(here, UNLIMITED)
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ran = cli("run", job, "--yes", "--out", output)
        assert ran.code == 2 and words in ran.err, ran.err
        assert stats(url)["requests"] == 0


@pytest.mark.case("O2")
@pytest.mark.parametrize(
    ("column", "suffix", "words"),
    [
        (pl.Series("x", [{}] * 2, dtype=pl.Struct([])), ".parquet", "cannot hold"),
        (pl.Series("x", [[{}]] * 2, dtype=pl.List(pl.Struct([]))), ".parquet", "cannot hold"),
        (pl.Series("x", [{"a": [1]}] * 2), ".csv", "cannot hold"),
    ],
)
def test_a_type_or_value_that_the_format_cannot_hold_is_refused_before_anything_is_spent(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, service: None, column: pl.Series, suffix: str, words: str
) -> None:
    job = small_job(here, UNLIMITED)
    frame = pl.DataFrame([pl.Series("word", ["a", "b"]), column])
    if suffix == ".parquet":
        frame.write_ndjson(here / "words.jsonl")
        monkeypatch.setattr("pipeline.run.prepare.session_schema", lambda session: frame.schema)
        job.write_text(job.read_text().replace("words.csv", "words.jsonl"))
    else:
        frame.write_parquet(here / "words.parquet")
        job.write_text(job.read_text().replace("words.csv", "words.parquet"))
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ran = cli("run", job, "--yes", "--out", f"out{suffix}")
        assert ran.code == 2 and words in ran.err and "`x`" in ran.err, ran.err
        assert stats(url)["requests"] == 0


@pytest.mark.case("O2")
def test_an_output_that_fails_after_the_calls_is_a_3_that_says_where_the_answers_are(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, service: None
) -> None:
    job = small_job(here, UNLIMITED)
    with served(latency_s=0.3) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        run = forked("run", job, "--yes", "--out", "sub/out.csv")
        wait_for(url, "requests", 1, run)
        for path in (here / "sub").iterdir():
            path.unlink()
        (here / "sub").rmdir()
        said = run.communicate(timeout=60)[1].decode()
        assert run.returncode == 3 and "safe in runs/small" in said and "sub/out.csv" in said, said
        assert cli("run", job, "--yes", "--out", "sub/out.csv").code == 0
        assert stats(url)["answered"] == 6
    assert pl.read_csv("sub/out.csv")["status"].to_list() == ["ok"] * 6


# ---- replaced whole, and its target


@pytest.mark.case("O3")
def test_a_link_stays_and_its_target_is_replaced_with_its_mode(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED)
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "real.csv").touch(mode=0o640)
    (here / "elsewhere" / "real.csv").chmod(0o640)
    (here / "out.csv").symlink_to(Path("elsewhere") / "real.csv")
    for _ in range(2):
        assert cli("run", job, "--offline", "--out", "out.csv").code == 0
        assert (here / "out.csv").is_symlink()
        assert (here / "elsewhere" / "real.csv").stat().st_mode & 0o777 == 0o640
        assert pl.read_csv(here / "elsewhere" / "real.csv").height == 6
    assert [path.name for path in (here / "elsewhere").iterdir()] == ["real.csv"]


@pytest.mark.case("D14")
def test_nothing_that_is_planted_beside_the_output_is_followed(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED)
    victim = here / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    for name in (".out.csv.tmp", ".out.csv.lock"):
        (here / name).symlink_to(victim)
    refused = cli("run", job, "--offline", "--out", "out.csv")
    assert refused.code == 2 and "cannot write" in refused.err, "a lock is not a link"
    (here / ".out.csv.lock").unlink()
    assert cli("run", job, "--offline", "--out", "out.csv").code == 0
    assert victim.read_text() == "precious" and victim.stat().st_mode & 0o777 == 0o600


@pytest.mark.case("D14")
def test_one_job_at_a_time_writes_an_output(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED)
    other = here / "runs" / "other"
    with held(Path("out.csv"), other, 6, False, lambda file: None):
        refused = cli("run", job, "--offline", "--out", "out.csv")
        assert refused.code == 2 and "another run writes out.csv" in refused.err
    with held(Path("out-offline.parquet"), here / "runs" / "small-offline", 6, False, lambda file: None):
        looked = cli("check", job, "--offline")
        assert looked.code == 0 and "a run writes it now" in looked.out, "the rest is told all the same"
    assert cli("run", job, "--offline", "--out", "out.csv").code == 0
    assert not list(here.glob(".out*")), "nothing is left beside it"


def test_what_a_killed_run_left_beside_the_output_goes_with_the_next(here: Path, cli: Cli) -> None:
    (here / ".out.csv.0123456789abcdef.tmp").write_text("half a table")
    assert cli("run", small_job(here, UNLIMITED), "--offline", "--out", "out.csv").code == 0
    assert not list(here.glob(".out*"))


def test_a_second_interrupt_amid_the_clean_up_of_the_first_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck: list[Path] = []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".tmp" and len(struck) < 1:
            struck.append(path)
            raise KeyboardInterrupt
        os.unlink(path)  # noqa: PTH108  it is what stands in for it

    def write(file: BinaryIO) -> Counted:
        monkeypatch.setattr(Path, "unlink", unlink)
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        held(Path("out.csv"), here / "runs/small", 6, False, lambda file: None) as place,
    ):
        place.replace([write], lambda: None)
    assert struck and not list(here.glob(".out*"))


# ---- not replaced unasked


@pytest.mark.case("O4")
def test_the_output_of_another_job_is_not_replaced_unasked(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED)
    assert cli("run", job, "--offline", "--out", "out.csv").code == 0
    before = (here / "out.csv").read_bytes()
    copied = here / "copied.toml"
    copied.write_text(job.read_text().replace("Say", "Praise"))
    refused = cli("run", copied, "--offline", "--limit", 3, "--out", "out.csv")
    assert refused.code == 2 and "holds 6 finished rows of another run, runs/small-offline" in refused.err
    assert "--overwrite" in refused.err and (here / "out.csv").read_bytes() == before
    assert not (here / "runs" / "copied-offline").exists()
    assert cli("run", copied, "--offline", "--limit", 3, "--out", "out.csv", "--overwrite").code == 0
    assert pl.read_csv("out.csv").height == 3
    assert cli("run", job, "--offline", "--out", "out.csv").code == 2, "now it is the other's"


@pytest.mark.case("O4")
def test_what_no_run_wrote_or_somebody_changed_is_not_replaced_unasked(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED)
    (here / "out.csv").write_text("my own notes\n")
    refused = cli("run", job, "--offline", "--out", "out.csv")
    assert refused.code == 2 and "no run that is kept here wrote it" in refused.err
    assert (here / "out.csv").read_text() == "my own notes\n"
    (here / "out.csv").unlink()
    assert cli("run", job, "--offline", "--out", "out.csv").code == 0
    os.utime(here / "out.csv")
    assert cli("run", job, "--offline", "--out", "out.csv").code == 0, "touched, or copied back from elsewhere"
    with (here / "out.csv").open("a") as file:
        file.write("a remark\n")
    changed = cli("run", job, "--offline", "--out", "out.csv")
    assert changed.code == 2 and "changed after runs/small-offline wrote it" in changed.err


@pytest.mark.case("O4")
def test_a_project_that_was_moved_goes_on_with_its_output(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here, UNLIMITED).name
    assert cli("run", job, "--offline", "--limit", 3, "--out", "made/out.csv").code == 0
    monkeypatch.chdir(here.parent)
    here.rename(moved := here.with_name("moved"))
    monkeypatch.chdir(moved)
    assert cli("report", "--json").json["output"] == "made/out.csv"
    grown = cli("run", job, "--offline", "--out", "made/out.csv")
    assert grown.code == 0 and pl.read_csv("made/out.csv").height == 6, grown.err
    (moved / "made").rename("other")
    assert cli("report", "--json").json["output"] == "made/out.csv", "where it was written"
    stranger = cli("run", job, "--offline", "--out", "other/out.csv")
    assert stranger.code == 2 and "no run that is kept here wrote it" in stranger.err
    (moved / "other").rename("made")
    (moved / "made/out.csv").write_text("mine\n")
    changed = cli("run", job, "--offline", "--out", "made/out.csv")
    assert changed.code == 2 and "it was changed after runs/small-offline wrote it" in changed.err


@pytest.mark.case("O4")
def test_the_same_job_grows_its_output_and_does_not_shrink_it_unasked(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED)
    for limit in (["--limit", 2], ["--limit", 4], [], [], ["--fresh"]):
        assert cli("run", job, "--offline", *limit).code == 0, limit
    refused = cli("run", job, "--offline", "--limit", 3)
    assert refused.code == 2 and "holds 6 finished rows, and this run would write 3" in refused.err
    assert pl.read_parquet("out-offline.parquet").height == 6
    assert cli("run", job, "--offline", "--limit", 3, "--overwrite").code == 0
    assert pl.read_parquet("out-offline.parquet").height == 3
    assert cli("run", job, "--offline").code == 0
    elsewhere = cli("run", job, "--offline", "--out", "other.csv", "--json").json
    assert elsewhere["output"] == "other.csv" and pl.read_csv("other.csv").height == 6


@pytest.mark.case("O4")
def test_a_place_is_a_runs_own_however_often_it_wrote_another(here: Path, cli: Cli) -> None:
    job = small_job(here, UNLIMITED)
    assert cli("run", job, "--offline", "--out", "first.csv").code == 0
    assert cli("run", job, "--offline", "--out", "second.csv").code == 0
    own = here / "runs" / "small-offline"

    def write(file: BinaryIO) -> Counted:
        file.write(b"%d rows" % len(written))
        written.append(None)
        return Counted(6, 6)

    written: list[None] = []
    with held(Path("second.csv"), own, None, False, lambda file: None) as place:
        for _ in range(20):
            place.replace([write], lambda: None)
    for path in ("first.csv", "second.csv"):
        assert cli("run", job, "--offline", "--out", path).code == 0, path


@pytest.mark.case("O4")
@pytest.mark.parametrize("how", ["taken away", "written by another"])
def test_a_table_that_went_while_the_run_went_on_is_in_nobodys_way(here: Path, cli: Cli, how: str) -> None:
    assert cli("run", small_job(here, UNLIMITED), "--offline", "--out", "out.csv").code == 0
    with held(Path("out.csv"), here / "runs" / "small-offline", 6, False, lambda file: None) as place:
        (here / "out.csv").rename(here / "mine.csv")
        if how == "taken away":
            place.replace([lambda file: Counted(6, 2)], lambda: None)
            return
        (here / "out.csv").write_text("another's")
        with pytest.raises(OutputError, match="written by somebody else"):
            place.replace([lambda file: Counted(6, 6)], lambda: None)
    assert (here / "out.csv").read_text() == "another's"


@pytest.mark.case("O4")
def test_a_fresh_run_that_stops_early_leaves_the_whole_table_of_the_earlier_one(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, service: None
) -> None:
    job = small_job(here, UNLIMITED)
    with served(rpd=9) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert cli("run", job, "--yes").code == 0
        whole = (here / "out.parquet").read_bytes()
        stopped = cli("run", job, "--yes", "--fresh")
        assert stopped.code == 3
        assert "holds 6 finished rows of an earlier run of this job, and this one has 3 so far" in stopped.err
        assert (here / "out.parquet").read_bytes() == whole
