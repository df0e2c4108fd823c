"""Rows that wait for batches: closed, opened again when their answers are in, live where their batch gave none."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import vclock
from asking import TARGET, UNLIMITED
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import manifest, opened, paid

from jobs import CHUNKED, PLAIN, make_job
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.errors import RowsFailed
from pipeline.job import Job
from pipeline.plan.lanes import SCOUTS
from pipeline.prompts import Prompt
from pipeline.providers.stored import parse_stored
from pipeline.records import STATUSES, Document, Reply
from pipeline.run.course import Course
from pipeline.run.engine import Engine, Monitor
from pipeline.run.rounds import Rounds
from pipeline.store.run import RunStore
from pipeline.targets import Route, Target

ROUTE = Route((TARGET,))


@pytest.fixture(autouse=True)
def _without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that is made up does not wait for a thread."""

    async def run_sync(function: Callable[..., object], *args: object, **kwargs: object) -> object:
        return function(*args)

    monkeypatch.setattr("anyio.to_thread.run_sync", run_sync)


def long(name: object) -> str:
    """A text of several pieces, none of which another one has."""
    return "".join(f"This is sentence {n} of report {name}. " for n in range(60))


@dataclass
class Batch:
    """Batches of a service of our own: so many lines each, back after so many seconds, some lines without an answer."""

    lines: int = 7
    back_s: float = 600.0
    fails: Callable[[Prompt], bool] = lambda prompt: False
    is_lost: Callable[[int], bool] = lambda number: False
    is_called: Callable[[int], bool] = lambda number: False  # in, before it has anything
    answers: dict[str, Reply] = field(default_factory=dict)
    asked: list[Prompt] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)  # lines of each batch
    draft: dict[str, Prompt] = field(default_factory=dict)
    _out: dict[int, tuple[float, dict[str, Prompt]]] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    taken: Callable[[int, list[int]], None] = lambda number, live: None
    closed: bool = False

    def waits(self, prompt: Prompt, model: str) -> int | None:
        content = prompt.fingerprint(model)
        if content in self.draft:
            return len(self.cut) + 1
        return next((number for number, (_, lines) in self._out.items() if content in lines), None)

    async def add(self, prompt: Prompt, target: Target) -> int | None:
        content = prompt.fingerprint(target.model)
        if content in self.tried or self.closed:
            return None
        self.draft[content] = prompt
        self.asked.append(prompt)
        number = len(self.cut) + 1
        if len(self.draft) >= self.lines:
            self.flush()
        await anyio.lowlevel.checkpoint()
        return number

    def is_open(self, number: int) -> bool:
        return number in self._out or bool(number == len(self.cut) + 1 and self.draft)

    def flush(self) -> None:
        if self.draft:
            self.cut.append(len(self.draft))
            self._out[len(self.cut)] = anyio.current_time() + self.back_s, self.draft
            self.draft = {}

    async def run(self) -> None:
        while not self.closed:
            for number, (due, lines) in list(self._out.items()):
                if due <= anyio.current_time():
                    del self._out[number]
                    is_empty = self.is_lost(number) or self.is_called(number)
                    failed = [one for one in lines.values() if is_empty or self.fails(one)]
                    kept = {content: one for content, one in lines.items() if one not in failed}
                    self.answers |= {content: paid(f"b{one.row}.{one.chunk}") for content, one in kept.items()}
                    self.tried |= set() if self.is_called(number) else lines.keys() - kept.keys()
                    self.taken(number, [one.row for one in failed])
            await anyio.sleep(1.0)

    def close(self) -> None:
        self.closed = True

    @property
    def out(self) -> int:
        return len(self._out)

    @property
    def has_late(self) -> bool:
        return False

    @property
    def is_idle(self) -> bool:
        return not self._out and not self.draft

    @property
    def is_settled(self) -> bool:
        return not self.draft


