"""A folder of documents as a table: found, read once, each a row or a row with its cause."""

import os
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from commands import UNLIMITED, Ran
from tables import documents, refused

from pipeline.documents import survey
from pipeline.documents.reading import digest_of
from pipeline.source import Source, open_source

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
    Path(os.fsdecode(os.fsencode(root) + b"/bad\xe9.txt")).write_text("bad name")
    return root


def opened(path: Path | str, here: Path, **options: Any) -> Source:
    source = open_source(str(path), spool=here / "spool.sqlite", text="text", **options)
    source.check()
    return source.showing(["name", "title", "pages"])


def read(path: Path | str, here: Path, **options: Any) -> dict[str, str]:
    """The text of each document, or with a `!` why it has none."""
    rows = documents(opened(path, here, **options))
    return {row.key: f"!{row.unfit.removeprefix(f'{row.key}: ')}" if row.unfit else row.text or "" for row in rows}


def test_each_document_is_a_row_with_its_text_or_its_cause(folder: Path, tmp_path: Path) -> None:
    assert read(folder, tmp_path) == {
        "a.txt": "hello\nworld",
        "bad\\xe9.txt": "bad name",
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
    assert read(folder / ".hidden.txt", tmp_path) == {".hidden.txt": "hidden"}
    assert list(read(folder / ".*.txt", tmp_path)) == [".hidden.txt"]


def test_what_else_is_in_a_folder_is_counted_and_not_opened(folder: Path) -> None:
    found = survey(str(folder))
    assert dict(found.kinds) == {"text": 13, "markdown": 2}
    assert dict(found.others) == {".csv": 1, ".png": 1}


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
    monkeypatch.setattr("pipeline.documents.collecting._SETTLED_NS", 0)
    first = opened(folder, tmp_path)
    (folder / "a.txt").unlink()
    (folder / "mark.txt").write_text("changed")
    assert {row.key: row.text for row in documents(first)}["a.txt"] == "hello\nworld"
    assert first.changed(looked_into=True) is None
    hashed: list[str] = []

    def hashing(at: str) -> str:
        hashed.append(at)
        return digest_of(at)

    monkeypatch.setattr("pipeline.documents.collecting.digest_of", hashing)
    second = opened(folder, tmp_path)
    assert sorted(Path(at).name for at in hashed) == ["empty.txt", "mark.txt"]
    assert second.fingerprint != first.fingerprint
    assert {row.key: row.text for row in documents(second)}["mark.txt"] == "changed"


def test_a_copy_of_the_folder_is_the_same_table(folder: Path, tmp_path: Path) -> None:
    before = opened(folder, tmp_path).fingerprint
    folder.rename(tmp_path / "moved")
    assert opened(tmp_path / "moved", tmp_path).fingerprint == before


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
