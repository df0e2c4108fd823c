import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from asking import MODEL
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stores import body, failed, paid, prompt, result

from pipeline.errors import RunStateError
from pipeline.providers.stored import parse_stored
from pipeline.records import Reply, Result, Usage
from pipeline.store.journal import Journal, Whose, journal_path, newest_answer, read
from pipeline.store.lines import Call, Ended, Sent, call_line, ended_line, kept, result_line, sent_line

PLAIN = Whose("")
UNICODE = '第一行\n第二行 😀 "quoted" \\ \u2028\u2029\u0000\u0085'


def written(path: Path, *lines: bytes) -> list[Call | Result | Sent | Ended]:
    path.write_bytes(b"".join(lines))
    return list(read(path, parse_stored, PLAIN))


def round_trip(tmp_path: Path, reply: Reply) -> tuple[Call, Call]:
    """A call as it is remembered, and as it is read back."""
    asked = prompt(7, step="map", level=0, chunk=2, chunks=5)
    line = call_line(asked, MODEL, reply)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    [read_back] = written(tmp_path / "journal", line)
    assert isinstance(read_back, Call)
    return kept(asked, MODEL, reply, line), read_back


# ---- what is written is what is read


@pytest.mark.parametrize(
    "reply",
    [
        paid(),
        paid(UNICODE),
        paid(""),
        paid("cut", raw=body("cut", "MAX_TOKENS")),
        paid("", raw=body("", "SAFETY")),
        paid(UNICODE, raw=body(UNICODE, indent=True)),
        paid(raw=body(UNICODE, indent=True).replace(b"\n", b"\r\n") + b"\r\n"),
        paid(cost_usd=None),
        paid(cost_usd=Decimal("0.000000012345")),
        paid(usage=Usage(1, 2, 3, 4, 5, estimated=True), attempts=3, rate_limited=2),
        paid(lane="flex", cost_usd=Decimal("0.00005"), standard_usd=Decimal("0.0001")),
        paid(fell_back="last_call"),
        paid(raw=b"<html>\r\n<body>no JSON\n</body>"),
        paid(raw=b'{"candidates": [\n{"finishReason": "OTHER"}]}'),
        paid(raw='["嵌套", "😀"]'.encode()),
        failed(),
        failed("quota", rate_limited=9),
        replace(failed("too_long"), error="第一行 😀"),
    ],
    ids=lambda reply: f"{reply.error_kind or reply.status}-{len(reply.raw)}",
)
def test_a_call_is_read_back_as_it_is_remembered(tmp_path: Path, reply: Reply) -> None:
    remembered, read_back = round_trip(tmp_path, reply)
    assert read_back == remembered
    assert remembered.reply == replace(reply, raw=reply.raw if reply.error_kind == "malformed_reply" else b"")
    assert read_back.paid == bool(reply.raw)


@pytest.mark.case("D13")
def test_an_unreadable_reply_keeps_its_body_byte_for_byte(tmp_path: Path) -> None:
    reply = paid(raw=b"\xff\xfe garbage \x00\n\n of a relay")
    _, read_back = round_trip(tmp_path, reply)
    assert (read_back.paid, read_back.reply.error_kind) == (True, "malformed_reply")
    assert read_back.reply.raw == reply.raw


def test_the_body_of_a_response_stands_in_its_line_as_it_came() -> None:
    raw = body("text", indent=True)
    assert orjson.loads(call_line(prompt(0), MODEL, paid(raw=raw)))["call"]["body"] == raw.decode()


