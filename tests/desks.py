"""A night with batches in virtual time: desk, store and wire before an emulator; for the engine stand a few lines."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import vclock
from stores import killed

from pipeline.batch.common import Plan
from pipeline.batch.desk import BatchDesk
from pipeline.batch.results import Taking
from pipeline.batch.room import Room
from pipeline.batch.tries import Tries
from pipeline.budget.caps import Spending
from pipeline.budget.cashier import Cashier
from pipeline.emulator import Emulator, EmulatorOptions, parse_batch_faults
from pipeline.errors import PipelineError
from pipeline.events import Event, Message
from pipeline.prompts import Params, Prompt, said
from pipeline.providers.base import Account
from pipeline.providers.connection import Connected
from pipeline.providers.gemini import Gemini
from pipeline.providers.openai import OpenAI
from pipeline.providers.transport import Wire
from pipeline.records import Reply
from pipeline.store.batch_states import BatchState
from pipeline.store.run import RunStore
from pipeline.targets import Target
from pipeline.tokens import estimate

NOON = 1_795_377_600.0
KEY = "AQ.secret-key-0123456789"
MODEL = "gemini-3.5-flash-lite"
TARGET = Target("gemini", "http://emulator", "p", MODEL)
OPENAI = Target("openai", "http://emulator/v1", "p", MODEL)
SPEAKERS: Mapping[str, type[Connected]] = {"gemini": Gemini, "openai": OpenAI}
PARAMS = Params(max_output_tokens=100)
HOUR = 3600.0


class Killed(BaseException):
    """In the place of SIGKILL: nothing is tidied up."""


def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the disk is done at once: a clock that jumps knows no threads."""

    async def at_once(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", at_once)


def prompt_of(row: int, words: int | None = None) -> Prompt:
    """Each row asks something else, of another length."""
    words = 20 + row * 7 % 90 if words is None else words
    text = f"Row {row}: " + " ".join(f"word{row * 31 + number}" for number in range(words))
    return Prompt(row, f"key {row}", "answer", said(text), PARAMS, estimate(text))


Lie = Callable[[httpx.Request, bytes], bytes | httpx.Response | None]
"""Another answer, or another body, in the place of this one; None: it stays."""


class Seam(httpx.AsyncBaseTransport):
    """What our wire sends through; kills at a chosen request, before it is sent or after it was answered."""

    def __init__(self, emulator: Emulator, lie: Lie | None = None) -> None:
        self._behind = httpx.ASGITransport(emulator)
        self._lie = lie
        self.asked: list[tuple[str, str]] = []
        self.kill_at: int | None = None
        self.after = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        doomed = len(self.asked) == self.kill_at
        if doomed and not self.after:
            raise Killed
        try:
            response = await self._behind.handle_async_request(request)
            return response if self._lie is None else await self._lied(request, response, self._lie)
        finally:
            if doomed:
                raise Killed

    async def _lied(self, request: httpx.Request, response: httpx.Response, lie: Lie) -> httpx.Response:
        body = await response.aread()
        told = lie(request, body)
        if isinstance(told, httpx.Response):
            return told
        headers = [header for header in response.headers.multi_items() if header[0] != "content-length"]
        return httpx.Response(response.status_code, headers=headers, content=body if told is None else told)


@dataclass
class Session:
    """What one session of the run saw."""

    answered: dict[int, str] = field(default_factory=dict)
    live: list[int] = field(default_factory=list)  # rows that were asked at once
    at_once: set[int] = field(default_factory=set)  # rows of which it was said that they should be
    bought: list[Reply] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    stopped: PipelineError | None = None
    killed: bool = False
    seconds: float = 0.0
    asked: list[tuple[str, str]] = field(default_factory=list)


class Night:
    """One run directory and one service, over any number of sessions."""

    def __init__(self, directory: Path, batch_faults: str = "", *, target: Target = TARGET, **flags: Any) -> None:
        usual: dict[str, Any] = {"batch": True, "marked": False, "model_version": None}
        usual |= {"batch_pending_s": 600, "batch_run_s": 1200, "batch_spread": 1}
        told = {"batch_faults": parse_batch_faults(batch_faults)}
        self.now = NOON
        self.loop: asyncio.AbstractEventLoop | None = None
        self.directory = directory
        self.emulator = Emulator(EmulatorOptions(**{**usual, **told, **flags}), clock=lambda: self.wall())
        self.spending = Spending(None)
        self.room_file: Path | None = None
        self.target = target
        self.key = KEY
        self.strange: PipelineError | None = None
        self.lie: Lie | None = None  # of the service

    def wall(self) -> float:
        return self.now + (self.loop.time() if self.loop else 0.0)

    def session(
        self,
        rows: int | Sequence[Prompt],
        *,
        kill: tuple[int, bool] | None = None,
        kill_event: int | None = None,
        leave: bool = False,
        until: Callable[[BatchDesk], bool] = lambda desk: False,
        last_call_s: float = math.inf,
        called: frozenset[int] | None = None,
        cancel_after_s: float = math.inf,
        **plan: Any,
    ) -> Session:
        """Ask these rows, those that have no answer yet, until all have one.

        `kill` at that request, before it or after. With `leave` all is over once everything waits at the service, else
        once `until` says so. The last call is that of the batches that are `called`, None: of all.
        """
        prompts = list(map(prompt_of, range(rows))) if isinstance(rows, int) else list(rows)
        seen = Session()

        def call_of(number: int) -> float:
            return last_call_s if called is None or number in called else math.inf

        with killed(self.directory) as store:
            if kill_event is not None:
                _kill_at_event(store, kill_event)
            run = _Run(self, store, prompts, seen, leave, until, cancel_after_s)
            try:
                vclock.run(run.main, kill, Plan(last_call=call_of, **plan))
            except BaseException as error:
                if not _is_killed(error):
                    raise
                seen.killed = True
            finally:
                self.now += seen.seconds
                self.loop = None
        return seen

    def forget_all(self) -> None:
        """Another service stands there now, which knows of nothing."""
        self.emulator = Emulator(self.emulator.options, clock=self.wall)

    def files(self) -> list[str]:
        """What is stored at the service."""

        async def ask() -> list[str]:
            transport = httpx.ASGITransport(self.emulator)
            async with httpx.AsyncClient(transport=transport, base_url="http://e") as client:
                told = await client.get("/v1beta/files?pageSize=100", headers={"x-goog-api-key": self.key})
                return [each["name"] for each in told.json().get("files", [])]

        return asyncio.run(ask())

    def twin(self, label: str) -> None:
        """Make another batch under a label of ours, of a file of its own."""

        async def made() -> None:
            transport = httpx.ASGITransport(self.emulator)
            async with httpx.AsyncClient(transport=transport, base_url="http://e") as client:
                headers = {"x-goog-api-key": self.key}
                line = {"request": {"contents": [{"parts": [{"text": "a twin"}]}]}, "metadata": {"key": "twin"}}
                batch = {"displayName": label, "inputConfig": {"requests": {"requests": [line]}}}
                url = f"/v1beta/models/{MODEL}:batchGenerateContent"
                assert (await client.post(url, headers=headers, json={"batch": batch})).status_code == 200

        asyncio.run(made())

    # --- what came of it ---------------------------------------------------------------------------------------------

    def states(self) -> list[BatchState]:
        """The batches as the directory has them."""
        with killed(self.directory) as store:
            return store.batches.all()

    @property
    def lines(self) -> Counter[str]:
        """How often each prompt was answered in a batch, and billed."""
        return Counter(self.emulator.stats.lines)


class _Run:
    """One session: what stands for the engine."""

    def __init__(
        self,
        night: Night,
        store: RunStore,
        prompts: Sequence[Prompt],
        seen: Session,
        leave: bool,
        until: Callable[[BatchDesk], bool],
        cancel_after_s: float,
    ) -> None:
        self.night, self.store, self.seen = night, store, seen
        self.prompts = {prompt.row: prompt for prompt in prompts}
        self.leave, self.until, self.cancel_after_s = leave, until, cancel_after_s
        self.waiting: dict[int, int] = {}  # row → batch
        self.ready: list[int] = []  # rows to open again
        self.desk: BatchDesk
        self.speaker: Connected

    async def main(self, kill: tuple[int, bool] | None, plan: Plan) -> None:
        night, store, seen = self.night, self.store, self.seen
        loop = night.loop = asyncio.get_running_loop()
        seam = Seam(night.emulator, night.lie)
        if kill:
            seam.kill_at, seam.after = kill
        seen.asked = seam.asked

        def heard(event: Event) -> None:
            assert isinstance(event, Message)
            seen.told.append(event.message)

        def stopped(reason: PipelineError) -> None:
            seen.stopped = reason

        try:
            async with Wire(seam) as wire, anyio.create_task_group() as tasks:
                self.speaker = SPEAKERS[night.target.provider]({night.target.access: Account(wire, night.key)})
                service = self.speaker.open(night.target).batches()
                assert service is not None
                cashier = Cashier(night.spending, heard)
                tries = Tries(night.directory / "batches")
                taking = Taking(
                    store.batches,
                    cashier,
                    tries,
                    store.identity,
                    is_late=store.is_late,
                    bought=lambda prompt, reply, answered: seen.bought.append(reply),
                    notify=heard,
                    wall=night.wall,
                    is_strange=lambda target, reply: night.strange,
                    rng=Random(1),
                )
                self.desk = BatchDesk(
                    store.batches,
                    {night.target: service},
                    cashier,
                    Room(store.identity, night.room_file, wall=night.wall),
                    taking,
                    tries,
                    taken=self.taken,
                    on_stop=stopped,
                    notify=heard,
                    wall=night.wall,
                    plan=plan,
                    rng=Random(2),
                )
                tasks.start_soon(self.desk.run)
                await self.work()
        finally:
            seen.seconds = loop.time()

    def taken(self, number: int, live: Iterable[int]) -> None:
        self.seen.at_once.update(live)
        rows = [row for row, batch in self.waiting.items() if batch == number]
        for row in rows:
            del self.waiting[row]
        self.ready += rows

    async def work(self) -> None:
        desk = self.desk
        self.ready += self.prompts
        while not self.seen.stopped and not self.until(desk):
            if self.leave and desk.is_settled and not self.ready:
                break
            if anyio.current_time() >= self.cancel_after_s:
                desk.cancel_all()
            if self.ready:
                rows, self.ready = self.ready, []
                for row in rows:
                    await self.open(self.prompts[row])
                desk.flush()
            elif not self.waiting and desk.is_idle:
                break
            await anyio.sleep(2.0)
        desk.close()

    async def open(self, prompt: Prompt) -> None:
        """It is answered, or waits, or is asked at once."""
        night, desk, seen = self.night, self.desk, self.seen
        content = prompt.fingerprint(MODEL)
        if found := self.store.reply(content) or await self.store.sealed_reply(content):
            seen.answered[prompt.row] = found.reply.text
            return
        number = desk.waits(prompt, night.target.model)
        if number is None:
            number = await desk.add(prompt, night.target)
        if number is not None:
            if desk.is_open(number):
                self.waiting[prompt.row] = number
            else:
                self.ready.append(prompt.row)
        elif not seen.stopped:
            seen.live.append(prompt.row)
            outcome = await self.speaker.generate(prompt, night.target)
            if isinstance(outcome, Reply):
                self.store.append_call(prompt, MODEL, outcome)
                seen.answered[prompt.row] = outcome.text


def _kill_at_event(store: RunStore, at: int) -> None:
    """Kill before event number `at` of the batches is written, if it is odd right after it."""
    log: Any = store.batches._log
    add, count = log.add, [0]

    def adding(*args: Any) -> Any:
        count[0] += 1
        if 2 * count[0] == at:
            raise Killed
        state = add(*args)
        if 2 * count[0] + 1 == at:
            raise Killed
        return state

    log.add = adding


def _is_killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_killed, error.exceptions))
    return isinstance(error, Killed)
