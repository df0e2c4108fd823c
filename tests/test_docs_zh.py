"""The Chinese pages say what the English ones say."""

import csv
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Ran
from test_docs import ALL, ROOT, blocks, command

from pipeline.errors import EXIT_CODES
from pipeline.language.catalogue import read
from pipeline.records import CAUSES, PASSING, STATUSES

CHINESE = [page for page in ALL if page.startswith("docs/zh-CN/") or page == "README.zh-CN.md"]
TRANSLATED = [page for page in CHINESE if page != "docs/zh-CN/glossary.md"]
HAN = re.compile(r"[\u4e00-\u9fff]")
WORDS = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "ten": "10", "twenty": "20"}


def english(page: str) -> dict[str, str]:
    """The English pages that a Chinese one says it translates, by name."""
    if page == "README.zh-CN.md":
        return {name: ALL[name] for name in ("README.md", "docs/networks.md", "docs/quota.md", "docs/tables.md")}
    line = next((line for line in ALL[page].splitlines() if line.startswith("英文原文：")), "")
    names = [
        (ROOT / page).parent.joinpath(path).resolve().relative_to(ROOT.resolve()).as_posix()
        for path in re.findall(r"\]\(([^)#]+)", line)
    ]
    assert names, f"{page} names no English page: a line that begins with 英文原文："
    return {name: ALL[name] for name in names}


def typed(block: str) -> list[str]:
    """What a shell reads of a block: its lines without comments."""
    return [line for raw in block.splitlines() if (line := re.sub(r"(^|\s+)# .*", "", raw).rstrip())]


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values of a job or table are the same; Chinese stands for any text with the same columns in it."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, str) and isinstance(theirs, str) and HAN.search(ours):
        return re.findall(r"\{\{.*?\}\}", ours) == re.findall(r"\{\{.*?\}\}", theirs)
    return bool(ours == theirs)


READ: dict[str, Callable[[str], Any]] = {
    "sh": typed,
    "cron": typed,
    "toml": tomllib.loads,
    "csv": lambda block: list(csv.reader(block.splitlines())),
}


@pytest.mark.parametrize("page", TRANSLATED)
def test_blocks_are_those_of_the_english_page(page: str) -> None:
    for language, parsed in READ.items():
        theirs = [parsed(block) for name in ALL if name not in CHINESE for block in blocks(ALL[name], language)]
        for block in blocks(ALL[page], language):
            found = any(same(parsed(block), each) for each in theirs)
            assert found, f"mend {page}: this stands on no English page (see {', '.join(english(page))}):\n{block}"


def test_the_chinese_readme_has_every_block_of_the_english_one() -> None:
    for language, parsed in READ.items():
        ours = [parsed(block) for block in blocks(ALL["README.zh-CN.md"], language)]
        for block in blocks(ALL["README.md"], language):
            found = any(same(each, parsed(block)) for each in ours) or block == command("test")
            assert found, f"mend README.zh-CN.md: this stands in README.md alone:\n{block}"


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:[.,]\d+)*", text))


@pytest.mark.parametrize("page", TRANSLATED)
def test_numbers_are_those_of_the_english_page(page: str) -> None:
    told = "\n".join(english(page).values())
    known = numbers(told) | {number for word, number in WORDS.items() if re.search(rf"\b{word}\b", told, re.IGNORECASE)}
    said = numbers(re.sub(r"```.*?```", "", ALL[page], flags=re.DOTALL))
    assert said <= known, f"mend {page}: {', '.join(english(page))} has no {sorted(said - known)}"


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, without its head."""
    part = ALL[page].partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]


def test_codes_states_and_causes_are_all_there() -> None:
    page = "docs/zh-CN/errors.md"
    assert [int(row[0]) for row in cells(page, "退出码")] == list(EXIT_CODES)
    assert [row[0].strip("`") for row in cells(page, "行的状态")] == [*STATUSES, "pending"]
    told = {row[0].strip("`"): row[2] for row in cells(page, "失败的原因")}
    assert told == {cause: "是" if cause in PASSING else "否" for cause in CAUSES}


def test_messages_about_networks_are_those_of_the_terminal() -> None:
    said = read((ROOT / "pipeline" / "language" / "zh_CN.po").read_text("utf-8")).values()
    for message, *_ in cells("docs/zh-CN/networks.md", "消息的含义"):
        pattern = ".*".join(re.escape(part.strip()) for part in message.split("…"))
        assert any(re.search(pattern, each) for each in said), f"the terminal does not say: {message}"


def sentences(text: str) -> Iterator[str]:
    """The lines of a page as they are read: without blocks, code and the addresses of links."""
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
        yield re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "`x`", line))


@pytest.mark.parametrize("page", CHINESE)
def test_chinese_has_its_own_punctuation_and_room_beside_latin(page: str) -> None:
    for line in sentences(ALL[page]):
        assert not re.search(r"[\u4e00-\u9fff][,;:!?]|[\u4e00-\u9fff]\.(?:\s|$)|[,;:!?][\u4e00-\u9fff]", line), line
        assert not re.search(r"[\u4e00-\u9fff][A-Za-z0-9`]|[A-Za-z0-9`%][\u4e00-\u9fff]", line), line
        assert not re.search(r"[，。；：、（）？！] (?=[^|])|[^|] [，。；：、（）？！]", line), line


def test_what_a_chinese_terminal_shows_is_what_comes(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_LANG", "zh")
    (here / "reviews.csv").write_text(blocks(ALL["README.zh-CN.md"], "csv")[0] + "\n", "utf-8")
    hangs_on_the_clock = ("完成", "延迟", "时间", "total")
    shown = [
        (page, each) for page in CHINESE for each in re.findall(r"```\n\$ pipeline (.*?)\n```", ALL[page], re.DOTALL)
    ]
    assert shown
    for page, block in shown:
        line, _, expected = block.partition("\n")
        ran = cli(*line.split())
        assert ran.code == 0, ran.err
        came, told = (
            [" ".join(line.split()) for line in text.splitlines() if not line.strip().startswith(hangs_on_the_clock)]
            for text in (ran.out or ran.err, expected)
        )
        assert came == told, f"mend {page}: $ pipeline {line}"
