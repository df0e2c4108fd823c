"""What the page of a large run takes: `pipeline report --html` of a run that the emulator answered.

python tests/benchmarks/bench_report.py [rows, default 100_000] [--chunked]

Rows are sentences of the sample documents, English and Chinese, in random order: about 1 kB each; with --chunked four
times as long, cut, and answered by several calls.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = Path(sys.executable).parent / "pipeline"
JOB = """
[input]
path = "in.parquet"
id = "id"
text = "text"
[prompt]
template = "Say in one sentence what this is about.\\n\\n{{ text }}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 300
[output]
path = "out.parquet"
"""
CHUNKED = """
[chunk]
max_tokens = 400
[reduce]
template = "Say in one sentence what these are about.\\n\\n{{ parts }}"
"""


def main() -> None:
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
    rows, is_chunked = numbers[0] if numbers else 100_000, "--chunked" in sys.argv
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        os.environ["XDG_STATE_HOME"] = place
        table(rows, 4_000 if is_chunked else 1_000).write_parquet("in.parquet")
        Path("job.toml").write_text(JOB + (CHUNKED if is_chunked else ""))
        subprocess.run([PIPELINE, "run", "job.toml", "--offline", "--yes"], capture_output=True)  # some are truncated
        before = time.perf_counter()
        subprocess.run([PIPELINE, "report", "job-offline", "--html", "run.html"], check=True, capture_output=True)
        seconds, size = time.perf_counter() - before, Path("run.html").stat().st_size
        cpu, peak = of_report()
        print(f"{rows:,} rows: {seconds:.1f} s, CPU {cpu:.1f} s, {size / 1e6:.1f} MB, peak {peak:,.0f} MB")


def of_report() -> tuple[float, float]:
    """CPU seconds and MB at the peak of a second report, in a process that has no other child."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)"
    )
    command = [sys.executable, "-c", code, str(PIPELINE), "report", "job-offline", "--html", "run.html"]
    cpu, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(cpu), float(peak)


def table(rows: int, characters: int) -> pl.DataFrame:
    """Rows of about so many characters; a seventh is Chinese, at a third of that."""
    bodies = pl.read_parquet(ROOT / "sample_data" / "licences.parquet").select("lang", "body").iter_rows()
    sentences: dict[bool, list[str]] = {False: [], True: []}
    for lang, body in bodies:
        sentences[lang.startswith("zh")] += filter(None, map(str.strip, re.split(r"(?<=[.。])", body)))
    rng = random.Random(0)
    texts = []
    for row in range(rows):
        own = sentences[row % 7 == 0]
        wanted, text = characters // (3 if row % 7 == 0 else 1), ""
        while len(text) < wanted:
            text += rng.choice(own) + " "
        texts.append(text)
    return pl.DataFrame({"id": [f"document {row:06}" for row in range(rows)], "text": texts})


if __name__ == "__main__":
    main()
