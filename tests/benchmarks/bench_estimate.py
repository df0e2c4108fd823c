"""What `pipeline estimate` costs on a large table: seconds, the peak of memory, and how near it comes.

    python tests/benchmarks/bench_estimate.py [rows ...] [--all]

Rows of 2 kB in the mean, English, Chinese and code, of skewed lengths, as Parquet and as CSV, for one call a row and
for map-reduce; each estimate in a process of its own. Default: a million rows, of which a sample is looked at, and
100,000, which are all looked at. With `--all` every row of a larger table is counted too, to see how far the sample was
off and whether what was stated holds.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import polars as pl
from bench_tokens import CODE

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sentences import chinese_sentence, corpus, english_sentence

from pipeline import estimating
from pipeline.job import load
from pipeline.plan.survey import Survey, survey
from pipeline.run import planning
from pipeline.run.prepare import Options, prepare
from pipeline.source import Source

JOB = """
[input]
path = "{path}"
id = "id"
text = "text"
[prompt]
template = "Summarize: {{{{ text }}}}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 200
[limits]
rpm = 1000
tpm = 1000000
[output]
path = "out.parquet"
"""
MERGING = """
[chunk]
max_tokens = 500
[reduce]
template = "Merge: {{ parts }}"
"""
TABLES = {"parquet": "in-*.parquet", "csv": "in.csv"}
JOBS = {"one call a row": JOB, "map-reduce": JOB + MERGING.replace("{", "{{").replace("}", "}}")}


def main(sizes: list[int], check_samples: bool) -> None:
    print(f"{'':45}{'check':>8}{'survey':>8}{'plan':>8}{'in all':>9}{'peak':>9}    input tokens")
    for rows in sizes:
        for kind, name in TABLES.items():
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                subprocess.run([sys.executable, __file__, "generate", str(rows), kind, place], check=True)
                for job, text in JOBS.items():
                    path = folder / f"{job.replace(' ', '-')}.toml"
                    path.write_text(text.format(path=folder / name))
                    sampled = tell(f"{rows:,} rows, {kind}, {job}", path)
                    if check_samples and sampled["looked_at"] < rows:
                        compare(sampled, tell("    every row", path, "--all"))


def tell(name: str, path: Path, *flags: str) -> dict[str, Any]:
    """Estimate in a process of its own, and print a line about it."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "measure", str(path), *flags], check=True, stdout=subprocess.PIPE)
    seconds = time.perf_counter() - started  # with starting Python, as a user waits for it
    told: dict[str, Any] = json.loads(done.stdout)
    check, survey, plan = (told["seconds"][phase] for phase in ("check", "survey", "plan"))
    low, expected, high = told["input_tokens"]
    print(
        f"{name:45}{check:>6.1f} s{survey:>6.1f} s{plan:>6.1f} s{seconds:>7.1f} s{told['peak_mb']:>6,.0f} MB    "
        f"{expected:,} ({low / expected - 1:+.1%} to {high / expected - 1:+.1%}), {told['looked_at']:,} looked at",
        flush=True,
    )
    return told


def compare(sampled: dict[str, Any], whole: dict[str, Any]) -> None:
    for name in ("prompts", "input_tokens"):
        low, expected, high = sampled[name]
        truth = whole[name][1]
        place = "inside" if low <= truth <= high else "OUTSIDE"
        print(
            f"        {name}: {truth:,}, {truth / expected - 1:+.2%} from what the sample told, {place} what was stated"
        )


def measure(path: Path, whole: bool) -> None:
    seconds: dict[str, float] = {}

    def timed(source: Source, rows: int) -> Survey:
        started = time.perf_counter()
        found = survey(source, rows)
        seconds["survey"] = time.perf_counter() - started
        return found

    os.chdir(path.parent)  # where there are no earlier runs
    started = time.perf_counter()
    session = prepare(load(path), Options())
    seconds["check"] = time.perf_counter() - started
    started = time.perf_counter()
    with patch.object(planning, "survey", timed):
        plan = anyio.run(estimating.estimate, session, estimating.Wishes(whole=whole)).plan
    seconds["plan"] = time.perf_counter() - started - seconds["survey"]
    ranges = {
        name: (amount.low, amount.expected, amount.high)
        for name, amount in (("prompts", plan.prompts), ("input_tokens", plan.input_tokens))
    }
    looked_at = plan.sampled_rows or plan.documents
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "looked_at": looked_at, **ranges}))


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak from before exec
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def generate(rows: int, kind: str, folder: Path) -> None:
    made = texts(rows)
    for start in range(0, rows, 50_000):
        ids = range(start, min(rows, start + 50_000))
        frame = pl.DataFrame({"id": ids, "text": [next(made) for _ in ids]}, schema={"id": pl.Int64, "text": pl.String})
        if kind == "parquet":
            frame.write_parquet(folder / f"in-{start:09}.parquet", row_group_size=20_000)
        else:
            with (folder / TABLES[kind]).open("ab") as file:
                frame.write_csv(file, include_header=start == 0)


def texts(rows: int) -> Iterator[str | None]:
    choose = random.Random(rows)
    corpora = [  # with bytes per character
        (corpus(english_sentence, 2_000_000), 1),
        (corpus(chinese_sentence, 4_000_000), 3),
        (CODE * 10_000, 1),
    ]
    text = None
    for row in range(rows):
        fate = choose.random()
        if fate < 0.005:
            yield None
        elif fate < 0.015:
            yield text
        else:
            whole, width = choose.choices(corpora, (60, 25, 15))[0]
            start = choose.randrange(len(whole) // 2)
            text = whole[start : start + 1 + int(choose.lognormvariate(7.1, 1)) // width]
            text = text.replace("\n\n", f"\n\n{row} ")  # else rows would have pieces in common
            yield text


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["generate", count, table, place]:
            generate(int(count), table, Path(place))
        case ["measure", path, *flags]:
            measure(Path(path), "--all" in flags)
        case given:
            counts = [int(one) for one in given if one != "--all"]
            main(counts or [1_000_000, 100_000], "--all" in given)
