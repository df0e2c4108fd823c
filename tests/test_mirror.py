"""A shard's run directory and its objects: what lies where, what is put when, and the form of a shard that is whole."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from asking import MODEL
from desks import without_threads
from storage import Fault, Faulty, in_folder, in_memory
from stores import answer, in_flight, killed, opened, paid, prompt, sealed
from vclock import run

from pipeline.errors import RESUMABLE, RunStateError
from pipeline.events import Event, StoreTrouble
from pipeline.objects import Away, Objects
from pipeline.objects import opened as objects_at
from pipeline.report.tallies import done_of, write_done
from pipeline.store import mirror
from pipeline.store.compact import compact
from pipeline.store.lives import LifeId, Stood, bring, is_brought, standing
from pipeline.store.mirror import PUSH_S, Mirror, keep, new_claim, patiently, restore

FIRST, SECOND, THIRD = LifeId(1, 1), LifeId(1, 2), LifeId(2, 1)


@pytest.fixture(params=["memory", "folder", "s3"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "s3":
        return objects_at(f"{request.getfixturevalue('s3')}/{tmp_path.name}/shards/00017")
    return (in_memory() if request.param == "memory" else in_folder(tmp_path / "store")).below("shards/00017")


def names(shard: Objects) -> list[str]:
    return [entry.name for entry in shard.entries()]


def state(directory: Path) -> tuple[Any, ...]:
    """All that a run directory says."""
    calls, results = (sealed(directory, kind).drop("finished_at").rows() for kind in ("calls", "results"))
    return sorted(calls, key=str), sorted(results, key=str), in_flight(directory)


def make_whole(place: Mirror, rows: int = 3) -> None:
    """A shard that is done, as a worker leaves it."""
    with opened(place.directory) as store:
        place.push()
        for row in range(rows):
            answer(store, row)
            anyio.run(store.seal)
            place.push()
    write_done(place.directory, rows)


def test_a_life_goes_on_where_the_one_before_was_lost(shard: Objects, tmp_path: Path) -> None:
    first = restore(shard, tmp_path / "1", FIRST)
    with killed(first.directory) as store:
        first.push()
        answer(store, 0)
        anyio.run(store.seal)
        answer(store, 1)
        store.append_sent(prompt(2), MODEL)
        store.log(StoreTrouble("one", is_away=True))
        first.push(last=True)
        store.append_call(prompt(2), MODEL, paid("lost"))
    second = restore(shard, tmp_path / "2", SECOND)
    assert in_flight(second.directory) == {prompt(2).fingerprint(MODEL)}
    with killed(second.directory) as store:
        assert [sent.row for sent in store.lost] == [2]
        assert [store.outcomes.done(row) for row in range(3)] == [True, True, False]
        second.push()
        store.log(StoreTrouble("two", is_away=True))
        second.push(last=True)
        assert {name.partition("/")[0] for name in names(shard)} == {SECOND.name}, "the first is taken away"
        logged = (second.directory / "run.log").read_bytes()
    read_by = tmp_path / "read"
    assert bring(shard, read_by) == Stood(SECOND, False)
    assert state(read_by) == state(second.directory)
    assert (read_by / "run.log").read_bytes() == logged


def test_what_is_brought_is_for_the_user_alone(tmp_path: Path) -> None:
    shard = in_memory()
    first = restore(shard, tmp_path / "1", FIRST)
    make_whole(first)
    first.push(last=True)
    for number in range(2):
        place = tmp_path / f"read {number}"
        bring(shard, place)
        for path in (place, *place.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        first.finish()


def test_a_whole_shard_is_five_objects_with_its_rows(shard: Objects, tmp_path: Path) -> None:
    shard.put("input.parquet", b"rows")
    first = restore(shard, tmp_path / "1", FIRST)
    make_whole(first)
    was = state(first.directory)
    compact(first.directory)
    write_done(first.directory, 3)
    first.finish()
    done = "done-000001-000001"
    part = "part-000001-000003.parquet"
    assert names(shard) == [
        f"{done}/calls/{part}", f"{done}/done.json", f"{done}/rest.tar", f"{done}/results/{part}", "input.parquet",
    ]  # fmt: skip
    assert len(names(shard)) * 1_000 + 5 < 5_010, "of a run of a billion rows, with five of the driver's"
    place = tmp_path / "read"
    assert bring(shard, place) == Stood(FIRST, True)
    assert state(place) == was
    assert done_of(place)
    second = restore(shard, tmp_path / "2", SECOND)  # as `--retry` opens it
    with opened(second.directory) as store:
        assert not store.outcomes.pending(3)
        answer(store, 1)
        second.push()
        assert standing(names(shard)) == Stood(SECOND, False)
    second.push(last=True)
    third = restore(shard, tmp_path / "3", THIRD)
    assert state(third.directory) == state(second.directory) != was


def test_a_part_is_put_once_and_copied_by_the_store_from_life_to_life(tmp_path: Path) -> None:
    shard, fault = in_memory(), Fault()
    first = restore(shard, tmp_path / "1", FIRST)
    with killed(first.directory) as store:
        for row in range(3):
            answer(store, row)
            anyio.run(store.seal)
            first.push()
    put: list[str] = []

    class Watched(Faulty):
        def below(self, name: str) -> Objects:
            return Watched(super().below(name), fault)

        def put(self, name: str, data: bytes | Path) -> None:
            put.append(name)
            super().put(name, data)

    second = restore(Watched(shard, fault), tmp_path / "2", SECOND)
    with killed(second.directory) as store:
        second.push()
    assert not [name for name in put if "part-" in name]
    third = restore(shard, tmp_path / "3", THIRD)
    assert state(third.directory) == state(second.directory)


def test_a_part_that_a_zombie_sealed_is_not_taken_for_ours(tmp_path: Path) -> None:
    shard = in_memory()
    first = restore(shard, tmp_path / "1", FIRST)
    with killed(first.directory) as zombie:
        answer(zombie, 0)
        first.push()
        second = restore(shard, tmp_path / "2", SECOND)
        answer(zombie, 1)
        anyio.run(zombie.seal)
        first.push()
        with killed(second.directory) as store:
            answer(store, 2)
            second.push()
    third = restore(shard, tmp_path / "3", THIRD)
    assert state(third.directory) == state(second.directory)


def test_a_push_costs_one_put_where_answers_came_and_none_where_none_did(tmp_path: Path) -> None:
    shard, fault = in_memory(), Fault()
    first = restore(Faulty(shard, fault), tmp_path / "1", FIRST)
    with killed(first.directory) as store:
        first.push()
        began = fault.done
        for row in range(5):
            answer(store, row)
            store.log(StoreTrouble("told now and then", is_away=True))
            first.push()
            first.push()
        assert fault.done - began == 5, "the log waits for its minute"
    assert 86_400 / PUSH_S == 17_280, "a day, at most, and one of the log a minute"


def test_pieces_of_a_journal_are_small_and_no_line_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "PIECE_BYTES", 100)
    shard = in_memory()
    first = restore(shard, tmp_path / "1", FIRST)
    with killed(first.directory) as store:
        answer(store, 0)
        journal = next(first.directory.glob("journal-*.jsonl"))
        with journal.open("ab") as file:
            file.write(b'{"call": half of a li')
        first.push()
        os.truncate(journal, journal.stat().st_size - 21)
        answer(store, 1)
        first.push()
        pieces = [entry.size for entry in shard.entries() if "/journal-" in entry.name]
        assert len(pieces) > 10 and max(pieces) <= 100 and sum(pieces) == journal.stat().st_size
    place = tmp_path / "read"
    bring(shard, place)
    assert (place / journal.name).read_bytes() == journal.read_bytes()


@pytest.mark.parametrize("looked_at", ["journal_paths", "files"])
def test_a_seal_while_a_push_looks_around_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked_at: str
) -> None:
    """Else what is put would tell of a journal that is gone, or lack what a part took over."""
    shard = in_memory()
    first = restore(shard, tmp_path / "1", FIRST)
    with killed(first.directory) as store:
        first.push()
        answer(store, 0)
        anyio.run(store.seal)
        answer(store, 1)
        look, seals = getattr(mirror, looked_at), [store.seal]

        def sealed_meanwhile(directory: Path) -> Any:
            if seals:
                anyio.run(seals.pop())
                answer(store, 2)
            return look(directory)

        monkeypatch.setattr(mirror, looked_at, sealed_meanwhile)
        first.push()
        assert not seals
    second = restore(shard, tmp_path / "2", SECOND)
    assert state(second.directory) == state(first.directory)


def test_a_journal_that_is_not_what_was_put_ends_the_run(tmp_path: Path) -> None:
    first = restore(in_memory(), tmp_path / "1", FIRST)
    with killed(first.directory) as store:
        answer(store, 0)
        first.push()
        journal = next(first.directory.glob("journal-*.jsonl"))
        os.truncate(journal, journal.stat().st_size - 30)
        answer(store, 1)
        with pytest.raises(RunStateError, match="is not what it was"):
            first.push()


def test_a_piece_that_is_gone_is_missed(tmp_path: Path) -> None:
    shard = in_memory()
    first = restore(shard, tmp_path / "1", FIRST)
    with killed(first.directory) as store:
        for row in range(3):
            answer(store, row)
            first.push()
    shard.delete([name for name in names(shard) if "/journal-000001/000002-" in name])
    with pytest.raises(RunStateError, match="journal-000001/000002 is missing"):
        restore(shard, tmp_path / "2", SECOND)


@pytest.mark.parametrize("left", [0.0, 0.5, 1.0])
def test_a_piece_that_is_not_what_was_put_is_no_crash(tmp_path: Path, left: float) -> None:
    """The last one, too, whose half line might be that of a killed process; `left` of 1 stands for another piece's."""
    shard = in_memory()
    first = restore(shard, tmp_path / "1", FIRST)
    with killed(first.directory) as store:
        first.push()
        for row in range(2):
            answer(store, row)
            first.push()
    before, last = sorted(name for name in names(shard) if "/journal-" in name)[-2:]
    content = shard.get(last if left < 1 else before) or b""
    cut = content.rfind(b"\n", 0, int(len(content) * left)) + 1 if left < 1 else len(content)
    shard.put(last, content[:cut])
    with pytest.raises(RunStateError, match=f"{last} was changed"):
        restore(shard, tmp_path / "2", SECOND)


