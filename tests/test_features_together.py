"""Jobs that ask for several things at once: refused by name before anything is sent, or done as if each were alone."""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import served, stats
from sessions import run_through

from jobs import write_job
from pipeline import estimating
from pipeline.errors import PipelineError
from pipeline.estimating import Wishes
from pipeline.job import Job, load
from pipeline.run import prepare
from pipeline.run.exporting import view
from pipeline.run.prepare import Options
from pipeline.store import batched
from pipeline.store.parts import part_paths, read_part

Features = dict[str, dict[str, Any]]
ROWS = 9
SECRET = "lin.wei@example.com"
_NUMBERS = count()

FEATURES: Mapping[str, Features] = {
    "plain": {"prompt": {"template": "About {{ id }}: {{ text }}"}},
    "reduce": {
        "prompt": {"template": "Part {{ chunk }}: {{ text }}"},
        "chunk": {"max_tokens": 120, "overlap_tokens": 20},
        "reduce": {"template": "Merge:\n{{ parts }}"},
    },
    "refine": {
        "prompt": {"template": "Begin: {{ text }}"},
        "chunk": {"max_tokens": 120},
        "refine": {"template": "So far: {{ summary }}\nMore: {{ text }}"},
    },
    "conversation": {
        "prompt": {"template": None, "flow": "conversation", "turns": ["Read {{ text }}", "And now {{ id }}?"]}
    },
    "messages": {"input": {"messages": "talk"}},
    "examples": {"prompt": {"examples": [{"input": "About x: y", "output": "z"}]}},
    "image": {"input": {"image": "picture"}},
    "schema": {"output": {"schema": "topic: str, score: int?, words: [str]"}},
    "repair": {"output": {"schema": "topic: str, kind: a|b", "repair": True}},
    "tools": {"tools": {"google_search": True, "code_execution": True}},
    "functions": {"tools": {"function": [{"name": "book", "parameters": {"type": "object", "properties": {}}}]}},
    "pack": {"pack": {"rows": 4}},
    "fields": {"model": {"temperature": 0.5, "seed": 3, "labels": {"team": "x"}, "thinking": "low"}},
    "capped": {"budget": {"max_usd": 1.0}},
    "check": {"check": {"holds": "length(response) > 0", "retry": True}},
    "strict check": {"check": {"holds": "length(response) > 100000", "retry": True}},
    "redact": {"redact": {"kinds": ["email"]}},
    "restore": {"redact": {"kinds": ["email"], "restore": True}},
    "pdf": {"input": {"pdf": "document"}},
    "headings": {"chunk": {"context": "headings", "max_tokens": 256}},
    "stream": {"model": {"stream": True}},
    "prefix_cache": {"model": {"prefix_cache": True}},
    "where": {"input": {"where": "id <> 'r3'"}},
    "openai": {"endpoint": {"provider": "openai"}},
    "batch lane": {"model": {"lane": "batch"}},
    "flex lane": {"model": {"lane": "flex"}},
    "auto lane": {"model": {"lane": "auto"}},
}
FLOWS = ("plain", "reduce", "refine", "conversation")
OTHERS = tuple(name for name in FEATURES if name not in FLOWS)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(tokenizer="subword", batch=True, batch_pending_s=0.1, batch_run_s=0.1, batch_spread=1.0) as url:
        yield url


@pytest.fixture(scope="module", autouse=True)
def _asked_after_often() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.batch.watching.POLL_S", (0.1, 0.5))
        yield


def table(directory: Path, salt: int) -> Path:
    """Short and long texts, one that is empty, one that another row has too, a conversation and a picture each."""
    samples = Path(__file__).parent.parent / "sample_data"
    pictures, papers = sorted(samples.glob("images/*.png")), sorted(samples.glob("pdfs/*.pdf"))
    for path in (*pictures, *papers):
        (directory / path.name).write_bytes(path.read_bytes())
    lines = []
    for number in range(ROWS):
        words = " ".join(f"word{salt} of {number} is said." for _ in range(1 + 40 * (number % 3)))
        text = {4: "", 5: f"word{salt} twice", 8: f"word{salt} twice"}.get(number, f"{words} Write to {SECRET}.")
        talk = [{"role": "user", "content": f"q{number} {salt}"}, {"role": "assistant", "content": "a"}]
        files = {"picture": pictures[number % len(pictures)].name, "document": papers[number % len(papers)].name}
        lines.append({"id": f"r{number}", "body": text, "talk": talk, **files})
    path = directory / "table.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    return path


def written(directory: Path, url: str, chosen: tuple[str, ...], suffix: str) -> Path:
    salt = next(_NUMBERS)
    sections: Features = {
        "input": {"path": str(table(directory, salt)), "id": "id", "text": "body"},
        "prompt": {"system": f"Job {salt}."},  # else a row of a file and no text asks what another job asked
        "model": {"name": "gemini-3.5-flash-lite", "max_output_tokens": 400},
        "limits": {"rpm": 0, "tpm": 0},
        "endpoint": {"base_url": url},
        "output": {"path": str(directory / f"out{suffix}")},
    }
    for name in chosen:
        for section, values in FEATURES[name].items():
            sections[section] = {**sections.get(section, {}), **values}
    checks = sections.pop("check", None)
    path = write_job(directory, {}, **sections)
    if checks:
        path.write_text(
            "[[check]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in checks.items()) + path.read_text()
        )
    return path


