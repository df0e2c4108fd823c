"""A real emulator in a process of its own, for tests that need a socket or another process's memory."""

import json
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.request import ProxyHandler, build_opener

from pipeline.emulator import EmulatorOptions, parse_faults

_SERVE = """
import pickle, sys
from threading import Thread
from pipeline.emulator import serve
*others, last = pickle.load(sys.stdin.buffer)
def tell(number):
    return lambda url: (sys.stdout.write(f"{number} {url}\\n"), sys.stdout.flush())
for number, options in enumerate(others):
    Thread(target=serve, args=(options,), kwargs={"ready": tell(number)}).start()
serve(last, ready=tell(len(others)))
"""


@contextmanager
def served(options: EmulatorOptions | None = None, *, faults: str = "", **flags: Any) -> Iterator[str]:
    """Base URL of an emulator that is killed at the end: `served(rpm=60, faults="503:0.1")`.

    It plays the service itself: a run against it is a real one. With `marked=True` it is a rehearsal.
    """
    if options is None:
        options = EmulatorOptions(faults=parse_faults(faults), **{"marked": False, "model_version": None, **flags})
    with served_each([options]) as urls:
        yield urls[0]


@contextmanager
def served_each(several: Sequence[EmulatorOptions]) -> Iterator[list[str]]:
    """The same for several emulators in one process: they start in the time of one."""
    process = subprocess.Popen([sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(pickle.dumps(several))
        process.stdin.close()
        told = [process.stdout.readline().decode().split() for _ in several]
        if not all(told):
            raise RuntimeError(f"the emulator ended with exit code {process.wait()} before it listened")
        yield [url for _, url in sorted(told, key=lambda pair: int(pair[0]))]
    finally:
        process.send_signal(signal.SIGTERM if len(several) == 1 else signal.SIGKILL)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def stats(base_url: str, prompts: bool = False, log: bool = False) -> dict[str, Any]:
    """The served emulator's counters."""
    query = f"prompts={str(prompts).lower()}&log={str(log).lower()}"
    with build_opener(ProxyHandler({})).open(f"{base_url}/emulator/stats?{query}") as response:
        told: dict[str, Any] = json.load(response)
        return told


def wait_for(base_url: str, counter: str, least: int, run: subprocess.Popen[Any]) -> None:
    """Wait in real time until the served emulator has counted so many; a `run` that ends before is a failure."""
    while stats(base_url)[counter] < least:
        assert run.poll() is None, f"it ended with {run.returncode} before {counter} was {least}"
        time.sleep(0.01)