def test_what_is_gone_is_named_where_something_tells_of_it(tmp_path: Path) -> None:
    begun, whole = in_memory(), in_memory()
    for shard in (begun, whole):
        with killed(restore(shard, tmp_path / str(id(shard)), FIRST).directory):
            pass
        life = restore(shard, tmp_path / f"{id(shard)}-2", SECOND)
        make_whole(life)
    life.finish()
    for shard, name in ((begun, "manifest.json"), (begun, "calls/part-000001.parquet"), (whole, "rest.tar")):
        stood = standing(names(shard))
        assert stood
        content = shard.get(f"{stood.name}/{name}")
        assert content
        shard.delete([f"{stood.name}/{name}"])
        with pytest.raises(RunStateError, match=f"{stood.name}/{name} is missing"):
            bring(shard, tmp_path / "there")
        shard.put(f"{stood.name}/{name}", content)
        assert bring(shard, tmp_path / "there")


def test_a_life_is_claimed_once_and_no_earlier_one_follows(tmp_path: Path) -> None:
    shard = in_memory()
    second = restore(shard, tmp_path / "1", SECOND)
    with pytest.raises(RunStateError, match="is another worker's"):
        restore(shard, tmp_path / "2", SECOND)
    first = restore(shard, tmp_path / "3", FIRST)  # as the second has not begun
    for place in (first, second):
        with killed(place.directory) as store:
            answer(store, place.life.number)
            place.push()
            place.push()
    assert standing(names(shard)) == Stood(SECOND, False)
    with pytest.raises(RunStateError, match="a later life"):
        restore(shard, tmp_path / "4", LifeId(1, 1))


