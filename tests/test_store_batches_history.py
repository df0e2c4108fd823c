"""Any history of sessions, batches and kills: what was asked once is waited for or found, and never asked twice."""

from collections import Counter
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import anyio
import pytest
from asking import MODEL, TARGET
from batch_stores import calls, key, line
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import CENT, killed, opened, paid, prompt, result
from test_store_run import Crash, steps

from pipeline import report
from pipeline.store import batched
from pipeline.store.batch_lines import Draft
from pipeline.store.batch_states import BatchState
from pipeline.store.run import RunStore

ROWS = 6
VERB = st.sampled_from(["park", "park", "live", "cut", "go", "go", "take", "seal", "finish", "release", "give up"])
SESSION = st.tuples(st.lists(st.tuples(VERB, st.integers(0, ROWS - 1)), max_size=20), st.none() | st.integers(0, 80))


class Service:
    """What was bought, and by which batches, as the service remembers it."""

    def __init__(self) -> None:
        self.bought: Counter[int] = Counter()  # by row
        self.created: dict[str, list[int]] = {}  # rows by the name of the file that was asked
        self.released: set[int] = set()  # rows that may be bought twice, as a person or a deadline wanted it

    def create(self, state: BatchState, rows: list[int]) -> None:
        assert state.file not in self.created, "a batch was created twice"
        self.created[state.file] = rows
        self.buy(*rows)

    def buy(self, *rows: int) -> None:
        self.bought.update(rows)
        for row in rows:
            assert self.bought[row] == 1 or row in self.released, f"row {row} was bought twice"


class Session:
    """A run that does what it is told, and asks only for what neither waits nor is found."""

    def __init__(self, store: RunStore, service: Service) -> None:
        self.store, self.service = store, service
        self.draft: Draft | None = None
        self.check()

    def check(self) -> None:
        """All that was bought is waited for or found, and counted once."""
        kept = Counter(row for frame in self.store.calls(("row",)) for row in frame["row"])
        for row in range(ROWS):
            waits = self.store.batches.out(f"content {row}") is not None
            if row not in self.service.released:
                assert self.is_found(row) <= (self.service.bought[row] == 1) <= (waits or self.is_found(row))
            assert kept[row] <= self.service.bought[row]
        assert self.store.cost_usd() == kept.total() * CENT

    def is_found(self, row: int) -> bool:
        return bool(self.store.reply(f"content {row}") or anyio.run(self.store.sealed_reply, f"content {row}"))

    def act(self, verb: str, row: int) -> None:
        batches = self.store.batches
        if verb in ("park", "live"):
            if self.is_found(row) or batches.out(f"content {row}", row) is not None or self.store.outcomes.done(row):
                return
            if verb == "live":
                self.store.append_call(prompt(row), MODEL, paid(f"answer {row}"))
                self.service.buy(row)  # a live reply that a kill loses is another test's
                return
            self.draft = self.draft or batches.draft(TARGET)
            self.draft.add(key(row), line(row))
        elif verb == "cut" and self.draft:
            draft, self.draft = self.draft, None
            draft.cut()
        elif verb == "seal":
            anyio.run(self.store.seal)
        elif verb == "finish" and self.is_found(row) and not self.store.outcomes.done(row):
            self.store.append_result(result(row))
        elif verb in ("go", "take"):
            for state in batches.open():
                self.go(state) if verb == "go" else self.take(state)
        elif verb in ("release", "give up") and (waiting := [state for state in batches.open() if state.name]):
            self.service.released.update(batches.waiting_rows(waiting[0].number))
            batches.note(waiting[0].number, "released" if verb == "release" else "given_up")

    def go(self, state: BatchState) -> None:
        """One step on; of a batch that was being asked for when a session was killed the service knows."""
        note, number = self.store.batches.note, state.number
        if state.stage == "asking":
            if state.file not in self.service.created:
                self.store.batches.again(number)
            else:
                note(number, "asked", name=state.file)
        elif state.stage == "uploaded":
            rows = self.store.batches.waiting_rows(number)
            state = note(number, "asking")
            self.service.create(state, rows)
            note(number, "asked", name=state.file)
        elif state.stage in ("cut", "upload"):
            note(number, "uploaded" if state.stage == "upload" else "upload")
        elif state.stage == "asked":
            self.store.batches.results_path(number).write_bytes(b"results")
            note(number, "fetched")

    def take(self, state: BatchState) -> None:
        if state.stage == "fetched":
            keys = {each.fingerprint: each for each in self.store.batches.keys(state.number)}
            kept = [
                call._replace(late=self.store.is_late(state.number, keys[call.fingerprint]))
                for call in calls(self.store.batches, state.number)
            ]
            self.store.batches.take(state.number, kept)


@settings(max_examples=40, deadline=None)
@given(st.lists(SESSION, min_size=1, max_size=5))
def test_no_history_of_batches_and_kills_loses_or_doubles_anything(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[tuple[list[tuple[str, int]], int | None]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched, "PART_CALLS", 2)
        play(tmp_path_factory.mktemp("history") / "notes", sessions)


def play(directory: Path, sessions: list[tuple[list[tuple[str, int]], int | None]]) -> None:
    service = Service()
    for actions, last in sessions:
        with suppress(Crash), steps(directory, last), killed(directory) as store:
            session = Session(store, service)
            for action in actions:
                session.act(*action)
    with opened(directory) as store:
        session = Session(store, service)
        for row in range(ROWS):
            session.act("park", row)
        session.act("cut", 0)
        for _ in range(6):
            session.act("go", 0)
        session.act("take", 0)
        session.check()
        assert not store.batches.open() and not list((directory / "batches").iterdir())
        for row in range(ROWS):
            session.act("finish", row)
        assert all(store.outcomes.done(row) for row in range(ROWS))
    summary = report.summarize(directory)
    assert summary.outcomes["ok"] == ROWS and summary.cost_usd == Decimal(summary.calls) * CENT
    assert summary.calls == service.bought.total() or service.released
    report.verify(directory)
