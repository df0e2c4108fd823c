"""A sheet of an Excel workbook as a table: each cell as Excel shows its value, or refused by its address."""

import re
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from importlib.util import find_spec
from itertools import islice
from posixpath import join, normpath
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import polars as pl

from pipeline.errors import InputError
from pipeline.installed import installing

if TYPE_CHECKING:
    from python_calamine import CalamineSheet, CalamineWorkbook

_ROWS = 4096  # that are made columns at a time
_BLOCK_BYTES = 2**20
_LONGEST_CELL = 2**17  # bytes of the longest text of a cell, 32,767 characters, and its marks
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_STRICT = "{http://purl.oclc.org/ooxml/spreadsheetml/main}"
_IN = rb"<(?:[\w.-]+:)?"  # some programs write each element with a prefix
_END = rb"</(?:[\w.-]+:)?"
_ERROR = re.compile(
    rb"""%bc(\s[^>]*?\bt=["']e["'][^>]*)>\s*(?:%bf.*?(?:%bf>|/>))?\s*%bv>([^<]*)<""" % (_IN, _IN, _END, _IN), re.DOTALL
)
_NOT_COMPUTED = re.compile(
    rb"""%bc(\s[^>]*)?>\s*%bf(?:\s[^>]*)?(?:/>|>[^<]*%bf>)\s*(%bv\s*(?:/>|>%bv>))?\s*%bc>"""
    % (_IN, _IN, _END, _IN, _END, _END)
)
_PLACE = re.compile(rb"""\sr=["']([A-Z]+[0-9]+)["']""")
_TEXT = re.compile(rb"""\st=["']str["']""")  # of a formula: its empty value is the empty text
_FILLED = re.compile(rb"""\sr=["']([A-Z]+)([0-9]+)["'](?:[^>]*[^/>])?>""")  # one that only has a format ends with />
MOST_UNPACKED_BYTES = 2_000_000_000
"""XML of a workbook that is read: some ten million cells."""
MOST_CELLS = 100_000_000
"""From the first to the last that has something, empty ones included: each takes 32 bytes (python-calamine 0.9)."""
_SETTING = '`[input] sheet = "…"`'


def read_sheet(path: str, sheet: str | None) -> pl.DataFrame:
    """All rows that have a value, as text; null where a cell is empty.

    The first row names the columns. The whole sheet is held in memory. Raises `InputError`.
    """
    if not find_spec("python_calamine"):
        raise InputError(
            f"{path} is read with python-calamine, which is not installed",
            f"`{installing('excel')}`, or save the sheet as CSV UTF-8",
        )
    import python_calamine

    _refuse_huge(path)
    try:
        book = python_calamine.CalamineWorkbook.from_path(path)
        name = _chosen(path, book, sheet)
        place = f"{path}, sheet {name}"
        _look_over(path, place, name)
        cells = book.get_sheet_by_name(name)
    except (python_calamine.CalamineError, zipfile.BadZipFile, KeyError, ElementTree.ParseError) as error:
        if "password" in str(error).lower():
            raise InputError(f"{path} is encrypted", "save it without its password") from None
        raise InputError(f"{path} is no whole Excel workbook: {error}", "save it as .xlsx, or as CSV UTF-8") from None
    _refuse_merged(place, cells)
    if cells.start is None:
        raise InputError(f"{place} is empty", f"another is named by {_SETTING}" if len(book.sheet_names) > 1 else "")
    rows = islice(cells.iter_rows(), cells.start[0], None)  # it passes over empty columns, and not over rows
    header = [_text(cell) for cell in next(rows)]
    return _table(place, header, rows, cells.start)


def _refuse_huge(path: str) -> None:
    """A workbook is held in memory whole: one of a few MB may unpack to all that there is."""
    try:
        with zipfile.ZipFile(path) as packed:
            unpacked = sum(each.file_size for each in packed.infolist())
    except (OSError, zipfile.BadZipFile):  # whoever reads it says so
        return
    if unpacked > MOST_UNPACKED_BYTES:
        raise InputError(
            f"{path} unpacks to {unpacked / 1e9:.1f} GB, which is not held in memory", "save it as CSV UTF-8"
        )


def _chosen(path: str, book: "CalamineWorkbook", sheet: str | None) -> str:
    """The sheet that is named, or the first that is seen."""
    from python_calamine import SheetTypeEnum, SheetVisibleEnum

    known = [each for each in book.sheets_metadata if each.typ == SheetTypeEnum.WorkSheet]
    seen = [each.name for each in known if each.visible == SheetVisibleEnum.Visible]
    if sheet is None and seen:
        return seen[0]
    if sheet is not None and any(each.name == sheet for each in known):
        return sheet
    wanted = "no sheet that is seen" if sheet is None else f"no sheet {sheet!r}"
    if not known:
        raise InputError(f"{path} is no whole Excel workbook: it has no sheets", "save it as .xlsx, or as CSV UTF-8")
    raise InputError(f"{path} has {wanted}", f"{_SETTING}: it has {', '.join(each.name for each in known)}")


def _refuse_merged(place: str, cells: "CalamineSheet") -> None:
    for first, last in cells.merged_cell_ranges or ():
        raise InputError(
            f"{place}: {_address(*first)}:{_address(*last)} are merged, and only the first of them has the value",
            "unmerge them in Excel, and fill in what stands for each row; a title above the header has to go",
        )