@pytest.mark.case("D6")
@pytest.mark.parametrize("depth", [300, 1000, 5000])
def test_a_body_nested_deep_in_a_field_that_nobody_reads_is_read_back(tmp_path: Path, depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    remembered, read_back = round_trip(tmp_path, paid(raw=body("text")[:-1] + b',"deep":' + deep + b"}"))
    assert read_back == remembered


@pytest.mark.case("D13")
@pytest.mark.parametrize(
    "raw", [body("text \xff".encode("latin-1").decode("latin-1")), body("a").replace(b"a", b"\xff")]
)
@pytest.mark.parametrize("status", ["ok", "error"])
def test_what_was_decided_when_a_reply_came_is_what_is_read_back(tmp_path: Path, raw: bytes, status: str) -> None:
    """Whatever `parse` makes of the body later: another version may read it differently."""
    kind = None if status == "ok" else "malformed_reply"
    reply = paid(raw=raw, status=status, error_kind=kind, finish_reason="ODD", error=kind, response_id="r")
    line = call_line(prompt(0), MODEL, reply)
    path = tmp_path / "journal"
    path.write_bytes(line)
    [read_back] = read(path, lambda raw, endpoint: Reply("", "blocked", error_kind="answer_blocked", error="no"), PLAIN)
    assert isinstance(read_back, Call)
    decided = (read_back.reply.status, read_back.reply.error_kind, read_back.reply.finish_reason, read_back.reply.error)
    assert decided == (status, kind, "ODD", kind)
    assert (read_back.reply.usage, read_back.reply.response_id) == (reply.usage, "r")


@pytest.mark.case("R11")
def test_what_no_line_can_hold_is_held_at_its_edge(tmp_path: Path) -> None:
    odd = paid(usage=Usage(10**30, 0, -(10**30)), error="half \ud83d", model="m\udfff", latency_s=float("nan"))
    _, read_back = round_trip(tmp_path, odd)
    assert read_back.reply.usage == Usage(2**63 - 1, 0, -(2**63), estimated=True)
    assert (read_back.reply.error, read_back.reply.model) == ("half ?", "m?")
    [outcome] = written(tmp_path / "journal", result_line(result(0, response="half \ud83d", attempts=10**20)))
    assert isinstance(outcome, Result) and (outcome.response, outcome.attempts) == ("half ?", 2**63 - 1)


def test_neither_prompt_text_nor_template_stands_in_the_journal() -> None:
    assert b"what is sent" not in call_line(prompt(0), MODEL, paid()) + call_line(prompt(0), MODEL, failed())


@pytest.mark.parametrize(
    "outcome",
    [
        result(0),
        result(3, "truncated", "truncated", response=UNICODE, finish_reason="MAX_TOKENS", model="m"),
        result(2**40, "error", "server", cost_usd=None, finished_at=None, usage=Usage(1, 2, 3, 4, 5, True)),
        result(1, "blocked", "prompt_blocked", response=None, cost_usd=Decimal("1E-9"), latency_s=0.1),
    ],
    ids=lambda outcome: outcome.status,
)
def test_a_result_is_read_back_equal(tmp_path: Path, outcome: Result) -> None:
    assert written(tmp_path / "journal", result_line(outcome)) == [outcome]


@given(
    text=st.text(st.characters(codec="utf-8")),
    cost=st.none() | st.decimals(0, 1000, places=12),
    counts=st.tuples(*[st.integers(0, 10**9)] * 5),
    layout=st.sampled_from([b"", b"\n", b"\r\n", b" \t\r"]),
)
@settings(max_examples=60, deadline=None)
def test_any_text_any_usage_and_any_layout_survive(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    cost: Decimal | None,
    counts: tuple[int, int, int, int, int],
    layout: bytes,
) -> None:
    reply = paid(cost_usd=cost, raw=layout + body(text, indent=True) + layout, usage=Usage(*counts))
    remembered, read_back = round_trip(tmp_path_factory.mktemp("any"), reply)
    assert read_back == remembered
    assert (read_back.reply.text, read_back.reply.cost_usd) == (text, cost)


def test_a_request_that_left_and_one_that_came_back_are_read_back_equal(tmp_path: Path) -> None:
    sent = Sent("f0", 7, "gemini-3.5-flash-lite", 1200, 800)
    assert written(tmp_path / "journal", sent_line(sent), ended_line("f0")) == [sent, Ended("f0")]


# ---- torn and damaged files

LINES = (
    call_line(prompt(0), MODEL, paid(UNICODE)),
    result_line(result(0, response=UNICODE)),
    call_line(prompt(1), MODEL, failed()),
    call_line(prompt(2), MODEL, paid(raw=b"<p>\n</p>")),
    result_line(result(1, "error", "server")),
    sent_line(Sent("content 3", 3, "gemini-3.5-flash-lite", 10, None)),
    ended_line("content 3"),
)
WHOLE = b"".join(LINES)


@given(st.integers(0, len(WHOLE)))
@settings(max_examples=150, deadline=None)
def test_any_prefix_of_a_journal_has_every_complete_line(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "prefix.jsonl"
    complete = WHOLE[:size].count(b"\n")
    assert written(path, WHOLE[:size]) == written(path, *LINES[:complete])


@pytest.mark.parametrize(
    "damaged",
    [
        b"\n",
        b"\0" * 64 + b"\n",
        b"{}\n",
        b"1\n",
        b'"call"\n',
        b'{"call": {"row": 1}}\n',
        b"\xff\n",
        LINES[0].replace(b'"usage":{"input_tokens"', b'"usage":{"inputXtokens"'),
        LINES[0].replace(b'"cost_usd":"0.01"', b'"cost_usd":"0.x1"'),
        LINES[1].replace(b'"response"', b'"respnose"'),
        LINES[1].replace(b'"finished_at":"2026', b'"finished_at":"Z026'),
        LINES[2].replace(b'"failure":["error",', b'"failure":["error"],"x":[1,'),
    ],
)
def test_a_damaged_line_in_the_middle_is_told_with_its_number(tmp_path: Path, damaged: bytes) -> None:
    assert damaged not in LINES
    with pytest.raises(RunStateError) as caught:
        written(tmp_path / "journal-000001.jsonl", LINES[0], damaged, LINES[1])
    assert "line 2 of" in caught.value.message and "journal-000001.jsonl is damaged" in caught.value.message
    assert "remove that line" in caught.value.hint


def test_a_last_line_of_garbage_is_dropped_like_a_torn_one(tmp_path: Path) -> None:
    assert len(written(tmp_path / "journal", LINES[0], b"\0\0\0\0\n")) == 1


@given(place=st.integers(0, len(LINES[0] + LINES[1]) - 1), value=st.integers(0, 255))
@example(place=LINES[0].index(b"gemini@"), value=ord("G"))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_read_or_refused_but_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    changed = bytearray(WHOLE)
    changed[place] = value
    path = tmp_path_factory.getbasetemp() / "changed.jsonl"
    try:
        assert len(written(path, bytes(changed))) in range(len(LINES) + 2)
    except RunStateError as error:  # without a checksum another provider's name may be one of a newer version
        assert "is damaged" in error.message or "does not speak its protocol" in error.message


# ---- whose a journal is, and that it is whole

RUN, OTHER = Whose("0" * 31 + "a"), Whose("0" * 31 + "b")


def kept_by(directory: Path, whose: Whose = RUN, lines: Iterable[bytes] = LINES, number: int = 3) -> Path:
    """A journal as a run writes it."""
    directory.mkdir(exist_ok=True)
    journal = Journal(journal_path(directory, number), whose.run, lines)
    journal.close()
    return journal.path


def read_all(path: Path, whose: Whose = RUN) -> list[object]:
    return list(read(path, parse_stored, whose))


def refusal(path: Path, whose: Whose = RUN) -> RunStateError:
    with pytest.raises(RunStateError) as caught:
        read_all(path, whose)
    return caught.value


def test_who_looks_on_sees_the_newest_row_whatever_comes_after_it(tmp_path: Path) -> None:
    assert newest_answer(tmp_path) is None
    rows = [replace(result(row), key=f"k{row}", response=f"text {row}") for row in range(3)]
    path = kept_by(tmp_path, lines=[*map(result_line, rows), ended_line("0" * 32)])
    assert newest_answer(tmp_path) == (2, "k2", "text 2")
    with path.open("ab") as file:
        file.write(b'{"result":{"row":3,"key":"k3","resp')
    assert newest_answer(tmp_path) == (2, "k2", "text 2")
    with path.open("ab") as file:
        file.write(b"\n" + result_line(replace(result(4), status="error", response=None)))
    assert newest_answer(tmp_path) == (2, "k2", "text 2"), "a row without an answer is none"
    path.unlink()
    assert newest_answer(tmp_path) is None


def test_a_journal_is_json_lines_whose_last_field_is_a_checksum(tmp_path: Path) -> None:
    path = kept_by(tmp_path)
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert lines[0]["journal"] == {"run": RUN.run, "number": 3}
    assert [next(iter(line)) for line in lines[1:]] == ["call", "result", "call", "call", "result", "sent", "ended"]
    assert all(list(line)[-1] == "crc" for line in lines)
    assert read_all(path) == written(tmp_path / "plain", *LINES)


@pytest.mark.case("D12")
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_is_never_taken_for_an_answer(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    path = kept_by(tmp_path_factory.mktemp("flip"))
    content = bytearray(path.read_bytes())
    at = place % len(content)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    if at == len(content) - 1:  # the newline of the last line: what it says is whole
        assert read_all(path) == written(path.parent / "plain", *LINES)
        return
    error = refusal(path)
    number = path.read_bytes()[: at + (content[at] == 10)].count(b"\n") + (content[at] != 10)
    assert f"line {number} of {path} is damaged" in error.message or (number == 1 and "another run" in error.message)
    assert "Nothing was bought" in error.message or "nothing was bought" in error.message


@pytest.mark.case("D12")
@pytest.mark.parametrize(
    ("line", "told", "hint"),
    [
        (0, "It says whose journal it is", "nothing is lost"),
        (1, "It says a reply that was paid for (row 0, counted from 0)", "its call will be bought again"),
        (2, "It says the outcome of a row (row 0, counted from 0)", "put together again"),
        (6, "It says that a request left", "not counted"),
    ],
)
def test_a_changed_line_is_named_with_what_is_lost_and_can_be_taken_out(
    tmp_path: Path, line: int, told: str, hint: str
) -> None:
    path = kept_by(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:line], lines[line].replace(b'"crc":"', b'"crc":"0', 1), *lines[line + 1 :]]))
    error = refusal(path)
    assert f"line {line + 1} of {path} is damaged" in error.message and told in error.message and hint in error.hint
    path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    assert len(read_all(path)) == len(LINES) - (line > 0)


