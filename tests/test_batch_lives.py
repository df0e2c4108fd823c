"""Runs over batches, real processes before a real socket, killed anywhere: every row once, no line billed twice."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from faultpoints import FAULTS, Fault, Ran, Runs, compiled
from serving import served, stats

from pipeline.emulator import parse_batch_faults
from pipeline.store import batched
from pipeline.store.batches import is_out
from pipeline.store.parts import part_paths, read_part

ROWS = 24
RUN = ("run", "job.toml", "--yes", "--json")
LOST = (
    "create_cut:0.2,create_late=1:0.1,create_late=4:0.1,list_lag=1:0.4,"
    "upload_lost:0.2,upload_cut:0.2,download_cut:0.2,call_503:0.05"
)
"""What is created late comes before the fence ends, or after it."""
FAULTS_OF_DISK = list(FAULTS.values())
"""Kills, and a disk that is full, read-only or broken."""
FLOWS = {
    "plain": 'template = "Of {name}:\\n\\n{{{{ text }}}}"',
    "map-reduce": """template = "Piece {{{{ chunk }}}} of {name}:\\n\\n{{{{ text }}}}"
[chunk]
max_tokens = 120
[reduce]
template = "Merge for {name}:\\n\\n{{{{ parts }}}}"
""",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    library = compiled(tmp_path_factory.mktemp("shim"))
    if library is None:
        if os.environ.get("CI"):
            pytest.fail("no C compiler")
        pytest.skip("no C compiler")
    warm = Runs(library, "batch_pace")
    yield warm
    warm.close()


def written(folder: Path, flow: str, provider: str, name: str, rows: int = ROWS) -> None:
    """A job over texts that are all different, every third one long; its prompts are no other job's."""
    texts = [
        " ".join(f"Sentence {k} of report {row} says that the value was {k * row}." for k in range(length(row)))
        for row in range(rows)
    ]
    pl.DataFrame({"id": [f"r{row}" for row in range(rows)], "body": texts}).write_parquet(folder / "input.parquet")
    (folder / "job.toml").write_text(
        f"""
[input]
path = "input.parquet"
id = "id"
text = "body"
[prompt]
{FLOWS[flow].format(name=name)}
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 200
lane = "batch"
[limits]
rpm = 0
tpm = 0
[endpoint]
provider = "{provider}"
[output]
path = "output.parquet"
"""
    )


def length(row: int) -> int:
    return 30 if row % 3 == 0 else 5


@dataclass
class Life:
    """One run directory, from its first start to its end."""

    runs: Runs
    url: str
    folder: Path
    flow: str
    provider: str
    name: str
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        written(self.folder, self.flow, self.provider, self.name)

    def start(self, **options: Any) -> Ran:
        """Run the command; each life has a project of its own."""
        url = f"{self.url}/v1" if self.provider == "openai" else self.url
        ran = self.runs.run(self.folder, url, *RUN, key=f"AQ.{self.name}", **options)
        self.said.append(f"{options} ended with {ran.code}\n{ran.err}")
        assert ran.code in ((-9, 0, 1, 2, 3) if ran.struck else (-9, 0)) and "Traceback" not in ran.err, self.told
        return ran

    @property
    def told(self) -> str:
        return f"{self.name}: {self.flow}, {self.provider}\n" + "\n".join(self.said)

    @property
    def output(self) -> pl.DataFrame:
        columns = ("id", "response", "status", "calls", "chunks", "input_tokens", "output_tokens", "cost_usd")
        return pl.read_parquet(self.folder / "output.parquet").select(columns)

    @property
    def calls(self) -> pl.DataFrame:
        """Every call of the run, as it is kept."""
        directory = self.folder / "runs" / "job"
        paths = [*part_paths(directory / "calls"), *batched.part_paths(directory)]
        return pl.concat([read_part(path, ("fingerprint", "lane", "paid", "late", "cost_usd")) for path in paths])

    def check(self, last: Ran, whole: pl.DataFrame, billed: dict[str, int]) -> int:
        """It came to the same as one that nobody disturbed; returns the lines that it was billed."""
        assert last.code == 0, self.told
        assert self.output.equals(whole), self.told
        calls = self.calls
        assert calls["fingerprint"].is_unique().all() and set(calls["lane"]) == {"batch"}, self.told
        assert not calls["late"].any() and calls["paid"].all(), self.told
        assert {billed.get(name) for name in calls["fingerprint"]} == {1}, self.told
        assert last.json["cost_usd"] == pytest.approx(float(calls["cost_usd"].sum())), self.told
        directory = self.folder / "runs" / "job"
        assert not is_out(directory), self.told
        assert not [*directory.glob("batches/*.jsonl"), *directory.glob("batches/.*")], self.told
        return calls.height


def killed_everywhere(runs: Runs, path: Path, provider: str, kills: int, seed: int) -> Counter[str]:
    """Lives with up to six kills or faults of the disk each, until so many came; what was counted."""
    chance, counts = Random(seed), Counter[str]()
    options: dict[str, Any] = {"batch": True, "batch_pending_s": 0.15, "batch_run_s": 0.15, "seed": seed}
    whole: dict[str, tuple[pl.DataFrame, Ran, float]] = {}
    with served(**options) as url:
        for flow in FLOWS:
            life = Life(runs, url, path / f"whole-{flow}", flow, provider, "life-000")
            began = time.monotonic()
            ran = life.start(fault=Fault(0))
            assert ran.code == 0, life.told
            whole[flow] = life.output, ran, time.monotonic() - began
    lines = 0
    with served(**options, batch_faults=parse_batch_faults(LOST)) as url:
        while counts["killed"] < kills:
            counts["lives"] += 1
            flow = list(FLOWS)[counts["lives"] % len(FLOWS)]
            output, ran, seconds = whole[flow]
            name = f"life-{counts['lives']:03}"
            life = Life(runs, url, path / name, flow, provider, name)
            for _ in range(chance.randint(2, 6)):
                if chance.random() < 0.4:
                    last = life.start(kill_after_s=chance.uniform(0.3, seconds))
                else:
                    fault = chance.choice(FAULTS_OF_DISK)
                    last = life.start(fault=fault._replace(at=chance.randint(1, ran.places * 3 // 4)))
                counts["killed"] += last.code == -9
                counts["other faults"] += bool(last.struck and last.code != -9)
                if last.code == 0 and not last.struck:
                    break
            else:
                last = life.start()
            lines += life.check(last, output, stats(url, prompts=True)["lines"])
        told = stats(url, prompts=True)["batches"]
    assert told["lines_billed"] == lines and not told["lines_billed_twice"]
    return counts + Counter(told["faults"]) + Counter({"lines": lines})


@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_sigkill_at_any_moment_loses_no_row_and_no_line_is_billed_twice(
    runs: Runs, tmp_path: Path, provider: str
) -> None:
    counts = killed_everywhere(runs, tmp_path, provider, 4, seed=1)
    assert counts["create_cut"] + counts["create_late"] > 1


@pytest.mark.long
@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_sigkill_at_100_moments(runs: Runs, tmp_path: Path, provider: str) -> None:
    print(provider, dict(killed_everywhere(runs, tmp_path, provider, 100, seed=2)))
