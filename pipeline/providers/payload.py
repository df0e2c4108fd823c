"""The bytes of a prompt's files, read as the request is built and not a moment before."""

import errno
import os
import stat
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import BinaryIO, TypeVar

import anyio.to_thread

from pipeline import machine
from pipeline.prompts import Prompt
from pipeline.records import Failure, Media

T = TypeVar("T")


class NotSent(Exception):
    """A file cannot be sent; its message says why, without the file's name."""


def base64_of(file: Media) -> str:
    """The content of a file. Raises `NotSent` where it is not what it was when the row was looked at."""
    if file.data is not None:
        return b64encode(file.data).decode()
    if not file.path:
        raise NotSent("a file that is elsewhere was not fetched")
    try:
        with opened(file.path) as source:
            content = source.read(file.size_bytes + 1)
    except OSError as error:
        raise NotSent(f"a file could not be read any more: {error.strerror or type(error).__name__}") from None
    if blake2b(content, digest_size=16).hexdigest() != file.digest:
        raise NotSent("a file changed after the row was looked at")
    return b64encode(content).decode()


def opened(path: str) -> BinaryIO:
    """A file that was one when its row was looked at: one that is a pipe or a device by now holds nobody up."""
    source = open(path, "rb", opener=lambda name, flags: machine.open_file(name, flags | machine.NO_WAITING))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
        source.close()
        raise OSError(errno.EINVAL, "it is no file")
    return source


def beyond(files: Sequence[Media], inline_bytes: int) -> tuple[Media, ...]:
    """The largest of a prompt's files, without which the others are no more than `inline_bytes` together."""
    within = [file for file in files if not file.uri]
    left = sum(file.size_bytes for file in within)
    large: list[Media] = []
    for file in sorted(within, key=lambda file: -file.size_bytes):
        if left <= inline_bytes:
            break
        left -= file.size_bytes
        large.append(file)
    return tuple(large)


async def built(prompt: Prompt, build: Callable[[], T]) -> T | Failure:
    """What `build` makes, in a thread where there are files to be read; a failure where one cannot be."""
    if not prompt.media:
        return build()
    try:
        return await anyio.to_thread.run_sync(build)
    except NotSent as trouble:
        return Failure("reject", "file", str(trouble), sent=False)
