"""How many tokens a text has, estimated from its letters and shapes.

The estimate is a sum of counts, each times a coefficient: words, marks, digits and runs over ASCII characters, `BLOCKS`
over all others.
Measured 2026-11 on 5,400 documents in 18 kinds (prose and technical text in many languages, code, JSON, CSV, URLs,
chat) against the Gemma vocabulary, a near relative of what Gemini uses, with whole sources held out: off by 4.4 % per
document in the mean, 14.3 % at the 95th percentile, −0.8 % over the corpus; by 8.1, 5.1 and 3.9 % for the first 60, 200
and 600 characters of a document. The usual rule, four characters a token for English and 1.5 for Chinese, is off by 21,
53 and −25 %. So it is a good prior and not the service's count: `calibration` learns the rest from the answers.
"""

import re

SCALE = 10_000
"""Coefficients are whole ten-thousandths of a token: added up in any order they give the same sum."""

# Coefficients of the counts over ASCII characters, ten-thousandths of a token; `_ascii_units` counts them. A single
# space costs nothing: it belongs to its word.
_WORD, _LETTERS_4, _LETTERS_8, _CAPITAL = 9693, -188, 3951, 793
_DIGIT, _DIGIT_AFTER_BLANK, _HEX_SWITCH = 10532, 2855, 1464
_MARK, _MARK_RUN, _MARK_REPEATED_4 = 1711, 7815, -2304
_SPACE_RUN, _TAB_RUN, _NEWLINE_RUN = 7732, 5780, 15024
_OTHER = 18365  # control characters, and every character above ASCII that is in none of BLOCKS

_CONTROL = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]"
_MARKS = "".join(chr(c) for c in range(33, 127) if not chr(c).isalnum())

BLOCKS: tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...] = (
    ("han", 5674, ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))),
    ("cjk punctuation", 20815, ((0x3000, 0x3020), (0x30FB, 0x30FB), (0xFF00, 0xFF65))),
    ("kana", 3462, ((0x3041, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))),
    ("hangul", 8079, ((0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3))),
    ("extended latin", 6654, ((0xC0, 0x24F), (0x1E00, 0x1EFF))),
    ("cyrillic", 2849, ((0x400, 0x52F),)),
    ("greek", 4274, ((0x370, 0x3FF), (0x1F00, 0x1FFF))),
    ("arabic", 3449, ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC))),
    ("hebrew", 5002, ((0x590, 0x5FF),)),
    ("indic and thai", 5575, ((0x900, 0xE7F),)),
    # The joiner and the variation selector are tokens of their own, as the pictures they join are.
    ("emoji", 10770, ((0x200D, 0x200D), (0x2600, 0x27BF), (0xFE0F, 0xFE0F), (0x1F000, 0x1FAFF))),
    ("symbols", 3219, ((0xA0, 0xBF), (0x2010, 0x25FF))),
)
"""Name, coefficient per character (tokens × SCALE) and first and last code point of each range."""

_UPPER = bytes(range(ord("A"), ord("Z") + 1))
_LETTERS = _UPPER + _UPPER.lower()
_DIGITS = b"0123456789"
_MARK_BYTES = _MARKS.encode()
_NEWLINES = b"\r\n"
_ASCII = bytes(range(0x80))
_ABOVE_ASCII = bytes(range(0x80, 0x100))
_CONTINUATIONS = bytes(range(0x80, 0xC0))  # a character above ASCII without them is its UTF-8 lead byte


def _all_but(kept: bytes) -> bytes:
    return bytes(set(range(0x100)) - set(kept))


def _shape(**kinds: bytes) -> bytes:
    """Table for `bytes.translate`: the first letter of each keyword for its bytes, a space for all others."""
    table = bytearray(b" " * 0x100)
    for name, members in kinds.items():
        for byte in members:
            table[byte] = ord(name[0])
    return bytes(table)


