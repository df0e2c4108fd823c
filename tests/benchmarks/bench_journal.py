"""What keeping every answer costs while it runs, and how soon a half-done run of a million rows sends again.

python tests/benchmarks/bench_journal.py [rows of the half-done run, default 1_000_000]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asking import MODEL, Stub, opening_of
from bench_engine import INPUT
from bench_store import MANIFEST, answered, generate

from pipeline.job import load
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import Reply
from pipeline.run import prepare, run
from pipeline.run.engine import Monitor
from pipeline.store.run import RunStore
from pipeline.targets import Target

RATE = 1_000  # calls a second
CALLS = 15_000
SHARE, START_S, PEAK_MB = 0.08, 10.0, 400.0  # what is promised

_JOB = """
[input]
path = "in-*.parquet"
[prompt]
template = "Summarize: {{ text }}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 200
[limits]
rpm = 0
tpm = 0
[output]
path = "out.parquet"
"""


def main() -> None:
    rows = int(sys.argv[1]) if sys.argv[1:] else 1_000_000
    if sys.argv[2:]:
        {"half": half_done, "go": go_on}[sys.argv[2]](rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(keep, Path(folder) / "run")
        os.environ |= {"XDG_STATE_HOME": folder, "GEMINI_API_KEY": "AQ.bench"}
        subprocess.run([sys.executable, "-c", INPUT, str(rows), "1000", "1000"], check=True, cwd=folder)
        (Path(folder) / "job.toml").write_text(_JOB)
        for step in ("half", "go"):
            subprocess.run([sys.executable, Path(__file__).resolve(), str(rows), step], check=True, cwd=folder)


async def keep(directory: Path) -> None:
    """Append calls and results at a steady rate, synced and sealed beside; tell the share of the loop that it takes."""
    store = RunStore(directory, parse_stored)
    store.open(MANIFEST)
    rows = [answered(row) for row in range(CALLS)]
    busy = 0.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.keep)
        began, cpu = time.perf_counter(), time.process_time()
        for number, (prompt, reply, result) in enumerate(rows):
            if number % 10 == 0:
                await anyio.sleep(max(0.0, began + number / RATE - time.perf_counter()))
            started = time.perf_counter()
            store.append_sent(prompt, MODEL)
            store.append_call(prompt, MODEL, reply)
            store.append_result(result)
            busy += time.perf_counter() - started
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        tasks.cancel_scope.cancel()
    store.close()
    share = busy / seconds
    print(
        f"journal at {CALLS / seconds:,.0f} calls/s: {busy / CALLS * 1e6:.0f} us a call, {share:.1%} of the event loop"
    )
    whole = f"{cpu / CALLS * 1e6:.0f} us CPU a call, {cpu / seconds:.1%} of a core"
    print(f"  with syncing and sealing in their thread: {whole}")
    assert share <= SHARE, "journalling takes more of the event loop than promised"


def half_done(rows: int) -> None:
    """Leave a run directory in which every row of the first half is finished."""
    prepared = prepare.prepare(load(Path("job.toml")), prepare.Options())
    generate(prepared.directory, rows // 2, prepared.manifest())
    store = RunStore(prepared.directory, parse_stored)
    store.open(prepared.manifest())
    store.close()


class Watching(Stub):
    """Ends the process at the first call, and tells how long it took to get there."""

    def __init__(self, began: float) -> None:
        self._began = began

    async def generate(self, prompt: Prompt, target: Target) -> Reply:
        seconds = time.perf_counter() - self._began
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        print(f"half-done run: row {prompt.row:,} sent after {seconds:.1f} s, peak {peak:.0f} MB", flush=True)
        os._exit(0 if seconds < START_S and peak < PEAK_MB else 1)


def go_on(rows: int) -> None:
    """Start the half-done run as `pipeline run` does, until the first call."""
    began = time.perf_counter()

    async def quiet(monitor: Monitor) -> None:
        await anyio.sleep_forever()

    prepared = prepare.prepare(load(Path("job.toml")), prepare.Options())
    anyio.run(
        run.run,
        prepared,
        lambda plan, going, session: None,
        quiet,
        opening_of(Watching(began)),
        backend_options={"use_uvloop": True},
    )


if __name__ == "__main__":
    main()
