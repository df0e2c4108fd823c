"""Headings of a text, and pieces that say what they stand under."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_flows import Service, run, text

from jobs import CHUNKED, make_job
from pipeline.errors import JobError
from pipeline.flows.pieces import pieces_of
from pipeline.headings import Heading, above, headings
from pipeline.sections import Chunk
from pipeline.tokens import estimate

CONTEXT, PIECE = "[Context, not part of this text]\n", "[This text]\n"


def chunk(max_tokens: int, overlap_tokens: int = 0) -> Chunk:
    told = {"max_tokens": max_tokens, "overlap_tokens": overlap_tokens, "context": "headings"}
    return Chunk.model_validate(told)


def titles(source: str) -> list[tuple[int, str]]:
    return [(heading.level, heading.title) for heading in headings(source)]


@pytest.mark.parametrize(
    ("line", "level", "title"),
    [
        ("# One", 1, "One"),
        ("   ###### Six ##", 6, "Six"),
        ("## C# and F#", 2, "C# and F#"),
        ("第一章 总则", 11, "第一章 总则"),
        ("第十二节：附则", 12, "第十二节：附则"),
        ("第3章", 11, "第3章"),
        ("　　第二编 物权", 10, "第二编 物权"),
        ("一、工作目标", 20, "一、工作目标"),
        ("（二）主要措施", 21, "（二）主要措施"),
        ("1.2 Title", 31, "1.2 Title"),
        ("3.1.4. A longer title", 32, "3.1.4. A longer title"),
        ("2.1 范围", 31, "2.1 范围"),
    ],
)
def test_what_is_a_heading(line: str, level: int, title: str) -> None:
    assert titles(f"Some text before.\n\n{line}\n\nMore.") == [(level, title)]
    (heading,) = headings(f"Before.\n\n{line}\nAfter.")
    assert heading.start == len("Before.\n\n")


@pytest.mark.parametrize(
    "line",
    [
        "#hashtag",
        "#",
        "####### seven",
        "    # code",
        "1.2 million people live there.",
        "1.5 kg of it",
        "2. An item of a list",
        "3.14 15",
        "第一章规定了合同的订立，第二章规定了合同的效力。",
        "第三方",
        "一、本合同自双方签字之日起生效。",
        "第一章" + "很" * 200,
        "1.2 " + "Long " * 40,
    ],
)
def test_what_is_none(line: str) -> None:
    assert titles(f"Before.\n\n{line}\n\nAfter.") == []


def test_a_line_by_itself_is_underlined_and_a_paragraph_is_not() -> None:
    assert titles("Title\n=====\n\nPart\n---\nText.") == [(1, "Title"), (2, "Part")]
    assert titles("A paragraph that\ngoes on\n---\nAnd a rule.") == []
    assert titles("One\ntwo\nthree\n---\n") == []
    assert titles("---\n---\n\n===\n") == []
    assert titles("| a | b |\n|---|---|\n| c | d |") == []


def test_nothing_in_a_fence_is_a_heading() -> None:
    source = "# A\n```sh\n# no heading\n~~~\n# neither\n```\n## B\n~~~\n# nor this\n"
    assert titles(source) == [(1, "A"), (2, "B")]


def test_what_stands_above_a_place() -> None:
    source = "intro\n# A\n## B\ntext\n## C\n### D\ntext\n# E\nend"
    found = headings(source)
    places = [source.index(mark) for mark in ("intro", "# A", "## B", "text", "## C", "### D", "# E", "end")]
    places[6] = source.index("\n# E") + 1
    assert above(found, places) == [[], [], ["A"], ["A", "B"], ["A"], ["A", "C"], [], ["E"]]


def test_kinds_of_headings_stand_in_order_of_depth() -> None:
    source = "# 合同\n第一章 总则\n第一节 范围\n一、目标\n（一）近期\n1.1 指标\n正文\n第二章 分则\n正文二"
    paths = above(headings(source), [source.index("正文"), source.index("正文二")])
    assert paths == [
        ["合同", "第一章 总则", "第一节 范围", "一、目标", "（一）近期", "1.1 指标"],
        ["合同", "第二章 分则"],
    ]


LINES = (
    st.sampled_from(["# One", "## Two", "Title\n===", "第一章 总则", "一、目标", "1.2 Title", "```", "", "  "])
    | st.text()
)


@given(st.lists(LINES).map("\n".join))
def test_headings_are_lines_of_the_text_in_order(source: str) -> None:
    found = headings(source)
    assert all(one.start < other.start for one, other in pairwise(found))
    for heading in found:
        assert heading.title and source[heading.start :].lstrip("# \t\u3000").startswith(heading.title[:1])
        assert heading.start == 0 or source[heading.start - 1] in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


# ---- pieces

SECTIONED = "".join(
    f"# Chapter {c}\n\n"
    + "".join(
        f"## {c}.{s} Section\n\n" + f"Sentence of chapter {c} and section {s}. " * 40 + "\n\n" for s in range(1, 4)
    )
    for c in range(1, 4)
)


def test_each_piece_says_what_it_stands_under_and_how_the_one_before_it_ends() -> None:
    made = pieces_of(SECTIONED, chunk(300))
    assert len(made) > 6
    assert made[0].startswith("# Chapter 1"), "nothing stands above the first"
    for before, piece in pairwise(made):
        context, _, body = piece.partition(PIECE)
        assert context.startswith(CONTEXT)
        tail = context.split("The part before it ends: …")[1].strip()
        assert tail and before.rstrip().endswith(tail)
        if body.startswith("Sentence of chapter"):
            c, s = body.split("chapter ")[1][0], body.split("section ")[1][0]
            assert f"Headings above it: Chapter {c} > {c}.{s} Section\n" in context


WORDS = st.sampled_from(
    [
        "# Heading\n",
        "\n\n",
        "word ",
        "A sentence. ",
        "第一章 总则\n",
        "汉字很多。",
        "\U0001f468\u200d\U0001f469",
        "===\n",
        "x" * 300,
    ]
)
TEXTS = st.lists(WORDS | st.text(max_size=20), max_size=60).flatmap(
    lambda parts: st.integers(1, 12).map(lambda times: "".join(parts) * times)
)


@given(TEXTS, st.integers(256, 600), st.integers(0, 128))
@example(SECTIONED, 256, 128)
@example("# " + "字" * 4000 + "\n" + "text " * 2000, 256, 0)
def test_no_piece_is_longer_than_it_may_be_and_nothing_of_the_text_is_lost(
    source: str, most: int, overlap: int
) -> None:
    made = pieces_of(source, chunk(most, min(overlap, most // 2)))
    assert all(estimate(piece) <= most for piece in made)
    if CONTEXT not in source and PIECE not in source:
        assert "".join(piece.partition(PIECE)[2] if piece.startswith(CONTEXT) else piece for piece in made) == source


def test_a_long_heading_is_shortened_and_the_outermost_goes_first() -> None:
    deep = "".join(f"{'#' * level} {'Long words of a heading ' * 3}{level}\n" for level in range(1, 7))
    made = pieces_of(deep + "text " * 600, chunk(256))
    told = [piece.partition(PIECE)[0] for piece in made[1:-1]]
    assert told and all("heading 5 > " in context and "heading 1 > " not in context for context in told)


def test_the_flows_ask_about_pieces_in_context(tmp_path: Path) -> None:
    service = Service()
    job = make_job(tmp_path, CHUNKED, chunk={"max_tokens": 300, "context": "headings"})
    answer = run(job, text(SECTIONED), service)
    made = pieces_of(SECTIONED, chunk(300))
    assert [prompt.text for prompt in service.of("map")] == [
        f"{n}/{len(made)}: {each}" for n, each in enumerate(made, 1)
    ]
    assert answer.chunks == len(made)
    short = Service()
    run(job, text("# A\n\nShort."), short)
    assert [prompt.text for prompt in short.asked] == ["1/1: # A\n\nShort."]
    assert job.fingerprint != make_job(tmp_path, CHUNKED, chunk={"max_tokens": 300}).fingerprint


def test_small_pieces_have_no_room_for_it(tmp_path: Path) -> None:
    with pytest.raises(JobError, match='context = "headings" needs max_tokens of 256 or more'):
        make_job(tmp_path, CHUNKED, chunk={"max_tokens": 255, "context": "headings"})


def test_a_heading_is_what_it_is() -> None:
    assert headings("# A") == [Heading(0, 1, "A")]
