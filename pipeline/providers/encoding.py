"""Content-Encoding undone: by what the bytes are rather than by what they are called, and never beyond a ceiling."""

import zlib
from collections.abc import Callable

_GZIP = b"\x1f\x8b"
_MOST_LAYERS = 3
_GZIP_BITS, _ZLIB_BITS, _BARE_BITS = 31, 15, -15
_MOST_AT_ONCE = 1 << 20  # bytes unpacked before they are passed on: a piece of the network may hold 1,000 times itself


class TooLarge(Exception):
    """A body has more bytes than it may have."""


class Undecodable(Exception):
    """A body is not encoded as it says; the message says how, for a person."""


def decoded(body: bytes, encoding: str, most: int) -> bytes:
    """The bytes that were encoded, as far as they came: what was cut off is missing.

    A body that is not encoded at all, whatever its label, is returned as it is, and one that is gzip without a label is
    unpacked: no JSON begins like it. Raises `TooLarge` beyond `most` bytes, `Undecodable` when the bytes are damaged or
    of an encoding that nobody asked for.
    """
    names = [name for name in encoding.lower().replace(" ", "").split(",") if name not in ("", "identity")]
    packed = body
    for _ in range(_MOST_LAYERS):
        if body[:2] == _GZIP:
            body = _unpacked(body, _GZIP_BITS, most)
        elif "deflate" in names:
            names.remove("deflate")
            body = _inflated(body, most)
        else:
            break
    if names and body is packed and not _is_text(body):
        raise Undecodable(f"the answer is labelled {names[-1][:20]} (Content-Encoding) and cannot be unpacked as that")
    return body


def _is_text(body: bytes) -> bool:
    """Whether the bytes begin as JSON, a page or a stream of events does, in UTF-8 or UTF-16."""
    start = body[:64].lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")[:1]
    return not body or (start != b"" and start in b'{[<")d:eir')


def _inflated(body: bytes, most: int) -> bytes:
    """Of "deflate", which is zlib by the standard and bare with many servers."""
    wrapped = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    try:
        inner = _unpacked(body, _ZLIB_BITS if wrapped else _BARE_BITS, most)
    except Undecodable:
        if _is_text(body):
            return body
        raise
    return body if _is_text(body) and not _is_text(inner) else inner


def _unpacked(body: bytes, bits: int, most: int) -> bytes:
    """All members one after the other; what follows the last one is no part of the body."""
    parts: list[bytes] = []
    size = 0
    while body and (not parts or body[:2] == _GZIP):
        member = zlib.decompressobj(bits)
        try:
            part = member.decompress(body, most - size + 1)
        except zlib.error as error:
            raise Undecodable(f"the answer is damaged: its compressed bytes cannot be unpacked ({error})") from None
        size += len(part)
        if size > most:
            raise TooLarge
        parts.append(part)
        body = member.unused_data.lstrip(b"\0") if member.eof else b""
    return b"".join(parts)


class Unpacking:
    """The same of a body that is passed on piece by piece: gzip, by its first bytes, or none."""

    def __init__(self, pass_on: Callable[[bytes], object]) -> None:
        self._pass_on = pass_on
        self._start = b""
        self._packed: bool | None = None
        self._member = zlib.decompressobj(_GZIP_BITS)
        self._last_ended = True

    def take(self, part: bytes) -> None:
        """One more piece; raises `Undecodable`."""
        if self._packed is None:
            part = self._start = self._start + part
            if len(part) < len(_GZIP):
                return
            self._packed = part[:2] == _GZIP
        is_full = False
        while self._packed and (part or is_full):
            try:
                unpacked = self._member.decompress(part, _MOST_AT_ONCE)
            except zlib.error as error:
                raise Undecodable(f"the answer is damaged: its compressed bytes cannot be unpacked ({error})") from None
            self._pass_on(unpacked)
            self._last_ended = self._member.eof
            is_full = len(unpacked) == _MOST_AT_ONCE and not self._last_ended  # some of it may still be inside
            part = self._member.unused_data if self._last_ended else self._member.unconsumed_tail
            if self._last_ended:
                self._member = zlib.decompressobj(_GZIP_BITS)
        if part:
            self._pass_on(part)

    def end(self) -> None:
        """Nothing more will come; raises `Undecodable` where more should."""
        if self._packed is None and self._start:
            self._pass_on(self._start)
        if not self._last_ended:
            raise Undecodable("the answer is damaged: its compressed bytes end too early")
