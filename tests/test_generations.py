"""An edit of a job or its input begins the next generation of its run, which buys only what is new."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from commands import Ran
from serving import served, served_each, stats

from pipeline import report
from pipeline.emulator import EmulatorOptions
from pipeline.process import make_private
from pipeline.run import generations
from pipeline.store import seals
from pipeline.store.manifest import read as read_manifest

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
TABLE = ("append", "remove", "move", "change", "double")
CHOICES: dict[str, tuple[Any, ...]] = {
    "template": ("Say {{ text }}", "Sing {{ text }}"),
    "system": ("Be kind.", "Be short."),
    "merge": ("Merge:", "Join:"),
    "cap": (8000, 9000, 10_000),
    "chunk": (150, 200, 260),
    "overlap": (0, 20, 60),
    "model": ("gemini-3.5-flash-lite", "gemini-3-flash-preview", "two"),
}
"""Edits of the job: each takes one of these, and so goes back at times."""
TWO = (
    "gemini-3.8-flash",
    '[[target]]\nname = "short"\n[[target]]\nname = "long"\nmodel = "gemini-3.1-pro-preview"\n'
    "[[route]]\nwhere = \"LENGTH(body) < 100\"\ntargets = ['short']\n[[route]]\ntargets = ['long']\n",
)
"""Two models, of which the content of a row says which: what one was asked the other is not."""
LONG = " ".join(f"word{number}" for number in range(400))


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service that answers as a real one, and counts what it is asked."""
    with served() as address:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", address)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        yield address


def write_job(
    here: Path,
    rows: list[tuple[str, str]] | None = None,
    template: str = "Say {{ text }}",
    system: str = "Be kind.",
    cap: int = 200,
    merge: str = "",
    more: str = "",
    chunk: int = 200,
    overlap: int = 0,
    model: str = "gemini-3.5-flash-lite",
) -> Path:
    """A job over rows of (id, body); with a template to `merge` long ones are cut. `two` models: long rows have one."""
    table = rows if rows is not None else [(str(number), word) for number, word in enumerate(WORDS)]
    pl.DataFrame({"id": [key for key, _ in table], "body": [body for _, body in table]}).write_csv(here / "words.csv")
    cut = (
        f'[chunk]\nmax_tokens = {chunk}\noverlap_tokens = {overlap}\n[reduce]\ntemplate = "{merge} {{{{ parts }}}}"\n'
        if merge
        else ""
    )
    name, targets = TWO if model == "two" else (model, "")
    (here / "small.toml").write_text(
        '[input]\npath = "words.csv"\nid = "id"\ntext = "body"\n'
        f'[prompt]\nsystem = "{system}"\ntemplate = "{template}"\n{cut}'
        f'[model]\nname = "{name}"\nmax_output_tokens = {cap}\n'
        f'[limits]\nrpm = 0\ntpm = 0\n[output]\npath = "out.parquet"\n{targets}{more}\n'
    )
    return here / "small.toml"


def counted(url: str) -> int:
    return int(stats(url)["requests"])


def answers(path: Path | str = "out.parquet") -> list[tuple[Any, ...]]:
    columns = ("id", "status", "response", "input_tokens", "output_tokens", "cost_usd")
    return pl.read_parquet(path).select(columns).rows()


def answers_of(cli: Callable[..., Ran], job: Path) -> list[tuple[Any, ...]]:
    """The answers of a run that buys nothing."""
    assert run(cli, job)["calls"] == 0
    return answers()


def run(cli: Callable[..., Ran], job: Path, *flags: object) -> Any:
    ran = cli("run", job, "--yes", "--json", *flags)
    assert ran.code in (0, 1), ran.err
    return ran.json


def test_an_appended_a_changed_and_a_removed_row(here: Path, cli: Callable[..., Ran], url: str) -> None:
    first = run(cli, write_job(here))
    rows = [("x", "new"), *((str(number), word) for number, word in enumerate(WORDS[1:], 1))]
    rows[1] = ("1", "another")
    again = cli("run", write_job(here, rows), "--yes", "--json")
    assert counted(url) == len(WORDS) + 2
    assert "1 new, 1 changed, 1 gone; 4 answers kept" in " ".join(again.err.split())
    told = again.json
    assert (told["generation"], told["calls"], told["kept"]) == (2, 2, 4)
    assert told["before_usd"] == pytest.approx(first["cost_usd"])
    table = pl.read_parquet("out.parquet")
    assert table["status"].to_list() == ["ok"] * 6
    # The rows have what their answers cost, whoever paid: what this generation did, and what was kept.
    assert float(table["cost_usd"].sum()) == pytest.approx(told["cost_usd"] + told["kept_usd"])


