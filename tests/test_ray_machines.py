"""Ray on two machines with a way between them that can be cut: one of them dies, or is out of reach and comes back."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from machines import FOLDER, SERVICE, Machine, machines, reachable
from serving import stats, wait_for
from storage import s3_server
from test_fleet import check_once
from test_fleet_objects import check_rows
from test_kill import IN_FLIGHT, summarize_job
from test_on_ray import below

pytestmark = pytest.mark.long
pytest.importorskip("ray", reason="pip install 'ray>=2.59,<3'")

KEY = "AQ.nobody-may-read-this"
_PORT = 6379
_SERVE = """
from pipeline import emulator
options = emulator.EmulatorOptions(latency_s=0.3, latency_jitter_s=0.2, marked=False, model_version=None)
emulator.serve(options, host="{host}", ready=lambda url: print(url, flush=True))
"""
_RUN = """
import sys
import pipeline.fleet.on_ray as on_ray
import pipeline.fleet.shards as shards
on_ray.AWAY_S = 10.0
shards.LEAST_ROWS = 10
from pipeline.__main__ import start
sys.argv = ["pipeline", "run", "job.toml", "--yes", "--json", "--on", "ray", "--workers", "2"]
start()
"""


@contextmanager
def service() -> Iterator[str]:
    """An emulator that the machines reach, whatever is between themselves."""
    command = [sys.executable, "-c", _SERVE.format(host=SERVICE)]
    with reachable(), subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().decode().strip()
        finally:
            process.kill()


def environment(url: str) -> dict[str, str]:
    return {
        "GEMINI_API_KEY": KEY,
        "GOOGLE_GEMINI_BASE_URL": url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }


def begin_ray(head: Machine, node: Machine, env: Mapping[str, str], head_cpus: int = 1) -> None:
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"]
    start += ["--object-store-memory", str(80 * 2**20)]
    own = ["--head", "--port", str(_PORT), "--include-dashboard", "false"]
    head.say([*start, *own, "--node-ip-address", head.address, "--num-cpus", str(head_cpus)], env)
    to = ["--address", f"{head.address}:{_PORT}"]
    node.say([*start, *to, "--node-ip-address", node.address, "--num-cpus", "1"], env)


def begin_run(machine: Machine, head: Machine, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return machine.begin([sys.executable, "-c", _RUN], {**env, "RAY_ADDRESS": f"{head.address}:{_PORT}"})


def ray_of(machine: Machine) -> list[int]:
    return named(machine, "gcs_server", "raylet/raylet")


def machine_of(machine: Machine) -> list[int]:
    return [machine.pid]


def ended(run: subprocess.Popen[bytes], within_s: float = 300) -> dict[str, Any]:
    out, err = run.communicate(timeout=within_s)
    assert out, err.decode()
    told: dict[str, Any] = json.loads(out)
    assert told["status"] == "finished", err.decode()
    return told


def named(machine: Machine, *names: str) -> list[int]:
    """Processes of a machine that are called so; there are some."""
    found = [pid for pid, what in below(machine.pid).items() if any(name in what for name in names)]
    assert found
    return found


def check_quiet(url: str) -> None:
    """Nobody sends any more, but for what was in flight."""
    time.sleep(2.0)  # real time: other processes are watched
    sent = stats(url)["answered"]
    time.sleep(2.0)
    assert stats(url)["answered"] == sent


@pytest.mark.parametrize(
    ("leads", "dies", "code"),
    [("head", ray_of, 3), ("node", machine_of, 3), ("head", machine_of, -9)],
    ids=["the processes of Ray", "the machine", "the machine with what leads"],
)
def test_a_head_node_that_dies_ends_the_run_nobody_sends_any_more_and_the_same_command_goes_on(
    tmp_path: Path, leads: str, dies: Callable[[Machine], list[int]], code: int
) -> None:
    summarize_job(tmp_path, 700, "")
    with service() as url:
        env = environment(url)
        with machines(["head", "node"], tmp_path) as (head, node):
            begin_ray(head, node, env)
            run = begin_run(head if leads == "head" else node, head, env)
            wait_for(url, "answered", 40, run)
            for pid in dies(head):
                os.kill(pid, signal.SIGKILL)
            _, err = run.communicate(timeout=120)
            assert run.returncode == code, err.decode()
            if code == 3:
                assert "the head node of Ray, 198.18.100.1:6379, has not answered" in err.decode()
            else:
                time.sleep(15.0)  # real time: a worker that hears nothing sends nothing after 10 s
            check_quiet(url)
            assert stats(url)["answered"] < 700
        with machines(["head", "node"], tmp_path) as (head, node):
            begin_ray(head, node, env)
            result = ended(begin_run(head, head, env))
        check_once(tmp_path, url, 700, 1)
    assert (result["status"], result["ok"]) == ("finished", 700)


def held_by(worker: int, shards: Path) -> list[Path]:
    """Directories of the shards in which a worker has files open."""
    files = [str(each.readlink()) for each in Path(f"/proc/{worker}/fd").iterdir()]
    return sorted({shards / name.split("/shards/")[1].split("/")[0] for name in files if "/shards/" in name})


def sizes(directories: list[Path]) -> dict[Path, int]:
    return {each: each.stat().st_size for one in directories for each in one.rglob("*") if each.is_file()}


@pytest.mark.parametrize("away_s", [20.0, 45.0, 90.0])
def test_a_machine_that_is_out_of_reach_stops_and_no_row_comes_twice_whenever_it_is_back(
    tmp_path: Path, away_s: float
) -> None:
    summarize_job(tmp_path, 600, "")
    with service() as url, machines(["head", "node"], tmp_path) as (head, node):
        env = environment(url)
        begin_ray(head, node, env)
        run = begin_run(head, head, env)
        wait_for(url, "answered", 60, run)
        (far,) = named(node, "ray::Member")
        held = held_by(far, tmp_path / "runs/job/shards")
        assert held
        node.link("down")
        began = time.monotonic()
        if away_s > 30:
            time.sleep(15.0)  # real time: other machines are watched
            left = sizes(held)
            time.sleep(12.0)
            assert sizes(held) == left, "it has stopped, and nobody has its shards yet"
        time.sleep(began + away_s - time.monotonic())
        node.link("up")
        result = ended(run)
        check_once(tmp_path, url, 600, 1)
    assert (result["status"], result["ok"]) == ("finished", 600)


_PUT_S = 8.0
"""Between two puts of a worker, and for one, on a busy machine: what came meanwhile may be bought again."""


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost with its disk", "out of reach for 90 s"])
def test_without_a_shared_folder_a_machine_loses_what_it_had_not_put_to_object_storage(is_lost: bool) -> None:
    counted: list[tuple[float, int]] = []
    with service() as url, s3_server(SERVICE) as bucket, machines(["head", "node"], None) as (head, node):
        here = Path(f"/proc/{head.pid}/root{FOLDER}")
        summarize_job(here, 600, "")
        with (here / "job.toml").open("a") as job:
            job.write(f'[run]\npath = "{bucket}/runs"\n')
        env = environment(url) | {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        begin_ray(head, node, env)
        run = begin_run(head, head, env)
        while not counted or counted[-1][1] < 200:
            counted.append((time.monotonic(), stats(url)["answered"]))
            assert run.poll() is None
            time.sleep(0.05)  # real time: other machines are watched
        assert named(node, "ray::Member")
        unput = 0
        if is_lost:
            os.kill(node.pid, signal.SIGKILL)
            before = [answered for at, answered in counted if at < counted[-1][0] - _PUT_S]
            unput = counted[-1][1] - max(before, default=0)
        else:
            node.link("down")
            time.sleep(90.0)
            node.link("up")
        result = ended(run)
        check_rows(here, url, 600, IN_FLIGHT + unput)
    assert (result["status"], result["ok"]) == ("finished", 600)
