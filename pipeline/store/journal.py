"""Append-only files of JSON lines: what was paid for since the last seal.

A line is in the hands of the operating system before the next request is sent, so SIGKILL loses nothing that was
appended; `sync` makes it survive power loss as well. A torn last line is dropped when the file is read.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from pipeline.errors import RunStateError
from pipeline.records import Prompt, Reply, Result, Usage

_USAGE = tuple(field.name for field in fields(Usage))


class Call(NamedTuple):
    """One reply as it is kept, without its body, and where it belongs; `line` is its journal line, to copy it on."""

    row: int
    key: str
    step: str
    level: int
    chunk: int
    chunks: int
    fingerprint: str
    input_tokens_est: int
    reply: Reply
    paid: bool
    line: bytes


class Sent(NamedTuple):
    """A request that left, as it is kept until its reply or failure follows."""

    fingerprint: str
    row: int
    model: str
    input_tokens_est: int
    max_output_tokens: int | None


class Ended(NamedTuple):
    """A request that came back without an answer: it is in flight no more."""

    fingerprint: str


class Journal:
    """One journal file, open for appending. Raises `RunStateError` when the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._refused(error) from None
        self.size = os.fstat(self._fd).st_size
        self._synced = self.size

    def append(self, line: bytes) -> None:
        """Hand one line, newline included, to the operating system."""
        try:
            written = os.write(self._fd, line)
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError as error:
            os.ftruncate(self._fd, self.size)
            raise self._refused(error) from None
        self.size += len(line)

    def sync(self) -> None:
        """Force what was appended to the disk; nothing to do when nothing was."""
        size = self.size
        if size != self._synced:
            try:
                getattr(os, "fdatasync", os.fsync)(self._fd)  # macOS has only the latter
            except OSError as error:
                raise self._refused(error) from None
            self._synced = size

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            os.close(self._fd)

    def _refused(self, error: OSError) -> RunStateError:
        return RunStateError(
            f"cannot write {self.path}: {error.strerror}\nEverything before this answer is safe.",
            "make room, then run the same command again",
        )


def call_line(prompt: Prompt, reply: Reply) -> bytes:
    """The journal line of one reply. A readable body is kept as it came; an unreadable one as text."""
    record: dict[str, Any] = {
        "call": {
            "row": prompt.row,
            "key": prompt.key,
            "step": prompt.step,
            "level": prompt.level,
            "chunk": prompt.chunk,
            "chunks": prompt.chunks,
            "fingerprint": prompt.fingerprint,
            "input_tokens_est": prompt.input_tokens_est,
            "endpoint": reply.endpoint,
            "latency_s": reply.latency_s,
            "attempts": reply.attempts,
            "rate_limited": reply.rate_limited,
            "finished_at": reply.finished_at,
            "model": reply.model,
            "usage": _usage_fields(reply.usage),
            "cost_usd": None if reply.cost_usd is None else str(reply.cost_usd),
        }
    }
    call = record["call"]
    if not reply.raw:
        call["failure"] = [reply.status, reply.error_kind, reply.error]
    elif reply.error_kind == "malformed_reply":
        call["raw_text"] = reply.raw.decode("utf-8", "replace")
    else:
        # Line breaks inside JSON strings are always escaped: the bare ones are only layout.
        call["raw"] = orjson.Fragment(reply.raw.replace(b"\n", b" ").replace(b"\r", b" "))
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def sent_line(sent: Sent) -> bytes:
    """The journal line of a request that is about to leave."""
    return orjson.dumps({"sent": tuple(sent)}, option=orjson.OPT_APPEND_NEWLINE)


def ended_line(fingerprint: str) -> bytes:
    """The journal line of a request that came back without an answer."""
    return orjson.dumps({"ended": fingerprint}, option=orjson.OPT_APPEND_NEWLINE)


def result_line(result: Result) -> bytes:
    """The journal line of one document's outcome."""
    record = {
        "row": result.row,
        "key": result.key,
        "status": result.status,
        "response": result.response,
        "error_kind": result.error_kind,
        "error": result.error,
        "finish_reason": result.finish_reason,
        "model": result.model,
        "usage": _usage_fields(result.usage),
        "input_tokens_est": result.input_tokens_est,
        "cost_usd": None if result.cost_usd is None else str(result.cost_usd),
        "calls": result.calls,
        "chunks": result.chunks,
        "attempts": result.attempts,
        "rate_limited": result.rate_limited,
        "latency_s": result.latency_s,
        "finished_at": result.finished_at,
        "changes": result.changes,
    }
    return orjson.dumps({"result": record}, option=orjson.OPT_APPEND_NEWLINE)


def read(path: Path, parse: Callable[[bytes], Reply]) -> Iterator[Call | Result | Sent | Ended]:
    """The records of a journal, replies read again by the provider's `parse`. A torn last line is left out.

    Raises `RunStateError` for a damaged line that is not the last: then the disk, not a crash, is the cause.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _record(line, parse)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
                if not file.read(1):
                    return
                raise RunStateError(
                    f"line {number} of {path} is damaged: the disk or another program changed it",
                    "remove that line to go on without it: its call will be bought again, and nothing else",
                ) from None


def kept(prompt: Prompt, reply: Reply, line: bytes) -> Call:
    """What is remembered of a reply that was just appended as `line`."""
    return Call(
        prompt.row,
        prompt.key,
        prompt.step,
        prompt.level,
        prompt.chunk,
        prompt.chunks,
        prompt.fingerprint,
        prompt.input_tokens_est,
        replace(reply, raw=reply.raw if reply.error_kind == "malformed_reply" else b""),
        bool(reply.raw),
        line,
    )


def _record(line: bytes, parse: Callable[[bytes], Reply]) -> Call | Result | Sent | Ended:
    record = orjson.loads(line)
    if "sent" in record:
        return Sent(*record["sent"])
    if "ended" in record:
        return Ended(record["ended"])
    return _read_call(record["call"], line, parse) if "call" in record else _read_result(record["result"])


def _read_call(record: dict[str, Any], line: bytes, parse: Callable[[bytes], Reply]) -> Call:
    if "failure" in record:
        status, kind, error = record["failure"]
        reply = Reply("", status, error_kind=kind, error=error)
    else:
        raw = orjson.dumps(record["raw"]) if "raw" in record else record["raw_text"].encode()
        reply = parse(raw)
    cost = record["cost_usd"]
    reply = replace(
        reply,
        raw=reply.raw if reply.error_kind == "malformed_reply" else b"",
        usage=Usage(**record["usage"]),
        model=record["model"],
        endpoint=record["endpoint"],
        latency_s=record["latency_s"],
        attempts=record["attempts"],
        rate_limited=record["rate_limited"],
        finished_at=record["finished_at"],
        cost_usd=None if cost is None else Decimal(cost),
    )
    return Call(
        record["row"],
        record["key"],
        record["step"],
        record["level"],
        record["chunk"],
        record["chunks"],
        record["fingerprint"],
        record["input_tokens_est"],
        reply,
        "failure" not in record,
        line,
    )


def _read_result(record: dict[str, Any]) -> Result:
    cost, finished = record["cost_usd"], record["finished_at"]
    return Result(
        **{
            **record,
            "usage": Usage(**record["usage"]),
            "cost_usd": None if cost is None else Decimal(cost),
            "finished_at": None if finished is None else datetime.fromisoformat(finished),
        }
    )


def _usage_fields(usage: Usage) -> dict[str, int]:
    return {name: getattr(usage, name) for name in _USAGE}
