"""Sheets of Excel workbooks: what arrives is what Excel shows, or the cell is named."""

import datetime as dt
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import xlsxwriter
from commands import UNLIMITED, Ran
from tables import fields, refused

from pipeline.errors import InputError
from pipeline.source import open_source, sheets

Sheet = Any  # xlsxwriter has no types


def workbook(path: Path, **sheets: Callable[[Sheet, Callable[[str], Any]], object]) -> str:
    """A workbook with these sheets, each written by its function, which is given a maker of number formats."""
    book = xlsxwriter.Workbook(path)
    for name, write in sheets.items():
        write(book.add_worksheet(name), lambda form: book.add_format({"num_format": form}))
    book.close()
    return str(path)


def rows(*lines: list[object]) -> Callable[[Sheet, Callable[[str], Any]], None]:
    """What writes these lines."""

    def write(sheet: Sheet, form: Callable[[str], Any]) -> None:
        for number, line in enumerate(lines):
            sheet.write_row(number, 0, line)

    return write


def test_each_cell_is_the_text_that_excel_shows(tmp_path: Path) -> None:
    def write(sheet: Sheet, form: Callable[[str], Any]) -> None:
        sheet.write_row(2, 1, ["编号", "count", "share", "day", "moment", "time", "span", "yes", "text", "sum"])
        for row in (3, 5):  # the row between is empty
            sheet.write_string(row, 1, f"00{row}")
            sheet.write_number(row, 2, 3.0)
            sheet.write_number(row, 3, 0.1 + 0.2)
            sheet.write_datetime(row, 4, dt.datetime(2026, 1, row), form("yyyy-mm-dd"))
            sheet.write_datetime(row, 5, dt.datetime(2026, 1, 2, 3, 4, 5), form("yyyy-mm-dd hh:mm:ss"))
            sheet.write_datetime(row, 6, dt.time(8, 5, 1), form("hh:mm:ss"))
            sheet.write_number(row, 7, 1.5, form("[h]:mm:ss"))
            sheet.write_boolean(row, 8, True)
            sheet.write_string(row, 9, " 两行\n文字 ")
            sheet.write_formula(row, 10, "=1+1", None, 2)
        sheet.write_number(5, 3, 1.5e19)
        sheet.write_blank(5, 9, None, form("0"))

    path = workbook(tmp_path / "a.xlsx", 数据=write)
    first = {
        "编号": "003",
        "count": "3",
        "share": "0.3",
        "day": "2026-01-03",
        "moment": "2026-01-02 03:04:05",
        "time": "08:05:01",
        "span": "36:00:00",
        "yes": "TRUE",
        "text": " 两行\n文字 ",
        "sum": "2",
    }
    second = {**first, "编号": "005", "share": "15000000000000000000", "day": "2026-01-05", "text": None}
    assert fields(path) == [first, second]
    assert fields(path, where="TRY_CAST(share AS DOUBLE) > 1") == [second]


def test_a_sheet_is_named_or_the_first_that_is_not_hidden(tmp_path: Path) -> None:
    def hide(sheet: Sheet, form: Callable[[str], Any]) -> None:
        sheet.write_row(0, 0, ["hidden"])
        sheet.hide()

    def seen(sheet: Sheet, form: Callable[[str], Any]) -> None:
        rows(["a"], ["1"])(sheet, form)
        sheet.activate()

    path = workbook(tmp_path / "a.xlsx", H=hide, 一=seen, 二=rows(["b"], ["2"]))
    assert fields(path) == [{"a": "1"}]
    assert fields(path, sheet="二") == [{"b": "2"}]
    error = refused(lambda: open_source(path, sheet="三"))
    assert error.message.endswith("has no sheet '三'") and "it has H, 一, 二" in error.hint
    (tmp_path / "b.csv").write_text("a\n1\n")
    assert "has no sheets" in refused(lambda: open_source(str(tmp_path / "b.csv"), sheet="x")).message


def test_several_workbooks_are_one_table(tmp_path: Path) -> None:
    for number in (1, 2):
        workbook(tmp_path / f"{number}.xlsx", S=rows(["id", "v"], [number, f"v{number}"]))
    assert fields(str(tmp_path / "*.xlsx"), id="id") == [{"id": "1", "v": "v1"}, {"id": "2", "v": "v2"}]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (rows(), "sheet S is empty"),
        (rows(["a", "a"], ["1", "2"]), "two columns are named `a`"),
        (rows(["a", "", "c"], ["1", "2", "3"]), "cell B1 has no name for its column"),
        (lambda sheet, form: sheet.merge_range(0, 0, 0, 2, "Title"), "A1:C1 are merged"),
        (
            lambda sheet, form: (
                rows(["a", "b"], ["1"])(sheet, form),
                sheet.write_formula(1, 1, "=1/0", None, "#DIV/0!"),
            ),
            "cell B2 is an error: #DIV/0!",
        ),
    ],
)
def test_what_would_arrive_empty_is_refused_by_its_place(tmp_path: Path, write: Any, message: str) -> None:
    path = workbook(tmp_path / "a.xlsx", S=write)
    assert message in refused(lambda: open_source(path)).message