@pytest.mark.case("D12")
@given(st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_any_prefix_of_a_journal_with_checksums_has_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    path = kept_by(tmp_path_factory.mktemp("prefix"))
    content = path.read_bytes()
    size %= len(content) + 1
    path.write_bytes(content[:size])
    whole = content[: size + 1].count(b"\n")  # without its newline a line is whole
    assert len(read_all(path)) == max(0, whole - 1)


def test_zeros_that_a_power_cut_left_at_the_end_are_dropped(tmp_path: Path) -> None:
    path = kept_by(tmp_path)
    whole = path.read_bytes()
    for tail in (b"\0" * 100, b'{"call":{"row"' + b"\0" * 100 + b"\n"):
        path.write_bytes(whole + tail)
        assert len(read_all(path)) == len(LINES)


@pytest.mark.case("D12")
def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    for foreign in (kept_by(tmp_path / "other", OTHER), kept_by(tmp_path / "blank", OTHER, ())):
        error = refusal(foreign)
        assert f"{foreign} belongs to another run" in error.message and "move it out" in error.hint
    plain = journal_path(tmp_path, 4)
    plain.write_bytes(WHOLE)  # of a version without checksums
    assert f"{plain} belongs to another run" in refusal(plain).message
    assert len(read_all(plain, Whose(RUN.run, 4))) == len(LINES)
    assert "belongs to another run" in refusal(kept_by(tmp_path / "newer"), PLAIN).message


@pytest.mark.case("D12")
def test_a_line_of_another_run_within_ours_is_damaged(tmp_path: Path) -> None:
    theirs = kept_by(tmp_path / "other", OTHER).read_bytes().splitlines(keepends=True)
    path = kept_by(tmp_path)
    ours = path.read_bytes()
    path.write_bytes(ours + theirs[1])
    assert f"line {len(LINES) + 2} of" in refusal(path).message
    path.write_bytes(ours + b"".join(theirs))
    assert f"line {len(LINES) + 2} of" in refusal(path).message


@pytest.mark.case("D12")
def test_a_renamed_journal_is_told(tmp_path: Path) -> None:
    path = kept_by(tmp_path).rename(journal_path(tmp_path, 9))
    error = refusal(path)
    assert f"{path} was journal 3 of this run" in error.message and "its name" in error.hint


# ---- appending


def full_after(allowed: int, error: int = errno.ENOSPC) -> Callable[[int, Any], int]:
    """`os.write` on a disk with room for so many bytes, at most 100 of them at once."""
    write, left = os.write, allowed

    def limited(fd: int, data: Any) -> int:
        nonlocal left
        if not left:
            raise OSError(error, os.strerror(error))
        done = write(fd, bytes(data)[: min(left, 100)])
        left -= done
        return done

    return limited


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", full_after(10**9))
    journal = Journal(journal_path(tmp_path, 3), RUN.run)
    for line in LINES:
        journal.append(line)
    journal.close()
    assert journal.path.read_bytes() == kept_by(tmp_path / "whole").read_bytes()
    assert journal.size == journal.path.stat().st_size


@pytest.mark.parametrize("room", [0, 1, 150])
def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    journal = Journal(journal_path(tmp_path, 3), RUN.run)
    journal.append(LINES[0])
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full_after(room))
        with pytest.raises(RunStateError) as caught:
            journal.append(LINES[1])
    assert caught.value.message == (
        f"cannot write {journal.path}: No space left on device\nEverything before this answer is safe."
    )
    assert "make room" in caught.value.hint
    assert journal.path.read_bytes() == kept_by(tmp_path / "other", RUN, LINES[:1]).read_bytes()
    journal.append(LINES[2])
    journal.close()
    assert read_all(journal.path) == written(tmp_path / "other" / "plain", LINES[0], LINES[2])


