"""What a person should hear while a run goes on, and what arrives at a webhook: a real server, beside real runs."""

import base64
import errno
import hashlib
import hmac
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import anyio.lowlevel
import httpx
import pytest
from asking import Stub, opening_of
from commands import UNLIMITED, Ran, small_job
from hypothesis import given
from hypothesis import strategies as st
from sessions import run_through

from pipeline.budget.caps import Cap
from pipeline.errors import BUG, JobError, RunStateError
from pipeline.events import Alert
from pipeline.job import load
from pipeline.prompts import Prompt
from pipeline.quota.standing import Meter, QuotaStanding
from pipeline.records import Failure, Reply, Result, Usage
from pipeline.run import prepare, ways, webhook
from pipeline.run.alerting import Alerting, Watcher
from pipeline.run.engine import Monitor
from pipeline.run.signing import signed
from pipeline.run.status import Status
from pipeline.run.status import read as read_status
from pipeline.sections import Alerts
from pipeline.store.run import RunStore
from pipeline.targets import Target

ROBOT, OTHER_ROBOT = "SECrecognisable5501984secret", "SECrecognisable6612095secret"
SECRET = "B0recognisable5501984hook"
NOW_S = 1_800_000_000.0
QUIET = {"error_percent": False, "truncated_percent": False, "budget_percent": False, "stalled_min": False}
USUAL = Alerts.model_validate({})


def thresholds(**limits: Any) -> Alerts:
    return Alerts.model_validate({**QUIET, **limits})


def status(at_s: float = 0.0, *, calls: int = 0, failures: dict[str, int] | None = None, **fields: Any) -> Status:
    told: dict[str, Any] = {"outcomes": {}, **fields}
    return Status(NOW_S + at_s, NOW_S, 10_000, 0, calls, 20_000, failures=failures or {}, **told)


def watched(
    looks: Sequence[Status], caps: Sequence[Cap] = (), latencies: Sequence[float] = (), **limits: Any
) -> list[list[tuple[str, str]]]:
    """What each look told: begun or over, and what."""
    watcher = Watcher(thresholds(**limits), {})
    return [
        [("over" if alert.over else "begun", alert.message) for alert in watcher.look(each, caps, latencies)]
        for each in looks
    ]


def rows(ok: int, failed: int = 0, truncated: int = 0, empty: int = 0) -> Status:
    outcomes = {"ok": ok, "error": failed, "truncated": truncated, "invalid": empty}
    return status(outcomes=outcomes, failures={"server": failed, "truncated": truncated, "empty_input": empty})


# ---- episodes


def test_an_episode_of_failures_begins_once_and_ends_at_half_the_threshold() -> None:
    looks = [rows(0), rows(4, 4), rows(94, 6), rows(900, 60), rows(1890, 67), rows(1901, 68), rows(9000, 1000)]
    told = watched(looks, error_percent=5.0)
    assert told[:2] == [[], []], "four rows are no share"
    assert told[2] == [("begun", "6.0% of the last 100 rows failed: 6 server")]
    assert told[3:5] == [[], []], "it goes on"
    assert told[5][0][0] == "over" and told[5][0][1].startswith("over, 0.8% of the last 1,009 rows failed")
    assert told[6][0][0] == "begun"


def test_rows_that_were_never_asked_and_those_that_were_cut_are_no_failures() -> None:
    assert watched([rows(0), rows(50, empty=50), rows(150, truncated=90, empty=50)], error_percent=5.0) == [[], [], []]


def test_answers_that_are_cut_are_told_with_what_helps() -> None:
    told = watched([rows(0), rows(72, truncated=28)], truncated_percent=10.0)
    assert told[1] == [("begun", "28.0% of the last 100 rows were cut: `--retry truncated` redoes them")]
    told = watched([rows(0), rows(72, truncated=28), rows(2_000, truncated=28)], truncated_percent=10.0)
    assert told[2] == [("over", "over, 0.0% of the last 1,928 rows were cut")], "no cure of what is over"


def test_each_cap_is_told_once_and_anew_when_its_day_is_another() -> None:
    watcher = Watcher(thresholds(budget_percent=80.0), {})

    def told(run: str, day: str) -> list[str]:
        caps = [Cap("the budget", Decimal(10), Decimal(run), ""), Cap("the day's budget", Decimal(5), Decimal(day), "")]
        return [alert.name for alert in watcher.look(status(), caps, ()) if not alert.over]

    assert told("7.9", "1") == []
    assert told("8", "1") == ["budget"] and told("9", "4.5") == ["day_budget"]
    assert told("9", "4.9") == [] and told("9", "0") == [] and told("9", "4") == ["day_budget"]


