"""The bytes and the characters of a text file: unpacked, decoded exactly, named for what they are when they are not."""

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import BinaryIO, cast

from pipeline.errors import InputError

BOM = "\ufeff"
_HEAD_BYTES = 4096
_SAMPLE_BYTES = 2**18
_NOT_ASCII = re.compile("(?<![A-Za-z])[^\x00-\x7f](?![A-Za-z])")  # a letter between ASCII letters is a Latin one
_GZIP = b"\x1f\x8b"
_UNPACK = "unpack it; of packed files only .gz is read"
_DISGUISES = (  # first bytes, what they begin, what to do
    (_GZIP, "packed with gzip", "name it so: `mv {path} {path}.gz`"),
    (b"PK\x03\x04", "a zip archive, as an Excel workbook is", "save the sheet as CSV UTF-8, or unpack the archive"),
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
_WESTERN = ("cp1252", "iso8859-1", "iso8859-15", "mac-roman")
_WIDE = (  # UTF-32 first: its mark begins as that of UTF-16 does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
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
    fits = fitting_encoding(path)
    hint = "name it with [input] encoding, or save the file as UTF-8"
    if fits:
        hint = f'`[input] encoding = "{fits}"` reads it'
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
    wide = _wide(head, surely=True)
    if wide and not named.startswith(("utf-16", "utf-32")):
        raise InputError(f"{path} is {wide.upper()}, not {named.upper()}", f'`[input] encoding = "{wide}"` reads it')
    if named in ("utf-16", "utf-32") and not head.startswith(tuple(mark for mark, _ in _WIDE)):
        hint = f'`[input] encoding = "{wide}"` reads it' if wide else "leave [input] encoding out, or name another"
        raise InputError(f"{path} has no byte order mark, as {named.upper()} needs it", hint)
    if encoding is not None and not wide and _is_utf8(path, named):
        raise InputError(f"{path} is UTF-8, not {encoding}", "leave [input] encoding out")


def _is_utf8(path: str, named: str) -> bool:
    """Whether the start of a file for which another encoding is named is UTF-8 beyond doubt.

    One Chinese character in five of GBK is two bytes of UTF-8 as well, six of them in a row are one in 10,000; what
    is three bytes of UTF-8 is none of the common ones. In Western encodings no text has such pairs.
    """
    with open_bytes(path) as file:
        sample = file.read(_SAMPLE_BYTES)
    if sample.startswith(codecs.BOM_UTF8):
        return True
    try:
        text = (sample[: sample.rfind(b"\n") + 1] or sample).decode()
    except UnicodeDecodeError:
        return False
    weight = sum(1 if char < "\u0800" else 3 for char in text if char > "\x7f")
    return weight >= (1 if named in _WESTERN else 6)


def fitting_encoding(path: str) -> str | None:
    """The encoding in which the start of a file that is not UTF-8 reads as text of a language that uses it."""
    with open_bytes(path) as file:
        sample = file.read(_SAMPLE_BYTES)
    if wide := _wide(sample, surely=False):
        return wide
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    scores = {name: _share(sample, name) for name in ("euc_jp", "shift_jis", "euc_kr", "big5", "gb18030", "cp1251")}
    best = max(scores, key=lambda name: scores[name])
    if scores[best] > 0.5:
        return best
    for name in ("cp1252", "latin-1"):  # latin-1 has a character for every byte
        try:
            sample.decode(name)
        except UnicodeDecodeError:
            continue
        return name
    return None


def _share(sample: bytes, encoding: str) -> float:
    """How many of the characters that are not ASCII are such as fill texts in this encoding; 0 where it fails."""
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError:
        return 0
    others = _NOT_ASCII.findall(text)
    if encoding == "cp1251" and len(others) < 4:  # a Latin letter or two by themselves
        return 0
    return sum(_is_common(char, encoding) for char in others) / len(others) if others else 0


def _is_common(char: str, encoding: str) -> bool:
    if encoding in ("shift_jis", "euc_jp"):
        return "ぁ" <= char <= "ヾ" or char in "、。「」・ー々"
    if encoding == "euc_kr":
        return "가" <= char <= "힣"
    if encoding == "cp1251":
        return "а" <= char <= "я" or char == "ё"
    lead = char.encode(encoding)[0]
    if encoding == "big5":
        return 0xA4 <= lead <= 0xC6 or char in ",。、「」!?:;"
    return len(char.encode(encoding)) == 2 and (0xB0 <= lead <= 0xD7 or char in ",。、“”!?:;()《》—…")


def _wide(head: bytes, surely: bool) -> str | None:
    """UTF-16 or UTF-32, told by the byte order mark, or UTF-16 without one, told by its line ends.

    `surely`: only where the first line is ASCII for the greater part, since a UTF-8 file may hold NUL too.
    """
    for mark, name in _WIDE:
        if head.startswith(mark):
            return name
    even = head[: len(head) // 2 * 2]
    for name, zeros in (("utf-16-le", even[1::2]), ("utf-16-be", even[::2])):
        if b"\0" not in zeros or zeros.count(b"\0") != head.count(b"\0"):
            continue
        line, end, _ = even.decode(name, "replace").partition("\n")
        if end and (not surely or 2 * sum(map(str.isascii, line)) > len(line) > 1):
            return name
    return None


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
