"""A span for each live request and for each batch, by the GenAI conventions, sent as the `OTEL_…` variables say."""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple, Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from pipeline.prompts import Params, Prompt
from pipeline.records import Failure, Reply, Usage
from pipeline.run.around import Watch
from pipeline.run.engine import Monitor
from pipeline.store.batch_states import BatchState
from pipeline.targets import Target
from pipeline.telemetry.naming import address_of, error_type, operation_name, provider_name, speaker_of
from pipeline.version import __version__

FLUSH_S = 5.0
"""The longest that the end of a run waits for spans to be delivered; what is left then is lost, and told."""
_NS = 1_000_000_000
_NO_PARENT = Context()
_BATCH = ("number", "lines", "ok", "failed", "missing", "refused", "late")
_IN_VAIN = frozenset({"failed", "expired", "cancelled"})

Attributes = Mapping[str, AttributeValue]


class Spans:
    """Makes the spans, and knows how many were not delivered. It is an observer of requests.

    The end of its block delivers what is left, within `FLUSH_S`.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """Without an exporter they go where the environment says; raises what its values may raise."""
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(logging.NullHandler())
        logger.propagate = False  # what it says would stand in the middle of a run's block
        self._delivery = _Delivery(exporter or OTLPSpanExporter())
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._delivery))
        self._tracer = self._provider.get_tracer("prompt-pipeline", __version__)
        self._run: Attributes = {}
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_S)
        if last.is_alive():
            self._delivery.shutdown()  # it tries again no more

    @property
    def lost(self) -> int:
        """Spans that did not reach who was to have them."""
        return self._made - self._delivery.done

    def watched(self, watch: Watch) -> Watch:
        """What watches a run, with its requests told as spans."""

        async def watching(monitor: Monitor) -> None:
            self._run = {"prompt_pipeline.run": monitor.run, "prompt_pipeline.rehearsal": monitor.rehearsal}
            monitor.observers.append(self)
            await watch(monitor)

        return watching

    def answered(self, prompt: Prompt, reply: Reply) -> None:
        """The span of an answer; a line of a batch has none, as nobody knows when the service worked on it."""
        if reply.lane == "batch":
            return
        attributes: dict[str, AttributeValue] = {
            "gen_ai.response.model": reply.model,
            "gen_ai.response.id": reply.response_id,
            **_usage(reply.usage),
            "prompt_pipeline.status": reply.status,
            "prompt_pipeline.attempt": reply.attempts + reply.rate_limited,
        }
        if reply.finish_reason:
            attributes["gen_ai.response.finish_reasons"] = (reply.finish_reason,)
        if reply.cost_usd is not None:
            attributes["prompt_pipeline.cost_usd"] = float(reply.cost_usd)
        asked = _asked(reply.endpoint, reply.asked, reply.target, reply.lane)
        self._tell(asked, _of(prompt) | attributes, reply.finished_at or time.time(), reply.latency_s)

    def failed(self, prompt: Prompt, target: Target, failure: Failure, attempt: int, seconds: float) -> None:
        """The span of a request without an answer."""
        error = error_type(failure)
        attributes: dict[str, AttributeValue] = {"error.type": error, "prompt_pipeline.attempt": attempt}
        if failure.http_status is not None:
            attributes["http.response.status_code"] = failure.http_status
        asked = _asked(target.endpoint, target.model, target.name, target.lane)
        self._tell(asked, _of(prompt) | attributes, time.time(), seconds)

    def taken(self, batch: BatchState, usage: Usage) -> None:
        """The span of a batch, from when it was handed in until the service was through with it."""
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "batch",  # the conventions have no name for it, and allow others
            "gen_ai.response.id": batch.name,
            **_usage(usage),
            **{f"prompt_pipeline.batch.{name}": getattr(batch, name) for name in _BATCH},
        }
        if batch.usd is not None:
            attributes["prompt_pipeline.cost_usd"] = float(batch.usd)
        if batch.status in _IN_VAIN:
            attributes["error.type"] = batch.status
        asked = _asked(batch.endpoint, batch.model, batch.target, "batch")._replace(span=f"batch {batch.model}")
        ended_at = batch.ended_at or batch.taken_at or time.time()
        began_at = batch.asked_at or batch.asking_at or batch.cut_at
        self._tell(asked, attributes, ended_at, max(0.0, ended_at - began_at))

    def _tell(self, asked: "_Asked", attributes: Attributes, ended_at: float, seconds: float) -> None:
        with suppress(Exception):  # whatever is wrong with a span is nothing to the run
            ended_ns = int(ended_at * _NS)
            known = {**asked.attributes, **self._run, **attributes}
            span = self._tracer.start_span(
                asked.span, _NO_PARENT, SpanKind.CLIENT, known, start_time=ended_ns - int(seconds * _NS)
            )
            self._made += span.is_recording()
            if "error.type" in attributes:
                span.set_status(StatusCode.ERROR)
            span.end(ended_ns)


class _Delivery(SpanExporter):
    """Counts what the exporter delivers."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.done = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.done += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _resource() -> Resource:
    """Who tells: the program, unless the environment gives it another name."""
    named = "OTEL_SERVICE_NAME" in os.environ or f"{SERVICE_NAME}=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({SERVICE_VERSION: __version__} | ({} if named else {SERVICE_NAME: "prompt-pipeline"}))


class _Asked(NamedTuple):
    span: str
    attributes: Attributes


@lru_cache(maxsize=256)
def _asked(endpoint: str, model: str, target: str, lane: str) -> _Asked:
    """What is the same for all requests to one target in one lane."""
    provider, address = speaker_of(endpoint), address_of(endpoint)
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation_name(provider),
        "gen_ai.provider.name": provider_name(provider),
        "gen_ai.request.model": model,
        "server.address": address.host,
        "prompt_pipeline.lane": lane,
    }
    if address.port is not None:
        attributes["server.port"] = address.port
    if target:
        attributes["prompt_pipeline.target"] = target
    return _Asked(f"{operation_name(provider)} {model}", attributes)


def _usage(usage: Usage) -> dict[str, AttributeValue]:
    told = {
        "gen_ai.usage.input_tokens": usage.input_tokens + usage.tool_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens + usage.thinking_tokens,
    }
    if usage.cached_tokens:
        told["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if usage.thinking_tokens:
        told["gen_ai.usage.reasoning.output_tokens"] = usage.thinking_tokens
    return {**told}


def _of(prompt: Prompt) -> dict[str, AttributeValue]:
    return {**_params(prompt.params), "prompt_pipeline.step": prompt.step}


@lru_cache(maxsize=256)
def _params(params: Params) -> Attributes:
    """The params that are set; none of them is text of a prompt."""
    said = {
        "gen_ai.request.max_tokens": params.max_output_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.reasoning.level": params.thinking if isinstance(params.thinking, str) else None,
        "gen_ai.output.type": "json" if params.schema or params.response_mime_type == "application/json" else "text",
    }
    return {name: value for name, value in said.items() if value is not None}
