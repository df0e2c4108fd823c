"""Rows that are asked together: the layer in virtual time, and whole runs over the emulator."""

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

import anyio
import openai
import polars as pl
import pytest
import vclock
from asking import MODEL, ROUTE, TARGET, ask
from commands import Ran
from google import genai
from google.genai import types
from llmock_server import llmock
from serving import served, stats
from sessions import run_through
from test_kill import IN_FLIGHT, killed_and_finished, summarize_job

from jobs import PLAIN, Sections, make_job
from pipeline import estimating
from pipeline.budget.cashier import worst_case_usd
from pipeline.errors import Halted, JobError
from pipeline.estimating import Wishes
from pipeline.packing import Packing, answers_in, keys_of, pack_of
from pipeline.packs import MOMENT_S, apart, packed
from pipeline.plan import Plan
from pipeline.prices import fixed_rates
from pipeline.prompts import Params, Prompt
from pipeline.providers.answers import parse_reply
from pipeline.records import Reply, Usage
from pipeline.run import prepare
from pipeline.run.prepare import Options
from pipeline.store.parts import read_parts
from pipeline.targets import Route
from pipeline.tokens import estimate

PARAMS = Params(max_output_tokens=50, packed=True)


def row(number: int, params: Params = PARAMS, words: int = 3) -> Prompt:
    text = f"row {number} " + "word " * words
    return ask(number, text, params=params, tokens=estimate(text))


class Service:
    """Answers single prompts, and each prompt of a pack that it does not leave out; `alone` is what was sent."""

    def __init__(self, leaves_out: Callable[[Prompt, Prompt], bool] = lambda pack, member: False) -> None:
        self.sent: list[list[int]] = []
        self.at: list[float] = []
        self._leaves_out = leaves_out

    async def __call__(self, prompt: Prompt, route: Route) -> Reply:
        members = prompt.members or (prompt,)
        self.sent.append([member.row for member in members])
        self.at.append(anyio.current_time())
        await anyio.sleep(1.0)
        if not prompt.members:
            return Reply(f"alone {prompt.row}", "ok", raw=b"{}")
        answers = tuple(
            None if self._leaves_out(prompt, each) else Reply(f"packed {each.row}", "ok", raw=b"{}") for each in members
        )
        return Reply("", "ok", raw=b"{}", members=answers)


def asked(
    service: Callable[[Prompt, Route], Awaitable[Reply]], prompts: list[Prompt], rows: int = 4, gap_s: float = 0.0
) -> dict[int, Reply | BaseException]:
    """What each row gets, all of them asked `gap_s` after one another."""
    got: dict[int, Reply | BaseException] = {}

    async def body() -> None:
        call = packed(service, Packing(rows, 1_000), lambda prompt, route: Decimal(0))

        async def one(prompt: Prompt) -> None:
            try:
                got[prompt.row] = await call(prompt, ROUTE)
            except Halted as halted:
                got[prompt.row] = halted

        async with anyio.create_task_group() as tasks:
            for prompt in prompts:
                tasks.start_soon(one, prompt)
                await anyio.sleep(gap_s)

    vclock.run(body)
    return got


def texts(got: dict[int, Reply | BaseException]) -> dict[int, str]:
    return {number: reply.text for number, reply in sorted(got.items()) if isinstance(reply, Reply)}


def test_rows_that_come_together_are_asked_together() -> None:
    service = Service()
    got = asked(service, [row(number) for number in range(10)])
    assert sorted(map(len, service.sent)) == [2, 4, 4] and sorted(chain(*service.sent)) == list(range(10))
    assert texts(got) == {number: f"packed {number}" for number in range(10)}
    assert service.at[:2] == pytest.approx([0.0, 0.0], abs=1e-6), "a full pack waits for nobody"
    assert MOMENT_S < service.at[2] < 2.1 * MOMENT_S, "one that is not full waits until nobody comes for a moment"


def test_a_row_that_nobody_comes_to_join_goes_alone() -> None:
    service = Service()
    got = asked(service, [row(1), row(2)], gap_s=MOMENT_S * 2)
    assert texts(got) == {1: "alone 1", 2: "alone 2"}
    assert service.sent == [[1], [2]]


def test_long_rows_and_rows_of_other_params_do_not_share_a_pack() -> None:
    service = Service()
    other = replace(PARAMS, temperature=0.5)
    prompts = [row(1), row(2, other), row(3, words=600), row(4), row(5, other), row(6, Params())]
    asked(service, prompts)
    assert sorted(service.sent) == [[1, 4], [2, 5], [3], [6]]


