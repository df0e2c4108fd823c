"""Work in a thread with an event loop of its own, which can be asked to end: its caller may have a loop, or none."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent import futures
from contextlib import suppress
from contextvars import copy_context
from functools import partial, wraps
from inspect import signature, unwrap
from itertools import count
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, get_args

import anyio
import anyio.from_thread
import anyio.lowlevel

from pipeline.api.words import in_python
from pipeline.errors import JobError
from pipeline.process import backend
from pipeline.run.engine import Works

Done = TypeVar("Done")
Arguments = ParamSpec("Arguments")
_LOOK_S = 0.25
"""No wait is longer: Ctrl-C gets through on every system."""
_PATIENCE = 3
_ENDED = "what was answered is kept, and the same call goes on"


class Asked(Exception):
    """It was asked to end before it began, or while it could be left at once."""


class Ending:
    """How somebody else's thread asks a run to end: once, and what is in flight is waited for; twice, and it is not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scope: anyio.CancelScope | None = None
        self._engine: Works | None = None

    def ask(self) -> None:
        """Ask it, from any thread."""
        with self._lock:
            self._asked += 1
            if self._loop is not None:
                with suppress(RuntimeError):  # its loop has ended by itself
                    self._loop.call_soon_threadsafe(self._heed)

    async def heed(self, engine: Works) -> None:
        """Have the engine of a run end as it is asked."""
        self._engine = engine
        try:
            if self._asked:
                self._heed()
            await anyio.sleep_forever()
        finally:
            self._engine = None

    def run(self, work: Callable[[], Awaitable[Done]]) -> Done:
        """Run it in a loop of this thread. Raises `Asked` where it was left at once."""
        return anyio.run(self._within, work, backend_options=backend())

    async def _within(self, work: Callable[[], Awaitable[Done]]) -> Done:
        with anyio.CancelScope() as scope:
            with self._lock:
                self._loop, self._scope = asyncio.get_running_loop(), scope
                if self._asked:
                    raise Asked
            try:
                return await work()
            finally:
                with self._lock:
                    self._loop = self._scope = None
        raise Asked

    def _heed(self) -> None:
        if self._engine is None:
            if self._scope is not None:
                self._scope.cancel()
        elif self._asked > 1:
            self._engine.abandon()
        elif not self._engine.interrupted:
            self._engine.halt(None)


class Work(Generic[Done]):
    """Something that goes on in a thread of its own; `ending` asks it to end."""

    _process: ClassVar[int | None] = None  # that has worked: threads of its libraries are in it, and in no fork of it

    def __init__(self, work: Callable[[Ending], Done]) -> None:
        if Work._process not in (None, os.getpid()):
            raise JobError(
                "this process was forked from one in which a job was at work: here it would wait for ever",
                'begin it with `multiprocessing.get_context("spawn")`',
            )
        Work._process = os.getpid()
        self.ending = Ending()
        self._future: futures.Future[Done] = futures.Future()
        context = copy_context()  # what it prints belongs to whoever began it, as to a cell of a notebook
        threading.Thread(target=partial(context.run, self._run, work), name="pipeline").start()

    def _run(self, work: Callable[[Ending], Done]) -> None:
        try:
            self._future.set_result(work(self.ending))
        except BaseException as error:
            self._future.set_exception(error)

    def wait(self) -> Done:
        """Wait for it. Ctrl-C asks it to end, waits until it has, and is raised then; the third is raised at once."""
        is_interrupted = False
        for times in count(1):
            try:
                while not self._future.done():
                    futures.wait([self._future], _LOOK_S)
                break
            except KeyboardInterrupt:
                is_interrupted = True
                self.ending.ask()
                if times == _PATIENCE:
                    break
        if is_interrupted:
            raise KeyboardInterrupt(_ENDED)
        return self._future.result()

    async def wait_for(self) -> Done:
        """The same in an event loop, of asyncio or trio, whose cancellation asks it to end."""
        over, token, here = anyio.Event(), anyio.lowlevel.current_token(), threading.get_ident()

        def tell(future: "futures.Future[Done]") -> None:
            if threading.get_ident() == here:
                over.set()
            else:
                with suppress(RuntimeError):  # nobody waits any more: that loop is closed
                    anyio.from_thread.run_sync(over.set, token=token)

        self._future.add_done_callback(tell)
        cancelled = anyio.get_cancelled_exc_class()
        try:
            await _until(over)
        except cancelled as error:
            self.ending.ask()
            with anyio.CancelScope(shield=True):
                try:
                    await _until(over)
                except cancelled:  # asyncio's own second one goes through
                    self.ending.ask()
                    await _until(over)
            if not error.args:  # of a task or a notebook: those of scopes are known by what they say
                error.args = (_ENDED,)
            raise
        return self._future.result()


def waited(begin: Callable[Arguments, Work[Done]]) -> Callable[Arguments, Done]:
    """What waits for the work that this begins: called as it is, and `help` says so."""

    @wraps(begin)
    def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Done:
        with in_python():
            return begin(*arguments, **named).wait()

    return _described(call, begin)


def awaited(call: Callable[Arguments, Done], does: str) -> Callable[Arguments, Coroutine[Any, Any, Done]]:
    """The same as `call`, which is `waited`, but in an event loop, which goes on meanwhile; `does` says so."""
    begin: Callable[Arguments, Work[Done]] = unwrap(call)

    @wraps(begin)
    async def call_async(*arguments: Arguments.args, **named: Arguments.kwargs) -> Done:
        with in_python():
            return await begin(*arguments, **named).wait_for()

    call_async.__name__ = call_async.__qualname__ = f"{begin.__name__}_async"
    call_async.__doc__ = does
    return _described(call_async, begin)


_Call = TypeVar("_Call", bound=Callable[..., Any])


def _described(call: _Call, begin: Callable[..., Any]) -> _Call:
    described = signature(begin)
    (comes,) = get_args(described.return_annotation)
    call.__signature__ = described.replace(return_annotation=comes)  # type: ignore[attr-defined]
    return call


async def _until(over: anyio.Event) -> None:
    """Wait for it, and in asyncio wake up now and then: a notebook's ■ cancels a cell in a loop that may be asleep."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # of trio, which is woken by signals
        await over.wait()
        return

    timer: asyncio.TimerHandle | None = None

    def tick() -> None:
        nonlocal timer
        timer = loop.call_later(_LOOK_S, tick)

    tick()
    try:
        await over.wait()
    finally:
        if timer:
            timer.cancel()
