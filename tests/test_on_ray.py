"""Workers on a real Ray: one quota and one budget, each row once, whoever is killed.

Without ray, as in CI, what is told of it is tested; with it the rest is, by `-m long`: a Ray takes 5 to 12 s to start.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import jsonschema_rs
import pytest
import yaml
from commands import Ran, small_job
from forking import Forked, forked
from serving import served, stats, wait_for
from test_fleet import are_there, check_once
from test_kill import IN_FLIGHT, summarize_job
from vclock import run

from pipeline.fleet.hiring import workers_for
from pipeline.fleet.member import Member
from pipeline.fleet.orders import Contract, Failed, FromWorker

DOCS = Path(__file__).parent.parent / "docs"
KEY = "AQ.nobody-may-read-this"
_SMALL = "import pipeline.fleet.shards as shards; shards.LEAST_ROWS = 10"


def test_without_ray_the_hint_names_what_to_install_and_what_does_without(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pipeline.fleet.on_ray", raising=False)
    ran = cli("run", small_job(tmp_path), "--offline", "--yes", "--on", "ray")
    assert ran.code == 2
    assert "ray, which is not installed" in ran.err and "ray" in ran.err.split("hint:")[1] and "--workers" in ran.err
    assert not list(tmp_path.glob("runs*"))


def test_ray_has_as_many_workers_as_the_rate_takes_and_no_more_than_cpus() -> None:
    assert workers_for(3_000, 64) == 2
    assert workers_for(240_000, 64) == 8
    assert workers_for(240_000, 4) == 4
    assert workers_for(None, 16) == workers_for(0, 16) == 16


def test_an_actor_tells_nothing_after_two_seconds_and_that_nothing_comes_any_more() -> None:
    async def scenario() -> None:
        member = Member()
        async with anyio.create_task_group() as group:
            group.start_soon(member.work)
            began = anyio.current_time()
            assert await member.take() == []
            assert anyio.current_time() - began == pytest.approx(2.0)
            await member.leave()
            assert await member.take() is None

    run(scenario)


def test_a_folder_that_a_machine_lacks_is_named() -> None:
    async def scenario() -> list[FromWorker]:
        member = Member()
        told: list[FromWorker] = []
        async with anyio.create_task_group() as group:
            group.start_soon(member.work)
            contract: Any = Contract(None, None, None, "real", Path("/mnt/elsewhere"))  # type: ignore[arg-type]
            await member.give(contract)
            while (more := await member.take()) is not None:
                told += more
        return told

    (failed,) = run(scenario)
    assert isinstance(failed, Failed)
    assert "cannot work in /mnt/elsewhere" in failed.error.message and "machines share" in failed.error.hint


def test_the_manifest_of_the_page_is_a_rayjob_and_has_no_key_in_it() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "cluster.md").read_text("utf-8"), re.DOTALL)
    (manifest,) = yaml.safe_load_all(text)
    schema = json.loads((Path(__file__).parent / "data/rayjob.schema.json").read_text())
    jsonschema_rs.validator_for(schema).validate(manifest)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    assert "runtimeEnvYAML" not in spec, "Ray writes what is there in clear to a log"
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"  # the head leads, and asks nothing itself
    (workers,) = cluster["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], workers)]
    for pod in pods:
        (container,) = pod["containers"]
        assert [each["secretRef"]["name"] for each in container["envFrom"]] == ["gemini"]
        (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mount["name"] == volume["name"] and volume["persistentVolumeClaim"]
        assert mount["mountPath"] in spec["entrypoint"]


# --- with a real Ray ------------------------------------------------------------------------------------------------

long = pytest.mark.long


@pytest.fixture(scope="module", name="ray")
def _ray() -> Any:
    return pytest.importorskip("ray", reason="pip install 'ray>=2.59,<3'")


def start(cwd: Path, url: str, *arguments: str, address: str = "local", workers: int = 2) -> Forked:
    env = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": KEY, "RAY_ADDRESS": address}
    flags = ("--yes", "--json", "--on", "ray", "--workers", str(workers))
    return forked("run", "job.toml", *flags, *arguments, cwd=cwd, patch=_SMALL, env=env)


def ended(process: Forked, within_s: float = 180) -> dict[str, Any]:
    out, err = process.communicate(timeout=within_s)
    assert out, err.decode()
    told: dict[str, Any] = json.loads(out)  # Ray has written nothing amid it
    return told


def processes() -> dict[int, tuple[int, str]]:
    """Each process of the machine: its parent, and what it is."""
    listed = subprocess.run(["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    found = {}
    for line in listed.stdout.splitlines():
        pid, parent, what = line.split(None, 2)
        found[int(pid)] = int(parent), what
    return found


def below(root: int) -> dict[int, str]:
    """The processes that it began, and those that they began."""
    every, found = processes(), {root: ""}
    while more := {pid: what for pid, (parent, what) in every.items() if parent in found and pid not in found}:
        found |= more
    del found[root]
    return found


def actors(root: int) -> list[int]:
    """Workers at work below a process."""
    return sorted(pid for pid, what in below(root).items() if what.startswith("ray::Member"))


def check_gone(pids: list[int], within_s: float = 10) -> None:
    """They end within seconds."""
    began = time.monotonic()
    while are_there(pids) and time.monotonic() - began < within_s:
        time.sleep(0.1)  # real time: other processes are watched
    assert pids and not are_there(pids)


def check_no_key(session: Path) -> None:
    """The key is in no file that Ray wrote."""
    files = [path for path in session.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def sessions() -> set[Path]:
    """Folders in which each Ray of this machine keeps its logs."""
    return set(Path("/tmp/ray").glob("session_2*"))


@long
def test_killed_workers_on_ray_are_replaced_each_row_comes_out_once_and_the_key_is_in_no_file(
    ray: Any, tmp_path: Path
) -> None:
    summarize_job(tmp_path, 300)
    before = sessions()
    chance, killed = random.Random(17), 0
    with served(latency_s=0.3, latency_jitter_s=0.2) as url:
        driver = start(tmp_path, url)
        while killed < 3:
            wait_for(url, "answered", 60 * (killed + 1), driver)
            time.sleep(chance.uniform(0.0, 1.0))  # real time: other processes are watched
            rays = below(driver.pid)
            os.kill(chance.choice(actors(driver.pid)), signal.SIGKILL)
            killed += 1
        result = ended(driver)
        check_once(tmp_path, url, 300, killed)
    assert (result["status"], result["ok"], result["rows"]) == ("finished", 300, 300)
    log = [json.loads(line) for line in (tmp_path / "runs/job/run.log").read_text().splitlines()]
    assert [line["event"] for line in log].count("worker_lost") >= 1
    check_gone(list(rays))
    (session,) = sessions() - before
    check_no_key(session)


@long
def test_a_killed_driver_leaves_no_actor_and_the_same_command_goes_on(ray: Any, tmp_path: Path) -> None:
    summarize_job(tmp_path, 90)
    with served(latency_s=0.3, latency_jitter_s=0.2) as url:
        driver = start(tmp_path, url)
        wait_for(url, "answered", 30, driver)
        workers = actors(driver.pid)
        driver.kill()
        driver.communicate()
        check_gone(workers)  # two helpers of Ray's own end some half a minute later
        sent = stats(url)["answered"]
        time.sleep(0.5)
        assert stats(url)["answered"] == sent, "nobody sends any more"
        result = ended(start(tmp_path, url))
        check_once(tmp_path, url, 90, 1)
    assert (result["status"], result["ok"]) == ("finished", 90)


@long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_workers_on_ray_finish_what_is_in_flight(
    ray: Any, tmp_path: Path, number: signal.Signals
) -> None:
    summarize_job(tmp_path, 90, "")
    with served(latency_s=0.5) as url:
        driver = start(tmp_path, url)
        wait_for(url, "in_flight", IN_FLIGHT, driver)
        rays = below(driver.pid)
        driver.send_signal(number)
        result = ended(driver)
        bought = stats(url)["answered"]
    assert driver.returncode == 130
    assert result["ok"] == bought > 0
    check_gone(list(rays))


@long
def test_a_cap_holds_over_workers_on_ray_and_over_a_death(ray: Any, tmp_path: Path) -> None:
    summarize_job(tmp_path, 200, "")
    cap = 0.012
    with served(latency_s=0.3) as url:
        driver = start(tmp_path, url, "--max-cost", str(cap))
        wait_for(url, "answered", 20, driver)
        os.kill(actors(driver.pid)[0], signal.SIGKILL)
        result = ended(driver)
    assert driver.returncode == 3
    assert 0 < result["cost_usd"] <= cap and 0 < result["ok"] < 200


@contextmanager
def cluster(url: str, cpus: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Nodes of this machine, the first of them the head."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("GEMINI_API_KEY", KEY)  # a node's workers have its environment, not the driver's
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    made = Cluster()
    try:
        for number in cpus:
            made.add_node(num_cpus=number, object_store_memory=80 * 2**20, include_dashboard=False)
        yield made
    finally:
        made.shutdown()


def raylet(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    return int(info.process.pid)


@long
def test_a_killed_node_is_run_on_by_the_other_though_no_cpu_is_left_for_another_worker(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summarize_job(tmp_path, 90)
    with served(latency_s=0.3, latency_jitter_s=0.2) as url, cluster(url, [0, 1, 1], monkeypatch) as made:
        driver = start(tmp_path, url, address=made.address)
        wait_for(url, "answered", 20, driver)
        _, one, other = (raylet(node) for node in [made.head_node, *made.worker_nodes])
        assert len(actors(one)) == len(actors(other)) == 1  # spread
        os.kill(other, signal.SIGKILL)
        result = ended(driver, 300)
        check_once(tmp_path, url, 90, 1)
        check_gone(actors(one) or [other])
    assert (result["status"], result["ok"]) == ("finished", 90)


@long
@pytest.mark.parametrize("lacks", ["key", "program"])
def test_a_node_that_is_not_as_the_driver_is_refused_by_name(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    here, broken = tmp_path / "here", tmp_path / "broken"
    here.mkdir()
    summarize_job(here, 12)
    (broken / "pipeline").mkdir(parents=True)
    (broken / "pipeline/__init__.py").write_text("raise ModuleNotFoundError('No module named pipeline')\n")
    if lacks == "program":
        monkeypatch.setenv("PYTHONPATH", str(broken))
    with served() as url, cluster(url, [1], monkeypatch) as made:
        key = "AQ.another" if lacks == "key" else KEY
        env = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": key, "RAY_ADDRESS": made.address, "PYTHONPATH": ""}
        flags = ("--yes", "--on", "ray", "--workers", "1")
        driver = forked("run", "job.toml", *flags, cwd=here, env=env)
        _, err = driver.communicate(timeout=120)
        assert driver.returncode == 2
        said = {"key": "another key", "program": "on every node"}
        assert said[lacks] in err.decode()
        assert stats(url)["answered"] == 0


@long
@pytest.mark.parametrize(
    ("address", "said"), [("ray://127.0.0.1:10001", "in the cluster"), ("127.0.0.1:1", "no Ray answers")]
)
def test_an_address_that_cannot_be_used_is_refused_at_once(ray: Any, tmp_path: Path, address: str, said: str) -> None:
    summarize_job(tmp_path, 12)
    began = time.monotonic()
    driver = start(tmp_path, "http://127.0.0.1:1", address=address)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 2 and said in err.decode()
    assert time.monotonic() - began < 20, "Ray itself tries for two minutes"


_PROGRAM = f"""
import asyncio, sys
import polars as pl
import pipeline as pp
{_SMALL}

