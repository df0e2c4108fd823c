"""One run from job file to output: what the session checks and sets up around the engine."""

import gzip
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from serving import served, stats
from sessions import quiet, run_through
from tables import figure

from jobs import CHUNKED, PLAIN, Sections, make_job, write_job
from pipeline import report
from pipeline.errors import BudgetReached, InputChanged, InputError, JobError, RunStateError
from pipeline.estimating import Wishes, estimate
from pipeline.job import load
from pipeline.plan import Plan
from pipeline.records import Limits
from pipeline.run import prepare, run, services
from pipeline.run.ending import Ended
from pipeline.run.engine import Monitor
from pipeline.run.planning import look
from pipeline.run.prepare import Options
from pipeline.source.documents import BATCH_ROWS
from pipeline.source.order import BLOCK_ROWS, reading_order
from pipeline.store.run import RunStore


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "topics.csv").write_text("topic,note\nrain,a\nsnow,b\nfog,c\n")
    return tmp_path


def play(path: Path, options: Options | None = None, **sections: dict[str, Any]) -> Ended:
    asked: Sections = {"limits": {"rpm": 0, "tpm": 0}, **sections}
    job = make_job(path, PLAIN, **asked)
    prepared = prepare.prepare(job, options or Options(offline=True))
    return run_through(prepared)


def test_confirm_sees_the_plan_and_can_stop_before_anything_is_sent(here: Path) -> None:
    class No(Exception):
        pass

    seen: list[tuple[Plan, bool]] = []

    def confirm(plan: Plan, continued: bool, session: prepare.Session) -> None:
        seen.append((plan, continued))
        raise No

    prepared = prepare.prepare(make_job(here, PLAIN), Options(offline=True))
    with pytest.raises(No):
        anyio.run(run.run, prepared, confirm, quiet)
    assert seen[0][0].load.prompts == 3 and seen[0][1] is False
    assert report.summarize(prepared.directory).calls == 0
    assert play(here).exit_code == 0, "the directory was given back"


@pytest.mark.case("O1")
@pytest.mark.parametrize("how", ["gone", "half written"])
def test_a_table_that_cannot_be_read_any_more_changed_and_was_not_damaged(here: Path, how: str) -> None:
    prepared = prepare.prepare(make_job(here, PLAIN), Options(offline=True))
    table = here / "topics.csv"
    table.unlink() if how == "gone" else table.write_text("topic,note\nrain")
    with pytest.raises(InputChanged, match=r"the input changed while the run went on: topics\.csv"):
        [*map(list, prepared.documents())]


def test_a_column_and_the_text_may_both_stand_in_a_template(here: Path) -> None:
    ended = play(here, input={"text": "note"}, prompt={"template": "{{ topic }}: {{ text }}"})
    assert ended.summary.outcomes["ok"] == 3
    assert pl.read_ndjson("results/out-offline.jsonl").columns[0] == "topic"
    assert "note" not in pl.read_ndjson("results/out-offline.jsonl").columns


def test_include_text_keeps_the_text(here: Path) -> None:
    play(here, input={"text": "note"}, prompt={"template": "{{ text }}"}, output={"include_text": True})
    assert pl.read_ndjson("results/out-offline.jsonl")["note"].to_list() == ["a", "b", "c"]


def test_an_empty_text_is_invalid_and_costs_no_call(here: Path) -> None:
    (here / "topics.csv").write_text("topic,note\nrain,a\nsnow,\nfog,c\n")
    ended = play(here, input={"text": "note"}, prompt={"template": "{{ text }}"})
    assert (ended.summary.outcomes["invalid"], ended.summary.calls, ended.exit_code) == (1, 2, 1)
    row = pl.read_ndjson("results/out-offline.jsonl").row(1, named=True)
    assert (row["status"], row["error_kind"], row["calls"], row["chunks"]) == ("invalid", "empty_input", 0, 0)


def test_a_budget_needs_a_price(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "AQ.x")
    job = make_job(
        here,
        PLAIN,
        model={"name": "mystery-model"},
        endpoint={"base_url": "http://127.0.0.1:9", "key_env": "MY_KEY"},
        budget={"max_usd": 1.0},
    )
    prepared = prepare.prepare(job, Options())
    with pytest.raises(JobError, match="price of mystery-model is unknown"):
        run_through(prepared)


