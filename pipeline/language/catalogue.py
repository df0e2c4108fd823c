"""Sentences and their translations: read from a `.po` file, and found again in a text that was put together of them.

An entry's `msgid` is a sentence of the code, in which `{0}` stands for what is put in: in `{0:n}` a number, in `{0:s}`
a sentence or word of ours, which is translated in turn. All else that is put in stays as it is. The translation leaves
out what it has as `{0:-}`, an English plural for instance.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files

_PLACE = re.compile(r"\{(\d+)(?::([ns-]))?\}")
_NUMBER = r"[-+$]*\d[\d.,]*(?: M| ?%)?"
_HAN, _LATIN = re.compile("[\u4e00-\u9fff]"), re.compile(r"[A-Za-z0-9$`]")
_WIDE = "，。；：、（）？！"
"""Punctuation that has its room within: no space stands beside it."""
_TAIL = re.compile(r"(?=[\s,;:.(])|$")  # where a sentence may go on with a part that it need not have
_FEW_LETTERS = 8
_ENOUGH_AHEAD = 5
"""A sentence with fewer letters, and fewer of them at its beginning, is found in too many others: what is put into it
is one word, has a number, or is ours."""
_REMEMBERED = 4_096


def read(text: str) -> dict[str, str]:
    """The entries of a `.po` file, but its header: `msgid` → `msgstr`. Of its syntax what gettext's tools write."""
    found: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    field = ""
    for line in [*text.splitlines(), ""]:
        if not line or (line.startswith("#") and field == "msgstr"):
            if parts.get("msgid") and "".join(parts["msgid"]):
                found["".join(parts["msgid"])] = "".join(parts["msgstr"])
            parts, field = {}, ""
        elif line.startswith(("msgid ", "msgstr ")):
            field, _, quoted = line.partition(" ")
            parts[field] = [json.loads(quoted)]
        elif line.startswith('"'):
            parts[field].append(json.loads(line))
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is put in: its number, and what it is."""

    number: int
    kind: str  # "n", "s", "-" or ""


def parts_of(sentence: str) -> Iterator[str | Place]:
    """The literal text of a sentence and its places, in order."""
    end = 0
    for found in _PLACE.finditer(sentence):
        if found.start() > end:
            yield sentence[end : found.start()]
        yield Place(int(found[1]), found[2] or "")
        end = found.end()
    if end < len(sentence):
        yield sentence[end:]


class Sentence:
    """A sentence with places, and its translation."""

    def __init__(self, msgid: str, msgstr: str) -> None:
        self._theirs = tuple(parts_of(msgstr))
        self._silent = {each for each in self._theirs if isinstance(each, Place) and each.kind == "-"}
        kinds = {each.number: each.kind for each in self._theirs if isinstance(each, Place)}
        self._runs: list[str | list[Place]] = []  # places that stand side by side are found as one
        for part in parts_of(msgid):
            if isinstance(part, str):
                self._runs.append(part)
                continue
            place = Place(part.number, part.kind or kinds.get(part.number, ""))
            if self._runs and isinstance(self._runs[-1], list):
                self._runs[-1].append(Place(part.number, place.kind or "s"))
            else:
                self._runs.append([place])
        self.literals = tuple(part for part in self._runs if isinstance(part, str))
        self.weight = sum(map(len, self.literals))
        self.numbers = sum(run[0].kind == "n" for run in self._runs if isinstance(run, list))
        begin = self._runs[0] if isinstance(self._runs[0], str) else ""
        self._is_short = _letters(*self.literals) < _FEW_LETTERS and _letters(begin) < _ENOUGH_AHEAD

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(
            "".join(
                re.escape(part)
                if isinstance(part, str)
                else f"({_NUMBER})"
                if [each.kind for each in part] == ["n"]
                else r"([^\n]*?)"
                for part in self._runs
            )
        )

    def filled(self, text: str, catalogue: "Catalogue") -> str | None:
        """The translation of `text`; None where this is not its sentence."""
        at = 0
        for literal in self.literals:
            at = text.find(literal, at)
            if at < 0:
                return None
            at += len(literal)
        match = self._pattern.fullmatch(text)
        if not match:
            return None
        runs = [run for run in self._runs if isinstance(run, list)]
        if self._is_short and not all(map(catalogue.may_be_put_in, match.groups(), runs)):
            return None
        values: dict[int, str] = {}
        for found, run in zip(match.groups(), runs, strict=True):
            values |= _shared(found, run, catalogue)
        told, was_ours = "", True
        for part in self._theirs:
            if part not in self._silent:
                is_ours = isinstance(part, str) or bool(part.kind)
                text = part if isinstance(part, str) else values[part.number]
                told, was_ours = _beside(told, text, is_ours and was_ours), is_ours
        return told


class Catalogue:
    """Translations by sentence."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._whole = {msgid.strip(): msgstr for msgid, msgstr in entries.items() if not _PLACE.search(msgid)}
        made = [Sentence(msgid.strip(), msgstr) for msgid, msgstr in entries.items() if _PLACE.search(msgid)]
        self._sentences = sorted(made, key=lambda sentence: (-sentence.weight, -sentence.numbers))
        self._found = lru_cache(_REMEMBERED)(self._looked_up)

    def translated(self, text: str) -> str:
        """`text` with every line that is known in the other language."""
        core = text.strip()
        if not core:
            return text
        found = self._found(core)
        if found is None:
            return text
        before, after = text[: text.index(core)], text[text.index(core) + len(core) :]
        # No space stands beside wide punctuation.
        return before.rstrip(" " * (found[0] in _WIDE)) + found + after.lstrip(" " * (found[-1] in _WIDE))

    def knows(self, text: str) -> bool:
        """Whether a text is one of ours."""
        return self._found(text.strip()) is not None

    def may_be_put_in(self, text: str, run: "list[Place]") -> bool:
        """Whether it is ours, or has a number, or is one word where any may stand."""
        is_word = " " not in text.strip() and run[0].kind != "s"
        return not text or is_word or any(letter.isdigit() for letter in text) or self.knows(text)

    def _looked_up(self, text: str) -> str | None:
        if (found := self._sentence(text)) is not None:
            return found
        if "\n" in text:
            return self._by_lines(text)
        return self._by_parts(text)

    def _sentence(self, text: str) -> str | None:
        if (found := self._whole.get(text)) is not None:
            return found
        return next((told for each in self._sentences if (told := each.filled(text, self)) is not None), None)

    def _by_lines(self, text: str) -> str | None:
        """As many lines as one sentence has, then those that follow."""
        lines = text.split("\n")
        for number in range(len(lines) - 1, 0, -1):
            begin, rest = "\n".join(lines[:number]), "\n".join(lines[number:])
            if number == 1 or self._sentence(begin.strip()) is not None:
                told = f"{self.translated(begin)}\n{self.translated(rest)}"
                return told if told != text else None
        return None

    def _by_parts(self, text: str) -> str | None:
        """What was joined of several sentences, each of which is known; before a colon a name may stand."""
        for gap, wide in (("   ", "   "), ("; ", "；"), (". ", "。"), (", ", "，"), (" + ", " + "), (" and ", "和")):
            parts = text.split(gap)
            if len(parts) > 1 and (gap == "   " or all(self.knows(part) or _is_number(part) for part in parts)):
                told = wide.join(map(self.translated, parts))
                return told if told != text else None
        name, colon, rest = text.partition(": ")
        if colon and self.knows(rest):
            return f"{self.translated(name)}：{self.translated(rest)}"
        return None


