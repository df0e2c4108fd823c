"""Prose of any length, English, Chinese and mixed, with sentences and paragraphs."""

import random
from collections.abc import Callable

ENGLISH = """
the of and to in a is that for it was on are with they be at one have this from by had not but what all were when we
there can an your which their said if do will each about how up out them then she many some so these would other into
more time could no make than first water been call oil now find long down day did get come made may part over new sound
take only little work know place year live back give most very after thing our just name good sentence man think
government committee development international relationship environment particularly measurement understanding
agreement temperature responsibility investigation market evidence company language question system network
"""
CHINESE = """
我们 他们 研究 发现 模型 数据 成本 推理 语言 系统 网络 时间 问题 方法 结果 公司 市场 政府 国家 人口 城市 水
气候 变化 能源 价格 增长 的 了 在 是 和 对 与 为 从 到 把 被 也 就 都 不 很 更 这个 那个 可以 需要 因为 所以
但是 如果 已经 正在 显著 迅速 提高 降低 认为 表示 指出 分析 实验 证明 影响 作用 过程 技术 发展 社会 经济 教育
"""
ENGLISH_WORDS, CHINESE_WORDS = ENGLISH.split(), CHINESE.split()
SENTENCES_IN_PARAGRAPH = range(2, 9)


def english_sentence(choose: random.Random) -> str:
    words = choose.choices(ENGLISH_WORDS, k=choose.randrange(5, 28))
    if choose.random() < 0.3:
        words.insert(2, str(choose.randrange(1, 3000)))
    if len(words) > 10:
        words[len(words) // 2] += choose.choice((",", ";", ", e.g.", " (see below)"))
    return " ".join(words).capitalize() + choose.choice("......?!") + " "


def chinese_sentence(choose: random.Random) -> str:
    clauses = ["".join(choose.choices(CHINESE_WORDS, k=choose.randrange(4, 12))) for _ in range(choose.randrange(1, 4))]
    return "，".join(clauses) + choose.choice("。。。。？！；")


def mixed_sentence(choose: random.Random) -> str:
    term = choose.choice(("GPU", "API", "2026年", "transformer", "24.5%"))
    return f"{term} {choose.choice((english_sentence, chinese_sentence))(choose)}"


def corpus(sentence: Callable[[random.Random], str], size: int, *, seed: int = 1) -> str:
    """Paragraphs of at least `size` bytes of UTF-8 together; a long corpus repeats its first million."""
    choose = random.Random(seed)
    paragraphs: list[str] = []
    made = 0
    while made < min(size, 1_000_000):
        paragraph = "".join(sentence(choose) for _ in range(choose.choice(SENTENCES_IN_PARAGRAPH))).strip() + "\n\n"
        paragraphs.append(paragraph)
        made += len(paragraph.encode())
    return "".join(paragraphs) * -(-size // made)