def test_a_pack_holds_no_more_tokens_than_it_may() -> None:
    service = Service()
    asked(service, [row(number, words=150) for number in range(8)], rows=8)
    assert all(1 <= len(sent) < 8 for sent in service.sent) and sum(map(len, service.sent)) == 8


def test_what_is_missing_is_asked_in_halves_and_then_alone() -> None:
    service = Service(lambda pack, member: member.row % 4 == 3 and (len(pack.members) > 4 or member.row == 7))
    got = asked(service, [row(number) for number in range(16)], rows=8)
    assert [sorted(sent) for sent in service.sent[2:]] == [[3, 7, 11, 15], [7]]
    assert texts(got) == {number: f"packed {number}" for number in range(16)} | {7: "alone 7"}


def test_a_failure_that_is_no_matter_of_a_row_is_the_failure_of_all() -> None:
    sent = []

    async def down(prompt: Prompt, route: Route) -> Reply:
        sent.append(len(prompt.members))
        return Reply("", "error", error_kind="server", error="down", attempts=5)

    got = asked(down, [row(number) for number in range(4)])
    assert sent == [4]
    replies = [reply for reply in got.values() if isinstance(reply, Reply)]
    assert [reply.error_kind for reply in replies] == ["server"] * 4
    assert sum(reply.attempts for reply in replies) == 5


@pytest.mark.parametrize("kind", ["too_long", "prompt_blocked", "invalid_request", "malformed_reply"])
def test_a_failure_that_one_row_may_have_caused_is_found_by_halves(kind: Any) -> None:
    async def refuses_3(prompt: Prompt, route: Route) -> Reply:
        members = prompt.members or (prompt,)
        if any(member.row == 3 for member in members):
            return Reply("", "invalid", error_kind=kind, error="no")
        return await service(prompt, route)

    service = Service()
    got = asked(refuses_3, [row(number) for number in range(8)], rows=8)
    refused = {number for number, reply in got.items() if isinstance(reply, Reply) and not reply.text}
    assert refused == {3} and len(texts(got)) == 8


def test_a_run_that_stops_stops_all_rows_of_a_pack() -> None:
    async def halts(prompt: Prompt, route: Route) -> Reply:
        raise Halted(None)

    got = asked(halts, [row(number) for number in range(6)])
    assert len(got) == 6 and all(isinstance(each, Halted) for each in got.values())


def test_a_row_that_is_withdrawn_leaves_its_pack_and_the_first_leaves_it_to_the_others() -> None:
    service = Service()
    got: dict[int, str] = {}

    async def body() -> None:
        call = packed(service, Packing(8, 1_000), lambda prompt, route: Decimal(0))

        async def one(number: int, patience_s: float) -> None:
            with anyio.move_on_after(patience_s):
                got[number] = (await call(row(number), ROUTE)).text

        async with anyio.create_task_group() as tasks:
            for number, patience_s in ((0, MOMENT_S / 2), (1, 99.0), (2, MOMENT_S / 2), (3, 99.0)):
                tasks.start_soon(one, number, patience_s)

    vclock.run(body)
    assert service.sent == [[1, 3]] and got == {1: "packed 1", 3: "packed 3"}


# ---- shares


def test_a_reply_is_shared_out_to_the_last_token() -> None:
    members = [row(number, words=number * 7) for number in range(5)]
    keys = keys_of([member.text for member in members])
    said = ", ".join(f'{{"key": "{key}", "answer": "{"so " * (n + 1)}"}}' for n, key in enumerate(keys) if n != 2)
    pack = pack_of(members, 65_536)
    reply = Reply(
        f'{{"answers": [{said}]}}',
        "ok",
        usage=Usage(1_001, 17, 203, 31, 5),
        model=MODEL,
        raw=b"{}",
        cost_usd=Decimal("0.000123456789"),
        worst_usd=Decimal("0.01"),
        at_most_usd=Decimal("0.001"),
        attempts=3,
        finished_at=1.0,
    )
    parts = apart(pack, reply, answered=True)
    assert [prompt.row for prompt, _, _ in parts] == [0, 1, 2, 3, 4]
    assert [answered for _, _, answered in parts] == [True, True, False, True, True]
    assert sum((each.usage for _, each, _ in parts), Usage()) == reply.usage
    for name in ("cost_usd", "worst_usd", "at_most_usd"):
        assert sum(getattr(each, name) for _, each, _ in parts) == getattr(reply, name), name
    assert sum(each.attempts for _, each, _ in parts) == 3
    assert sum(prompt.input_tokens_est for prompt, _, _ in parts) == pack.input_tokens_est
    assert [prompt.chunk for prompt, _, _ in parts] == [0, 1, 4, 2, 3], "the first that is answered stands for the pack"
    missed = parts[2][1]
    assert missed.cost_usd and not missed.raw and missed.usage == Usage()
    for prompt, each, answered in parts:
        if answered:
            read = parse_reply(each.raw)
            assert (read.text, read.status, read.usage, read.model) == (each.text, "ok", each.usage, MODEL)
        assert prompt.fingerprint(MODEL) == members[prompt.row].fingerprint(MODEL)


