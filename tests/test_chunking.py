import base64
import random
from collections.abc import Callable
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import chinese_sentence, corpus, english_sentence, mixed_sentence

from pipeline import chunking
from pipeline.chunking import Piece, split
from pipeline.tokens import estimate

Sentence = Callable[[random.Random], str]

FAMILY = "👩\u200d👩\u200d👧\u200d👦"
UNITS = (
    "word ",
    "x",
    "7f",
    "Sentence. ",
    "e.g. ",
    "\n\n",
    "\r\n",
    " ",
    "\t",
    "====",
    ", ",
    "中文",
    "。",
    "；",
    FAMILY,
    "👍🏽",
)
UNITS_OF_READERS = ("a", "B", " ", ".", "\r\n", "中", "。", "e\u0301", "한", FAMILY, "👍🏽", "❤\ufe0f", "🇩🇪")
ENDS_OF_SENTENCES = frozenset(".?!。？！；")
budgets = st.integers(1, 60).flatmap(lambda most: st.tuples(st.just(most), st.integers(0, most - 1)))


def rebuilt(text: str, pieces: list[Piece]) -> str:
    return "".join(text[piece.start + piece.overlap : piece.end] for piece in pieces)


def check(text: str, max_tokens: int, overlap_tokens: int) -> list[Piece]:
    """Cut, and hold the pieces to everything that `split` promises of every text."""
    pieces = split(text, max_tokens, overlap_tokens)
    assert rebuilt(text, pieces) == text
    room = min(overlap_tokens, max_tokens - 3)
    for piece in pieces:
        tokens = estimate(text[piece.start : piece.end])
        assert tokens <= max_tokens or (max_tokens < 3 and piece.end - piece.start == 1)
    for before, piece in pairwise(pieces):
        body = piece.start + piece.overlap
        assert body == before.end < piece.end
        assert before.start <= before.start + before.overlap <= piece.start
        assert estimate(text[piece.start : body]) <= overlap_tokens
        assert piece.overlap > 0 or room <= 0 or estimate(text[body - 1]) > room
    return pieces


@given(st.lists(st.sampled_from(UNITS) | st.text(max_size=5), max_size=120).map("".join), budgets)
@settings(max_examples=300, deadline=None)
def test_pieces_rebuild_the_text_within_the_budget_and_overlap(text: str, budget: tuple[int, int]) -> None:
    check(text, *budget)


@given(st.text(st.sampled_from("的一是。在不了，有和人这；中大！"), max_size=400), budgets)
@settings(max_examples=100, deadline=None)
def test_chinese_without_spaces(text: str, budget: tuple[int, int]) -> None:
    check(text, *budget)


@given(st.lists(st.sampled_from(UNITS_OF_READERS), max_size=80), st.integers(12, 40), st.sampled_from((0, 10)))
@settings(max_examples=300, deadline=None)
def test_no_cut_inside_what_a_reader_sees_as_one_character(units: list[str], room: int, overlap_tokens: int) -> None:
    text = "".join(units)
    cuts = {0, *accumulate(map(len, units))}
    for piece in check(text, room + overlap_tokens, overlap_tokens):
        assert {piece.start, piece.start + piece.overlap, piece.end} <= cuts


