"""`pipeline export` of a run that is wholly answered: seconds, CPU and memory by format.

    python tests/benchmarks/bench_export.py [rows, default 1_000_000]

Rows of 1 kB whose text is in the table too; a process for each format.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_engine

from pipeline.job import load
from pipeline.run import prepare
from pipeline.run.exporting import view

_JOB = """
[input]
path = "in-*.parquet"
id = "id"
[prompt]
template = "Summarize: {{ text }}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 200
[output]
path = "out.parquet"
"""


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"XDG_STATE_HOME": folder, "GEMINI_API_KEY": "AQ.bench"}
        subprocess.run([sys.executable, "-c", bench_engine.INPUT, str(rows), "1000", "1000"], check=True)
        Path("job.toml").write_text(_JOB)
        bench_engine.LEFT = 0
        bench_engine.answered(prepare.prepare(load(Path("job.toml")), prepare.Options()), rows)
        for name in ("table.parquet", "table.csv", "table.jsonl"):
            subprocess.run([sys.executable, __file__, "--one", name], check=True)


def one(name: str) -> None:
    began, cpu = time.monotonic(), time.process_time()
    counted = view(Path("runs/job")).put(Path(name), overwrite=False)
    seconds, spent = time.monotonic() - began, time.process_time() - cpu
    peak = bench_engine.peak_mb()
    print(f"{name:14} {counted.finished:,} rows: {seconds:.1f} s, {spent:.1f} s CPU, peak {peak:.0f} MB", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)