ERROR = b'<c r="A2" t="e"><f>1/0</f><v>#DIV/0!</v></c>'


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (ERROR, "cell A2 is an error: #DIV/0!"),
        (b"<c t='e' r='A2'>\n<f>1/0</f>\n<v>#DIV/0!</v>\n</c>", "cell A2 is an error: #DIV/0!"),
        (b'<c t="e"><v>#N/A</v></c>', "cell ? is an error: #N/A"),
        (b'<c r="A2"><f>1+1</f></c>', "cell A2 is a formula that was never computed"),
        (b'<c s="0" r="A2"><f>1+1</f><v></v></c>', "cell A2 is a formula that was never computed"),
        (b'<c r="A2" t="str"><f>A9</f><v></v></c>', None),
    ],
)
@pytest.mark.parametrize("prefixed", [False, True])
def test_what_has_no_value_is_refused_whichever_program_wrote_it(
    tmp_path: Path, written: bytes, message: str | None, prefixed: bool
) -> None:
    path = workbook(
        tmp_path / "a.xlsx",
        S=lambda sheet, form: (rows(["a"], [], ["z"])(sheet, form), sheet.write_formula(1, 0, "=1/0", None, "#DIV/0!")),
    )
    held = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(held, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("sheet1.xml"):
                assert ERROR in content
                content = content.replace(ERROR, written)
                if prefixed:
                    content = re.sub(rb"<(/?)(\w)", rb"<\1x:\2", content).replace(b"xmlns=", b"xmlns:x=")
            new.writestr(name, content)
    Path(path).write_bytes(held.getvalue())
    if message is None:
        assert open_source(path).table.schema.names() == ["a"]
    else:
        assert message in refused(lambda: open_source(path)).message


def test_what_is_no_workbook_is_refused(tmp_path: Path) -> None:
    for name, content in (("a", b"a,b\n1,2\n"), ("b", b"PK\x03\x04 cut"), ("c", b"\xd0\xcf\x11\xe0" + bytes(600))):
        path = tmp_path / f"{name}.xlsx"
        path.write_bytes(content)
        assert "is no whole Excel workbook" in refused(lambda path=path: open_source(str(path))).message  # type: ignore[misc]


def test_a_job_reads_a_sheet_from_check_to_output(here: Path, cli: Callable[..., Ran]) -> None:
    workbook(here / "words.xlsx", X=rows(["n"], ["x"]), Words=rows(["id", "word"], [1, "alpha"], [2, "beta"]))
    (here / "job.toml").write_text(
        '[input]\npath = "words.xlsx"\nsheet = "Words"\nid = "id"\n[prompt]\ntemplate = "Say {{ word }}"\n'
        '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 50\n[output]\npath = "out.csv"\n' + UNLIMITED
    )
    assert cli("check", "job.toml", "--offline").code == 0
    ran = cli("run", "job.toml", "--offline", "--yes")
    assert ran.code == 0, ran.err
    assert pl.read_csv(here / "out-offline.csv")["response"].to_list() == ["Say alpha", "Say beta"]


def test_a_workbook_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", one=lambda sheet, form: sheet.write_row(0, 0, ["a", "b"]))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as packed, packed.open("xl/more.xml", "w") as more:
        for _ in range(20):
            more.write(bytes(2**20))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="unpacks to"):
        patch.setattr(sheets, "MOST_UNPACKED_BYTES", 2**20)
        sheets.read_sheet(path, None)


def test_a_cell_far_off_is_refused_and_a_format_far_off_is_none(tmp_path: Path) -> None:
    def write(sheet: Sheet, form: Callable[[str], Any]) -> None:
        rows(["a", "b"], ["1", "2"])(sheet, form)
        sheet.write_blank(1_048_575, 16_383, None, form("0"))

    path = workbook(tmp_path / "a.xlsx", S=write)
    assert fields(path) == [{"a": "1", "b": "2"}]

    def write_more(sheet: Sheet, form: Callable[[str], Any]) -> None:
        write(sheet, form)
        sheet.write(1_048_575, 16_383, 1)

    path = workbook(tmp_path / "b.xlsx", S=write_more)
    assert "reaches to XFD1048576: 17,179,869,184 cells" in refused(lambda: open_source(path)).message


@pytest.mark.parametrize("lacking", ["xl/workbook.xml", "xl/_rels/workbook.xml.rels", "xl/worksheets/sheet1.xml"])
def test_a_workbook_that_lacks_a_part_is_refused(tmp_path: Path, lacking: str) -> None:
    path = workbook(tmp_path / "a.xlsx", S=rows(["a"], ["1"]))
    held = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(held, "w") as new:
        for name in old.namelist():
            if name != lacking:
                new.writestr(name, old.read(name))
    Path(path).write_bytes(held.getvalue())
    assert "is no whole Excel workbook" in refused(lambda: open_source(path)).message
