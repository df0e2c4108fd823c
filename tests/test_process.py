"""The program as cron, a daemon or a shell starts it: streams closed or full, other locales, few open files."""

import ctypes
import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest
from commands import UNLIMITED, Ran, small_job
from serving import served, stats

from pipeline.cli.flags import Declined
from pipeline.errors import PipelineError
from pipeline.events import Event
from pipeline.process import give_back_memory, quick_imports
from pipeline.quota.slots import Slots
from pipeline.records import Limits
from pipeline.run.guards import within_files

PIPELINE = f"{shlex.quote(sys.executable)} -m pipeline"


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """What a shell makes of `command`, in which PIPELINE stands for the program."""
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), **os.environ, **variables}
    line = command.replace("PIPELINE", PIPELINE)
    return subprocess.run(["bash", "-c", line], capture_output=True, env=environment, check=False)


def rows_written(here: Path) -> int:
    import polars as pl

    (output,) = here.glob("out*.parquet")
    return pl.read_parquet(output).height


@pytest.mark.case("S9")
@pytest.mark.parametrize(
    "closed",
    [
        *("<&- >&- 2>&-", ">&-", "2>&-", "2>/dev/full", "1<&0 </dev/null"),  # all, and each that is written to
        *(pytest.param(closed, marks=pytest.mark.long) for closed in ("<&-", ">&- 2>&-", "<&- 2>&-")),
    ],
)
def test_a_run_ends_as_it_should_without_its_streams(here: Path, closed: str) -> None:
    """A file or socket of ours must not be taken for a stream, and a stream that is gone must not end the run."""
    ran = shell(f"PIPELINE run {small_job(here, UNLIMITED)} --offline {closed}")
    assert ran.returncode == 0, ran.stderr.decode()
    assert rows_written(here) == 6


@pytest.mark.case("S9")
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&- 2>&-"])
def test_a_failure_without_streams_has_its_exit_code(here: Path, closed: str) -> None:
    assert shell(f"PIPELINE run nothing.toml {closed}").returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_each_line_on_stderr_leaves_at_once(unbuffered: str) -> None:
    code = "import os, sys; from pipeline.process import make_fit; make_fit(); sys.stderr.write('told\\n'); os._exit(0)"
    assert shell(f'{shlex.quote(sys.executable)} -c "{code}"', PYTHONUNBUFFERED=unbuffered).stderr == b"told\n"


@pytest.mark.case("S9")
@pytest.mark.parametrize("command", ["models", "run small.toml --offline --json --fresh"])
def test_a_reader_that_has_enough_ends_nothing(here: Path, command: str) -> None:
    small_job(here, UNLIMITED)
    ran = shell(f"PIPELINE {command} | true; exit ${{PIPESTATUS[0]}}")
    assert (ran.returncode, b"Traceback" in ran.stderr) == (0, False), ran.stderr.decode()


@pytest.mark.case("S9")
def test_progress_that_nobody_reads_ends_nothing(here: Path) -> None:
    small_job(here, UNLIMITED)
    ran = shell("PIPELINE run small.toml --offline 2> >(true)")
    assert ran.returncode == 0 and rows_written(here) == 6


def test_numbers_that_do_not_fit_the_disk_are_told_after_the_run(here: Path) -> None:
    """The answers are kept, so it is no 2, which says that nothing was spent."""
    ran = shell(f"PIPELINE run {small_job(here, UNLIMITED)} --offline --json >/dev/full")
    assert ran.returncode == 3
    assert b"No space left" in ran.stderr and b"What was answered is kept." in ran.stderr


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "POSIX"}, {"LANG": ""}])
def test_chinese_names_work_in_any_locale(here: Path, locale: dict[str, str]) -> None:
    small_job(here, UNLIMITED).rename("评论.toml")
    ran = shell("PIPELINE run 评论.toml --offline --out 结果/表.csv", **locale)
    assert ran.returncode == 0, ran.stderr.decode()
    assert Path("结果/表.csv").exists()
    report = shell("PIPELINE report runs/评论-offline --json", **locale)
    assert report.returncode == 0 and json.loads(report.stdout)["run"] == "评论"


