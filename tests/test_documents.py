"""A folder of documents as a table: found, read once, each a row or a row with its cause."""

import errno
import os
import shutil
import sqlite3
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import paper
import polars as pl
import pytest
from commands import UNLIMITED, Ran
from forking import forked
from tables import documents, refused

import pipeline as pp
from pipeline.documents import formats, listing, survey, workers
from pipeline.documents.collecting import READ, Collected
from pipeline.documents.decoding import NoText
from pipeline.documents.reading import Read, digest_of
from pipeline.documents.spool import KEPT_DAYS, Spool
from pipeline.run.asking import inputs
from pipeline.source import Source, open_source
from pipeline.source.folders import described
from pipeline.store.manifest import read as read_manifest

GBK = "这是一段中文文本,用来判断它的编码。".encode("gb18030")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents of all sorts, whole and broken."""
    root = tmp_path / "docs"
    (root / "sub").mkdir(parents=True)
    for name, content in {
        "a.txt": b"hello\r\nworld",
        "sub/中文 名.md": "前言\n\n# 标题 #\n\n一段文字".encode(),
        "sub/two\nlines.TXT": b"odd name",
        "mark.txt": "\ufeff带记号".encode(),
        "wide.txt": "宽 text".encode("utf-16"),
        "gbk.txt": GBK,
        "empty.txt": b"",
        "blank.md": b" \n\t\n",
        "binary.txt": b"a\0b",
        "fake.txt": b"%PDF-1.7\n",
        ".hidden.txt": b"hidden",
        "~$a.txt": b"lock",
        "index.csv": b"a,b\n",
        "image.png": b"",
    }.items():
        (root / name).write_bytes(content)
    (root / "loop.txt").symlink_to("loop.txt")
    (root / "up").symlink_to("..")
    (tmp_path / "secret.txt").write_text("secret")
    (root / "out.txt").symlink_to("../secret.txt")
    (root / "in.txt").symlink_to("a.txt")
    os.mkfifo(root / "pipe.txt")
    for raw in (b"bad\xe9.txt", b"bad\\xe9.txt"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + raw)).write_text(str(raw))
    return root


def opened(path: Path | str, here: Path, **options: Any) -> Source:
    source = open_source(str(path), spool=here / "spool.sqlite", text="text", **options)
    source.check()
    return source.showing(["name", "title", "pages"])


def read(path: Path | str, here: Path, **options: Any) -> dict[str, str]:
    """The text of each document, or with a `!` why it has none."""
    rows = documents(opened(path, here, **options))
    return {row.key: f"!{row.unfit.removeprefix(f'{row.key}: ')}" if row.unfit else row.text or "" for row in rows}


def content_of(source: Source) -> str:
    """A hash of all that the documents say."""
    return (source.table.documents or pytest.fail()).whole_fingerprint


def test_each_document_is_a_row_with_its_text_or_its_cause(folder: Path, tmp_path: Path) -> None:
    assert read(folder, tmp_path) == {
        "a.txt": "hello\nworld",
        "bad\\x5cxe9.txt": r"b'bad\\xe9.txt'",
        "bad\\xe9.txt": r"b'bad\xe9.txt'",
        "binary.txt": "!it holds NUL bytes, as no text does",
        "blank.md": "!it holds no text",
        "empty.txt": "!it is empty",
        "fake.txt": "!it is a PDF, whatever its name says",
        "gbk.txt": '!it is not UTF-8: `[input] encoding = "gb18030"` may read it',
        "in.txt": "hello\nworld",
        "loop.txt": "!Too many levels of symbolic links",
        "mark.txt": "带记号",
        "out.txt": "!it is a link that leads out of the folder",
        "pipe.txt": "!it is no file",
        "sub/two\nlines.TXT": "odd name",
        "sub/中文 名.md": "前言\n\n# 标题 #\n\n一段文字",
        "wide.txt": "宽 text",
    }
    titled = {row.key: dict(row.fields) for row in documents(opened(folder, tmp_path))}["sub/中文 名.md"]
    assert titled == {"name": "中文 名.md", "title": "标题", "pages": None}


def test_a_folder_may_mix_utf_8_and_the_encoding_that_is_named(folder: Path, tmp_path: Path) -> None:
    found = read(folder, tmp_path, encoding="gb18030")
    assert found["gbk.txt"] == GBK.decode("gb18030")
    assert found["sub/中文 名.md"].endswith("一段文字") and found["wide.txt"] == "宽 text"


def test_a_pattern_and_a_single_file_mean_their_documents(folder: Path, tmp_path: Path) -> None:
    assert list(read(folder / "**" / "*.md", tmp_path)) == ["blank.md", "sub/中文 名.md"]
    assert list(read(folder / "*" / "*.md", tmp_path)) == ["sub/中文 名.md"]
    (tmp_path / "a[1].txt").write_text("odd")
    assert read(tmp_path / "a[1].txt", tmp_path) == {"a[1].txt": "odd"}
    assert read(folder / ".hidden.txt", tmp_path) == {".hidden.txt": "hidden"}
    assert list(read(folder / ".*.txt", tmp_path)) == [".hidden.txt"]


def test_what_else_is_in_a_folder_is_counted_and_not_opened(folder: Path) -> None:
    found = survey(str(folder))
    assert dict(found.kinds) == {"text": 14, "markdown": 2}
    assert dict(found.others) == {".csv": 1, ".png": 1}


def test_what_runs_leave_in_the_folder_is_not_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    for name in ("runs/job/calls/0.parquet", "runs/job/report.html", "other/runs/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = survey(".")
    assert [file.path for file in found.files] == ["a.txt", "other/runs/b.txt"] and not found.others


def test_a_folder_of_tables_is_none_of_documents(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("a,b\n1,2\n")
    assert "is a directory" in refused(lambda: open_source(str(tmp_path))).message
    (tmp_path / "README.md").write_text("# Data")
    for path in (str(tmp_path), f"{tmp_path}/*"):
        assert "has tables and documents: .csv, .md" in refused(partial(open_source, path)).message
    assert open_source(str(tmp_path / "*.csv")).table.kind == "csv"


def test_a_document_is_read_again_only_after_its_file_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.documents.gathering._SETTLED_NS", 0)
    first = opened(folder, tmp_path)
    before = content_of(first)
    (folder / "a.txt").unlink()
    (folder / "mark.txt").write_text("changed")
    assert {row.key: row.text for row in documents(first)}["a.txt"] == "hello\nworld"
    assert first.changed(looked_into=True) is None
    hashed: list[str] = []

    def hashing(at: str) -> str:
        hashed.append(at)
        return digest_of(at)

    monkeypatch.setattr("pipeline.documents.gathering.digest_of", hashing)
    second = opened(folder, tmp_path)
    assert content_of(second) != before
    assert sorted(Path(at).name for at in hashed) == ["empty.txt", "mark.txt"]
    assert second.fingerprint != first.fingerprint  # a path is gone
    assert {row.key: row.text for row in documents(second)}["mark.txt"] == "changed"


def test_a_copy_of_the_folder_is_the_same_table(folder: Path, tmp_path: Path) -> None:
    before = [opened(folder, tmp_path, where=where).fingerprint for where in (None, "pages IS NULL")]
    folder.rename(tmp_path / "moved")
    assert [
        opened(tmp_path / "moved", tmp_path, where=where).fingerprint for where in (None, "pages IS NULL")
    ] == before


@pytest.mark.parametrize("damage", [b"no database at all", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_spool_is_made_anew(folder: Path, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "spool.sqlite").write_bytes(damage)
    assert read(folder, tmp_path)["a.txt"] == "hello\nworld"
    with sqlite3.connect(tmp_path / "spool.sqlite") as db:
        assert db.execute("SELECT count(*) FROM texts").fetchone()[0] > 5


def test_without_a_place_for_the_spool_a_temporary_one_will_do(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert read(folder, tmp_path / "file")["a.txt"] == "hello\nworld"


def test_a_run_buys_only_the_documents_that_are_new_or_changed(here: Path, cli: Callable[..., Ran]) -> None:
    folder = here / "texts"
    folder.mkdir()
    for name in ("b.txt", "c.md", "d.txt"):
        (folder / name).write_text(f"This is {name}")
    (folder / "empty.txt").write_text("")
    (here / "job.toml").write_text(
        '[input]\npath = "texts/"\n[prompt]\ntemplate = "Say {{ text }}"\n[model]\nname = "gemini-3.5-flash-lite"\n'
        f'max_output_tokens = 50\n[output]\npath = "out.csv"\n{UNLIMITED}\n'
    )

    def ran() -> tuple[int, dict[str, str]]:
        done = cli("run", "job.toml", "--offline", "--yes", "--json")
        assert done.code == 1, done.err
        rows = pl.read_csv(here / "out-offline.csv").select("path", "status", "response", "error").rows()
        return done.json["calls"], {path: response or f"{status}: {error}" for path, status, response, error in rows}

    checked = cli("check", "job.toml", "--offline").out
    assert "texts/: 1 markdown, 3 text" in checked and "1 cannot be read: empty.txt: it is empty" in checked
    calls, rows = ran()
    assert calls == 3 and rows["c.md"] == "Say This is c.md" and rows["empty.txt"] == "invalid: empty.txt: it is empty"
    (folder / "a.txt").write_text("This is a.txt")
    (folder / "b.txt").unlink()
    (folder / "c.md").write_text("This is another")
    calls, rows = ran()
    assert calls == 2 and list(rows) == ["a.txt", "c.md", "d.txt", "empty.txt"]
    assert rows["c.md"] == "Say This is another" and rows["d.txt"] == "Say This is d.txt"


JOB = (
    '[input]\npath = "texts/"\n[prompt]\ntemplate = "Say {{ text }}"\n[model]\nname = "gemini-3.5-flash-lite"\n'
    f'max_output_tokens = 50\n[output]\npath = "out.csv"\n{UNLIMITED}\n'
)


@pytest.fixture
def texts(here: Path) -> Path:
    """Three texts, two of them in a folder, and a job about them."""
    folder = here / "texts"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "sub/c.txt"):
        (folder / name).write_text(f"This is {name}")
    (here / "job.toml").write_text(JOB)
    return folder


def were_read(here: Path) -> int:
    """How many texts are kept, of all commands here."""
    with closing(sqlite3.connect(here / "runs" / ".documents.sqlite")) as db:
        return int(db.execute("SELECT count(*) FROM texts").fetchone()[0])


def test_a_limit_reads_no_other_documents_and_the_run_goes_on_from_it(
    here: Path, texts: Path, cli: Callable[..., Ran]
) -> None:
    first = cli("run", "job.toml", "--offline", "--yes", "--json", "--limit", "1")
    assert (first.code, first.json["calls"], were_read(here)) == (0, 1, 1)
    assert pl.read_csv(here / "out-offline.csv")["path"].to_list() == ["a.txt"]
    (texts / "sub" / "c.txt").write_text("This was never read")
    whole = cli("run", "job.toml", "--offline", "--yes", "--json")
    assert (whole.code, whole.json["calls"], were_read(here)) == (0, 3, 3)
    assert whole.json["generation"] == 1
    (texts / "sub" / "c.txt").write_text("This is another")
    assert cli("run", "job.toml", "--offline", "--yes", "--json", "--limit", "1", "--overwrite").json["generation"] == 1
    third = cli("run", "job.toml", "--offline", "--yes", "--json")
    assert (third.json["generation"], third.json["calls"]) == (2, 1)
    assert pl.read_csv(here / "out-offline.csv")["response"].to_list()[2] == "Say This is another"


def test_where_on_names_reads_only_what_it_lets_through_and_on_contents_all(texts: Path, tmp_path: Path) -> None:
    for where, most, rows, read in (
        ("path LIKE 'sub/%'", None, [1, 2], 2),
        ("name <> 'a.txt'", 1, [1], 1),
        ("1 = 1", None, [0, 1, 2], 3),
        ("text LIKE '%c.txt'", 1, [2], 3),
    ):
        source = open_source(str(texts), where=where, text="text", spool=tmp_path / f"{where[:4]}{most}.sqlite")
        held = source.table.documents or pytest.fail()
        assert [len(documents(source.first(most))), held.rows[READ].sum()] == [len(rows), read], where
        assert [number for numbers in source.input_numbers() for number in numbers][:most] == rows


def test_a_change_behind_the_first_piece_is_noticed(here: Path, texts: Path, cli: Callable[..., Ran]) -> None:
    cut = '[chunk]\nmax_tokens = 64\n[reduce]\ntemplate = "{{ parts }}"\n'
    (here / "job.toml").write_text(JOB.replace("[prompt]", 'text = "text"\n[prompt]') + cut)
    words = [f"Sentence number {number} of this text." for number in range(30)]
    (texts / "a.txt").write_text(" ".join(words))
    assert cli("run", "job.toml", "--offline", "--yes").code == 0
    (texts / "a.txt").write_text(" ".join([*words[:-1], "Another end."]))
    ran = cli("run", "job.toml", "--offline", "--yes", "--json")
    assert ran.json["generation"] == 2 and 0 < ran.json["calls"] < 4


def test_whoever_reads_a_run_needs_no_folder(here: Path, texts: Path, cli: Callable[..., Ran]) -> None:
    (texts / "sub" / "empty.md").write_text("")
    assert cli("run", "job.toml", "--offline", "--yes").code == 1
    (texts / "a.txt").write_text("This is another")
    shutil.rmtree(texts / "sub")
    shown = cli("show", "job-offline", "sub/c.txt").out
    assert "Say This is sub/c.txt" in shown and "is not what it was" not in shown
    assert "This is another" not in cli("show", "job-offline", "a.txt").out
    exported = cli("export", "job-offline", "--to", "all.csv")
    assert exported.code == 0, exported.err
    assert pl.read_csv(here / "all.csv").select("path", "name", "status").rows() == [
        ("a.txt", "a.txt", "ok"),
        ("sub/b.txt", "b.txt", "ok"),
        ("sub/c.txt", "c.txt", "ok"),
        ("sub/empty.md", "empty.md", "invalid"),
    ]
    manifest = read_manifest(here / "runs" / "job-offline" / "manifest.json") or pytest.fail()
    told = dict(inputs(here / "runs" / "job-offline", manifest, lambda row: row == 1, 100))
    assert told == {1: "This is sub/b.txt"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pp.read("job-offline").frame()["name"].to_list() == ["a.txt", "b.txt", "c.txt", "empty.md"]
    (texts / "sub").mkdir()
    for name in ("b.txt", "c.txt", "empty.md"):  # all are there again, and nobody knows what the run has read
        (texts / "sub" / name).write_text("Something else")
    (here / "runs" / "job-offline" / "documents.parquet").write_bytes(b"damaged")
    shown = cli("show", "job-offline", "sub/c.txt").out
    assert "Something else" not in shown and "is not what it was when this was asked" in shown
    assert "the columns of the input" in cli("export", "job-offline", "--to", "some.csv").err


def test_texts_that_nobody_needs_any_more_go_unless_somebody_is_at_work(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, today = tmp_path / "spool.sqlite", 20_000
    monkeypatch.setattr("pipeline.documents.spool._today", lambda: today)
    monkeypatch.setattr("pipeline.documents.gathering._SETTLED_NS", 0)

    def kept() -> tuple[int, int, int]:
        with closing(sqlite3.connect(spool)) as db:
            count = "(SELECT count(*) FROM texts), (SELECT count(*) FROM used), (SELECT count(*) FROM seen)"
            found: tuple[int, int, int] = db.execute(f"SELECT {count}").fetchone()
            return found

    first = opened(texts, tmp_path)
    documents(first)
    size = spool.stat().st_size
    (texts / "a.txt").write_text("This is another " * 9999)
    documents(opened(texts, tmp_path))
    assert kept() == (4, 4, 3)
    today += KEPT_DAYS
    documents(opened(texts, tmp_path))
    (texts / "a.txt").write_text("This is a third")
    today += 1
    documents(opened(texts, tmp_path))
    assert kept() == (5, 5, 3)  # the first source is there yet
    assert next(document.text for document in documents(first)) == "This is a.txt"
    del first
    today += KEPT_DAYS + 1
    documents(opened(texts, tmp_path).first(1))
    assert kept() == (5, 5, 3)  # it reads no folder to its end
    documents(opened(texts, tmp_path))
    assert kept() == (3, 3, 3) and spool.stat().st_size <= size
    assert read(texts, tmp_path)["a.txt"] == "This is a third"


def test_a_run_takes_for_known_only_what_its_session_covers(texts: Path, tmp_path: Path) -> None:
    """Another part of the program may have read more, which no session has compared with what was asked."""

    def held() -> Collected:
        found = opened(texts, tmp_path).table.documents or pytest.fail()
        found.read()
        return found

    listing.write(tmp_path, held())
    for name in ("a.txt", "sub/b.txt"):
        (texts / name).write_text("another")
    assert listing.changed(tmp_path, held()) == {"a.txt", "sub/b.txt"}
    listing.write(tmp_path, held(), {"a.txt"})
    assert listing.changed(tmp_path, held()) == {"sub/b.txt"}
    (texts / "d.txt").write_text("one more")
    listing.write(tmp_path, held(), {"d.txt"})
    kept = listing.read(tmp_path, tmp_path / "spool.sqlite") or pytest.fail()
    assert kept.rows.select("name", READ).rows() == [
        ("a.txt", False),
        ("d.txt", True),
        ("b.txt", False),
        ("c.txt", False),
    ]
    listing.write(tmp_path, None)
    assert listing.read(tmp_path, tmp_path / "spool.sqlite") is None
    assert listing.changed(tmp_path, held()) == {"a.txt", "d.txt", "sub/b.txt", "sub/c.txt"}


def test_a_text_that_was_thrown_away_is_read_again_or_said_to_be_gone(
    here: Path, texts: Path, cli: Callable[..., Ran]
) -> None:
    assert cli("run", "job.toml", "--offline", "--yes").code == 0
    (here / "runs" / ".documents.sqlite").unlink()
    (texts / "sub" / "b.txt").write_text("This is another")
    assert "Say This is a.txt" in cli("show", "job-offline", "a.txt").out
    assert "the text of sub/b.txt is kept no longer" in cli("show", "job-offline", "sub/b.txt").out
    assert cli("export", "job-offline").code == 0


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.long)])
def test_sigkill_at_any_moment_leaves_a_whole_spool(here: Path, texts: Path, kills: int) -> None:
    for number in range(300):
        (texts / f"{number:03}.txt").write_text(f"Text {number} " * 50)
    random, spool = Random(kills), here / "runs" / ".documents.sqlite"
    small = "from pipeline.documents import collecting, gathering, spool\n"
    small += "collecting._CHUNK = 20; collecting._FILES = 5; gathering._KEPT_S = 0; spool.KEPT_DAYS = -1"
    for _ in range(kills):
        process = forked("check", "job.toml", "--offline", cwd=here, patch=small)
        until = time.monotonic() + 20
        while not spool.exists() and time.monotonic() < until:
            time.sleep(0.005)  # real time: another process goes on
        time.sleep(random.uniform(0, 0.4))
        process.kill()
        process.wait(20)
        if spool.exists():
            with closing(sqlite3.connect(spool)) as db:
                assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if random.random() < 0.5:
            (texts / f"{random.randrange(300):03}.txt").write_text(f"Changed {random.random()}")
    told = {str(path.relative_to(texts)): path.read_text() for path in texts.rglob("*.txt")}
    source = open_source(str(texts), text="text", spool=spool)
    assert {row.key: row.text for row in documents(source)} == told


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What offices, browsers and scanners write, whole and broken."""
    root = tmp_path_factory.mktemp("office")
    report = paper.pdf("Page one of this report", "and page two of it", title="Report")
    word = paper.paragraph("第一章", "Heading1") + paper.paragraph("一段文字") + paper.paragraph("1.1", "Heading2")
    for name, content in {
        "report.pdf": report,
        "locked.pdf": paper.locked(report),
        "cut.pdf": report[:-400],
        "scan.pdf": paper.pdf("", "", ""),
        "partly.pdf": paper.pdf("Page one of this report", "", "and page three of it"),
        "word.docx": paper.docx(word, title="报告"),
        "untitled.docx": paper.docx(word),
        "old.docx": b"\xd0\xcf\x11\xe0" + bytes(99),
        "other.docx": paper.zipped({"a.txt": "x"}),
        "damaged.docx": paper.docx(word)[:-80],
        "book.epub": paper.epub("一本书", "<h1>第一</h1><p>甲", "<h1>第二</h1><p>乙"),
        "page.html": b"<title>A &amp; B</title><nav>Menu</nav><h2>Head</h2><p>See <a href='x'>this</a>",
        "gbk.html": "<meta charset='gb2312'><h1>标题</h1><p>中文網页".encode("gb18030"),
        "deep.html": b"<div>" * 5000 + b"deep",
        "script.html": b"<script>alert(1)</script>",
    }.items():
        (root / name).write_bytes(content)
    return root