def _is_number(text: str) -> bool:
    return not any(letter.isalpha() for letter in text)


def _letters(*texts: str) -> int:
    return sum(letter.isalpha() for text in texts for letter in text)


def _beside(before: str, after: str, are_ours: bool) -> str:
    """Two parts of a sentence: a space stands between Chinese and what is not, and none within what `are_ours`."""
    if not (before and after):
        return before + after
    if are_ours and _HAN.match(before.rstrip(" ")[-1:]) and _HAN.match(after.lstrip(" ")):
        return before.rstrip(" ") + after.lstrip(" ")
    ends, begins = before[-1], after[0]
    is_between = (_HAN.match(ends) and _LATIN.match(begins)) or (_LATIN.match(ends) and _HAN.match(begins))
    return f"{before} {after}" if is_between else before + after


def _shared(found: str, run: list[Place], catalogue: Catalogue) -> dict[int, str]:
    """What each place of a run was given: the first any text, the others sentences of ours, or nothing."""
    first, *others = run
    if others:
        for tail in _TAIL.finditer(found):
            rest = found[tail.start() :]
            if not rest or catalogue.knows(rest):
                told = {place.number: "" for place in others} | {others[0].number: catalogue.translated(rest)}
                return _shared(found[: tail.start()], [first], catalogue) | told
    return {first.number: catalogue.translated(found) if first.kind == "s" else found}


@cache
def chinese() -> Catalogue:
    """Chinese, in simplified characters."""
    return Catalogue(read(files("pipeline.language").joinpath("zh_CN.po").read_text("utf-8")))
