"""`pipeline`, and emulators, in processes of their own: forked from one that has all imported, in 10 ms each.

An interpreter of its own takes half a second of CPU for each. What is forked is killed, fails and ends as any other
process; its memory and its start are not measured here. Run as a program, this file is the process that forks.
"""

import atexit
import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pipeline.emulator import EmulatorOptions


class Forked:
    """A process that is forked: what `subprocess.Popen` gives, as far as tests need it."""

    def __init__(
        self, work: str, *arguments: Any, cwd: Path | None = None, env: Mapping[str, str] = os.environ
    ) -> None:
        """`work` is a function of this file."""
        order = work, arguments, dict(env), str(cwd or Path.cwd())
        self.returncode: int | None = None
        self.pid = int(_answer("begins", *order)[0])

    def told(self) -> list[str]:
        """The next words of it; raises `RuntimeError` where it ended instead."""
        if (said := _told(str(self.pid)))[1] == "failed":
            raise RuntimeError("it ended, and had not told that it listens")
        return said[1:]

    def poll(self) -> int | None:
        """Its exit code, −9 after SIGKILL; None while it runs."""
        if self.returncode is None:
            code = _answer("asked", self.pid)[2]
            self.returncode = None if code == "None" else int(code)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises `subprocess.TimeoutExpired`."""
        began = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - began > timeout:
                raise subprocess.TimeoutExpired("forked", timeout)
            time.sleep(0.003)  # real time: another process is being watched
        return code

    def send_signal(self, number: int) -> None:
        """Its number is its own until its end is told."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """What it wrote to its streams, once it has ended."""
        self.wait(timeout)
        out, err = (_streams() / f"{self.pid}.{name}" for name in ("out", "err"))
        return out.read_bytes(), err.read_bytes()


def forked(*arguments: object, cwd: Path | None = None, env: Mapping[str, str] = {}, patch: str = "") -> Forked:
    """The command line, as `forked("run", path, "--yes")`.

    `env` is set beside what is; `patch` is code that is run first.
    """
    return Forked("run", str(_streams()), patch, tuple(map(str, arguments)), cwd=cwd, env={**os.environ, **env})


@cache
def _streams() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


@cache
def _forks() -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    forks = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    atexit.register(forks.communicate)
    return forks


def _answer(word: str, *order: Any) -> list[str]:
    to = _forks().stdin
    assert to is not None
    pickle.dump(order, to)
    to.flush()
    return _told(word)


def _told(word: str) -> list[str]:
    """The next line with that word: what ended late may have left another."""
    told = _forks().stdout
    assert told is not None
    for line in told:
        if word in (said := line.decode().split()):
            return said
    raise RuntimeError("what forks has ended")


# ---- the process that forks

_told_to = 1


def _say(*words: object) -> None:
    os.write(_told_to, (" ".join(map(str, words)) + "\n").encode())


def serve(options: "list[EmulatorOptions]") -> None:
    """An emulator for each of the options; tells their addresses."""
    from pipeline import emulator

    def one(number: int) -> None:
        emulator.serve(options[number], ready=lambda url: _say(os.getpid(), number, url))

    for number in range(1, len(options)):
        Thread(target=one, args=(number,)).start()
    one(0)


def run(streams: str, patch: str, arguments: tuple[str, ...]) -> None:
    """The command line, with its streams in files."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{streams}/{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    sys.argv = ["pipeline", *arguments]
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    exec(patch, {})
    from pipeline.__main__ import start

    start()


def _become(work: str, arguments: tuple[Any, ...], environment: dict[str, str], folder: str) -> NoReturn:
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        os.chdir(folder)
        _say(os.getpid(), "begins")
        (serve if work == "serve" else run)(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        _say(os.getpid(), "failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork() -> None:
    import aiohttp  # noqa: F401
    import polars  # noqa: F401
    import uvicorn.loops.auto
    import uvicorn.protocols.http.auto  # noqa: F401

    import pipeline.cli
    import pipeline.emulator
    import pipeline.estimating
    import pipeline.run.run  # noqa: F401

    global _told_to
    _told_to = os.dup(1)  # what is forked has other streams
    os.setsid()
    gc.freeze()
    while True:
        try:
            order = pickle.load(sys.stdin.buffer)
        except EOFError:  # the tests are over
            os.killpg(0, signal.SIGKILL)
        if len(order) == 1:
            pid, status = os.waitpid(order[0], os.WNOHANG)
            _say(order[0], "asked", os.waitstatus_to_exitcode(status) if pid else None)
        elif not os.fork():
            _become(*order)


if __name__ == "__main__":
    _fork()
