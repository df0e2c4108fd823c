"""Every fault of a reply in a real run over a real socket: what was paid for is kept, counted and bounded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from serving import served_each, stats
from sessions import run_through

from jobs import PLAIN, Sections, write_job
from pipeline.emulator import EmulatorOptions, parse_faults
from pipeline.emulator.faults import GROUPS
from pipeline.job import load
from pipeline.prices import cost
from pipeline.records import Usage
from pipeline.run import prepare
from pipeline.run.ending import Ended

KEY = "AQ.key-that-no-file-may-hold"
MODEL = "gemini-3.5-flash-lite"
ROWS = 6  # below the number whose failing all alike stops a run


@dataclass(frozen=True)
class Right:
    """What becomes of a row all of whose requests meet one fault."""

    status: str
    error_kind: str | None = None
    requests: int = 1  # that one row may make, at most
    counted: bool = True  # the reply tells what it costs
    told: bool = True  # usage is what the service said, no estimate


OK = Right("ok")
GUESSED = Right("ok", told=False)
UNREADABLE = Right("error", "malformed_reply", requests=3, counted=False)
ALWAYS_SO = Right("error", "malformed_reply", requests=2, counted=False)

REPLIES: Mapping[str, Right] = {
    "block": Right("blocked", "prompt_blocked"),
    "empty": Right("error", "empty_answer"),
    "safety": Right("blocked", "answer_blocked"),
    "recitation": Right("blocked", "recitation"),
    "max_tokens_empty": Right("truncated", "truncated"),
    "nousage": GUESSED,
    "zero_counts": GUESSED,
    "hidden_thinking": GUESSED,
    "no_prompt_count": GUESSED,
    "cached": OK,
    "cached_over": GUESSED,
    "negative": GUESSED,
    "absurd": GUESSED,
    "text_counts": OK,
    "overlong": OK,
    "dearer": OK,
    "unpriced": OK,
    "201": OK,
    "203": OK,
    "206": OK,
    "error0": OK,
    "finish_stop": OK,
    "finish_length": Right("truncated", "truncated"),
    "finish_2": Right("truncated", "truncated"),
    "surrogate": OK,
    "bad_utf8": OK,
    "bom": OK,
    "deep": OK,
    "sse": OK,
    "json_array": OK,
    "openai": OK,
    "echo": OK,
    "two_gzip": OK,
    "x_gzip": OK,
    "cut_json": UNREADABLE,
    "html200": UNREADABLE,
    "empty_body": UNREADABLE,
    "false_gzip": OK,
    "cut_gzip": UNREADABLE,
    "big_header": OK,
    "two_lengths": ALWAYS_SO,
    "bad_chunk": ALWAYS_SO,
    "bomb": ALWAYS_SO,
    "endless": ALWAYS_SO,
}
"""Faults within a whole response that is billed."""

LOST = {"truncated": {"network", "malformed_reply"}, "paid_reset": {"network"}, "paid_hang": {"timeout"}}
"""Faults that are billed though nothing whole came back, and the causes that a row may tell of them."""

WAITS = ("wait_day", "wait_2099", "wait_2h")
MONEY_GONE = (*GROUPS["money gone"], "402")


def _options(kind: str, **flags: Any) -> EmulatorOptions:
    """A service that is no emulator as far as a client can tell, and fails in one way."""
    return EmulatorOptions(faults=parse_faults(kind), marked=False, model_version=None, **flags)


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, str]]:
    """One service for each fault, by its name."""
    kinds = [*REPLIES, *LOST, *MONEY_GONE, *WAITS, "echo_error"]
    with served_each(
        [_options(f"{kind}:0.4" if kind in (*LOST, *WAITS, "echo_error") else kind) for kind in kinds]
    ) as urls:
        yield dict(zip(kinds, urls, strict=True))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty place; at its end no file in it, nor of the program's own, holds the key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    for name in ("state", "cache"):
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / name))
    monkeypatch.setattr("pipeline.dispatch.retries.BACKOFF_FIRST_S", 0.01)
    for pause in ("FIRST", "LONGEST"):  # a page in place of every answer is an outage
        monkeypatch.setattr(f"pipeline.quota.breaker.{pause}_PAUSE_S", 0.01)
    yield tmp_path
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def play(here: Path, url: str, rows: int = ROWS, **sections: dict[str, Any]) -> Ended:
    """One session of a job against the service at `url`."""
    (here / "topics.csv").write_text("topic\n" + "".join(f"a topic of number {n}\n" for n in range(rows)))
    asked: Sections = {
        "model": {"name": MODEL, "max_output_tokens": 50},
        "limits": {"rpm": 0, "tpm": 0},
        "endpoint": {"base_url": url, "timeout_s": 20.0},
        **sections,
    }
    prepared = prepare.prepare(load(write_job(here, PLAIN, **asked)), prepare.Options())
    return run_through(prepared)


def output() -> pl.DataFrame:
    return pl.read_ndjson("results/out.jsonl", infer_schema_length=None)


def billed_usd(seen: Mapping[str, Any], *bills: str) -> Decimal:
    """What the service has billed, at today's prices: all of it, or only what was billed as one of `bills`."""
    total = Decimal(0)
    for entry in seen["billed"]:
        if not bills or entry["bill"] in bills:
            kinds = ("input_tokens", "cached_tokens", "output_tokens", "thinking_tokens")
            usd = cost(Usage(**{kind: entry[kind] for kind in kinds}), entry["model"], datetime.now(UTC))
            assert usd is not None
            total += usd
    return total