def test_a_prompt_that_is_reverted_costs_nothing(here: Path, cli: Callable[..., Ran], url: str) -> None:
    run(cli, write_job(here))
    before = answers()
    edited = run(cli, write_job(here, template="Sing {{ text }}"))
    assert (edited["calls"], edited["kept"]) == (6, 0)
    back = run(cli, write_job(here))
    assert (back["generation"], back["calls"], back["kept"]) == (3, 0, 6)
    assert counted(url) == 12 and answers() == before


def test_a_changed_merge_buys_the_merges_alone(here: Path, cli: Callable[..., Ran], url: str) -> None:
    rows = [("a", LONG), ("b", "short"), ("c", LONG + " end")]
    first = run(cli, write_job(here, rows, merge="Merge:"))
    again = run(cli, write_job(here, rows, merge="Join:"))
    assert again["calls"] == 2 and again["kept"] == first["calls"] - 2
    assert counted(url) == first["calls"] + 2


def test_a_higher_limit_keeps_whole_answers_and_redoes_cut_ones_when_asked(
    here: Path, cli: Callable[..., Ran], url: str
) -> None:
    rows = [("a", "short"), ("b", LONG), ("c", "brief")]
    cut = run(cli, write_job(here, rows, cap=20))["truncated"]
    assert 0 < cut < 3
    kept = cli("run", write_job(here, rows, cap=900), "--yes", "--json")
    assert (kept.json["calls"], kept.json["truncated"]) == (0, cut)
    assert "`--retry truncated` buys those anew" in " ".join(kept.err.split())
    redone = run(cli, write_job(here, rows, cap=901), "--retry", "truncated")
    assert (redone["generation"], redone["calls"], redone["truncated"]) == (3, cut, 0)
    lower = run(cli, write_job(here, rows, cap=19))
    assert (lower["kept"], lower["calls"]) == (3 - cut, cut), "what is longer than the new limit is asked for under it"


def test_a_row_redone_with_set_keeps_its_answer(here: Path, cli: Callable[..., Ran], url: str) -> None:
    rows = [("a", "short"), ("b", LONG)]
    run(cli, write_job(here, rows, cap=20))
    run(cli, here / "small.toml", "--retry", "truncated", "--set", "max_output_tokens=900")
    asked, before = counted(url), answers()
    told = run(cli, write_job(here, [*rows, ("c", "more")], cap=20))
    assert (counted(url) - asked, told["ok"]) == (1, 3)
    assert [row[:3] for row in answers()[:2]] == [row[:3] for row in before]


def test_nothing_is_written_or_sent_by_a_dry_run(here: Path, cli: Callable[..., Ran], url: str) -> None:
    run(cli, write_job(here))
    job = write_job(here, [("0", "alpha"), ("y", "new")])
    there = sorted(str(path) for path in here.rglob("*"))
    said = cli("run", job, "--dry-run")
    assert said.code == 0 and counted(url) == 6
    assert "1 new, 5 gone; 1 answer kept" in " ".join(said.err.split()) and "1 call," in said.err
    assert sorted(str(path) for path in here.rglob("*")) == there
    estimate = cli("estimate", job, "--json").json
    assert estimate["prompts"] == 1 and "1 answer of runs/small is kept" in estimate["notices"][0]
    foreseen = cli("run", job, "--dry-run", "--json").json
    assert (foreseen.keys(), foreseen["prompts"]) == (estimate.keys(), 1) and estimate["notices"][0] in foreseen[
        "notices"
    ]
    assert counted(url) == 6


def test_a_dry_run_of_a_redo_counts_the_rows_that_are_redone(here: Path, cli: Callable[..., Ran], url: str) -> None:
    job = write_job(here, [("a", "short"), ("b", LONG)], cap=20)
    run(cli, job)
    for flags, calls in (
        (["--retry", "truncated", "--set", "max_output_tokens=900"], 1),
        (["--retry", "truncated"], 1),
        (["--skip-failed"], 0),
        ([], 0),
    ):
        assert cli("run", job, *flags, "--dry-run", "--json").json["prompts"] == calls, flags
    redone = cli("run", job, "--retry", "truncated", "--set", "max_output_tokens=900", "--yes")
    assert "1 call," in redone.err, redone.err


