"""CPU of the dispatcher for one request, with 1,000 prompts ready: `python tests/benchmarks/bench_dispatch.py`.

From `submit` to the answer, without network: the provider answers at once. Target: at most 60 µs.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asking import TARGET, UNLIMITED, ask

from pipeline.dispatch.desk import Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.prompts import Prompt
from pipeline.quota.book import QuotaBook
from pipeline.records import Limits, Reply, Usage
from pipeline.targets import Route, Target

READY = 1_000
REQUESTS = 20_000
ROUNDS = 5
HIGH = Limits(rpm=60_000_000, tpm=10**12)  # both meters are kept, and neither makes anything wait


PROMPTS = [ask(row, "text", tokens=100 + row % 400) for row in range(REQUESTS)]


async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
    return Reply("text", "ok", usage=Usage(prompt.input_tokens_est), served_at=float(int(time.time())))


async def microseconds(limits: Limits, book: QuotaBook | None) -> float:
    """CPU of one request; the tasks that submit are part of it, as the engine has them too."""
    target = replace(TARGET, limits=limits)
    dispatcher = Dispatcher(send, Route((target,)), books={target.quota: book} if book else None)
    source = iter(PROMPTS)

    async def submit_some() -> None:
        for prompt in source:
            await dispatcher.submit(prompt)

    async with anyio.create_task_group() as runner:
        runner.start_soon(dispatcher.run)
        async with anyio.create_task_group() as submitters:
            for _ in range(READY):
                submitters.start_soon(submit_some)
            began = time.process_time()
        spent = time.process_time() - began
        dispatcher.close()
    return spent / REQUESTS * 1e6


def best(limits: Limits, path: Path | None = None) -> float:
    results = []
    for number in range(ROUNDS):
        book = QuotaBook(path / f"{number}.sqlite", "m") if path else None
        results.append(anyio.run(microseconds, limits, book))
        if book:
            book.close()
    return min(results)


def main() -> None:
    print(f"no limits:                {best(UNLIMITED):5.1f} µs a request")
    print(f"RPM and TPM kept:         {best(HIGH):5.1f} µs")
    with TemporaryDirectory() as directory:
        print(f"the same, book on disk:   {best(HIGH, Path(directory)):5.1f} µs")


if __name__ == "__main__":
    main()
