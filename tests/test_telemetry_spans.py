"""Spans of requests, as OpenTelemetry's own exporters and a collector see them."""

import gzip
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import MODEL, TARGET, ask, opening
from commands import UNLIMITED, Ran, small_job
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from serving import served
from sessions import quiet, run_through

from pipeline.cli.monitoring import asks_for_spans
from pipeline.emulator import Emulator, EmulatorOptions, parse_faults
from pipeline.job import load
from pipeline.prompts import Params
from pipeline.records import Failure, Reply, Usage
from pipeline.run import prepare
from pipeline.store.batch_states import BatchState
from pipeline.telemetry import spans as telemetry
from pipeline.telemetry.spans import Spans

ANSWER = Reply(
    "a secret answer",
    "ok",
    finish_reason="STOP",
    usage=Usage(100, cached_tokens=40, output_tokens=20, thinking_tokens=5, tool_tokens=3),
    model="gemini-3.5-flash-lite-001",
    asked=MODEL,
    response_id="r-1",
    endpoint=TARGET.endpoint,
    latency_s=0.5,
    finished_at=1_800_000_000.0,
    cost_usd=Decimal("0.25"),
    attempts=2,
)
PROMPT = ask(7, "a secret prompt", params=Params(system="secret rules", temperature=0.5, max_output_tokens=64))


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def made(tell: Callable[[Spans], None]) -> list[ReadableSpan]:
    memory = InMemorySpanExporter()
    with Spans(memory) as spans:
        tell(spans)
    assert spans.lost == 0
    return list(memory.get_finished_spans())


def test_an_answer_is_a_span_as_the_conventions_name_it() -> None:
    (span,) = made(lambda spans: spans.answered(PROMPT, ANSWER))
    assert (span.name, span.kind, span.parent) == (f"generate_content {MODEL}", SpanKind.CLIENT, None)
    assert (span.end_time, span.start_time) == (1_800_000_000 * 10**9, 1_799_999_999_500_000_000)
    assert span.status.status_code is StatusCode.UNSET
    assert told(span) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.output.type": "text",
        "gen_ai.response.model": "gemini-3.5-flash-lite-001",
        "gen_ai.response.id": "r-1",
        "gen_ai.response.finish_reasons": ("STOP",),
        "gen_ai.usage.input_tokens": 103,
        "gen_ai.usage.output_tokens": 25,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "server.address": "example",
        "prompt_pipeline.lane": "standard",
        "prompt_pipeline.step": "answer",
        "prompt_pipeline.status": "ok",
        "prompt_pipeline.attempt": 2,
        "prompt_pipeline.cost_usd": 0.25,
    }


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure("rate_limit", "quota", "refused", http_status=429), "429"),
        (Failure("transient", "timeout", "no answer in time"), "timeout"),
        (Failure("transient", "malformed_reply", "no JSON", http_status=200), "malformed_reply"),
        (Failure("transient", "server", "odd", http_status=799), "_OTHER"),
    ],
)
def test_a_failed_request_is_a_span_with_its_error(failure: Failure, error: str) -> None:
    target = replace(TARGET, provider="openai", base_url="http://127.0.0.1:8080/v1", name="own")
    (span,) = made(lambda spans: spans.failed(PROMPT, target, failure, 3, 0.25))
    assert span.name == f"chat {MODEL}" and span.status.status_code is StatusCode.ERROR
    assert span.end_time and span.start_time and span.end_time - span.start_time == 250_000_000
    found = told(span)
    assert (found["error.type"], found.get("http.response.status_code")) == (error, failure.http_status)
    assert (found["gen_ai.provider.name"], found["server.address"], found["server.port"]) == (
        "openai",
        "127.0.0.1",
        8080,
    )
    assert (found["prompt_pipeline.attempt"], found["prompt_pipeline.target"]) == (3, "own")


BATCH = BatchState(
    number=3,
    attempt=1,
    file="prompt-pipeline-3-1",
    target="night",
    endpoint="gemini@example",
    account="a",
    model=MODEL,
    rows=9,
    lines=10,
    size_bytes=1000,
    sha256="0" * 64,
    input_tokens_est=100,
    worst_usd=None,
    changes=None,
    stage="taken",
    at=1_800_000_500.0,
    cut_at=1_799_990_000.0,
    asking_at=1_799_996_399.0,
    asked_at=1_799_996_400.0,
    ended_at=1_800_000_000.0,
    taken_at=1_800_000_500.0,
    name="batches/123",
    status="succeeded",
    ok=8,
    failed=1,
    missing=1,
    usd=Decimal("0.5"),
)


