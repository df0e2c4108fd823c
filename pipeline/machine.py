"""What systems do differently, Windows above all: locks, files, signals, limits, each in one way for all that use it.

The only module that asks which system this is. The ways of Windows are those that its documentation and Python's
describe; they were run on Linux with a stand-in for `msvcrt`, and on no machine with Windows.
"""

import asyncio
import errno
import os
import select
import shlex
import signal
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import list2cmdline
from types import FrameType

import anyio

try:
    import fcntl
    import resource
except ImportError:  # Windows has neither
    fcntl = resource = None  # type: ignore[assignment]

_ALWAYS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_BINARY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag of `open_file`: a symbolic link is refused, where the system can."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
"""Numbers of the error of a file system that locks nothing."""
NO_WAITING = getattr(os, "O_NONBLOCK", 0)
"""Flag of `open_file`: a pipe is not waited for."""
_LOCKED_AT = 2**31 - 16  # Windows keeps others from reading what is locked: a byte behind all that is read
_HASTE_S = 0.2  # how long a look of another process may keep a lock from us, where looks need one too
_BUSY_S = 2.0  # how long a scanner of viruses or an indexer may keep a file from being renamed over


def open_file(path: Path | str, flags: int, mode: int = 0o600) -> int:
    """`os.open` of a file that no process started by this one gets, and whose bytes are left as they are."""
    return os.open(path, flags | _ALWAYS, mode)


def create(path: Path | str, mode: int = 0o600) -> None:
    """Have a file there that can be read and written; one that is there is not opened. Raises OSError.

    A process that closes a file lets go of all locks that it has on it (POSIX), those of SQLite's connections too: then
    another process takes itself for the last one, and removes the log that these go on writing.
    """
    try:
        os.close(open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))
    except FileExistsError:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116  raises where a link leads nowhere
        if is_directory or not os.access(path, os.R_OK | os.W_OK):
            wrong = errno.EISDIR if is_directory else errno.EACCES
            raise OSError(wrong, os.strerror(wrong), str(path)) from None


def read_at(fd: int, size: int, offset: int) -> bytes:
    """At most `size` bytes of a file from `offset` on; where the file stands afterwards is not said."""
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


def write_at(fd: int, data: bytes, offset: int) -> int:
    """Write into a file at `offset`; returns how many bytes were."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.write(fd, data)


def set_mode(fd: int, mode: int) -> None:
    """The permissions of an open file, where files have them. Raises OSError."""
    if hasattr(os, "fchmod"):
        os.fchmod(fd, mode)


def set_owner(fd: int, owner: os.stat_result) -> None:
    """The user and group of an open file, where files have them. Raises OSError."""
    if hasattr(os, "fchown"):
        os.fchown(fd, owner.st_uid, owner.st_gid)


def lock(fd: int) -> None:
    """Lock a file against all other processes, until it is closed or this process ends.

    Raises BlockingIOError where another process has it, or looks; another OSError where nothing can be locked.
    """
    if fcntl:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    until = time.monotonic() + _HASTE_S
    while True:
        try:
            _lock_byte(fd)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise
        time.sleep(0.01)


def can_lock_in(directory: Path) -> bool:
    """Whether files there can be locked, as far as can be told.

    Some network file systems lock nothing, and SQLite would wait there as it does for another process.
    """
    if not fcntl:
        return True
    with suppress(OSError), tempfile.TemporaryFile(dir=directory) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def is_locked(fd: int) -> bool:
    """Whether another process, or another opening in this one, has the file locked. Raises OSError."""
    try:
        if fcntl:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)
        else:
            _lock_byte(fd)
            _unlock_byte(fd)
    except BlockingIOError:
        return True
    return False


def _lock_byte(fd: int) -> None:
    import msvcrt

    os.lseek(fd, _LOCKED_AT, os.SEEK_SET)
    try:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except PermissionError as error:  # EACCES: another process has it
        raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK)) from error
    finally:
        os.lseek(fd, 0, os.SEEK_SET)


def _unlock_byte(fd: int) -> None:
    import msvcrt

    os.lseek(fd, _LOCKED_AT, os.SEEK_SET)
    msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    os.lseek(fd, 0, os.SEEK_SET)


def replace(new: Path, target: Path) -> None:
    """Put a closed file in the place of another, all at once. Raises OSError."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            new.replace(target)
            return
        except PermissionError:
            if fcntl or time.monotonic() > until:  # elsewhere than on Windows it says what it means
                raise
        time.sleep(0.02)


