"""Explicit caches of what all prompts begin with: as they are asked for, kept, lost, adopted, priced and planned."""

import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import httpx
import polars as pl
import pytest
import vclock
from asking import TARGET, ask
from commands import Ran
from google import genai
from google.genai import errors, types
from serving import served, stats, wait_for
from sessions import run_through
from stores import opened
from test_kill import start

from jobs import PLAIN, Sections, make_job
from pipeline import estimating
from pipeline.budget.caps import Spending
from pipeline.budget.cashier import Cashier
from pipeline.emulator import Emulator, EmulatorOptions
from pipeline.errors import JobError
from pipeline.estimating import Wishes
from pipeline.events import Event
from pipeline.job import load
from pipeline.plan import Plan
from pipeline.prefixes import Prefix
from pipeline.prompts import Content, Params, Prompt, Text, Turn
from pipeline.providers.base import Account
from pipeline.providers.caches import Cached, Held, creation, naming, read_cached
from pipeline.providers.gemini import GeminiConnection, request
from pipeline.providers.google_auth import Token, Tokens
from pipeline.providers.transport import Wire
from pipeline.providers.vertex import VertexConnection
from pipeline.records import Reply
from pipeline.run import prepare
from pipeline.run.caching import AGAIN_S, LOOK_S, MOST_MADE, NOTES, OPEN_S, TTL_S, CacheKeeper
from pipeline.run.prepare import Options
from pipeline.store.parts import read_parts
from pipeline.store.run import RunStore

FLASH = "gemini-3.8-flash"
LITE = "gemini-3.5-flash-lite"  # whose price stays
SYSTEM = " ".join(f"Rule {n}: what is said of part {n} goes under label {n}." for n in range(400))
PARAMS = Params(system=SYSTEM, max_output_tokens=60)
PREFIX = Prefix(SYSTEM, None)
TURNS: Content = (Turn("user", (Text("A chair."),)), Turn("model", (Text("chair"),)))


def row(number: int, params: Params = PARAMS) -> Prompt:
    return ask(number, f"Chair {number} wobbles.", params=params, model=FLASH)


# ---- bodies


def test_a_request_names_the_cache_in_the_place_of_what_it_holds() -> None:
    prompt = replace(row(1), content=(*TURNS, *row(1).content))
    prefix = Prefix(SYSTEM, None, TURNS)
    assert prefix.begins(prompt) and not prefix.begins(row(1))
    assert not prefix.begins(replace(prompt, params=replace(PARAMS, system="Another.")))
    assert creation(prefix, request(prompt), "models/gemini-3.8-flash", 600) == {
        "model": "models/gemini-3.8-flash",
        "contents": [
            {"role": "user", "parts": [{"text": "A chair."}]},
            {"role": "model", "parts": [{"text": "chair"}]},
        ],
        "systemInstruction": {"parts": [{"text": SYSTEM}]},
        "ttl": "600s",
    }
    assert naming(Held(prefix, "cachedContents/a"), request(prompt)) == {
        "contents": [{"role": "user", "parts": [{"text": "Chair 1 wobbles."}]}],
        "generationConfig": {"maxOutputTokens": 60},
        "cachedContent": "cachedContents/a",
    }


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("cachedContents/a-1", True),
        ("projects/mine/locations/europe-west4/cachedContents/7", True),
        ("cachedContents/a\n", False),
        ("cachedContents/../models/x", False),
        ("projects/../locations/x/cachedContents/7", False),
        ("cachedContents/" + "x" * 70_000, False),
        ("", False),
    ],
)
def test_a_name_that_is_no_caches_is_not_asked_for(name: str, is_one: bool) -> None:
    told = {"name": name, "expireTime": "2026-11-29T00:00:00Z"}
    assert (read_cached(json.dumps(told).encode()) is not None) is is_one


# ---- one cache in virtual time


@dataclass
class Room:
    """A client of the emulator and who keeps its caches, with one clock for all."""

    emulator: Emulator
    connection: GeminiConnection
    keeper: CacheKeeper
    events: list[Event]
    paid: list[Decimal]
    store: RunStore

    async def ask(self, number: int) -> Reply:
        reply = await self.connection.generate(row(number), FLASH)
        assert isinstance(reply, Reply), reply
        return reply

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.emulator.stats.caches)


def clock() -> float:
    return 1_795_000_000 + anyio.current_time()


