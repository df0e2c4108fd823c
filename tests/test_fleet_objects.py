"""A run on object storage: equal to one that lies here, whoever and whatever is lost; and who may lead it."""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from forking import Forked, forked
from serving import served, stats, wait_for
from test_fleet import _SMALL, ended, start, workers_of
from test_kill import IN_FLIGHT, summarize_job

from pipeline.objects import opened
from pipeline.places import scratch_folder

_OF_ALL = (
    *("lead.json", "newest.json", "manifest.json", "shards.parquet", "status.json", "run.log", "output.json"),
    "rows.parquet",
)


def job(here: Path, documents: int, url: str, sections: str | None = None) -> None:
    """A job whose run lies at a URL."""
    here.mkdir(exist_ok=True)
    summarize_job(here, documents, *(() if sections is None else (sections,)))
    with (here / "job.toml").open("a") as file:
        file.write(f'[run]\npath = "{url}"\n')


def store_of(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket"


def check_rows(here: Path, url: str, documents: int, twice_at_most: int) -> None:
    """Every row once, in order; so much was bought twice at most."""
    bought = stats(url, prompts=True)
    output = pl.read_parquet(here / "output.parquet")
    assert output["id"].to_list() == [f"r{n}" for n in range(documents)]
    assert set(output["status"]) == {"ok"}
    twice = sum(count - 1 for count in bought["prompts"].values())
    assert twice <= twice_at_most
    assert bought["answered"] - twice == len(bought["prompts"])


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What `[run] path` says."""
    return store_of(tmp_path) if request.param == "file" else f"{request.getfixturevalue('s3')}/runs"


def test_a_run_on_object_storage_comes_to_what_one_here_does(tmp_path: Path, store: str) -> None:
    alone, afar = tmp_path / "alone", tmp_path / "afar"
    alone.mkdir()
    summarize_job(alone, 45)
    job(afar, 45, store)
    keyed = {"GEMINI_API_KEY": "AQ.test"}
    with served() as url:
        said = forked("run", "job.toml", "--yes", "--json", cwd=alone, env=keyed | {"GOOGLE_GEMINI_BASE_URL": url})
        one, several = ended(said), ended(start(afar, url))
    for name in ("status", "rows", "ok", "calls", "input_tokens", "output_tokens", "cost_usd"):
        assert one[name] == several[name], name
    varies = ["latency_s", "finished_at"]
    left, right = (pl.read_parquet(here / "output.parquet") for here in (alone, afar))
    assert left.drop(varies, strict=False).equals(right.drop(varies, strict=False))
    assert not list(scratch_folder().glob("*/*/*")), "a shard that is done leaves nothing on a worker's disk"
    root = opened(f"{store}/job")
    there = [entry.name for entry in root.entries()]
    shards = len(list((afar / "runs/job/shards").iterdir()))
    assert shards > 2 and len(there) == 5 * shards + len(_OF_ALL), there
    assert not [name for name in there if "/life-" in name]
    assert not [name for name in there if b"AQ.test" in (root.get(name) or b"")]


@pytest.mark.long
def test_a_killed_worker_and_a_killed_driver_lose_what_was_in_flight_only(tmp_path: Path) -> None:
    here = tmp_path / "here"
    job(here, 90, store_of(tmp_path))
    with served(latency_s=0.15, latency_jitter_s=0.1) as url:
        driver = start(here, url)
        wait_for(url, "answered", 15, driver)
        os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
        wait_for(url, "answered", 45, driver)
        for pid in (driver.pid, *workers_of(driver.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        driver.communicate()
        again = start(here, url)
        result = ended(again)
        assert result["ok"] == 90, again.communicate()[1].decode()
        check_rows(here, url, 90, 3 * IN_FLIGHT)
    assert (result["status"], result["ok"]) == ("finished", 90)


@pytest.mark.long
def test_another_machine_goes_on_without_a_word_of_the_first_one(tmp_path: Path) -> None:
    """What a lost machine had not put is bought again: no more than came in its last seconds, and was in flight."""
    here = tmp_path / "here"
    job(here, 90, store_of(tmp_path))
    there = elsewhere(here, tmp_path / "there")
    with served(latency_s=0.8, latency_jitter_s=0.4) as url:
        driver = patched(here, url, "import pipeline.fleet.shards as shards; shards.LEAST_ROWS = 45")
        wait_for(url, "answered", 50, driver)
        before = stats(url)["answered"]
        time.sleep(6)  # a push begins 5 s after the one before has ended
        assert driver.poll() is None
        for pid in (driver.pid, *workers_of(driver.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        driver.communicate()
        lost = stats(url)["answered"] - before
        shutil.rmtree(scratch_folder())
        shutil.rmtree(here)
        result = ended(start(there, url))
        check_rows(there, url, 90, lost + IN_FLIGHT)
    assert (result["status"], result["ok"], result["rows"]) == ("finished", 90, 90)


_APART = (
    f"{_SMALL};"
    "import functools, pathlib, types, anyio, pipeline.fleet.assembling as made;"
    "made.Path = types.SimpleNamespace(cwd=lambda: pathlib.Path('/no/such/folder'));"
    "anyio.open_process = functools.partial(anyio.open_process, cwd='/')"
)
"""As on a machine that has no folder in common with the one that leads."""


def test_workers_share_no_folder_with_what_leads(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(30)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"word": word}) + "\n" for word in words))
    (tmp_path / "ask.txt").write_text("Say {{ word }}")
    (tmp_path / "job.toml").write_text(
        '[input]\npath = "words.jsonl"\n[prompt]\ntemplate_file = "ask.txt"\n'
        '[model]\nname = "gemini-3.5-flash-lite"\n[output]\npath = "out/"\n'
    )
    flags = ("run", "job.toml", "--yes", "--json", "--offline", "--workers", "2")
    refused = forked(*flags, cwd=tmp_path, patch=_APART)
    _, err = refused.communicate(timeout=60)
    assert refused.returncode == 2 and "cannot work in /no/such/folder" in err.decode()
    with (tmp_path / "job.toml").open("a") as file:
        file.write(f'[run]\npath = "{store_of(tmp_path)}"\n')
    assert ended(forked(*flags, cwd=tmp_path, patch=_APART))["ok"] == 30
    written = pl.concat(pl.read_parquet(path) for path in sorted((tmp_path / "out-offline").iterdir()))
    assert written["word"].to_list() == words


def test_rows_of_shards_that_are_done_are_redone_and_the_shards_are_done_again(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(30)]
    pl.DataFrame({"word": words}).write_csv(tmp_path / "words.csv")  # of a table that is no Parquet
    (tmp_path / "job.toml").write_text(
        '[input]\npath = "words.csv"\n[prompt]\ntemplate = "Go on and on until {{ word }} has no room"\n'
        '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 6\n[output]\npath = "out.jsonl"\n'
        f'[run]\npath = "{store_of(tmp_path)}"\n'
    )

    def run(*flags: str) -> dict[str, object]:
        flags = ("run", "job.toml", "--yes", "--json", "--offline", "--workers", "2", *flags)
        return ended(forked(*flags, cwd=tmp_path, patch=_SMALL))

    some, rest = run("--limit", "15"), run()
    assert (some["truncated"], rest["truncated"], rest["calls"]) == (15, 30, 30)
    redone = run("--retry", "truncated", "--set", "max_output_tokens=200")
    assert (redone["ok"], redone["calls"]) == (30, 60)
    assert run("--retry", "truncated")["calls"] == 60, "nothing is left to be done"
    assert [
        line["word"] for line in map(json.loads, (tmp_path / "out-offline.jsonl").read_text().splitlines())
    ] == words
    there = opened(f"{store_of(tmp_path)}/job-offline/000001/shards").entries()
    assert {entry.name.split("/")[1][:11] for entry in there} == {"input.parqu", "done-000003"}


def test_fresh_begins_a_generation_and_the_one_before_can_be_read(tmp_path: Path) -> None:
    here = tmp_path / "here"
    job(here, 24, store_of(tmp_path), "")
    with served() as url:
        assert ended(start(here, url))["ok"] == 24
        again = ended(start(here, url, "--fresh"))
        assert stats(url)["answered"] == 48
        assert ended(start(here, url))["ok"] == 24
        assert stats(url)["answered"] == 48
    assert again["generation"] == 2
    there = opened(f"{store_of(tmp_path)}/job").entries()
    assert {entry.name.split("/")[0] for entry in there} == {"lead.json", "newest.json", "000001", "000002"}


def test_a_name_means_the_newest_generation_whoever_began_it(tmp_path: Path) -> None:
    here = tmp_path / "here"
    job(here, 12, store_of(tmp_path), "")
    there = elsewhere(here, tmp_path / "there")
    with served() as url:
        assert ended(start(here, url, "--limit", "6"))["ok"] == 6
        assert ended(start(there, url, "--fresh"))["generation"] == 2
        first, second = ("job@1", f"{store_of(tmp_path)}/job/000001"), ("job", "job.toml", "runs/job", "job@2")
        for name in (*first, *second):
            said = json.loads(told("report", name, "--json", cwd=here))
            assert said["generation"] == (1 if name in first else 2), name
        assert ended(start(here, url))["generation"] == 2
        assert stats(url)["answered"] == 18


def test_a_start_that_was_declined_is_no_run_yet(tmp_path: Path) -> None:
    here = tmp_path / "here"
    job(here, 24, store_of(tmp_path), "")
    with served() as url:
        keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "AQ.test"}
        declined = forked("run", "job.toml", "--workers", "2", cwd=here, env=keyed)
        _, err = declined.communicate(timeout=60)
        assert declined.returncode == 2 and "add `--yes`" in err.decode()
        assert start(here, "http://127.0.0.1:9").wait(timeout=60) == 3  # nothing listens there
        assert [entry.name for entry in opened(f"{store_of(tmp_path)}/job").entries()] == ["lead.json"]
        assert ended(start(here, url))["ok"] == 24 == stats(url)["answered"]


def test_what_says_where_the_answers_are_may_be_lost_but_not_of_which_rows_they_are(tmp_path: Path) -> None:
    here = tmp_path / "here"
    job(here, 24, store_of(tmp_path), "")
    there, root = elsewhere(here, tmp_path / "there"), opened(f"{store_of(tmp_path)}/job")
    with served() as url:
        assert ended(start(here, url))["ok"] == 24
        root.delete(["newest.json"])
        assert json.loads(told("report", f"{store_of(tmp_path)}/job", "--json", cwd=there))["ok"] == 24
        assert ended(start(there, url))["ok"] == 24 == stats(url)["answered"]
        for name in ("shards.parquet", "manifest.json"):
            (there / "runs/job" / name).unlink()  # of the copy
            assert ended(start(there, url))["ok"] == 24 == stats(url)["answered"]
        (there / "output.parquet").unlink()
        for name in ("shards.parquet", "manifest.json"):
            shutil.rmtree(there / "runs")
            root.delete([f"000001/{name}"])
            process = start(there, url)
            _, err = process.communicate(timeout=60)
            assert process.returncode == 2 and f"000001/{name} is missing" in err.decode()
        assert stats(url)["answered"] == 24


def test_a_lease_that_is_gone_has_no_life_of_a_later_session_in_its_way(tmp_path: Path) -> None:
    here = tmp_path / "here"
    job(here, 24, store_of(tmp_path), "")
    there = elsewhere(here, tmp_path / "there")
    with served(latency_s=0.3) as url:
        for answers in (4, 12):
            driver = start(here, url)
            wait_for(url, "answered", answers, driver)
            for pid in (driver.pid, *workers_of(driver.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            driver.communicate()
        opened(f"{store_of(tmp_path)}/job").delete(["lead.json"])
        assert ended(start(there, url))["ok"] == 24


def test_rows_of_another_shard_are_not_asked_for_its_own(tmp_path: Path) -> None:
    """Nothing else tells them apart where the table has no id: their answers would stand beside other rows."""
    here = tmp_path / "here"
    job(here, 24, store_of(tmp_path), "")
    (here / "job.toml").write_text((here / "job.toml").read_text().replace('id = "id"\n', ""))
    root = opened(f"{store_of(tmp_path)}/job")
    with served() as url:
        assert ended(start(here, url, "--limit", "4"))["ok"] == 4
        one, other = (f"000001/shards/0000{shard}/input.parquet" for shard in (1, 2))
        rows, others = root.get(one), root.get(other)
        assert rows and others and rows != others
        root.put(one, others)
        process = start(here, url)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (2, 3) and f"{one} is damaged, or has other rows" in err.decode()
        root.put(one, rows)
        assert ended(start(here, url))["ok"] == 24 == stats(url)["answered"]


def test_a_store_that_does_not_answer_is_told_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2hunter2"
    for name, value in (("ACCESS_KEY_ID", "tester"), ("SECRET_ACCESS_KEY", secret), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    job(tmp_path, 12, "s3://bucket/runs", "")
    with served() as url:
        process = start(tmp_path, url)
        _, err = process.communicate(timeout=60)
        assert stats(url)["answered"] == 0
    assert process.returncode == 2 and "s3://bucket/runs/job" in err.decode() and secret not in err.decode()
    assert "Traceback" not in err.decode()


@pytest.mark.parametrize(
    ("flags", "told"), [((), "add `--workers N`"), (("--workers", "2"), "holds a run of this machine")]
)
def test_what_does_not_lie_where_the_job_says_is_refused(tmp_path: Path, flags: tuple[str, ...], told: str) -> None:
    summarize_job(tmp_path, 12, "")
    with served() as url:
        keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "AQ.test"}
        assert forked("run", "job.toml", "--yes", cwd=tmp_path, env=keyed).wait(timeout=60) == 0
        with (tmp_path / "job.toml").open("a") as file:
            file.write(f'[run]\npath = "{store_of(tmp_path)}"\n')
        process = forked("run", "job.toml", "--yes", *flags, cwd=tmp_path, env=keyed)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2 and told in err.decode()
        assert stats(url)["answered"] == 12


def told(*arguments: object, cwd: Path) -> str:
    process = forked(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    return out.decode()


def test_a_run_is_read_where_nobody_has_led_it(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    job(here, 24, store_of(tmp_path), "")
    there.mkdir()
    with served() as url:
        assert ended(start(here, url, "--limit", "12"))["ok"] == 12
        assert ended(start(here, url, "--fresh"))["ok"] == 24
    shutil.copy(here / "job.toml", there / "job.toml")
    run = f"{store_of(tmp_path)}/job"
    for name in (run, "job.toml", f"{run}/000002"):
        assert json.loads(told("report", name, "--json", cwd=there))["ok"] == 24
    assert json.loads(told("report", f"{run}@1", "--json", cwd=there))["ok"] == 12
    assert "answer   ok" in told("show", "job.toml", "r7", cwd=there)
    assert "rows" in told("diff", run, cwd=there)
    told("export", run, "--to", "out.parquet", cwd=there)
    assert pl.read_parquet(there / "out.parquet")["status"].to_list().count("ok") == 24
    assert not (there / "runs").exists()


def test_a_job_file_names_its_rehearsal_too_where_nobody_has_led_it(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    job(here, 12, store_of(tmp_path), "")
    there.mkdir()
    shutil.copy(here / "job.toml", there / "job.toml")
    process = forked("report", "job.toml", cwd=there)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and f"there is no run in {store_of(tmp_path)}/job\n" in err.decode()
    flags = ("run", "job.toml", "--yes", "--json", "--offline", "--workers", "2")
    assert ended(forked(*flags, cwd=here, patch=_SMALL))["ok"] == 12
    assert json.loads(told("report", "job.toml", "--json", cwd=there))["rehearsal"] is True
    with served() as url:
        assert ended(start(here, url))["ok"] == 12
    assert json.loads(told("report", "job.toml", "--json", cwd=there))["rehearsal"] is False


def test_an_estimate_counts_what_is_left_of_a_run_that_another_machine_has_begun(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    job(here, 24, store_of(tmp_path), "")
    there.mkdir()
    with served() as url:
        assert ended(start(here, url, "--limit", "12"))["ok"] == 12
        for name in ("job.toml", "input.parquet"):
            shutil.copy(here / name, there / name)
        shutil.rmtree(here)
        dry = json.loads(started(there, url, "--dry-run"))
        assert stats(url)["answered"] == 12
    assert dry["documents"] == json.loads(told("estimate", "job.toml", "--json", cwd=there))["documents"] == 12


def test_an_estimate_of_a_run_that_nobody_has_begun_counts_all_rows(tmp_path: Path) -> None:
    job(tmp_path, 12, store_of(tmp_path), "")
    (tmp_path / "bucket").mkdir()
    for command in (("estimate",), ("estimate", "--workers", "2"), ("run", "--dry-run", "--offline", "--workers", "2")):
        assert json.loads(told(command[0], "job.toml", *command[1:], "--json", cwd=tmp_path))["documents"] == 12


def test_another_machine_replaces_an_output_in_the_bucket_that_the_same_run_wrote(tmp_path: Path, s3: str) -> None:
    here, there, bucket = tmp_path / "here", tmp_path / "there", f"{s3}/replaced"
    words = [f"word{number}" for number in range(24)]
    for machine in (here, there):
        machine.mkdir()
        (machine / "words.jsonl").write_text("".join(json.dumps({"word": word}) + "\n" for word in words))
        (machine / "job.toml").write_text(
            '[input]\npath = "words.jsonl"\n[prompt]\ntemplate = "Say {{ word }}"\n'
            f'[model]\nname = "gemini-3.5-flash-lite"\n[output]\npath = "{bucket}/out.jsonl"\n'
            f'[run]\npath = "{bucket}/runs"\n'
        )
    flags = ("run", "job.toml", "--yes", "--json", "--offline", "--workers", "2")
    for machine, rows in ((here, 8), (there, 16), (here, 24)):
        limit = ("--limit", str(rows)) if rows < 24 else ()
        assert ended(forked(*flags, *limit, cwd=machine, patch=_SMALL))["ok"] == rows
    written = opened(bucket).get("out-offline.jsonl")
    assert written and [json.loads(line)["word"] for line in written.splitlines()] == words


def started(here: Path, url: str, *flags: str) -> str:
    process = start(here, url, *flags)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    return out.decode()


_HASTY = (
    f"{_SMALL};"
    "import pipeline.store.lease as lease; lease.RENEW_S, lease._LOOK_S, lease.HELD_S, lease.WATCHED_S = 0.3, 0.3, 2, 4"
)


def hasty(here: Path, url: str) -> Forked:
    """A run whose lease is renewed, lost and taken over within seconds."""
    return patched(here, url, _HASTY)


def patched(here: Path, url: str, patch: str) -> Forked:
    """A run by two workers, whose driver has other constants."""
    keyed = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "AQ.test"}
    return forked("run", "job.toml", "--yes", "--json", "--workers", "2", cwd=here, patch=patch, env=keyed)


def elsewhere(here: Path, there: Path) -> Path:
    """Another folder with the same job and table."""
    there.mkdir()
    for name in ("job.toml", "input.parquet"):
        shutil.copy(here / name, there / name)
    return there


def test_a_run_whose_end_cannot_be_read_says_what_was_bought_and_not_that_nothing_was(tmp_path: Path) -> None:
    job(tmp_path / "one", 12, store_of(tmp_path))
    away = (
        "import pipeline.fleet.afar as afar; from pipeline.errors import RunStateError\n"
        "async def bring(self, *, whole): raise RunStateError('the store cannot be reached', 'wait for it')\n"
        "afar.Lead.bring = bring"
    )
    with served() as url:
        out, err = (driver := patched(tmp_path / "one", url, away)).communicate(timeout=60)
        assert driver.returncode == 3, err
        failed = json.loads(out)["error"]
        assert "the store cannot be reached" in failed and " 24 calls were answered" in failed, failed
        assert ended(start(tmp_path / "one", url))["ok"] == 12
        check_rows(tmp_path / "one", url, 12, 0)


def test_one_leads_at_a_time(tmp_path: Path) -> None:
    here = tmp_path / "here"
    job(here, 45, store_of(tmp_path), "")
    there = elsewhere(here, tmp_path / "there")
    with served(latency_s=1.0) as url:
        first = hasty(here, url)
        wait_for(url, "in_flight", 1, first)
        second = hasty(there, url)
        _, err = second.communicate(timeout=60)
        assert second.returncode == 2 and f"is in use by process {first.pid} on" in err.decode()
        assert ended(first)["ok"] == 45 == stats(url)["answered"]


@pytest.mark.long
def test_a_machine_that_was_taken_for_lost_and_comes_back_counts_for_nothing(tmp_path: Path) -> None:
    here = tmp_path / "here"
    job(here, 90, store_of(tmp_path))
    there = elsewhere(here, tmp_path / "there")
    with served(latency_s=0.8, latency_jitter_s=0.4) as url:
        lost = hasty(here, url)
        wait_for(url, "answered", 20, lost)
        before = stats(url)["answered"]
        time.sleep(6)  # what was answered before is put
        assert lost.poll() is None
        pids = [*workers_of(lost.pid), lost.pid]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        after = stats(url)["answered"]
        taking = hasty(there, url)
        wait_for(url, "answered", after + 10, taking)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        result = ended(taking)
        _, err = lost.communicate(timeout=60)
        assert lost.returncode == 3 and "leads" in err.decode(), err.decode()
        check_rows(there, url, 90, after - before + 4 * IN_FLIGHT)
        bought = stats(url)["answered"]
        assert ended(hasty(there, url))["calls"] == result["calls"] and stats(url)["answered"] == bought
    assert (result["status"], result["ok"]) == ("finished", 90)
