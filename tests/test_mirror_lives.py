"""Lives of a shard on object storage in random order: machines lost at any put, a store away, zombies that go on.

Whatever happened, the next life has every reply that a completed push put, none twice, and knows what was in flight;
and everything, where the one before was killed on the same machine.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import anyio
import anyio.to_thread
import polars as pl
import pytest
from asking import MODEL
from hypothesis import given, settings
from hypothesis import strategies as st
from storage import Fault, Faulty, MachineLost, in_memory
from stores import killed, paid, prompt, result

from pipeline.objects import Away, Objects
from pipeline.prompts import Prompt
from pipeline.store.lives import LifeId, standing
from pipeline.store.mirror import Mirror, restore
from pipeline.store.run import RunStore

ROWS = 4
IN_MEMORY = Path("/dev/shm")
"""Where a sync costs nothing: no power is cut here."""


@pytest.fixture(scope="module", autouse=True)
def _little_reserve() -> Iterator[None]:
    """Many runs are open at once, in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.store.reserve.RESERVE_BYTES", 4_096)
        yield


@dataclass
class Kept:
    """What a run directory has: replies, rows that are done, and requests without an answer."""

    calls: set[str] = field(default_factory=set)
    rows: set[int] = field(default_factory=set)
    in_flight: dict[str, Prompt] = field(default_factory=dict)


@dataclass
class Life:
    """One life, its process, and what its directory has."""

    mirror: Mirror
    store: RunStore
    fault: Fault
    process: ExitStack
    machine: int
    has: Kept
    stands_on: LifeId | None  # what its directory is the rest of
    put: Kept | None = None  # what the objects have at least; None: it has not begun
    is_gone: bool = False


