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
from typing import Literal

_PLACE = re.compile(r"\{(\d+)(?::([ns-]))?\}")
_NUMBER = r"[-+$]*\d[\d.,]*(?:-\d\d-\d\d \d\d)?(?::\d\d)?(?: M| ?%)?"  # or a time, with its day or without
_HAN, _LATIN = re.compile("[\u4e00-\u9fff]"), re.compile(r"[A-Za-z0-9$`\[]")
_WIDE = "，。；：、（）？！"
"""Punctuation that has its room within: no space stands beside it."""
_NAME = re.compile(r"[^`\"'(){}]*")  # before a colon
_GOES_ON = re.compile("[:;] |   ")
_TAIL = re.compile(r"(?=[\s,;:.(])|$")  # where a sentence may go on with a part that it need not have
_ANEW = " without `--fresh`"
"""Is put into any hint, where a run began anew."""
_FEW_LETTERS = 7
_ENOUGH_AHEAD = 5
"""A sentence with fewer letters, and fewer of them at its beginning, is found in too many others: what is put into it
is one word, a number or time, or ours. A number put in is as good as four letters."""
_ENGLISH = re.compile("[A-Za-z]")
_AMOUNT = re.compile(r"(?=.*\d)(?:[^\s:]*\d\S*|[A-Za-z]{1,3}|[^\w\s]+)(?: (?:[^\s]*\d\S*|[A-Za-z]{1,3}|[^\w\s]+))*")
How = Literal["known", "ours", "simple", "any"]
"""What may be put into a sentence. "known" and "ours": where it is to be ours, only what is known, and not a service's
words. "known" and "simple": nothing that goes on as another sentence does."""
_REMEMBERED = 4_096
_LONGEST = 4_000
"""Characters of a text that is looked up as one."""
_DEEPEST = 8
"""Sentences that are put into one another."""
_TOLD_LINES = 100
"""Lines of a text that are looked up, at 3 ms each where they are not ours."""


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
        self._is_short = _letters(*self.literals) + 4 * self.numbers < _FEW_LETTERS and _letters(begin) < _ENOUGH_AHEAD

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """What is put in is as short as can be, or as long."""
        short, long = (
            "".join(
                re.escape(part)
                if isinstance(part, str)
                else f"({_NUMBER})"
                if [each.kind for each in part] == ["n"]
                else rf"([^\n]*{end})"
                for part in self._runs
            )
            for end in ("?", "")
        )
        return re.compile(short), re.compile(long)

    def has_its_words(self, text: str) -> bool:
        """Whether all that is not put in stands in `text`, in order."""
        at = 0
        for literal in self.literals:
            at = text.find(literal, at)
            if at < 0:
                return False
            at += len(literal)
        return True

    def filled(self, text: str, catalogue: "Catalogue", how: How) -> str | None:
        """The translation of `text`, which has its words; None where this is not its sentence."""
        runs = [run for run in self._runs if isinstance(run, list)]
        found = [match.groups() for pattern in self._patterns if (match := pattern.fullmatch(text))]
        if self._is_short:
            found = [puts for puts in found if all(map(catalogue.may_be_put_in, puts, runs))]
        if how in ("known", "simple"):
            found = [puts for puts in found if not any(_goes_on(*each) for each in zip(puts, runs, strict=True))]
        known = [puts for puts in found if all(_is_known(*each, catalogue) for each in zip(puts, runs, strict=True))]
        if not (chosen := known or (found if how in ("simple", "any") else [])):
            return None
        values: dict[int, str] = {}
        for put, run in zip(chosen[0], runs, strict=True):
            values |= _shared(put, run, catalogue)
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
        self._most_lines = 1 + max((msgid.count("\n") for msgid in entries), default=0)
        self._depth = 0
        self._found = lru_cache(_REMEMBERED)(self._bounded)
        self._that_may_be = lru_cache(_REMEMBERED)(self._with_the_words_of)

    def translated(self, text: str) -> str:
        """`text` with every line that is known in the other language."""
        core = text.strip()
        if not _ENGLISH.search(core):
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
        """Whether it is ours and no list, a number, a time or an amount, or one word where any may stand."""
        is_word = " " not in text.strip() and run[0].kind != "s"
        return not text or is_word or _AMOUNT.fullmatch(text) is not None or (", " not in text[2:] and self.knows(text))

    def _bounded(self, text: str) -> str | None:
        """No sentence of ours is put into so many others, nor so long: a service or a user wrote what is."""
        if self._depth >= _DEEPEST:
            return None
        self._depth += 1
        try:
            return self._looked_up(text)
        finally:
            self._depth -= 1

    def _looked_up(self, text: str) -> str | None:
        if len(text) > _LONGEST:
            return self._by_lines(text) if "\n" in text else None
        capital = text[:1].upper() + text[1:]  # what the system says of an error stands within a sentence of ours
        if (found := self._whole.get(text, self._whole.get(capital))) is not None:
            return found
        if (found := self._sentence(text, "known")) is not None:
            return found
        if _ANEW in text and (found := self._found(text.replace(_ANEW, ""))) is not None:
            return found.replace("同一条命令", "去掉 `--fresh` 的同一条命令", 1)
        is_one_line = "\n" not in text
        if is_one_line and (found := self._by_parts(text)) is not None:
            return found
        if (found := self._sentence(text, "ours", "simple")) is not None:
            return found
        if not is_one_line and (found := self._by_lines(text)) is not None:
            return found
        return self._sentence(text, "any")

    def _sentence(self, text: str, *ways: How) -> str | None:
        if (found := self._whole.get(text)) is not None:
            return found
        filled = (each.filled(text, self, how) for how in ways for each in self._that_may_be(text))
        return next((told for told in filled if told is not None), None)

    def _with_the_words_of(self, text: str) -> list[Sentence]:
        return [each for each in self._sentences if each.has_its_words(text)]

    def _by_lines(self, text: str) -> str | None:
        """Each time as many lines as one sentence has; of a long text, as a traceback, only the first lines."""
        lines, told = text.split("\n"), list[str]()
        while lines and len(told) < _TOLD_LINES:
            tried = range(min(len(lines), self._most_lines), 1, -1)
            begins = ((number, "\n".join(lines[:number])) for number in tried)
            number, begin = next(
                (found for found in begins if self._sentence(found[1].strip(), "simple") is not None), (1, lines[0])
            )
            told.append(self.translated(begin))
            del lines[:number]
        found = "\n".join((*told, *lines))
        return found if found != text else None

    def _by_parts(self, text: str) -> str | None:
        """What was joined of several sentences, each of which is known; before a colon a name may stand."""
        if text.startswith((", ", "; ")):
            return f"{'，' if text[0] == ',' else '；'}{self.translated(text[2:])}" if self.knows(text[2:]) else None
        for gap, wide in (("   ", "   "), ("; ", "；"), (". ", "。"), (", ", "，"), (" + ", " + "), (" and ", "和")):
            parts = text.split(gap)
            if len(parts) > 1 and (gap == "   " or all(self.knows(part) or _is_number(part) for part in parts)):
                told = wide.join(map(self.translated, parts))
                return told if told != text else None
        return self._by_colon(text)

    def _by_colon(self, text: str) -> str | None:
        name, colon, rest = text.partition(": ")
        if not (colon and _NAME.fullmatch(name) and self.knows(rest)):
            return None
        return f"{self.translated(name)}：{self.translated(rest)}"


