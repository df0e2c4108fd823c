"""Workers on a Ray cluster, or on a Ray of our own here. Ray gives processes, addresses and news of deaths alone."""

import asyncio
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, TypeVar

import anyio

from pipeline.errors import JobError, ServiceError
from pipeline.fleet.driver import Gone
from pipeline.fleet.member import Member
from pipeline.fleet.orders import FromWorker, ToWorker

for _name, _value in (
    ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0"),  # below `uv run` it would upload the whole folder, tables and keys included
    ("RAY_IGNORE_UNHANDLED_ERRORS", "1"),  # each death is heard of once; Ray would tell it of every message as well
    ("RAY_USAGE_STATS_ENABLED", "0"),
    # Without its head node Ray ends the process after a minute, with an exit code that says that all was done.
    ("RAY_gcs_rpc_server_reconnect_timeout_s", str(24 * 3600)),
):
    os.environ.setdefault(_name, _value)  # Ray reads them as it is imported

import ray  # noqa: E402
from ray.exceptions import ActorDiedError, AuthenticationError, RayActorError, RayError  # noqa: E402
from ray.util.client import ray as client  # noqa: E402

SILENT_S = 30.0
"""After so long without a word a worker is taken for lost, and one that may live on has stopped long since."""
_LEAVES_S = 5.0
"""What a worker is given to leave; then it is killed."""
_Result = TypeVar("_Result")
AWAY_S = 50.0
"""After so long without the head node the run ends by itself: after 60 s Ray ends every worker."""
_LOOKS_S = 5.0
_ANSWERS_S = 10.0
_WHO = "a worker on Ray"
_OBJECTS_BYTES = 80 * 2**20
"""Ray's least store of objects: nothing of ours goes through it."""
_HERE = "127.0.0.2"
"""Ray takes 127.0.0.1 for a mistake and the network's address instead, which a laptop loses on its way home."""


class Actor:
    """One worker on Ray."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._work = actor.work.remote()
        self._told: deque[FromWorker] = deque()
        self._is_here = False

    async def send(self, message: ToWorker) -> None:
        """Tell it something; it waits for a CPU if it has none yet. Raises `Gone`."""
        with _deaths():
            await self._actor.give.remote(message)

    async def receive(self) -> FromWorker:
        """The next that it tells. Raises `Gone`."""
        while not self._told:
            with _deaths(), anyio.move_on_after(SILENT_S if self._is_here else None) as silence:
                told = await self._actor.take.remote()
                self._is_here = True
                if told is None:
                    await self._work  # raises what ended it
                    raise Gone(_WHO)
                self._told.extend(told)
            if silence.cancelled_caught:
                raise Gone(_WHO, SILENT_S)
        return self._told.popleft()

    async def leave(self) -> None:
        """Let it end: it finishes what is in flight. It is killed where it takes too long."""
        with anyio.CancelScope(shield=True), suppress(RayError):
            if self._is_here:
                with anyio.move_on_after(_LEAVES_S):
                    await self._actor.leave.remote()
                    await self._work
            with anyio.move_on_after(_LEAVES_S):
                await _apart(partial(ray.kill, self._actor))


def _apart(do: Callable[[], _Result]) -> Awaitable[_Result]:
    """Have it done in a thread, which is left behind once nobody waits: without its head node Ray waits for ever."""
    done = Future[_Result]()

    def work() -> None:
        try:
            result = do()
        except BaseException as error:
            with suppress(InvalidStateError):
                done.set_exception(error)
        else:
            with suppress(InvalidStateError):
                done.set_result(result)

    threading.Thread(target=work, name="ray", daemon=True).start()
    return asyncio.wrap_future(done)


@contextmanager
def _deaths() -> Iterator[None]:
    try:
        yield
    except RayActorError as error:
        raise _gone(error) from None


def _gone(error: RayActorError) -> Exception:
    """A death as the driver knows it; a worker that could not even be made is a mistake of the cluster."""
    if error.actor_init_failed:
        return JobError(
            f"a worker on Ray could not begin: {str(error).strip().splitlines()[-1]}",
            "install the same prompt-batch-pipeline, with its extras, on every node",
        )
    # Of a node that does not answer nobody knows whether it lives on.
    is_dead = isinstance(error, ActorDiedError) and "worker process has died" in str(error)
    return Gone(_WHO, 0.0 if is_dead else SILENT_S)


@dataclass(slots=True)
class _Head:
    """What keeps a cluster together: without it no worker is made and no death is told of."""

    address: str
    looked_at: float = -inf
    answered_at: float = inf

    async def watch(self) -> None:
        """Look now and then. Raises `ServiceError` once it has not answered for `AWAY_S`."""
        host, _, port = self.address.rpartition(":")
        while True:
            now = anyio.current_time()
            if now >= self.looked_at + _LOOKS_S:  # one look is for all workers
                self.looked_at, self.answered_at = now, min(now, self.answered_at)
                with suppress(OSError, TimeoutError), anyio.fail_after(_LOOKS_S):
                    async with await anyio.connect_tcp(host.strip("[]"), int(port)):
                        self.answered_at = anyio.current_time()
            if anyio.current_time() > self.answered_at + AWAY_S:
                raise ServiceError(
                    f"the head node of Ray, {self.address}, has not answered for {AWAY_S:.0f} s",
                    "check that node, or begin another cluster; then the same command goes on",
                )
            await anyio.sleep(_LOOKS_S)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray that this process is connected with."""

    cpus: int
    head: _Head

    @asynccontextmanager
    async def launch(self, number: int) -> AsyncIterator[Actor]:
        """Have a worker made where a CPU is free, or becomes so, and have it leave at the end."""
        # Ray never starts one again, and repeats no call: whatever it did twice would be paid twice.
        made = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD")(Member)
        async with anyio.create_task_group() as watching:
            watching.start_soon(self.head.watch)
            actor = Actor(await _apart(made.remote))
            try:
                yield actor
            finally:
                await actor.leave()
            watching.cancel_scope.cancel()


