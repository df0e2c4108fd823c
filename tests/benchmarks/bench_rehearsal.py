"""3,000 RPM over a real socket in real time, against a served emulator that counts with a sliding log.

`python tests/benchmarks/bench_rehearsal.py [seconds [algorithm]]`; 70 s by default, so that a window's edge is passed.
Wake-up lag, event loop and sockets are real: what a virtual clock cannot show. Target: at least 98.5 %, 0 refusals.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asking import TARGET, ask
from serving import served

from pipeline.dispatch.desk import Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.errors import Halted
from pipeline.prompts import Prompt
from pipeline.providers.base import Account
from pipeline.providers.gemini import Gemini
from pipeline.providers.transport import Wire
from pipeline.records import Failure, Limits, Reply
from pipeline.targets import Route, Target

RPM = 3_000
LATENCY_S = 0.2


async def rehearse(url: str, seconds: float) -> tuple[int, int, float, float]:
    """Requests sent, refusals, seconds, and CPU seconds of this process."""
    async with Wire() as wire, anyio.create_task_group() as group:
        target = replace(TARGET, base_url=url, limits=Limits(rpm=RPM, tpm=10**9))
        provider = Gemini({target.access: Account(wire, "rehearsal")})

        async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
            return await provider.generate(prompt, target)

        dispatcher = Dispatcher(send, Route((target,)))
        rows = iter(range(10**9))

        async def submit_some() -> None:
            try:
                for row in rows:
                    await dispatcher.submit(ask(row, f"Say {row}.", tokens=6))
            except Halted:
                return

        group.start_soon(dispatcher.run)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(500):
            group.start_soon(submit_some)
        await anyio.sleep(seconds)
        sent, elapsed = dispatcher.sent, time.perf_counter() - began
        dispatcher.halt(None)
    return sent, dispatcher.rate_limited, elapsed, time.process_time() - cpu


def main(seconds: float = 70.0, algorithm: str = "log") -> None:
    with served(rpm=RPM, algorithm=algorithm, latency_s=LATENCY_S, latency_jitter_s=LATENCY_S) as url:
        sent, refused, elapsed, cpu = anyio.run(rehearse, url, seconds)
    rate = sent / elapsed * 60
    print(f"{algorithm}: {sent:,} requests in {elapsed:.1f} s = {rate:,.0f} a minute ({rate / RPM:.2%} of {RPM:,})")
    print(f"refused: {refused}; CPU of the client: {cpu / sent * 1e6:.0f} µs a request")


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((float, str), sys.argv[1:], strict=False)))
