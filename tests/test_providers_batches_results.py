"""Results of Gemini's batches: whole on the disk or not at all, and each line what a live response would be."""

import errno
import gzip
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from batch_bodies import ANSWER, DONE, ITEMS, KEY, MODEL, NAME, PENDING, RESULTS, Handler, saying, state, using
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.providers.batches import disk
from pipeline.providers.batches.base import BATCH_STATUSES, Batches, RemoteBatch, RemoteFile
from pipeline.providers.gemini import GeminiConnection
from pipeline.providers.stored import parse_stored
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Reply


@pytest.fixture(autouse=True)
def brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WAITS_S", (0.0,) * 4)


class Body(httpx.AsyncByteStream):
    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def download(*answers: httpx.Response | None) -> tuple[Handler, list[str]]:
    """A service that gives one answer after the other; None: the connection breaks."""
    left, asked = iter(answers), list[str]()

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        answer = next(left)
        if answer is None:
            raise httpx.ReadError("gone")
        return answer

    return handler, asked


LINES = b"".join(orjson.dumps({"key": str(n), "response": ANSWER}) + b"\n" for n in range(500))
BATCH = RemoteBatch(NAME, "x", None, "succeeded", outputs=(RESULTS,))


def fetch(path: Path, *answers: httpx.Response | None, batch: RemoteBatch = BATCH) -> tuple[Failure | None, int]:
    handler, asked = download(*answers)
    failure = using(handler, lambda batches: batches.fetch(batch, path))
    place = "http://emulator/download/v1beta/files/batch-3a96ht58d9rd3fci7tg3qlrhlfawe5ykp6ge:download?alt=media"
    assert set(asked) <= {place}
    return failure, len(asked)


def ok(*pieces: bytes, length: int | None = None, encoding: str = "identity") -> httpx.Response:
    length = sum(map(len, pieces)) if length is None else length
    headers = {"content-length": str(length), "content-encoding": encoding}
    return httpx.Response(200, headers=headers, stream=Body(*pieces))


def test_results_come_whole_onto_the_disk_and_into_no_others_hands(tmp_path: Path) -> None:
    path = tmp_path / "1.results.jsonl"
    cut = LINES[:70_000]
    whole = LINES[: LINES.index(b"\n") + 1]
    torn = (None, ok(cut, length=len(LINES)), ok(cut), ok(whole, length=len(LINES)))
    assert fetch(path, *torn, ok(LINES[:13], LINES[13:])) == (None, 5)
    assert path.read_bytes() == LINES and [each.name for each in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_feed_that_is_missing_at_the_end_is_added(tmp_path: Path) -> None:
    assert fetch(tmp_path / "1", ok(LINES[:-1])) == (None, 1)
    assert (tmp_path / "1").read_bytes() == LINES


def test_packed_results_are_unpacked_and_cut_ones_fetched_again(tmp_path: Path) -> None:
    packed = gzip.compress(LINES) + gzip.compress(LINES)
    for label in ("gzip", "identity"):
        answers = ok(packed[:-9], encoding=label), ok(packed[:1], packed[1:4], packed[4:], encoding=label)
        assert fetch(tmp_path / "1", *answers) == (None, 2)
        assert (tmp_path / "1").read_bytes() == LINES * 2


def test_results_that_never_come_whole_are_given_up_and_nothing_is_left(tmp_path: Path) -> None:
    for answer, kind in ((lambda: ok(LINES[:99]), "transient"), (lambda: None, "transient")):
        failure, asked = fetch(tmp_path / "1", *[answer() for _ in range(5)])
        assert isinstance(failure, Failure) and (failure.kind, asked) == (kind, 5)
    failure, asked = fetch(tmp_path / "1", httpx.Response(404, json={"error": {"code": 404, "message": "File gone"}}))
    assert isinstance(failure, Failure) and (failure.http_status, asked) == (404, 1)
    assert list(tmp_path.iterdir()) == []


def test_no_key_comes_onto_the_disk_however_it_is_cut(tmp_path: Path) -> None:
    line = b'{"key":"a","error":{"code":7,"message":"key %s refused"}}\n' % KEY.encode()
    for at in range(len(line)):
        fetch(tmp_path / "1", ok(line * 2 + line[:at], line[at:-1]))
        assert (tmp_path / "1").read_bytes() == line.replace(KEY.encode(), b"***") * 3


def test_answers_within_the_operation_become_the_same_lines(tmp_path: Path) -> None:
    batch = state("BATCH_STATE_SUCCEEDED", response=ITEMS)
    assert fetch(tmp_path / "1", batch=batch) == (None, 0)
    (line,) = (tmp_path / "1").read_bytes().splitlines(keepends=True)
    assert read(line).key == "a" and read(line).reply


def test_a_full_disk_is_no_failure_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, part: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            """Nothing."""

    def full(descriptor: int, *_: object) -> Full:
        os.close(descriptor)
        return Full()

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space") as raised:
        fetch(tmp_path / "1", ok(LINES))
    assert raised.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


# ---- a line of results


def read(line: bytes, tokens: int = 0) -> Any:
    connection = GeminiConnection(Wire(httpx.MockTransport(saying({}))), api_key=KEY, base_url="http://emulator")
    batches = connection.batches()
    assert batches
    return batches.read_line(line, MODEL, tokens)


def result(**fields: Any) -> Any:
    return read(orjson.dumps(fields) + b"\n")


def test_a_line_is_a_reply_like_any_other_and_is_read_again_as_one() -> None:
    line = result(key="a", response=ANSWER)
    assert line.key == "a" and line.failure is None and isinstance(line.reply, Reply)
    reply = line.reply
    assert (reply.text, reply.status, reply.lane, reply.latency_s, reply.model) == ("four", "ok", "batch", 0.0, MODEL)
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.endpoint) == (1427, 144, "gemini@emulator")
    again = parse_stored(line.body, reply.endpoint)
    assert (again.text, again.usage, again.status, again.finish_reason, again.raw) == (
        *(reply.text, reply.usage, reply.status, reply.finish_reason),
        line.body,
    )


