"""A stand-in for Windows: what it lacks is taken away, and files keep its rules. Run as `python without_posix.py`.

Each line of stdin is a command line of ours, as a JSON list; each line of stdout the exit code, and what it said. Files
keep two rules of Windows: what is open in this process (or mapped into it) can be neither moved nor removed, nor can a
directory with such a file, and a rename replaces nothing. Locks are those of `msvcrt`, made of what Linux has.
"""

import io
import json
import os
import select
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = ("fcntl", "grp", "pwd", "readline", "resource", "termios", "tty", "uvloop")
OS = (
    "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC chown copy_file_range fchmod fchown fdatasync fork forkpty"
    " geteuid getgid getpgid getuid killpg lchown nice openpty posix_fallocate pread pwrite sched_getaffinity sendfile"
    " setsid statvfs wait4"
)
SIGNALS = "SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD"
SELECT = "poll epoll"


def _msvcrt() -> ModuleType:
    import fcntl

    flock, ours, unlock = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
    module = ModuleType("msvcrt")
    module.LK_NBLCK, module.LK_UNLCK = 2, 0  # type: ignore[attr-defined]

    def locking(fd: int, mode: int, size: int) -> None:
        try:
            flock(fd, ours if mode else unlock)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error

    module.locking = locking  # type: ignore[attr-defined]
    return module


def _held() -> set[str]:
    """Paths of all files that this process has open or mapped."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
        except OSError:
            continue
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        return found | {line.split(maxsplit=5)[-1].strip() for line in maps}


def _keeps_rules(function: Any, moves: bool, replaces: bool) -> Any:
    def call(path: Any, *others: Any, **options: Any) -> Any:
        if options.get("dir_fd") is None and options.get("src_dir_fd") is None:
            targets = [path, *(others[:1] if moves else ())]
            for each in map(os.path.realpath, map(os.fspath, targets)):
                if any(held == each or held.startswith(f"{each}/") for held in _held()):
                    raise PermissionError(13, "somebody has it open", str(each))
            if moves and not replaces and os.path.lexists(targets[1]):
                raise FileExistsError(17, "it is there", str(targets[1]))
        return function(path, *others, **options)

    return call


def _opens_no_directory(function: Any) -> Any:
    def call(path: Any, flags: int, *others: Any, **options: Any) -> Any:
        if options.get("dir_fd") is None and os.path.isdir(path):  # noqa: PTH112
            raise PermissionError(13, "it is a directory", str(path))
        return function(path, flags, *others, **options)

    return call


def become() -> None:
    """Have this process know no more than Windows does."""
    import asyncio  # its Unix loop is what we run on, and needs what goes
    import ssl  # noqa: F401
    import subprocess  # noqa: F401
    import tempfile  # noqa: F401

    sys.modules["msvcrt"] = _msvcrt()
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for names, module in ((OS, os), (SIGNALS, signal), (SELECT, select)):
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)

    def refuse(*_: object) -> None:
        raise NotImplementedError

    setattr(asyncio.unix_events._UnixSelectorEventLoop, "add_signal_handler", refuse)  # noqa: B010
    os.rename = _keeps_rules(os.rename, moves=True, replaces=False)
    os.replace = _keeps_rules(os.replace, moves=True, replaces=True)
    os.unlink = os.remove = _keeps_rules(os.unlink, moves=False, replaces=False)
    os.open = _opens_no_directory(os.open)


def _ran(arguments: list[str]) -> dict[str, object]:
    from pipeline.cli import main

    sys.argv = ["pipeline", *arguments]
    streams = {name: io.BytesIO() for name in ("out", "err")}
    out, err = (io.TextIOWrapper(stream, "utf-8", write_through=True) for stream in streams.values())
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return {"code": code or 0, **{name: stream.getvalue().decode() for name, stream in streams.items()}}


if __name__ == "__main__":
    become()
    if sys.argv[1:] == ["lock"]:
        from pipeline.store.manifest import Lock

        Lock(Path("lock"))
        print("locked", flush=True)
        sys.stdin.read()
    else:
        for line in sys.stdin:
            print(json.dumps(_ran(json.loads(line))), flush=True)
