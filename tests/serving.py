"""A real emulator in a process of its own, for tests that need a socket or another process's memory."""

import atexit
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from pipeline.emulator import EmulatorOptions, parse_faults

_FORKS = """
import gc, os, pickle, signal, sys, time, traceback
from threading import Thread
import uvicorn, uvicorn.loops.auto, uvicorn.protocols.http.auto
from pipeline.emulator import serve

def say(*words):
    os.write(1, f"{os.getpid()} {' '.join(words)}\\n".encode())

def tell(number):
    return lambda url: say(str(number), url)

def serve_each(environment, folder, options):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    *others, last = options
    for number, each in enumerate(others):
        Thread(target=serve, args=(each,), kwargs={"ready": tell(number)}).start()
    serve(last, ready=tell(len(others)))

os.setsid()
gc.freeze()
while True:
    try:
        asked = pickle.load(sys.stdin.buffer)
    except EOFError:  # the tests are over
        os.killpg(0, signal.SIGKILL)
    if isinstance(asked, int):
        os.kill(asked, signal.SIGKILL)
        os.waitpid(asked, 0)
        say("ended", str(asked))
    elif not os.fork():
        try:
            say("begins")
            serve_each(*asked)
        except BaseException:
            traceback.print_exc()
        say("failed")
        os._exit(1)
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
    """The same for several emulators in one process.

    It is forked from one that has all imported: 10 ms, where an interpreter of its own takes 250.
    """
    _tell((dict(os.environ), str(Path.cwd()), several))
    pid = _told("begins")[0]
    urls = dict(_told(pid)[1:] for _ in several)
    try:
        yield [urls[str(number)] for number in range(len(several))]
    finally:
        _tell(int(pid))
        _told("ended", pid)


@cache
def _forks() -> subprocess.Popen[bytes]:
    forks = subprocess.Popen([sys.executable, "-c", _FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(forks.communicate)
    return forks


def _tell(what: object) -> None:
    to = _forks().stdin
    assert to is not None
    pickle.dump(what, to)
    to.flush()


def _told(*words: str) -> list[str]:
    """The next line with these words: one that ended late may have left another."""
    told = _forks().stdout
    assert told is not None
    for line in told:
        said = line.decode().split()
        if all(word in said for word in words):
            if "failed" not in said:
                return said
            break
    raise RuntimeError("the emulator ended before it listened")


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