def test_a_line_is_blocked_cut_or_goes_on_as_a_live_reply_does() -> None:
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 12}}
    assert result(key="a", response=blocked).reply.error_kind == "prompt_blocked"
    ends = {**ANSWER, "candidates": [{**ANSWER["candidates"][0], "finishReason": "MAX_TOKENS"}]}
    assert result(key="a", response=ends).reply.status == "truncated"
    more = [{**ANSWER["candidates"][0], "finishReason": "CONTINUATION", "continuationToken": "t"}]
    assert result(key="a", response={**ANSWER, "candidates": more}).reply.continuation == "t"


@pytest.mark.parametrize(
    ("code", "kind", "error_kind"),
    [
        (1, "transient", "server"),
        (3, "reject", "invalid_request"),
        (4, "transient", "server"),
        (5, "fatal", "invalid_request"),
        (7, "auth", "auth"),
        (8, "rate_limit", "quota"),
        (10, "transient", "server"),
        (13, "transient", "server"),
        (14, "transient", "server"),
        (16, "auth", "auth"),
        (99, "transient", "server"),
        (None, "transient", "server"),
    ],
)
def test_a_lines_error_means_what_its_code_means(code: int | None, kind: str, error_kind: str) -> None:
    line = result(key="a", error={"code": code, "message": "An internal error has occurred."})
    failure = line.failure
    assert line.key == "a" and line.reply is None
    assert (failure.kind, failure.error_kind, failure.billed) == (kind, error_kind, False)
    assert failure.message.startswith("in a batch: ") and "HTTP" not in failure.message


def test_a_lines_error_repeats_no_prompt_and_one_of_a_file_passes() -> None:
    failure = result(key="a", error={"code": 3, "message": 'Invalid value "Dear Sir, my secret is marmalade"'}).failure
    assert "marmalade" not in failure.message
    for code in (5, 7):
        told = "You do not have permission to access the File x1 or it may not exist."
        assert result(key="a", error={"code": code, "message": told}).failure.kind == "transient"
    long = result(
        key="a", error={"code": 3, "message": "The input token count exceeds the maximum number of tokens allowed (1)."}
    )
    assert long.failure.error_kind == "too_long"