@asynccontextmanager
async def room(
    path: Path, prefix: Prefix = PREFIX, cap_usd: Decimal | None = None, **options: Any
) -> AsyncIterator[Room]:
    emulator = Emulator(EmulatorOptions(marked=False, **options), clock=clock)
    async with Wire(httpx.ASGITransport(emulator)) as wire:
        connection = GeminiConnection(wire, api_key="AQ.key", base_url="http://service")
        events: list[Event] = []
        paid: list[Decimal] = []
        target = replace(TARGET, model=FLASH, base_url="http://service")
        with opened(path / "run") as store:
            cashier = Cashier(Spending(cap_usd))
            targets = [(target, connection)]
            keeper = CacheKeeper(store, cashier, targets, prefix, PARAMS, paid.append, events.append, clock)
            yield Room(emulator, connection, keeper, events, paid, store)


def in_room(path: Path, test: Callable[[Room], Awaitable[object]], **options: Any) -> None:
    async def body() -> None:
        async with room(path, **options) as its:
            await test(its)

    vclock.run(body)


def test_a_cache_is_made_used_prolonged_and_ended(tmp_path: Path) -> None:
    async def body(its: Room) -> None:
        whole = await its.ask(1)
        await its.keeper.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(its.keeper.keep)
            brief = await its.ask(1)
            await anyio.sleep(3 * TTL_S)
            late = await its.ask(2)
            tasks.cancel_scope.cancel()
        await its.keeper.close()
        assert whole.text == brief.text and whole.usage.cached_tokens == 0
        assert brief.usage.input_tokens == whole.usage.input_tokens
        cached = brief.usage.cached_tokens
        assert cached == late.usage.cached_tokens > 0.98 * brief.usage.input_tokens
        assert its.counts["created"] == its.counts["deleted"] == 1 and its.counts["updated"] >= 5
        assert not its.events and not (tmp_path / "run" / NOTES).exists()
        hours = 3 * TTL_S / 3600
        made, kept = Decimal(cached) * Decimal("0.75") / 10**6, Decimal(cached) * Decimal("0.50") / 10**6
        assert float(sum(its.paid)) == pytest.approx(float(made) + hours * float(kept), rel=1e-6)

    in_room(tmp_path, body)


@pytest.mark.parametrize("share", [0.5, 1.2, 3.0], ids=["not made", "not prolonged", "prolonged once"])
def test_no_cache_passes_a_cap(tmp_path: Path, share: float) -> None:
    tokens = PREFIX.tokens * 1.15
    cap = Decimal(share * tokens * (0.75 + 0.50 * 2 * TTL_S / 3600) / 1e6)

    async def body(its: Room) -> None:
        await its.keeper.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(its.keeper.keep)
            assert (await its.ask(1)).status == "ok"
            await anyio.sleep(60 * TTL_S)
            assert (await its.ask(2)).status == "ok"
            tasks.cancel_scope.cancel()
        await its.keeper.close()
        assert (its.counts.get("created", 0) > 0) == (share > 1)
        assert sum(its.paid) <= cap and any("could pass a cap" in str(event) for event in its.events)

    in_room(tmp_path, body, cap_usd=cap)


def test_a_cache_of_which_nobody_knows_whether_it_was_made_counts_as_made(tmp_path: Path) -> None:
    async def body(its: Room) -> None:
        async def silent(*_: object) -> None:
            await anyio.sleep_forever()

        its.connection.create_cache = silent  # type: ignore[method-assign,assignment]
        await its.keeper.open()
        assert its.store.cost_usd() == 0 < its.store.spent_usd() and not any(its.paid)

    in_room(tmp_path, body)
    with opened(tmp_path / "run") as store:
        assert store.lost == (), "the session was not killed"


def test_a_cache_that_is_gone_costs_no_row_and_is_made_anew(tmp_path: Path) -> None:
    async def body(its: Room) -> None:
        await its.keeper.open()
        name = its.connection.caches[FLASH].name
        assert await its.connection.end_cache(name) is None
        reply = await its.ask(1)
        assert reply.status == "ok" and reply.usage.cached_tokens == 0, "it went whole, at once"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(its.keeper.keep)
            await anyio.sleep(2 * LOOK_S + 61)
            assert (await its.ask(2)).usage.cached_tokens > 4096
            tasks.cancel_scope.cancel()
        await its.keeper.close()
        assert its.counts["created"] == 2

    in_room(tmp_path, body)


def test_a_cache_that_ended_while_nobody_looked_is_no_failure(tmp_path: Path) -> None:
    async def body(its: Room) -> None:
        await its.keeper.open()
        await anyio.sleep(TTL_S + 1)
        assert (await its.ask(1)).status == "ok"
        paid = sum(its.paid)
        await its.keeper.close()
        stored = float(sum(its.paid) - paid)
        note = its.connection
        assert note.caches == {} and stored == pytest.approx(float(paid) * 0.5 / 0.75 * TTL_S / 3600, rel=1e-6)

    in_room(tmp_path, body)