@pytest.mark.case("S8")
@pytest.mark.parametrize("cap", ["max_usd", "max_usd_per_month"])
@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, True),
        ({"max_output_tokens": 100}, False),
        ({"name": "gemini-3.5-flash-lite-001"}, False),  # of a known model
    ],
)
def test_a_budget_needs_a_longest_answer(
    here: Path, monkeypatch: pytest.MonkeyPatch, cap: str, changes: dict[str, Any], refused: bool
) -> None:
    monkeypatch.setenv("MY_KEY", "AQ.x")
    model = {"name": "mystery-model", "prices": {"input": 1, "output": 2}, **changes}
    endpoint = {"base_url": "http://127.0.0.1:9", "key_env": "MY_KEY"}
    job = make_job(here, PLAIN, model=model, endpoint=endpoint, budget={cap: 1.0})

    class Agreed(Exception):
        """The run would begin."""

    def confirm(plan: object, continued: bool, session: object) -> None:
        raise Agreed

    words = "nobody knows how long an answer of mystery-model may be"
    with pytest.raises(JobError if refused else Agreed, match=words if refused else None) as caught:
        anyio.run(run.run, prepare.prepare(job, Options()), confirm, quiet)
    if isinstance(caught.value, JobError):
        assert "max_output_tokens" in caught.value.hint
    assert play(here, Options(offline=True), model=model, budget={cap: 1.0}).exit_code == 0, "a rehearsal costs nothing"


