"""What workers on one machine cost and bring: CPU of a call in one process, and with `--workers N`, by who takes it.

`python tests/benchmarks/bench_workers.py [rows [rounds [workers [concurrency]]]]`: a real run over a socket against an
emulator without limits that answers after 0.2 s, `concurrency` in flight at most: by default so many that the CPU is
what binds, 0 for what a run has by itself. A call's CPU is the slope from a tenth of the rows to all of them, without
that of the emulator; alternated. How fast it goes is told too, of a machine that has the emulator to carry as well.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import served
from test_on_ray import below

_TICKS = os.sysconf("SC_CLK_TCK")
JOB = """
[input]
path = "rows.parquet"
id = "id"
[prompt]
template = "Summarize: {{ text }}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 200
[output]
path = "said.parquet"
[limits]
rpm = 0
tpm = 0
"""
TEXT = "the market report of the quarter shows that costs were lower than planned and " * 13


def cpu_s(pid: int) -> float:
    """User and system CPU that a process has taken; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:13])) / _TICKS


def peak_mb(pid: int) -> float:
    """Most memory that it has had; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


class Ran(NamedTuple):
    cpu_s: tuple[float, float]  # of what leads, and of its workers
    rate: float  # calls a second
    peaks_mb: list[float]


def run(url: str, rows: int, workers: int, concurrency: int) -> Ran:
    """One run to its output."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        table = pl.DataFrame({"id": range(rows), "text": [f"{number} {TEXT}" for number in range(rows)]})
        table.write_parquet(here / "rows.parquet", row_group_size=500)
        (here / "job.toml").write_text(JOB + (f"concurrency = {concurrency}\n" if concurrency else ""))
        keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "AQ.bench", "XDG_STATE_HOME": folder}
        flags = ["--workers", str(workers)] if workers else []
        command = [sys.executable, "-m", "pipeline", "run", "job.toml", "--yes", "--json", *flags]
        taken: dict[int, float] = {}
        peaks: dict[int, float] = {}
        driver = subprocess.Popen(
            command, cwd=here, env={**os.environ, **keyed}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        while driver.poll() is None:
            for pid in (driver.pid, *below(driver.pid)):
                taken[pid] = max(taken.get(pid, 0.0), cpu_s(pid))
                peaks[pid] = max(peaks.get(pid, 0.0), peak_mb(pid))
            time.sleep(0.05)
        assert driver.stdout
        told = json.loads(driver.stdout.read())
        assert told["ok"] == told["calls"] == rows, told
        spent_s = taken.pop(driver.pid), sum(taken.values())
        return Ran(spent_s, rows / told["seconds"], [peaks.pop(driver.pid), *peaks.values()])


def slopes(rows: int, rounds: int, workers: int, concurrency: int) -> Iterator[tuple[int, list[float]]]:
    """For each way in turn: µs of CPU a call of what leads and of its workers, and calls a second."""
    for _ in range(rounds):
        for number in (0, 1, workers):
            with served(latency_s=0.2) as url:
                few, many = (run(url, size, number, concurrency) for size in (rows // 10, rows))
            calls = rows - rows // 10
            lead, work = ((many.cpu_s[at] - few.cpu_s[at]) / calls * 1e6 for at in (0, 1))
            most = [round(mb) for mb in many.peaks_mb]
            print(
                f"{number or 'no'} workers: {lead:.0f} µs a call leads, {work:.0f} µs works; {few.cpu_s[0]:.1f} and"
                f" {few.cpu_s[1]:.1f} s of few rows; {many.rate:,.0f} calls/s; peaks {most} MB",
                flush=True,
            )
            yield number, [lead, work, many.rate]


def main(rows: int = 10_000, rounds: int = 3, workers: int = 2, concurrency: int = 600) -> None:
    found: dict[int, list[list[float]]] = {}
    for number, seen in slopes(rows, rounds, workers, concurrency):
        found.setdefault(number, []).append(seen)
    for number, several in found.items():
        columns = list(zip(*several, strict=True))
        columns.insert(2, tuple(lead + work for lead, work, _ in several))
        names = ("what leads", "workers", "together", "calls/s")
        told = (
            f"{name} {median(column):,.0f} ({min(column):,.0f}–{max(column):,.0f})"
            for name, column in zip(names, columns, strict=True)
        )
        print(f"{number or 'no'} workers, µs CPU a call: {', '.join(told)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