def test_a_service_that_loses_each_cache_is_asked_for_few(tmp_path: Path) -> None:
    async def body(its: Room) -> None:
        await its.keeper.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(its.keeper.keep)
            for _ in range(3 * MOST_MADE):
                if name := its.connection.caches[FLASH].name:
                    await its.connection.end_cache(name)
                assert (await its.ask(1)).status == "ok"
                await anyio.sleep(AGAIN_S + LOOK_S)
            tasks.cancel_scope.cancel()
        await its.keeper.close()
        assert its.counts["created"] == MOST_MADE and len(its.events) == 1

    in_room(tmp_path, body)


def test_a_service_that_does_not_answer_for_caches_holds_the_first_call_up_for_a_moment(tmp_path: Path) -> None:
    async def silent(*_: object) -> None:
        await anyio.sleep_forever()

    async def body(its: Room) -> None:
        its.connection.create_cache = silent  # type: ignore[assignment,method-assign]
        await its.keeper.open()
        assert anyio.current_time() == pytest.approx(OPEN_S, abs=0.1)
        assert (await its.ask(1)).status == "ok"
        await its.keeper.close()

    in_room(tmp_path, body)


def test_what_the_service_does_not_keep_is_told_once_and_sent_whole(tmp_path: Path) -> None:
    system, says = "Be brief.", r"too small. total_token_count=\d+, min_total_token_count=4096"

    async def body(its: Room) -> None:
        await its.keeper.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(its.keeper.keep)
            await anyio.sleep(300)
            tasks.cancel_scope.cancel()
        assert (await its.ask(1)).status == "ok"
        await its.keeper.close()
        assert len(its.events) == 1 and re.search(says, str(its.events[0]))
        assert its.counts == {} and not its.paid

    async def short() -> None:
        async with room(tmp_path, Prefix(system, None)) as its:
            its.keeper._shown = replace(its.keeper._shown, params=replace(PARAMS, system=system))
            await body(its)

    vclock.run(short)


def test_on_vertex_a_cache_has_its_projects_name(tmp_path: Path) -> None:
    async def body() -> None:
        emulator = Emulator(EmulatorOptions(marked=False), clock=clock)
        async with Wire(httpx.ASGITransport(emulator)) as wire:

            async def token() -> Token:
                return Token("ya29.mine", clock() + 3600)

            target = replace(TARGET, provider="vertex", model=FLASH, project="mine/europe-west4")
            account = Account(wire, "", tokens=Tokens(token, wall=clock))
            vertex = VertexConnection(account, replace(target, base_url="http://service"))
            made = await vertex.create_cache(PREFIX, row(1), FLASH, TTL_S)
            assert isinstance(made, Cached), made
            assert made.name.startswith("projects/mine/locations/europe-west4/cachedContents/")
            vertex.caches[FLASH] = held = Held(PREFIX, made.name)
            reply = await vertex.generate(row(1), FLASH)
            assert isinstance(reply, Reply) and reply.usage.cached_tokens == made.tokens
            assert isinstance(await vertex.prolong_cache(made.name, TTL_S), Cached)
            assert await vertex.end_cache(made.name) is None
            reply = await vertex.generate(row(2), FLASH)
            assert isinstance(reply, Reply) and reply.usage.cached_tokens == 0 and not held.name

    vclock.run(body)


# ---- whole runs

CACHED: Sections = {
    **PLAIN,
    "input": {"path": "input.parquet", "id": "id"},
    "prompt": {"system": SYSTEM, "template": "{{ body }}"},
    "model": {"name": LITE, "max_output_tokens": 60, "prefix_cache": "auto"},
    "limits": {"rpm": 0, "tpm": 0, "concurrency": 8},
    "output": {"path": "output.parquet"},
}


def session(path: Path, url: str, rows: int = 200, **sections: Any) -> prepare.Session:
    body = [f"Chair {number} is fine, and leg {number % 7} of it wobbles." for number in range(rows)]
    pl.DataFrame({"id": [f"r{number}" for number in range(rows)], "body": body}).write_parquet(path / "input.parquet")
    return prepare.prepare(make_job(path, CACHED, endpoint={"base_url": url}, **sections), Options())


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    return tmp_path


def planned(prepared: prepare.Session) -> Plan:
    return anyio.run(estimating.estimate, prepared, Wishes()).plan