@dataclass
class Played:
    engine: Engine
    rounds: Rounds
    batch: Batch
    live: list[Prompt]
    seconds: float
    most_open: int


def play(
    path: Path,
    job: Job,
    texts: list[str],
    batch: Batch,
    *,
    share: float = 1.0,
    course: Course | None = None,
    live: Callable[[Prompt], Reply] = lambda prompt: paid(f"l{prompt.row}.{prompt.chunk}"),
    live_s: float = 1.0,
    leaves: bool = False,
    during: Callable[[Rounds, Engine], None] | None = None,
) -> Played:
    """One session, in virtual time; each row is read again as often as it is opened."""
    open_now: Counter[int] = Counter()
    most_open = 0

    def documents(wanted: Callable[[int], bool], spread: bool) -> Iterator[list[Document]]:
        for start in range(0, len(texts), 16):
            rows = [row for row in range(start, min(start + 16, len(texts))) if wanted(row)]
            yield [Document(row, f"k{row}", {"topic": texts[row]}, texts[row]) for row in rows]

    async def body() -> Played:
        store = RunStore(path / "run", parse_stored)
        store.open(manifest())
        asked: list[Prompt] = []

        async def generate(prompt: Prompt, target: Target, tries: object) -> Reply:
            asked.append(prompt)
            await anyio.sleep(live_s)
            return replace(live(prompt), endpoint=target.endpoint, asked=target.model)

        monitor = Monitor(len(texts))
        desk = Dispatcher(generate, Route((replace(TARGET, limits=UNLIMITED),)))
        rounds = Rounds(
            len(texts),
            lambda row: not store.outcomes.done(row),
            documents,
            batch,
            lambda route: (0, route.targets),
            course or Course([{TARGET.name: share}]),
            leaves=leaves,
            is_stopping=lambda: monitor.stopping,
        )
        batch.taken = rounds.taken

        async def call(prompt: Prompt) -> Reply:
            nonlocal most_open
            open_now[prompt.row] += 1
            most_open = max(most_open, len(open_now))
            try:
                content = prompt.fingerprint(TARGET.model)
                if content in batch.answers:
                    return batch.answers[content]
                await rounds.parks(prompt, ROUTE)
                reply = batch.answers[content] = await desk.submit(prompt)
                return reply
            finally:
                open_now[prompt.row] -= 1
                if not open_now[prompt.row]:
                    del open_now[prompt.row]

        engine = Engine(job, [rounds.batched, rounds.live], store, lambda document: call, desk, monitor, rounds=rounds)
        began = anyio.current_time()
        if during:
            during(rounds, engine)
        await engine.run()
        store.close()
        return Played(engine, rounds, batch, asked, anyio.current_time() - began, most_open)

    return vclock.run(body)


def outcomes(path: Path) -> Counter[str]:
    with opened(path / "run") as store:
        counts = {status: store.outcomes.count(status) for status in STATUSES}
    return Counter({status: count for status, count in counts.items() if count})


def test_every_row_goes_to_a_batch_and_ends_when_it_is_in(tmp_path: Path) -> None:
    played = play(tmp_path, make_job(tmp_path, PLAIN), [f"t{n}" for n in range(40)], Batch())
    assert played.batch.cut == [7, 7, 7, 7, 7, 5] and not played.live
    assert outcomes(tmp_path) == {"ok": 40}
    assert 600 < played.seconds < 660


def test_map_reduce_goes_by_rounds_and_each_prompt_is_asked_once(tmp_path: Path) -> None:
    texts = [long(n) for n in range(9)]
    played = play(tmp_path, make_job(tmp_path, CHUNKED), texts, Batch(lines=20))
    steps = Counter(prompt.step for prompt in played.batch.asked)
    contents = [prompt.fingerprint(TARGET.model) for prompt in played.batch.asked]
    assert steps["map"] > 27 and steps["reduce"] >= 9 and len(contents) == len(set(contents))
    assert outcomes(tmp_path) == {"ok": 9} and not played.live
    assert 1200 < played.seconds < 2400


