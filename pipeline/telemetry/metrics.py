"""The metrics of a run, for Prometheus: summed as requests end, and made when somebody asks, as the rest is.

Names of the GenAI conventions where they have one, else `prompt_pipeline_…`; base units, and `_usd` for money. Labels
are names of the job file and words of ours, so that their number is bounded, whatever a service answers.
"""

import time
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pipeline.prompts import Prompt
from pipeline.quota.standing import Binds, QuotaStanding
from pipeline.records import CAUSES, STATUSES, Failure, Reply, Usage
from pipeline.run.engine import Monitor
from pipeline.run.status import Recent, Status, Waits, status_of
from pipeline.store.batch_states import BatchState
from pipeline.store.export import PENDING
from pipeline.targets import Target
from pipeline.telemetry.naming import error_type, operation_name, provider_name, speaker_of
from pipeline.version import __version__

_BUCKETS_S = tuple(0.01 * 2**power for power in range(18))
"""Of the conventions, 0.01 to 81.92, and on to 1,310.72: flex may take 15 minutes."""
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "target", "lane")
_OWN = ("target", "model", "lane")
_BINDS: tuple[Binds, ...] = tuple(bind for bind in get_args(Binds) if bind)
_WAITS: tuple[Waits, ...] = tuple(waits for waits in get_args(Waits) if waits)

_TOKENS = {
    "input": "Tokens of input as billed, cached ones and those of tools included.",
    "cache_read_input": "Of the input, tokens that the service had cached.",
    "output": "Tokens of output as billed, those of thinking included.",
    "reasoning_output": "Of the output, tokens of thinking.",
}


class _Named(NamedTuple):
    """Whose requests are counted together."""

    provider: str
    target: str
    model: str
    lane: str

    @property
    def own(self) -> tuple[str, str, str]:
        """The values of `_OWN`."""
        return self.target, self.model, self.lane

    @property
    def gen_ai(self) -> tuple[str, ...]:
        """The values of `_GEN_AI`."""
        return operation_name(self.provider), provider_name(self.provider), self.model, self.target, self.lane


