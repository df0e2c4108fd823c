"""What one more feature of a job costs: CPU of a row beside that of the same rows asked plainly.

    python tests/benchmarks/bench_features.py [rows] [rounds]

Rows of 1 kB through the whole run (plan, engine, journal, output), answered at once by a provider in the process, each
round in a process of its own, in turn. Prints the median of the rounds and their range, and the ratio of the medians.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
import orjson
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from asking import Stub, opening_of

from pipeline.job import load
from pipeline.prompts import Prompt
from pipeline.providers.answers import parse_reply
from pipeline.records import Reply, changed
from pipeline.run import prepare, run
from pipeline.run.engine import Monitor
from pipeline.targets import Target

FEATURES = {
    "plain": "",
    "schema": '[output]\nschema = "mood: good|bad, score: float, topics: [str]"\n',
    "schema, check": '[output]\nschema = "mood: good|bad, score: float, topics: [str]"\n'
    '[[check]]\nholds = "score >= 0 AND LENGTH(mood) > 2"\n',
    "examples": "[prompt]\n" + "examples = [" + '{ input = "a", output = "b" }, ' * 3 + "]\n",
    "redact": '[redact]\nkinds = ["email", "phone", "card", "api_key"]\n',
    "conversation": '[prompt]\nflow = "conversation"\nturns = ["Read: {{ text }}", "And now?"]\n',
}
"""What is added to a plain job; a section that it has already gets more lines."""
_PLAIN = {
    "input": 'path = "in.parquet"\nid = "id"\n',
    "prompt": 'template = "Judge: {{ text }}"\n',
    "model": 'name = "gemini-3.5-flash-lite"\nmax_output_tokens = 200\n',
    "limits": "rpm = 0\ntpm = 0\n",
    "output": 'path = "out.parquet"\n',
}
ANSWER = '{"mood": "good", "score": 0.5, "topics": ["price", "delivery"]}'
RAW = orjson.dumps(
    {
        "candidates": [{"content": {"parts": [{"text": ANSWER}], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 250, "candidatesTokenCount": 20, "totalTokenCount": 270},
        "modelVersion": "gemini-3.5-flash-lite",
    }
)


class Instant(Stub):
    """Answers at once, always the same."""

    async def generate(self, prompt: Prompt, target: Target) -> Reply:
        return changed(parse_reply(RAW), endpoint=target.endpoint, finished_at=time.time())


async def quiet(monitor: Monitor) -> None:
    await anyio.sleep_forever()


def job_file(feature: str) -> str:
    sections, more, name = dict(_PLAIN), FEATURES[feature], ""
    lists = ""
    for line in more.splitlines(keepends=True):
        if line.startswith("["):
            name = line.strip().strip("[]")
            lists += line if line.startswith("[[") else ""
        elif f"[[{name}]]" in lists:
            lists += line
        else:
            sections[name] = sections.get(name, "") + line
    if "flow" in sections["prompt"]:
        sections["prompt"] = sections["prompt"].partition("\n")[2]
    return "".join(f"[{name}]\n{lines}" for name, lines in sections.items()) + lists


def once(feature: str, rows: int) -> None:
    """One run; prints the CPU of a row in µs."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    filler = "the market report of the quarter shows that costs were lower than planned and " * 13
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"XDG_STATE_HOME": folder, "GEMINI_API_KEY": "AQ.bench"}
        table = pl.DataFrame(
            {"id": [f"r{n}" for n in range(rows)], "text": [f"{n} {filler}"[:1000] for n in range(rows)]}
        )
        table.write_parquet("in.parquet", row_group_size=20_000)
        Path("job.toml").write_text(job_file(feature))
        cpu = time.process_time()
        prepared = prepare.prepare(load(Path("job.toml")), prepare.Options())
        ended = anyio.run(
            run.run, prepared, lambda *_: None, quiet, opening_of(Instant()), backend_options={"use_uvloop": True}
        )
        spent = time.process_time() - cpu
        assert ended.summary.outcomes["ok"] == rows, ended.summary.outcomes
        print(spent / rows * 1e6)


def main(rows: int, rounds: int) -> None:
    told: dict[str, list[float]] = {feature: [] for feature in FEATURES}
    for _ in range(rounds):
        for feature, spent in told.items():
            command = [sys.executable, __file__, "--once", feature, str(rows)]
            spent.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    plain = statistics.median(told["plain"])
    for feature, spent in told.items():
        middle = statistics.median(spent)
        print(f"{feature:15} {middle:5.0f} us a row ({min(spent):.0f}–{max(spent):.0f})   {middle / plain:.2f} x")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        once(sys.argv[2], int(sys.argv[3]))
    else:
        numbers = [int(argument) for argument in sys.argv[1:]]
        main(numbers[0] if numbers else 20_000, numbers[1] if len(numbers) > 1 else 3)
