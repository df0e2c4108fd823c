"""Real processes, real SIGKILL: every row once, nothing that reached the journal bought again."""

import json
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from forking import Forked, forked
from serving import served, stats, wait_for
from tables import figure

IN_FLIGHT = 8
_DRIVER = """
from pipeline.store.run import RunStore
RunStore.__init__.__kwdefaults__["seal_rows"] = 7  # so that kills hit seals as well
"""
_NOHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"


def start(cwd: Path, url: str, *arguments: str, first: str = "") -> Forked:
    keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "AQ.test"}
    return forked("run", "job.toml", "--yes", "--json", *arguments, cwd=cwd, patch=first + _DRIVER, env=keyed)


CHUNKED = """
[chunk]
max_tokens = 400
overlap_tokens = 40
[reduce]
template = "Merge for {{ id }}: {{ parts }}"
"""


REFINED = """
[chunk]
max_tokens = 400
[refine]
template = "Of {{ id }} so far: {{ summary }} Piece {{ chunk }}: {{ text }}"
"""


TALK = """
flow = "conversation"
turns = ["Read: {{ text }}", "Shorter, of {{ id }}", "What is odd about it?", "Say it in one word"]
"""


def summarize_job(path: Path, documents: int, sections: str = CHUNKED) -> None:
    """A job over `documents` texts, all different, every third long: map-reduce, or without `sections` a call a row."""
    prompt = sections if sections == TALK else f'template = "Summarize: {{{{ text }}}}"\n{sections}'
    texts = []
    for number in range(documents):
        sentences = 60 if number % 3 == 0 else 6
        texts.append(
            " ".join(f"Sentence {k} of report {number} says that the value was {k * number}." for k in range(sentences))
        )
    pl.DataFrame({"id": [f"r{n}" for n in range(documents)], "body": texts}).write_parquet(path / "input.parquet")
    (path / "job.toml").write_text(
        f"""
[input]
path = "input.parquet"
id = "id"
text = "body"
[prompt]
{prompt}
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 200
[limits]
rpm = 0
tpm = 0
concurrency = {IN_FLIGHT}
[output]
path = "output.parquet"
"""
    )


def killed_and_finished(tmp_path: Path, url: str, kills: int, seed: int) -> tuple[dict[str, Any], int]:
    """Start, SIGKILL at a random moment, again and again; then finish. Returns the last run's JSON and the kills."""
    chance = random.Random(seed)
    done = 0
    while done < kills:
        process = start(tmp_path, url)
        began = time.monotonic()
        journal = tmp_path / "runs" / "job"
        while process.poll() is None and not any(journal.glob("journal-*")) and time.monotonic() - began < 20:
            time.sleep(0.01)  # real time: another process is being watched
        time.sleep(chance.uniform(0.0, 0.5))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done += 1
    out, err = start(tmp_path, url).communicate(timeout=120)
    assert out, err.decode()
    return json.loads(out), done


def test_a_kill_between_an_answer_and_its_repair_buys_neither_again(tmp_path: Path) -> None:
    summarize_job(tmp_path, 60)
    with (tmp_path / "job.toml").open("a") as job:
        job.write('schema = "gist: str, names: [str]"\nrepair = true\n')
    with served(latency_s=0.08, latency_jitter_s=0.1, faults="wrong_json") as url:
        result, killed = killed_and_finished(tmp_path, url, 4, seed=3)
        bought = stats(url, prompts=True)
    assert killed >= 3 and (result["status"], result["ok"]) == ("finished", 60)
    twice = sum(count - 1 for count in bought["prompts"].values())
    assert twice <= killed * IN_FLIGHT
    assert bought["answered"] - twice == len(bought["prompts"])
    calls = pl.concat([pl.read_parquet(path) for path in (tmp_path / "runs/job/calls").glob("*.parquet")])
    calls = calls.filter("paid")
    assert calls["fingerprint"].is_unique().all()
    assert calls.filter(pl.col("step") == "repair")["row"].sort().to_list() == list(range(60))
    output = pl.read_parquet(tmp_path / "output.parquet")
    assert output["names"].null_count() == 0
    whole = output.filter(pl.col("chunks") == 1)
    assert whole.height > 30 and set(whole["calls"]) == {2}, "the answer and its repair are both the row's"


