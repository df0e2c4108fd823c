"""A real emulator in a process of its own, for tests that need a socket or another process's memory."""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.request import ProxyHandler, build_opener

from forking import Forked

from pipeline.emulator import EmulatorOptions, parse_faults


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
    """The same for several emulators in one process."""
    process = Forked("serve", list(several))
    try:
        urls = dict(process.told() for _ in several)
        yield [urls[str(number)] for number in range(len(several))]
    finally:
        process.kill()
        process.wait()


def stats(base_url: str, prompts: bool = False, log: bool = False) -> dict[str, Any]:
    """The served emulator's counters."""
    query = f"prompts={str(prompts).lower()}&log={str(log).lower()}"
    with build_opener(ProxyHandler({})).open(f"{base_url}/emulator/stats?{query}") as response:
        told: dict[str, Any] = json.load(response)
        return told


def wait_for(base_url: str, counter: str, least: int, run: subprocess.Popen[Any] | Forked) -> None:
    """Wait in real time until the served emulator has counted so many; a `run` that ends before is a failure."""
    while stats(base_url)[counter] < least:
        assert run.poll() is None, f"it ended with {run.returncode} before {counter} was {least}"
        time.sleep(0.01)