def _look_over(path: str, place: str, name: str) -> None:
    """Raise `InputError` for what would arrive empty, and for a sheet whose empty cells alone would fill the memory."""
    reach = _Reach()
    for part in _parts(path, name):
        reach.take(part)
        _refuse_unknown(place, part)
    if reach.cells > MOST_CELLS:
        raise InputError(
            f"{place} reaches to {reach.last}: {reach.cells:,} cells with the empty ones, more than memory holds",
            "delete the rows and columns far off (Ctrl+End goes there in Excel), or save it as CSV UTF-8",
        )


class _Reach:
    """From which cell to which a sheet has something, as far as its cells have addresses."""

    def __init__(self) -> None:
        self._columns: set[bytes] = set()
        self._rows: set[int] = set()

    def take(self, part: bytes) -> None:
        """Have this part of it belong to it."""
        found = _FILLED.findall(part)
        self._columns.update(letters for letters, _ in found)
        rows = [int(number[:12]) for _, number in found]  # a longer one is as far off
        self._rows = {min(rows), max(rows)} | self._rows if rows else self._rows

    @property
    def last(self) -> str:
        """The address of its last cell."""
        return f"{max(self._columns, key=_place).decode()}{max(self._rows)}"

    @property
    def cells(self) -> int:
        """How many it has, the empty ones between included."""
        if not self._rows:
            return 0
        columns = [_place(letters) for letters in self._columns]
        return (max(columns) - min(columns) + 1) * (max(self._rows) - min(self._rows) + 1)


def _place(letters: bytes) -> int:
    """The place of a column, counted from 1."""
    place = 0
    for letter in letters[:12]:
        place = 26 * place + letter - 64
    return place


def _refuse_unknown(place: str, part: bytes) -> None:
    """Raise `InputError` for a cell that is an error, or a formula that was never computed: it would arrive empty."""
    if found := _ERROR.search(part):
        value = found[2].decode("utf-8", "replace")
        raise InputError(f"{place}, cell {_told(found[1])} is an error: {value}", "mend the formula, or empty the cell")
    for cell, empty in _NOT_COMPUTED.findall(part):
        if not (empty and _TEXT.search(cell)):
            raise InputError(
                f"{place}, cell {_told(cell)} is a formula that was never computed",
                "open the file in Excel or LibreOffice and save it: then its values are in it",
            )


def _told(attributes: bytes) -> str:
    """The address of a cell, where its attributes have it: they need not."""
    found = _PLACE.search(attributes)
    return found[1].decode() if found else "?"


def _parts(path: str, name: str) -> Iterator[bytes]:
    """The XML of a sheet in blocks, each beginning within the one before it by as much as a cell may have."""
    with zipfile.ZipFile(path) as archive:
        book = ElementTree.fromstring(archive.read("xl/workbook.xml"))
        relations = ElementTree.fromstring(archive.read("xl/_rels/workbook.xml.rels"))
        targets = {each.get("Id"): each.get("Target", "") for each in relations}
        for sheet in (*book.iter(f"{_MAIN}sheet"), *book.iter(f"{_STRICT}sheet")):
            if sheet.get("name") != name:
                continue
            relation = next((value for key, value in sheet.attrib.items() if key.endswith("}id")), "")
            target = targets.get(relation, "")
            within = target.lstrip("/") if target.startswith("/") else normpath(join("xl", target))
            with archive.open(within) as file:
                rest = b""
                while block := file.read(_BLOCK_BYTES):
                    yield rest + block
                    rest = (rest + block)[-_LONGEST_CELL:]
            return


def _table(place: str, header: list[str], rows: Iterator[list[Any]], start: tuple[int, int]) -> pl.DataFrame:
    """The rows below the header; a column without a name and without a value is none."""
    frames: list[pl.DataFrame] = []
    names = [name or f"\0{number}" for number, name in enumerate(header)]
    if len(set(names)) < len(names):
        repeated = next(name for number, name in enumerate(names) if name in names[:number])
        raise InputError(f"{place}: two columns are named `{repeated}`", "rename one of them")
    schema = dict.fromkeys(names, pl.String())
    while some := list(islice(rows, _ROWS)):
        texts = [[_text(cell) or None for cell in row] for row in some]
        frame = pl.DataFrame(texts, schema, orient="row")
        frames.append(frame.filter(pl.any_horizontal(pl.all().is_not_null())))
    whole = pl.concat(frames, rechunk=True) if frames else pl.DataFrame(schema=schema)
    nameless = [name for name in names if name.startswith("\0")]
    for name in nameless:
        if whole[name].null_count() < whole.height:
            address = _address(start[0], start[1] + int(name[1:]))
            raise InputError(f"{place}, cell {address} has no name for its column", "the first row names the columns")
    return whole.drop(nameless)


def _text(cell: Any) -> str:
    """What a cell holds, as Excel shows it where its format does not round."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "TRUE" if cell else "FALSE"
    if isinstance(cell, float | int):
        shown = f"{cell:.15g}"  # Excel computes with 15 digits, and its files have 17
        return format(Decimal(shown), "f") if "e+" in shown else shown
    if isinstance(cell, datetime):
        return cell.isoformat(" ")
    if isinstance(cell, timedelta):
        minutes, seconds = divmod(round(cell.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    return cell.isoformat() if isinstance(cell, date | time) else str(cell)


def _address(row: int, column: int) -> str:
    """As Excel names a cell, from its place counted from 0."""
    letters = ""
    column += 1
    while column:
        column, letter = divmod(column - 1, 26)
        letters = chr(65 + letter) + letters
    return f"{letters}{row + 1}"
