"""How large what is in a file is: pixels, pages, seconds. Headers are read, nothing is decoded."""

import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from pipeline.media.forms import HEAD_BYTES, form_of

_SOUND_BYTES_PER_S = 16_000
"""A second of sound where its length cannot be read: 128 kbit/s."""
_VIDEO_BYTES_PER_S = 250_000
"""A second of video where its length cannot be read: 2 Mbit/s."""
_PAGE_BYTES = 50_000
"""A page of a PDF whose pages cannot be counted, as of an encrypted one."""
_MOST_PAGES = 1000
"""Of a PDF, as Google's page on documents has it."""
_MOST_COUNTED_BYTES = 64_000_000
_MOST_READS = 20_000
"""Of one header: some 20 ms."""
_MOST_INFLATED = 2**25  # bytes of one PDF
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a file; `guessed`: its pages or seconds are told by its length alone."""

    mime_type: str | None
    size_bytes: int
    width: int = 0
    height: int = 0
    pages: int = 0
    seconds: float = 0.0
    guessed: bool = False


UNSEEN = Facts(None, 0, pages=5, seconds=60.0, guessed=True)
"""What is taken of a file that nobody has looked at: an address that the service opens itself."""


def facts_of(file: BinaryIO, size_bytes: int) -> Facts:
    """What a seekable file is and how large; raises `OSError` only. A PDF is read as a whole, others in part."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    form = form_of(head)
    kind = "" if form is None else form.partition("/")[0]
    if kind == "image":
        width, height = _pixels(file, form or "", head)
        return Facts(form, size_bytes, width, height)
    if form == "application/pdf":
        file.seek(0)
        pages = _pages(file.read()) if size_bytes <= _MOST_COUNTED_BYTES else 0
        return Facts(form, size_bytes, pages=pages or _pages_by_length(size_bytes), guessed=not pages)
    if kind in ("audio", "video"):
        seconds = _seconds(file)
        per_s = _SOUND_BYTES_PER_S if kind == "audio" else _VIDEO_BYTES_PER_S
        return Facts(form, size_bytes, seconds=seconds or size_bytes / per_s, guessed=not seconds)
    return Facts(form, size_bytes)


# --- pixels -----------------------------------------------------------------------------------------------------------


def _pixels(file: BinaryIO, form: str, head: bytes) -> tuple[int, int]:
    """Width and height; 0, 0 where the header does not say them, as in HEIC."""
    if form == "image/png":
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if form == "image/gif":
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if form == "image/webp":
        return _webp_pixels(head)
    return _jpeg_pixels(file) if form == "image/jpeg" else (0, 0)


def _webp_pixels(head: bytes) -> tuple[int, int]:
    chunk = head[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _jpeg_pixels(file: BinaryIO) -> tuple[int, int]:
    """From the first frame header: segments are passed over, however long they are."""
    file.seek(2)
    for _ in range(_MOST_READS):
        marker = file.read(4)
        if len(marker) < 4 or marker[0] != 0xFF:
            break
        if marker[1] == 0xFF:  # a fill byte
            file.seek(-3, io.SEEK_CUR)
            continue
        length = int.from_bytes(marker[2:], "big")
        if marker[1] in _JPEG_SIZES:
            frame = file.read(5)
            return int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")
        if length < 2:
            break
        file.seek(length - 2, io.SEEK_CUR)
    return 0, 0


# --- pages ------------------------------------------------------------------------------------------------------------

_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_OBJECTS = re.compile(rb"/Type\s*/ObjStm\b")
_STREAM = re.compile(rb"stream\r?\n")


def _pages(content: bytes) -> int:
    """Page objects of a PDF, those in compressed object streams too; 0 where none can be read.

    An updated PDF may hold a page twice: the count is then too high, never too low.
    """
    return _count(content) + sum(map(_count, _inflated(content)))


def _count(content: bytes) -> int:
    return sum(1 for _ in _PAGE.finditer(content))


def _inflated(content: bytes) -> Iterator[bytes]:
    left, at = _MOST_INFLATED, 0
    while left > 0 and (found := _OBJECTS.search(content, at)):
        at = found.end()
        stream = _STREAM.search(content, at, at + HEAD_BYTES)
        if stream is None:
            continue
        end = content.find(b"endstream", stream.end())
        if end < 0:
            return
        at = end  # what lies within is no object of its own, and is looked at once
        try:
            inner = zlib.decompressobj().decompress(content[stream.end() : end], left)
        except zlib.error:
            continue
        left -= len(inner)
        yield inner


def _pages_by_length(size_bytes: int) -> int:
    return min(_MOST_PAGES, max(1, size_bytes // _PAGE_BYTES))


# --- seconds ----------------------------------------------------------------------------------------------------------


class _Patient:
    """A file that may be read so often and no oftener: a damaged one is walked through in steps of a few bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MOST_READS
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise OSError("the header does not end")
        return self._file.read(size)


def _seconds(file: BinaryIO) -> float:
    """How long it plays, by its header; 0 where that cannot be read, or tinytag is not installed (`[media]`)."""
    try:
        from tinytag import TinyTag
    except ImportError:
        return 0.0
    patient = _Patient(file)
    patient.seek(0)
    try:
        return float(TinyTag.get(file_obj=cast(BinaryIO, patient), tags=False).duration or 0.0)
    except Exception:  # of a file that only begins as one: it is foreign bytes that are read, in ways of the library
        return 0.0
