"""The emulator behind a real socket: rehearsals, tests in other processes, other people's clients."""

import errno
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.emulator.access import is_welcome
from pipeline.emulator.app import Emulator, is_private
from pipeline.emulator.http import ABORT, RAW, Receive, Scope, Send
from pipeline.emulator.options import EmulatorOptions

if TYPE_CHECKING:
    from uvicorn import Server

_BACKLOG = 2_048  # connections that may wait to be accepted: a client opens hundreds at once
_STOP_S = 1  # for answers in flight at the end
_NOT_WELCOME = b"This emulator answers only the machine that it runs on, under its own address.\n"
_LINGER_OFF = struct.pack("ii", 1, 0)  # closing such a socket sends RST


def serve(
    options: EmulatorOptions | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve an emulator until SIGINT or SIGTERM; port 0 takes a free one; `ready` gets the base URL once it listens.

    On an address of this machine it answers this machine alone; beyond it all is open to whoever reaches it, but what
    the stats tell of single prompts. Raises OSError when the address cannot be had.
    """
    import uvicorn

    with _listening(host, port) as listener:
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets=sockets)
                if ready is not None:  # not before signals are heeded: one that comes at once would be lost
                    ready(url)

        app = _Reaching(Emulator(options), host)
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
        app.server = Server(config)
        with _signals_end_quietly():
            app.server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port, family)
    except ValueError:  # characters that no name has
        raise OSError(errno.EINVAL, "no address of a machine") from None
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


class _Reaching:
    """Lets the app reach beneath HTTP, to the connection of the request that it serves; turns strangers away."""

    def __init__(self, app: Emulator, bound: str) -> None:
        self._app = app
        self._bound = bound
        self.server: Server | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if not is_welcome(self._bound, host, scope["client"][0], is_private(scope["path"], scope["query_string"])):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": _NOT_WELCOME})
            return

        def abort() -> None:
            self._reset(scope["client"])

        def raw(data: bytes) -> None:
            if (transport := self._transport(scope["client"])) is not None:
                transport.write(data)
                transport.close()

        scope.setdefault("extensions", {}).update({ABORT: abort, RAW: raw})
        await self._app(scope, receive, send)

    def _reset(self, client: Any) -> None:
        if (transport := self._transport(client)) is not None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
            transport.abort()

    def _transport(self, client: Any) -> Any:
        """The connection of that client's address; None when it is gone."""
        connections = self.server.server_state.connections if self.server else ()
        return next((one.transport for one in connections if _peer(one) == tuple(client)), None)


def _peer(connection: Any) -> tuple[Any, ...]:
    return tuple((connection.transport.get_extra_info("peername") or ())[:2])


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
