import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import stores
from asking import MODEL, TARGET
from batch_stores import to_asked
from plans import telling

from jobs import CHUNKED, Sections, make_job
from pipeline.job import Job
from pipeline.places import Kind
from pipeline.plan.earlier import earlier
from pipeline.plan.learned import Learned
from pipeline.providers.stored import parse_stored
from pipeline.records import Usage
from pipeline.store import units
from pipeline.store.batch_lines import Key
from pipeline.store.manifest import SHARDED_VERSION, VERSION
from pipeline.store.run import RunStore

KINDS = [0, 1, 2, 0, 1, 2] * 20


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


def look(tmp_path: Path, job: Job, kind: Kind = "real", most: int = 200_000) -> Learned:
    return earlier(tmp_path / "runs", job, kind, "table", telling(KINDS), most=most)


@contextmanager
def run(tmp_path: Path, job: Job, name: str = "job", **fields: Any) -> Iterator[RunStore]:
    """A run directory of the job, open."""
    store = RunStore(tmp_path / "runs" / name, parse_stored)
    identity = {"identity": job.identity, "model": job.model, "job": job.name}
    store.open(stores.manifest(**{**identity, "source": "table", "offline": False, **fields}))
    try:
        yield store
    finally:
        store.close()


def buy(
    store: RunStore, rows: Iterable[int], *, tokens: int = 150, output: int = 40, done: bool = True, **fields: Any
) -> None:
    """Answers to prompts of 100 estimated tokens; those of rows that are not done stay in the journal."""
    for row in rows:
        usage = Usage(tokens, 0, output)
        store.append_call(stores.prompt(row, input_tokens_est=100, **fields), MODEL, stores.paid(usage=usage))
        if done:
            store.append_result(stores.result(row))


def bought(tmp_path: Path, job: Job, name: str = "job", *, rows: int = 6, tokens: int = 150, **fields: Any) -> Path:
    """The directory of a run that ended well."""
    with run(tmp_path, job, name, **fields) as store:
        buy(store, range(rows), tokens=tokens)
    return store.directory


def test_there_are_no_runs(tmp_path: Path, job: Job) -> None:
    assert look(tmp_path, job).based_on == ""


def test_sealed_and_unsealed_answers_of_this_run_teach(tmp_path: Path, job: Job) -> None:
    with run(tmp_path, job) as store:
        buy(store, range(6))
    with run(tmp_path, job) as store:
        buy(store, range(6, 9), tokens=180, done=False)
        while_it_runs = look(tmp_path, job)
    for known in (while_it_runs, look(tmp_path, job)):
        assert known.based_on == "9 answers of this run"
        assert known.taught["kind"].to_list().count(2) == 3
        assert known.ratio("answer", 0).value == pytest.approx(1.6)
        output = known.lengths.of("answer", 100)
        assert output and (output.answers, output.output_tokens) == (9, 40)
        assert known.latency_s == 1.25


def test_a_run_of_several_workers_teaches_by_its_rows_in_the_table(tmp_path: Path, job: Job) -> None:
    whole = bought(tmp_path, job, rows=0)
    shards = [units.Shard(number, units.shard_directory(whole, number), 2 * number, 2) for number in range(4)]
    units.write(whole, shards, "table")
    for shard in shards[:3]:  # the last was not begun
        bought(tmp_path, job, f"job/shards/{shard.directory.name}", rows=2, tokens=100 * (2 - shard.number) or 40)
    assert look(tmp_path, job).based_on == "6 answers of this run"
    assert look(tmp_path, job).taught["kind"].to_list() == [KINDS[row] for row in (4, 5, 2, 3, 0, 1)]
    newest = look(tmp_path, job, most=2)
    assert newest.based_on == "2 answers of this run" and newest.ratio("answer", 0).value == pytest.approx(0.4)
    shutil.rmtree(shards[1].directory / "calls")  # as of one whose sums alone were fetched
    assert look(tmp_path, job).based_on == "4 answers of this run"


def test_a_run_set_aside_teaches_as_an_earlier_one(tmp_path: Path, job: Job) -> None:
    bought(tmp_path, job, "job.20261122T200000.000000Z")
    known = look(tmp_path, job)
    assert known.based_on == "6 answers of 1 earlier run"
    assert known.taught["kind"].to_list() == [0, 1, 2, 0, 1, 2]
    bought(tmp_path, job, tokens=100)
    both = look(tmp_path, job)
    assert both.based_on == "6 answers of this run and 6 answers of 1 earlier run"
    assert both.ratio("answer", 0).value == pytest.approx(1.25)


def test_twenty_answers_of_this_run_are_enough(tmp_path: Path, job: Job) -> None:
    bought(tmp_path, job, "other")
    bought(tmp_path, job, rows=20, tokens=100)
    assert look(tmp_path, job).based_on == "20 answers of this run"


