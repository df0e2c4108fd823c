# ruff: noqa: E402  the allocator is told how to behave before polars is there
"""What leads a run by several workers, up to its first order: time, CPU and memory of each step, at so many rows.

    python tests/benchmarks/bench_driver.py [rows] [--ids] [--begun] [--small] [--json]

A Parquet table of short rows, some 45 bytes each, in files of 2 M rows; nothing is sent. Memory that is free is given
back at once, so that the peak of a step is what it takes; `--json` prints peaks alone, in bytes above that of before.
With `--begun` every shard has its last row answered already, and is open again. With
`--small` all that is worked on at a time is a sixteenth, so that what grows with the rows is seen at few.
"""

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

_EXACT = {"_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0,narenas:1", "POLARS_MAX_THREADS": "1"}
if __name__ == "__main__" and "_RJEM_MALLOC_CONF" not in os.environ:
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _EXACT)

import anyio
import polars as pl

from pipeline import plan, spill
from pipeline.fleet import shards
from pipeline.fleet.shards import cut
from pipeline.fleet.standing import shard_session, standing
from pipeline.job import load
from pipeline.plan import survey
from pipeline.plan.planner import BRIEF
from pipeline.process import give_back_memory
from pipeline.providers.stored import parse_stored
from pipeline.records import Result, Usage
from pipeline.run import prepare
from pipeline.run.planning import apart, basis, look
from pipeline.run.run import note_rows
from pipeline.store import digests
from pipeline.store.run import RunStore
from pipeline.store.units import Shard

T = TypeVar("T")

_FILE_ROWS = 2_000_000
_JOB = """
[input]
path = "table/*.parquet"
text = "text"
[prompt]
template = "Say it shorter: {{ text }}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 50
[output]
path = "out/"
"""


def write_table(folder: Path, rows: int) -> None:
    folder.mkdir()
    for start in range(0, rows, _FILE_ROWS):
        row = pl.int_range(start, min(start + _FILE_ROWS, rows), eager=True)
        content = row.hash(7)
        said = "review " + (content % 100_000_000).cast(pl.String) + " of product " + (content % 977).cast(pl.String)
        table = pl.DataFrame({"id": "row-" + row.cast(pl.String), "text": said})
        table.write_parquet(folder / f"{start:012}.parquet", row_group_size=250_000)


def of_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


class Steps:
    """Measured one after the other; `peaks` are bytes above what the process had before the first."""

    def __init__(self, is_told: bool) -> None:
        self._is_told = is_told
        self.peaks: dict[str, int] = {}
        self._reset()
        self._base = of_status("VmRSS")

    def _reset(self) -> None:
        gc.collect()
        give_back_memory()
        Path("/proc/self/clear_refs").write_text("5")

    def __call__(self, name: str, does: Callable[[], T]) -> T:
        self._reset()
        wall, cpu = time.perf_counter(), time.process_time()
        found = does()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.peaks[name] = of_status("VmHWM") - self._base
        self._reset()
        if self._is_told:
            peak, kept = self.peaks[name] / 2**20, (of_status("VmRSS") - self._base) / 2**20
            print(f"{name:12} {wall:7.1f} s {cpu:7.1f} s CPU   peak {peak:+6.1f} MB   kept {kept:+6.1f} MB", flush=True)
        return found


def divide(by: int) -> None:
    survey._SLICE_ROWS //= by
    survey._GROUP_ROWS //= by
    shards.MOST_ROWS //= by
    spill._IN_MEMORY_BYTES //= by
    digests.MOST_ROWS //= by


def main() -> None:
    rows = next((int(float(each)) for each in sys.argv[1:] if not each.startswith("-")), 1_000_000)
    if "--small" in sys.argv:
        divide(16)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_table(Path("warm"), 300_000)
        text = _JOB.replace("text =", 'id = "id"\ntext =', 1) if "--ids" in sys.argv else _JOB
        Path("warm.toml").write_text(text.replace("table/", "warm/"))
        Path("job.toml").write_text(text)
        lead("warm.toml", Steps(False))  # what is loaded and allocated once
        write_table(Path("table"), rows)
        steps = Steps("--json" not in sys.argv)
        lead("job.toml", steps)
        if "--json" in sys.argv:
            print(json.dumps(steps.peaks))
        os.chdir("/")


def begin(session: prepare.Session, cut_up: list[Shard]) -> None:
    for shard in cut_up:
        store = RunStore(shard.directory, parse_stored)
        store.open(shard_session(session, shard, shard.rows).manifest())
        store.append_result(Result(row=shard.rows - 1, key="", status="ok", response="said", usage=Usage(1)))
        store.close()


def lead(job_file: str, steps: Steps) -> None:
    job = load(Path(job_file))
    session = steps("checks", lambda: prepare.prepare(job, prepare.Options(offline=True)))
    store = RunStore(session.directory, parse_stored)
    store.open(session.manifest())
    cut_up = steps("cut", lambda: cut(session, 2))
    if "--begun" in sys.argv:
        begin(session, cut_up)
    stands = steps("standing", lambda: standing(session, cut_up, parse_stored))
    found = steps("survey", lambda: anyio.run(look, session))
    steps("noted", lambda: note_rows(session, found))
    firsts = [shard.first_row for shard in cut_up]
    by_shard, _ = steps("apart", lambda: apart(session, found, stands.rows, firsts))
    given = steps("basis", lambda: anyio.run(basis, session, stands.rows, stands.bought, BRIEF, by_shard))
    steps("plan", lambda: anyio.run(plan.make, given, datetime.now(UTC)))
    steps("left", lambda: stands.left)
    stands.close()
    store.close()


if __name__ == "__main__":
    main()
