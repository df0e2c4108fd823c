"""A run of shards is read as any other: what is told of it is what is told of the same rows in one run."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from commands import Ran
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from sessions import run_through
from sharded import run_in_shards, shard_session
from stores import result

import pipeline as pp
from pipeline import report
from pipeline.errors import RunStateError
from pipeline.estimating import Wishes, estimate
from pipeline.fleet import shards
from pipeline.job import load
from pipeline.report import tallies
from pipeline.report.reading import Answers
from pipeline.run.output import output_place, replaced
from pipeline.run.prepare import Options, Session, prepare
from pipeline.store import parts
from pipeline.store.export import ROW, Unsealed
from pipeline.store.joined import Joined
from pipeline.store.units import Unit

JOB = """[input]
path = "texts.jsonl"
text = "body"
{id}
[prompt]
template = "{{{{ topic }}}}: {{{{ text }}}}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 50
[chunk]
max_tokens = 64
[reduce]
template = "Merge: {{{{ parts }}}}"
[output]
path = "{name}.{suffix}"
include_text = true
[limits]
rpm = 0
tpm = 0
"""
TIMES = ("finished_at", "latency_s", "at")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "LEAST_ROWS", 4)
    rows = [{"no": n, "topic": f"t{n}", "body": f"text {n} " * (90 if n == 7 else 1), "more": [n]} for n in range(11)]
    rows[4]["body"] = " "
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def prepared(name: str, suffix: str = "parquet", ids: bool = False) -> Session:
    path = Path(f"{name}.toml")
    path.write_text(JOB.format(name=name, suffix=suffix, id='id = "no"' if ids else ""))
    return prepare(load(path), Options(offline=True))


def in_both(ids: bool) -> tuple[Session, Session]:
    """The same rows in one run, and in three shards."""
    plain, whole = prepared("plain", ids=ids), prepared("cut", ids=ids)
    run_through(plain)
    assert len(run_in_shards(whole)) == 3
    return plain, whole


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def documents(text: str) -> Any:
    """One JSON document, or one a line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return lines(text)


def timeless(told: Any) -> Any:
    """What a command told, without times and the names of runs."""
    if isinstance(told, dict):
        return {name: timeless(value) for name, value in told.items() if name not in TIMES}
    if isinstance(told, list):
        return [timeless(each) for each in told]
    return re.sub(r"\b(plain|cut)\b", "RUN", told) if isinstance(told, str) else told


def test_reading_commands_tell_the_same_of_shards(cli: Callable[..., Ran]) -> None:
    in_both(ids=False)

    def told(*words: str) -> tuple[Any, Any]:
        one, other = (cli(words[0], name, *words[1:], "--json") for name in ("plain", "cut"))
        assert one.code == other.code == 0, (one.err, other.err)
        return timeless(documents(one.out)), timeless(documents(other.out))

    of_run, of_shards = told("report")
    differing = {name for name in of_run if of_run[name] != of_shards[name]}
    assert differing <= {"seconds", "bound_s", "accuracy", "output_finished"}, differing
    assert of_shards["ok"] == 9 and of_shards["calls"] > 11 and len(of_shards["causes"]) == 2
    one, other = told("report", "--failed")
    assert one == other
    one, other = (sorted(rows, key=lambda row: int(row["row"])) for rows in told("show"))
    assert one == other and [row["row"] for row in other] == list(range(11))
    one, other = told("show", "--sample", "1", "--failed")
    assert one == other
    for row in ("0", "7", "10"):
        one, other = told("show", row)
        assert one == other and "prompt" in other["asked"][0]
    assert "6 sealed parts are whole" in cli("report", "cut", "--verify").err
    assert [run["run"] for run in cli("runs", "--json").json] == ["cut", "plain"]
    compared = cli("diff", "plain", "cut", "--json").json
    assert compared["same"] == 11 and compared["matched_by"] == "table"
    assert cli("report", "cut", "--html", "page.html").code == 0


def test_tables_are_written_from_shards_as_from_one_run(folder: Path, cli: Callable[..., Ran]) -> None:
    _, whole = in_both(ids=True)
    with output_place(whole) as place:  # as the driver does at its end
        assert place is not None
        counted = replaced(whole, place)
    assert (counted.rows, counted.finished) == (11, 11)
    one, other = (pl.read_parquet(f"{name}-offline.parquet").drop(TIMES[:2]) for name in ("plain", "cut"))
    assert_frame_equal(one, other)
    for name in ("plain", "cut"):
        assert cli("export", name, "--to", f"{name}.jsonl", "--calls", f"{name}-calls.parquet").code == 0
    one, other = (timeless(lines(Path(f"{name}.jsonl").read_text())) for name in ("plain", "cut"))
    assert one == other
    one, other = (
        pl.read_parquet(f"{name}-calls.parquet").drop("at", "latency_s", "response_id") for name in ("plain", "cut")
    )
    assert_frame_equal(one.sort("row", "step", "chunk"), other.sort("row", "step", "chunk"))
    results = pp.read("cut")
    assert results.rows == 11 and results.frame().height == 11 and results.failed()["row"].to_list() == [4, 7]
    (folder / "texts.jsonl").write_text('{"no": 1, "topic": "", "body": ""}\n')
    assert "not in it" in cli("export", "cut", "--to", "without.csv").err
    assert pl.read_csv("without.csv")["no"].to_list() == list(range(11)), "ids are known without the table"