def test_whoever_says_no_keeps_the_run_as_it_was(here: Path, cli: Callable[..., Ran], url: str) -> None:
    run(cli, write_job(here))
    job = write_job(here, template="Sing {{ text }}")
    assert cli("run", job).code == 2, "nobody is here to agree"
    assert [path.name for path in (here / "runs").iterdir()] == ["small"]
    assert run(cli, write_job(here))["calls"] == 6 == counted(url)


def test_a_cap_counts_what_earlier_generations_spent(here: Path, cli: Callable[..., Ran], url: str) -> None:
    spent = run(cli, write_job(here))["cost_usd"]
    capped = f"[budget]\nmax_usd = {spent * 1.5:.8f}"
    ran = cli("run", write_job(here, template="Sing {{ text }}", more=capped), "--yes", "--json")
    assert ran.code == 3, ran.err
    assert ran.json["before_usd"] + ran.json["cost_usd"] <= spent * 1.5


def test_another_job_of_this_name_and_batches_that_are_out_are_refused_as_before(
    here: Path, cli: Callable[..., Ran], url: str
) -> None:
    run(cli, write_job(here))
    (here / "other").mkdir()
    shutil.copy(write_job(here, template="Sing {{ text }}"), here / "other" / "small.toml")
    refused = cli("run", here / "other" / "small.toml", "--yes")
    assert refused.code == 2 and "the job file" in refused.err


def test_set_waits_for_the_next_generation(here: Path, cli: Callable[..., Ran], url: str) -> None:
    run(cli, write_job(here))
    ran = cli(
        "run", write_job(here, template="Sing {{ text }}"), "--yes", "--retry", "truncated", "--set", "temperature=1"
    )
    assert ran.code == 2 and "leave out `--retry` and `--set` first" in ran.err


