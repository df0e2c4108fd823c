"""A table that is cut into shards: each is a source of its own, and together they are the table."""

import json
import pickle
import shutil
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import orjson
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sessions import quiet, run_through
from tables import documents, save, write

from jobs import PLAIN, make_job, write_job
from pipeline.errors import JobError, RunStateError
from pipeline.fleet import shards
from pipeline.fleet.processes import launch
from pipeline.fleet.run import by_fleet
from pipeline.fleet.shards import cut, firsts, rows_a_shard, shard_source
from pipeline.job import load
from pipeline.plan import Plan
from pipeline.plan.survey import Survey, survey
from pipeline.records import Document
from pipeline.run import run
from pipeline.run.guards import check_alone
from pipeline.run.planning import apart
from pipeline.run.prepare import Options, Session, prepare
from pipeline.source import Source
from pipeline.store import units
from pipeline.store.manifest import VERSION
from pipeline.store.units import Shard

SMALL = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "LEAST_ROWS", 3)
    return tmp_path


def session(here: Path, **sections: Any) -> Session:
    return prepare(make_job(here, PLAIN, **sections), Options(offline=True))


def travelled(source: Source) -> Source:
    """What arrives in another process."""
    again: Source = pickle.loads(pickle.dumps(source))
    return again


def together(source: Source, cut_up: Sequence[Shard]) -> list[Document]:
    """The documents of all shards, by their rows in the whole table."""
    found = []
    for shard in cut_up:
        part = travelled(shard_source(source, shard))
        own = documents(part, size=2)
        assert [document.row for document in own] == list(range(shard.rows)) and part.count() == shard.rows
        found += [replace(document, row=shard.first_row + document.row) for document in own]
    return found


def told(found: Sequence[Document]) -> list[tuple[object, ...]]:
    return [(x.row, x.key, dict(x.fields), x.text, x.rule, x.media, x.unfit) for x in found]


def is_whole(prepared: Session, workers: int = 1) -> list[Shard]:
    """Check that the shards of a table are the table, now and after another start."""
    cut_up = cut(prepared, workers)
    assert [shard.first_row for shard in cut_up] == [
        sum(shard.rows for shard in cut_up[:at]) for at in range(len(cut_up))
    ]
    assert told(together(prepared.source, cut_up)) == told(documents(prepared.source))
    assert cut(prepared, workers + 7) == cut_up, "a table stays as it was cut"
    return cut_up


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3),
    max_leaves=5,
)


