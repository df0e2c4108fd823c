"""An answer that goes on in further requests is one answer: each part is durable, and paid once."""

import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import polars as pl
import pytest
from asking import ROUTE, TARGET, ask
from commands import Ran
from forking import Forked, forked
from google import genai
from google.genai import types
from serving import served, stats, wait_for

from pipeline.budget.cashier import worst_case_usd
from pipeline.calls import MOST_CALLS_AN_ANSWER, continued
from pipeline.prices import rates
from pipeline.prompts import Params, Prompt
from pipeline.providers.answers import parse_reply, read_answer
from pipeline.providers.gemini import build_request
from pipeline.records import Reply, Usage
from pipeline.targets import Route, Target

MODEL = "gemini-4-argon"
TEXT = "The river flooded the town. The town had postponed the wall. A bakery gave away bread. The town rebuilds."
KEY = "AQ.secret-key-0123456789"
PART = 7
"""Tokens of one part in these tests: an answer to the text has several."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)


def write(here: Path, url: str, rows: int = 4, model: str = "", extra: str = "") -> Path:
    (here / "words.csv").write_text("word\n" + "".join(f"{n}. {TEXT}\n" for n in range(rows)))
    path = here / "job.toml"
    path.write_text(
        '[input]\npath = "words.csv"\n[prompt]\ntemplate = "Tell of {{ word }}"\n'
        f'[model]\nname = "{MODEL}"\n{model}\n[output]\npath = "out.parquet"\n'
        f'[limits]\nrpm = 0\ntpm = 0\n[endpoint]\nbase_url = "{url}"\n{extra}'
    )
    return path


# --- one answer ---


def answering(*replies: Reply) -> tuple[Reply, list[Prompt], list[Route]]:
    """What comes of one prompt whose calls are answered so, one after another."""
    asked: list[Prompt] = []
    routes: list[Route] = []

    async def call(prompt: Prompt, route: Route) -> Reply:
        asked.append(prompt)
        routes.append(route)
        return replies[min(len(asked), len(replies)) - 1]

    reply = anyio.run(continued(call), ask(text="hi", tokens=10), ROUTE)
    return reply, asked, routes


def part(text: str, token: str, **more: Any) -> Reply:
    usage = Usage(10, output_tokens=5, thinking_tokens=1)
    return Reply(text, "truncated", "CONTINUATION", usage=usage, continuation=token, endpoint=TARGET.endpoint, **more)


def test_parts_become_one_answer_and_each_is_counted() -> None:
    last = Reply("c", "ok", "STOP", extras='{"search_queries":["q"],"citations":[{"start":0,"end":1}]}')
    reply, asked, _ = answering(part("a", "t1", extras='{"search_queries":["p"]}'), part("", "t2"), last)
    assert (reply.text, reply.status, reply.finish_reason) == ("abc".replace("b", ""), "ok", "STOP")
    assert json.loads(reply.extras) == {"search_queries": ["p", "q"], "citations": [{"start": 1, "end": 2}]}
    assert [each.usage.output_tokens for each in reply.before] == [5, 5]
    assert [each.params.continuation for each in asked] == ["", "t1", "t2"]
    assert [each.input_tokens_est for each in asked] == [10, 16, 22], "what was written is read again"
    assert len({each.fingerprint("m") for each in asked}) == 3


def test_an_answer_that_names_the_same_place_again_or_never_ends_stays_as_far_as_it_came() -> None:
    reply, asked, _ = answering(part("a", "same"))
    assert (len(asked), reply.text, reply.status) == (2, "aa", "truncated")
    reply, asked, _ = answering(*(part("a", f"t{n}") for n in range(100)))
    assert (len(asked), len(reply.text), reply.status) == (MOST_CALLS_AN_ANSWER,) * 2 + ("truncated",)


def test_an_answer_that_has_ended_is_not_asked_on_whatever_its_pack_says() -> None:
    reply, asked, _ = answering(Reply("a", "ok", "STOP", continuation="of the pack"))
    assert (len(asked), reply.text, reply.before) == (1, "a", ())


def test_what_ends_a_part_ends_the_answer_and_what_there_is_of_it_is_kept() -> None:
    reply, _, _ = answering(part("a", "t1"), Reply("", "error", error_kind="server", error="503"))
    assert (reply.text, reply.status, reply.error_kind, len(reply.before)) == ("a", "error", "server", 1)


def test_only_who_gave_the_first_part_is_asked_for_the_next() -> None:
    a, b = (Target("gemini", "https://example", name, MODEL, name=name) for name in "ab")
    route = Route((a, b))
    reply = part("x", "t", target="b")
    assert route.back_to(reply).targets == (b,)
    assert route.back_to(Reply("", "ok", endpoint="elsewhere")) is route and ROUTE.back_to(part("", "t")) is ROUTE


def test_the_place_is_read_of_a_body_and_named_in_the_next_request() -> None:
    body: dict[str, Any] = {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "CONTINUATION"}]}
    assert parse_reply(orjson.dumps(body)).continuation == ""
    body["candidates"][0]["continuationToken"] = "bmV4dA=="
    raw = orjson.dumps(body)
    reply = parse_reply(raw)
    assert (reply.continuation, reply.status) == ("bmV4dA==", "truncated")
    assert parse_reply(read_answer(raw).as_body()).continuation == "bmV4dA=="  # type: ignore[union-attr]
    first, then = (
        orjson.loads(build_request(ask(text="hi", params=Params(max_output_tokens=9, continuation=token))))
        for token in ("", "bmV4dA==")
    )
    assert then == {**first, "continuationToken": "bmV4dA=="}
    body["candidates"][0]["finishReason"] = "STOP"
    assert parse_reply(orjson.dumps(body)).continuation == "", "it is over"


def test_one_request_is_reserved_for_what_one_request_can_cost() -> None:
    argon = Target("gemini", "https://example", "p", MODEL)
    usd = [worst_case_usd(ask(params=Params(max_output_tokens=most)), argon) for most in (65_536, 900_000)]
    assert usd[0] == usd[1] and usd[0] is not None and usd[0] > Decimal("0.6")
    assert worst_case_usd(ask(params=Params()), argon) == usd[0], "a streamed one has as many"


# --- whole runs ---


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_has_whole_answers_and_pays_for_every_part(here: Path, cli: Callable[..., Ran], stream: bool) -> None:
    with served() as url:
        whole = cli("run", write(here, url), "--yes", "--json")
        expected = pl.read_parquet("out.parquet")["response"].to_list()
    assert whole.code == 0, whole.err
    with served(part_tokens=PART, thinking_tokens=3) as url:
        path = write(here, url, model=f"stream = {str(stream).lower()}\nmax_output_tokens = 20000")
        ran = cli("run", path, "--yes", "--json", "--fresh")
        (bill,) = stats(url)["billed"]
        requests = stats(url)["requests"]
    assert (ran.code, ran.json["ok"], ran.json["calls"]) == (0, 4, requests), ran.err
    table = pl.read_parquet("out.parquet")
    assert table["response"].to_list() == expected and requests > 8 and table["calls"].sum() == requests
    assert ran.json["input_tokens"] == bill["input_tokens"] == table["input_tokens"].sum()
    price = rates(MODEL, datetime.now(UTC).date())
    assert price
    usd = float(price.usd(bill["input_tokens"], 0, bill["output_tokens"] + bill["thinking_tokens"]))
    assert ran.json["cost_usd"] == pytest.approx(usd, rel=1e-6)
    assert float(table["cost_usd"].sum()) == pytest.approx(usd, rel=1e-6)


def test_the_longest_answer_is_that_of_all_parts_together(here: Path, cli: Callable[..., Ran]) -> None:
    with served(part_tokens=PART) as url:
        ran = cli("run", write(here, url, model="max_output_tokens = 16"), "--yes", "--json")
    assert ran.json["truncated"] == 4, ran.err
    table = pl.read_parquet("out.parquet")
    assert table["finish_reason"].to_list() == ["MAX_TOKENS"] * 4 and max(table["output_tokens"].to_list()) <= 16


def test_a_failure_between_two_parts_loses_nothing_that_was_paid(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dispatch.retries.BACKOFF_FIRST_S", 0.01)
    with served(part_tokens=PART) as url:
        cli("run", write(here, url, rows=1), "--yes")
        parts = stats(url)["requests"]
    with served(part_tokens=PART, faults="503:0.3", seed=3) as url:
        ran = cli("run", write(here, url, rows=1), "--yes", "--json", "--fresh")
        assert ran.json["ok"] == 1, ran.err
        assert stats(url)["answered"] == parts


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_run_that_is_killed_between_two_parts_goes_on_with_the_next(here: Path, killed_after: int) -> None:
    def start() -> Forked:
        return forked("run", "job.toml", "--yes", "--json", cwd=here, env={"GEMINI_API_KEY": KEY})

    with served(part_tokens=PART) as url:
        write(here, url, rows=1)
        first = start()
        assert first.communicate() and first.returncode == 0
        parts = stats(url)["requests"]
        whole = pl.read_parquet(here / "out.parquet")["response"].to_list()
    (here / "out.parquet").unlink()
    (here / "runs").rename(here / "before")
    with served(part_tokens=PART, latency_s=0.3) as url:
        write(here, url, rows=1)
        run = start()
        wait_for(url, "requests", killed_after + 1, run)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        out, err = (again := start()).communicate()
        assert again.returncode == 0, err
        assert stats(url)["requests"] == parts + 1, "what was in flight, and nothing else, was asked for again"
    assert pl.read_parquet(here / "out.parquet")["response"].to_list() == whole
    assert json.loads(out)["calls"] == parts


def test_an_estimate_counts_the_rest_of_long_answers(here: Path, cli: Callable[..., Ran]) -> None:
    def told(model: str) -> dict[str, Any]:
        estimate: dict[str, Any] = cli("estimate", write(here, "http://127.0.0.1:1", 1, model), "--json").json
        return estimate

    long = told("stream = true\nmax_output_tokens = 300000")  # half of it is expected, in parts of 65,536
    assert long["prompts"] == 3
    assert long["steps"]["rest"]["prompts"] == 2
    first, rest = (long["steps"][step]["input_tokens"] for step in ("answer", "rest"))
    assert rest == pytest.approx(2 * first + 3 * 65_536, rel=0.01), "each reads again what was written"
    assert "rest" not in told("max_output_tokens = 500")["steps"]
    assert any("its rest would be others" in each for each in told("")["assumptions"])


def test_what_the_answers_of_a_run_took_is_expected_of_the_next(here: Path, cli: Callable[..., Ran]) -> None:
    with served(part_tokens=PART) as url:
        path = write(here, url, rows=30, model="max_output_tokens = 200")
        assert cli("run", path, "--yes", "--limit", "10").code == 0
        estimate = cli("estimate", path, "--json").json
        ran = cli("run", path, "--yes", "--json")
        before = 10 * estimate["prompts"] / 20
    assert ran.json["calls"] == pytest.approx(before + estimate["prompts"], rel=0.1)
    left = ran.json["cost_usd"] * 20 / 30
    assert estimate["cost_usd"]["expected"] == pytest.approx(left, rel=0.15)


# --- another client, and the emulator itself ---


@pytest.mark.parametrize("stream", [False, True])
def test_googles_sdk_goes_on_with_the_emulators_answers(stream: bool) -> None:
    with served(part_tokens=PART) as url:
        client = genai.Client(api_key="AQ.key", vertexai=False, http_options=types.HttpOptions(base_url=url))
        config = types.GenerateContentConfig(automatic_continuation=True)
        if stream:
            pieces = client.models.generate_content_stream(model=MODEL, contents=TEXT, config=config)
            text = "".join(each.text or "" for each in pieces)
        else:
            text = client.models.generate_content(model=MODEL, contents=TEXT, config=config).text or ""
        requests = stats(url)["requests"]
        client.close()
    with served() as url:
        client = genai.Client(api_key="AQ.key", vertexai=False, http_options=types.HttpOptions(base_url=url))
        assert text == client.models.generate_content(model=MODEL, contents=TEXT).text and requests > 2
        client.close()


def test_a_place_of_another_prompt_is_refused() -> None:
    with served(part_tokens=PART) as url:
        path = f"{url}/v1beta/models/{MODEL}:generateContent"

        def told(text: str, **config: Any) -> httpx.Response:
            body = {"contents": [{"parts": [{"text": text}]}], "generationConfig": config}
            return httpx.post(path, json=body, headers={"x-goog-api-key": "k"})

        token = told(TEXT).json()["candidates"][0]["continuationToken"]
        assert told(TEXT, continuationToken=token, maxOutputTokens=40_000).status_code == 200
        assert told(f"{TEXT} Again.", continuationToken=token).status_code == 400
        assert told(TEXT, continuationToken="bm90aGluZw==").status_code == 400
        assert told(TEXT, maxOutputTokens=40_000).status_code == 400
