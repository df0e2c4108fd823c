import errno
import os
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import body, failed, paid, prompt, result

from pipeline.errors import RunStateError
from pipeline.providers.gemini import parse_reply
from pipeline.records import Reply, Result, Usage
from pipeline.store.journal import Call, Ended, Journal, Sent, call_line, ended_line, kept, read, result_line, sent_line

UNICODE = '第一行\n第二行 😀 "quoted" \\ \u2028\u2029\u0000\u0085'


def written(path: Path, *lines: bytes) -> list[Call | Result]:
    path.write_bytes(b"".join(lines))
    return list(read(path, parse_reply))


def round_trip(tmp_path: Path, reply: Reply) -> tuple[Call, Call]:
    """A call as it is remembered, and as it is read back."""
    asked = prompt(7, step="map", level=0, chunk=2, chunks=5)
    line = call_line(asked, reply)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    [read_back] = written(tmp_path / "journal", line)
    assert isinstance(read_back, Call)
    return kept(asked, reply, line), read_back


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


def test_an_unreadable_reply_keeps_its_body_even_where_it_is_not_utf8(tmp_path: Path) -> None:
    reply = paid(raw=b"\xff\xfe garbage \x00\n\n of a relay")
    _, read_back = round_trip(tmp_path, reply)
    assert (read_back.paid, read_back.reply.error_kind) == (True, "malformed_reply")
    assert read_back.reply.raw == "\ufffd\ufffd garbage \x00\n\n of a relay".encode()


def test_the_body_of_a_response_stands_in_its_line_as_it_came() -> None:
    line = call_line(prompt(0), paid(raw=body("text", indent=True)))
    assert orjson.loads(line)["call"]["raw"] == orjson.loads(body("text"))
    assert orjson.loads(line)["call"]["raw"]["responseId"] == "r-1"


def test_neither_prompt_text_nor_template_stands_in_the_journal() -> None:
    assert b"what is sent" not in call_line(prompt(0), paid()) + call_line(prompt(0), failed())


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
    counts: tuple[int, ...],
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
    call_line(prompt(0), paid(UNICODE)),
    result_line(result(0, response=UNICODE)),
    call_line(prompt(1), failed()),
    call_line(prompt(2), paid(raw=b"<p>\n</p>")),
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
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_read_or_refused_but_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    changed = bytearray(WHOLE)
    changed[place] = value
    path = tmp_path_factory.getbasetemp() / "changed.jsonl"
    try:
        assert len(written(path, bytes(changed))) in range(len(LINES) + 2)
    except RunStateError as error:
        assert "is damaged" in error.message


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
    journal = Journal(tmp_path / "journal")
    for line in LINES:
        journal.append(line)
    journal.close()
    assert (tmp_path / "journal").read_bytes() == WHOLE
    assert journal.size == len(WHOLE)


@pytest.mark.parametrize("room", [0, 1, 150])
def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(LINES[0])
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full_after(room))
        with pytest.raises(RunStateError) as caught:
            journal.append(LINES[1])
    assert caught.value.message == (
        f"cannot write {tmp_path / 'journal'}: No space left on device\nEverything before this answer is safe."
    )
    assert "make room" in caught.value.hint
    assert journal.path.read_bytes() == LINES[0]
    journal.append(LINES[2])
    journal.close()
    assert list(read(journal.path, parse_reply)) == written(tmp_path / "other", LINES[0], LINES[2])


def test_a_disk_that_refuses_the_sync_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
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
        Journal(tmp_path / "missing" / "journal")


def test_sync_touches_the_disk_only_when_something_was_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    journal = Journal(tmp_path / "journal")
    journal.sync()
    assert not synced
    journal.append(LINES[0])
    journal.sync()
    journal.sync()
    assert len(synced) == 1
    journal.close()
    assert len(synced) == 1


def test_an_appended_line_is_in_the_file_before_any_sync_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(LINES[0])
    assert journal.path.read_bytes() == LINES[0]
    assert journal.path.stat().st_mode & 0o777 == 0o600
    journal.close()
