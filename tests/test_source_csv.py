"""A CSV file means what Python's csv module says in strict mode, or it is refused before anything is sent."""

import csv
import gzip
import io
import re
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import documents, fields, refused, refused_rows, write

from pipeline.errors import InputError
from pipeline.source import csvs, open_source
from pipeline.source.text import encoding_of

Rows = list[list[str]]


def truth(content: bytes, separator: str) -> Rows | str:
    """Header and rows with a value, as the csv module reads them, or why they are none."""
    csv.field_size_limit(2**31 - 1)
    try:
        text = content.decode().removeprefix("\ufeff")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        return str(error)
    header = next((row for row in rows if row), [])
    body = [row for row in rows[rows.index(header) + 1 :] if any(row)] if header else []
    if not body or len(set(header)) < len(header):
        return "no table"
    return [header, *body] if all(len(row) == len(header) for row in body) else "ragged"


def read(path: str) -> Rows | str:
    try:
        rows = fields(path)
    except InputError as error:
        return error.message
    return [list(rows[0]), *([str(cell or "") for cell in row.values()] for row in rows)]


CELLS = ("x", "7", "", " ", "中", "é", "\\", '"', '""', "'", "\0", "\ufeff", "a b", "👩🏽", "\u2028", "\x0b", "x" * 40)
BREAKS = ("\n", "\r\n", "\r", "\r\r\n", "\n\n", "\r\n\r\n")


def cell(choose: Random, separator: str, wild: float) -> str:
    text = "".join(choose.choices((*CELLS, separator, *BREAKS), k=choose.choice((0, 1, 1, 1, 2, 3))))
    if choose.random() < wild:
        return choose.choice((text, '"' + text + '"', '"' + text.replace('"', '\\"') + '"', f'5" {text}', f' "{text}"'))
    if choose.random() < 0.5 or set(text) & {separator, '"', "\r", "\n"}:
        return '"' + text.replace('"', '""') + '"'
    return text


def table(choose: Random, separator: str) -> bytes:
    """A file between neat and broken: most have few oddities, since a file full of them is refused at once."""
    wild = choose.choice((0, 0, 0, 0.02, 0.3))
    ragged = choose.choice((0, 0, 0, 0.05))
    width = choose.choice((1, 2, 2, 3, 3, 5, 40))
    ends = choose.choice((("\n",), ("\n",), ("\r\n",), ("\r",), ("\r\r\n",), BREAKS))
    header = [f"c{number}" for number in range(width)]
    if choose.random() < 0.3:
        header[choose.randrange(width)] = cell(choose, separator, wild)
    lines = [separator.join(header)]
    for _ in range(choose.randrange(1, 9)):
        cells = width + (choose.choice((-1, 1)) if choose.random() < ragged else 0)
        lines.append(separator.join(cell(choose, separator, wild) for _ in range(cells)))
        if choose.random() < 0.1:
            lines.append(choose.choice(("", "", separator * (width - 1), '""', separator)))
    if choose.random() < 0.1:
        lines.insert(0, "")
    text = "".join(line + choose.choice(ends) for line in lines)
    content = (text if choose.random() < 0.8 else text.rstrip("\r\n")).encode()
    if choose.random() < 0.03:
        content = content.replace("中".encode(), b"\xd6\xd0", 1)
    return (b"\xef\xbb\xbf" if choose.random() < 0.2 else b"") + content


def compare(folder: Path, seeds: range) -> dict[str, int]:
    """Read a file for each seed; how many were read fast, exactly, or refused."""
    told = {"fast": 0, "exact": 0, "refused": 0}
    for seed in seeds:
        choose = Random(seed)
        suffix, separator = choose.choice(((".csv", ","), (".tsv", "\t")))
        content = table(choose, separator)
        path = write(folder / f"{seed}{suffix}", content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csvs, "_BLOCK_BYTES", choose.choice((1, 7, 64, 2**20)))
            patch.setenv("POLARS_CSV_CHUNK_SIZE", str(choose.choice((16, 100, 2**22))))
            expected, found = truth(content, separator), read(path)
            if isinstance(expected, str):
                assert isinstance(found, str), f"seed {seed}: {expected!r} {content!r}"
                told["refused"] += 1
            else:
                assert found == expected, f"seed {seed}: {content!r}"
                told["exact" if csvs.plain(path, separator, len(expected[0])) is None else "fast"] += 1
        Path(path).unlink()
    return told