class _Times:
    """A histogram of seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(_BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def put(self, family: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        """Add it to a family, as Prometheus has it: each bucket with those below."""
        bounds = (*map(str, _BUCKETS_S), "+Inf")
        family.add_metric(labels, list(zip(bounds, accumulate(self._counts), strict=True)), self._sum_s)


class _Answers:
    """Sums over answers."""

    def __init__(self) -> None:
        self.times = _Times()
        self.statuses = Counts[str]()
        self.input = self.cached = self.output = self.thought = 0
        self.cost_usd = 0.0

    def add(self, reply: Reply) -> None:
        """Count one; a count that no service can mean counts nothing, as a counter does not fall."""
        usage = reply.usage
        self.input += max(0, usage.input_tokens + usage.tool_tokens)
        self.cached += max(0, usage.cached_tokens)
        self.output += max(0, usage.output_tokens + usage.thinking_tokens)
        self.thought += max(0, usage.thinking_tokens)
        self.statuses[reply.status] += 1
        if reply.cost_usd:
            self.cost_usd += max(0.0, float(reply.cost_usd))
        if reply.lane != "batch":
            self.times.add(reply.latency_s)


class Metrics(Collector):
    """All metrics of one run. It is an observer of its requests, and read by `registry`."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor, self._recent = monitor, Recent()
        rehearsal = str(monitor.rehearsal).lower()
        self._info = {"run": monitor.run, "rehearsal": rehearsal, "version": __version__}
        self._answers: dict[tuple[str, str, str, str], _Answers] = {}
        self._failed = Counts[tuple[_Named, str, str]]()
        self._failed_times: dict[tuple[_Named, str], _Times] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def answered(self, prompt: Prompt, reply: Reply) -> None:
        """Count an answer."""
        key = reply.endpoint, reply.target, reply.asked, reply.lane
        if key not in self._answers:
            self._answers[key] = _Answers()
        self._answers[key].add(reply)

    def failed(self, prompt: Prompt, target: Target, failure: Failure, attempt: int, seconds: float) -> None:
        """Count a request without an answer."""
        named, error = _Named(target.provider, target.label, target.model, target.lane), error_type(failure)
        self._failed[named, failure.kind, error] += 1
        self._failed_times.setdefault((named, error), _Times()).add(seconds)

    def taken(self, batch: BatchState, usage: Usage) -> None:
        """Its answers are counted."""

    def collect(self) -> Iterator[Metric]:
        """How the run stands now."""
        status = status_of(self._monitor, self._recent.since(self._monitor), time.time())
        yield InfoMetricFamily("prompt_pipeline_run", "Which run this is.", self._info)
        yield from self._requests()
        yield from self._rows_and_calls(status)
        yield from self._money(status)
        yield from _quotas(status.quotas)
        yield from _waits(status)
        yield _counters(
            "prompt_pipeline_bound_seconds",
            "Why it is not faster: seconds of the targets that had work, by what they waited for.",
            "by",
            self._monitor.bound_s,
        )
        passed = dict.fromkeys(status.alerts, 1)
        yield _gauges("prompt_pipeline_alert", "1: this threshold of [alerts] is passed.", "alert", passed)

    def _requests(self) -> Iterator[Metric]:
        seconds = HistogramMetricFamily(
            "gen_ai_client_inference_duration_seconds",
            "How long a request took, from leaving to its whole answer or its failure; batches are not in it.",
            labels=(*_GEN_AI, "error_type"),
        )
        tokens = {
            name: CounterMetricFamily(f"gen_ai_client_inference_usage_{name}_tokens", help, labels=_GEN_AI)
            for name, help in _TOKENS.items()
        }
        calls = CounterMetricFamily(
            "prompt_pipeline_calls",
            "Answers that were paid for, in batches too, by what became of them.",
            labels=(*_OWN, "status"),
        )
        cost = CounterMetricFamily(
            "prompt_pipeline_calls_cost_usd", "What they cost; those of unknown price count nothing.", labels=_OWN
        )
        failed = CounterMetricFamily(
            "prompt_pipeline_requests_failed",
            "Requests without an answer, most of which are made again: refusals for quota, failures.",
            labels=(*_OWN, "kind", "error_type"),
        )
        for (endpoint, target, model, lane), sums in self._answers.items():
            named = _Named(speaker_of(endpoint), target or endpoint, model, lane)
            counted = (sums.input, sums.cached, sums.output, sums.thought)
            for family, number in zip(tokens.values(), counted, strict=True):
                family.add_metric(named.gen_ai, number)
            for status, number in sums.statuses.items():
                calls.add_metric((*named.own, status), number)
            cost.add_metric(named.own, sums.cost_usd)
            if lane != "batch":
                sums.times.put(seconds, (*named.gen_ai, ""))
        for (named, kind, error), number in self._failed.items():
            failed.add_metric((*named.own, kind, error), number)
        for (named, error), times in self._failed_times.items():
            times.put(seconds, (*named.gen_ai, error))
        yield from (seconds, *tokens.values(), calls, cost, failed)

    def _rows_and_calls(self, status: Status) -> Iterator[Metric]:
        monitor, saved = self._monitor, self._monitor.saved
        rows_of: dict[str, int] = {each: status.outcomes.get(each, 0) for each in STATUSES}
        rows_of[PENDING] = max(0, status.rows - sum(rows_of.values()))
        yield _gauges("prompt_pipeline_rows", "Rows of the table by what became of them.", "status", rows_of)
        causes = Counts[str]()
        for cause, number in status.failures.items():
            causes[cause if cause in CAUSES else "other"] += number  # else it is a word of the service
        yield _counters("prompt_pipeline_rows_failed", "Rows of this session that are not ok.", "cause", causes)
        yield _gauge("prompt_pipeline_calls_done", "Calls with an answer, saved ones included.", status.calls)
        yield _gauge("prompt_pipeline_calls_planned", "Calls of this session, as planned.", status.calls_planned)
        yield _counters(
            "prompt_pipeline_calls_saved",
            "Calls that need not be made: answered in this run, by the cache, or by an earlier generation.",
            "by",
            {"identical": saved.identical, "cached": saved.cached, "kept": saved.kept},
        )
        yield _gauge("prompt_pipeline_prompts_waiting", "Prompts that wait to be sent.", status.waiting)
        yield _gauge("prompt_pipeline_batches_out", "Batches that are waited for.", status.batches_out)
        yield _gauge("prompt_pipeline_batch_lines_out", "Calls in batches that are waited for.", status.batch_lines)
        started = status.at_s - monitor.seconds
        yield _gauge("prompt_pipeline_session_start_timestamp_seconds", "When this session began.", started)
        yield _optional("prompt_pipeline_eta_seconds", "Time left; absent where it is not known.", status.eta_s)

    def _money(self, status: Status) -> Iterator[Metric]:
        spent = float(self._monitor.cost_usd - self._monitor.began_usd)
        yield CounterMetricFamily("prompt_pipeline_cost_usd", "What this session cost so far, in USD.", max(0.0, spent))
        yield CounterMetricFamily(
            "prompt_pipeline_calls_unpriced", "Answers whose price is unknown.", self._monitor.unpriced
        )
        yield _gauge("prompt_pipeline_run_cost_usd", "What the run cost, earlier sessions included.", status.cost_usd)
        yield _optional(
            "prompt_pipeline_run_cost_projected_usd", "What the run comes to; absent: unknown.", status.projected_usd
        )
        yield _optional("prompt_pipeline_budget_limit_usd", "The cap that is nearest; absent: none.", status.cap_usd)
        yield _optional("prompt_pipeline_budget_left_usd", "What that cap leaves.", status.left_usd)


