"""Jobs from Python: priced, run, stopped and read as on the command line, from any thread or loop."""

import asyncio
import copy
import gc
import json
import logging
import os
import pickle
import pydoc
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from inspect import iscoroutinefunction, signature
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import page
import polars as pl
import pytest
import trio
from commands import UNLIMITED, Ran, small_job
from pydantic import BaseModel
from serving import served, stats

import pipeline as pp
from pipeline import api
from pipeline.errors import BudgetReached, InputError, JobError, RunStateError
from pipeline.fleet import shards

LATENCY_S = 0.05


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """A service whose answers take a while."""
    with served(latency_s=LATENCY_S) as url:
        yield url


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


def words(number: int, name: str = "word") -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{each}" for each in range(number)], "word": [f"{name} {n}" for n in range(number)]})


def job(name: str = "words", service: str | None = None, **sections: dict[str, Any]) -> pp.Job:
    asked: dict[str, Any] = {
        "input": {"id": "id"},
        "prompt": {"template": "Say {{ word }}"},
        "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": 50},
        "limits": {"rpm": 0, "tpm": 0, "concurrency": 4},
    }
    if service:
        asked["endpoint"] = {"base_url": service}
    return pp.load(asked, name=name, **sections)


def offline(frame: Any, name: str = "words", **options: Any) -> pp.Results:
    return pp.run(job(name), frame, offline=True, progress=False, **options)


# ---- the page


def test_the_examples_of_the_page_run_as_they_stand(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.MODULE.read_text("utf-8") == page.examples(), "run `.venv/bin/python tests/page.py`"
    small_job(Path(), UNLIMITED, template="Say {{ review }}").rename("reviews.toml")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service)
    runpy.run_path(str(page.MODULE))
    assert {path.name for path in Path("runs").iterdir()} == {".given", "reviews", "reviews-flash", "reviews-offline"}


# ---- a job


def test_a_mapping_is_a_job_and_a_mistake_in_it_is_told_as_in_a_file() -> None:
    made = pp.load({"prompt": {"template": "{{ a }}"}, "model": {"name": "m"}}, name="mine", model={"seed": 3})
    assert (made.name, made.model, made.params.seed) == ("mine", "m", 3)
    assert made.spec.output.path == "results/mine.parquet"
    with pytest.raises(JobError, match="`tmplate` is not a setting") as refused:
        pp.load({"prompt": {"tmplate": "x"}, "model": {"name": "m"}}, name="mine")
    assert refused.value.hint == "did you mean `template`?"
    assert refused.value.__notes__ == ["hint: did you mean `template`?"]
    with pytest.raises(JobError, match="`tmplate` is not a setting") as refused:
        pp.load({"prompt": {"tmplate": "x"}, "model": {"nme": "m"}}, name="mine")
    assert refused.value.__notes__[1:] == ["and: mine: `nme` is not a setting of [model]", "hint: did you mean `name`?"]
    with pytest.raises(JobError, match="needs a name"):
        pp.load({"prompt": {"template": "x"}})
    with pytest.raises(JobError, match="cannot be called"):
        pp.load({"prompt": {"template": "x"}}, name="../mine")


def test_sections_are_laid_over_a_file_and_a_name_makes_it_another_run(tmp_path: Path) -> None:
    path = small_job(tmp_path)
    loaded = pp.load(path, name="other", model={"name": "gemini-2.5-flash"}, output={"path": Path("x.csv")})
    assert (loaded.name, loaded.model, loaded.spec.output.path) == ("other", "gemini-2.5-flash", "x.csv")
    assert loaded.params.max_output_tokens == 50


def test_a_job_is_varied_and_only_what_is_new_is_bought() -> None:
    offline(words(3))
    longer = pp.load(job(), model={"max_output_tokens": 90})
    assert (longer.name, longer.params.max_output_tokens, longer.model) == ("words", 90, job().model)
    again = pp.run(longer, words(3), offline=True, progress=False)
    assert (again.calls, again.details["kept"]) == (0, 3)
    other = pp.run(pp.load(longer, name="others"), words(3), offline=True, progress=False)
    assert (other.directory, other.calls) == (Path("runs/others-offline"), 3)