@pytest.mark.case("T1", "T2", "T3", "T4")
def test_1500_random_files_are_read_as_the_csv_module_reads_them_or_refused(tmp_path: Path) -> None:
    told = compare(tmp_path, range(1500))
    assert min(told.values()) > 200, told


@pytest.mark.long
@pytest.mark.case("T1", "T2", "T3", "T4")
def test_20000_random_files_are_read_as_the_csv_module_reads_them_or_refused(tmp_path: Path) -> None:
    told = compare(tmp_path, range(10_000, 30_000))
    assert min(told.values()) > 2000, told


@pytest.mark.case("T1")
def test_quotes_escaped_by_backslashes_are_refused_with_line_and_column(tmp_path: Path) -> None:
    content = 'id,text\n1,"text with \\" escaped"\n2,where\n3,"also \\" missing"\n4,fourth\n'
    path = write(tmp_path / "a.csv", content)
    error = refused_rows(path)
    assert (
        error.message == f"{path}, line 2, column `text`, character 15: a quote ends the cell, and more of it follows"
    )
    assert r"writes \" for a quote" in error.hint


@pytest.mark.case("T2")
@pytest.mark.parametrize("cell", [r'"say \"hi\" now"', '"the "best" one"', '"x"y', '"x" '])
def test_a_quote_within_a_quoted_cell_is_refused_wherever_it_stands(tmp_path: Path, cell: str) -> None:
    for content, line in ((f"a,b\n{cell},x\n", 2), (f'a,b\n"1\n2",y\n\nx,{cell}\n', 5), (f"{cell},b\n1,2\n", 1)):
        path = write(tmp_path / "a.csv", content)
        assert refused_rows(path).message.startswith(f"{path}, line {line}, column ")


@pytest.mark.case("T3")
def test_a_quote_in_a_cell_without_quotes_is_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id,text\n1,5" pipe\n2, "x"\n3,a""b\n4,12"\n')
    assert [row["text"] for row in fields(path, id="id")] == ['5" pipe', ' "x"', 'a""b', '12"']


@pytest.mark.case("T4")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('"size in """,b\n1,2\n', [{'size in "': "1", "b": "2"}]),
        ('"a ""b"" c",d\r\n"x""y",\r\n', [{'a "b" c': 'x"y', "d": None}]),
        ("a,b\r\r\n1,2\r\r\n3,4\r\r\n", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        ("\na,b\n1,2\n", [{"a": "1", "b": "2"}]),
        ("\ufeff\r\n\r\na,b\r\n1,2\r\n", [{"a": "1", "b": "2"}]),
        ('"a\nb",c\n1,2\n', [{"a\nb": "1", "c": "2"}]),
        ("a,b\r1,2\r3,4\r", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        ('a,b\n"1\r2",x\n', [{"a": "1\r2", "b": "x"}]),
        ("a\n\n1\n\n2", [{"a": "1"}, {"a": "2"}]),
        ("a,b\n1,x\0y\n", [{"a": "1", "b": "x\0y"}]),
        ('a,b\n"",""\n"",1\n,\n', [{"a": None, "b": "1"}]),
    ],
)
def test_odd_headers_and_line_ends_are_read(tmp_path: Path, content: str, expected: list[dict[str, str]]) -> None:
    assert fields(write(tmp_path / "a.csv", content)) == expected
    if not content.startswith("\ufeff"):
        assert fields(write(tmp_path / "b.csv.gz", gzip.compress(content.encode()))) == expected
        assert fields(write(tmp_path / "c.csv", content.encode("utf-16")), encoding="utf-16") == expected


@pytest.mark.case("T11")
@pytest.mark.parametrize("end", ["\n", "\n" + "," * 1999 + "\n"])
def test_a_table_of_2000_columns_is_read_and_filtered(tmp_path: Path, end: str) -> None:
    names = [f"c{number}" for number in range(2000)]
    lines = [",".join(f"{row}.{name}" for name in names) for row in range(50)]
    path = write(tmp_path / "a.csv", "\n".join([",".join(names), *lines]) + end)
    assert len(fields(path, id="c1999")) == 50
    assert fields(path, where="c1000 = '7.c1000'") == [{name: f"7.{name}" for name in names}]