def billed_usd(seen: dict[str, Any]) -> float:
    """What the service bills for its answers at the list price of the model."""
    (sums,) = seen["billed"]
    given = sums["input_tokens"] - sums["cached_tokens"]
    output = sums["output_tokens"] + sums["thinking_tokens"]
    return float((given * 0.30 + sums["cached_tokens"] * 0.03 + output * 2.50) / 10**6)


def test_a_run_costs_what_the_service_bills_and_the_cache_and_as_much_as_was_planned(workplace: Path) -> None:
    with served(tokenizer="subword") as url:
        prepared = session(workplace, url)
        pilot = anyio.run(estimating.pilot_rows, prepared, 30)
        run_through(prepare.prepare(prepared.job, replace(prepared.options, pilot=pilot)))
        before = stats(url)
        plan = planned(prepared)
        ended = run_through(prepared)
        seen = stats(url)
    assert plan.prefix and not plan.prefix.why_not and plan.cost_usd
    assert seen["caches"]["created"] == seen["caches"]["deleted"] == 2, "of the pilot and of the run"
    calls = pl.concat(read_parts(Path("runs/job/calls"), ("row", "step", "paid", "cost_usd", "cached_tokens")))
    bought = calls.filter("paid")
    tokens = set(bought["cached_tokens"])
    assert bought.height == 200 and len(tokens) == 1 and min(tokens) > 4096
    assert float(bought["cost_usd"].sum()) == pytest.approx(billed_usd(seen))
    cost, made = float(ended.summary.cost_usd), min(tokens) * 0.30 / 10**6
    assert 2 * made < cost - billed_usd(seen) < 2.3 * made, "making both, and some seconds of keeping"
    took = cost - billed_usd(before) - made
    assert float(plan.cost_usd.expected) == pytest.approx(took, rel=0.05)
    assert float(plan.cost_usd.low) <= took <= float(plan.cost_usd.high)
    assert "tokens that all prompts begin with are cached: it saves $" in plan.assumptions[0]


@pytest.mark.parametrize(
    ("sections", "rows", "says"),
    [
        ({}, 1, r"it would save \$0\.0\d+ and cost \$0\.0\d+"),
        ({"prompt": {"system": "Be brief."}}, 200, "gemini-3.5-flash-lite keeps no fewer than 4,096"),
        ({"model": {"name": "gemini-4-argon"}}, 200, "the model keeps no explicit caches"),
    ],
)
def test_none_is_made_where_it_does_not_pay_and_the_estimate_says_why(
    workplace: Path, sections: Any, rows: int, says: str
) -> None:
    with served() as url:
        prepared = session(workplace, url, rows, **sections)
        plan = planned(prepared)
        run_through(prepared)
        assert stats(url)["caches"] == {}
    assert plan.prefix and re.search(says, plan.prefix.why_not)
    assert plan.prefix.why_not in plan.assumptions[0]


def test_a_run_without_it_is_the_run_that_it_was(workplace: Path) -> None:
    plain, with_it = (make_job(workplace, CACHED, model={"prefix_cache": value}) for value in (False, True))
    assert plain.fingerprint == with_it.fingerprint
    with served() as url:
        assert planned(session(workplace, url, model={"prefix_cache": False})).prefix is None


def test_a_cache_of_a_killed_run_is_adopted_and_ended(workplace: Path) -> None:
    with served(latency_s=0.15) as url:
        session(workplace, url)
        process = start(workplace, url)
        wait_for(url, "answered", 20, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (note,) = json.loads((workplace / "runs/job" / NOTES).read_text())
        assert note["name"].startswith("cachedContents/") and SYSTEM[:20] not in json.dumps(note)
        out, err = start(workplace, url).communicate(timeout=120)
        seen = stats(url)
    assert json.loads(out)["ok"] == 200, err.decode()
    assert seen["caches"]["created"] == seen["caches"]["deleted"] == 1
    assert not (workplace / "runs/job" / NOTES).exists()
    cached = pl.concat(read_parts(Path("runs/job/calls"), ("paid", "cached_tokens"))).filter("paid")["cached_tokens"]
    assert cached.min() == cached.max() == note["tokens"], "each request named it"


def test_a_cache_that_a_killed_run_left_is_ended_where_none_is_kept_any_more(workplace: Path) -> None:
    with served(latency_s=0.15) as url:
        session(workplace, url)
        process = start(workplace, url)
        wait_for(url, "answered", 20, process)
        process.kill()
        process.communicate()
        ended = run_through(session(workplace, url, model={"prefix_cache": False}))
        seen = stats(url)
    assert ended.summary.outcomes["ok"] == 200
    assert seen["caches"]["created"] == seen["caches"]["deleted"] == 1
    assert not (workplace / "runs/job" / NOTES).exists()


def test_each_target_that_is_to_answer_keeps_a_cache_and_no_other(workplace: Path) -> None:
    with served() as one, served() as two:
        session(workplace, one, 60)
        path = workplace / "job.toml"
        targets = (
            f'[[target]]\nname = "one"\nbase_url = "{one}"\n',
            f'[[target]]\nname = "two"\nbase_url = "{two}"\nmodel = "{FLASH}"\nfallback = ["blocked"]\n',
        )
        path.write_text(path.read_text() + "".join(targets))
        ended = run_through(prepare.prepare(load(path), Options()))
        seen, other = stats(one), stats(two)
    assert ended.summary.outcomes["ok"] == 60
    assert (seen["caches"], other["caches"]) == ({"created": 1, "deleted": 1}, {})


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"model": {"name": "gemini-4-argon", "prefix_cache": True}}, "gemini-4-argon keeps no explicit caches"),
        ({"endpoint": {"provider": "openai"}}, "prefix_cache = 'auto': OpenAI's protocol has no word for it"),
    ],
)
def test_what_has_no_caches_is_refused_by_name(tmp_path: Path, sections: Any, says: str) -> None:
    with pytest.raises(JobError, match=says):
        make_job(tmp_path, CACHED, **sections)


