"""The characters of a text file, exactly, or why they cannot be told."""

import codecs

from pipeline.encodings import SAMPLE_BYTES, WIDE, fitting, is_utf8

_DISGUISES = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a zip archive, as .docx and .epub are"),
    (b"\xd0\xcf\x11\xe0", "an old Word file"),
    (b"\x1f\x8b", "packed with gzip"),
    (b"{\\rtf", "an RTF file"),
)

_AS_BROWSERS = {
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("iso8859-1", "ascii"), "cp1252"),
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
"""Encodings that web pages declare, and the wider ones that they are read in (encoding.spec.whatwg.org)."""


class NoText(Exception):
    """A file has no text that could be read; its message says why, in words that follow the file's name."""


class Broken(NoText):
    """What is in a file broke its reader, or kept it too long: another time it would again."""


def decoded(content: bytes, encoding: str | None, declared: str | None = None) -> str:
    """A byte order mark decides, then UTF-8 where it is that beyond doubt, then what the file itself has `declared`,
    then the named `encoding`. Raises `NoText` where none of them fits: nothing is guessed.
    """
    if disguise := next((what for start, what in _DISGUISES if content.startswith(start)), None):
        raise NoText(f"it is {disguise}, whatever its name says")
    name = next((name for mark, name in WIDE if content.startswith(mark)), None)
    if name is None:
        other = _widened(declared) if declared and _is_known(declared) else encoding
        usual = other is None or is_utf8(content[:SAMPLE_BYTES], codecs.lookup(other).name)
        name = "utf-8-sig" if usual else other
    assert name is not None
    try:
        text = content.decode(name)
    except UnicodeError:
        try:  # what cannot be the other one is UTF-8 without a doubt
            text = content.decode("utf-8-sig")
        except UnicodeError:
            raise NoText(_misfit(content, name)) from None
    if "\0" in text:
        raise NoText("it holds NUL bytes, as no text does")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _misfit(content: bytes, name: str) -> str:
    told = "UTF-8" if name == "utf-8-sig" else name
    fits = fitting(content[:SAMPLE_BYTES])
    if fits and fits != name:
        return f'it is not {told}: `[input] encoding = "{fits}"` may read it'
    return f"it is not {told}: name another with [input] encoding"


def _widened(declared: str) -> str:
    name = codecs.lookup(declared).name
    return _AS_BROWSERS.get(name, name)


def _is_known(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding)._is_text_encoding
    except (LookupError, ValueError):
        return False
