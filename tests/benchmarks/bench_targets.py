"""Several targets over one backlog, in virtual time: what is used of their quotas, median and range over eight seeds.

python tests/benchmarks/bench_targets.py
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median

import anyio

sys.path.insert(0, str(Path(__file__).parent.parent))

from asking import MODEL, ask
from servers import EPOCH
from vclock import run

from pipeline.dispatch.desk import Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.prompts import Prompt
from pipeline.records import Limits, Reply, Usage
from pipeline.targets import Target, ranked

SEEDS = range(8)
ONE = Target("gemini", "https://example", "p", MODEL)


def target(name: str, rpm: int, priority: int = 1) -> Target:
    return replace(ONE, project=name, name=name, priority=priority, limits=Limits(rpm=rpm, tpm=0))


def answered(targets: Sequence[Target], prompts: int, seed: int) -> tuple[float, Counter[str]]:
    """Seconds that a run takes, and what each target answered of it."""
    sent: Counter[str] = Counter()
    rng = Random(seed)

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
        sent[target.name] += 1
        await anyio.sleep(rng.uniform(0.5, 1.5))
        return Reply("text", "ok", usage=Usage(10))

    async def main() -> float:
        desk = Dispatcher(send, ranked(targets), wall=lambda: EPOCH + anyio.current_time(), rng=Random(seed))
        async with anyio.create_task_group() as group:
            group.start_soon(desk.run)
            async with anyio.create_task_group() as asking:
                for row in range(prompts):
                    asking.start_soon(desk.submit, ask(row, tokens=10))
            seconds = anyio.current_time()
            desk.close()
        return seconds

    return run(main), sent


def spread(values: list[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    beside = [target("a", 60), target("b", 300), target("c", 1000)]
    use = [10 * 60.0 / answered(beside, 13_600, seed)[0] for seed in SEEDS]
    print(f"60, 300 and 1,000 a minute side by side: {spread(use)} of the sum")
    ranks = [target("free", 60), target("paid", 1000, priority=2)]
    runs = [answered(ranks, 5_300, seed) for seed in SEEDS]
    print(f"60 free before 1,000 paid: {spread([seconds for seconds, _ in runs])} s, 300 at best")
    print(f"  use of the free quota: {spread([sent['free'] / seconds for seconds, sent in runs])}")


if __name__ == "__main__":
    main()
