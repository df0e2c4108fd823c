"""What run.log keeps of requests that came back without an answer."""

from pathlib import Path

import httpx
import orjson
import pytest
from asking import TARGET, ask, opening
from commands import UNLIMITED, small_job
from sessions import run_through

from pipeline.emulator import Emulator, EmulatorOptions, parse_faults
from pipeline.events import Event, RequestFailed
from pipeline.job import load
from pipeline.records import Failure
from pipeline.run import prepare
from pipeline.run.observing import EACH, FailureLog

REFUSED = Failure("rate_limit", "quota", "refused", http_status=429)
BROKEN = Failure("transient", "network", "the connection broke")


def test_few_failures_have_a_line_each_and_many_one_for_each_kind() -> None:
    heard: list[Event] = []
    log = FailureLog(heard.append)
    for number in range(5_000):
        log.failed(ask(number), TARGET, BROKEN if number % 5 == 0 else REFUSED, 2, 0.25)
    log.beat()
    assert heard[1] == RequestFailed(1, "quota", 429, "standard", 2, 0.25, 1)
    assert len(heard) == EACH + 2
    assert {event.fields()["http_status"]: event.fields()["requests"] for event in heard[EACH:]} == {
        429: 3992,
        None: 998,
    }
    assert sum(int(str(event.fields()["requests"])) for event in heard) == 5_000
    log.beat()
    assert len(heard) == EACH + 2, "nothing happened since"
    log.failed(ask(1), TARGET, BROKEN, 1, 0.25)
    assert len(heard) == EACH + 3


def test_run_log_has_the_failed_requests_of_a_run_and_no_word_of_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.key")
    emulator = Emulator(EmulatorOptions(marked=False, model_version=None, faults=parse_faults("400*2")))
    session = prepare.prepare(load(small_job(tmp_path, UNLIMITED)), prepare.Options())
    run_through(session, opening=opening(httpx.ASGITransport(emulator)))
    text = (session.directory / "run.log").read_text()
    failed = [event for line in text.splitlines() if (event := orjson.loads(line))["event"] == "failed"]
    assert [(event["requests"], event["cause"], event["http_status"], event["attempt"]) for event in failed] == [
        (1, "invalid_request", 400, 1)
    ] * 2
    assert {event["row"] for event in failed} <= set(range(6)) and "alpha" not in text
