"""What the run directory costs: appending beside the journal's thread, sealing, starting on a million finished rows.

python tests/benchmarks/bench_store.py [rows of the big directory, default 1_000_000]
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import anyio
import anyio.lowlevel
import orjson
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asking import MODEL, ask

from pipeline.prompts import Params, Prompt
from pipeline.providers.answers import parse_reply
from pipeline.providers.stored import parse_stored
from pipeline.records import Reply, Result, Usage
from pipeline.report import failures, summarize
from pipeline.store import parts, seals
from pipeline.store.journal import Journal
from pipeline.store.lines import kept
from pipeline.store.manifest import Manifest
from pipeline.store.run import SEAL_ROWS, RunStore

ANSWER = "An answer of about three hundred characters, as a summary in five bullets has it. " * 4
MANIFEST = Manifest("bench", "", "", {}, "", "", "", "gemini-3.5-flash-lite", True, "", "")
PARAMS = Params()
PAIRS = 30_000


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if sys.argv[2:]:
        load(rows, Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as place:
        print(f"{'append call + result, the writer beside it':58} {anyio.run(append, Path(place) / 'run'):>9,.0f} /s")
        print(f"{'  of which the longest time the event loop stood still':58} {stalls(Path(place)):>9.1f} ms")
        for name, seconds in seal(Path(place) / "seal"):
            print(f"{name:58} {seconds * 1000:>9.1f} ms")
        big = Path(place) / "big"
        made = time.perf_counter()
        generate(big, rows)
        print(f"{f'(generating parts of {rows:,} rows)':58} {time.perf_counter() - made:>9.1f} s", flush=True)
        subprocess.run([sys.executable, __file__, str(rows), str(big)], check=True)


def answered(row: int) -> tuple[Prompt, Reply, Result]:
    """One row: what is asked, what comes back, what becomes of it."""
    raw = orjson.dumps(
        {
            "candidates": [{"content": {"role": "model", "parts": [{"text": ANSWER}]}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 900, "candidatesTokenCount": 80, "totalTokenCount": 980},
            "modelVersion": MODEL,
            "responseId": f"r{row}",
        }
    )
    cost = Decimal("0.000287")
    prompt = ask(row, params=PARAMS, tokens=900, fingerprint=f"{row:032x}")
    reply = replace(parse_reply(raw), endpoint="gemini@bench", latency_s=1.2, finished_at=time.time(), cost_usd=cost)
    at = datetime.now(UTC)
    usage = Usage(900, 0, 80)
    result = Result(row, str(row), "ok", ANSWER, usage=usage, cost_usd=cost, calls=1, chunks=1, finished_at=at)
    return prompt, reply, result


async def append(directory: Path, pairs: int = PAIRS, longest: list[float] | None = None) -> float:
    """Rows per second through the journal while it is synced and sealed, as fast as they can be appended."""
    store = RunStore(directory, parse_stored)
    store.open(MANIFEST)
    rows = [answered(row) for row in range(pairs)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.keep)
        started = last = time.perf_counter()
        for number, (prompt, reply, result) in enumerate(rows):
            store.append_call(prompt, MODEL, reply)
            store.append_result(result)
            if number % 16 == 15:
                await store.room()
                await anyio.lowlevel.checkpoint()
            if longest is not None:
                now = time.perf_counter()
                longest[0], last = max(longest[0], now - last), now
        seconds = time.perf_counter() - started
        tasks.cancel_scope.cancel()
    store.close()
    return pairs / seconds


def stalls(place: Path) -> float:
    """Longest gap between two appends, waiting for room left out by staying below two seals, in ms."""
    longest = [0.0]
    anyio.run(append, place / "stalls", 2 * SEAL_ROWS - 1, longest)
    return longest[0] * 1000


def seal(directory: Path) -> list[tuple[str, float]]:
    """Seconds of one seal of `SEAL_ROWS` rows, and of its steps."""
    store = RunStore(directory, parse_stored)
    store.open(MANIFEST)
    rows = [answered(row) for row in range(SEAL_ROWS)]
    for prompt, reply, result in rows:
        store.append_call(prompt, MODEL, reply)
        store.append_result(result)
    size = store._journal.size
    calls = list(store._batch.calls)
    started = time.perf_counter()
    anyio.run(store.seal)
    whole = time.perf_counter() - started
    store.close()
    started = time.perf_counter()
    frame = parts.calls_frame(calls, {})
    framed = time.perf_counter() - started
    parts.write_part(frame, directory, 1)
    written = time.perf_counter() - started - framed
    lines = b"".join(call.line for call in calls)
    journal = Journal(directory / "sync", "")
    journal.append(lines)
    started = time.perf_counter()
    journal.close()
    return [
        (f"seal of {SEAL_ROWS:,} rows, {size / 2**20:.0f} MB of journal", whole),
        ("  calls as columns", framed),
        ("  writing, fsync, rename of the calls part", written),
        (f"sync of {len(lines) / 2**20:.0f} MB at once", time.perf_counter() - started),
    ]


def generate(directory: Path, rows: int, manifest: Manifest = MANIFEST) -> None:
    """Sealed parts of so many finished rows, and a journal of 1,000 calls of unfinished ones."""
    store = RunStore(directory, parse_stored)
    store.open(manifest)
    store.close()
    prompt, reply, result = answered(0)
    call = parts.calls_frame([kept(prompt, MODEL, reply, b"")], {0: ANSWER})
    outcome = parts.results_frame([result])
    for number in range(rows // SEAL_ROWS):
        row = pl.int_range(number * SEAL_ROWS, (number + 1) * SEAL_ROWS, eager=True).alias("row")
        for name, one in (("calls", call), ("results", outcome)):
            frame = one.drop("row").select(pl.all().repeat_by(SEAL_ROWS).explode()).select(row, pl.all())
            seals.record(directory, [parts.write_part(frame.select(one.columns), directory / name, number + 1)])
    store = RunStore(directory, parse_stored)
    store.open(manifest)
    for more in range(rows, rows + 1000):
        prompt, reply, _ = answered(more)
        store.append_call(prompt, MODEL, reply)
    store.close()


def load(rows: int, directory: Path) -> None:
    """Seconds and memory of a start on that directory, in a process of its own."""

    def peak_mb() -> float:
        status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak from before exec
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def tell(name: str, started: float) -> None:
        print(f"{name:58} {time.perf_counter() - started:>9.2f} s    peak {peak_mb():,.0f} MB", flush=True)

    print(f"{'(a process that has only imported the package)':58} {'':>9}      peak {peak_mb():,.0f} MB")
    started = time.perf_counter()
    store = RunStore(directory, parse_stored)
    store.open(MANIFEST)
    tell(f"open a run of {rows:,} finished rows", started)
    assert store.outcomes.count("ok") == rows and store.reply(f"{rows:032x}")
    started = time.perf_counter()
    store.spent_usd()
    tell("spent_usd", started)
    started = time.perf_counter()
    store.reopen(frozenset({"truncated"}))
    tell("reopen one kind", started)
    store.close()
    for function in (summarize, failures):
        started = time.perf_counter()
        function(directory)
        tell(f"report.{function.__name__}", started)


if __name__ == "__main__":
    main()