def test_a_cell_may_be_longer_than_128_kilobytes(tmp_path: Path) -> None:
    long = "x" * 300_000
    for content in (f"a,b\n{long},1\n", f'a,b\n"{long}",5" pipe\n'):
        assert fields(write(tmp_path / "a.csv", content))[0]["a"] == long


def test_where_sees_what_the_prompt_sees_whichever_reader_reads(tmp_path: Path) -> None:
    for name, end in (("neat", ""), ("odd", '4,en,5" pipe\n')):
        path = write(tmp_path / f"{name}.csv", "id,lang,note\n1,en,x\n2,zh,\n\n3,en,\n" + end)
        assert [row["id"] for row in fields(path, where="lang = 'en' AND note IS NULL")] == ["3"]


@pytest.mark.parametrize("encoding", [None, "cp1252"])
def test_an_empty_cell_is_null_with_quotes_or_without_whichever_reader_reads(
    tmp_path: Path, encoding: str | None
) -> None:
    path = write(tmp_path / "a.csv", 'id,note\n1,\n2,""\n3,x\n')
    assert [row["note"] for row in fields(path, encoding=encoding)] == [None, None, "x"]
    kept = [row["id"] for row in fields(path, encoding=encoding, where="note IS NULL")]
    assert kept == ["1", "2"]
    assert "`column IS NULL`" in refused_rows(path, encoding=encoding, where="note = ''").hint
    lines = write(tmp_path / "a.jsonl", '{"note":null}\n{"note":""}\n')
    assert [row["note"] for row in fields(lines)] == [None, ""]


def test_a_glob_may_mix_neat_and_odd_files(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "id,note\n1,x\n")
    write(tmp_path / "b.csv", '\r\nid,note\r\r\n2,5" pipe\r\r\n')
    assert [row["note"] for row in fields(str(tmp_path / "*.csv"), id="id")] == ["x", '5" pipe']


def test_a_file_that_was_edited_is_looked_at_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\n1,2\n")
    source = open_source(path, columns=["b"])
    source.check()
    write(tmp_path / "a.csv", 'a,b\n1,5" pipe\n')
    assert documents(source)[0].fields == {"b": '5" pipe'}
    write(tmp_path / "a.csv", "a,b\n1\n")
    assert "line 2 has 1 cell, the header has 2" in refused(lambda: documents(source)).message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b,c\n1,2,3\n1,2,3,4\n", "line 3 has 4 cells, the header has 3"),
        ('a,b,c\n1,"x\ny",3\n1,2\n4,5,6\n', "line 4 has 2 cells, the header has 3"),
        ("a,b,c\n1\n", "line 2 has 1 cell, the header has 3"),
        ("a,b,c\r\r\n1,2,3\r\r\n1\r\r\n", "line 5 has 1 cell, the header has 3"),
        ('a,b\n1,2\n3,"open\n4,5\n', "line 3, column `b`, character 3: a quote opens here and never closes"),
        ('a,b\n"1\n2",3\n"x\ny","open\n', "line 5, column `b`, character 4: a quote opens here and never closes"),
    ],
)
def test_a_broken_csv_row_is_named_by_its_line(tmp_path: Path, content: str, said: str) -> None:
    error = refused_rows(write(tmp_path / "a.csv", content))
    assert f"a.csv, {said}" in error.message and error.hint


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("a,b,a", "line 1: two columns are named `a`"),
        ("a,,c,", "columns 2 and 4 have no name"),
        ("\n\na,b,a", "line 3: two"),
    ],
)
def test_a_bad_csv_header_is_refused(tmp_path: Path, header: str, said: str) -> None:
    assert said in refused(lambda: open_source(write(tmp_path / "a.csv", f"{header}\n1,2,3\n"))).message
    assert "is empty" in refused(lambda: open_source(write(tmp_path / "b.csv", "\n\n"))).message