class World:
    """A shard, the machines that worked on it, and what each life must have kept."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.shard = in_memory().below("shards/00017")
        self.lives: dict[LifeId, Life] = {}
        self.machines = self.made = 0
        self.begin(0)

    @property
    def life(self) -> Life:
        return self.lives[max(self.lives)]

    @property
    def zombies(self) -> list[Life]:
        return [life for life in self.lives.values() if life is not self.life and not life.is_gone]

    def begin(self, machine: int) -> None:
        """A new life on a machine, and what it has to find."""
        fault = Fault()
        there = [life for life in self.lives.values() if life.is_gone and life.mirror.directory.exists()]
        stood = standing(entry.name for entry in self.shard.entries())
        mirror = restore(Faulty(self.shard, fault), self.here / f"{machine}", LifeId(1, len(self.lives) + 1))
        process = ExitStack()
        store = process.enter_context(killed(mirror.directory))
        left = [life for life in there if life.machine == machine and stood and life.stands_on == stood.life]
        has = self.checked(store, stood and self.lives[stood.life], left)
        for sent in store.lost:
            store.append_ended(sent.prompt, sent.model)
        self.lives[mirror.life] = Life(
            mirror, store, fault, process, machine, has, stood.life if stood and left else None
        )

    def checked(self, store: RunStore, before: Life | None, left: list[Life]) -> Kept:
        """What a new life has, against what it must have: of the life before, or of what one left on this machine."""
        calls = pl.concat(store.calls(("fingerprint",)))["fingerprint"].to_list()
        has = Kept(set(calls), {row for row in range(ROWS) if store.outcomes.done(row)})
        lost = {sent.fingerprint for sent in store.lost}
        assert len(calls) == len(has.calls), "a reply stands there twice"
        if left:
            assert (has.calls, has.rows, lost) == (left[-1].has.calls, left[-1].has.rows, {*left[-1].has.in_flight})
        elif before:
            assert before.put, "nothing is read of a life that had not begun"
            assert before.put.calls <= has.calls <= before.has.calls
            assert before.put.rows <= has.rows <= before.has.rows
            assert {*before.put.in_flight} <= lost | has.calls
        else:
            assert not has.calls | has.rows | lost
        return has

    # ---- what may happen

    def sent(self, life: Life, number: int) -> None:
        self.made += 1
        asked = prompt(number % ROWS, f"content {self.made}")
        life.store.append_sent(asked, MODEL)
        life.has.in_flight[asked.fingerprint(MODEL)] = asked

    def answered(self, life: Life, number: int) -> None:
        """One in flight comes back, or a new one does."""
        if not life.has.in_flight:
            self.sent(life, number)
        fingerprint = sorted(life.has.in_flight)[0]
        asked = life.has.in_flight.pop(fingerprint)
        life.store.append_call(asked, MODEL, paid(f"answer to {fingerprint}"))
        life.has.calls.add(fingerprint)

    def finished(self, life: Life, number: int) -> None:
        life.store.append_result(result(number % ROWS))
        life.has.rows.add(number % ROWS)

    def sealed(self, life: Life, number: int) -> None:
        anyio.run(life.store.seal)

    def pushed(self, life: Life, number: int) -> None:
        self.push(life, Fault())

    def away_at(self, life: Life, number: int) -> None:
        self.push(life, Fault(number, "away"))

    def late_at(self, life: Life, number: int) -> None:
        self.push(life, Fault(number, "late"))

    def overtaken_at(self, life: Life, number: int) -> None:
        self.push(life, Fault(number, "overtaken"))

    def lost_at(self, life: Life, number: int) -> None:
        """The way to the machine goes at one of the puts, and another takes over."""
        self.push(life, Fault(number, "lost"))
        self.machines += 1
        self.begin(self.machines)

    def killed(self, life: Life, number: int) -> None:
        """The process goes, and another goes on, there or where one was before."""
        life.process.close()
        life.is_gone = True
        self.begin(number % (self.machines + 1) if number > 6 else life.machine)

    def push(self, life: Life, fault: Fault) -> None:
        has = deepcopy(life.has)
        life.fault.left, life.fault.kind = fault.left, fault.kind
        try:
            life.mirror.push()
            life.put = has
        except (MachineLost, Away):
            if life.put is None and self.shard.get(f"{life.mirror.life.name}/began"):
                life.put = has
        life.fault.left = None
        if life.put:
            life.stands_on = life.mirror.life

    def end(self) -> None:
        for life in self.lives.values():
            life.process.close()


Happens = Callable[[World, Life, int], None]
BY_ZOMBIES: tuple[Happens, ...] = (
    World.sent,
    World.answered,
    World.finished,
    World.sealed,
    World.pushed,
    World.away_at,
)
HAPPENS: tuple[Happens, ...] = (
    *BY_ZOMBIES,
    World.late_at,
    World.overtaken_at,
    World.lost_at,
    World.lost_at,
    World.killed,
)
STEPS = st.lists(st.tuples(st.sampled_from(HAPPENS), st.booleans(), st.integers(0, 13)), min_size=1, max_size=40)


def play(steps: Sequence[tuple[Happens, bool, int]]) -> None:
    with TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as here:
        world = World(Path(here))
        try:
            for happens, by_zombie, number in steps:
                zombies = world.zombies if by_zombie and happens in BY_ZOMBIES else []
                happens(world, zombies[number % len(zombies)] if zombies else world.life, number)
            world.killed(world.life, 0)
            world.lost_at(world.life, 99)
        finally:
            world.end()


@settings(max_examples=25)
@given(STEPS)
def test_what_was_put_is_there_once_whatever_befalls_a_life(steps: list[tuple[Happens, bool, int]]) -> None:
    play(steps)


@pytest.mark.long
@settings(max_examples=3_000)
@given(STEPS)
def test_what_was_put_is_there_once_whatever_befalls_a_life_three_thousand_times(
    steps: list[tuple[Happens, bool, int]],
) -> None:
    play(steps)


@pytest.mark.parametrize("left", range(24))
def test_a_seal_may_be_cut_off_at_any_put(left: int) -> None:
    """A first push, a seal while replies are in flight, and a second push that stops after so many puts."""
    bought = [(World.answered, False, row) for row in (0, 1, 2)]
    play(
        [
            *((World.sent, False, 3), *bought, (World.pushed, False, 0)),
            *((World.answered, False, 1), (World.finished, False, 0), (World.sealed, False, 0), *bought),
            *((World.sent, False, 2), (World.lost_at, False, left), (World.pushed, True, 0)),
        ]
    )


@dataclass
class Film:
    """What a store had after each `every` changes: what a machine that is lost then leaves."""

    every: int
    frames: list[Objects] = field(default_factory=list)
    changes: int = 0

    def take(self, objects: Objects) -> None:
        self.changes += 1
        if self.changes % self.every == 0:
            frame = in_memory()
            for entry in objects.entries():
                frame.put(entry.name, objects.get(entry.name) or b"")
            self.frames.append(frame)


class Filmed(Objects):
    """Objects whose changes are filmed."""

    def __init__(self, objects: Objects, film: Film) -> None:
        super().__init__(objects.url, objects._store, objects._prefix)
        self._film = film

    def below(self, name: str) -> Objects:
        return Filmed(super().below(name), self._film)

    def put(self, name: str, data: bytes | Path) -> None:
        super().put(name, data)
        self._film.take(Objects(self.url, self._store))

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            super().delete([name])
            self._film.take(Objects(self.url, self._store))


def test_a_store_seals_while_it_is_put_and_each_moment_can_be_gone_on_from() -> None:
    """A thread pushes without a pause while another answers and seals: whatever is cut off stands as a run does."""
    with TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as here:
        seals_while_it_is_put(Path(here))


def seals_while_it_is_put(here: Path) -> None:
    film = Film(every=9)
    place = restore(Filmed(in_memory().below("shard"), film), here / "1", LifeId(1, 1))
    ended = Event()

    def push() -> None:
        while not ended.is_set():
            place.push()

    async def work() -> None:
        with killed(place.directory, seal_rows=3) as store:
            place.push()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, push)
                for row in range(60):
                    asked = [prompt(row, f"content {row} {call}") for call in range(3)]
                    for each in asked:
                        store.append_sent(each, MODEL)
                    for each in asked:
                        store.append_call(each, MODEL, paid(f"answer {row}"))
                        await anyio.sleep(0.001)
                    store.append_result(result(row))
                    if row % 5 == 4:
                        await store.seal()
                ended.set()

    anyio.run(work)
    assert len(film.frames) > 10
    seen = 0
    for number, frame in enumerate(film.frames):
        left = restore(frame.below("shard"), here / f"film {number}", LifeId(1, 2))
        with killed(left.directory) as store:
            calls = pl.concat(store.calls(("fingerprint",)))["fingerprint"].to_list()
            assert len(calls) == len(set(calls)) >= seen
            seen = len(calls)
            done = [row for row in range(60) if store.outcomes.done(row)]
            assert done == list(range(len(done)))
            assert seen >= 3 * len(done)
    assert seen > 100