def opened(path: Path) -> prepare.Session | PipelineError:
    try:
        return prepare.prepare(load(path), Options())
    except PipelineError as refused:
        return refused


def bought(job: Job, session: prepare.Session) -> pl.DataFrame:
    columns = ("row", "step", "paid", "lane", "cost_usd", "fingerprint", "input_tokens", "tool_tokens")
    paths = [*part_paths(session.directory / "calls"), *batched.part_paths(session.directory)]
    return pl.concat([read_part(path, columns) for path in paths])


def whole_parts(directory: Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(path) for path in directory.glob("part-*.parquet")]


def read(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_ndjson(path, infer_schema_length=None)


@given(
    st.sampled_from(FLOWS),
    st.sets(st.sampled_from(OTHERS), max_size=5).map(sorted),
    st.sampled_from([".parquet", ".csv", ".jsonl"]),
)
@settings(max_examples=25, deadline=None)
def test_what_goes_together_is_done_and_what_does_not_is_refused_before_anything_is_sent(
    tmp_path_factory: pytest.TempPathFactory, url: str, flow: str, others: list[str], suffix: str
) -> None:
    directory = tmp_path_factory.mktemp("mix")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("GEMINI_API_KEY", "AQ.test")
        patch.setenv("OPENAI_API_KEY", "sk-test")
        together(directory, url, (flow, *others), suffix)


@pytest.mark.parametrize("other", OTHERS)
def test_each_is_done_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, other: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    flow = "reduce" if other == "headings" else "plain"
    assert together(tmp_path, url, (flow, other), ".parquet"), "it is not refused"


def together(directory: Path, url: str, chosen: tuple[str, ...], suffix: str) -> bool:
    """Whether the job was done; False where it was refused."""
    before = stats(url)
    session = opened(written(directory, url, chosen, suffix))
    if isinstance(session, PipelineError):
        assert session.message and "Traceback" not in session.message
        assert stats(url)["requests"] == before["requests"], "nothing is sent for a job that is refused"
        return False
    plan = anyio.run(estimating.estimate, session, Wishes()).plan
    ended = run_through(session)
    after = stats(url)
    assert ended.stopped is None and ended.unwritten is None, (ended.stopped, ended.unwritten)
    rows = read(directory / f"out{suffix}")
    expected = [f"r{number}" for number in range(ROWS) if "where" not in chosen or number != 3]
    assert rows["id"].to_list() == expected, "each row once, in order"
    assert set(rows["status"]) <= {"ok", "invalid", "truncated"}, rows["error"].to_list()
    calls = bought(session.job, session)
    paid = calls.filter(pl.col("paid"))
    assert after["bought_twice"] == before["bought_twice"]
    assert after["batches"]["lines_billed_twice"] == before["batches"]["lines_billed_twice"]
    if (lane := session.job.choice) != "auto":
        assert lane in set(paid["lane"]), "it is used"
    assert not list(session.directory.glob("batches/*.jsonl")), "what was sent in batches is kept no longer"
    off = Decimal(str(rows["cost_usd"].sum())) - Decimal(calls["cost_usd"].sum())
    assert abs(off) < Decimal("1e-9"), "no cost is lost"
    assert all(usd > 0 for usd in paid["cost_usd"])
    requests = after["answered"] - before["answered"]
    assert plan.prompts.low <= requests <= plan.prompts.high, (plan.prompts, requests)
    if not {"reduce", "repair", "check", "strict check"} & {*chosen}:
        assert requests == plan.prompts.expected, (plan.prompts, requests)
    unknown = "tools" in chosen or {"functions", "openai"} <= {*chosen}  # what is read, and how others count functions
    if not unknown:
        tokens = sum(calls.select("input_tokens", "tool_tokens").sum().row(0))
        assert plan.input_tokens.low <= tokens <= plan.input_tokens.high, (plan.input_tokens, tokens)
    told = (session.directory / "run.log").read_text("utf-8")
    assert SECRET not in told and "AQ.test" not in told
    if {"redact", "restore"} & {*chosen}:
        kept = [path.read_text("utf-8", "replace") for path in session.directory.glob("journal-*")]
        kinds = ("calls", "results", "batched")
        kept += [frame.write_json() for kind in kinds for frame in whole_parts(session.directory / kind)]
        assert not any(SECRET in each for each in kept), "what is redacted is kept nowhere"
    found = view(session.directory)
    found.put(directory / f"by hand{suffix}", overwrite=False)
    assert not found.lacks, "all of it is written at will, too"
    assert (directory / f"by hand{suffix}").read_bytes() == (directory / f"out{suffix}").read_bytes()
    again = run_through(opened_again(session))
    assert stats(url)["requests"] == after["requests"], "nothing is bought again"
    assert again.stopped is None and read(directory / f"out{suffix}").equals(rows)
    return True


def opened_again(session: prepare.Session) -> prepare.Session:
    again = opened(session.job.path)
    assert isinstance(again, prepare.Session)
    return again


@pytest.mark.long
@pytest.mark.parametrize("first", FLOWS)
@pytest.mark.parametrize("second", OTHERS)
def test_each_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, first: str, second: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    for suffix in (".parquet", ".csv", ".jsonl"):
        place = tmp_path / suffix[1:]
        place.mkdir()
        monkeypatch.chdir(place)
        together(place, url, (first, second), suffix)