def test_a_regular_file_with_empty_cells_and_blank_lines_is_not_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> None:
        raise AssertionError("read row by row")

    monkeypatch.setattr(csvs.CsvFile, "_exact", slow)
    content = '\ufeffa,b,c\r\n1,"x,\r\ny",\r\n"d""e",,""\r\n\r\n,,\r\n4,5,'
    assert fields(write(tmp_path / "a.csv", content)) == [
        {"a": "1", "b": "x,\r\ny", "c": None},
        {"a": 'd"e', "b": None, "c": None},
        {"a": "4", "b": "5", "c": None},
    ]


cells = st.text(
    st.one_of(st.sampled_from('",\r\n\t;é中\u0301\u200d\ufeff👩🏽 '), st.characters(exclude_categories=["Cs"])),
    max_size=12,
)
written = st.lists(st.lists(cells, min_size=2, max_size=4).filter(any), min_size=1, max_size=8)
STYLES = [("\r\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\n", csv.QUOTE_ALL)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written, st.sampled_from(STYLES), st.booleans(), st.integers(1, 40))
def test_what_the_csv_module_writes_is_plain_when_its_rows_are_even(
    tmp_path: Path, rows: Rows, style: tuple[str, Any], ended: bool, block_bytes: int
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator=style[0], quoting=style[1]).writerows([("a", "b", "c"), *rows])
    content = buffer.getvalue() if ended else buffer.getvalue().removesuffix(style[0])
    path = write(tmp_path / "any.csv", content)
    even = all(len(row) == 3 for row in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csvs, "_BLOCK_BYTES", block_bytes)
        found = csvs.plain(path, ",", 3)
    assert (found is not None) == even
    if found:
        assert found.lines == len(rows)
    else:
        assert "the header has 3" in refused_rows(path).message


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from('",,\r\n\n x'), max_size=24), st.integers(1, 3), st.integers(1, 24))
def test_the_csv_module_finds_no_fault_in_a_file_that_is_plain(
    tmp_path: Path, content: str, columns: int, block_bytes: int
) -> None:
    whole = ",".join(["a", "b", "c"][:columns]) + "\n" + content
    path = write(tmp_path / "any.csv", whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csvs, "_BLOCK_BYTES", block_bytes)
        found = csvs.plain(path, ",", columns)
    if found:
        rows = list(csv.reader(io.StringIO(whole, newline=""), strict=True))[1:]
        assert found.lines == len(rows)
        assert found.blank or all(map(any, rows))
        assert {len(row) for row in rows if any(row)} <= {columns}


def test_bytes_that_are_not_utf8_are_named_with_the_encoding_that_fits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'id,body\n1,fine\n2,"two\nlines"\n3,' + "中文".encode("gb18030") + b"\n")
    error = refused_rows(path)
    assert error.message == f"{path}, line 5, column `body`: not UTF-8 (\\xd6\\xd0\\xce\\xc4)"
    assert error.hint == '`[input] encoding = "gb18030"` reads it'
    error = refused(lambda: open_source(write(tmp_path / "h.csv", b"caf\xe9,b\n1,2\n")))
    assert "line 1" in error.message and "\\xe9" in error.message and '"cp1252"' in error.hint


def test_no_encoding_is_proposed_for_what_is_utf8_but_for_some_places(tmp_path: Path) -> None:
    lines = [f"{number},收到时第{number}件已经坏了，电话也没人接\n".encode() for number in range(40)]
    for bad in ("20,收到".encode()[:-1] + b"\n", "20,收到时已经坏了\n".encode("gbk"), b"20,caf\xe9\n"):
        path = write(tmp_path / "a b.csv", b"id,text\n" + b"".join([*lines[:20], bad, *lines[21:]]))
        assert encoding_of(path) is None
        error = refused(lambda path=path: list(open_source(path).batches()))  # type: ignore[misc]
        assert "a b.csv, line 22, column `text`: not UTF-8" in error.message
        command = re.search("`(iconv .*)`", error.hint)
        assert command
        subprocess.run(command[1], shell=True, cwd=tmp_path, check=False)
        assert len(fields(str(tmp_path / "clean.csv"))) == 40
    texts = {
        "gb18030": "收到时已经坏了，电话也没人接",
        "shift_jis": "届いたときにはもう壊れて",
        "euc_kr": "받았을 때 이미 고장",
        "cp1251": "коробка пришла поздно",
        "cp1252": "très agréable",
    }
    for encoding, text in texts.items():
        assert encoding_of(write(tmp_path / "b.csv", f"id,text\n1,{text}\n".encode(encoding))) == encoding


