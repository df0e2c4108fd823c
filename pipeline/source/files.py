"""The files that a row names: found where they may lie, looked at, and made parts of a prompt."""

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from mimetypes import guess_type
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import orjson

from pipeline.documents.finding import as_name
from pipeline.media import TAKEN, UNSEEN, Facts, facts_of, tokens_by_rule
from pipeline.records import Media, MediaKind, Resolution
from pipeline.urls import is_url

MOST_BYTES = 2_000_000_000
"""Of one file that is uploaded: 2 GB, as Google's page on input methods has it (2026-06)."""
MOST_PDF_BYTES = 50_000_000
"""Of one PDF, by the same page."""
_BLOCK_BYTES = 2**20
_MOST_KNOWN = 100_000
_MOST_NESTED = 16
_MOST_TOLD = 200  # characters of a path


_USUAL: Mapping[MediaKind, str] = {
    "image": "image/jpeg",
    "audio": "audio/mp3",
    "video": "video/mp4",
    "pdf": "application/pdf",
}
"""What a file is taken for whose address does not say it."""
_NAMED = {
    "audio/mpeg": "audio/mp3",
    "audio/x-wav": "audio/wav",
    "audio/x-aiff": "audio/aiff",
    "video/quicktime": "video/mov",
    "video/x-msvideo": "video/avi",
}
"""Python's names for forms, and Gemini's."""


class Unfit(Exception):
    """A file cannot be sent; its message says which and why."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a file was when it was read."""

    digest: str
    facts: Facts


