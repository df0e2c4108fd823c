"""Serves the metrics of a run while it goes on: in its own event loop, so that what is read is of one moment."""

import errno
import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipeline.emulator.access import is_welcome
from pipeline.errors import InputError
from pipeline.run.around import Watch
from pipeline.run.engine import Monitor
from pipeline.telemetry.metrics import Metrics

PATH = "/metrics"
_BACKLOG = 16
_STOP_S = 0.2  # for an answer that is being read when the run ends


def listening(host: str, port: int) -> socket.socket:
    """A socket that waits for whoever asks; port 0 takes a free one. Raises `InputError`."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, ValueError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        told = "somebody listens there" if taken else error.strerror if isinstance(error, OSError) else ""
        reason = told or "no address of a machine"
        raise InputError(
            f"cannot serve metrics on {host} port {port}: {reason}\nNothing was sent.",
            "`--metrics-port 0` picks a free one" if taken else "leave `--metrics-host` out: it is this machine then",
        ) from None


def url_of(listener: socket.socket) -> str:
    """Where the metrics are."""
    host, port, *_ = listener.getsockname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"


def metered(watch: Watch, listener: socket.socket) -> Watch:
    """What watches a run, with its metrics served at `listener` meanwhile."""

    async def watched(monitor: Monitor) -> None:
        metrics = Metrics(monitor)
        monitor.observers.append(metrics)
        async with served(metrics.registry, listener):
            await watch(monitor)

    return watched


@asynccontextmanager
async def served(registry: CollectorRegistry, listener: socket.socket) -> AsyncIterator[None]:
    """Answer whoever asks at `listener`, until the block is left; the socket is closed with it.

    On an address of this machine it answers this machine alone, and no page in a browser.
    """
    bound = str(listener.getsockname()[0])

    async def metrics(request: web.Request) -> web.Response:
        if not is_welcome(bound, request.host, request.remote or "", private=False):
            raise web.HTTPForbidden
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body, headers = encode(registry), {"Content-Type": content_type}
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        return web.Response(body=body, headers=headers)

    app = web.Application()
    app.router.add_get(PATH, metrics)
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=_STOP_S)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=_BACKLOG).start()
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()
