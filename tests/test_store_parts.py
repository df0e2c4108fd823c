import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from asking import MODEL
from stores import AT, CENT, answer, failed, killed, opened, paid, prompt, result, sealed

from pipeline import report
from pipeline.errors import RunStateError
from pipeline.prompts import Prompt
from pipeline.records import Reply, Usage
from pipeline.store import parts
from pipeline.store.lines import Call, kept


def call(asked: Prompt, reply: Reply) -> Call:
    return kept(asked, MODEL, reply, b"line\n")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


FRAME = parts.results_frame([result(0), result(1)])


# ---- columns


def test_a_call_becomes_one_row_with_its_provenance() -> None:
    reply = paid(
        "a part", Decimal("0.000000000001"), usage=Usage(12, 3, 34, 5, 6), attempts=3, rate_limited=2, latency_s=0.5
    )
    reply = replace(reply, target="free", lane="flex", fell_back="failed", standard_usd=Decimal("0.000000000002"))
    asked = prompt(7, "content", step="map", level=2, chunk=3, chunks=9, input_tokens_est=11)
    [row] = parts.calls_frame([call(asked, reply)], {}).rows(named=True)
    assert row == {
        "row": 7,
        "key": "key 7",
        "step": "map",
        "level": 2,
        "chunk": 3,
        "chunks": 9,
        "fingerprint": "content",
        "paid": True,
        "status": "ok",
        "error_kind": None,
        "error": None,
        "finish_reason": "STOP",
        "extras": None,
        "text": "a part",
        "raw": None,
        "model": "gemini-3.5-flash-lite-001",
        "endpoint": "gemini@example",
        "target": "free",
        "lane": "flex",
        "fell_back": "failed",
        "response_id": "r-1",
        "input_tokens_est": 11,
        "input_tokens": 12,
        "cached_tokens": 3,
        "output_tokens": 34,
        "thinking_tokens": 5,
        "tool_tokens": 6,
        "searches": 0,
        "usage_estimated": False,
        "cost_usd": Decimal("0.000000000001"),
        "standard_usd": Decimal("0.000000000002"),
        "at_most_usd": Decimal(0),
        "worst_usd": None,
        "attempts": 3,
        "rate_limited": 2,
        "latency_s": 0.5,
        "finished_at": datetime.fromtimestamp(AT, UTC),
        "continuation": None,
        "generation": 0,
        "late": False,
    }


def test_an_answer_is_stored_once_with_the_result_and_the_texts_on_the_way_with_their_calls() -> None:
    calls = [
        call(prompt(0, "m0", step="map"), paid("part 0")),
        call(prompt(0, "m1", step="map"), paid("part 1")),
        call(prompt(0, "r", step="reduce"), paid("whole")),
        call(prompt(1), failed()),
        call(prompt(2), paid("of a row without answer")),
    ]
    frame = parts.calls_frame(calls, {0: "whole", 2: None})
    assert frame["text"].to_list() == ["part 0", "part 1", None, "", "of a row without answer"]


def test_an_unreadable_body_is_kept_and_a_readable_one_is_not_stored_again() -> None:
    frame = parts.calls_frame([call(prompt(0), paid(raw=b"<\xff>")), call(prompt(1), paid())], {})
    assert frame["raw"].to_list() == ["<\ufffd>", None]


def test_results_come_in_row_order_with_tool_tokens_counted_as_input() -> None:
    frame = parts.results_frame([result(5), result(2, usage=Usage(10, 1, 2, 3, 7)), result(9, "error", "server")])
    assert frame["row"].to_list() == [2, 5, 9]
    assert frame.select("input_tokens", "cached_tokens", "output_tokens", "thinking_tokens").row(0) == (17, 1, 2, 3)
    assert frame["response"].to_list() == ["answer 2", "answer 5", None]


def test_columns_are_typed_whatever_is_in_them() -> None:
    nothing = result(
        0, "error", "server", response=None, cost_usd=None, finished_at=None, finish_reason=None, model=None
    )
    for frame in (parts.results_frame([]), parts.results_frame([replace(nothing, error=None, error_kind=None)])):
        assert frame.schema == parts.RESULTS_SCHEMA
    for frame in (parts.calls_frame([], {}), parts.calls_frame([call(prompt(0), failed(cost_usd=None))], {})):
        assert frame.schema == parts.CALLS_SCHEMA


def test_an_unknown_cost_is_null_and_never_zero() -> None:
    assert parts.calls_frame([call(prompt(0), paid(cost_usd=None))], {})["cost_usd"].to_list() == [None]
    assert parts.results_frame([result(0, cost_usd=None)])["cost_usd"].to_list() == [None]