class _Connection:
    """What the runs of this process are connected with together: the first of them begins it, the last one ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._disconnect: Callable[[], None] = lambda: None

    @contextmanager
    def used(self, cpus: int) -> Iterator[None]:
        with self._lock:
            if client.is_connected():
                raise _beside("this program is connected with ray://")
            if not self._users:
                # A program that has a Ray already keeps it.
                self._disconnect = (lambda: None) if ray.is_initialized() else _connect(cpus)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._disconnect()


_connection = _Connection()


@contextmanager
def connected(cpus: int) -> Iterator[Cluster]:
    """The Ray that this program has, the cluster of RAY_ADDRESS, or else a Ray of our own with so many CPUs.

    What it did not have is left at the end of the block. Raises `JobError`.
    """
    with _connection.used(cpus):
        yield Cluster(int(ray.cluster_resources().get("CPU", 0)), _Head(ray.get_runtime_context().gcs_address))


def _connect(cpus: int) -> Callable[[], None]:
    """Connect; what comes back disconnects.

    A Ray of our own ends with the thread that began it, which therefore is neither a run's, as others may go on, nor
    the main one: there Ray would heed signals.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    if address != "local":
        _check_address(address)
    # What Ray tells of deaths it writes on stdout, amid the summary.
    sys.modules["ray._private.worker"].print_to_stdstream = lambda *_, **__: None  # type: ignore[attr-defined]
    begun, over = Future[None](), threading.Event()

    def keep() -> None:
        try:
            _init(address, cpus)
            begun.set_result(None)
            over.wait()
        except BaseException as error:
            begun.set_exception(error)
        finally:
            ray.shutdown()

    thread = threading.Thread(target=keep, name="ray", daemon=True)

    def disconnect() -> None:
        over.set()
        thread.join(_LEAVES_S)

    thread.start()
    try:
        begun.result()
    except BaseException:
        over.set()
        raise
    return disconnect


def _check_address(address: str) -> None:
    if "://" in address:
        raise _beside(f"RAY_ADDRESS={address}")
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_S).close()
        except OSError as error:  # Ray would try for two minutes, and end the process
            raise _no_ray(address, error.strerror or str(error)) from None


def _init(address: str, cpus: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        quiet |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECTS_BYTES}
        if sys.platform == "linux":
            quiet["_node_ip_address"] = _HERE
    try:
        ray.init(address, **quiet)
    except AuthenticationError:
        raise JobError(
            "Ray asks for a token, and has none or another from here\nNothing was sent.",
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on the cluster's nodes",
        ) from None
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, OSError) as error:
        raise _no_ray(address, str(error).splitlines()[0]) from error


def _beside(what: str) -> JobError:
    return JobError(
        f"{what}: what leads a run has to be in the cluster, not beside it\nNothing was sent.",
        "start it on a machine of the cluster with RAY_ADDRESS=HOST:6379,"
        " or hand it in: `ray job submit -- pipeline run … --on ray --yes`",
    )


def _no_ray(address: str, why: str) -> JobError:
    if address == "local":
        return JobError(
            f"Ray did not start on this machine: {why}\nNothing was sent.", "`--workers N` does without Ray here"
        )
    return JobError(
        f"no Ray answers at RAY_ADDRESS={address}: {why}\nNothing was sent.",
        "`ray status` on the head node says what runs there; RAY_AUTH_MODE and RAY_AUTH_TOKEN have to be here"
        " what they are there; without RAY_ADDRESS a Ray of its own is started on this machine",
    )
