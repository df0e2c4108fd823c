"""The night of docs/lanes.md, as a person types it: real processes, and an hour of the emulator is a second."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from test_docs import PAGES

PAGE = PAGES["docs/lanes.md"]
SAID = dict(re.findall(r"<!-- night: (\S+) -->\n```\w*\n(.*?)\n```", PAGE, re.DOTALL))
ROWS = 2_000
BESIDE = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def typed(commands: str, **beside: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of them."""
    environment = os.environ | {"PATH": BESIDE, **beside}
    return subprocess.run(
        ["bash", "-c", commands], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


@contextmanager
def emulated() -> Iterator[str]:
    """The emulator of the page, at a port of its own."""
    command = ["bash", "-c", f"exec {SAID['emulator']} --port 0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PATH": BESIDE}
    )
    assert process.stdout is not None
    try:
        told = next(line for line in process.stdout if "http://" in line)
        found = re.search(r"http://[\w.]+:\d+", told)
        assert found, told
        yield found[0]
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_a_night_is_rehearsed_in_a_minute_and_collected_by_who_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(SAID["table"]).returncode == 0
    morning = datetime.now(UTC).astimezone() + timedelta(hours=10)  # the same night at whatever hour this runs
    Path("overnight.toml").write_text(SAID["overnight.toml"].replace('"07:00"', f'"{morning:%Y-%m-%d %H:%M}"'))
    with emulated() as url:
        ran = typed(SAID["run"].replace("http://127.0.0.1:8089", url))
        beside = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "any"}
        told = json.loads(typed("pipeline report overnight-rehearsal --json", **beside).stdout)
        leave, collect = SAID["later"].splitlines()
        left = typed(leave, **beside)
        runs = typed("pipeline runs").stdout
        collected = typed(collect, **beside)
        for _ in range(20):  # a batch may take some hours of the night, which are seconds here
            if collected.returncode == 3:
                collected = typed(collect, **beside)
    assert ran.returncode == 0, ran.stderr
    estimated, _, reported = ran.stdout.rpartition("overnight   finished")
    assert re.search(r"\n  batch +1,995 +\$0\.\d+ +\d\d:\d\d ", estimated) and "fits: " in estimated
    assert "half of all batches are done within 96 min" in estimated
    assert re.search(r"lanes +batch 1,995 \+ \w+ 5 +\$0\.\d+ would be saved, by the tables", reported)
    assert re.search(r"\n +1 +succeeded +1,000 .* answered 1,000\n +2 +succeeded +995 .* answered 995\n", reported)
    assert (told["ok"], told["cost_usd"], [each["ok"] for each in told["batches"]]) == (ROWS, 0.0, [1000, 995])
    saved = sum(lane["saved_usd"] for lane in told["lanes"].values())
    rates = {"input_tokens": 0.30e-6, "output_tokens": 2.50e-6}  # of gemini-3.5-flash-lite in standard
    in_standard = sum(told[name] * usd for name, usd in rates.items())
    assert saved == pytest.approx(in_standard / 2, rel=0.01)
    assert left.returncode == 3 and "2 batches, 1,995 calls, are with the service" in left.stderr
    assert "2 batches out" in runs
    assert collected.returncode == 0, collected.stderr
    assert pl.read_csv("results/comments-rehearsal.csv")["status"].to_list() == ["ok"] * ROWS
    assert not list(Path("runs").glob("*/batches/*.jsonl")), "no prompt is left in a file of a batch"