@pytest.mark.case("T14")
@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gb18030", "客户说:很好,下次再来"),
        ("big5", "客戶說:很好,下次再來"),
        ("shift_jis", "お客様のコメント"),
        ("euc_kr", "고객 의견입니다"),
        ("cp1251", "отзыв покупателя"),
        ("cp1252", "Größe über café"),
        ("utf-16", "客户说 hello"),
        ("utf-16-le", "客户说 hello"),
        ("utf-32", "客户说 hello"),
    ],
)
def test_a_table_in_another_encoding_is_refused_with_its_name_and_read_by_it(
    tmp_path: Path, encoding: str, text: str
) -> None:
    content = f'id,text\r\n1,"{text}"\r\n2,"5"" x"\r\n'.encode(encoding)
    path = write(tmp_path / "a.csv", content)
    assert f'encoding = "{encoding}"' in refused_rows(path).hint
    assert fields(path, encoding=encoding) == [{"id": "1", "text": text}, {"id": "2", "text": '5" x'}]
    lines = write(tmp_path / "a.jsonl", f'{{"text": "{text}"}}\n{{"text": "x"}}\n'.encode(encoding))
    assert f'encoding = "{encoding}"' in refused_rows(lines).hint
    assert fields(lines, encoding=encoding) == [{"text": text}, {"text": "x"}]


@pytest.mark.case("T14")
def test_a_byte_that_the_encoding_does_not_know_is_named_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\n1,中\n2,".encode("gb18030") + b"\xff\xff\n")
    assert f"{path}, line 3, column `text`: not gb18030 (\\xff" in refused_rows(path, encoding="gb18030").message
    path = write(tmp_path / "a.jsonl", b'{"a": "\xe4"}\n{"a": "\x81"}\n')
    assert f"{path}, line 2: not cp1252 (\\x81)" in refused_rows(path, encoding="cp1252").message
    path = str(tmp_path / "a.parquet")
    pl.DataFrame({"a": ["x"]}).write_parquet(path)
    assert "[input] encoding" in refused(lambda: open_source(path, encoding="gb18030")).message


@pytest.mark.case("T13")
@pytest.mark.parametrize(
    ("name", "content", "said", "hint"),
    [
        ("a.csv", "sep=,\nid,text\n1,x\n", "line 1 is `sep=,`, a note for Excel", "tail -n +2 "),
        ("a b's.csv", "sep=,\nid,text\n1,x\n", "line 1 is `sep=,`", """a b'"'"'s.csv' > plain.csv`"""),
        ("a.csv", "\ufeffsep=;\r\nid;text\r\n1;x\r\n", "line 1 is `sep=;`, a note for Excel", "tail -n +2 "),
        ("a.csv", "id,text\n1,x\n".encode("utf-16-le"), "is UTF-16-LE, not UTF-8", '"utf-16-le"'),
        ("a.csv", "id,文\n1,中\n".encode("utf-16-be"), "is UTF-16-BE, not UTF-8", '"utf-16-be"'),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16-le"), "is UTF-16-LE, not UTF-8", '"utf-16-le"'),
        ("a.csv", gzip.compress(b"a,b\n1,2\n", mtime=0), "is packed with gzip", "a.csv.gz`"),
        ("a.jsonl", gzip.compress(b'{"a": 1}\n', mtime=0), "is packed with gzip", "a.jsonl.gz`"),
        ("a.csv.gz", b"a,b\n1,2\n", "is not packed", "a.csv`"),
        ("a.csv.gz", gzip.compress(gzip.compress(b"a,b\n1,2\n", mtime=0), mtime=0), "is packed twice", "once"),
        ("a.csv", b"PK\x03\x04rest", "or an Excel workbook", "CSV UTF-8"),
        ("a.tsv", b"PAR1rest", "is a Parquet file", ".parquet"),
        ("a.jsonl", b"\x28\xb5\x2f\xfdrest", "packed with zstd", ".gz"),
    ],
)
def test_a_file_in_disguise_is_named_for_what_it_is(
    tmp_path: Path, name: str, content: str | bytes, said: str, hint: str
) -> None:
    error = refused_rows(write(tmp_path / name, content))
    assert said in error.message and hint in error.hint


