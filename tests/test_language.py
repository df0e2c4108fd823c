"""What the terminal says in Chinese: every sentence is in the catalogue, and what is not ours stays as it is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from catalogue import PATH, in_code, spoken, unspoken
from chinese import english_in
from commands import Ran
from rich.cells import cell_len

from pipeline import language
from pipeline.console import screen
from pipeline.console.failures import show_failures
from pipeline.console.screen import Screen
from pipeline.language import Data
from pipeline.language.catalogue import Catalogue, Place, chinese, parts_of, read
from pipeline.report import Failure
from pipeline.store.manifest import Manifest

_PLACES = re.compile(r"\{(\d+)(?::[ns-])?\}")
_VERBATIM = re.compile(r"`[^`]*`")


@pytest.fixture
def in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_LANG", "zh")


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, "en"),
        ({"LANG": "C"}, "en"),
        ({"LANG": "C.UTF-8", "LANGUAGE": "zh_CN"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.utf8"}, "zh"),
        ({"LANG": "zh_SG"}, "zh"),
        ({"LANG": "zh_CN.GBK"}, "en"),
        ({"LANG": "zh_CN.UTF-8@pinyin"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "de_DE.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LANGUAGE": "de:zh_CN:en"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en_US:zh"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "PIPELINE_LANG": "en"}, "en"),
        ({"LANG": "C", "PIPELINE_LANG": "zh"}, "zh"),
        ({"PIPELINE_LANG": "zh-CN"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "PIPELINE_LANG": "xx"}, "en"),
        ({"LANG": "Chinese (Simplified)_China.936"}, "en"),
    ],
)
def test_the_environment_says_which_language(environ: dict[str, str], found: str) -> None:
    assert language.current(environ) == found


def test_every_sentence_that_reaches_the_terminal_is_translated_and_no_other() -> None:
    entries = read(PATH.read_text("utf-8"))
    needed = spoken()
    hint = "`.venv/bin/python tests/catalogue.py` adds and removes them, or tests/data/unspoken.txt names them"
    assert sorted(needed.keys() - entries.keys()) == [], f"sentences of the code that are not in the catalogue: {hint}"
    assert sorted(entries.keys() - needed.keys()) == [], f"sentences that the code says no more: {hint}"
    assert [text for text, told in entries.items() if not told] == []
    assert sorted(unspoken() - {found.text for found in in_code()}) == [], "the code says them no more"


def test_a_translation_has_what_is_put_in_and_every_command_as_they_are() -> None:
    for text, told in read(PATH.read_text("utf-8")).items():
        assert sorted(set(_PLACES.findall(text))) == sorted(_PLACES.findall(told)), text
        if set(_VERBATIM.findall(text)) != set(_VERBATIM.findall(told)):
            places = [[_PLACES.sub("{}", each) for each in sorted(_VERBATIM.findall(one))] for one in (text, told)]
            assert places[0] == places[1], text
        assert not re.search(r"[,;:!?]\s*(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff])[,;:!?]", told), (
            f"narrow punctuation: {told}"
        )


def test_the_catalogue_is_read_as_gettext_writes_it() -> None:
    header = 'msgid ""\nmsgstr "Language: zh_CN\\n"\n\n'
    text = f'# c\n{header}#. x\n#: a.py\nmsgid "one \\"two\\"\\n"\n"three"\nmsgstr ""\n"四"\n"五"\n'
    assert read(text) == {'one "two"\nthree': "四五"}
    assert list(parts_of("a {0} b {1:n}{2:s}")) == ["a ", Place(0, ""), " b ", Place(1, "n"), Place(2, "s")]


@pytest.fixture(scope="module")
def small() -> Catalogue:
    return Catalogue(
        {
            "cannot read {0}: {1}": "无法读取 {0}：{1:s}",
            "Permission denied": "没有权限",
            "{0:n} rows": "{0} 行",
            "{0:s} failed{1}": "{0:s}失败{1:s}",
            ", {0} could not be tried": "，{0} 无法尝试",
            "hint:": "提示：",
            "(learned)": "（学到的）",
            "kept": "已保留",
        }
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read 3 rows: Permission denied", "无法读取 3 rows：没有权限"),  # a file may be called anything
        ("cannot read kept: what the disk says", "无法读取 kept：what the disk says"),
        ("cannot read x: kept\n3 rows\nkept it", "无法读取 x：已保留\n3 行\nkept it"),
        ("3 rows failed, 2 could not be tried", "3 行失败，2 无法尝试"),
        ("3 rows failed", "3 行失败"),
        ("the 3 rows", "the 3 rows"),
        ("  1,200 rows   kept\n", "  1,200 行   已保留\n"),
        ("hint: ", "提示："),
        (" (learned)", "（学到的）"),
        ("", ""),
        ("  ", "  "),
    ],
)
def test_a_text_is_said_sentence_by_sentence(small: Catalogue, text: str, told: str) -> None:
    assert small.translated(text) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2,000 calls, $0.28, by 07:00 tomorrow", "2,000 次调用，$0.28，明天 07:00 前完成"),
        (
            "half of all batches are done within 96 min, one in ten takes over 11 h; nobody promises less than 24 h",
            "半数批次的用时不超过 96 分钟，十分之一超过 11 小时；服务方只承诺 24 小时内完成",
        ),
        ("column `编号` is not in a.csv\nIt has: a, b", "a.csv 中没有列 `编号`\n现有的列：a, b"),
        ("the proxy http://[::1]:1 cannot be reached: connection refused", "无法连接代理 http://[::1]:1：连接被拒绝"),
        (
            "the proxy http://[::1]:1 cannot be reached: the moon is full",
            "无法连接代理 http://[::1]:1：the moon is full",
        ),
        ("rpm 300, no tpm", "rpm 300，没有 tpm"),
        ("no rpm, no tpm", "没有 rpm，没有 tpm"),
        ("Thu 2026-12-03 07:12", "周四 2026-12-03 07:12"),
        (
            "2,000 calls, $0.28, by Thu 2026-12-03 07:12",
            "2,000 次调用，$0.28，周四 2026-12-03 07:12 前完成",
        ),
        (
            "learned from 10 answers of this run and 60 answers of 1 earlier run",
            "依据本次运行的 10 个回答和之前 1 次运行的 60 个回答",
        ),
        ("rehearsal: the emulator's answers", "演练：模拟器的回答"),
        ("limit: 100 requests a minute (measured)", "限额：每分钟 100 个请求（实测）"),
        ("called in 60   turned away 2", "收回 60   被 flex 拒收 2"),
        ("batch 1 cancelled: 0 answered, 60 without an answer", "批次 1 已取消：0 个已回答，60 个没有回答"),
    ],
)
def test_what_begins_or_ends_a_sentence_takes_no_more_than_its_own(text: str, told: str) -> None:
    assert chinese().translated(text) == told


def test_data_is_never_translated(in_chinese: None) -> None:
    assert language.spoken("reading the table") == "正在读取表格"
    assert language.spoken(Data("reading the table")) == "reading the table"


def test_an_error_is_in_chinese_on_the_terminal_and_in_english_in_json(
    in_chinese: None, cli: Callable[..., Ran], tmp_path: Path
) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[inputt]\npath = "x.csv"\n', "utf-8")
    ran = cli("estimate", str(job), "--json")
    assert ran.code == 2
    assert "job.toml:1：[inputt] 不是配置节" in ran.err and "提示：是不是想写 `input`？" in ran.err
    assert "job.toml:1: [inputt] is not a section" in ran.out


def test_answers_that_are_kept_are_told_in_chinese_whatever_their_number(in_chinese: None) -> None:
    told = [language.spoken(text) for text in ("0 answers kept", "1 answer kept", "about 2,000 answers kept")]
    assert told == ["0 个回答保留下来", "1 个回答保留下来", "约 2,000 个回答保留下来"]


def test_how_a_service_was_reached_is_told_in_chinese_whatever_is_said_of_it(in_chinese: None) -> None:
    for reached in ("connected in 4 ms", "connected with TLS in 4 ms"):
        for way in ("", " through the proxy http://127.0.0.1:1"):
            for answers in ("", "; answers in 2 ms"):
                for told in ("", "; it is an emulator: a run is a rehearsal"):
                    said = language.spoken(f"{reached}{way}{answers}{told}")
                    assert said.startswith("已") and not re.search("(in|by|ms|with|answers) ", said), said
                    assert ("2 毫秒内回答" in said, "它是模拟器" in said) == (answers != "", told != "")


def test_the_cause_of_a_row_is_told_in_chinese(
    in_chinese: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.console.failures.show_causes", lambda *_: None)
    rows = [Failure(n, "kept", "blocked", "x", said) for n, said in enumerate(("the prompt was blocked: SAFETY", "no"))]
    show_failures(rows, cast(Manifest, None), {})
    told = capsys.readouterr().out
    assert "提示词被拦截：SAFETY" in told and "kept" in told and "no" in told, "what is not ours is shown as it is"


def test_an_english_terminal_reads_no_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.language.catalogue.chinese", None)
    assert language.spoken("reading the table") == "reading the table"


def test_every_translation_comes_out_as_it_stands() -> None:
    for text, told in read(PATH.read_text("utf-8")).items():
        if not _PLACES.search(text):
            assert chinese().translated(text) == told
            assert cell_len(told)


# ---- on the screen


CHINESE_JOB = """
[input]
path = "评论.csv"
id = "编号"
text = "正文"
[prompt]
template = "用一句话概括：{{ text }}"
[chunk]
max_tokens = 64
overlap_tokens = 8
[reduce]
template = "合并：{{ parts }}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 60
[output]
path = "结果.csv"
"""


@pytest.fixture
def comments(here: Path) -> Path:
    """A job with names and texts in Chinese, and an id that is longer than what is shown of it."""
    texts = ("这是一条中文评论，用来看宽度。" * number for number in range(1, 13))
    rows = "".join(f"第{number}号评论的编号很长很长很长,{text}\n" for number, text in enumerate(texts))
    (here / "评论.csv").write_text(f"编号,正文\n{rows}", "utf-8")
    (here / "评论.toml").write_text(CHINESE_JOB, "utf-8")
    return Path("评论.toml")


def shown(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """What is printed goes to a terminal of so many cells."""
    monkeypatch.setattr(Screen, "is_terminal", True)
    for each in (screen.out, screen.err):
        monkeypatch.setattr(each, "_width", width)


@pytest.mark.parametrize("width", [60, 80])
def test_estimate_run_and_report_are_in_chinese_and_fit_the_terminal(
    in_chinese: None, comments: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    shown(monkeypatch, width)
    said = {
        name: re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|.*\r", "", "".join(cli(name, *arguments)[1:]))
        for name, *arguments in (
            ("estimate", comments, "--compare"),
            ("run", comments, "--offline"),
            ("report", "评论"),
            ("runs",),
            ("check", comments, "--offline"),
        )
    }
    for name, text in said.items():
        lines = text.splitlines()
        assert [line for line in lines if cell_len(line) > width] == [], name
        assert [line for line in lines if english_in(line)] == [], name
        assert not any(re.match(rf"\s*[{'，。；：、）'}]", line) for line in lines), "no line begins with such"
    for word in ("调用", "输入 token", "费用", "受", "分块", "可节省"):
        assert word in said["estimate"], word
    assert "12 ok" in said["run"] and "模拟器的回答" in said["report"] and "结果-offline.csv" in said["report"]


SENTENCES = ("every row that was reached is ok", "3 rows", "rows", "hint:", "an answer: P10 / median / P90", "calls")


def test_what_the_user_has_is_shown_as_it_is_though_we_say_the_same(
    in_chinese: None, here: Path, cli: Callable[..., Ran]
) -> None:
    (here / "3 rows.csv").write_text("rows,text\n" + "".join(f'"{each}","{each}"\n' for each in SENTENCES), "utf-8")
    job = '[input]\npath = "3 rows.csv"\nid = "rows"\n[prompt]\ntemplate = "{{ text }}"\n[output]\npath = "calls.csv"\n'
    job += '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 60\n'
    (here / "tokens in.toml").write_text(job, "utf-8")
    ran = cli("run", "tokens in.toml", "--offline")
    assert ran.err.startswith("tokens in → runs/tokens in-offline\n") and "calls-offline.csv" in ran.err + ran.out
    listed = cli("show", "tokens in").out
    for each in SENTENCES:
        assert len(re.findall(rf"\d  {re.escape(each)}  ok  .*{re.escape(each)}", listed)) == 1, listed
        row = cli("show", "tokens in", each).out
        assert f"   {each}   " in row and f"\n{each}\n" in row, row
    assert "3 rows.csv" in cli("estimate", "tokens in.toml").out


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f'  File "/x/{number}.py", line {number}, in f; a, b' for number in range(3_000)),
        "a: " * 1_000,
        "x, y; z. " * 300,
        "word " * 20_000,
    ],
    ids=["a traceback", "colons", "lists", "a long line"],
)
def test_a_long_text_that_is_not_ours_is_shown_as_it_is_and_soon(in_chinese: None, text: str) -> None:
    """Without a bound each line was looked up with all that follow it: minutes, or an error, for a traceback."""
    assert language.spoken(text) == text
