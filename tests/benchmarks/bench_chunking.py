"""Speed of `chunking.split`: MB of UTF-8 per second by language and length, and whether time stays linear in length.

python tests/benchmarks/bench_chunking.py [max_tokens [overlap_tokens]]
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sentences import chinese_sentence, corpus, english_sentence, mixed_sentence

from pipeline.chunking import split


def main() -> None:
    given = [int(argument) for argument in sys.argv[1:3]]
    max_tokens, overlap_tokens = [*given, *[6000, 300][len(given) :]]
    print(f"max_tokens {max_tokens}, overlap_tokens {overlap_tokens}")
    for name, sentence in (("English", english_sentence), ("Chinese", chinese_sentence), ("mixed", mixed_sentence)):
        seconds_per_mb = {}
        for size_mb in (1, 5, 20):
            text = corpus(sentence, size_mb * 1_000_000)
            mb = len(text.encode()) / 1e6
            started = time.perf_counter()
            pieces = split(text, max_tokens, overlap_tokens)
            seconds_per_mb[size_mb] = (time.perf_counter() - started) / mb
            print(f"{name:8} {mb:5.1f} MB {len(pieces):7,} pieces {1 / seconds_per_mb[size_mb]:6.1f} MB/s")
        print(f"{name:8} a byte of 20 MB takes {seconds_per_mb[20] / seconds_per_mb[5]:.2f} of one of 5 MB")


if __name__ == "__main__":
    main()
