"""`--retry` of what was judged asks again, whatever was left off the answer: the old one is no answer to go on with."""

from pathlib import Path

import pytest
from asking import Stub, opening_of
from sessions import run_through

from pipeline.job import load
from pipeline.prompts import Prompt
from pipeline.records import Failure, Reply, Usage
from pipeline.run import prepare
from pipeline.targets import Target


class Scores(Stub):
    """Answers with a score in a fence of Markdown, and counts."""

    score, calls = 9, 0

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        self.calls += 1
        text = f'Here it is:\n```json\n{{"score": {self.score}}}\n```'
        return Reply(text, "ok", usage=Usage(5, output_tokens=5), raw=b"{}", endpoint=target.endpoint)


def test_a_judged_answer_that_stood_in_a_fence_is_asked_for_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    (here / "words.csv").write_text("word\nalpha\nbeta\n")
    path = here / "small.toml"
    path.write_text(
        '[input]\npath = "words.csv"\n[prompt]\ntemplate = "Score {{ word }}"\n[model]\n'
        'name = "gemini-3.5-flash-lite"\nmax_output_tokens = 50\n'
        '[output]\npath = "out.parquet"\nschema = "score: int"\n[limits]\nrpm = 0\ntpm = 0\n'
        '[[check]]\nholds = "score < 5"\n'
    )
    service = Scores()

    def ran(**options: frozenset[str]) -> tuple[int, int]:
        before = service.calls
        prepared = prepare.prepare(load(path), prepare.Options(**options))  # type: ignore[arg-type]
        return run_through(prepared, opening=opening_of(service)).summary.outcomes["ok"], service.calls - before

    assert ran() == (0, 2)
    assert ran() == (0, 0), "it lasts"
    service.score = 3
    assert ran(retry=frozenset({"check"})) == (2, 2)
