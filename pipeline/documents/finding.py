"""Which files of a folder, or of a pattern, are documents, and of which kinds."""

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

Kind = Literal["text", "markdown", "html", "pdf", "docx", "epub"]

KINDS: Mapping[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".epub": "epub",
}
"""Suffix of a file's name, in lower case, and what it says the file is."""
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class File:
    """One document; `path` is relative to the folder and always text, `at` is what the system opens."""

    path: str
    at: str
    kind: Kind
    trouble: str = ""  # why it is not even opened


@dataclass(frozen=True)
class Found:
    """The documents of a folder in the order of their paths, and what else is there."""

    root: str
    files: tuple[File, ...]
    others: Mapping[str, int]  # files that are passed over, by suffix
    unread: tuple[str, ...] = ()  # folders that may not be looked into

    @property
    def kinds(self) -> Mapping[Kind, int]:
        """How many documents there are of each kind."""
        return Counter(file.kind for file in self.files)


def survey(path: str, aside: str = "runs") -> Found:
    """The documents that `path` means: a folder with all below it, a pattern such as `docs/**/*.md`, or one file.

    Hidden files and those of a program that has a document open (`~$…`) are passed over, as are links to folders: so
    no walk goes in a circle, and the folder `aside`, in which runs are kept. A link to a file outside the folder is a
    document with a trouble. Nothing is opened.
    """
    root, pattern = _parts(path)
    inside = os.path.realpath(root)
    files: list[File] = []
    others: Counter[str] = Counter()
    unread: list[str] = []
    for entry, within in _walk(root, pattern, unread, os.path.realpath(aside)):
        kind = KINDS.get(suffix := os.path.splitext(entry.name)[1].lower())  # noqa: PTH122
        if kind is None:
            others[as_text(suffix)] += 1
        else:
            files.append(File(as_text(within), entry.path, kind, _trouble(entry, inside)))
    files.sort(key=lambda file: file.path)
    return Found(root, tuple(files), others, tuple(unread))


def root_of(path: str) -> str:
    """The folder in which all documents of `path` lie."""
    return _parts(path)[0]


def as_text(name: str) -> str:
    """A name of a file as text: bytes that are no UTF-8 as `\\xNN`, and a backslash of the name before such as
    `\\x5c`; so no two names are one text."""
    return _ESCAPED.sub(rb"\\x5cx\1", os.fsencode(name)).decode("utf-8", "backslashreplace")


def as_name(text: str) -> str:
    """The name of which `as_text` made this text."""
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), text.encode()))


def _parts(path: str) -> tuple[str, tuple[str, ...]]:
    """The folder, and a pattern for each step of the way below it."""
    at = Path(path)
    if at.is_dir():
        return str(at), ("**", "*")
    if at.is_file() or not glob.has_magic(path):
        return str(at.parent), (glob.escape(at.name),)
    first = next(number for number, part in enumerate(at.parts) if glob.has_magic(part))
    return str(Path(*at.parts[:first])), at.parts[first:]


def _walk(root: str, pattern: Sequence[str], unread: list[str], aside: str) -> Iterator[tuple["os.DirEntry[str]", str]]:
    """What is no folder and matches, each with its path from `root`; a folder that may not be read goes to `unread`."""
    folders: list[tuple[str, str, frozenset[int]]] = [(root, "", _at(pattern, {0}))]
    while folders:
        at, before, places = folders.pop()
        try:
            with os.scandir(at) as entries:
                here = list(entries)
        except OSError:
            unread.append(as_text(before) or at)
            continue
        for entry in here:
            nexts = _at(pattern, _after(pattern, places, entry.name))
            if not nexts or entry.name.startswith("~$"):
                continue
            within = f"{before}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if entry.name != os.path.basename(aside) or os.path.realpath(entry.path) != aside:  # noqa: PTH119
                    folders.append((entry.path, f"{within}/", nexts))
            elif len(pattern) in nexts and not _leads_to_folder(entry):
                yield entry, within


def _at(pattern: Sequence[str], places: set[int]) -> frozenset[int]:
    """Places in the pattern with those behind each `**`, which may stand for no folder at all."""
    found = set(places)
    for place in sorted(places):
        while place < len(pattern) and pattern[place] == "**":
            place += 1
            found.add(place)
    return frozenset(found)


def _after(pattern: Sequence[str], places: frozenset[int], name: str) -> set[int]:
    """Places that are reached by a step to `name`; hidden names are matched by what begins with a dot only."""
    hidden = name.startswith(".")
    found = set()
    for place in places:
        if place == len(pattern):
            continue
        if pattern[place] == "**":
            found |= set() if hidden else {place}
        elif fnmatchcase(name, pattern[place]) and (not hidden or pattern[place].startswith((".", "[."))):
            found.add(place + 1)
    return found


def _leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # links in a circle
        return False


def _trouble(entry: "os.DirEntry[str]", inside: str) -> str:
    try:
        if entry.is_symlink():
            target = os.path.realpath(entry.path, strict=True)
            if os.path.commonpath((inside, target)) != inside:
                return "it is a link that leads out of the folder"
        if not stat.S_ISREG(entry.stat().st_mode):
            return "it is no file"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or "its name is none"
    return ""
