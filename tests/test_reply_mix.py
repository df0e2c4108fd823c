"""Runs over services that reply oddly all the time: every row is accounted for, no cap is passed, nothing is raised."""

import json
import zlib
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import anyio
import httpx
import orjson
import polars as pl
import pytest
from asking import opening
from serving import served, stats
from sessions import run_through
from test_reply_faults import LOST, REPLIES, billed_usd

from jobs import PLAIN, Sections, write_job
from pipeline.emulator import EmulatorOptions, parse_faults
from pipeline.errors import AuthError
from pipeline.job import load
from pipeline.run import prepare
from pipeline.run.ending import Ended
from pipeline.run.services import Opening, open_services

MODEL = "gemini-3.5-flash-lite"
LIMIT = 80
"""Tokens of an answer at most, not much above the usual: answers cost alike, as those of a real job mostly do."""


def topics(rows: int) -> list[str]:
    words = "The town council had put off the repair of the wall. Nobody was hurt when the river rose on Monday night."
    return [f"The report of number {n} is about a flood. {words}" for n in range(rows)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    monkeypatch.setattr("pipeline.dispatch.retries.BACKOFF_FIRST_S", 0.01)
    return tmp_path


def play(here: Path, rows: int, opened: Opening = open_services, **sections: dict[str, Any]) -> Ended:
    (here / "topics.csv").write_text("topic\n" + "".join(f"{topic}\n" for topic in topics(rows)))
    asked: Sections = {"model": {"name": MODEL, "max_output_tokens": LIMIT}, "limits": {"rpm": 0, "tpm": 0}, **sections}
    prepared = prepare.prepare(load(write_job(here, PLAIN, **asked)), prepare.Options())
    return run_through(prepared, opening=opened)


def output() -> pl.DataFrame:
    return pl.read_ndjson("results/out.jsonl", infer_schema_length=None)


MIXED = [kind for kind in REPLIES if kind not in ("overlong", "no_prompt_count", "bomb", "endless")]
"""Every fault of a reply, at 2 % each, but two whose answers are many times as long as the others and two of 512 MB."""


@pytest.mark.case("R1", "R3", "D3")
@pytest.mark.parametrize("rows", [250, pytest.param(2_000, marks=pytest.mark.long)])
def test_a_run_over_a_service_that_fails_in_all_ways_costs_what_the_service_bills(here: Path, rows: int) -> None:
    faults = parse_faults(",".join(f"{kind}:0.02" for kind in MIXED))
    options = EmulatorOptions(faults=faults, marked=False, model_version=None, thinking_tokens=60)
    cap = 2.0 * rows * LIMIT * 2.5e-6
    with served(options) as url:
        ended = play(here, rows, endpoint={"base_url": url, "timeout_s": 30.0}, budget={"max_usd": cap})
        seen = stats(url)
    table = output()
    assert table["topic"].to_list() == topics(rows)
    assert ended.stopped is None and ended.summary.done == rows
    assert set(seen["faults"]) == set(MIXED) or rows < 2_000
    assert seen["requests"] == ended.summary.attempts <= 2 * rows
    spoiled = Counter(table.filter(pl.col("status") == "error")["error_kind"])
    assert set(spoiled) <= {"malformed_reply", "empty_answer"}
    within = 0.01 if rows == 2_000 else 0.03  # a smaller run knows less of what it could not read
    assert float(ended.summary.cost_usd) == pytest.approx(float(billed_usd(seen)), rel=within)
    assert float(billed_usd(seen)) <= cap


@pytest.mark.case("D3")
def test_what_never_came_is_told_beside_the_cost_and_counts_against_the_cap(here: Path) -> None:
    faults = parse_faults(",".join(f"{kind}:0.1" for kind in LOST))
    options = EmulatorOptions(faults=faults, marked=False, model_version=None)
    with served(options) as url:
        ended = play(here, 80, endpoint={"base_url": url, "timeout_s": 2.0}, budget={"max_usd": 0.03})
        seen = stats(url)
    assert output().height == 80
    summary = ended.summary
    assert summary.at_most_usd is not None and summary.at_most_usd > 0 and seen["billed_unread"] > 0
    assert billed_usd(seen, "yes") <= summary.cost_usd + Decimal("1e-6")
    assert billed_usd(seen) <= summary.cost_usd + summary.at_most_usd
    assert float(billed_usd(seen)) <= 0.03


@pytest.mark.case("D3")
@pytest.mark.parametrize(("timeouts", "code"), [(0, 2), (3, 3)])
def test_a_refused_key_is_a_3_only_after_what_may_have_been_billed(
    here: Path, timeouts: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    async def service(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        sent.append("")
        if len(sent) <= timeouts:
            raise httpx.ReadTimeout("nothing came", request=request)
        await anyio.sleep(0.01 * len(sent))
        return httpx.Response(401, json={"error": {"code": 401, "status": "UNAUTHENTICATED", "message": "no"}})

    opened = opening(httpx.MockTransport(service), timeout_s=10)
    with pytest.raises(AuthError) as caught:
        ended = play(here, 20, opened, limits={"rpm": 0, "tpm": 0, "concurrency": 8})
        raise ended.stopped or AssertionError(ended)
    assert caught.value.exit_code == code and len(sent) > timeouts


# --- any mutation of a real body --------------------------------------------------------------------------------------

REAL = {
    "candidates": [
        {
            "content": {"parts": [{"text": "An answer in a few words. 一个答案。"}], "role": "model"},
            "finishReason": "STOP",
            "index": 0,
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 20,
        "cachedContentTokenCount": 4,
        "candidatesTokenCount": 12,
        "thoughtsTokenCount": 30,
        "totalTokenCount": 62,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 20}],
        "serviceTier": "standard",
    },
    "modelVersion": MODEL,
    "responseId": "km2kaorlCeDdg8UP67-l6Ac",
}
_ODD_VALUES: list[object] = [None, True, -1, 0, 1.5, 1e300, 10**14, 2**70]
_ODD_VALUES += ["", "20", "x" * 300, [], {}, [[]], {"text": "t"}, "\ud83d"]
_ODD_NAMES = ("candidates", "error", "text", "parts", "usageMetadata", "promptTokenCount", "modelVersion", "", "\u202e")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a JSON value where another value could stand: its holder and the name or number in it."""
    names = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for name in names for place in ((value, name), *_places(value[name]))]


def _swapped(rng: Random, body: Any) -> None:
    holder, name = rng.choice(_places(body))
    holder[name] = rng.choice(_ODD_VALUES)


def _renamed(rng: Random, body: Any) -> None:
    holder, name = rng.choice([place for place in _places(body) if isinstance(place[0], dict)])
    holder[rng.choice(_ODD_NAMES)] = holder.pop(name)


def _left_out(rng: Random, body: Any) -> None:
    holder, name = rng.choice(_places(body))
    del holder[name]


def _renumbered(rng: Random, body: Any) -> None:
    usage = body.get("usageMetadata")
    if isinstance(usage, dict) and usage:
        usage[rng.choice(list(usage))] = rng.choice((0, -7, 3, 900, 70_000, 10**9, 10**14, 2**63, 0.1, "12", "1e9"))


def _flipped(rng: Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw))]


def _with_junk(rng: Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + rng.randbytes(rng.randint(1, 40)) + raw[at:]


_IN_JSON: tuple[Callable[[Random, Any], None], ...] = (_swapped, _renamed, _left_out, _renumbered)
_IN_BYTES: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flipped,
    _cut,
    _with_junk,
    lambda rng, raw: raw + raw,
    lambda rng, raw: b"[" + raw + b"]",
    lambda rng, raw: b"data: " + raw + b"\n\n",
)


def mutated(rng: Random) -> bytes:
    """A real body, changed in one to three ways."""
    body = orjson.loads(orjson.dumps(REAL))
    for _ in range(rng.randint(0, 3)):
        if _places(body):
            rng.choice(_IN_JSON)(rng, body)
    raw = json.dumps(body).encode()
    return rng.choice(_IN_BYTES)(rng, raw) if rng.random() < 0.4 and len(raw) > 1 else raw


def service(seed: int, asked: Counter[bytes]) -> Callable[..., Any]:
    """An ASGI app that answers every request with a body of its own; one time in three it is a sound one."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = (await receive()).get("body", b"")
        asked[request] += 1
        rng = Random(f"{seed}/{zlib.crc32(request)}/{asked[request]}")
        raw = orjson.dumps(REAL) if rng.random() < 1 / 3 else mutated(rng)
        status = 404 if scope["method"] == "GET" else rng.choice((200,) * 18 + (201, 500))
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": raw})

    return app


@pytest.mark.case("R1", "R2", "R4", "R11")
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 120))])
def test_whatever_a_body_is_turned_into_each_row_comes_out_once_and_costs_something_or_nothing(
    here: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[bytes] = Counter()

    opened = opening(httpx.ASGITransport(service(seed, asked)), timeout_s=10)
    cap, at_once, rows = 0.004, 4, 60
    ended = play(
        here,
        rows,
        opened,
        model={"name": MODEL, "max_output_tokens": 60},
        limits={"rpm": 0, "tpm": 0, "concurrency": at_once},
        budget={"max_usd": cap},
    )
    table = output()
    assert table["topic"].to_list() == topics(rows)
    costs = sorted((cost or 0.0 for cost in table["cost_usd"]), reverse=True)
    assert min(costs) >= 0 and ended.summary.cost_usd >= 0
    assert sum(costs[at_once:]) <= cap, "no more than what was in flight passes the cap, whatever it claims to cost"
    assert max(asked.values()) <= 5
    assert ended.exit_code in (0, 1, 3)