# ---- whole runs

SYSTEM = "You sort what people say of chairs. " + "Say what is praised, what is blamed, and nothing else. " * 40
PACKED: Sections = {
    **PLAIN,
    "input": {"path": "input.parquet", "id": "id"},
    "prompt": {"system": SYSTEM, "template": "About {{ id }}: {{ body }}"},
    "model": {"name": MODEL, "max_output_tokens": 60},
    "limits": {"rpm": 0, "tpm": 0},
    "pack": {"rows": 20},
    "output": {"path": "output.parquet"},
}


def session(path: Path, url: str, rows: int = 100, **sections: Any) -> prepare.Session:
    ids = [f"r{number}" for number in range(rows)]
    body = [f"The {number}th chair is fine, and leg {number % 7} of it wobbles." for number in range(rows)]
    pl.DataFrame({"id": ids, "body": body}).write_parquet(path / "input.parquet")
    job = make_job(path, PACKED, **{"endpoint": {"base_url": url}, **sections})
    return prepare.prepare(job, Options())


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")


def calls() -> pl.DataFrame:
    names = ("row", "step", "chunk", "paid", "fingerprint", "input_tokens", "output_tokens", "cost_usd")
    return pl.concat(read_parts(Path("runs/job/calls"), names))


def is_right(output: pl.DataFrame) -> bool:
    """Whether each row has the answer to its own text: the emulator's says what it was asked."""
    pairs = zip(output["id"], output["response"], strict=True)
    return all(response and response.startswith(f"About {name}: ") for name, response in pairs)


@pytest.mark.parametrize("fault", ["", "shuffled", "missing", "doubled", "wrong_key", "cut", "text"])
def test_each_row_gets_its_own_answer_and_its_part_of_the_cost(tmp_path: Path, fault: str) -> None:
    with served(faults=f"pack_{fault}:0.8" if fault else "") as url:
        ended = run_through(session(tmp_path, url))
        seen = stats(url)
    output = pl.read_parquet("output.parquet")
    assert set(output["status"]) == {"ok"} and is_right(output)
    summary, bought = ended.summary, calls()
    assert summary.calls <= seen["answered"] == summary.attempts
    assert (summary.calls == 5) == (fault in ("", "shuffled"))
    paid = bought.filter("paid")
    assert paid["row"].n_unique() == paid["fingerprint"].n_unique() == paid.height == 100
    assert float(output["cost_usd"].sum()) == pytest.approx(float(bought["cost_usd"].sum()), abs=1e-12)
    assert float(bought["cost_usd"].sum()) == pytest.approx(cost_of(seen))
    if not fault:
        assert int(output["input_tokens"].sum()) == seen["input_tokens"]
        assert int(output["output_tokens"].sum()) == seen["output_tokens"]
        assert summary.calls_by_step == {"pack": 5}


def cost_of(seen: dict[str, Any]) -> float:
    """What the service billed, at the list price of the model."""
    return float((seen["input_tokens"] * Decimal("0.30") + seen["output_tokens"] * Decimal("2.50")) / 10**6)


def planned(prepared: prepare.Session) -> Plan:
    return anyio.run(estimating.estimate, prepared, Wishes()).plan