@pytest.mark.parametrize("at", ["write_manifest", "rename", "after mkdir", "settle"])
def test_a_kill_while_a_generation_begins_is_mended(
    here: Path, cli: Callable[..., Ran], url: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    run(cli, write_job(here))
    job = write_job(here, template="Sing {{ text }}")

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as broken:
        if at == "rename":
            broken.setattr(Path, "rename", killed)
        elif at == "after mkdir":
            make = make_private

            def made_and_killed(path: Path) -> None:
                make(path)
                killed()

            broken.setattr(generations, "make_private", made_and_killed)
        else:
            broken.setattr(generations, at, killed)
        with suppress(Killed):
            assert cli("run", job, "--yes").code not in (0, 1)
    again = run(cli, job)
    assert again["ok"] == 6 and again["generation"] == 2
    manifest = read_manifest(here / "runs" / "small" / "manifest.json")
    assert manifest and len(manifest.after) == 1
    assert run(cli, write_job(here))["kept"] == 6
    assert not list((here / "runs").glob("*.next.json"))


def test_a_fresh_run_keeps_nothing(here: Path, cli: Callable[..., Ran], url: str) -> None:
    run(cli, write_job(here))
    fresh = run(cli, write_job(here), "--fresh")
    assert (fresh["calls"], fresh["kept"], fresh["generation"], fresh["before_usd"]) == (6, 0, 2, 0)
    assert counted(url) == 12


def test_a_directory_that_is_gone_is_named_and_bought_again(here: Path, cli: Callable[..., Ran], url: str) -> None:
    run(cli, write_job(here))
    run(cli, write_job(here, template="Sing {{ text }}"), "--limit", 3, "--overwrite")
    for path in (here / "runs").glob("small.*Z"):
        shutil.rmtree(path)
    ran = cli("run", write_job(here), "--yes", "--json")
    assert "is gone or damaged" in ran.err
    assert (ran.json["kept"], ran.json["ok"]) == (0, 6)


def test_a_part_that_is_gone_costs_what_it_held(here: Path, cli: Callable[..., Ran], url: str) -> None:
    run(cli, write_job(here), "--limit", 2)
    run(cli, write_job(here))
    run(cli, write_job(here, template="Sing {{ text }}"))
    (before,) = (here / "runs").glob("small.*Z")
    first, *_ = sorted((before / "calls").iterdir())
    first.unlink()
    ran = cli("run", write_job(here), "--yes", "--json")
    assert (ran.json["kept"], ran.json["calls"], ran.json["ok"]) == (4, 2, 6)
    assert f"{first.relative_to(here)} is gone or damaged: what only it held" in " ".join(ran.err.split())


def test_an_answer_that_was_judged_is_bought_anew_when_asked_and_counts_once(
    here: Path, cli: Callable[..., Ran], url: str
) -> None:
    rows, more = [(str(number), word) for number, word in enumerate(WORDS)], "[[check]]\nholds = \"response LIKE 'x'\""
    run(cli, write_job(here, rows[:2], more=more))
    run(cli, write_job(here, rows[:3], more=more))
    for tries in (1, 2):
        again = run(cli, here / "small.toml", "--retry", "check")
        assert (again["calls"], again["kept"]) == (1 + 3 * tries, 2)
    table = pl.read_parquet("out.parquet")
    assert float(table["cost_usd"].sum()) == pytest.approx(again["cost_usd"] + again["kept_usd"])
    edited = run(cli, write_job(here, rows[:4], more=more), "--retry", "check")
    assert (edited["calls"], edited["kept"]) == (4, 0)


def test_what_another_target_took_over_is_not_asked_again(here: Path, cli: Callable[..., Ran], url: str) -> None:
    targets = (
        '[[target]]\nname = "one"\n'
        '[[target]]\nname = "two"\nmodel = "gemini-3.5-flash"\nsame_project_as = "one"\nfallback = ["blocked"]'
    )
    rows = [(str(number), word) for number, word in enumerate(WORDS)]
    with served(faults="safety*3") as blocking, pytest.MonkeyPatch.context() as patched:
        patched.setenv("GOOGLE_GEMINI_BASE_URL", blocking)
        assert run(cli, write_job(here, rows, more=targets))["calls"] == 9
        again = run(cli, write_job(here, [*rows, ("x", "new")], more=targets), "--retry", "blocked")
    assert (again["calls"], again["kept"], again["ok"]) == (1, 9, 7)


def random_rows(rng: random.Random) -> list[tuple[str, str]]:
    return [(f"k{number}", rng.choice([f"text {number}", LONG[: rng.randrange(100, 2600)]])) for number in range(8)]


def edit(rng: random.Random, kind: str, rows: list[tuple[str, str]], settings: dict[str, Any]) -> None:
    """Make one edit of that kind of the table or the job."""
    place, name = rng.randrange(len(rows)), rng.random()
    if kind == "append":
        rows.append((f"n{name}", f"new {rng.random()}"))
    elif kind == "remove" and len(rows) > 3:
        rows.pop(place)
    elif kind == "move":
        rows.insert(rng.randrange(len(rows)), rows.pop(place))
    elif kind == "change":
        body = rng.choice([f"changed {name}", rows[place][1] + f" and {name}"])  # a longer one has pieces of before
        rows[place] = (rows[place][0], body)
    elif kind == "double":
        rows.append((f"d{name}", rows[place][1]))
    elif kind in CHOICES:
        settings[kind] = rng.choice(CHOICES[kind])


def asked(url: str) -> Counter[tuple[str, int]]:
    """What the service answered, by model and content: a limit on the length of an answer is no part of it."""
    return Counter((each["model"], each["prompt"]) for each in stats(url, log=True)["log"] if each["status"] == 200)


def differs_nowhere_from_a_fresh_run(seed: int, here: Path, cli: Callable[..., Ran], urls: list[str]) -> None:
    """Edit a job and its table at random, run it after each edit, and a fresh run of the same beside it, elsewhere."""
    rng = random.Random(seed)
    kinds = (TABLE, (*TABLE, "model", "template"), (*TABLE, *CHOICES))[
        seed % 3
    ]  # after those of a table rows are carried
    rows, elsewhere = random_rows(rng), here / "elsewhere"
    elsewhere.mkdir()
    settings: dict[str, Any] = {"cap": 8000, **({"merge": "Merge:"} if seed % 3 == 2 else {})}
    known = fresh_known = Counter[tuple[str, int]]()
    for step in range(4):
        for _ in range(rng.randrange(1, 4) if step else 0):
            edit(rng, rng.choice(kinds), rows, settings)
        shutil.rmtree(elsewhere / "runs", ignore_errors=True)
        tables = []
        for place, url in ((here, urls[0]), (elsewhere, urls[1])):
            with pytest.MonkeyPatch.context() as patched:
                patched.chdir(place)
                patched.setenv("GOOGLE_GEMINI_BASE_URL", url)
                patched.setenv("XDG_STATE_HOME", str(place / "state"))
                told = run(cli, write_job(place, rows, **settings), "--overwrite")
            assert told["ok"] == told["rows"] == len(rows)
            tables.append(answers(place / "out.parquet"))
        now, fresh_now = asked(urls[0]), asked(urls[1])
        wanted = fresh_now - fresh_known
        assert now - known == Counter(wanted.keys() - known.keys()), (seed, step, settings)
        known, fresh_known = now, fresh_now
        ours, theirs = tables
        assert [row[:3] for row in ours] == [row[:3] for row in theirs], (seed, step, settings)
        # Of rows that are alike one pays for all, whichever was asked first.
        assert sorted(row[2:] for row in ours) == sorted(row[2:] for row in theirs), (seed, step, settings)


@pytest.fixture
def two_services(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two services that answer as a real one, and remember what they were asked."""
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    with served_each([EmulatorOptions(marked=False, model_version=None, log_size=100_000)] * 2) as urls:
        yield urls


@pytest.mark.parametrize("seed", range(1, 6))
def test_after_any_row_of_edits_a_run_is_as_a_fresh_one_and_bought_what_is_new(
    here: Path, cli: Callable[..., Ran], two_services: list[str], seed: int
) -> None:
    differs_nowhere_from_a_fresh_run(seed, here, cli, two_services)


@pytest.mark.long
@pytest.mark.parametrize("seed", (0, *range(6, 100)))
def test_after_more_edits_a_run_is_as_a_fresh_one_and_bought_what_is_new(
    here: Path, cli: Callable[..., Ran], two_services: list[str], seed: int
) -> None:
    differs_nowhere_from_a_fresh_run(seed, here, cli, two_services)


def test_a_kill_while_rows_are_carried_over_costs_nothing(
    here: Path, cli: Callable[..., Ran], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cli, write_job(here), "--limit", 2)
    run(cli, write_job(here))
    job = write_job(here, [("x", "new"), *((str(number), word) for number, word in enumerate(WORDS))])

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(seals, "record", killed)  # after the first part of two
        assert cli("run", job, "--yes").code not in (0, 1)
    told = run(cli, job)
    assert (told["generation"], told["calls"], told["kept"], told["ok"]) == (2, 1, 6, 7)
    assert counted(url) == 7
    assert answers()[1:] == answers_of(cli, write_job(here))


def test_only_answers_to_the_table_that_was_asked_are_carried_over(
    here: Path, cli: Callable[..., Ran], url: str
) -> None:
    table = [(str(number), word) for number, word in enumerate(WORDS)]
    assert cli("run", write_job(here, table)).code == 2, "nobody is here to agree: the hashes of its rows are kept"
    run(cli, write_job(here, [("0", "another"), *table[1:]]))
    back = run(cli, write_job(here, table))
    assert (back["calls"], back["kept"]) == (1, 5)
    assert answers()[0][:3] == ("0", "ok", "Say alpha")


def test_a_report_of_a_generation_tells_what_was_kept(here: Path, cli: Callable[..., Ran], url: str) -> None:
    run(cli, write_job(here))
    run(cli, write_job(here, [*((str(at), word) for at, word in enumerate(WORDS)), ("6", "eta")]))
    summary = report.summarize(here / "runs" / "small")
    assert (summary.kept, summary.calls, summary.done) == (6, 1, 7)
    said = cli("report", "runs/small").out
    assert "kept calls" in said and "by earlier generations of this run" in said
    assert json.loads(cli("report", "runs/small", "--json").out)["kept"] == 6


def test_an_answer_that_was_redone_stands_before_what_a_killed_run_left(
    here: Path, cli: Callable[..., Ran], url: str
) -> None:
    rows = [(str(number), f"text {number}") for number in range(1000)]
    with served(faults="safety:0.3") as blocking:
        job = write_job(here, rows)
        command = [sys.executable, "-m", "pipeline", "run", str(job), "--yes"]
        killed = subprocess.Popen(
            command, env={**os.environ, "GOOGLE_GEMINI_BASE_URL": blocking}, stderr=subprocess.DEVNULL
        )
        while counted(blocking) < 300:
            assert killed.poll() is None
        killed.kill()
        killed.wait()
    redone = run(cli, write_job(here, rows[:20]), "--retry", "blocked")
    assert redone["ok"] == 20 and redone["calls"] > 0 < redone["kept"]
    again = run(cli, write_job(here, [*rows[:20], ("x", "new")]), "--retry", "blocked")
    assert (again["ok"], again["calls"], again["kept"]) == (21, 1, 20)
