"""Jobs with several targets, each an emulator of its own that plays a service: who answers, who pays, what is kept."""

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from commands import Ran
from forking import forked
from serving import served_each, stats, wait_for
from sessions import run_through
from test_docs import PAGES, blocks

from jobs import PLAIN, write_job
from pipeline import report
from pipeline.emulator import EmulatorOptions, parse_faults
from pipeline.errors import JobError, PipelineError
from pipeline.job import load
from pipeline.run import prepare
from pipeline.run.services import targets_of

FLASH, LITE = "gemini-3.8-flash", "gemini-3.5-flash-lite"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("GEMINI_API_KEY", "FREE_KEY", "PAID_KEY"):
        monkeypatch.setenv(name, f"AQ.{name.lower()}-of-the-test-0123456789")
    (tmp_path / "topics.csv").write_text("topic\n" + "".join(f"the topic of row {row}\n" for row in range(60)))
    return tmp_path


def emulating(faults: str = "", **flags: Any) -> EmulatorOptions:
    return EmulatorOptions(faults=parse_faults(faults), **{"marked": False, "model_version": None, **flags})


@pytest.fixture
def serve() -> Iterator[Any]:
    with ExitStack() as stack:
        yield lambda *several: stack.enter_context(served_each(several))


def targets(*several: Mapping[str, Any]) -> str:
    """TOML of `[[target]]` tables."""
    lines = []
    for each in several:
        lines.append("[[target]]")
        for key, value in each.items():
            pairs = (
                ", ".join(f"{name} = {json.dumps(one)}" for name, one in value.items())
                if isinstance(value, dict)
                else ""
            )
            lines.append(f"{key} = {{ {pairs} }}" if pairs else f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def job(here: Path, *several: Mapping[str, Any], **sections: Any) -> Path:
    path = write_job(here, PLAIN, **{"limits": {"rpm": 0, "tpm": 0}, **sections})
    path.write_text(path.read_text() + targets(*several))
    return path


def ran(path: Path, code: int = 0) -> pl.DataFrame:
    ended = run_through(prepare.prepare(load(path), prepare.Options()))
    assert ended.exit_code == code, ended.stopped
    return pl.read_ndjson("results/out.jsonl")


def bought_again(urls: Sequence[str]) -> int:
    """Answers to what each has answered before."""
    told = [stats(url) for url in urls]
    return sum(each["answered"] - each["distinct_prompts"] for each in told)


def test_the_job_says_what_each_target_is(here: Path) -> None:
    path = job(
        here,
        {"name": "free", "key_env": "FREE_KEY", "limits": {"rpm": 10}},
        {"name": "again", "key_env": "PAID_KEY", "same_project_as": "free"},
        {
            "name": "relay",
            "provider": "openai",
            "base_url": "https://relay.example/v1",
            "key_env": "PAID_KEY",
            "model": "m",
        },
        limits={"rpm": 100, "tpm": 5},
        endpoint={"timeout_s": 7},
    )
    (free, one), (again, two), (relay, three) = targets_of(prepare.prepare(load(path), prepare.Options()))
    assert (free.limits.rpm, free.limits.tpm, again.limits.rpm) == (10, 5, 100)
    assert free.quota == again.quota and free.access != again.access
    assert (relay.endpoint, relay.model, free.model) == ("openai@relay.example", "m", LITE)
    assert {each.job.spec.endpoint.timeout_s for each in (one, two, three)} == {7}


@pytest.mark.parametrize(
    ("several", "words"),
    [
        (({"name": "a"}, {"name": "a"}), "two targets are called a"),
        (({"name": "a", "same_project_as": "b"}, {"name": "b"}), "must name a target before it"),
        (({"name": "a", "fallback": ["blocked"]},), "no target is asked at first"),
        (({"name": "a"}, {"name": "b", "fallback": ["blocked"]}), "the model that it asks itself"),
        (({"name": "a"}, {"name": "b", "fallback": []}), "fallback is empty"),
        (({"name": "a"}, {"name": "b", "priority": 1, "fallback": ["full"]}), "there is none below 1"),
        (({"name": "a", "rpm": 5},), r"`rpm` is not a setting of \[\[target\]\] number 1"),
        (({"key_env": "X"},), r"\[\[target\]\] number 1 has no `name`"),
        (({"name": "a", "price_factor": 0},), r"\[\[target\]\] number 1 price_factor"),
        (({"name": "a", "provider": "openai", "api_version": "v1"},), "no word for it"),
        (({"name": "a", "model": "gemini-9"},), "gemini-9 is not a known model"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused_before_anything_is_sent(
    here: Path, several: Sequence[Mapping[str, Any]], words: str
) -> None:
    with pytest.raises(JobError, match=words):
        prepare.prepare(load(job(here, *several)), prepare.Options())


def test_the_variable_of_an_address_is_for_targets_that_name_none(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://variable")
    asked = load(job(here, {"name": "a"}, {"name": "b", "base_url": "http://own"})).asked
    assert [each.base_url for each in asked] == ["http://variable", "http://own"]


def test_a_cap_asks_for_the_price_where_it_counts(here: Path, serve: Any, cli: Callable[..., Ran]) -> None:
    """`[model] prices` says nothing of the model of a target."""
    [url] = serve(emulating(any_model=True))
    relay = {"name": "relay", "provider": "openai", "base_url": f"{url}/v1", "model": "my-own", "key_env": "PAID_KEY"}
    priced = {"name": "google", "base_url": url, "key_env": "FREE_KEY"}
    caps: dict[str, Any] = {"budget": {"max_usd": 1.0}, "model": {"name": LITE, "max_output_tokens": 300}}
    path = job(here, priced, relay, **caps)
    assert "set [[target]] prices = {" in cli("run", path, "--yes").err
    assert "[[target]] prices sets the price" in cli("estimate", path).out
    job(here, priced, relay | {"prices": {"input": 1.0, "output": 1.0}}, **caps)
    assert cli("run", path, "--yes").code == 0


def test_a_flag_that_would_say_nothing_to_a_target_is_refused(here: Path) -> None:
    path = job(here, {"name": "a", "limits": {"rpm": 5}}, {"name": "b"})
    with pytest.raises(JobError, match=r"a flag sets limits\.rpm, and target a has its own"):
        load(path, {"limits.rpm": 10})


def test_a_time_that_would_change_nothing_is_refused(here: Path, cli: Callable[..., Ran]) -> None:
    ran_ = cli("run", job(here, {"name": "a"}, {"name": "b", "priority": 2}), "--yes", "--by", "07:00")
    assert ran_.code == 2 and "the job names none" in ran_.err


def test_an_estimate_counts_a_quota_once_and_not_while_its_day_is_used_up(
    here: Path, serve: Any, cli: Callable[..., Ran]
) -> None:
    free, paid = serve(emulating(rpd=10), emulating())
    several = [
        {"name": "free", "base_url": free, "key_env": "FREE_KEY"},
        {"name": "again", "base_url": free, "key_env": "FREE_KEY"},
        {"name": "mine", "base_url": free, "key_env": "GEMINI_API_KEY", "same_project_as": "free"},
        {"name": "paid", "base_url": paid, "key_env": "PAID_KEY", "fallback": ["day_quota"]},
    ]
    path = job(here, *several, limits={"rpm": 60, "tpm": 0})

    def said() -> tuple[dict[str, int], float]:
        told = json.loads(cli("estimate", path, "--json").out)
        return {each["name"]: each["prompts"] for each in told["targets"]}, told["seconds"]

    nothing = {"again": 0, "mine": 0}
    calls, took_s = said()
    assert calls == nothing | {"free": 60, "paid": 0} and took_s > 50
    cli("run", job(here, *several, limits={"rpm": 6000, "tpm": 0}), "--yes", "--limit", "11")
    job(here, *several, limits={"rpm": 60, "tpm": 0})
    Path("runs").rename("elsewhere")
    calls, took_s = said()
    assert calls == nothing | {"free": 0, "paid": 60} and took_s < 100


def test_a_paid_target_helps_to_be_in_time(here: Path, serve: Any, cli: Callable[..., Ran]) -> None:
    """60 rows at 60 a minute take a minute: none to spare."""
    [url] = serve(emulating())
    several = [
        {"name": "free", "base_url": url, "limits": {"rpm": 60}},
        {"name": "paid", "base_url": url, "model": FLASH, "fallback": ["deadline"], "limits": {"rpm": 6000}},
    ]
    path = job(here, *several, limits={"rpm": 0, "tpm": 0})
    soon = (datetime.now(UTC) + timedelta(seconds=70)).isoformat()
    estimated = json.loads(cli("estimate", path, "--by", soon, "--json").out)
    ran_ = cli("run", path, "--yes", "--by", soon)
    assert ran_.code == 0, ran_.err
    answered = Counter(pl.read_ndjson("results/out.jsonl")["target"])
    assert answered["paid"] >= 45
    assert {each["name"]: each["prompts"] for each in estimated["targets"]}["paid"] == pytest.approx(
        answered["paid"], abs=12
    )


def test_three_targets_answer_and_each_row_says_who_and_what_it_cost_there(here: Path, serve: Any) -> None:
    urls = serve(emulating(), emulating(), emulating())
    several = [
        {"name": "free", "base_url": urls[0], "key_env": "FREE_KEY", "price_factor": 1, "limits": {"concurrency": 2}},
        {"name": "paid", "base_url": urls[1], "key_env": "PAID_KEY", "price_factor": 3, "limits": {"concurrency": 2}},
        {"name": "other", "base_url": urls[2], "model": FLASH, "limits": {"concurrency": 2}},
    ]
    out = ran(job(here, *several))
    asked = {name: stats(url)["answered"] for name, url in zip(("free", "paid", "other"), urls, strict=True)}
    assert Counter(out["target"]) == asked and sum(asked.values()) == 60 and min(asked.values()) > 5
    assert dict(out.select("target", "model").unique().iter_rows()) == {"free": LITE, "paid": LITE, "other": FLASH}
    rates = (
        out.with_columns(usd=pl.col("cost_usd") / (pl.col("input_tokens") * 0.3 + pl.col("output_tokens") * 2.5))
        .group_by("target")
        .agg(pl.col("usd").median())
    )
    usd = dict(rates.iter_rows())
    assert usd["paid"] == pytest.approx(3 * usd["free"], rel=1e-6)
    assert bought_again(urls) == 0
    told = report.summarize(Path("runs/job"))
    assert {name: calls for name, (calls, _) in told.targets.items()} == asked
    assert sum(usd or 0 for _, usd in told.targets.values()) == told.cost_usd > 0


@pytest.mark.parametrize("how", ["403", "429", "down"])
def test_a_target_that_fails_in_mid_run_is_left_out_and_nothing_is_lost(here: Path, serve: Any, how: str) -> None:
    options = emulating(rpd=10) if how == "429" else emulating()
    urls = serve(options if how != "403" else emulating(keys=("AQ.another-key-0123456789",)), emulating())
    first = "http://127.0.0.1:9" if how == "down" else urls[0]
    several = [
        {"name": "first", "base_url": first, "key_env": "FREE_KEY"},
        {
            "name": "second",
            "base_url": urls[1],
            "key_env": "PAID_KEY",
            "priority": 2,
            "fallback": ["day_quota", "outage"],
        },
    ]
    out = ran(job(here, *several))
    assert out["status"].to_list() == ["ok"] * 60
    assert Counter(out["target"])["second"] == (50 if how == "429" else 60)
    log = [json.loads(line) for line in Path("runs/job/run.log").read_text().splitlines()]
    if how != "down":
        [left_out] = [event for event in log if event["event"] == "target"]
        assert left_out["target"] == "first"
        assert report.summarize(Path("runs/job")).left_out == (f"first is left out: {left_out['message']}",)


@pytest.mark.parametrize(("fault", "cause"), [("block", "blocked"), ("safety", "blocked")])
def test_an_answer_that_is_withheld_is_asked_of_another_and_both_are_paid(
    here: Path, serve: Any, fault: str, cause: str
) -> None:
    urls = serve(emulating(fault), emulating())
    several = [
        {"name": "first", "base_url": urls[0]},
        {"name": "second", "base_url": urls[1], "model": FLASH, "fallback": [cause]},
    ]
    out = ran(job(here, *several))
    assert out["status"].to_list() == ["ok"] * 60 and set(out["target"]) == {"second"}
    assert stats(urls[0])["answered"] == stats(urls[1])["answered"] == 60
    assert out["calls"].to_list() == [2] * 60
    again = ran(job(here, *several))
    assert again.equals(out), "nothing is bought again"


def routes(*several: Mapping[str, Any]) -> str:
    """TOML of `[[route]]` tables."""
    return targets(*several).replace("[[target]]", "[[route]]")


TWO = ({"name": "cheap", "model": LITE}, {"name": "long", "model": FLASH})


def test_rows_go_where_the_first_rule_that_holds_leads(here: Path, serve: Any) -> None:
    (here / "topics.csv").write_text(
        "lang,topic\n" + "".join(f"{lang},{'word ' * size}\n" for lang in ("en", "de", "") for size in (5, 500))
    )
    [url] = serve(emulating())
    path = job(here, *TWO, endpoint={"base_url": url})
    path.write_text(
        path.read_text()
        + routes({"where": "lang = 'en' AND input_tokens < 100", "targets": ["cheap"]}, {"targets": ["long"]})
    )
    out = ran(path)
    assert out["target"].to_list() == ["cheap", "long", "long", "long", "long", "long"]
    assert out["model"].to_list() == [LITE, *[FLASH] * 5]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (({"targets": ["cheap"]},), "no .*route.* leads to target long"),
        (({"targets": ["cheap", "x"]},), "number 1 names 'x', which is no"),
        (({"where": "topic = ''", "targets": ["cheap", "long"]},), "the last .* has no `where`"),
        (({"targets": ["cheap"]}, {"targets": ["long"]}), "each before it has one"),
        (({"where": "nothing = 1", "targets": ["cheap"]}, {"targets": ["long"]}), "column `nothing` is not in"),
        (({"where": "topic", "targets": ["cheap"]}, {"targets": ["long"]}), "not true or false"),
        (({"where": "", "targets": ["cheap"]}, {"targets": ["long"]}), "number 1 where"),
        (({"where": "count(topic) > 1", "targets": ["cheap"]}, {"targets": ["long"]}), "more than one row"),
        (({"where": "CAST(topic AS INT) > 1", "targets": ["cheap"]}, {"targets": ["long"]}), "where fails"),
    ],
)
def test_rules_that_lead_nowhere_are_refused_before_anything_is_sent(
    here: Path, rules: Sequence[Mapping[str, Any]], words: str
) -> None:
    path = job(here, *TWO)
    path.write_text(path.read_text() + routes(*rules))
    with pytest.raises(PipelineError, match=words):
        prepare.prepare(load(path), prepare.Options())


def test_a_rule_without_a_column_holds_for_every_row_or_for_none(here: Path, serve: Any) -> None:
    [url] = serve(emulating())
    path = job(here, *TWO, endpoint={"base_url": url})
    path.write_text(
        path.read_text()
        + routes(
            {"where": "1 = 2", "targets": ["cheap"]}, {"where": "1 = 1", "targets": ["long"]}, {"targets": ["cheap"]}
        )
    )
    assert set(ran(path)["target"]) == {"long"}


def test_a_target_for_withheld_answers_that_refuses_its_key_ends_those_rows_and_not_the_run(
    here: Path, serve: Any
) -> None:
    urls = serve(emulating("block:0.3", seed=1), emulating(keys=frozenset({"AQ.another-key-0123456789"})), emulating())
    second = {"name": "second", "base_url": urls[1], "model": FLASH, "fallback": ["blocked"]}
    path = job(here, {"name": "first", "base_url": urls[0], "limits": {"concurrency": 2}}, second)
    out = ran(path, code=1)
    left = out.filter(status="error")
    assert out.filter(status="ok").height + left.height == 60 and 5 < left.height < 40
    assert set(left["error_kind"]) == {"auth"} and left.filter(pl.col("cost_usd") <= 0).is_empty(), "paid for"
    job(here, {"name": "first", "base_url": urls[0]}, second | {"base_url": urls[2]})
    again = ran(path)
    assert again["status"].to_list() == ["ok"] * 60
    assert bought_again(urls) == 0, "what the first one withheld is not asked again"


def test_a_cut_answer_is_kept_where_nobody_gives_a_whole_one(here: Path, serve: Any) -> None:
    urls = serve(emulating(), emulating("400"))
    several = [
        {"name": "first", "base_url": urls[0]},
        {"name": "second", "base_url": urls[1], "model": FLASH, "fallback": ["truncated"], "timeout_s": 5},
    ]
    (here / "topics.csv").write_text("topic\n" + "word " * 80 + "\n")
    out = ran(job(here, *several, model={"max_output_tokens": 5}), code=1)
    [row] = out.iter_rows(named=True)
    assert (row["status"], row["target"]) == ("truncated", "first") and row["response"]


def test_no_kill_buys_anything_twice_also_from_a_fallback(here: Path, serve: Any) -> None:
    """Half of the first one's answers are withheld, so the other is asked; killed again and again in between."""
    (here / "topics.csv").write_text("topic\n" + "".join(f"the topic of row {row}\n" for row in range(400)))
    urls = serve(emulating("block:0.5", latency_s=0.02, seed=1), emulating(latency_s=0.02))
    path = job(
        here,
        {"name": "first", "base_url": urls[0], "limits": {"concurrency": 4}},
        {"name": "second", "base_url": urls[1], "model": FLASH, "fallback": ["blocked"], "limits": {"concurrency": 4}},
    )
    for number in range(1, 6):
        process = forked("run", "job.toml", "--yes")
        wait_for(urls[0], "answered", number * 50, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    out = ran(path)
    assert out["status"].to_list() == ["ok"] * 400
    assert bought_again(urls) <= 5 * 8, "what was in flight when it was killed"


@pytest.mark.parametrize("number", range(3))
def test_every_job_of_the_page_runs(
    number: int, here: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran], serve: Any
) -> None:
    rows = [("en", "Good."), ("de", "Gut."), ("en", "word " * 5_000)][: 2 if number == 0 else 3]  # 10 a minute
    Path("reviews.csv").write_text("lang,review\n" + "".join(f"{lang},{text}\n" for lang, text in rows))
    path = here / "page.toml"
    path.write_text(blocks(PAGES["docs/targets.md"], "toml")[number])
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", serve(emulating())[0])
    unpaced = ["--rpm", "0"] if number else []
    for command in (["check", path], ["estimate", path], ["run", path, "--yes", *unpaced]):
        ran = cli(*command)
        assert ran.code == 0, ran.err
    out = pl.read_csv(load(path).spec.output.path)
    expected = [{"free": 2}, {"first": 3}, {"cheap": 1, "strong": 2}][number]
    assert Counter(out["target"]) == expected
    rehearsed = cli("run", path, "--offline")
    assert rehearsed.code == 0 and f"{len(rows)} ok" in rehearsed.err, "no answer is cut in a rehearsal"
