"""Metrics of a run, as Prometheus' own parsers read them."""

import ast
import gzip
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import anyio
import anyio.to_thread
import pytest
from asking import MODEL, TARGET, ask
from commands import UNLIMITED, Ran, small_job
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from promtool import promtool
from serving import served as emulated
from sessions import quiet, run_through

from pipeline.dispatch.desk import Desk
from pipeline.fleet import shards
from pipeline.job import load
from pipeline.quota.standing import Meter, QuotaStanding
from pipeline.records import Failure, Reply, Usage
from pipeline.run import prepare
from pipeline.run.engine import Monitor
from pipeline.telemetry.metrics import Metrics
from pipeline.telemetry.serving import listening, metered, served, url_of

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
ANSWER = Reply(
    "said",
    "ok",
    usage=Usage(100, cached_tokens=40, output_tokens=20, thinking_tokens=5, tool_tokens=3),
    endpoint=TARGET.endpoint,
    asked=MODEL,
    raw=b"{}",
    latency_s=0.5,
    cost_usd=Decimal("0.25"),
)
REFUSED = Failure("rate_limit", "quota", "refused", http_status=429)
STANDING = QuotaStanding("main", Meter(90, 100, True), None, Meter(4, 500, False), 3, 64, "requests", 1_800_000_000.0)


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum over the series of a name that have these labels."""
    return sum(value for (own, told), value in samples.items() if own == name and labels.items() <= dict(told).items())


def running() -> Monitor:
    """A run of ten rows with a quota, in its middle."""
    monitor = Monitor(10, 20, run="summarize", began_usd=Decimal(1), cost_usd=Decimal(1))
    told = {"standing": (STANDING,), "waits_until": None, "in_flight": 3, "ready": 7, "rate_limited": 2}
    monitor.desk = cast(Desk, SimpleNamespace(**told))
    monitor.failures["truncated"] = 1
    monitor.bound_s = {"rpm": 12.5, "source": 1.5}
    monitor.alerts = {"errors": "6 of the last 20 rows failed"}
    return monitor


def metrics_of(monitor: Monitor) -> Metrics:
    metrics = Metrics(monitor)
    monitor.observers.append(metrics)
    return metrics


def read(url: str, **headers: str) -> tuple[int, str]:
    """In a thread of its own: whoever answers is in the loop."""
    try:
        response = urlopen(Request(url, headers=headers), timeout=10)
    except HTTPError as refused:
        response = refused
    with response:
        body = response.read()
    packed = response.headers.get("Content-Encoding") == "gzip"
    return response.status, (gzip.decompress(body) if packed else body).decode()


def asked(registry: CollectorRegistry, **headers: str) -> tuple[int, str]:
    async def main() -> tuple[int, str]:
        listener = listening("127.0.0.1", 0)
        async with served(registry, listener):
            return await anyio.to_thread.run_sync(lambda: read(url_of(listener), **headers))

    return anyio.run(main)


def test_what_a_run_counts_is_what_prometheus_reads() -> None:
    monitor = running()
    metrics = metrics_of(monitor)
    monitor.bought(ask(0), ANSWER, True)
    monitor.bought(ask(1), replace(ANSWER, status="truncated", lane="batch", latency_s=0.0), True)
    monitor.failed(ask(2), TARGET, REFUSED, 1, 0.1)
    status, text = asked(metrics.registry)
    found = samples_of(text)
    assert status == 200
    assert total(found, "prompt_pipeline_calls_total") == total(found, "prompt_pipeline_calls_done") == 2
    assert total(found, "prompt_pipeline_calls_total", lane="batch", status="truncated") == 1
    assert total(found, "gen_ai_client_inference_usage_input_tokens_total", gen_ai_request_model=MODEL) == 206
    assert total(found, "gen_ai_client_inference_usage_cache_read_input_tokens_total") == 80
    assert total(found, "gen_ai_client_inference_usage_output_tokens_total", gen_ai_provider_name="gcp.gemini") == 50
    assert total(found, "gen_ai_client_inference_usage_reasoning_output_tokens_total") == 10
    assert total(found, "prompt_pipeline_calls_cost_usd_total") == total(found, "prompt_pipeline_cost_usd_total") == 0.5
    assert total(found, "prompt_pipeline_run_cost_usd") == 1.5
    failed = {"target": "gemini@example", "model": MODEL, "lane": "standard", "kind": "rate_limit", "error_type": "429"}
    assert total(found, "prompt_pipeline_requests_failed_total", **failed) == 1
    assert total(found, "gen_ai_client_inference_duration_seconds_count") == 2, "a batch has no latency"
    assert total(found, "gen_ai_client_inference_duration_seconds_sum", error_type="") == 0.5
    assert total(found, "gen_ai_client_inference_duration_seconds_bucket", le="0.64", error_type="") == 1
    assert total(found, "gen_ai_client_inference_duration_seconds_bucket", le="0.32", error_type="") == 0
    assert total(found, "prompt_pipeline_rows", status="pending") == total(found, "prompt_pipeline_rows") == 10
    minute = {"target": "main", "meter": "requests", "window": "minute"}
    assert total(found, "prompt_pipeline_quota_used", **minute) == 90
    assert total(found, "prompt_pipeline_quota_limit", **minute) == 100
    assert total(found, "prompt_pipeline_quota_limit_told", meter="requests", window="day") == 0
    assert (
        total(found, "prompt_pipeline_quota_binds") == total(found, "prompt_pipeline_quota_binds", by="requests") == 1
    )
    assert total(found, "prompt_pipeline_requests_in_flight", target="main") == 3
    assert total(found, "prompt_pipeline_quota_opens_timestamp_seconds") == 1_800_000_000
    assert total(found, "prompt_pipeline_bound_seconds_total", by="rpm") == 12.5
    assert total(found, "prompt_pipeline_alert", alert="errors") == total(found, "prompt_pipeline_alert") == 1
    assert total(found, "prompt_pipeline_run_info", run="summarize", rehearsal="false") == 1


def test_what_nobody_knows_has_no_sample_and_what_waits_says_until_when() -> None:
    monitor = running()
    metrics = metrics_of(monitor)
    found = samples_of(generate_latest(metrics.registry).decode())
    assert not {name for name, _ in found} & {"prompt_pipeline_eta_seconds", "prompt_pipeline_budget_left_usd"}
    until = time.time() + 3600
    waiting = {"standing": (replace(STANDING, binds="day"),), "waits_until": until, "in_flight": 0, "ready": 7}
    monitor.desk = cast(Desk, SimpleNamespace(**waiting, rate_limited=0))
    found = samples_of(generate_latest(metrics.registry).decode())
    assert total(found, "prompt_pipeline_waiting", reason="day_quota") == total(found, "prompt_pipeline_waiting") == 1
    assert total(found, "prompt_pipeline_waits_until_timestamp_seconds") == pytest.approx(until)


def test_a_service_that_lies_makes_no_new_series() -> None:
    monitor = running()
    metrics = metrics_of(monitor)
    for number in range(300):
        odd = replace(ANSWER, model=f"model-{number}", finish_reason=f"ODD_{number}", usage=Usage(-5, output_tokens=-1))
        monitor.bought(ask(number), replace(odd, cost_usd=None), True)
        monitor.failures[f"ODD_{number}"] += 1
        monitor.failed(ask(number), TARGET, replace(REFUSED, http_status=600 + number), 1, 0.1)
    found = samples_of(generate_latest(metrics.registry).decode())
    assert len(found) < 150
    assert total(found, "prompt_pipeline_rows_failed_total", cause="other") == 300
    assert total(found, "prompt_pipeline_requests_failed_total", error_type="_OTHER") == 300
    assert total(found, "prompt_pipeline_calls_unpriced_total") == 300


def test_openmetrics_and_gzip_are_spoken_where_they_are_asked_for() -> None:
    monitor = running()
    metrics = metrics_of(monitor)
    monitor.bought(ask(0), ANSWER, True)
    monitor.failed(ask(2), TARGET, REFUSED, 1, 0.1)
    _, text = asked(
        metrics.registry, **{"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}
    )
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}
    assert families["prompt_pipeline_cost_usd"].type == "counter"
    assert families["gen_ai_client_inference_duration_seconds"].type == "histogram"
    assert [family for family in families.values() if not family.documentation] == []


def test_a_page_in_a_browser_reads_no_metrics() -> None:
    status, text = asked(metrics_of(running()).registry, Host="evil.example")
    assert status == 403 and "prompt_pipeline" not in text


def test_promtool_finds_nothing_to_say_against_the_names() -> None:
    monitor = running()
    metrics = metrics_of(monitor)
    monitor.bought(ask(0), ANSWER, True)
    monitor.failed(ask(2), TARGET, REFUSED, 1, 0.1)
    text = generate_latest(metrics.registry)
    found = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (found.returncode, found.stdout + found.stderr) == (0, b"")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_whole_run_tells_what_the_emulator_billed_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "LEAST_ROWS", 2)
    monkeypatch.setenv("GEMINI_API_KEY", "AQ.key")
    session = prepare.prepare(load(small_job(tmp_path, UNLIMITED)), prepare.Options())
    seen: Samples = {}

    async def watch(monitor: Monitor) -> None:
        metrics = metrics_of(monitor)
        try:
            await anyio.sleep_forever()
        finally:
            seen.update(samples_of(generate_latest(metrics.registry).decode()))

    with emulated(faults="400*1,503*1") as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ended = run_through(session, watch, workers=workers)
    assert total(seen, "prompt_pipeline_rows", status="ok") == ended.summary.outcomes["ok"] == 5
    assert total(seen, "prompt_pipeline_rows_failed_total", cause="invalid_request") == 1
    assert total(seen, "prompt_pipeline_calls_total") == ended.summary.calls == 5
    assert total(seen, "gen_ai_client_inference_usage_input_tokens_total") == ended.summary.usage.input_tokens
    assert total(seen, "prompt_pipeline_cost_usd_total") == pytest.approx(float(ended.summary.cost_usd or 0))
    assert total(seen, "prompt_pipeline_requests_failed_total", kind="reject", error_type="400") == 1
    assert total(seen, "prompt_pipeline_requests_failed_total", kind="transient", error_type="503") == 1
    assert total(seen, "gen_ai_client_inference_duration_seconds_count") == 7


def test_the_port_is_free_again_when_the_run_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listener = listening("127.0.0.1", 0)
    host, port = listener.getsockname()
    session = prepare.prepare(load(small_job(tmp_path, UNLIMITED)), prepare.Options(offline=True))
    assert run_through(session, metered(quiet, listener)).exit_code == 0
    socket.create_server((host, port)).close()


def test_the_command_says_where_the_metrics_are(
    tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("run", small_job(tmp_path, UNLIMITED), "--offline", "--metrics-port", 0)
    assert ran.code == 0 and ran.err.startswith("metrics at http://127.0.0.1:")


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (["--metrics-host", "0.0.0.0"], "--metrics-port is not there", "--metrics-port"),
        (["--metrics-port", "TAKEN"], "somebody listens there\nNothing was sent.", "--metrics-port 0"),
        (["--metrics-port", "0", "--metrics-host", "no.such.invalid"], "Nothing was sent.", "--metrics-host"),
    ],
)
def test_a_port_that_cannot_be_had_is_told_before_anything_is_sent(
    tmp_path: Path,
    cli: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        job = small_job(tmp_path, UNLIMITED)
        ran = cli("run", job, "--offline", *(port if flag == "TAKEN" else flag for flag in flags))
    assert ran.code == 2 and message in ran.err and hint in ran.err
    assert not (tmp_path / "runs").exists()


def test_without_the_extra_the_error_names_it(
    tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in [name for name in sys.modules if name.startswith(("pipeline.telemetry", "prometheus_client"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "prometheus_client", cast(Any, None))
    ran = cli("run", small_job(tmp_path, UNLIMITED), "--offline", "--metrics-port", 0)
    assert ran.code == 2 and "prometheus-client<0.27,>=0.26" in ran.err
    assert not (tmp_path / "runs").exists()


def test_a_run_that_nobody_monitors_imports_none_of_it(root: Path) -> None:
    users = {path for path in (root / "pipeline").rglob("*.py") if "pipeline.telemetry" in path.read_text("utf-8")}
    assert {path.name for path in users if path.parent.name != "telemetry"} == {"monitoring.py"}
    tree = ast.parse((root / "pipeline/cli/monitoring.py").read_text("utf-8"))
    assert "telemetry" not in "".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.ImportFrom))
