"""Limits that a run has to find, in virtual time: `python tests/benchmarks/bench_learning.py [server …]`.

Prints rows for docs/measured.md: median (range) over eight seeds. 1,000 requests a minute that nobody configured: 429s,
seconds until 900 a minute get through, and what is believed at the end. And 600 a minute where 1,000 are configured.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matrix import dispatch
from servers import SERVERS, World, documents, small

from pipeline.records import Limits

TRUE_RPM, LOWER_RPM = 1000, 600
SEEDS = range(1, 9)


def over_seeds(values: Sequence[float], digits: int = 0) -> str:
    """Median and range."""
    middle, least, most = (f"{value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({least}–{most})"


def unset(server: str, named: bool) -> str:
    """Nothing is configured."""
    refused, seconds, believed = [], [], []
    for seed in SEEDS:
        world = World(server, TRUE_RPM, 1_000_000, seed=seed, names_limit=named)
        outcome = dispatch(world, documents(world, small(7 * TRUE_RPM, 100, seed)), Limits())
        times = [at for at, _ in world.admitted]
        minutes = ((end, sum(end - 60 < at <= end for at in times)) for end in range(60, 900, 5))
        refused.append(len(world.refused))
        seconds.append(next((end for end, count in minutes if count >= 0.9 * TRUE_RPM), 900))
        believed.append(outcome.rpm or 0)
    return f"{over_seeds(refused)} | {over_seeds(seconds)} s | {over_seeds(believed)}"


def lower(server: str, named: bool) -> str:
    """More is configured than is allowed."""
    refused, use = [], []
    for seed in SEEDS:
        world = World(server, LOWER_RPM, 10_000_000, seed=seed, names_limit=named, jitter_s=0.25)
        dispatch(world, documents(world, small(8 * LOWER_RPM, 100, seed)), Limits(rpm=TRUE_RPM, tpm=10_000_000))
        refused.append(len(world.refused))
        use.append(100 * world.steady())
    return f"{over_seeds(refused)} | {over_seeds(use, 1)} %"


def main(servers: Sequence[str]) -> None:
    print(
        "| | server | unset: 429s | 900 a minute after | believed | lower: 429s | use |\n|---|---|---|---|---|---|---|"
    )
    for named in (True, False):
        for server in servers:
            cells = f"{unset(server, named)} | {lower(server, named)}"
            print(f"| {'named' if named else 'not named'} | {server} | {cells} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(SERVERS))