table = pl.DataFrame({{"id": [f"r{{n}}" for n in range(60)], "word": [f"word {{n}}" for n in range(60)]}})
jobs = [
    pp.load(
        {{
            "input": {{"id": "id"}},
            "prompt": {{"template": "Say {{{{ word }}}}"}},
            "model": {{"name": "gemini-3.5-flash-lite", "max_output_tokens": 50}},
            "limits": {{"rpm": 0, "tpm": 0}},
        }},
        name=name,
    )
    for name in ("one", "other")
]
ROWS = [12, 60]  # whichever began Ray ends first


async def both() -> None:
    runs = [
        pp.run_async(job, table.head(rows), yes=True, on="ray", workers=1, progress=False)
        for job, rows in zip(jobs, ROWS)
    ]
    for ended, rows in zip(await asyncio.gather(*runs), ROWS):
        assert ended.status == "finished" and ended.outcomes["ok"] == rows, str(ended)


if sys.argv[1] == "connected":
    import ray
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
asyncio.run(both())
import ray
print(ray.is_initialized())
"""


@long
@pytest.mark.parametrize("is_connected", [False, True])
def test_runs_of_one_program_share_a_ray_and_leave_one_that_it_had(
    ray: Any, tmp_path: Path, is_connected: bool
) -> None:
    (tmp_path / "program.py").write_text(_PROGRAM)
    with served(latency_s=0.1) as url:
        env = {**os.environ, "GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": KEY}
        command = [sys.executable, "program.py", "connected" if is_connected else "alone"]
        said = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180, check=False)
        assert (said.returncode, said.stdout, said.stderr) == (0, f"{is_connected}\n", "")
        assert stats(url)["answered"] == 72
