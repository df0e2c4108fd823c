"""A run that stops in its middle to be looked at: a service that answers so many prompts, and then waits."""

from collections.abc import Callable
from pathlib import Path

import anyio
from asking import Stub, opening_of
from commands import UNLIMITED, small_job
from sessions import run_through

from pipeline.job import load
from pipeline.prompts import Prompt
from pipeline.records import Failure, Reply, Usage
from pipeline.run import prepare
from pipeline.run.engine import Monitor
from pipeline.targets import Target


class Halfway(Stub):
    """Answers so many prompts, and the others once it is told to."""

    def __init__(self, first: int) -> None:
        self.go_on = anyio.Event()
        self._first = first

    def answer(self, more: int) -> None:
        self._first += more

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        while self._first <= 0 and not self.go_on.is_set():  # noqa: ASYNC110  either may come
            await anyio.sleep(0.01)
        self._first -= 1
        return Reply("yes", "ok", usage=Usage(5, output_tokens=1), raw=b"{}", endpoint=target.endpoint)


def session(here: Path, **options: object) -> prepare.Session:
    return prepare.prepare(load(small_job(here, UNLIMITED)), prepare.Options(**options))  # type: ignore[arg-type]


def run_watched(prepared: prepare.Session, provider: Halfway, look: Callable[[Monitor], bool]) -> int:
    """Run it; the provider goes on once `look` has seen what it waits for. Returns the exit code."""

    async def watch(monitor: Monitor) -> None:
        with anyio.fail_after(20):
            while not look(monitor):  # noqa: ASYNC110  it looks at files
                await anyio.sleep(0.01)
        provider.go_on.set()
        await anyio.sleep_forever()

    return run_through(prepared, watch, opening_of(provider)).exit_code
