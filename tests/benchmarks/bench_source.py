"""What opening and checking a table costs, beside another checkout of this project in the same run.

    python tests/benchmarks/bench_source.py [rows] [--against DIR]

Rows of 2 kB, English, Chinese and code, with quotes and line breaks, as CSV (plain, and with one bare quote, so that
the csv module reads it), JSONL and Parquet; wide CSV tables of 400 and 2,000 columns. Each in a process of its own,
three times with an `id`; the medians count, seconds on the clock and of CPU. Default: 200,000 rows.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from bench_estimate import peak_mb, texts

HERE = Path(__file__).parent.parent.parent


def main(rows: int, other: Path | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        for path in generate(rows, Path(place)):
            told = [f"{path.name:16}{path.stat().st_size / 1e6:>8,.0f} MB"]
            medians = []
            for tree in (HERE, other) if other else (HERE,):
                runs = [measured(tree, path) for _ in range(3)]
                wall, cpu, _ = (statistics.median(each) for each in zip(*runs, strict=True))
                medians.append((wall, cpu))
                told.append(f"{wall:>8.2f} s{cpu:>7.2f} CPU{max(mb for *_, mb in runs):>6,.0f} MB")
            ratios = [f"{here / there:.2f}" for here, there in zip(*medians, strict=True)] if other else []
            print(*told, *["  ratios ", *ratios] * bool(other), flush=True)


def measured(tree: Path, path: Path) -> tuple[float, float, float]:
    environment = os.environ | {"PYTHONPATH": f"{tree}:{Path(__file__).parent}"}
    done = subprocess.run(
        [sys.executable, __file__, "measure", str(path)], check=True, stdout=subprocess.PIPE, env=environment, cwd="/"
    )
    wall, cpu, peak = json.loads(done.stdout)
    return wall, cpu, peak


def measure(path: str) -> None:
    from pipeline.errors import InputError
    from pipeline.source import open_source

    started, before = time.perf_counter(), time.process_time()
    try:
        open_source(path, id="id").check()
    except InputError as error:
        print(error, file=sys.stderr)
    print(json.dumps((time.perf_counter() - started, time.process_time() - before, peak_mb())))


def generate(rows: int, folder: Path) -> list[Path]:
    made = texts(rows)
    frame = pl.DataFrame({"id": range(rows), "text": list(made), "note": ["x", None] * (rows // 2)})
    frame.write_csv(folder / "plain.csv")
    (folder / "odd.csv").write_bytes((folder / "plain.csv").read_bytes() + f'{rows},5" pipe,x\n'.encode())
    frame.write_ndjson(folder / "in.jsonl")
    with (folder / "spaced.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in frame.head(rows // 10).iter_rows(named=True))
    frame.write_parquet(folder / "in.parquet")
    for width in (400, 2000):
        cells = {"id": range(50)} | {f"c{number}": ["some text"] * 50 for number in range(1, width)}
        pl.DataFrame(cells).write_csv(folder / f"{width} columns.csv")
    return sorted(folder.iterdir())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", table]:
            measure(table)
        case given:
            against = Path(given[given.index("--against") + 1]).absolute() if "--against" in given else None
            main(int(given[0]) if given and given[0].isdigit() else 200_000, against)