def test_rows_are_redone_with_another_setting_and_only_where_retry_names_them() -> None:
    short = pp.load(job(), model={"max_output_tokens": 1})
    cut = pp.run(short, words(2), offline=True, progress=False)
    assert cut.outcomes == {"truncated": 2}
    again = pp.run(short, words(2), offline=True, progress=False, retry="truncated", set={"max_output_tokens": 90})
    assert again.ok and again.details["output_tokens"] > 2
    for asked, said in (
        ({"set": {"seed": 1}}, "^set is of the rows that retry names"),
        ({"set": {"name": "m"}, "retry": "truncated"}, r"^set cannot change \[model\] name"),
        ({"fresh": True, "skip_failed": True}, "^skip_failed is of the rows that were tried"),
        ({"cancel_batches": True, "leave": True}, "^cancel_batches is of the batches that are out, and leave"),
        ({"cancel_batches": True, "sample": 1}, "^sample says which rows"),
    ):
        with pytest.raises(JobError, match=said):
            pp.run(short, words(2), **asked)


def test_batches_that_are_out_are_cancelled_unasked_and_where_none_is_that_is_said(service: str) -> None:
    with pytest.raises(RunStateError, match="no batch"):
        pp.run(job(service=service, name="none"), words(1), cancel_batches=True, progress=False)


def test_batches_are_left_with_nobody_in_a_rehearsal() -> None:
    with pytest.raises(JobError, match=r"^leave=True leaves batches with the service"):
        offline(words(1), leave=True)


def test_a_job_and_its_results_can_be_handed_to_another_process() -> None:
    class Told(BaseModel):
        word: str

    of_turns = {"flow": "conversation", "turns": ["Say {{ word }}", "Why?"], "template": None}
    for sections in ({}, {"output": {"schema": Told}, "check": [{"holds": "length(word) < 9"}]}, {"prompt": of_turns}):
        varied = job("varied", **sections)
        for same in (pickle.loads(pickle.dumps(varied)), copy.deepcopy(varied)):
            assert same.fingerprint == varied.fingerprint and pp.estimate(same, words(3), offline=True).rows == 3
    assert pickle.loads(pickle.dumps(offline(words(3)))).frame()["status"].to_list() == ["ok"] * 3


def test_a_class_of_pydantic_is_a_schema() -> None:
    class Mood(BaseModel):
        good: bool

    made = job(output={"schema": Mood})
    assert made.schema and json.loads(made.schema.text)["properties"]["good"]["type"] == "boolean"


def test_a_job_without_a_table_says_so() -> None:
    with pytest.raises(JobError, match="has no table"):
        pp.estimate(job(), offline=True)


# ---- tables


def test_a_frame_comes_back_with_its_answers_and_the_same_frame_buys_nothing() -> None:
    frame = words(5)
    first = offline(frame)
    assert (first.status, first.ok, first.rows, first.calls, first.stopped) == ("finished", True, 5, 5, None)
    table = first.frame()
    assert table["id"].to_list() == frame["id"].to_list() and table["word"].to_list() == frame["word"].to_list()
    assert table["status"].unique().to_list() == ["ok"] and "word 3" in table["response"][3]
    assert table.equals(pl.read_parquet(first.output))
    again = offline(pl.concat([frame[:2], frame[2:]], rechunk=False))
    assert (again.calls, again.details["generation"], again.frame().equals(table)) == (5, 1, True)


def test_a_frame_that_was_changed_buys_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    offline(words(5))
    more = offline(pl.concat([words(5), words(7)[5:].with_columns(id=pl.lit("n") + pl.col("id"))]))
    assert (more.rows, more.calls, more.details["kept"], more.details["generation"]) == (7, 2, 5, 2)
    pp.run(job(), words(4), offline=True)
    assert "the input: the table is not what it was" in " ".join(capsys.readouterr().err.split())


