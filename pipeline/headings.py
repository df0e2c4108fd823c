"""Where a text has headings, and which stand above a place in it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_LONGEST = 120
"""Characters of a line that may be a heading without a mark of its own."""

# Levels: Markdown's own come first, then parts and chapters of a Chinese text, then what is only numbered.
_UNITS = {"编": 10, "篇": 10, "部": 10, "卷": 10, "章": 11, "节": 12}
_LISTED, _LISTED_DEEPER, _NUMBERED = 20, 21, 30

_NUMERAL = "[0-9０-９一二三四五六七八九十百千零〇两]+"
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_MARKED = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*")
_UNDERLINE = re.compile(r" {0,3}(={2,}|-{3,})[ \t]*")
_UNIT = re.compile(rf"[ \t\u3000]*第{_NUMERAL}([编篇部卷章节])(?:[ \t\u3000:：].*)?")
_LIST = re.compile(r"[ \t\u3000]*[一二三四五六七八九十]+、\S.*")
_LIST_DEEPER = re.compile(r"[ \t\u3000]*[（(][一二三四五六七八九十]+[）)]\S.*")
_NUMBER = re.compile(r"[ \t]*(\d{1,3}(?:\.\d{1,3}){1,5})\.?[ \t\u3000]+(\S.*)")
_ENDS_A_SENTENCE = tuple(".。;；,，!！?？、:：")


class Heading(NamedTuple):
    """One heading: where its line begins, how deep it stands (a smaller level is above), and what it says."""

    start: int
    level: int
    title: str


def headings(text: str) -> list[Heading]:
    """The headings of a text in order: Markdown's `#` and underlined ones, `1.2 Title`, 第一章, 第一节, 一、, （一）.

    Nothing within a fenced block is one. A line that is only numbered is a heading if it is short and no sentence.
    """
    return list(_found(text))


def above(found: Sequence[Heading], places: Iterable[int]) -> list[list[str]]:
    """The titles that stand above each of these places, which ascend, outermost first.

    Above a heading stand those that it belongs to.
    """
    paths: list[list[str]] = []
    path: list[Heading] = []
    number = 0
    for place in places:
        while number < len(found) and found[number].start < place:
            path = [heading for heading in path if heading.level < found[number].level] + [found[number]]
            number += 1
        level = found[number].level if number < len(found) and found[number].start == place else None
        paths.append([heading.title for heading in path if level is None or heading.level < level])
    return paths


def _found(text: str) -> Iterator[Heading]:
    fence = ""
    before, is_first = Heading(0, 0, ""), True  # the line before, and whether it is its paragraph's first
    start = 0
    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        if fenced := _FENCE.match(bare):
            if not fence:
                fence = fenced[1]
            elif fenced[1].startswith(fence) and not bare.strip(" \t`~"):
                fence = ""
            bare = ""
        elif not fence:
            if (under := _UNDERLINE.fullmatch(bare)) and is_first and _may_be_one(before.title):
                yield before._replace(level=1 if under[1][0] == "=" else 2)
                bare = ""
            elif heading := _heading(bare):
                yield Heading(start, *heading)
                bare = ""
        else:
            bare = ""
        is_first = not before.title  # a paragraph of two lines above a rule of dashes is none
        before = Heading(start, 0, bare.strip())
        start += len(line)


def _heading(line: str) -> tuple[int, str] | None:
    """Level and title of a line that is a heading by itself."""
    if marked := _MARKED.fullmatch(line):
        title = (marked[2] or "").strip()
        return (len(marked[1]), title) if title else None
    if not _may_be_one(line):
        return None
    if unit := _UNIT.fullmatch(line):
        return _UNITS[unit[1]], line.strip()
    if _LIST.fullmatch(line):
        return _LISTED, line.strip()
    if _LIST_DEEPER.fullmatch(line):
        return _LISTED_DEEPER, line.strip()
    if (number := _NUMBER.fullmatch(line)) and not number[2][0].islower() and not number[2][0].isdigit():
        return _NUMBERED + number[1].count("."), line.strip()
    return None


def _may_be_one(line: str) -> bool:
    told = line.strip()
    return len(told) <= _LONGEST and not told.endswith(_ENDS_A_SENTENCE) and any(map(str.isalnum, told))