def test_the_estimate_is_the_run_and_a_row_costs_as_much_less_as_was_said(tmp_path: Path) -> None:
    with served(tokenizer="subword") as url:
        prepared = session(tmp_path, url, rows=205)
        before = planned(prepared)
        assert before.prompts_by_step == {"pack": 11} and "rows are packed: 11 calls" in before.assumptions[0]
        assert any("asked again: that is not counted" in each for each in before.assumptions)
        prepare_again = replace(prepared.options, pilot=anyio.run(estimating.pilot_rows, prepared, 40))
        run_through(prepare.prepare(prepared.job, prepare_again))
        piloted, bought = planned(prepared), calls()
        ended = run_through(prepared)
        every = calls()
    assert ended.summary.calls == 11 and piloted.prompts_by_step == {"pack": 9}
    to_come = every.join(bought, on="fingerprint", how="anti")
    for plan, paid in ((before, every), (piloted, to_come)):
        assert plan.cost_usd and plan.cost_usd.low <= paid["cost_usd"].sum() <= plan.cost_usd.high
        assert plan.input_tokens.low <= paid["input_tokens"].sum() <= plan.input_tokens.high
        assert plan.output_tokens.low <= paid["output_tokens"].sum() <= plan.output_tokens.high
    assert piloted.cost_usd
    a_row = float(to_come["cost_usd"].sum()) / 165
    assert float(piloted.cost_usd.expected) / 165 == pytest.approx(a_row, rel=0.05)


def test_what_packing_saves_is_as_was_said(tmp_path: Path) -> None:
    """Of a pilot in packs, what rows asked alone would cost; and of a run of rows asked alone, what packs do."""
    with served(tokenizer="subword") as url:
        prepared = session(tmp_path, url, rows=200)
        pilot = anyio.run(estimating.pilot_rows, prepared, 40)
        run_through(prepare.prepare(prepared.job, replace(prepared.options, pilot=pilot)))
        said = planned(prepared).assumptions[0]
        packed_usd = float(run_through(prepared).summary.cost_usd)
        Path("runs/job").rename("runs/packed")
        alone = session(tmp_path, url, rows=200, pack=None)
        alone_usd = float(run_through(prepare.prepare(alone.job, Options(overwrite=True))).summary.cost_usd)
        Path("runs/packed").rename("packed")
        Path("runs/job").rename("runs/alone")
        learned = planned(prepared).cost_usd
    now, before = (float(usd) for usd in re.findall(r"\$([\d.]+\d)", said)[:2])
    assert now / 160 == pytest.approx(packed_usd / 200, rel=0.05)
    assert before / 160 == pytest.approx(alone_usd / 200, rel=0.15), "of which nothing was seen yet"
    assert packed_usd < 0.6 * alone_usd
    assert learned and float(learned.expected) == pytest.approx(packed_usd, rel=0.05)


def test_a_budget_reserves_the_longest_answers_to_all_rows_of_a_pack() -> None:
    params = replace(PARAMS, max_output_tokens=1_000)
    rows = [row(number, params) for number in range(20)]
    target = replace(TARGET, rates=fixed_rates(1, 10))
    worst = [worst_case_usd(prompt, target) for prompt in (pack_of(rows, 65_536), rows[0])]
    assert worst[0] and worst[1] and 20 * 0.01 < worst[0] < 20 * worst[1] * Decimal("1.1")
    most = worst_case_usd(pack_of(rows, 4_000), target)
    assert most and 0.04 < most < 0.041, "no more than the model can answer"


def test_rows_that_are_bought_are_found_however_rows_are_packed_then(tmp_path: Path) -> None:
    with served() as url:
        prepared = session(tmp_path, url)
        run_through(prepare.prepare(prepared.job, replace(prepared.options, pilot=frozenset(range(30)))))
        first = stats(url)["answered"]
        ended = run_through(session(tmp_path, url, pack={"rows": 7}))
        assert stats(url)["answered"] - first == 10, "70 rows in packs of 7"
    assert ended.summary.outcomes == Counter(ok=100) and is_right(pl.read_parquet("output.parquet"))


def test_sigkill_at_any_moment_loses_at_most_the_packs_in_flight(tmp_path: Path) -> None:
    rows, of = 300, 5
    summarize_job(tmp_path, rows, f"[pack]\nrows = {of}\nmax_tokens = 20000")
    with served(latency_s=0.08, latency_jitter_s=0.1) as url:
        result, killed = killed_and_finished(tmp_path, url, 5, seed=5)
        seen = stats(url)
    assert killed >= 4 and (result["status"], result["ok"], result["rows"]) == ("finished", rows, rows)
    output = pl.read_parquet("output.parquet")
    assert output["id"].to_list() == [f"r{number}" for number in range(rows)]
    for number, response in enumerate(output["response"]):
        assert f"report {number} " in response
    bought = pl.concat(read_parts(Path("runs/job/calls"), ("row", "paid", "fingerprint", "cost_usd", "at_most_usd")))
    paid = bought.filter("paid")
    assert paid["row"].n_unique() == paid["fingerprint"].n_unique() == paid.height == rows, "none is bought twice"
    lost = bought.filter(~pl.col("paid"), pl.col("at_most_usd") > 0)
    assert lost.height <= killed * IN_FLIGHT
    times = Counter(lost["fingerprint"])
    assert max(times.values(), default=0) <= killed, "one that is killed twice is lost twice"
    assert 0 <= seen["answered"] - result["calls"] <= killed * IN_FLIGHT
    assert float(output["cost_usd"].sum()) == pytest.approx(float(bought["cost_usd"].sum()), abs=1e-12)


