"""A second provider and a second quota are plugged in from here, without touching a module: who answers is data.

The toy speaks a protocol of its own; it follows what `docs/architecture.md` says of adding a provider.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import anyio
import orjson
import polars as pl
import pytest
from asking import MODEL, UNLIMITED, Stub, ask
from servers import EPOCH
from sessions import run_through
from stores import killed, manifest
from vclock import run

from jobs import PLAIN, make_job
from pipeline.dispatch.backlog import Deadline
from pipeline.dispatch.desk import Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.errors import AuthError, Halted, PipelineError, RunStateError
from pipeline.prices import fixed_rates
from pipeline.prompts import Params, Prompt
from pipeline.providers.base import Provider
from pipeline.providers.stored import parse_stored, parser_of
from pipeline.records import Failure, Limits, Reply, Usage
from pipeline.run import prepare
from pipeline.run.prepare import Session
from pipeline.run.services import Services, target_of
from pipeline.store.run import RunStore
from pipeline.targets import Route, Target, project_of

LIMITS = Limits(rpm=0, tpm=0, tokens="total")
TOY = Target(
    "toy", "https://toy.example/v9", project_of("another key"), "toy-1", rates=fixed_rates(1, 2), limits=LIMITS
)


@dataclass
class Toy:
    """A provider: what it is asked and answers is `say <text>`, and it counts words, in and out."""

    name = "toy"
    asked: int = 0

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        self.asked += 1
        await anyio.sleep(0.01)
        raw = f"say {prompt.text.upper()}".encode()
        return replace(self.parse(raw), endpoint=target.endpoint, finished_at=EPOCH)

    def parse(self, raw: bytes) -> Reply:
        text = raw.decode().removeprefix("say ")
        words = len(text.split())
        return Reply(text, "ok", usage=Usage(words, output_tokens=words), model="toy-1b", raw=raw)

    async def count_tokens(self, prompt: Prompt, target: Target) -> int | Failure:
        return len(prompt.text.split())

    async def list_models(self, target: Target) -> list[str] | Failure:
        return ["toy-1"]

    async def is_emulator(self, target: Target) -> bool:
        return False


class Plain(Stub):
    """Gemini's replies without a network."""

    def __init__(self) -> None:
        self.asked = 0

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        self.asked += 1
        await anyio.sleep(0.01)
        answer = {"candidates": [{"content": {"parts": [{"text": prompt.text}]}, "finishReason": "STOP"}]}
        raw = orjson.dumps({**answer, "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 3}})
        return replace(self.parse(raw), model=target.model, endpoint=target.endpoint, finished_at=EPOCH)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
    (tmp_path / "topics.csv").write_text("topic\n" + "".join(f"t{row}\n" for row in range(60)))
    return tmp_path


def session(here: Path, **sections: Any) -> Session:
    job = make_job(here, PLAIN, **{"limits": {"rpm": 0, "tpm": 0, "concurrency": 4}, **sections})
    return prepare.prepare(job, prepare.Options())


def both(*providers: Provider, toy: Target = TOY) -> Callable[[Session], Any]:
    """Opens the job's own target and the toy's."""

    @asynccontextmanager
    async def opened(session: Session) -> AsyncIterator[Services]:
        yield Services(Route((target_of(session), toy)), {provider.name: provider for provider in providers})

    return opened


# ---- a whole run


def test_two_providers_answer_one_run_and_each_row_says_who(here: Path) -> None:
    plain, toy = Plain(), Toy()
    ended = run_through(
        session(here), opening=both(plain, toy, toy=replace(TOY, limits=replace(LIMITS, concurrency=4)))
    )
    assert (ended.exit_code, ended.summary.calls, plain.asked + toy.asked) == (0, 60, 60)
    out = pl.read_ndjson("results/out.jsonl")
    assert Counter(out["model"]) == {MODEL: plain.asked, "toy-1b": toy.asked} and min(plain.asked, toy.asked) > 10
    by_toy = out.filter(pl.col("model") == "toy-1b")
    assert by_toy["response"].to_list() == [f"SAY {topic}".upper() for topic in by_toy["topic"]]
    assert by_toy["cost_usd"].unique().to_list() == [pytest.approx(2 * 3e-6)], "priced by who answered"
    calls = pl.concat(pl.read_parquet(path) for path in Path("runs/job/calls").glob("*.parquet"))
    assert Counter(calls["endpoint"]) == {
        "gemini@generativelanguage.googleapis.com": plain.asked,
        "toy@toy.example": toy.asked,
    }


def test_what_one_bought_answers_for_the_other_too(here: Path) -> None:
    """The toy alone buys the first rows; the others ask the same, and may be answered by either."""
    texts = [f"t{row % 30}" for row in range(60)]
    (here / "topics.csv").write_text("topic\n" + "\n".join(texts) + "\n")
    bought, plain, toy = Toy(), Plain(), Toy()

    @asynccontextmanager
    async def alone(session: Session) -> AsyncIterator[Services]:
        yield Services(Route((TOY,)), {bought.name: bought})

    half = run_through(replace(session(here), rows=30), opening=alone)
    assert (half.summary.calls, bought.asked) == (30, 30)
    ended = run_through(session(here), opening=both(plain, toy))
    assert (ended.exit_code, ended.summary.done, plain.asked + toy.asked) == (0, 60, 0)
    out = pl.read_ndjson("results/out.jsonl")
    assert out["model"].unique().to_list() == ["toy-1b"]
    assert out["cost_usd"].sum() == pytest.approx(30 * 2 * 3e-6), "each content is paid once"


@pytest.mark.parametrize("cap_usd", [None, 0.3])
def test_a_cap_counts_what_either_costs(here: Path, cap_usd: float | None) -> None:
    """A call of the toy costs 6 cents here, and more at worst; the other's next to nothing."""
    toy = Toy()
    dear = replace(TOY, rates=fixed_rates(10_000, 20_000), limits=Limits(0, 0, concurrency=1))
    capped = session(here, budget={"max_usd": cap_usd}, model={"max_output_tokens": 5})
    cost_usd = run_through(capped, opening=both(Plain(), toy, toy=dear)).summary.cost_usd
    assert toy.asked >= 2 and cost_usd >= Decimal("0.06") * toy.asked
    assert (cost_usd <= Decimal("0.3")) is (cap_usd is not None), "without a cap it is passed"


# ---- what is kept


def test_a_kept_reply_is_parsed_by_the_provider_that_gave_it(tmp_path: Path) -> None:
    toy = Toy()
    parse = parser_of({toy.name: toy})
    reply = replace(toy.parse(b"say HELLO"), endpoint=TOY.endpoint, finished_at=EPOCH)
    with killed(tmp_path / "run") as store:
        store.append_call(ask(text="hello"), "toy-1", reply)
    store = RunStore(tmp_path / "run", parse)
    store.open(manifest())
    found = store.reply(ask(text="hello").fingerprint("toy-1"))
    store.close()
    assert found and (found.reply.text, found.reply.endpoint) == ("HELLO", "toy@toy.example")
    assert parse(b'{"candidates": []}', "gemini@example").status != "ok"
    with pytest.raises(RunStateError, match=r"toy@toy\.example"):
        parse_stored(b"say HELLO", TOY.endpoint)


# ---- quotas


Send = Callable[[Prompt, Target, Tries], Awaitable[Reply | Failure]]
FIRST, SECOND = (
    Target("gemini", "https://example", project, MODEL, limits=Limits(rpm=rpm, tpm=0))
    for project, rpm in (("a", 60), ("b", 30))
)
ANY = Route((FIRST, SECOND))


def dispatching(body: Callable[[Dispatcher], Awaitable[None]], send: Send, route: Route = ANY) -> None:
    async def main() -> None:
        desk = Dispatcher(send, route, wall=lambda: EPOCH + anyio.current_time(), rng=Random(1))
        async with anyio.create_task_group() as group:
            group.start_soon(desk.run)
            await body(desk)
            desk.close()

    run(main)


async def submit_all(desk: Dispatcher, number: int, route: Route | None = None) -> None:
    async with anyio.create_task_group() as group:
        for row in range(number):
            group.start_soon(desk.submit, ask(row), route)


def test_several_quotas_are_filled_at_once_over_one_backlog() -> None:
    sent: Counter[str] = Counter()

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
        sent[target.project] += 1
        await anyio.sleep(1.0)
        return Reply("text", "ok", usage=Usage(10))

    async def body(desk: Dispatcher) -> None:
        await submit_all(desk, 900)
        assert anyio.current_time() == pytest.approx(600.0, rel=0.03)

    dispatching(body, send)
    assert sent["a"] == pytest.approx(600, rel=0.03) and sent["b"] == pytest.approx(300, rel=0.06)


def test_several_quotas_of_tokens_are_filled_at_once() -> None:
    sent: Counter[str] = Counter()

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
        sent[target.project] += 1
        await anyio.sleep(1.0)
        return Reply("text", "ok", usage=Usage(10))

    dispatching(
        lambda desk: submit_all(desk, 900),
        send,
        Route(tuple(replace(target, limits=Limits(rpm=0, tpm=3_000)) for target in (FIRST, SECOND))),
    )
    assert sum(sent.values()) == 900 and sent["b"] == pytest.approx(450, rel=0.1)


def test_a_prompt_goes_only_where_its_route_leads_and_a_quota_takes_first_what_only_it_may_serve() -> None:
    only = Route((SECOND,))
    went: dict[int, str] = {}
    finished: dict[str, float] = {}

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
        went[prompt.row] = target.project
        await anyio.sleep(1.0)
        return Reply("text", "ok", usage=Usage(10))

    async def body(desk: Dispatcher) -> None:
        async def timed(name: str, rows: range, route: Route) -> None:
            async with anyio.create_task_group() as group:
                for row in rows:
                    group.start_soon(desk.submit, ask(row), route)
            finished[name] = anyio.current_time()

        async with anyio.create_task_group() as group:
            group.start_soon(timed, "any", range(600), ANY)
            group.start_soon(timed, "only", range(600, 800), only)

    dispatching(body, send)
    assert {went[row] for row in range(600, 800)} == {"b"}
    assert finished["only"] == pytest.approx(400.0, rel=0.05), "nothing else takes its quota meanwhile"
    assert finished["any"] < 610.0


def test_routes_of_the_same_targets_are_one_line_though_each_prompt_has_its_own() -> None:
    rows: list[int] = []

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
        rows.append(prompt.row)
        await anyio.sleep(1.0)
        return Reply("text", "ok", usage=Usage(10))

    async def body(desk: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(4):
                group.start_soon(desk.submit, ask(row, step="map"), Route((one,)))
            await anyio.sleep(0.5)
            group.start_soon(desk.submit, ask(9, step="reduce"), Route((one,)))

    one = replace(FIRST, limits=replace(UNLIMITED, concurrency=1))
    dispatching(body, send, Route((one,)))
    assert rows == [0, 9, 1, 2, 3], "reduces go first, whatever route they came by"


def test_a_target_that_refuses_the_key_is_left_out_and_the_run_goes_on_with_the_other() -> None:
    refused = Failure("auth", "auth", "no such key", http_status=401)

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        await anyio.sleep(1.0)
        return refused if target is SECOND else Reply("text", "ok", usage=Usage(10))

    async def body(desk: Dispatcher) -> None:
        await submit_all(desk, 100)
        assert anyio.current_time() < 110.0
        with pytest.raises(Halted) as halted:
            await desk.submit(ask(1000), Route((SECOND,)))
        assert isinstance(halted.value.reason, AuthError)

    dispatching(body, send)


def test_what_others_may_answer_is_answered_before_a_run_ends_for_what_nobody_may() -> None:
    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        await anyio.sleep(1.0)
        refused = Failure("auth", "auth", "no such key", http_status=401)
        return refused if target is SECOND else Reply("text", "ok", usage=Usage(10))

    ended: Counter[str] = Counter()

    async def one(desk: Dispatcher, row: int) -> None:
        target = SECOND if row % 3 == 0 else FIRST
        try:
            await desk.submit(ask(row), Route((target,)))
            ended["answered"] += 1
        except Halted as halted:
            assert target is SECOND and isinstance(halted.reason, AuthError)

    async def body(desk: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(90):
                group.start_soon(one, desk, row)

    dispatching(body, send)
    assert ended["answered"] == 60


def test_when_no_target_is_left_the_run_ends_with_the_reason() -> None:
    async def send(prompt: Prompt, target: Target, tries: Tries) -> Failure:
        await anyio.sleep(1.0)
        return Failure("auth", "auth", f"no such key of {target.project}", http_status=401)

    reasons: list[PipelineError | None] = []

    async def body(desk: Dispatcher) -> None:
        async def one(row: int) -> None:
            try:
                await desk.submit(ask(row))
            except Halted as halted:
                reasons.append(halted.reason)

        async with anyio.create_task_group() as group:
            for row in range(20):
                group.start_soon(one, row)

    dispatching(body, send)
    assert len(reasons) == 20 and {type(reason) for reason in reasons} == {AuthError}


def test_attempts_and_refusals_are_counted_over_all_targets() -> None:
    outcomes: list[Reply | Failure] = [
        Failure("rate_limit", "quota", "slow down", http_status=429, retry_after_s=1.0),
        Failure("transient", "server", "overloaded", http_status=503),
        Reply("text", "ok", usage=Usage(10)),
    ]
    seen: list[Tries] = []

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        seen.append(tries)
        await anyio.sleep(0.1)
        return outcomes.pop(0)

    async def body(desk: Dispatcher) -> None:
        reply = await desk.submit(ask())
        assert (reply.attempts, reply.rate_limited) == (2, 1)

    dispatching(body, send)
    assert seen == [Tries(0, 0), Tries(0, 1), Tries(1, 1)]


# ---- who goes first


def answering(sent: list[tuple[float, str]], latency_s: float = 1.0) -> Send:
    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
        sent.append((anyio.current_time(), target.project))
        await anyio.sleep(latency_s)
        return Reply("text", "ok", usage=Usage(10))

    return send


def test_three_targets_of_one_job_take_the_time_of_their_sum() -> None:
    sent: list[tuple[float, str]] = []
    route = Route((*ANY, replace(FIRST, project="c", limits=Limits(rpm=300, tpm=0))))

    async def body(desk: Dispatcher) -> None:
        await submit_all(desk, 3_900)
        assert anyio.current_time() <= 600.0 / 0.97

    dispatching(body, answering(sent), route)
    assert len(sent) == 3_900


def test_no_paid_call_is_made_while_the_free_quota_has_room() -> None:
    """Free: 60 a minute. What it takes in a minute is all free; of more the free quota is filled all the same."""
    sent: list[tuple[float, str]] = []
    route = Route((FIRST, replace(SECOND, priority=2, limits=Limits(rpm=600, tpm=0))))

    async def body(desk: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(120):
                group.start_soon(desk.submit, ask(row))
                await anyio.sleep(2.0)
        await submit_all(desk, 60)
        assert {project for _, project in sent} == {"a"}
        sent.clear()
        began = anyio.current_time()
        await submit_all(desk, 3_300)
        took_s = anyio.current_time() - began
        free = sum(project == "a" for _, project in sent)
        assert free == pytest.approx(took_s, rel=0.03), "60 a minute"
        assert took_s <= 360.0, "and the paid one is used to the full beside it, but for the last minute"

    dispatching(body, answering(sent), route)


@pytest.mark.parametrize("takes", ["day_quota", "outage"])
def test_a_target_that_takes_over_for_one_cause_takes_nothing_before(takes: Any) -> None:
    """The first has 100 requests a day, or is down after as many."""
    rpd = 100 if takes == "day_quota" else None
    first = replace(FIRST, limits=Limits(rpm=600, tpm=0, rpd=rpd))
    route = Route((first, replace(SECOND, priority=2, takes=frozenset({takes}), limits=Limits(rpm=6_000, tpm=0))))
    sent: list[tuple[float, str]] = []
    answered = answering(sent)

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        if takes == "outage" and target.project == "a" and sum(project == "a" for _, project in sent) >= 100:
            await anyio.sleep(0.5)
            return Failure("transient", "server", "overloaded", http_status=503)
        return await answered(prompt, target, tries)

    async def body(desk: Dispatcher) -> None:
        await submit_all(desk, 500)
        assert anyio.current_time() < 120.0

    dispatching(body, send, route)
    projects = [project for _, project in sent]
    assert projects[:95] == ["a"] * 95 and projects.count("a") == 100 and projects.count("b") == 400


@pytest.mark.parametrize("takes", ["full", "outage"])
def test_what_is_larger_than_the_first_ever_takes_goes_to_the_second_at_once(takes: Any) -> None:
    small = replace(FIRST, limits=Limits(rpm=0, tpm=1_000))
    large = replace(SECOND, priority=2, takes=frozenset({takes}), limits=Limits(rpm=0, tpm=100_000))
    went: dict[int, str] = {}

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
        went[prompt.row] = target.project
        await anyio.sleep(1.0)
        return Reply("text", "ok", usage=Usage(prompt.input_tokens_est))

    async def body(desk: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row, tokens in enumerate((100, 5_000, 100)):
                group.start_soon(desk.submit, ask(row, tokens=tokens))
        assert anyio.current_time() < 90.0

    dispatching(body, send, Route((small, large)))
    assert went[1] == "b"


@pytest.mark.parametrize(("minutes", "paid"), [(60.0, 0), (11.0, 0), (6.0, 300), (1.0, 546)])
def test_a_paid_target_is_asked_only_as_far_as_a_deadline_needs_it(minutes: float, paid: int) -> None:
    """Free: 60 a minute, 600 prompts, so ten minutes; paid: 600 a minute. With a minute to spare."""
    sent: list[tuple[float, str]] = []
    route = Route((FIRST, replace(SECOND, priority=2, takes=frozenset({"deadline"}), limits=Limits(rpm=600, tpm=0))))

    async def main() -> None:
        deadline = Deadline(anyio.current_time() + 60.0 * minutes, 600)
        desk = Dispatcher(
            answering(sent), route, deadline=deadline, wall=lambda: EPOCH + anyio.current_time(), rng=Random(1)
        )
        async with anyio.create_task_group() as group:
            group.start_soon(desk.run)
            await submit_all(desk, 600)
            assert anyio.current_time() <= max(60.0 * minutes, 70.0)
            desk.close()

    run(main)
    assert sum(project == "b" for _, project in sent) == pytest.approx(paid, abs=12)


def test_targets_of_one_rank_get_their_parts_by_weight() -> None:
    sent: list[tuple[float, str]] = []
    route = Route((replace(FIRST, limits=UNLIMITED, weight=3.0), replace(SECOND, limits=UNLIMITED, weight=1.0)))

    async def body(desk: Dispatcher) -> None:
        async with anyio.create_task_group() as group:
            for row in range(800):
                group.start_soon(desk.submit, ask(row))
                await anyio.sleep(0.1)

    dispatching(body, answering(sent), route)
    assert sum(project == "a" for _, project in sent) == pytest.approx(600, rel=0.03)


def test_two_keys_of_one_project_are_one_quota_and_the_second_is_used_when_the_first_is_bad() -> None:
    first, second = replace(FIRST, name="one"), replace(FIRST, name="two")
    used: Counter[str] = Counter()

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        used[target.name] += 1
        await anyio.sleep(1.0)
        if target.name == "one" and used["one"] > 20:
            return Failure("auth", "auth", "leaked", http_status=403)
        return Reply("text", "ok", usage=Usage(10))

    async def body(desk: Dispatcher) -> None:
        await submit_all(desk, 120)
        assert anyio.current_time() == pytest.approx(120.0, rel=0.1), "60 a minute, whichever key"

    dispatching(body, send, Route((first, second)))
    assert used["one"] <= 23 and used["two"] == 100


@pytest.mark.parametrize(("counted", "seconds"), [("input", 2.0), ("total", 600.0), ("reserved", 1_200.0)])
def test_a_quota_on_tokens_counts_what_the_service_counts(counted: Any, seconds: float) -> None:
    """10 in, 90 out, 190 at most; 1,050 a minute: 100, 10 or 5 prompts."""
    target = replace(FIRST, limits=Limits(rpm=0, tpm=1_050, tokens=counted))

    async def send(prompt: Prompt, target: Target, tries: Tries) -> Reply:
        await anyio.sleep(1.0)
        return Reply("text", "ok", usage=Usage(10, output_tokens=70, thinking_tokens=20))

    async def body(desk: Dispatcher) -> None:
        params = Params(max_output_tokens=190)
        async with anyio.create_task_group() as group:
            for row in range(100):
                group.start_soon(desk.submit, replace(ask(row, tokens=10), params=params))
        assert anyio.current_time() == pytest.approx(seconds, rel=0.25)

    dispatching(body, send, Route((target,)))


# ---- names


@pytest.mark.parametrize(
    ("base_url", "endpoint"),
    [
        ("https://generativelanguage.googleapis.com", "gemini@generativelanguage.googleapis.com"),
        ("https://Relay.Example:443/v1beta/", "gemini@relay.example"),
        ("http://127.0.0.1:8080", "gemini@127.0.0.1:8080"),
        ("http://[::1]:8080/x", "gemini@[::1]:8080"),
        ("HTTPS://Relay.example:443", "gemini@relay.example"),
        ("http://[::ABCD]:8080", "gemini@[::ABCD]:8080"),
        ("http://例子.example", "gemini@xn--fsqu00a.example"),
        ("http://faß.example", "gemini@xn--fa-hia.example"),
        ("http://x.example:８０８０", "gemini@x.example:8080"),
        ("http://emulator", "gemini@emulator"),
    ],
)
def test_an_endpoint_is_named_by_provider_and_host_as_before(base_url: str, endpoint: str) -> None:
    """Books of quota and of spending are found by it: an older version named it by httpx's `netloc`."""
    assert Target("gemini", base_url, "p", "m").endpoint == endpoint
