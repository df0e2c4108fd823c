"""An output in object storage: tried before the first call, put whole or not at all, and over nobody else's table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
import pytest
from commands import UNLIMITED, Ran, small_job
from polars.testing import assert_frame_equal
from sharded import run_in_shards

from pipeline import objects
from pipeline.errors import InputChanged, InputError, OutputError, RunStateError
from pipeline.fleet import shards
from pipeline.job import load
from pipeline.objects import Objects, opened
from pipeline.run.output import output_place, replaced
from pipeline.run.prepare import Options, prepare
from pipeline.store.object_place import ObjectPlace, held_url
from pipeline.store.place import Counted, Write
from pipeline.urls import Url

Cli = Callable[..., Ran]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
TIMES = ("finished_at", "latency_s")


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """An empty folder of a store."""
    folder = tmp_path_factory.mktemp("store")
    return opened(f"{request.getfixturevalue('s3')}/{folder.name}" if request.param == "s3" else f"file://{folder}")


def job(here: Path, output: str, name: str = "small") -> Path:
    path = small_job(here, UNLIMITED)
    path.write_text(path.read_text().replace('"out.parquet"', f'"{output}"'))
    return path.rename(here / f"{name}.toml")


def table(store: Objects, name: str, here: Path) -> pl.DataFrame:
    assert store.fetch(name, here / "fetched" / Path(name).name)
    read = pl.read_parquet if name.endswith(".parquet") else pl.read_csv
    return read(here / "fetched" / Path(name).name)


def names(store: Objects) -> list[str]:
    return [entry.name for entry in store.entries()]


def filled(text: bytes, finished: int = 1) -> Write:
    return lambda file: Counted(file.write(text), finished)


# ---- runs


def test_the_table_of_a_run_is_an_object_and_the_one_that_a_file_would_be(here: Path, cli: Cli, store: Objects) -> None:
    path = job(here, f"{store.url}/results/words.parquet")
    assert cli("check", path, "--offline").code == 0
    ran = cli("run", path, "--offline")
    assert ran.code == 0, ran.err
    assert names(store) == ["results/words-offline.parquet"], "nothing is left of the trial"
    told = cli("report", "small", "--json").json
    assert (told["output"], told["output_finished"]) == (f"{store.url}/results/words-offline.parquet", 6)
    assert cli("run", path, "--offline").code == 0, "its own table is replaced"
    assert cli("run", job(here, "plain.parquet", "plain"), "--offline").code == 0
    plain = pl.read_parquet("plain-offline.parquet").drop(TIMES)
    assert_frame_equal(table(store, "results/words-offline.parquet", here).drop(TIMES), plain)
    assert not list((here / "runs").glob(".output*")), "what was written first is gone"


def test_a_folder_has_an_object_of_each_shard(here: Path, store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEAST_ROWS", 2)
    path = job(here, f"{store.url}/words.csv/")
    store.put("words-offline.csv/part-00007.csv", b"of more shards")
    whole = prepare(load(path), Options(offline=True, overwrite=True))
    run_in_shards(whole)
    with output_place(whole) as place:
        assert place is not None and replaced(whole, place) == Counted(6, 6)
    parts = [f"words-offline.csv/part-0000{number}.csv" for number in range(3)]
    assert names(store) == parts, "tables of shards that there are no more would be read as rows"
    assert [table(store, name, here)["word"].to_list() for name in parts] == [WORDS[at : at + 2] for at in (0, 2, 4)]
    with output_place(prepare(load(path), Options(offline=True))) as place:
        assert place is not None and place.finished == 6
        assert not place.takes(5, 6)


def test_the_table_may_be_exported_there_and_lies_beside_the_output_unless_a_place_is_named(
    here: Path, cli: Cli, store: Objects
) -> None:
    assert cli("run", job(here, f"{store.url}/words.parquet"), "--offline").code == 0
    assert cli("export", "small").code == 0
    assert cli("export", "small", "--to", f"{store.url}/other.csv", "--calls", f"{store.url}/calls.csv").code == 0
    assert names(store) == ["calls.csv", "other.csv", "words-offline-export.parquet", "words-offline.parquet"]
    assert table(store, "other.csv", here)["word"].to_list() == WORDS
    again = cli("export", "small", "--to", f"{store.url}/other.csv")
    assert again.code == 2 and "is there already" in again.err
    assert cli("export", "small", "--to", f"{store.url}/other.csv", "--overwrite").code == 0
    own = cli("export", "small", "--to", f"{store.url}/words-offline.parquet")
    assert own.code == 0, "a run's own table is written anew"
    assert cli("run", "small.toml", "--offline").code == 0


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("s3://words.parquet", "names nothing in a bucket"),
        ("s3://bucket/", "names nothing in a bucket"),
        ("https://host/words.parquet", "no path of a file"),
        ("s3://key:secret@bucket/words.parquet", "must not hold credentials"),
        ("az://box/words.parquet?sig=secret.csv", "credentials are read from the environment"),
        ("s3://bucket/wo\\nrds.parquet", "no `?`, `#` or line break"),
        ("s3://bucket/a//words.parquet", "a part that is empty"),
        ("s3://bucket/words.txt", "must end in one of"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_by_name(here: Path, cli: Cli, output: str, said: str) -> None:
    ran = cli("check", job(here, output), "--offline")
    assert ran.code == 2 and said in ran.out.replace("\n", " ")
    assert "secret" not in ran.out


def test_a_store_that_refuses_is_told_before_anything_is_sent(
    here: Path, cli: Cli, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRY_S", 0.5)
    monkeypatch.setattr(objects, "RETRIES", 0)
    cases = [(f"{s3}-no/out.parquet", {}), (f"{s3}/out.parquet", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})]
    for output, environment in cases:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ran = cli("run", job(here, output), "--offline")
        assert ran.code == 2 and output.rpartition("/")[0] in ran.err, ran.err
        assert "verysecret" not in ran.err and "Traceback" not in ran.err
        assert not list(Path("runs").glob("*/journal*"))
        checked = cli("check", job(here, output), "--offline")
        assert checked.code == 2 and "a run writes it now" not in checked.out


# ---- one place


@pytest.fixture
def held(here: Path, store: Objects) -> Callable[..., ObjectPlace]:
    """The output `out.csv`, or the folder `out`, of a run."""

    def place(run: str = "small", folder: bool = False, overwrite: bool = False) -> ObjectPlace:
        directory = here / "runs" / run
        directory.mkdir(parents=True, exist_ok=True)
        url, suffix = Url(f"{store.url}/out{'' if folder else '.csv'}"), ".csv" if folder else None
        with held_url(url, suffix, directory, None, overwrite, lambda file: None) as found:
            return found

    return place


Held = Callable[..., ObjectPlace]


def test_what_no_run_wrote_or_somebody_changed_is_not_replaced_unasked(held: Held, store: Objects) -> None:
    store.put("out.csv", b"theirs")
    with pytest.raises(InputError, match="is there already, and no run that is kept here wrote it"):
        held()
    held(overwrite=True).replace([filled(b"mine")], lambda: None)
    assert held().finished == 1
    with pytest.raises(InputError, match=r"1 finished row of another run, .*small"):
        held("other")
    store.put("out.csv", b"edited")
    with pytest.raises(InputError, match=r"it was changed after .*small wrote it"):
        held()
    store.put("out/notes.txt", b"theirs")
    with pytest.raises(InputError, match="out/ is there already, and no run"):
        held(folder=True)
    held(folder=True, overwrite=True).replace([filled(b"a")], lambda: None)
    assert names(store) == ["out.csv", "out/notes.txt", "out/part-00000.csv"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("size", [5, 3_000])
def test_a_table_that_another_machine_wrote_meanwhile_stays(
    held: Held, store: Objects, monkeypatch: pytest.MonkeyPatch, folder: bool, size: int
) -> None:
    monkeypatch.setattr(objects, "LARGE_BYTES", 1_000)
    monkeypatch.setattr(objects, "_PIECE_BYTES", 500)
    name = "out/part-00000.csv" if folder else "out.csv"
    ours = held(folder=folder)
    store.put(name, b"theirs")  # after the look at the start
    with pytest.raises(OutputError, match="was written by somebody else while this run went on"):
        ours.replace([filled(bytes(size))], lambda: None)
    assert store.get(name) == b"theirs"
    held(folder=folder, overwrite=True).replace([filled(bytes(size))], lambda: None)
    ours, put_over = held(folder=folder), Objects.put_over

    def late(self: Objects, *given: Any) -> Any:
        store.put(name, b"theirs")  # after the last look
        return put_over(self, *given)

    monkeypatch.setattr(Objects, "put_over", late)
    with pytest.raises(OutputError, match="was written by somebody else while this run went on"):
        ours.replace([filled(bytes(size))], lambda: None)
    assert store.get(name) == b"theirs"


def test_one_that_was_removed_meanwhile_is_in_nobodys_way(held: Held, store: Objects) -> None:
    ours = held()
    for text in (b"one", b"two"):
        ours.replace([filled(text)], lambda: None)
        assert store.get("out.csv") == text
        store.delete(["out.csv"])
    store.put("out.csv", b"theirs")
    with pytest.raises(OutputError, match="by somebody else"):
        ours.replace([filled(b"three")], lambda: None)


def test_a_large_table_is_put_in_pieces(held: Held, store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "LARGE_BYTES", 2**20)
    large = bytes(range(256)) * (13 * 2**12)
    ours = held()
    for text in (large, large[::-1]):
        ours.replace([filled(text)], lambda: None)
        assert store.get("out.csv") == text
    assert held().finished == 1


def test_a_table_is_whole_or_not_there(held: Held, store: Objects) -> None:
    def full(file: BinaryIO) -> Counted:
        raise OSError(28, "No space left on device")

    def changed() -> None:
        raise InputChanged("words.csv was written to")

    for folder in (False, True):
        with pytest.raises(OutputError, match="No space left"):
            held(folder=folder).replace([filled(b"a")] * folder + [full], lambda: None)
        with pytest.raises(InputChanged):
            held(folder=folder).replace([filled(b"a")], changed)
    assert names(store) == []


def test_a_smaller_table_does_not_replace_a_larger_one(held: Held, store: Objects) -> None:
    for folder in (False, True):
        held(folder=folder).replace([filled(b"larger", finished=6)], lambda: None)
        with pytest.raises(OutputError, match="holds 6 finished rows of an earlier run of this job, and this"):
            held(folder=folder).replace([filled(b"small!", finished=2)], lambda: None)
        held(folder=folder, overwrite=True).replace([filled(b"small!", finished=2)], lambda: None)


@pytest.mark.parametrize("is_put", [False, True])
def test_after_a_kill_between_note_and_put_the_table_is_the_runs_own(
    held: Held, store: Objects, here: Path, is_put: bool
) -> None:
    held().replace([filled(b"first", finished=1)], lambda: None)
    before = json.loads((here / "runs/small/output.json").read_bytes())
    held().replace([filled(b"second", finished=2)], lambda: None)
    after = json.loads((here / "runs/small/output.json").read_bytes())
    if not is_put:
        store.put("out.csv", b"first")
        before[0]["tag"] = store.entries()[0].tag.e_tag  # a folder's tags hold the time
    (here / "runs/small/output.json").write_text(json.dumps([*before, {**after[-1], "tag": ""}]))
    ours = held()
    assert ours.finished == 1 + is_put
    ours.replace([filled(b"third", finished=3)], lambda: None)
    assert held().finished == 3


def test_one_run_at_a_time_writes_an_output(held: Held, store: Objects, here: Path) -> None:
    url = Url(f"{store.url}/out.csv")
    with (
        held_url(url, None, here / "runs/small", None, False, lambda file: None),
        pytest.raises(RunStateError, match="another run writes"),
    ):
        held("other")