@pytest.mark.parametrize("fields", [{"source": "another"}, {"identity": {"input": {"where": "stars > 3"}}}])
def test_rows_of_another_table_are_of_no_kind(tmp_path: Path, job: Job, fields: dict[str, Any]) -> None:
    if "identity" in fields:
        fields["identity"] = {**job.identity, **fields["identity"]}
    bought(tmp_path, job, **fields)
    known = look(tmp_path, job)
    assert known.based_on == "6 answers of 1 earlier run"
    assert known.taught["kind"].null_count() == 6
    assert known.ratio("answer", 0) == known.ratio("answer", 2)


@pytest.mark.case("O6")
@pytest.mark.parametrize(("kind", "ratio"), [("real", 1.5), ("offline", 0.7), ("rehearsal", 0.9)])
def test_runs_of_the_same_kind_teach_and_no_others(tmp_path: Path, job: Job, kind: Kind, ratio: float) -> None:
    bought(tmp_path, job, tokens=150)
    bought(tmp_path, job, "job-offline", tokens=70, offline=True)
    bought(tmp_path, job, "job-rehearsal", tokens=90, rehearsal=True)
    known = look(tmp_path, job, kind)
    assert known.based_on == "6 answers of this run"
    assert known.ratio("answer", 0).value == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("sections", "input_teaches", "answers_teach"),
    [
        ({}, True, True),
        ({"output": {"path": "elsewhere.csv"}, "limits": {"rpm": 5}, "budget": {"max_usd": 1.0}}, True, True),
        ({"model": {"prices": {"input": 1.0, "output": 2.0}}}, True, True),
        ({"input": {"path": "others.csv", "id": "topic"}}, True, True),
        ({"model": {"max_output_tokens": 9}}, True, False),
        ({"model": {"thinking": "high"}}, True, False),
        ({"model": {"temperature": 0.5}}, True, False),
        ({"model": {"stop": ["END"]}}, True, False),
        ({"model": {"response_mime_type": "application/json"}}, True, False),
        ({"model": {"name": "gemini-2.5-flash"}}, False, False),
        ({"prompt": {"template": "Tell {{ topic }}"}}, False, False),
        ({"prompt": {"system": "Be brief."}}, False, False),
    ],
)
def test_what_must_be_the_same(tmp_path: Path, sections: Sections, input_teaches: bool, answers_teach: bool) -> None:
    bought(tmp_path, make_job(tmp_path, **sections), "other")
    known = look(tmp_path, make_job(tmp_path))
    assert known.ratio("answer", 0).value == pytest.approx(1.5 if input_teaches else 1.0)
    assert (known.lengths.of("answer", 100) is not None) == (known.latency_s is not None) == answers_teach


@pytest.mark.parametrize(
    ("sections", "taught"),
    [
        ({}, "answer+ map+ reduce+"),
        ({"chunk": {"max_tokens": 99}}, "answer map reduce"),
        ({"reduce": {"template": "Join: {{ parts }}"}}, "answer+ map+"),
        ({"reduce": {"system": "Be brief."}}, "answer+ map+"),
        ({"reduce": {"max_output_tokens": 9}}, "answer+ map+ reduce"),
        ({"prompt": {"template": "Read {{ text }}"}}, "reduce"),
        ({"prompt": {"system": "Be brief."}}, ""),
        ({"prompt": {"system": "Be brief."}, "reduce": {"system": "Join."}}, ""),
        ({"chunk": None, "reduce": None, "prompt": {"template": "{{ text }}"}}, ""),
    ],
)
def test_each_step_learns_from_its_like(tmp_path: Path, sections: Sections, taught: str) -> None:
    """A step with a + learns the lengths of answers too."""
    with run(tmp_path, make_job(tmp_path, CHUNKED, **sections), "other") as store:
        for step in ("answer", "map", "reduce"):
            buy(store, [0], step=step)
    known = look(tmp_path, make_job(tmp_path, CHUNKED)).taught
    rows = known.select("step", "output").sort("step").iter_rows()
    found = [step + "+" * (output is not None) for step, output in rows]
    assert " ".join(found) == taught


def test_a_run_that_shares_only_the_model_is_not_read(tmp_path: Path) -> None:
    bought(tmp_path, make_job(tmp_path, prompt={"template": "Count {{ topic }}"}), "new", created_at="2026-11-22")
    assert look(tmp_path, make_job(tmp_path)).taught.height == 0
    bought(tmp_path, make_job(tmp_path), "old", created_at="2026-11-21")
    assert look(tmp_path, make_job(tmp_path), most=6).taught.height == 6


def test_half_a_seal_is_not_counted_twice(tmp_path: Path, job: Job) -> None:
    directory = bought(tmp_path, job)
    sealed = next((directory / "calls").glob("*.parquet"))
    shutil.copy(sealed, sealed.with_name("part-000077.parquet"))
    assert look(tmp_path, job).taught.height == 6