@pytest.mark.parametrize(
    ("kills", "documents", "sections"),
    [
        pytest.param(6, 60, CHUNKED, id="map-reduce"),
        pytest.param(4, 150, "", id="a call a row"),
        pytest.param(3, 60, REFINED, id="refine"),
        pytest.param(3, 60, TALK, id="conversation"),
        pytest.param(50, 500, CHUNKED, id="map-reduce, long", marks=pytest.mark.long),
        pytest.param(50, 1500, "", id="a call a row, long", marks=pytest.mark.long),
    ],
)
def test_sigkill_at_any_moment_loses_at_most_what_was_in_flight(
    tmp_path: Path, kills: int, documents: int, sections: str
) -> None:
    summarize_job(tmp_path, documents, sections)
    with served(latency_s=0.08, latency_jitter_s=0.1) as url:
        result, killed = killed_and_finished(tmp_path, url, kills, seed=kills)
        bought = stats(url, prompts=True)
    assert killed >= min(kills, 5)
    assert (result["status"], result["ok"], result["rows"]) == ("finished", documents, documents)

    output = pl.read_parquet(tmp_path / "output.parquet")
    assert output["id"].to_list() == [f"r{n}" for n in range(documents)]
    assert set(output["status"]) == {"ok"}

    results = pl.concat([pl.read_parquet(path) for path in (tmp_path / "runs/job/results").glob("*.parquet")])
    assert sorted(results["row"]) == list(range(documents))

    twice = sum(count - 1 for count in bought["prompts"].values())
    assert twice <= killed * IN_FLIGHT
    assert bought["answered"] - twice == len(bought["prompts"])
    calls = pl.concat([pl.read_parquet(path) for path in (tmp_path / "runs/job/calls").glob("*.parquet")])
    calls = calls.filter("paid")  # what a kill lost has a row of its own
    assert calls["fingerprint"].n_unique() == calls.height == len(bought["prompts"]) == result["calls"]
    assert output["calls"].sum() == calls.height
    assert output["input_tokens"].sum() == calls["input_tokens"].sum() == result["input_tokens"]