def test_a_later_round_without_time_for_two_more_is_asked_live(tmp_path: Path) -> None:
    texts = [long(n) for n in range(4)]
    course = Course([{TARGET.name: 1.0}], last_call=1600.0, round_s=700.0)
    played = play(tmp_path, make_job(tmp_path, CHUNKED), texts, Batch(lines=200), course=course)
    assert {prompt.step for prompt in played.batch.asked} == {"map"}
    assert {prompt.step for prompt in played.live} == {"reduce"}
    assert outcomes(tmp_path) == {"ok": 4}


def test_what_a_batch_did_not_answer_is_asked_live_and_nothing_else(tmp_path: Path) -> None:
    batch = Batch(lines=10, fails=lambda prompt: prompt.row % 4 == 0, is_lost=lambda number: number == 2)
    played = play(tmp_path, make_job(tmp_path, PLAIN), [f"t{n}" for n in range(50)], batch)
    second = {prompt.row for prompt in played.batch.asked[10:20]}
    assert {prompt.row for prompt in played.live} == {row for row in range(50) if row % 4 == 0} | second
    assert outcomes(tmp_path) == {"ok": 50}


def test_what_a_batch_was_called_in_with_goes_to_no_other(tmp_path: Path) -> None:
    """Though the desk would take it: it would be paid for twice, and be called in again."""
    batch = Batch(lines=10, is_called=lambda number: number == 2)
    played = play(tmp_path, make_job(tmp_path, PLAIN), [f"t{n}" for n in range(50)], batch)
    assert {prompt.row for prompt in played.live} == {prompt.row for prompt in played.batch.asked[10:20]}
    assert len(played.batch.asked) == 50 and outcomes(tmp_path) == {"ok": 50}


def test_rows_of_the_same_content_wait_for_one_line(tmp_path: Path) -> None:
    played = play(tmp_path, make_job(tmp_path, PLAIN), ["same"] * 30 + ["other"], Batch(lines=100))
    assert len(played.batch.asked) == 2 and outcomes(tmp_path) == {"ok": 31}


def test_a_share_goes_to_batches_while_the_others_are_asked_live(tmp_path: Path) -> None:
    played = play(tmp_path, make_job(tmp_path, PLAIN), [f"t{n}" for n in range(1000)], Batch(lines=50), share=0.3)
    assert len(played.batch.asked) == pytest.approx(300, abs=15)
    assert len(played.live) == 1000 - len(played.batch.asked)
    assert {prompt.row for prompt in played.live}.isdisjoint(prompt.row for prompt in played.batch.asked)


def test_live_rows_that_wait_for_quota_keep_no_batch_from_being_cut(tmp_path: Path) -> None:
    cut_at: list[float] = []

    class Timed(Batch):
        def flush(self) -> None:
            cut_at.append(anyio.current_time())
            super().flush()

    texts = [f"t{n}" for n in range(4000)]
    played = play(tmp_path, make_job(tmp_path, PLAIN), texts, Timed(lines=100), share=0.5, live_s=90.0)
    assert outcomes(tmp_path) == {"ok": 4000} and len(played.live) > 1900
    assert sum(at < 120.0 for at in cut_at) >= 19  # only the scouts were waited for


def test_what_a_batch_did_not_answer_is_asked_live_at_once_however_long_the_live_rows_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.feeds.MAX_OPEN_DOCUMENTS", 32)
    texts = [f"t{n}" for n in range(600)]
    batch = Batch(lines=100, fails=lambda prompt: True)
    played = play(tmp_path, make_job(tmp_path, PLAIN), texts, batch, share=0.5, live_s=30.0)
    assert outcomes(tmp_path) == {"ok": 600} and len(batch.asked) > 250
    assert played.seconds < 1200  # 300 rows take 300 s, and as much again after the 600 of the batches


