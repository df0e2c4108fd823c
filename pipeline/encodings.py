"""In which encoding bytes are text, told by the bytes: beyond doubt, or as a proposal."""

import codecs
import re

SAMPLE_BYTES = 2**18
"""So many bytes of a file's start are looked at."""
WIDE = (  # UTF-32 first: its mark begins as that of UTF-16 does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the encodings that begin with them."""
_NOT_ASCII = re.compile("(?<![A-Za-z])[^\x00-\x7f](?![A-Za-z])")  # a letter between ASCII letters is a Latin one
_WESTERN = ("cp1252", "iso8859-1", "iso8859-15", "mac-roman")


def is_utf8(sample: bytes, named: str) -> bool:
    """Whether a file that begins so, and for which another encoding is `named`, is UTF-8 beyond doubt.

    One Chinese character in five of GBK is two bytes of UTF-8 as well, six of them in a row are one in 10,000; what
    is three bytes of UTF-8 is none of the common ones. In Western encodings no text has such pairs.
    """
    if sample.startswith(codecs.BOM_UTF8):
        return True
    try:
        text = (sample[: sample.rfind(b"\n") + 1] or sample).decode()
    except UnicodeDecodeError:
        return False
    return _weight(text) >= (1 if named in _WESTERN else 6)


def is_damaged_utf8(sample: bytes) -> bool:
    """Whether a file that begins so, and is not UTF-8 to its end, is but for some places: cut characters, a line of
    another file. Any other encoding would garble the rest."""
    text = sample.decode(errors="surrogateescape")
    wrong = sum("\udc80" <= char <= "\udcff" for char in text)
    return _weight(text) - 3 * wrong > wrong  # which it weighs as well


def _weight(text: str) -> int:
    """How many characters are not ASCII, those of three bytes and more three times: they are no chance."""
    return sum(1 if char < "\u0800" else 3 for char in text if char > "\x7f")


def fitting(sample: bytes) -> str | None:
    """The encoding in which the start of a file that is not UTF-8 reads as text of a language that uses it."""
    if wide := wide_encoding(sample, surely=False):
        return wide
    if is_damaged_utf8(sample):
        return None
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    scores = {name: _share(sample, name) for name in ("euc_jp", "shift_jis", "euc_kr", "big5", "gb18030", "cp1251")}
    best = max(scores, key=lambda name: scores[name])
    if scores[best] > 0.5:
        return best
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:  # latin-1 has a character for every byte, and would take anything
        return None
    return "cp1252"


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


def wide_encoding(head: bytes, surely: bool) -> str | None:
    """UTF-16 or UTF-32, told by the byte order mark, or UTF-16 without one, told by its line ends.

    `surely`: only where the first line is ASCII for the greater part, since a UTF-8 file may hold NUL too.
    """
    for mark, name in WIDE:
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
