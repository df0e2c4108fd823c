"""`--retry` of what was judged asks again, whatever was left off the answer: the old one is no answer to go on with."""

from pathlib import Path

import pytest
from asking import Stub, opening_of
from serving import served
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


RETRY = prepare.Options(retry=frozenset({"check"}))


def written(here: Path, holds: str, more: str = "") -> Path:
    path = here / "small.toml"
    (here / "words.csv").write_text("word\nalpha\nbeta\n")
    path.write_text(
        '[input]\npath = "words.csv"\n[prompt]\ntemplate = "Score {{ word }}"\n'
        '[output]\npath = "out.parquet"\nschema = "score: int"\n[limits]\nrpm = 0\ntpm = 0\n'
        f'[[check]]\nholds = "{holds}"\n[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 50\n{more}'
    )
    return path


def asked_by(service: Scores, path: Path, options: prepare.Options = RETRY) -> tuple[int, int]:
    """Rows that are ok then, and calls."""
    before = service.calls
    ended = run_through(prepare.prepare(load(path), options), opening=opening_of(service))
    return ended.summary.outcomes["ok"], service.calls - before


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


def test_a_judged_answer_that_stood_in_a_fence_is_asked_for_again(here: Path) -> None:
    path, service = written(here, "score < 5"), Scores()
    assert asked_by(service, path, prepare.Options()) == (0, 2)
    assert asked_by(service, path, prepare.Options()) == (0, 0), "it lasts"
    service.score = 3
    assert asked_by(service, path) == (2, 2)


def test_so_it_is_beside_an_edit(here: Path) -> None:
    path, service = written(here, "score < 5"), Scores()
    assert asked_by(service, path, prepare.Options()) == (0, 2)
    with (here / "words.csv").open("a") as table:
        table.write("gamma\n")
    service.score = 3
    assert asked_by(service, path) == (3, 3)


def test_so_it_is_of_what_a_batch_bought(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.batch.watching.POLL_S", (0.1, 0.3))
    with served(faults="fenced_json:1", batch=True, batch_pending_s=0.1, batch_run_s=0.1, batch_spread=1.0) as url:
        path = written(here, "score < -1000000000", f'lane = "batch"\n[endpoint]\nbase_url = "{url}"\n')
        calls = [run_through(prepare.prepare(load(path), each)).summary.calls for each in (prepare.Options(), RETRY)]
    assert calls == [2, 4]
