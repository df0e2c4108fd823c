"""A run on object storage, read where it was not made: what is found is what a run here has, and no more is fetched."""

import os
import shutil
from pathlib import Path

import orjson
import pytest
from sharded import run_in_shards
from storage import in_folder

from jobs import PLAIN, make_job
from pipeline import report
from pipeline.console.reports import show_summary
from pipeline.errors import RunStateError
from pipeline.fleet import shards
from pipeline.objects import Objects
from pipeline.report.finding import find_run
from pipeline.report.reading import Answers
from pipeline.report.tallies import done_of
from pipeline.run.prepare import Options, prepare
from pipeline.store import afar, lives
from pipeline.store.lives import LifeId, Stood
from pipeline.store.manifest import Lock
from pipeline.store.mirror import restore

ROWS = 12


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory here: of four shards two are done, one is half, and one was not begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "LEAST_ROWS", 3)
    (tmp_path / "topics.csv").write_text("topic\n" + "".join(f"topic {row}\n" for row in range(ROWS)))
    whole = prepare(make_job(tmp_path, PLAIN), Options(offline=True))
    run_in_shards(whole, begun={0, 1, 2}, half={2})
    return whole.directory


def put(directory: Path, url_of: Path, number: int = 1) -> str:
    """Have the run lie there as a generation of this number; its URL."""
    root = in_folder(url_of)
    there = afar.generation(root, number)
    for shard in sorted((directory / "shards").iterdir()):
        objects = there.below(f"shards/{shard.name}")
        objects.put("input.parquet", shard / "input.parquet")
        if (shard / "manifest.json").exists():
            mirror = restore(objects, url_of.parent / "scratch" / shard.name, LifeId(1, 1))
            shutil.copytree(shard, mirror.directory, dirs_exist_ok=True)
            mirror.push(last=True)
            if (shard / "done.json").exists():
                mirror.finish()
    for name in afar.OWN:
        if (directory / name).exists():
            there.put(name, directory / name)
    afar.begin(root, number)
    return root.url


def told(directory: Path) -> dict[str, object]:
    return report.summarize(directory).as_json() | {"run_dir": ""}


def test_a_report_of_shards_that_are_done_fetches_their_sums_alone(run: Path, tmp_path: Path) -> None:
    url = put(run, tmp_path / "bucket")
    copy = find_run(url, sums=True)
    assert told(copy) == told(run)
    parts = {path.parent.parent.name for path in copy.glob("shards/*/*/*.parquet")}
    assert parts == {"00002"}, "of the one that is half there are no sums"
    assert [row["response"] for row in Answers(find_run(url)).rows()] == [
        row["response"] for row in Answers(run).rows()
    ]
    assert {path.parent.parent.name for path in copy.glob("shards/*/*/*.parquet")} == {"00000", "00001", "00002"}
    assert find_run(url, sums=True) == copy and told(copy) == told(run), "what is there stays"