def test_pdfs_word_documents_books_and_pages_come_as_markdown(office: Path, tmp_path: Path) -> None:
    source = opened(office, tmp_path)
    assert {row.key: row.unfit.removeprefix(f"{row.key}: ") or row.text for row in documents(source)} == {
        "book.epub": "# 第一\n\n甲\n\n# 第二\n\n乙",
        "cut.pdf": "it is no whole PDF",
        "damaged.docx": "it is no whole Word document",
        "deep.html": "its elements are nested too deeply to be read as a whole",
        "gbk.html": "# 标题\n\n中文網页",
        "locked.pdf": "it is encrypted: save it without its password",
        "old.docx": "it is encrypted, or an old .doc: save it as .docx without a password",
        "other.docx": "it is no Word document, whatever its name says",
        "page.html": "Menu\n\n## Head\n\nSee this",
        "partly.pdf": "Page one of this report\n\nand page three of it",
        "report.pdf": "Page one of this report\n\nand page two of it",
        "scan.pdf": 'it is scanned: `[input] scans = "send"` sends it as a PDF',
        "script.html": "it holds no text",
        "untitled.docx": "# 第一章\n\n一段文字\n\n## 1.1",
        "word.docx": "# 第一章\n\n一段文字\n\n## 1.1",
    }
    facts = {row.key: (row.fields["title"], row.fields["pages"]) for row in documents(source) if not row.unfit}
    assert facts["report.pdf"] == ("Report", 2) and facts["page.html"] == ("A & B", None)
    assert facts["word.docx"] == ("报告", None) and facts["untitled.docx"] == ("第一章", None)
    assert facts["book.epub"] == ("一本书", None)
    told, warnings = described(source.table.documents or pytest.fail(), sends_scans=False)
    assert told == "5 docx, 1 epub, 4 html, 5 pdf"
    assert warnings[1:] == (
        '1 are scanned, and not sent without `scans = "send"`: scan.pdf (3)',
        "1 have pages without text: partly.pdf (1 of 3)",
    )


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("import os, sys; sys.exit(1 if 'SECRET' in os.environ else 3)", "its reader broke down over it (3)"),
        ("import time; time.sleep(60)", "it takes too long to read"),
        ("import os; os.abort()", "its reader broke down over it (-6)"),
        ("import sys; sys.exit(1)", "to read it takes more than 2 GB of memory"),
        ("import os; os.kill(os.getpid(), 9)", "its reader broke down over it (-9)"),
    ],
)
def test_a_document_that_hangs_or_breaks_its_reader_is_a_row_and_is_tried_again_once_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, cause: str
) -> None:
    monkeypatch.setattr("pipeline.documents.gathering._SETTLED_NS", 0)
    (tmp_path / "docs").mkdir()
    for name in ("a.html", "same.html"):
        (tmp_path / "docs" / name).write_text("<p>words")
    monkeypatch.setenv("SECRET", "a key")
    killed = "-9" in cause  # by the system or by a person: that says nothing of the document
    told = f"!{cause}" if killed else f"!{cause}; once the file is touched it is tried again"
    with monkeypatch.context() as broken:
        broken.setattr(workers, "MOST_S", 0.3)
        broken.setattr(workers, "_SERVE", program)
        assert read(tmp_path / "docs", tmp_path) == {"a.html": told, "same.html": told}
    (tmp_path / "docs" / "same.html").touch()
    found = read(tmp_path / "docs", tmp_path)
    assert found == {"a.html": "words" if killed else told, "same.html": "words"}
    with monkeypatch.context() as upgraded:
        upgraded.setattr("pipeline.documents.gathering._reader", lambda kind: "the next version")
        assert set(read(tmp_path / "docs", tmp_path).values()) == {"words"}


