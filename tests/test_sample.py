"""`--sample N`: rows of all kinds first, kept, and the run goes on from them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from commands import Ran
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import served, stats
from test_plan_picks import found_of

from pipeline.plan.picks import pick_sample
from pipeline.plan.survey import survey
from pipeline.run.sampling import sample
from pipeline.source import open_source

TEXTS = (
    *(f"short text {number}" for number in range(12)),
    *(" ".join(f"word{number}x{place}" for place in range(300)) for number in range(4)),
    *(f"短文本{number}" for number in range(3)),
    *("长文本" + "".join(chr(0x4E00 + number * 600 + place) for place in range(600)) for number in range(3)),
)


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with served(batch=True, tokenizer="subword") as address:
        yield address


@pytest.fixture
def url(service: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A service that answers as a real one, and counts what it is asked."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    return service


def requests(url: str) -> int:
    return int(stats(url)["requests"])


def write(
    here: Path, texts: tuple[str, ...] = TEXTS, template: str = "Say {{ text }}", most: int = 2000, more: str = ""
) -> Path:
    pl.DataFrame({"id": [f"r{TEXTS.index(text)}" for text in texts], "body": texts}).write_csv(here / "texts.csv")
    path = Path("small.toml")
    path.write_text(
        '[input]\npath = "texts.csv"\nid = "id"\ntext = "body"\n'
        f'[prompt]\ntemplate = "{template}"\n[chunk]\nmax_tokens = 200\noverlap_tokens = 0\n'
        '[reduce]\ntemplate = "Merge {{ parts }}"\n'
        f'[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = {most}\n{more}\n'
        '[limits]\nrpm = 0\ntpm = 0\n[output]\npath = "out.parquet"\n'
    )
    return path


def run(cli: Callable[..., Ran], job: Path, *flags: object, code: int = 0) -> Any:
    ran = cli("run", job, "--yes", "--json", *flags)
    assert ran.code == code, ran.err
    return ran.json


def answered(cli: Callable[..., Ran]) -> dict[str, str]:
    return {row["key"]: row["response"] for row in map(json.loads, cli("show", "small", "--json").out.splitlines())}


def test_a_sample_is_kept_and_the_run_goes_on_from_it(here: Path, cli: Callable[..., Ran], url: str) -> None:
    job, before = write(here), requests(url)
    told = cli("estimate", job, "--sample", 6, "--json").json
    assert requests(url) == before and told["documents"] == 6
    assert any("of a sample of 6 of 22 rows, 2 kinds of script, " in notice for notice in told["notices"])

    ran = cli("run", job, "--yes", "--json", "--sample", 6)
    some = ran.json
    assert ran.code == 0 and some["status"] == "sample" and some["ok"] == 6 and some["rows"] == 22
    assert told["prompts_range"]["low"] <= some["calls"] == requests(url) - before <= told["prompts_range"]["high"]
    assert "sample of 6 rows, 2 kinds of script, " in " ".join(ran.err.split())
    assert not Path("out.parquet").exists() and some["accuracy"] is None
    report = " ".join(cli("report", "small").out.split())
    assert "16 not reached" in report and "it was a sample of 6 rows: `pipeline show runs/small`" in report
    assert "`pipeline run small.toml` does the other 16 rows" in report
    sampled = answered(cli)
    assert {TEXTS[int(key[1:])][:3] for key in sampled} == {"sho", "wor", "短文本", "长文本"}

    again = cli("run", job, "--yes", "--json", "--sample", 6)
    assert again.code == 0 and again.json == some and "the sample of 6 rows is done" in again.err
    more = run(cli, job, "--sample", 8)
    assert more["ok"] == 8 and sampled.items() <= answered(cli).items(), "a larger one has those of a smaller one"

    whole = run(cli, job)
    fresh = run(cli, job, "--fresh", "--out", "fresh.parquet")
    assert whole["status"] == "finished" and whole["calls"] == fresh["calls"]
    assert requests(url) - before == 2 * whole["calls"], "nothing was bought twice"
    columns = ("id", "status", "response", "cost_usd")
    assert pl.read_parquet("out.parquet").select(columns).equals(pl.read_parquet("fresh.parquet").select(columns))


def test_an_edit_is_tried_on_a_sample_and_compared(here: Path, cli: Callable[..., Ran], url: str) -> None:
    run(cli, write(here))
    edited = run(cli, write(here, template="Sing {{ text }}"), "--sample", 5)
    assert (edited["generation"], edited["status"], edited["ok"]) == (2, "sample", 5)
    assert pl.read_parquet("out.parquet").height == len(TEXTS), "the output stays as it was"
    told = json.loads(cli("diff", "--json").out.splitlines()[0])
    assert (told["changed"], told["gone"], told["not_reached"]) == (5, 0, 17)
    assert "17 not reached by the second so far" in " ".join(cli("diff").out.split())
    # Where the table has changed too, ids say which rows are there.
    run(cli, write(here, TEXTS[2:], template="Shout {{ text }}"), "--sample", 5)
    told = json.loads(cli("diff", "small@1", "small", "--json").out.splitlines()[0])
    assert told["matched_by"] == "id" and (told["changed"], told["gone"], told["not_reached"]) == (5, 2, 15)


def test_a_sample_of_batches_is_asked_at_once_and_priced_so(here: Path, cli: Callable[..., Ran], url: str) -> None:
    job = write(here, more='lane = "batch"')
    told = cli("estimate", job, "--sample", 4, "--json").json
    dearer = cli("estimate", write(here), "--sample", 4, "--json").json
    assert told["cost_usd"] == dearer["cost_usd"] and not told["lanes"]
    ran = cli("run", write(here, more='lane = "batch"'), "--yes", "--json", "--sample", 4)
    assert "in the standard lane, to be there soon" in " ".join(ran.err.split())
    assert list(ran.json["lanes"]) == ["standard"] and not ran.json["batches"]


def test_a_sample_that_was_stopped_is_gone_on_with_as_one(here: Path, cli: Callable[..., Ran], url: str) -> None:
    job = write(here)
    job.write_text(job.read_text() + "[budget]\nmax_usd = 0.0000001\n")
    stopped = cli("run", job, "--yes", "--sample", 3)
    assert stopped.code == 3 and "`pipeline run small.toml --sample 3`" in " ".join(cli("report").out.split())


def test_a_sample_whose_rows_are_not_all_ok_says_so(here: Path, cli: Callable[..., Ran], url: str) -> None:
    job = write(here, most=2)
    assert run(cli, job, "--sample", 2, code=1)["truncated"] == 2
    assert run(cli, job, "--sample", 2, code=1)["truncated"] == 2


@pytest.mark.parametrize(("command", "flag"), [("run", "--limit"), ("run", "--retry"), ("estimate", "--pilot")])
def test_two_flags_that_say_which_rows_are_refused(
    here: Path, cli: Callable[..., Ran], command: str, flag: str
) -> None:
    refused = cli(command, write(here), "--sample", 3, flag, "truncated" if flag == "--retry" else 3)
    assert refused.code == 2 and f"--sample and {flag} each say which rows" in refused.err


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=60), number=st.integers(1, 30))
def test_a_larger_sample_has_the_rows_of_a_smaller_one(sizes: list[int], number: int) -> None:
    found = found_of(sizes, [size % 3 for size in sizes])
    smaller, larger = (sample(found, each).rows for each in (number, number + 1))
    assert smaller <= larger and len(smaller) == min(number, len(sizes))


def test_the_same_rows_come_wherever_they_stand(tmp_path: Path) -> None:
    texts = [f"text {number} " + "word " * (number % 40) for number in range(300)]

    def chosen(order: list[str]) -> set[str]:
        pl.DataFrame({"body": order}).write_parquet(tmp_path / "t.parquet")
        source = open_source(str(tmp_path / "t.parquet"), text="body")
        return {order[row] for row in pick_sample(survey(source, len(order)), None, 12).numbers}

    mixed = Random(1).sample(texts, len(texts))
    assert chosen(texts) == chosen(mixed)
    assert len(chosen(texts) & chosen([*texts, *(f"more {number}" for number in range(20))])) >= 9