def test_a_batch_is_one_span_from_its_creation_to_its_end_and_its_lines_have_none() -> None:
    def tell(spans: Spans) -> None:
        spans.answered(PROMPT, replace(ANSWER, lane="batch"))
        spans.taken(BATCH, ANSWER.usage)

    (span,) = made(tell)
    assert (span.name, span.kind, span.parent) == (f"batch {MODEL}", SpanKind.CLIENT, None)
    assert (span.start_time, span.end_time) == (1_799_996_400 * 10**9, 1_800_000_000 * 10**9)
    assert span.status.status_code is StatusCode.UNSET
    assert told(span) == {
        "gen_ai.operation.name": "batch",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.id": "batches/123",
        "gen_ai.usage.input_tokens": 103,
        "gen_ai.usage.output_tokens": 25,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "server.address": "example",
        "prompt_pipeline.lane": "batch",
        "prompt_pipeline.target": "night",
        "prompt_pipeline.cost_usd": 0.5,
        **{f"prompt_pipeline.batch.{name}": 0 for name in ("refused", "late")},
        **{f"prompt_pipeline.batch.{name}": 1 for name in ("failed", "missing")},
        "prompt_pipeline.batch.number": 3,
        "prompt_pipeline.batch.lines": 10,
        "prompt_pipeline.batch.ok": 8,
    }


@pytest.mark.parametrize(("status", "error"), [("expired", "expired"), ("cancelled", "cancelled"), ("running", None)])
def test_a_batch_that_came_to_an_early_end_is_an_error(status: str, error: str | None) -> None:
    (span,) = made(lambda spans: spans.taken(replace(BATCH, status=status, usd=None, ended_at=None), Usage()))
    assert told(span).get("error.type") == error and "prompt_pipeline.cost_usd" not in told(span)
    assert (span.status.status_code is StatusCode.ERROR) == (error is not None)
    assert span.end_time == 1_800_000_500 * 10**9, "nobody said when it ended"


def test_a_run_over_batches_tells_each_of_them_with_what_it_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.key")
    monkeypatch.setattr("pipeline.batch.watching.POLL_S", (0.1, 0.2))
    with served(batch=True, batch_pending_s=0.1, batch_run_s=0.1, batch_spread=1.0) as url:
        job = small_job(tmp_path, f'{UNLIMITED}\n[endpoint]\nbase_url = "{url}"\n')
        job.write_text(job.read_text().replace("[model]\n", '[model]\nlane = "batch"\n'))
        memory = InMemorySpanExporter()
        with Spans(memory) as spans:
            ended = run_through(prepare.prepare(load(job), prepare.Options()), spans.watched(quiet))
    (span,) = memory.get_finished_spans()
    found = told(span)
    assert ended.exit_code == 0 and span.name.startswith("batch ")
    assert (found["prompt_pipeline.batch.lines"], found["prompt_pipeline.batch.ok"]) == (6, 6)
    assert found["gen_ai.usage.input_tokens"] == ended.summary.usage.input_tokens > 0
    assert found["prompt_pipeline.run"] == "small" and found["gen_ai.response.id"].startswith("batches/")
    assert span.end_time and span.start_time and span.end_time > span.start_time


def test_a_run_tells_each_of_its_requests_and_no_word_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.key")
    emulator = Emulator(EmulatorOptions(marked=False, model_version=None, faults=parse_faults("400*1")))
    session = prepare.prepare(load(small_job(tmp_path, UNLIMITED)), prepare.Options())
    memory = InMemorySpanExporter()
    with Spans(memory) as spans:
        ended = run_through(session, spans.watched(quiet), opening(httpx.ASGITransport(emulator)))
    found = [told(span) for span in memory.get_finished_spans()]
    answered = [each for each in found if "error.type" not in each]
    assert (len(found), len(answered)) == (6, ended.summary.calls) == (6, 5)
    assert sum(each["gen_ai.usage.input_tokens"] for each in answered) == ended.summary.usage.input_tokens
    assert {each["prompt_pipeline.run"] for each in found} == {"small"}
    everything = repr([span.to_json() for span in memory.get_finished_spans()])
    assert not [word for word in ("alpha", "Say", "AQ.key") if word in everything]


