"""Speed of the token estimate: microseconds for a text of 1 kB, MB/s for 1 MB.

python tests/benchmarks/bench_tokens.py
"""

import sys
import timeit
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sentences import chinese_sentence, corpus, english_sentence, mixed_sentence

from pipeline.tokens import estimate

CODE = (
    "def total(rows: list[dict[str, int]]) -> int:\n    return sum(row['n'] for row in rows if row['kind'] == 0x1f)\n\n"
)


def each(parts: list[str]) -> None:
    for part in parts:
        estimate(part)


def main() -> None:
    texts = {
        "English": corpus(english_sentence, 1_000_000),
        "Chinese": corpus(chinese_sentence, 1_000_000),
        "mixed": corpus(mixed_sentence, 1_000_000),
        "code": CODE * 9_000,
    }
    for name, text in texts.items():
        mb = len(text.encode()) / 1e6
        characters = int(len(text) / mb / 1000)  # of 1 kB
        parts = [text[i : i + characters] for i in range(0, 500 * characters, characters)]
        one_us = min(timeit.repeat(partial(each, parts), number=1, repeat=7)) / 500 * 1e6
        whole_s = min(timeit.repeat(partial(estimate, text), number=1, repeat=3))
        print(f"{name:8} 1 kB {one_us:5.1f} µs, 1 MB {mb / whole_s:6.1f} MB/s")


if __name__ == "__main__":
    main()