class Since:
    """What a service did since: its counters go on from test to test."""

    def __init__(self, url: str) -> None:
        self._url, self._before = url, stats(url)

    def seen(self) -> dict[str, Any]:
        now = stats(self._url)
        before = {(entry["bill"], entry["model"]): entry for entry in self._before["billed"]}
        billed = []
        for entry in now["billed"]:
            old = before.get((entry["bill"], entry["model"]), {})
            billed.append({k: v if isinstance(v, str) else v - old.get(k, 0) for k, v in entry.items()})
        return {"requests": now["requests"] - self._before["requests"], "billed": billed}


@pytest.mark.case("R1", "R2", "R4", "R5", "R6", "R7", "R8", "R9", "R10", "R11")
@pytest.mark.parametrize(
    "kind",
    REPLIES,
)
def test_each_reply_comes_out_as_one_row_that_is_paid_once(here: Path, services: dict[str, str], kind: str) -> None:
    right, url = REPLIES[kind], services[kind]
    since = Since(url)
    ended = play(here, url)
    seen, table = since.seen(), output()
    assert table["topic"].to_list() == [f"a topic of number {n}" for n in range(ROWS)]
    assert set(table["status"]) == {right.status}, table.rows(named=True)[0]
    assert set(table["error_kind"]) == {right.error_kind}, table.rows(named=True)[0]
    assert ROWS <= seen["requests"] <= right.requests * ROWS
    assert ended.exit_code == (0 if right.status == "ok" else 1)
    assert min(table["cost_usd"]) >= 0
    if right.counted:
        asked = 0.7 if not right.told else 0.999999  # our own count of a short prompt may be low
        assert float(sum(table["cost_usd"])) >= asked * float(billed_usd(seen))


@pytest.mark.parametrize("kind", LOST)
def test_what_is_lost_on_the_way_is_asked_for_again_a_bounded_number_of_times(
    here: Path, services: dict[str, str], kind: str
) -> None:
    url = services[kind]
    since = Since(url)
    ended = play(here, url, rows=30, endpoint={"base_url": url, "timeout_s": 1.0})
    seen, table = since.seen(), output()
    assert table["topic"].to_list() == [f"a topic of number {n}" for n in range(30)]
    assert max(table["attempts"]) in (2, 3, 4, 5)
    assert set(table["error_kind"].drop_nulls()) <= LOST[kind]
    assert seen["requests"] == sum(table["attempts"]) == ended.summary.attempts
    read, cost_usd = float(billed_usd(seen, "yes")), sum(table["cost_usd"])
    if kind == "truncated":  # a part of it came: it is taken for a usual reply
        assert cost_usd >= read
    else:
        assert cost_usd == pytest.approx(read, rel=1e-6)


@pytest.mark.case("D1", "D3", "D4", "R1", "R3")
@pytest.mark.parametrize("kind", [*REPLIES, *LOST])
def test_no_fault_lifts_the_cap(
    here: Path, services: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dispatch.loop.GIVE_UP_S", 0.5)  # none of its replies can be read
    url = services[kind]
    since = Since(url)
    cap = 0.001
    ended = play(
        here,
        url,
        rows=120,
        model={"name": MODEL, "max_output_tokens": 8},
        budget={"max_usd": cap},
        endpoint={"base_url": url, "timeout_s": 0.5 if kind == "paid_hang" else 20.0},
    )
    seen = since.seen()
    assert float(billed_usd(seen)) <= cap or seen["requests"] == 1, "nobody knows before the first what it costs"
    assert ended.summary.cost_usd >= 0
    assert output().height == 120


@pytest.mark.case("S3")
@pytest.mark.parametrize("kind", WAITS)
def test_a_wait_that_is_asked_for_has_a_ceiling_and_is_told(
    here: Path, services: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dispatch.retries.LONGEST_WAIT_S", 0.2)
    since = Since(services[kind])
    ended = play(here, services[kind])
    assert since.seen()["requests"] > ROWS and output().height == ROWS
    assert ended.exit_code in (0, 1, 3)
    assert "the service asks to wait until" in (here / "runs/job/run.log").read_text()


@pytest.mark.case("S5")
@pytest.mark.parametrize("kind", MONEY_GONE)
def test_money_that_is_gone_stops_the_run_in_whatever_words(here: Path, services: dict[str, str], kind: str) -> None:
    url = services[kind]
    since = Since(url)
    ended = play(here, url, limits={"rpm": 0, "tpm": 0, "concurrency": 2})
    assert since.seen()["requests"] <= 2
    assert ended.exit_code == 3 and ended.stopped is not None
    assert set(output()["status"]) == {"pending"}


@pytest.mark.case("R10")
def test_a_key_that_comes_back_in_an_error_is_in_no_file(here: Path, services: dict[str, str]) -> None:
    since = Since(services["echo_error"])
    play(here, services["echo_error"], rows=30)
    assert since.seen()["requests"] > 30
    assert output().height == 30
