"""What `status.json` tells of a run, while it goes on and after."""

import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import orjson
import pytest
from commands import UNLIMITED, Ran, small_job
from hypothesis import given
from hypothesis import strategies as st
from serving import served
from sessions import run_through

from pipeline.batch.desk import BatchDesk, Standing
from pipeline.dispatch.desk import Desk
from pipeline.job import load
from pipeline.quota.standing import Meter, QuotaStanding
from pipeline.run import prepare, status
from pipeline.run.engine import Monitor
from pipeline.run.status import Mark, Status, StatusFile, as_json, status_of
from pipeline.store.manifest import Lock

NOW_S = 1_800_000_000.0
COUNT = st.integers(0, 10**9)
SECONDS = st.floats(0, 10**10, allow_nan=False)
METER = st.none() | st.builds(Meter, COUNT, COUNT, told=st.booleans())
BINDS = st.sampled_from(["requests", "tokens", "day", "outage", "slots", "left out", ""])
QUOTA = st.builds(QuotaStanding, st.text(max_size=20), METER, METER, METER, COUNT, COUNT, BINDS, st.none() | SECONDS)


def quota(binds: str = "", rpd: Meter | None = None, opens_at_s: float | None = None) -> QuotaStanding:
    return QuotaStanding("main", Meter(90, 100, True), Meter(5, 1_000, False), rpd, 3, 64, cast(Any, binds), opens_at_s)


def desk(*quotas: QuotaStanding, waits_until: float | None = None, in_flight: int = 3, ready: int = 7) -> Desk:
    told = {"standing": quotas, "waits_until": waits_until, "in_flight": in_flight, "ready": ready, "rate_limited": 2}
    return cast(Desk, SimpleNamespace(**told))


@given(
    st.builds(
        Status,
        at_s=SECONDS,
        started_at_s=SECONDS,
        rows=COUNT,
        rows_done=COUNT,
        calls=COUNT,
        calls_planned=COUNT,
        state=st.sampled_from(["finished", "stopped", "interrupted", "left", "pilot"]),
        outcomes=st.dictionaries(st.sampled_from(["ok", "error", "truncated"]), COUNT),
        failures=st.dictionaries(st.text(max_size=20), COUNT),
        quotas=st.lists(QUOTA, max_size=3).map(tuple),
        targets=st.dictionaries(st.text(max_size=20), COUNT),
        cap_usd=st.none() | SECONDS,
        waits_until_s=st.none() | SECONDS,
        eta_s=st.none() | SECONDS,
        reason=st.text(max_size=100),
        exit_code=st.none() | st.integers(0, 130),
    )
)
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, written: Status) -> None:
    directory = tmp_path_factory.mktemp("run")
    (directory / status.NAME).write_bytes(orjson.dumps(asdict(written)))
    assert status.read(directory) == written


@pytest.mark.parametrize("found", [None, b"", b"{", b"[]", b'{"at_s": "soon"}'])
def test_a_status_that_is_missing_or_damaged_tells_nothing(tmp_path: Path, found: bytes | None) -> None:
    if found is not None:
        (tmp_path / status.NAME).write_bytes(found)
    assert status.read(tmp_path) is None


@pytest.mark.parametrize(
    ("host", "exit_code", "ago_s", "waits"),
    [
        ("node-7", 0, 58.0, True),
        ("node-7", 0, 63.0, False),
        ("node-7", None, 70.0, True),  # killed: it may have sent some seconds after its last word
        ("node-7", None, 80.0, False),
        ("", 0, 1.0, False),  # of an earlier version
        (socket.gethostname(), 0, 1.0, False),  # this machine's book knows it
    ],
)
def test_what_another_machine_sent_counts_for_a_minute(
    tmp_path: Path, host: str, exit_code: int | None, ago_s: float, waits: bool
) -> None:
    at_s = time.time() - ago_s
    ended = Status(at_s, at_s, 10, 2, 2, 10, host=host, exit_code=exit_code)
    (tmp_path / status.NAME).write_bytes(orjson.dumps(asdict(ended)))
    assert (status.unseen_until(tmp_path) > time.time()) == waits