def test_a_flag_that_is_no_text_is_refused(here: Path) -> None:
    ran = shell("PIPELINE run $'caf\\xe9.toml' --json")
    assert ran.returncode == 2
    assert b"argument 2 is not UTF-8: caf\\udce9.toml" in ran.stderr
    assert json.loads(ran.stdout)["error"].startswith("argument 2 is not UTF-8")


@pytest.mark.case("D9")
@pytest.mark.parametrize(("files", "rows"), [(256, 300), (40, 12)])
def test_few_open_files_bound_the_calls_in_flight(here: Path, files: int, rows: int) -> None:
    """Both limits are lowered, so that the soft one cannot be raised."""
    job = small_job(here, f"{UNLIMITED}\nconcurrency = 500")
    (here / "words.csv").write_text("word\n" + "".join(f"w{number}\n" for number in range(rows)))
    with served(latency_s=0.3) as url:
        real = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "some-key"}
        ran = shell(f"ulimit -n {files}; PIPELINE run {job} --yes --json", **real)
        seen = stats(url)
    assert ran.returncode == 0, ran.stderr.decode()
    assert json.loads(ran.stdout)["ok"] == seen["requests"] == rows, "nothing failed for want of a socket"
    assert ran.stderr.count(b"calls at once: this process may open only") == 1
    assert seen["max_in_flight"] < files


@pytest.mark.case("D9")
def test_the_soft_limit_is_raised_to_the_hard_one(here: Path) -> None:
    job = small_job(here, f"{UNLIMITED}\nconcurrency = 100")
    (here / "words.csv").write_text("word\n" + "".join(f"w{number}\n" for number in range(150)))
    with served(latency_s=0.3) as url:
        real = {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "some-key"}
        ran = shell(f"ulimit -Sn 60; ulimit -Hn 400; PIPELINE run {job} --yes", **real)
        assert ran.returncode == 0 and b"ulimit" not in ran.stderr, ran.stderr.decode()
        assert stats(url)["max_in_flight"] > 60


@pytest.mark.case("D9")
@pytest.mark.parametrize("files", [30, 20, 12, 8])
def test_too_few_open_files_are_refused_with_words(here: Path, files: int) -> None:
    ran = shell(f"ulimit -n {files}; PIPELINE run {small_job(here, UNLIMITED)} --offline")
    assert (ran.returncode, b"ulimit -n" in ran.stderr, b"Traceback" in ran.stderr) == (2, True, False), ran.stderr


@pytest.mark.case("D9")
def test_files_bound_the_slots() -> None:
    heard: list[Event] = []

    def bounded(concurrency: int | None, left: int) -> int | None:
        return within_files(Limits(concurrency=concurrency), left, heard.append).sockets

    assert (bounded(500, 600), bounded(None, 3000)) == (None, None) and not heard
    assert (bounded(500, 226), bounded(None, 500), bounded(10, 20)) == (210, 484, 5) and len(heard) == 3
    with pytest.raises(PipelineError, match="too few"):
        bounded(None, 3)
    assert Slots(500, inf, 210).count == 210 and Slots(None, 1e6, 100).count == 100 and Slots(20, inf, 100).count == 20


# ---- a signal while the program starts

_STRUCK = """
import builtins, os, runpy, signal, sys
_, at, number = sys.argv
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored, as nohup
signal.signal(signal.SIGHUP, signal.SIG_DFL)
genuine = builtins.__import__
def importing(name, *arguments, **options):
    if name == at:
        builtins.__import__ = genuine
        os.kill(os.getpid(), int(number))
    return genuine(name, *arguments, **options)
builtins.__import__ = importing
sys.argv = ["pipeline", "run", "small.toml", "--yes", "--json"]
runpy.run_module("pipeline", run_name="__main__")
"""


@pytest.mark.case("S6")
@pytest.mark.parametrize(
    ("at", "number"),
    [
        *((at, signal.SIGINT) for at in ("pipeline.cli", "ctypes", "pipeline.process")),
        *(  # each place, by each signal in turn: they have one handler; the others are long
            pytest.param(at, number, marks=[pytest.mark.long] * bool((place + turn) % 3))
            for place, at in enumerate(("pipeline.cli.app", "typer", "polars", "pipeline.run.engine", "connector"))
            for turn, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        ),
    ],
)
def test_a_signal_during_the_start_is_told_and_leaves_nothing(here: Path, number: signal.Signals, at: str) -> None:
    small_job(here, UNLIMITED)
    before = set(here.rglob("*"))
    command = [sys.executable, "-c", _STRUCK, at, str(int(number))]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), **os.environ, "GEMINI_API_KEY": "AQ.test"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 130, done.stderr
    assert b"Interrupted." in done.stderr and b"Traceback" not in done.stderr
    assert set(here.rglob("*")) - before == set()


