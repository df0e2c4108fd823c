"""The engine alone: an in-process provider that answers at once, so that everything else is what is measured.

    python tests/benchmarks/bench_engine.py [rows]

Rows of 1 kB, one core, plan, journal, parts and export included. Prints rows/s and the peak of memory.
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
filler = "the market report of the quarter shows that costs were lower than planned and " * 13
rows = int(sys.argv[1])
for start in range(0, rows, 50_000):
    texts = [f"{start + number} {filler}"[:1000] for number in range(min(50_000, rows - start))]
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


def main(rows: int) -> None:
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    running.open_provider = instant
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"XDG_STATE_HOME": folder, "GEMINI_API_KEY": "AQ.bench"}
        subprocess.run([sys.executable, "-c", _INPUT, str(rows)], check=True)  # so that its memory is not ours
        Path("job.toml").write_text(
            '[input]\npath = "in-*.parquet"\n[prompt]\ntemplate = "Summarize: {{ text }}"\n'
            '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 200\n'
            '[limits]\nrpm = 0\ntpm = 0\n[output]\npath = "out.parquet"\n'
        )
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began, cpu = time.monotonic(), time.process_time()
        prepared = session.prepare(load(Path("job.toml")), session.Options())
        ended = anyio.run(running.run, prepared, lambda plan, going: None, quiet, backend_options={"use_uvloop": True})
        seconds, spent = time.monotonic() - began, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        back = pl.scan_parquet("out.parquet").filter(pl.col("status") == "ok").select(pl.len()).collect().item()
        assert back == rows == ended.summary.calls, (back, ended.summary.calls)
        print(
            f"{rows:,} rows: {rows / seconds:,.0f} rows/s, {spent / rows * 1e6:.0f} us CPU a row, peak {peak:.0f} MB "
            f"({base:.0f} MB before the run), {seconds:.0f} s"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100_000)
