"""A service that a test plays answer by answer, over a socket: what the emulator never says."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

Handler = Callable[[int], tuple[int, object] | None]


class Service:
    """Answers as Gemini does, unless `instead` says otherwise of the request with that number.

    `counted` is what countTokens says; `answered` is how often each prompt was paid for.
    """

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.asked = 0
        self.instead: Handler = lambda number: None
        self.counted: object = {"totalTokens": 5}
        self.url = ""
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


class JsonHandler(BaseHTTPRequestHandler):
    """Answers in JSON, and says nothing on the terminal."""

    def answer(self, status: int, body: object) -> None:
        written = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def playing() -> Iterator[Service]:
    """A real one, at `url`."""
    service = Service()

    class Answering(JsonHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            self.answer(*(service.instead(0) or (501, "no tunnel")))

        def do_GET(self) -> None:
            self.answer(200, {"models": [{"name": "models/gemini-3.5-flash-lite"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if "countTokens" in self.path:
                self.answer(200, service.counted)
            else:
                self.answer(*service.generate(asked["contents"][0]["parts"][0]["text"]))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    service.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
