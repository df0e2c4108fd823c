"""SIGKILL at every step that the beginning of a generation makes on the disk, in real processes."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from commands import Ran
from forking import forked
from serving import served, stats

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
KILLED = """
import os, signal, sys
import pipeline.run.run as run
from pipeline.store.run import RunStore

begin, opened, steps, last, is_begun = run.begin, RunStore.open, 0, LAST, False

def beginning(*arguments):
    global is_begun
    is_begun = True
    begin(*arguments)

def opening(*arguments):
    global is_begun
    is_continued = opened(*arguments)
    is_begun = False
    return is_continued

def step(event, arguments):
    global steps
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    changes = writes or event in ("os.rename", "os.mkdir", "os.remove", "os.chmod")
    if is_begun and changes and "runs" in str(arguments[0]):
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

run.begin, RunStore.open = beginning, opening
sys.addaudithook(step)
"""


def write_job(here: Path, words: list[str], verb: str = "Say") -> Path:
    pl.DataFrame({"id": words, "body": words}).write_csv(here / "words.csv")
    (here / "small.toml").write_text(
        f'[input]\npath = "words.csv"\nid = "id"\n[prompt]\ntemplate = "{verb} {{{{ body }}}}"\n'
        '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 200\n'
        '[limits]\nrpm = 0\ntpm = 0\n[output]\npath = "out.parquet"\n'
    )
    return Path("small.toml")  # a run belongs to its job file, and the directory is copied


def run(cli: Callable[..., Ran], job: Path) -> Any:
    ran = cli("run", job, "--yes", "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


@pytest.mark.long
@pytest.mark.parametrize("edit", ["row", "template"])
def test_a_generation_begins_once_and_forgets_nothing_wherever_it_is_killed(
    tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        before = tmp_path / "before"
        before.mkdir()
        monkeypatch.chdir(before)
        for words in (WORDS[:3], WORDS):  # two parts, and two generations
            spent = run(cli, write_job(before, words))
        ends = []
        for step in range(1, 200):
            here = tmp_path / str(step)
            shutil.copytree(before, here)
            monkeypatch.chdir(here)
            job = write_job(here, [*WORDS, f"new{step}"], "Say" if edit == "row" else f"Sing {step}")
            asked = stats(url)["requests"]
            ends.append(forked("run", job, "--yes", patch=KILLED.replace("LAST", str(step))).wait())
            told = run(cli, job)
            assert (told["generation"], told["ok"]) == (3, 7)
            assert told["before_usd"] == pytest.approx(spent["before_usd"] + spent["cost_usd"])
            assert stats(url)["requests"] - asked == (1 if edit == "row" else 7)
            assert len(list((here / "runs").glob("small.*Z"))) == 2 and not list((here / "runs").glob("*.next.json"))
            back = run(cli, write_job(here, WORDS))
            assert (back["calls"], back["kept"]) == (0, 6)
            if ends[-1] == 0:
                break
        assert ends[-1] == 0 and set(ends[:-1]) == {-signal.SIGKILL} and len(ends) > 20
