"""What stops a run in its middle, by the whole command line: exit 3, answers are kept, nothing is bought twice."""

import errno
import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from commands import Ran
from playing import Service, playing

from pipeline.run.status import read as read_status
from pipeline.store.reserve import RESERVE_BYTES

ROWS, BEFORE = 30, 10


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A real one, at the base URL."""
    with playing() as service:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service.url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        yield service


@pytest.fixture
def job(here: Path) -> Path:
    (here / "words.csv").write_text("word\n" + "".join(f"word {number}\n" for number in range(ROWS)))
    path = here / "midway.toml"
    path.write_text(
        '[input]\npath = "words.csv"\n[prompt]\ntemplate = "Say {{ word }}"\n'
        '[model]\nname = "gemini-3.5-flash-lite"\nmax_output_tokens = 50\n[output]\npath = "out.parquet"\n'
        "[limits]\nrpm = 0\ntpm = 0\nconcurrency = 2\n"
    )
    return path


def error(code: int, status: str, message: str, reason: str = "") -> tuple[int, object]:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}] if reason else []
    return code, {"error": {"code": code, "message": message, "status": status, "details": details}}


REFUSED = {
    "401": error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials."),
    "403": error(403, "PERMISSION_DENIED", "Your API key was reported as leaked. Please use another API key."),
    "400": error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", "API_KEY_INVALID"),
}


@pytest.mark.parametrize("refusal", REFUSED)
def test_a_key_that_is_refused_in_mid_run_keeps_what_was_answered(
    job: Path, service: Service, cli: Callable[..., Ran], refusal: str
) -> None:
    service.instead = lambda number: REFUSED[refusal] if number > BEFORE else None
    stopped = cli("run", job, "--yes")
    assert stopped.code == 3
    assert f"HTTP {refusal}" in stopped.err and "What was answered is kept." in stopped.err
    assert "pipeline check" in stopped.err, "the next command"
    assert Counter(pl.read_parquet("out.parquet")["status"]) == {"ok": BEFORE, "pending": ROWS - BEFORE}
    again = cli("run", job, "--yes")
    assert again.code == 2 and sum(service.answered.values()) == BEFORE, "this one spent nothing"
    service.instead = lambda number: None
    ended = cli("run", job, "--yes")
    assert ended.code == 0, ended.err
    assert Counter(pl.read_parquet("out.parquet")["status"]) == {"ok": ROWS}
    assert len(service.answered) == ROWS and set(service.answered.values()) == {1}, "nothing is paid twice"


@pytest.mark.parametrize("refusal", REFUSED)
def test_a_key_that_is_refused_at_once_cost_nothing(
    job: Path, service: Service, cli: Callable[..., Ran], refusal: str
) -> None:
    service.instead = lambda number: REFUSED[refusal]
    stopped = cli("run", job, "--yes")
    assert stopped.code == 2 and f"HTTP {refusal}" in stopped.err and "kept" not in stopped.err


@pytest.mark.parametrize("before", [0, BEFORE])
def test_what_was_answered_is_said_to_be_kept_where_something_was(
    job: Path, service: Service, cli: Callable[..., Ran], before: int
) -> None:
    service.instead = lambda number: error(402, "", "Insufficient balance") if number > before else None
    stopped = cli("run", job, "--yes")
    assert stopped.code == 3 and "add credit, then run the same command again" in stopped.err
    assert ("What was answered is kept." in stopped.err) is bool(before) is ("kept" in stopped.err)


def test_a_fresh_run_that_was_stopped_goes_on_without_the_flag(
    job: Path, service: Service, cli: Callable[..., Ran]
) -> None:
    service.instead = lambda number: error(402, "", "Insufficient balance") if number > BEFORE else None
    stopped = cli("run", job, "--yes", "--fresh")
    assert stopped.code == 3 and "run the same command without `--fresh` again" in stopped.err
    assert "run the same command again" in cli("run", job, "--yes").err


PROXY = (407, {"error": "Proxy Authentication Required"})


def test_a_proxy_that_asks_for_a_login_is_named_and_not_the_key(
    job: Path, service: Service, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is asked to pass a request on, or for a tunnel; in mid-run too."""
    proxy = service.url.removeprefix("http://")
    for scheme in ("http", "https"):
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"{scheme}://model.example")
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:hunter2@{proxy}")
        service.instead = lambda number: PROXY
        refused = cli("run", job, "--yes")
        assert refused.code == 2 and "kept" not in refused.err
        assert f"the proxy http://{proxy} " in refused.err and f"into {scheme.upper()}_PROXY" in refused.err
        assert "hunter2" not in refused.err and "the key" not in refused.err
    exact = cli("estimate", job, "--exact")
    assert exact.code == 2 and f"the proxy http://{proxy} " in exact.err
    checked = cli("check", job)
    assert checked.code == 2 and f"the proxy http://{proxy} " in checked.out and "the key" not in checked.out
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://model.example")
    service.asked = 0
    service.instead = lambda number: PROXY if number > BEFORE else None
    stopped = cli("run", job, "--yes")
    assert stopped.code == 3 and "What was answered is kept." in stopped.err and f"http://{proxy} " in stopped.err
    assert Counter(pl.read_parquet("out.parquet")["status"]) == {"ok": BEFORE, "pending": ROWS - BEFORE}