def _is_number(text: str) -> bool:
    return not any(letter.isalpha() for letter in text)


def _goes_on(put: str, run: list[Place]) -> bool:
    return not run[0].kind and _GOES_ON.search(put) is not None


def _is_known(put: str, run: list[Place], catalogue: "Catalogue") -> bool:
    return not put or run[0].kind != "s" or _is_number(put) or catalogue.knows(put)


def _letters(*texts: str) -> int:
    return sum(letter.isalpha() for text in texts for letter in text)


def _beside(before: str, after: str, are_ours: bool) -> str:
    """Two parts of a sentence: a space stands between Chinese and other text, none in what `are_ours` or in code."""
    if not (before and after) or before.count("`") % 2:
        return before + after
    if are_ours and _HAN.match(before.removesuffix(" ")[-1:]) and _HAN.match(after.removeprefix(" ")):
        return before.removesuffix(" ") + after.removeprefix(" ")
    ends, begins = before[-1], after[0]
    is_between = (_HAN.match(ends) and _LATIN.match(begins)) or (_LATIN.match(ends) and _HAN.match(begins))
    return f"{before} {after}" if is_between else before + after


def _shared(found: str, run: list[Place], catalogue: Catalogue) -> dict[int, str]:
    """What each place of a run was given: the first any text, the others sentences of ours, or nothing."""
    first, *others = run
    if others:
        parts = [(found[: tail.start()], found[tail.start() :]) for tail in _TAIL.finditer(found)]
        good = [(head, rest) for head, rest in parts if not rest or catalogue.knows(rest)]
        # What is ours is known as a whole; of other text the longest tail that is known is ours.
        head, rest = next((each for each in good if first.kind == "s" and catalogue.knows(each[0])), good[0])
        told = {place.number: "" for place in others} | {others[0].number: catalogue.translated(rest)}
        return _shared(head, [first], catalogue) | told
    return {first.number: catalogue.translated(found) if first.kind == "s" else found}


@cache
def chinese() -> Catalogue:
    """Chinese, in simplified characters."""
    return Catalogue(read(files("pipeline.language").joinpath("zh_CN.po").read_text("utf-8")))
