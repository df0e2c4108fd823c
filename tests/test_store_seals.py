"""Parts that were removed or changed after they were sealed."""

from pathlib import Path

import anyio
import orjson
import pytest
from asking import MODEL
from stores import answer, killed, manifest, opened, paid, prompt, sealed

from pipeline import report
from pipeline.errors import RunStateError
from pipeline.providers.stored import parse_stored
from pipeline.store import parts, seals, state
from pipeline.store.journal import journal_path, journal_paths
from pipeline.store.run import RunStore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run with two seals: rows 0 to 2, and row 3."""
    path = tmp_path / "run"
    with opened(path) as store:
        for row in range(3):
            answer(store, row)
        anyio.run(store.seal)
        answer(store, 3)
    return path


def refused(directory: Path) -> RunStateError:
    """What start and report say alike; neither changes anything."""
    before = sorted(directory.rglob("*"))
    told = []
    for read in (RunStore(directory, parse_stored).open, lambda _: report.summarize(directory)):
        with pytest.raises(RunStateError) as caught:
            read(manifest())
        told.append((caught.value.message, caught.value.hint))
    assert told[0] == told[1]
    assert sorted(directory.rglob("*")) == before
    return caught.value


def test_every_part_has_a_line_with_its_rows_and_size(directory: Path) -> None:
    noted = seals.check(directory)
    assert {part: line.rows for part, line in noted.items()} == {
        "calls/part-000001.parquet": 3,
        "results/part-000001.parquet": 3,
        "calls/part-000002.parquet": 1,
        "results/part-000002.parquet": 1,
    }
    assert all((directory / line.part).stat().st_size == line.size for line in noted.values())
    assert seals.verify(directory) == report.verify(directory) == 4


@pytest.mark.parametrize("number", [1, 2])
def test_a_results_part_that_was_removed_is_told_with_its_rows_and_not_bought_again(
    directory: Path, number: int
) -> None:
    (directory / f"results/part-00000{number}.parquet").unlink()
    error = refused(directory)
    assert f"part-00000{number}.parquet is missing: {3 if number == 1 else 1} rows are finished" in error.message
    assert "backup" in error.hint and "parts.jsonl" in error.hint and "bought again" in error.hint


def test_a_calls_part_that_was_removed_is_told(directory: Path) -> None:
    (directory / "calls/part-000001.parquet").unlink()
    error = refused(directory)
    assert "calls/part-000001.parquet is missing: 3 paid calls" in error.message
    assert "the report then lacks them" in error.hint


def test_a_part_of_another_size_is_damaged(directory: Path) -> None:
    path = directory / "results/part-000001.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert "results/part-000001.parquet is damaged: 3 rows" in refused(directory).message


def test_a_changed_byte_is_found_by_reading_every_byte(directory: Path) -> None:
    path = directory / "calls/part-000002.parquet"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunStateError, match=r"calls/part-000002\.parquet is damaged"):
        report.verify(directory)


def test_a_part_that_was_given_up_is_gone_on_without(directory: Path) -> None:
    (directory / "results/part-000001.parquet").unlink()
    lines = (directory / seals.NAME).read_bytes().splitlines(keepends=True)
    (directory / seals.NAME).write_bytes(b"".join(line for line in lines if b"results/part-000001" not in line))
    with opened(directory) as store:
        assert [store.outcomes.done(row) for row in range(4)] == [False, False, False, True]
        answer(store, 0)
    assert sorted(sealed(directory, "results")["row"]) == [0, 3]


def parts_of(lines: bytes) -> set[str]:
    return {line["part"] for line in map(orjson.loads, lines.splitlines()) if "part" in line}


@pytest.mark.parametrize("keep", [0, 1, 50])
def test_lines_that_a_crash_or_power_loss_took_are_written_again(directory: Path, keep: int) -> None:
    path = directory / seals.NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\n") + 1 + keep])
    with opened(directory) as store:
        assert sum(store.outcomes.done(row) for row in range(4)) == 4
    assert seals.check(directory).keys() == parts_of(whole)


def test_a_damaged_line_in_the_middle_is_told(directory: Path) -> None:
    path = directory / seals.NAME
    path.write_bytes(path.read_bytes().replace(b'"rows":3', b'"rosw":3', 1))
    error = refused(directory)
    assert error.message.startswith(f"{path} is damaged") and "move it away" in error.hint
    path.unlink()
    with opened(directory):
        pass
    assert seals.verify(directory) == 4


def test_a_directory_without_parts_has_nothing_to_check(tmp_path: Path) -> None:
    assert seals.check(tmp_path) == {}
    seals.record(tmp_path, [])
    assert not (tmp_path / seals.NAME).exists()


def test_a_line_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (tmp_path / seals.NAME).symlink_to("/dev/full")
    with pytest.raises(RunStateError, match=r"parts\.jsonl: No space left on device"):
        seals.record(tmp_path, [seals.Sealed("calls/part-000001.parquet", 1, 2, "d")])


# ---- journals that were removed


@pytest.fixture
def unsealed(tmp_path: Path) -> Path:
    """A run that was killed: two rows are sealed, one answer is in its journal."""
    path = tmp_path / "run"
    with killed(path) as store:
        answer(store, 0)
        answer(store, 1)
        anyio.run(store.seal)
        store.append_call(prompt(2), MODEL, paid())
    return path


@pytest.mark.case("D12")
@pytest.mark.parametrize("empty", [False, True])
def test_a_journal_that_was_removed_is_told_and_gone_on_without_when_asked(unsealed: Path, empty: bool) -> None:
    [path] = journal_paths(unsealed)
    path.write_bytes(b"") if empty else path.unlink()
    error = refused(unsealed)
    assert f"{path} is {'empty' if empty else 'missing'}: replies that were paid for" in error.message
    assert "backup" in error.hint and "bought again" in error.hint
    lines = (unsealed / seals.NAME).read_bytes().splitlines(keepends=True)
    naming = [number for number, line in enumerate(lines) if b'{"journals"' in line and b"2" in line]
    (unsealed / seals.NAME).write_bytes(b"".join(lines[: naming[-1]] + lines[naming[-1] + 1 :]))
    with opened(unsealed) as store:
        assert [store.outcomes.done(row) for row in range(3)] == [True, True, False]
        assert store.reply("content 2") is None


@pytest.mark.case("D12")
@pytest.mark.parametrize("lines", [1, 2])
@pytest.mark.parametrize("note", ["there", "removed", "torn", "older"])
def test_a_journal_that_was_cut_off_is_told_and_gone_on_with_when_asked(tmp_path: Path, lines: int, note: str) -> None:
    directory = tmp_path / "run"
    with killed(directory) as store:
        store.append_call(prompt(2), MODEL, paid())
        store.append_call(prompt(3), MODEL, paid())
        answer(store, 0)
        before = (directory / "synced").read_bytes()
        anyio.run(store.seal)
        store.append_call(prompt(4), MODEL, paid())  # not on the disk yet: a power cut may take it
    [path] = journal_paths(directory)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]))
    assert state.load(directory, parse_stored)[1].calls[-1].row == 3
    path.write_bytes(b"".join(whole[:lines]))
    noted = directory / "synced"
    if note == "there":
        error = refused(directory)
        assert f"{path} was cut off: it has {path.stat().st_size:,} bytes" in error.message
        assert str(noted) in error.hint and "bought again" in error.hint
        noted.unlink()
    elif note == "removed":
        noted.unlink()
    else:  # as a power cut may leave it
        noted.write_bytes(noted.read_bytes()[:9] if note == "torn" else before)
    with opened(directory) as store:
        assert [store.reply(f"content {row}") is not None for row in (2, 3, 4)] == [lines == 2, False, False]
        assert store.outcomes.done(0)


def test_a_blank_journal_of_a_run_that_ended_may_be_removed(directory: Path) -> None:
    for path in journal_paths(directory):
        path.unlink()
    with opened(directory) as store:
        assert [store.outcomes.done(row) for row in range(4)] == [True] * 4


@pytest.mark.case("D12")
@pytest.mark.parametrize("number", [1, 2, 9])
def test_another_runs_journal_in_the_directory_is_refused_and_stays(
    unsealed: Path, tmp_path: Path, number: int
) -> None:
    with killed(tmp_path / "other") as store:
        answer(store, 2)
    [theirs] = journal_paths(tmp_path / "other")
    laid = theirs.rename(journal_path(unsealed, number))
    error = refused(unsealed)
    assert f"{laid} belongs to another run" in error.message and "move it out" in error.hint


@pytest.mark.case("D12")
@pytest.mark.parametrize("number", [2, 9])
def test_another_runs_parts_in_the_directory_are_refused_and_stay(unsealed: Path, tmp_path: Path, number: int) -> None:
    """A newer part replaces outcomes, and declares the journals before it spent."""
    with opened(tmp_path / "other") as store:
        answer(store, 0)
    for kind in ("calls", "results"):
        [theirs] = parts.part_paths(tmp_path / "other" / kind)
        theirs.rename(parts.part_path(unsealed / kind, number))
    laid = parts.part_path(unsealed / "calls", number)
    error = refused(unsealed)
    assert f"{laid} belongs to another run" in error.message and "move it out" in error.hint
    for kind in ("calls", "results"):
        parts.part_path(unsealed / kind, number).unlink()
    with opened(unsealed) as store:
        assert store.reply("content 2") is not None


@pytest.mark.case("D12")
def test_a_flipped_bit_stops_start_and_report(unsealed: Path) -> None:
    [path] = journal_paths(unsealed)
    content = bytearray(path.read_bytes())
    content[content.index(b"an answer") + 3] ^= 1
    path.write_bytes(content)
    assert f"line 2 of {path} is damaged" in refused(unsealed).message