def test_of_a_thousand_shards_that_are_there_nothing_is_asked(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(run, tmp_path / "bucket")
    find_run(url)
    asked: list[str] = []
    bring = lives.bring

    def counting(shard: Objects, directory: Path, *, sums: bool = False) -> Stood | None:
        asked.append(directory.name)
        return bring(shard, directory, sums=sums)

    monkeypatch.setattr(lives, "bring", counting)
    assert told(find_run(url)) == told(find_run(url, sums=True)) == told(run)
    assert asked == ["00002"] * 2, "but of the one that may have changed"


def test_a_part_that_came_cut_off_or_was_cut_off_here_is_fetched_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(run, tmp_path / "bucket")
    fetch, cut = Objects.fetch, {"part-000001.parquet"}

    def cutting(objects: Objects, name: str, to: Path) -> bool:
        is_there = fetch(objects, name, to)
        if to.name in cut and "calls" in name:
            cut.remove(to.name)
            os.truncate(to, 100)
        return is_there

    monkeypatch.setattr(Objects, "fetch", cutting)
    copy = find_run(url)
    assert not cut
    parts = sorted(copy.glob("shards/*/*/*.parquet"))
    sizes = [part.stat().st_size for part in parts]
    for part in parts:
        os.truncate(part, 100)
    assert find_run(url) == copy and [part.stat().st_size for part in parts] == sizes


def test_a_shard_of_the_copy_that_lost_its_manifest_is_not_read_as_one_that_was_not_begun(
    run: Path, tmp_path: Path
) -> None:
    url = put(run, tmp_path / "bucket")
    for sums in (True, False):
        copy = find_run(url, sums=sums)
        (copy / "shards/00000/manifest.json").unlink()
        assert find_run(url, sums=sums) == copy and told(copy) == told(run)


def test_where_the_sums_do_not_tell_the_rest_is_fetched(run: Path, tmp_path: Path) -> None:
    url = put(run, tmp_path / "bucket")
    copy = find_run(url, sums=True)
    log = copy / "run.log"
    planned = next(line for line in log.read_text().splitlines() if '"event":"plan"' in line)
    with log.open("a") as file:  # a plan of a later session, in whose time the shards were done
        file.write(planned + "\n")
    with (run / "run.log").open("a") as file:
        file.write(planned + "\n")
    assert told(copy) == told(run)


def test_a_generation_is_found_by_its_number_and_what_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    url = put(run, tmp_path / "bucket")
    assert put(run, tmp_path / "bucket", 2) == url
    assert find_run(f"{url}@1") != find_run(url) == find_run(f"{url}@2") == find_run(f"{url}/000002")
    with pytest.raises(RunStateError, match="there is no run in"):
        find_run(f"{url}-of-another")
    assert [path.name for path in (tmp_path / "bucket").parent.glob("bucket*")] == ["bucket"], "reading makes nothing"
    with pytest.raises(RunStateError, match=f"{url} has no generation 3") as caught:
        find_run(f"{url}@3")
    assert caught.value.hint == "there are 1, 2"


def test_sums_of_other_answers_count_for_nothing(run: Path) -> None:
    """As where those of another shard were put in their place, whose notes are as long."""
    notes = run / "shards/00000/parts.jsonl"
    assert done_of(notes.parent)
    content = bytearray(notes.read_bytes())
    at = content.index(b'"digest":"') + 10
    content[at] = ord("0") if content[at] != ord("0") else ord("1")
    notes.write_bytes(content)
    assert done_of(notes.parent) is None


def test_a_run_whose_shards_nobody_knows_is_not_read_as_one_without_answers(run: Path, tmp_path: Path) -> None:
    url = put(run, tmp_path / "bucket")
    in_folder(tmp_path / "bucket").delete(["000001/shards.parquet"])
    with pytest.raises(RunStateError, match=r"000001/shards\.parquet is missing"):
        find_run(url)


def test_a_word_of_an_older_generation_does_not_hide_the_newest(run: Path, tmp_path: Path) -> None:
    url = put(run, tmp_path / "bucket")
    put(run, tmp_path / "bucket", 2)
    root = in_folder(tmp_path / "bucket")
    afar.begin(root, 1)
    assert afar.newest(root) == 2 and find_run(url) == find_run(f"{url}@2")


def test_a_report_says_of_which_run_in_the_storage_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = put(run, tmp_path / "bucket")
    show_summary(report.summarize(find_run(url)))
    assert f"a copy of {url}/000001" in " ".join(capsys.readouterr().out.split())
    show_summary(report.summarize(run))
    assert "a copy of" not in capsys.readouterr().out


def test_answers_on_their_way_to_the_storage_are_no_failures(run: Path) -> None:
    calls = report.summarize(run).calls
    started = next(line for line in (run / "run.log").read_bytes().splitlines() if b'"event":"start"' in line)
    ahead = {"event": "progress", "at": "2026-11-30T20:20:53Z", "seconds": 10, "rows_done": 12, "cost_usd": 0.0}
    told = orjson.dumps(ahead | {"calls": calls + 40, "attempts": calls + 40})
    failed = b'{"event": "failed", "at": "2026-11-30T20:20:54Z", "requests": 3, "cause": "server", "lane": "standard"}'
    (run / "run.log").write_bytes(started + b"\n" + told + b"\n")
    assert report.summarize(run).attempts == calls + 40, "of a run that ended so, these were lost"
    led = Lock(run / "lock")
    try:
        assert report.summarize(run).attempts == calls
        (run / "run.log").write_bytes(started + b"\n" + told + b"\n" + failed + b"\n")
        assert report.summarize(run).attempts == calls + 3
    finally:
        led.release()


def test_a_working_copy_is_brought_when_it_is_read(run: Path, tmp_path: Path) -> None:
    url = put(run, tmp_path / "bucket")
    local = replace_with_copy(run, afar.generation(in_folder(tmp_path / "bucket"), 1).url)
    assert url and told(find_run(run.name)) == told(local)


def replace_with_copy(run: Path, url: str) -> Path:
    """Have the run directory be a working copy; where what it had is now."""
    aside = run.rename(run.with_name("aside"))
    afar.write(run, afar.Afar(url))
    shutil.copy(aside / "manifest.json", run / "manifest.json")
    return aside
