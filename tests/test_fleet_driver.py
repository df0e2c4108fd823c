"""The driver of a fleet, over workers that are made up: whom it refuses, and what it gives up."""

import pickle
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from vclock import run

from jobs import CHUNKED, PLAIN, make_job
from pipeline.errors import BudgetReached, PipelineError, RunStateError
from pipeline.events import Event, StoreTrouble, WorkerLost
from pipeline.fleet.driver import Fleet, Gone, Task
from pipeline.fleet.messages import Told
from pipeline.fleet.orders import (
    Contract,
    Counts,
    Ended,
    FromWorker,
    Noted,
    Opened,
    Order,
    Ready,
    ToWorker,
    frozen,
    versions,
)
from pipeline.records import Status
from pipeline.run.engine import Monitor
from pipeline.store.units import Shard

ACCESS = ("gemini@host/project",)
ROWS = 10

Answers = Callable[[ToWorker], Iterator[FromWorker]]


class NoCoordinator:
    """In the place of one: the workers here send nothing."""

    def __init__(self) -> None:
        self.desk = SimpleNamespace(ready=0, sent=0, in_flight=0, halted=False, reason=None)
        self.begun: list[str] = []
        self.lost: list[str] = []
        self._over = anyio.Event()

    async def run(self) -> None:
        await self._over.wait()

    def close(self) -> None:
        self._over.set()

    def halt(self, reason: PipelineError | None) -> None:
        self._over.set()

    def begin(self, life: str, counted_usd: Decimal | None) -> None:
        self.begun.append(life)

    def opened(self, life: str, spent_usd: Decimal) -> None:
        pass

    def take(self, life: str, told: Told) -> None:
        pass

    def lose(self, life: str) -> None:
        self.lost.append(life)

    def end(self, life: str) -> None:
        pass

    async def give(self, life: str) -> None:
        return None