# ---- whole or not there


class Crash(Exception):
    """The process dies here."""


@pytest.mark.parametrize("step", ["touch", "write", "fsync", "replace"])
def test_a_part_that_was_not_finished_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise Crash(step)

    with monkeypatch.context() as patched, pytest.raises(Crash):
        if step == "write":
            patched.setattr(Path, "open", crash)
        else:
            patched.setattr(os if step == "fsync" else Path, step, crash)
        parts.write_part(FRAME, tmp_path, 1)
    assert parts.part_paths(tmp_path) == []
    parts.write_part(FRAME, tmp_path, 1)
    assert names(tmp_path) == ["part-000001.parquet"]
    assert [frame.rows() for frame in parts.read_parts(tmp_path, FRAME.columns)] == [FRAME.rows()]


def test_a_part_is_forced_to_the_disk_before_it_gets_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def spy_fsync(fd: int) -> None:
        steps.append("directory" if os.fstat(fd).st_ino == tmp_path.stat().st_ino else "file")
        fsync(fd)

    def spy_rename(path: Path, target: Path) -> Path:
        steps.append(f"{path.name} to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_rename)
    parts.write_part(FRAME, tmp_path, 12)
    assert steps == ["file", ".part-000012.parquet.tmp to part-000012.parquet", "directory"]


def test_a_full_disk_is_told_and_leaves_no_half_part_that_takes_room(tmp_path: Path) -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full")
    (tmp_path / ".part-000001.parquet.tmp").symlink_to(device)
    with pytest.raises(RunStateError) as caught:
        parts.write_part(FRAME, tmp_path, 1)
    assert f"{tmp_path / 'part-000001.parquet'}: No space left on device\n" in caught.value.message
    assert "nothing is lost" in caught.value.message
    assert names(tmp_path) == []


def test_only_the_owner_may_read_a_part(tmp_path: Path) -> None:
    parts.write_part(FRAME, tmp_path, 1)
    assert (tmp_path / "part-000001.parquet").stat().st_mode & 0o777 == 0o600


# ---- which parts there are


def test_the_newest_results_part_says_which_calls_parts_count(tmp_path: Path) -> None:
    for name in ("calls", "results"):
        (tmp_path / name).mkdir()
    assert (parts.newest(tmp_path / "results"), parts.void(tmp_path)) == (0, [])
    for number in (1, 2, 5):
        parts.write_part(FRAME, tmp_path / "calls", number)
    assert [path.name for path in parts.void(tmp_path)] == [f"part-00000{number}.parquet" for number in (1, 2, 5)]
    for number in (1, 2):
        parts.write_part(FRAME, tmp_path / "results", number)
    assert parts.newest(tmp_path / "results") == 2
    assert [path.name for path in parts.void(tmp_path)] == ["part-000005.parquet"]
    assert [parts.part_number(path) for path in parts.part_paths(tmp_path / "calls")] == [1, 2, 5]


def test_parts_are_read_in_the_order_they_were_sealed_without_hidden_files_and_copies(tmp_path: Path) -> None:
    for number in (10, 9):
        parts.write_part(parts.results_frame([result(number)]), tmp_path, number)
    (tmp_path / ".part-000011.parquet.tmp").write_bytes(b"half")
    for name in ("part-000010 (copy).parquet", "part-10.parquet", "part-old.parquet"):
        shutil.copy(parts.part_path(tmp_path, 10), tmp_path / name)
    assert parts.newest(tmp_path) == 10
    assert [frame["row"].to_list() for frame in parts.read_parts(tmp_path, ("row",))] == [[9], [10]]
    assert list(parts.read_parts(tmp_path / "missing", ("row",))) == []


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "footer", "other columns"])
def test_a_damaged_part_is_named(tmp_path: Path, damage: str) -> None:
    parts.write_part(FRAME, tmp_path, 1)
    parts.write_part(FRAME, tmp_path, 2)
    path = tmp_path / "part-000002.parquet"
    whole = path.read_bytes()
    if damage == "other columns":
        pl.DataFrame({"other": [1]}).write_parquet(path)
    else:
        contents = {"empty": b"", "cut": whole[:-100], "garbage": b"garbage", "footer": whole[:-20] + b"\xff" * 20}
        path.write_bytes(contents[damage])
    reading = parts.read_parts(tmp_path, ("row", "status"))
    assert next(reading).height == 2
    with pytest.raises(RunStateError) as caught:
        next(reading)
    assert caught.value.message.startswith(f"{path} is damaged\n")
    assert "backup" in caught.value.hint