@pytest.mark.case("T4")
def test_one_column_may_have_no_name_as_that_of_an_index(tmp_path: Path) -> None:
    pandas = write(tmp_path / "pandas.csv", ",text\n0,a\n1,b\n")
    assert fields(pandas) == [{"": "0", "text": "a"}, {"": "1", "text": "b"}]
    r = write(tmp_path / "r.csv", '"","text"\n"1",5" pipe\n"2",b\n')  # read by the csv module
    assert fields(r) == [{"": "1", "text": '5" pipe'}, {"": "2", "text": "b"}]
    trailing = write(tmp_path / "trailing.csv", 'text,\na,\n"",\nb,\n')
    assert fields(trailing) == [{"text": "a", "": None}, {"text": "b", "": None}]


@pytest.mark.case("T13")
def test_a_separator_can_be_named_and_is_hinted_at(tmp_path: Path) -> None:
    german = write(tmp_path / "a.csv", 'id;text;preis\n1;"a;b";1,5\n2;"say ""hi""";2\n')
    row = {"id": "1", "text": "a;b", "preis": "1,5"}
    assert fields(german, separator=";") == [row, {"id": "2", "text": 'say "hi"', "preis": "2"}]
    assert '`[input] separator = ";"` reads it' in refused(lambda: open_source(german, id="id")).hint
    piped = write(tmp_path / "b.csv", 'id|text\n1|5" pipe\n')
    assert fields(piped, separator="|") == [{"id": "1", "text": '5" pipe'}]
    noted = refused(lambda: open_source(write(tmp_path / "c.csv", "sep=;\nid;text\n1;a\n")))
    assert "line 1 is `sep=;`" in noted.message and '[input] separator = ";"' in noted.hint
    lines = write(tmp_path / "d.jsonl", '{"a":1}\n')
    assert "for .csv files" in refused(lambda: open_source(lines, separator=";")).hint


@pytest.mark.case("T14")
@pytest.mark.parametrize(
    ("encoding", "content", "said"),
    [
        ("utf-16", b"id,text\n1,a\n", "no byte order mark"),
        ("utf-32", b"id,text\n1,a\n", "no byte order mark"),
        ("utf-16", "id,text\n1,a\n".encode("utf-16-le"), "no byte order mark"),
        ("gb18030", "id,text\n1,日本\n".encode(), "is UTF-8, not gb18030"),
        ("latin-1", "id,text\n1,é\n".encode(), "is UTF-8, not latin-1"),
        ("cp1251", "id,text\n1,привет\n".encode(), "is UTF-8, not cp1251"),
        ("gbk", "\ufeffid,text\n1,a\n".encode(), "is UTF-8, not gbk"),
        ("latin-1", "id,text\n1,ä\n".encode("utf-16"), "is UTF-16, not ISO8859-1"),
    ],
)
def test_an_encoding_that_is_not_the_files_is_refused(tmp_path: Path, encoding: str, content: bytes, said: str) -> None:
    error = refused(lambda: open_source(write(tmp_path / "a.csv", content), encoding=encoding))
    assert said in error.message and "encoding" in error.hint


@pytest.mark.case("T14")
@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gb18030", "plain"),
        ("gb18030", "联通 你好世界"),
        ("gb18030", "小"),
        ("latin-1", "Größe, à la carte"),
        ("cp1251", "привет"),
        ("utf-16-le", "plain ä"),
        ("utf-16", "日本"),
        ("utf-32", "日本"),
        ("shift_jis", "日本語"),
    ],
)
def test_an_encoding_that_is_the_files_is_taken(tmp_path: Path, encoding: str, text: str) -> None:
    path = write(tmp_path / "a.csv", f'text\n"{text}"\n'.encode(encoding))
    assert fields(path, encoding=encoding) == [{"text": text}]
    lines = write(tmp_path / "a.jsonl", f'{{"text":"{text}"}}\n'.encode(encoding))
    assert fields(lines, encoding=encoding) == [{"text": text}]
