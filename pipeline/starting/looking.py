"""What there is to begin with: a table, a folder of them or of files; opened, and its columns looked at."""

import codecs
import csv
import io
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import glob, has_magic
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from pipeline.documents import KINDS as DOCUMENTS
from pipeline.documents import survey
from pipeline.documents.formats import NEEDS
from pipeline.encodings import SAMPLE_BYTES, is_utf8
from pipeline.errors import InputError, PipelineError
from pipeline.media import TAKEN, form_of
from pipeline.media.forms import HEAD_BYTES
from pipeline.records import MediaKind
from pipeline.source import Source, open_source, remote
from pipeline.source.csvs import open_csv
from pipeline.source.files import root_of
from pipeline.source.folders import described
from pipeline.source.tables import KINDS, Table
from pipeline.source.text import encoding_of, open_bytes
from pipeline.starting.profile import SUFFIXES, Column, Profile, profile_of
from pipeline.tokens import estimate
from pipeline.urls import is_url

LISTED = "file"
"""The column of a list of files."""

_ROWS = 1_000
_BYTES = 16_000_000  # of the rows that are looked at
_TRIED_IDS = 3
_LINES = 20  # of a text that may be a table
_TRIED_DOCUMENTS = 50
_TEXTS = ("text", "markdown", "html")
_OURS = {"results", "runs", "__pycache__", "node_modules", "venv"}


@dataclass(frozen=True)
class Found:
    """An input that can be read, to its last row."""

    path: str  # as the job names it
    rows: int
    profile: Profile
    id: str | None
    encoding: str | None = None
    separator: str | None = None
    files_root: str | None = None
    stem: str = ""  # what a job about it may be called
    listed: bool = False  # it was written just now
    left_out: int = 0  # files of a folder that no row is made of
    has_scans: bool = False  # documents that have no text but pages
    warnings: tuple[str, ...] = ()  # about documents