@dataclass(frozen=True)
class Files:
    """Where a table's files lie and how they are counted; `columns` are those that hold them, in order.

    Only what lies in `root` is read, after links are followed; None: nothing is. A cell is a path, an address,
    bytes, or a list of those.
    """

    columns: tuple[tuple[MediaKind, str], ...]
    root: Path | None
    model: str
    inline_bytes: int | None  # of all files of a row, where nothing can be uploaded
    resolution: Resolution | None = None
    fetched: bool = False  # what is at an address, by us
    schemes: tuple[str, ...] = ("https",)  # of the addresses that the service opens itself
    of_documents: bool = False  # whose paths stand in the table as their column `path` has them
    _guessed: set[MediaKind] = field(default_factory=set, compare=False, repr=False)
    _known: dict[tuple[str, int, int, int], _Seen] = field(default_factory=dict, compare=False, repr=False)

    @property
    def guessed(self) -> frozenset[MediaKind]:
        """Of which kinds there was a file whose pages or seconds were told by its length alone."""
        return frozenset(self._guessed)

    def of(self, cells: Mapping[str, object]) -> tuple[tuple[Media, ...], str]:
        """The files of a row, given its cells by column; and why one of them cannot be sent, if so."""
        found: list[Media] = []
        try:
            for kind, column in self.columns:
                found += (self._media(kind, column, item) for item in _items(column, cells[column]))
            if self.inline_bytes is not None:
                _refuse_beyond(self.inline_bytes, sum(file.size_bytes for file in found), "all files of the row")
        except Unfit as trouble:
            return (), str(trouble)
        return tuple(found), ""

    def stamp(self, cells: Mapping[str, object]) -> str:
        """Sizes and times of a row's files as they lie there, without a look into them; 3 µs a file on a local disk."""
        found: list[str] = []
        with suppress(Unfit):  # `of` says what is wrong
            for column, cell in cells.items():
                found += (self._stamp(item) for item in _items(column, cell))
        return " ".join(found)

    def _stamp(self, item: object) -> str:
        """Of an address or of what stands in the table it is always the same."""
        if not isinstance(item, str) or "://" in item or self.root is None:
            return ""
        try:
            now = os.stat(f"{self.root}/{self._name(item)}")  # noqa: PTH116 (a Path takes twice as long)
        except (OSError, ValueError):
            return "none"
        return f"{now.st_size}.{now.st_mtime_ns}"

    def _media(self, kind: MediaKind, column: str, item: object) -> Media:
        if isinstance(item, bytes):
            seen = _Seen(digest_of(io.BytesIO(item)), facts_of(io.BytesIO(item), len(item)))
            return self._part(kind, f"the content of {column}", seen, data=item)
        if not isinstance(item, str):
            raise Unfit(f"{column} holds a {type(item).__name__}, not a path")
        if "://" in item:
            return self._elsewhere(kind, item.strip())
        told = item if len(item) <= _MOST_TOLD else f"{item[:_MOST_TOLD]}…"
        path = self._within(self._name(item), told)
        try:
            seen = self._looked_at(path, told)
        except OSError as error:
            raise Unfit(f"{told}: {error.strerror or type(error).__name__}") from None
        return self._part(kind, told, seen, path=str(path))

    def _name(self, cell: str) -> str:
        return as_name(cell) if self.of_documents else cell.strip()

    def _part(self, kind: MediaKind, told: str, seen: _Seen, path: str = "", data: bytes | None = None) -> Media:
        facts, taken = seen.facts, TAKEN[kind]
        if facts.mime_type not in taken:
            names = ", ".join(form.partition("/")[2] for form in taken)
            raise Unfit(f"{told} is {facts.mime_type or 'of no known form'}: [input] {kind} takes {names}")
        if kind == "pdf":
            _refuse_beyond(MOST_PDF_BYTES, facts.size_bytes, told)
        if facts.guessed:
            self._guessed.add(kind)
        tokens = tokens_by_rule(kind, facts, self.model, self.resolution)
        return Media(kind, facts.mime_type, seen.digest, facts.size_bytes, tokens, path, data)

    def _elsewhere(self, kind: MediaKind, address: str) -> Media:
        """A file at an address: the service opens it, or we fetch it when it is sent. Here nothing is connected to."""
        try:
            parts = urlsplit(address)
            host = parts.hostname
        except ValueError:
            host = None
        if host is None or parts.username or not address.isprintable() or " " in address:
            raise Unfit("an address in the table is not one of a file: https://host/…")
        if parts.scheme not in (("https",) if self.fetched else self.schemes):
            taken = "https" if self.fetched else " or ".join(self.schemes)
            raise Unfit(f"an address at {host} begins with {parts.scheme}://, and it has to be {taken}://")
        if kind != "image":
            self._guessed.add(kind)
        guess = guess_type(parts.path)[0] or ""
        mime_type = _NAMED.get(guess, guess)
        if mime_type not in TAKEN[kind]:
            mime_type = _USUAL[kind]
        tokens = tokens_by_rule(kind, UNSEEN, self.model, self.resolution)
        digest = hashlib.blake2b(address.encode(), digest_size=16).hexdigest()
        found = Media(kind, mime_type, f"at {digest}", 0, tokens)
        return replace(found, url=address) if self.fetched else replace(found, uri=address)

    def _within(self, name: str, told: str) -> Path:
        if self.root is None:
            raise Unfit(f"{told}: a table in the cloud has no folder; [input] files_root names the one of its files")
        try:
            path = (self.root / name).resolve()
            inside = path.is_relative_to(self.root.resolve())
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
            raise Unfit(f"{told!r} is no path of a file") from None
        if not inside:
            where = "the folder of the command" if self.root == Path() else self.root
            raise Unfit(f"{told} is not in {where}: [input] files_root allows another folder")
        return path

    def _looked_at(self, path: Path, name: str) -> _Seen:
        now = path.stat()
        if not stat.S_ISREG(now.st_mode):
            raise Unfit(f"{name} is no file")
        if not now.st_size:
            raise Unfit(f"{name} is empty")
        _refuse_beyond(MOST_BYTES if self.inline_bytes is None else self.inline_bytes, now.st_size, name)
        stamp = (str(path), now.st_ino, now.st_size, now.st_mtime_ns)
        seen = self._known.get(stamp)
        if seen is None:
            with path.open("rb") as file:
                seen = _Seen(digest_of(file), facts_of(file, now.st_size))
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[stamp] = seen
        return seen


def _refuse_beyond(most_bytes: int, size_bytes: int, name: str) -> None:
    if size_bytes > most_bytes:
        raise Unfit(f"{name}: {size_bytes:,} bytes, and {most_bytes:,} are the most that can be sent")


def digest_of(file: BinaryIO) -> str:
    """The name of a file's content, in bounded memory."""
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _items(column: str, cell: object, within: int = 0) -> Iterator[object]:
    """The paths or contents of a cell. An empty cell is a mistake; an empty list says that there is none."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):  # a list in a table whose cells are text
        with suppress(orjson.JSONDecodeError):
            cell = orjson.loads(cell)
    if isinstance(cell, list | tuple):
        if within == _MOST_NESTED:
            raise Unfit(f"{column} holds lists within lists, deeper than {_MOST_NESTED} levels")
        for item in cell:
            yield from _items(column, item, within + 1)
    elif cell is None or cell in ("", b"") or (isinstance(cell, str) and not cell.strip()):
        raise Unfit(f"the column {column} is empty")
    else:
        yield cell


def root_of(table: str, files_root: str | None, remote: bool) -> Path | None:
    """The folder in which a table's files lie: that of the table, or of all that its pattern can match."""
    if files_root is not None:
        return Path(files_root)
    if remote or is_url(table):
        return None
    parts: list[str] = []
    for part in Path(table).parent.parts:
        if any(mark in part for mark in "*?["):
            break
        parts.append(part)
    return Path(*parts) if parts else Path()