_WORDS = _shape(word=_LETTERS)
_MARK_RUNS = _shape(mark=_MARK_BYTES)
_NEWLINE_RUNS = _shape(newline=_NEWLINES)
_TAB_RUNS = _shape(tab=b"\t")
_SPACE_RUNS = _shape(space=b" ")
_DIGIT_NEIGHBOURS = _shape(blank=b" \t", digit=_DIGITS, hex=b"abcdef")
_HEX_SWITCHES = re.compile(b"dh|hd")
_SPACES_AND_LETTERS = _LETTERS + b" " + _ABOVE_ASCII
_NOT_MARKS = _all_but(_MARK_BYTES)
_NOT_DIGITS = _all_but(_DIGITS)
_NOT_CONTROLS = _all_but(bytes(c for c in range(0x80) if re.match(_CONTROL, chr(c))))


def _kind_table() -> str:
    """One letter for each code point: "a" for the first of BLOCKS and so on, "?" for none of them."""
    table = bytearray(b"?" * 0x110000)
    for index, (_, _, ranges) in enumerate(BLOCKS):
        for first, last in ranges:
            table[first : last + 1] = bytes([ord("a") + index]) * (last + 1 - first)
    return table.decode("ascii")


_KIND_OF = _kind_table()  # 1.1 MB; as the table of `str.translate` it classifies a character in 36 ns
_KINDS = tuple((bytes([ord("a") + index]), weight) for index, (_, weight, _) in enumerate(BLOCKS))


def estimate(text: str) -> int:
    """Tokens of `text`, rounded up; 0 only for the empty text.

    Byte operations instead of patterns, because every prompt and every candidate of the chunker passes here.
    """
    if text.isascii():
        units = _ascii_units(text.encode("ascii"))
    else:
        encoded = text.encode("utf-8", "surrogatepass")
        above = encoded.translate(None, _ASCII).decode("utf-8", "surrogatepass")
        units = _ascii_units(encoded.translate(None, _CONTINUATIONS)) + _units_above_ascii(above)
    return max(1, -(-units // SCALE)) if text else 0


def _ascii_units(text: bytes) -> int:
    """Tokens × SCALE of the ASCII bytes; each byte above ASCII only parts its neighbours."""
    words = text.translate(_WORDS)
    units = (
        _WORD * _runs(words, b"w")
        + _LETTERS_4 * words.count(b"wwww")
        + _LETTERS_8 * words.count(b"wwwwwwww")
        + _CAPITAL * (len(text) - len(text.translate(None, _UPPER)))
    )
    if b"  " in text:
        units += _SPACE_RUN * _runs(text.translate(_SPACE_RUNS), b"ss")
    rest = text.translate(None, _SPACES_AND_LETTERS)
    if not rest:
        return units
    if marks := rest.translate(None, _NOT_MARKS):
        units += _MARK * len(marks) + _mark_run_units(text, marks)
    if digits := len(rest.translate(None, _NOT_DIGITS)):
        units += _DIGIT * digits + _digit_neighbour_units(text)
    if b"\n" in rest or b"\r" in rest:
        units += _NEWLINE_RUN * _runs(text.translate(_NEWLINE_RUNS), b"n")
    if b"\t" in rest:
        units += _TAB_RUN * _runs(text.translate(_TAB_RUNS), b"t")
    return units + _OTHER * len(rest.translate(None, _NOT_CONTROLS))


def _runs(shape: bytes, end: bytes) -> int:
    """Runs in `shape` that end with `end`; what is not of their kind must be a space."""
    return shape.count(end + b" ") + shape.endswith(end)


def _mark_run_units(text: bytes, marks: bytes) -> int:
    shape = text.translate(_MARK_RUNS)
    units = _MARK_RUN * _runs(shape, b"m")
    if b"mmmm" in shape:
        units += _MARK_REPEATED_4 * sum(text.count(bytes([mark]) * 4) for mark in set(marks))
    return units


def _digit_neighbour_units(text: bytes) -> int:
    shape = text.translate(_DIGIT_NEIGHBOURS)
    units = _DIGIT_AFTER_BLANK * shape.count(b"bd")
    if b"dh" in shape or b"hd" in shape:
        units += _HEX_SWITCH * len(_HEX_SWITCHES.findall(shape))
    return units


def _units_above_ascii(text: str) -> int:
    """Tokens × SCALE of a text without ASCII characters."""
    kinds = text.translate(_KIND_OF).encode("ascii")
    units, left = 0, len(kinds)
    for kind, weight in _KINDS:
        count = kinds.count(kind)
        units += weight * count
        left -= count
        if not left:
            return units
    return units + _OTHER * left
