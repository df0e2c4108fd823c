"""Run directories as earlier versions left them: read, continued, and given what they lacked."""

import os
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import orjson
import pytest
from stores import answer, opened, sealed

from pipeline import report
from pipeline.errors import InputError
from pipeline.providers.stored import parse_stored
from pipeline.records import Usage
from pipeline.store.journal import journal_path, journal_paths
from pipeline.store.manifest import VERSION
from pipeline.store.place import held
from pipeline.store.state import load

MANIFEST = """\
{"job": "notes", "job_path": "jobs/notes.toml", "fingerprint": "f0", "identity": {"model": {"name":
"gemini-3.5-flash-lite", "temperature": 0.5, "stop": ["END"]}}, "source": "s0", "source_path": "notes.csv",
"output": "results/notes.csv", "model": "gemini-3.5-flash-lite", "offline": true,
"created_at": "2026-11-22T20:00:00+00:00", "prices_dated": "2026-11-01", "versions": null, "version": 1}
"""
"""As layout 1 had it (November 2026)."""

JOURNAL = "".join(
    (
        '{"call":{"row":0,"key":"key 0","step":"answer","level":0,"chunk":0,"chunks":1,"fingerpri'
        'nt":"content 0","input_tokens_est":10,"endpoint":"gemini@example","latency_s":1.25,"atte'
        'mpts":1,"rate_limited":0,"finished_at":1780000000.25,"model":"gemini-3.5-flash-lite-001"'
        ',"usage":{"input_tokens":12,"cached_tokens":0,"output_tokens":34,"thinking_tokens":0,"to'
        'ol_tokens":0,"estimated":false},"cost_usd":"0.01","raw":{"candidates":[{"content":{"role'
        '":"model","parts":[{"text":"answer 0"}]},"finishReason":"STOP"}],"usageMetadata":{"promp'
        'tTokenCount":12,"candidatesTokenCount":34,"totalTokenCount":46},"modelVersion":"gemini-3'
        '.5-flash-lite-001","responseId":"r-1"}}}\n',
        '{"result":{"row":0,"key":"key 0","status":"ok","response":"answer 0","error_kind":null,"'
        'error":null,"finish_reason":null,"model":null,"usage":{"input_tokens":12,"cached_tokens"'
        ':0,"output_tokens":34,"thinking_tokens":0,"tool_tokens":0,"estimated":false},"input_toke'
        'ns_est":0,"cost_usd":"0.01","calls":1,"chunks":1,"attempts":1,"rate_limited":0,"latency_'
        's":0.0,"finished_at":"2026-11-22T20:00:00+00:00","changes":null}}\n',
        '{"sent":["content 1",1,"gemini-3.5-flash-lite",10,100]}\n',
        '{"call":{"row":1,"key":"key 1","step":"map","level":0,"chunk":0,"chunks":2,"fingerprint"'
        ':"content 1","input_tokens_est":10,"endpoint":"gemini@example","latency_s":1.25,"attempt'
        's":1,"rate_limited":0,"finished_at":1780000000.25,"model":"gemini-3.5-flash-lite-001","u'
        'sage":{"input_tokens":12,"cached_tokens":0,"output_tokens":34,"thinking_tokens":0,"tool_'
        'tokens":0,"estimated":false},"cost_usd":"0.01","raw":{   "candidates": [     {       "co'
        'ntent": {         "role": "model",         "parts": [           {             "text": "第'
        '一 \\"quoted\\"\\n"           }         ]       },       "finishReason": "STOP"     }   ],  '
        ' "usageMetadata": {     "promptTokenCount": 12,     "candidatesTokenCount": 34,     "tot'
        'alTokenCount": 46   },   "modelVersion": "gemini-3.5-flash-lite-001",   "responseId": "r'
        '-1" }}}\n',
        '{"call":{"row":2,"key":"key 2","step":"answer","level":0,"chunk":0,"chunks":1,"fingerpri'
        'nt":"content 2","input_tokens_est":10,"endpoint":"gemini@example","latency_s":1.25,"atte'
        'mpts":1,"rate_limited":0,"finished_at":1780000000.25,"model":"","usage":{"input_tokens":'
        '0,"cached_tokens":0,"output_tokens":0,"thinking_tokens":0,"tool_tokens":0,"estimated":tr'
        'ue},"cost_usd":"0.01","raw_text":"<p>\\n�</p>"}}\n',
        '{"call":{"row":3,"key":"key 3","step":"answer","level":0,"chunk":0,"chunks":1,"fingerpri'
        'nt":"content 3","input_tokens_est":10,"endpoint":"","latency_s":0.0,"attempts":5,"rate_l'
        'imited":0,"finished_at":1780000000.25,"model":"","usage":{"input_tokens":0,"cached_token'
        's":0,"output_tokens":0,"thinking_tokens":0,"tool_tokens":0,"estimated":false},"cost_usd"'
        ':"0","failure":["error","server","server trouble"]}}\n',
        '{"result":{"row":3,"key":"key 3","status":"error","response":null,"error_kind":"server",'
        '"error":"server trouble","finish_reason":null,"model":null,"usage":{"input_tokens":12,"c'
        'ached_tokens":0,"output_tokens":34,"thinking_tokens":0,"tool_tokens":0,"estimated":false'
        '},"input_tokens_est":0,"cost_usd":"0.01","calls":1,"chunks":1,"attempts":1,"rate_limited'
        '":0,"latency_s":0.0,"finished_at":"2026-11-22T20:00:00+00:00","changes":null}}\n',
        '{"sent":["content 4",4,"gemini-3.5-flash-lite",10,100]}\n',
        '{"ended":"content 4"}\n',
        '{"sent":["content 5",5,"gemini-3.5-flash-lite",10,100]}\n',
    )
)
"""Neither a first line nor checksums, and the body as JSON where it was readable, else as text: layout 1."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run of layout 1 that was killed."""
    path = tmp_path / "runs" / "notes"
    for name in ("calls", "results"):
        (path / name).mkdir(parents=True)
    (path / "manifest.json").write_text(MANIFEST)
    journal_path(path, 1).write_text(JOURNAL)
    return path