def test_rows_that_are_ready_are_read_together_and_at_once_where_nothing_more_is_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    async def slowly(function: Callable[..., object], *args: object, **kwargs: object) -> object:
        nonlocal reads
        if function.__name__ == "_next":
            reads += 1
            await anyio.sleep(20.0)
        return function(*args)

    monkeypatch.setattr("anyio.to_thread.run_sync", slowly)
    played = play(tmp_path, make_job(tmp_path, PLAIN), [f"t{n}" for n in range(40)], Batch(lines=14))
    assert outcomes(tmp_path) == {"ok": 40} and played.batch.cut == [14, 14, 12]
    assert reads <= 8  # two passes of three blocks, and the end of the first
    assert played.seconds < 800  # 80 s of reading, 600 out, and again; a tenth would be from the 800th second on


def test_five_rows_go_ahead_and_stop_a_run_that_is_wrong(tmp_path: Path) -> None:
    def refused(prompt: Prompt) -> Reply:
        return replace(paid(""), status="blocked", error_kind="prompt_blocked", error="no")

    texts = [f"t{n}" for n in range(500)]
    played = play(tmp_path, make_job(tmp_path, PLAIN), texts, Batch(), live=refused)
    assert isinstance(played.engine.stopped, RowsFailed)
    assert len(played.live) == SCOUTS and not played.batch.asked
    assert max(prompt.row for prompt in played.live) > 400 > 100 > min(prompt.row for prompt in played.live)


def test_a_run_that_leaves_ends_when_only_batches_are_waited_for(tmp_path: Path) -> None:
    played = play(tmp_path, make_job(tmp_path, PLAIN), [f"t{n}" for n in range(40)], Batch(), leaves=True)
    assert played.seconds < 60 and played.rounds.waiting == 40 and sum(played.batch.cut) == 40
    assert outcomes(tmp_path) == {}


def test_a_share_that_grows_takes_rows_that_were_not_opened_yet(tmp_path: Path) -> None:
    course = Course([{TARGET.name: 0.1}])

    def during(rounds: Rounds, engine: Engine) -> None:
        async def later() -> None:
            await anyio.sleep(70.0)
            course.shares = [{TARGET.name: 0.9}]
            rounds.steered()

        import asyncio

        engine.later = asyncio.ensure_future(later())  # type: ignore[attr-defined]

    texts = [f"t{n}" for n in range(12_000)]
    batch = Batch(lines=1000)
    played = play(tmp_path, make_job(tmp_path, PLAIN), texts, batch, course=course, live_s=30.0, during=during)
    rows = [prompt.row for prompt in (*played.live, *batch.asked)]
    assert sorted(rows) == list(range(12_000))
    assert 1200 < len(batch.asked) < 10_000 and outcomes(tmp_path) == {"ok": 12_000}


@given(
    share=st.floats(0, 1),
    lines=st.integers(1, 40),
    lost=st.sets(st.integers(1, 6)),
    bad=st.integers(1, 9),
    same=st.integers(1, 30),
    chunked=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_every_row_ends_once_whatever_becomes_of_the_batches(
    tmp_path_factory: pytest.TempPathFactory,
    share: float,
    lines: int,
    lost: set[int],
    bad: int,
    same: int,
    chunked: bool,
) -> None:
    path = tmp_path_factory.mktemp("rounds")
    batch = Batch(lines=lines, fails=lambda prompt: prompt.row % bad == 1, is_lost=lambda number: number in lost)
    texts = [long(row % same) if chunked and row % 3 else str(row % same) for row in range(40)]
    played = play(path, make_job(path, CHUNKED if chunked else PLAIN), texts, batch, share=share)
    assert outcomes(path) == {"ok": 40}
    contents = [prompt.fingerprint(TARGET.model) for prompt in batch.asked]
    assert len(contents) == len(set(contents))
    assert played.rounds.waiting == 0 and not batch.out and not batch.draft
