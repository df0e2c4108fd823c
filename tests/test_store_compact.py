"""The parts of a shard that is done lie in one file: nothing is read otherwise, whatever kills the putting together."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import anyio
import polars as pl
import pytest
from asking import MODEL
from faultpoints import FAULTS, Fault, Runs, compiled
from stores import answer, failed, killed, manifest, opened, paid, prompt, result

from pipeline import report
from pipeline.errors import RunStateError
from pipeline.providers.stored import parse_stored
from pipeline.report import calls
from pipeline.report.reading import CALL, Answers
from pipeline.report.tallies import done_of, write_done
from pipeline.store import parts, seals
from pipeline.store.compact import compact
from pipeline.store.content import ContentIndex
from pipeline.store.export import ResultsByRow
from pipeline.store.run import RunStore
from pipeline.store.state import load

ROWS = 23
FILES = {"calls/part-000001-000008.parquet", "results/part-000001-000008.parquet"}
NUMBERS = (1, 2, 3, 4, 5, 6, 8)  # a journal without lines was the seventh


def fill(directory: Path) -> None:
    """Seven parts: rows out of order, rows of several calls, failures, an answer that was judged and asked again."""
    with opened(directory) as store:
        for row in (*range(5, 9), 0, 1, 2, 3, 4, *range(9, ROWS - 3)):
            if row == 6:
                store.append_call(prompt(6, "a piece", step="map", chunks=2), MODEL, paid("a part"))
            if row == 11:
                answer(store, row, "truncated", "truncated")
            elif row == 14:
                store.append_call(prompt(row), MODEL, failed("recitation"))
                store.append_result(result(row, "error", "recitation", cost_usd=None))
            else:
                answer(store, row)
            if row % 4 == 0:
                anyio.run(store.seal)
    with opened(directory) as store:
        store.reopen(frozenset({"truncated"}))
        store.append_call(prompt(11, "longer"), MODEL, paid("longer"))
        store.append_result(result(11, response="longer"))
        for row in range(ROWS - 3, ROWS):
            answer(store, row)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "00001"
    path.parent.mkdir()
    fill(path)
    return path


def read(directory: Path) -> Mapping[str, Any]:
    """All that whoever reads is told of a run directory."""
    answers = Answers(directory)
    rows = list(answers.rows())
    with closing(ContentIndex(directory, read_only=True)) as index:
        outcomes, unsealed = load(directory, parse_stored)
        names = [*(f"content {row}" for row in range(ROWS)), "a piece", "longer", "never asked"]

        async def find() -> list[Any]:
            return [await index.find(name) for name in names]

        found = anyio.run(find)
    results = ResultsByRow(directory / "results")
    told = report.summarize(directory)
    return {
        "rows": rows,
        "answers": [answers.find(str(row)) for row in range(ROWS)],
        "asked": [answers.calls(row, "the answer") for row in range(ROWS)],
        "asked in order": pl.concat(answers.call_frames(CALL)).rows(),
        "calls": pl.concat(calls.frames(directory)).rows(),
        "written": [results.between(low, low + 4).rows() for low in range(0, ROWS, 5)],
        "failures": report.failures(directory),
        "report": (told.outcomes, told.calls, told.cost_usd, told.causes),
        "outcomes": [outcomes.lasting(row) for row in range(ROWS)],
        "unsealed": (unsealed.calls, unsealed.results, unsealed.in_flight, unsealed.sealed),
        "found": found,
        "numbers": [parts.part_paths(directory / kind) for kind in ("calls", "results")],
    }


def check_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for name in one:
        assert one[name] == other[name], name


def files(directory: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in directory.glob("*/*")}


def check_goes_on(directory: Path) -> None:
    """The next start finds all, leaves nothing in the way, and the shard is put together after it."""
    store = RunStore(directory, parse_stored)
    store.open(manifest())
    assert store.outcomes.count("ok", ROWS) == ROWS - 1 and not store.lost
    assert store.spent_usd() == sum(frame["cost_usd"].sum() for frame in store.calls(("cost_usd",)))

    async def find() -> list[str]:
        return [found.reply.text for row in range(ROWS) if (found := await store.sealed_reply(f"content {row}"))]

    assert anyio.run(find) == [f"answer {row}" for row in range(ROWS) if row != 14]
    store.close()
    assert not [*directory.glob("*/.*"), *directory.glob(".*")]
    single = {f"{kind}/part-{number:06d}.parquet" for kind in ("calls", "results") for number in NUMBERS}
    assert files(directory) in (FILES, single)
    assert write_done(directory, ROWS) and files(directory) == FILES
    assert seals.verify(directory) == 2


def test_a_shard_that_is_done_lies_in_few_files_and_is_read_as_before(directory: Path) -> None:
    before = read(directory)
    assert len(before["numbers"][0]) == 7 and len(before["rows"]) == ROWS
    assert write_done(directory, ROWS)
    assert files(directory) == FILES
    left = {path.name for path in directory.iterdir() if path.is_file()}
    assert left == {"manifest.json", "parts.jsonl", "done.json", "run.log", "lock"}
    assert {line.rows for line in seals.check(directory).values()} == {ROWS + 1, ROWS + 2}
    check_same(before, read(directory))
    assert not (directory / "content.sqlite").exists(), "who only reads makes an index elsewhere"
    known = done_of(directory)
    assert known and +known.tally.outcomes == {"ok": ROWS - 1, "error": 1}
    assert not write_done(directory, ROWS + 1), "a row is left"
    check_goes_on(directory)
    check_same(before, read(directory))


def test_who_began_to_read_before_reads_on(directory: Path) -> None:
    results, answers = ResultsByRow(directory / "results"), Answers(directory)
    paths = parts.part_paths(directory / "calls")
    before = [parts.read_part(path, ("row", "fingerprint")) for path in paths], list(answers.rows())
    results.between(0, 4)
    assert compact(directory)
    assert not paths[0].exists()
    now = [parts.read_part(path, ("row", "fingerprint")) for path in paths], list(answers.rows())
    assert [frame.rows() for frame in now[0]] == [frame.rows() for frame in before[0]] and now[1] == before[1]
    assert results.between(5, ROWS).height == ROWS - 5
    middle = parts.read_part(paths[2], ("row",), 1, 2)
    assert middle.rows() == before[0][2].select("row")[1:3].rows()
    assert parts.read_part(paths[2], ("row",), 2, 999).height == before[0][2].height - 2, "no row of the next part"


def test_rows_that_are_tried_again_are_put_to_the_others(directory: Path) -> None:
    assert write_done(directory, ROWS)
    with opened(directory) as store:
        store.reopen(frozenset({"recitation"}))
        assert not store.outcomes.done(14)
        answer(store, 14)
    assert done_of(directory) is None
    (more,) = (name for name in files(directory) - FILES if name.startswith("results"))
    before = read(directory)
    assert before["outcomes"][14] == "ok" and len(before["numbers"][0]) == 8
    assert write_done(directory, ROWS)
    number = parts.part_number(directory / more)
    assert files(directory) == {f"{kind}/part-000001-{number:06d}.parquet" for kind in ("calls", "results")}
    check_same(before, read(directory))


def test_parts_that_an_older_version_wrote_lack_columns(directory: Path) -> None:
    before = read(directory)
    path = directory / "calls/part-000003.parquet"
    pl.read_parquet(path).drop("late", "lane").write_parquet(path)
    lines = (directory / "parts.jsonl").read_text().splitlines(keepends=True)
    (directory / "parts.jsonl").write_text("".join(line for line in lines if "calls/part-000003" not in line))
    assert write_done(directory, ROWS)
    check_same(before, read(directory))


def test_a_shard_with_something_open_is_left_alone(directory: Path) -> None:
    with killed(directory) as store:
        store.append_sent(prompt(3, "once more"), MODEL)
    before = files(directory)
    assert not compact(directory) and files(directory) == before
    with opened(directory), pytest.raises(RunStateError, match="in use"):
        compact(directory)


def test_a_file_that_is_gone_or_damaged_is_told_with_its_rows(directory: Path) -> None:
    assert compact(directory)
    path = directory / "results/part-000001-000008.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    with pytest.raises(RunStateError, match=f"is damaged: {ROWS + 1} rows are finished"):
        seals.verify(directory)
    path.write_bytes(whole[:-9])
    for look in (report.summarize, Answers, lambda place: RunStore(place, parse_stored).open(manifest())):
        with pytest.raises(RunStateError, match="is damaged"):
            look(directory)
    path.unlink()
    with pytest.raises(RunStateError, match=f"is missing: {ROWS + 1} rows are finished"):
        report.summarize(directory)


# ---- kills


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    library = compiled(tmp_path_factory.mktemp("shim"))
    if library is None:
        pytest.skip("no C compiler")
    warm = Runs(library, "compacting")
    yield warm
    warm.close()


KINDS = ("kill", "full", "EIO once", "tidying")


def fail_everywhere(directory: Path, runs: Runs, places: int | None) -> set[tuple[bool, ...]]:
    """So many faults, None: a kill at every place, each other at every fourth; returns how files lay after kills."""
    here, before, seen = directory.parent, read(directory), set[tuple[bool, ...]]()
    kept = here.parent / "kept"
    shutil.copytree(here, kept)
    whole = runs.run(here, "", str(directory), str(ROWS), fault=Fault(0))
    assert (whole.code, whole.out) == (0, "True\n") and whole.places > 50 and files(directory) == FILES
    every = range(1, whole.places + 1)
    faults = [(kind, at) for at in every for kind in (KINDS if at % 4 == 1 else KINDS[:1])]
    for kind, at in faults if places is None else faults[1 :: len(faults) // places]:
        shutil.rmtree(here)
        shutil.copytree(kept, here)
        ran = runs.run(here, "", str(directory), str(ROWS), fault=FAULTS[kind]._replace(at=at))
        assert ran.code in ((-9,) if kind == "kill" else (0, 3)), (at, ran)
        assert "Traceback" not in ran.err, (at, ran.err)
        known = done_of(directory)
        assert known is None or +known.tally.outcomes == {"ok": ROWS - 1, "error": 1}
        if kind == "kill":
            is_named = len(seals.read(directory)) == 2
            seen.add((is_named, (directory / "calls/part-000001.parquet").exists(), files(directory) >= FILES))
        check_same(before, read(directory))
        check_goes_on(directory)
    return seen


def test_a_kill_or_a_bad_disk_at_some_places_costs_nothing(directory: Path, runs: Runs) -> None:
    fail_everywhere(directory, runs, 10)


@pytest.mark.long
def test_a_kill_or_a_bad_disk_at_any_place_costs_nothing(directory: Path, runs: Runs) -> None:
    seen = fail_everywhere(directory, runs, None)
    assert {(False, True, False), (False, True, True), (True, True, True), (True, False, True)} <= seen


@pytest.mark.parametrize("seed", range(6))
def test_removals_that_a_power_cut_undoes_are_made_once_more(directory: Path, seed: int) -> None:
    """Of all that was removed after `parts.jsonl` names the new files, any may be there again."""
    rng, kept = Random(seed), directory.parent / "kept"
    shutil.copytree(directory, kept)
    before = read(directory)
    assert compact(directory)
    gone = [path for path in kept.rglob("*") if path.is_file() and not (directory / path.relative_to(kept)).exists()]
    assert len(gone) > 15
    for path in rng.sample(gone, len(gone) * seed // 5):
        shutil.copy(path, directory / path.relative_to(kept))
    if seed == 5:  # as the hint of a damaged one says
        (directory / "parts.jsonl").unlink()
    check_same(before, read(directory))
    if seed < 5:
        check_goes_on(directory)