ABSURD: dict[str, dict[str, Any]] = {
    "99999999999999 tokens": {"usage": Usage(99_999_999_999_999, 0, 34), "cost_usd": Decimal("24999999.99")},
    "more than 64 bits": {"usage": Usage(12, 10**30, -(10**30))},
    "no number": {"cost_usd": Decimal("NaN")},
    "endless": {"cost_usd": Decimal("Infinity"), "latency_s": float("inf")},
    "a debt": {"cost_usd": Decimal("-1e30")},
    "attempts": {"attempts": 2**40, "rate_limited": 2**40},
    "no time": {"latency_s": float("nan"), "finished_at": float("nan")},
    "far future": {"finished_at": 1e300},
    "before time": {"finished_at": -1e300},
    "half a character": {"text": "\ud83d", "model": "\udfff", "error": "\ud83d", "response_id": "\ud83d"},
}


@pytest.mark.case("R11")
@pytest.mark.parametrize("how", ABSURD)
def test_an_absurd_value_is_kept_at_the_edge_and_costs_no_other_row(tmp_path: Path, how: str) -> None:
    """Now, and at the next start from the journal."""
    directory = tmp_path / "notes"
    with killed(directory) as store:
        answer(store, 0)
        store.append_call(prompt(1), MODEL, replace(paid("text"), **ABSURD[how]))
        fields = {name: value for name, value in ABSURD[how].items() if name in ("usage", "cost_usd", "attempts")}
        store.append_result(result(1, response=ABSURD[how].get("text", "text"), **fields))
        answer(store, 2)
    with opened(directory) as store:
        assert [store.outcomes.done(row) for row in range(3)] == [True] * 3
        store.spent_usd()
    calls, results = sealed(directory, "calls"), sealed(directory, "results")
    assert calls["row"].to_list() == results["row"].to_list() == [0, 1, 2]
    assert calls["latency_s"].is_finite().all() and calls["finished_at"].null_count() == 0
    plain = calls.filter(pl.col("row") != 1)
    assert plain["cost_usd"].to_list() == [CENT, CENT] and not plain["usage_estimated"].any()
    if how in ("99999999999999 tokens", "more than 64 bits", "no number", "endless", "a debt"):
        assert calls.filter(row=1)["usage_estimated"].item()
    report.summarize(directory)


@pytest.mark.case("R11")
def test_a_journal_that_could_not_be_sealed_before_can_be_now(tmp_path: Path) -> None:
    """As a version without this left it: six rows, of which one says 99999999999999 tokens."""
    directory = tmp_path / "notes"
    with killed(directory) as store:
        for row in range(6):
            usage = Usage(99_999_999_999_999 if row == 3 else 12, 0, 34)
            store.append_call(prompt(row), MODEL, paid(usage=usage, cost_usd=usage.input_tokens * Decimal("2.5e-7")))
            store.append_result(result(row, usage=usage))
    with opened(directory):
        pass
    assert sealed(directory, "results")["input_tokens"].to_list() == [12, 12, 12, 99_999_999_999_999, 12, 12]


@pytest.mark.parametrize("kind", ["calls", "results"])
def test_parts_of_an_older_version_lack_columns_that_are_empty_then(tmp_path: Path, kind: str) -> None:
    """Runs go on that an older version began: it knew neither what a call may have cost nor estimates of rows."""
    if kind == "calls":
        frame = parts.calls_frame([call(prompt(0), paid())], {}).drop("at_most_usd", "worst_usd")
        added = {"at_most_usd": Decimal(0), "worst_usd": None}
    else:
        frame = parts.results_frame([result(0)]).drop("usage_estimated")
        added = {"usage_estimated": None}
    parts.write_part(frame, tmp_path, 1)
    path = parts.part_path(tmp_path, 1)
    [row] = parts.read_part(path, ("row", *added)).rows(named=True)
    assert row == {"row": 0, **added}
    with pytest.raises(RunStateError):
        parts.read_part(path, ("row", "unheard_of"))


def test_a_part_that_one_may_not_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As polars tells it to anybody but root."""
    parts.write_part(FRAME, tmp_path, 1)
    path = parts.part_path(tmp_path, 1)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(f"Permission denied (os error 13): {path}")

    monkeypatch.setattr(pl, "scan_parquet", refuse)
    with pytest.raises(RunStateError, match="cannot be read: permission denied"):
        parts.read_part(path, ["row"])