def _quotas(quotas: tuple[QuotaStanding, ...]) -> Iterator[Metric]:
    used = GaugeMetricFamily(
        "prompt_pipeline_quota_used", "Used of a quota in the last minute, or of the day.", labels=_METER
    )
    limit = GaugeMetricFamily("prompt_pipeline_quota_limit", "As much may be used, as far as is known.", labels=_METER)
    told = GaugeMetricFamily(
        "prompt_pipeline_quota_limit_told",
        "1: that limit was configured or named; 0: it was learned.",
        labels=_METER,
    )
    binds = GaugeMetricFamily(
        "prompt_pipeline_quota_binds", "1: this keeps the target from being sent more.", labels=("target", "by")
    )
    flying = GaugeMetricFamily("prompt_pipeline_requests_in_flight", "Requests on their way.", labels=("target",))
    slots = GaugeMetricFamily(
        "prompt_pipeline_requests_in_flight_limit", "Requests that may be on their way.", labels=("target",)
    )
    opens = GaugeMetricFamily(
        "prompt_pipeline_quota_opens_timestamp_seconds", "When a day that is used up is over.", labels=("target",)
    )
    for quota in quotas:
        for meter, window, standing in (
            ("requests", "minute", quota.rpm),
            ("tokens", "minute", quota.tpm),
            ("requests", "day", quota.rpd),
        ):
            if standing is not None:
                used.add_metric((quota.target, meter, window), standing.used)
                limit.add_metric((quota.target, meter, window), standing.limit)
                told.add_metric((quota.target, meter, window), float(standing.told))
        for each in _BINDS:
            binds.add_metric((quota.target, each), float(quota.binds == each))
        flying.add_metric((quota.target,), quota.in_flight)
        slots.add_metric((quota.target,), quota.slots)
        if quota.opens_at_s is not None:
            opens.add_metric((quota.target,), quota.opens_at_s)
    yield from (used, limit, told, binds, flying, slots, opens)


_METER = ("target", "meter", "window")


def _waits(status: Status) -> Iterator[Metric]:
    waits: dict[str, int] = {each: int(status.waits_for == each) for each in _WAITS}
    yield _gauges("prompt_pipeline_waiting", "1: nothing is sent, for this reason.", "reason", waits)
    yield _optional(
        "prompt_pipeline_waits_until_timestamp_seconds",
        "Until when nothing is sent.",
        status.waits_until_s,
    )


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _optional(name: str, help: str, value: float | None) -> Metric:
    """A gauge without a sample where nobody knows its value."""
    family = GaugeMetricFamily(name, help)
    if value is not None:
        family.add_metric((), value)
    return family


def _gauges(name: str, help: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, help, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family
