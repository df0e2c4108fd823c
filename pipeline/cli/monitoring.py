"""What of a run other programs are told while it goes on: `--metrics-port`, and spans where the environment asks."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import JobError
from pipeline.installed import installing

if TYPE_CHECKING:
    from pipeline.run.around import Watch

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@contextmanager
def monitored(watch: "Watch", port: int | None, host: str | None) -> "Iterator[Watch]":
    """What watches a run, with what other programs are told of it.

    Raises `JobError` where an extra is missing that a flag needs, `InputError` where the port cannot be had.
    """
    if host is not None and port is None:
        raise JobError("--metrics-host says where metrics are served, and --metrics-port is not there", "add it")
    with ExitStack() as closing:
        if port is not None:
            watch = _metered(watch, port, host or "127.0.0.1", closing)
        if asks_for_spans():
            watch = _traced(watch, closing)
        yield watch


def asks_for_spans() -> bool:
    """Whether the environment names a collector, and does not say that it is to be left alone."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporters == "otlp" or (not exporters and any(os.environ.get(name) for name in _ENDPOINTS))


def _metered(watch: "Watch", port: int, host: str, closing: ExitStack) -> "Watch":
    from pipeline import console

    try:
        from pipeline.telemetry import serving
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise JobError(
            "--metrics-port needs prometheus_client, which is not installed",
            f"`{installing('metrics')}`",
        ) from None
    listener = closing.enter_context(serving.listening(host, port))
    console.err.print(f"metrics at {serving.url_of(listener)}")
    return serving.metered(watch, listener)


def _traced(watch: "Watch", closing: ExitStack) -> "Watch":
    from pipeline import console

    try:
        from pipeline.telemetry.spans import Spans

        spans = Spans()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        console.show_hint(f"OTEL_… asks for spans: `{installing('otel')}` has what sends them")
        return watch
    except Exception as error:  # a variable that is no number, and the like: nothing to the run
        console.show_hint(f"no spans are sent: what OTEL_… says cannot be used ({type(error).__name__})")
        return watch

    def tell() -> None:
        if spans.lost:
            console.show_hint(f"{console.things(spans.lost, 'span')} did not reach where OTEL_… has them sent")

    closing.callback(tell)
    closing.enter_context(spans)
    return spans.watched(watch)
