"""Documents read by processes of their own, each ended and replaced when it takes too long."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import LifoQueue
from threading import Timer
from types import TracebackType
from typing import Self

from pipeline.documents.decoding import Broken, NoText
from pipeline.documents.finding import File
from pipeline.documents.reading import Read
from pipeline.documents.worker import MOST_MEMORY_BYTES

MOST_S = 180.0
"""Seconds that one document may take, whatever else the machine does."""
_MOST_PROCESSES = 4
_NEEDED = frozenset({"HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "SYSTEMROOT"})
"""Variables that a process is given: keys are none of its business."""
_ENDING_S = 5.0  # after it closed what it writes to
_FROM_OUTSIDE = frozenset({1, 2, 3, 9, 15})
"""Signals that say nothing of a document: somebody ends the process, or the system, which is out of memory."""
_ROOT = str(Path(__file__).parent.parent.parent)
_SERVE = f"import sys; sys.path.insert(0, {_ROOT!r}); from pipeline.documents.worker import serve; serve()"

Outcome = tuple[str, Read] | NoText


class Workers:
    """As many processes as there are cores, up to 4, begun when there is something to read."""

    def __init__(self) -> None:
        self._number = min(_MOST_PROCESSES, os.cpu_count() or 1)
        self._free: LifoQueue[subprocess.Popen[bytes] | None] = LifoQueue()
        for _ in range(self._number):
            self._free.put(None)
        self._threads = ThreadPoolExecutor(self._number, "documents")
        self._begun: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._begun:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._begun:
            _end(process)

    def read(self, files: Sequence[File], encoding: str | None) -> Iterator[Outcome]:
        """What came of each document, in their order, each as soon as it is there."""
        return self._threads.map(lambda file: self._read(file, encoding), files)

    def _read(self, file: File, encoding: str | None) -> Outcome:
        process = self._free.get()
        try:
            if process is None or process.poll() is not None:
                process = self._started()
            line = _asked(process, {"at": file.at, "kind": file.kind, "encoding": encoding})
        except NoText as why:
            return why
        finally:
            self._free.put(process)
        answer = json.loads(line)
        if "broken" in answer:
            return Broken(answer["broken"])
        return NoText(answer["gone"]) if "gone" in answer else (answer.pop("digest"), Read(**answer))

    def _started(self) -> subprocess.Popen[bytes]:
        # -P: nothing of the folder in which the command runs is imported in place of a library
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name in _NEEDED},
        )
        self._begun.append(process)
        return process


def _asked(process: subprocess.Popen[bytes], question: dict[str, str | None]) -> bytes:
    """The line that a process answers with. Raises `NoText` where there is none: it is at its end then."""
    assert process.stdin and process.stdout
    late = Timer(MOST_S, process.kill)
    late.daemon = True
    late.start()
    try:
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError:
        line = b""
    in_time = late.is_alive()
    late.cancel()
    if line.endswith(b"\n"):
        return line
    code = _end(process, _ENDING_S)
    if not in_time or code == -24:  # SIGXCPU
        raise Broken("it takes too long to read")
    if code == 1:
        raise Broken(f"to read it takes more than {MOST_MEMORY_BYTES // 10**9} GB of memory")
    broken = NoText if -code in _FROM_OUTSIDE else Broken
    raise broken(f"its reader broke down over it ({code})")


def _end(process: subprocess.Popen[bytes], patience_s: float = 0) -> int:
    """The code with which a process ends, within so many seconds by itself."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(OSError):
                pipe.close()
    return process.wait()
