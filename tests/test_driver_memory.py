"""What leads a run by several workers takes no more memory for a larger table, up to its first order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "benchmarks" / "bench_driver.py"
MOST_BYTES = 0.6
"""Of a row, at the peak. What a slice takes, some 6 kB while a plan is made, counts sixteen-fold here: 0.42 bytes a row
were measured, 0.03 of them are there where slices are whole. Two bits a row and a copy of them would be found out."""


def peaks(rows: int, *flags: str) -> dict[str, int]:
    """Bytes at the peak of each step, where all that is worked on at a time is a sixteenth."""
    command = [sys.executable, str(BENCH), str(rows), "--small", "--json", *flags]
    found: dict[str, int] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_memory_of_what_leads_does_not_grow_with_its_rows() -> None:
    few, many = 2_000_000, 6_000_000
    before, after = peaks(few, "--ids"), peaks(many, "--ids")
    grown = {name: (after[name] - before[name]) / (many - few) for name in after}
    assert {name: bytes_a_row for name, bytes_a_row in grown.items() if bytes_a_row > MOST_BYTES} == {}
