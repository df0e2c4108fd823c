"""What batches cost on disk: lines cut, results taken, answers found again, a start with many rows out.

python tests/benchmarks/bench_batches.py [lines, default 100_000] [lines out at the start, default 1_000_000]
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import anyio
import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asking import MODEL, TARGET, ask

from pipeline.prompts import Params
from pipeline.providers.answers import parse_reply
from pipeline.providers.stored import parse_stored
from pipeline.records import Reply, changed
from pipeline.store.batch_lines import Draft, Key
from pipeline.store.lines import Call
from pipeline.store.manifest import Manifest
from pipeline.store.run import RunStore

MANIFEST = Manifest("bench", "", "", {}, "", "", "", MODEL, True, "", "")
BATCH_LINES = 20_000
TEXT = "What the row says, of some length, as a page of a contract has it, with names and sums. " * 25
ANSWER = "An answer of about three hundred characters, as a summary in five bullets has it. " * 4
PARAMS = Params(max_output_tokens=400)


def main() -> None:
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    out = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    if sys.argv[3:]:
        start(Path(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as place:
        live(Path(place) / "run", lines)
        many = Path(place) / "many"
        leave_out(many, out)
        subprocess.run([sys.executable, __file__, str(lines), str(out), str(many)], check=True)


def live(directory: Path, lines: int) -> None:
    store = RunStore(directory, parse_stored)
    store.open(MANIFEST)
    prompts = [ask(row, f"{row} {TEXT}", params=PARAMS, tokens=600) for row in range(lines)]
    for prompt in prompts:
        prompt.fingerprint(MODEL)
    bodies = [orjson.dumps({"key": prompt.fingerprint(MODEL), "request": prompt.text}) + b"\n" for prompt in prompts]
    began, worked = time.perf_counter(), time.process_time()
    drafts: list[Draft] = []
    for at, (prompt, body) in enumerate(zip(prompts, bodies, strict=True)):
        if at % BATCH_LINES == 0:
            drafts.append(store.batches.draft(TARGET))
        drafts[-1].add(Key.of(prompt, MODEL), body)
    numbers = [draft.cut(Decimal(1)).number for draft in drafts]
    tell("cut: a line with its checksum and its key", began, worked, lines)
    for number in numbers:
        for stage in ("upload", "uploaded", "asking", "asked"):
            store.batches.note(number, stage)
        store.batches.results_path(number).write_bytes(b"".join(results(store.batches.keys(number))))
        store.batches.note(number, "fetched")
    began, worked = time.perf_counter(), time.process_time()
    calls = {number: list(taken(store, number)) for number in numbers}
    tell("(a line of results read by the provider)", began, worked, lines)
    began, worked = time.perf_counter(), time.process_time()
    for number in numbers:
        store.batches.take(number, calls[number])
    tell("take: a call into its part and the index", began, worked, lines)
    began, worked = time.perf_counter(), time.process_time()
    fingerprints = [prompt.fingerprint(MODEL) for prompt in prompts]
    assert anyio.run(find_all, store, fingerprints) == lines
    tell("find: an answer, in the order of the rows", began, worked, lines)
    store.close()


async def find_all(store: RunStore, fingerprints: list[str]) -> int:
    return sum([await store.sealed_reply(fingerprint) is not None for fingerprint in fingerprints])


def results(keys: list[Key]) -> Iterator[bytes]:
    for key in keys:
        usage = {"promptTokenCount": 600, "candidatesTokenCount": 80, "totalTokenCount": 680}
        answer = {"content": {"role": "model", "parts": [{"text": ANSWER}]}, "finishReason": "STOP"}
        body = {"candidates": [answer], "usageMetadata": usage, "modelVersion": MODEL, "responseId": "r"}
        yield orjson.dumps({"key": key.fingerprint, "response": body}) + b"\n"


def taken(store: RunStore, number: int) -> Iterator[Call]:
    """As the batch desk does it, without what it checks."""
    replies: dict[str, Reply] = {}
    with store.batches.results_path(number).open("rb") as file:
        for line in file:
            record = orjson.loads(line)
            replies[record["key"]] = parse_reply(orjson.dumps(record["response"]))
    for key in store.batches.keys(number):
        yield key.call(changed(replies[key.fingerprint], lane="batch", cost_usd=Decimal("0.0001"), finished_at=1e9))


def leave_out(directory: Path, out: int) -> None:
    store = RunStore(directory, parse_stored)
    store.open(MANIFEST)
    for begin in range(0, out, BATCH_LINES):
        draft = store.batches.draft(TARGET)
        for row in range(begin, min(out, begin + BATCH_LINES)):
            draft.add(Key.of(ask(row, str(row), params=PARAMS), MODEL), b"{}\n")
        draft.cut(Decimal(1))
    store.close()


def start(directory: Path) -> None:
    before = resident_kb()
    began, worked = time.perf_counter(), time.process_time()
    store = RunStore(directory, parse_stored)
    store.open(MANIFEST)
    out = sum(state.lines for state in store.batches.open())
    print(f"{f'open with {out:,} lines out':70} {time.perf_counter() - began:>8.2f} s", end="")
    print(f"  (CPU {time.process_time() - worked:.2f} s)")
    print(f"{'  memory, at its peak and then, beyond the imports':70}", end="")
    print(f" {(resident_kb('VmHWM') - before) / 1024:>8.0f} MB, {(resident_kb() - before) / 1024:.0f} MB")
    prompts = [ask(row, str(row), params=PARAMS).fingerprint(MODEL) for row in range(min(out, 200_000))]
    for what, looked_up in (("is", prompts), ("is not", [f"no {each}" for each in prompts])):
        began, worked = time.perf_counter(), time.process_time()
        for each in looked_up:
            store.batches.out(each)
        tell(f"  whether a content is out, which it {what}", began, worked, len(looked_up))
    store.close()


def resident_kb(field: str = "VmRSS") -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def tell(what: str, began: float, worked: float, lines: int) -> None:
    spent, cpu = time.perf_counter() - began, time.process_time() - worked
    print(f"{what:70} {spent / lines * 1e6:>8.1f} µs  (CPU {cpu / lines * 1e6:.1f} µs)", flush=True)


if __name__ == "__main__":
    main()
