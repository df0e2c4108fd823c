"""A whole run over batches before an emulator in another process: memory, CPU, passes over the table, the event loop.

    python tests/benchmarks/bench_batch_run.py [rows, default 100_000] [--live] [--merged] [--csv] [--left] [-v]

Rows of 2 kB. `--live` asks the same rows in standard. `--merged` cuts each in two and merges the answers: a second
round. `--left` hands the batches in, leaves, and starts again: what it takes until the service is asked for them.
Memory and CPU are those of the run's process; how long its loop is held is CPU of that thread, which no other work
on the machine makes longer.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import served, stats

from pipeline.job import load
from pipeline.plan import Plan
from pipeline.providers.batches.gemini import GeminiBatches
from pipeline.run import prepare, run
from pipeline.run.engine import Monitor
from pipeline.run.rounds import Parts, Rounds

_INPUT = """
import sys, polars as pl
rows, kind = int(sys.argv[1]), sys.argv[2]
filler = "the market report of the quarter shows that costs were lower than planned. " * 28
for start in range(0, rows, 50_000):
    numbers = range(start, min(start + 50_000, rows))
    table = pl.DataFrame({"id": [f"r{n}" for n in numbers], "text": [f"{n} {filler}"[:2000] for n in numbers]})
    if kind == "csv":
        with open("in.csv", "ab") as file:
            table.write_csv(file, include_header=not start)
    else:
        table.write_parquet(f"in-{start:09}.parquet", row_group_size=20_000)
"""
LOOK_S = 0.005


def job(rows: int, url: str, flags: list[str]) -> str:
    merged = '[chunk]\nmax_tokens = 300\n[reduce]\ntemplate = "Merge: {{ parts }}"\n' if "--merged" in flags else ""
    return (
        f'[input]\npath = "{"in.csv" if "--csv" in flags else "in-*.parquet"}"\nid = "id"\ntext = "text"\n'
        f'[prompt]\ntemplate = "Summarize: {{{{ text }}}}"\n{merged}'
        f'[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 200\n'
        f'lane = "{"standard" if "--live" in flags else "batch"}"\n'
        f"[limits]\nrpm = 0\ntpm = 0\n{'' if '--live' in flags else 'batch_tokens = 100_000_000_000'}\n"
        f'[endpoint]\nbase_url = "{url}"\n[output]\npath = "out.parquet"\n'
    )


class Noted:
    """How often a function is called, and the CPU of its thread that it takes: in all, and at most at once."""

    def __init__(self, owner: type, name: str) -> None:
        self.name, self.calls, self.cpu_s, self.longest_s = f"{owner.__name__}.{name}", 0, 0.0, 0.0
        inner: Callable[..., Any] = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                took = time.thread_time() - began
                self.calls += 1
                self.cpu_s += took
                self.longest_s = max(self.longest_s, took)

        setattr(owner, name, noted)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.calls:,} times, CPU {self.cpu_s:.2f} s, at most {self.longest_s * 1e3:.0f} ms at once"
        )


class Passes:
    """Passes over the table for rows that are opened: seconds of each, from the first row that is read to the last."""

    def __init__(self) -> None:
        self.took: list[tuple[str, float]] = []
        began: dict[bool, float] = {}
        documents, passed = Rounds.documents, Rounds.passed

        def begin(rounds: Rounds, is_live: bool) -> Any:
            began[is_live] = time.monotonic()
            return documents(rounds, is_live)

        def end(rounds: Rounds, is_live: bool, parts: Parts) -> None:
            self.took.append(("live" if is_live else "batch", time.monotonic() - began[is_live]))
            passed(rounds, is_live, parts)

        Rounds.documents = begin  # type: ignore[method-assign, assignment]
        Rounds.passed = end  # type: ignore[method-assign, assignment]


def memory_mb(field: str = "VmHWM") -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0]) // 1024


async def watch(monitor: Monitor) -> None:
    """Tell how it goes, and how long the loop was held."""
    held: list[float] = []
    told_at = time.monotonic()
    before = time.thread_time()
    try:
        while True:
            await anyio.sleep(LOOK_S)
            now = time.thread_time()
            held.append(now - before)
            before = now
            if "-v" in sys.argv and time.monotonic() > told_at + 5:
                told_at = time.monotonic()
                standing = monitor.batches.standing if monitor.batches else None
                print(f"{monitor.seconds:.0f} s {monitor.done:,} rows {standing} {memory_mb('VmRSS')} MB", flush=True)
    finally:
        longest = " ".join(f"{each * 1e3:.0f}" for each in sorted(held, reverse=True)[:12])
        print(f"the loop was held for at most (ms of CPU): {longest}", flush=True)


def session(rows: int, flags: list[str]) -> None:
    """One session, in a process of its own."""
    noted = [Noted(Rounds, "taken"), Noted(Rounds, "is_due")] if "--live" not in flags else []
    passes = Passes()
    base = memory_mb()
    began, cpu = time.monotonic(), time.process_time()
    first: list[tuple[float, float, int]] = []
    found = GeminiBatches.find_all

    async def asked(self: GeminiBatches) -> Any:
        if not first:
            first.append((time.monotonic() - began, time.process_time() - cpu, memory_mb()))
        return await found(self)

    GeminiBatches.find_all = asked  # type: ignore[method-assign]

    def confirm(plan: Plan, *_: object) -> None:
        print(f"planned after {time.monotonic() - began:.1f} s: peak {memory_mb()} MB", flush=True)

    options = prepare.Options(leave="--leaving" in flags)
    prepared = prepare.prepare(load(Path("job.toml")), options)
    ended = anyio.run(run.run, prepared, confirm, watch, backend_options={"use_uvloop": True})
    if first:
        print("the service is first asked for batches after {:.1f} s (CPU {:.1f} s): peak {} MB".format(*first[0]))
    seconds, spent, calls = time.monotonic() - began, time.process_time() - cpu, ended.summary.calls
    print(f"peak {memory_mb()} MB ({base} MB before the run), {seconds:.0f} s, CPU {spent:.1f} s", end="")
    print(f", {spent / rows * 1e6:.0f} µs a row of {rows:,}; {calls:,} calls, {ended.summary.outcomes}")
    for each in noted:
        print(each)
    opened = [f"{name} {took:.1f}" for name, took in passes.took]
    print(f"passes: {len(opened)}, {sum(took for _, took in passes.took):.0f} s: {', '.join(opened)}", flush=True)


def main(rows: int, flags: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        served(batch=True, batch_pending_s=10.0, batch_run_s=20.0, batch_spread=1.5) as url,
    ):
        os.chdir(folder)
        os.environ |= {"XDG_STATE_HOME": folder, "GEMINI_API_KEY": "AQ.bench"}
        subprocess.run([sys.executable, "-c", _INPUT, str(rows), "csv" if "--csv" in flags else "parquet"], check=True)
        Path("job.toml").write_text(job(rows, url, flags))
        for more in (["--leaving"], []) if "--left" in flags else ([],):
            subprocess.run([sys.executable, __file__, "--session", str(rows), *flags, *more], check=True)
        told = stats(url)["batches"]
        print({name: value for name, value in told.items() if isinstance(value, int | float)})


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
    chosen = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    (session if "--session" in sys.argv else main)(numbers[0] if numbers else 100_000, chosen)