def test_what_is_neither_an_answer_nor_an_error_is_missing() -> None:
    odd: list[dict[str, Any]] = [{}, {"response": None}, {"response": {}}, {"error": None}, {"error": {}}]
    for fields in (*odd, {"error": {"code": 0}}):
        line = result(key="a", **fields)
        assert (line.key, line.reply, line.failure) == ("a", None, None), fields
    assert result(custom_id="a", response=ANSWER).key is None
    assert result(metadata={"key": "a"}, response=ANSWER).key == "a"


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"[]", b'{"key":"a","response":{"cand', b"7", b"\xff\xfe", b"null", b'"a"']
)
def test_what_is_no_line_has_no_key_and_no_answer(line: bytes) -> None:
    found = read(line)
    assert found.key is None and found.reply is None and isinstance(found.failure, Failure)


def test_an_answer_beside_an_error_that_says_nothing_is_an_answer() -> None:
    assert result(key="a", response=ANSWER, error={"code": 13, "message": "x"}).reply.text == "four"
    assert result(key="a", response={"error": {"code": 503, "message": "busy"}}).failure.kind == "transient"
    unread = result(key="a", response={"what": "ever"}).failure
    assert (unread.error_kind, unread.billed, unread.raw) == ("malformed_reply", True, b'{"what":"ever"}')


# ---- whatever comes

ODD: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=5,
)
LINE: dict[str, Any] = {"key": "a", "response": ANSWER}
ERROR: dict[str, Any] = {"key": "a", "error": {"code": 13, "message": "An internal error", "status": "INTERNAL"}}
MANY = {**DONE, "response": ITEMS, "error": {"code": 9, "message": "x"}}


@st.composite
def mutated(draw: st.DrawFn, bodies: list[dict[str, Any]]) -> bytes:
    """A body with some of its values replaced, taken out, or a few of its bytes changed."""
    body = orjson.loads(orjson.dumps(draw(st.sampled_from(bodies))))
    for _ in range(draw(st.integers(0, 3))):
        node = body
        while True:
            names = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not names:
                break
            name = draw(st.sampled_from(names))
            if isinstance(node[name], dict | list) and draw(st.booleans()):
                node = node[name]
                continue
            if draw(st.booleans()):
                node[name] = draw(ODD)
            else:
                del node[name]
            break
    try:
        raw = bytearray(orjson.dumps(body))
    except TypeError:
        raw = bytearray(b"{}")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(raw) - 1))
        raw[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=3))
        raw = raw or bytearray(b" ")
    return bytes(raw)


@settings(deadline=None, max_examples=400)
@given(mutated([LINE, ERROR]))
def test_any_mutation_of_a_line_is_read_and_none_becomes_an_answer_out_of_nothing(raw: bytes) -> None:
    line = read(raw, 11)
    assert line.key is None or isinstance(line.key, str)
    assert not (line.reply and line.failure)
    if line.reply:
        assert line.reply.status != "ok" or (line.reply.text and b"candidates" in line.body)
        assert line.reply.usage.input_tokens >= 0 and line.reply.usage.output_tokens >= 0
        again = parse_stored(line.body, line.reply.endpoint)
        assert (again.text, again.status) == (line.reply.text, line.reply.status)
    if line.failure:
        assert len(line.failure.message) <= 320 and line.failure.message.isprintable()


@settings(deadline=None, max_examples=400)
@given(mutated([PENDING, DONE, MANY]))
def test_any_mutation_of_a_batch_is_a_batch_or_a_failure(raw: bytes) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=raw)

    async def use(batches: Batches) -> list[object]:
        one = await batches.get(NAME)
        made = await batches.create(MODEL, RemoteFile("files/x"), "x")
        return [one, made, await batches.find_all()]

    one, made, _ = using(handler, use)
    assert isinstance(one, RemoteBatch | Failure) and isinstance(made, RemoteBatch | Failure)
    if isinstance(one, RemoteBatch):
        assert one.status in BATCH_STATUSES and one.name.startswith("batches/")
        assert (one.status == "succeeded") <= bool(one.outputs or one.inline)
        assert all(number is None or number >= 0 for number in (one.lines, one.done, one.failed))
