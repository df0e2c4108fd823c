"""The emulator behind a real socket: rehearsals, tests in other processes, other people's clients."""

import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.emulator.app import Emulator
from pipeline.emulator.http import ABORT, Receive, Scope, Send
from pipeline.emulator.options import EmulatorOptions

if TYPE_CHECKING:
    from uvicorn import Server

_BACKLOG = 2_048  # connections that may wait to be accepted: a client opens hundreds at once
_STOP_S = 1  # for answers in flight at the end
_LINGER_OFF = struct.pack("ii", 1, 0)  # closing such a socket sends RST


def serve(
    options: EmulatorOptions | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve an emulator until SIGINT or SIGTERM; port 0 takes a free one; `ready` gets the base URL once it listens.

    Raises OSError when the address cannot be had.
    """
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=_BACKLOG) as listener:
        app = _Resettable(Emulator(options))
        config = uvicorn.Config(
            app,
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="critical",  # a response that is broken on purpose is no error
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=600,
            timeout_graceful_shutdown=_STOP_S,
        )
        app.server = uvicorn.Server(config)
        if ready is not None:
            ready(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")
        with _signals_end_quietly():
            app.server.run(sockets=[listener])


class _Resettable:
    """Lets the app reset the connection of the request it serves."""

    def __init__(self, app: Emulator) -> None:
        self._app = app
        self.server: Server | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        def abort() -> None:
            self._reset(scope["client"])

        scope.setdefault("extensions", {})[ABORT] = abort
        await self._app(scope, receive, send)

    def _reset(self, client: Any) -> None:
        connections = self.server.server_state.connections if self.server else set()
        for connection in connections:
            transport: Any = connection.transport
            if tuple(transport.get_extra_info("peername")[:2]) == tuple(client):
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
                transport.abort()
                return


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn stops on a signal, then raises it once more for whoever handles it: nobody should here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
