"""What goes on while a block does."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio


@asynccontextmanager
async def meanwhile(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Have `work` done until the block ends; what the block raises comes out as it is, where a task group wraps it."""
    raised: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        try:
            yield
        except Exception as error:
            raised = error
        tasks.cancel_scope.cancel()
    if raised is not None:
        raise raised
