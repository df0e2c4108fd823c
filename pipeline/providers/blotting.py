"""The key is blotted out of whatever a server sends back, before anything is written or shown."""

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import quote

BLOT = b"***"
LEAST_KEY_CHARS = 8
_SURE_CHARS = 6  # letters and digits in a row that stay as they are in a URL, in JSON and in HTML


def blotted(body: bytes, key: str) -> bytes:
    """The bytes without the key: as it is, in base64 and hexadecimal, escaped for a URL, JSON or HTML.

    A key that may be a word or a number of any answer ("test", "12345678") is no secret and is let be.
    """
    if len(key) < LEAST_KEY_CHARS or key.isalpha() or key.isdigit():
        return body
    signs, pattern = _forms(key)
    for sign in signs:  # a third faster than any()
        if sign in body:
            return pattern.sub(BLOT, body)
    return body


@lru_cache(maxsize=8)
def _forms(key: str) -> tuple[tuple[bytes, ...], re.Pattern[bytes]]:
    """What every body is searched for, which is fast, and what is replaced where some of it was found."""
    raw = key.encode()
    codes = {inner for encode in (b64encode, urlsafe_b64encode) for inner in _within(raw, encode)}
    codes |= {raw.hex().encode(), raw.hex().upper().encode()}
    runs = re.findall(rb"[A-Za-z0-9]+", raw)
    longest = max(runs, key=len, default=b"")
    sure = [longest] if len(longest) >= _SURE_CHARS else [raw, quote(key, safe="").encode()]
    first = f"{raw[0]:02x}".encode()
    escaped = [b"\\u00" + first, b"\\u00" + first.upper(), b"&#%d;" % raw[0], b"&#x" + first, b"%" + first]
    spelled = b"".join(_spellings(char) for char in raw)
    pattern = re.compile(b"|".join([*map(re.escape, sorted(codes, key=len, reverse=True)), spelled]))
    return tuple({*sure, *codes, *escaped}), pattern


def _spellings(char: int) -> bytes:
    """One character as it is, or escaped for JSON (once or twice), a URL or HTML."""
    code = b"".join(b"[%s%s]" % (digit.lower(), digit.upper()) for digit in (b"%x" % (char >> 4), b"%x" % (char & 15)))
    plain = re.escape(bytes([char]))
    return rb"(?:\\{0,3}%s|\\{1,3}u00%s|%%%s|&#0*%d;|&#[xX]0*%s;)" % (plain, code, code, char, code)


def _within(raw: bytes, encode: Callable[[bytes], bytes]) -> set[bytes]:
    """The key in base64, alone and at any place of something longer: the characters that hang on the key only."""
    return {encode(b"\0" * before + raw)[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6] for before in range(3)}


class BlottedLines:
    """The same of lines of any number, which are passed on, each whole, as they come.

    Of a line of more than `most` bytes, which nobody could hold, only the beginning is.
    """

    def __init__(self, key: str, pass_on: Callable[[bytes], object], most: int) -> None:
        self._key, self._pass_on, self._most = key, pass_on, most
        self._begun: list[bytes] = []  # of the last line
        self._size = 0  # of it

    def take(self, part: bytes) -> None:
        """One more piece."""
        if self._size > self._most:
            start = part.find(b"\n")
            part = part[start:] if start >= 0 else b""
        end = part.rfind(b"\n") + 1
        if end:
            self._passed(part[:end])
        if end < len(part):
            self._begun.append(part[end:])
            self._size += len(part) - end

    def end(self) -> None:
        """Nothing more will come."""
        if self._begun:
            self._passed(b"")

    def _passed(self, part: bytes) -> None:
        whole = b"".join([*self._begun, part])
        self._begun.clear()
        self._size = 0
        self._pass_on(blotted(whole, self._key))