def test_a_zombie_that_finishes_does_not_count(tmp_path: Path) -> None:
    shard = in_memory()
    first = restore(shard, tmp_path / "1", FIRST)
    make_whole(first)
    first.push()
    second = restore(shard, tmp_path / "2", SECOND)
    with killed(second.directory) as store:
        answer(store, 7)
        second.push()
        first.finish()
        assert standing(names(shard)) == Stood(SECOND, False)
        store.append_sent(prompt(8), MODEL)
        second.push()
    third = restore(shard, tmp_path / "3", THIRD)
    assert state(third.directory) == state(second.directory)


@pytest.mark.parametrize("left", range(12))
def test_a_shard_is_whole_or_goes_on_wherever_its_end_is_cut_off(tmp_path: Path, left: int) -> None:
    shard, fault = in_memory(), Fault()
    first = restore(Faulty(shard, fault), tmp_path / "1", FIRST)
    make_whole(first)
    first.push(last=True)
    was = state(first.directory)
    compact(first.directory)
    write_done(first.directory, 3)
    fault.left, fault.kind = left, "away"
    try:
        first.finish()
    except Away:
        stood = bring(shard, tmp_path / "read")
        assert stood and stood.life == FIRST
    place = restore(shard, tmp_path / ("1" if left % 2 else "2"), SECOND)
    assert state(place.directory) == was
    with opened(place.directory) as store:
        assert not store.outcomes.pending(3)
    place.push(last=True)
    assert state(place.directory) == was