class Made:
    """A worker that answers as `answers` says; it dies where that ends."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._said: list[FromWorker | Gone] = []

    async def send(self, message: ToWorker) -> None:
        try:
            self._said += self._answers(message)
        except Gone as gone:
            self._said.append(Gone("process 7", gone.may_live_s))

    async def receive(self) -> FromWorker:
        while not self._said:  # noqa: ASYNC110  virtual time
            await anyio.sleep(0.1)
        said = self._said.pop(0)
        if isinstance(said, Gone):
            raise said
        return said


def ready(**odd: str) -> Ready:
    return Ready(7, "host", versions() | odd)


def well(message: ToWorker) -> Iterator[FromWorker]:
    """Every row of every shard is answered."""
    if isinstance(message, Contract):
        yield ready()
    elif isinstance(message, Order):
        outcomes = Counter[Status]({"ok": message.rows})
        yield Opened(message.life, ACCESS, Decimal(0), 0, 0)
        yield Ended(message.life, Counts(outcomes, answered=message.rows), is_whole=True)


def led(
    answers: Answers, shards: int = 4, reached: PipelineError | None = None, workers: int = 2
) -> tuple[Fleet, NoCoordinator, list[Event]]:
    """A fleet, of two, that has ended; `reached` is why its dispatcher sends nothing."""
    heard: list[Event] = []

    async def lead() -> tuple[Fleet, NoCoordinator, list[Event]]:
        @asynccontextmanager
        async def launch(number: int) -> AsyncIterator[Made]:
            yield Made(answers)

        tasks = [Task(Shard(n, Path(f"{n}"), n * ROWS, ROWS), None, ROWS) for n in range(shards)]  # type: ignore[arg-type]
        contract: Any = Contract(None, None, None, "real", Path())  # type: ignore[arg-type]
        coordinator: Any = NoCoordinator()
        coordinator.desk.halted, coordinator.desk.reason = reached is not None, reached
        fleet = Fleet(tasks, coordinator, contract, ACCESS, launch, workers, Monitor(shards * ROWS), heard.append)
        with anyio.fail_after(600):
            await fleet.run()
        return fleet, coordinator, heard

    return run(lead)


def test_each_shard_is_run_once() -> None:
    fleet, coordinator, heard = led(well)
    assert sorted(coordinator.begun) == ["0/1", "1/1", "2/1", "3/1"]
    assert (fleet.monitor.outcomes["ok"], fleet.monitor.shards_done, fleet.stopped) == (40, 4, None)
    assert not heard


@pytest.mark.parametrize(("shards", "workers"), [(3, 3), (2, 2), (1, 1), (0, 0)])
def test_no_more_workers_start_than_there_are_shards(shards: int, workers: int) -> None:
    started: list[ToWorker] = []

    def start(message: ToWorker) -> Iterator[FromWorker]:
        started.extend([message] * isinstance(message, Contract))
        yield from well(message)

    fleet, _, _ = led(start, shards, workers=3)
    assert len(started) == workers and fleet.monitor.outcomes["ok"] == shards * ROWS


def test_the_shard_of_a_worker_that_dies_is_run_by_another_and_its_rows_count_once() -> None:
    died: list[str] = []

    def one_dies(message: ToWorker) -> Iterator[FromWorker]:
        if isinstance(message, Order) and message.life == "1/1":
            died.append(message.life)
            yield Opened(message.life, ACCESS, Decimal(0), 0, 0)
            raise Gone
        yield from well(message)

    fleet, coordinator, heard = led(one_dies)
    assert died and coordinator.lost == ["1/1"] and "1/2" in coordinator.begun
    assert (fleet.monitor.outcomes["ok"], fleet.monitor.shards_done, fleet.stopped) == (40, 4, None)
    assert [type(event) for event in heard] == [WorkerLost]


@pytest.mark.parametrize("stage", [Contract, Order])
def test_what_kills_every_worker_stops_the_run(stage: type[ToWorker]) -> None:
    def dies(message: ToWorker) -> Iterator[FromWorker]:
        if isinstance(message, stage):
            raise Gone
        yield from well(message)

    fleet, _, _ = led(dies)
    assert fleet.stopped is not None and fleet.stopped.exit_code == 3
    assert "process 7" in fleet.stopped.message


def with_another_key(message: ToWorker) -> Iterator[FromWorker]:
    if isinstance(message, Order):
        yield Opened(message.life, ("gemini@host/another",), Decimal(0), 0, 0)
    else:
        yield from well(message)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (lambda message: iter([ready(polars="0.1")]), "has polars 0.1"),
        (with_another_key, "another key"),
    ],
)
def test_a_worker_that_would_do_otherwise_is_refused_by_name(odd: Answers, said: str) -> None:
    fleet, _, _ = led(odd)
    assert fleet.stopped is not None and said in fleet.stopped.message
    assert fleet.monitor.outcomes.total() == 0


def test_the_shard_of_a_worker_that_may_live_on_rests_while_the_others_go_on() -> None:
    begun: dict[str, float] = {}

    def one_is_cut_off(message: ToWorker) -> Iterator[FromWorker]:
        if isinstance(message, Order):
            begun[message.life] = anyio.current_time()
            if message.life == "1/1":
                raise Gone("", may_live_s=30.0)
        yield from well(message)

    fleet, _, _ = led(one_is_cut_off)
    assert fleet.monitor.outcomes["ok"] == 40
    assert 30.0 <= begun["1/2"] - begun["1/1"] < 32.0
    assert max(begun[life] for life in ("0/1", "2/1", "3/1")) < 2.0


@pytest.mark.parametrize("more", [True, False])
def test_a_shard_is_given_up_where_five_in_a_row_die_without_an_answer_more(more: bool) -> None:
    def taken_away(message: ToWorker) -> Iterator[FromWorker]:
        shard, life = message.life.split("/") if isinstance(message, Order) else ("", "")
        if isinstance(message, Order) and shard == "1" and int(life) < 7:
            yield Opened(message.life, ACCESS, Decimal(0), int(life) if more else 5, 1)
            raise Gone
        yield from well(message)

    fleet, coordinator, _ = led(taken_away)
    assert coordinator.lost == [f"1/{life}" for life in range(1, 7 if more else 6)]
    assert (fleet.stopped is None) == more and (fleet.monitor.outcomes["ok"] == 40) == more


def test_a_store_that_is_away_is_told_once_for_all_shards() -> None:
    def away(message: ToWorker) -> Iterator[FromWorker]:
        if isinstance(message, Order):
            for told, is_away in (("away", True), ("away", True), ("back", False), ("back", False), ("again", True)):
                yield Noted(message.life, StoreTrouble(told, is_away))
        yield from well(message)

    fleet, _, _ = led(away, shards=2, workers=1)
    assert [event.message for event in fleet.monitor.notices if isinstance(event, StoreTrouble)] == [
        *("away", "back", "again"),
        *("away", "back", "again"),
    ]


def test_a_worker_that_never_begins_holds_nothing_up() -> None:
    seen: list[ToWorker] = []

    def one_waits(message: ToWorker) -> Iterator[FromWorker]:
        seen.append(message)
        if len(seen) > 1 or isinstance(message, Order):  # the first has no CPU
            yield from well(message)

    fleet, _, _ = led(one_waits)
    assert (fleet.monitor.outcomes["ok"], fleet.stopped) == (40, None)


def test_what_stops_one_shard_stops_the_run() -> None:
    def full(message: ToWorker) -> Iterator[FromWorker]:
        if isinstance(message, Order):
            yield Opened(message.life, ACCESS, Decimal(0), 0, 0)
            yield Ended(message.life, Counts(), is_whole=False, stopped=RunStateError("no space", "make room"))
        else:
            yield from well(message)

    fleet, coordinator, _ = led(full)
    assert fleet.stopped is not None and fleet.stopped.message == "no space"
    assert len(coordinator.begun) <= 2


def test_rows_that_all_fail_alike_stop_the_run_over_all_workers() -> None:
    def failing(message: ToWorker) -> Iterator[FromWorker]:
        if isinstance(message, Order):
            failures = Counter({"bad_request": ROWS})
            counts = Counts(Counter[Status]({"invalid": ROWS}), failures=failures, error="no such model")
            yield Opened(message.life, ACCESS, Decimal(0), 0, 0)
            yield Ended(message.life, counts, is_whole=True)
        else:
            yield from well(message)

    fleet, _, _ = led(failing, shards=8)
    assert fleet.stopped is not None
    assert fleet.stopped.message == "the first 20 rows all failed for the same cause, bad_request: no such model"
    assert fleet.monitor.outcomes["invalid"] < 80


def test_a_cap_that_is_reached_is_what_stops_the_run_and_no_worker_is_to_blame() -> None:
    def told_to_stop(message: ToWorker) -> Iterator[FromWorker]:
        if isinstance(message, Order):
            yield Ended(message.life, Counts(), is_whole=False)
        else:
            yield from well(message)

    fleet, _, _ = led(told_to_stop, reached=BudgetReached("the budget is spent", "raise it"))
    assert isinstance(fleet.stopped, BudgetReached)


def test_a_job_travels_with_what_stands_in_its_files(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name, text in (
        ("ask.txt", "Say {{ topic }}"),
        ("who.txt", "You are brief."),
        ("merge.txt", "All: {{ parts }}"),
    ):
        (here / name).write_text(text)
    (here / "answer.json").write_text('{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}')
    sections: dict[str, dict[str, object]] = {
        "prompt": {"template": None, "template_file": "ask.txt", "system_file": "who.txt"},
        "output": {"schema": {"file": "answer.json"}},
    }
    plain = make_job(here, PLAIN, **sections)
    cut = make_job(here, CHUNKED, reduce={"template": None, "template_file": "merge.txt"})
    travelling = [pickle.dumps(frozen(job, whole=True)) for job in (plain, cut)]
    shutil.rmtree(here)
    for job, frozen_job in zip((plain, cut), travelling, strict=True):
        arrived = pickle.loads(frozen_job).thawed()
        assert (arrived.identity, arrived.fingerprint, arrived.params) == (job.identity, job.fingerprint, job.params)
