import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens import BLOCKS, SCALE, estimate

CONTROL = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]"
OTHER = 18365
FEATURES: tuple[tuple[str, int], ...] = (
    (r"[A-Za-z]+", 9693),
    (r"[A-Za-z]{4}", -188),
    (r"[A-Za-z]{8}", 3951),
    (r"[A-Z]", 793),
    (r"[0-9]", 10532),
    (r"[ \t][0-9]", 2855),
    (r"[0-9][a-f]|[a-f][0-9]", 1464),
    (r"[!-/:-@\[-`{-~]", 1711),
    (r"[!-/:-@\[-`{-~]+", 7815),
    ("|".join(re.escape(chr(code)) + "{4}" for code in range(33, 127) if not chr(code).isalnum()), -2304),
    (r" {2,}", 7732),
    (r"\t+", 5780),
    (r"[\r\n]+", 15024),
    (CONTROL, OTHER),
)
"""Pattern of ASCII characters, and ten-thousandths of a token for each match."""

ALPHABETS = (
    "aZbf 09",
    "aBcdefgh ,.-=\"'",
    "\t\n\r \x00\x0b\x1f\x7f",
    "----====a",
    "中文汉字。，！？；：（）ＡＢ　",
    "ひらカナー・ｶﾅ한글ㄱ",
    "éßñĀ àü\u0301\u0308",
    "жфα ωאב عربी हไท",
    "😀👩\u200d👧🇩🇪✂\ufe0f☃",
    "«»–—…→“”\xa0\x85\u2028\u202e\U00020000\U0010ffff",
)
texts = st.one_of(
    st.text(st.sampled_from("".join(ALPHABETS)), max_size=60),
    st.sampled_from(ALPHABETS).flatmap(lambda alphabet: st.text(st.sampled_from(alphabet), max_size=60)),
    st.text(max_size=60),
)


def by_definition(text: str) -> int:
    """The estimate as FEATURES and BLOCKS read, one character and one pattern at a time."""
    units = sum(weight * len(re.findall(pattern, text)) for pattern, weight in FEATURES)
    for character in text:
        if not character.isascii():
            code = ord(character)
            units += next((w for _, w, ranges in BLOCKS if any(a <= code <= b for a, b in ranges)), OTHER)
    return max(-(-units // SCALE), 1 if text else 0)


@given(texts)
@settings(max_examples=500, deadline=None)
def test_the_fast_estimate_is_the_defined_one(text: str) -> None:
    assert estimate(text) == by_definition(text)


@pytest.mark.parametrize(
    ("text", "tokens_in_ten_thousandths"),
    [
        ("word", 9693 - 188),
        ("words and", 2 * 9693 - 188),
        ("Internationalization", 9693 + 793 - 5 * 188 + 2 * 3951),
        ("in 1998", 9693 + 4 * 10532 + 2855),
        ("7f3a", 2 * 9693 + 2 * 10532 + 2 * 1464),  # 7f and 3a: a switch is counted once
        ("f7f", 2 * 9693 + 10532 + 1464),
        ("a, b... c", 3 * 9693 + 4 * 1711 + 2 * 7815),
        ("=====", 5 * 1711 + 7815 - 2304),
        ("==--", 4 * 1711 + 7815),
        ("a   b\t\tc", 3 * 9693 + 7732 + 5780),
        ("a\r\n\r\nb\nc", 3 * 9693 + 2 * 15024),
        ("今天 2 次。", 3 * 5674 + 10532 + 2855 + 20815),
        ("カーいﾊ", 4 * 3462),
        ("한국 да ευ", 2 * 8079 + 2 * 2849 + 2 * 4274),
        ("naïve", 2 * 9693 + 6654),  # a letter above ASCII parts its word
        ("👩\u200d👧❤\ufe0f", 5 * 10770),
        ("\x00\u0301\ue000", 3 * 18365),
    ],
)
def test_counts_times_coefficients(text: str, tokens_in_ten_thousandths: int) -> None:
    assert estimate(text) == -(-tokens_in_ten_thousandths // 10_000)
    assert estimate((text + "\n") * 100) == -(-(100 * (tokens_in_ten_thousandths + 15024)) // 10_000)


def test_only_the_empty_text_has_no_tokens() -> None:
    assert estimate("") == 0
    assert estimate(" ") == 1


def test_a_lone_surrogate_is_a_character_like_others() -> None:
    assert estimate("\ud800") == 2
    assert estimate("中\udfff") == 3


@given(texts, texts)
@settings(deadline=None)
def test_joining_two_texts_adds_at_most_a_token(left: str, right: str) -> None:
    assert estimate(left + right) <= estimate(left) + estimate(right) + 1


def test_prose_is_near_what_it_is_known_to_have() -> None:
    # Chinese prose has 1.86 characters a token, punctuation and Latin mixed in; English about 4.5.
    chinese = "机器学习模型的推理成本在2024年大幅下降，但研究人员发现GPU集群的利用率仍然很低。为什么？" * 20
    english = "The committee found that the cost of inference fell sharply, but the machines are still idle. " * 20
    assert 1.4 < len(chinese) / estimate(chinese) < 2.1
    assert 4.0 < len(english) / estimate(english) < 6.0
