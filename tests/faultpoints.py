"""Real runs whose disk fails, or that are killed, at a chosen place: a shim in C beneath Python, polars and SQLite.

`Folder` forks a warm process for each run: a fresh interpreter would take a second. What is below its folder counts:
run directory, output, state and cache of the user. Run as a program, this file is that warm process.
"""

import ctypes
import errno
import importlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

WRITE, SYNC, RENAME, UNLINK, CREATE, TRUNCATE, MKDIR, LOCK, CLOSE = (1 << number for number in range(9))
ALL = 2**9 - 1
KILL = 0
_BOARD_BYTES = 3 * ctypes.sizeof(ctypes.c_long)
SEAL_ROWS = 7  # so that many places are those of a seal


class Fault(NamedTuple):
    """What happens from place `at` on: at the first that is one of `kinds`, or with `lasting` at every one."""

    at: int
    error: int = KILL
    kinds: int = ALL
    lasting: bool = False


class Ran(NamedTuple):
    """How one run ended; `code` is -9 after SIGKILL."""

    code: int
    out: str
    err: str
    places: int
    struck: int

    @property
    def json(self) -> Any:
        return json.loads(self.out)


FAULTS: dict[str, Fault] = {
    "kill": Fault(0),
    "EIO once": Fault(0, errno.EIO),
    "full": Fault(0, errno.ENOSPC, WRITE | CREATE | MKDIR | TRUNCATE, True),
    "kill ": Fault(0),
    "read-only": Fault(0, errno.EROFS, ALL & ~(CLOSE | SYNC | LOCK), True),
    "full once": Fault(0, errno.ENOSPC, WRITE | CREATE | MKDIR),
    "kill  ": Fault(0),
    "EIO from then on": Fault(0, errno.EIO, ALL & ~CLOSE, True),
    "descriptors": Fault(0, errno.EMFILE, CREATE),
    "rights": Fault(0, errno.EACCES, CREATE | RENAME | UNLINK | MKDIR, True),
    "tidying": Fault(0, errno.EIO, UNLINK, True),
    "locks": Fault(0, errno.ENOLCK, LOCK),
}
"""What is done at the places in turn; half of what may happen is a kill at the place itself."""


def compiled(directory: Path) -> Path | None:
    """The shim, built in that directory; None where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = directory / "faultpoints.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


class Runs:
    """The warm process; `run` starts one command in a fork of it."""

    def __init__(self, library: Path, setup: str = "") -> None:
        """`setup` is a module of this folder that makes waits short before the first run."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(library), setup],
            env=environment | {"LD_PRELOAD": str(library), "PYTHONPATH": str(Path(__file__).parent.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        folder: Path,
        url: str,
        *arguments: str,
        fault: Fault | None = None,
        key: str = "AQ.test",
        kill_after_s: float | None = None,
    ) -> Ran:
        """`pipeline` with these arguments in `folder`, all of its places below it."""
        state = {"XDG_STATE_HOME": f"{folder}/state", "XDG_CACHE_HOME": f"{folder}/cache"}
        order = {
            "folder": str(folder),
            "arguments": arguments,
            "environment": state
            | {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": key, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": key},
            "fault": fault or Fault(-1),
            "kill_after_s": kill_after_s,
        }
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return Ran(*json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """End the warm process."""
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.wait(timeout=10)
        self._server.stdout.close()


# ---- the warm process

PATIENCE_S = 60.0


def _serve(library: str, setup: str) -> None:
    import aiohttp  # noqa: F401
    import polars  # noqa: F401

    from pipeline.batch import desk, submitting, watching
    from pipeline.cli import main  # noqa: F401
    from pipeline.store import batched
    from pipeline.store.run import RunStore

    assert RunStore.__init__.__kwdefaults__
    RunStore.__init__.__kwdefaults__["seal_rows"] = SEAL_ROWS
    batched.PART_CALLS = SEAL_ROWS
    # A service of this machine answers at once.
    submitting.FENCE_S, submitting.LOOK_S, submitting.PAUSES_S = 0.3, 0.1, (0.05, 0.1, 0.1, 0.1)
    watching.POLL_S = (0.05, 0.1)
    vars(desk)["POLL_S"] = watching.POLL_S
    if setup:
        importlib.import_module(setup)
    shim = ctypes.CDLL(library)
    board = mmap.mmap(-1, mmap.PAGESIZE)
    for line in sys.stdin:
        order = json.loads(line)
        board[:_BOARD_BYTES] = bytes(_BOARD_BYTES)
        outs = [Path(f"{order['folder']}.{name}") for name in ("out", "err")]
        child = os.fork()
        if not child:
            _become(order, shim, board, outs)
        status = _wait(child, order["kill_after_s"])
        taken, struck, _ = (
            int.from_bytes(board[at : at + 8], sys.byteorder) for at in range(0, _BOARD_BYTES, _BOARD_BYTES // 3)
        )
        code = os.waitstatus_to_exitcode(status)
        said = [path.read_text("utf-8", "replace") for path in outs]
        sys.stdout.write(json.dumps([code, *said, taken, struck]) + "\n")
        sys.stdout.flush()


def _wait(child: int, kill_after_s: float | None) -> int:
    patience_s = PATIENCE_S if kill_after_s is None else kill_after_s
    give_up_at = time.monotonic() + patience_s
    while time.monotonic() < give_up_at:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.005)  # real time: another process is being watched
    os.kill(child, signal.SIGABRT if kill_after_s is None else signal.SIGKILL)  # the former is told as -6: it hung
    return os.waitpid(child, 0)[1]


def _become(order: dict[str, Any], shim: ctypes.CDLL, board: mmap.mmap, outs: list[Path]) -> None:
    code = 99
    try:
        os.chdir(order["folder"])
        os.environ.update(order["environment"])
        for number, path in ((0, Path(os.devnull)), (1, outs[0]), (2, outs[1])):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, number)
            os.close(fd)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        sys.argv = ["pipeline", *order["arguments"]]
        at, error, kinds, lasting = order["fault"]
        address = ctypes.addressof(ctypes.c_char.from_buffer(board))
        shim.fault_arm(
            order["folder"].encode(),
            ctypes.c_long(at),
            error,
            kinds,
            int(lasting),
            ctypes.c_void_p(address),
        )
        from pipeline.cli import main

        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        shim.fault_arm(b"", ctypes.c_long(-1), 0, 0, 0, None)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
