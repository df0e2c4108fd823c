"""What an estimate costs before anything is forecast: reading the table, picking rows, running their flows.

    python tests/benchmarks/bench_estimate.py [rows, default 100_000]

Rows of 2 kB in the mean, English, Chinese and code, of skewed lengths, as Parquet and as CSV; each table in a process
of its own. Prints seconds, the peak of memory so far, and the interval of the input tokens.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import polars as pl
from bench_chunking import chinese_sentence, corpus, english_sentence
from bench_tokens import CODE

from pipeline import flows
from pipeline.job import Job, load
from pipeline.plan import survey
from pipeline.plan.expansion import Expansion
from pipeline.records import Prompt, Reply
from pipeline.source import Source, open_source

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
[output]
path = "out.parquet"
"""
TABLES = {"parquet": "in-*.parquet", "csv": "in.csv"}
AMOUNTS = 30  # that a forecast counts for a document


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kind in TABLES:
            for task in ("generate", "measure"):
                subprocess.run([sys.executable, __file__, str(rows), kind, task, folder], check=True)
            for path in Path(folder).iterdir():
                path.unlink()


def texts(rows: int) -> Iterator[str | None]:
    choose = random.Random(rows)
    corpora = [  # with bytes per character
        (corpus(english_sentence, 2_000_000), 1),
        (corpus(chinese_sentence, 4_000_000), 3),
        (CODE * 10_000, 1),
    ]
    text = None
    for _ in range(rows):
        fate = choose.random()
        if fate < 0.005:
            yield None
        elif fate < 0.015:
            yield text
        else:
            whole, width = choose.choices(corpora, (60, 25, 15))[0]
            start = choose.randrange(len(whole) // 2)
            text = whole[start : start + 1 + int(choose.lognormvariate(7.1, 1)) // width]
            yield text


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


def measure(rows: int, kind: str, folder: Path) -> None:
    path = folder / "job.toml"
    path.write_text(JOB.format(path=folder / TABLES[kind]))
    job = load(path)
    size = sum(file.stat().st_size for file in folder.glob("in*")) / 1e6
    print(f"{rows:,} rows, {size:,.0f} MB of {kind} (peak {peak_mb():,.0f} MB before it is opened)")
    started = time.perf_counter()
    source = open_source(job.spec.input.path, id="id", text="text", columns=job.columns)
    source.check()
    assert source.count() == rows
    started = tell("check and count", started)
    found = survey.survey(source, rows)
    started = tell(f"survey: {int(found.sizes.sum()) / rows:,.0f} bytes a row", started)
    listed = survey.listing(source, found)
    started = tell(f"listing: {listed.repeats:,} repeats, {listed.empty:,} empty", started)
    picks = survey.pick(found, None, survey.WHOLE_ROWS, survey.WHOLE_BYTES)
    if not picks.whole:
        picks = survey.pick(found, None, survey.SAMPLE_ROWS, survey.SAMPLE_BYTES)
    started = tell(f"pick {len(picks.numbers):,} rows, {int(picks.sizes.sum()) / 1e6:,.0f} MB", started)
    seen = sum(1 for batch in survey.documents(source, picks) for _ in batch)
    started = tell(f"read {seen:,} documents", started)
    expansion = anyio.run(look, source, job, picks)
    tell("read, run their flows, expand", started)
    tokens, width = expansion.totals()["tokens"], expansion.half_widths()["tokens"]
    print(f"    {tokens:,.0f} input tokens ± {width / tokens:.2%}\n", flush=True)


async def look(source: Source, job: Job, picks: survey.Picks) -> Expansion[str]:
    """The flow of each picked row over replies that say nothing."""
    expansion: Expansion[str] = Expansion(picks.populations, ["tokens"])
    others = {f"amount {number}": 1.0 for number in range(AMOUNTS - 1)}
    reply = Reply("", "ok")

    async def predicted(prompt: Prompt) -> Reply:
        return reply

    made = (document for batch in survey.documents(source, picks) for document in batch)
    for document, size_bytes, stratum in zip(made, picks.sizes, picks.strata, strict=True):
        answer = await flows.run(document, job, predicted)
        expansion.add(stratum, size_bytes, {"tokens": answer.input_tokens_est, **others})
    return expansion


def tell(name: str, started: float) -> float:
    now = time.perf_counter()
    print(f"    {name:48} {now - started:>7.2f} s    peak {peak_mb():,.0f} MB", flush=True)
    return time.perf_counter()


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak from before exec
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    count = int(sys.argv[1]) if sys.argv[1:] else 100_000
    if sys.argv[2:]:
        {"generate": generate, "measure": measure}[sys.argv[3]](count, sys.argv[2], Path(sys.argv[4]))
    else:
        main(count)