def test_the_days_budget_is_shared_by_all_runs_of_a_key(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    model = {"name": "gemini-3.5-flash-lite", "max_output_tokens": 2}
    first: Sections = {"model": model, "budget": {"max_usd_per_day": 1.0}}
    with served(model_version=None) as url:  # answers under the model's own name, which has a price
        endpoint = {"base_url": url}
        spent = play(here, Options(), endpoint=endpoint, **first).summary.cost_usd
        assert spent > 0
        second = first | {"budget": {"max_usd_per_day": float(spent)}, "prompt": {"template": "Tell {{ topic }}"}}
        stopped = play(here, Options(fresh=True), endpoint=endpoint, **second)
        assert isinstance(stopped.stopped, BudgetReached) and stopped.exit_code == 3
        assert "the day's budget" in stopped.stopped.message and "max_usd_per_day" in stopped.stopped.hint
        assert stats(url)["answered"] == 3
        aside = second | {"output": {"path": "rehearsal.jsonl"}}
        assert play(here, Options(offline=True), **aside).exit_code == 0, "a rehearsal costs nothing"
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.another")
        assert play(here, Options(), endpoint=endpoint, **second).summary.calls > 0, "another project"


def test_own_prices_make_any_model_known(here: Path) -> None:
    job = make_job(here, PLAIN, model={"name": "my-own-model", "prices": {"input": 1.0, "output": 2.0}})
    prepare.check_model(job, offline=False)


def test_offline_limits_are_obeyed_when_asked_and_online_always(here: Path) -> None:
    job = make_job(here, PLAIN, limits={"rpm": 5})
    assert prepare.limits_of(job, offline=True) == Limits(0, 0, 0, None)
    assert prepare.limits_of(job, offline=True, pace=True) == Limits(5, 0, 0, None)
    flagged = load(job.path, {"limits.rpd": 7})
    assert prepare.limits_of(flagged, offline=True) == Limits(0, 0, 7, None), "a flag means itself"
    assert prepare.limits_of(job, offline=False) == Limits(5, None, None, None)


def test_fresh_sets_aside_even_a_damaged_run(here: Path) -> None:
    play(here)
    (here / "runs" / "job-offline" / "manifest.json").write_text("{")
    with pytest.raises(RunStateError):
        play(here)
    assert play(here, Options(offline=True, fresh=True)).exit_code == 0
    assert len(list((here / "runs").iterdir())) == 2


def test_output_over_input_is_refused(here: Path) -> None:
    (here / "results").mkdir()
    (here / "results" / "out.jsonl").write_text('{"topic": "rain"}\n')
    with pytest.raises(InputError, match="is the input"):
        prepare.prepare(make_job(here, PLAIN, input={"path": "results/out.jsonl"}), Options(offline=True))


def test_the_offline_service_is_the_emulator_through_the_same_client(here: Path) -> None:
    async def body() -> None:
        session = prepare.prepare(make_job(here, PLAIN), Options(offline=True))
        async with services.open_services(session) as opened:
            target = opened.route.first
            assert target.endpoint == "gemini@emulator"
            models = await opened.speaker(target).list_models(target)
            assert isinstance(models, list) and models

    anyio.run(body)


def test_half_done_work_is_planned_as_what_is_left(here: Path) -> None:
    play(here, Options(offline=True, limit=2))
    job = load(write_job(here, PLAIN, limits={"rpm": 0, "tpm": 0}))
    plan = anyio.run(estimate, prepare.prepare(job, Options(offline=True)), Wishes()).plan
    assert (plan.documents, plan.documents_done, plan.load.prompts) == (1, 2, 1)


def test_identical_prompts_are_sent_once_across_seals_and_starts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RunStore.__init__.__kwdefaults__
    monkeypatch.setitem(RunStore.__init__.__kwdefaults__, "seal_rows", 20)
    monkeypatch.setattr("pipeline.store.run.SYNC_S", 0.01)
    monkeypatch.setattr("pipeline.run.feeds.MAX_OPEN_DOCUMENTS", 10)
    topics = [f"topic {number}" for number in range(60)]
    (here / "topics.csv").write_text("\n".join(["topic", *topics, *topics, *reversed(topics)]))
    first = play(here, Options(offline=True, limit=100)).summary
    assert (first.outcomes["ok"], first.calls, first.identical) == (100, 60, 40)
    both = play(here).summary
    assert (both.outcomes["ok"], both.calls, both.identical) == (180, 60, 120)
    assert len(list(Path("runs/job-offline/results").iterdir())) > 3
    answers = pl.read_ndjson("results/out-offline.jsonl")["response"].to_list()
    assert answers[:60] == answers[60:120] == answers[:119:-1]


# ---- a table sorted by length


def sorted_table(path: Path, rows: int) -> None:
    """Rows that grow from 8 to 400 characters, each with its number in front."""
    texts = [f"{row:07} " + "x" * (392 * row // rows) for row in range(rows)]
    frame = pl.DataFrame({"id": [f"k{row}" for row in range(rows)], "topic": texts, "n": range(rows)})
    if path.suffix == ".parquet":
        frame.write_parquet(path, row_group_size=1500)
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    else:
        frame.write_csv(path)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize(("where", "limit"), [(None, None), ("TRY_CAST(n AS INT) % 2 = 1", 9001)])
def test_every_format_is_read_in_the_order_of_the_plan(
    here: Path, name: str, where: str | None, limit: int | None
) -> None:
    sorted_table(here / name, 12_000 if where is None else 22_000)
    job = make_job(here, PLAIN, input={"path": name, "id": "id", "where": where})
    prepared = prepare.prepare(job, Options(offline=True, limit=limit))
    done = frozenset(range(0, prepared.rows, 7))
    left = pl.Series([row not in done for row in range(prepared.rows)])
    order = reading_order((frame["size"] for frame in anyio.run(look, prepared).slices()), left)
    assert order

    def wanted(row: int) -> bool:
        return row not in done

    in_file_order = [document for batch in prepared.documents(wanted) for document in batch]
    batches = [list(batch) for batch in prepared.documents(wanted, order)]
    read = [document for batch in batches for document in batch]
    assert [document.row for document in in_file_order] == [row for row in range(prepared.rows) if wanted(row)]
    assert sorted(read, key=lambda document: document.row) == in_file_order != read
    assert {BATCH_ROWS} == {len(batch) // BLOCK_ROWS * BLOCK_ROWS for batch in batches[:-1]}
    means = [sum(len(str(document.fields["topic"])) for document in batch) / len(batch) for batch in batches]
    assert max(means) < 1.05 * min(means)


def test_pilots_of_a_sorted_table_are_the_rows_that_were_picked(here: Path) -> None:
    sorted_table(here / "t.parquet", 12_000)
    rows = frozenset(range(0, 12_000, 2))
    prepared = prepare.prepare(make_job(here, PLAIN, input={"path": "t.parquet"}), Options(offline=True, pilot=rows))
    order = reading_order(frame["size"] for frame in anyio.run(look, prepared).slices())
    assert order
    read = [document.row for batch in prepared.documents(order=order) for document in batch]
    assert sorted(read) == sorted(rows)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("t.csv", 5000),
        pytest.param("t.csv", 20_000, marks=pytest.mark.long),
        pytest.param("t.parquet", 20_000, marks=pytest.mark.long),
    ],
)
def test_a_sorted_table_is_answered_whole_and_in_its_order_after_ctrl_c_and_resume(
    here: Path, name: str, rows: int
) -> None:
    sorted_table(here / name, rows)
    prepared = prepare.prepare(
        make_job(here, PLAIN, input={"path": name, "id": "id"}, limits={"rpm": 0, "tpm": 0}), Options(offline=True)
    )
    plans: list[Plan] = []

    async def interrupt(monitor: Monitor) -> None:
        while monitor.done < rows // 3:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()

    first = anyio.run(run.run, prepared, lambda plan, continued, session: plans.append(plan), interrupt)
    assert first.interrupted and rows // 3 <= first.summary.done < rows
    part = pl.read_ndjson("results/out-offline.jsonl")
    assert part["id"].to_list() == [f"k{row}" for row in range(rows)]
    answered = part.with_row_index().filter(pl.col("status") == "ok")["index"]
    assert figure(answered.min()) < 500 and figure(answered.max()) > rows * 0.6, "short rows and long ones"
    assert 0.2 < figure((answered < rows // 2).mean()) < 0.8

    last = anyio.run(run.run, prepared, lambda plan, continued, session: plans.append(plan), quiet)
    assert all(plan.order for plan in plans) or plans[1].documents <= BATCH_ROWS
    assert last.exit_code == 0 and last.summary.calls == rows, "every row bought once"
    whole = pl.read_ndjson("results/out-offline.jsonl")
    assert whole["id"].to_list() == [f"k{row}" for row in range(rows)]
    assert set(whole["status"]) == {"ok"}
    results = pl.concat([pl.read_parquet(path) for path in prepared.directory.glob("results/*.parquet")])
    assert sorted(results["row"]) == list(range(rows))
    assert results.sort("row")["key"].to_list() == [f"k{row}" for row in range(rows)]


@pytest.mark.case("P1")
def test_a_template_that_fails_on_every_row_is_refused_and_one_that_fails_on_some_is_not(here: Path) -> None:
    rows = [{"topic": "rain", "st": {"a": 1}}, {"topic": "snow", "st": {"a": 2}}, {"topic": "fog", "st": None}]
    pl.DataFrame(rows).write_parquet("topics.parquet")
    table = {"path": "topics.parquet"}
    with pytest.raises(JobError, match=r"`st.aa` is undefined\n.*line 1\nIt fails on each of 3 rows"):
        play(here, input=table, prompt={"template": "{{ topic }} {{ st.aa }}"})
    assert not (here / "runs").exists()
    ended = play(here, input=table, prompt={"template": "{{ topic }} {{ st.a }}"})
    assert (ended.summary.outcomes["ok"], ended.summary.outcomes["invalid"]) == (2, 1)
    last = {"path": "topics.parquet", "where": "topic = 'fog'"}
    ended = play(here, Options(offline=True, fresh=True, overwrite=True), input=last, prompt={"template": "{{ st.a }}"})
    assert ended.summary.outcomes["invalid"] == 1, "one row alone says nothing of a template"


@pytest.mark.case("P4")
@pytest.mark.parametrize(
    "condition",
    ["{% if flag %}a{% endif %}", "{{ 'a' if not flag else 'b' }}", "{% if topic and row['flag'] %}a{% endif %}"],
)
def test_words_for_true_and_false_in_a_csv_are_no_condition(here: Path, condition: str) -> None:
    (here / "topics.csv").write_text("topic,flag\nrain,True\nsnow,False\nfog,\n")
    with pytest.raises(JobError, match=r"holds for `False` too\n.*line 1") as caught:
        play(here, prompt={"template": f"{{{{ topic }}}} {condition}"})
    assert 'flag == "False"' in caught.value.hint
    assert play(here, prompt={"template": "{{ topic }} {% if flag == 'True' %}a{% endif %}"}).exit_code == 0
    (here / "topics.csv").write_text("topic,flag\nrain,yes\nsnow,\nfog,maybe\n")
    again = Options(offline=True, fresh=True)
    assert play(here, again, prompt={"template": f"{{{{ topic }}}} {condition}"}).exit_code == 0


@pytest.mark.case("P1")
@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"prompt": {"template": " \n"}}, "the template makes an empty prompt"),
        ({"reduce": {"template": "{{ parts }}{{ parts.all }}"}}, r"`parts.all` is undefined\n.*\[reduce\] template"),
    ],
)
def test_a_template_that_no_row_and_no_answer_makes_right_is_refused(here: Path, sections: Any, said: str) -> None:
    (here / "texts.jsonl").write_text("".join(f'{{"topic":"{n}","body":"{"A sentence. " * 90}"}}\n' for n in range(3)))
    (here / "topics.csv").write_text("topic\nrain\nsnow\n")
    with pytest.raises(JobError, match=said):
        play(here, **({**CHUNKED, **sections} if "reduce" in sections else sections))
    assert not (here / "runs").exists()
