"""`.env` files: one variable is read from one, and what lets others read it is told."""

import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline import machine

MOST_FILE_BYTES = 1024 * 1024
"""Of a `.env` file: a larger one is something else."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What a `.env` file gave: the value, or what is to be said of the file where it gave none."""

    value: str = ""
    note: str = ""


def files(beside: Path) -> list[Path]:
    """The `.env` files that may hold a key, in the order in which they are looked at."""
    found = [beside / ".env"]
    try:
        if beside.resolve() != Path.cwd():
            found.append(Path(".env"))
    except OSError:
        pass
    return found


def read_file(path: Path, name: str) -> Looked:
    """The value of one variable in a `.env` file; no other is looked at, and none is put into the environment."""
    try:
        # A pipe would be waited for without end; a directory of that name is a virtual environment.
        handle = machine.open_file(path, os.O_RDONLY | machine.NO_WAITING)
    except (FileNotFoundError, NotADirectoryError):
        return Looked()
    except OSError as error:
        return Looked(note=f"{path} cannot be read: {error.strerror}")
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            return Looked()
        if not stat.S_ISREG(mode):
            return Looked(note=f"{path} is no plain file, and is not read")
        raw = os.read(handle, MOST_FILE_BYTES + 1)
    except OSError as error:
        return Looked(note=f"{path} cannot be read: {error.strerror}")
    finally:
        os.close(handle)
    if len(raw) > MOST_FILE_BYTES:
        return Looked(note=f"{path} is larger than 1 MB, and is not read")
    try:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw:
            raise UnicodeError
        text = raw.decode("utf-8-sig")
    except UnicodeError:
        return Looked(note=f"{path} is not UTF-8, and is not read: save it as UTF-8")
    return _of_lines(path, text, name)


_ASSIGNED = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=(.*)", re.DOTALL)
_QUOTED = re.compile(r"""(?:"([^"]*)"|'([^']*)')\s*(?:#.*)?""", re.DOTALL)


def _of_lines(path: Path, text: str, name: str) -> Looked:
    """`NAME=value`, as shells and other readers of such files take it; the last line with the name counts."""
    found = Looked()
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        assigned = _ASSIGNED.fullmatch(line)
        if assigned is None:
            if re.match(rf"\s*(?:export\s+|set\s+)?{name}\b", line):
                found = Looked(note=f"{path}, line {number} has {name}, but not as {name}=…")
            continue
        if assigned[1] != name:
            continue
        value = assigned[2].strip()
        if value.startswith(('"', "'")):
            quoted = _QUOTED.fullmatch(value)
            if quoted is None:
                found = Looked(note=f"{path}, line {number}: the quotes of {name} do not end on the line")
                continue
            value = (quoted[1] or quoted[2] or "").strip()
        else:
            value = "" if value.startswith("#") else re.split(r"\s#", value, maxsplit=1)[0].strip()
        found = Looked(value, "" if value else f"{path}, line {number}: {name} is blank")
    return found


def exposed(path: Path) -> list[str]:
    """What lets others read a `.env` file: its mode, and git."""
    found = []
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        mode = 0
    if machine.others_can_read(mode):
        found.append(f"{path} can be read by others on this machine (mode {mode:03o}): `chmod 600 {path}`")
    if _git(path, "ls-files", "--error-unmatch", path.name) == 0:
        found.append(
            f"git tracks {path}: whoever has the repository has the key. `git rm --cached {path}`, name it in"
            " .gitignore, and make a new key"
        )
    elif _git(path, "check-ignore", "-q", path.name) == 1:
        found.append(f"git does not ignore {path}, and would commit the key: `echo .env >> .gitignore`")
    return found


def _git(path: Path, *arguments: str) -> int | None:
    """Exit code of a question to git about a file; None outside of a repository, or without git."""
    try:
        directory = path.parent.resolve()
        if not any((each / ".git").exists() for each in (directory, *directory.parents)):
            return None
        # Nothing that the repository's own configuration names is run.
        command = ["git", "-c", "core.fsmonitor=false", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=5, check=False).returncode
    except (OSError, subprocess.SubprocessError):
        return None