@given(st.lists(st.sampled_from(UNITS), max_size=80).map("".join), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_what_fits_is_one_piece(text: str, spare: int) -> None:
    whole = estimate(text)
    if whole > 8:
        assert split(text, whole + spare, 5) == [Piece(0, len(text), 0)]
        assert len(split(text, whole - 1, 5)) > 1


@pytest.mark.parametrize("sentence", [english_sentence, chinese_sentence])
def test_a_document_as_long_as_the_budget_is_one_piece(sentence: Sentence) -> None:
    text = corpus(sentence, 30_000)
    assert split(text, estimate(text), 100) == [Piece(0, len(text), 0)]
    assert len(split(text, estimate(text) - 1, 100)) == 2


def test_the_empty_text_has_no_pieces() -> None:
    assert split("", 10, 5) == []


@pytest.mark.parametrize("text", [" " * 5000, "\n" * 5000, " \r\n\t" * 2000, "\u3000" * 2000, "\u200d" * 2000])
def test_nothing_but_blanks(text: str) -> None:
    check(text, 50, 10)


@pytest.mark.parametrize(("max_tokens", "overlap_tokens"), [(0, 0), (-1, 0), (10, 10), (10, 11), (10, -1)])
def test_budgets_that_make_no_sense_are_refused(max_tokens: int, overlap_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"{overlap_tokens}, {max_tokens}"):
        split("some text", max_tokens, overlap_tokens)


def test_a_character_above_the_budget_is_a_piece_of_its_own() -> None:
    assert estimate("。") == 3
    assert split("。。a", 2) == [Piece(0, 1, 0), Piece(1, 2, 0), Piece(2, 3, 0)]
    assert split("。。a", 1) == [Piece(0, 1, 0), Piece(1, 2, 0), Piece(2, 3, 0)]


def test_a_budget_of_three_has_no_room_for_an_overlap() -> None:
    assert all(piece.overlap == 0 for piece in check("one two three four five", 3, 2))
    assert any(piece.overlap > 0 for piece in check("one two three four five", 4, 2))


def test_a_paragraph_is_a_better_end_than_a_sentence() -> None:
    paragraph = "One short sentence. Another short one.\n\n"
    text = paragraph * 40
    for piece in split(text, 50)[:-1]:
        assert text[: piece.end].rstrip().endswith("Another short one.")


def test_a_heading_is_not_a_piece_of_its_own() -> None:
    text = "Results\n\n" + "The sentence goes on for some ten words or so. " * 100
    first = split(text, 200)[0]
    assert estimate(text[: first.end]) > 100
    assert text[: first.end].endswith("so. ")


def test_a_sentence_longer_than_the_budget_ends_at_words() -> None:
    text = "never ending words " * 500
    for piece in check(text, 60, 10)[:-1]:
        assert text[piece.end - 1] == " " or text[piece.end] == " "


@pytest.mark.parametrize(
    ("sentence", "at_sentences"), [(english_sentence, 0.95), (chinese_sentence, 0.85), (mixed_sentence, 0.85)]
)
@pytest.mark.parametrize(("max_tokens", "overlap_tokens"), [(300, 60), (2000, 200)])
def test_prose_is_cut_at_sentences_and_well_filled(
    sentence: Sentence, at_sentences: float, max_tokens: int, overlap_tokens: int
) -> None:
    text = corpus(sentence, 300_000)
    pieces = check(text, max_tokens, overlap_tokens)
    joins = len(pieces) - 1
    ends = sum(text[: piece.end].rstrip()[-1] in ENDS_OF_SENTENCES for piece in pieces[:-1])
    assert ends / joins >= at_sentences
    filled = [estimate(text[piece.start : piece.end]) / max_tokens for piece in pieces[:-1]]
    assert sum(filled) / joins >= 0.7
    overlaps = sorted(estimate(text[piece.start : piece.start + piece.overlap]) for piece in pieces[1:])
    assert overlaps[0] >= overlap_tokens / 4
    assert overlaps[joins // 2] >= overlap_tokens / 2


def test_overlaps_of_prose_start_at_sentences() -> None:
    text = corpus(english_sentence, 300_000)
    pieces = split(text, 1000, 200)
    starts = sum(text[: piece.start].rstrip()[-1] in ENDS_OF_SENTENCES for piece in pieces[1:])
    assert starts / (len(pieces) - 1) >= 0.9


@pytest.mark.parametrize("sentence", [english_sentence, chinese_sentence])
def test_five_megabytes_are_read_little_more_than_once(sentence: Sentence, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus(sentence, 5_000_000)
    read = 0

    def counted(part: str) -> int:
        nonlocal read
        read += len(part)
        return estimate(part)

    monkeypatch.setattr(chunking, "estimate", counted)
    pieces = split(text, 6000, 300)
    assert rebuilt(text, pieces) == text
    assert read < 1.5 * len(text)


def test_a_blob_without_words() -> None:
    blob = base64.b64encode(random.Random(2).randbytes(300_000)).decode()
    assert len(blob) == 400_000
    pieces = check("Before it. " + blob + " After it.", 4000, 200)
    assert len(pieces) < 1.2 * estimate(blob) / 3800


def test_a_text_that_changes_its_density() -> None:
    text = "word " * 5000 + " " * 300_000 + "0123456789" * 3000 + "\n" * 50_000 + "。" * 3000
    pieces = check(text, 500, 50)
    assert len(pieces) < 2 * estimate(text) / 450