class Collector(BaseHTTPRequestHandler):
    """Takes what OTLP exporters post, as a collector does."""

    status = 200
    posted: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.append((self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def collecting(status: int = 200) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    posted: list[tuple[str, bytes]] = []
    handler = type("Taking", (Collector,), {"status": status, "posted": posted})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", posted
        server.shutdown()


def test_the_command_sends_spans_where_the_environment_says(
    tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with collecting() as (url, posted):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=night")
        ran = cli("run", small_job(tmp_path, UNLIMITED), "--offline")
    assert ran.code == 0 and "hint" not in ran.err
    assert {path for path, _ in posted} == {"/v1/traces"}
    requests = [ExportTraceServiceRequest.FromString(body) for _, body in posted]
    resources = [each for request in requests for each in request.resource_spans]
    named = {item.key: item.value.string_value for item in resources[0].resource.attributes}
    assert (named["service.name"], named["deployment.environment.name"]) == ("prompt-pipeline", "night")
    assert sum(len(scope.spans) for each in resources for scope in each.scope_spans) == 6


def test_a_run_by_several_workers_sends_the_spans_of_all_from_one_place(
    tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.fleet.shards.LEAST_ROWS", 3)
    with collecting() as (url, posted), served(faults="503*1") as service:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        ran = cli("run", small_job(tmp_path, UNLIMITED, template="Say the word {{ word }}"), "--workers", "2", "--yes")
    assert ran.code == 0, ran.err
    requests = [ExportTraceServiceRequest.FromString(body) for _, body in posted]
    resources = [each for request in requests for each in request.resource_spans]
    found = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    assert len({str(each.resource) for each in resources}) == 1, "one program tells them"
    assert Counter(span.status.code for span in found) == {0: 6, 2: 1}
    told = b"".join(body for _, body in posted)
    assert not [word for word in (b"Say the word", b"alpha", b"AQ.test") if word in told]
    assert len(list(Path("runs/small/shards").iterdir())) == 2


@pytest.mark.parametrize("status", [400, 503, None])
def test_a_collector_that_takes_nothing_costs_the_run_nothing_but_a_word(
    tmp_path: Path,
    cli: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(telemetry, "FLUSH_S", 0.5)
    with collecting(status or 200) as (url, _):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url if status else "http://127.0.0.1:9")
        began = time.monotonic()
        ran = cli("run", small_job(tmp_path, UNLIMITED), "--offline")
    assert ran.code == 0 and time.monotonic() - began < 5
    assert "6 ok" in ran.err and "6 spans did not reach" in ran.err
    assert "Transient" not in ran.err and "Failed to export" not in ran.err and "Retrying" not in ran.err


def test_the_end_of_a_run_waits_for_spans_so_long_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "FLUSH_S", 0.2)
    released = threading.Event()

    class Hanging(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            released.wait(10)
            return SpanExportResult.FAILURE

        def shutdown(self) -> None:
            return

    began = time.monotonic()
    with Spans(Hanging()) as spans:
        spans.answered(PROMPT, ANSWER)
    assert time.monotonic() - began < 2 and spans.lost == 1
    released.set()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://there"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://there"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://there"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
    ],
)
def test_spans_are_made_where_the_environment_asks_for_them(
    monkeypatch: pytest.MonkeyPatch, named: dict[str, str], expected: bool
) -> None:
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert asks_for_spans() is expected


def test_a_variable_that_makes_no_sense_ends_no_run(
    tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000")
    ran = cli("run", small_job(tmp_path, UNLIMITED), "--offline")
    assert ran.code == 0 and "no spans are sent" in ran.err


def test_without_the_extra_the_run_goes_on_and_says_what_sends_spans(
    tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "pipeline.telemetry.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    ran = cli("run", small_job(tmp_path, UNLIMITED), "--offline")
    assert ran.code == 0 and "opentelemetry-sdk<2,>=1.45" in ran.err
