"""Tables in object storage: Parquet read where it lies, all else fetched once, and neither changes unseen."""

import gzip
import pickle
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from commands import UNLIMITED, Ran, small_job
from polars.testing import assert_frame_equal
from sharded import run_in_shards

from pipeline.errors import InputError, JobError
from pipeline.fleet import shards
from pipeline.job import load
from pipeline.objects import Objects, opened
from pipeline.run.output import output_place, replaced
from pipeline.run.prepare import Options, prepare
from pipeline.source import Source, open_source, output_conflict
from pipeline.source.documents import ROW
from pipeline.store.units import read

Cli = Callable[..., Ran]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
TIMES = ("finished_at", "latency_s")


@pytest.fixture
def store(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """An empty folder of a store."""
    return opened(f"{s3}/{tmp_path_factory.mktemp('store').name}")


def parquet(store: Objects, name: str, frame: pl.DataFrame, group_rows: int = 2) -> str:
    file = BytesIO()
    frame.write_parquet(file, row_group_size=group_rows)
    store.put(name, file.getvalue())
    return f"{store.url}/{name}"


def words(*some: str) -> pl.DataFrame:
    return pl.DataFrame({"id": range(len(some)), "word": some})


def rows(source: Source) -> list[tuple[Any, ...]]:
    return [row for frame in source.batches(columns=list(source.schema)) for row in frame.drop(ROW).rows()]


def refused(path: str) -> InputError:
    with pytest.raises(InputError) as caught:
        open_source(path)
    return caught.value


# ---- what an address means


def test_parquet_is_read_where_it_lies_as_the_same_files_here_are(store: Objects, tmp_path: Path) -> None:
    for at, some in {"b": WORDS[2:], "a": WORDS[:2], ".hidden": ["no"], "_temporary/c": ["no"]}.items():
        folder, _, name = f"day=3/{at}".rpartition("/")
        parquet(store, f"{folder}/{name}.parquet", words(*some))
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        words(*some).write_parquet(tmp_path / folder / f"{name}.parquet")
    store.put("day=3/_SUCCESS", b"")
    for pattern in ("day=3/*.parquet", "**/*.parquet", "day=?/[ab].parquet", "day=3/b.parquet"):
        there, here = open_source(f"{store.url}/{pattern}"), open_source(f"{tmp_path}/{pattern}")
        there.check()
        assert rows(there) == rows(here) and there.schema == here.schema, pattern
        assert there.count() == here.count() and there.table.heights() == here.table.heights()
    assert [path.removeprefix(store.url) for path in open_source(f"{store.url}/**/*.parquet").paths] == [
        "/day=3/a.parquet",
        "/day=3/b.parquet",
    ]


@pytest.mark.parametrize("name", ["city=S%C3%A3o/a b", "50%/a#b", "a?b/c+d", "a[1]/ü"])
def test_a_name_is_taken_as_it_stands(store: Objects, name: str) -> None:
    url = parquet(store, f"{name}.parquet", words("x"))
    assert rows(open_source(url))[0][:2] == (0, "x") and open_source(url).changed() is None
    store.put(f"{name}.csv", b"id\n7\n")
    assert rows(open_source(url.replace(".parquet", ".csv")))[0][0] == "7"


def test_files_of_several_types_are_one_table(store: Objects) -> None:
    parquet(store, "a.parquet", words("x").with_columns(pl.col("id").cast(pl.Int8)))
    parquet(store, "b.parquet", words("y").with_columns(pl.col("id") + 2**40))
    assert rows(open_source(f"{store.url}/*.parquet")) == [(0, "x"), (2**40, "y")]
    parquet(store, "c.parquet", words("z").rename({"word": "text"}))
    assert "c.parquet has no column `word`" in refused(f"{store.url}/*.parquet").message


@pytest.mark.parametrize(("name", "content"), [
    ("words.csv", b"id,word\n7,x\n8,\xe4\xb8\xad\n"),
    ("words.csv.gz", gzip.compress(b"id,word\n7,x\n8,\xe4\xb8\xad\n")),
    ("words.jsonl", b'{"id": "7", "word": "x"}\n{"id": "8", "word": "\xe4\xb8\xad"}\n'),
])  # fmt: skip
def test_text_is_fetched_once_of_each_version(
    store: Objects, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches: list[str] = []
    fetch = Objects.fetch

    def noted(self: Objects, name: str, to: Path) -> bool:
        fetches.append(name)
        return fetch(self, name, to)

    monkeypatch.setattr(Objects, "fetch", noted)
    store.put(f"day=3/{name}", content)
    url = f"{store.url}/day=3/{name}"
    for _ in range(2):
        assert [row[:2] for row in rows(open_source(url))] == [("7", "x"), ("8", "中")]
        assert {str(row[2]) for row in rows(open_source(url))} == {"3"}, "a column on the path"
    assert [each.rpartition("/")[2] for each in fetches] == [name]
    before = open_source(url)
    store.put(f"day=3/{name}", gzip.compress(b"id,word\n9,y\n") if name.endswith("gz") else content.replace(b"7", b"9"))
    assert rows(open_source(url))[0][0] == "9" and len(fetches) == 2
    assert rows(before)[0][0] == "7", "who reads the version before goes on with it"
    assert before.changed() == f"{url} was written to or replaced" or "bytes" in (before.changed() or "")
    cache = list(Path(before.paths[0]).parents)
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in cache[:3])


def test_an_object_that_changes_while_it_is_fetched_is_no_table(
    store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a.csv", b"id,word\n7,x\n")
    fetch = Objects.fetch

    def late(self: Objects, name: str, to: Path) -> bool:
        store.put("a.csv", b"id,word\n7,y\n")
        return fetch(self, name, to)

    monkeypatch.setattr(Objects, "fetch", late)
    assert "changed while it was fetched" in refused(f"{store.url}/a.csv").message


def test_what_is_not_there_is_named(store: Objects, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(store, "t/a.parquet", words("x"))
    store.put("empty/empty.csv", b"")
    store.put("t/words.csv", b"id\n7\n")
    store.put("t/damaged.parquet", b"PAR1 not at all")
    for path, said in {
        f"{store.url}/t/none.parquet": "there is no ",
        f"{store.url}/t/*.csv.gz": "there is no ",
        f"{store.url}/t": "is a folder",
        f"{store.url}/empty/empty.csv": "is empty",
        f"{store.url}/t/damaged.parquet": "is not a whole Parquet file",
        f"{s3}-none/a.parquet": f"{s3}-none",
        f"{store.url}/t/*": "not a kind of table|different kinds",
    }.items():
        error = refused(path)
        assert any(each in error.message for each in said.split("|")) and error.hint, error.message
        assert "verysecret" not in f"{error}{error.hint}"
    assert f"{store.url}/t/*.parquet" in refused(f"{store.url}/t/").hint
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(JobError, match="needs obstore"):
        open_source("s3://other-bucket/a.parquet")


# ---- it stays what it was


def test_an_object_that_changes_is_noticed(store: Objects) -> None:
    urls = [parquet(store, f"{number:02}.parquet", words("x")) for number in range(12)]
    one, all = open_source(urls[3]), open_source(f"{store.url}/*.parquet")
    same = open_source(f"{store.url}/*.parquet")
    assert one.changed() is None and all.changed(looked_into=True) is None
    assert all.fingerprint == same.fingerprint != one.fingerprint
    parquet(store, "03.parquet", words("y"))
    for source in (one, all):
        assert source.changed() == f"{urls[3]} was written to or replaced"
    assert open_source(f"{store.url}/*.parquet").fingerprint != all.fingerprint
    store.delete(["03.parquet"])
    assert one.changed() == f"{urls[3]} is gone"


def test_a_run_whose_table_changes_ends_with_words_and_its_answers_safe(
    here: Path, store: Objects, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = parquet(store, "words.parquet", words(*WORDS))
    path = small_job(here, UNLIMITED)
    path.write_text(path.read_text().replace('"words.csv"', f'"{url}"'))
    session = prepare(load(path), Options(offline=True))
    with output_place(session) as place:
        parquet(store, "words.parquet", words(*reversed(WORDS)))
        with pytest.raises(Exception, match="the input changed while the run went on") as caught:
            replaced(session, place)  # type: ignore[arg-type]
    assert "words.parquet was written to or replaced" in str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_run_of_a_table_in_storage_is_that_of_the_same_table_here(
    here: Path, store: Objects, cli: Cli, suffix: str
) -> None:
    frame = words(*WORDS)
    file = BytesIO()
    if suffix == ".parquet":
        frame.write_parquet(file)
    elif suffix == ".csv":
        frame.write_csv(file)
    else:
        frame.write_ndjson(file)
    store.put(f"words{suffix}", file.getvalue())
    for name, place in {"there": f"{store.url}/words{suffix}", "here": f"words{suffix}"}.items():
        path = small_job(here, UNLIMITED)
        text = path.read_text().replace('"words.csv"', f'"{place}"').replace("out.parquet", f"{name}.parquet")
        path.write_text(text)
        path = path.rename(here / f"{name}.toml")
        (here / f"words{suffix}").write_bytes(file.getvalue())
        assert cli("check", path, "--offline").code == 0
        ran = cli("run", path, "--offline")
        assert ran.code == 0, ran.err
    there, local = (pl.read_parquet(f"{name}-offline.parquet").drop(TIMES) for name in ("there", "here"))
    assert_frame_equal(there, local)
    assert cli("export", "there", "--to", "again.parquet").code == 0
    assert_frame_equal(pl.read_parquet("again.parquet").drop(TIMES), local)
    ran = cli("run", here / "there.toml", "--offline")
    assert ran.code == 0, "it goes on with what it has"


def test_a_job_is_begun_for_a_table_in_storage(here: Path, store: Objects, cli: Cli) -> None:
    store.put("words.csv", "编号;词\n1;中文\n2;单词\n".encode("gb18030"))
    ran = cli("init", f"{store.url}/words.csv")
    assert ran.code == 0, ran.err
    made = (here / "words.toml").read_text("utf-8")
    assert 'separator = ";"' in made and 'encoding = "gb18030"' in made and f'path = "{store.url}/words.csv"' in made
    parquet(store, "t.parquet", words(*WORDS))
    assert cli("init", f"{store.url}/t.parquet").code == 0
    lacking = cli("init", f"{store.url}/none.csv")
    assert lacking.code == 2 and "there is no s3://" in lacking.err


def test_the_table_is_no_output(store: Objects) -> None:
    parquet(store, "t/a.parquet", words("x"))
    for source in (open_source(f"{store.url}/t/a.parquet"), open_source(f"{store.url}/t/*.parquet")):
        with pytest.raises(InputError, match=r"is the input|would be read as input"):
            output_conflict(source, f"{store.url}/t/a.parquet")
        output_conflict(source, f"{store.url}/out/a.parquet")
        output_conflict(source, "a.parquet")


# ---- shards


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_each_shard_reads_its_own_rows(
    here: Path, store: Objects, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LEAST_ROWS", 4)
    frame = words(*WORDS, *WORDS).with_columns(id=pl.int_range(12))
    for name, part in {"a": frame[:7], "b": frame[7:]}.items():
        if suffix == ".parquet":
            parquet(store, f"{name}.parquet", part)
        else:
            store.put(f"{name}.csv", part.write_csv().encode())
    path = small_job(here, UNLIMITED)
    path.write_text(path.read_text().replace('"words.csv"', f'"{store.url}/*{suffix}"\nid = "id"'))
    whole = prepare(load(path), Options(offline=True))
    made = run_in_shards(whole)
    assert len(made) == 3
    for shard in read(whole.directory)[1]:
        part = pickle.loads(pickle.dumps(shards.shard_source(whole.source, shard)))
        assert [row[0] for row in rows(part)] == frame["id"].cast(whole.source.schema["id"]).to_list()[
            shard.first_row : shard.first_row + shard.rows
        ]
        assert part.changed() is None
        assert not part.table.objects or len(part.table.objects) < 3
    with output_place(whole) as place:
        assert place is not None and replaced(whole, place).finished == 12
    if suffix == ".parquet":
        parquet(store, "b.parquet", words("changed"))
        changed = [shards.shard_source(whole.source, shard).changed() for shard in made]
        assert changed[0] is None and changed[2] is not None


@pytest.mark.long  # 10 s: workers are processes
def test_workers_read_a_table_in_storage_and_their_run_writes_its_folder_there(here: Path, store: Objects) -> None:
    frame = words(*(f"word {number}" for number in range(2_500)))
    parquet(store, "t/a.parquet", frame[:1_700], 500)
    parquet(store, "t/b.parquet", frame[1_700:], 500)
    path = small_job(here, UNLIMITED)
    text = path.read_text().replace('"words.csv"', f'"{store.url}/t/*.parquet"\nid = "id"')
    path.write_text(text.replace("out.parquet", f"{store.url}/out/"))
    for _ in range(2):
        command = [sys.executable, "-m", "pipeline", "run", str(path), "--offline", "--yes", "--workers", "2"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
    parts = [entry.name for entry in store.entries("out-offline")]
    assert parts == [
        "out-offline/part-00000.parquet",
        "out-offline/part-00001.parquet",
        "out-offline/part-00002.parquet",
    ]
    table = pl.concat(pl.read_parquet(BytesIO(store.get(name) or b"")) for name in parts)
    assert table["word"].to_list() == frame["word"].to_list() and set(table["status"]) == {"ok"}
