"""A real Redis server on a free loopback port, for tests; ended when it is not needed any more."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "open-sesame-redis"


@contextmanager
def redis_server(directory: Path, password: str | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """URL and process of a server that keeps nothing. In CI it must be installed; elsewhere the test is skipped."""
    program = shutil.which("redis-server")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed: .ci/run does that")
        pytest.skip("redis-server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(directory)]
    if password is not None:
        flags += ["--requirepass", password]
    process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL)
    try:
        _await_port(port, process)
        yield f"redis://127.0.0.1:{port}/0", process
    finally:
        process.kill()
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        if process.poll() is not None:
            raise RuntimeError(f"redis-server ended with exit code {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.01)
    raise RuntimeError("redis-server does not listen")
