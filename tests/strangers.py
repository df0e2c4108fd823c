"""Servers of other people, each in an environment of its own, on a free loopback port."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def listening(name: str, program: str, *arguments: str) -> Iterator[int]:
    """The port of a server, which stands for PORT among its `arguments`.

    Its `program` lies in the environment `name` beside ours: what it needs would change our own. In CI it must be
    installed; elsewhere the test is skipped.
    """
    path = Path(sys.prefix, name, "bin", program)
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed: .ci/run does that")
        pytest.skip(f"{name} is not installed: docs/contributing.md says how")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(path), *(each.replace("PORT", str(port)) for each in arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(port, process, name)
        yield port
    finally:
        process.kill()
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes], name: str) -> None:
    for _ in range(3_000):
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with exit code {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(f"{name} does not listen")
