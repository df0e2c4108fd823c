"""LLMock, somebody else's mock of ten services, on a free loopback port; ended when it is not needed any more."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

PROGRAM = Path(sys.prefix, "llmock", "bin", "llmock")
"""In an environment of its own: what it needs would change the server behind our emulator."""


@contextmanager
def llmock(*flags: str) -> Iterator[str]:
    """Its base URL. In CI it must be installed; elsewhere the test is skipped."""
    if not PROGRAM.exists():
        if os.environ.get("CI"):
            pytest.fail("llmock is not installed: .ci/run does that")
        pytest.skip("llmock is not installed: docs/contributing.md says how")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PROGRAM), "serve", "--port", str(port), "--log-level", "critical", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _await(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


def fail(url: str, path: str, *failures: Mapping[str, Any]) -> None:
    """Have its next requests to a path fail, each `status` so many `times`; forget what was before."""
    behaviors = [{"type": "fail", "match": {"path": path}, **failure} for failure in failures]
    for what, body in (("reset", {}), ("scenario", {"behaviors": behaviors})):
        request = Request(f"{url}/_llmock/{what}", json.dumps(body).encode(), method="POST")
        build_opener(ProxyHandler({})).open(request).close()


def told(url: str, what: str) -> Any:
    """What its control interface tells: `verdict`, `requests`."""
    with build_opener(ProxyHandler({})).open(Request(f"{url}/_llmock/{what}")) as response:
        return json.load(response)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(3_000):
        if process.poll() is not None:
            raise RuntimeError(f"llmock ended with exit code {process.returncode}")
        try:
            told(url, "requests")
            return
        except OSError:
            time.sleep(0.01)
    raise RuntimeError("llmock does not listen")
