"""`pipeline init`: from a table or a folder to a job file that runs as it stands."""

import io
import json
import os
import random
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema_rs
import paper
import polars as pl
import pytest
import xlsxwriter
from commands import Ran
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import served
from tables import save

from pipeline import estimating, starting
from pipeline.errors import PipelineError
from pipeline.job import load
from pipeline.run import prepare
from pipeline.starting import composing, looking
from pipeline.starting.choosing import chosen
from pipeline.starting.profile import profile_of

Cli = Callable[..., Ran]

REVIEWS = (
    "编号,评论 内容,评分\n"
    "A01,这个产品非常好用，物流也很快，推荐购买。,5\n"
    "A02,质量一般，客服态度不好，不会再来了。,2\n"
    "A03,包装破损，里面的东西倒是好的。,3\n"
)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in, with a terminal that speaks English."""
    for name in ("LANG", "LANGUAGE", "LC_ALL", "LC_MESSAGES", "PIPELINE_LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    with served(marked=True) as url:
        yield url


def next_commands(told: str) -> list[list[str]]:
    """The commands that it ends with, as a shell takes them, without the program."""
    lines = told.partition("\nnext:\n")[2].splitlines()
    found = [shlex.split(line) for line in lines if line.startswith("  ")]
    return [words[words.index(name) :] for words, name in zip(found, ("estimate", "check", "run"), strict=True)]


def chinese(here: Path, root: Path) -> str:
    (here / "评论 表.csv").write_text(REVIEWS, "utf-8")
    return "评论 表.csv"


def long_documents(here: Path, root: Path) -> str:
    frame = pl.read_parquet(root / "sample_data" / "licences.parquet")
    bodies = frame["body"].to_list()
    frame[["doc_id", "title"]].with_columns(
        body=pl.Series([bodies[0], "\n\n".join(bodies), *bodies[2:]])
    ).write_parquet(here / "documents.parquet")
    return "documents.parquet"


def images(here: Path, root: Path) -> str:
    shutil.copytree(root / "sample_data" / "images", here / "my photos")
    (here / "my photos" / "note.txt").write_text("from the trip")
    (here / "my photos" / "broken.png").write_text("no image")
    return "my photos"


def pdfs(here: Path, root: Path) -> str:
    shutil.copytree(root / "sample_data" / "pdfs", here / "pdfs")
    return "pdfs/"


def mixed(here: Path, root: Path) -> str:
    """Documents of several kinds and encodings, beside what is none."""
    shutil.copytree(root / "docs", here / "文档", ignore=shutil.ignore_patterns("[!j]*"))
    (here / "文档" / "说明.txt").write_bytes(
        "这是一份用旧编码写的说明，里面有几句话，说的是怎样安装和使用。".encode("gb18030")
    )
    (here / "文档" / "sub").mkdir()
    (here / "文档" / "sub" / "a note.txt").write_text("Some words about nothing in particular.")
    (here / "文档" / "letter.docx").write_bytes(paper.docx(paper.paragraph("A letter of a few words.")))
    (here / "文档" / "report.pdf").write_bytes(paper.pdf("A page of a few words."))
    shutil.copy(root / "sample_data" / "images" / "bars.png", here / "文档")
    return "文档/"


@pytest.mark.parametrize("make", [chinese, long_documents, images, mixed])
def test_what_is_begun_is_estimated_checked_and_run_as_it_stands(
    empty: Path,
    root: Path,
    cli: Cli,
    emulator: str,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Path], str],
) -> None:
    begun = cli("init", make(empty, root))
    assert begun.code == 0, begun.err
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", emulator)
    monkeypatch.setenv("GEMINI_API_KEY", "rehearsal")
    commands = next_commands(begun.out)
    for command in commands:
        ran = cli(*command, *(["--rpm", "0", "--tpm", "0"] if command[0] == "run" else []))
        assert ran.code == 0, ran.err
    (output,) = (empty / "results").iterdir()
    read = pl.read_parquet if output.suffix == ".parquet" else pl.read_csv
    assert set(read(output)["status"]) == {"ok"}


def test_a_chinese_table_is_asked_in_chinese_and_commented_so(empty: Path, root: Path, cli: Cli) -> None:
    assert cli("init", chinese(empty, root)).code == 0
    text = (empty / "评论 表.toml").read_text("utf-8")
    spec = tomllib.loads(text)
    assert spec["input"] == {"path": "评论 表.csv", "id": "编号"}
    assert '{{ row["评论 内容"] }}' in spec["prompt"]["template"] and "哪一类" in spec["prompt"]["template"]
    assert spec["output"]["excel"] is True and "类别: 正面|负面" in spec["output"]["schema"]
    assert "# 给每条文本分类" in text and "requests a minute" not in text


def test_a_pattern_that_the_shell_replaced_is_told_as_one(empty: Path, cli: Cli) -> None:
    told = cli("init", "a 1.csv", "a 2.csv", "a 3.csv", "a 4.csv")
    assert told.code == 2 and "a job has one input, and 4 are named: a 1.csv, a 2.csv, a 3.csv, …" in told.err
    assert "`pipeline init '*.csv'`" in told.err
    assert "`pipeline init a.csv`" in cli("init", "a.csv", "b/").err


def test_the_first_line_names_a_schema_that_takes_the_job(empty: Path, root: Path, cli: Cli) -> None:
    assert cli("init", chinese(empty, root)).code == 0
    text = (empty / "评论 表.toml").read_text("utf-8")
    name = text.partition("\n")[0].removeprefix("#:schema ")
    schema = jsonschema_rs.validator_for(json.loads((empty / name).read_text("utf-8")))
    assert schema.is_valid(tomllib.loads(text))
    assert not schema.is_valid(tomllib.loads(text.replace("max_usd", "max_usb")))
    assert cli("init", "评论 表.csv", "--to", "second.toml").code == 0
    assert (empty / "second.toml").read_text("utf-8").startswith(f"#:schema {name}\n")
    (empty / name).write_text(json.dumps({"title": json.loads((empty / name).read_text("utf-8"))["title"]}))
    assert cli("init", "评论 表.csv", "--to", "anew.toml").code == 0  # that of an older version is made anew
    assert "max_usd" in (empty / name).read_text("utf-8") and not list(empty.glob(".*.tmp"))
    (empty / name).write_text("of another program")
    assert cli("init", "评论 表.csv", "--to", "third.toml").code == 0
    assert (empty / name).read_text() == "of another program"
    assert "#:schema" not in (empty / "third.toml").read_text("utf-8")


def test_it_speaks_chinese_to_a_chinese_terminal(
    empty: Path, root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    told = cli("init", chinese(empty, root))
    assert told.code == 0 and "输入  评论 表.csv   3 行" in told.out and "接下来：\n" in told.out
    assert "先设置密钥：" in told.err
    assert "已经存在，不会覆盖" in cli("init", "评论 表.csv").err


def test_comments_are_in_the_language_of_the_terminal(
    empty: Path, root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    (empty / "reviews.csv").write_text("id,review\nr1,Arrived broken and nobody answers the phone.\n")
    assert cli("init").code == 0
    text = (empty / "reviews.toml").read_text("utf-8")
    assert "# 给每条文本分类" in text and "Which class does this text" in text
    monkeypatch.setenv("PIPELINE_LANG", "en")
    assert cli("init", chinese(empty, root)).code == 0
    text = (empty / "评论 表.toml").read_text("utf-8")
    assert "# requests a minute" in text and "哪一类" in text


def test_long_texts_are_cut_and_short_ones_are_not(empty: Path, root: Path, cli: Cli) -> None:
    assert cli("init", long_documents(empty, root)).code == 0
    job = load(empty / "documents.toml")
    assert job.spec.chunk and job.spec.chunk.max_tokens == composing.PIECE_TOKENS and job.spec.reduce
    assert job.spec.input.text == "body" and job.spec.input.id == "doc_id" and "{{ title }}" in job.template.source
    shutil.copy(root / "sample_data" / "licences.parquet", empty)
    told = cli("init", "licences.parquet")
    assert "summarize, `body` holds long texts" in told.out
    assert load(empty / "licences.toml").spec.chunk is None


@pytest.mark.parametrize(
    "text",
    [
        "届いたときにはもう壊れていて電話にも出ません",
        "สินค้าเสียหายเมื่อได้รับและไม่มีใครรับโทรศัพท์เลย",
        "រថយន្តនេះខូចហើយគ្មានអ្នកទទួលទូរស័ព្ទទេ",
    ],
)
def test_a_script_without_blanks_is_running_text(text: str) -> None:
    found = profile_of(pl.DataFrame({"no": ["a1", "b2", "c3"], "said": [f"{text}{number}" for number in range(3)]}))
    assert [column.name for column in found.texts] == ["said"] and [column.name for column in found.ids] == ["no"]
    assert chosen(found)[0] == "classify" and not found.is_chinese


def test_a_text_that_may_be_a_table_is_told_and_so_are_files_that_are_passed_over(empty: Path, cli: Cli) -> None:
    (empty / "t.txt").write_text("id\ttext\n1\tgood\n2\tbad\n", "utf-16")
    assert "let its name end in .tsv" in " ".join(cli("init", "t.txt").out.split())
    (empty / "t.txt").rename(empty / "t.tsv")
    assert "2 rows" in cli("init", "t.tsv", "--to", "tsv.toml").out
    (empty / "d").mkdir()
    for name in ("a.txt", "b.txt", "c.rtf", "d.jpg"):
        (empty / "d" / name).write_text("The lamp\tis broken.\nAnd late.")
    told = cli("init", "d").out
    assert "2 files of the folder left out: of another kind" in told and ".tsv" not in told


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "cp1252", "utf-8-sig"])
def test_the_encoding_is_found_and_named(empty: Path, cli: Cli, encoding: str) -> None:
    text = (
        REVIEWS if encoding != "cp1252" else "id;text\n1;Café très agréable près de la gare\n2;Déçu par le résultat\n"
    )
    (empty / "t.csv").write_bytes(text.encode(encoding))
    assert cli("init", "t.csv").code == 0
    spec = tomllib.loads((empty / "t.toml").read_text("utf-8"))
    assert spec["input"].get("encoding") == (None if encoding == "utf-8-sig" else encoding)
    assert spec["input"].get("separator") == (";" if encoding == "cp1252" else None)
    assert spec["output"]["excel"] is True


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "t.csv is empty"),
        ("id,text\n", "has no rows"),
        ("a,a\n1,2\n", "two columns are named `a`"),
        ("a,b\n1,2,3\n", "line 2 has 3 cells"),
        ("a\n\x1f\x8b", None),
        (b"PK\x03\x04rest", "zip archive"),
        (b"a,b\n\xff\xfe\xfa,\x81\x8d\x00\n" + b"\x9d" * 40, None),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_and_nothing_is_written(
    empty: Path, cli: Cli, content: str | bytes, why: str | None
) -> None:
    (empty / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    ran = cli("init", "t.csv")
    if why is None:  # as odd as it is, it can be read
        assert ran.code == 0, ran.err
        return
    assert ran.code == 2 and why in ran.err, ran.err
    assert [each.name for each in empty.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("text\nOne column alone and several words in it\n", 1),
        (",".join(f"c{n}" for n in range(500)) + "\n" + ",".join(["x"] * 500) + "\n", 500),
        ('a.b,"c{{d}}","e""f","g h","{% raw %}","new\nline",\\,{#\n' + ",".join(["some words that say"] * 8) + "\n", 8),
        ("row,own,text,chunk,parts,loop,true,range,dict\n" + ",".join(["a few words here"] * 9) + "\n", 9),
        ("id,text\n1,{{ nobody }} and {% if %} stand in a cell\n2,\n", 2),
        ("empty,text\n,words words words words\n,more words of that kind\n", 2),
        ("n\n1\n2\n", 1),
        (",x\n1,one two three four five\n", 2),
    ],
)  # fmt: skip
def test_odd_columns_make_a_job_that_renders(empty: Path, cli: Cli, content: str, columns: int) -> None:
    (empty / "t.csv").write_text(content)
    ran = cli("init", "t.csv")
    assert ran.code == 0, ran.err
    assert_renders(empty / "t.toml", columns)
    if columns == 500:
        assert "and 488 more" in (empty / "t.toml").read_text()
        return
    for task in ("generate", "extract"):
        ran = cli("init", "t.csv", "--template", task, "--to", f"{task}.toml")
        assert ran.code == 0, ran.err
        assert_renders(empty / f"{task}.toml", columns)


def assert_renders(path: Path, columns: int | None = None) -> None:
    session = prepare.prepare(load(path), prepare.Options(offline=True))
    assert columns is None or len(session.source.schema) == columns
    job = session.job
    for documents in session.documents():
        for document in documents:
            own = {"text": document.text or "", "chunk": 1, "chunks": 2} if job.spec.input.text else {}
            assert job.template.render(document.fields, own).strip()
            if job.reduce_template:
                assert "an answer" in job.reduce_template.render(document.fields, {"parts": "an answer"})


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12)
CELLS = st.one_of(
    st.none(),
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=60),
    st.sampled_from(["{{ x }}", "{% if", "好" * 20, "one two three four five", "2024-01-01", "a.png", "3,5 %", "true"]),
)


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    rows = draw(st.integers(1, 4))
    text = {name: draw(st.lists(CELLS, min_size=rows, max_size=rows)) for name in names}
    if draw(st.booleans()):  # one long text
        text[names[0]] = [f"{draw(st.sampled_from(['word ', '字', '日本語 ']))}" * 1_000] * rows
    frame = pl.DataFrame(text, schema=dict.fromkeys(names, pl.String))
    typed = draw(st.sampled_from([None, pl.Int64, pl.Float64, pl.Boolean, pl.Date, pl.Binary, pl.List(pl.String)]))
    return frame if typed is None else frame.with_columns(pl.lit(None, typed).alias(draw(NAMES)))


@pytest.mark.parametrize("examples", [8, pytest.param(1_000, marks=pytest.mark.long)])
def test_every_job_that_is_written_loads_estimates_and_renders_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    import anyio

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(composing, "PIECE_TOKENS", 500)
    made = 0

    @settings(max_examples=examples, deadline=None, database=None)
    @given(
        frame=tables(),
        task=st.sampled_from([None, *starting.TASKS[:-1]]),
        suffix=st.sampled_from(["csv", "parquet", "jsonl"]),
    )
    def check(frame: pl.DataFrame, task: "starting.Task | None", suffix: str) -> None:
        nonlocal made
        for path in tmp_path.iterdir():
            path.unlink()
        if suffix == "csv":
            frame = frame.select(pl.col(pl.String))
        if suffix == "jsonl":
            frame = frame.select(pl.exclude(pl.Binary))
        save(frame, f"t.{suffix}")
        try:
            with starting.opened(f"t.{suffix}") as found:
                starting.begin(found, task or starting.chosen(found.profile)[0])
        except PipelineError:
            assert [path.name for path in tmp_path.iterdir()] == [f"t.{suffix}"]
            return
        made += 1
        assert_renders(Path("t.toml"))
        session = prepare.prepare(load(Path("t.toml")), prepare.Options(offline=True))
        assert anyio.run(estimating.estimate, session, estimating.Wishes()).plan.load.prompts >= 1

    check()
    assert made > examples // 2, "most tables can be begun with"


def test_the_page_shows_what_comes(empty: Path, root: Path, cli: Cli) -> None:
    shown = (root / "docs" / "first-job.md").read_text("utf-8").partition("$ pipeline init reviews.csv\n")[2]
    assert cli("init").code == 0
    (empty / "example.csv").rename("reviews.csv")
    assert cli("init", "reviews.csv").out == shown.partition("```")[0]


def test_dates_and_numbers_do_not_outweigh_a_text(empty: Path, cli: Cli) -> None:
    rows = [f"000{n},很好，物流也快，下次还来。{n},2024-01-0{n},900719925474099{n}" for n in range(1, 6)]
    (empty / "评论.csv").write_text("\n".join(["编号,评论,日期,订单号", *rows]), "utf-8")
    ran = cli("init", "评论.csv")
    assert ran.code == 0 and ran.out.startswith("评论.toml: classify, `评论`"), ran.out


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("A1,这款手机很好用，推荐,5", "`5`"),
        ("A1,这款手机很好用，推荐,2024-01-03", "`2024-01-03`"),
        ("A1,The parcel came late and it was broken,good", "`The parcel came late an…`"),
        ("id,review,score", ""),
        ("id,review,2024", ""),
    ],
)
def test_a_first_line_that_may_be_a_row_is_told(empty: Path, cli: Cli, header: str, named: str) -> None:
    last = "2024-01-0{}" if "-" in header else "{}"
    rows = [f"B{n},All was as it should be, {n} times,".replace(", ", " ") + last.format(n) for n in range(1, 6)]
    (empty / "t.csv").write_text("\n".join([header, *rows]), "utf-8")
    ran = cli("init", "t.csv")
    assert ran.code == 0
    assert ("its first line is taken for the names" in " ".join(ran.out.split())) is bool(named)
    assert named in ran.out


def test_nothing_is_written_over(empty: Path, cli: Cli) -> None:
    (empty / "t.csv").write_text("id,text\n1,some words about a thing\n")
    assert cli("init", "t.csv").code == 0
    before = (empty / "t.toml").read_text()
    again = cli("init", "t.csv")
    assert again.code == 2 and "t.toml is there already" in again.err and "--to t-2.toml" in again.err
    assert (empty / "t.toml").read_text() == before
    (empty / "results").mkdir()
    (empty / "results" / "second.csv").write_text("kept")
    assert cli("init", "t.csv", "--to", "jobs/second.toml").code == 0
    assert load(Path("jobs/second.toml")).spec.output.path == "results/second-2.csv"
    (empty / "t.toml").unlink()
    (empty / "runs" / "t").mkdir(parents=True)
    assert cli("init", "t.csv").code == 0 and (empty / "t-2.toml").exists(), "a run of that name is kept"


@pytest.mark.parametrize("to", ["job.txt", ".toml", ".hidden.toml"])
def test_a_name_that_no_run_could_have_is_refused(empty: Path, cli: Cli, to: str) -> None:
    (empty / "t.csv").write_text("id,text\n1,some words about a thing\n")
    ran = cli("init", "t.csv", "--to", to)
    assert ran.code == 2 and to in ran.err
    assert [each.name for each in empty.iterdir()] == ["t.csv"]


def test_a_place_that_cannot_be_is_refused_and_so_is_a_pipe(empty: Path, cli: Cli) -> None:
    (empty / "t.csv").write_text("id,text\n1,some words about a thing\n")
    (empty / "file").write_text("kept")
    ran = cli("init", "t.csv", "--to", "file/t.toml")
    assert ran.code == 2 and "cannot make the folder file: File exists" in ran.err
    os.mkfifo(empty / "pipe.csv")
    assert "is not a file" in cli("init", "pipe.csv").err
    assert sorted(each.name for each in empty.iterdir()) == ["file", "pipe.csv", "t.csv"]


def test_a_bare_init_takes_the_one_table_or_an_example_or_says_what_to_type(empty: Path, cli: Cli) -> None:
    ran = cli("init")
    assert ran.code == 0, ran.err
    assert (empty / "example.csv").exists() and load(empty / "example.toml").spec.output.schema_
    (empty / "example.toml").unlink()
    assert "example.csv   6 rows\n" in cli("init").out, "now it is the one table that is here"
    (empty / "my table.csv").write_text("text\nsome words about a thing\n")
    ran = cli("init")
    assert ran.code == 2 and "example.csv\nmy table.csv" in ran.err and "`pipeline init example.csv`" in ran.err


def test_a_bare_init_takes_no_folder_unasked(empty: Path, cli: Cli, root: Path) -> None:
    images(empty, root)
    ran = cli("init")
    assert ran.code == 2 and "`pipeline init 'my photos/'`" in ran.err
    shutil.rmtree(empty / "my photos")
    (empty / "a.txt").write_text("some words about a thing")
    ran = cli("init")
    assert ran.code == 2 and "`pipeline init .`" in ran.err
    assert [each.name for each in empty.iterdir()] == ["a.txt"]
    assert cli("init", ".").code == 0


def test_an_example_is_not_left_where_the_job_cannot_be_written(empty: Path, cli: Cli) -> None:
    (empty / "example.toml").write_text("kept")
    ran = cli("init")
    assert ran.code == 2 and [each.name for each in empty.iterdir()] == ["example.toml"]


def test_a_folder_is_a_table_in_it_or_its_tables_or_its_files(empty: Path, cli: Cli, root: Path) -> None:
    (empty / "data").mkdir()
    refused = cli("init", "data")
    assert refused.code == 2 and "nothing that can be asked about" in refused.err
    (empty / "data" / "one.csv").write_text("id,text\n1,some words about a thing\n")
    assert cli("init", "data").code == 0 and load(empty / "one.toml").spec.input.path == "data/one.csv"
    (empty / "data" / "two.csv").write_text("id,text\n2,some words about another\n")
    assert cli("init", "data").code == 0 and load(empty / "data.toml").spec.input.path == "data/*.csv"
    (empty / "data" / "three.jsonl").write_text('{"a": 1}\n')
    refused = cli("init", "data")
    assert refused.code == 2 and "holds several tables: data/one.csv, data/three.jsonl" in refused.err


def test_a_folder_of_documents_is_a_row_a_file(empty: Path, cli: Cli, root: Path) -> None:
    assert cli("init", mixed(empty, root)).code == 0
    job = load(empty / "文档.toml")
    assert (job.spec.input.path, job.spec.input.encoding) == ("文档/", "gb18030")
    assert "{{ name }}" in job.template.source and "{{ text }}" in job.template.source


def test_scans_are_sent_as_files(empty: Path, cli: Cli) -> None:
    (empty / "d").mkdir()
    (empty / "d" / "scan.pdf").write_bytes(paper.pdf("", ""))
    assert cli("init", "d").code == 0
    assert load(empty / "d.toml").spec.input.pdf == "path"
    (empty / "d" / "told.pdf").write_bytes(paper.pdf("Some words about nothing in particular."))
    (empty / "d" / "page.html").write_text("<h1>A page</h1><p>with some words that say something</p>")
    ran = cli("init", "d", "--to", "second.toml")
    assert ran.code == 0 and "1 are scanned, and sent as PDFs: scan.pdf" in ran.out
    spec = load(empty / "second.toml").spec.input
    assert (spec.scans, spec.pdf) == ("send", None)
    assert cli("run", "second.toml", "--offline").code == 0


def test_pdfs_are_asked_about_as_they_are_where_nothing_reads_them(
    empty: Path, cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "find_spec", lambda name: None)
    assert cli("init", pdfs(empty, root)).code == 0
    assert load(empty / "pdfs.toml").spec.input.pdf == "file"


def test_no_encoding_is_named_that_would_misread_another_document(empty: Path, cli: Cli) -> None:
    (empty / "d").mkdir()
    (empty / "d" / "old.txt").write_text("这是一份说明，讲怎样安装和使用。", "gb18030")
    (empty / "d" / "new.txt").write_text("A café is what it says, … and nothing else.", "utf-8")
    assert cli("init", "d").code == 0
    assert load(empty / "d.toml").spec.input.encoding == "gb18030", "the other can be nothing but UTF-8"
    (empty / "d" / "new.txt").write_text("A caféx is what it says and nothing else.", "utf-8")
    ran = cli("init", "d", "--to", "second.toml")
    assert ran.code == 0 and load(empty / "second.toml").spec.input.encoding is None
    assert "1 cannot be read: old.txt" in ran.out


def test_files_that_are_left_out_are_told(empty: Path, cli: Cli, root: Path) -> None:
    ran = cli("init", images(empty, root))
    assert "2 files of the folder left out" in ran.out and "my photos-files.csv" in ran.out
    assert pl.read_csv("my photos-files.csv")["file"].to_list() == ["bars.png", "disc.png", "lights.png"]


def test_a_workbook_is_a_table_whose_answers_excel_opens(empty: Path, cli: Cli) -> None:
    with xlsxwriter.Workbook("reviews.xlsx") as workbook:
        sheet = workbook.add_worksheet()
        sheet.write_column(0, 0, ["id", "r1", "r2"])
        sheet.write_column(0, 1, ["review", "Arrived broken, and nobody answers the phone.", "Works as promised."])
    assert cli("init").code == 0
    output = load(empty / "reviews.toml").spec.output
    assert (output.path, output.excel) == ("results/reviews.csv", True)
    assert cli("run", "reviews.toml", "--offline").code == 0


def test_a_table_of_files_is_asked_about_its_files(empty: Path, cli: Cli, root: Path) -> None:
    shutil.copytree(root / "sample_data", empty / "sample_data")
    assert cli("init", "sample_data/images.csv").code == 0
    assert load(empty / "images.toml").spec.input.image == "image"
    rows = [(empty / "sample_data" / "images" / name).read_bytes() for name in ("bars.png", "disc.png")]
    pl.DataFrame({"id": ["a", "b"], "picture": rows}).write_parquet("held.parquet")
    assert cli("init", "held.parquet").code == 0
    assert load(empty / "held.toml").spec.input.image == "picture"
    refused = cli("init", "held.parquet", "--template", "translate", "--text", "id", "--to", "t.toml")
    assert refused.code == 0, refused.err
    (empty / "gone.csv").write_text("id,photo\n1,not_there.png\n")
    refused = cli("init", "gone.csv", "--template", "images")
    assert refused.code == 2 and "no column of gone.csv holds files" in refused.err


def test_at_most_two_questions_are_asked_of_a_terminal(empty: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "t.csv").write_text("id,question,answer\n1,what is it that you want,a good deal more than anybody has\n")

    def typed(*lines: str) -> None:
        answers = io.StringIO("".join(f"{line}\n" for line in lines))
        monkeypatch.setattr(answers, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", answers)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    typed("seven", "extract", "2")
    ran = cli("init", "t.csv")
    assert ran.code == 0, ran.err
    assert "none of these" in ran.err and "images" not in ran.err
    assert "t.toml: extract, as you chose" in ran.out
    assert "{{ question }}" in load(empty / "t.toml").template.source
    typed("", "")
    ran = cli("init", "t.csv", "--to", "second.toml")
    assert ran.code == 0 and "{{ answer }}" in load(empty / "second.toml").template.source
    typed()
    ran = cli("init", "t.csv", "--template", "extract", "--text", "answer", "--to", "third.toml")
    assert ran.code == 0, "nothing is asked that was said"


def test_the_column_that_is_named_must_hold_text(empty: Path, cli: Cli) -> None:
    pl.DataFrame({"n": [1], "text": ["some words about a thing"]}).write_parquet("t.parquet")
    assert "is not a column" in cli("init", "t.parquet", "--text", "body").err
    assert "holds no text" in cli("init", "t.parquet", "--text", "n").err
    assert "not for the template generate" in cli("init", "t.parquet", "--template", "generate", "--text", "text").err


def test_an_id_is_found_over_all_rows(empty: Path, cli: Cli) -> None:
    words = random.Random(1)
    rows = [f"{n % 1500},K-{n},{words.random()} some words about it" for n in range(2000)]
    (empty / "t.csv").write_text("id,sku,text\n" + "\n".join(rows) + "\n")
    assert cli("init", "t.csv").code == 0
    assert load(empty / "t.toml").spec.input.id == "sku", "`id` is unique in the first thousand rows only"


def test_the_commands_call_the_program_as_it_was_called(empty: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "-odd name.csv").write_text("text\nsome words about a thing\n")
    ran = cli("init", "./-odd name.csv")
    assert "estimate './-odd name.toml'\n" in ran.out
    assert "export GEMINI_API_KEY=…" in ran.err
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    assert "export" not in cli("init", "./-odd name.csv", "--to", "t.toml").err
