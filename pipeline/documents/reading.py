"""What one document says: its text, title and pages, or why it has none."""

import hashlib
import os
import re
import stat
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from pipeline import machine
from pipeline.documents import formats
from pipeline.documents.decoding import NoText, decoded
from pipeline.documents.finding import Kind

MOST_FILE_BYTES = 256_000_000
"""Of one document; a larger one is not read."""
MOST_TEXT_BYTES = 64_000_000
"""Of the text of one document, in UTF-8: as much as any model reads many times over."""
VERSION = 4
"""Of what is made of a file: texts that another version made are made anew."""
_BLOCK_BYTES = 2**20
_TITLE = re.compile(r"^ {0,3}#{1,2}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_MOST_TITLE = 300
_SOUGHT = 10_000  # characters in which a title may begin


@dataclass(frozen=True, slots=True)
class Read:
    """A document as it was read; with a `trouble` there is no text."""

    text: str = ""
    title: str | None = None
    pages: int | None = None
    bare: int = 0  # pages that have no text, and show something
    scan: bool = False  # most of its pages have none: they are pictures
    trouble: str = ""

    def facts(self) -> dict[str, Any]:
        """By their names."""
        return asdict(self)

    @property
    def size_bytes(self) -> int:
        """Of the text in UTF-8."""
        return len(self.text.encode())


def opened(at: str) -> tuple[BinaryIO, int]:
    """A document's file, and its length. Raises `NoText`."""
    try:
        descriptor = machine.open_file(at, os.O_RDONLY | machine.NO_WAITING)
        seen = os.fstat(descriptor)
    except OSError as error:
        raise NoText(f"it cannot be read: {error.strerror}") from None
    file = os.fdopen(descriptor, "rb")
    why = ""
    if not stat.S_ISREG(seen.st_mode):  # a pipe by now
        why = "it is no file"
    elif seen.st_size > MOST_FILE_BYTES:
        why = f"it has {seen.st_size:,} bytes, and {MOST_FILE_BYTES:,} are the most of a document"
    elif not seen.st_size:
        why = "it is empty"
    if why:
        file.close()
        raise NoText(why)
    return file, seen.st_size


def digest_of(at: str) -> str:
    """The name of a document's content. Raises `NoText` for a file that is not read."""
    file, _ = opened(at)
    digest = hashlib.blake2b(digest_size=16)
    with file:
        try:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        except OSError as error:
            raise NoText(f"it cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def read(at: str, kind: Kind, encoding: str | None) -> tuple[str, Read]:
    """What a document says, with the name of the content that says so. Raises `NoText` for a file that is not read."""
    file, _ = opened(at)
    with file:
        try:
            content = file.read(MOST_FILE_BYTES + 1)
        except OSError as error:
            raise NoText(f"it cannot be read: {error.strerror}") from None
    if len(content) > MOST_FILE_BYTES:
        raise NoText("it grew while it was read")
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        found = _read(content, kind, encoding)
        if found.size_bytes > MOST_TEXT_BYTES:
            raise NoText(f"its text has more than {MOST_TEXT_BYTES:,} bytes, the most of a document")
        if not found.text.strip() and not found.scan:
            raise NoText("it holds no text")
        return digest, found
    except NoText as why:
        return digest, Read(trouble=str(why))


def _read(content: bytes, kind: Kind, encoding: str | None) -> Read:
    if kind == "pdf":
        text, title, pages, bare, scan = formats.pdf(content)
        return Read("" if scan else text, title, pages, bare, scan)
    if kind == "text":
        return Read(decoded(content, encoding))
    if kind == "markdown":
        text, title = decoded(content, encoding), None
    elif kind == "html":
        text, title = formats.html(content, encoding)
    else:
        text, title = formats.docx(content) if kind == "docx" else formats.epub(content)
    return Read(text, (title or title_of(text) or "")[:_MOST_TITLE] or None)


def title_of(markdown: str) -> str | None:
    """The first heading of the two highest levels."""
    found = _TITLE.search(markdown[:_SOUGHT])
    return found[1] if found else None
