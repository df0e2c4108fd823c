"""What the output that is written while a run goes on costs: throughput and CPU, with it over without it.

    python tests/benchmarks/bench_interim.py [rows] [pairs]

Each pair is two processes of `bench_engine.py`, one after the other on one core: `--share`, which writes for 2 % of its
time from the first second on, and `--no-interim`; which goes first alternates. Prints each pair, the median of the
ratios and their range.
"""

import re
import statistics
import subprocess
import sys
from pathlib import Path

_ENGINE = Path(__file__).with_name("bench_engine.py")
_SAID = re.compile(r"([\d,]+) rows/s, (\d+) us CPU a row, peak (\d+) MB")
_WRITTEN = re.compile(r"(\d+) outputs")


def measured(rows: int, flag: str) -> tuple[int, int, int, int]:
    """Rows a second, microseconds of CPU a row, peak of memory in MB, outputs that were written meanwhile."""
    ran = subprocess.run([sys.executable, str(_ENGINE), str(rows), flag], check=True, capture_output=True, text=True)
    said, written = _SAID.search(ran.stdout), _WRITTEN.search(ran.stdout)
    assert said, ran.stdout
    return int(said[1].replace(",", "")), int(said[2]), int(said[3]), int(written[1]) if written else 0


def told(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main(rows: int, pairs: int) -> None:
    speed, cpu = [], []
    for number in range(pairs):
        flags = ["--share", "--no-interim"]
        both = {flag: measured(rows, flag) for flag in (flags if number % 2 else flags[::-1])}
        (with_s, with_us, with_mb, written), (without_s, without_us, without_mb, _) = (both[flag] for flag in flags)
        speed.append(with_s / without_s)
        cpu.append(with_us / without_us)
        print(
            f"{rows:,} rows: {with_s:,} and {without_s:,} rows/s, {with_us} and {without_us} us CPU a row, "
            f"peak {with_mb} and {without_mb} MB, {written} outputs",
            flush=True,
        )
    print(f"with over without, median (range) of {pairs}: rows/s {told(speed)}, CPU {told(cpu)}")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [300_000, 3][len(numbers) :]))