def test_a_table_sorted_by_length_is_answered_whole_after_a_kill(tmp_path: Path) -> None:
    """Longer than a batch, so that it is read in two places at once: the kill finds short and long rows answered."""
    rows = 4500
    summarize_job(tmp_path, 1, "")
    ids, texts = [f"r{n}" for n in range(rows)], [f"{n} " + "word " * (n // 50) for n in range(rows)]
    pl.DataFrame({"id": ids, "body": texts}).write_parquet(tmp_path / "input.parquet")
    with served() as url:
        process = start(tmp_path, url)
        wait_for(url, "answered", rows // 3, process)
        process.kill()
        process.communicate()
        parts = (tmp_path / "runs/job/results").glob("*.parquet")
        sealed = pl.concat([pl.read_parquet(path, columns=["row"]) for path in parts])["row"]
        out, err = start(tmp_path, url).communicate(timeout=120)
        bought = stats(url, prompts=True)
    assert 0.2 < figure((sealed < rows // 2).mean()) < 0.8
    assert json.loads(out)["ok"] == rows, err.decode()
    output = pl.read_parquet(tmp_path / "output.parquet")
    assert output["id"].to_list() == ids and set(output["status"]) == {"ok"}
    assert len(bought["prompts"]) == rows and bought["answered"] - rows <= IN_FLIGHT


def test_the_next_run_says_once_what_was_in_flight_at_a_kill_and_what_it_may_have_cost(tmp_path: Path) -> None:
    summarize_job(tmp_path, 30)
    with served(latency_s=1.5) as url:
        process = start(tmp_path, url)
        wait_for(url, "in_flight", IN_FLIGHT, process)
        process.kill()
        process.communicate()
        assert sum(path.stat().st_size for path in (tmp_path / "runs").rglob("*")) < 2**20, "no room is kept any more"
        out, err = start(tmp_path, url, "--limit", "2").communicate(timeout=60)
        assert json.loads(out)["ok"] == 2, err.decode()
        told = re.search(
            r"ended with (\d+) request\(s\) in flight: they may have cost up to \$0\.0\d+ and", err.decode()
        )
        assert told and int(told[1]) == IN_FLIGHT, err.decode()
        _, err = start(tmp_path, url, "--limit", "3").communicate(timeout=60)
        assert b"in flight" not in err
    (lost,) = [event for event in events(tmp_path) if event["event"] == "lost"]
    # 200 tokens of answer at $2.50 and some hundred of prompt at $0.30 a million, for each
    assert lost["requests"] == IN_FLIGHT and 8 * 0.0005 < float(lost["at_most_usd"]) < 8 * 0.0009


def events(path: Path) -> list[dict[str, Any]]:
    """The lines of the run's log."""
    return [json.loads(line) for line in (path / "runs/job/run.log").read_text().splitlines()]


def test_ctrl_c_finishes_what_is_in_flight_and_the_next_run_continues(tmp_path: Path) -> None:
    summarize_job(tmp_path, 60)
    with served(latency_s=0.3) as url:
        process = start(tmp_path, url)
        wait_for(url, "answered", 5, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130, err.decode()
        first = json.loads(out)
        assert first["status"] == "interrupted" and b"what was answered is kept; the same command" in err
        assert 0 < first["calls"] == stats(url)["answered"]
        partial = pl.read_parquet(tmp_path / "output.parquet")
        assert partial.height == 60
        assert set(partial["status"]) == {"ok", "pending"}
        out, err = start(tmp_path, url).communicate(timeout=120)
        assert json.loads(out)["ok"] == 60, err.decode()
        assert stats(url)["answered"] == json.loads(out)["calls"]


@pytest.mark.case("S6")
@pytest.mark.parametrize("ignored", [False, True], ids=["a terminal that is gone", "nohup"])
def test_sighup_is_sigterm_unless_it_is_ignored(tmp_path: Path, ignored: bool) -> None:
    summarize_job(tmp_path, 24, "")
    with served(latency_s=0.3) as url:
        process = start(tmp_path, url, first=_NOHUP if ignored else "")
        wait_for(url, "answered", 5, process)
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (0 if ignored else 130), err.decode()
        assert json.loads(out)["calls"] == stats(url)["answered"], "what was in flight is finished"
        assert (json.loads(out)["status"] == "finished") is ignored
        assert pl.read_parquet(tmp_path / "output.parquet").height == 24
        out, err = start(tmp_path, url).communicate(timeout=120)
        assert json.loads(out)["ok"] == stats(url)["answered"] == 24, err.decode()


def test_a_second_ctrl_c_stops_at_once_and_loses_only_what_is_in_flight(tmp_path: Path) -> None:
    summarize_job(tmp_path, 30)
    with served(latency_s=60.0) as url:
        process = start(tmp_path, url)
        wait_for(url, "in_flight", IN_FLIGHT, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - began < 20.0, "it waited for the replies in flight"
        assert process.returncode == 130, err.decode()
        assert json.loads(out)["status"] == "interrupted"
        assert b"the same command continues" in err and b"kept" not in err, "nothing was answered"


def test_a_second_process_on_the_run_is_told_who_holds_it(tmp_path: Path) -> None:
    summarize_job(tmp_path, 30)
    with served(latency_s=60) as url:  # it goes on until it is killed
        first = start(tmp_path, url)
        wait_for(url, "requests", 1, first)
        out, err = start(tmp_path, url).communicate(timeout=30)
        held = f"another run writes output.parquet: process {first.pid}"
        assert held.encode() in err and held in json.loads(out)["error"]
        first.kill()
        first.communicate()