@dataclass(frozen=True)
class Folder:
    """The files of a folder that can be asked about: of one kind, the most frequent."""

    path: Path
    kind: MediaKind
    names: tuple[str, ...]  # within it
    left_out: int

    @property
    def listing(self) -> str:
        """A table of them, as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[LISTED], *([name] for name in self.names)])
        return text.getvalue()


def around(directory: Path) -> list[str]:
    """The tables of a directory, and the folders in it that hold tables or files which a prompt may hold."""
    entries = sorted(each for each in directory.iterdir() if not each.name.startswith((".", "_")))
    tables = [each.name for each in entries if each.is_file() and _suffix(each.name) in KINDS]
    folders = [each for each in entries if each.is_dir() and each.name not in _OURS]
    return [*tables, *(f"{each.name}/" for each in folders if holds_any(each))]


def holds_any(folder: Path) -> bool:
    """Whether a table, a document or a file that a prompt may hold lies in a folder itself."""
    try:
        return any(_suffix(each.name) in {*KINDS, *DOCUMENTS, *SUFFIXES} for each in folder.iterdir())
    except OSError:
        return False


def look_at_folder(path: str) -> "str | Folder":
    """What a folder is: documents, a table in it, a pattern of its tables, or files to ask about.

    Raises `InputError` where it is nothing of that, or several tables.
    """
    found = survey(path)
    kinds = Counter[MediaKind]()
    for suffix, number in found.others.items():
        if suffix in SUFFIXES:
            kinds[SUFFIXES[suffix]] += number
    files = sorted(_files(path))
    tables = [each for each in files if _suffix(each.name) in KINDS]
    is_read = all(map(find_spec, NEEDS["pdf"]))
    pdfs = 0 if is_read else found.kinds.get("pdf", 0)  # they are asked about as they are
    kinds["pdf"] += pdfs
    documents = len(found.files) - pdfs
    if documents > len(tables) and documents >= kinds.total():
        return path
    if tables and len(tables) >= kinds.total():
        return _one_of(path, tables)
    if not kinds.total():
        known = " ".join(sorted({*KINDS, *DOCUMENTS, *SUFFIXES}))
        raise InputError(f"{path} holds nothing that can be asked about", f"looked for are files that end in {known}")
    kind = kinds.most_common(1)[0][0]
    of_kind = (each.relative_to(path).as_posix() for each in files if _is_of(each, kind))
    whole = [name for name in of_kind if name.isprintable()]
    if not whole:
        raise InputError(f"none of the files in {path} is what its name says", f"looked for was: {kind}")
    return Folder(Path(path), kind, tuple(whole), len(files) - len(whole))


def _one_of(path: str, tables: Sequence[Path]) -> str:
    """The one table, or a pattern for tables of one kind that lie together."""
    if len(tables) == 1:
        return str(tables[0])
    endings = {each.name.partition(".")[2] for each in tables}
    if len(endings) == 1 and {each.parent for each in tables} == {Path(path)}:
        return str(Path(path) / f"*.{endings.pop()}")
    names = ", ".join(map(str, tables[:5]))
    raise InputError(f"{path} holds several tables: {names}{', …' if len(tables) > 5 else ''}", "name one of them")


def look_at_table(path: str, files_root: str | None = None) -> Found:
    """Open a table and look through it. Raises `InputError` for what is not exactly one."""
    encoding = _encoding(path)
    try:
        return _looked(path, encoding, files_root)
    except InputError:
        if encoding is None:
            raise
    return _looked(path, None, files_root)  # it was another thing, or is damaged: what that says is nearer to the file


def longest_tokens(found: Found, column: str) -> int:
    """About how many tokens the longest text of a column has, of all rows."""
    table = open_source(found.path, encoding=found.encoding, separator=found.separator).table
    longest, most = "", -1
    for frame in table.frames([column], None, 65_536):
        series = frame[column].cast(pl.String)
        lengths = series.str.len_bytes()
        if (place := lengths.arg_max()) is not None and (length := lengths[place]) is not None and length > most:
            longest, most = series[place], length
    return estimate(longest)


def _looked(path: str, encoding: str | None, files_root: str | None) -> Found:
    separator = _separator(path, encoding)
    table = open_source(path, encoding=encoding, separator=separator).table
    names = list(table.schema)
    if not names:
        raise InputError(f"{path} has no columns", "a table has a header and at least one row")
    if held := table.documents:
        held.read()
    first = _first_rows(table, names)
    profile = profile_of(first, table.json_columns)
    profile = Profile(profile.rows, tuple(_readable(each, table, files_root) for each in profile.columns))
    ids = [] if held else [each.name for each in profile.ids[:_TRIED_IDS]]
    source = _checked(path, encoding, separator, ids)
    return Found(
        path,
        source.count(),
        profile,
        source.id,
        encoding,
        separator,
        files_root,
        stem_of(path),
        left_out=sum(held.found.others.values()) if held else 0,
        has_scans=bool(held and held.scans),
        warnings=(*described(held, True)[1], *_like_rows(path, first)) if held else _without_names(path, profile),
    )


def _like_rows(path: str, first: pl.DataFrame) -> tuple[str, ...]:
    """Whether a text may be a table: Excel names its Unicode text, with tabs between cells, .txt."""
    if Path(path).suffix.lower() != ".txt" or not first.height:
        return ()
    lines = [line for line in (first["text"][0] or "").splitlines()[:_LINES] if line.strip()]
    tabs = {line.count("\t") for line in lines}
    if len(lines) < 2 or len(tabs) != 1 or tabs == {0}:
        return ()
    return ("each of its lines has as many tabs, as rows of a table do: if it is one, let its name end in .tsv",)


def _without_names(path: str, profile: Profile) -> tuple[str, ...]:
    """Whether the first line of a table may be a row, and not the names of its columns."""
    names = [each.name for each in profile.columns if each.is_named_like_a_value]
    if not names or _suffix(path) not in (".csv", ".tsv", ".xlsx"):
        return ()
    told = ", ".join(f"`{name if len(name) <= 24 else name[:23] + '…'}`" for name in names[:3])
    return (f"its first line is taken for the names of the columns, but {told} may be values: then put names above it",)


def _checked(path: str, encoding: str | None, separator: str | None, ids: Sequence[str]) -> Source:
    """The table with every row looked at, and the first of the columns that names all of them as its id."""
    for id in ids:
        try:
            source = open_source(path, id=id, encoding=encoding, separator=separator)
            source.check()
        except InputError:  # not unique further down, or else something that is said below
            continue
        return source
    source = open_source(path, encoding=encoding, separator=separator)
    source.check()
    return source


def _first_rows(table: Table, names: Sequence[str]) -> pl.DataFrame:
    held: list[pl.DataFrame] = []
    rows = size = 0
    for frame in table.frames(names, None, _ROWS):
        held.append(frame)
        rows, size = rows + frame.height, size + int(frame.estimated_size())
        if rows >= _ROWS or size >= _BYTES:
            break
    return pl.concat(held).head(_ROWS) if held else pl.DataFrame(schema=table.schema)


def _readable(column: Column, table: Table, files_root: str | None) -> Column:
    """The column; one whose cells look like paths, and where no file is, only looks so."""
    if column.sort == "bytes" or (column.media is None and table.documents is None):
        return column
    if table.documents is not None:  # their text is there already, unless all of them are scanned
        scanned = len(table.documents.scans) == table.documents.height
        return replace(column, media="pdf" if scanned and column.name == "path" else None)
    root = root_of(table.path, files_root, table.remote)
    for frame in table.frames([column.name], None, 20):
        cells = [cell for cell in frame[column.name].drop_nulls().to_list() if cell.strip()]
        if any("://" in cell or (root is not None and (root / cell.strip()).is_file()) for cell in cells):
            return column
        break
    return replace(column, media=None)


def stem_of(path: str) -> str:
    """What a job about it may be called."""
    at = Path(path.removesuffix(".gz"))
    name = (at.parent.name or "tables") if has_magic(at.name) else at.stem
    good = "".join(char for char in name if char.isprintable() and char not in '*?[]{}<>|":\\/').strip(" .")
    return good or "job"


def _encoding(path: str) -> str | None:
    """The encoding to be named; None where it is UTF-8, or where nobody could tell."""
    if Path(path).is_dir() or Path(path).suffix.lower() in DOCUMENTS:
        return _encoding_of_all([each.at for each in survey(path).files if each.kind in _TEXTS][:_TRIED_DOCUMENTS])
    first = _first(path)
    is_text = first is not None and KINDS.get(_suffix(first), ("", ""))[0] in ("csv", "jsonl")
    return _encoding_of_all([first]) if first is not None and is_text else None


def _encoding_of_all(files: Sequence[str]) -> str | None:
    """The encoding that most of those need that are not UTF-8; None where one that is UTF-8 would be misread by it."""
    needed = Counter[str]()
    others = []
    for each in files:
        with suppress(OSError, EOFError, zlib.error):  # said where it is opened
            if encoding := encoding_of(each):
                needed[encoding] += 1
            else:
                others.append(each)
    if not needed:
        return None
    encoding = needed.most_common(1)[0][0]
    return None if any(_is_unsure(each, encoding) for each in others) else encoding


def _is_unsure(file: str, encoding: str) -> bool:
    """Whether a file that is UTF-8 could be taken for one of that encoding."""
    with open_bytes(file) as opened:
        sample = opened.read(SAMPLE_BYTES)
    if sample.isascii() or is_utf8(sample, codecs.lookup(encoding).name):
        return False
    decoder = codecs.getincrementaldecoder(encoding)()
    with suppress(UnicodeError):
        decoder.decode(sample)
        return True
    return False


def _separator(path: str, encoding: str | None) -> str | None:
    """The mark between the cells of a .csv, where that is no comma."""
    first = _first(path)
    if first is None or _suffix(first) != ".csv":
        return None
    try:
        names = open_csv(first, ",", encoding).names
    except (InputError, OSError, EOFError, zlib.error):
        return None
    marks = [mark for mark in (";", "\t", "|") if len(names) == 1 and mark in names[0]]
    return max(marks, key=names[0].count) if marks else None


def _first(path: str) -> str | None:
    """The first of the files that are meant; None of one that is read elsewhere, or none."""
    if is_url(path):
        with suppress(PipelineError):  # said where it is opened
            name, stamp = next(iter(remote.find(path).items()))
            return None if _suffix(name) == ".parquet" else remote.fetched({name: stamp})[0]
        return None
    found = [path] if Path(path).exists() else sorted(glob(path, recursive=True))  # noqa: PTH207
    return next((each for each in found if Path(each).is_file()), None)


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix.lower()


def _files(folder: str) -> Iterator[Path]:
    """All files below a folder but the hidden ones; what may not be looked into, or goes meanwhile, is passed over."""
    for at, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]
        yield from (file for name in names if not name.startswith(".") and (file := Path(at, name)).is_file())


def _is_of(file: Path, kind: MediaKind) -> bool:
    """Whether a file is what its name says, by its bytes."""
    if SUFFIXES.get(file.suffix.lower()) != kind:
        return False
    try:
        with file.open("rb") as opened:
            return form_of(opened.read(HEAD_BYTES)) in TAKEN[kind]
    except OSError:
        return False