def test_what_was_brought_is_not_brought_twice(tmp_path: Path) -> None:
    shard = in_memory()
    first, place = restore(shard, tmp_path / "1", FIRST), tmp_path / "read"
    with opened(first.directory) as store:
        for row in range(3):
            answer(store, row)
            anyio.run(store.seal)
        first.push()
        bring(shard, place)
        part = place / "calls/part-000001.parquet"
        seen = part.stat().st_ino
        answer(store, 3)
        first.push()
        bring(shard, place)
        assert part.stat().st_ino == seen
        assert state(place) == state(first.directory)
    write_done(first.directory, 4)
    first.finish()
    bring(shard, place)
    seen = (place / "done.json").stat().st_ino
    bring(shard, place)
    assert (place / "done.json").stat().st_ino == seen
    shard.delete(names(shard))
    assert bring(shard, place) is None
    assert not list(place.iterdir())


def test_answers_in_a_journal_whose_mark_is_gone_are_missed(tmp_path: Path) -> None:
    shard = in_memory()
    life = restore(shard, tmp_path / "one", FIRST)
    with killed(life.directory) as store:
        life.push()
        shard.delete([f"{FIRST.name}/began"])
        assert bring(shard, tmp_path / "two") is None, "a crash does that, and nothing was bought"
        answer(store, 0)
        life.push()
    with pytest.raises(RunStateError, match="began is missing"):
        restore(shard, tmp_path / "three", SECOND)


@pytest.mark.parametrize("is_done", [True, False])
def test_answers_whose_mark_is_gone_are_not_bought_again_in_silence(tmp_path: Path, is_done: bool) -> None:
    shard = in_memory()
    life = restore(shard, tmp_path / "one", FIRST)
    make_whole(life)
    if is_done:
        life.finish()
    mark = "done-000001-000001/done.json" if is_done else "life-000001-000001/began"
    shard.delete([mark])
    with pytest.raises(RunStateError, match=f"{mark} is missing"):
        bring(shard, tmp_path / "two")
    with pytest.raises(RunStateError, match=f"{mark} is missing"):
        restore(shard, tmp_path / "three", SECOND)
    assert not is_brought(tmp_path / "two", {entry.name: entry.size for entry in shard.entries()})


def test_a_run_that_was_not_brought_is_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as store:
        answer(store, 0)
    with pytest.raises(RunStateError, match="was not brought there"):
        bring(in_memory(), tmp_path / "run")
    assert (tmp_path / "run/calls/part-000001.parquet").exists()


def test_what_a_living_process_holds_is_left_alone(tmp_path: Path) -> None:
    shard = in_memory()
    first = restore(shard, tmp_path, FIRST)
    with killed(first.directory) as store:
        first.push()
        answer(store, 0)
        second = restore(shard, tmp_path, SECOND)
        assert second.directory != first.directory and first.directory.exists()
        assert not list(second.directory.glob("journal-*/*"))
    third = restore(shard, tmp_path, THIRD)
    assert not first.directory.parent.joinpath(SECOND.name).exists(), "that one had not begun"
    assert state(third.directory) and not first.directory.exists(), "taken over"
    with killed(third.directory) as store:
        assert store.outcomes.done(0)


