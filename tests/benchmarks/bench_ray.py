"""3,000 RPM by three workers on a Ray of this machine, in real time, against an emulator with a sliding log.

`python tests/benchmarks/bench_ray.py [seconds [workers [ray|here]]]`; 70 s by default, so that a window's edge is
passed. Needs the extra `ray`, but for `here`: processes instead. Target: at least 98.5 %, 0 refusals.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import served, stats
from test_on_ray import below

_SMALL = "import pipeline.fleet.shards as shards; shards.LEAST_ROWS = 500"
RPM = 3_000
LATENCY_S = 0.2
JOB = f"""
[input]
path = "rows.parquet"
id = "id"
[prompt]
template = "Say {{{{ word }}}}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 50
[limits]
rpm = {RPM}
tpm = 0
[output]
path = "said.parquet"
"""


def peak_mb(pid: int) -> int:
    """Most memory that a process has had; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def main(seconds: float = 70.0, workers: int = 3, where: str = "ray") -> None:
    rows = round(RPM / 60 * (seconds + 15))
    with (
        tempfile.TemporaryDirectory() as folder,
        served(rpm=RPM, algorithm="log", latency_s=LATENCY_S, latency_jitter_s=LATENCY_S, log_size=2 * rows) as url,
    ):
        here = Path(folder)
        pl.DataFrame({"id": range(rows), "word": [f"word {n}" for n in range(rows)]}).write_parquet(
            here / "rows.parquet"
        )
        (here / "job.toml").write_text(JOB)
        keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "AQ.bench", "RAY_ADDRESS": "local"}
        flags = ["--on", "ray"] if where == "ray" else []
        patched = f"{_SMALL}; from pipeline.__main__ import start; start()"
        command = [
            sys.executable,
            "-c",
            patched,
            "run",
            "job.toml",
            "--yes",
            "--json",
            *flags,
            "--workers",
            str(workers),
        ]
        began = time.monotonic()
        driver = subprocess.Popen(command, cwd=here, env={**os.environ, **keyed}, stdout=subprocess.PIPE)
        peaks: dict[int, int] = {}
        at_work: set[int] = set()
        while driver.poll() is None:
            there = below(driver.pid)
            at_work |= {pid for pid, what in there.items() if what.startswith("ray::Member") or "fleet.serving" in what}
            peaks |= {pid: max(peaks.get(pid, 0), peak_mb(pid)) for pid in (driver.pid, *there)}
            time.sleep(1.0)
        told = json.loads(driver.communicate()[0])
        seen = stats(url, log=True)
    came = sorted(each["at"] for each in seen["log"])
    sent = sum(at < came[0] + seconds for at in came)
    rate = sent / seconds * 60
    print(
        f"{workers} workers: {sent:,} requests in {seconds:.0f} s = {rate:,.0f} a minute ({rate / RPM:.2%} of {RPM:,})"
    )
    print(
        f"refused: {seen['rate_limited']}; {told['ok']:,} of {rows:,} rows ok; {time.monotonic() - began:.0f} s in all"
    )
    others = [most for pid, most in peaks.items() if pid not in at_work and pid != driver.pid]
    print(
        f"at their peak: driver {peaks[driver.pid]} MB, workers {[peaks[pid] for pid in sorted(at_work)]} MB,", end=" "
    )
    print(f"{len(others)} processes of Ray {sum(others)} MB together")


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((float, int, str), sys.argv[1:], strict=False)))
