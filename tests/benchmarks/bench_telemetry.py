"""What telling of a call costs the run's own thread: nothing but run.log, metrics, spans; CPU, median of rounds.

    python tests/benchmarks/bench_telemetry.py

What delivers spans works in a thread of its own, and is not in it.
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asking import MODEL, TARGET, ask
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from pipeline.dispatch.desk import Tries
from pipeline.prompts import Prompt
from pipeline.records import Failure, Reply, Usage
from pipeline.run.engine import Monitor
from pipeline.run.observing import FailureLog, Observer, told
from pipeline.targets import Target
from pipeline.telemetry.metrics import Metrics
from pipeline.telemetry.spans import Spans

CALLS, ROUNDS = 20_000, 7
ANSWER = Reply(
    "said",
    "ok",
    finish_reason="STOP",
    usage=Usage(250, output_tokens=40),
    model=MODEL,
    asked=MODEL,
    endpoint=TARGET.endpoint,
    response_id="an-answer",
    latency_s=0.5,
    finished_at=time.time(),
    cost_usd=Decimal("0.001"),
)


class Nowhere(SpanExporter):
    """Takes spans and does nothing with them."""

    def export(self, spans: Sequence[object]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        return


async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
    return ANSWER


def sending_us(through: Callable[..., object]) -> float:
    async def calls() -> float:
        began, prompt, tries = time.process_time(), ask(1), Tries()
        for _ in range(CALLS):
            await through(prompt, TARGET, tries)  # type: ignore[misc]
        return (time.process_time() - began) / CALLS * 1e6

    return asyncio.run(calls())


def counting_us(*observers: Observer) -> float:
    monitor, prompt = Monitor(1, observers=list(observers)), ask(1)
    began = time.thread_time()
    for _ in range(CALLS):
        monitor.bought(prompt, ANSWER, True)
    return (time.thread_time() - began) / CALLS * 1e6


def shown(what: str, one: Callable[[], float], without: Callable[[], float]) -> None:
    found = [one() - without() for _ in range(ROUNDS)]
    print(f"{what}: {statistics.median(found):.2f} us a call ({min(found):.2f} to {max(found):.2f})")


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    failures = FailureLog(lambda event: None)
    shown("who is told of failures", lambda: sending_us(told(send, failures.failed)), lambda: sending_us(send))
    shown("run.log", lambda: counting_us(failures), counting_us)
    metrics = Metrics(Monitor(1))
    shown("metrics", lambda: counting_us(metrics), counting_us)
    for ratio in ("1", "0.01"):
        os.environ |= {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio}
        with Spans(Nowhere()) as spans:
            shown(f"spans, sampled {ratio}", lambda spans=spans: counting_us(spans), counting_us)  # type: ignore[misc]


if __name__ == "__main__":
    main()
