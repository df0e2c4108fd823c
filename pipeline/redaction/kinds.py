"""Where a text holds an address, a number or a key of a named kind, told by its form and by its check digits."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from ipaddress import AddressValueError, IPv6Address
from itertools import accumulate

Span = tuple[int, int]
Finder = Callable[[str], Iterator[Span]]

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"


@cache
def _plain_forms() -> Mapping[int, int | str]:
    """Characters that are read as ASCII, each as one: digits of every script, full-width letters, dashes, blanks.

    Looking through all characters takes 17 ms: a run that hides nothing does not.
    """
    digits = {
        code: str(unicodedata.decimal(chr(code)))
        for code in range(0x660, 0x20000)
        if unicodedata.category(chr(code)) == "Nd" and not 0xFF01 <= code < 0xFF5F
    }
    alike = {
        code: form
        for code in (*range(0xFE50, 0xFE6C), *range(0x1D400, 0x1D6A4))  # small forms, letters of mathematics
        if len(form := unicodedata.normalize("NFKC", chr(code))) == 1 and form.isascii()
    }
    full_width = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
    dashes = {ord(dash): "-" for dash in _DASHES}
    blanks = {ord(blank): " " for blank in "\u00a0\u2007\u2009\u202f\u3000"}
    return full_width | dashes | blanks | digits | alike


def plain(text: str) -> str:
    """The text with each such character as ASCII: places in it are places in the text."""
    return text if text.isascii() else text.translate(_plain_forms())


_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""Characters that are not seen, as Unicode has them (`Default_Ignorable_Code_Point`): they part a number for nobody."""


def visible(text: str) -> list[int] | None:
    """The places of those that are seen; None where all are."""
    if text.isascii() or not _UNSEEN.search(text):
        return None
    return [place for place, character in enumerate(text) if not _UNSEEN.match(character)]


# --- e-mail -----------------------------------------------------------------------------------------------------------

_LOCAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.!#$%&'*+/=?^_`{|}~-")
_FIRST_CJK = "\u2e80"
_LABEL = r"(?:[^\W_\u2e80-\U0010ffff]|-)+"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")
_ANY_DOMAIN = re.compile(r"[^\W_](?:[\w-]*[^\W_])?(?:\.[^\W_](?:[\w-]*[^\W_])?)+")


def emails(text: str) -> Iterator[Span]:
    """Chinese before and behind is no part of one, unless there is nothing else that could be."""
    at = text.find("@")
    while at >= 0:
        start = _back(text, at, lambda c: c in _LOCAL or (c.isalnum() and c < _FIRST_CJK))
        if start == at:
            start = _back(text, at, str.isalnum)
        domain = _DOMAIN.match(text, at + 1) or _ANY_DOMAIN.match(text, at + 1)
        if start < at and domain:
            yield start, domain.end()
        at = text.find("@", at + 1)


def _back(text: str, end: int, is_of_it: Callable[[str], bool]) -> int:
    start = end
    while start and is_of_it(text[start - 1]):
        start -= 1
    return start


# --- phone numbers ----------------------------------------------------------------------------------------------------

_PHONE_LIKE = re.compile(r"[+(]?\d[\d ().+-]{5,}", re.ASCII)
_PHONES = re.compile(
    r"(?<!\d)(?<!\b0\.)(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)"  # a Chinese mobile
    r"|(?<!\d)\+\d(?:[ ().-]{0,2}\d){6,14}(?!\d)"  # with its country
    r"|(?<![\d.])(?:\(0\d{2,3}\)|0\d{2,3})[ -]?\d{7,8}(?!\d)"  # with a Chinese area
    r"|(?<!\d)(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\d)",  # with an American one
    re.ASCII,
)


def phones(text: str) -> Iterator[Span]:
    """None within a longer number, or behind the point of one."""
    for run in _PHONE_LIKE.finditer(text):  # what is around a run is seen; to look at runs only takes a tenth
        yield from (found.span() for found in _PHONES.finditer(text, *run.span()))


# --- numbers with check digits ----------------------------------------------------------------------------------------

_CN_ID = re.compile(
    r"(?<!\d)\d{6}[ -]?(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[ -]?\d{3}(?:\d(?!\d)|[Xx])", re.ASCII
)
_NUMBERS = re.compile(r"\d+(?:[ -]\d+)*", re.ASCII)
_DIGITS = re.compile(r"\d+", re.ASCII)
_LEAST_GROUP, _MOST_GROUPS = 3, 5
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}", re.ASCII)
_COUNTRIES: Mapping[int, str] = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_LENGTHS = {country: length for length, countries in _COUNTRIES.items() for country in countries.split()}
"""Characters of an IBAN by its country (the registry of SWIFT)."""


def cn_ids(text: str) -> Iterator[Span]:
    """Chinese identity numbers of 18 characters whose check character is right (GB 11643, ISO 7064 MOD 11-2)."""
    for found in _CN_ID.finditer(text):
        digits = [character for character in found[0] if character not in " -"]
        total = sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(digits[:17]))
        if "10X98765432"[total % 11] == digits[17].upper():
            yield found.span()


