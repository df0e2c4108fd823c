"""A key that is refused in the middle of a run is read again from where it came: it may have been changed there."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import anyio
import anyio.to_thread

from pipeline import machine
from pipeline.errors import PipelineError
from pipeline.job import Job, key_of
from pipeline.keys import Key
from pipeline.places import projects_file
from pipeline.targets import Target, project_of

LONGEST_S = 60.0
"""For a look: meanwhile no request of that target goes on whose key was refused."""
_MOST_BYTES = 1024 * 1024


class Renewal:
    """Looks for another key of one target.

    `on_found` is told of each, with the name that its project has by itself, and of what is there and cannot be one.
    """

    def __init__(self, job: Job, target: Target, key: Key) -> None:
        self._job, self.target, self._key = job, target, key
        self.on_found: Callable[[str, str | None], None] = lambda message, project: None

    async def __call__(self) -> str:
        """The key as it is now; "" where there is none that could be one."""
        found = None
        with anyio.move_on_after(LONGEST_S):  # a keyring may wait for somebody to unlock it
            try:
                found = await anyio.to_thread.run_sync(partial(key_of, self._job, again=True), abandon_on_cancel=True)
            except PipelineError as error:
                self.on_found(
                    f"{self.target.label} refused the key, and there is no other: {error.message.splitlines()[0]}", None
                )
        if found is None:
            return ""
        if found.value != self._key.value:
            self._key = found
            message = f"{self.target.label} refused the key, and {found.where} holds another one: the run goes on"
            self.on_found(message, project_of(found.value))
        return found.value


# A run counts its quota and its spending under one name from its start to its end, that of its first key. Were the next
# run, which begins with the new key, to count under another name, a cap of the day would begin at nothing, and the
# limits that were learned would be gone. So the new key is noted as the successor of the old one. A key that is changed
# between two runs is nobody's successor, as nobody sees it: its caps begin anew, as `[budget]` says.


def known_project(key: str) -> str:
    """The name under which what a key uses is counted: its own, or that of the key whose successor it is."""
    name = project_of(key)
    with suppress(OSError, PipelineError, ValueError), projects_file().open(encoding="ascii") as file:
        lines = (line.split() for line in file.read(_MOST_BYTES).splitlines())
        return {line[0]: line[1] for line in lines if len(line) == 2}.get(name, name)
    return name


def succeeds(new: str, old: str) -> None:
    """Note that what the project `new` uses is counted as that of `old`. Raises `OSError` and `PipelineError`."""
    path = projects_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = machine.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, f"{new} {old}\n".encode())
    finally:
        os.close(handle)