def test_an_archive_that_would_swell_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_UNPACKED_BYTES", 100_000)
    for bomb in (paper.docx(paper.paragraph("x" * 200_000)), paper.epub("x", "x" * 200_000)):
        with pytest.raises(NoText, match="bytes when it is unpacked, and 100,000 are the most"):
            (formats.docx if b"word/" in bomb else formats.epub)(bomb)


def test_without_its_library_a_kind_is_refused_before_anything_is_read(
    office: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.documents.collecting.find_spec", lambda name: None)
    error = refused(lambda: open_source(str(office), spool=tmp_path / "spool.sqlite"))
    assert error.message == "book.epub is read with html_to_markdown, which is not installed"
    assert "mammoth<2,>=1.13" in error.hint


def test_a_scan_is_sent_as_a_file_beside_texts_that_are_cut(here: Path, cli: Callable[..., Ran]) -> None:
    (here / "docs").mkdir()
    odd = os.fsdecode(os.fsencode(here / "docs") + b"/sc\xe4n .pdf")
    Path(odd).write_bytes(paper.pdf("", ""))
    (here / "docs" / "long.txt").write_text("Many words. " * 200)
    (here / "job.toml").write_text(
        '[input]\npath = "docs"\ntext = "text"\nscans = "send"\n[prompt]\ntemplate = "Sum up {{ name }}: {{ text }}"\n'
        '[chunk]\nmax_tokens = 100\n[reduce]\ntemplate = "{{ parts }}"\n[model]\nname = "gemini-3.5-flash-lite"\n'
        f'max_output_tokens = 50\n[output]\npath = "out.csv"\n{UNLIMITED}\n'
    )
    planned = cli("estimate", "job.toml", "--json").json
    done = cli("run", "job.toml", "--offline", "--yes", "--json")
    assert done.code == 0, done.err
    rows = {row["path"]: row for row in pl.read_csv(here / "out-offline.csv").to_dicts()}
    assert rows["sc\\xe4n .pdf"]["calls"] == 1 and rows["sc\\xe4n .pdf"]["input_tokens"] > 2 * 560
    assert rows["long.txt"]["calls"] >= 3
    assert planned["prompts"] == done.json["calls"]


def test_who_listens_is_told_how_many_documents_are_read(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for number in range(100):
        (tmp_path / "docs" / f"{number}.txt").write_text(str(number))
    heard: list[tuple[int, int]] = []
    source = opened(tmp_path / "docs", tmp_path, where="name < '3.txt'", heard=lambda *told: heard.append(told))
    assert heard == []
    documents(source.first(5))
    assert heard == [(read, 5) for read in range(6)]
    heard.clear()
    documents(source)
    assert heard == [(read, 23) for read in range(5, 24)]


def test_where_nothing_can_be_locked_nobody_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("pipeline.machine.fcntl.lockf", refuse)
    spool = Spool(tmp_path / "runs" / "spool.sqlite")
    spool.add({"key": Read("text")})
    assert spool.texts(["key"]) == {"key": "text"} and not (tmp_path / "runs" / "spool.sqlite").exists()
