"""Parts and the output while a run goes on: what is in them, when they are written, and what goes wrong with them."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import anyio
import polars as pl
import pytest
from commands import UNLIMITED, small_job
from halfway import Halfway, run_watched, session
from serving import served
from sessions import run_through
from sharded import run_in_shards, shard_session

from pipeline import report
from pipeline.fleet import shards
from pipeline.job import load
from pipeline.report.tallies import write_done
from pipeline.run import interim, prepare
from pipeline.run import run as running
from pipeline.run.engine import Monitor
from pipeline.run.interim import Interim
from pipeline.run.output import output_place, replaced
from pipeline.store.place import Counted, Place

OUT, PARTS = Path("out.parquet"), "runs/small/results/part-*.parquet"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interim, "EVERY_S", 0.05)
    monkeypatch.setattr(interim, "SHARE", 1.0)
    monkeypatch.setattr(interim, "_LOOK_S", 0.01)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


def statuses() -> Counter[str]:
    return Counter(pl.read_parquet(OUT)["status"]) if OUT.exists() else Counter()


def test_a_run_that_goes_on_has_its_finished_rows_in_parts_and_in_the_output(here: Path) -> None:
    seen: list[object] = []

    def look(monitor: Monitor) -> bool:
        if statuses()["ok"] != 3:
            return False
        first = Path("runs/small/results/part-000001.parquet")
        told = report.summarize(Path("runs/small"))
        seen.extend([statuses(), pl.read_parquet(PARTS)["status"].to_list(), first.stat(), told.status])
        seen.append((told.output, told.output_finished))
        return True

    assert run_watched(session(here), Halfway(3), look) == 0
    assert seen[:2] == [{"ok": 3, "pending": 3}, ["ok"] * 3]
    assert seen[3:] == ["running", ("out.parquet", 3)]
    assert statuses() == {"ok": 6}
    assert sorted(pl.read_parquet(PARTS)["row"]) == list(range(6)), "no row is in two parts"
    assert Path("runs/small/results/part-000001.parquet").stat() == seen[2], "a part is written once"


def test_the_queries_of_the_page_work_on_a_run_that_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("duckdb") is None and "CI" not in os.environ:
        pytest.skip("no DuckDB")
    monkeypatch.setenv("COLUMNS", "200")
    page = (Path(__file__).parent.parent / "docs" / "recipes-tables.md").read_text()
    queries = re.findall(r"```python\n(.*?)```", page.partition("## Look into the answers")[2], re.DOTALL)

    def look(monitor: Monitor) -> bool:
        if statuses()["ok"] != 3:
            return False
        for query in queries:
            exec(query, {})
        return True

    job = small_job(here, UNLIMITED).rename("summarize.toml")
    assert run_watched(prepare.prepare(load(job), prepare.Options()), Halfway(3), look) == 0
    polars, duckdb = capsys.readouterr().out.split("┘", 1)
    assert re.search(r"│ answer +┆ 3 ", polars)
    assert re.search(r"│ ok +│ NULL +│ +3 │", duckdb)


def test_a_run_that_falls_asleep_writes_what_it_has(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interim, "EVERY_S", 300.0)

    async def watch(monitor: Monitor) -> None:
        with anyio.fail_after(20):
            while not statuses():  # noqa: ASYNC110  as above
                await anyio.sleep(0.01)
        assert monitor.desk and monitor.desk.waits_until
        assert len(pl.read_parquet(PARTS)) == 3
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep_forever()

    with served(rpd=3) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ended = run_through(session(here, wait=True), watch)
    assert ended.exit_code == 130
    assert statuses() == {"ok": 3, "pending": 3}


def test_a_run_that_sleeps_says_so_once_in_its_log(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run.attending.HEARTBEAT_S", 0.01)
    monkeypatch.setattr("pipeline.run.status.WRITE_S", 0.01)

    async def watch(monitor: Monitor) -> None:
        with anyio.fail_after(20):
            while not (monitor.desk and monitor.desk.waits_until):  # noqa: ASYNC110  as above
                await anyio.sleep(0.01)
        await anyio.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep_forever()

    with served(rpd=3) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        assert run_through(session(here, wait=True), watch).exit_code == 130
    lines = [json.loads(line) for line in Path("runs/small/run.log").read_text().splitlines()]
    asleep = [line for line in lines if line["event"] == "progress" and line["waits_for"]]
    assert [(line["waits_for"], line["calls"]) for line in asleep] == [("day_quota", 3)]
    assert asleep[0]["waits_until_s"] > time.time() + 60


def test_a_start_after_a_kill_writes_what_the_killed_run_could_not(here: Path) -> None:
    assert run_watched(session(here, limit=3), Halfway(3), lambda monitor: True) == 0
    OUT.unlink()
    Path("runs/small/output.json").unlink()
    assert run_watched(session(here), Halfway(0), lambda monitor: statuses() == {"ok": 3, "pending": 3}) == 0
    assert statuses() == {"ok": 6}


def test_a_table_with_more_rows_of_an_earlier_run_stands_until_there_are_as_many(here: Path) -> None:
    assert run_watched(session(here), Halfway(6), lambda monitor: True) == 0
    whole, looked = OUT.read_bytes(), []

    def look(monitor: Monitor) -> bool:
        looked.append(OUT.read_bytes() == whole)
        return len(looked) > 20

    assert run_watched(session(here, fresh=True), Halfway(3), look) == 0
    assert all(looked) and statuses() == {"ok": 6}
    assert Path("runs/small/results/part-000001.parquet").exists(), "its parts are written all the while"


@pytest.mark.parametrize(
    ("trouble", "says", "exit_code"),
    [("another's", "was written by somebody else", 3), ("full", "less than 64 MB are left on the disk", 0)],
)
def test_what_goes_wrong_with_the_output_is_told_once_and_stops_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, says: str, exit_code: int
) -> None:
    told, before = list[str](), b""

    def look(monitor: Monitor) -> bool:
        nonlocal before
        if not before and statuses():
            if trouble == "full":
                monkeypatch.setattr(Place, "free_bytes", lambda self: 64 * 2**20 - 1)
            else:
                OUT.write_text("another's")
            before = OUT.read_bytes()
            provider.answer(1)
        told.extend(str(event.fields()["message"]) for event in monitor.notices if event.kind == "output_trouble")
        monitor.notices.clear()
        looks[bool(told)] += 1
        return looks[True] > 20

    looks, provider = Counter[bool](), Halfway(3)
    assert run_watched(session(here), provider, look) == exit_code
    assert len(told) == 1 and says in told[0] and "the run goes on" in told[0]
    assert report.summarize(Path("runs/small")).outcomes["ok"] == 6
    assert OUT.read_bytes() == before if exit_code else statuses() == {"ok": 6}, "the end says it too, or writes it"


def test_a_run_that_ends_does_not_wait_for_an_output_that_is_being_written(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Interim):
        def _heed(self) -> None:
            began.append(None)
            assert ended.wait(20)
            super()._heed()

        def end(self) -> None:
            super().end()
            ended.set()

    began, ended = list[None](), threading.Event()
    monkeypatch.setattr(running, "Interim", Slow)
    assert run_watched(session(here), Halfway(3), lambda monitor: bool(began)) == 0
    assert len(began) == 1 and statuses() == {"ok": 6}


def test_an_output_that_is_written_as_shards_are_put_together_is_whole(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any of its looks: a worker does that to a shard of its own whenever it is done with it."""
    monkeypatch.setattr(shards, "LEAST_ROWS", 1_500)
    job = small_job(here, UNLIMITED)
    pl.DataFrame({"word": [f"w{row}" for row in range(3_000)]}).write_csv(here / "words.csv")
    whole = prepare.prepare(load(job), prepare.Options(offline=True, overwrite=True))
    cut_up = run_in_shards(whole, half={0, 1})
    for shard in cut_up:
        run_through(shard_session(whole, shard))
        assert len(list((shard.directory / "results").iterdir())) > 1
    shutil.copytree(whole.directory, here / "kept")

    def written(put_together_at: int) -> tuple[pl.DataFrame, int]:
        looks = 0

        def heed() -> None:
            nonlocal looks
            looks += 1
            if looks == put_together_at:
                assert all(write_done(shard.directory, shard.rows) for shard in cut_up)

        shutil.rmtree(whole.directory)
        shutil.copytree(here / "kept", whole.directory)
        with output_place(whole) as place:
            assert place is not None and replaced(whole, place, heed) == Counted(3_000, 3_000)
        return pl.read_parquet("out-offline.parquet"), looks

    expected, looks = written(0)
    assert looks >= 6
    for at in range(1, looks + 1):
        assert written(at)[0].equals(expected)
        assert len(list((cut_up[0].directory / "results").iterdir())) == 1
