"""What version 4e32c8b bought is not bought again: a run that it left killed, and its cache of answers.

`data/run_of_4e32c8b` is a real run of 12 texts against the emulator, killed while 2 of its 50 requests were in flight.
"""

import json
import shutil
from pathlib import Path

import anyio
import polars as pl
import pytest
from serving import served, stats
from sessions import run_through

from pipeline.cache import AnswerCache
from pipeline.events import Event
from pipeline.job import load
from pipeline.providers.stored import parse_stored
from pipeline.run import prepare
from pipeline.shelves import SqliteShelf
from pipeline.targets import Target

KEPT = Path(__file__).parent / "data" / "run_of_4e32c8b"
CALLS = 50
"""All calls of the job, if nothing was bought before."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(KEPT, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    return tmp_path / "project"


def go_on(url: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the job to its end; returns how many requests were answered."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    ended = run_through(prepare.prepare(load(Path("job.toml")), prepare.Options()))
    assert (ended.exit_code, ended.summary.outcomes["ok"] + ended.summary.outcomes["truncated"]) == (0, 12), ended
    return int(stats(url)["answered"])


def test_a_killed_run_goes_on_and_buys_only_what_is_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "answers.sqlite").unlink()
    before = {*_answers(here), *_in_journal(here)}
    with served(model_version=None) as url:
        answered = go_on(url, monkeypatch)
    bought = _paid(here)["fingerprint"].to_list()
    assert len(bought) == len(set(bought)) == CALLS, "each content once, also what was bought by the older version"
    assert before < set(bought) and answered == CALLS - len(before)


def test_a_cache_still_answers(here: Path) -> None:
    """The fingerprints that it was asked for then are those of today, as the test above shows."""
    served_then = Target("gemini", "http://127.0.0.1:34265", "project", "gemini-3.5-flash-lite")
    whole = {**_answers(here), **_in_journal(here)}

    async def found() -> dict[str, str]:
        shelf = SqliteShelf(here / "answers.sqlite", max_age_days=10_000, max_mb=10)
        texts: dict[str, str] = {}
        async with AnswerCache(shelf, parse_stored, heard.append) as cache:
            for fingerprint in whole:
                if reply := await cache.get(fingerprint, served_then):
                    texts[fingerprint] = reply.text
        return texts

    heard: list[Event] = []
    texts = anyio.run(found)
    assert len(texts) == 14 and not heard, "those that were written when it was killed"
    assert texts == {fingerprint: whole[fingerprint] for fingerprint in texts}


def _paid(here: Path) -> pl.DataFrame:
    calls = [pl.read_parquet(path) for path in here.glob("runs/job/calls/*.parquet")]
    return pl.concat(calls, how="diagonal").filter(pl.col("paid"))


def _answers(here: Path) -> dict[str, str]:
    """Fingerprint → text of what is sealed; a text that is its row's result stands there."""
    results = pl.read_parquet(here / "runs/job/results/part-000001.parquet").select("row", "response")
    paid = _paid(here).join(results, on="row").with_columns(pl.coalesce("text", "response"))
    return dict(paid.select("fingerprint", "text").iter_rows())


def _in_journal(here: Path) -> dict[str, str]:
    """Fingerprint → text of what is not sealed."""
    [path] = here.glob("runs/job/journal-*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    calls = [record["call"] for record in records if "raw" in record.get("call", ())]
    return {call["fingerprint"]: call["raw"]["candidates"][0]["content"]["parts"][0]["text"] for call in calls}
