"""500 nights by a deadline, in virtual time: how many end in time, at which cost against the best known afterwards.

python tests/benchmarks/bench_lanes.py [NIGHTS]
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from time import process_time

sys.path.insert(0, str(Path(__file__).parent.parent))

from nights import Ended, Night, Run, best_known_afterwards, nights

from pipeline.records import LaneChoice

MODES: tuple[LaneChoice, ...] = ("auto", "batch", "flex", "standard")


def main() -> None:
    looked_at = list(nights(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
    for mode in MODES:
        began = process_time()
        ended = [Run(night, mode).run() for night in looked_at]
        print(f"{mode:9} {told(ended)}   {(process_time() - began) / len(ended):.3f} s of CPU a night")
        if mode == "auto":
            planned = ended
    best = [best_known_afterwards(night) for night in looked_at]
    print(f"best share known afterwards {mean(best):.3f}; auto costs {mean_cost(planned) / mean(best) - 1:+.1%}")
    kinds: dict[str, Callable[[Night], bool]] = {
        "wide (live work below .3 of the time)": lambda night: night.live_s < 0.3 * night.by_s,
        "tight (above .75)": lambda night: night.live_s > 0.75 * night.by_s,
        "all flex shed": lambda night: night.served == 0.0,
        "all flex served": lambda night: night.served == 1.0,
        "no batch comes": lambda night: night.stuck,
        "what is cancelled is lost": lambda night: night.lost == 1.0,
        "what is done is handed out": lambda night: night.lost == 0.0,
        "room for a twentieth": lambda night: night.room == 0.05,
    }
    for name, of in kinds.items():
        own = [(one.cost, least) for night, one, least in zip(looked_at, planned, best, strict=True) if of(night)]
        if own:
            cost, least = mean(cost for cost, _ in own), mean(least for _, least in own)
            print(f"  {name:40} {len(own):4} nights   {cost:.3f}   {cost / least - 1:+.1%}")


def mean_cost(ended: Sequence[Ended]) -> float:
    return mean(one.cost for one in ended)


def told(ended: Sequence[Ended]) -> str:
    late, above = sum(not one.is_in_time for one in ended), sum(one.cost > 1.01 for one in ended)
    return (
        f"{len(ended)} nights, {late} late   cost {mean_cost(ended):.3f}"
        f" (planned {mean(one.first.cost.expected for one in ended):.3f}, most {max(one.cost for one in ended):.2f},"
        f" above standard in {above})   {mean(one.batches for one in ended):.1f} batches,"
        f" {mean(one.fell_back for one in ended):.1%} fell back"
    )


if __name__ == "__main__":
    main()