@SMALL
@given(rows=st.lists(st.tuples(CELLS.filter(str.strip), VALUES), min_size=1, max_size=40), ids=st.booleans())
def test_shards_of_jsonl_are_the_table(here: Path, rows: list[tuple[str, object]], ids: bool) -> None:
    lines = [{"id": f"k{at}", "n": at, "topic": topic, "more": more} for at, (topic, more) in enumerate(rows)]
    write(here / "t.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    columns = {"path": "t.jsonl", "id": "id" if ids else None}
    whole = session(here, input=columns, prompt={"template": "{{ topic }} {{ more }}"})
    shutil.rmtree(whole.directory, ignore_errors=True)
    is_whole(whole)


ROUTES = """[[route]]
where = "n > 12"
targets = ["large"]
[[route]]
targets = ["small"]
[[target]]
name = "large"
model = "gemini-3.5-flash"
[[target]]
name = "small"
model = "gemini-3.5-flash-lite"
"""


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("where", [None, "n % 3 <> 1"])
def test_where_and_the_rules_of_routes_hold_for_shards(here: Path, kind: str, where: str | None) -> None:
    for year in (2024, 2025):  # columns on the paths too
        (here / f"in/year={year}").mkdir(parents=True)
        frame = pl.DataFrame({"n": range(year - 2024, 21), "topic": [f"t{n}" for n in range(year - 2024, 21)]})
        save(frame, str(here / f"in/year={year}/t.{kind}"))
    known = where.replace("n ", "CAST(n AS INT) ") if where and kind == "csv" else where
    routes = ROUTES.replace("n >", "CAST(n AS INT) >") if kind == "csv" else ROUTES
    columns = {"path": f"in/*/t.{kind}", "where": known}
    path = write_job(here, PLAIN, input=columns, prompt={"template": "{{ topic }} {{ year }}"})
    path.write_text(path.read_text() + routes)
    whole = prepare(load(path), Options(offline=True))
    assert {document.rule for document in documents(whole.source)} == {0, 1}
    found = is_whole(whole, 2)
    assert len(found) > 4 and all(bool(shard.pieces) == (kind == "parquet") for shard in found)
    assert all(shard.input.exists() == (kind != "parquet") for shard in found), "a Parquet table is not copied"


def test_shards_of_other_forms_are_the_table(here: Path) -> None:
    write(here / "t.csv", "题目,id\n".encode("gb18030") + "".join(f"雨{n},{n}\n" for n in range(11)).encode("gb18030"))
    job = {"input": {"path": "t.csv", "encoding": "gb18030", "id": "id"}, "prompt": {"template": "{{ 题目 }}"}}
    assert len(is_whole(session(here, **job))) == 4


def test_shards_of_a_folder_are_its_documents(here: Path) -> None:
    (here / "docs").mkdir()
    for n in range(8):
        (here / f"docs/{n}.txt").write_text("" if n == 5 else f"text {n}")
    job = {"input": {"path": "docs", "text": "text"}, "prompt": {"template": "{{ name }}: {{ text }}"}}
    whole = session(here, **job)
    assert [bool(document.unfit) for document in documents(whole.source)].count(True) == 1
    limited = prepare(make_job(here, PLAIN, **job), Options(offline=True, limit=2))
    assert sum(shard.rows for shard in cut(limited, 1)) == 8, "a larger limit may follow"
    is_whole(whole)
    part = travelled(shard_source(whole.source, cut(whole, 1)[1]))
    assert replace(whole, source=part).output_columns == whole.output_columns and part.path_columns == []
    (here / "docs/7.txt").write_text("another")
    begin(cut(whole, 1)[0])
    with pytest.raises(RunStateError, match="consists of shards of another table"):
        cut(session(here, **job), 1)


def test_files_of_a_shard_are_found_from_any_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(7):
        write(here / f"{n}.pdf", b"%PDF-1.7\n" + b"x" * n)
    write(here / "t.csv", "topic,file\n" + "".join(f"t{n},{n}.pdf\n" for n in range(7)))
    whole = session(here, input={"path": "t.csv", "pdf": "file"})
    assert is_whole(whole)
    parts = [shard_source(whole.source, shard) for shard in cut(whole, 1)]
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert [file.path for part in parts for each in documents(part) for file in each.media] == [
        str(here / f"{n}.pdf") for n in range(7)
    ]


def test_a_shard_is_known_again_and_a_change_of_its_file_is_noticed(here: Path) -> None:
    save(pl.DataFrame({"topic": [f"t{n}" for n in range(9)]}), "t.parquet")
    whole = session(here, input={"path": "t.parquet"})
    first, second, _ = (shard_source(whole.source, shard) for shard in cut(whole, 1))
    again = shard_source(session(here, input={"path": "t.parquet"}).source, cut(whole, 1)[0])
    assert first.fingerprint == again.fingerprint != second.fingerprint
    assert travelled(first).changed() is None
    save(pl.DataFrame({"topic": [f"u{n}" for n in range(12)]}), "t.parquet")
    assert "bytes, and has" in str(first.changed())
    is_whole(other := session(here, input={"path": "t.parquet"}))  # nothing was begun: it is cut anew
    begin(cut(other, 1)[0])
    save(pl.DataFrame({"topic": [f"u{n}" for n in range(9)]}), "t.parquet")
    with pytest.raises(RunStateError, match="shards of another table"):
        cut(session(here, input={"path": "t.parquet"}), 1)


def begin(shard: Shard) -> None:
    """What is there once a worker has begun a shard."""
    shard.directory.mkdir(parents=True, exist_ok=True)
    (shard.directory / "manifest.json").write_text("{}")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_cut_that_was_killed_is_made_anew_and_a_whole_one_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    write(here / "t.csv", "topic\n" + "".join(f"t{n}\n" for n in range(9)))
    whole = session(here, input={"path": "t.csv"})
    renamed: list[Path] = []

    def dies(new: Path, target: Path) -> None:
        if len(renamed) == at:
            raise KeyboardInterrupt
        renamed.append(target)
        new.replace(target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.machine.replace", dies)
        cut(whole, 1)
    assert len(renamed) == at and not units.is_cut(whole.directory)
    found = is_whole(whole)
    before = [shard.input.stat().st_mtime_ns for shard in found]
    assert [shard.input.stat().st_mtime_ns for shard in cut(whole, 1)] == before
    assert sorted(path.name for path in (whole.directory / "shards").rglob("*.parquet*")) == ["input.parquet"] * 3


def test_a_copy_that_is_damaged_or_gone_is_named(here: Path) -> None:
    write(here / "t.csv", "topic\n" + "".join(f"t{n}\n" for n in range(9)))
    whole = session(here, input={"path": "t.csv"})
    (found, *_) = cut(whole, 1)
    found.input.write_bytes(found.input.read_bytes()[:-20])
    with pytest.raises(RunStateError, match=r"input\.parquet is damaged"):
        shard_source(whole.source, found)
    found.input.unlink()
    with pytest.raises(RunStateError, match="the rows of a shard stand in it"):
        shard_source(whole.source, found)


def test_a_table_is_cut_anew_behind_no_word_of_the_cut_before(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while another table is cut must not leave copies of it under the name of the first."""
    one, other = ("topic\n" + "".join(f"{word}{n}\n" for n in range(9)) for word in "tu")
    write(here / "t.csv", one)
    cut(session(here, input={"path": "t.csv"}), 1)
    write(here / "t.csv", other)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.store.units.write_frame", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        cut(session(here, input={"path": "t.csv"}), 1)
    write(here / "t.csv", one)
    is_whole(session(here, input={"path": "t.csv"}))


def test_answers_whose_rows_nobody_knows_are_not_cut_over(here: Path) -> None:
    write(here / "t.csv", "topic\n" + "".join(f"t{n}\n" for n in range(9)))
    whole = session(here, input={"path": "t.csv"})
    (found, *_) = cut(whole, 1)
    begin(found)
    (whole.directory / units.NAME).unlink()
    with pytest.raises(RunStateError, match=r"shards\.parquet is gone"):
        cut(whole, 1)
    with pytest.raises(RunStateError, match="several workers"):
        check_alone(whole)  # one process would buy all of it again
    assert found.input.exists()


def repeating(found: Survey) -> list[int]:
    return [row for frame in found.slices() for row in frame.filter("repeat")["row"]]


def test_repeats_of_other_shards_are_foreseen_and_told_as_they_are_left(here: Path) -> None:
    texts = ["a", "b", "", "a", "a", "", "c", "b", "a"]
    write(here / "t.csv", "topic,text\n" + "".join(f"t,{text}\n" for text in texts))
    whole = session(here, input={"path": "t.csv", "text": "text"})
    found = survey(whole.source, whole.rows)
    assert repeating(found) == [3, 4, 7, 8]

    def told(rows: Collection[int]) -> list[str]:
        each, notices = apart(whole, found, pl.Series([row in rows for row in range(9)]), firsts(whole, 1))
        assert repeating(each) == [4]
        return [notice.split(" of ")[0] for notice in notices]

    assert told(range(9)) == ["3 rows repeat some"]
    assert told([0, 2, 4, 8]) == ["1 row repeats one"], "of those that are left to be asked"
    assert told([0, 2, 4, 5]) == []
    _, (said,) = apart(whole, found, pl.Series([True] * 9), firsts(whole, 1))
    assert "each shard asks its own" in said
    cut(whole, 1)
    assert firsts(whole, 400) == firsts(whole, 1) == [0, 3, 6], "as it is cut"


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_run_that_was_declined_is_one_process_s_as_well(here: Path, name: str) -> None:
    write(here / "t.csv", "topic\n" + "".join(f"t{n}\n" for n in range(9)))
    pl.read_csv(here / "t.csv").write_parquet(here / "t.parquet")
    whole = session(here, input={"path": name})

    def decline(plan: Plan, continued: bool, session: Session) -> None:
        raise JobError("no")

    def declined() -> None:
        with pytest.raises(JobError, match="no"):
            anyio.run(partial(run.run, work=by_fleet(launch, 2)), whole, decline, quiet)
        assert (whole.directory / units.NAME).exists()

    declined()
    declined()  # workers may begin it all the same
    ended = run_through(whole)
    assert ended.summary.outcomes["ok"] == 9 and not units.is_cut(whole.directory)
    assert (ended.summary.manifest.version, ended.summary.manifest.workers) == (VERSION, 0)
    assert list((whole.directory / units.FOLDER).iterdir()) == []
    with pytest.raises(RunStateError, match="begun by one process"):
        anyio.run(partial(run.run, work=by_fleet(launch, 2)), whole, decline, quiet)


def test_who_waits_for_the_lease_of_another_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.lease.WATCHED_S", 0.1)
    write(here / "t.csv", "topic\nt0\n")
    whole = session(here, input={"path": "t.csv"}, run={"path": f"file://{here / 'store'}"})
    said: list[str] = []

    def decline(plan: Plan, continued: bool, session: Session) -> None:
        raise JobError("no")

    def busy(text: str) -> AbstractContextManager[None]:
        said.append(text)
        return nullcontext()

    def declined() -> None:
        with pytest.raises(JobError, match="no"):
            anyio.run(partial(run.run, work=by_fleet(launch, 2, busy)), whole, decline, quiet)

    declined()
    assert said == []
    (lead,) = (here / "store").rglob("lead.json")
    told = orjson.loads(lead.read_bytes())
    lead.write_bytes(orjson.dumps({**told, "has_ended": False, "holder": {**told["holder"], "host": "elsewhere"}}))
    declined()
    assert len(said) == 1 and "elsewhere" in said[0] and "led" in said[0]


@given(rows=st.integers(1, 2 * 10**9), workers=st.integers(1, 400))
def test_a_shard_is_neither_large_nor_smaller_than_it_is_worth(rows: int, workers: int) -> None:
    size = rows_a_shard(rows, workers)
    number = -(-rows // size)
    assert size <= 1_000_000 and size >= min(rows, shards.LEAST_ROWS)
    assert number >= min(8 * workers, rows // 1_000) or number * 1.2 >= 8 * workers


def test_a_thousand_million_rows_are_a_thousand_shards(here: Path) -> None:
    """A worker holds the outcomes of a shard, 1 MB, and the driver how the table is cut."""
    assert 10**9 // rows_a_shard(10**9, 100) == 1_000
    many = [Shard(n, here / f"{n}", n * 10**6, 10**6, (units.Piece(n, 0, 10**6),)) for n in range(1_000)]
    units.write(here, many, "of it")
    source, found = units.read(here)
    assert source == "of it" and len(found) == 1_000 and found[-1].pieces == many[-1].pieces
    assert (here / units.NAME).stat().st_size < 50_000
