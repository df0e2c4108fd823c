"""What this process is given by whoever starts it, made fit for a run: streams, encoding, open files."""

import atexit
import ctypes
import errno
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pipeline import machine
from pipeline.errors import PipelineError

MOST_FILES = 65_536
"""Open files that a run asks the system for, where it may have so many."""
INTERRUPTED = 130
"""Exit code of what a signal ended."""
LEAST_FILES = 32
"""Open files without which nothing can be done: half of them are there before a run asks for its first."""
_COLLECTING = threading.Lock()
_USUAL: list[tuple[int, int, int]] = []
"""The garbage collector's thresholds before the runs that go on, once for each of them."""
_STREAMS = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


_CSV_BLOCK_BYTES = 4 * 2**20
"""polars reads a CSV in blocks, two ahead for each core; its own 32 MiB take 240 MB more on two cores and no less time.

Nothing but a variable says so, which counts for queries that start later. A program that imports us has its own way.
"""


def make_fit() -> None:
    """Streams that take any character and break nothing, small blocks, and as many open files as the system allows."""
    os.environ.setdefault("POLARS_CSV_CHUNK_SIZE", str(_CSV_BLOCK_BYTES))
    _fill_descriptors()
    _speak_utf8()
    _steady(1, "stdout", frozenset({errno.EPIPE, errno.EBADF}))
    _steady(2, "stderr", None)
    machine.allow_files(MOST_FILES)


def heed_signals() -> None:
    """Let SIGTERM, SIGHUP or Windows' Ctrl-Break do what Ctrl-C does at that moment, where `nohup` left them to us.

    So a signal ends a start, a plan or the writing of the output as it ends a run: told, and with the same code.
    """
    for number in machine.ENDING:
        if number != signal.SIGINT and not machine.is_ignored(number):
            signal.signal(number, _as_ctrl_c)


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    interrupt = signal.getsignal(signal.SIGINT)
    if not callable(interrupt):  # a job in a shell's background has Ctrl-C ignored
        raise KeyboardInterrupt
    interrupt(signal.SIGINT, frame)


def heed_signals_no_more() -> None:
    """Let no signal change how the process ends: all is said, and Python's own end, of 0.2 s, would heed none."""
    for number in machine.ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without what no import needs here, a fifth of a start's time.

    No garbage is looked for, then or later, among what is imported. And aiohttp, which makes two TLS contexts of all
    the system's certificates when it is imported, finds none: every connection is given a context of ours. And httpx
    does without a command line of its own, which half of rich and pygments would draw.
    """
    named = {name: os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
    os.environ.update(dict.fromkeys(named, os.devnull))
    gc.collect()  # what came between two imports: as garbage, a text of 40 MB would be kept for good
    gc.disable()
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # then it cannot be imported
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name, value in named.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let the garbage collector look seldom while any run goes on: it keeps 100,000 live objects that are no garbage.

    At Python's default it takes 35 % of the line's CPU: 1,560 calls/s instead of 2,400, paired with a first threshold
    of 100,000 (measured 2026-11-22); half of that leaves less garbage lying about.
    """
    with _COLLECTING:
        _USUAL.append(_USUAL[0] if _USUAL else gc.get_threshold())
        gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        with _COLLECTING:
            usual = _USUAL.pop()
            if not _USUAL:  # of several runs in one process the last sets it back
                gc.set_threshold(*usual)


def backend() -> dict[str, bool]:
    """Options of `anyio.run`: uvloop where it is installed."""
    return {"use_uvloop": find_spec("uvloop") is not None}


def end(code: int) -> NoReturn:
    """End this process as Python does, but without taking everything apart first, which takes a fifth of a start."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            sys.exit(code)  # Python knows what to say of it
    os._exit(code)


def files_left() -> int:
    """How many files and sockets this process may open beside those that it has."""
    allowed = machine.allowed_files()
    return MOST_FILES if allowed is None else allowed - _open_files(allowed)


def too_few_files(left: int) -> PipelineError:
    """Nothing can be done with so many."""
    return PipelineError(f"this process may open {left} more files: too few", "raise it, as with `ulimit -n 1024`")


def make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, for the user's eyes only, whatever the umask."""
    for path in reversed([path for path in (directory, *directory.parents) if not path.exists()]):
        with suppress(FileExistsError):  # another run was first
            path.mkdir(0o700)
            path.chmod(0o700)


def flush_or_drop() -> None:
    """Write what stdout still holds; where it does not fit, let it go nowhere: it would fail again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def give_back_memory() -> None:
    """Return to the system what is free within this process, where its C library can: 40 MB after a run's calls."""
    gc.collect()
    trim_memory()


def trim_memory() -> None:
    """The same, without a look for garbage: what a thread has used it keeps for itself, and another one takes more."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _fill_descriptors() -> None:
    """Put /dev/null where cron or a daemon closed a stream: a file or socket of ours would be taken for it."""
    for number, name, mode in _STREAMS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _speak_utf8() -> None:
    """Start anew in UTF-8 mode where the locale is another: file names and flags could not be read otherwise."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


def _steady(number: int, name: str, passing: frozenset[int] | None) -> None:
    """Let a stream of the process go nowhere from its first error on, if it is one of `passing`; None: any error."""
    stream = getattr(sys, name)
    try:
        ours = isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
        ours &= machine.terminals_take_bytes or not stream.isatty()
    except (OSError, ValueError):
        ours = False
    if ours:
        raw = io.BufferedWriter(_Descriptor(number, passing))
        by_lines = stream.line_buffering or stream.write_through  # the latter with PYTHONUNBUFFERED
        setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, "replace", line_buffering=by_lines))


class _Descriptor(io.RawIOBase):
    """Bytes to a descriptor; after an error that passes they go nowhere."""

    def __init__(self, number: int, passing: frozenset[int] | None) -> None:
        super().__init__()
        self._number, self._passing = number, passing
        self._gone = False

    def fileno(self) -> int:
        """The descriptor."""
        return self._number

    def writable(self) -> bool:
        """Yes."""
        return True

    def isatty(self) -> bool:
        """Whether a person sees it."""
        return os.isatty(self._number)

    def write(self, data: Any, /) -> int:
        """Write, or drop."""
        while not self._gone:
            try:
                return os.write(self._number, data)
            except BlockingIOError:
                machine.wait_until_writable(self._number)
            except OSError as error:
                if self._passing is not None and error.errno not in self._passing:
                    raise
                self._gone = True
        return len(data)


def _open_files(soft: int) -> int:
    for listing in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(os.listdir(listing)) - 1  # noqa: PTH208
    return sum(_is_open(number) for number in range(soft))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