# ---- Google's own client


def test_googles_client_makes_finds_lists_prolongs_and_ends_caches() -> None:
    with served(marked=True) as url:
        client = genai.Client(api_key="AQ.key", vertexai=False, http_options=types.HttpOptions(base_url=url))
        try:
            config = types.CreateCachedContentConfig(
                system_instruction=SYSTEM, contents="A chair.", ttl="300s", display_name="rules"
            )
            made = client.caches.create(model=FLASH, config=config)
            assert made.name and made.name.startswith("cachedContents/") and made.display_name == "rules"
            assert made.usage_metadata and made.usage_metadata.total_token_count
            naming_it = types.GenerateContentConfig(cached_content=made.name)
            answer = client.models.generate_content(model=FLASH, contents="Which chair wobbles?", config=naming_it)
            usage = answer.usage_metadata
            assert usage and usage.cached_content_token_count == made.usage_metadata.total_token_count
            assert usage.prompt_token_count and usage.prompt_token_count > made.usage_metadata.total_token_count
            found = client.caches.get(name=made.name)
            later = client.caches.update(name=made.name, config=types.UpdateCachedContentConfig(ttl="900s"))
            assert found.expire_time and later.expire_time and later.expire_time > found.expire_time
            assert [each.name for each in client.caches.list()] == [made.name]
            for model, given, code, says in (
                (
                    FLASH,
                    types.GenerateContentConfig(cached_content=made.name, system_instruction="x"),
                    400,
                    "can not be",
                ),
                ("gemini-3.6-flash", naming_it, 400, "has to be the same"),
                (FLASH, types.GenerateContentConfig(cached_content="cachedContents/none"), 403, "not found"),
            ):
                with pytest.raises(errors.ClientError, match=says) as refused:
                    client.models.generate_content(model=model, contents="x", config=given)
                assert refused.value.code == code
            client.caches.delete(name=made.name)
            with pytest.raises(errors.ClientError, match="not found"):
                client.caches.get(name=made.name)
            for model, text, says in (
                (FLASH, "Too little.", "too small"),
                ("gemini-4-argon", SYSTEM, "not supported for createCachedContent"),
            ):
                with pytest.raises(errors.ClientError, match=says):
                    client.caches.create(
                        model=model, config=types.CreateCachedContentConfig(system_instruction=text, contents="x")
                    )
        finally:
            client.close()


# ---- the page


def test_the_job_of_the_page_runs_as_it_says(here: Path, root: Path, cli: Callable[..., Ran]) -> None:
    page = (root / "docs/caching.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)\n```", page, re.DOTALL)
    (here / "labels.toml").write_text(block)
    (here / "rules.md").write_text(SYSTEM)
    (line,) = re.findall(r"^> (the .*)$", page, re.MULTILINE)
    said = re.sub(r"\$0\.\d+, which", "$…, which", cli("estimate", "labels.toml", "--json").json["assumptions"][0])
    assert said == re.sub(r"\$0\.\d+, which", "$…, which", line), "what it costs hangs on the time that a run takes"
    ran = cli("run", "labels.toml", "--offline", "--json").json
    assert ran["ok"] == ran["rows"] == 30 and ran["cached_tokens"] > 0.9 * ran["input_tokens"]