def test_what_is_open_or_not_begun_is_read_as_it_is(folder: Path, cli: Callable[..., Ran]) -> None:
    whole = prepared("cut")
    found = run_in_shards(whole, begun=[0, 2], half=[2])
    told = cli("report", "cut", "--json").json
    assert (told["ok"], told["truncated"], told["rows"]) == (found[0].rows, 1, 11)
    assert [row["row"] for row in lines(cli("show", "cut", "--json").out)] == [
        *range(found[0].rows),
        found[2].first_row,
    ]
    assert cli("export", "cut", "--to", "now.jsonl").code == 0
    statuses = [row["status"] for row in lines(Path("now.jsonl").read_text())]
    assert [row for row, status in enumerate(statuses) if status != "pending"] == [
        *range(found[0].rows),
        found[2].first_row,
    ]
    assert cli("show", "cut", str(found[1].first_row)).code == 2, "nobody has asked it"
    plan = anyio.run(estimate, whole, Wishes(whole=True)).plan
    assert plan.documents_done == found[0].rows + 1, "what is left is foreseen, and no more"


def test_a_report_of_shards_that_are_done_reads_their_sums_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared("cut")
    found = run_in_shards(whole)
    before = report.summarize(whole.directory)
    assert before.accuracy and before.accuracy.actual["total"].calls == before.calls > 11
    assert before.accuracy.estimated["total"].calls == 9, "nothing was bought before the plan"

    def read(*_: object) -> None:
        raise AssertionError("a shard was read")

    with monkeypatch.context() as patch:
        patch.setattr(tallies, "read", read)
        assert report.summarize(whole.directory) == before
    (found[1].directory / tallies.NAME).write_text("{")
    assert report.summarize(whole.directory) == before, "what it says is made again from the parts"
    for shard in found[2:]:
        run_through(shard_session(whole, shard))  # began once more: sums that were noted before say nothing any more
        assert tallies.done_of(shard.directory) is None
    assert report.summarize(whole.directory).outcomes == before.outcomes


def test_damage_in_a_shard_is_told_with_its_place(folder: Path, cli: Callable[..., Ran]) -> None:
    whole = prepared("cut")
    found = run_in_shards(whole)
    part = next((found[1].directory / "results").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-9])
    assert str(part) in cli("report", "cut", "--verify").err
    with pytest.raises(RunStateError, match="is damaged"):
        list(Answers(whole.directory).rows())
    (whole.directory / "shards.parquet").write_bytes(b"PAR1")
    assert "shards.parquet is damaged" in cli("report", "cut").err


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards_of=st.lists(
        st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), max_size=3), min_size=1, max_size=5
    ),
    begun=st.lists(st.booleans(), min_size=5, max_size=5),
    steps=st.lists(st.integers(1, 17), min_size=1, max_size=9),
)
def test_results_are_joined_by_row_whatever_was_sealed_where(
    folder: Path, shards_of: list[list[list[int]]], begun: list[bool], steps: list[int]
) -> None:
    """Shards of ten rows; the newest outcome of a row counts, of which its response tells the part."""
    expected: dict[int, str] = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        found = []
        for number, sealed in enumerate(shards_of):
            unit = Unit(Path(place) / str(number), 10 * number)
            if not begun[number]:
                continue
            found.append(unit)
            (unit.directory / "results").mkdir(parents=True)
            for part, rows in enumerate(sealed, 1):
                frame = parts.results_frame([result(row, response=f"part {part}") for row in rows])
                if part < 3:
                    parts.write_part(frame, unit.directory / "results", part)
                expected.update((unit.first_row + row, f"part {part}") for row in rows)

        def unsealed(directory: Path) -> Unsealed:
            sealed = shards_of[int(directory.name)]
            return Unsealed(2, parts.results_frame([result(row, response="part 3") for row in (sealed[2:] or [[]])[0]]))

        by_row, low, seen = Joined(found, unsealed).by_row(()), 0, dict[int, str]()
        for step in [*steps, 200]:
            frame = by_row.between(low, low + step - 1)
            assert all(low <= row < low + step for row in frame[ROW])
            seen.update(zip(frame[ROW].to_list(), frame["response"].to_list(), strict=True))
            low += step
        assert seen == expected
