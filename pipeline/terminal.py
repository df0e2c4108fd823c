"""Text of others on its way to a terminal: ids, column and file names, what servers say.

Such text may hold what a terminal obeys (escape sequences, in C1 characters too), what reorders a line (bidi overrides)
or what nobody sees (zero-width characters). It is shown as Python would write it: `\\x1b`, `\\u202e`.
"""

import re
from json import dumps

_UNSEEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, DEL, C1
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff"
    "\ud800-\udfff"  # half a character
    "]"
)
KEY_SHAPED = re.compile(r"\b(?:AIza|AQ\.|sk-|ya29\.)[\w.\-]{12,}")
_IN_A_LINE = str.maketrans({"\n": "\\n", "\t": "\\t"})


def visible(text: str) -> str:
    """`text` without anything that a terminal obeys or hides; line feeds and tabs stay."""
    return _UNSEEN.sub(_escaped, text)


def one_line(text: str) -> str:
    """The same for a cell of a table: line feeds and tabs are shown too."""
    return visible(text).translate(_IN_A_LINE)


def without_secrets(text: str) -> str:
    """An address without what may be a password or a token in it: user, query and fragment; other text as it is."""
    if "://" not in text:
        return text
    return re.sub(r"[?#].*", "?…", re.sub(r"://[^?#]*@", "://…@", text, flags=re.DOTALL), flags=re.DOTALL)


def is_like_key(text: str) -> bool:
    """Whether a text holds what looks like a key: of Google, OpenAI and those that write theirs alike."""
    return KEY_SHAPED.search(text) is not None


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escaped_json(text: str) -> str:
    """The same for a JSON document, in which such characters stand only in strings."""
    return _UNSEEN.sub(lambda found: dumps(found[0])[1:-1], text)
