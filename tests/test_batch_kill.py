"""Real processes with batches, real SIGKILL, lost and late creates: every row once, every line billed once."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from forking import Forked, forked
from serving import served, stats

from pipeline.emulator import parse_batch_faults
from pipeline.store.batch_states import read

_DRIVER = """
from pipeline.batch import submitting, watching
submitting.FENCE_S = 3.0  # longer than the service takes to list what it created
submitting.PAUSES_S = (0.2, 0.5)
watching.POLL_S = (0.2, 0.5)
"""
FAULTS = "create_cut:0.3,create_late=1:0.2,create_late=5:0.1,list_lag=1:0.5,upload_lost:0.1,download_cut:0.1"
JOB = """
[input]
path = "input.parquet"
id = "id"
text = "body"
[prompt]
template = "Piece {{ chunk }} of {{ id }}: {{ text }}"
[chunk]
max_tokens = 120
[reduce]
template = "Merge for {{ id }}: {{ parts }}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 100
lane = "batch"
[limits]
rpm = 0
tpm = 0
[output]
path = "out.parquet"
"""


def written(path: Path, rows: int) -> None:
    texts = [
        " ".join(f"Sentence {n} of text {row} says so." for n in range(60 if row % 3 else 4)) for row in range(rows)
    ]
    pl.DataFrame({"id": [f"r{row}" for row in range(rows)], "body": texts}).write_parquet(path / "input.parquet")
    (path / "job.toml").write_text(JOB)


def start(path: Path, url: str) -> Forked:
    keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "AQ.test"}
    return forked("run", "job.toml", "--yes", cwd=path, patch=_DRIVER, env=keyed)


def events(path: Path) -> int:
    """How far the batches of the run have come."""
    log = path / "runs" / "job" / "batches.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def killed(process: Forked, path: Path, rng: random.Random) -> bool:
    """Whether it was killed: some events on, a moment later."""
    wanted, give_up = events(path) + rng.randint(1, 6), time.monotonic() + rng.uniform(4, 12)
    while process.poll() is None and events(path) < wanted and time.monotonic() < give_up:
        time.sleep(0.002)
    time.sleep(rng.choice((0.0, 0.001, 0.01, 0.05, 0.3)))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return True


@pytest.mark.long
@pytest.mark.parametrize(("seed", "most"), [(0, 4), *((seed, 25) for seed in range(1, 9))])
def test_batches_survive_sigkill_at_any_moment(tmp_path: Path, seed: int, most: int) -> None:
    rng = random.Random(seed)
    written(tmp_path, 9)
    fate: dict[str, Any] = {"batch_pending_s": 0.3, "batch_run_s": 0.3, "batch_spread": 2.0}
    with served(batch=True, batch_faults=parse_batch_faults(FAULTS), seed=seed, **fate) as url:
        kills = 0
        while kills < most:
            process = start(tmp_path, url)
            if not killed(process, tmp_path, rng):
                process.communicate()
                break
            kills += 1
        ended = start(tmp_path, url)
        _, told = ended.communicate(timeout=120)
        assert ended.returncode == 0, told.decode()
        time.sleep(5.0 if most > 4 else 0.0)  # what was created late is there by now
        seen = stats(url)["batches"]
    assert kills, "it was over before the first"
    result = pl.read_parquet(tmp_path / "out.parquet")
    assert result["status"].to_list() == ["ok"] * 9
    assert seen["lines_billed_twice"] == 0, (kills, seen)
    assert sum(state.ok for state in read(tmp_path / "runs" / "job").values()) == seen["lines_billed"]
    assert not list((tmp_path / "runs" / "job" / "batches").glob("*.jsonl")), "no prompt is left on the disk"