def test_the_days_quota_is_told_of_each_target_where_it_is_asked_for() -> None:
    def quota(target: str, used: int) -> QuotaStanding:
        return QuotaStanding(target, None, None, Meter(used, 500, told=True), 0, 64, "", None)

    looks = [status(quotas=(quota("free", used), quota("paid", 10))) for used in (399, 400, 500, 3, 401)]
    told = watched(looks, day_quota_percent=80.0)
    assert [len(each) for each in told] == [0, 1, 0, 1, 1]
    assert told[1] == [("begun", "80% of the day's 500 requests of free are used")]
    assert watched(looks) == [[]] * 5, "nobody asked for it"


def test_latency_is_that_of_half_of_the_last_calls() -> None:
    watcher = Watcher(thresholds(latency_s=10.0), {})
    latencies: deque[float] = deque(maxlen=100)
    told = []
    for seconds in [1.0] * 50 + [30.0] * 60 + [9.0] * 40 + [30.0] * 9 + [9.0] * 90:
        latencies.append(seconds)
        told += watcher.look(status(), (), latencies)
    assert [alert.over for alert in told] == [False, True]
    assert told[0].message == "half of the last 100 calls took 30 s or longer"


def test_silence_is_told_but_not_of_a_run_that_waits_or_a_machine_that_slept() -> None:
    def looks(minutes: Sequence[float], calls: int = 7, **fields: Any) -> list[Status]:
        return [status(60 * minute, calls=calls, **{"waiting": 9, **fields}) for minute in minutes]

    each_half = [half / 2 for half in range(22)]
    told = watched([*looks(each_half), *looks([11.0], calls=8)], stalled_min=10.0)
    assert [len(each) for each in told] == [0] * 20 + [1, 0, 1]
    assert told[20] == [("begun", "no call was answered for 10 min")]
    assert told[22] == [("over", "over, calls are answered again")]
    assert watched(looks(each_half, calls=20_000, waiting=0, in_flight=1), stalled_min=10.0)[20], (
        "more than was planned"
    )
    down = watched(looks(each_half, waits_for="outage"), stalled_min=10.0)
    assert down[20] == [("begun", "no call was answered for 10 min: the service is down, or refuses everything")]
    for quiet in (
        looks(each_half, waits_for="day_quota"),
        looks(each_half, waits_for="batches"),
        looks(each_half, waiting=0),
        looks([0.0, 500.0, 500.5]),
    ):
        assert not any(watched(quiet, stalled_min=10.0))


def test_a_session_does_not_tell_again_what_the_last_one_told() -> None:
    caps = [Cap("the budget", Decimal(10), Decimal(9), "")]
    watcher = Watcher(USUAL, {"budget": "80% of the budget of $10 is spent", "errors": "9% failed"})
    assert watcher.look(rows(0), caps, ()) == [], "nothing is known of failures yet"
    assert watcher.look(rows(40, 20), caps, ()) == [] and watcher.passed.keys() == {"budget", "errors"}
    assert [alert.name for alert in watcher.look(rows(5_000, 20), caps, ()) if alert.over] == ["errors"]


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_each_episode_has_one_beginning_and_one_end(steps: list[tuple[int, int, int]]) -> None:
    watcher, told, sums = Watcher(USUAL, {}), [], [0, 0, 0]
    for step in steps:
        sums = [before + more for before, more in zip(sums, step, strict=True)]
        told += watcher.look(rows(*sums), (), ())
    for name in ("errors", "truncated"):
        turns = [alert.over for alert in told if alert.name == name]
        assert turns == [bool(number % 2) for number in range(len(turns))]
        assert (name in watcher.passed) is bool(len(turns) % 2)


# ---- the webhook


class Hook:
    """A server that takes posts, or does with them what it is told."""

    def __init__(self) -> None:
        self.posts: list[Any] = []
        self.paths: list[str] = []
        self.answer = (200, b"ok")
        self.answering: Callable[[str, Any], tuple[int, bytes]] | None = None
        self.silent_s = 0.0
        self.login: str | None = None

    def of(self, event: str) -> list[Any]:
        return [post for post in self.posts if post["event"] == event]