# ---- a store that is away


class Weather:
    """A mirror whose store is there at some times, in seconds."""

    url = "s3://bucket/runs/notes/shards/00017"

    def __init__(self, away: range) -> None:
        self.away = away
        self.pushed: list[float] = []

    def push(self) -> None:
        if int(anyio.current_time()) in self.away:
            raise Away(f"{self.url} cannot be reached: connection refused")
        self.pushed.append(anyio.current_time())


def kept(weather: Weather, seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    without_threads(monkeypatch)
    heard: list[str] = []

    def hear(event: Event) -> None:
        assert isinstance(event, StoreTrouble)
        heard.append(event.message)

    async def live() -> None:
        with anyio.move_on_after(seconds):
            await keep(weather, hear)  # type: ignore[arg-type]

    try:
        run(live)
    except Away as error:
        assert error.exit_code == RESUMABLE
        heard.append(error.message)
    return heard


def test_a_store_that_is_away_for_a_minute_is_told_once_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    weather = Weather(range(100, 160))
    heard = kept(weather, 300, monkeypatch)
    assert len(heard) == 2
    assert "connection refused; the run goes on without it for 120 s at most" in heard[0]
    assert "is there again" in heard[1]
    assert len(weather.pushed) == pytest.approx(240 / PUSH_S, abs=2)


def test_a_store_that_is_away_for_ten_minutes_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    weather = Weather(range(100, 700))
    heard = kept(weather, 10_000, monkeypatch)
    assert len(heard) == 2
    assert "no more is bought that it cannot keep" in heard[1]
    assert max(weather.pushed) <= 100


def asked_of(weather: Weather, monkeypatch: pytest.MonkeyPatch, patience_s: float = 10_000) -> tuple[float, list[str]]:
    """When a push has ended that is asked for at 100 s, and what was told meanwhile."""
    without_threads(monkeypatch)
    heard: list[str] = []

    async def ask() -> float:
        await anyio.sleep(100)
        with suppress(Away):
            waits = lambda: anyio.current_time() < 100 + patience_s  # noqa: E731
            await patiently(weather.push, lambda event: heard.append(str(event)), waits)
        return anyio.current_time()

    return run(ask), heard


def test_a_shard_that_begins_or_ends_while_its_store_is_away_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    weather = Weather(range(100, 160))
    ended_at, heard = asked_of(weather, monkeypatch)
    assert weather.pushed == [ended_at] and 160 <= ended_at <= 160 + PUSH_S
    assert len(heard) == 2 and "is there again" in heard[1]


@pytest.mark.parametrize(("patience_s", "least_s"), [(10_000, 120), (30, 30), (0, 0)])
def test_nobody_waits_for_ever_nor_for_a_run_that_is_stopped(
    patience_s: float, least_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weather = Weather(range(100, 700))
    ended_at, _ = asked_of(weather, monkeypatch, patience_s)
    assert not weather.pushed and least_s <= ended_at - 100 <= least_s + PUSH_S


def test_a_life_whose_claim_or_state_was_away_is_taken_up_by_the_one_that_claimed_it(tmp_path: Path) -> None:
    shard = in_memory()
    first = restore(shard, tmp_path / "one", FIRST)
    make_whole(first)
    claim = new_claim()
    with pytest.raises(Away), pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "bring", lambda *_: away())
        restore(shard, tmp_path / "two", SECOND, claim)
    again = restore(shard, tmp_path / "two", SECOND, claim)
    assert state(again.directory) == state(first.directory)
    with pytest.raises(RunStateError, match="another worker's"):
        restore(shard, tmp_path / "three", SECOND, new_claim())


def away() -> None:
    raise Away("the store is away")


def test_a_store_that_refuses_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RunStateError("access was refused")

    weather = Weather(range(0))
    monkeypatch.setattr(weather, "push", refuse)
    with pytest.raises(RunStateError, match="access was refused"):
        kept(weather, 100, monkeypatch)
