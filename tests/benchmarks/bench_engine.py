"""The engine alone: an in-process provider that answers at once, so that everything else is what is measured.

    python tests/benchmarks/bench_engine.py [rows] [--sorted] [-v]

Rows of 1 kB, one core, plan, journal, parts and export included. Prints rows/s and the peak of memory. With `--sorted`
rows grow from 0.2 to 1.8 kB from the first to the last, so that the table is read in two places at once.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import orjson
import polars as pl

from pipeline import running, session
from pipeline.engine import Monitor
from pipeline.job import Job, load
from pipeline.plan import Plan
from pipeline.providers.gemini import parse_reply
from pipeline.records import Prompt, Reply, Usage

ANSWER = "An answer of some twenty words, as a short summary of one row would be, neither empty nor long. " * 2
RAW = orjson.dumps(
    {
        "candidates": [{"content": {"parts": [{"text": ANSWER}], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 250, "candidatesTokenCount": 40, "totalTokenCount": 290},
        "modelVersion": "gemini-3.5-flash-lite",
    }
)


_INPUT = """
import sys, polars as pl
filler = "the market report of the quarter shows that costs were lower than planned and " * 24
rows, least, most = map(int, sys.argv[1:])
for start in range(0, rows, 50_000):
    numbers = range(start, min(start + 50_000, rows))
    texts = [f"{number} {filler}"[:least + (most - least) * number // rows] for number in numbers]
    pl.DataFrame({"text": texts}).write_parquet(f"in-{start:09}.parquet", row_group_size=20_000)
"""


class Instant:
    """Answers at once, always the same."""

    endpoint = "instant"

    async def generate(self, prompt: Prompt) -> Reply:
        return Reply(
            ANSWER,
            "ok",
            finish_reason="STOP",
            usage=Usage(250, output_tokens=40),
            model="gemini-3.5-flash-lite",
            raw=RAW,
            endpoint=self.endpoint,
            finished_at=time.time(),
        )

    async def is_emulator(self) -> bool:
        return False

    def parse(self, raw: bytes) -> Reply:
        return parse_reply(raw)

    async def count_tokens(self, prompt: Prompt) -> int:
        return prompt.input_tokens_est


@asynccontextmanager
async def instant(job: Job, offline: bool) -> AsyncIterator[Instant]:
    yield Instant()


async def quiet(monitor: Monitor) -> None:
    while "-v" in sys.argv:
        await anyio.sleep(2)
        print(monitor.done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MB", flush=True)
    await anyio.sleep_forever()


def main(rows: int, in_order: bool) -> None:
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    running.open_provider = instant
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"XDG_STATE_HOME": folder, "GEMINI_API_KEY": "AQ.bench"}
        lengths = (200, 1800) if in_order else (1000, 1000)
        command = [sys.executable, "-c", _INPUT, *map(str, (rows, *lengths))]
        subprocess.run(command, check=True)  # so that its memory is not ours
        Path("job.toml").write_text(
            '[input]\npath = "in-*.parquet"\n[prompt]\ntemplate = "Summarize: {{ text }}"\n'
            '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 200\n'
            '[limits]\nrpm = 0\ntpm = 0\n[output]\npath = "out.parquet"\n'
        )
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began, cpu = time.monotonic(), time.process_time()
        prepared = session.prepare(load(Path("job.toml")), session.Options())
        plans: list[Plan] = []
        ended = anyio.run(
            running.run, prepared, lambda plan, *_: plans.append(plan), quiet, backend_options={"use_uvloop": True}
        )
        seconds, spent = time.monotonic() - began, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        assert (plans[0].order is not None) == in_order
        back = pl.scan_parquet("out.parquet").filter(pl.col("status") == "ok").select(pl.len()).collect().item()
        assert back == rows == ended.summary.calls, (back, ended.summary.calls)
        print(
            f"{rows:,} rows: {rows / seconds:,.0f} rows/s, {spent / rows * 1e6:.0f} us CPU a row, peak {peak:.0f} MB "
            f"({base:.0f} MB before the run), {seconds:.0f} s"
        )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
    main(numbers[0] if numbers else 100_000, "--sorted" in sys.argv)