def cards(text: str) -> Iterator[Span]:
    """Card numbers of a known maker and length whose check digit is right (Luhn), in one piece or in groups."""
    for run in _NUMBERS.finditer(text):
        groups = [found.span() for found in _DIGITS.finditer(text, *run.span())]
        first = 0
        while first < len(groups):
            last = _last_group_of_card(text, groups, first)
            if last is not None:
                yield groups[first][0], groups[last][1]
                first = last
            first += 1


def _last_group_of_card(text: str, groups: list[Span], first: int) -> int | None:
    found = None
    number = ""
    for last in range(first, min(first + _MOST_GROUPS, len(groups))):
        start, end = groups[last]
        if end - start > 19 or (end - start < _LEAST_GROUP and last != first):
            break
        number += text[start:end]
        if _is_card(number) and (last == first or groups[first][1] - groups[first][0] >= _LEAST_GROUP):
            found = last
    return found


def _is_card(number: str) -> bool:
    if not 12 <= len(number) <= 19 or not _is_issued(number, len(number)):
        return False
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number)))
    return sum(each - 9 * (each > 9) for each in doubled) % 10 == 0


_MAESTRO = (5018, 5020, 5038, 5893, 6304, 6390, 6759)


def _is_issued(number: str, length: int) -> bool:
    """Whether a maker has numbers that begin like this and are so long (ISO/IEC 7812)."""
    two, four = int(number[:2]), int(number[:4])
    if number[0] == "4":
        return length in (13, 16, 19)
    if two in (34, 37):
        return length == 15
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return length == 16
    if two in (36, 38, 39) or 3000 <= four <= 3059:
        return length in range(14, 20)
    if four in (1800, 2131):
        return length == 15
    if four in _MAESTRO or 6760 <= four <= 6769:
        return True
    return length in range(16, 20) and (two in (35, 62, 65) or four == 6011 or 6440 <= four <= 6499)


def ibans(text: str) -> Iterator[Span]:
    """Account numbers of a known country and its length whose check digits are right (ISO 13616, MOD 97-10)."""
    for found in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(found[0][:2].upper(), 99)
        counts = list(accumulate(int(character not in " -") for character in found[0]))
        if length not in counts:
            continue
        end = found.start() + counts.index(length) + 1
        account = re.sub("[ -]", "", text[found.start() : end]).upper()
        if end < len(text) and text[end].isascii() and text[end].isalnum():
            continue
        if int("".join(str(int(each, 36)) for each in account[4:] + account[:4])) % 97 == 1:
            yield found.start(), end


# --- keys and addresses -----------------------------------------------------------------------------------------------

_KEYS = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"AIza[\w-]{30,}|AQ\.[\w.-]{12,}|ya29\.[\w.-]{12,}"  # Google
    r"|(?=[\w-]{0,200}\d)sk-[\w-]{16,}|(?:ghp|gho|ghu|ghs|ghr)_\w{30,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|LTAI[A-Za-z0-9]{12,}|AKID[A-Za-z0-9]{13,}"  # Amazon, Alibaba, Tencent
    r"|xox[abeoprs]-[\w-]{10,}|hf_[A-Za-z0-9]{20,}|[rsp]k_(?:live|test)_\w{16,}|npm_\w{30,}|pypi-[\w-]{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON web token
    r")"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-]|-(?!----))*(?:-----END [A-Z ]*PRIVATE KEY-----)?",
    re.ASCII,
)
_MARKS = (
    *("AIza", "AQ.", "ya29.", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA"),
    *("LTAI", "AKID", "xox", "hf_", "k_live_", "k_test_", "npm_", "pypi-", "eyJ", "PRIVATE KEY"),
)
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4_LIKE = re.compile(r"\d[\d.]{5,}", re.ASCII)
_IPV4 = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}", re.ASCII)
_TWO_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f:]+(?:\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})?(?![A-Za-z0-9_])", re.ASCII)


_HEX = frozenset("0123456789abcdefABCDEF:")


def api_keys(text: str) -> Iterator[Span]:
    """Keys that bear their maker's mark, JSON web tokens, and private keys."""
    if any(mark in text for mark in _MARKS):
        yield from (found.span() for found in _KEYS.finditer(text))


def ips(text: str) -> Iterator[Span]:
    """Addresses of both versions."""
    for run in _IPV4_LIKE.finditer(text):
        told = run[0].rstrip(".")
        if _IPV4.fullmatch(told):
            yield run.start(), run.start() + len(told)
    end = 0
    for colons in _TWO_COLONS.finditer(text):
        if colons.start() < end:
            continue
        start = _back(text, colons.start(), _HEX.__contains__)
        found = _IPV6.match(text, start)
        end = found.end() if found else colons.end()
        if not found or (
            start and (text[start - 1] in "_." or (text[start - 1].isascii() and text[start - 1].isalnum()))
        ):
            continue
        told = found[0]
        if told.endswith(":") and not told.endswith("::"):
            told = told[:-1]
        if any(map(str.isdigit, told)) and _is_ipv6(told):
            yield start, start + len(told)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


KINDS: Mapping[str, Finder] = {
    "email": emails,
    "phone": phones,
    "cn_id": cn_ids,
    "card": cards,
    "api_key": api_keys,
    "ip": ips,
    "iban": ibans,
}
"""What `[redact] kinds` may name; each looks at a text that is `plain`."""