@pytest.mark.case("D11")
def test_half_a_line_that_cannot_be_taken_back_at_once_is_taken_back_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(journal_path(tmp_path, 3), RUN.run)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full_after(50))
        patched.setattr(os, "ftruncate", refuse)
        with pytest.raises(RunStateError, match="No space left"):
            journal.append(LINES[0])
        patched.setattr(os, "write", full_after(10**9))
        with pytest.raises(RunStateError, match="Input/output error"):
            journal.append(LINES[1])
    journal.append(LINES[2])
    journal.close()
    assert read_all(journal.path) == written(tmp_path / "plain", LINES[2])


def test_a_disk_that_refuses_the_sync_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(journal_path(tmp_path, 3), RUN.run)
    journal.append(LINES[0])

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        with pytest.raises(RunStateError, match="Input/output error"):
            journal.sync()
    journal.close()


def test_a_journal_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match=r"cannot write .*journal: "):
        Journal(tmp_path / "missing" / "journal", "")


def test_sync_touches_the_disk_only_when_something_was_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    journal = Journal(journal_path(tmp_path, 3), RUN.run)
    journal.sync()
    assert synced, "the first line"
    synced.clear()
    journal.sync()
    assert not synced
    journal.append(LINES[0])
    journal.sync()
    journal.sync()
    assert len(synced) == 1
    journal.close()
    assert len(synced) == 1


def test_an_appended_line_is_in_the_file_before_any_sync_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    journal = Journal(journal_path(tmp_path, 3), RUN.run)
    journal.append(LINES[0])
    assert len(read_all(journal.path)) == 1
    assert journal.path.stat().st_mode & 0o777 == 0o600
    journal.close()


# ---- a journal that is not in its place any more


@pytest.mark.case("D11")
@pytest.mark.parametrize("how", ["removed", "moved", "replaced", "its directory moved"])
def test_a_journal_that_nobody_would_find_is_told_by_its_next_sync(tmp_path: Path, how: str) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    journal = Journal(journal_path(directory, 1), "r")
    journal.sync()
    match how:
        case "removed":
            journal.path.unlink()
        case "moved":
            journal.path.rename(tmp_path / "elsewhere")
        case "replaced":
            (tmp_path / "copy").write_bytes(journal.path.read_bytes())
            (tmp_path / "copy").rename(journal.path)
        case _:
            directory.rename(tmp_path / "another")
    with pytest.raises(RunStateError, match=r"journal-000001\.jsonl was removed, moved or replaced") as told:
        journal.sync()
    assert told.value.exit_code == 3
