"""What differs between systems: the program with what Windows lacks taken away, in a process of its own."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import polars as pl
import pytest
from commands import small_job
from serving import served, stats, wait_for

from pipeline.store.manifest import Lock

SCRIPT = Path(__file__).with_name("without_posix.py")


class Other:
    """The program in a process like one of Windows."""

    def __init__(self, here: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, *arguments], cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, *arguments: str) -> None:
        _stream(self.process.stdin).write(json.dumps(arguments) + "\n")
        _stream(self.process.stdin).flush()

    def told(self) -> Any:
        return json.loads(_stream(self.process.stdout).readline())

    def ran(self, *arguments: str) -> Any:
        self.begin(*arguments)
        return self.told()

    def end(self) -> int:
        for stream in (self.process.stdin, self.process.stdout):
            _stream(stream).close()
        return self.process.wait(20)


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream
    return stream


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    process = Other(tmp_path)
    yield process
    assert process.end() == 0


def test_a_job_is_priced_run_changed_and_read(tmp_path: Path, other: Other) -> None:
    job = small_job(tmp_path)
    assert other.ran("estimate", job.name)["code"] == 0
    first = other.ran("run", job.name, "--offline")
    assert first["code"] == 0, first
    job.write_text(job.read_text().replace("Say", "Shout"))
    edited = other.ran("run", job.name, "--offline", "--yes")  # sets the directory aside
    assert edited["code"] == 0, edited
    anew = other.ran("run", job.name, "--offline", "--fresh", "--yes")
    assert anew["code"] == 0, anew
    report = other.ran("report", "small-offline", "--json")
    assert json.loads(report["out"])["ok"] == 6
    assert other.ran("export", "small-offline", "--to", "again.csv")["code"] == 0
    assert len((tmp_path / "again.csv").read_text().splitlines()) == 7


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with served(latency_s=0.02) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        yield url


def test_ctrl_c_ends_a_run_where_an_event_loop_takes_no_handlers(tmp_path: Path, service: str, other: Other) -> None:
    job = small_job(tmp_path, "[limits]\nrpm = 0\ntpm = 0\nconcurrency = 2")
    (tmp_path / "words.csv").write_text("word\n" + "".join(f"word {number}\n" for number in range(200)))
    other.begin("run", job.name, "--yes")
    wait_for(service, "answered", 10, other.process)
    other.process.send_signal(signal.SIGINT)
    ended = other.told()
    answered = stats(service)["answered"]
    assert ended["code"] == 130 and 10 <= answered < 200, ended
    assert f"{answered} ok" in ended["err"] and "what was answered is kept; the same command" in ended["err"], ended
    rows = pl.read_parquet(tmp_path / "out.parquet")
    assert dict(rows["status"].value_counts().iter_rows()) == {"ok": answered, "pending": 200 - answered}
    again = other.ran("run", job.name, "--yes", "--json")  # in the same process, whose signals are as they were
    assert again["code"] == 0 and json.loads(again["out"])["ok"] == stats(service)["answered"] == 200, again


def test_two_processes_do_not_write_one_directory(tmp_path: Path) -> None:
    holder = Other(tmp_path, "lock")
    assert _stream(holder.process.stdout).readline() == "locked\n"
    assert Lock.held(tmp_path / "lock")
    second = Other(tmp_path, "lock")
    assert _stream(second.process.stdout).readline() == ""
    assert second.end() != 0
    assert holder.end() == 0
    assert not Lock.held(tmp_path / "lock")


def test_every_module_is_imported_without_what_windows_lacks() -> None:
    script = (  # all but that of Ray, which need not be here
        "import importlib, pkgutil, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import without_posix, pipeline\n"
        "without_posix.become()\n"
        "for each in pkgutil.walk_packages(pipeline.__path__, 'pipeline.'):\n"
        "    if not each.name.endswith(('__main__', '.on_ray')): importlib.import_module(each.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, SCRIPT.parent], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