def test_answers_of_a_pack_are_held_to_the_schema_and_become_columns(tmp_path: Path) -> None:
    schema = "praise: good|bad, points: int, words: [str]"
    with served() as url:
        ended = run_through(session(tmp_path, url, output={"schema": schema}))
        assert stats(url)["answered"] == ended.summary.calls == 5
    output = pl.read_parquet("output.parquet")
    assert set(output["status"]) == {"ok"} and set(output["praise"]) <= {"good", "bad"}
    assert output["points"].dtype == pl.Int64 and output["words"].dtype == pl.List(pl.String)


# ---- others' clients and servers


def test_googles_client_and_openais_ask_packs_of_the_emulator_by_their_schema() -> None:
    members = [row(number) for number in range(6)]
    pack = pack_of(members, 65_536)
    keys, schema = keys_of([member.text for member in members]), json.loads(pack.params.schema or "")
    with served(marked=True) as url:
        google = genai.Client(api_key="AQ.key", vertexai=False, http_options=types.HttpOptions(base_url=url))
        config = types.GenerateContentConfig(response_mime_type="application/json", response_json_schema=schema)
        told = [google.models.generate_content(model=MODEL, contents=pack.text, config=config).text or ""]
        google.close()
        with openai.OpenAI(api_key="sk-test", base_url=f"{url}/v1") as other:
            form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
            said = other.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": pack.text}], response_format=form
            )
            told.append(said.choices[0].message.content or "")
    for text in told:
        answers = answers_in(text, keys)
        assert [(answer or "")[: len(f"row {n}")] for n, answer in enumerate(answers)] == [f"row {n}" for n in range(6)]


@pytest.mark.parametrize("dialect", ["openai", "gemini"])
def test_a_foreign_server_that_knows_nothing_of_packs_answers_each_row_alone_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with llmock() as url:
        place = {"base_url": url + ("/gemini" if dialect == "gemini" else ""), "provider": dialect}
        prepared = session(tmp_path, url, rows=12, pack={"rows": 6}, endpoint=place)
        ended = run_through(prepared)
    output = pl.read_parquet("output.parquet")
    assert set(output["status"]) == {"ok"} and output["id"].to_list() == [f"r{number}" for number in range(12)]
    assert ended.summary.calls_by_step == {"answer": 12}
    bought = pl.concat(read_parts(Path("runs/job/calls"), ("paid", "cost_usd")))
    assert float(output["cost_usd"].sum()) == pytest.approx(float(bought["cost_usd"].sum()), abs=1e-12)
    assert bought.filter("paid")["cost_usd"].sum() < bought["cost_usd"].sum(), "what brought nothing is counted"


# ---- what is refused, and the page


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"model": {"stop": ["END"]}}, r"\[model\] stop would cut a pack"),
        ({"model": {"response_mime_type": "text/x.enum"}}, "allows one answer only"),
        (
            {"input": {"text": "body"}, "chunk": {"max_tokens": 64}, "reduce": {"template": "{{ parts }}"}},
            r"\[pack\] is for short rows and \[chunk\] for long ones",
        ),
        ({"input": {"messages": "talk"}}, r"one text, and not for \[input\] messages"),
        ({"input": {"image": "photo"}}, r"one text, and not for \[input\] image"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(tmp_path: Path, sections: Any, says: str) -> None:
    with pytest.raises(JobError, match=says):
        make_job(tmp_path, PACKED, **sections)


def test_the_job_of_the_page_runs_as_it_says(
    here: Path, root: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (root / "docs/packing.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)\n```", page, re.DOTALL)
    (here / "labels.toml").write_text(block)
    made = cli("estimate", "labels.toml", "--offline", "--json").json
    ran = cli("run", "labels.toml", "--offline", "--json").json
    assert made["prompts"] == ran["calls"] == 3 and ran["ok"] == ran["rows"] > 20
    shown = made["assumptions"][0]
    assert shown in " ".join(page.split()), shown
