"""The tokens of the tags of a template, each with its place in the source: `compiler/lexer.rs` of minijinja 3."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_NUMBER = r"0[bBoOxX][0-9a-fA-F_]+|[0-9][0-9_]*(?:\.(?![^\W\d])[0-9_]*)?(?:[eE][+-]?[0-9_]+)?"
_TOKEN = re.compile(
    rf"(?P<string>{_STRING})|(?P<number>{_NUMBER})|(?P<mark>//|\*\*|==|!=|>=|<=|[-+*/%.,:~|=><()\[\]{{}}])", re.DOTALL
)
_TAG = re.compile(r"\{[{%#]")
_RAW = re.compile(r"\{%[-+]?[ \t\n\f\r]*raw[ \t\n\f\r]*[-+]?%\}")
_ENDRAW = re.compile(r"\{%[-+]?[ \t\n\f\r]*endraw[ \t\n\f\r]*[-+]?%\}")


@dataclass(frozen=True, slots=True)
class Token:
    """A word of a tag, or where the tag begins or ends."""

    kind: str  # name, string, number, mark, begin, end
    text: str
    start: int
    end: int


def tokens(source: str) -> Iterator[Token]:
    """The tokens of all tags; text, comments and raw blocks are left out."""
    at = 0
    while tag := _TAG.search(source, at):
        at = tag.start()
        if tag[0] == "{#":
            at = source.index("#}", at + 2) + 2
        elif raw := _RAW.match(source, at):
            end = _ENDRAW.search(source, raw.end())
            assert end
            at = end.end()
        else:
            inside = tag.end() + (source[tag.end() : tag.end() + 1] in ("-", "+"))
            yield Token("begin", tag[0], at, inside)
            found = _inside(source, inside, "}}" if tag[0] == "{{" else "%}")
            for token in found:
                yield token
                at = token.end


def _inside(source: str, at: int, closing: str) -> Iterator[Token]:
    """Tokens up to the one that closes the tag."""
    depth = 0
    while True:
        while source[at] in " \t\n\f\r":
            at += 1
        sign = source[at] in "-+"
        if not depth and source.startswith(closing, at + sign):
            yield Token("end", closing, at, at + sign + 2)
            return
        if found := _TOKEN.match(source, at):
            kind, end = found.lastgroup or "", found.end()
            depth += (found[0] in ("(", "[", "{")) - (found[0] in (")", "]", "}"))
        else:
            kind, end = "name", at + 1
            while f"a{source[end]}".isidentifier():
                end += 1
        yield Token(kind, source[at:end], at, end)
        at = end
