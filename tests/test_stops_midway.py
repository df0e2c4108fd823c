"""What stops a run in its middle, by the whole command line: exit 3, answers are kept, nothing is bought twice."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import polars as pl
import pytest
from commands import Ran

ROWS, BEFORE = 30, 10
Handler = Callable[[int], tuple[int, object] | None]


class Service:
    """Answers as Gemini does, until `instead` says otherwise of the request with that number."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.asked = 0
        self.instead: Handler = lambda number: None
        self._lock = Lock()

    def generate(self, prompt: str) -> tuple[int, object]:
        with self._lock:
            self.asked += 1
            other = self.instead(self.asked)
            if other is not None:
                return other
            self.answered[prompt] += 1
        candidate = {"content": {"role": "model", "parts": [{"text": "yes"}]}, "finishReason": "STOP"}
        usage = {"promptTokenCount": 5, "candidatesTokenCount": 1, "totalTokenCount": 6}
        return 200, {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-3.5-flash-lite"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A real one, at the base URL."""
    playing = Service()

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, {"models": [{"name": "models/gemini-3.5-flash-lite"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._answer(*playing.generate(asked["contents"][0]["parts"][0]["text"]))

        def _answer(self, status: int, body: object) -> None:
            written = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    yield playing
    server.shutdown()
    server.server_close()


@pytest.fixture
def job(here: Path) -> Path:
    (here / "words.csv").write_text("word\n" + "".join(f"word {number}\n" for number in range(ROWS)))
    path = here / "midway.toml"
    path.write_text(
        '[input]\npath = "words.csv"\n[prompt]\ntemplate = "Say {{ word }}"\n'
        '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 50\n[output]\npath = "out.parquet"\n'
        "[limits]\nrpm = 0\ntpm = 0\nconcurrency = 2\n"
    )
    return path


def error(code: int, status: str, message: str, reason: str = "") -> tuple[int, object]:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}] if reason else []
    return code, {"error": {"code": code, "message": message, "status": status, "details": details}}


REFUSED = {
    "401": error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials."),
    "403": error(403, "PERMISSION_DENIED", "Your API key was reported as leaked. Please use another API key."),
    "400": error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", "API_KEY_INVALID"),
}


@pytest.mark.parametrize("refusal", REFUSED)
def test_a_key_that_is_refused_in_mid_run_keeps_what_was_answered(
    job: Path, service: Service, cli: Callable[..., Ran], refusal: str
) -> None:
    service.instead = lambda number: REFUSED[refusal] if number > BEFORE else None
    stopped = cli("run", job, "--yes")
    assert stopped.code == 3
    assert f"(HTTP {refusal})" in stopped.err and "What was answered is kept." in stopped.err
    assert "pipeline check" in stopped.err, "the next command"
    assert Counter(pl.read_parquet("out.parquet")["status"]) == {"ok": BEFORE, "pending": ROWS - BEFORE}
    again = cli("run", job, "--yes")
    assert again.code == 2 and sum(service.answered.values()) == BEFORE, "this one spent nothing"
    service.instead = lambda number: None
    ended = cli("run", job, "--yes")
    assert ended.code == 0, ended.err
    assert Counter(pl.read_parquet("out.parquet")["status"]) == {"ok": ROWS}
    assert len(service.answered) == ROWS and set(service.answered.values()) == {1}, "nothing is paid twice"


@pytest.mark.parametrize("refusal", REFUSED)
def test_a_key_that_is_refused_at_once_cost_nothing(
    job: Path, service: Service, cli: Callable[..., Ran], refusal: str
) -> None:
    service.instead = lambda number: REFUSED[refusal]
    stopped = cli("run", job, "--yes")
    assert stopped.code == 2 and f"(HTTP {refusal})" in stopped.err and "kept" not in stopped.err


@pytest.mark.parametrize("name", ["calls", "results", "parts.jsonl"])
def test_a_run_directory_that_fails_in_mid_run_keeps_what_was_answered(
    job: Path, here: Path, service: Service, cli: Callable[..., Ran], name: str
) -> None:
    """Something else lies where a part, or the list of parts, is to be written."""
    place = here / "runs" / "midway" / name

    def meddle(number: int) -> None:
        if number == BEFORE:
            if place.exists():
                place.rename(place.with_name("moved"))
            if name == "parts.jsonl":
                place.mkdir()
            else:
                place.write_text("in the way")

    service.instead = meddle
    stopped = cli("run", job, "--yes")
    assert stopped.code == 3, stopped.err
    assert str(place.relative_to(here)) in stopped.err and "kept" in stopped.err and "hint: " in stopped.err
    service.instead = lambda number: None
    if name == "parts.jsonl":
        place.rmdir()
    else:
        place.unlink()
    if place.with_name("moved").exists():
        place.with_name("moved").rename(place)
    ended = cli("run", job, "--yes")
    assert ended.code == 0, ended.err
    assert Counter(pl.read_parquet("out.parquet")["status"]) == {"ok": ROWS}
    assert len(service.answered) == ROWS and set(service.answered.values()) == {1}, "nothing is paid twice"