def test_layout_1_is_read_as_it_lies_there(directory: Path) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*.json*")}
    outcomes, unsealed = load(directory, parse_stored)
    assert (outcomes.is_ok(0), outcomes.again(3), outcomes.done(1)) == (True, True, False)
    assert [(call.row, call.paid, call.reply.status, call.reply.text) for call in unsealed.calls] == [
        (0, True, "ok", "answer 0"),
        (1, True, "ok", '第一 "quoted"\n'),
        (2, True, "error", ""),
        (3, False, "error", ""),
    ]
    assert unsealed.calls[1].reply.usage == Usage(12, 0, 34)
    assert unsealed.calls[2].reply.raw == "<p>\n\ufffd</p>".encode()
    assert [sent.row for sent in unsealed.in_flight.values()] == [5]
    assert report.summarize(directory).calls == 3
    assert {path: path.read_bytes() for path in directory.rglob("*.json*")} == before


@pytest.mark.case("D12")
def test_layout_1_is_continued_and_then_as_safe_as_any(directory: Path) -> None:
    with opened(directory) as store:
        kept = [store.reply(f"content {row}") for row in (1, 2)]
        assert [call.reply.error_kind if call else "gone" for call in kept] == [None, "malformed_reply"]
        assert [sent.row for sent in store.lost] == [5]
        answer(store, 4)
    known = orjson.loads((directory / "manifest.json").read_bytes())
    assert (known["version"], len(known["run"]), known["plain_journals"]) == (VERSION, 32, 1)
    [journal] = journal_paths(directory)
    assert all(line.endswith(b'"}') and b',"crc":"' in line for line in journal.read_bytes().splitlines())
    with opened(directory) as store:
        assert orjson.loads((directory / "manifest.json").read_bytes()) == known
        bought = store.reply("content 1")
        assert bought is not None and bought.reply.text == '第一 "quoted"\n'
    assert sealed(directory, "results")["row"].to_list() == [0, 3, 4]


def test_a_kill_between_its_identity_and_its_next_journal_loses_nothing(directory: Path) -> None:
    known = orjson.loads(MANIFEST) | {"version": 2, "run": "0" * 32, "plain_journals": 1}
    (directory / "manifest.json").write_bytes(orjson.dumps(known))
    with opened(directory) as store:
        assert store.outcomes.is_ok(0)
        assert store.reply("content 1") is not None
    assert [path.name for path in journal_paths(directory)] == ["journal-000002.jsonl"]


def ended(directory: Path, start: str, end: str) -> None:
    lines = ({"at": at, "event": event} for at, event in ((start, "start"), (end, "end")))
    (directory / "run.log").write_bytes(b"torn\n" + b"".join(orjson.dumps(line) + b"\n" for line in lines))


@pytest.mark.case("O4")
@pytest.mark.parametrize("upgraded", [False, True])
@pytest.mark.parametrize(
    ("written", "rows", "refused"),
    [
        ("2026-11-22T20:00:09", 3, ""),
        ("2026-11-22T20:00:09", 2, "holds 3 finished rows, and this run would write 2"),
        ("2026-11-22T20:00:11", 3, "no run that is kept here wrote it"),
        ("2026-11-22T19:59:59", 3, "no run that is kept here wrote it"),
    ],
    ids=["its own", "fewer rows", "edited since", "older than the run"],
)
def test_a_table_that_a_run_of_layout_1_wrote_is_its_own(
    directory: Path, monkeypatch: pytest.MonkeyPatch, upgraded: bool, written: str, rows: int, refused: str
) -> None:
    monkeypatch.chdir(directory.parents[1])
    with opened(directory) as store:
        answer(store, 4)
    known = orjson.loads((directory / "manifest.json").read_bytes())
    if not upgraded:
        known = {name: known[name] for name in orjson.loads(MANIFEST)} | {"version": 1}
        (directory / "manifest.json").write_bytes(orjson.dumps(known))
    ended(directory, "2026-11-22T20:00:01Z", "2026-11-22T20:00:09Z")
    table = directory.parents[1] / "results" / "notes.csv"
    table.parent.mkdir()
    table.write_text("what it wrote")
    at = datetime.fromisoformat(f"{written}.500+00:00").timestamp()
    os.utime(table, (at, at))
    another = directory.parent / "another"
    expected = pytest.raises(InputError, match=refused) if refused else nullcontext()
    with expected, held(table, directory, rows, False, lambda file: None):
        pass
    if not refused:
        with (
            pytest.raises(InputError, match="3 finished rows of another run"),
            held(table, another, rows, False, lambda file: None),
        ):
            pass