def rooms_kept() -> int:
    """How many open files of that size without a name this process has, those of earlier tests among them."""
    kept = 0
    for number in (int(each.name) for each in Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            kept += (seen := os.fstat(number)).st_nlink == 0 and seen.st_size == RESERVE_BYTES
    return kept


def test_a_disk_that_fills_in_mid_run_has_room_for_what_is_in_flight(
    job: Path, here: Path, service: Service, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    job.write_text(job.read_text().replace("concurrency = 2", "concurrency = 8"))
    service.instead = lambda number: time.sleep(
        0.1 * (number > BEFORE)
    )  # one after another: longer than to the next sync
    gc.collect()  # those of earlier tests that nobody holds any more must not go in the middle
    write, others = os.write, rooms_kept()

    def crowded(fd: int, data: bytes) -> int:
        """The journals find no room after the first answers, but where the reserve was."""
        journals = {path.stat().st_ino for path in here.glob("runs/midway/journal-*")}
        if service.asked > BEFORE and rooms_kept() > others and os.fstat(fd).st_ino in journals:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    with monkeypatch.context() as full:
        full.setattr(os, "write", crowded)
        stopped = cli("run", job, "--yes")
    assert stopped.code == 3 and "no space is left on the disk of runs/midway" in stopped.err, stopped.err
    assert "What was answered is kept." in stopped.err and "make room" in stopped.err
    assert len(service.answered) > BEFORE and rooms_kept() == others
    assert Counter(pl.read_parquet("out.parquet")["status"])["ok"] == len(service.answered)
    service.instead = lambda number: None
    assert cli("run", job, "--yes").code == 0
    assert len(service.answered) == ROWS and set(service.answered.values()) == {1}, "nothing is paid twice"
    assert rooms_kept() == others


def test_a_disk_without_room_for_what_will_be_in_flight_is_told_before_the_first_call(
    job: Path, service: Service, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse, raising=False)
        stopped = cli("run", job, "--yes")
    assert stopped.code == 2 and "less than 8 MB are left" in stopped.err and not service.answered
    assert cli("run", job, "--yes").code == 0


@pytest.mark.parametrize("name", ["calls", "results", "parts.jsonl"])
def test_a_run_directory_that_fails_in_mid_run_keeps_what_was_answered(
    job: Path, here: Path, service: Service, cli: Callable[..., Ran], name: str
) -> None:
    """Something else lies where a part, or the list of parts, is to be written."""
    place = here / "runs" / "midway" / name

    def meddle(number: int) -> None:
        if number == BEFORE:
            if place.exists():
                place.rename(place.with_name("moved"))
            if name == "parts.jsonl":
                place.mkdir()
            else:
                place.write_text("in the way")

    service.instead = meddle
    stopped = cli("run", job, "--yes")
    assert stopped.code == 3, stopped.err
    assert str(place.relative_to(here)) in stopped.err and "kept" in stopped.err and "hint: " in stopped.err
    told = read_status(here / "runs" / "midway")
    assert told and told.state == "stopped" and str(place.relative_to(here)) in told.reason
    service.instead = lambda number: None
    if name == "parts.jsonl":
        place.rmdir()
    else:
        place.unlink()
    if place.with_name("moved").exists():
        place.with_name("moved").rename(place)
    ended = cli("run", job, "--yes")
    assert ended.code == 0, ended.err
    assert Counter(pl.read_parquet("out.parquet")["status"]) == {"ok": ROWS}
    assert len(service.answered) == ROWS and set(service.answered.values()) == {1}, "nothing is paid twice"


def test_ctrl_c_under_the_table_of_an_earlier_generation_says_once_how_to_go_on(
    job: Path, service: Service, cli: Callable[..., Ran]
) -> None:
    assert cli("run", job, "--yes").code == 0
    job.write_text(job.read_text().replace("Say {{", "Sing {{"))
    before = len(service.answered)
    service.instead = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == before + BEFORE else None
    stopped = cli("run", job, "--yes")
    assert stopped.code == 130 and "it was not replaced" in stopped.err, stopped.err
    assert stopped.err.count("the same command") == 1, stopped.err