class Stream:
    """What only hands out its columns by Arrow's C interface, as tables of other libraries do."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._frame.__arrow_c_stream__(requested_schema)


def test_the_same_rows_are_the_same_table_however_they_are_given(tmp_path: Path) -> None:
    offline(words(3))
    for other in (words(3).lazy(), Stream(words(3))):
        assert offline(other).details["generation"] == 1
    assert len(list(Path("runs/.given").iterdir())) == 1
    words(3).write_csv("words.csv")
    assert offline("words.csv", "file").rows == 3


def test_a_table_that_a_run_may_be_reading_is_not_touched() -> None:
    pp.estimate(job(), words(3), offline=True)
    (kept,) = Path("runs/.given").iterdir()
    for begin, age_s in ((pp.estimate, 3_600.0), (pp.estimate, 80_000.0), (pp.run, 3_600.0), (pp.run, 80_000.0)):
        if begin is pp.run:
            offline(words(3))
        before = time.time() - age_s
        os.utime(kept, (before, before))
        begin(job(), words(3), offline=True)
        is_touched = kept.stat().st_mtime > before + 1
        assert is_touched == (begin is pp.estimate and age_s > 50_000), "it may be tidied away before the run begins"


def test_a_table_that_was_kept_and_damaged_is_kept_anew() -> None:
    offline(words(3))
    (kept,) = Path("runs/.given").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert (
        offline(words(3)).calls == 3
        and pp.read("words-offline").frame()["word"].to_list() == words(3)["word"].to_list()
    )


def test_what_is_no_table_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="a list is no table"):
        offline([{"word": "a"}])
    with pytest.raises(InputError, match="cannot be kept as Parquet"):
        offline(pl.DataFrame({"id": ["a"], "word": [object()]}))


def test_files_that_a_frame_names_are_looked_for_here() -> None:
    Path("a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00"
    )
    frame = pl.DataFrame({"id": ["a"], "word": ["x"], "picture": ["a.png"]})
    seen = pp.run(job(input={"image": "picture"}), frame, offline=True, progress=False)
    assert seen.ok, seen.frame()["error"][0]


# ---- what it costs


def test_an_estimate_has_the_numbers_of_the_command_line(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    path = small_job(tmp_path)
    told = cli("estimate", path, "--compare", "--json").json
    made = pp.estimate(path, compare=True)
    moving = {"finish_at", "days"}
    assert {k: v for k, v in made.details.items() if k not in moving} == {
        k: v for k, v in told.items() if k not in moving
    }
    assert made.cost_usd and float(made.cost_usd.high) == pytest.approx(told["cost_usd"]["high"])
    assert (made.rows, made.calls) == (6, 6) and str(made).startswith("small: 6 rows, 6 calls, ")
    assert not Path("runs").exists()


def test_nothing_is_bought_before_somebody_says_how_much_or_yes(service: str) -> None:
    before = stats(service)["requests"]
    asked = job(service=service)
    with pytest.raises(JobError, match=r"nobody said yes to the cost: 3 calls, about \$") as refused:
        pp.run(asked, words(3), progress=False)
    assert "`max_cost_usd=`" in refused.value.hint
    assert stats(service)["requests"] == before
    bought = pp.run(asked, words(3), max_cost_usd="0.50", progress=False)
    assert bought.ok and bought.cost_usd and stats(service)["requests"] == before + 3
    assert pp.run(asked, words(3), progress=False).ok  # nothing is left to be said yes to


def test_a_cap_stops_a_run_and_its_results_say_so_in_the_words_of_python(service: str) -> None:
    ended = pp.run(job(service=service), words(3), max_cost_usd=Decimal("0.0000001"), progress=False)
    assert ended.status == "stopped" and isinstance(ended.stopped, BudgetReached) and not ended.ok
    assert "max_cost_usd=" in ended.stopped.hint and "--" not in ended.stopped.hint
    assert str(ended.stopped) in str(ended)
    with pytest.raises(BudgetReached):
        ended.raise_if_stopped()
    assert ended.frame()["status"].to_list() == ["pending"] * 3


def test_an_error_speaks_of_arguments_and_not_of_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(pp.PipelineError) as refused:
        pp.run(job(), words(1), yes=True)
    assert refused.value.hint == "`export GEMINI_API_KEY=…`, or try without one: `offline=True`"
    assert refused.value.__notes__ == [f"hint: {refused.value.hint}"]
    with pytest.raises(JobError, match="max_cost_usd abc is not an amount"):
        pp.run(job(), words(1), max_cost_usd="abc")
    with pytest.raises(JobError, match="fresh buys all anew"):
        pp.run(job(), words(1), fresh=True, retry="blocked")
    with pytest.raises(JobError, match="retry: maybe is no status or cause"):
        pp.run(job(), words(1), retry="blocked,maybe")
    with pytest.raises(JobError, match="sample is a number of rows: 0"):
        pp.estimate(job(), words(1), sample=0)
    with pytest.raises(InputError, match="column `id` is not in the table\n"):
        pp.run(job(), words(1).rename({"id": "other"}), offline=True)


# ---- results


def test_rows_that_are_not_ok_are_listed_with_their_cause() -> None:
    table = pl.DataFrame({"id": ["a", "b"], "word": ["x", None]})
    ended = pp.run(job(input={"text": "word"}, prompt={"template": "Say {{ text }}"}), table, offline=True)
    assert not ended.ok and ended.causes == {"empty_input": 1}
    assert ended.failed().select("key", "error_kind").rows() == [("b", "empty_input")]


def test_a_run_that_was_made_before_is_read_by_its_name_or_job_and_by_the_command_line(cli: Callable[..., Ran]) -> None:
    made = offline(words(3))
    assert pp.read("words") == made
    assert pp.read("words").frame().equals(made.frame())
    assert pp.read(job()).frame().equals(made.frame())
    assert "not in it" not in cli("export", "words", "--to", "all.parquet").err
    assert pl.read_parquet("all.parquet").equals(made.frame())
    assert "Say word 2" in cli("show", "words", "r2").out
    with pytest.raises(RunStateError, match="is no run"):
        pp.read("others")
    for table in Path("runs/.given").iterdir():
        table.unlink()
    with pytest.warns(UserWarning, match="the frame lacks the columns of the input"):
        assert pp.read("words").frame().columns[:2] == ["id", "status"]


def test_tables_of_runs_stay_and_those_of_estimates_go_after_a_day() -> None:
    offline(words(2))
    pp.estimate(job(), words(3), offline=True)
    kept = set(Path("runs/.given").iterdir())
    for path in kept:
        os.utime(path, (0, 0))
    pp.estimate(job(), words(4), offline=True)
    assert len(kept) == 2 and len(set(Path("runs/.given").iterdir()) & kept) == 1
    (of_run,) = set(Path("runs/.given").iterdir()) & kept
    pp.estimate(job(), words(2), offline=True)
    assert of_run.stat().st_mtime == 0  # it stays anyway, and the run may be reading it
    assert pp.read("words").frame().height == 2


def test_a_report_of_a_job_in_no_file_says_the_call_that_goes_on(cli: Callable[..., Ran]) -> None:
    assert offline(words(20), sample=5).status == "sample"
    assert "`pp.run(job, offline=True)` does the other 15 rows" in " ".join(cli("report", "words").out.split())
    cut = pp.run(job("cut", model={"max_output_tokens": 1}), words(2), offline=True, progress=False)
    assert cut.outcomes == {"truncated": 2}
    again = "pp.run(pp.load(job, model={'max_output_tokens': 2}), offline=True, retry='truncated')"
    assert cut.details["causes"][0]["cure"] == f"`{again}`"
    longer = pp.load(job("cut"), model={"max_output_tokens": 90})
    assert pp.run(longer, words(2), offline=True, retry="truncated", progress=False).outcomes == {"ok": 2}


def test_a_sample_is_run_and_kept() -> None:
    trial = offline(words(20), sample=5)
    assert (trial.status, trial.calls) == ("sample", 5)
    assert offline(words(20), sample=5).calls == 5
    assert offline(words(20)).calls == 20


# ---- estimates


def test_a_pilot_is_agreed_to_kept_and_told_by(service: str) -> None:
    asked = job("piloted", service)
    with pytest.raises(JobError, match="nobody said yes to the cost: 2 calls"):
        pp.estimate(asked, words(6), pilot=2)
    made = pp.estimate(asked, words(6), pilot=2, max_cost_usd=1)
    assert (made.rows_done, made.rows) == (2, 4)
    assert pp.run(asked, words(6), yes=True, progress=False).calls == 6
    assert pp.estimate(asked, words(6), pilot=2).calls == 0  # nothing is left, and nothing to be agreed to
    with pytest.raises(JobError, match=r"^sample says which rows"):
        pp.estimate(asked, words(6), pilot=2, sample=1)


# ---- loops, threads, and the end


def test_it_runs_where_a_loop_runs_and_in_one() -> None:
    async def main() -> None:
        assert offline(words(2)).ok
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        assert (await pp.run_async(job("other"), words(2), offline=True, progress=False)).ok
        made, before = await pp.estimate_async(job("another"), words(2), offline=True), ticks
        assert (made.job, made.calls) == ("another", 2) and before > 2
        ticking.cancel()
        assert ticks > 2

    asyncio.run(main())


def test_it_is_awaited_in_trio_too_and_ends_with_its_scope(service: str) -> None:
    before = stats(service)["answered"]

    async def stop(scope: trio.CancelScope) -> None:
        await trio.to_thread.run_sync(begun, service, before)
        scope.cancel()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(stop, scope)
                await pp.run_async(job(service=service), words(24), yes=True, progress=False)
        assert scope.cancelled_caught and pp.read("words").status == "interrupted"
        assert (await pp.run_async(job(service=service), words(24), yes=True, progress=False)).ok

    trio.run(main)
    assert stats(service)["answered"] == before + 24


def test_two_runs_at_once_share_the_process_and_leave_it_as_it_was(service: str) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    usual, handlers = gc.get_threshold(), list(logging.getLogger().handlers)
    during: list[Any] = []

    async def main() -> None:
        both = asyncio.gather(
            *(pp.run_async(job(name, service), words(6, name), yes=True, progress=False) for name in ("one", "two"))
        )
        await asyncio.sleep(LATENCY_S)
        during.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP))
        for ended in await both:
            assert ended.ok and ended.calls == 6
            assert [ended.job in text for text in ended.frame()["response"]] == [True] * 6

    asyncio.run(main())
    assert during == before[1:]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert gc.get_threshold() == usual and logging.getLogger().handlers == handlers


def begun(service: str, before: int, answers: int = 6) -> None:
    """Wait until so many are answered."""
    while stats(service)["answered"] < before + answers:
        time.sleep(0.02)


def test_a_task_that_is_cancelled_keeps_what_is_in_flight_and_the_next_call_goes_on(service: str) -> None:
    before = stats(service)["answered"]
    asked = job(service=service)

    async def main() -> None:
        running = asyncio.create_task(pp.run_async(asked, words(24), yes=True, progress=False))
        await anyio.to_thread.run_sync(begun, service, before)
        running.cancel()
        with pytest.raises(asyncio.CancelledError, match="what was answered is kept"):
            await running

    asyncio.run(main())
    kept = pp.read("words")
    assert kept.status == "interrupted" and 6 <= kept.calls < 24
    assert pp.run(asked, words(24), yes=True, progress=False).ok
    assert stats(service)["answered"] == before + 24


def test_ctrl_c_keeps_what_is_in_flight_and_is_raised_when_that_is_in(service: str) -> None:
    before = stats(service)["answered"]
    asked, main = job(service=service), threading.main_thread().ident
    assert main == threading.get_ident()

    def press() -> None:
        begun(service, before)
        signal.pthread_kill(main, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(KeyboardInterrupt, match="what was answered is kept"):
        pp.run(asked, words(24), yes=True, progress=False)
    pressing.join()
    kept = pp.read("words")
    assert kept.status == "interrupted" and 6 <= kept.calls < 24
    assert pp.run(asked, words(24), yes=True, progress=False).ok
    assert stats(service)["answered"] == before + 24


def test_a_second_run_of_a_job_that_goes_on_is_refused(service: str) -> None:
    async def main() -> None:
        running = asyncio.create_task(pp.run_async(job("busy", service), words(6), yes=True, progress=False))
        await anyio.to_thread.run_sync(begun, service, stats(service)["answered"], 1)
        with pytest.raises(RunStateError, match="another run writes"):
            await pp.run_async(job("busy", service), words(6), yes=True, progress=False)
        assert (await running).ok

    asyncio.run(main())


def test_help_says_how_run_is_called_though_a_folder_of_modules_has_its_name() -> None:
    assert callable(pp.load)  # the first name brings the modules along
    told = pydoc.plain(pydoc.render_doc(sys.modules["pipeline.run"]))
    assert "run(job: " in told and "Start a job's run" in told


def test_the_package_is_imported_in_no_time_and_touches_nothing() -> None:
    said = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, signal, locale, logging; before = signal.getsignal(2), locale.setlocale(0)\n"
            "import pipeline as pp\n"
            "assert (signal.getsignal(2), locale.setlocale(0)) == before and not logging.getLogger().handlers\n"
            "print([name for name in ('polars', 'pydantic', 'anyio', 'httpx', 'rich') if name in sys.modules])\n"
            "assert {'run', 'load'} <= set(dir(pp)) and not hasattr(pp, 'others')",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stdout) == (0, "[]\n"), said.stderr
    assert (Path(pp.__file__ or "").parent / "py.typed").exists()
    assert callable(sys.modules["pipeline.run"]) and callable(pp.run)  # it is a folder of modules, too


def test_a_process_forked_from_one_that_worked_is_told_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.api.work.Work._process", os.getppid())
    with pytest.raises(JobError, match="forked"):
        pp.estimate(small_job(here), offline=True)


def test_several_workers_share_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEAST_ROWS", 10)
    job = pp.load(small_job(Path.cwd()))
    results = pp.run(job, words(25), offline=True, workers=2, progress=False)
    assert results.frame()["status"].to_list() == ["ok"] * 25
    for sampled in ({"workers": 2}, {"on": "ray"}, {}):
        said = "sample= does not go with" if sampled else "was begun by several workers"
        with pytest.raises(pp.PipelineError, match=said):
            pp.run(job, words(25), offline=True, sample=3, progress=False, **sampled)
    with pytest.raises(pp.PipelineError, match="workers is a number of processes"):
        pp.run(job, words(25), offline=True, workers=0)
    with pytest.raises(pp.PipelineError, match="workers are on Ray or on this machine, and not on 'rye'"):
        pp.run(job, words(25), offline=True, on="rye")  # type: ignore[arg-type]


def test_an_estimate_foresees_a_run_by_several_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEAST_ROWS", 10)
    job, alike = pp.load(small_job(Path.cwd())), words(25).with_columns(word=pl.lit("the same"))
    assert pp.estimate(job, alike, offline=True).calls == 1
    assert pp.estimate(job, alike, offline=True, workers=2).calls == 3, "each shard asks its own"
    with pytest.raises(pp.PipelineError, match="runs some rows in one process"):
        pp.estimate(job, alike, offline=True, workers=2, pilot=1)
    with pytest.raises(pp.PipelineError, match="workers is a number of processes"):
        pp.estimate(job, alike, offline=True, workers=0)


def test_without_ray_the_hint_says_in_python_what_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pipeline.fleet.on_ray", raising=False)
    with pytest.raises(JobError, match=r'^on="ray" needs ray, which is not installed') as refused:
        pp.run(job(), words(25), offline=True, on="ray")
    assert "`workers=` does without it" in refused.value.hint and not list(Path.cwd().glob("runs*/words*"))


@pytest.mark.parametrize(("call", "comes"), [("run", pp.Results), ("estimate", pp.Estimate)])
def test_a_call_and_its_twin_for_a_loop_are_called_alike_and_say_what_comes_back(call: str, comes: type) -> None:
    here, there = getattr(api, call), getattr(api, f"{call}_async")
    for each in (here, there):
        described = signature(each)
        assert described.return_annotation is comes and "job" in described.parameters
        assert pickle.loads(pickle.dumps(each)) is each
    assert signature(here) == signature(there)
    assert (here.__name__, there.__name__) == (call, f"{call}_async") and iscoroutinefunction(there)
    assert "event loop" in there.__doc__ != here.__doc__
    with pytest.raises(TypeError, match="unexpected keyword argument 'worker'"):
        here(job(), worker=2)