@contextmanager
def serving(hook: Hook) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            hook.posts.append(json.loads(body))
            hook.paths.append(self.path)
            hook.login = self.headers["authorization"]
            time.sleep(hook.silent_s)
            code, content = hook.answering(self.path, hook.posts[-1]) if hook.answering else hook.answer
            with suppress(OSError):  # nobody waits for it any more
                self.send_response(code)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
def url(hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    with serving(hook) as base:
        monkeypatch.setenv("HOOK", f"{base}/services/{SECRET}")
        yield base


class Answering(Stub):
    """Answers with what it is given for each row, else whole."""

    def __init__(self, outcomes: dict[int, Failure] | None = None, truncated: int = 0, usd: float = 0.0) -> None:
        self.outcomes, self.truncated = outcomes or {}, truncated

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        await anyio.lowlevel.checkpoint()
        if (found := self.outcomes.get(prompt.row)) is not None:
            return found
        status, reason = ("truncated", "MAX_TOKENS") if prompt.row < self.truncated else ("ok", "STOP")
        return Reply(
            *("text", status),  # type: ignore[arg-type]
            finish_reason=reason,
            error_kind="truncated" if status == "truncated" else None,
            usage=Usage(10, output_tokens=5),
            model=target.model,
            raw=b"{}",
            endpoint=target.endpoint,
            finished_at=time.time(),
        )


def ran(path: Path, provider: Stub, **options: Any) -> Any:
    prepared = prepare.prepare(load(path), prepare.Options(**options))
    return run_through(prepared, opening=opening_of(provider))


def logged(kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, Path("runs/small/run.log").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


HOOKED = 'webhook_env = "HOOK"'
NAMES_IT = "; `[alerts] webhook_secret_env` names the variable of the robot's secret"
ENV = '[alerts]\nwebhook_env = "HOOK"\n'


def test_an_alert_and_the_end_of_the_run_arrive_once_each(hook: Hook, url: str, tmp_path: Path) -> None:
    path = small_job(tmp_path, f"{UNLIMITED}\n{ENV}")
    ended = ran(path, Answering(truncated=5))
    assert ended.exit_code == 1
    alert, finished = hook.posts
    assert hook.paths == [f"/services/{SECRET}"] * 2
    assert (alert["event"], alert["alert"], alert["rehearsal"], alert["job"]) == ("alert", "truncated", False, "small")
    assert alert["text"].startswith("pipeline small: alert: 83.3% of the last 6 rows were cut")
    assert alert.keys() == finished.keys() == webhook.POST_KEYS.keys()
    assert (finished["event"], finished["exit_code"], finished["until"]) == ("finished", 1, None)
    assert finished["text"] == f"pipeline small: finished: 1 of 6 rows ok, 5 truncated, ${finished['cost_usd']:.2f}"
    assert finished["rows_done"] == finished["calls"] == 6 and finished["outcomes"]["truncated"] == 5
    assert [(each["name"], each["over"]) for each in logged("alert")] == [("truncated", False)]
    kept = read_status(Path("runs/small"))
    assert kept and kept.alerts.keys() == {"truncated"}
    ran(path, Answering())
    assert [post["event"] for post in hook.posts] == ["alert", "finished", "finished"], "no episode has begun"


def test_a_run_that_stops_needs_somebody_and_one_that_waits_says_until_when(
    hook: Hook, url: str, tmp_path: Path
) -> None:
    path = small_job(tmp_path, f"{UNLIMITED}\n{ENV}")
    money = Failure("spend_limit", "quota", "no money is left", 429)
    assert ran(path, Answering(dict.fromkeys(range(6), money))).exit_code == 3
    assert [post["event"] for post in hook.posts] == ["needs_you"]
    assert "no money is left" in hook.posts[0]["text"] and hook.posts[0]["exit_code"] == 3
    path = small_job(tmp_path, f"[limits]\nrpm = 0\ntpm = 0\nrpd = 4\n{ENV}")
    assert ran(path, Answering(), fresh=True).exit_code == 3
    paused = hook.posts[1]
    assert paused["event"] == "paused" and paused["until"] and f"paused until {paused['until'][:10]}" in paused["text"]


def test_each_end_has_its_name_and_says_how_far_the_run_is() -> None:
    half = status(outcomes={"ok": 3, "truncated": 0}, cost_usd=1.5)
    so_far = "3 of 10,000 rows ok, $1.50"
    for fields, event, text in (
        ({"state": "interrupted"}, "interrupted", f"interrupted: {so_far}; the same command goes on"),
        ({"state": "left", "reason": "batches"}, "paused", f"paused: batches; {so_far}; the same command goes on"),
        ({"state": "stopped", "reason": "a\nb"}, "needs_you", f"needs you: a; {so_far}; the same command goes on"),
        ({"state": "finished", "unpriced": 2}, "finished", f"finished: {so_far} and unknown prices"),
    ):
        assert webhook.ending(replace(half, **fields)) == (event, text)


def test_a_run_that_does_not_reach_its_service_needs_somebody(
    hook: Hook, url: str, tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "BETWEEN_S", 0.0)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
    path = small_job(tmp_path, ENV)
    refused = cli("run", path, "--yes")
    assert refused.code and refused.err.count("error: no request reaches the service") == 1
    assert [post["event"] for post in hook.posts] == ["needs_you"]
    assert hook.posts[0]["text"].startswith("pipeline small: needs you: no request reaches the service")
    assert cli("run", path).code == 2 and len(hook.posts) == 1, "nobody said yes: whoever is here knows"


def test_a_post_that_cannot_be_made_hides_nothing_of_a_run_by_workers_that_does_not_begin(
    hook: Hook, url: str, tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "BETWEEN_S", 0.0)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
    hook.answer = (500, b"no")
    refused = cli("run", small_job(tmp_path, ENV), "--yes", "--workers", "2")
    assert refused.code == 3 and refused.err.count("error: no request reaches the service") == 1
    assert [post["event"] for post in hook.posts] == ["needs_you"]


def test_a_run_whose_journal_cannot_be_written_was_not_killed_and_needs_somebody(
    hook: Hook, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write, asked = small_job(tmp_path, f"{UNLIMITED}\n{ENV}"), os.write, Answering()

    def broken(fd: int, data: bytes) -> int:
        journals = {path.stat().st_ino for path in Path("runs/small").glob("journal-*")}
        if b'{"call"' in data and os.fstat(fd).st_ino in journals:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(fd, data)

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", broken)
        ended = ran(path, asked)
    assert isinstance(ended.stopped, RunStateError) and ended.stopped.message.startswith("cannot write runs/small/jour")
    assert ended.exit_code == 3 and ended.summary.pending == 6, "it is told as every end is"
    assert [post["event"] for post in hook.posts] == ["needs_you"] and "cannot write runs/small" in hook.posts[0][
        "text"
    ]
    kept = read_status(Path("runs/small"))
    assert kept and (kept.state, kept.exit_code) == ("stopped", 3) and kept.reason.startswith("cannot write")
    assert logged("end")[0]["reason"] == kept.reason
    assert ran(path, asked).exit_code == 0


def test_an_error_of_the_program_in_mid_run_is_told_as_one_and_nothing_of_what_it_says(
    hook: Hook, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked, append = small_job(tmp_path, f"{UNLIMITED}\n{ENV}"), Answering(), RunStore.append_result
    rows = iter(range(6))

    def broken(store: RunStore, result: Result) -> None:
        if next(rows) == 3:
            raise KeyError(result.response, SECRET)
        append(store, result)

    with monkeypatch.context() as patch, pytest.raises(ExceptionGroup):
        patch.setattr(RunStore, "append_result", broken)
        ran(path, asked)
    told = "ended by an error of the program (KeyError in pipeline/run/engine.py, line "
    kept = read_status(Path("runs/small"))
    assert kept and (kept.state, kept.exit_code, kept.rows_done < 6) == ("stopped", BUG, True)
    assert kept.reason.startswith(told) and kept.reason.endswith("what was answered is kept")
    assert [each["reason"] for each in logged("end")] == [kept.reason]
    (post,) = hook.posts
    assert post["event"] == "needs_you" and told in post["text"] and "the same command continues" in post["text"]
    assert ran(path, asked).exit_code == 0
    assert SECRET not in "".join(each.read_text(errors="replace") for each in Path("runs/small").glob("*.*"))


def test_a_rehearsal_says_so_and_needs_no_address(
    hook: Hook, url: str, tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_job(tmp_path, ENV)
    assert cli("run", path, "--offline").code == 0
    assert hook.posts[0]["rehearsal"] and hook.posts[0]["text"].startswith("pipeline small (rehearsal): finished: 6 of")
    monkeypatch.delenv("HOOK")
    assert cli("run", path, "--offline", "--fresh").code == 0 and len(hook.posts) == 1
    monkeypatch.setattr(ways, "BETWEEN_S", 0.0)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
    refused, checked = cli("run", path, "--yes"), cli("check", path)
    assert refused.code == checked.code == 2
    assert all("[alerts] webhook_env: HOOK is unset" in told for told in (refused.err, checked.out))


def test_the_address_is_nowhere_even_where_the_server_repeats_it(
    hook: Hook, url: str, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    hook.answer = (404, f"no hook at /services/{SECRET}, that is {url}/services/{SECRET}".encode())
    path = small_job(tmp_path, ENV)
    told = cli("run", path, "--offline")
    assert told.code == 0 and len(hook.posts) == 1
    shown = cli("run", path, "--show-config")
    for ran in (told, shown, cli("report", "small", "--json"), cli("check", path, "--offline")):
        assert SECRET not in ran.out + ran.err
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert len(files) > 5 and not [each for each in files if SECRET.encode() in each.read_bytes()]
    log = (tmp_path / "runs/small-offline/run.log").read_text()
    assert "finished was not posted: HTTP 404 no hook at …" in log


def test_a_secret_is_not_cut_in_two_and_shown_by_half(
    hook: Hook, url: str, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    hook.answer = (500, f"{'x' * 190} {SECRET}".encode())
    assert cli("run", small_job(tmp_path, ENV), "--offline").code == 0
    log = (tmp_path / "runs/small-offline/run.log").read_text()
    assert "xxx …" in log and SECRET[:5] not in log


def test_a_login_of_the_address_is_sent_and_told_nowhere(
    hook: Hook, url: str, tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    login = base64.b64encode(b"me:p@ss word").decode()
    hook.answer = (403, f"{login} is not welcome".encode())
    monkeypatch.setenv("HOOK", url.replace("://", "://me:p%40ss%20word@"))
    assert cli("run", small_job(tmp_path, ENV), "--offline").code == 0
    assert hook.login == f"Basic {login}"
    assert "finished was not posted: HTTP 403 … is not welcome" in (tmp_path / "runs/small-offline/run.log").read_text()


def test_a_post_that_cannot_be_made_does_not_end_the_run(
    hook: Hook, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_trouble", lambda answer, blotted: 1 / 0)
    ended = ran(small_job(tmp_path, f"{UNLIMITED}\n{ENV}"), Answering())
    assert ended.exit_code == 0
    assert [line["message"] for line in logged("webhook")] == [
        "finished was not posted: an error of the program (ZeroDivisionError)"
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOOK", "http://a..b/x"),
        ("HOOK", "http://xn--/x"),
        ("HOOK", f"http://{'a' * 64}.b/x"),
        ("SIGN", "\udcff\udcfe"),
    ],
)
def test_a_hook_that_cannot_be_used_is_refused_before_the_first_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("HOOK", "http://hook.example/x")
    monkeypatch.setenv("SIGN", "secret")
    monkeypatch.setenv(name, value)
    job = load(small_job(tmp_path, f'{ENV}webhook_secret_env = "SIGN"\nformat = "feishu"\n'))
    with pytest.raises(JobError, match="it is no address" if name == "HOOK" else "holds is no text"):
        webhook.hook_of(job)


def test_a_webhook_that_is_silent_or_away_delays_and_ends_nothing(
    hook: Hook, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "POST_S", 0.2)
    hook.silent_s = 1.0
    path = small_job(tmp_path, f"{UNLIMITED}\n{ENV}")
    began = time.monotonic()
    assert ran(path, Answering(truncated=6)).exit_code == 1
    assert time.monotonic() - began < 3.0
    assert logged("webhook"), "what was not taken is in the log"
    monkeypatch.setattr(webhook, "POST_S", 5.0)
    monkeypatch.setenv("HOOK", "http://127.0.0.1:9/nobody")
    began = time.monotonic()
    assert ran(path, Answering(truncated=6), fresh=True).exit_code == 1
    assert time.monotonic() - began < 4.0, "the end does not wait for what would be tried again later"
    assert [each["message"].split(":")[0] for each in logged("webhook")] == [
        *("alert was not posted", "finished was not posted")
    ]


@pytest.mark.parametrize(
    ("form", "text_of"),
    [
        ("slack", lambda body: body["text"]),
        ("feishu", lambda body: body["msg_type"] == "text" and body["content"]["text"]),
        ("dingtalk", lambda body: body["msgtype"] == "text" and body["text"]["content"]),
        ("discord", lambda body: body["content"]),
    ],
)
def test_chats_get_what_they_take(
    hook: Hook, url: str, tmp_path: Path, form: str, text_of: Callable[[Any], str]
) -> None:
    ran(small_job(tmp_path, f'{UNLIMITED}\n{ENV}format = "{form}"\n'), Answering())
    assert text_of(hook.posts[0]).startswith("pipeline small: finished: 6 of 6 rows ok")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"StatusCode":0,"code":19024,"msg":"Key Words Not Found"}', "19024 Key Words Not Found"),
        ('{"errcode":310000,"errmsg":"description:关键词不匹配;"}', "310000 description:关键词不匹配;"),
        (
            '{"errcode":310000,"errmsg":"description:机器人发送签名不匹配;"}',
            f"310000 description:机器人发送签名不匹配;{NAMES_IT}",
        ),
        ('{"code":19021,"data":{},"msg":"sign match fail"}', f"19021 sign match fail{NAMES_IT}"),
    ],
)
def test_a_chat_that_refuses_in_the_body_of_a_200_is_heard(
    hook: Hook, url: str, tmp_path: Path, body: str, words: str
) -> None:
    hook.answer = (200, body.encode())
    ran(small_job(tmp_path, f"{UNLIMITED}\n{ENV}"), Answering())
    assert logged("webhook")[0]["message"] == f"finished was not posted: refused: {words}"


# ---- signatures

SIGNED_BY_OTHERS = [  # by Apprise 2.3.0 and DingtalkChatbot 1.5.7; by lark-webhook-notify 0.2.0
    ("dingtalk", "1800000000250", "Eme8pW+OxtpVLuze9iBenxk5T/GLhbaSAeHxKDW2LGY="),
    ("feishu", "1800000000", "lw044zewvXBcnnUmuEM95rtUZL00nBqltvFXypGB4VM="),
]


@pytest.mark.parametrize(("form", "timestamp", "sign"), SIGNED_BY_OTHERS)
def test_a_post_is_signed_as_other_clients_of_these_chats_sign_it(form: Any, timestamp: str, sign: str) -> None:
    address = httpx.URL("https://oapi.dingtalk.com/robot/send?access_token=a%2Fb")
    post = signed(form, ROBOT, address, {"msg_type": "text"}, NOW_S + 0.25)
    if form == "dingtalk":
        assert parse_qsl(post.url.query.decode()) == [
            *(("access_token", "a/b"), ("timestamp", timestamp), ("sign", sign))
        ]
        assert post.body == {"msg_type": "text"}
    else:
        assert post.url is address and post.body == {"timestamp": timestamp, "sign": sign, "msg_type": "text"}


def robot(form: str, path: str, body: Any) -> tuple[int, bytes]:
    """What such a robot answers: it signs with its own secret, and compares."""
    if form == "dingtalk":
        said = dict(parse_qsl(urlsplit(path).query))
        key, text, now, names = ROBOT, f"{said.get('timestamp')}\n{ROBOT}", time.time() * 1000, ("errcode", "errmsg")
    else:
        said = body
        key, text, now, names = f"{said.get('timestamp')}\n{ROBOT}", "", time.time(), ("code", "msg")
    own = base64.b64encode(hmac.new(key.encode(), text.encode(), digestmod=hashlib.sha256).digest()).decode()
    is_taken = said.get("sign") == own and abs(now - int(said["timestamp"])) < 5 * (1000 if form == "dingtalk" else 1)
    code, words = (0, "ok") if is_taken else (1, f"sign {said.get('sign')} does not match, it is {own} by {ROBOT}")
    return 200, json.dumps(dict(zip(names, (code, words), strict=True))).encode()


@pytest.mark.parametrize("form", ["dingtalk", "feishu"])
def test_a_robot_that_wants_signatures_takes_them_and_the_secret_is_nowhere(
    hook: Hook, url: str, tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    hook.answering = lambda path, body: robot(form, path, body)
    monkeypatch.setenv("HOOK", f"{url}/robot/send?access_token={SECRET}")
    monkeypatch.setenv("HOOK_SECRET", ROBOT)
    path = small_job(tmp_path, f'{ENV}format = "{form}"\nwebhook_secret_env = "HOOK_SECRET"\n')
    assert cli("run", path, "--offline").code == 0
    log = tmp_path / "runs/small-offline/run.log"
    assert len(hook.posts) == 1 and '"webhook"' not in log.read_text()
    monkeypatch.setenv("HOOK_SECRET", OTHER_ROBOT)
    assert cli("run", path, "--offline", "--fresh").code == 0
    assert f"finished was not posted: refused: 1 sign {'…' if form == 'dingtalk' else ''}" in log.read_text()
    shown = cli("run", path, "--show-config")
    files = b"".join(each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())
    for secret in (OTHER_ROBOT, SECRET):
        assert secret.encode() not in files and secret not in shown.out + shown.err
    monkeypatch.delenv("HOOK_SECRET")
    assert cli("run", path, "--offline", "--fresh").code == 0 and len(hook.posts) == 2, "a rehearsal needs no secrets"
    checked = cli("check", path)
    assert checked.code == 2 and "[alerts] webhook_secret_env: HOOK_SECRET is unset" in checked.out


def test_posts_take_the_proxy_of_the_job(hook: Hook, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "http://chat.example/hook")
    ran(small_job(tmp_path, f'{UNLIMITED}\n[endpoint]\nproxy = "{url}"\n{ENV}'), Answering())
    assert hook.paths == ["http://chat.example/hook"]


def test_a_run_that_sleeps_for_the_days_quota_posts_it_once(hook: Hook, url: str, tmp_path: Path) -> None:
    session = prepare.prepare(load(small_job(tmp_path, f"{UNLIMITED}\n{ENV}")), prepare.Options())
    heard: list[Any] = []

    async def main() -> None:
        async with webhook.posting(session) as posts:
            alerting = Alerting(USUAL, Monitor(rows=9), None, heard.append, posts)
            sleeping = status(waits_for="day_quota", waits_until_s=NOW_S + 7_200)
            for each in (status(), sleeping, replace(sleeping, at_s=NOW_S + 60), status(9_000), sleeping):
                alerting.look(each)

    anyio.run(main)
    assert [post["event"] for post in hook.posts] == ["paused", "paused"] and not heard
    assert hook.posts[0]["until"] == "2027-01-15T10:00:00+00:00"
    assert "paused until 2027-01-15 10:00 UTC: the day's quota is used up" in hook.posts[0]["text"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (f'webhook = "https://hooks.example/services/{SECRET}"', "a secret does not belong into a job file"),
        ('webhook = "https://me:pass@hooks.example/x"', "a secret does not belong into a job file"),
        ('webhook = "hooks.example/x"', "it is no address"),
        ('webhook_env = "https://hooks.example/x"', "it is the name of a variable"),
        ('webhook = "http://hook.example/x"\nwebhook_env = "HOOK"', "leave one out"),
        (f'{HOOKED}\nwebhook_secret_env = "{ROBOT}"\nformat = "feishu"', "it is the name of a variable"),
        (f'{HOOKED}\nwebhook_secret_env = "HOOK_SECRET"', 'posts of "json" have no signature'),
        ('webhook_secret_env = "HOOK_SECRET"\nformat = "feishu"', "name their address, in webhook_env"),
        ("error_percent = 100", "from 0 to below 100"),
        ("latency_s = 0", "above 0, or false"),
        ("stalled_min = true", "false"),
        ("eror_percent = 5", "did you mean `error_percent`"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_without_a_secret(tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(JobError) as caught:
        load(small_job(tmp_path, f"[alerts]\n{setting}\n"))
    told = f"{caught.value.message} {caught.value.hint}"
    assert words in told and SECRET not in told and "pass" not in told


def test_every_threshold_can_be_turned_off_and_whole_numbers_are_numbers(tmp_path: Path) -> None:
    off = "\n".join(f"{name} = false" for name in Alerts.model_fields if name.endswith(("_percent", "_s", "_min")))
    assert load(small_job(tmp_path, f'[alerts]\n{off}\nwebhook = "http://ntfy.example/team"')).spec.alerts.webhook
    alerts = load(small_job(tmp_path, "[alerts]\nerror_percent = 0\nlatency_s = 30")).spec.alerts
    assert alerts.error_percent is not False and alerts.latency_s == 30.0
    assert Alert("m", "errors").fields() == {"message": "m", "name": "errors", "over": False}
