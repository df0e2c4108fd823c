"""What grows with the rows of a run, without the calls: memory of checking, opening, exporting and reporting it.

    python tests/benchmarks/bench_rows.py [rows ...]

For each number of rows: a table of short texts with an `id`, and a run directory whose parts say that all rows are
done; then `pipeline run` as a process of its own, which checks the ids, takes in the parts, makes the plan, writes the
output and sums up. What a call takes while it is made does not grow with the rows: `bench_engine.py` shows that.
Prints the peak of memory, and between two numbers of rows the bytes that one more row takes.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import anyio
import orjson
import polars as pl
from bench_engine import instant, quiet

from pipeline import running, session
from pipeline.job import load
from pipeline.providers.gemini import parse_reply
from pipeline.records import Params, Prompt, Result, Usage
from pipeline.store import parts, seals
from pipeline.store.lines import kept
from pipeline.store.run import SEAL_ROWS, RunStore

ANSWER = "An answer of some twenty words, as a short summary of one row would be, neither empty nor long. "
RAW = orjson.dumps({"candidates": [{"content": {"parts": [{"text": ANSWER}]}, "finishReason": "STOP"}]})
JOB = (
    '[input]\npath = "in.parquet"\nid = "id"\n[prompt]\ntemplate = "Say {{ text }}"\n'
    '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 200\n[output]\npath = "out.parquet"\n'
)


def make(rows: int) -> None:
    """The table, and the run directory in which all of it is done."""
    number = pl.int_range(rows, eager=True).alias("id")
    pl.DataFrame({"id": number.cast(pl.String), "text": number.cast(pl.String)}).write_parquet(
        "in.parquet", row_group_size=50_000
    )
    Path("job.toml").write_text(JOB)
    prepared = session.prepare(load(Path("job.toml")), session.Options())
    store = RunStore(prepared.directory, parse_reply)
    store.open(prepared.manifest())
    store.close()
    cost, at = Decimal("0.000287"), datetime.now(UTC)
    usage = Usage(900, output_tokens=80)
    prompt = Prompt(0, "0", "answer", "", Params("gemini-3.5-flash-lite"), 900, "0")
    call = parts.calls_frame([kept(prompt, parse_reply(RAW), b"")], {0: ANSWER})
    outcome = parts.results_frame(
        [Result(0, "0", "ok", ANSWER, usage=usage, cost_usd=cost, calls=1, chunks=1, finished_at=at)]
    )
    first = parts.newest(prepared.directory / "results") + 100
    for part, start in enumerate(range(0, rows, SEAL_ROWS), first):
        row = pl.int_range(start, min(start + SEAL_ROWS, rows), eager=True).alias("row")
        for name, one in (("calls", call), ("results", outcome)):
            own = {"row": row, "key": row.cast(pl.String).alias("key"), "fingerprint": row.cast(pl.String)}
            frame = one.drop(own.keys() & set(one.columns)).select(pl.all().repeat_by(len(row)).explode())
            columns = {name: series for name, series in (frame.to_dict() | own).items() if name in one.columns}
            whole = pl.DataFrame(columns).select(one.columns).cast(dict(one.schema))
            seals.record(prepared.directory, [parts.write_part(whole, prepared.directory / name, part)])


def measure() -> None:
    """Run the job, all of which is done; print rows and the peak of memory in bytes."""
    running.open_provider = instant
    began = time.monotonic()
    prepared = session.prepare(load(Path("job.toml")), session.Options())
    ended = anyio.run(running.run, prepared, lambda *_: None, quiet, backend_options={"use_uvloop": True})
    assert ended.exit_code == 0 and ended.summary.outcomes["ok"] == prepared.rows, ended
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(prepared.rows, peak, round(time.monotonic() - began))


def main(sizes: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"XDG_STATE_HOME": folder, "GEMINI_API_KEY": "AQ.bench"}
            for step in ("make", "measure"):
                command = [sys.executable, __file__, step, str(rows)]
                done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
        counted, peak, seconds = map(int, done.stdout.split())
        seen.append((counted, peak))
        print(f"{counted:,} rows: peak {peak / 2**20:.0f} MB, {seconds} s", flush=True)
    for (fewer, low), (more, high) in pairwise(seen):
        print(f"{fewer:,} to {more:,} rows: {(high - low) / (more - fewer):.1f} bytes a row")


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(int(sys.argv[2]))
    elif sys.argv[1:2] == ["measure"]:
        measure()
    else:
        main([int(argument) for argument in sys.argv[1:]] or [1_000_000, 3_000_000, 6_000_000])