def test_a_run_that_another_machine_led_goes_on_once_that_ones_minute_is_over(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(here)
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        cli("run", job, "--yes", "--limit", 1)
        path = here / "runs" / Path(job).stem / status.NAME
        found = orjson.loads(path.read_bytes())
        assert found["host"] == socket.gethostname()
        path.write_bytes(orjson.dumps(found | {"host": "node-7", "at_s": time.time() + 1.5 - status.UNSEEN_S}))
        began = time.monotonic()
        ran = cli("run", job, "--yes")
        assert ran.code == 0 and time.monotonic() - began >= 1.0
    assert "another machine led this run, and what it sent last may count: nothing is sent for" in ran.err


def test_a_run_whose_process_is_gone_is_killed_and_waits_for_nothing(tmp_path: Path) -> None:
    waiting = Status(NOW_S, NOW_S, 10, 2, 2, 10, waits_for="day_quota", waits_until_s=NOW_S + 60)
    (tmp_path / status.NAME).write_bytes(orjson.dumps(asdict(waiting)))
    lock = Lock(tmp_path / "lock")
    assert status.read(tmp_path) == waiting
    lock.release()
    assert status.read(tmp_path) == replace(waiting, state="killed", waits_for="", waits_until_s=None)


def test_the_time_left_goes_by_the_pace_of_the_last_minutes() -> None:
    monitor = Monitor(rows=100, prompts=100, calls=40, started_at=time.monotonic() - 200.0)
    monitor.desk = desk(quota("requests"))
    told = status_of(monitor, Mark(80.0, 10), NOW_S)
    assert told.eta_s == pytest.approx(240.0, abs=1.0) and told.calls_per_min == pytest.approx(15.0, abs=0.1)
    assert (told.in_flight, told.waiting, told.refused, told.no_eta) == (3, 7, 2, "")


@pytest.mark.parametrize(
    ("quotas", "until_s", "waits_for"),
    [
        ((quota("day", opens_at_s=NOW_S + 3_600),), 3_600.0, "day_quota"),
        ((quota("outage"),), 60.0, "outage"),
        ((quota("tokens"),), 30.0, "minute_quota"),
        ((quota("tokens"),), 2.0, ""),
    ],
)
def test_while_nothing_is_sent_the_status_says_until_when_and_why_and_no_time_left(
    quotas: tuple[QuotaStanding, ...], until_s: float, waits_for: str
) -> None:
    monitor = Monitor(rows=100, prompts=100, calls=40, started_at=time.monotonic() - 60.0)
    monitor.desk = desk(*quotas, waits_until=NOW_S + until_s, in_flight=0)
    told = status_of(monitor, Mark(), NOW_S)
    assert (told.waits_for, told.waits_until_s) == (waits_for, NOW_S + until_s if waits_for else None)
    assert (told.eta_s is None) is bool(waits_for) is bool(told.no_eta)


def test_nobody_is_told_a_time_left_that_the_days_quota_forbids() -> None:
    monitor = Monitor(rows=100, prompts=100, calls=40, started_at=time.monotonic() - 60.0)
    monitor.desk = desk(quota("requests", rpd=Meter(460, 500, True)))
    told = status_of(monitor, Mark(), NOW_S)
    assert told.eta_s is None and told.no_eta == "more than the day's quota has left"
    monitor.desk = desk(quota("requests", rpd=Meter(40, 500, True)))
    assert status_of(monitor, Mark(), NOW_S).eta_s is not None


def test_nobody_knows_when_batches_come() -> None:
    monitor = Monitor(rows=100, prompts=100, calls=40, started_at=time.monotonic() - 60.0)
    standing = Standing(2, 60, NOW_S - 900, 0, NOW_S + 15, NOW_S + 7_200)
    monitor.batches = cast(BatchDesk, SimpleNamespace(standing=standing))
    told = status_of(monitor, Mark(), NOW_S)
    assert (told.waits_for, told.waits_until_s, told.batches_out, told.batch_lines) == (
        *("batches", NOW_S + 7_200),
        *(2, 60),
    )
    assert told.eta_s is None and told.no_eta == "nobody knows when batches come"


def test_a_run_tells_how_it_stands_and_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = prepare.prepare(load(small_job(tmp_path, UNLIMITED)), prepare.Options(offline=True))
    seen: list[Status | None] = []

    async def watch(monitor: Monitor) -> None:
        await anyio.lowlevel.checkpoint()
        StatusFile(session.directory, monitor).look()
        seen.append(status.read(session.directory))
        await anyio.sleep_forever()

    ended = run_through(session, watch)
    told = status.read(session.directory)
    assert seen[0] and seen[0].state == "running" and seen[0].exit_code is None
    assert told and (told.state, told.exit_code, told.rows_done, told.calls) == ("finished", ended.exit_code, 6, 6)
    assert told.outcomes["ok"] == 6 and told.lanes == {"standard": 6} and told.goes_on_at_s is None
    assert (session.directory / status.NAME).stat().st_mode & 0o777 == 0o600
    assert "alpha" not in (session.directory / status.NAME).read_text()
    end = orjson.loads((session.directory / "run.log").read_bytes().splitlines()[-1])
    assert end["event"] == "end" and 0 < sum(end["bound_s"].values()) <= end["seconds"]
    assert ended.summary.bound_s == end["bound_s"], "why it was not faster"
    assert str(as_json(told)["at"]).endswith("+00:00")


def test_nothing_new_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(rows=10, prompts=10)
    kept = StatusFile(tmp_path, monitor)
    kept.look()
    (tmp_path / status.NAME).unlink()
    kept.look()
    assert not (tmp_path / status.NAME).exists()
    monitor.outcomes = Counter({"ok": 1})
    kept.look()
    assert (found := status.read(tmp_path)) and found.rows_done == 1


def test_a_disk_that_refuses_the_status_stops_nothing(tmp_path: Path) -> None:
    StatusFile(tmp_path / "gone", Monitor(rows=1)).look()