def sync(fd: int) -> None:
    """Have the bytes of a file on the disk, and its length; its times may come later. Raises OSError."""
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` survive power loss, where a directory can be opened and synced."""
    if not fcntl:
        return
    fd = open_file(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
            errno.ENOSYS,
        ):  # as disks in user space and of others answer
            raise
    finally:
        os.close(fd)


can_move_what_is_open = fcntl is not None
"""Whether a directory can be renamed, and a file removed, while somebody has a file of it open."""


terminals_take_bytes = fcntl is not None
"""Whether what is written to a terminal is shown as UTF-8, and not in a code page of its own."""


def allowed_files() -> int | None:
    """How many files and sockets this process may have open in all; None: no bound is known."""
    if not resource:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def allow_files(most: int) -> None:
    """Have so many open files allowed, where they are not and the system agrees."""
    if not resource:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS may allow fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def bound_memory(most_bytes: int) -> None:
    """Let this process have so much address space, where the system can bound it."""
    if resource:
        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))


def bound_cpu(more_s: int) -> None:
    """End this process after so much more CPU time, where the system can."""
    if resource:
        with suppress(OSError, ValueError):
            used = resource.getrusage(resource.RUSAGE_SELF)
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + more_s, hard))


def is_running(process: int) -> bool:
    """Whether a process of that number runs on this machine; always, where nobody can be asked.

    One that has ended, and whose end nobody has asked for, does not, where Linux tells of it.
    """
    if not fcntl:  # Windows takes the question for a signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2][:1] != b"Z"  # the name may hold anything
    return True


def is_readable(socket_fd: int) -> bool:
    """Whether something can be read from a socket now, its end included."""
    if hasattr(select, "poll"):
        ready = select.poll()
        ready.register(socket_fd, select.POLLIN)
        return bool(ready.poll(0))
    return bool(select.select([socket_fd], [], [], 0)[0])


def wait_until_writable(fd: int) -> None:
    """Wait for room in a pipe or terminal."""
    if fcntl:
        select.select([], [fd], [])
    else:
        time.sleep(0.01)  # only sockets can be waited for there


ENDING = tuple(
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # the last is Windows' Ctrl-Break
    if (number := getattr(signal, name, None)) is not None
)
"""Signals that ask a process to end."""


_ALWAYS_HEEDED = (signal.SIGINT, signal.SIGTERM)


def is_ignored(number: int) -> bool:
    """Whether whoever started this process had a signal ignored, as `nohup` does."""
    return signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def signals_as_they_come() -> Iterator[AsyncIterator[int]]:
    """The signals of `ENDING` that are not ignored, as they come while this lasts; then all is as it was."""
    heeded = [signal.Signals(number) for number in ENDING if number in _ALWAYS_HEEDED or not is_ignored(number)]
    before = [(number, handler) for number in heeded if (handler := signal.getsignal(number)) is not None]
    try:
        with anyio.open_signal_receiver(*heeded) if fcntl else _handled(heeded) as signals:
            yield signals
    finally:
        for number, handler in before:  # asyncio leaves the system's own: the output is still to be written
            signal.signal(number, handler)


@contextmanager
def _handled(heeded: list[signal.Signals]) -> Iterator[AsyncIterator[int]]:
    """The same where an event loop takes no handlers."""
    loop, come = asyncio.get_running_loop(), asyncio.Queue[int]()

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(come.put_nowait, number)

    async def each() -> AsyncIterator[int]:
        while True:
            yield await come.get()

    for number in heeded:
        signal.signal(number, handle)
    yield each()


def others_can_read(mode: int) -> bool:
    """Whether the permissions of a file let other users of this machine read it; where files have none, no."""
    return fcntl is not None and bool(mode & 0o077)


def quoted(word: str) -> str:
    """A word of a command as it is typed, whatever is in it."""
    return shlex.quote(word) if fcntl else list2cmdline([word])
