"""The bytes and the characters of a text file: unpacked, decoded exactly, named for what they are when they are not."""

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import PurePath
from typing import BinaryIO, cast

from pipeline import machine
from pipeline.encodings import SAMPLE_BYTES, WIDE, fitting, is_damaged_utf8, is_utf8, wide_encoding
from pipeline.errors import InputError

BOM = "\ufeff"
_HEAD_BYTES = 4096
_GZIP = b"\x1f\x8b"
_UNPACK = "unpack it; of packed files only .gz is read"
_DISGUISES = (  # first bytes, what they begin, what to do
    (_GZIP, "packed with gzip", "name it so: `mv {path} {path}.gz`"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "save the sheet as CSV UTF-8, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the sheet as CSV UTF-8"),
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"SQLite format 3\0", "an SQLite file", "write its table to a CSV"),
    (b"%PDF-", "a PDF", "write its table to a CSV"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"<!DOCTYPE", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
)


def open_bytes(path: str) -> BinaryIO:
    """The file's bytes, unpacked when its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.endswith(".gz") else open(path, "rb")  # noqa: PTH123


@contextmanager
def open_lines(path: str, encoding: str | None, newline: str) -> Iterator[Iterator[str]]:
    """The lines of a text file (None: UTF-8) without its byte order mark; `newline` as for `open`.

    A byte that cannot be decoded becomes half a character (U+DC00 + byte), which no other text has: see `decoded`.
    """
    with io.TextIOWrapper(open_bytes(path), encoding or "utf-8", "pipeline.undecodable", newline) as text:
        yield chain([next(text, "").removeprefix(BOM)], text)


def decoded(text: str) -> bool:
    """Whether every byte of a text from `open_lines` could be decoded."""
    return text.isascii() or _has_no_half(text)


def undecodable(path: str, place: str, text: str, encoding: str | None) -> InputError:
    """The error for a `text`, at `place`, that is not `decoded`, with the encoding that does fit."""
    wrong = bytes(ord(char) & 0xFF for char in text if 0xDC00 <= ord(char) <= 0xDCFF)
    shown = "".join(f"\\x{byte:02x}" for byte in wrong[:8])
    hint = "name it with [input] encoding, or save the file as UTF-8"
    if fits := fitting_encoding(path):
        hint = f'`[input] encoding = "{fits}"` reads it'
    elif encoding is None and is_damaged_utf8(_start_of(path)):
        hint = "the rest is UTF-8: mend the place"
        if not path.endswith(".gz"):
            clean = f"clean{PurePath(path).suffix}"
            hint = (
                "the rest is UTF-8: mend the place, or leave such bytes out:"
                f" `iconv -c -f UTF-8 -t UTF-8 {machine.quoted(path)} > {clean}`"
            )
    return InputError(f"{place}: not {encoding or 'UTF-8'} ({shown})", hint)


def refuse_disguise(path: str, encoding: str | None) -> None:
    """Raise `InputError` for a file that is something else than its name says."""
    if path.endswith(".gz"):
        with open(path, "rb") as packed:  # noqa: PTH123
            start = packed.read(2)
        if start and start != _GZIP:
            raise InputError(f"{path} is not packed", f"name it so: `mv {path} {path.removesuffix('.gz')}`")
    with open_bytes(path) as file:
        head = file.read(_HEAD_BYTES)
    for start, what, hint in _DISGUISES:
        if head.startswith(start):
            if start == _GZIP and path.endswith(".gz"):
                raise InputError(f"{path} is packed twice", "unpack it once")
            raise InputError(f"{path} is {what}", hint.format(path=path))
    named = "utf-8" if encoding is None else codecs.lookup(encoding).name
    wide = wide_encoding(head, surely=True)
    if wide and not named.startswith(("utf-16", "utf-32")):
        raise InputError(f"{path} is {wide.upper()}, not {named.upper()}", f'`[input] encoding = "{wide}"` reads it')
    if named in ("utf-16", "utf-32") and not head.startswith(tuple(mark for mark, _ in WIDE)):
        hint = f'`[input] encoding = "{wide}"` reads it' if wide else "leave [input] encoding out, or name another"
        raise InputError(f"{path} has no byte order mark, as {named.upper()} needs it", hint)
    if encoding is not None and not wide:
        with open_bytes(path) as file:
            sample = file.read(SAMPLE_BYTES)
        if is_utf8(sample, named):
            raise InputError(f"{path} is UTF-8, not {encoding}", "leave [input] encoding out")


def encoding_of(path: str) -> str | None:
    """The encoding that has to be named for a text file to be read; None where it is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_bytes(path) as file:
        block = file.read(SAMPLE_BYTES)
        if wide := wide_encoding(block[:_HEAD_BYTES], surely=True):
            return wide
        try:
            while block:
                decoder.decode(block)
                block = file.read(SAMPLE_BYTES)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return fitting_encoding(path)
    return None


def fitting_encoding(path: str) -> str | None:
    """The encoding in which the start of a file that is not UTF-8 reads as text of a language that uses it."""
    return fitting(_start_of(path))


def _start_of(path: str) -> bytes:
    with open_bytes(path) as file:
        return file.read(SAMPLE_BYTES)


def _has_no_half(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("pipeline.undecodable", _mark)