_STRUCK_LATE = """
import os, signal, sys
class Late:
    def __del__(self, kill=os.kill, own=os.getpid(), number=int(sys.argv[1])):
        kill(own, number)
late = Late()
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from pipeline.cli import main
sys.argv = ["pipeline", "--version"]
main()
"""


@pytest.mark.case("S6")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_when_all_is_said_changes_no_exit_code(number: signal.Signals) -> None:
    command = [sys.executable, "-c", _STRUCK_LATE, str(int(number))]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.startswith(b"prompt-pipeline ")


@pytest.mark.parametrize("ignored", [False, True], ids=["a terminal that is gone", "nohup"])
def test_sighup_during_the_start_is_heeded_unless_it_is_ignored(ignored: bool) -> None:
    script = (
        "import os, signal\nfrom pipeline.process import heed_signals\n"
        f"signal.signal(signal.SIGHUP, signal.SIG_{'IGN' if ignored else 'DFL'})\nheed_signals()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGHUP)\nexcept KeyboardInterrupt:\n    print('heeded')"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), **os.environ}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60, check=True)
    assert (done.stdout == b"heeded\n") is not ignored


def test_sigterm_is_heeded_in_a_shells_background_where_ctrl_c_is_ignored() -> None:
    script = (
        "import os, signal\nfrom pipeline.process import heed_signals\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nheed_signals()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept KeyboardInterrupt:\n    print('heeded')"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), **os.environ}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"heeded\n"


def _wrapped() -> RuntimeError:
    error = RuntimeError("Error calling __set_name__")
    error.__cause__ = KeyboardInterrupt()
    return error


def test_a_no_is_no_interrupt(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: object) -> None:
        raise Declined

    monkeypatch.setattr("pipeline.cli.jobs.load_job", asked)
    ran = cli("run", small_job(here), "--json")
    assert (ran.code, ran.json) == (4, {"error": "not agreed to: nothing was sent", "hint": "", "exit_code": 4})
    assert ran.out.count("\n") == 1 and "Nothing was sent." in ran.err


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), _wrapped(), BaseExceptionGroup("tasks", [KeyboardInterrupt()])],
    ids=["plain", "in a class half made", "in a group of tasks"],
)
def test_ctrl_c_is_no_bug_whatever_it_hits(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def struck(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.cli.jobs.load_job", struck)
    ran = cli("run", small_job(here), "--json")
    assert (ran.code, ran.json["error"]) == (130, "interrupted")
    assert "Interrupted." in ran.err and "Traceback" not in ran.err


def test_a_directory_that_goes_during_the_start_is_no_bug(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gone = tmp_path_factory.mktemp("gone")
    monkeypatch.chdir(gone)

    def struck(*arguments: object) -> None:
        gone.rmdir()
        Path.cwd()

    monkeypatch.setattr("pipeline.cli.jobs.load_job", struck)
    ran = cli("run", "job.toml", "--json")
    assert (ran.code, ran.json["error"]) == (2, "the directory you are in is gone")


def test_memory_is_given_back_where_the_system_takes_it_and_nothing_is_said_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_back_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # a C library without `malloc_trim`
    give_back_memory()


def test_what_became_garbage_between_two_imports_is_not_kept_for_good() -> None:
    class Node:
        own: object = None

    with quick_imports():
        pass
    gc.disable()
    node = Node()
    node.own, told = node, weakref.ref(node)
    del node
    with quick_imports():
        pass
    assert told() is None


def test_what_only_a_command_line_of_httpx_needs_is_not_imported() -> None:
    code = (
        "from pipeline.process import quick_imports as quick\nwith quick():\n    import httpx, sys\nprint(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"httpx", "pygments", "rich", "click"} & set(ran.stdout.split()) == {"httpx"}
