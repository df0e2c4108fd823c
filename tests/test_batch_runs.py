"""Whole runs over batches, before the emulator's: the same answers as live, at half the price, each paid once."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from chinese import english_in
from forking import forked
from serving import served, stats
from sessions import run_through

from jobs import Sections, write_job
from pipeline import estimating
from pipeline.errors import BatchesCancelled, BatchesOut, JobError, RunStateError
from pipeline.estimating import Wishes
from pipeline.job import load
from pipeline.language.catalogue import chinese
from pipeline.plan.timing import time_after
from pipeline.run import prepare
from pipeline.run.batching import deadline_of, still_out
from pipeline.run.checks import examine
from pipeline.run.ending import Ended
from pipeline.run.prepare import Options
from pipeline.store import batched
from pipeline.store.batches import is_out
from pipeline.store.parts import part_paths, read_part

ROWS = 12


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(batch=True, batch_pending_s=0.3, batch_run_s=0.3, batch_spread=1.0, tokenizer="subword") as url:
        yield url


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setattr("pipeline.batch.watching.POLL_S", (0.2, 1.0))


def long(row: int) -> str:
    return " ".join(f"Sentence {number} of text {row} says so." for number in range(80 if row % 3 == 0 else 4))


def written(path: Path, url: str, name: str = "job", **sections: Any) -> Path:
    table = path / f"{name}.parquet"
    pl.DataFrame({"id": [f"r{n}" for n in range(ROWS)], "body": [long(n) for n in range(ROWS)]}).write_parquet(table)
    base: Sections = {
        "input": {"path": str(table), "id": "id", "text": "body"},
        "prompt": {"template": f"{name}: {{{{ text }}}}"},
        "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": 200, "lane": "batch"},
        "limits": {"rpm": 0, "tpm": 0},
        "endpoint": {"base_url": url},
        "output": {"path": str(path / f"{name}-out.parquet")},
    }
    made = write_job(path, base, **sections)
    return made.rename(path / f"{name}.toml")


def done(path: Path, **options: Any) -> Ended:
    return run_through(prepare.prepare(load(path), Options(**options)))


def bought(name: str) -> pl.DataFrame:
    """Every call of a run, as it is kept."""
    columns = ("row", "step", "level", "chunk", "fingerprint", "paid", "status", "lane", "text", "cost_usd")
    directory = Path("runs") / name
    paths = [*part_paths(directory / "calls"), *batched.part_paths(directory)]
    return pl.concat([read_part(path, columns) for path in paths]).sort("row", "level", "step", "chunk")


FLOWS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": {"template": "Of {{ id }}: {{ text }}"}},
    "reduce": {
        "prompt": {"template": "Piece {{ chunk }}: {{ text }}"},
        "chunk": {"max_tokens": 120},
        "reduce": {"template": "Merge for {{ id }}:\n{{ parts }}"},
    },
    "refine": {
        "prompt": {"template": "Begin {{ id }}: {{ text }}"},
        "chunk": {"max_tokens": 240},
        "refine": {"template": "So far: {{ summary }}\nMore of {{ id }}: {{ text }}"},
    },
    "conversation": {
        "prompt": {"template": None, "flow": "conversation", "turns": ["Read {{ text }}", "And {{ id }}?"]}
    },
    "repair": {"output": {"schema": "topic: str, kind: a|b", "repair": True}},
}


@pytest.mark.parametrize("flow", FLOWS)
def test_a_run_over_batches_asks_the_prompts_of_a_live_run_at_half_the_price(
    tmp_path: Path, url: str, flow: str
) -> None:
    here = {name: {**values} for name, values in FLOWS[flow].items()}
    live = done(written(tmp_path, url, f"{flow}-live", **{**here, "model": {"lane": "standard"}}))
    batch = done(written(tmp_path, url, f"{flow}-batch", **here))
    assert (live.exit_code, batch.exit_code) == (0, 0), (live.stopped, batch.stopped)
    asked_live, asked = bought(f"{flow}-live"), bought(f"{flow}-batch")
    same = ("row", "step", "level", "chunk", "status")
    assert asked.select(same).equals(asked_live.select(same))
    assert set(asked["lane"]) == {"batch"} and set(asked_live["lane"]) == {"standard"}
    assert asked["fingerprint"].n_unique() == asked.height
    usd = Decimal(asked["cost_usd"].sum()) / Decimal(asked_live["cost_usd"].sum())
    assert usd == pytest.approx(Decimal("0.5"), rel=Decimal("0.01"))
    result = pl.read_parquet(tmp_path / f"{flow}-batch-out.parquet")
    assert result.height == ROWS and set(result["status"]) == {"ok"}
    assert result["cost_usd"].sum() == pytest.approx(float(asked["cost_usd"].sum()))
    told = stats(url)["batches"]
    assert told["lines_billed_twice"] == 0


def test_the_prompts_of_both_lanes_have_the_same_fingerprints(tmp_path: Path, url: str) -> None:
    for name, lane in (("one", "standard"), ("two", "batch")):
        path = written(tmp_path, url, name, **FLOWS["reduce"], model={"lane": lane})
        assert done(path).exit_code == 0
    assert bought("one")["fingerprint"].to_list() == bought("two")["fingerprint"].to_list()
    columns = ("id", "response", "status", "calls", "chunks", "input_tokens", "output_tokens")
    one, two = (pl.read_parquet(tmp_path / f"{name}-out.parquet").select(columns) for name in ("one", "two"))
    assert one.equals(two)


def test_batches_are_left_and_collected_by_the_same_command(tmp_path: Path, url: str) -> None:
    path = written(tmp_path, url, "left", **FLOWS["reduce"])
    first = done(path, leave=True)
    assert isinstance(first.stopped, BatchesOut) and first.exit_code == 3
    assert "with the service" in first.stopped.message and "48 hours" in first.stopped.message
    assert len(first.out) == 1 == len(is_out(Path("runs/left")))
    told, since, *_ = still_out(first.out)
    assert told.startswith("1 batch, ") and told.endswith("in none") and since.startswith("the first was handed in at ")
    for each in still_out([replace(state, worst_usd=Decimal("0.5")) for state in first.out]):
        assert not english_in(chinese().translated(each)), each
    made = anyio.run(estimating.estimate, prepare.prepare(load(path), Options()), Wishes()).plan
    assert made.prompts_by_step.keys() == {"reduce"}, "what waits in the batch was to be bought once more"
    assert sum(made.out.values()) == first.out[0].lines and made.load.prompts == sum(made.left_by_step.values())
    (lanes,) = made.lanes
    (waiting,) = lanes.given.out
    assert waiting.number == 1 and waiting.some.prompts == first.out[0].lines
    assert lanes.given.left.prompts == made.prompts.expected == sum(part.prompts for part in lanes.parts)
    ended = [done(path, leave=True) for _ in range(12) if is_out(Path("runs/left"))]
    assert [each.exit_code for each in ended[:-1]] == [3] * (len(ended) - 1)
    assert ended[-1].exit_code == 0, ended[-1]
    assert pl.read_parquet(tmp_path / "left-out.parquet")["status"].to_list() == ["ok"] * ROWS
    assert bought("left")["fingerprint"].n_unique() == bought("left").height
    assert set(bought("left")["lane"]) == {"batch"}, "a later round of rows that all wait at the start was asked live"


def test_a_deadline_stays_what_it_was_when_the_batches_were_cut(tmp_path: Path) -> None:
    soon = datetime.now(UTC).astimezone() + timedelta(hours=10)
    with served(batch=True, batch_pending_s=900, batch_run_s=900, batch_spread=1.0) as slow:
        path = written(tmp_path, slow, "due", run={"by": f"{soon:%H:%M}"})
        left = done(path, leave=True, by=soon, by_said=f"{soon:%H:%M}")
        assert left.stopped and f"so that by {soon:%a %H:%M} all is done" in left.stopped.message
        cut_at = min(state.cut_at for state in is_out(Path("runs/due")))
        options = Options(by=soon, by_said=f"{soon:%H:%M}")
        assert deadline_of(options, is_out(Path("runs/due"))) == time_after(f"{soon:%H:%M}", _at(cut_at))
        earlier = [replace(state, cut_at=cut_at - 3 * 3600) for state in is_out(Path("runs/due"))]
        missed = datetime.now(UTC).astimezone() - timedelta(minutes=1)
        late = Options(by=missed + timedelta(days=1), by_said=f"{missed:%H:%M}")
        found = deadline_of(late, earlier)
        assert found and found < datetime.now(UTC)
        with pytest.raises(JobError, match="is past"):
            deadline_of(Options(by=missed, by_said=f"{missed:%Y-%m-%d %H:%M}"), ())


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_what_is_out_is_neither_set_aside_nor_tried_by_a_pilot(tmp_path: Path, url: str) -> None:
    path = written(tmp_path, url, "kept")
    assert done(path, leave=True).exit_code == 3
    for options in ({"fresh": True}, {"pilot": frozenset({1})}):
        with pytest.raises(RunStateError, match="with the service"):
            done(path, **options)
    assert done(path).exit_code == 0


def test_a_job_that_asks_live_now_still_collects_what_is_out(tmp_path: Path, url: str) -> None:
    path = written(tmp_path, url, "changed", **FLOWS["reduce"])
    assert done(path, leave=True).exit_code == 3
    path.write_text(path.read_text().replace('lane = "batch"', 'lane = "standard"'))
    assert done(path).exit_code == 0
    assert bought("changed").group_by("lane").len().sort("lane")["lane"].to_list() == ["batch", "standard"]
    assert bought("changed")["fingerprint"].n_unique() == bought("changed").height


def test_rows_beyond_a_limit_wait_and_are_done_by_a_later_run(tmp_path: Path, url: str) -> None:
    path = written(tmp_path, url, "limited")
    assert done(path, limit=5).exit_code == 0
    assert done(path).exit_code == 0
    assert bought("limited").height == ROWS


def test_what_a_batch_answered_is_in_the_cache_for_other_runs(tmp_path: Path, url: str) -> None:
    for name, lane in (("first", "batch"), ("second", "batch"), ("third", "standard")):
        shared = {"prompt": {"template": "The same for all: {{ text }}"}, "cache": {"url": str(tmp_path / "a.sqlite")}}
        assert done(written(tmp_path, url, name, **shared, model={"lane": lane})).exit_code == 0
    assert [bought(name).height for name in ("first", "second", "third")] == [ROWS, 0, 0]


def test_identical_rows_are_one_line(tmp_path: Path, url: str) -> None:
    path = written(tmp_path, url, "same", prompt={"template": "Say the same."})
    ended = done(path)
    assert ended.exit_code == 0 and bought("same").height == 1
    assert ended.summary.calls == 1 and ended.summary.done == ROWS


def test_cancelled_batches_keep_what_they_have_and_the_run_goes_on_later(tmp_path: Path) -> None:
    with served(batch=True, batch_pending_s=0.0, batch_run_s=600, batch_spread=1.0) as slow:
        path = written(tmp_path, slow, "cancelled")
        assert done(path, leave=True).exit_code == 3
        ended = done(path, cancel_batches=True)
        assert not is_out(Path("runs/cancelled"))
        assert ended.summary.done == 0 and isinstance(ended.stopped, BatchesCancelled) and ended.exit_code == 3
        path.write_text(path.read_text().replace('lane = "batch"', 'lane = "standard"'))
        assert done(path).exit_code == 0


@pytest.mark.parametrize("lane", ["batch", "standard"])
def test_where_no_batch_is_out_there_is_none_to_cancel_and_nothing_is_asked(
    tmp_path: Path, url: str, lane: str
) -> None:
    path = written(tmp_path, url, f"none-{lane}", model={"lane": lane})
    before = stats(url)["requests"]
    with pytest.raises(RunStateError, match=r"no batch of .* is out"):
        done(path, cancel_batches=True)
    assert stats(url)["requests"] - before <= 1 and not Path(f"runs/none-{lane}").exists()


def test_rows_that_are_redone_do_not_wait_for_the_batches_of_others(tmp_path: Path) -> None:
    with served(batch=True, batch_pending_s=600, batch_run_s=600, batch_spread=1.0) as slow:
        path = written(tmp_path, slow, "redone")
        assert done(path, leave=True).exit_code == 3
        options = Options(retry=frozenset({"truncated"}), changes='{"max_output_tokens":400}')
        ended = run_through(prepare.prepare(load(path), options, load(path, {"model.max_output_tokens": 400})))
        assert isinstance(ended.stopped, BatchesOut) and "without `--retry`" in ended.stopped.hint


def test_a_job_that_was_changed_is_told_what_to_do_with_its_batches(tmp_path: Path) -> None:
    with served(batch=True, batch_pending_s=600, batch_run_s=600, batch_spread=1.0) as slow:
        path = written(tmp_path, slow, "other")
        assert done(path, leave=True).exit_code == 3
        path.write_text(path.read_text().replace("other: ", "another: "))
        with pytest.raises(RunStateError, match="different job") as refused:
            done(path)
        assert "undo the change" in refused.value.hint and "--cancel-batches" in refused.value.hint


def test_check_names_the_batches_that_no_run_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(batch=True, batch_pending_s=600, batch_run_s=600, batch_spread=1.0) as slow:
        path = written(tmp_path, slow, "mine")
        assert done(path, leave=True).exit_code == 3
        (step,) = [step for step in anyio.run(examine, path, {}, Options()) if step.name == "batches"]
        assert (step.state, step.found, step.warnings) == ("passed", "1 at work", ())
        Path("runs/mine").rename("elsewhere")
        (step,) = [step for step in anyio.run(examine, path, {}, Options()) if step.name == "batches"]
        assert "1 of them no run in runs/ knows" in step.warnings[0] and "pp-" in step.warnings[0]
    with served() as without:
        path = written(tmp_path, without, "none")
        (step,) = [step for step in anyio.run(examine, path, {}, Options()) if step.name == "batches"]
        assert step.state == "failed" and "cannot be listed" in step.found


def test_ctrl_c_leaves_the_batches_where_they_are(tmp_path: Path) -> None:
    with served(batch=True, batch_pending_s=1.5, batch_run_s=0.5, batch_spread=1.0) as slow:
        written(tmp_path, slow, "broken")
        process = forked("run", "broken.toml", "--yes", env={"GEMINI_API_KEY": "AQ.test"})
        while not any(state.stage == "asked" for state in out_of("broken")):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130 and b"1 batch, 12 calls, is with the service" in told
        assert done(tmp_path / "broken.toml").exit_code == 0
        assert stats(slow)["batches"]["lines_billed_twice"] == 0


def out_of(name: str) -> list[Any]:
    try:
        return is_out(Path("runs") / name)
    except RunStateError:
        return []
