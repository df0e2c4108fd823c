"""The key is nowhere but in the environment and in the request's header; prompts are in no log and in no error."""

import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from forking import Forked, forked
from serving import served, wait_for

from jobs import PLAIN, write_job
from pipeline.emulator import parse_batch_faults

KEY = "AQ.Ab8-recognisable_KEY-5501984"
PROMPT = "marmalade-7742"
_BUG = "import pipeline.targets\npipeline.targets.cost = lambda *_, **__: 1 / 0"


class Streams:
    """What the processes of a test wrote to their streams."""

    def __init__(self) -> None:
        self.text = ""

    def finish(self, process: Forked | subprocess.Popen[bytes]) -> int:
        out, err = process.communicate(timeout=60)
        self.text += (out + err).decode()
        return process.wait()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A job with a recognisable prompt; at the end every file is searched for the key, and the log for the prompt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "topics.csv").write_text("topic\n" + "".join(f"{PROMPT} {number}\n" for number in range(8)))
    write_job(
        tmp_path, PLAIN, prompt={"system": f"Be {PROMPT}."}, limits={"rpm": 0, "tpm": 0, "concurrency": 4}, cache={}
    )
    yield tmp_path
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert PROMPT not in (tmp_path / "runs/job/run.log").read_text()


@pytest.fixture
def streams(here: Path) -> Iterator[Streams]:
    written = Streams()
    yield written
    assert KEY not in written.text
    assert PROMPT not in written.text


def start(url: str, *arguments: str, patch: str = "") -> Forked:
    keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": KEY}
    return forked("run", "job.toml", "--yes", *arguments, patch=patch, env=keyed)


def errors(here: Path) -> list[str]:
    lines = (here / "results/out.jsonl").read_text().splitlines()
    return [error for line in lines if (error := json.loads(line)["error"])]


def test_a_run_that_succeeds_and_its_report(here: Path, streams: Streams) -> None:
    with served() as url:
        assert streams.finish(start(url)) == 0
        config = Streams()  # shows the prompt, as it should
        assert config.finish(start(url, "--show-config")) == 0 and KEY not in config.text
    reports = (["report", "--json"], ["report", "--failed"], ["runs"], ["report", "--verify"])
    for arguments in reports:
        assert streams.finish(forked(*arguments)) == 0


def test_rows_that_fail_in_every_way(here: Path, streams: Streams) -> None:
    with served(faults="400*1,block*1,html502*1,reset*1,truncated*1,garbage*1,nested503*1,bare429*1") as url:
        assert streams.finish(start(url)) == 1
    assert len(errors(here)) >= 2
    assert not any(PROMPT in error for error in errors(here))


def test_a_refused_key(here: Path, streams: Streams) -> None:
    with served(faults="403") as url:
        assert streams.finish(start(url)) == 2
    assert "error: " in streams.text or "stopped: " in streams.text


def test_a_bug_with_its_traceback(here: Path, streams: Streams) -> None:
    with served() as url:
        assert streams.finish(start(url, patch=_BUG)) == 70
    assert "Traceback" in streams.text and "ZeroDivisionError" in streams.text
    assert list(here.glob("runs/job/journal-*.jsonl"))


def test_a_killed_process_and_what_the_others_on_the_machine_see_of_it(here: Path, streams: Streams) -> None:
    with served(latency_s=3.0) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", "job.toml", "--yes"],
            env=os.environ | {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": KEY},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        wait_for(url, "in_flight", 1, process)
        arguments = Path(f"/proc/{process.pid}/cmdline")
        if arguments.exists():
            assert b"job.toml" in arguments.read_bytes() and KEY.encode() not in arguments.read_bytes()
        process.kill()
        streams.finish(process)
        assert streams.finish(start(url, "--limit", "1")) == 0
    assert "in flight" in streams.text


_OFTEN = """
from pipeline.batch import submitting, watching
submitting.FENCE_S, submitting.PAUSES_S, watching.POLL_S = 1.0, (0.2,) * 4, (0.2, 1.0)
"""
_FAULTS = "upload_cut*1,download_cut*1,line_error=13:0.4,line_stranger*1,line_differs*1,call_503*2"


@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_batches_that_are_left_killed_and_collected(
    here: Path, streams: Streams, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """Prompts lie in what is sent alone, which only its owner may read, and which is gone at the end."""
    job = (here / "job.toml").read_text().replace("[model]", '[model]\nlane = "batch"')
    (here / "job.toml").write_text(f'{job}\n[endpoint]\nprovider = "{provider}"\n')
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    faults = parse_batch_faults(_FAULTS)
    with served(batch=True, batch_pending_s=0.5, batch_run_s=0.5, batch_spread=1.0, batch_faults=faults) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        assert streams.finish(start(url, "--leave", patch=_OFTEN)) == 3
        with_prompts = [  # of rows: the system prompt is in the manifest too
            path for path in here.glob("runs/**/*") if path.is_file() and f"{PROMPT} 3" in path.read_text("latin-1")
        ]
        assert [path.name for path in with_prompts] == ["000001.requests.jsonl"]
        assert stat.S_IMODE(with_prompts[0].stat().st_mode) == 0o600
        killed = start(url, patch=_OFTEN)
        while killed.poll() is None and not list(here.glob("runs/job/batched/*.parquet")):
            time.sleep(0.01)
        killed.kill()
        streams.finish(killed)
        for _ in range(4):  # the first batch is not believed, as a key in it is nobody's, and ends a run
            if (ended := streams.finish(start(url, patch=_OFTEN))) != 3:
                break
        assert ended in (0, 1), streams.text
    for path in here.rglob("*"):
        assert not path.is_file() or b"upload_id" not in path.read_bytes(), path
    assert "upload_id" not in streams.text
    assert not list(here.glob("runs/job/batches/*.requests.jsonl"))
    assert not any(PROMPT in error for error in errors(here))
    assert len((here / "results/out.jsonl").read_text().splitlines()) == 8


@contextmanager
def echoing(words: Callable[[str], str]) -> Iterator[str]:
    """A relay that refuses every request with a message that repeats the key and, as `words` puts it, the request."""

    class Echo(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["content-length"])).decode()
            message = f"bad request with key {self.headers['x-goog-api-key']} to {self.path}: {words(asked)}"
            body = json.dumps({"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}).encode()
            self.send_response(400)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """The test's own streams stay clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _texts(asked: str) -> str:
    body = json.loads(asked)
    return f"{body['systemInstruction']['parts'][0]['text']} and {body['contents'][0]['parts'][0]['text']}, no more"


@pytest.mark.parametrize("words", [repr, _texts], ids=["quoted", "as plain words"])
def test_a_relay_that_repeats_key_and_prompt_in_its_errors(
    here: Path, streams: Streams, words: Callable[[str], str]
) -> None:
    with echoing(words) as url:
        assert streams.finish(start(url)) == 1
    assert len(errors(here)) == 8
    assert all("bad request" in error and PROMPT not in error for error in errors(here))
