"""The engine alone: an in-process provider that answers at once, so that everything else is what is measured.

    python tests/benchmarks/bench_engine.py [rows] [--sorted | --answered] [--interim | --share | --no-interim] [-v]

Rows of 1 kB, one core, plan, journal, parts and export included. Prints rows/s and the peak of memory. With `--sorted`
rows grow from 0.2 to 1.8 kB from the first to the last, so that the table is read in two places at once. With
`--answered` rows have 0.25 kB and all but the last 400,000 lie answered in sealed parts when the run starts,
written by another process: what grows with rows (check of ids, outcomes, index of contents, plan, export, report) is
seen at millions of them in minutes. They are not made by the network, the dispatcher or the flows. With `--interim` the
output is written half of the time that the run takes, 25 times as much as its share; with `--share` for its share of
2 %, but from the first second on and not only after five minutes; with `--no-interim` never. How much of the CPU was
that of the threads that write it is told, other work of theirs included.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import anyio
import orjson
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asking import Stub, opening_of

from pipeline.job import load
from pipeline.plan import Plan
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import Reply, Usage
from pipeline.run import interim, prepare, run
from pipeline.run.engine import Monitor
from pipeline.run.output import replaced
from pipeline.store.place import Counted
from pipeline.store.run import SEAL_ROWS, RunStore
from pipeline.targets import Target

ANSWER = "An answer of some twenty words, as a short summary of one row would be, neither empty nor long. " * 2
RAW = orjson.dumps(
    {
        "candidates": [{"content": {"parts": [{"text": ANSWER}], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 250, "candidatesTokenCount": 40, "totalTokenCount": 290},
        "modelVersion": "gemini-3.5-flash-lite",
    }
)


LEFT = 400_000
"""Rows to be answered with `--answered`: so many that what calls take in memory has come to its height."""

INPUT = """
import sys, polars as pl
filler = "the market report of the quarter shows that costs were lower than planned and " * 24
rows, least, most = map(int, sys.argv[1:])
for start in range(0, rows, 50_000):
    numbers = range(start, min(start + 50_000, rows))
    texts = [f"{number} {filler}"[:least + (most - least) * number // rows] for number in numbers]
    table = pl.DataFrame({"id": [f"r{number}" for number in numbers], "text": texts})
    table.write_parquet(f"in-{start:09}.parquet", row_group_size=20_000)
"""


_PARTS = """
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
import polars as pl
from pipeline.records import Result, Usage
from pipeline.store import parts, seals

directory, rows, height, answer = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
usage, cost, at = Usage(250, output_tokens=40), Decimal("0.0001"), datetime.now(UTC)
result = Result(0, "", "ok", answer, usage=usage, cost_usd=cost, calls=1, chunks=1, latency_s=1.0, finished_at=at)
outcome = parts.results_frame([result])
shared = outcome.select(name for name in outcome.columns if name in parts.CALLS_SCHEMA)
call = pl.DataFrame(schema=parts.CALLS_SCHEMA)
call = pl.concat([call, shared.with_columns(step=pl.lit("answer"), paid=True)], how="diagonal_relaxed")
for number in range(rows // height):
    row = pl.int_range(number * height, (number + 1) * height, eager=True).alias("row")
    for name, one in (("calls", call), ("results", outcome)):
        frame = one.select(pl.all().repeat_by(height).explode()).with_columns(row, ("r" + row.cast(str)).alias("key"))
        if name == "calls":
            frame = frame.with_columns(fingerprint=pl.col("key").str.zfill(32), generation=0, lane=pl.lit("standard"))
            frame = frame.with_columns(usage_estimated=False, at_most_usd=0)
        frame = frame.select(one.columns).cast(dict(one.schema))
        seals.record(directory, [parts.write_part(frame, directory / name, number + 1)])
"""


class Instant(Stub):
    """Answers at once, always the same."""

    async def generate(self, prompt: Prompt, target: Target) -> Reply:
        return Reply(
            ANSWER,
            "ok",
            finish_reason="STOP",
            usage=Usage(250, output_tokens=40),
            model="gemini-3.5-flash-lite",
            raw=RAW,
            endpoint=target.endpoint,
            finished_at=time.time(),
        )


async def quiet(monitor: Monitor) -> None:
    while "-v" in sys.argv:
        await anyio.sleep(2)
        print(monitor.done, f"{peak_mb():.0f} MB", flush=True)
    await anyio.sleep_forever()


def peak_mb() -> float:
    """The process's own: what `getrusage` tells is that of its parent until it has had more."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def writing_s() -> float:
    """CPU of this thread and of those of polars, which write the output."""
    total = time.thread_time()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # it has ended
            name, _, times = (task / "stat").read_text().partition(") ")
            if any(one in name for one in ("polars", "async-executor", "tokio")):
                total += sum(map(int, times.split()[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


def answered(prepared: prepare.Session, rows: int) -> int:
    """Write sealed parts of all rows but some `LEFT`, in a process of its own; returns how many are left."""
    store = RunStore(prepared.directory, parse_stored)
    store.open(prepared.manifest())
    store.close()
    parts = max(rows - LEFT, 0) // SEAL_ROWS
    command = [sys.executable, "-c", _PARTS, str(prepared.directory), *map(str, (rows - LEFT, SEAL_ROWS)), ANSWER]
    subprocess.run(command, check=True)
    return rows - parts * SEAL_ROWS


def main(rows: int, in_order: bool, mostly_answered: bool) -> None:
    for flag, every_s, share in (("--interim", 0.0, 1.0), ("--share", 0.0, interim.SHARE), ("--no-interim", inf, 1.0)):
        if flag in sys.argv:
            interim.EVERY_S, interim.ROW_S, interim.SHARE = every_s, 0.0, share
    written: list[float] = []

    def timed(*arguments: Any) -> Counted:
        began = writing_s()
        try:
            return replaced(*arguments)
        finally:
            written.append(writing_s() - began)

    vars(interim)["replaced"] = timed
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"XDG_STATE_HOME": folder, "GEMINI_API_KEY": "AQ.bench"}
        lengths = (200, 1800) if in_order else (250, 250) if mostly_answered else (1000, 1000)
        command = [sys.executable, "-c", INPUT, *map(str, (rows, *lengths))]
        subprocess.run(command, check=True)  # so that its memory is not ours
        Path("job.toml").write_text(
            '[input]\npath = "in-*.parquet"\nid = "id"\n[prompt]\ntemplate = "Summarize: {{ text }}"\n'
            '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 200\n'
            '[limits]\nrpm = 0\ntpm = 0\n[output]\npath = "out.parquet"\n'
        )
        base = peak_mb()
        began, cpu = time.monotonic(), time.process_time()
        prepared = prepare.prepare(load(Path("job.toml")), prepare.Options())
        if mostly_answered:
            print(f"prepared: peak {peak_mb():.0f} MB", flush=True)
            left = answered(prepared, rows)
        else:
            left = rows
        plans: list[Plan] = []

        def confirm(plan: Plan, *_: object) -> None:
            plans.append(plan)
            if mostly_answered:
                print(f"opened and planned: peak {peak_mb():.0f} MB", flush=True)

        ended = anyio.run(
            run.run, prepared, confirm, quiet, opening_of(Instant()), backend_options={"use_uvloop": True}
        )
        seconds, spent = time.monotonic() - began, time.process_time() - cpu
        peak = peak_mb()
        assert (plans[0].order is not None) == in_order
        back = pl.scan_parquet("out.parquet").filter(pl.col("status") == "ok").select(pl.len()).collect().item()
        assert back == rows == ended.summary.calls, (back, ended.summary.calls)
        print(
            f"{rows:,} rows ({left:,} now): {rows / seconds:,.0f} rows/s, {spent / rows * 1e6:.0f} us CPU a row, "
            f"peak {peak:.0f} MB ({base:.0f} MB before the run), {seconds:.0f} s"
        )
        if written:
            print(f"{len(written)} outputs meanwhile: {sum(written):.1f} s CPU, {sum(written) / spent:.2%} of it")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
    main(numbers[0] if numbers else 100_000, "--sorted" in sys.argv, "--answered" in sys.argv)
