"""An event loop whose clock only moves when everything waits: hours in a second, and always the same hours."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple, Unpack

import anyio

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")
TICK_S = 1e-9
"""The clock moves at least this much in each iteration: aiolimiter may arm its timer for "now" by rounding, forever."""


class _Autojump(selectors.SelectSelector):
    loop: "VirtualClockLoop"

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("deadlock: every task waits, and no timer is set")
        self.loop.now += max(timeout, TICK_S)
        return []


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """Knows no sockets and no threads: nothing outside can wake it."""

    def __init__(self) -> None:
        selector = _Autojump()
        selector.loop = self
        self.now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(function: Callable[[Unpack[Arguments]], Awaitable[Result]], *args: *Arguments) -> Result:
    """`anyio.run` in virtual time, from 0 seconds on."""
    return anyio.run(function, *args, backend_options={"loop_factory": VirtualClockLoop})