def test_the_newest_calls_count_and_this_run_before_others(tmp_path: Path, job: Job) -> None:
    bought(tmp_path, job, "old", tokens=300, created_at="2026-11-20T00:00:00+00:00")
    bought(tmp_path, job, "new", tokens=200, created_at="2026-11-21T00:00:00+00:00")
    bought(tmp_path, job, tokens=100, created_at="2026-11-01T00:00:00+00:00")
    with run(tmp_path, job, created_at="2026-11-01T00:00:00+00:00") as store:
        buy(store, range(6, 8), tokens=120)
    observed = [look(tmp_path, job, most=most).taught["input"].to_list() for most in (0, 2, 8, 9, 14)]
    assert observed[:2] == [[], [120] * 2]
    assert observed[2] == [120] * 2 + [100] * 6
    assert observed[3] == [*observed[2], 200]
    assert observed[4] == [*observed[2], *[200] * 6]


def test_rows_redone_with_other_settings_do_not_teach(tmp_path: Path, job: Job) -> None:
    changes = '{"max_output_tokens":9}'
    with run(tmp_path, job) as store:
        buy(store, range(4))
        store.append_result(stores.result(0, changes=changes))
    with run(tmp_path, job) as store:
        store.append_result(stores.result(1, changes=changes))
        assert look(tmp_path, job).based_on == "2 answers of this run"


def test_what_batches_bought_teaches_lengths_and_no_latency(tmp_path: Path, job: Job) -> None:
    with run(tmp_path, job) as store:
        buy(store, range(2))
        replies = [stores.paid(usage=Usage(150, 0, 80), lane="batch", latency_s=0.0) for _ in range(3)]
        for rows, changes in ((range(2, 5), None), (range(5, 8), '{"temperature":1}')):
            draft = store.batches.draft(TARGET, changes)
            for row in rows:
                draft.add(Key.of(stores.prompt(row, input_tokens_est=100), MODEL), b"{}\n")
            number = draft.cut().number
            to_asked(store.batches, number)
            keys = store.batches.keys(number)
            store.batches.take(number, [key.call(reply) for key, reply in zip(keys, replies, strict=True)])
        learned = look(tmp_path, job)
    assert learned.based_on == "5 answers of this run"
    assert learned.latency_s == learned.slow_s == 1.25
    assert sorted(learned.taught["output"]) == [40, 40, 80, 80, 80]


def test_failures_and_guesses_do_not_teach(tmp_path: Path, job: Job) -> None:
    with run(tmp_path, job) as store:
        store.append_call(stores.prompt(0), MODEL, stores.failed())
        store.append_call(stores.prompt(1), MODEL, stores.paid(usage=Usage(10, 0, 5, estimated=True)))
    assert look(tmp_path, job).taught.height == 0


def _garble_manifest(run: Path) -> None:
    (run / "manifest.json").write_text("{")


def _newer_layout(run: Path) -> None:
    path = run / "manifest.json"
    path.write_text(path.read_text().replace(f'"version": {VERSION}', f'"version": {SHARDED_VERSION + 1}'))


def _foreign_manifest(run: Path) -> None:
    path = run / "manifest.json"
    path.write_text(path.read_text().replace('"prompt": {', '"prompts": {'))


def _tear_calls(run: Path) -> None:
    path = next((run / "calls").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-20])


def _forge_calls(run: Path) -> None:
    (run / "parts.jsonl").unlink()
    path = next((run / "calls").glob("*.parquet"))
    pl.DataFrame({"row": [1]}).write_parquet(path)


def _lose_results(run: Path) -> None:
    next((run / "results").glob("*.parquet")).unlink()


def _garble_journal(run: Path) -> None:
    next(run.glob("journal-*.jsonl")).write_text('{"call": 1}\n{"call": 2}\n')


@pytest.mark.parametrize(
    "damage",
    [
        _garble_manifest,
        _newer_layout,
        _foreign_manifest,
        _tear_calls,
        _forge_calls,
        _lose_results,
        _garble_journal,
    ],
)
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, job: Job, damage: Any) -> None:
    damage(bought(tmp_path, job))
    assert look(tmp_path, job).taught.height == 0
    bought(tmp_path, job, "whole")
    assert look(tmp_path, job).based_on == "6 answers of 1 earlier run"


def test_nothing_is_written(tmp_path: Path, job: Job) -> None:
    directory = bought(tmp_path, job)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    look(tmp_path, job)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_a_model_named_in_full_is_the_same_model(tmp_path: Path, job: Job) -> None:
    full = make_job(tmp_path, model={"name": "models/gemini-3.5-flash-lite"})
    bought(tmp_path, full, "other")
    assert look(tmp_path, job).lengths.of("answer", 100) is not None


def test_answers_about_this_table_weigh_the_rows_that_they_stand_for(tmp_path: Path, job: Job) -> None:
    about = telling(KINDS, [0] * 90 + [1] * 30)
    with run(tmp_path, job) as store:
        buy(store, range(3), tokens=100)
        buy(store, range(90, 93), tokens=200)
    known = earlier(tmp_path / "runs", job, "real", "table", about)
    assert known.ratio("answer", 0).value == pytest.approx(0.75 * 1 + 0.25 * 2)
    elsewhere = earlier(tmp_path / "runs", job, "real", "another table", about)
    assert elsewhere.ratio("answer", 0).value == pytest.approx(1.5)
